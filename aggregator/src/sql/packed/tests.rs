//! The same answers as DataFusion's own operators give.

use datafusion::arrow::array::{
    BooleanArray, FixedSizeBinaryArray, Float64Array, Int16Array, Int32Array, Int64Array,
    TimestampMicrosecondArray,
};
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::*;
use crate::store::testing::Random;

const SMALL: Sizes = Sizes { groups: 64, bypass_rows: 500 };

/// Three partitions of rows with NULLs in every column.
fn table(seed: u64, rows: usize, hosts: u64) -> Arc<MemTable> {
    let mut random = Random(seed);
    let mut batch = || {
        let mut maybe = |bound: u64| -> Vec<Option<u64>> {
            (0..rows).map(|_| (random.below(10) > 0).then(|| random.below(bound))).collect()
        };
        let address = |value: u64, width: usize| {
            let mut bytes = vec![0_u8; width];
            bytes[width - 4..].copy_from_slice(&(value as u32).to_be_bytes());
            bytes
        };
        let bytes_of = |values: Vec<Option<u64>>, width: usize| -> ArrayRef {
            let values = values.into_iter().map(|value| value.map(|value| address(value, width)));
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, width as i32).unwrap())
        };
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("src", bytes_of(maybe(hosts), 16)),
            ("dst", bytes_of(maybe(3), 16)),
            ("mac", bytes_of(maybe(4), 6)),
            ("port", Arc::new(Int32Array::from_iter(maybe(5).into_iter().map(|v| v.map(|v| v as i32 - 2))))),
            ("proto", Arc::new(Int16Array::from_iter(maybe(3).into_iter().map(|v| v.map(|v| v as i16 - 1))))),
            ("flag", Arc::new(BooleanArray::from_iter(maybe(2).into_iter().map(|v| v.map(|v| v == 1))))),
            ("long", Arc::new(Int64Array::from_iter(maybe(4).into_iter().map(|v| v.map(|v| v as i64 - 2))))),
            (
                "at",
                Arc::new(
                    TimestampMicrosecondArray::from_iter(maybe(6).into_iter().map(|v| v.map(|v| v as i64)))
                        .with_timezone("UTC"),
                ),
            ),
            ("bytes", Arc::new(Int64Array::from_iter(maybe(1000).into_iter().map(|v| v.map(|v| v as i64))))),
            ("est", Arc::new(Float64Array::from_iter(maybe(1000).into_iter().map(|v| v.map(|v| v as f64))))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let batches: Vec<_> = (0..3).map(|_| vec![batch(), batch()]).collect();
    Arc::new(MemTable::try_new(batches[0][0].schema(), batches).unwrap())
}

fn context(table: &Arc<MemTable>, sizes: Option<Sizes>, memory: usize) -> SessionContext {
    context_on(table, sizes, Arc::new(FairSpillPool::new(memory)))
}

fn context_on(table: &Arc<MemTable>, sizes: Option<Sizes>, pool: Arc<dyn MemoryPool>) -> SessionContext {
    let environment = RuntimeEnvBuilder::new().with_memory_pool(pool);
    let mut builder = SessionStateBuilder::new()
        .with_config(SessionConfig::new().with_target_partitions(3).with_batch_size(700))
        .with_runtime_env(environment.build_arc().unwrap())
        .with_default_features();
    if let Some(sizes) = sizes {
        builder = builder.with_physical_optimizer_rule(Arc::new(PackedGrouping { sizes, of_stage: false }));
    }
    let context = SessionContext::new_with_state(builder.build());
    context.register_table("t", Arc::clone(table) as _).unwrap();
    context
}

/// The lines of the answer, sorted.
async fn lines(context: &SessionContext, sql: &str) -> Vec<String> {
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let text = datafusion::arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
    let mut lines: Vec<String> =
        text.lines().filter(|line| line.starts_with("| ")).map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn is_packed(context: &SessionContext, sql: &str) -> bool {
    lines(context, &format!("EXPLAIN {sql}")).await.iter().any(|line| line.contains("PackedAggregateExec"))
}

const QUERIES: [&str; 9] = [
    "SELECT src, sum(bytes), count(*), count(bytes), sum(est) FROM t GROUP BY src",
    "SELECT src, dst, port, proto, sum(bytes) FROM t GROUP BY src, dst, port, proto",
    "SELECT mac, flag, long, at, min(bytes), max(bytes), min(at), max(at) FROM t GROUP BY mac, flag, long, at",
    "SELECT flag, count(*) FROM t WHERE bytes > 500 GROUP BY flag",
    "SELECT port + 1, sum(bytes * 2) FROM t GROUP BY port + 1",
    "SELECT src, count(*) FROM t GROUP BY src HAVING count(*) > 2",
    "SELECT DISTINCT src, port FROM t",
    "SELECT count(*), sum(n) FROM (SELECT src, count(*) AS n FROM t GROUP BY src)",
    "SELECT port, count(DISTINCT src) FROM t GROUP BY port",
];

#[tokio::test]
async fn every_grouping_gives_what_datafusion_gives() {
    for seed in 0..12 {
        let table = table(seed, 1_500, if seed % 2 == 0 { 40 } else { 100_000 });
        // small tables are put aside, larger ones grow
        let ours = [SMALL, Sizes::default()].map(|sizes| context(&table, Some(sizes), 1 << 30));
        let theirs = context(&table, None, 1 << 30);
        for sql in QUERIES {
            let expected = lines(&theirs, sql).await;
            for ours in &ours {
                assert_eq!(lines(ours, sql).await, expected, "seed {seed}: {sql}");
                assert!(is_packed(ours, sql).await, "{sql}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_memory_does_not_hold_goes_to_disk() {
    let table = table(7, 60_000, 1 << 31);
    let sql = "SELECT count(*), sum(c), sum(b) FROM (SELECT src, dst, port, at, long, count(*) AS c, sum(bytes) AS b \
               FROM t GROUP BY src, dst, port, at, long)";
    let theirs = context(&table, None, 1 << 30);
    for sizes in [SMALL, Sizes::default()] {
        let ours = context(&table, Some(sizes), 12 << 20);
        assert_eq!(lines(&ours, sql).await, lines(&theirs, sql).await);
        assert!(is_packed(&ours, sql).await);
    }
    // each of many has less with every other that comes
    let (ours, expected) = (context(&table, Some(Sizes::default()), 32 << 20), lines(&theirs, sql).await);
    for found in futures::future::join_all((0..6).map(|_| lines(&ours, sql))).await {
        assert_eq!(found, expected);
    }
    // and where not even the first table has room, it says so
    let small = context(&table, Some(SMALL), 1 << 16);
    assert!(
        small
            .sql(sql)
            .await
            .unwrap()
            .collect()
            .await
            .unwrap_err()
            .to_string()
            .contains("Resources exhausted")
    );
}

/// Nodes keep the plans of others for a while, and each spilling consumer takes of what the next may have.
#[tokio::test]
async fn few_groups_take_little_memory_and_only_while_they_are_read() {
    let table = table(5, 1_500, 40);
    let pool = Arc::new(TrackConsumersPool::new(FairSpillPool::new(8 << 20), 3.try_into().unwrap()));
    let context = context_on(&table, Some(Sizes::default()), Arc::clone(&pool) as _);
    let held = || pool.metrics().into_iter().map(|consumer| consumer.name).collect::<Vec<_>>();
    let sql = "SELECT src, port, sum(bytes), sum(est), count(*), min(at), max(at) FROM t GROUP BY src, port";
    let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    let mut rows = Vec::new();
    for _ in 0..2 {
        let batches =
            datafusion::physical_plan::collect(Arc::clone(&plan), context.task_ctx()).await.unwrap();
        rows.push(batches.iter().map(RecordBatch::num_rows).sum::<usize>());
        assert!(held().is_empty(), "{:?}", held());
    }
    assert!(rows[0] > 100 && rows[0] == rows[1], "a plan that runs again: {rows:?}");
    // nor while nobody reads any more
    let streams: Vec<_> = (0..plan.output_partitioning().partition_count())
        .map(|partition| plan.execute(partition, context.task_ctx()).unwrap())
        .collect();
    drop(streams);
    for _ in 0..100 {
        if held().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{:?}", held());
}

#[tokio::test]
async fn a_join_that_relies_on_the_partitions_of_a_grouping_keeps_it() {
    let table = table(3, 1_000, 50);
    let sql = "SELECT a.src, n, m FROM (SELECT src, count(*) AS n FROM t GROUP BY src) a \
               JOIN (SELECT dst, sum(bytes) AS m FROM t GROUP BY dst) b ON a.src = b.dst";
    let (ours, theirs) = (context(&table, Some(SMALL), 1 << 30), context(&table, None, 1 << 30));
    assert_eq!(lines(&ours, sql).await, lines(&theirs, sql).await);
    for sql in [
        "SELECT p95, count(*) FROM (SELECT proto, approx_percentile_cont(bytes, 0.95) AS p95 FROM t GROUP BY proto) GROUP BY p95",
        "SELECT src, avg(bytes) FROM t GROUP BY src",
    ] {
        assert!(!is_packed(&ours, sql).await, "{sql}");
        assert_eq!(lines(&ours, sql).await, lines(&theirs, sql).await, "{sql}");
    }
}
