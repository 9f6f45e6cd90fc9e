//! A synthetic day whose true answers are known, through the store, asked in SQL.
//!
//! Flows of Zipf-distributed hosts over two exporters, one of which samples 1 in 100; classes with drops, congestion and
//! re-marking; flows of up to eight hours; a twentieth of the batches is late by hours. What happened is drawn first, then
//! what the exporters tell of it, so that estimates can be held against what they estimate.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, Float64Array, RecordBatch, TimestampMicrosecondArray, UInt8Array,
    UInt32Array, UInt64Array,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use object_store::memory::InMemory;
use weir_schemas::Table;

use super::maintenance::Maintenance;
use super::table::HotBatch;
use super::testing::{DAY, Random, address, message, open, rows, session};
use crate::source::{Origins, Payload, Positions};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const RATE: u64 = 100;
const TOS: [u8; 4] = [0, 46 << 2, 34 << 2 | 1, 34 << 2 | 3];

/// A flow as it was, and as its exporter tells it.
#[derive(Debug, Clone)]
struct Flow {
    start: i64,
    end: i64,
    /// 0 counts everything, 1 samples.
    exporter: u64,
    src: u64,
    dst: u64,
    in_if: u32,
    tos: u8,
    post_tos: u8,
    status: u8,
    packets: u64,
    bytes: u64,
    /// What was there: of the sampled exporter more than it tells.
    true_bytes: u64,
}

fn rate(flow: &Flow) -> u64 {
    if flow.exporter == 1 { RATE } else { 1 }
}

/// About Zipf: each step halves the likelihood and doubles the hosts.
fn zipf(random: &mut Random) -> u64 {
    let mut scale = 0;
    while scale < 11 && random.below(2) == 0 {
        scale += 1;
    }
    (1 << scale) - 1 + random.below(1 << scale)
}

fn flow(random: &mut Random) -> Flow {
    let end = DAY + random.below(24 * HOUR as u64) as i64;
    let longest = [1, 10 * SECOND, 300 * SECOND, 3_000 * SECOND, 8 * HOUR];
    // few are long
    let kind = [0, 1, 1, 2, 2, 2, 2, 3][random.below(8) as usize];
    let kind = if random.below(300) == 0 { 4 } else { kind };
    let start = (end - random.below(longest[kind] as u64) as i64).max(DAY);
    let exporter = random.below(2);
    let size = [64, 120, 600, 1_500][random.below(4) as usize];
    let src = zipf(random);
    let true_packets = 1 + random.below(2_000) * if src < 3 { 20 } else { 1 };
    let packets = match exporter {
        0 => true_packets,
        _ => (0..true_packets).filter(|_| random.below(RATE) == 0).count() as u64,
    };
    let tos = TOS[random.below(4) as usize];
    let post_tos = if random.below(10) == 0 { 0 } else { tos };
    let status = if tos == 0 && random.below(20) == 0 { 0x82 } else { 0x40 };
    let in_if = 1 + random.below(3) as u32;
    let (bytes, true_bytes) = (packets * size, true_packets * size);
    let dst = random.below(40);
    Flow { start, end, exporter, src, dst, in_if, tos, post_tos, status, packets, bytes, true_bytes }
}

fn batch(flows: &[Flow]) -> RecordBatch {
    let times = |of: fn(&Flow) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(flows.iter().map(of)).with_timezone("UTC"))
    };
    let hosts = |of: fn(&Flow) -> u64| -> ArrayRef {
        Arc::new(FixedSizeBinaryArray::try_from_iter(flows.iter().map(|flow| address(of(flow)))).unwrap())
    };
    let bytes =
        |of: fn(&Flow) -> u8| -> ArrayRef { Arc::new(UInt8Array::from_iter_values(flows.iter().map(of))) };
    let counts =
        |of: fn(&Flow) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(flows.iter().map(of))) };
    RecordBatch::try_from_iter([
        ("received_at", times(|flow| flow.end)),
        ("start_time", times(|flow| flow.start)),
        ("end_time", times(|flow| flow.end)),
        ("exporter_addr", hosts(|flow| flow.exporter)),
        ("src_addr", hosts(|flow| flow.src)),
        ("dst_addr", hosts(|flow| flow.dst)),
        ("tos", bytes(|flow| flow.tos)),
        ("post_tos", bytes(|flow| flow.post_tos)),
        ("bytes", counts(|flow| flow.bytes)),
        ("packets", counts(|flow| flow.packets)),
        (
            "sampling_rate",
            Arc::new(Float64Array::from_iter_values(flows.iter().map(|flow| rate(flow) as f64))),
        ),
        ("in_if", Arc::new(UInt32Array::from_iter_values(flows.iter().map(|flow| flow.in_if)))),
        ("forwarding_status", bytes(|flow| flow.status)),
    ])
    .unwrap()
}

/// The windows of a flow with its bytes and packets in them, in proportion to time, rounded down at each boundary.
fn spread(flow: &Flow, window: i64) -> Vec<(i64, i64, i64)> {
    let passed = |total: u64, at: i64| {
        if at > flow.end {
            return total as i64;
        }
        (i128::from(total) * i128::from((at - flow.start).max(0))
            / i128::from((flow.end - flow.start).max(1))) as i64
    };
    let mut shares = Vec::new();
    let mut at = flow.start / window * window;
    while at <= flow.end {
        let part = |total: u64| passed(total, at + window) - passed(total, at);
        shares.push((at, part(flow.bytes), part(flow.packets)));
        at += window;
    }
    shares
}

/// The rows of a query as text, by the first `keys` columns.
async fn answer(context: &SessionContext, sql: &str, keys: usize) -> BTreeMap<String, Vec<f64>> {
    let mut answer = BTreeMap::new();
    for batch in rows(context, sql).await {
        let options = FormatOptions::default();
        let cells: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let key: Vec<String> = cells[..keys].iter().map(|cell| cell.value(row).to_string()).collect();
            let number = |at: usize| {
                let text = cells[at].value(row).to_string();
                if batch.column(at).is_null(row) { f64::NAN } else { text.parse().unwrap() }
            };
            answer.insert(key.join(" "), (keys..cells.len()).map(number).collect());
        }
    }
    answer
}

type Truth = BTreeMap<String, Vec<f64>>;

fn add(truth: &mut Truth, key: String, adds: &[f64]) {
    let sums = truth.entry(key).or_insert_with(|| vec![0.0; adds.len()]);
    sums.iter_mut().zip(adds).for_each(|(sum, add)| *sum += add);
}

/// What is left of a truth where nothing of a key crossed: the rollups have no row there.
fn without_nothing(mut truth: Truth) -> Truth {
    truth.retain(|_, sums| sums.iter().any(|sum| *sum != 0.0));
    truth
}

fn hex(number: u64) -> String {
    address(number).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synthetic_day_has_its_true_answers() {
    let mut random = Random(2026);
    let mut flows: Vec<Flow> = (0..30_000).map(|_| flow(&mut random)).collect();
    flows.sort_by_key(|flow| flow.end);
    // an exporter that sampled nothing of a flow tells nothing of it
    let told: Vec<Flow> = flows.iter().filter(|flow| flow.packets > 0).cloned().collect();
    let mut batches: Vec<&[Flow]> = told.chunks(500).collect();
    for late in 0..batches.len() / 20 {
        let batch = batches.remove(late * 15);
        let to = (late * 15 + 12).min(batches.len());
        batches.insert(to, batch);
    }
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    let mut upto = Positions::new();
    for (offset, flows) in (0_u64..).zip(&batches) {
        let message = message(0, offset, Table::Flows, &batch(flows));
        let Payload::Batch { envelope, body } = &message.payload else { unreachable!("only batches") };
        let batch = crate::hot::open(envelope, body).unwrap();
        let bytes = batch.get_array_memory_size();
        store.take(
            Table::Flows,
            &[Arc::new(HotBatch { partition: 0, offset, batch, bytes, followed: false })],
        );
        upto.insert(0, offset + 1);
        // the last ones stay hot
        if offset % 4 == 3 && offset + 6 < batches.len() as u64 {
            store.commit(&upto, &Origins::new()).await.unwrap();
        }
        if offset == 30 {
            for table in &store.tables {
                Maintenance::new(Arc::clone(&store)).compact(table).await.unwrap();
            }
        }
    }
    assert!(store.info().tables[0].hot_rows > 0);
    let context = session(&store).await;

    // exact by the hour and the day, long flows too
    for (table, window) in [("1h", HOUR), ("1d", 24 * HOUR)] {
        let mut by_class = Truth::new();
        for flow in &told {
            for (at, bytes, packets) in spread(flow, window) {
                let ce = if flow.tos & 3 == 3 { packets } else { 0 };
                let dropped = if flow.status >> 6 == 2 { bytes } else { 0 };
                let est = bytes as f64 * rate(flow) as f64;
                let sums = [bytes as f64, packets as f64, est, ce as f64, dropped as f64];
                add(
                    &mut by_class,
                    format!("{at} {} {} {}", hex(flow.exporter), flow.in_if, flow.tos >> 2),
                    &sums,
                );
            }
        }
        let sql = format!(
            "SELECT CAST(window_start AS BIGINT), exporter_addr, if_index, dscp, bytes, packets, est_bytes, ce_packets, \
             not_forwarded_bytes FROM qos_{table} WHERE direction = 'in' AND packets + flows > 0"
        );
        assert_eq!(without_nothing(answer(&context, &sql, 4).await), without_nothing(by_class), "{table}");
        let mut by_exporter = Truth::new();
        for flow in &told {
            for (at, bytes, packets) in spread(flow, window) {
                add(
                    &mut by_exporter,
                    format!("{at} {}", hex(flow.exporter)),
                    &[bytes as f64, packets as f64],
                );
            }
        }
        let sql = format!(
            "SELECT CAST(window_start AS BIGINT), exporter_addr, sum(bytes), sum(packets) FROM flows_{table} GROUP BY 1, 2"
        );
        assert_eq!(without_nothing(answer(&context, &sql, 2).await), without_nothing(by_exporter), "{table}");
    }

    // re-marking
    let mut marks = Truth::new();
    for flow in &told {
        add(&mut marks, format!("{} {}", flow.tos >> 2, flow.post_tos >> 2), &[1.0, flow.packets as f64]);
    }
    let sql = "SELECT dscp, post_dscp, sum(flows), sum(packets) FROM remarking_1h GROUP BY 1, 2";
    assert_eq!(answer(&context, sql, 2).await, marks);

    // the rates of ten seconds, by a plain sum over all windows of an hour in which no flow is longer than an hour
    let mut rates: BTreeMap<(i64, u64, u32, u8), BTreeMap<i64, f64>> = BTreeMap::new();
    let mut mixed: HashSet<(i64, u64, u32, u8)> = HashSet::new();
    for flow in &told {
        let key = |at: i64| (at / HOUR * HOUR, flow.exporter, flow.in_if, flow.tos >> 2);
        for (at, bytes, _) in spread(flow, 10 * SECOND) {
            if flow.end - flow.start > HOUR {
                mixed.insert(key(at));
            }
            let est = bytes as f64 * rate(flow) as f64 * 8.0 / 10.0;
            *rates.entry(key(at)).or_default().entry(at).or_default() += est;
        }
    }
    let sql = "SELECT CAST(window_start AS BIGINT), exporter_addr, if_index, dscp, avg_bits_per_s, peak_bits_per_s, \
               p95_bits_per_s FROM qos_rates_1h WHERE direction = 'in'";
    let found = answer(&context, sql, 4).await;
    let mut compared = 0;
    for (key, windows) in rates.iter().filter(|(key, _)| !mixed.contains(*key)) {
        let mut sorted: Vec<f64> = windows.values().copied().collect();
        sorted.resize(360, 0.0);
        sorted.sort_by(|left, right| right.total_cmp(left));
        let truth = [sorted.iter().sum::<f64>() / 360.0, sorted[0], sorted[18]];
        let name = format!("{} {} {} {}", key.0, hex(key.1), key.2, key.3);
        // where nothing crossed there is no row
        let nothing = vec![0.0; 3];
        for (found, truth) in found.get(&name).unwrap_or(&nothing).iter().zip(truth) {
            assert!((found - truth).abs() <= truth * 1e-9 + 1e-6, "{name}: {found} is not {truth}");
        }
        compared += 1;
    }
    assert!(compared > 50, "{compared}");

    // top talkers of each hour: the largest are found, each within its bound
    let mut talkers: BTreeMap<(i64, u64), f64> = BTreeMap::new();
    for flow in &told {
        for (at, bytes, _) in spread(flow, HOUR) {
            *talkers.entry((at, flow.src)).or_default() += bytes as f64 * rate(flow) as f64;
        }
    }
    let sql = "SELECT CAST(window_start AS BIGINT), addr, est_bytes, error_bound, rank, share FROM top_talkers_1h \
               WHERE dimension = 'src_addr' AND NOT other";
    let found = answer(&context, sql, 2).await;
    for at in (0..24).map(|hour| DAY + hour * HOUR) {
        let mut hour: Vec<_> = talkers.range((at, 0)..(at, u64::MAX)).collect();
        hour.sort_by(|left, right| right.1.total_cmp(left.1));
        let total: f64 = hour.iter().map(|(_, bytes)| **bytes).sum();
        for (rank, ((_, src), truth)) in (1..).zip(hour.iter().take(20)) {
            let name = format!("{at} {}", hex(*src));
            let row = found.get(&name).unwrap_or_else(|| panic!("{name} is missing"));
            assert!(row[0] <= **truth && **truth <= row[0] + row[1], "{name}: {row:?} is not {truth}");
            let alike = hour.iter().filter(|(_, other)| **other == **truth).count();
            assert!(row[1] > 0.0 || alike > 1 || row[2] == f64::from(rank), "{name}: {row:?}, not {rank}");
            assert!((row[3] - row[0] / total).abs() < 1e-9, "{name}");
        }
    }

    // the sampled exporter: what it estimates is near the truth, by the error that it states
    let mut true_bytes = Truth::new();
    for flow in flows.iter().filter(|flow| flow.exporter == 1) {
        add(&mut true_bytes, format!("{} {}", flow.end / HOUR * HOUR, flow.in_if), &[flow.true_bytes as f64]);
    }
    let sql = "SELECT in_if, sum(est_bytes), sqrt(sum(est_bytes_error * est_bytes_error)) FROM flows_1d \
               WHERE exporter_addr = arrow_cast(X'00000000000000000000ffff0a000001', 'FixedSizeBinary(16)') GROUP BY 1";
    let by_interface = answer(&context, sql, 1).await;
    assert_eq!(by_interface.len(), 3);
    for (interface, row) in &by_interface {
        let truth: f64 = true_bytes
            .iter()
            .filter(|(key, _)| key.ends_with(&format!(" {interface}")))
            .map(|(_, sum)| sum[0])
            .sum();
        assert!(row[1] > 0.0 && row[1] < row[0] * 0.05, "{row:?}");
        assert!((row[0] - truth).abs() < 4.0 * row[1], "interface {interface}: {row:?} is not {truth}");
    }
    let sql = "SELECT exporter_addr, sum(est_bytes_error) FROM flows_1d \
               WHERE exporter_addr = arrow_cast(X'00000000000000000000ffff0a000000', 'FixedSizeBinary(16)') GROUP BY 1";
    assert_eq!(answer(&context, sql, 1).await.values().next().unwrap()[0], 0.0);
}
