//! Structures whose fields go to `extra` by name: what they hold, in the order of the wire.
//!
//! Names are those of the MIBs where a structure takes its fields from one (they are unique), else `structure.field` as in
//! the specifications on sflow.org. All-ones in a counter means unknown and is left out (sFlow v5, rule 42).

use std::io::Write;

use super::xdr::{Xdr, words};
use crate::columns::Maps;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    U32,
    U64,
    I32,
    Text,
    /// A MAC address, padded to eight bytes.
    Mac,
    Ipv4,
    Ipv6,
    /// Adapters of a host: ifIndex and MAC addresses of each.
    Adapters,
    /// Lanes of an optical module: ten words each.
    Lanes,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: Type,
}

/// `name: Type` and the like, comma-separated; a bare name is a 32-bit number.
macro_rules! fields {
    ($($name:literal $(: $kind:ident)?),* $(,)?) => {
        &[$(Field { name: $name, kind: fields!(@ $($kind)?) }),*]
    };
    (@) => { Type::U32 };
    (@ $kind:ident) => { Type::$kind };
}

/// Vendors' formats: the enterprise in the upper 20 bits.
const fn vendor(enterprise: u32, format: u32) -> u32 {
    enterprise << 12 | format
}

pub(super) const TCP_INFO: &[Field] = fields![
    "tcp_info.direction",
    "tcp_info.snd_mss",
    "tcp_info.rcv_mss",
    "tcp_info.unacked",
    "tcp_info.lost",
    "tcp_info.retrans",
    "tcp_info.pmtu",
    "tcp_info.rtt",
    "tcp_info.rttvar",
    "tcp_info.snd_cwnd",
    "tcp_info.reordering",
    "tcp_info.min_rtt",
];

const SOCKET4: &[Field] = fields![
    "socket.protocol", "socket.local_ip": Ipv4, "socket.remote_ip": Ipv4, "socket.local_port",
    "socket.remote_port",
];
const SOCKET6: &[Field] = fields![
    "socket.protocol", "socket.local_ip": Ipv6, "socket.remote_ip": Ipv6, "socket.local_port",
    "socket.remote_port",
];

/// Flow records that have no columns of their own.
pub(crate) fn flow(format: u32) -> Option<&'static [Field]> {
    Some(match format {
        1008 => fields!["mpls_tunnel.lsp_name": Text, "mpls_tunnel.id", "mpls_tunnel.cos"],
        1009 => fields!["mpls_vc.instance_name": Text, "mpls_vc.vll_vc_id", "mpls_vc.label_cos"],
        1010 => fields!["mplsFTNDescr": Text, "mplsFTNMask"],
        1011 => fields!["mplsFecAddrPrefixLength"],
        1019 => fields!["queue.index", "queue.length"],
        1027 => fields!["decapsulate_egress.inner_header_offset"],
        1028 => fields!["decapsulate_ingress.inner_header_offset"],
        1036 => fields!["egress_queue"],
        1037 => fields!["acl.number", "acl.name": Text, "acl.direction"],
        1038 => fields!["function": Text],
        1039 => fields!["transit_delay_ns"],
        1040 => fields!["queue_depth_bytes"],
        1041 => fields!["hw_trap.group": Text, "hw_trap.trap": Text],
        1042 => fields!["linux_drop_reason": Text],
        2100 | 2102 => SOCKET4,
        2101 | 2103 => SOCKET6,
        2202 => fields![
            "app.application": Text, "app.operation": Text, "app.attributes": Text, "app.status_descr": Text,
            "app.req_bytes": U64, "app.resp_bytes": U64, "app.duration_us", "app.status",
        ],
        2203 => {
            fields!["app_ctxt.application": Text, "app_ctxt.operation": Text, "app_ctxt.attributes": Text]
        }
        2204 => fields!["app_initiator.actor": Text],
        2205 => fields!["app_target.actor": Text],
        2209 => TCP_INFO,
        2210 => fields![
            "entities.src_ds_class",
            "entities.src_ds_index",
            "entities.dst_ds_class",
            "entities.dst_ds_index",
        ],
        _ => return None,
    })
}

const DOT3: &[Field] = fields![
    "dot3StatsAlignmentErrors",
    "dot3StatsFCSErrors",
    "dot3StatsSingleCollisionFrames",
    "dot3StatsMultipleCollisionFrames",
    "dot3StatsSQETestErrors",
    "dot3StatsDeferredTransmissions",
    "dot3StatsLateCollisions",
    "dot3StatsExcessiveCollisions",
    "dot3StatsInternalMacTransmitErrors",
    "dot3StatsCarrierSenseErrors",
    "dot3StatsFrameTooLongs",
    "dot3StatsInternalMacReceiveErrors",
    "dot3StatsSymbolErrors",
];
const DOT5: &[Field] = fields![
    "dot5StatsLineErrors",
    "dot5StatsBurstErrors",
    "dot5StatsACErrors",
    "dot5StatsAbortTransErrors",
    "dot5StatsInternalErrors",
    "dot5StatsLostFrameErrors",
    "dot5StatsReceiveCongestions",
    "dot5StatsFrameCopiedErrors",
    "dot5StatsTokenErrors",
    "dot5StatsSoftErrors",
    "dot5StatsHardErrors",
    "dot5StatsSignalLoss",
    "dot5StatsTransmitBeacons",
    "dot5StatsRecoverys",
    "dot5StatsLobeWires",
    "dot5StatsRemoves",
    "dot5StatsSingles",
    "dot5StatsFreqErrors",
];
const DOT12: &[Field] = fields![
    "dot12InHighPriorityFrames", "dot12InHighPriorityOctets": U64, "dot12InNormPriorityFrames",
    "dot12InNormPriorityOctets": U64, "dot12InIPMErrors", "dot12InOversizeFrameErrors", "dot12InDataErrors",
    "dot12InNullAddressedFrames", "dot12OutHighPriorityFrames", "dot12OutHighPriorityOctets": U64,
    "dot12TransitionIntoTrainings", "dot12HCInHighPriorityOctets": U64, "dot12HCInNormPriorityOctets": U64,
    "dot12HCOutHighPriorityOctets": U64,
];
const DOT11: &[Field] = fields![
    "dot11TransmittedFragmentCount",
    "dot11MulticastTransmittedFrameCount",
    "dot11FailedCount",
    "dot11RetryCount",
    "dot11MultipleRetryCount",
    "dot11FrameDuplicateCount",
    "dot11RTSSuccessCount",
    "dot11RTSFailureCount",
    "dot11ACKFailureCount",
    "dot11ReceivedFragmentCount",
    "dot11MulticastReceivedFrameCount",
    "dot11FCSErrorCount",
    "dot11TransmittedFrameCount",
    "dot11WEPUndecryptableCount",
    "dot11QoSDiscardedFragmentCount",
    "dot11AssociatedStationCount",
    "dot11QoSCFPollsReceivedCount",
    "dot11QoSCFPollsUnusedCount",
    "dot11QoSCFPollsUnusableCount",
    "dot11QoSCFPollsLostCount",
];
const LACP: &[Field] = fields![
    "lacp.actor_system_id": Mac, "lacp.partner_system_id": Mac, "lacp.attached_agg_id", "lacp.port_state",
    "lacp.lacpdus_rx", "lacp.marker_pdus_rx", "lacp.marker_response_pdus_rx", "lacp.unknown_rx",
    "lacp.illegal_rx", "lacp.lacpdus_tx", "lacp.marker_pdus_tx", "lacp.marker_response_pdus_tx",
];
const MIB2_IP: &[Field] = fields![
    "ipForwarding",
    "ipDefaultTTL",
    "ipInReceives",
    "ipInHdrErrors",
    "ipInAddrErrors",
    "ipForwDatagrams",
    "ipInUnknownProtos",
    "ipInDiscards",
    "ipInDelivers",
    "ipOutRequests",
    "ipOutDiscards",
    "ipOutNoRoutes",
    "ipReasmTimeout",
    "ipReasmReqds",
    "ipReasmOKs",
    "ipReasmFails",
    "ipFragOKs",
    "ipFragFails",
    "ipFragCreates",
];
const MIB2_ICMP: &[Field] = fields![
    "icmpInMsgs",
    "icmpInErrors",
    "icmpInDestUnreachs",
    "icmpInTimeExcds",
    "icmpInParamProbs",
    "icmpInSrcQuenchs",
    "icmpInRedirects",
    "icmpInEchos",
    "icmpInEchoReps",
    "icmpInTimestamps",
    "icmpInAddrMasks",
    "icmpInAddrMaskReps",
    "icmpOutMsgs",
    "icmpOutErrors",
    "icmpOutDestUnreachs",
    "icmpOutTimeExcds",
    "icmpOutParamProbs",
    "icmpOutSrcQuenchs",
    "icmpOutRedirects",
    "icmpOutEchos",
    "icmpOutEchoReps",
    "icmpOutTimestamps",
    "icmpOutTimestampReps",
    "icmpOutAddrMasks",
    "icmpOutAddrMaskReps",
];
const MIB2_TCP: &[Field] = fields![
    "tcpRtoAlgorithm",
    "tcpRtoMin",
    "tcpRtoMax",
    "tcpMaxConn",
    "tcpActiveOpens",
    "tcpPassiveOpens",
    "tcpAttemptFails",
    "tcpEstabResets",
    "tcpCurrEstab",
    "tcpInSegs",
    "tcpOutSegs",
    "tcpRetransSegs",
    "tcpInErrs",
    "tcpOutRsts",
    "tcpInCsumErrors",
];
const MIB2_UDP: &[Field] = fields![
    "udpInDatagrams",
    "udpNoPorts",
    "udpInErrors",
    "udpOutDatagrams",
    "udpRcvbufErrors",
    "udpSndbufErrors",
    "udpInCsumErrors",
];
const GPU: &[Field] = fields![
    "gpu.device_count", "gpu.processes", "gpu.gpu_time", "gpu.mem_time", "gpu.mem_total": U64,
    "gpu.mem_free": U64, "gpu.ecc_errors", "gpu.energy", "gpu.temperature", "gpu.fan_speed",
];
const BROADCOM_TABLES: &[Field] = fields![
    "bcm_tables.host_entries",
    "bcm_tables.host_entries_max",
    "bcm_tables.ipv4_entries",
    "bcm_tables.ipv4_entries_max",
    "bcm_tables.ipv6_entries",
    "bcm_tables.ipv6_entries_max",
    "bcm_tables.ipv4_ipv6_entries",
    "bcm_tables.ipv4_ipv6_entries_max",
    "bcm_tables.long_ipv6_entries",
    "bcm_tables.long_ipv6_entries_max",
    "bcm_tables.total_routes",
    "bcm_tables.total_routes_max",
    "bcm_tables.ecmp_nexthops",
    "bcm_tables.ecmp_nexthops_max",
    "bcm_tables.mac_entries",
    "bcm_tables.mac_entries_max",
    "bcm_tables.ipv4_neighbors",
    "bcm_tables.ipv6_neighbors",
    "bcm_tables.ipv4_routes",
    "bcm_tables.ipv6_routes",
    "bcm_tables.acl_ingress_entries",
    "bcm_tables.acl_ingress_entries_max",
    "bcm_tables.acl_ingress_counters",
    "bcm_tables.acl_ingress_counters_max",
    "bcm_tables.acl_ingress_meters",
    "bcm_tables.acl_ingress_meters_max",
    "bcm_tables.acl_ingress_slices",
    "bcm_tables.acl_ingress_slices_max",
    "bcm_tables.acl_egress_entries",
    "bcm_tables.acl_egress_entries_max",
    "bcm_tables.acl_egress_counters",
    "bcm_tables.acl_egress_counters_max",
    "bcm_tables.acl_egress_meters",
    "bcm_tables.acl_egress_meters_max",
    "bcm_tables.acl_egress_slices",
    "bcm_tables.acl_egress_slices_max",
];

/// The table that a counter record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Interface,
    Host,
    Queue,
    /// That of the data source.
    Source,
}

/// Egress queues; the only structure of which a sample may have several.
pub(crate) const QUEUE: u32 = 1003;

pub(super) fn place(format: u32) -> Place {
    const NVML: u32 = vendor(5703, 1);
    const BROADCOM: u32 = vendor(4413, 3);
    match format {
        QUEUE => Place::Queue,
        1..=7 | 10 | 1002 | 1004 | 1005 => Place::Interface,
        1001 | 2000..=2010 | 2100..=2104 | 2202 | 2203 | 2206 | NVML | BROADCOM => Place::Host,
        _ => Place::Source,
    }
}

/// Counter records that have no columns of their own.
pub(crate) fn counter(format: u32) -> Option<&'static [Field]> {
    const NVML: u32 = vendor(5703, 1);
    const BROADCOM: u32 = vendor(4413, 3);
    Some(match format {
        2 => DOT3,
        3 => DOT5,
        4 => DOT12,
        5 => fields![
            "vlan.id", "vlan.octets": U64, "vlan.unicast_packets", "vlan.multicast_packets",
            "vlan.broadcast_packets", "vlan.discards",
        ],
        6 => DOT11,
        7 => LACP,
        10 => fields![
            "sfp.module_id", "sfp.total_lanes", "sfp.supply_voltage_mv", "sfp.temperature_mc": I32,
            "sfp.lanes": Lanes,
        ],
        1001 => fields![
            "processor.5s_cpu", "processor.1m_cpu", "processor.5m_cpu", "processor.total_memory": U64,
            "processor.free_memory": U64,
        ],
        1002 => fields!["radio.elapsed_time", "radio.on_channel_time", "radio.on_channel_busy_time"],
        1004 => fields!["of_port.datapath_id": U64, "of_port.port_no"],
        1005 => fields!["port_name": Text],
        2001 => fields!["host_adapters": Adapters],
        2002 => fields!["host_parent.container_type", "host_parent.container_index"],
        2007 => MIB2_IP,
        2008 => MIB2_ICMP,
        2009 => MIB2_TCP,
        2010 => MIB2_UDP,
        2100 => fields![
            "virt_node.mhz", "virt_node.cpus", "virt_node.memory": U64, "virt_node.memory_free": U64,
            "virt_node.num_domains",
        ],
        2101 => fields!["virt_cpu.state", "virt_cpu.cpu_time", "virt_cpu.nr_virt_cpu"],
        2102 => fields!["virt_memory.memory": U64, "virt_memory.max_memory": U64],
        2103 => fields![
            "virt_disk.capacity": U64, "virt_disk.allocation": U64, "virt_disk.available": U64,
            "virt_disk.rd_req", "virt_disk.rd_bytes": U64, "virt_disk.wr_req", "virt_disk.wr_bytes": U64,
            "virt_disk.errs",
        ],
        2104 => fields![
            "virt_net.rx_bytes": U64, "virt_net.rx_packets", "virt_net.rx_errs", "virt_net.rx_drop",
            "virt_net.tx_bytes": U64, "virt_net.tx_packets", "virt_net.tx_errs", "virt_net.tx_drop",
        ],
        2202 => fields![
            "app.application": Text, "app.status_ok", "app.errors_other", "app.errors_timeout",
            "app.errors_internal_error", "app.errors_bad_request", "app.errors_forbidden",
            "app.errors_too_large", "app.errors_not_implemented", "app.errors_not_found",
            "app.errors_unavailable", "app.errors_unauthorized",
        ],
        2203 => fields![
            "app_resources.user_time", "app_resources.system_time", "app_resources.mem_used": U64,
            "app_resources.mem_max": U64, "app_resources.fd_open", "app_resources.fd_max",
            "app_resources.conn_open", "app_resources.conn_max",
        ],
        2206 => fields![
            "app_workers.active",
            "app_workers.idle",
            "app_workers.max",
            "app_workers.req_delayed",
            "app_workers.req_dropped",
        ],
        NVML => GPU,
        BROADCOM => BROADCOM_TABLES,
        _ => return None,
    })
}

/// Reads a field and appends it; None where it ends too early.
pub(super) fn append(field: &Field, xdr: &mut Xdr<'_>, extra: &mut Maps) -> Option<()> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    let name = field.name;
    // writing to a vector cannot fail
    let mut put = |value: std::fmt::Arguments<'_>| extra.entry_with(name, |text| drop(text.write_fmt(value)));
    match field.kind {
        Type::U32 => match xdr.u32()? {
            u32::MAX => {}
            value => put(format_args!("{value}")),
        },
        Type::U64 => match xdr.u64()? {
            u64::MAX => {}
            value => put(format_args!("{value}")),
        },
        Type::I32 => put(format_args!("{}", xdr.u32()?.cast_signed())),
        Type::Text => {
            let text = xdr.opaque()?;
            extra.entry_with(name, |value| value.extend_from_slice(text));
        }
        Type::Mac => {
            let [mac @ .., _, _] = xdr.array::<8>()?;
            put(format_args!("{}", weir_schemas::Mac(mac)));
        }
        Type::Ipv4 => put(format_args!("{}", Ipv4Addr::from(xdr.array::<4>()?))),
        Type::Ipv6 => put(format_args!("{}", Ipv6Addr::from(xdr.array::<16>()?))),
        Type::Adapters => adapters(name, xdr, extra)?,
        Type::Lanes => {
            let n = xdr.u32()?;
            let lanes = xdr.words(n.checked_mul(10)?)?;
            extra.entry_with(name, |text| {
                for (at, lane) in lanes.chunks_exact(40).enumerate() {
                    if at > 0 {
                        text.push(b';');
                    }
                    join(text, words(lane));
                }
            });
        }
    }
    Some(())
}

/// `ifIndex=mac,mac;ifIndex=mac`
fn adapters(name: &str, xdr: &mut Xdr<'_>, extra: &mut Maps) -> Option<()> {
    let count = xdr.u32()?;
    let mut whole = Some(());
    extra.entry_with(name, |text| {
        for n in 0..count {
            let adapter = xdr.u32().and_then(|index| {
                let macs = xdr.u32()?;
                Some((index, xdr.words(macs.checked_mul(2)?)?))
            });
            let Some((index, macs)) = adapter else {
                whole = None;
                break;
            };
            drop(write!(text, "{}{index}=", if n == 0 { "" } else { ";" }));
            for (at, padded) in macs.as_chunks::<8>().0.iter().enumerate() {
                let [mac @ .., _, _] = *padded;
                drop(write!(text, "{}{}", if at == 0 { "" } else { "," }, weir_schemas::Mac(mac)));
            }
        }
    });
    whole
}

/// Numbers with commas between them.
pub(super) fn join(text: &mut Vec<u8>, numbers: impl Iterator<Item = u32>) {
    for (at, number) in numbers.enumerate() {
        drop(write!(text, "{}{number}", if at == 0 { "" } else { "," }));
    }
}

/// Two hexadecimal digits a byte.
pub(super) fn hex(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    text.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_over_all_records_of_a_kind() {
        let formats = || (0..4_096).chain([vendor(5703, 1), vendor(4413, 3)]);
        type Formats = fn(u32) -> Option<&'static [Field]>;
        // both ends of a proxied connection share their names: one of them is enough
        let tables: [(Formats, &[u32]); 2] = [(flow, &[2101, 2102, 2103]), (counter, &[])];
        for (table, shared) in tables {
            let mut names: Vec<_> = formats()
                .filter(|format| !shared.contains(format))
                .filter_map(table)
                .flat_map(|fields| fields.iter().map(|field| field.name))
                .collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }

    #[test]
    fn structures_have_the_lengths_of_the_specifications() {
        let size = |fields: &[Field]| -> usize {
            let bytes = |field: &Field| match field.kind {
                Type::U32 | Type::I32 | Type::Ipv4 => 4,
                Type::U64 | Type::Mac => 8,
                Type::Ipv6 => 16,
                other => panic!("{}: {other:?} has no fixed length", field.name),
            };
            fields.iter().map(bytes).sum()
        };
        for (format, want) in [
            (2, 52),
            (3, 72),
            (4, 80),
            (5, 28),
            (6, 80),
            (7, 56),
            (1001, 28),
            (1002, 12),
            (2002, 8),
            (2007, 76),
            (2008, 100),
            (2009, 60),
            (2010, 28),
            (2100, 28),
            (2101, 12),
            (2102, 16),
            (2103, 52),
            (2104, 40),
            (vendor(5703, 1), 48),
            (vendor(4413, 3), 144),
        ] {
            assert_eq!(size(counter(format).unwrap()), want, "{format}");
        }
        for (format, want) in [(1036, 4), (2100, 20), (2101, 44), (2209, 48), (2210, 16)] {
            assert_eq!(size(flow(format).unwrap()), want, "{format}");
        }
    }
}
