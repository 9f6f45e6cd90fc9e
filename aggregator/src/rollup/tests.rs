//! The rollups against a second computation that is as plain as can be: row by row, window by window.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, FixedSizeBinaryArray, Float64Array, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow::datatypes::{Float64Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType};

use super::*;
use crate::countries::{self, Countries};

pub(super) const NOON: i64 = 1_795_392_000_000_000 + 43_200_000_000;
const HOUR: i64 = 3_600_000_000;

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn maybe(&mut self, bound: u64) -> Option<i64> {
        let value = self.below(bound + 1);
        (value > 0).then(|| value as i64 - 1)
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) received: i64,
    pub(super) start: Option<i64>,
    pub(super) end: Option<i64>,
    pub(super) exporter: Option<u128>,
    pub(super) src: Option<u128>,
    pub(super) dst: Option<u128>,
    pub(super) in_if: Option<i64>,
    pub(super) out_if: Option<i64>,
    pub(super) protocol: Option<i64>,
    pub(super) port: Option<i64>,
    pub(super) tos: Option<i64>,
    pub(super) post_tos: Option<i64>,
    pub(super) src_as: Option<i64>,
    pub(super) dst_as: Option<i64>,
    pub(super) bytes: i64,
    pub(super) packets: i64,
    pub(super) rate: Option<f64>,
    pub(super) status: Option<i64>,
    pub(super) rtt: Option<i64>,
}

/// IPv4 below 2^32, else IPv6.
pub(super) fn host(number: u64) -> u128 {
    let v4 = 0xffff_0a00_0000 | u128::from(number);
    if number.is_multiple_of(3) { 0x2001_0db8 << 96 | u128::from(number) << 78 } else { v4 }
}

pub(super) fn random_flow(random: &mut Random, longest: u64) -> Flow {
    let end = NOON + random.below(2 * HOUR as u64) as i64;
    let duration = match random.below(4) {
        0 => 0,
        1 => random.below(20_000_000),
        _ => random.below(longest),
    };
    let packets = random.below(50) as i64;
    Flow {
        received: end + random.below(90_000_000) as i64,
        start: (random.below(9) > 0).then_some(end - duration as i64),
        end: (random.below(9) > 0).then_some(end),
        exporter: random.maybe(3).map(|value| host(value as u64)),
        src: random.maybe(6).map(|value| host(value as u64 * 300)),
        dst: random.maybe(4).map(|value| host(value as u64 * 70)),
        in_if: random.maybe(3),
        out_if: random.maybe(2).map(|_| i64::from(u32::MAX)),
        protocol: random.maybe(2).map(|value| value * 249 + 6),
        port: random.maybe(3).map(|value| value * 32_767 + 1),
        tos: random.maybe(256),
        post_tos: random.maybe(8),
        src_as: random.maybe(2).map(|value| value * i64::from(u32::MAX)),
        dst_as: random.maybe(3),
        bytes: packets * random.below(1_600) as i64,
        packets,
        rate: [None, Some(1.0), Some(128.0)][random.below(3) as usize],
        status: random.maybe(256),
        rtt: random.maybe(300_000),
    }
}

pub(super) fn batch(flows: &[Flow]) -> RecordBatch {
    let times = |of: fn(&Flow) -> Option<i64>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter(flows.iter().map(of)).with_timezone("UTC"))
    };
    let hosts = |of: fn(&Flow) -> Option<u128>| -> ArrayRef {
        let bytes = flows.iter().map(|flow| of(flow).map(u128::to_be_bytes));
        Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 16).unwrap())
    };
    let u8s = |of: fn(&Flow) -> Option<i64>| -> ArrayRef {
        Arc::new(UInt8Array::from_iter(flows.iter().map(|flow| of(flow).map(|value| value as u8))))
    };
    let u16s = |of: fn(&Flow) -> Option<i64>| -> ArrayRef {
        Arc::new(UInt16Array::from_iter(flows.iter().map(|flow| of(flow).map(|value| value as u16))))
    };
    let u32s = |of: fn(&Flow) -> Option<i64>| -> ArrayRef {
        Arc::new(UInt32Array::from_iter(flows.iter().map(|flow| of(flow).map(|value| value as u32))))
    };
    let u64s = |of: fn(&Flow) -> Option<i64>| -> ArrayRef {
        Arc::new(UInt64Array::from_iter(flows.iter().map(|flow| of(flow).map(|value| value as u64))))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("received_at", times(|flow| Some(flow.received))),
        ("start_time", times(|flow| flow.start)),
        ("end_time", times(|flow| flow.end)),
        ("exporter_addr", hosts(|flow| flow.exporter)),
        ("src_addr", hosts(|flow| flow.src)),
        ("dst_addr", hosts(|flow| flow.dst)),
        ("in_if", u32s(|flow| flow.in_if)),
        ("out_if", u32s(|flow| flow.out_if)),
        ("ip_protocol", u8s(|flow| flow.protocol)),
        ("dst_port", u16s(|flow| flow.port)),
        ("tos", u8s(|flow| flow.tos)),
        ("post_tos", u8s(|flow| flow.post_tos)),
        ("src_as", u32s(|flow| flow.src_as)),
        ("dst_as", u32s(|flow| flow.dst_as)),
        ("bytes", u64s(|flow| Some(flow.bytes))),
        ("packets", u64s(|flow| Some(flow.packets))),
        ("sampling_rate", Arc::new(Float64Array::from_iter(flows.iter().map(|flow| flow.rate)))),
        ("forwarding_status", u8s(|flow| flow.status)),
        ("rtt_us", u64s(|flow| flow.rtt)),
    ];
    // a batch has only the columns that its rows have
    let present = columns.into_iter().filter(|(_, column)| column.null_count() < column.len());
    RecordBatch::try_from_iter(present).unwrap()
}

/// Flows, bytes, packets, est_bytes, est_packets, unknown, packets of 65 to 128 bytes, bytes not forwarded, rtt flows.
type Measures = [i64; 9];

/// Sums by the text of their keys.
type Table = BTreeMap<String, Measures>;

fn text(value: Option<i64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn addr(value: Option<u128>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:032x}"))
}

fn put(table: &mut Table, keys: &[String], adds: Measures) {
    if adds == [0; 9] {
        return;
    }
    let sums = table.entry(keys.join(" ")).or_default();
    sums.iter_mut().zip(adds).for_each(|(sum, add)| *sum += add);
}

/// What the rows of a rollup say, those of equal keys added up.
fn table(rollup: Rollup, parts: &[RecordBatch]) -> Table {
    let mut table = Table::new();
    for part in parts {
        for row in 0..part.num_rows() {
            let mut keys = Vec::new();
            let mut adds = [0; 9];
            for (at, (field, column)) in part.schema().fields().iter().zip(part.columns()).enumerate() {
                let name = field.name().as_str();
                let valid = column.is_valid(row);
                let measure = match name {
                    "flows" => 0,
                    "bytes" => 1,
                    "packets" => 2,
                    "est_bytes" => 3,
                    "est_packets" => 4,
                    "unknown_sampling_flows" => 5,
                    "packets_to_128" => 6,
                    "not_forwarded_bytes" => 7,
                    "rtt_flows" => 8,
                    _ => 9,
                };
                if measure < 9 {
                    adds[measure] = match column.data_type() {
                        _ if !valid => 0,
                        DataType::Float64 => column.as_primitive::<Float64Type>().value(row) as i64,
                        _ => column.as_primitive::<Int64Type>().value(row),
                    };
                }
                if at >= rollup.key_columns() {
                    continue;
                }
                keys.push(match column.data_type() {
                    DataType::Timestamp(..) => {
                        column.as_primitive::<TimestampMicrosecondType>().value(row).to_string()
                    }
                    _ if !valid => "-".to_owned(),
                    DataType::FixedSizeBinary(_) => {
                        let bytes = column.as_fixed_size_binary().value(row).try_into().unwrap();
                        addr(Some(u128::from_be_bytes(bytes)))
                    }
                    DataType::Int16 => column.as_primitive::<Int16Type>().value(row).to_string(),
                    DataType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
                    DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
                    DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
                    DataType::Boolean => column.as_boolean().value(row).to_string(),
                    other => panic!("{other}"),
                });
            }
            // whatever no part has is not told from nothing here
            put(&mut table, &keys, adds);
        }
    }
    table
}

/// The windows of a flow with what it adds, by the rule as it is told: in proportion, rounded down at each boundary.
pub(super) fn spread(flow: &Flow, window: i64, attribute: Attribute) -> Vec<(i64, Measures)> {
    let end = flow.end.unwrap_or(flow.received);
    let start = flow.start.unwrap_or(end).min(end).max(end - 24 * HOUR);
    let (start, end) = match attribute {
        Attribute::Spread => (start, end),
        Attribute::End => (end, end),
        Attribute::Start => (start, start),
        Attribute::Received => (flow.received, flow.received),
    };
    let passed = |total: i64, at: i64| {
        if at >= end {
            total
        } else {
            (i128::from(total) * i128::from((at - start).max(0)) / i128::from(end - start)) as i64
        }
    };
    let mut shares = Vec::new();
    let mut at = start / window * window;
    while at <= end {
        let part = |total: i64| {
            let upto = if at + window > end { total } else { passed(total, at + window) };
            let before = if at <= start { 0 } else { passed(total, at) };
            upto - before
        };
        let (bytes, packets) = (part(flow.bytes), part(flow.packets));
        let last = i64::from(at + window > end);
        let rate = flow.rate.unwrap_or(1.0);
        let mean = if flow.packets > 0 { flow.bytes / flow.packets } else { 0 };
        let to_128 = if flow.packets > 0 && mean > 64 && mean <= 128 { packets } else { 0 };
        let dropped = flow.status.is_some_and(|status| (128..192).contains(&status));
        shares.push((
            at,
            [
                last,
                bytes,
                packets,
                (bytes as f64 * rate) as i64,
                (packets as f64 * rate) as i64,
                if flow.rate.is_none() { last } else { 0 },
                to_128,
                if dropped { bytes } else { 0 },
                if flow.rtt.is_some() { last } else { 0 },
            ],
        ));
        at += window;
    }
    shares
}

/// What a rollup must say of the flows.
fn truth(rollup: Rollup, flows: &[Flow], attribute: Attribute) -> Table {
    let mut table = Table::new();
    let window = rollup.resolution.micros();
    for flow in flows {
        let dscp = flow.tos.map(|tos| tos / 4);
        for (at, adds) in spread(flow, window, attribute) {
            let sums = |keep: usize| -> Measures {
                std::array::from_fn(|measure| if measure < keep { adds[measure] } else { 0 })
            };
            let times = [at.to_string(), (at + window).to_string()];
            let mut add =
                |rest: Vec<String>, keep| put(&mut table, &[times.to_vec(), rest].concat(), sums(keep));
            match rollup.kind {
                Kind::Flows => add(
                    vec![
                        addr(flow.exporter),
                        text(flow.in_if),
                        text(flow.out_if),
                        text(flow.protocol),
                        text(dscp),
                        text(flow.src_as),
                        text(flow.dst_as),
                    ],
                    6,
                ),
                Kind::Qos => {
                    let class = dscp.map(|dscp| AggregateConfig::default().class(dscp as u8));
                    for (direction, interface) in [("in", flow.in_if), ("out", flow.out_if)] {
                        let class = class.clone().unwrap_or_else(|| "-".to_owned());
                        let keys = vec![
                            addr(flow.exporter),
                            direction.to_owned(),
                            text(interface),
                            text(dscp),
                            class,
                        ];
                        add(keys, 9);
                    }
                }
                Kind::Remarking => {
                    let Some(post) = flow.post_tos else { continue };
                    let keys = [text(flow.in_if), text(flow.out_if), text(dscp), text(Some(post / 4))];
                    add([vec![addr(flow.exporter)], keys.to_vec()].concat(), 6);
                }
                Kind::Distinct => {}
                Kind::Talkers => {
                    for (dimension, fields) in talker(flow, dscp) {
                        let mut keys = vec!["-".to_owned(); 19];
                        keys[0] = dimension.to_owned();
                        keys[1] = "false".to_owned();
                        fields.into_iter().for_each(|(at, value)| keys[at] = value);
                        add(keys, 6);
                    }
                }
            }
        }
    }
    table
}

const DIMENSIONS: [&str; 9] = [
    "src_addr",
    "conversation",
    "dst_net",
    "dst_port",
    "src_as+dst_as",
    "in_if",
    "dst_addr+dscp",
    "in_if+out_if",
    "src_country+dst_country",
];

/// The key of a flow in each of [`DIMENSIONS`]: places among the key's columns and their values.
fn talker(flow: &Flow, dscp: Option<i64>) -> Vec<(&'static str, Vec<(usize, String)>)> {
    let network = |host: u128| {
        let v4 = host >> 32 == 0xffff;
        (host & if v4 { u128::MAX << 8 } else { u128::MAX << 80 }, if v4 { 24 } else { 48 })
    };
    let net = flow.dst.map(network);
    // of src/testdata/countries.mmdb
    let country = |host: Option<u128>| match host {
        Some(host) if host >> 96 == 0x2001_0db8 => "JP".to_owned(),
        Some(host) if host >> 7 == 0xffff_0a00_0080 >> 7 => "AT".to_owned(),
        Some(host) if host >> 24 == 0x00ff_ff0a => "DE".to_owned(),
        _ => "-".to_owned(),
    };
    let exporter = (10, addr(flow.exporter));
    vec![
        ("src_addr", vec![(2, addr(flow.src))]),
        ("conversation", vec![(2, addr(flow.src)), (3, addr(flow.dst))]),
        ("dst_net", vec![(2, addr(net.map(|net| net.0))), (4, text(net.map(|net| net.1)))]),
        ("dst_port", vec![(5, text(flow.protocol)), (6, text(flow.port))]),
        ("src_as+dst_as", vec![(8, text(flow.src_as)), (9, text(flow.dst_as))]),
        ("in_if", vec![exporter.clone(), (11, text(flow.in_if))]),
        ("dst_addr+dscp", vec![(2, addr(flow.dst)), (15, text(dscp))]),
        ("in_if+out_if", vec![exporter, (11, text(flow.in_if)), (12, text(flow.out_if))]),
        ("src_country+dst_country", vec![(17, country(flow.src)), (18, country(flow.dst))]),
    ]
}

pub(super) fn config() -> AggregateConfig {
    let countries = Countries::at(countries::tests::FILE);
    countries.load().unwrap();
    AggregateConfig {
        countries,
        dimensions: DIMENSIONS.map(str::to_owned).to_vec(),
        // they do not add up: distinct_tests
        distinct: Vec::new(),
        ..AggregateConfig::default()
    }
}

/// Computes the flows in random pieces, in random order, and merges some of the parts again, as compaction does.
pub(super) fn pieces(
    random: &mut Random,
    flows: &[Flow],
    config: &AggregateConfig,
) -> Vec<(Rollup, Vec<RecordBatch>)> {
    let mut shuffled = flows.to_vec();
    random.shuffle(&mut shuffled);
    let mut result: Vec<(Rollup, Vec<RecordBatch>)> =
        Rollup::ALL.into_iter().map(|rollup| (rollup, Vec::new())).collect();
    let mut rest = &shuffled[..];
    while !rest.is_empty() {
        let (commit, after) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
        rest = after;
        let batches: Vec<RecordBatch> = commit.chunks(1 + random.below(9) as usize).map(batch).collect();
        for family in [Family::Volume, Family::Classes] {
            let computed = family.compute(&batches, config).unwrap();
            for (rollup, part) in family.rollups().zip(computed) {
                let (_, parts) = result.iter_mut().find(|(known, _)| *known == rollup).unwrap();
                parts.push(part);
            }
        }
    }
    for (rollup, parts) in &mut result {
        if parts.len() > 1 && random.below(2) == 0 {
            let merged = rollup.merge(&parts.split_off(parts.len() / 2), config).unwrap();
            parts.push(merged);
        }
    }
    result
}

/// However the flows are shuffled, delayed and cut into commits: the rollups say what the rows say.
#[test]
fn any_order_and_any_commits_give_the_answer_of_all_rows_at_once() {
    for seed in 0..1_000 {
        let mut random = Random(seed);
        let attribute =
            [Attribute::Spread, Attribute::Spread, Attribute::End, Attribute::Start, Attribute::Received];
        let config = AggregateConfig { attribute: attribute[(seed % 5) as usize], ..config() };
        let count = 1 + random.below(6);
        let flows: Vec<Flow> = (0..count).map(|_| random_flow(&mut random, 70_000_000)).collect();
        for (rollup, parts) in pieces(&mut random, &flows, &config) {
            assert_eq!(
                table(rollup, &parts),
                truth(rollup, &flows, config.attribute),
                "seed {seed} {rollup:?}"
            );
        }
    }
}

/// A flow longer than the finest steps is exact in the windows of its steps, and whole in the finer ones.
#[test]
fn long_flows_are_exact_by_the_hour_and_whole_in_finer_windows() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let flows: Vec<Flow> = (0..8).map(|_| random_flow(&mut random, 30 * HOUR as u64)).collect();
        for (rollup, parts) in pieces(&mut random, &flows, &config()) {
            if rollup.resolution >= Resolution::Hour {
                assert_eq!(
                    table(rollup, &parts),
                    truth(rollup, &flows, Attribute::Spread),
                    "seed {seed} {rollup:?}"
                );
                continue;
            }
            let hours: Vec<_> = parts.iter().map(|part| merge::widen(part, HOUR).unwrap()).collect();
            let of = Rollup { resolution: Resolution::Hour, ..rollup };
            assert_eq!(table(of, &hours), truth(of, &flows, Attribute::Spread), "seed {seed} {rollup:?}");
        }
    }
}

/// A flood of flows that claim to have lasted for hours: neither the shares of one nor the rows of all are without bound.
#[test]
fn a_flood_of_long_flows_is_bounded() {
    let mut random = Random(1);
    let flows: Vec<Flow> = (0..20_000)
        .map(|number| {
            let mut flow = random_flow(&mut random, 1);
            (flow.bytes, flow.packets) = (1_000_000_000 + number, 1_000_000);
            let duration = [HOUR, 6 * HOUR, 24 * HOUR, 3 * HOUR][number as usize % 4];
            (flow.end, flow.start) = (Some(flow.received), Some(flow.received - duration));
            (flow.src, flow.dst) = (Some(host(number as u64)), Some(host(number as u64 * 7)));
            flow
        })
        .collect();
    let batches: Vec<RecordBatch> = flows.chunks(5_000).map(batch).collect();
    let volumes = sweep::Volumes::new(&columns::Flows::new(&batches), Attribute::Spread).unwrap();
    for window in [10_000_000, 60_000_000] {
        let mut sweep = sweep::Sweep::new(&volumes, window);
        let (mut shares, mut count) = (Vec::new(), 0);
        while sweep.next(&mut shares).is_some() {
            assert!(shares.len() <= flows.len());
            count += shares.len();
        }
        assert!(count <= flows.len() * (sweep::STEPS as usize + 2), "{count} shares");
        assert!(count > flows.len() * 100, "the flows are not spread: this shows nothing");
    }
    for family in [Family::Volume, Family::Classes] {
        for (rollup, part) in
            family.rollups().zip(family.compute(&batches, &AggregateConfig::default()).unwrap())
        {
            assert!(part.num_rows() < 1_000_000, "{rollup:?} {}", part.num_rows());
            let sum = |name: &str| -> i64 {
                part.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().iter().sum()
            };
            let copies = match rollup.kind {
                Kind::Flows => 1,
                Kind::Talkers => AggregateConfig::default().dimensions.len() as i64,
                Kind::Qos => 2,
                Kind::Remarking | Kind::Distinct => continue,
            };
            let bytes: i64 = flows.iter().map(|flow| flow.bytes).sum();
            assert_eq!((sum("flows"), sum("bytes")), (copies * 20_000, copies * bytes), "{rollup:?}");
        }
    }
}

/// What is cut off is never more than `bound` says, through commits, coarser windows and compaction.
#[test]
fn top_talkers_lack_no_more_than_their_bound() {
    let mut cut = 0;
    for seed in 0..40 {
        let mut random = Random(seed);
        let config = AggregateConfig { dimensions: vec!["src_addr".to_owned()], top_k: 10, ..config() };
        let flows: Vec<Flow> = (0..2_000)
            .map(|_| {
                let mut flow = random_flow(&mut random, 400_000_000);
                // few large hosts, and many that come and go
                let bits = random.below(9);
                let rank = random.below(1 << bits);
                flow.src = Some(host(rank));
                flow.bytes = random.below(1_000_000 / (rank + 1)) as i64;
                flow.rate = Some(4.0);
                flow
            })
            .collect();
        for (rollup, parts) in pieces(&mut random, &flows, &config) {
            if rollup.kind != Kind::Talkers {
                continue;
            }
            let mut exact: BTreeMap<(i64, u128), f64> = BTreeMap::new();
            for flow in &flows {
                for (at, adds) in spread(flow, rollup.resolution.micros(), Attribute::Spread) {
                    *exact.entry((at, flow.src.unwrap())).or_default() += adds[3] as f64;
                }
            }
            let (mut bounds, mut found): (BTreeMap<i64, f64>, BTreeMap<(i64, u128), (f64, f64)>) =
                Default::default();
            let mut total = 0.0;
            for part in &parts {
                let double = |name: &str, row| {
                    part.column_by_name(name).unwrap().as_primitive::<Float64Type>().value(row)
                };
                for row in 0..part.num_rows() {
                    let start = part.column(0).as_primitive::<TimestampMicrosecondType>().value(row);
                    let (size, bound) = (double("est_bytes", row), double("bound", row));
                    total += size;
                    if part.column(3).as_boolean().value(row) {
                        *bounds.entry(start).or_default() += bound;
                        cut += 1;
                        continue;
                    }
                    let address = part.column(4).as_fixed_size_binary().value(row).try_into().unwrap();
                    let sums = found.entry((start, u128::from_be_bytes(address))).or_default();
                    *sums = (sums.0 + size, sums.1 + bound);
                }
            }
            assert_eq!(total, exact.values().sum::<f64>(), "{rollup:?}");
            for ((start, host), exact) in &exact {
                let (size, own) = found.get(&(*start, *host)).copied().unwrap_or_default();
                let bound = bounds.get(start).copied().unwrap_or(0.0) - own;
                assert!(bound >= 0.0 && size <= *exact, "{rollup:?} seed {seed}");
                assert!(
                    exact - size <= bound,
                    "{rollup:?} seed {seed}: {exact} less {size} is beyond {bound}"
                );
            }
        }
    }
    assert!(cut > 1_000, "{cut}");
}
