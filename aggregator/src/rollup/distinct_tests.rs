//! Distinct counts against sets.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};

use super::tests::{Flow, NOON, Random, batch, config, host, pieces, random_flow, spread};
use super::*;
use crate::sketch::Union;

const COUNTS: [&str; 4] = [
    "dst_addr per src_addr",
    "src_addr per dst_addr",
    "dst_port per conversation",
    "src_addr per in_if+dscp",
];

/// Window, count, and what the key is.
type Key = (i64, String, String);

/// The key and the value of a flow in each of [`COUNTS`].
fn keys(flow: &Flow) -> [(String, Option<String>); 4] {
    let addr = |addr: Option<u128>| addr.map(|addr| format!("{addr:032x}"));
    let some = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let number = |number: Option<i64>| some(number.map(|number| number.to_string()));
    let (src, dst) = (addr(flow.src), addr(flow.dst));
    let port = flow.port.map(|port| format!("{} {port}", number(flow.protocol)));
    let interface = number(flow.in_if) + " " + &number(flow.tos.map(|tos| tos / 4));
    [
        (format!("{} - - -", some(src.clone())), dst.clone()),
        (format!("{} - - -", some(dst.clone())), src.clone()),
        (format!("{} {} - -", some(src.clone()), some(dst)), port),
        (format!("- - {interface}"), src),
    ]
}

/// What is distinct, and the flows of each window and count.
fn truth(
    rollup: Rollup,
    flows: &[Flow],
    attribute: Attribute,
) -> (BTreeMap<Key, BTreeSet<String>>, BTreeMap<(i64, String), i64>) {
    let (mut sets, mut totals): (BTreeMap<Key, BTreeSet<String>>, BTreeMap<_, i64>) = Default::default();
    for flow in flows {
        let shares = spread(flow, rollup.resolution.micros(), attribute);
        let window = shares.iter().find(|(_, adds)| adds[0] == 1).unwrap().0;
        for (name, (key, value)) in COUNTS.iter().zip(keys(flow)) {
            *totals.entry((window, (*name).to_owned())).or_default() += 1;
            if let Some(value) = value {
                sets.entry((window, (*name).to_owned(), key)).or_default().insert(value);
            }
        }
    }
    (sets, totals)
}

struct Answer {
    sketches: BTreeMap<Key, (Union, f64)>,
    /// Of the rows `other`.
    bounds: BTreeMap<(i64, String), f64>,
    flows: BTreeMap<(i64, String), i64>,
}

fn answer(parts: &[RecordBatch]) -> Answer {
    let mut answer = Answer { sketches: BTreeMap::new(), bounds: BTreeMap::new(), flows: BTreeMap::new() };
    for part in parts {
        let column = |name: &str| part.column_by_name(name).unwrap();
        let addr = |name: &str, row: usize| {
            let array = column(name).as_fixed_size_binary();
            if array.is_null(row) {
                return "-".to_owned();
            }
            array.value(row).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        for row in 0..part.num_rows() {
            let window = part.column(0).as_primitive::<TimestampMicrosecondType>().value(row);
            let name = column("dimension").as_string::<i32>().value(row).to_owned();
            let bound = column("bound").as_primitive::<Float64Type>().value(row);
            *answer.flows.entry((window, name.clone())).or_default() +=
                column("flows").as_primitive::<Int64Type>().value(row);
            let sketch = column("sketch").as_binary::<i32>();
            if column("other").as_boolean().value(row) {
                assert!(sketch.is_null(row));
                *answer.bounds.entry((window, name)).or_default() += bound;
                continue;
            }
            let number = |name: &str| {
                let array = arrow::compute::cast(column(name), &DataType::Int64).unwrap();
                let array = array.as_primitive::<Int64Type>();
                if array.is_null(row) { "-".to_owned() } else { array.value(row).to_string() }
            };
            assert!(column("port").as_primitive::<Int32Type>().is_null(row));
            let key =
                [addr("addr", row), addr("peer_addr", row), number("if_index"), number("dscp")].join(" ");
            let (union, own) =
                answer.sketches.entry((window, name, key)).or_insert_with(|| (Union::new(), 0.0));
            union.add(sketch.value(row)).unwrap();
            *own += bound;
        }
    }
    answer
}

fn distinct_config(top_k: usize, attribute: Attribute) -> AggregateConfig {
    AggregateConfig {
        // with it the pairs of source and destination have numbers already, without it not
        dimensions: if top_k.is_multiple_of(2) { vec!["conversation".to_owned()] } else { Vec::new() },
        distinct: COUNTS.map(str::to_owned).to_vec(),
        distinct_top_k: top_k,
        attribute,
        ..config()
    }
}

/// However the flows are shuffled and cut into commits: while keys and values are few, the counts are those of sets.
#[test]
fn few_keys_and_values_are_counted_exactly_in_any_commits() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let attribute = [Attribute::Spread, Attribute::End, Attribute::Start, Attribute::Received];
        let config = distinct_config(100 + seed as usize % 2, attribute[(seed / 2 % 4) as usize]);
        let flows: Vec<Flow> = (0..40)
            .map(|_| {
                let mut flow = random_flow(&mut random, 70_000_000);
                // the interface alone would tell exporters apart
                flow.exporter = None;
                flow
            })
            .collect();
        for (rollup, parts) in pieces(&mut random, &flows, &config) {
            if rollup.kind != Kind::Distinct {
                continue;
            }
            let (sets, totals) = truth(rollup, &flows, config.attribute);
            let answer = answer(&parts);
            let counts: BTreeMap<&Key, i64> = answer
                .sketches
                .iter()
                .map(|(key, (union, _))| (key, union.estimate().round() as i64))
                .collect();
            let wanted: BTreeMap<&Key, i64> = sets.iter().map(|(key, set)| (key, set.len() as i64)).collect();
            assert_eq!(counts, wanted, "seed {seed} {rollup:?}");
            assert_eq!(answer.flows, totals, "seed {seed} {rollup:?}");
            assert!(answer.bounds.values().all(|bound| *bound == 0.0), "{:?}", answer.bounds);
        }
    }
}

/// What is cut off is never more than `bound` says, through commits, coarser windows and compaction; what is counted is
/// within the error of its sketch.
#[test]
fn counts_lack_no_more_than_their_bound() {
    let (mut cut, mut large) = (0, 0);
    for seed in 0..20 {
        let mut random = Random(seed);
        let config = distinct_config(10 + seed as usize % 2, Attribute::Spread);
        let flows: Vec<Flow> = (0..4_000)
            .map(|_| {
                let mut flow = random_flow(&mut random, 1);
                flow.exporter = None;
                let end = NOON + random.below(600_000_000) as i64;
                (flow.received, flow.start, flow.end) = (end, None, Some(end));
                let bits = random.below(7);
                flow.src = Some(host(random.below(1 << bits)));
                let bits = 4 + random.below(8);
                flow.dst = Some(host(5_000 + random.below(1 << bits)));
                let bits = random.below(10);
                flow.port = Some(random.below(1 << bits) as i64);
                flow
            })
            .collect();
        for (rollup, parts) in pieces(&mut random, &flows, &config) {
            if rollup.kind != Kind::Distinct {
                continue;
            }
            let (sets, totals) = truth(rollup, &flows, Attribute::Spread);
            let answer = answer(&parts);
            assert_eq!(answer.flows, totals, "seed {seed} {rollup:?}");
            for (key, set) in &sets {
                let found = answer.sketches.get(key);
                let of_other = answer.bounds.get(&(key.0, key.1.clone())).copied().unwrap_or(0.0);
                let (count, own) = found.map_or((0.0, 0.0), |(union, own)| (union.estimate(), *own));
                let (bound, exact) = (of_other - own, set.len() as f64);
                assert!(bound >= 0.0, "seed {seed} {rollup:?} {key:?}");
                // four standard errors: there are some ten thousand counts here
                let error = if count > 96.0 { 0.14 * count } else { 0.01 };
                assert!(count - error <= exact, "seed {seed} {rollup:?} {key:?}: {count} of {exact}");
                assert!(
                    exact <= count + error + bound,
                    "seed {seed} {rollup:?} {key:?}: {exact} is beyond {count} and {bound}"
                );
                cut += i32::from(bound > 0.0);
                large += i32::from(count > 96.0);
            }
        }
    }
    assert!(cut > 1_000 && large > 100, "{cut} {large}");
}

/// Pairs of addresses with few flows are left out where there are very many; a scan of ports is found among them.
#[test]
fn a_scan_of_ports_is_found_among_very_many_pairs() {
    let mut random = Random(5);
    let mut flows: Vec<Flow> = (0..12_000)
        .map(|number| {
            let mut flow = random_flow(&mut random, 1);
            (flow.src, flow.dst) = (Some(host(number % 9_000)), Some(host(70_000 + number % 9_000)));
            (flow.start, flow.end, flow.protocol) = (None, Some(NOON), Some(6));
            flow.port = Some(random.below(60_000) as i64);
            flow
        })
        .collect();
    for (port, flow) in flows.iter_mut().step_by(30).enumerate() {
        (flow.src, flow.dst, flow.port) = (Some(host(1)), Some(host(2)), Some(port as i64));
    }
    let config = distinct_config(10, Attribute::Spread);
    let batches: Vec<RecordBatch> = flows.chunks(1_000).map(batch).collect();
    let computed = Family::Volume.compute(&batches, &config).unwrap();
    let place = Family::Volume.rollups().position(|rollup| rollup.kind == Kind::Distinct).unwrap();
    let answer = answer(&computed[place..=place]);
    let of_pairs = answer.sketches.iter().filter(|((_, name, _), _)| name == "dst_port per conversation");
    let mut counts: Vec<(f64, &str)> =
        of_pairs.map(|((.., key), (union, _))| (union.estimate(), key.as_str())).collect();
    counts.sort_by(|left, right| right.0.total_cmp(&left.0));
    let scan = format!("{:032x} {:032x} - -", host(1), host(2));
    assert!(counts[0].1 == scan && (counts[0].0 - 400.0).abs() < 40.0, "{counts:?}");
    // two flows of a pair are more than four thousand pairs have: those with one were left out
    let left_out = answer.bounds.iter().find(|((_, name), _)| name == "dst_port per conversation").unwrap();
    assert_eq!((*left_out.1, counts.len()), (2.0, 10));
    assert_eq!(answer.flows[&(NOON, "dst_port per conversation".to_owned())], 12_000);
}

/// Flows that claim to have ended at all sorts of times make windows without end, but few rows.
#[test]
fn a_flood_of_windows_is_bounded() {
    let mut random = Random(1);
    let flows: Vec<Flow> = (0..30_000_u64)
        .map(|number| {
            let mut flow = random_flow(&mut random, 1);
            let end = NOON - (number as i64 / 20) * 60_000_000;
            (flow.start, flow.end) = (Some(end), Some(end));
            (flow.src, flow.dst) = (Some(host(number)), Some(host(number * 7)));
            flow
        })
        .collect();
    let batches: Vec<RecordBatch> = flows.chunks(1_000).map(batch).collect();
    let config = distinct_config(10, Attribute::Spread);
    let computed = Family::Volume.compute(&batches, &config).unwrap();
    let place = Family::Volume.rollups().position(|rollup| rollup.kind == Kind::Distinct).unwrap();
    // 1,500 windows and four counts: a row each, and 640 keys of each count but for the last window's
    assert!(computed[place].num_rows() < 4 * (1_500 + 660), "{}", computed[place].num_rows());
    let total: i64 = answer(&computed[place..=place]).flows.values().sum();
    assert_eq!(total, 4 * 30_000);
}
