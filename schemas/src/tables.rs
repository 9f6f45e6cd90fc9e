//! The tables: which columns there are, what they mean, and their Arrow types.
//!
//! A column has two types. In the log it is as narrow as the wire's value and unsigned; a batch carries only the
//! columns that its records have. In SQL and in the store it is the next signed type (Delta Lake and PostgreSQL have
//! no unsigned integers), and a reader adds the absent columns as NULL.

use std::sync::{Arc, OnceLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// The version of the log's schemas, carried in every envelope. A reader refuses a newer one.
pub const SCHEMA_VERSION: u16 = 1;

/// What a column holds; the log and SQL types follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Microseconds since 1970-01-01 UTC.
    Time,
    /// Sixteen bytes: IPv6, or IPv4 as `::ffff:a.b.c.d`. In our tables every `FixedSizeBinary(16)` is an address.
    Ip,
    /// Six bytes. In our tables every `FixedSizeBinary(6)` is a MAC address.
    Mac,
    Bool,
    U8,
    U16,
    U32,
    U64,
    F64,
    /// Free text.
    Text,
    /// Text of few values, in the log a dictionary with 8-bit keys.
    Label,
    /// A list of 32-bit numbers.
    ListU32,
    /// Text to text, in the order of the record.
    Map,
}

impl Kind {
    /// The Arrow type in a batch of the log.
    pub fn log_type(self) -> DataType {
        match self {
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Kind::Ip => DataType::FixedSizeBinary(16),
            Kind::Mac => DataType::FixedSizeBinary(6),
            Kind::Bool => DataType::Boolean,
            Kind::U8 => DataType::UInt8,
            Kind::U16 => DataType::UInt16,
            Kind::U32 => DataType::UInt32,
            Kind::U64 => DataType::UInt64,
            Kind::F64 => DataType::Float64,
            Kind::Text => DataType::Utf8,
            Kind::Label => DataType::Dictionary(Box::new(DataType::UInt8), Box::new(DataType::Utf8)),
            Kind::ListU32 => DataType::List(Arc::new(Field::new("item", DataType::UInt32, true))),
            Kind::Map => map_type(),
        }
    }

    /// The Arrow type in SQL and in the store.
    pub fn sql_type(self) -> DataType {
        match self {
            Kind::U8 => DataType::Int16,
            Kind::U16 => DataType::Int32,
            Kind::U32 | Kind::U64 => DataType::Int64,
            Kind::Label => DataType::Utf8,
            Kind::ListU32 => DataType::List(Arc::new(Field::new("item", DataType::Int64, true))),
            other => other.log_type(),
        }
    }
}

/// Arrow's map of text to text; the names of its inner fields are the ones of the Parquet specification.
fn map_type() -> DataType {
    let entries = Field::new(
        "key_value",
        DataType::Struct(
            vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)].into(),
        ),
        false,
    );
    DataType::Map(Arc::new(entries), false)
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name in SQL, in JSON and in the log.
    pub name: &'static str,
    pub kind: Kind,
    /// Meaning and unit, one line: the SQL reference is made from it.
    pub doc: &'static str,
}

macro_rules! columns {
    ($(#[$meta:meta])* $enum:ident { $($variant:ident $name:literal $kind:ident $doc:literal)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum $enum { $(#[doc = $doc] $variant,)* }

        impl $enum {
            /// Every column, in the order of the table.
            pub const ALL: &'static [Column] =
                &[$(Column { name: $name, kind: Kind::$kind, doc: $doc },)*];

            /// Its position in the table.
            pub const fn index(self) -> usize { self as usize }

            pub const fn column(self) -> &'static Column { &Self::ALL[self as usize] }

            /// The variant of that position.
            pub fn from_index(index: usize) -> Option<Self> {
                const VARIANTS: &[$enum] = &[$($enum::$variant,)*];
                VARIANTS.get(index).copied()
            }

            /// Every variant, in the order of the table.
            pub fn all() -> impl Iterator<Item = Self> {
                (0..Self::ALL.len()).filter_map(Self::from_index)
            }
        }
    };
}

columns! {
    /// The columns of `flows`, and of the tables whose rows are decoded the same way: `nat_events` (events without
    /// volume) and `discards` (sFlow discarded packets).
    FlowColumn {
    ReceivedAt "received_at" Time "when the datagram arrived (kernel receive time where available)"
    StartTime "start_time" Time "first packet of the flow, absolute"
    EndTime "end_time" Time "last packet of the flow, absolute"
    TimeSource "time_source" Label "where start and end come from: `flow`, or `received` where the exporter's times were implausible or absent"
    ExporterAddr "exporter_addr" Ip "the device that sent the record (sFlow: the agent)"
    ObservationDomain "observation_domain" U32 "IPFIX observation domain, v9 source id, v5 engine, sFlow sub-agent"
    ProtoVer "proto_ver" Label "netflow1, netflow5, netflow7, netflow9, ipfix, sflow5"
    SenderAddr "sender_addr" Ip "source address of the datagram, where it is not the exporter's"
    AgentAddr "agent_addr" Ip "sFlow agent, or the exporter's address in IE 130/131"
    Reverse "reverse" Bool "true for the reverse half of a biflow record (RFC 5103)"
    SrcAddr "src_addr" Ip "source address"
    DstAddr "dst_addr" Ip "destination address"
    SrcPort "src_port" U16 "source port, as exported"
    DstPort "dst_port" U16 "destination port, as exported"
    IpProtocol "ip_protocol" U8 "IP protocol; of IPv6 the last next header"
    TcpFlags "tcp_flags" U16 "TCP control bits, or-ed over the flow"
    Tos "tos" U8 "the whole ToS or traffic class byte"
    PostTos "post_tos" U8 "the ToS byte after the box re-marked it"
    IpTtl "ip_ttl" U8 "TTL or hop limit"
    MinTtl "min_ttl" U8 "lowest TTL of the flow"
    MaxTtl "max_ttl" U8 "highest TTL of the flow"
    Ipv6FlowLabel "ipv6_flow_label" U32 "IPv6 flow label"
    IcmpType "icmp_type" U8 "ICMP type"
    IcmpCode "icmp_code" U8 "ICMP code"
    FragmentId "fragment_id" U32 "IP identification"
    FragmentOffset "fragment_offset" U16 "fragment offset, 8-byte units"
    Bytes "bytes" U64 "octets as exported, not scaled (IE 1, else 85; sFlow: frame length)"
    Packets "packets" U64 "packets as exported, not scaled (IE 2, else 86; sFlow: 1)"
    IpBytes "ip_bytes" U64 "octets of the IP packet, where known apart from `bytes`"
    InitiatorBytes "initiator_bytes" U64 "octets from the initiator (IE 231)"
    ResponderBytes "responder_bytes" U64 "octets from the responder (IE 232)"
    InitiatorPackets "initiator_packets" U64 "packets from the initiator (IE 298)"
    ResponderPackets "responder_packets" U64 "packets from the responder (IE 299)"
    DroppedBytes "dropped_bytes" U64 "octets the exporter dropped (IE 132, else 134)"
    DroppedPackets "dropped_packets" U64 "packets the exporter dropped (IE 133, else 135)"
    SamplingRate "sampling_rate" F64 "1 in N, as announced or configured; NULL where unknown"
    SamplingSource "sampling_source" Label "where the rate comes from: override, record, sampler, interface, system, header, configured, unknown"
    SamplingEffective "sampling_effective" F64 "1 in N by sFlow's sample pool over the samples seen"
    InIf "in_if" U32 "input ifIndex"
    OutIf "out_if" U32 "output ifIndex"
    InIfFlag "in_if_flag" Label "`local` where the input is no interface (sFlow)"
    OutIfFlag "out_if_flag" Label "`local`, `discard` or `multiple` where the output is not one interface (sFlow)"
    NextHop "next_hop" Ip "IP next hop"
    BgpNextHop "bgp_next_hop" Ip "BGP next hop"
    SrcAs "src_as" U32 "source AS"
    DstAs "dst_as" U32 "destination AS"
    PrevAs "prev_as" U32 "adjacent AS before (IE 129; sFlow: source peer AS)"
    NextAs "next_as" U32 "adjacent AS after (IE 128; sFlow: first AS of the path)"
    SrcMask "src_mask" U8 "prefix length of the source's route"
    DstMask "dst_mask" U8 "prefix length of the destination's route"
    AsPath "as_path" ListU32 "AS path to the destination"
    Communities "communities" ListU32 "BGP communities"
    LocalPref "local_pref" U32 "BGP local preference"
    SrcMac "src_mac" Mac "source MAC"
    DstMac "dst_mac" Mac "destination MAC"
    SrcVlan "src_vlan" U16 "VLAN id on input (IE 58, 243)"
    DstVlan "dst_vlan" U16 "VLAN id on output (IE 59, 254)"
    SrcPriority "src_priority" U8 "802.1p priority on input (sFlow extended switch, IE 244)"
    DstPriority "dst_priority" U8 "802.1p priority on output (sFlow extended switch)"
    SrcCustomerVlan "src_customer_vlan" U16 "customer VLAN id on input (IE 245)"
    DstCustomerVlan "dst_customer_vlan" U16 "customer VLAN id on output (IE 255)"
    FrameVlans "frame_vlans" ListU32 "VLAN ids of the sampled frame, outer first"
    EtherType "ether_type" U16 "Ethernet type"
    MplsLabels "mpls_labels" ListU32 "20-bit MPLS labels, top first"
    MplsExp "mpls_exp" ListU32 "EXP (traffic class) bits of the MPLS labels, top first"
    InnerSrcAddr "inner_src_addr" Ip "source address inside the tunnel"
    InnerDstAddr "inner_dst_addr" Ip "destination address inside the tunnel"
    InnerSrcPort "inner_src_port" U16 "source port inside the tunnel"
    InnerDstPort "inner_dst_port" U16 "destination port inside the tunnel"
    InnerIpProtocol "inner_ip_protocol" U8 "IP protocol inside the tunnel"
    Tunnel "tunnel" Label "gre, ipip, vxlan, geneve, srv6, gtpu, eompls, l2tp, …"
    VrfIn "vrf_in" U32 "VRF id on input"
    VrfOut "vrf_out" U32 "VRF id on output"
    Vni "vni" U32 "VXLAN or GENEVE network identifier"
    Direction "direction" U8 "0 ingress, 1 egress; NULL unknown"
    ForwardingStatus "forwarding_status" U8 "RFC 7270: status in the top two bits, reason below"
    FlowEndReason "flow_end_reason" U8 "1 idle, 2 active, 3 end, 4 forced, 5 lack of resources"
    DropReason "drop_reason" U32 "sFlow discard reason"
    DropReasonName "drop_reason_name" Label "its name: `acl`, `ttl_exceeded`, `no_buffer_space`, …"
    NatSrcAddr "nat_src_addr" Ip "source address after NAT"
    NatDstAddr "nat_dst_addr" Ip "destination address after NAT"
    NatSrcPort "nat_src_port" U16 "source port after NAT"
    NatDstPort "nat_dst_port" U16 "destination port after NAT"
    NatEvent "nat_event" U8 "RFC 8158 NAT event"
    FirewallEvent "firewall_event" U8 "IE 233: 1 created, 2 deleted, 3 denied, 4 alert, 5 update"
    PortBlockStart "port_block_start" U16 "first port of the block (IE 361)"
    PortBlockEnd "port_block_end" U16 "last port of the block (IE 362)"
    PortBlockSize "port_block_size" U16 "ports in the block (IE 364)"
    PortBlockStep "port_block_step" U16 "distance of the ports in the block (IE 363)"
    AppId "app_id" Text "application, RFC 6759: `engine:selector`"
    AppName "app_name" Text "application name, in the record or from the exporter's option table"
    UserName "user_name" Text "user name"
    HttpHost "http_host" Text "HTTP host"
    HttpUrl "http_url" Text "HTTP URL"
    RttUs "rtt_us" U64 "round trip time, µs"
    JitterUs "jitter_us" U64 "RTP jitter, µs"
    LostPackets "lost_packets" U64 "packets lost, as the exporter measured"
    Retransmits "retransmits" U64 "TCP retransmissions"
    FrameTruncated "frame_truncated" Bool "true where the sampled header ended before its protocols did"
    Extra "extra" Map "every other information element, by name (`enterprise:number` where unknown)"
    }
}

columns! {
    /// The columns of `interface_counters` (sFlow generic and Ethernet interface counters).
    CounterColumn {
    ReceivedAt "received_at" Time "when the datagram arrived"
    ExporterAddr "exporter_addr" Ip "the agent"
    ObservationDomain "observation_domain" U32 "sub-agent"
    ProtoVer "proto_ver" Label "sflow5"
    IfIndex "if_index" U32 "ifIndex"
    IfType "if_type" U32 "ifType"
    IfSpeed "if_speed" U64 "bits per second"
    IfDirection "if_direction" U8 "1 full duplex, 2 half, 3 in, 4 out"
    IfAdminUp "if_admin_up" Bool "administratively up"
    IfOperUp "if_oper_up" Bool "operationally up"
    InOctets "in_octets" U64 "octets in, since boot"
    InUnicastPackets "in_unicast_packets" U64 "unicast packets in"
    InMulticastPackets "in_multicast_packets" U64 "multicast packets in"
    InBroadcastPackets "in_broadcast_packets" U64 "broadcast packets in"
    InDiscards "in_discards" U64 "packets discarded on input"
    InErrors "in_errors" U64 "input errors"
    InUnknownProtos "in_unknown_protos" U64 "packets of unknown protocols"
    OutOctets "out_octets" U64 "octets out, since boot"
    OutUnicastPackets "out_unicast_packets" U64 "unicast packets out"
    OutMulticastPackets "out_multicast_packets" U64 "multicast packets out"
    OutBroadcastPackets "out_broadcast_packets" U64 "broadcast packets out"
    OutDiscards "out_discards" U64 "packets discarded on output"
    OutErrors "out_errors" U64 "output errors"
    Promiscuous "promiscuous" Bool "promiscuous mode"
    UptimeMs "uptime_ms" U32 "agent uptime, ms"
    Extra "extra" Map "every other counter of the sample, by name"
    }
}

columns! {
    /// The columns of `host_counters` (sFlow Host Structures, and what switches say of their processors): one row a
    /// counter sample.
    HostColumn {
    ReceivedAt "received_at" Time "when the datagram arrived"
    ExporterAddr "exporter_addr" Ip "the agent"
    ObservationDomain "observation_domain" U32 "sub-agent"
    ProtoVer "proto_ver" Label "sflow5"
    UptimeMs "uptime_ms" U32 "agent uptime, ms"
    SourceClass "source_class" U32 "class of the data source: 0 interface, 2 physical entity, 3 logical entity"
    SourceIndex "source_index" U32 "index of the data source: a host is 2:1, its virtual machines and containers 3:n"
    HostName "host_name" Text "host name"
    HostUuid "host_uuid" Text "UUID of the host"
    MachineType "machine_type" U32 "machine type: 1 other, 2 x86, 3 x86_64, 4 ia64, 5 sparc, 6 alpha, 7 powerpc, 8 m68k, 9 mips, 10 arm, …"
    OsName "os_name" U32 "operating system: 1 other, 2 linux, 3 windows, 4 darwin, 5 hpux, 6 aix, 7 dragonfly, 8 freebsd, 9 netbsd, …"
    OsRelease "os_release" Text "release of the operating system"
    LoadOne "load_one" F64 "load average, 1 minute"
    LoadFive "load_five" F64 "load average, 5 minutes"
    LoadFifteen "load_fifteen" F64 "load average, 15 minutes"
    ProcessesRunning "processes_running" U64 "processes running"
    ProcessesTotal "processes_total" U64 "processes"
    CpuCount "cpu_count" U64 "processors"
    CpuSpeedMhz "cpu_speed_mhz" U64 "their clock"
    HostUptimeSeconds "host_uptime_s" U64 "since the host booted"
    CpuUserMs "cpu_user_ms" U64 "processor time in user mode, ms since boot"
    CpuNiceMs "cpu_nice_ms" U64 "the same, with low priority"
    CpuSystemMs "cpu_system_ms" U64 "processor time in the kernel"
    CpuIdleMs "cpu_idle_ms" U64 "processor time idle"
    CpuWaitMs "cpu_wait_ms" U64 "processor time idle while a disk is waited for"
    CpuInterruptMs "cpu_interrupt_ms" U64 "processor time in interrupts"
    CpuSoftInterruptMs "cpu_soft_interrupt_ms" U64 "processor time in soft interrupts"
    Interrupts "interrupts" U64 "interrupts since boot"
    ContextSwitches "context_switches" U64 "context switches since boot"
    CpuStealMs "cpu_steal_ms" U64 "processor time that the hypervisor took"
    CpuGuestMs "cpu_guest_ms" U64 "processor time of guests"
    CpuGuestNiceMs "cpu_guest_nice_ms" U64 "the same, with low priority"
    MemoryTotal "memory_total_bytes" U64 "memory"
    MemoryFree "memory_free_bytes" U64 "memory free"
    MemoryShared "memory_shared_bytes" U64 "memory shared"
    MemoryBuffers "memory_buffers_bytes" U64 "memory in buffers"
    MemoryCached "memory_cached_bytes" U64 "memory of the page cache"
    SwapTotal "swap_total_bytes" U64 "swap"
    SwapFree "swap_free_bytes" U64 "swap free"
    PageIn "pages_in" U64 "pages read since boot"
    PageOut "pages_out" U64 "pages written since boot"
    SwapIn "swap_pages_in" U64 "pages swapped in since boot"
    SwapOut "swap_pages_out" U64 "pages swapped out since boot"
    DiskTotal "disk_total_bytes" U64 "disk space"
    DiskFree "disk_free_bytes" U64 "disk space free"
    DiskMaxUsed "disk_max_used_percent" F64 "share in use of the partition that is fullest"
    DiskReads "disk_reads" U64 "reads since boot"
    DiskBytesRead "disk_bytes_read" U64 "bytes read since boot"
    DiskReadMs "disk_read_ms" U64 "time of reads, ms since boot"
    DiskWrites "disk_writes" U64 "writes since boot"
    DiskBytesWritten "disk_bytes_written" U64 "bytes written since boot"
    DiskWriteMs "disk_write_ms" U64 "time of writes, ms since boot"
    NetBytesIn "net_bytes_in" U64 "bytes received by all adapters since boot"
    NetPacketsIn "net_packets_in" U64 "packets received"
    NetErrorsIn "net_errors_in" U64 "errors on receipt"
    NetDropsIn "net_drops_in" U64 "packets dropped on receipt"
    NetBytesOut "net_bytes_out" U64 "bytes sent by all adapters since boot"
    NetPacketsOut "net_packets_out" U64 "packets sent"
    NetErrorsOut "net_errors_out" U64 "errors on sending"
    NetDropsOut "net_drops_out" U64 "packets dropped on sending"
    Extra "extra" Map "every other counter of the sample, by name: virtual machines, applications, protocols, processors of switches"
    }
}

columns! {
    /// The columns of `queue_counters` (sFlow egress queues): one row a queue.
    QueueColumn {
    ReceivedAt "received_at" Time "when the datagram arrived"
    ExporterAddr "exporter_addr" Ip "the agent"
    ObservationDomain "observation_domain" U32 "sub-agent"
    ProtoVer "proto_ver" Label "sflow5"
    UptimeMs "uptime_ms" U32 "agent uptime, ms"
    IfIndex "if_index" U32 "ifIndex of the interface that the queue belongs to"
    QueueIndex "queue_index" U32 "which of its queues"
    SegmentBytes "segment_bytes" U64 "bytes of a segment"
    Segments "segments" U64 "segments that the queue may take"
    Length0 "length_0" U64 "packets that found the queue empty, since boot"
    Length1 "length_1" U64 "packets that found one segment"
    Length2 "length_2" U64 "packets that found two segments"
    Length4 "length_4" U64 "packets that found 3 or 4 segments"
    Length8 "length_8" U64 "packets that found 5 to 8 segments"
    Length32 "length_32" U64 "packets that found 9 to 32 segments"
    Length128 "length_128" U64 "packets that found 33 to 128 segments"
    Length1024 "length_1024" U64 "packets that found 129 to 1,024 segments"
    LengthMore "length_more" U64 "packets that found more"
    DroppedPackets "dropped_packets" U64 "packets dropped by the queue, since boot"
    }
}

columns! {
    /// The columns of `options`: options data records, one row a record.
    OptionsColumn {
    ReceivedAt "received_at" Time "when the datagram arrived"
    ExporterAddr "exporter_addr" Ip "the exporter"
    ObservationDomain "observation_domain" U32 "observation domain or source id"
    ProtoVer "proto_ver" Label "netflow9 or ipfix"
    TemplateId "template_id" U16 "options template"
    Scope "scope" Map "the scope fields, by name"
    Fields "fields" Map "the option fields, by name"
    }
}

columns! {
    /// The columns of `exporter_stats`: what the collector counted for an exporter and domain in an interval. All
    /// counts are differences to the row before, so sums over time are totals.
    StatsColumn {
    ReceivedAt "received_at" Time "end of the interval"
    ExporterAddr "exporter_addr" Ip "the exporter"
    SenderAddr "sender_addr" Ip "source address of its datagrams"
    ObservationDomain "observation_domain" U32 "observation domain"
    ProtoVer "proto_ver" Label "protocol"
    Datagrams "datagrams" U64 "datagrams received"
    DatagramBytes "datagram_bytes" U64 "their payload"
    Flows "flows" U64 "flow rows decoded (and NAT events)"
    OptionsRecords "options_records" U64 "options records decoded"
    CounterSamples "counter_samples" U64 "counter samples decoded"
    Templates "templates" U64 "templates received, refreshes too"
    TemplateCollisions "template_collisions" U64 "templates that replaced another one of the same id"
    WithdrawalsIgnored "withdrawals_ignored" U64 "template withdrawals over UDP, which are not followed"
    TemplateMisses "template_misses" U64 "data sets whose template was unknown when they came"
    SetsReplayed "sets_replayed" U64 "of those, decoded when the template came"
    SetsExpired "sets_expired" U64 "of those, given up"
    BadTexts "bad_texts" U64 "texts that were not UTF-8 (RFC 7011 §6.1.6); kept, with what was wrong replaced"
    Rejected "rejected" U64 "datagrams or sets rejected as malformed"
    SequenceExpected "sequence_expected" U64 "units (records or datagrams, as the protocol counts) that the exporter says it sent"
    SequenceLost "sequence_lost" U64 "units missing when the row was written; less `sequence_recovered`, lost before us"
    SequenceRecovered "sequence_recovered" U64 "units that an earlier row counted as lost and that came late"
    SequenceReordered "sequence_reordered" U64 "units that came late or twice"
    SequenceResets "sequence_resets" U64 "restarts of the sequence"
    SequenceUncertain "sequence_uncertain" U64 "intervals in which loss cannot be known (unknown templates)"
    AgentDrops "agent_drops" U64 "sFlow: samples the agent dropped"
    SamplesExpected "samples_expected" U64 "sFlow: samples that the data sources of the agent say they took"
    SamplesLost "samples_lost" U64 "sFlow: of those, missing here, with their datagram or before; see `samples_recovered`"
    SamplesRecovered "samples_recovered" U64 "sFlow: samples that an earlier row counted as lost and that came late"
    RecordsSkipped "records_skipped" U64 "sFlow: samples and records of unknown format"
    ClockSkewUs "clock_skew_us" F64 "receive time less export time, last seen, µs"
    SamplingRate "sampling_rate" F64 "sampling rate last seen"
    KernelDrops "kernel_drops" F64 "datagrams of it that the kernel dropped here, the socket's buffer being full: those of all exporters, shared out by `datagrams`"
    RowsDropped "rows_dropped" F64 "rows of it that the collector gave up, the log not taking them: those of all exporters, shared out by `flows`"
    }
}

columns! {
    /// The columns of `exporter_events`: what happened to an exporter, one row an event.
    EventColumn {
    ReceivedAt "received_at" Time "when it was seen"
    ExporterAddr "exporter_addr" Ip "the exporter"
    ObservationDomain "observation_domain" U32 "observation domain"
    ProtoVer "proto_ver" Label "protocol"
    Event "event" Label "new_exporter, restart, template_collision, withdrawal_ignored, sampling_changed, unknown_elements"
    TemplateId "template_id" U16 "the template it is about"
    Detail "detail" Text "in words"
    }
}

/// The tables that go through the log; each batch is of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Flows,
    NatEvents,
    Discards,
    InterfaceCounters,
    HostCounters,
    QueueCounters,
    Options,
    ExporterStats,
    ExporterEvents,
}

impl Table {
    pub const ALL: [Table; 9] = [
        Table::Flows,
        Table::NatEvents,
        Table::Discards,
        Table::InterfaceCounters,
        Table::HostCounters,
        Table::QueueCounters,
        Table::Options,
        Table::ExporterStats,
        Table::ExporterEvents,
    ];

    /// Its name in SQL, in JSON (`"table"`) and in the envelope.
    pub const fn name(self) -> &'static str {
        match self {
            Table::Flows => "flows",
            Table::NatEvents => "nat_events",
            Table::Discards => "discards",
            Table::InterfaceCounters => "interface_counters",
            Table::HostCounters => "host_counters",
            Table::QueueCounters => "queue_counters",
            Table::Options => "options",
            Table::ExporterStats => "exporter_stats",
            Table::ExporterEvents => "exporter_events",
        }
    }

    pub fn from_name(name: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Its columns, in order.
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Table::Flows | Table::NatEvents | Table::Discards => FlowColumn::ALL,
            Table::InterfaceCounters => CounterColumn::ALL,
            Table::HostCounters => HostColumn::ALL,
            Table::QueueCounters => QueueColumn::ALL,
            Table::Options => OptionsColumn::ALL,
            Table::ExporterStats => StatsColumn::ALL,
            Table::ExporterEvents => EventColumn::ALL,
        }
    }

    pub fn column(self, name: &str) -> Option<&'static Column> {
        self.columns().iter().find(|column| column.name == name)
    }

    /// All columns with their SQL types, every one nullable (a reader adds what a batch has not).
    pub fn sql_schema(self) -> SchemaRef {
        static SCHEMAS: OnceLock<Vec<SchemaRef>> = OnceLock::new();
        let schemas = SCHEMAS.get_or_init(|| {
            let of = |table: Table| {
                let field = |column: &Column| Field::new(column.name, column.kind.sql_type(), true);
                Arc::new(Schema::new(table.columns().iter().map(field).collect::<Vec<_>>()))
            };
            Table::ALL.into_iter().map(of).collect()
        });
        Arc::clone(&schemas[self as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_round_trip() {
        for table in Table::ALL {
            assert_eq!(Table::from_name(table.name()), Some(table));
            let mut names: Vec<_> = table.columns().iter().map(|column| column.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.columns().len(), "{}", table.name());
            assert_eq!(table.sql_schema().fields().len(), names.len());
        }
    }

    #[test]
    fn variants_know_their_position() {
        assert_eq!(FlowColumn::SrcAddr.column().name, "src_addr");
        assert_eq!(FlowColumn::from_index(FlowColumn::Extra.index()), Some(FlowColumn::Extra));
        assert_eq!(FlowColumn::from_index(FlowColumn::ALL.len()), None);
    }

    #[test]
    fn sql_has_no_unsigned_types() {
        for table in Table::ALL {
            for field in table.sql_schema().fields() {
                assert!(!field.data_type().is_unsigned_integer(), "{}", field.name());
            }
        }
    }
}
