//! Structures whose fields have columns: what they hold, in the order of the wire ("sFlow Version 5" and its extensions).

use weir_schemas::{Address, Mac, names};

use crate::decode::wire::{octets, u32_at};
use crate::explain::values;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    U32,
    U64,
    I32,
    F32,
    Uuid,
    /// A MAC address, padded to eight octets.
    Mac,
    Ipv4,
    Ipv6,
    /// A number that has a name.
    Protocol,
    Tos,
    TcpFlags,
    EtherType,
    /// Two bits of ifStatus.
    Status,
    /// A type, and an address of it.
    Address,
    Text,
    /// A count, and so many words.
    Words,
    Labels,
    Tags,
    Lanes,
    AsPath,
    Adapters,
}

impl Shape {
    /// Octets, where they are always as many.
    pub(super) fn octets(self) -> Option<usize> {
        use Shape::{EtherType, F32, I32, Ipv4, Ipv6, Mac, Protocol, Status, TcpFlags, Tos, U32, U64, Uuid};
        match self {
            U32 | I32 | F32 | Ipv4 | Protocol | Tos | TcpFlags | EtherType | Status => Some(4),
            U64 | Mac => Some(8),
            Uuid | Ipv6 => Some(16),
            _ => None,
        }
    }

    /// A value of these octets.
    pub(super) fn show(self, bytes: &[u8]) -> String {
        let word = u32_at(bytes, 0);
        let byte = u8::try_from(word).ok();
        let named = |name: Option<&str>| values::with_name(word.into(), name);
        match self {
            Shape::I32 => word.cast_signed().to_string(),
            Shape::F32 => f32::from_bits(word).to_string(),
            Shape::U64 => u64::from_be_bytes(octets(bytes, 0)).to_string(),
            Shape::Mac => Mac(octets(bytes, 0)).to_string(),
            Shape::Ipv4 => Address::v4(octets(bytes, 0)).to_string(),
            Shape::Ipv6 => Address::v6(octets(bytes, 0)).to_string(),
            Shape::Uuid => bytes.iter().map(|octet| format!("{octet:02x}")).collect(),
            Shape::Protocol => named(byte.and_then(names::protocol_name)),
            Shape::Tos => byte.map_or_else(|| word.to_string(), values::tos),
            Shape::TcpFlags => match u16::try_from(word) {
                Ok(flags) => format!("{word} ({})", values::tcp_flags(flags)),
                Err(_) => word.to_string(),
            },
            Shape::EtherType => {
                let name = u16::try_from(word).ok().and_then(names::ether_type_name);
                format!("{word:#06x}{}", name.map(|name| format!(" ({name})")).unwrap_or_default())
            }
            Shape::Status => {
                let up = |bit: u32| if word & bit != 0 { "up" } else { "down" };
                format!("admin {}, oper {}", up(1), up(2))
            }
            _ => word.to_string(),
        }
    }
}

/// A field, and where it goes.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) column: &'static str,
}

/// `name: Shape => column` and the like; no shape: a word, no column: none.
macro_rules! fields {
    ($($name:literal $(: $shape:ident)? $(=> $column:literal)?),* $(,)?) => {
        &[$(Field {
            name: $name,
            shape: fields!(@shape $($shape)?),
            column: fields!(@column $($column)?),
        }),*]
    };
    (@shape) => { Shape::U32 };
    (@shape $shape:ident) => { Shape::$shape };
    (@column) => { "" };
    (@column $column:literal) => { $column };
}

/// Flow records with columns.
pub(super) fn flow(format: u32) -> Option<(&'static str, &'static [Field])> {
    Some(match format {
        2 => ("sampled_ethernet", ETHERNET),
        3 => ("sampled_ipv4", IPV4),
        4 => ("sampled_ipv6", IPV6),
        1001 => (
            "extended_switch",
            fields![
                "src_vlan" => "src_vlan", "src_priority" => "src_priority", "dst_vlan" => "dst_vlan",
                "dst_priority" => "dst_priority",
            ],
        ),
        1002 => (
            "extended_router",
            fields!["nexthop": Address => "next_hop", "src_mask_len" => "src_mask", "dst_mask_len" => "dst_mask"],
        ),
        1003 => (
            "extended_gateway",
            fields![
                "nexthop": Address => "bgp_next_hop", "as" => "extra.gateway_as", "src_as" => "src_as",
                "src_peer_as" => "prev_as", "dst_as_path": AsPath => "as_path, next_as, dst_as",
                "communities": Words => "communities", "localpref" => "local_pref",
            ],
        ),
        1004 => (
            "extended_user",
            fields![
                "src_charset", "src_user": Text => "user_name", "dst_charset",
                "dst_user": Text => "user_name, or extra.dst_user beside the source's",
            ],
        ),
        1005 => (
            "extended_url",
            fields!["direction" => "extra.url_direction", "url": Text => "http_url", "host": Text => "http_host"],
        ),
        1006 => (
            "extended_mpls",
            fields![
                "nexthop": Address => "next_hop, or extra.mpls_next_hop",
                "in_stack": Labels => "mpls_labels, mpls_exp, or extra.mpls_in_labels",
                "out_stack": Labels => "extra.mpls_out_labels",
            ],
        ),
        1007 => (
            "extended_nat",
            fields!["src_address": Address => "nat_src_addr", "dst_address": Address => "nat_dst_addr"],
        ),
        1020 => ("extended_nat_port", fields!["src_port" => "nat_src_port", "dst_port" => "nat_dst_port"]),
        1012 => ("extended_vlan_tunnel", fields!["stack": Tags => "extra.vlan_tunnel"]),
        1034 => ("extended_vlan_in", fields!["stack": Tags => "extra.vlan_in"]),
        1035 => ("extended_vlan_out", fields!["stack": Tags => "extra.vlan_out"]),
        1021 => ("extended_L2_tunnel_egress", TUNNEL_ETHERNET),
        1022 => ("extended_L2_tunnel_ingress", TUNNEL_ETHERNET),
        1023 => ("extended_ipv4_tunnel_egress", TUNNEL_IPV4),
        1024 => ("extended_ipv4_tunnel_ingress", TUNNEL_IPV4),
        1025 => ("extended_ipv6_tunnel_egress", TUNNEL_IPV6),
        1026 => ("extended_ipv6_tunnel_ingress", TUNNEL_IPV6),
        1029 => ("extended_vni_egress", fields!["vni" => "vni, or extra.vni_egress"]),
        1030 => ("extended_vni_ingress", fields!["vni" => "vni, or extra.vni_ingress"]),
        _ => return None,
    })
}

const ETHERNET: &[Field] = fields![
    "length" => "bytes", "src_mac": Mac => "src_mac", "dst_mac": Mac => "dst_mac",
    "type": EtherType => "ether_type",
];
const IPV4: &[Field] = fields![
    "length" => "ip_bytes", "protocol": Protocol => "ip_protocol", "src_ip": Ipv4 => "src_addr",
    "dst_ip": Ipv4 => "dst_addr", "src_port" => "src_port", "dst_port" => "dst_port",
    "tcp_flags": TcpFlags => "tcp_flags", "tos": Tos => "tos",
];
const IPV6: &[Field] = fields![
    "length" => "ip_bytes", "protocol": Protocol => "ip_protocol", "src_ip": Ipv6 => "src_addr",
    "dst_ip": Ipv6 => "dst_addr", "src_port" => "src_port", "dst_port" => "dst_port",
    "tcp_flags": TcpFlags => "tcp_flags", "priority": Tos => "tos",
];
const TUNNEL_ETHERNET: &[Field] = fields![
    "length" => "extra.l2_tunnel", "src_mac": Mac => "extra.l2_tunnel", "dst_mac": Mac => "extra.l2_tunnel",
    "type": EtherType => "extra.l2_tunnel",
];
const TUNNEL_IPV4: &[Field] = fields![
    "length" => "extra.tunnel", "protocol": Protocol => "extra.tunnel", "src_ip": Ipv4 => "extra.tunnel",
    "dst_ip": Ipv4 => "extra.tunnel", "src_port" => "extra.tunnel", "dst_port" => "extra.tunnel",
    "tcp_flags": TcpFlags, "tos": Tos => "extra.tunnel",
];
const TUNNEL_IPV6: &[Field] = fields![
    "length" => "extra.tunnel", "protocol": Protocol => "extra.tunnel", "src_ip": Ipv6 => "extra.tunnel",
    "dst_ip": Ipv6 => "extra.tunnel", "src_port" => "extra.tunnel", "dst_port" => "extra.tunnel",
    "tcp_flags": TcpFlags, "priority": Tos => "extra.tunnel",
];

/// "if_counters" (counter record 1).
pub(super) const IF_COUNTERS: &[Field] = fields![
    "ifIndex" => "if_index", "ifType" => "if_type", "ifSpeed": U64 => "if_speed",
    "ifDirection" => "if_direction", "ifStatus": Status => "if_admin_up, if_oper_up",
    "ifInOctets": U64 => "in_octets", "ifInUcastPkts" => "in_unicast_packets",
    "ifInMulticastPkts" => "in_multicast_packets", "ifInBroadcastPkts" => "in_broadcast_packets",
    "ifInDiscards" => "in_discards", "ifInErrors" => "in_errors", "ifInUnknownProtos" => "in_unknown_protos",
    "ifOutOctets": U64 => "out_octets", "ifOutUcastPkts" => "out_unicast_packets",
    "ifOutMulticastPkts" => "out_multicast_packets", "ifOutBroadcastPkts" => "out_broadcast_packets",
    "ifOutDiscards" => "out_discards", "ifOutErrors" => "out_errors",
    "ifPromiscuousMode" => "promiscuous",
];

#[cfg(test)]
mod tests {
    use weir_schemas::Table;

    use super::*;

    #[test]
    fn the_columns_named_are_columns_of_their_tables() {
        let check = |fields: &[Field], table: Table| {
            for field in fields {
                let names = field.column.split(", ").filter(|name| !name.is_empty());
                for name in names.map(|name| name.trim_start_matches("or ").split(' ').next().unwrap()) {
                    assert!(name.starts_with("extra.") || table.column(name).is_some(), "{name}");
                }
            }
        };
        for (_, fields) in (0..4_096).filter_map(flow) {
            check(fields, Table::Flows);
        }
        check(IF_COUNTERS, Table::InterfaceCounters);
    }
}
