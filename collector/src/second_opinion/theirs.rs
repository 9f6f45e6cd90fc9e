//! What netflow_parser made of a datagram, in the order of the template's fields.

use std::net::Ipv4Addr;

use netflow_parser::static_versions::{v5, v7};
use netflow_parser::variable_versions::field_value::DurationValue;
use netflow_parser::variable_versions::{ipfix, v9};
use netflow_parser::{DataNumber, FieldValue, NetflowPacket};
use weir_schemas::{Address, Mac};

/// A value with what netflow_parser says that it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Plain {
    Number(i128),
    Float(f64),
    Address(Address),
    Mac(Mac),
    Text(String),
    /// It does not know the element, or its length does not suit the type.
    Octets,
    /// A time or a duration in units of so many µs.
    Clock {
        unit_us: i64,
        value: u64,
    },
    Ntp {
        seconds: u32,
        fraction: u32,
    },
    /// Engine and selector, as `engine:selector`.
    Application,
}

/// A field of a record.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) plain: Plain,
    /// The value's octets as it would send them again.
    pub(super) octets: Vec<u8>,
}

impl Field {
    fn new(name: String, value: &FieldValue) -> Field {
        let mut octets = Vec::with_capacity(value.byte_len());
        // writing to memory fails only for durations that do not fit their own width
        if value.write_be_bytes(&mut octets).is_err() {
            octets.clear();
        }
        Field { name, plain: plain(value), octets }
    }

    fn number(name: &str, value: u64, width: usize) -> Field {
        let octets = value.to_be_bytes()[8 - width..].to_vec();
        Field { name: name.to_owned(), plain: Plain::Number(value.into()), octets }
    }

    fn v4(name: &str, value: Ipv4Addr) -> Field {
        let octets = value.octets();
        Field { name: name.to_owned(), plain: Plain::Address(Address::v4(octets)), octets: octets.to_vec() }
    }

    fn scope(value: &v9::ScopeDataField) -> Field {
        use v9::ScopeDataField::{Interface, LineCard, NetFlowCache, System, Template, Unknown};
        let (name, octets) = match value {
            System(octets) => ("System", octets),
            Interface(octets) => ("Interface", octets),
            LineCard(octets) => ("LineCard", octets),
            NetFlowCache(octets) => ("NetFlowCache", octets),
            Template(octets) => ("Template", octets),
            Unknown(_, octets) => ("Unknown", octets),
        };
        Field { name: format!("scope {name}"), plain: Plain::Octets, octets: octets.clone() }
    }
}

fn plain(value: &FieldValue) -> Plain {
    use FieldValue as V;
    let small = |value: u8| Plain::Number(value.into());
    match value {
        V::ApplicationId(_) => Plain::Application,
        V::String(text) => Plain::Text(text.value.clone()),
        V::DataNumber(number) => self::number(number),
        V::Float64(value) => Plain::Float(*value),
        V::Duration(DurationValue::Seconds { value, .. }) => {
            Plain::Clock { unit_us: 1_000_000, value: *value }
        }
        V::Duration(DurationValue::Millis { value, .. }) => Plain::Clock { unit_us: 1_000, value: *value },
        V::Duration(
            DurationValue::MicrosNtp { seconds, fraction } | DurationValue::NanosNtp { seconds, fraction },
        ) => Plain::Ntp { seconds: *seconds, fraction: *fraction },
        V::Ip4Addr(address) => Plain::Address(Address::v4(address.octets())),
        V::Ip6Addr(address) => Plain::Address(Address::v6(address.octets())),
        V::MacAddr(octets) => Plain::Mac(Mac(*octets)),
        V::ProtocolType(value) => small((*value).into()),
        V::ForwardingStatus(value) => small((*value).into()),
        V::FragmentFlags(value) => small((*value).into()),
        V::TcpControlBits(value, _) => Plain::Number(u16::from(*value).into()),
        V::Ipv6ExtensionHeaders(value) => Plain::Number(u32::from(*value).into()),
        V::Ipv4Options(value) => Plain::Number(u32::from(*value).into()),
        V::TcpOptions(value) => Plain::Number(u64::from(*value).into()),
        V::IsMulticast(value) => small((*value).into()),
        V::MplsLabelExp(value) => small((*value).into()),
        V::FlowEndReason(value) => small((*value).into()),
        V::NatEvent(value) => small((*value).into()),
        V::FirewallEvent(value) => small((*value).into()),
        V::MplsTopLabelType(value) => small((*value).into()),
        V::NatOriginatingAddressRealm(value) => small((*value).into()),
        _ => Plain::Octets,
    }
}

fn number(number: &DataNumber) -> Plain {
    Plain::Number(match number {
        DataNumber::U8(value) => i128::from(*value),
        DataNumber::I8(value) => i128::from(*value),
        DataNumber::U16(value) => i128::from(*value),
        DataNumber::I16(value) => i128::from(*value),
        DataNumber::U24(value) | DataNumber::U32(value) => i128::from(*value),
        DataNumber::I24(value) | DataNumber::I32(value) => i128::from(*value),
        DataNumber::U64(value) => i128::from(*value),
        DataNumber::I64(value) => i128::from(*value),
        DataNumber::U128(_) | DataNumber::I128(_) | DataNumber::Vec(_) => return Plain::Octets,
    })
}

/// A record: its fields, those without octets too.
pub(super) type Record = Vec<Field>;

/// A set as netflow_parser returns it.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) id: u16,
    /// Octets, with the header.
    pub(super) length: u16,
    /// None: templates, reserved sets, and sets without a template.
    pub(super) records: Option<Vec<Record>>,
}

/// The sets of a packet; the records of v5 and v7 are one set.
pub(super) fn sets(packet: &NetflowPacket) -> Vec<Set> {
    match packet {
        NetflowPacket::V5(packet) => {
            let records = packet.flowsets.iter().map(v5_record).collect();
            vec![Set { id: 5, length: 0, records: Some(records) }]
        }
        NetflowPacket::V7(packet) => {
            let records = packet.flowsets.iter().map(v7_record).collect();
            vec![Set { id: 7, length: 0, records: Some(records) }]
        }
        NetflowPacket::V9(packet) => {
            let set = |set: &v9::FlowSet| {
                let records = match &set.body {
                    v9::FlowSetBody::Data(data) => Some(data.fields.iter().map(|r| v9_record(r)).collect()),
                    v9::FlowSetBody::OptionsData(data) => {
                        Some(data.fields.iter().map(v9_options_record).collect())
                    }
                    _ => None,
                };
                Set { id: set.header.flowset_id, length: set.header.length, records }
            };
            packet.flowsets.iter().map(set).collect()
        }
        NetflowPacket::IPFix(packet) => {
            let set = |set: &ipfix::FlowSet| {
                let records = match &set.body {
                    ipfix::FlowSetBody::Data(data) => {
                        Some(data.fields.iter().map(|r| ipfix_record(r)).collect())
                    }
                    ipfix::FlowSetBody::OptionsData(data) => {
                        Some(data.fields.iter().map(|r| ipfix_record(r)).collect())
                    }
                    ipfix::FlowSetBody::V9Data(data) => {
                        Some(data.fields.iter().map(|r| v9_record(r)).collect())
                    }
                    ipfix::FlowSetBody::V9OptionsData(data) => {
                        Some(data.fields.iter().map(v9_options_record).collect())
                    }
                    _ => None,
                };
                Set { id: set.header.header_id, length: set.header.length, records }
            };
            packet.flowsets.iter().map(set).collect()
        }
        _ => Vec::new(),
    }
}

fn v9_record(record: &[(v9::lookup::V9Field, FieldValue)]) -> Record {
    record.iter().map(|(field, value)| Field::new(format!("{field:?}"), value)).collect()
}

fn v9_options_record(record: &v9::OptionsDataFields) -> Record {
    let scopes = record.scope_fields.iter().map(Field::scope);
    scopes.chain(v9_record(&record.options_fields)).collect()
}

fn ipfix_record(record: &[(ipfix::lookup::IPFixField, FieldValue)]) -> Record {
    record.iter().map(|(field, value)| Field::new(format!("{field:?}"), value)).collect()
}

/// In the order of the wire.
fn v5_record(flow: &v5::FlowSet) -> Record {
    let n = |name: &str, value: u64, width| Field::number(name, value, width);
    vec![
        Field::v4("src_addr", flow.src_addr),
        Field::v4("dst_addr", flow.dst_addr),
        Field::v4("next_hop", flow.next_hop),
        n("input", flow.input.into(), 2),
        n("output", flow.output.into(), 2),
        n("d_pkts", flow.d_pkts.into(), 4),
        n("d_octets", flow.d_octets.into(), 4),
        n("first", flow.first.into(), 4),
        n("last", flow.last.into(), 4),
        n("src_port", flow.src_port.into(), 2),
        n("dst_port", flow.dst_port.into(), 2),
        n("pad1", flow.pad1.into(), 1),
        n("tcp_flags", flow.tcp_flags.into(), 1),
        n("protocol_number", flow.protocol_number.into(), 1),
        n("tos", flow.tos.into(), 1),
        n("src_as", flow.src_as.into(), 2),
        n("dst_as", flow.dst_as.into(), 2),
        n("src_mask", flow.src_mask.into(), 1),
        n("dst_mask", flow.dst_mask.into(), 1),
        n("pad2", flow.pad2.into(), 2),
    ]
}

fn v7_record(flow: &v7::FlowSet) -> Record {
    let n = |name: &str, value: u64, width| Field::number(name, value, width);
    vec![
        Field::v4("src_addr", flow.src_addr),
        Field::v4("dst_addr", flow.dst_addr),
        Field::v4("next_hop", flow.next_hop),
        n("input", flow.input.into(), 2),
        n("output", flow.output.into(), 2),
        n("d_pkts", flow.d_pkts.into(), 4),
        n("d_octets", flow.d_octets.into(), 4),
        n("first", flow.first.into(), 4),
        n("last", flow.last.into(), 4),
        n("src_port", flow.src_port.into(), 2),
        n("dst_port", flow.dst_port.into(), 2),
        n("flags_fields_valid", flow.flags_fields_valid.into(), 1),
        n("tcp_flags", flow.tcp_flags.into(), 1),
        n("protocol_number", flow.protocol_number.into(), 1),
        n("tos", flow.tos.into(), 1),
        n("src_as", flow.src_as.into(), 2),
        n("dst_as", flow.dst_as.into(), 2),
        n("src_mask", flow.src_mask.into(), 1),
        n("dst_mask", flow.dst_mask.into(), 1),
        n("flags_fields_invalid", flow.flags_fields_invalid.into(), 2),
        Field::v4("router_src", flow.router_src),
    ]
}
