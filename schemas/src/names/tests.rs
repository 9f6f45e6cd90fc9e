use super::*;

#[test]
fn protocols_have_their_iana_keyword_and_are_found_by_it() {
    for (number, name) in
        [(0, "hopopt"), (1, "icmp"), (6, "tcp"), (17, "udp"), (47, "gre"), (50, "esp"), (58, "ipv6-icmp")]
    {
        assert_eq!(protocol_name(number), Some(name));
        assert_eq!(protocol_number(name), Some(number));
    }
    assert_eq!(protocol_number("TCP"), Some(6));
    assert_eq!(protocol_number("icmpv6"), Some(58));
    assert_eq!(protocol_number("nothing"), None);
    assert_eq!(protocol_number(""), None);
    for unassigned in 148..=252 {
        assert_eq!(protocol_name(unassigned), None, "{unassigned} is unassigned");
    }
}

#[test]
fn every_protocol_name_leads_back_to_its_number() {
    let mut named = 0;
    for number in 0..=u8::MAX {
        if let Some(name) = protocol_name(number) {
            assert_eq!(protocol_number(name), Some(number), "{name}");
            named += 1;
        }
    }
    assert_eq!(named, 151);
}

#[test]
fn dscp_follows_the_formulas_of_its_rfcs() {
    for class in 0..8 {
        assert_eq!(dscp_name(class * 8), Some(format!("CS{class}").as_str()), "RFC 2474 §4.2.2");
    }
    for class in 1..=4 {
        for drop in 1..=3 {
            assert_eq!(
                dscp_name(class * 8 + drop * 2),
                Some(format!("AF{class}{drop}").as_str()),
                "RFC 2597 §6"
            );
        }
    }
    assert_eq!(dscp_name(46), Some("EF"));
    assert_eq!(dscp_name(2), None);
    assert_eq!(dscp_name(64), None);
    for (number, name) in DSCP {
        assert_eq!(dscp_number(name), Some(number));
    }
    for name in ["default", "df", "BE", "cs0"] {
        assert_eq!(dscp_number(name), Some(0));
    }
    assert_eq!(dscp_number("voice-admit"), dscp_number("va"));
    assert_eq!(dscp_number("AF44"), None);
}

#[test]
fn ecn_is_two_bits() {
    assert_eq!([0, 1, 2, 3].map(ecn_name), [Some("Not-ECT"), Some("ECT(1)"), Some("ECT(0)"), Some("CE")]);
    assert_eq!(ecn_name(4), None);
}

#[test]
fn ports_are_named_by_protocol() {
    for (port, protocol, name) in [
        (22, TCP, "ssh"),
        (53, UDP, "domain"),
        (53, TCP, "domain"),
        (443, UDP, "https"),
        (514, UDP, "syslog"),
        (514, TCP, "shell"),
        (2055, UDP, "netflow"),
        (4739, SCTP, "ipfix"),
        (6343, UDP, "sflow"),
        (51820, UDP, "wireguard"),
    ] {
        assert_eq!(port_name(port, protocol), Some(name));
    }
    assert_eq!(port_name(22, ICMP), None);
    assert_eq!(port_name(6343, TCP), None);
    assert_eq!(port_name(65535, TCP), None);
}

#[test]
fn every_line_of_the_data_files_is_taken_once() {
    let mut seen = std::collections::HashSet::new();
    let mut last = 0;
    for row in rows(PORTS) {
        let [port, protocols, name] = row[..] else { panic!("{row:?}") };
        let port: u16 = port.parse().unwrap();
        assert!(port >= last, "{port} {name} is not in order");
        last = port;
        for protocol in protocols.split(',') {
            let number = protocol_number(protocol).unwrap();
            assert!(seen.insert((number, port)), "{port}/{protocol} has two names");
            assert_eq!(port_name(port, number), Some(name));
        }
    }
    assert!(seen.len() > 400, "{}", seen.len());
    for (file, text, lines) in [("protocols", PROTOCOLS, 151), ("drop reasons", DROP_REASONS, 133)] {
        let mut numbers = std::collections::HashSet::new();
        let mut names = std::collections::HashSet::new();
        for row in rows(text) {
            let [number, name] = row[..] else { panic!("{file}: {row:?}") };
            assert!(numbers.insert(number.parse::<u32>().unwrap()), "{file}: {number} twice");
            assert!(names.insert(name), "{file}: {name} twice");
        }
        assert_eq!(numbers.len(), lines, "{file}");
    }
}

#[test]
fn ether_types() {
    for (number, name) in
        [(0x0800, "ipv4"), (0x8100, "802.1q"), (0x86dd, "ipv6"), (0x8847, "mpls"), (0x9100, "qinq-9100")]
    {
        assert_eq!(ether_type_name(number), Some(name));
    }
    assert_eq!(ether_type_name(0x05dc), None, "a length, not a type");
}

#[test]
fn icmp_types_go_by_protocol() {
    assert_eq!(icmp_type_name(8, ICMP), Some("echo-request"));
    assert_eq!(icmp_type_name(8, ICMPV6), None);
    assert_eq!(icmp_type_name(128, ICMPV6), Some("echo-request"));
    assert_eq!(icmp_type_name(3, ICMP), Some("destination-unreachable"));
    assert_eq!(icmp_type_name(3, ICMPV6), Some("time-exceeded"));
    assert_eq!(icmp_type_name(8, TCP), None);
    for icmp_type in 161..=u8::MAX {
        assert_eq!(icmp_type_name(icmp_type, ICMP), None);
    }
}

#[test]
fn forwarding_status_is_two_bits_and_a_reason() {
    for (status, name) in [
        (0, "unknown"),
        (64, "forwarded"),
        (66, "forwarded-not-fragmented"),
        (129, "dropped-acl-deny"),
        (137, "dropped-bad-ttl"),
        (143, "dropped-hardware"),
        (195, "consumed-for-us"),
    ] {
        assert_eq!(forwarding_status_name(status), Some(name));
    }
    assert_eq!(forwarding_status_name(1), None);
    assert_eq!(forwarding_status_name(63), None);
    assert_eq!(forwarding_status_name(190), Some("dropped"), "a reason that the RFC does not know");
    for status in 64..=u8::MAX {
        let name = forwarding_status_name(status).unwrap();
        assert!(name.starts_with(forwarding_class_name(status)), "{status}: {name}");
    }
}

#[test]
fn reasons_and_events_pass_unknown_numbers_through() {
    assert_eq!(flow_end_reason_name(1), Some("idle-timeout"));
    assert_eq!(flow_end_reason_name(5), Some("lack-of-resources"));
    assert_eq!([0, 6, 255].map(flow_end_reason_name), [None; 3]);
    assert_eq!(firewall_event_name(3), Some("denied"));
    assert_eq!(firewall_event_name(6), None);
    assert_eq!(nat_event_name(4), Some("nat44-session-create"));
    assert_eq!(nat_event_name(16), Some("port-block-allocation"));
    assert_eq!([0, 19, 255].map(nat_event_name), [None; 3]);
    for (reason, name) in [
        (0, "net_unreachable"),
        (257, "ttl_exceeded"),
        (258, "acl"),
        (259, "no_buffer_space"),
        (366, "tc_egress"),
    ] {
        assert_eq!(drop_reason_name(reason), Some(name));
    }
    assert_eq!([16, 255, 9999, u32::MAX].map(drop_reason_name), [None; 4]);
}
