//! What ingestion costs: run by hand, in release.
//!
//! `cargo test --release -p weir-aggregator --lib measure -- --ignored --nocapture`; `WEIR_ROWS` sets how many rows.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tokio_util::sync::CancellationToken;
use weir_collector::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, SharedState};
use weir_collector::generate::{Generator, GeneratorConfig};
use weir_schemas::{Address, Table};

use super::files::encode;
use super::testing::{DAY, TestLog, message, numbers, session};
use super::writer::FileOptions;
use super::{Store, StoreConfig};
use crate::ingest::Ingest;
use crate::rollup::{AggregateConfig, Family};

const OPTIONS: FileOptions = FileOptions { zstd_level: 1, row_group_rows: 262_144 };

/// Flows of the generator, as the collector's batches of 64 k rows.
fn generated(rows: u64) -> Vec<RecordBatch> {
    let config =
        GeneratorConfig { flows: rows, start_us: DAY + 36_000_000_000, ..GeneratorConfig::default() };
    let mut generator = Generator::new(&config);
    let mut decoder = Decoder::new(Arc::new(DecodeConfig::default()), Arc::new(SharedState::default()));
    let mut batches = Batches::new();
    let (mut result, mut buffer, mut now) = (Vec::new(), Vec::new(), config.start_us);
    while let Some(info) = generator.next(now, &mut buffer) {
        let addr = generator.exporter_addr(info.exporter).unwrap_or(Ipv4Addr::LOCALHOST);
        let meta = DatagramMeta {
            sender: Address::from(std::net::IpAddr::V4(addr)),
            sender_port: 9,
            local_port: info.protocol.port(),
            received_us: now,
        };
        decoder.decode(&buffer, &meta, &mut batches);
        if batches.flows.rows() >= 65_536 {
            result.extend(batches.flows.finish());
        }
        // 200,000 flows a second
        now += i64::from(info.rows) * 5;
    }
    result.extend(batches.flows.finish());
    result
}

/// User and system time of this process.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn timed<T>(name: &str, rows: u64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    eprintln!("{name:<28} {:>8.0} ns/row", started.elapsed().as_nanos() as f64 / rows as f64);
    result
}

fn per_column(flows: &[RecordBatch], rows: u64) {
    let schema = Table::Flows.sql_schema();
    let mut columns = Vec::new();
    for (index, field) in schema.fields().iter().enumerate() {
        let project = |batch: &RecordBatch| {
            let at = batch.schema().index_of(field.name()).ok()?;
            Some(batch.project(&[at]).unwrap())
        };
        let only: Vec<RecordBatch> = flows.iter().filter_map(project).collect();
        if only.is_empty() {
            continue;
        }
        let started = Instant::now();
        let files = encode(&schema.project(&[index]).unwrap(), &only, "received_at", OPTIONS).unwrap();
        let bytes: usize = files.iter().map(|file| file.bytes.len()).sum();
        let ns = started.elapsed().as_nanos() as f64 / rows as f64;
        columns.push((ns, bytes as f64 / rows as f64, field.name().clone()));
    }
    columns.sort_by(|left, right| right.0.total_cmp(&left.0));
    for (ns, bytes, name) in columns {
        eprintln!("  {name:<26} {ns:>8.1} ns/row {bytes:>8.2} bytes/row");
    }
}

#[test]
#[ignore = "a measurement"]
fn the_parts_of_ingestion() {
    let rows = 1_048_576;
    let batches = generated(rows);
    let messages: Vec<_> =
        batches.iter().enumerate().map(|(at, batch)| message(0, at as u64, Table::Flows, batch)).collect();
    let open = |message: &crate::source::LogMessage| match &message.payload {
        crate::source::Payload::Batch { envelope, body } => crate::hot::open(envelope, body).unwrap(),
        _ => unreachable!("only batches"),
    };
    let flows: Vec<RecordBatch> = timed("open (decode, cast)", rows, || messages.iter().map(open).collect());
    let memory: usize = flows.iter().map(RecordBatch::get_array_memory_size).sum();
    eprintln!("{:<28} {:>8.0} bytes/row in memory", "", memory as f64 / rows as f64);
    let schema = Table::Flows.sql_schema();
    let files = timed("Parquet", rows, || encode(&schema, &flows, "received_at", OPTIONS).unwrap());
    let bytes: usize = files.iter().map(|file| file.bytes.len()).sum();
    eprintln!("{:<28} {:>8.2} bytes/row", "", bytes as f64 / rows as f64);
    let config = AggregateConfig::default();
    let uncounted = AggregateConfig { distinct: Vec::new(), ..AggregateConfig::default() };
    timed("rollups: Volume, no distinct", rows, || Family::Volume.compute(&flows, &uncounted).unwrap());
    for family in [Family::Volume, Family::Classes] {
        let name = format!("rollups: {family:?}");
        let computed = timed(&name, rows, || family.compute(&flows, &config).unwrap());
        for (rollup, parts) in family.rollups().zip(&computed) {
            let files = timed(&format!("  {}", rollup.name()), rows, || {
                encode(&rollup.schema(), std::slice::from_ref(parts), "window_start", OPTIONS).unwrap()
            });
            let bytes: usize = files.iter().map(|file| file.bytes.len()).sum();
            eprintln!("{:<28} {} rows, {:.2} bytes/row", "", parts.num_rows(), bytes as f64 / rows as f64);
        }
    }
    per_column(&flows, rows);
}

/// Resident memory of this process, MiB: now, and at its highest.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    (of("VmRSS"), of("VmHWM"))
}

/// A million hosts in one minute: what the rollups of the largest commit take beside its rows.
#[test]
#[ignore = "a measurement; run it alone"]
fn a_million_hosts_a_minute() {
    let mut random = super::testing::Random(3);
    let address = |number: u64| (0xffff_0000_0000_u128 | u128::from(number)).to_be_bytes();
    let mut batch = |first: u64| {
        let hosts = |random: &mut super::testing::Random, fresh: bool| {
            let number = |row: u64| if fresh { first + row } else { random.below(1 << 30) };
            let bytes = (0..65_536).map(number).map(address);
            Arc::new(arrow::array::FixedSizeBinaryArray::try_from_iter(bytes).unwrap())
        };
        let ends = (0..65_536).map(|row| DAY + (row + first as i64 % 7) % 60 * 1_000_000);
        let ends = arrow::array::TimestampMicrosecondArray::from_iter_values(ends).with_timezone("UTC");
        let bytes = (0..65_536).map(|_| random.below(100_000)).collect::<Vec<u64>>();
        RecordBatch::try_from_iter([
            ("end_time", Arc::new(ends) as arrow::array::ArrayRef),
            ("src_addr", hosts(&mut random, true)),
            ("dst_addr", hosts(&mut random, false)),
            ("bytes", Arc::new(arrow::array::UInt64Array::from(bytes))),
        ])
        .unwrap()
    };
    let batches: Vec<RecordBatch> = (0..16).map(|at| batch(at * 65_536)).collect();
    let config = AggregateConfig::default();
    // hot rows are committed at 96 MiB, about 470,000 rows of 204 bytes; all at once is twice that
    for commit in [&batches[..7], &batches[..]] {
        let (before, _) = resident();
        let computed: Vec<_> = [Family::Volume, Family::Classes]
            .iter()
            .map(|family| family.compute(commit, &config).unwrap())
            .collect();
        let (_, peak) = resident();
        let rows: usize = computed.iter().flatten().map(RecordBatch::num_rows).sum();
        let sources = commit.len() * 65_536;
        eprintln!("{sources} hosts: {} MiB beside the rows, {rows} partial rows", peak - before);
        assert!(peak - before < 256 * commit.len() as u64 / 7, "{} MiB", peak - before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn the_whole_of_ingestion() {
    let rows: u64 = std::env::var("WEIR_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(5_000_000);
    let batches = generated(rows);
    let messages: VecDeque<_> =
        batches.iter().enumerate().map(|(at, batch)| message(0, at as u64, Table::Flows, batch)).collect();
    let log = TestLog { messages: Arc::new(messages.into()), ..TestLog::default() };
    drop(batches);
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::default(), AggregateConfig::default(), directory.path(), "test")
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let (started, cpu_before) = (Instant::now(), cpu());
    let ingest = tokio::spawn(Ingest::new(Arc::clone(&store), log.opener(Duration::ZERO)).run(stop.clone()));
    while store.info().seen != log.end() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    ingest.await.unwrap().unwrap();
    let (wall, used) = (started.elapsed(), cpu() - cpu_before);
    let info = store.info();
    for table in info.tables.iter().filter(|table| table.files > 0) {
        let per_row = table.bytes as f64 / rows as f64;
        eprintln!(
            "{:<12} {} files, {} rows, {per_row:.2} bytes/flow",
            table.name, table.files, table.committed_rows
        );
    }
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
    eprintln!("{:.0} rows/s, {:.2} µs of CPU a row", rows as f64 / wall.as_secs_f64(), micros(used));
    eprintln!("{} MiB resident at most", resident().1);
    let context = session(&store).await;
    let started = Instant::now();
    assert_eq!(
        numbers(&context, "SELECT count(*), count(*) FILTER (WHERE bytes IS NULL) FROM flows").await[0],
        rows as i64
    );
    eprintln!("count in {:?}", started.elapsed());
    for sql in [
        "SELECT src_addr, sum(bytes) AS total FROM flows GROUP BY 1 ORDER BY 2 DESC LIMIT 20",
        "SELECT addr, sum(bytes) AS total FROM top_talkers WHERE dimension = 'src_addr' GROUP BY 1 ORDER BY 2 DESC LIMIT 20",
    ] {
        let started = Instant::now();
        super::testing::rows(&context, sql).await;
        eprintln!("{:?} {sql}", started.elapsed());
    }
}
