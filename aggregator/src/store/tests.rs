//! The store as a whole: crashes, fencing, consistent snapshots, housekeeping.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, UInt64Type};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio_util::sync::CancellationToken;
use weir_schemas::Table;

use super::maintenance::SPLICE_ROWS;
use super::testing::*;
use super::*;
use crate::ingest::{Ingest, IngestError};
use crate::rollup::{AggregateConfig, Family as RollupFamily};
use crate::source::{LogMessage, Origins, Payload};

const PAUSE: Duration = Duration::from_millis(2);

/// Runs an ingester until everything is committed.
async fn ingest_all(store: &Arc<Store>, log: &TestLog) {
    let stop = CancellationToken::new();
    let ingest = tokio::spawn(Ingest::new(Arc::clone(store), log.opener(PAUSE)).run(stop.clone()));
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.info().committed != log.end() {
        assert!(Instant::now() < deadline, "not committed: {:?}", store.info());
        assert!(!ingest.is_finished(), "the ingester ended early");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    ingest.await.unwrap().unwrap();
}

/// Every table says exactly what the log holds.
async fn assert_exact(store: &Arc<Store>, log: &TestLog) {
    let context = session(store).await;
    let total = [log.rows as i64, log.bytes];
    let sql = "SELECT count(*), sum(bytes), count(DISTINCT fragment_id) FROM flows";
    assert_eq!(numbers(&context, sql).await, [total[0], total[1], total[0]]);
    for (rollup, filter) in [
        ("flows_1m", "true"),
        ("qos_1m", "direction = 'in'"),
        ("qos_1m", "direction = 'out'"),
        ("top_talkers", "dimension = 'src_addr'"),
        ("top_talkers", "dimension = 'conversation'"),
        ("top_talkers", "dimension = 'dst_as'"),
    ] {
        let sql = format!("SELECT sum(flows), sum(bytes) FROM {rollup} WHERE {filter}");
        assert_eq!(numbers(&context, &sql).await, total, "{rollup} {filter}");
    }
    let nat: usize = log
        .messages
        .iter()
        .map(|message| match &message.payload {
            Payload::Batch { envelope, .. } if envelope.table == Table::NatEvents => envelope.rows as usize,
            _ => 0,
        })
        .sum();
    assert_eq!(numbers(&context, "SELECT count(*) FROM nat_events").await, [nat as i64]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_at_any_write_neither_lose_nor_repeat() {
    let mut repeated = 0;
    for seed in 0..40 {
        let log = TestLog::random(seed, 30);
        let mut random = Random(seed ^ 0xdead);
        let sent = if seed % 2 == 0 { log.clone() } else { log.sent_again(&mut random) };
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        for _ in 0..4 {
            let mortal = Mortal::new(Arc::clone(&inner), 1 + random.below(60) as i64, random.below(2) == 0);
            let Ok(store) = open(Arc::clone(&mortal) as Arc<dyn ObjectStore>).await else { continue };
            let stop = CancellationToken::new();
            let ingest = tokio::spawn(Ingest::new(Arc::clone(&store), sent.opener(PAUSE)).run(stop));
            // dead, done, or killed between two awaits wherever it is
            let kill_at = Instant::now() + Duration::from_millis(20 + random.below(120));
            while !mortal.dead.load(Ordering::SeqCst) && Instant::now() < kill_at {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ingest.abort();
            let _ = ingest.await;
        }
        let store = open(inner).await.unwrap();
        ingest_all(&store, &sent).await;
        assert_exact(&store, &log).await;
        repeated += store.metrics.repeated_rows.get();
        let again = open(store.objects()).await.unwrap();
        assert_eq!(again.info().committed, sent.end(), "seed {seed}");
        assert_exact(&again, &log).await;
    }
    assert!(repeated > 0, "nothing was there twice: this shows nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_of_one_log_fence_each_other_and_stay_exact() {
    for seed in 0..5 {
        let log = TestLog::random(seed, 60);
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let stop = CancellationToken::new();
        let mut writers = Vec::new();
        let mut stores = Vec::new();
        for _ in 0..2 {
            let store = open(Arc::clone(&objects)).await.unwrap();
            let ingest = Ingest::new(Arc::clone(&store), log.opener(PAUSE));
            writers.push(tokio::spawn(ingest.run(stop.clone())));
            stores.push(store);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let reader = loop {
            let reader = open(Arc::clone(&objects)).await.unwrap();
            if reader.info().committed == log.end() {
                break reader;
            }
            assert!(Instant::now() < deadline, "{:?}", reader.info());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        stop.cancel();
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
        // the ledger's last line: what was taken is committed, in memory, or was given back
        for store in &stores {
            let label = table(store, "flows").label();
            let count = |family: &Family<TableLabel, Counter>| family.get_or_create(&label).get();
            let hot = store.info().tables[0].hot_rows;
            let metrics = store.metrics();
            let accounted = count(&metrics.rows) + hot + count(&metrics.given_back);
            assert_eq!(count(&metrics.taken_rows), accounted);
        }
        let fenced: u64 = stores.iter().map(|store| store.metrics().fenced.get()).sum();
        assert!(fenced > 0, "the writers never met: this shows nothing");
        assert_exact(&open(Arc::clone(&objects)).await.unwrap(), &log).await;
        drop(reader);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_during_commits_sees_each_row_once() {
    let log = TestLog::random(7, 150);
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    let context = session(&store).await;
    let mut prefixes = vec![0_i64];
    for batch in &log.batches {
        prefixes.push(prefixes.last().unwrap() + batch.num_rows() as i64);
    }
    let stop = CancellationToken::new();
    let ingest = tokio::spawn(Ingest::new(Arc::clone(&store), log.opener(PAUSE)).run(stop.clone()));
    let (mut last, mut queries) = ([0, 0], 0);
    while store.info().committed != log.end() {
        let sql = [
            "SELECT count(*), count(DISTINCT fragment_id) FROM flows WHERE bytes >= 0",
            "SELECT coalesce(sum(flows), 0) AS once, coalesce(sum(flows), 0) AS again FROM flows_1m",
        ];
        for (index, sql) in sql.into_iter().enumerate() {
            let seen = numbers(&context, sql).await;
            assert_eq!(seen[0], seen[1], "a row twice");
            assert!(prefixes.contains(&seen[0]), "{} rows are no prefix of the log", seen[0]);
            assert!(seen[0] >= last[index], "rows vanished: {} after {}", seen[0], last[index]);
            last[index] = seen[0];
        }
        queries += 1;
    }
    assert!(queries > 5, "only {queries} queries met the commits");
    stop.cancel();
    ingest.await.unwrap().unwrap();
    assert_exact(&store, &log).await;
    assert!(store.tables[0].snapshot().version > 3, "only one commit: this shows nothing");
}

/// Takes and commits the log's messages, `step` at a time.
async fn commit_in_steps(store: &Arc<Store>, log: &TestLog, step: usize) {
    let mut upto = Positions::new();
    for messages in log.messages.chunks(step) {
        take(store, messages, &mut upto);
        store.commit(&upto, &Origins::new()).await.unwrap();
    }
}

fn take(store: &Arc<Store>, messages: &[LogMessage], upto: &mut Positions) {
    for message in messages {
        let Payload::Batch { envelope, body } = &message.payload else { continue };
        let batch = crate::hot::open(envelope, body).unwrap();
        let (partition, offset) = (message.partition, message.offset);
        let bytes = batch.get_array_memory_size();
        store
            .take(envelope.table, &[Arc::new(HotBatch { partition, offset, batch, bytes, followed: false })]);
        upto.insert(partition, offset + 1);
    }
}

fn table<'a>(store: &'a Store, name: &str) -> &'a Arc<StoreTable> {
    store.tables.iter().find(|table| table.spec.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_keeps_rows_and_positions_and_vacuum_deletes_only_what_is_unneeded() {
    let log = TestLog::random(11, 60);
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = open(Arc::clone(&objects)).await.unwrap();
    commit_in_steps(&store, &log, 5).await;
    let before: Vec<_> = store.tables.iter().map(|table| table.snapshot()).collect();
    let maintenance = Maintenance::new(Arc::clone(&store));
    for table in &store.tables {
        maintenance.compact(table).await.unwrap();
    }
    assert_exact(&store, &log).await;
    for (table, before) in store.tables.iter().zip(&before) {
        let after = table.snapshot();
        assert_eq!(after.positions, before.positions);
        // nothing tells how it was re-marked
        let is_used =
            matches!(table.spec.takes(), Some(Table::Flows | Table::NatEvents)) && !before.files.is_empty();
        assert!(!is_used || (before.files.len() > 5 && after.files.len() == 1), "{}", table.spec.name);
        if let Content::Raw(_) = table.spec.content {
            let rows = |snapshot: &Snapshot| snapshot.files.iter().map(|file| file.rows).sum::<u64>();
            assert_eq!(rows(&after), rows(before));
        }
    }
    // within the grace nothing is deleted, after it only what was removed
    let far = delta::now_ms() + 7_200_000;
    let flows = table(&store, "flows");
    let count = |store: &Arc<Store>| store.metrics.vacuumed_files.get();
    maintenance.vacuum(flows, delta::now_ms()).await.unwrap();
    assert_eq!(count(&store), 0);
    maintenance.vacuum(flows, far).await.unwrap();
    assert_eq!(count(&store), before[0].files.len() as u64);
    assert_exact(&open(objects).await.unwrap(), &log).await;
}

/// Large row groups are carried over as they are, small ones put together; rows, order and statistics stay.
#[tokio::test]
async fn compaction_copies_large_row_groups() {
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    let mut random = Random(5);
    let large = SPLICE_ROWS as usize + 100;
    let mut upto = Positions::new();
    let (mut messages, mut files, mut first) = (Vec::new(), Vec::new(), 0);
    for (offset, rows) in [large, 50, 60, large, 70].into_iter().enumerate() {
        messages.push(message(0, offset as u64, Table::Flows, &wide_flows(&mut random, first, rows)));
        first += rows as u32;
        take(&store, &messages[offset..], &mut upto);
        store.commit(&upto, &Origins::new()).await.unwrap();
        let new = table(&store, "flows")
            .snapshot()
            .files
            .iter()
            .find(|file| !files.iter().any(|known: &Arc<DataFile>| known.path == file.path))
            .cloned();
        files.extend(new);
    }
    let flows = table(&store, "flows");
    let sums = "SELECT count(*), count(DISTINCT fragment_id), sum(bytes), min(fragment_id), max(fragment_id), \
                sum(fragment_id * dst_port) FROM flows";
    let context = session(&store).await;
    let before = numbers(&context, sums).await;
    assert_eq!(before[0], i64::from(first));
    assert_eq!(flows.snapshot().files.len(), 5);
    Maintenance::new(Arc::clone(&store)).merge(flows, files[0].day, &files).await.unwrap();
    let [file] = &flows.snapshot().files[..] else { panic!("not one file") };
    assert_eq!(numbers(&context, sums).await, before);
    let path = object_store::path::Path::from(format!("flows/{}", file.path));
    let bytes = flows.objects.get(&path).await.unwrap().bytes().await.unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let rows = |group: &parquet::file::metadata::RowGroupMetaData| group.num_rows();
    let groups: Vec<i64> = reader.metadata().row_groups().iter().map(rows).collect();
    assert_eq!(groups, [large as i64, 110, large as i64, 70]);
    let has_filter = |group: &parquet::file::metadata::RowGroupMetaData| {
        group.columns().iter().any(|column| column.bloom_filter_offset().is_some())
    };
    assert!(reader.metadata().row_groups().iter().all(has_filter));
    let address = "SELECT count(*), sum(bytes) FROM flows WHERE src_addr = ";
    let hex = |last: u64| format!("arrow_cast(X'{}', 'FixedSizeBinary(16)')", hex(&testing::address(last)));
    assert!(numbers(&context, &format!("{address}{}", hex(17))).await[0] > 0);
    assert_eq!(
        rows_of(&context, &format!("SELECT bytes FROM flows WHERE src_addr = {}", hex(9_999))).await,
        0
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn rows_of(context: &datafusion::prelude::SessionContext, sql: &str) -> usize {
    rows(context, sql).await.iter().map(RecordBatch::num_rows).sum()
}

#[tokio::test]
async fn old_days_go_whole() {
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    let log = TestLog::random(3, 10);
    commit_in_steps(&store, &log, 10).await;
    let maintenance = Maintenance::new(Arc::clone(&store));
    let flows = table(&store, "flows");
    let day_ms = 86_400_000;
    maintenance.expire(flows, DAY / 1000 + 30 * day_ms).await.unwrap();
    assert_exact(&store, &log).await;
    maintenance.expire(flows, DAY / 1000 + 31 * day_ms).await.unwrap();
    let context = session(&store).await;
    assert_eq!(numbers(&context, "SELECT count(*) FROM flows").await, [0]);
    assert_eq!(numbers(&context, "SELECT sum(flows) FROM flows_1m").await, [log.rows as i64]);
}

#[tokio::test]
async fn checkpoints_say_what_the_log_said() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let store = open(Arc::clone(&objects)).await.unwrap();
    let log = TestLog::random(5, 40);
    commit_in_steps(&store, &log, 4).await;
    for table in &store.tables {
        Maintenance::new(Arc::clone(&store)).compact(table).await.unwrap();
        // keeps tombstones, removes every older log file
        let mut writer = table.writer.lock().await;
        let removed = writer.log.state.removed.len();
        writer.log.checkpoint(3_600_000, -3_600_000).await.unwrap();
        let state = writer.log.state.clone();
        assert!(writer.log.load().await.unwrap());
        assert_eq!(writer.log.state.txns, state.txns);
        assert_eq!(writer.log.state.removed.len(), removed);
        assert_eq!(format!("{:?}", writer.log.state.metadata), format!("{:?}", state.metadata));
        let names = |state: &delta::LogState| -> Vec<_> {
            state
                .files
                .values()
                .map(|file| (file.path.clone(), file.rows, file.day, file.ranges.clone()))
                .collect()
        };
        assert_eq!(names(&writer.log.state), names(&state));
    }
    let gone = object_store::path::Path::from("flows/_delta_log/00000000000000000000.json");
    assert!(matches!(objects.get(&gone).await, Err(object_store::Error::NotFound { .. })));
    let again = open(objects).await.unwrap();
    assert_exact(&again, &log).await;
}

#[tokio::test]
async fn a_delta_reader_that_is_not_ours_agrees() {
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { commit_interval_ms: 10, ..StoreConfig::default() };
    let store = Store::open(config, Default::default(), directory.path(), "test").await.unwrap();
    let log = TestLog::random(9, 40);
    commit_in_steps(&store, &log, 8).await;
    let flows = table(&store, "flows");
    for checkpointed in [false, true] {
        if checkpointed {
            flows.writer.lock().await.log.checkpoint(3_600_000, -3_600_000).await.unwrap();
        }
        let path = directory.path().canonicalize().unwrap().join("store/flows");
        let url = url::Url::from_directory_path(path).unwrap();
        let other = deltalake_core::open_table(url).await.unwrap();
        assert_eq!(other.version(), Some(flows.snapshot().version as _));
        let state = other.snapshot().unwrap();
        assert_eq!(state.log_data().num_files(), flows.snapshot().files.len());
        let rows: usize = state.log_data().iter().map(|file| file.num_records().unwrap()).sum();
        assert_eq!(rows as u64, log.rows);
        for (partition, position) in log.end() {
            let app = format!("weir/test/{partition}");
            let version = state.transaction_version(other.log_store().as_ref(), app).await.unwrap();
            // the last message of a partition may have been another table's
            assert!(version.unwrap() as u64 <= position);
        }
    }
}

#[tokio::test]
async fn files_are_pruned_and_addresses_filter() {
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    let mut random = Random(1);
    let mut upto = Positions::new();
    let mut all = Vec::new();
    for offset in 0..4 {
        let batch = flows(&mut random, offset * 100, 100);
        take(&store, &[message(0, u64::from(offset), Table::Flows, &batch)], &mut upto);
        store.commit(&upto, &Origins::new()).await.unwrap();
        all.push(batch);
    }
    let context = session(&store).await;
    let wanted = address(7);
    let expected: usize = all
        .iter()
        .map(|batch| {
            batch
                .column_by_name("dst_addr")
                .unwrap()
                .as_fixed_size_binary()
                .iter()
                .filter(|addr| *addr == Some(&wanted[..]))
                .count()
        })
        .sum();
    assert!(expected > 0);
    let hex: String = wanted.iter().map(|byte| format!("{byte:02x}")).collect();
    let sql =
        format!("SELECT count(*) FROM flows WHERE dst_addr = arrow_cast(X'{hex}', 'FixedSizeBinary(16)')");
    assert_eq!(numbers(&context, &sql).await, [expected as i64]);
    // every flow was received that day after noon: a later range reads no file
    let plan = |sql: String| {
        let context = context.clone();
        async move {
            let plan = context.sql(&sql).await.unwrap().create_physical_plan().await.unwrap();
            datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string()
        }
    };
    let later = plan("SELECT bytes FROM flows WHERE received_at > '2026-11-24T00:00:00Z'".into()).await;
    assert!(!later.contains(".parquet"), "{later}");
    let then = plan("SELECT bytes FROM flows WHERE received_at > '2026-11-23T12:30:00Z'".into()).await;
    assert!(then.contains(".parquet"), "{then}");
    // a column that no row has is NULL, in files and in memory
    take(&store, &[message(0, 4, Table::Flows, &all[0])], &mut upto);
    let sql = "SELECT count(*), count(as_path), count(extra), count(src_mac), count(app_name) FROM flows";
    assert_eq!(numbers(&context, sql).await, [500, 0, 0, 0, 0]);
    let sql =
        "SELECT count(*) FROM information_schema.columns WHERE table_name = 'flows' AND column_name = 'dscp'";
    let config = datafusion::prelude::SessionConfig::new().with_information_schema(true);
    let with_schema = session_with(&store, config).await;
    assert_eq!(numbers(&with_schema, sql).await, [1]);
}

#[tokio::test]
async fn rollups_say_what_sql_says_over_the_raw_rows() {
    let log = TestLog::random(21, 80);
    // late and shuffled: half is committed in reverse order, the rest is hot
    let mut messages: Vec<_> = log.messages.iter().cloned().collect();
    messages.reverse();
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    let mut upto = Positions::new();
    for (index, message) in messages.iter().enumerate() {
        let moved = LogMessage { partition: 0, offset: index as u64, payload: message.payload.clone() };
        take(&store, &[moved], &mut upto);
        if index % 7 == 0 && index < 40 {
            store.commit(&upto, &Origins::new()).await.unwrap();
        }
    }
    assert!(store.info().tables[0].hot_rows > 0 && store.info().tables[0].committed_rows > 0);
    let context = session(&store).await;
    let measures = "sum(bytes), sum(packets), round(sum(est_bytes)), round(sum(est_packets))";
    for (rollup, raw) in [
        (
            "SELECT exporter_addr, in_if, out_if, ip_protocol, dscp, sum(flows), # FROM flows_1m GROUP BY 1,2,3,4,5",
            "SELECT exporter_addr, in_if, out_if, ip_protocol, dscp, count(*), # FROM flows GROUP BY 1,2,3,4,5",
        ),
        (
            "SELECT src_as, dst_as, sum(flows), # FROM flows_1m GROUP BY 1,2",
            "SELECT src_as, dst_as, count(*), # FROM flows GROUP BY 1,2",
        ),
        (
            "SELECT asn, sum(flows), # FROM top_talkers WHERE dimension = 'src_as' GROUP BY 1",
            "SELECT src_as, count(*), # FROM flows GROUP BY 1",
        ),
        (
            "SELECT exporter_addr, if_index, dscp, sum(flows), # FROM qos_1m WHERE direction = 'in' GROUP BY 1,2,3",
            "SELECT exporter_addr, in_if, dscp, count(*), # FROM flows GROUP BY 1,2,3",
        ),
        (
            "SELECT if_index, sum(unknown_sampling_flows), # FROM qos_1m WHERE direction = 'out' GROUP BY 1",
            "SELECT out_if, count(*) FILTER (WHERE sampling_rate IS NULL), # FROM flows GROUP BY 1",
        ),
        (
            "SELECT addr, sum(flows), # FROM top_talkers WHERE dimension = 'dst_addr' GROUP BY 1",
            "SELECT dst_addr, count(*), # FROM flows GROUP BY 1",
        ),
        (
            "SELECT addr, peer_addr, sum(flows), # FROM top_talkers WHERE dimension = 'conversation' GROUP BY 1,2",
            "SELECT src_addr, dst_addr, count(*), # FROM flows GROUP BY 1,2",
        ),
        (
            "SELECT ip_protocol, port, sum(flows), # FROM top_talkers WHERE dimension = 'dst_port' GROUP BY 1,2",
            "SELECT ip_protocol, dst_port, count(*), # FROM flows GROUP BY 1,2",
        ),
    ] {
        let sql =
            |text: &str| format!("SELECT * FROM ({}) ORDER BY 1, 2, 3, 4, 5", text.replace('#', measures));
        let print = |batches: Vec<RecordBatch>| {
            let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
            let cells = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
            let mut lines: Vec<_> =
                text.lines().skip(3).filter(|line| line.starts_with('|')).map(cells).collect();
            lines.sort();
            lines
        };
        let (left, right) =
            (print(rows(&context, &sql(rollup)).await), print(rows(&context, &sql(raw)).await));
        assert!(!left.is_empty());
        let differs = left.iter().zip(&right).find(|(left, right)| left != right);
        assert_eq!(differs, None, "{rollup}");
        assert_eq!(left.len(), right.len(), "{rollup}");
    }
}

#[tokio::test]
async fn many_talkers_leave_a_rest_and_exact_totals() {
    let mut random = Random(4);
    let batch = flows(&mut random, 0, 60_000);
    let computed =
        RollupFamily::Volume.compute(std::slice::from_ref(&batch), &AggregateConfig::default()).unwrap();
    let place = RollupFamily::Volume.rollups().position(|rollup| rollup.name() == "top_talkers_parts");
    let parts = &computed[place.unwrap()];
    let others = parts.column_by_name("other").unwrap().as_boolean();
    assert!(others.true_count() > 0, "nothing was cut off: this shows nothing");
    let dimension = parts.column_by_name("dimension").unwrap().as_string::<i32>();
    let bytes = parts.column_by_name("bytes").unwrap().as_primitive::<Int64Type>();
    let total: u64 =
        batch.column_by_name("bytes").unwrap().as_primitive::<UInt64Type>().values().iter().sum();
    for wanted in ["src_addr", "conversation", "src_as"] {
        let sum: i64 = (0..parts.num_rows())
            .filter(|row| dimension.value(*row) == wanted)
            .map(|row| bytes.value(row))
            .sum();
        assert_eq!(sum, total.cast_signed(), "{wanted}");
    }
}

#[tokio::test]
async fn what_cannot_be_opened_is_kept_and_passed_over_and_a_newer_schema_stops() {
    let mut log = TestLog::random(2, 10);
    let mut messages: Vec<_> = log.messages.iter().cloned().collect();
    let last = messages.iter().map(|message| message.offset).max().unwrap();
    let mut broken = messages[0].clone();
    (broken.partition, broken.offset) = (1, last + 5);
    if let Payload::Batch { body, .. } = &mut broken.payload {
        *body = body.slice(..body.len() / 2);
    }
    let foreign = Payload::Foreign { reason: "no header".into(), bytes: "hello".into() };
    messages.push(broken);
    messages.push(LogMessage { partition: 1, offset: last + 6, payload: foreign });
    messages.push(LogMessage { partition: 1, offset: last + 20, payload: Payload::Gap { from: last + 7 } });
    log.messages = Arc::new(messages);
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    ingest_all(&store, &log).await;
    assert_exact(&store, &TestLog { messages: Arc::new(log.messages[..10].to_vec()), ..log.clone() }).await;
    assert_eq!((store.metrics.foreign.get(), store.metrics.gap_offsets.get()), (2, 14));
    let gaps = "SELECT count(*), sum(last_offset - first_offset + 1), min(first_offset), max(last_offset) FROM log_gaps \
                WHERE log_partition = 1 AND noticed_at <= now()";
    let of_last = last as i64;
    assert_eq!(numbers(&session(&store).await, gaps).await, [3, 16, of_last + 5, of_last + 20]);
    let kept = store.quarantine.join(format!("1-{}.message", last + 6));
    assert_eq!(std::fs::read(kept).unwrap(), b"hello");
    std::fs::remove_dir_all(&store.quarantine).unwrap();

    let mut newer = log.messages[0].clone();
    newer.offset = last + 30;
    if let Payload::Batch { envelope, .. } = &mut newer.payload {
        envelope.schema_version += 1;
    }
    log.messages = Arc::new(vec![newer]);
    let store = open(Arc::new(InMemory::new())).await.unwrap();
    let error = Ingest::new(store, log.opener(PAUSE)).run(CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, IngestError::Newer { .. }) && error.to_string().contains("upgrade"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_fails_for_a_while_costs_nothing() {
    let log = TestLog::random(13, 40);
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    drop(open(Arc::clone(&inner)).await.unwrap());
    let mortal = Mortal::new(inner, 12, false);
    let store = open(Arc::clone(&mortal) as Arc<dyn ObjectStore>).await.unwrap();
    let stop = CancellationToken::new();
    let ingest = tokio::spawn(Ingest::new(Arc::clone(&store), log.opener(PAUSE)).run(stop.clone()));
    while store.info().problem.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // not ready, but every row that was taken answers
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.info().seen != log.end() {
        assert!(Instant::now() < deadline, "{:?}", store.info());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let hot: u64 = store.info().tables[0].hot_rows + store.info().tables[0].committed_rows;
    assert_eq!(hot, log.rows);
    mortal.revive();
    let deadline = Instant::now() + Duration::from_secs(20);
    // the loop hears of a commit a moment after it is done
    while store.info().committed != log.end() || store.info().problem.is_some() {
        assert!(Instant::now() < deadline, "{:?}", store.info());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_exact(&store, &log).await;
    stop.cancel();
    ingest.await.unwrap().unwrap();
}

#[tokio::test]
async fn vacuum_spares_the_files_of_a_commit_that_an_outage_holds_up() {
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    drop(open(Arc::clone(&inner)).await.unwrap());
    // the data file is the first write, the commit that names it the second
    let mortal = Mortal::new(inner, 2, false);
    let store = open(Arc::clone(&mortal) as Arc<dyn ObjectStore>).await.unwrap();
    let flows_table = table(&store, "flows");
    let batch = flows(&mut Random(5), 0, 50);
    let mut upto = Positions::new();
    take(&store, &[message(0, 0, Table::Flows, &batch)], &mut upto);
    let options = FileOptions { zstd_level: 1, row_group_rows: 1_024 };
    assert!(flows_table.commit(&upto, options).await.is_err());
    mortal.revive();
    let far = delta::now_ms() + 7_200_000;
    Maintenance::new(Arc::clone(&store)).vacuum(flows_table, far).await.unwrap();
    assert_eq!(store.metrics.vacuumed_files.get(), 0);
    store.commit(&upto, &Origins::new()).await.unwrap();
    let context = session(&store).await;
    assert_eq!(
        numbers(&context, "SELECT count(*), count(bytes) FROM flows WHERE bytes >= 0").await,
        [50, 50]
    );
}
