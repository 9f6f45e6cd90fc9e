//! Values as a person reads them: the name beside the number.

use weir_schemas::elements::{DataType, Dictionary, IANA};
use weir_schemas::names;

use crate::decode::format::{Around, instant, write_value};
use crate::decode::template::{Field, Space};
use crate::decode::wire::unsigned;

/// The value of an element, from its octets.
pub(super) fn element(field: Field, octets: &[u8], near_us: i64, dictionary: &Dictionary) -> String {
    let mut text = Vec::new();
    let around = Around { near_us, dictionary, templates: None };
    write_value(&mut text, field.data_type(dictionary), octets, &around);
    let mut text = String::from_utf8_lossy(&text).into_owned();
    let (enterprise, id) = field.identity(dictionary);
    let reverse = enterprise == weir_schemas::elements::REVERSE;
    if (enterprise == IANA || reverse)
        && field.space != Space::V9Scope
        && octets.len() <= 8
        && let Some(meaning) = meaning(id, octets)
    {
        text = format!("{text} ({meaning})");
    }
    if field.data_type(dictionary) == DataType::String {
        text = format!("{text:?}");
    }
    text
}

/// What a number of an IANA element stands for.
fn meaning(id: u16, octets: &[u8]) -> Option<String> {
    let value = unsigned(octets);
    let small = u8::try_from(value).ok();
    let named = |name: Option<&'static str>| name.map(str::to_owned);
    match id {
        4 | 193 => named(names::protocol_name(small?)),
        5 | 55 => Some(tos(small?)),
        195 | 98 => named(names::dscp_name(small?)),
        6 => Some(tcp_flags(u16::try_from(value).ok()?)),
        61 => named(direction(value)),
        60 => named(match value {
            4 => Some("IPv4"),
            6 => Some("IPv6"),
            _ => None,
        }),
        89 => named(names::forwarding_status_name(small?)),
        136 => named(names::flow_end_reason_name(small?)),
        230 => named(names::nat_event_name(small?)),
        233 => named(names::firewall_event_name(small?)),
        176 => named(names::icmp_type_name(small?, 1)),
        178 => named(names::icmp_type_name(small?, 58)),
        32 => Some(icmp(value, 1)),
        139 => Some(icmp(value, 58)),
        256 => named(names::ether_type_name(u16::try_from(value).ok()?)),
        70..=79 if octets.len() == 3 => {
            Some(format!("label {}, EXP {}, bottom {}", value >> 4, value >> 1 & 7, value & 1))
        }
        35 => named(match value {
            1 => Some("deterministic"),
            2 => Some("random"),
            _ => None,
        }),
        _ => None,
    }
}

pub(super) fn direction(value: u64) -> Option<&'static str> {
    match value {
        0 => Some("ingress"),
        1 => Some("egress"),
        _ => None,
    }
}

/// `0xb8: DSCP 46 EF, ECN 0 Not-ECT`
pub(super) fn tos(tos: u8) -> String {
    let (dscp, ecn) = (tos >> 2, tos & 3);
    let name = |name: Option<&'static str>| name.map(|name| format!(" {name}")).unwrap_or_default();
    format!(
        "{tos:#04x}: DSCP {dscp}{}, ECN {ecn}{}",
        name(names::dscp_name(dscp)),
        name(names::ecn_name(ecn))
    )
}

/// By their letters, as tcpdump has them.
pub(super) fn tcp_flags(flags: u16) -> String {
    const NAMES: [&str; 9] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE"];
    let set = NAMES.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| *name);
    let set: Vec<_> = set.collect();
    if set.is_empty() { "none".to_owned() } else { set.join(",") }
}

fn icmp(value: u64, protocol: u8) -> String {
    let (kind, code) = (value >> 8, value & 0xff);
    let name = u8::try_from(kind).ok().and_then(|kind| names::icmp_type_name(kind, protocol));
    format!("type {kind} {}, code {code}", name.unwrap_or_default())
}

/// `6 (tcp)`
pub(super) fn protocol(protocol: u8) -> String {
    with_name(protocol.into(), names::protocol_name(protocol))
}

pub(super) fn with_name(value: u64, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{value} ({name})"),
        None => value.to_string(),
    }
}

/// RFC 3339 in UTC, µs.
pub(super) fn time(us: i64) -> String {
    let mut text = Vec::new();
    instant(&mut text, us, 6);
    String::from_utf8_lossy(&text).into_owned()
}

/// `3d 4h 5m 6.789s`
pub(super) fn uptime(ms: u32) -> String {
    let (seconds, ms) = (ms / 1_000, ms % 1_000);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{days}d {hours}h {minutes}m {}.{ms:03}s", seconds % 60)
}
