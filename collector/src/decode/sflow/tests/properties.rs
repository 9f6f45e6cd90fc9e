//! Encode → decode = identity for flow samples: a random stack of headers and random records about the packet, written
//! together with the row that must come out. The whole row is compared.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::decode::testing::Choices;

type Row = Map<String, Value>;

fn put(row: &mut Row, name: &str, value: impl Into<Value>) {
    row.insert(name.to_owned(), value.into());
}

fn word(choices: &mut Choices<'_>) -> u16 {
    u16::from_be_bytes([choices.octet(), choices.octet()])
}

fn long(choices: &mut Choices<'_>) -> u32 {
    u32::from(word(choices)) << 16 | u32::from(word(choices))
}

/// Ethernet addresses, tags, and the type of what follows.
fn ethernet(outer: Option<&mut Row>, kind: u16, payload: &[u8], choices: &mut Choices<'_>) -> Vec<u8> {
    let macs = choices.octets(12);
    let mut frame = macs.clone();
    let mut vlans = Vec::new();
    for _ in 0..choices.below(3) {
        let tag = word(choices);
        let tpid: u16 = [0x8100, 0x88a8, 0x9100][choices.below(3)];
        frame.extend(tpid.to_be_bytes());
        frame.extend(tag.to_be_bytes());
        vlans.push(tag & 0xfff);
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    if let Some(row) = outer {
        let text =
            |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":");
        put(row, "dst_mac", text(&macs[..6]));
        put(row, "src_mac", text(&macs[6..]));
        put(row, "ether_type", kind);
        if !vlans.is_empty() {
            put(row, "frame_vlans", vlans);
        }
    }
    frame
}

/// What an IP packet carries: its protocol and octets. `inner` is None in a tunnel: there are no tunnels in tunnels.
fn payload(v6: bool, row: &mut Row, prefix: &str, tunnels: bool, choices: &mut Choices<'_>) -> (u8, Vec<u8>) {
    let ports = |row: &mut Row, src: u16, dst: u16| {
        put(row, &format!("{prefix}src_port"), src);
        put(row, &format!("{prefix}dst_port"), dst);
        [src.to_be_bytes(), dst.to_be_bytes()].concat()
    };
    let udp = |row: &mut Row, dst: u16, content: &[u8], choices: &mut Choices<'_>| {
        let mut out = ports(row, word(choices) | 0x8000, dst);
        out.extend((content.len() as u16 + 8).to_be_bytes());
        out.extend([0, 0]);
        out.extend(content);
        out
    };
    match choices.below(if tunnels { 11 } else { 6 }) {
        0 => {
            let mut out = ports(row, word(choices), word(choices));
            out.extend(choices.octets(8));
            let flags = choices.octet();
            out.extend([0x50, flags]);
            out.extend(choices.octets(6));
            if prefix.is_empty() {
                put(row, "tcp_flags", flags);
            }
            (6, out)
        }
        1 => {
            let dst = word(choices) | 0x8000;
            let content = choices.octets(5);
            (17, udp(row, dst, &content, choices))
        }
        2 => {
            let mut out = choices.octets(8);
            out[2..4].fill(0);
            if prefix.is_empty() {
                put(row, "icmp_type", out[0]);
                put(row, "icmp_code", out[1]);
            }
            (if v6 { 58 } else { 1 }, out)
        }
        3 => {
            let mut out = ports(row, word(choices), word(choices));
            out.extend(choices.octets(8));
            (132, out)
        }
        4 => (89, choices.octets(24)),
        5 => (50, choices.octets(8)),
        6 => {
            put(row, "tunnel", "ipip");
            let (six, packet) = ip(row, "inner_", choices);
            (if six { 41 } else { 4 }, packet)
        }
        7 => {
            put(row, "tunnel", "gre");
            let (six, packet) = ip(row, "inner_", choices);
            let kind: u16 = if six { 0x86dd } else { 0x0800 };
            // key, sequence number
            let flags = [0x0000_u16, 0x2000, 0x1000, 0x3000][choices.below(4)];
            let options = choices.octets(flags.count_ones() as usize * 4);
            (47, [&flags.to_be_bytes()[..], &kind.to_be_bytes(), &options, &packet].concat())
        }
        8 => {
            put(row, "tunnel", "nvgre");
            let (six, packet) = ip(row, "inner_", choices);
            let frame = ethernet(None, if six { 0x86dd } else { 0x0800 }, &packet, choices);
            let key = choices.octets(4);
            put(row, "vni", u32::from_be_bytes([0, key[0], key[1], key[2]]));
            (47, [&[0x20, 0, 0x65, 0x58][..], &key, &frame].concat())
        }
        kind => {
            let (six, packet) = ip(row, "inner_", choices);
            let ether_type: u16 = if six { 0x86dd } else { 0x0800 };
            let frame = ethernet(None, ether_type, &packet, choices);
            let vni = choices.octets(3);
            put(row, "vni", u32::from_be_bytes([0, vni[0], vni[1], vni[2]]));
            if kind == 9 {
                put(row, "tunnel", "vxlan");
                let content = [&[8, 0, 0, 0][..], &vni, &[0], &frame].concat();
                (17, udp(row, 4789, &content, choices))
            } else {
                put(row, "tunnel", "geneve");
                let options = choices.below(3);
                let (kind, inside): (u16, _) =
                    if choices.one_in(2) { (0x6558, &frame) } else { (ether_type, &packet) };
                let options = [vec![options as u8, 0], kind.to_be_bytes().to_vec(), vni, vec![0]]
                    .into_iter()
                    .chain([choices.octets(options * 4)])
                    .collect::<Vec<_>>()
                    .concat();
                (17, udp(row, 6081, &[&options[..], inside].concat(), choices))
            }
        }
    }
}

/// An IP packet; true for IPv6. With `prefix` it is the inner one, of which fewer columns are known.
fn ip(row: &mut Row, prefix: &str, choices: &mut Choices<'_>) -> (bool, Vec<u8>) {
    let outer = prefix.is_empty();
    let six = choices.one_in(2);
    let mut carried = Row::new();
    let (mut protocol, mut rest) = payload(six, &mut carried, prefix, outer, choices);
    let (tos, ttl) = (choices.octet(), choices.octet());
    // not in a tunnel, so that the row says what is inside of the packet
    let fragment = if outer && choices.one_in(6) { choices.below(3) + 1 } else { 0 };
    let (id, offset) = (long(choices), if fragment > 1 { 1 + word(choices) % 0x1000 } else { 0 });
    // rule 49: only the first fragment has ports
    if fragment > 1 {
        carried = Row::new();
        rest = choices.octets(rest.len());
    }
    let packet = if six {
        if fragment > 0 {
            let field = offset << 3 | u16::from(fragment < 3);
            rest = [&[protocol, 0][..], &field.to_be_bytes(), &id.to_be_bytes(), &rest].concat();
            protocol = 44;
            put(&mut carried, "fragment_id", id);
            put(&mut carried, "fragment_offset", offset);
        }
        let last = if fragment > 0 { rest[0] } else { protocol };
        for _ in 0..choices.below(4) {
            let units = choices.below(3);
            // hop-by-hop options, a routing header that is no segment list, destination options, authentication
            let kind = [0, 43, 60, 51][choices.below(4)];
            // AH counts words of four octets, less two
            let count = if kind == 51 { 2 * units } else { units };
            let length = 8 * units + 8;
            let mut header = vec![protocol, count as u8];
            header.resize(length, 0);
            rest = [header, rest].concat();
            protocol = kind;
        }
        let label = 1 + long(choices) % 0xf_ffff;
        if outer {
            put(&mut carried, "ipv6_flow_label", label);
        }
        let mut packet = (6 << 28 | u32::from(tos) << 20 | label).to_be_bytes().to_vec();
        packet.extend((rest.len() as u16).to_be_bytes());
        packet.extend([protocol, ttl]);
        for end in ["src", "dst"] {
            let low = choices.octets(8);
            let octets = [&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0][..], &low].concat();
            put(
                &mut carried,
                &format!("{prefix}{end}_addr"),
                Ipv6Addr::from(<[u8; 16]>::try_from(&octets[..]).unwrap()).to_string(),
            );
            packet.extend(octets);
        }
        put(&mut carried, &format!("{prefix}ip_protocol"), last);
        [packet, rest].concat()
    } else {
        let options = if outer { choices.below(3) } else { 0 };
        let total = (rest.len() + 20 + 4 * options) as u16;
        let mut packet = vec![0x45 + options as u8, tos];
        packet.extend(total.to_be_bytes());
        packet.extend((id as u16).to_be_bytes());
        packet.extend(
            (offset
                | if fragment == 1 || fragment == 2 { 0x2000 } else { 0x4000 * u16::from(fragment == 0) })
            .to_be_bytes(),
        );
        packet.extend([ttl, protocol, 0, 0]);
        if fragment > 0 {
            put(&mut carried, "fragment_id", id as u16);
            put(&mut carried, "fragment_offset", offset);
        }
        for end in ["src", "dst"] {
            let octets = choices.octets(4);
            put(
                &mut carried,
                &format!("{prefix}{end}_addr"),
                Ipv4Addr::from(<[u8; 4]>::try_from(&octets[..]).unwrap()).to_string(),
            );
            packet.extend(octets);
        }
        packet.resize(usize::from(packet[0] & 15) * 4, 1);
        put(&mut carried, &format!("{prefix}ip_protocol"), protocol);
        [packet, rest].concat()
    };
    if outer {
        put(&mut carried, "tos", tos);
        put(&mut carried, "ip_ttl", ttl);
        put(&mut carried, "ip_bytes", packet.len());
    }
    row.extend(carried);
    (six, packet)
}

/// A label stack above a packet.
fn labelled(row: &mut Row, packet: &[u8], choices: &mut Choices<'_>) -> Vec<u8> {
    let count = 1 + choices.below(4);
    let (mut out, mut labels, mut exps) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..count {
        let entry = long(choices) & !0x100 | u32::from(at + 1 == count) << 8;
        out.extend(entry.to_be_bytes());
        labels.push(entry >> 12);
        exps.push(entry >> 9 & 7);
    }
    put(row, "mpls_labels", labels);
    put(row, "mpls_exp", exps);
    out.extend(packet);
    out
}

/// A sampled header: sFlow's number of its protocol, and its octets.
fn header(row: &mut Row, choices: &mut Choices<'_>) -> (u32, Vec<u8>) {
    let (six, packet) = ip(row, "", choices);
    let ether_type = if six { 0x86dd } else { 0x0800 };
    // an IPv4 header with options is told from a frame by guessing
    let plain = six || packet[0] == 0x45;
    match choices.below(8) {
        0 => (if six { 12 } else { 11 }, packet),
        1 if plain => (13, labelled(row, &packet, choices)),
        2 => (7, [&[0xff, 3, 0, if six { 0x57 } else { 0x21 }][..], &packet].concat()),
        3 if plain => {
            let packet = labelled(row, &packet, choices);
            (1, ethernet(Some(row), 0x8847, &packet, choices))
        }
        4 => {
            let session =
                [&[0x11, 0][..], &choices.octets(2), &(packet.len() as u16 + 2).to_be_bytes()].concat();
            let ppp = [&session[..], &[0, if six { 0x57 } else { 0x21 }], &packet].concat();
            (1, ethernet(Some(row), 0x8864, &ppp, choices))
        }
        _ => {
            // padding of the link
            let count = choices.below(7);
            let packet = [packet, choices.octets(count)].concat();
            (1, ethernet(Some(row), ether_type, &packet, choices))
        }
    }
}

/// An address as sFlow writes it.
fn address(row: &mut Row, name: &str, choices: &mut Choices<'_>) -> Words {
    if choices.one_in(2) {
        let low = choices.octets(12);
        let octets = [&[0x20, 0x01, 0x0d, 0xb8][..], &low].concat();
        put(row, name, Ipv6Addr::from(<[u8; 16]>::try_from(&octets[..]).unwrap()).to_string());
        Words::of(&[2]).bytes(&octets)
    } else {
        let octets = [&[10][..], &choices.octets(3)].concat();
        put(row, name, Ipv4Addr::from(<[u8; 4]>::try_from(&octets[..]).unwrap()).to_string());
        Words::of(&[1]).bytes(&octets)
    }
}

fn gateway(row: &mut Row, extra: &mut Row, choices: &mut Choices<'_>) -> Words {
    let mut out = address(row, "bgp_next_hop", choices);
    let numbers: Vec<u32> = (0..3).map(|_| long(choices)).collect();
    out = out.and(&numbers);
    if numbers[0] != 0 {
        put(extra, "gateway_as", numbers[0].to_string());
    }
    for (name, value) in [("src_as", numbers[1]), ("prev_as", numbers[2])] {
        if value != 0 {
            put(row, name, value);
        }
    }
    let mut path = Vec::new();
    let segments = choices.below(3) as u32;
    out = out.and(&[segments]);
    for _ in 0..segments {
        let members: Vec<u32> = (0..=choices.below(3)).map(|_| long(choices) | 1).collect();
        // AS_SEQUENCE
        out = out.and(&[2, members.len() as u32]).and(&members);
        path.extend(members);
    }
    if let (Some(first), Some(last)) = (path.first(), path.last()) {
        put(row, "next_as", *first);
        put(row, "dst_as", *last);
        put(row, "as_path", path);
    }
    let communities: Vec<u32> = (0..choices.below(4)).map(|_| long(choices)).collect();
    out = out.and(&[communities.len() as u32]).and(&communities);
    if !communities.is_empty() {
        put(row, "communities", communities);
    }
    let preference = long(choices);
    put(row, "local_pref", preference);
    out.and(&[preference])
}

/// The records of a sample in any order: the header, and what the agent knows beside it.
fn records(row: &mut Row, extra: &mut Row, choices: &mut Choices<'_>) -> Vec<Words> {
    let (protocol, octets) = header(row, choices);
    let length = octets.len() as u32 + 4 + choices.below(1_000) as u32;
    put(row, "bytes", length);
    let mut all = vec![record(1, Words::of(&[protocol, length, 4]).opaque(&octets))];
    let add = |one: Words, all: &mut Vec<Words>, choices: &mut Choices<'_>| {
        all.insert(choices.below(all.len() + 1), one);
    };
    if choices.one_in(2) {
        let values = [word(choices), u16::from(choices.octet()), word(choices), u16::from(choices.octet())];
        for (name, value) in ["src_vlan", "src_priority", "dst_vlan", "dst_priority"].into_iter().zip(values)
        {
            put(row, name, value);
        }
        add(record(1001, Words::of(&values.map(u32::from))), &mut all, choices);
    }
    if choices.one_in(2) {
        let masks = [choices.below(129) as u32, choices.below(129) as u32];
        let body = address(row, "next_hop", choices).and(&masks);
        put(row, "src_mask", masks[0]);
        put(row, "dst_mask", masks[1]);
        add(record(1002, body), &mut all, choices);
    }
    if choices.one_in(2) {
        let body = gateway(row, extra, choices);
        add(record(1003, body), &mut all, choices);
    }
    all
}

/// A flow sample, compact or expanded, and its row.
fn flow_sample(choices: &mut Choices<'_>) -> (Words, Row) {
    let mut row = json!({
        "received_at": RECEIVED_US, "start_time": RECEIVED_US, "end_time": RECEIVED_US,
        "time_source": "received", "exporter_addr": "10.0.0.1", "agent_addr": "10.0.0.1",
        "sender_addr": "192.0.2.10", "observation_domain": 3, "proto_ver": "sflow5", "packets": 1,
        "sampling_source": "record",
    });
    let row = row.as_object_mut().unwrap();
    let mut extra = Row::new();
    let body = records(row, &mut extra, choices);
    let expanded = choices.one_in(2);
    let (source, input) = (1 + choices.below(4) as u32, 1 + choices.below(4) as u32);
    put(row, "in_if", input);
    let multiple = choices.one_in(4);
    let output = if multiple { choices.below(3) } else { 1 + choices.below(4) } as u32;
    if multiple {
        put(row, "out_if_flag", "multiple");
        if output > 0 {
            put(&mut extra, "output_interfaces", output.to_string());
        }
    } else {
        put(row, "out_if", output);
    }
    // rule 36
    match (source == input, !multiple && source == output) {
        (true, false) => put(row, "direction", 0),
        (false, true) => put(row, "direction", 1),
        _ => {}
    }
    let (number, rate, pool) = (long(choices), 1 + long(choices) % 100_000, long(choices));
    put(row, "sampling_rate", f64::from(rate));
    if !extra.is_empty() {
        put(row, "extra", Value::Object(extra));
    }
    let form = if multiple { 2 } else { 0 };
    let head = if expanded {
        Words::of(&[number, 0, source, rate, pool, 0, 0, input, form, output, body.len() as u32])
    } else {
        Words::of(&[number, source, rate, pool, 0, input, form << 30 | output, body.len() as u32])
    };
    let content = body.iter().fold(head, |all, record| all.bytes(&record.0));
    (Words::default().structure(if expanded { 3 } else { 1 }, &content), row.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn flow_samples_decode_to_what_was_encoded(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
        let choices = &mut Choices::new(&octets);
        let (sample, want) = flow_sample(choices);
        let decoded = decode(&datagram(1, &[sample]));
        prop_assert_eq!(decoded.result, Ok(0));
        prop_assert_eq!(decoded.flows, vec![want]);
    }
}
