//! tshark's view of a capture, as flow rows with weir's column names: what the differential test compares weir with.
//!
//! tshark prints its dissection as PDML, an XML with one element a line. Only what tshark says is used here (`show`), but
//! for labels and MAC addresses where it prints names.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::command::{program, run};
use crate::wait::LONG;

/// A row under weir's names.
pub type Row = Map<String, Value>;

/// An element of the dissection.
#[derive(Debug, Default)]
struct Node {
    name: String,
    show: String,
    children: Vec<Node>,
}

impl Node {
    fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.name == name)
    }

    fn number(&self) -> Option<u64> {
        match self.show.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => self.show.parse().ok(),
        }
    }
}

fn attribute(line: &str, name: &str) -> String {
    let begin = format!(" {name}=\"");
    let value =
        line.split_once(&begin).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(value, _)| value);
    value
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#x27;", "'")
        .replace("&amp;", "&")
}

/// The packets of a capture, dissected as NetFlow and sFlow.
fn dissect(capture: &Path) -> Vec<Node> {
    let mut command = Command::new(program("tshark"));
    command.arg("-r").arg(capture).args([
        "-n",
        "-T",
        "pdml",
        "-J",
        "frame cflow sflow eth vlan mpls pwethheuristic ip ipv6 gre udp tcp icmp icmpv6 sctp vxlan",
    ]);
    for (port, protocol) in [(2055, "cflow"), (4739, "cflow"), (6343, "sflow")] {
        command.arg("-d").arg(format!("udp.port=={port},{protocol}"));
    }
    let text = run(&mut command, LONG).ok();
    let mut open = vec![Node::default()];
    for line in text.lines().map(str::trim) {
        let closes = ["</field>", "</proto>", "</packet>"].contains(&line);
        if !closes && !["<field ", "<proto ", "<packet>"].iter().any(|begin| line.starts_with(begin)) {
            continue;
        }
        if !closes {
            open.push(Node {
                name: attribute(line, "name"),
                show: attribute(line, "show"),
                children: Vec::new(),
            });
            if !line.ends_with("/>") {
                continue;
            }
        }
        let node = open.pop().expect("an open element");
        open.last_mut().expect("the root").children.push(node);
    }
    open.pop().expect("the root").children
}

/// tshark's names of NetFlow fields whose value is the column's.
const COLUMNS: &[(&str, &str)] = &[
    ("cflow.srcaddr", "src_addr"),
    ("cflow.srcaddrv6", "src_addr"),
    ("cflow.dstaddr", "dst_addr"),
    ("cflow.dstaddrv6", "dst_addr"),
    ("cflow.nexthop", "next_hop"),
    ("cflow.nexthopv6", "next_hop"),
    ("cflow.bgpnexthop", "bgp_next_hop"),
    ("cflow.bgpnexthopv6", "bgp_next_hop"),
    ("cflow.srcport", "src_port"),
    ("cflow.dstport", "dst_port"),
    ("cflow.protocol", "ip_protocol"),
    ("cflow.tcpflags", "tcp_flags"),
    ("cflow.tos", "tos"),
    ("cflow.post_tos", "post_tos"),
    ("cflow.octets", "bytes"),
    ("cflow.permanent_octets", "bytes"),
    ("cflow.packets", "packets"),
    ("cflow.permanent_packets", "packets"),
    ("cflow.inputint", "in_if"),
    ("cflow.outputint", "out_if"),
    ("cflow.srcas", "src_as"),
    ("cflow.dstas", "dst_as"),
    ("cflow.srcmask", "src_mask"),
    ("cflow.srcmaskv6", "src_mask"),
    ("cflow.dstmask", "dst_mask"),
    ("cflow.dstmaskv6", "dst_mask"),
    ("cflow.direction", "direction"),
    ("cflow.srcmac", "src_mac"),
    ("cflow.dstmac", "dst_mac"),
    ("cflow.ingress_vrfid", "vrf_in"),
    ("cflow.egress_vrfid", "vrf_out"),
    ("cflow.ipv6flowlabel", "ipv6_flow_label"),
    ("cflow.ttl_min", "min_ttl"),
    ("cflow.ttl_max", "max_ttl"),
    ("cflow.flow_end_reason", "flow_end_reason"),
    ("cflow.post_natsource_ipv4_address", "nat_src_addr"),
    ("cflow.post_natdestination_ipv4_address", "nat_dst_addr"),
    ("cflow.post_naptsource_transport_port", "nat_src_port"),
    ("cflow.post_naptdestination_transport_port", "nat_dst_port"),
    ("cflow.initiator_octets", "initiator_bytes"),
    ("cflow.responder_octets", "responder_bytes"),
    ("cflow.vlanid", "src_vlan"),
    ("cflow.firewall_event", "firewall_event"),
];

/// True where nothing is in the field.
pub fn is_zero(value: &Value) -> bool {
    *value == json!(0) || ["0.0.0.0", "::", "00:00:00:00:00:00"].iter().any(|zero| *value == json!(zero))
}

/// A value of the column; of several fields of one column the first that is not zero.
fn put(row: &mut Row, column: &str, node: &Node) {
    let text = column.ends_with("_addr") || column.ends_with("_hop") || column.ends_with("_mac");
    let value = if text { json!(node.show) } else { json!(node.number()) };
    let slot = row.entry(column).or_insert(Value::Null);
    if slot.is_null() || is_zero(slot) {
        *slot = value;
    }
}

/// Days from 1970-01-01 to a date: whole years and the days of the months.
fn days(year: i64, month: usize, day: i64) -> i64 {
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let months = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: i64 = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum();
    years + months[..month].iter().sum::<i64>() + day - 1
}

/// "Oct  3, 2017 17:03:39.882000000 UTC" in ms.
fn absolute_ms(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_whitespace();
    let month = words.next()?;
    let month = MONTHS.iter().position(|known| *known == month)?;
    let day: i64 = words.next()?.trim_end_matches(',').parse().ok()?;
    let year: i64 = words.next()?.parse().ok()?;
    let (clock, fraction) = words.next()?.split_once('.')?;
    let clock: Vec<i64> = clock.split(':').filter_map(|part| part.parse().ok()).collect();
    let [hour, minute, second] = clock[..] else { return None };
    let ms: i64 = fraction.get(..3)?.parse().ok()?;
    Some(((days(year, month, day) * 24 + hour) * 60 + minute) * 60_000 + second * 1_000 + ms)
}

/// "2395375.053000000" seconds in ms.
fn relative_ms(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.')?;
    Some(seconds.parse::<i64>().ok()? * 1_000 + fraction.get(..3)?.parse::<i64>().ok()?)
}

/// The clocks of a header: export time and uptime.
fn clocks(message: &Node) -> (Option<i64>, Option<i64>) {
    let stamp = message.child("cflow.timestamp").or_else(|| message.child("cflow.exporttime"));
    let uptime = message.child("cflow.sysuptime").and_then(|node| relative_ms(&node.show));
    (stamp.and_then(|node| absolute_ms(&node.show)), uptime)
}

/// A flow record; None where it is none (padding, options).
fn record(node: &Node, message: &Node) -> Row {
    let mut row = Row::new();
    let (clock, uptime) = clocks(message);
    let mut labels = Vec::new();
    let mut walk: Vec<&Node> = node.children.iter().collect();
    walk.reverse();
    while let Some(node) = walk.pop() {
        if node.name == "cflow.data_link_frame_section" {
            sampled_header(node, &mut row);
            continue;
        }
        let time = match node.name.as_str() {
            "cflow.abstimestart" => Some(("start_ms", absolute_ms(&node.show))),
            "cflow.abstimeend" => Some(("end_ms", absolute_ms(&node.show))),
            "cflow.timestart" | "cflow.timeend" => {
                let name = if node.name.ends_with("start") { "start_ms" } else { "end_ms" };
                let at = relative_ms(&node.show).zip(clock.zip(uptime));
                Some((name, at.map(|(at, (clock, uptime))| clock - uptime + at)))
            }
            "cflow.mpls_label" => {
                labels.extend(node.number());
                None
            }
            name => {
                if let Some((_, column)) = COLUMNS.iter().find(|(known, _)| *known == name) {
                    put(&mut row, column, node);
                }
                None
            }
        };
        if let Some((name, Some(ms))) = time {
            row.entry(name).or_insert(json!(ms));
        }
        walk.extend(node.children.iter().rev());
    }
    // unused fields of the stack are zeros
    labels.retain(|label| *label != 0);
    if !labels.is_empty() {
        row.insert("mpls_labels".into(), json!(labels));
    }
    row
}

/// The sampled frame inside of a record: the outermost packet, and the next one in a tunnel.
fn sampled_header(node: &Node, row: &mut Row) {
    let mut level = "";
    let (mut packets, mut tags, mut labels) = (0, Vec::new(), Vec::new());
    let mut protocols = Vec::new();
    let mut walk = vec![node];
    while let Some(node) = walk.pop() {
        let protocol = !node.name.contains('.') && !node.name.is_empty();
        if protocol {
            protocols.push(node);
        }
        walk.extend(node.children.iter().rev());
    }
    for node in protocols {
        let take = |row: &mut Row, level: &str, pairs: &[(&str, &str)]| {
            for (field, column) in pairs {
                if let Some(field) = node.child(field) {
                    row.entry(format!("{level}{column}")).or_insert(Value::Null);
                    put(row, &format!("{level}{column}"), field);
                }
            }
        };
        match node.name.as_str() {
            "eth" if packets == 0 && labels.is_empty() => {
                take(row, level, &[("eth.src", "src_mac"), ("eth.dst", "dst_mac")]);
            }
            // a frame behind labels or a packet is in a tunnel
            "eth" => level = "inner_",
            "vlan" if level.is_empty() && packets == 0 => {
                tags.extend(node.child("vlan.id").and_then(Node::number))
            }
            "mpls" if level.is_empty() && packets == 0 => {
                labels.extend(node.child("mpls.label").and_then(Node::number))
            }
            "ip" | "ipv6" => {
                packets += 1;
                if packets > 1 {
                    level = "inner_";
                }
                if packets > 2 || packets == 2 && row.contains_key("inner_src_addr") {
                    break;
                }
                take(
                    row,
                    level,
                    &[("ip.src", "src_addr"), ("ip.dst", "dst_addr"), ("ip.proto", "ip_protocol")],
                );
                take(row, level, &[("ipv6.src", "src_addr"), ("ipv6.dst", "dst_addr")]);
                if level.is_empty() {
                    take(
                        row,
                        level,
                        &[("ip.dsfield", "tos"), ("ipv6.tclass", "tos"), ("ip.len", "ip_bytes")],
                    );
                    take(row, level, &[("ip.ttl", "ip_ttl"), ("ipv6.hlim", "ip_ttl")]);
                }
            }
            "tcp" | "udp" if packets <= 2 => {
                let ports = [("tcp.srcport", "src_port"), ("tcp.dstport", "dst_port")];
                take(row, level, &ports);
                take(row, level, &[("udp.srcport", "src_port"), ("udp.dstport", "dst_port")]);
            }
            _ => {}
        }
    }
    if !tags.is_empty() {
        row.insert("frame_vlans".into(), json!(tags));
    }
    if !labels.is_empty() {
        row.insert("mpls_labels".into(), json!(labels));
    }
}

/// NetFlow and IPFIX: the records of a message. `options` has the ids of options templates.
fn netflow(message: &Node, options: &mut HashSet<(u64, u64)>, rows: &mut Vec<Row>) {
    let domain = message.child("cflow.source_id").or_else(|| message.child("cflow.od_id"));
    let domain = domain.and_then(Node::number).unwrap_or(0);
    for set in &message.children {
        if set.show.starts_with("pdu ") {
            rows.push(record(set, message));
            continue;
        }
        let Some(id) = set.child("cflow.flowset_id").and_then(Node::number) else { continue };
        for template in &set.children {
            let defined = template.child("cflow.template_id").and_then(Node::number);
            if let Some(defined) = defined {
                if template.show.starts_with("Options Template") {
                    options.insert((domain, defined));
                } else {
                    options.remove(&(domain, defined));
                }
            }
        }
        if id > 255 && !options.contains(&(domain, id)) {
            let flows = set.children.iter().filter(|node| node.show.starts_with("Flow "));
            rows.extend(flows.map(|flow| record(flow, message)));
        }
    }
}

/// sFlow: the flow samples of a datagram.
fn sflow(datagram: &Node, rows: &mut Vec<Row>) {
    for sample in datagram
        .children
        .iter()
        .filter(|node| node.show.starts_with("Flow sample") || node.show.starts_with("Expanded flow sample"))
    {
        let mut row = Row::new();
        row.insert("packets".into(), json!(1));
        for (field, column) in [
            ("sflow.flow_sample.sampling_rate", "sampling_rate"),
            ("sflow.flow_sample.input_interface", "in_if"),
            ("sflow.flow_sample.input_interface_value", "in_if"),
        ] {
            if let Some(field) = sample.child(field) {
                put(&mut row, column, field);
            }
        }
        let output = sample.child("sflow.flow_sample.output_interface").unwrap_or(sample);
        let of_output = |name: &str| output.child(name).and_then(Node::number);
        if of_output("sflow.flow_sample.output_interface_format") == Some(0) {
            row.insert("out_if".into(), json!(of_output("sflow.flow_sample.output_interface_value")));
        }
        for record in &sample.children {
            if let Some(length) = record.child("sflow_245.header.frame_length") {
                put(&mut row, "bytes", length);
            }
            if let Some(header) = record.child("sflow_245.header") {
                sampled_header(header, &mut row);
            }
        }
        rows.push(row);
    }
}

/// The flow rows that tshark sees in a capture, in wire order.
pub fn rows(capture: &Path) -> Vec<Row> {
    let (mut rows, mut options) = (Vec::new(), HashSet::new());
    for packet in dissect(capture) {
        for protocol in &packet.children {
            match protocol.name.as_str() {
                "cflow" => netflow(protocol, &mut options, &mut rows),
                "sflow" => sflow(protocol, &mut rows),
                _ => {}
            }
        }
    }
    rows
}
