//! Encode → decode = identity: random templates and records are written by an encoder that shares nothing with the
//! decoder, together with the rows that must come out. Whole rows are compared: a column or an entry of `extra` too many
//! is as wrong as one too few.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weir_schemas::elements::{DataType, Dictionary};

use super::*;
use crate::decode::mapping::mappings;
use crate::decode::testing::Choices;

type Row = Map<String, Value>;

/// How the octets of a value read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// At most so many octets.
    Unsigned(u16),
    Signed(u16),
    Float(u16),
    Bool,
    V4,
    V6,
    Mac,
    Text,
    Octets,
}

/// A field of a random template.
#[derive(Debug, Clone)]
struct Field {
    enterprise: u32,
    id: u16,
    kind: Kind,
    /// Column, or key of `extra`.
    name: String,
    column: bool,
    /// Of the other direction (RFC 5103).
    reverse: bool,
    /// Octets; 0xffff where each record says.
    length: u16,
}

use Kind::{Float, Mac, Octets, Signed, Text, Unsigned, V4, V6};

/// Elements of IANA's registry with the column that DESIGN gives them, and their type there.
const COLUMNS: &[(u16, &str, Kind)] = &[
    (1, "bytes", Unsigned(8)),
    (2, "packets", Unsigned(8)),
    (4, "ip_protocol", Unsigned(1)),
    (5, "tos", Unsigned(1)),
    (6, "tcp_flags", Unsigned(2)),
    (7, "src_port", Unsigned(2)),
    (8, "src_addr", V4),
    (9, "src_mask", Unsigned(1)),
    (10, "in_if", Unsigned(4)),
    (11, "dst_port", Unsigned(2)),
    (12, "dst_addr", V4),
    (13, "dst_mask", Unsigned(1)),
    (14, "out_if", Unsigned(4)),
    (15, "next_hop", V4),
    (16, "src_as", Unsigned(4)),
    (17, "dst_as", Unsigned(4)),
    (18, "bgp_next_hop", V4),
    (27, "src_addr", V6),
    (28, "dst_addr", V6),
    (29, "src_mask", Unsigned(1)),
    (30, "dst_mask", Unsigned(1)),
    (31, "ipv6_flow_label", Unsigned(4)),
    (52, "min_ttl", Unsigned(1)),
    (53, "max_ttl", Unsigned(1)),
    (54, "fragment_id", Unsigned(4)),
    (55, "post_tos", Unsigned(1)),
    (56, "src_mac", Mac),
    (58, "src_vlan", Unsigned(2)),
    (59, "dst_vlan", Unsigned(2)),
    (61, "direction", Unsigned(1)),
    (62, "next_hop", V6),
    (63, "bgp_next_hop", V6),
    (80, "dst_mac", Mac),
    (88, "fragment_offset", Unsigned(2)),
    (89, "forwarding_status", Unsigned(1)),
    (128, "next_as", Unsigned(4)),
    (129, "prev_as", Unsigned(4)),
    (136, "flow_end_reason", Unsigned(1)),
    (176, "icmp_type", Unsigned(1)),
    (177, "icmp_code", Unsigned(1)),
    (192, "ip_ttl", Unsigned(1)),
    (224, "ip_bytes", Unsigned(8)),
    (225, "nat_src_addr", V4),
    (226, "nat_dst_addr", V4),
    (227, "nat_src_port", Unsigned(2)),
    (228, "nat_dst_port", Unsigned(2)),
    (231, "initiator_bytes", Unsigned(8)),
    (232, "responder_bytes", Unsigned(8)),
    (234, "vrf_in", Unsigned(4)),
    (235, "vrf_out", Unsigned(4)),
    (245, "src_customer_vlan", Unsigned(2)),
    (255, "dst_customer_vlan", Unsigned(2)),
    (256, "ether_type", Unsigned(2)),
    (281, "nat_src_addr", V6),
    (282, "nat_dst_addr", V6),
    (298, "initiator_packets", Unsigned(8)),
    (299, "responder_packets", Unsigned(8)),
    (371, "user_name", Text),
    (460, "http_host", Text),
    (461, "http_url", Text),
];

/// Elements that do something other than to stand in their record: times, sampling, label stacks, agents, sampled
/// frames, events, applications, padding, lists.
fn does_something(id: u16) -> bool {
    matches!(id, 21 | 22 | 34 | 35 | 48..=50 | 60 | 70..=79 | 95 | 96 | 104 | 130 | 131 | 150..=163 | 210 | 230 | 233)
        || matches!(id, 291..=293 | 301..=325 | 361..=364)
}

/// What has no column: elements of the registry, and those that nobody knows.
fn extra_fields(v9: bool) -> Vec<Field> {
    let dictionary = Dictionary::builtin();
    let known = (1..500).filter_map(|id| {
        let element = if v9 { dictionary.lookup_v9(id) } else { dictionary.lookup(0, id) }?;
        let kind = match element.data_type {
            DataType::Unsigned8 => Unsigned(1),
            DataType::Unsigned16 => Unsigned(2),
            DataType::Unsigned32 => Unsigned(4),
            DataType::Unsigned64 => Unsigned(8),
            DataType::Signed32 => Signed(4),
            DataType::Signed64 => Signed(8),
            DataType::Float32 => Float(4),
            DataType::Float64 => Float(8),
            DataType::Boolean => Kind::Bool,
            DataType::Ipv4Address => V4,
            DataType::Ipv6Address => V6,
            DataType::MacAddress => Mac,
            DataType::String => Text,
            DataType::OctetArray => Octets,
            _ => return None,
        };
        let plain = element.enterprise == 0 && element.id == id;
        let free = plain && mappings(0, id).is_empty() && !does_something(id);
        free.then(|| field(0, id, kind, &element.name, false))
    });
    let mut all: Vec<Field> = known.collect();
    if !v9 {
        all.extend((1..40).map(|id| field(4_242, id, Octets, &format!("4242:{id}"), false)));
    }
    all
}

fn field(enterprise: u32, id: u16, kind: Kind, name: &str, column: bool) -> Field {
    Field { enterprise, id, kind, name: name.to_owned(), column, reverse: false, length: 0 }
}

/// A template as the model knows it.
#[derive(Debug, Clone)]
struct Model {
    id: u16,
    /// How many fields are scope; None: no options template.
    scope: Option<usize>,
    fields: Vec<Field>,
    /// Elements of start and end, with how they count.
    times: Option<Times>,
    /// Where among the fields the times stand.
    times_at: usize,
    rate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    Seconds,
    Milliseconds,
    Ntp,
    Uptime,
}

impl Times {
    fn layout(self) -> [(u16, u16); 2] {
        match self {
            Times::Seconds => [(150, 4), (151, 4)],
            Times::Milliseconds => [(152, 8), (153, 8)],
            Times::Ntp => [(154, 8), (155, 8)],
            Times::Uptime => [(22, 4), (21, 4)],
        }
    }

    /// A time before the export, as it is written, and what it means in µs.
    fn write(self, before_us: i64, out: &mut Vec<u8>) -> i64 {
        let us = i64::from(EXPORT_S) * 1_000_000 - before_us;
        match self {
            Times::Seconds => {
                out.extend(u32::try_from(us / 1_000_000).unwrap().to_be_bytes());
                us / 1_000_000 * 1_000_000
            }
            Times::Milliseconds => {
                out.extend((us / 1_000).to_be_bytes());
                us / 1_000 * 1_000
            }
            Times::Ntp => {
                out.extend(u32::try_from(us / 1_000_000 + 2_208_988_800).unwrap().to_be_bytes());
                // RFC 7011 §6.1.9: the low eleven bits say nothing
                let fraction = (((us % 1_000_000) as u64) << 32).div_ceil(1_000_000).next_multiple_of(2_048);
                out.extend(u32::try_from(fraction).unwrap().to_be_bytes());
                us
            }
            Times::Uptime => {
                let before_ms = before_us / 1_000;
                out.extend((i64::from(UPTIME_MS) - before_ms).to_be_bytes()[4..].to_vec());
                (i64::from(EXPORT_S) * 1_000 - before_ms) * 1_000
            }
        }
    }
}

/// A random length that suits the type: reduced sizes, variable ones, strings of a fixed length.
fn length(kind: Kind, v9: bool, choices: &mut Choices<'_>) -> u16 {
    match kind {
        // RFC 7011 §6.2; rule 32
        Unsigned(most) | Signed(most) => most - choices.below(usize::from(most)) as u16,
        Float(8) if choices.one_in(3) => 4,
        Float(most) => most,
        Kind::Bool => 1,
        V4 => 4,
        Mac => 6,
        V6 => 16,
        Text | Octets if !v9 && choices.one_in(2) => 0xffff,
        Text | Octets => 1 + choices.below(20) as u16,
    }
}

/// Picks fields, none twice and none for a column that has one.
fn pick(from: &[Field], count: usize, v9: bool, fields: &mut Vec<Field>, choices: &mut Choices<'_>) {
    for _ in 0..count {
        let mut one = from[choices.below(from.len())].clone();
        if fields.iter().all(|known| known.name != one.name) {
            one.length = length(one.kind, v9, choices);
            let at = choices.below(fields.len() + 1);
            fields.insert(at, one);
        }
    }
}

fn template(id: u16, v9: bool, extras: &[Field], choices: &mut Choices<'_>) -> Model {
    let mut fields = Vec::new();
    if choices.one_in(4) {
        // options of which no flow needs anything
        let scope = if v9 {
            let kinds = [(1, "system"), (2, "interface"), (3, "lineCard"), (4, "cache"), (5, "template")];
            let (id, name) = kinds[choices.below(kinds.len())];
            Field { length: 1 + choices.below(4) as u16, ..field(0, id, Unsigned(4), name, false) }
        } else {
            let kinds = [(149, "observationDomainId"), (141, "lineCardId"), (10, "ingressInterface")];
            let (id, name) = kinds[choices.below(kinds.len())];
            Field { length: 1 + choices.below(4) as u16, ..field(0, id, Unsigned(4), name, false) }
        };
        pick(extras, 1 + choices.below(6), v9, &mut fields, choices);
        fields.retain(|field| field.name != scope.name);
        fields.insert(0, scope);
        return Model { id, scope: Some(1), fields, times: None, times_at: 0, rate: false };
    }
    let columns: Vec<Field> =
        COLUMNS.iter().map(|(id, name, kind)| field(0, *id, *kind, name, true)).collect();
    pick(&columns, 1 + choices.below(14), v9, &mut fields, choices);
    pick(extras, choices.below(5), v9, &mut fields, choices);
    // a translation without a volume is an event: rule 48 has tests of its own
    if fields.iter().any(|field| field.name.starts_with("nat_"))
        && fields.iter().all(|field| field.name != "bytes")
    {
        fields.push(Field { length: 8, ..field(0, 1, Unsigned(8), "bytes", true) });
    }
    if !v9 && choices.one_in(4) {
        // RFC 5103: counters and flags of the other direction
        for (id, name, most) in [(2, "packets", 8), (1, "bytes", 8), (6, "tcp_flags", 2)] {
            if id == 2 || choices.one_in(2) {
                let length = length(Unsigned(most), v9, choices);
                let reverse = field(29_305, id, Unsigned(most), name, true);
                fields.push(Field { reverse: true, length, ..reverse });
            }
        }
    }
    let times = match choices.below(5) {
        0 => None,
        1 => Some(Times::Seconds),
        2 => Some(Times::Milliseconds),
        3 => Some(Times::Ntp),
        _ if v9 => Some(Times::Uptime),
        _ => None,
    };
    let times_at = choices.below(fields.len() + 1);
    Model { id, scope: None, fields, times, times_at, rate: choices.one_in(4) }
}

impl Model {
    /// The template as it is sent.
    fn write(&self, v9: bool) -> Vec<u8> {
        let mut specs: Vec<Vec<u16>> = Vec::new();
        for field in &self.fields {
            match field.enterprise {
                0 => specs.push(vec![field.id, field.length]),
                enterprise => specs.push(vec![
                    0x8000 | field.id,
                    field.length,
                    (enterprise >> 16) as u16,
                    enterprise as u16,
                ]),
            }
        }
        if let Some(times) = self.times {
            let pair = times.layout().map(|(id, length)| vec![id, length]);
            specs.splice(self.times_at..self.times_at, pair);
        }
        if self.rate {
            specs.push(vec![34, 4]);
        }
        let count = specs.len() as u16;
        let head = match self.scope {
            None => vec![self.id, count],
            Some(scope) if v9 => vec![self.id, scope as u16 * 4, (count - scope as u16) * 4],
            Some(scope) => vec![self.id, count, scope as u16],
        };
        bytes(&[head, specs.concat()].concat())
    }

    fn shortest(&self) -> usize {
        let fields = self.fields.iter().map(|field| match field.length {
            0xffff => 1,
            length => usize::from(length),
        });
        let times =
            self.times.map_or(0, |times| times.layout().iter().map(|(_, length)| usize::from(*length)).sum());
        fields.sum::<usize>() + times + if self.rate { 4 } else { 0 }
    }
}

/// The octets of a value, and what they mean: a number or a text.
fn value(
    kind: Kind,
    length: u16,
    v9: bool,
    name: &str,
    choices: &mut Choices<'_>,
) -> (Vec<u8>, Value, String) {
    let width = usize::from(length);
    let number = |octets: &[u8]| octets.iter().fold(0_u64, |sum, octet| sum << 8 | u64::from(*octet));
    match kind {
        Unsigned(_) => {
            let mut octets = choices.octets(width);
            if v9 && name == "ip_protocol" {
                // ICMP has a rule of its own
                octets = vec![6];
            }
            let value = number(&octets);
            (octets, json!(value), value.to_string())
        }
        Signed(_) => {
            let octets = choices.octets(width);
            let mut whole = if octets[0] & 0x80 != 0 { [0xff; 8] } else { [0; 8] };
            whole[8 - width..].copy_from_slice(&octets);
            let value = i64::from_be_bytes(whole);
            (octets, json!(value), value.to_string())
        }
        Float(_) => {
            let value = f32::from(i16::from_be_bytes([choices.octet(), choices.octet()])) / 8.0;
            let octets = if width == 4 {
                value.to_be_bytes().to_vec()
            } else {
                f64::from(value).to_be_bytes().to_vec()
            };
            (octets, json!(value), value.to_string())
        }
        Kind::Bool => {
            let is = choices.one_in(2);
            (vec![if is { 1 } else { 2 }], json!(is), is.to_string())
        }
        V4 => {
            let octets = choices.octets(4);
            let text = std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&octets[..]).unwrap()).to_string();
            (octets, json!(text), text)
        }
        V6 => {
            let mut octets = choices.octets(16);
            // not one that is IPv4 in disguise
            octets[0] |= 0x20;
            let text = std::net::Ipv6Addr::from(<[u8; 16]>::try_from(&octets[..]).unwrap()).to_string();
            (octets, json!(text), text)
        }
        Mac => {
            let octets = choices.octets(6);
            let text: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
            (octets, json!(text.join(":")), text.join(":"))
        }
        Text | Octets => {
            let count = match length {
                0xffff if choices.one_in(8) => 200 + choices.below(200),
                0xffff => 1 + choices.below(12),
                _ if kind == Text => 1 + choices.below(width),
                _ => width,
            };
            let raw = choices.octets(count);
            let (mut content, text) = if kind == Text {
                let letters: Vec<u8> = raw.iter().map(|octet| b'a' + octet % 26).collect();
                (letters.clone(), String::from_utf8(letters).unwrap())
            } else {
                let hex: String = raw.iter().map(|octet| format!("{octet:02x}")).collect();
                (raw, format!("0x{hex}"))
            };
            let mut octets = Vec::new();
            if length == 0xffff {
                // RFC 7011 §7: the long form is good for short values, too
                if content.len() >= 255 || choices.one_in(3) {
                    octets.push(255);
                    octets.extend((content.len() as u16).to_be_bytes());
                } else {
                    octets.push(content.len() as u8);
                }
            } else {
                content.resize(width, 0);
            }
            octets.extend(content);
            (octets, json!(text), text)
        }
    }
}

/// For the reverse row: the column of the other end, or none where it belongs to the forward direction alone.
fn other_end(name: &str) -> Option<String> {
    const FORWARD: &[&str] = &[
        "bytes",
        "packets",
        "ip_bytes",
        "tcp_flags",
        "tos",
        "post_tos",
        "ip_ttl",
        "min_ttl",
        "max_ttl",
        "ipv6_flow_label",
        "next_hop",
        "bgp_next_hop",
        "fragment_id",
        "fragment_offset",
        "direction",
        "forwarding_status",
    ];
    if FORWARD.contains(&name) {
        return None;
    }
    const PAIRS: &[(&str, &str)] = &[
        ("src_", "dst_"),
        ("nat_src_", "nat_dst_"),
        ("in_if", "out_if"),
        ("vrf_in", "vrf_out"),
        ("prev_as", "next_as"),
        ("initiator_", "responder_"),
    ];
    for (one, other) in PAIRS.iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
        if let Some(rest) = name.strip_prefix(one) {
            return Some(format!("{other}{rest}"));
        }
    }
    Some(name.to_owned())
}

/// A record: its octets, its row, and the row of the other direction.
fn record(model: &Model, v9: bool, base: &Row, choices: &mut Choices<'_>) -> (Vec<u8>, Row, Option<Row>) {
    let mut octets = Vec::new();
    let (mut row, mut reverse) = (base.clone(), base.clone());
    let mut extra = Map::new();
    let (mut other_columns, mut other_packets) = (Vec::new(), None);
    for at in 0..=model.fields.len() {
        if let Some(times) = model.times.filter(|_| at == model.times_at) {
            let last = choices.below(3_000) as i64 * 1_000;
            let first = last + choices.below(60_000) as i64 * 1_007;
            let start = times.write(first, &mut octets);
            let end = times.write(last, &mut octets);
            for row in [&mut row, &mut reverse] {
                row.insert("start_time".into(), json!(start));
                row.insert("end_time".into(), json!(end));
                row.insert("time_source".into(), json!("flow"));
            }
        }
        let Some(field) = model.fields.get(at) else { break };
        let (bytes, value, text) = value(field.kind, field.length, v9, &field.name, choices);
        octets.extend(bytes);
        if field.reverse {
            if field.id == 2 {
                other_packets = value.as_u64();
            }
            other_columns.push((field.name.clone(), value));
        } else if field.column {
            if let Some(other) = other_end(&field.name) {
                reverse.insert(other, value.clone());
            }
            row.insert(field.name.clone(), value);
        } else {
            extra.insert(field.name.clone(), json!(text));
        }
    }
    if model.rate {
        let rate = choices.octets(4);
        let value = u32::from_be_bytes(rate.clone().try_into().unwrap());
        octets.extend(rate);
        if value > 0 {
            for row in [&mut row, &mut reverse] {
                row.insert("sampling_rate".into(), json!(f64::from(value)));
                row.insert("sampling_source".into(), json!("record"));
            }
        }
    }
    if !extra.is_empty() {
        row.insert("extra".into(), Value::Object(extra));
    }
    let has_reverse = model.fields.iter().any(|field| field.reverse);
    reverse.insert("reverse".into(), json!(true));
    reverse.extend(other_columns);
    let reverse = (has_reverse && other_packets != Some(0)).then_some(reverse);
    (octets, row, reverse)
}

/// A row of `options`.
fn options_record(model: &Model, v9: bool, base: &Row, choices: &mut Choices<'_>) -> (Vec<u8>, Row) {
    let (mut octets, mut row) = (Vec::new(), Row::new());
    for name in ["received_at", "exporter_addr", "observation_domain", "proto_ver"] {
        row.insert(name.into(), base[name].clone());
    }
    row.insert("template_id".into(), json!(model.id));
    let (mut scope, mut fields) = (Map::new(), Map::new());
    for (at, field) in model.fields.iter().enumerate() {
        let (bytes, _, text) = value(field.kind, field.length, v9, "", choices);
        octets.extend(bytes);
        let map = if Some(at) < model.scope { &mut scope } else { &mut fields };
        map.insert(field.name.clone(), json!(text));
    }
    row.insert("scope".into(), Value::Object(scope));
    if !fields.is_empty() {
        row.insert("fields".into(), Value::Object(fields));
    }
    (octets, row)
}

/// What every row has.
fn base(v9: bool) -> Row {
    let base = json!({
        "received_at": sender(1).received_us, "exporter_addr": "192.0.2.1", "observation_domain": 7,
        "proto_ver": if v9 { "netflow9" } else { "ipfix" }, "time_source": "received",
        "sampling_source": "unknown",
    });
    base.as_object().unwrap().clone()
}

/// A stream of messages with everything that must come of it.
fn stream(v9: bool, choices: &mut Choices<'_>) -> Result<(), TestCaseError> {
    let (extras, base) = (extra_fields(v9), base(v9));
    let mut known: BTreeMap<u16, Model> = BTreeMap::new();
    let mut bench = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let mut sequence = 0_u32;
    let mut total = 0_u64;
    for _ in 0..1 + choices.below(4) {
        let message = if v9 { Builder9::v9(sequence) } else { Builder9::ipfix(sequence) };
        // templates, some in one set, some in sets of their own
        let (mut sets, mut records): (Vec<(u16, Vec<u8>)>, u32) = (Vec::new(), 0);
        for _ in 0..choices.below(4) + usize::from(known.is_empty()) {
            let model = template(256 + choices.below(4) as u16, v9, &extras, choices);
            let set = match (v9, model.scope) {
                (true, None) => 0,
                (true, Some(_)) => 1,
                (false, None) => 2,
                (false, Some(_)) => 3,
            };
            let written = model.write(v9);
            match sets.last_mut() {
                Some((last, content)) if *last == set && choices.one_in(2) => content.extend(written),
                _ => sets.push((set, written)),
            }
            known.insert(model.id, model);
        }
        let (mut flows, mut options) = (Vec::new(), Vec::new());
        for _ in 0..choices.below(5) {
            let ids: Vec<u16> = known.keys().copied().collect();
            let model = &known[&ids[choices.below(ids.len())]];
            let (mut content, mut reversed) = (Vec::new(), Vec::new());
            for _ in 0..1 + choices.below(4) {
                records += 1;
                if model.scope.is_some() {
                    let (octets, row) = options_record(model, v9, &base, choices);
                    content.extend(octets);
                    options.push(row);
                    continue;
                }
                let (octets, row, reverse) = record(model, v9, &base, choices);
                content.extend(octets);
                flows.push(row);
                reversed.extend(reverse);
            }
            flows.extend(reversed);
            // rules 3 and 4: any tail that is shorter than a record
            let padding = choices.below(model.shortest().min(4));
            content.extend(if v9 { choices.octets(padding) } else { vec![0; padding] });
            sets.push((model.id, content));
        }
        let message = sets.iter().fold(message, |message, (id, content)| message.set(*id, content));
        let datagram = message.build();
        prop_assume!(datagram.len() <= 65_507);
        let outcome = bench.decode(&datagram, &sender(50_000), &mut out);
        prop_assert_eq!((outcome.rejected, outcome.sets_rejected, outcome.sets_pending), (None, 0, 0));
        total += flows.len() as u64;
        prop_assert_eq!(rows(&mut out.flows), flows);
        prop_assert_eq!(rows(&mut out.options), options);
        // rules 18 and 19
        sequence = sequence.wrapping_add(if v9 { 1 } else { records });
    }
    let counters = bench.exporters().iter().next().unwrap().counters;
    prop_assert_eq!(counters.flows, total);
    prop_assert_eq!(
        (counters.sequence_lost, counters.sequence_resets, counters.sequence_uncertain),
        (0, 0, 0)
    );
    prop_assert_eq!((counters.template_misses, counters.rejected), (0, 0));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// NetFlow v9 (RFC 3954): templates, options templates, reduced sizes, padding, times by uptime.
    #[test]
    fn v9_streams_decode_to_what_was_encoded(octets in proptest::collection::vec(any::<u8>(), 0..3_000)) {
        stream(true, &mut Choices::new(&octets))?;
    }

    /// IPFIX (RFC 7011, 5103): the same, with enterprises, variable lengths and the other direction.
    #[test]
    fn ipfix_streams_decode_to_what_was_encoded(octets in proptest::collection::vec(any::<u8>(), 0..3_000)) {
        stream(false, &mut Choices::new(&octets))?;
    }

    /// NetFlow v5 and v7: the static layouts.
    #[test]
    fn fixed_records_decode_to_what_was_encoded(
        seven in any::<bool>(),
        count in 0..28_usize,
        mode in 0..4_u16,
        rate in 0..0x4000_u16,
        octets in proptest::collection::vec(any::<u8>(), 0..1_500),
    ) {
        fixed(seven, count, mode << 14 | rate, &mut Choices::new(&octets))?;
    }
}

fn fixed(seven: bool, count: usize, sampling: u16, choices: &mut Choices<'_>) -> Result<(), TestCaseError> {
    let mut datagram = bytes(&[if seven { 7 } else { 5 }, count as u16]);
    datagram.extend(UPTIME_MS.to_be_bytes());
    datagram.extend(EXPORT_S.to_be_bytes());
    let nanoseconds = choices.below(1_000) as u32 * 1_000_000;
    datagram.extend(nanoseconds.to_be_bytes());
    datagram.extend([0; 4]);
    // engine and sampling; v7 has neither
    let engine = if seven { 0 } else { u16::from(choices.octet()) };
    datagram.extend(bytes(&if seven { [0, 0] } else { [engine, sampling] }));
    let clock_us = i64::from(EXPORT_S) * 1_000_000 + i64::from(nanoseconds / 1_000);
    let rate = if seven { 0 } else { sampling & 0x3fff };
    let mut want = Vec::new();
    for _ in 0..count {
        let mut row = json!({
            "received_at": sender(1).received_us, "exporter_addr": "192.0.2.1", "observation_domain": engine,
            "proto_ver": if seven { "netflow7" } else { "netflow5" }, "time_source": "flow",
            "sampling_source": if rate > 0 { "header" } else { "unknown" },
        });
        let row = row.as_object_mut().unwrap();
        if rate > 0 {
            row.insert("sampling_rate".into(), json!(f64::from(rate)));
        }
        let mut put = |name: &str, width: usize| {
            let octets = choices.octets(width);
            datagram.extend(&octets);
            let value = octets.iter().fold(0_u64, |sum, octet| sum << 8 | u64::from(*octet));
            row.insert(name.to_owned(), json!(value));
        };
        for name in ["src_addr", "dst_addr", "next_hop"] {
            put(name, 4);
        }
        for (name, width) in [("in_if", 2), ("out_if", 2), ("packets", 4), ("bytes", 4)] {
            put(name, width);
        }
        let last = choices.below(60_000) as u32;
        let first = last + choices.below(60_000) as u32;
        for (name, before) in [("start_time", first), ("end_time", last)] {
            datagram.extend((UPTIME_MS - before).to_be_bytes());
            row.insert(name.into(), json!(clock_us - i64::from(before) * 1_000));
        }
        let mut put = |name: &str, width: usize| {
            let octets = choices.octets(width);
            datagram.extend(&octets);
            let value = octets.iter().fold(0_u64, |sum, octet| sum << 8 | u64::from(*octet));
            row.insert(name.to_owned(), json!(value));
        };
        put("src_port", 2);
        put("dst_port", 2);
        // padding in v5, flags in v7: which fields are good
        datagram.push(0);
        let mut rest = |name: &str, octets: &[u8], row: &mut Row| {
            datagram.extend(octets);
            let value = octets.iter().fold(0_u64, |sum, octet| sum << 8 | u64::from(*octet));
            row.insert(name.to_owned(), json!(value));
        };
        rest("tcp_flags", &[choices.octet()], row);
        // ICMP has a rule of its own
        rest("ip_protocol", &[[6, 17, 132][choices.below(3)]], row);
        for (name, width) in [("tos", 1), ("src_as", 2), ("dst_as", 2), ("src_mask", 1), ("dst_mask", 1)] {
            let octets = choices.octets(width);
            rest(name, &octets, row);
        }
        datagram.extend([0; 2]);
        if seven {
            // the router that was cut short has no column
            let router = choices.octets(4);
            datagram.extend(&router);
            let router = std::net::Ipv4Addr::from(<[u8; 4]>::try_from(&router[..]).unwrap());
            row.insert("extra".into(), json!({"ipv4RouterSc": router.to_string()}));
        }
        for name in ["src_addr", "dst_addr", "next_hop"] {
            let number = u32::try_from(row[name].as_u64().unwrap()).unwrap();
            row.insert(name.into(), json!(std::net::Ipv4Addr::from(number).to_string()));
        }
        want.push(row.clone());
    }
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let outcome = decoder.decode(&datagram, &sender(50_000), &mut out);
    prop_assert_eq!((outcome.rejected, outcome.sets_rejected), (None, 0));
    prop_assert_eq!(rows(&mut out.flows), want);
    Ok(())
}
