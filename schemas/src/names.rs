//! Names of the numbers that flows carry: protocols, code points, ports, Ethernet types, reasons and events.
//!
//! Called by the SQL functions and the surfaces, never by a decoder: a column holds the number. A number without a name gives
//! `None` and is shown as a number. Names of values that only weir prints (statuses, reasons, events) are lower case with hyphens;
//! where a registry has keywords, they are the registry's.
//!
//! Not here: the names of information elements ([`crate::elements`]), autonomous systems and interfaces (enrichment).

use std::collections::HashMap;
use std::sync::OnceLock;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// The lines of a data file, split at tabs, without comments.
fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split('\t').collect())
}

const PROTOCOLS: &str = include_str!("../data/protocols.tsv");

/// IP protocol: the keyword of IANA's "Assigned Internet Protocol Numbers" in lower case (`tcp`, `ipv6-icmp`, `ospf`).
pub fn protocol_name(protocol: u8) -> Option<&'static str> {
    static NAMES: OnceLock<[Option<&str>; 256]> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let mut names = [None; 256];
        for row in rows(PROTOCOLS) {
            if let (Ok(number), Some(name)) = (row[0].parse::<u8>(), row.get(1)) {
                names[usize::from(number)] = Some(*name);
            }
        }
        names
    });
    names[usize::from(protocol)]
}

/// The number of an IP protocol: what [`protocol_name`] gives, in any case, and the spellings that people and tools use instead.
pub fn protocol_number(name: &str) -> Option<u8> {
    static NUMBERS: OnceLock<HashMap<&str, u8>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| {
        let named = (0..=u8::MAX).filter_map(|number| protocol_name(number).map(|name| (name, number)));
        let other = [
            ("icmp6", 58),
            ("icmpv6", 58),
            ("ipv6-no-next", 59),
            ("hop-by-hop", 0),
            ("ospfigp", 89),
            ("ospfv3", 89),
            ("ip-in-ip", 94),
            ("ipencap", 4),
            ("4in6", 4),
            ("6in4", 41),
            ("udp-lite", 136),
            ("mobility", 135),
            ("isis", 124),
        ];
        named.chain(other).collect()
    });
    numbers.get(name.to_ascii_lowercase().as_str()).copied()
}

/// The code points that have a name: IANA's "Differentiated Services Field Codepoints" (RFC 2474, 2597, 3246, 5865, 8622) and
/// NQB. Upper case, no space: `CS0` to `CS7`, `AF11` to `AF43`, `EF`, `VA`, `LE`, `NQB`. 0 is `CS0`, never "default" or "BE".
const DSCP: [(u8, &str); 24] = [
    (0, "CS0"),
    (1, "LE"),
    (8, "CS1"),
    (10, "AF11"),
    (12, "AF12"),
    (14, "AF13"),
    (16, "CS2"),
    (18, "AF21"),
    (20, "AF22"),
    (22, "AF23"),
    (24, "CS3"),
    (26, "AF31"),
    (28, "AF32"),
    (30, "AF33"),
    (32, "CS4"),
    (34, "AF41"),
    (36, "AF42"),
    (38, "AF43"),
    (40, "CS5"),
    (44, "VA"),
    (45, "NQB"),
    (46, "EF"),
    (48, "CS6"),
    (56, "CS7"),
];

/// DSCP: the upper six bits of the ToS byte or traffic class (RFC 2474 §3). See [`dscp_number`] for the other spellings.
pub fn dscp_name(dscp: u8) -> Option<&'static str> {
    named(&DSCP, dscp)
}

/// The code point of a name in any case. `default`, `DF` and `BE` are 0, `voice-admit` is `VA`.
pub fn dscp_number(name: &str) -> Option<u8> {
    let name = name.to_ascii_uppercase();
    match name.as_str() {
        "DEFAULT" | "DF" | "BE" => Some(0),
        "VOICE-ADMIT" => Some(44),
        _ => DSCP.iter().find(|(_, known)| *known == name).map(|(number, _)| *number),
    }
}

/// ECN: the lower two bits of the ToS byte or traffic class (RFC 3168 §5).
pub fn ecn_name(ecn: u8) -> Option<&'static str> {
    named(&[(0, "Not-ECT"), (1, "ECT(1)"), (2, "ECT(0)"), (3, "CE")], ecn)
}

const PORTS: &str = include_str!("../data/ports.tsv");

/// The service that a TCP, UDP or SCTP port stands for. Other protocols have no port names.
pub fn port_name(port: u16, protocol: u8) -> Option<&'static str> {
    static NAMES: OnceLock<HashMap<(u8, u16), &str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let mut names = HashMap::new();
        for row in rows(PORTS) {
            let [port, protocols, name] = row[..] else { continue };
            let Ok(port) = port.parse() else { continue };
            for protocol in protocols.split(',') {
                match protocol {
                    "tcp" => names.insert((TCP, port), name),
                    "udp" => names.insert((UDP, port), name),
                    "sctp" => names.insert((SCTP, port), name),
                    _ => None,
                };
            }
        }
        names
    });
    names.get(&(protocol, port)).copied()
}

/// The type field of an Ethernet frame: IANA's "IEEE 802 Numbers", in the spelling of tcpdump and iproute2 where they have one.
pub fn ether_type_name(ether_type: u16) -> Option<&'static str> {
    const NAMES: [(u16, &str); 45] = [
        (0x0800, "ipv4"),
        (0x0805, "x25"),
        (0x0806, "arp"),
        (0x0842, "wake-on-lan"),
        (0x22ea, "srp"),
        (0x22f0, "avtp"),
        (0x22f3, "trill"),
        (0x22f4, "l2-isis"),
        (0x6002, "mop-rc"),
        (0x6003, "decnet"),
        (0x6558, "teb"),
        (0x8035, "rarp"),
        (0x809b, "appletalk"),
        (0x80f3, "aarp"),
        (0x8100, "802.1q"),
        (0x8137, "ipx"),
        (0x86dd, "ipv6"),
        (0x8808, "flow-control"),
        (0x8809, "slow-protocols"),
        (0x880b, "ppp"),
        (0x8847, "mpls"),
        (0x8848, "mpls-multicast"),
        (0x8863, "pppoe-discovery"),
        (0x8864, "pppoe-session"),
        (0x887b, "homeplug"),
        (0x888e, "eapol"),
        (0x8892, "profinet"),
        (0x88a2, "aoe"),
        (0x88a4, "ethercat"),
        (0x88a8, "802.1ad"),
        (0x88b8, "goose"),
        (0x88ba, "sampled-values"),
        (0x88cc, "lldp"),
        (0x88e1, "homeplug-av"),
        (0x88e5, "macsec"),
        (0x88e7, "802.1ah"),
        (0x88f5, "mvrp"),
        (0x88f7, "ptp"),
        (0x88f8, "nc-si"),
        (0x8902, "cfm"),
        (0x8906, "fcoe"),
        (0x8914, "fip"),
        (0x8915, "roce"),
        (0x894f, "nsh"),
        (0x9100, "qinq-9100"),
    ];
    named(&NAMES, ether_type)
}

/// The type of an ICMP message (IANA's "ICMP Type Numbers") if the protocol is 1, of an ICMPv6 message ("ICMPv6 'type' Numbers",
/// RFC 4443) if it is 58.
pub fn icmp_type_name(icmp_type: u8, protocol: u8) -> Option<&'static str> {
    const V4: [(u8, &str); 20] = [
        (0, "echo-reply"),
        (3, "destination-unreachable"),
        (4, "source-quench"),
        (5, "redirect"),
        (6, "alternate-host-address"),
        (8, "echo-request"),
        (9, "router-advertisement"),
        (10, "router-solicitation"),
        (11, "time-exceeded"),
        (12, "parameter-problem"),
        (13, "timestamp-request"),
        (14, "timestamp-reply"),
        (15, "information-request"),
        (16, "information-reply"),
        (17, "address-mask-request"),
        (18, "address-mask-reply"),
        (30, "traceroute"),
        (40, "photuris"),
        (42, "extended-echo-request"),
        (43, "extended-echo-reply"),
    ];
    const V6: [(u8, &str); 38] = [
        (1, "destination-unreachable"),
        (2, "packet-too-big"),
        (3, "time-exceeded"),
        (4, "parameter-problem"),
        (128, "echo-request"),
        (129, "echo-reply"),
        (130, "multicast-listener-query"),
        (131, "multicast-listener-report"),
        (132, "multicast-listener-done"),
        (133, "router-solicitation"),
        (134, "router-advertisement"),
        (135, "neighbor-solicitation"),
        (136, "neighbor-advertisement"),
        (137, "redirect"),
        (138, "router-renumbering"),
        (139, "node-information-query"),
        (140, "node-information-response"),
        (141, "inverse-neighbor-solicitation"),
        (142, "inverse-neighbor-advertisement"),
        (143, "multicast-listener-report-v2"),
        (144, "home-agent-discovery-request"),
        (145, "home-agent-discovery-reply"),
        (146, "mobile-prefix-solicitation"),
        (147, "mobile-prefix-advertisement"),
        (148, "certification-path-solicitation"),
        (149, "certification-path-advertisement"),
        (150, "experimental-mobility"),
        (151, "multicast-router-advertisement"),
        (152, "multicast-router-solicitation"),
        (153, "multicast-router-termination"),
        (154, "fmipv6"),
        (155, "rpl-control"),
        (156, "ilnpv6-locator-update"),
        (157, "duplicate-address-request"),
        (158, "duplicate-address-confirmation"),
        (159, "mpl-control"),
        (160, "extended-echo-request"),
        (161, "extended-echo-reply"),
    ];
    match protocol {
        ICMP => named(&V4, icmp_type),
        ICMPV6 => named(&V6, icmp_type),
        _ => None,
    }
}

/// What became of the packets, without the reason: the upper two bits of forwardingStatus, IE 89 (RFC 7270 §4.12).
pub const fn forwarding_class_name(status: u8) -> &'static str {
    match status >> 6 {
        0 => "unknown",
        1 => "forwarded",
        2 => "dropped",
        _ => "consumed",
    }
}

/// forwardingStatus, IE 89: status and reason (RFC 7270 §4.12). A reason that the RFC does not know gives the status alone, and
/// `None` where the status is unknown too.
pub fn forwarding_status_name(status: u8) -> Option<&'static str> {
    const NAMES: [(u8, &str); 24] = [
        (0, "unknown"),
        (64, "forwarded"),
        (65, "forwarded-fragmented"),
        (66, "forwarded-not-fragmented"),
        (128, "dropped"),
        (129, "dropped-acl-deny"),
        (130, "dropped-acl-drop"),
        (131, "dropped-unroutable"),
        (132, "dropped-adjacency"),
        (133, "dropped-fragmentation-and-df-set"),
        (134, "dropped-bad-header-checksum"),
        (135, "dropped-bad-total-length"),
        (136, "dropped-bad-header-length"),
        (137, "dropped-bad-ttl"),
        (138, "dropped-policer"),
        (139, "dropped-wred"),
        (140, "dropped-rpf"),
        (141, "dropped-for-us"),
        (142, "dropped-bad-output-interface"),
        (143, "dropped-hardware"),
        (192, "consumed"),
        (193, "consumed-punt-adjacency"),
        (194, "consumed-incomplete-adjacency"),
        (195, "consumed-for-us"),
    ];
    match status {
        1..64 => None,
        _ => named(&NAMES, status).or(Some(forwarding_class_name(status))),
    }
}

/// flowEndReason, IE 136 (RFC 5102 §5.11.3).
pub fn flow_end_reason_name(reason: u8) -> Option<&'static str> {
    const NAMES: [(u8, &str); 5] = [
        (1, "idle-timeout"),
        (2, "active-timeout"),
        (3, "end-of-flow"),
        (4, "forced-end"),
        (5, "lack-of-resources"),
    ];
    named(&NAMES, reason)
}

/// firewallEvent, IE 233 (IANA registry; Cisco NSEL).
pub fn firewall_event_name(event: u8) -> Option<&'static str> {
    const NAMES: [(u8, &str); 6] =
        [(0, "ignore"), (1, "created"), (2, "deleted"), (3, "denied"), (4, "alert"), (5, "update")];
    named(&NAMES, event)
}

/// natEvent, IE 230 (RFC 8158 §4.4). 1 and 2 are the historic events of Cisco NEL.
pub fn nat_event_name(event: u8) -> Option<&'static str> {
    const NAMES: [(u8, &str); 18] = [
        (1, "translation-create"),
        (2, "translation-delete"),
        (3, "addresses-exhausted"),
        (4, "nat44-session-create"),
        (5, "nat44-session-delete"),
        (6, "nat64-session-create"),
        (7, "nat64-session-delete"),
        (8, "nat44-bib-create"),
        (9, "nat44-bib-delete"),
        (10, "nat64-bib-create"),
        (11, "nat64-bib-delete"),
        (12, "ports-exhausted"),
        (13, "quota-exceeded"),
        (14, "address-binding-create"),
        (15, "address-binding-delete"),
        (16, "port-block-allocation"),
        (17, "port-block-deallocation"),
        (18, "threshold-reached"),
    ];
    named(&NAMES, event)
}

const DROP_REASONS: &str = include_str!("../data/drop_reasons.tsv");

/// Why a packet was dropped: the `reason` of an sFlow discarded packet (sFlow Dropped Packet Notification Structures, §2), in
/// sFlow.org's spelling (`ttl_exceeded`). A number that is not on the list gives `None`.
pub fn drop_reason_name(reason: u32) -> Option<&'static str> {
    static NAMES: OnceLock<HashMap<u32, &str>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let row = |row: Vec<&'static str>| Some((row[0].parse().ok()?, *row.get(1)?));
        rows(DROP_REASONS).filter_map(row).collect()
    });
    names.get(&reason).copied()
}

/// The name in a table sorted by number.
fn named<N: Ord + Copy>(table: &[(N, &'static str)], number: N) -> Option<&'static str> {
    table.binary_search_by_key(&number, |(known, _)| *known).ok().map(|at| table[at].1)
}

#[cfg(test)]
mod tests;
