use serde_json::{Map, Value, json};
use weir_schemas::Table;

use super::samples::*;
use super::*;
use crate::decode::testing::{rows, xorshift};

fn row(frame: &Frame) -> Map<String, Value> {
    let mut builder = Builder::new(Table::Flows);
    frame.write(&mut builder);
    builder.advance(1);
    rows(&mut builder).remove(0)
}

/// The columns of a frame, all of them.
#[track_caller]
fn is(link: Link, bytes: &[u8], want: Value) {
    let have = Value::Object(row(&parse(link, bytes)));
    assert_eq!(have, want);
}

/// Some of the columns of a frame.
#[track_caller]
fn has(link: Link, bytes: &[u8], want: Value) {
    let have = row(&parse(link, bytes));
    for (name, want) in want.as_object().unwrap() {
        assert_eq!(have.get(name).unwrap_or(&Value::Null), want, "{name} of {have:?}");
    }
}

#[test]
fn ethernet_ipv4_tcp() {
    is(
        Link::Ethernet,
        &ethernet(0x0800, &ipv4(6, &tcp(1000, 80))),
        json!({
            "src_mac": "02:00:00:00:00:01", "dst_mac": "02:00:00:00:00:02", "ether_type": 0x0800,
            "src_addr": "10.0.0.1", "dst_addr": "10.0.0.2", "ip_protocol": 6, "tos": 0x28, "ip_ttl": 63,
            "ip_bytes": 40, "src_port": 1000, "dst_port": 80, "tcp_flags": 0x12,
        }),
    );
}

#[test]
fn rule_50_the_traffic_class_of_ipv6_is_the_tos() {
    is(
        Link::Ip,
        &ipv6(1, 2, 17, &udp(5353, 53, &[0; 4])),
        json!({
            "src_addr": "2001:db8::1", "dst_addr": "2001:db8::2", "ip_protocol": 17, "tos": 0x28,
            "ip_ttl": 62, "ip_bytes": 52, "ipv6_flow_label": 0x1_2345, "src_port": 5353, "dst_port": 53,
        }),
    );
}

#[test]
fn rule_45_tags_are_kept_outer_first_whatever_their_type() {
    for outer in [0x8100, 0x88a8, 0x9100, 0x9200] {
        let payload = cat(&[&[0xa0, 100, 0x81, 0, 0x0f, 0xff, 8, 0], &passenger()]);
        has(
            Link::Ethernet,
            &ethernet(outer, &payload),
            json!({"frame_vlans": [100, 4095], "ether_type": 0x0800, "src_addr": "10.0.0.3"}),
        );
    }
    // more tags than are kept
    let tags: Vec<u8> = (0..20).flat_map(|tag| [0, tag, 0x81, 0]).collect();
    let frame = parse(Link::Ethernet, &ethernet(0x8100, &cat(&[&tags, &[0, 99, 8, 0], &passenger()])));
    assert_eq!(frame.vlans().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    assert_eq!(frame.outer.has & (has::IP | has::IPV6), has::IP);
}

#[test]
fn llc_snap_pppoe_and_bridge_tags_lead_to_ip() {
    let snap = cat(&[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &passenger()]);
    let length = u16::try_from(snap.len()).unwrap();
    has(
        Link::Ethernet,
        &ethernet(length, &snap),
        json!({"src_addr": "10.0.0.3", "ether_type": 0x0800, "dst_port": 80}),
    );
    // spanning tree
    has(
        Link::Ethernet,
        &ethernet(38, &[0x42, 0x42, 3, 0, 0, 0]),
        json!({"ether_type": null, "frame_truncated": null}),
    );
    for (protocol, packet, src) in
        [([0, 0x21], passenger(), "10.0.0.3"), ([0, 0x57], ipv6(1, 2, 6, &tcp(1, 2)), "2001:db8::1")]
    {
        let session = cat(&[&[0x11, 0, 0, 1, 0, 42], &protocol, &packet]);
        has(
            Link::Ethernet,
            &ethernet(0x8864, &session),
            json!({"ether_type": 0x8864, "src_addr": src, "tunnel": null}),
        );
    }
    has(
        Link::Ethernet,
        &ethernet(0x893f, &cat(&[&[0, 1, 0, 2, 0, 0, 8, 0], &passenger()])),
        json!({"src_addr": "10.0.0.3"}),
    );
    is(
        Link::Ethernet,
        &ethernet(0x0806, &[0; 28]),
        json!({"src_mac": "02:00:00:00:00:01", "dst_mac": "02:00:00:00:00:02", "ether_type": 0x0806}),
    );
}

#[test]
fn ppp_may_be_framed_and_compressed() {
    for head in [&[0xff, 3, 0, 0x21][..], &[0, 0x21], &[0xff, 3, 0x21], &[0x21]] {
        has(Link::Ppp, &cat(&[head, &passenger()]), json!({"src_addr": "10.0.0.3", "tunnel": null}));
    }
}

#[test]
fn rule_46_labels_keep_their_exp_bits() {
    let stack = [0x00, 0x01, 0x0a, 0xff, 0x49, 0x3e, 0xcf, 0xff];
    for (packet, src) in [(passenger(), "10.0.0.3"), (ipv6(1, 2, 6, &tcp(1, 2)), "2001:db8::1")] {
        has(
            Link::Ethernet,
            &ethernet(0x8847, &cat(&[&stack, &packet])),
            json!({
                "mpls_labels": [16, 300_012], "mpls_exp": [5, 7], "src_addr": src, "ether_type": 0x8847,
                "tunnel": null, "frame_truncated": null,
            }),
        );
    }
    // a stack without a bottom
    let endless = [0, 1, 0, 255].repeat(40);
    let frame = parse(Link::Mpls, &endless);
    assert_eq!((frame.labels().count(), frame.has(has::TRUNCATED)), (16, false));
    // a label stack section (IE 316) ends with its bottom
    has(Link::Mpls, &stack, json!({"mpls_labels": [16, 300_012], "frame_truncated": null}));
}

#[test]
fn ethernet_over_mpls_with_and_without_control_word() {
    let want = json!({
        "mpls_labels": [16], "tunnel": "eompls", "src_addr": null, "inner_src_addr": "10.0.0.3",
        "inner_dst_port": 80, "src_mac": "02:00:00:00:00:01", "frame_vlans": null,
    });
    let label = [0, 1, 1, 255];
    let tagged = ethernet(0x8100, &cat(&[&[0, 5, 8, 0], &passenger()]));
    for frame in [ethernet(0x0800, &passenger()), tagged] {
        has(Link::Ethernet, &ethernet(0x8847, &cat(&[&label, &[0, 0, 0, 9], &frame])), want.clone());
        // destinations that begin with 0, 4 and 6 look like a control word, IPv4 and IPv6
        for first in [0x00, 0x40, 0x60, 0x80] {
            let mut frame = frame.clone();
            frame[0] = first;
            has(Link::Ethernet, &ethernet(0x8847, &cat(&[&label, &frame])), want.clone());
        }
    }
}

#[test]
fn rule_49_fragments_behind_the_first_have_no_ports() {
    let mut packet = passenger();
    packet[6] = 0x20;
    has(
        Link::Ip,
        &packet,
        json!({"dst_port": 80, "fragment_id": 7, "fragment_offset": 0, "frame_truncated": null}),
    );
    packet[7] = 185;
    has(
        Link::Ip,
        &packet,
        json!({"ip_protocol": 6, "dst_port": null, "tcp_flags": null, "fragment_offset": 185,
               "frame_truncated": null}),
    );
    for (word, offset, port) in [([0, 1], json!(0), json!(80)), ([1, 0x70], json!(46), Value::Null)] {
        let payload = cat(&[&[6, 0], &word, &[0, 0, 1, 0], &tcp(1000, 80)]);
        has(
            Link::Ip,
            &ipv6(1, 2, 44, &payload),
            json!({"ip_protocol": 6, "dst_port": port, "fragment_id": 256, "fragment_offset": offset}),
        );
    }
    // an atomic fragment (RFC 8200 §4.5) is a whole packet
    let payload = cat(&[&[6, 0, 0, 0, 0, 0, 1, 0], &tcp(1000, 80)]);
    has(Link::Ip, &ipv6(1, 2, 44, &payload), json!({"dst_port": 80, "fragment_id": null}));
}

#[test]
fn rule_49_extension_headers_are_walked_up_to_a_limit() {
    // hop-by-hop, destination options, AH (12 + 8 bytes), then TCP
    let chain = cat(&[&[60, 0, 5, 2, 0, 0, 1, 0], &[51, 1], &[0; 14], &[6, 3], &[0; 18], &tcp(1000, 80)]);
    has(
        Link::Ip,
        &ipv6(1, 2, 0, &chain),
        json!({"ip_protocol": 6, "dst_port": 80, "tunnel": null, "frame_truncated": null}),
    );
    // the protocol is that of the last header that was there
    has(
        Link::Ip,
        &ipv6(1, 2, 0, &chain)[..50],
        json!({"ip_protocol": 51, "dst_port": null, "frame_truncated": true}),
    );
    let endless = [60, 0, 0, 0, 0, 0, 0, 0].repeat(30);
    has(Link::Ip, &ipv6(1, 2, 60, &endless), json!({"ip_protocol": 60, "frame_truncated": null}));
}

#[test]
fn icmp_has_type_and_code_and_no_ports() {
    has(
        Link::Ip,
        &ipv4(1, &[3, 4, 0, 0, 0, 0, 5, 0xdc]),
        json!({"icmp_type": 3, "icmp_code": 4, "src_port": null, "dst_port": null}),
    );
    has(Link::Ip, &ipv6(1, 2, 58, &[135, 0, 0, 0]), json!({"icmp_type": 135, "icmp_code": 0}));
    // IE 314: the transport header alone
    is(Link::Transport(17), &udp(5353, 53, &[]), json!({"src_port": 5353, "dst_port": 53}));
}

#[test]
fn ports_of_sctp_and_dccp() {
    for protocol in [132, 33, 136] {
        has(Link::Ip, &ipv4(protocol, &[0, 5, 0, 6, 0, 0]), json!({"src_port": 5, "dst_port": 6}));
    }
}

/// A tunnel between 10.0.0.1 and 10.0.0.2 that holds the passenger.
#[track_caller]
fn tunnelled(packet: &[u8], tunnel: &str, vni: Value) {
    has(
        Link::Ip,
        packet,
        json!({
            "src_addr": "10.0.0.1", "dst_addr": "10.0.0.2", "tunnel": tunnel, "vni": vni,
            "inner_src_addr": "10.0.0.3", "inner_dst_addr": "10.0.0.4", "inner_ip_protocol": 6,
            "inner_src_port": 1000, "inner_dst_port": 80, "tcp_flags": null, "frame_truncated": null,
            "src_mac": null, "ether_type": null, "frame_vlans": null, "ip_ttl": 63,
        }),
    );
}

#[test]
fn rule_49_gre_with_all_its_options() {
    let none = Value::Null;
    for (flags, options) in [
        ([0x00, 0], &[][..]),
        ([0x80, 0], &[1, 2, 0, 0]),
        ([0x20, 0], &[0, 0, 0, 9]),
        ([0x10, 0], &[0, 0, 0, 1]),
        ([0xb0, 0], &[1, 2, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1]),
    ] {
        tunnelled(&ipv4(47, &cat(&[&flags, &[8, 0], options, &passenger()])), "gre", none.clone());
    }
    let frame = ethernet(0x0800, &passenger());
    tunnelled(&ipv4(47, &cat(&[&[0, 0, 0x65, 0x58], &frame])), "gre", none.clone());
    // NVGRE: 24 bits of the key are the subnet
    let nvgre = cat(&[&[0x20, 0, 0x65, 0x58, 0x01, 0x02, 0x03, 0x77], &frame]);
    tunnelled(&ipv4(47, &nvgre), "nvgre", json!(0x01_0203));
    let labelled = cat(&[&[0, 0, 0x88, 0x47, 0, 1, 1, 255], &passenger()]);
    tunnelled(&ipv4(47, &labelled), "gre", none.clone());
    assert_eq!(parse(Link::Ip, &ipv4(47, &labelled)).labels().count(), 0);
    // PPTP: sequence and acknowledgement
    let pptp = cat(&[&[0x30, 0x81, 0x88, 0x0b, 0, 44, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0x21], &passenger()]);
    tunnelled(&ipv4(47, &pptp), "pptp", none.clone());
    // ERSPAN II and III
    let second = cat(&[&[0x10, 0, 0x88, 0xbe, 0, 0, 0, 1], &[0x10, 1, 0, 1, 0, 0, 0, 0], &frame]);
    tunnelled(&ipv4(47, &second), "erspan", none.clone());
    let third = cat(&[&[0x10, 0, 0x22, 0xeb, 0, 0, 0, 1], &[0x20; 11], &[1], &[0; 8], &frame]);
    tunnelled(&ipv4(47, &third), "erspan", none);
    // a keepalive has nothing inside
    has(
        Link::Ip,
        &ipv4(47, &[0, 0, 0, 0]),
        json!({"tunnel": "gre", "inner_src_addr": null, "frame_truncated": null}),
    );
}

#[test]
fn rule_49_ip_in_ip_and_its_kin() {
    tunnelled(&ipv4(4, &passenger()), "ipip", Value::Null);
    has(
        Link::Ip,
        &ipv4(41, &ipv6(3, 4, 17, &udp(1, 2, &[]))),
        json!({"tunnel": "ipip", "inner_src_addr": "2001:db8::3", "inner_ip_protocol": 17,
               "inner_dst_port": 2, "ipv6_flow_label": null}),
    );
    tunnelled(&ipv4(97, &cat(&[&[0x30, 0], &ethernet(0x0800, &passenger())])), "etherip", Value::Null);
    tunnelled(&ipv4(137, &cat(&[&[0, 1, 1, 255], &passenger()])), "mpls", Value::Null);
    tunnelled(&ipv4(17, &udp(9, 6635, &cat(&[&[0, 1, 1, 255], &passenger()]))), "mpls", Value::Null);
}

#[test]
fn rule_49_vxlan_and_geneve_have_their_network() {
    let frame = ethernet(0x0800, &passenger());
    let tagged = ethernet(0x8100, &cat(&[&[0, 5, 8, 0], &passenger()]));
    for port in [4789, 8472] {
        for frame in [&frame, &tagged] {
            let vxlan = cat(&[&[8, 0, 0, 0, 0, 0x12, 0x34, 0], frame]);
            tunnelled(&ipv4(17, &udp(50_000, port, &vxlan)), "vxlan", json!(0x1234));
        }
    }
    // without the I flag it is something else
    has(
        Link::Ip,
        &ipv4(17, &udp(50_000, 4789, &cat(&[&[0; 8], &frame]))),
        json!({"tunnel": null, "vni": null, "dst_port": 4789}),
    );
    let geneve = cat(&[&[2, 0, 0x65, 0x58, 0, 0, 9, 0], &[0; 8], &frame]);
    tunnelled(&ipv4(17, &udp(50_000, 6081, &geneve)), "geneve", json!(9));
    let geneve = cat(&[&[0, 0, 8, 0, 0, 0, 9, 0], &passenger()]);
    tunnelled(&ipv4(17, &udp(50_000, 6081, &geneve)), "geneve", json!(9));
}

#[test]
fn rule_49_gtp_u_and_l2tp() {
    let none = Value::Null;
    let plain = cat(&[&[0x30, 255, 0, 40, 0, 0, 0, 1], &passenger()]);
    tunnelled(&ipv4(17, &udp(2152, 2152, &plain)), "gtpu", none.clone());
    // sequence number and a PDU session container of 4 bytes
    let extended = cat(&[&[0x34, 255, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0x10, 9, 0], &passenger()]);
    tunnelled(&ipv4(17, &udp(2152, 2152, &extended)), "gtpu", none.clone());
    // an echo request
    let echo = [0x32, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0];
    has(Link::Ip, &ipv4(17, &udp(2152, 2152, &echo)), json!({"tunnel": null}));
    for (flags, head) in [
        ([0x00, 2], &[0, 1, 0, 2][..]),
        ([0x40, 2], &[0, 48, 0, 1, 0, 2]),
        ([0x4a, 2], &[0, 48, 0, 1, 0, 2, 0, 3, 0, 4, 0, 2, 0xee, 0xee]),
    ] {
        let l2tp = cat(&[&flags, head, &[0xff, 3, 0, 0x21], &passenger()]);
        tunnelled(&ipv4(17, &udp(1701, 1701, &l2tp)), "l2tp", none.clone());
    }
    has(Link::Ip, &ipv4(17, &udp(1701, 1701, &[0xc8, 2, 0, 12, 0, 1, 0, 0])), json!({"tunnel": null}));
}

#[test]
fn rule_49_segment_routing_over_ipv6() {
    // a routing header of type 4 with one segment
    let head = |next: u8| cat(&[&[next, 2, 4, 0, 0, 0, 0, 0], &[0x20; 16]]);
    for (next, payload) in [(4, passenger()), (143, ethernet(0x0800, &passenger()))] {
        has(
            Link::Ip,
            &ipv6(1, 2, 43, &cat(&[&head(next), &payload])),
            json!({"tunnel": "srv6", "ip_protocol": next, "src_addr": "2001:db8::1",
                   "inner_src_addr": "10.0.0.3", "inner_dst_port": 80}),
        );
    }
    // inserted, not encapsulated
    has(
        Link::Ip,
        &ipv6(1, 2, 43, &cat(&[&head(6), &tcp(1000, 80)])),
        json!({"tunnel": null, "ip_protocol": 6, "dst_port": 80}),
    );
}

#[test]
fn provider_backbone_frames_hold_the_customers() {
    has(
        Link::Ethernet,
        &ethernet(0x88e7, &cat(&[&[0x20, 0, 1, 2], &ethernet(0x0800, &passenger())])),
        json!({"tunnel": "pbb", "vni": 0x0102, "src_mac": "02:00:00:00:00:01", "src_addr": null,
               "inner_src_addr": "10.0.0.3"}),
    );
}

#[test]
fn only_one_level_of_tunnels_is_entered() {
    let deep = ipv4(4, &ipv4_between(3, 4, 4, &ipv4_between(5, 6, 17, &udp(1, 4789, &[8; 60]))));
    has(
        Link::Ip,
        &deep,
        json!({"tunnel": "ipip", "inner_src_addr": "10.0.0.3", "inner_ip_protocol": 4,
               "inner_dst_port": null, "vni": null}),
    );
    let inner_gre = ipv4(
        17,
        &udp(
            1,
            4789,
            &cat(&[
                &[8, 0, 0, 0, 0, 0, 5, 0],
                &ethernet(
                    0x0800,
                    &ipv4_between(3, 4, 47, &cat(&[&[0x20, 0, 0x65, 0x58, 0, 0, 9, 0], &[0; 40]])),
                ),
            ]),
        ),
    );
    has(
        Link::Ip,
        &inner_gre,
        json!({"tunnel": "vxlan", "vni": 5, "inner_ip_protocol": 47, "frame_truncated": null}),
    );
}

#[test]
fn padding_of_the_link_is_no_transport_header() {
    // an IPv4 packet of 22 bytes in a frame of 60
    let mut frame = ethernet(0x0800, &ipv4(6, &[1, 2]));
    frame.resize(60, 0);
    has(Link::Ethernet, &frame, json!({"src_port": null, "ip_bytes": 22, "frame_truncated": null}));
}

#[test]
fn offloaded_packets_have_no_length() {
    let mut packet = passenger();
    packet[2..4].fill(0);
    has(Link::Ip, &packet, json!({"ip_bytes": null, "dst_port": 80}));
    let mut packet = ipv6(1, 2, 6, &tcp(1000, 80));
    packet[4..6].fill(0);
    has(Link::Ip, &packet, json!({"ip_bytes": null, "dst_port": 80}));
}

#[test]
fn what_is_filled_does_not_replace_what_is_there() {
    let mut builder = Builder::new(Table::Flows);
    builder.u16s(FlowColumn::DstPort.index()).push(4711);
    builder.u8s(FlowColumn::Tos.index()).push(1);
    parse(Link::Ethernet, &ethernet(0x0800, &passenger())).fill(&mut builder);
    builder.advance(1);
    let row = rows(&mut builder).remove(0);
    assert_eq!((&row["dst_port"], &row["tos"]), (&json!(4711), &json!(1)));
    assert_eq!((&row["src_port"], &row["src_addr"]), (&json!(1000), &json!("10.0.0.3")));
}

#[test]
fn truncated_at_every_byte_it_says_so_and_keeps_what_came_before() {
    for (link, bytes) in zoo() {
        let whole = row(&parse(link, &bytes));
        assert!(!whole.contains_key("frame_truncated"), "{whole:?}");
        for end in 0..bytes.len() {
            let cut = row(&parse(link, &bytes[..end]));
            for (name, value) in &cut {
                // lists grow, `ip_protocol` moves along the extension headers, `ether_type` may change behind a tag
                if !matches!(name.as_str(), "frame_truncated" | "frame_vlans" | "ip_protocol") {
                    assert_eq!(Some(value), whole.get(name), "{name} of {end} bytes of {whole:?}");
                }
            }
        }
        has(link, &bytes[..bytes.len() - 17], json!({"frame_truncated": true}));
    }
}

#[test]
fn mutated_frames_never_panic_and_stay_bounded() {
    let mut next = xorshift(0x9e37_79b9_7f4a_7c15);
    let zoo = zoo();
    let mut builder = Builder::new(Table::Flows);
    for _ in 0..60_000 {
        let (link, mut bytes) = zoo[next() as usize % zoo.len()].clone();
        for _ in 0..1 + next() % 6 {
            let at = next() as usize % bytes.len();
            bytes[at] = next() as u8;
        }
        bytes.truncate(next() as usize % (bytes.len() + 1));
        let frame = parse(link, &bytes);
        assert!(frame.labels().count() <= MAX_LABELS && frame.vlans().count() <= MAX_TAGS);
        frame.write(&mut builder);
        builder.advance(1);
    }
    assert_eq!(builder.finish().unwrap().num_rows(), 60_000);
}

/// A frame that was something else before: what nobody looks at may be left of it.
fn parse_again(link: Link, bytes: &[u8]) -> Frame {
    let before = ethernet(0x8100, &cat(&[&[0, 5, 0x88, 0xa8, 0, 6, 8, 0], &passenger()]));
    let vxlan = ipv4(17, &udp(1, 4789, &cat(&[&[8, 0, 0, 0, 0, 0, 5, 0], &before])));
    let mut frame = Frame::default();
    parse_into(&mut frame, Link::Ethernet, &before);
    parse_into(&mut frame, Link::Ip, &vxlan);
    parse_into(&mut frame, link, bytes);
    frame
}

#[test]
fn usual_frames_are_read_as_the_walk_reads_them() {
    let tcp_v6 = ipv6(1, 2, 6, &tcp(1_000, 80));
    let mut frames = vec![
        ethernet(0x0800, &passenger()),
        ethernet(0x0800, &ipv4(17, &udp(53, 1_234, &[0; 40]))),
        ethernet(0x86dd, &tcp_v6),
        ethernet(0x86dd, &ipv6(1, 2, 17, &udp(1_234, 53, &[0; 8]))),
    ];
    let usual = |bytes: &[u8]| Frame::default().usual(bytes).is_some();
    assert!(frames.iter().all(|frame| usual(frame)));
    for (link, bytes) in zoo() {
        let ether_type = if bytes[0] >> 4 == 6 { 0x86dd } else { 0x0800 };
        frames.push(if link == Link::Ip { ethernet(ether_type, &bytes) } else { bytes });
    }
    // with a tunnel of each port in it, to the port and from it
    for at in [34, 36] {
        let tunnels = frames.clone().into_iter().filter(|frame| frame[12..14] == [8, 0] && frame[23] == 17);
        frames.extend(tunnels.map(|mut frame| {
            let (src, dst) = (at, 70 - at);
            let port = [frame[36], frame[37]];
            frame[dst..dst + 2].copy_from_slice(&[0, 53]);
            frame[src..src + 2].copy_from_slice(&port);
            frame
        }));
    }
    let mut count = 0;
    let mut check = |bytes: &[u8]| {
        count += usize::from(usual(bytes));
        assert_eq!(
            row(&parse_again(Link::Ethernet, bytes)),
            row(&parse(Link::Ethernet, bytes)),
            "{bytes:02x?}"
        );
    };
    let octets =
        [0, 1, 2, 4, 5, 6, 17, 18, 20, 27, 28, 40, 0x20, 0x40, 0x45, 0x46, 0x60, 0x65, 0x80, 0xdd, 0xff];
    // the ports of tunnels
    let halves = [4_789, 8_472, 6_081, 2_152, 1_701, 6_635_u16].map(u16::to_be_bytes);
    for frame in frames {
        for length in 0..=frame.len() {
            check(&frame[..length]);
        }
        for at in 0..frame.len().min(80) {
            for octet in octets {
                let mut frame = frame.clone();
                frame[at] = octet;
                check(&frame);
            }
            for half in halves {
                let mut frame = frame.clone();
                let Some(place) = frame.get_mut(at..at + 2) else { continue };
                place.copy_from_slice(&half);
                check(&frame);
            }
        }
    }
    assert!(count > 1_000, "{count}");
}
