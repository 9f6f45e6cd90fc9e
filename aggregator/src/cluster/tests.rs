//! Three nodes on one store answer as one node does: rows that only the node that is asked has in memory included.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::worker::only_reads;
use super::*;
use crate::catalog::{Catalog, views};
use crate::ingest::Ingest;
use crate::sql::{Answer, Door, Engine, QueryError, SqlConfig};
use crate::store::testing::{TestLog, config, open};
use crate::store::{Store, StoreConfig};

/// A node, which is gone when it is dropped.
struct Node {
    engine: Arc<Engine>,
    metrics: Arc<ClusterMetrics>,
    stop: CancellationToken,
}

async fn engine(store: &Arc<Store>) -> Arc<Engine> {
    let catalog = Catalog::new(Arc::clone(store));
    let sql = SqlConfig { threads: 2, ..SqlConfig::default() };
    let engine =
        Engine::new(sql, catalog.tables(), views(), Default::default(), None, Arc::default()).await.unwrap();
    catalog.register(engine.runtime_env());
    engine
}

async fn node(store: &Arc<Store>, secret: &str) -> Node {
    let engine = engine(store).await;
    let (metrics, stop) = (Arc::new(ClusterMetrics::default()), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = ClusterConfig { secret: secret.to_owned(), node_bytes: 1, ..ClusterConfig::default() };
    engine.join(config, listener, store.objects(), Arc::clone(&metrics), stop.clone()).unwrap();
    Node { engine, metrics, stop }
}

impl Node {
    async fn until_nodes(&self, wanted: i64) {
        for _ in 0..300 {
            if self.metrics.nodes.get() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} nodes, not {wanted}", self.metrics.nodes.get());
    }
}

/// The rows as text, in order; numbers as far as a sum in another order leaves them.
async fn answer(engine: &Arc<Engine>, sql: &str) -> Result<Vec<String>, QueryError> {
    let rows = match engine.session(Door::Http).execute(sql, &CancellationToken::new()).await? {
        Answer::Rows(rows) => rows,
        Answer::Done(done) => panic!("{done:?}"),
    };
    let batches: Vec<RecordBatch> = rows.try_collect().await?;
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect();
        lines.extend((0..batch.num_rows()).map(|row| {
            let values = columns.iter().map(|column| {
                let text = column.value(row).to_string();
                match text.parse::<f64>() {
                    Ok(number) if text.contains('.') => format!("{number:.9e}"),
                    _ => text,
                }
            });
            values.collect::<Vec<_>>().join("|")
        }));
    }
    lines.sort();
    Ok(lines)
}

/// A store of some files, and one on it that has more rows in memory.
async fn stores(seed: u64) -> (Arc<dyn ObjectStore>, Arc<Store>, DropGuard) {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let log = TestLog::random(seed, 240);
    let first = TestLog { messages: Arc::new(log.messages[..200].to_vec()), ..TestLog::default() };
    let store = open(Arc::clone(&objects)).await.unwrap();
    let stop = CancellationToken::new();
    let ingest = tokio::spawn(Ingest::new(Arc::clone(&store), first.opener(PAUSE)).run(stop.clone()));
    while store.info().committed != first.end() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    ingest.await.unwrap().unwrap();
    let config = StoreConfig { commit_interval_ms: 3_600_000, ..config() };
    let quarantine = std::env::temp_dir();
    let parts = (config, Default::default());
    let store = Store::with_objects(parts, Arc::clone(&objects), None, quarantine, "test").await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(Ingest::new(Arc::clone(&store), log.opener(PAUSE)).run(stop.clone()));
    while store.info().seen != log.end() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (objects, store, stop.drop_guard())
}

const PAUSE: Duration = Duration::from_micros(100);

/// Questions, and whether they run on several nodes.
const QUESTIONS: &[(&str, bool)] = &[
    ("SELECT count(*), sum(bytes), sum(packets), min(start_time), max(end_time) FROM flows", true),
    (
        "SELECT src_addr, sum(bytes) AS b, count(*) FROM flows GROUP BY src_addr ORDER BY b DESC, src_addr LIMIT 20",
        true,
    ),
    ("SELECT src_addr, dst_addr, dst_port, ip_protocol, sum(packets) FROM flows GROUP BY 1, 2, 3, 4", true),
    ("SELECT count(DISTINCT src_addr), count(DISTINCT dst_port) FROM flows", true),
    (
        "SELECT dimension, hll_count(sketch) > 0, hll_error(hll_merge(sketch)) > 0 FROM distinct_1h GROUP BY dimension",
        true,
    ),
    ("SELECT approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY bytes) IS NOT NULL FROM flows", true),
    ("SELECT * FROM flows WHERE src_addr <<= '10.0.0.0/24' AND bytes > 90000", true),
    (
        "SELECT dst_port, avg(bytes) FROM flows WHERE ip_protocol = 6 GROUP BY dst_port HAVING count(*) > 3",
        true,
    ),
    (
        "SELECT f.src_addr, count(*) FROM flows f JOIN (SELECT dst_port, sum(bytes) AS b FROM flows GROUP BY dst_port \
      ORDER BY b DESC, dst_port LIMIT 5) t ON f.dst_port = t.dst_port GROUP BY f.src_addr",
        true,
    ),
    (
        "SELECT count(*) FROM flows a JOIN flows b ON a.fragment_id = b.fragment_id AND a.bytes = b.bytes",
        true,
    ),
    (
        "SELECT a.exporter_addr, b.n FROM (SELECT DISTINCT exporter_addr FROM flows) a \
      LEFT JOIN (SELECT exporter_addr, count(*) AS n FROM flows WHERE in_if = 1 GROUP BY 1) b USING (exporter_addr)",
        true,
    ),
    (
        "SELECT count(*) FROM flows f WHERE NOT EXISTS (SELECT 1 FROM flows_1m r WHERE r.in_if = f.in_if AND r.bytes > 1000000)",
        true,
    ),
    (
        "SELECT fragment_id, rank() OVER (PARTITION BY dst_port ORDER BY bytes DESC, fragment_id) FROM flows",
        true,
    ),
    ("SELECT sum(bytes) OVER (ORDER BY fragment_id) AS s FROM flows ORDER BY s LIMIT 10", true),
    ("SELECT count(*) FROM (SELECT * FROM flows ORDER BY bytes DESC LIMIT 7)", false),
    ("SELECT fragment_id, bytes FROM flows ORDER BY bytes DESC, fragment_id LIMIT 7", true),
    ("SELECT count(*) FROM (SELECT * FROM flows LIMIT 7)", false),
    ("SELECT count(*) FROM (SELECT src_addr FROM flows UNION SELECT dst_addr FROM flows)", true),
    (
        "SELECT sum(n) FROM (SELECT count(*) AS n FROM flows UNION ALL SELECT 5 UNION ALL SELECT count(*) FROM nat_events)",
        false,
    ),
    ("SELECT (SELECT max(bytes) FROM flows) - min(bytes) FROM flows", true),
    (
        "WITH t AS (SELECT dst_addr, sum(bytes) AS b FROM flows GROUP BY 1) SELECT count(*) FROM t WHERE b > (SELECT avg(b) FROM t)",
        true,
    ),
    ("SELECT * FROM flows_1m", true),
    ("SELECT * FROM flows_1h", true),
    // the order of its windows is not known in another stage
    ("SELECT * FROM top_talkers_1h WHERE dimension = 'src_addr'", false),
    ("SELECT * FROM top_talkers_1h", true),
    ("SELECT * FROM qos_1m", true),
    ("SELECT * FROM trust_1h", true),
    ("SELECT * FROM exporters", false),
    // an estimate depends on the order in which sketches are put together, within its error
    ("SELECT dimension, addr, flows FROM distinct_1h", true),
    ("SELECT date_trunc('hour', start_time) AS h, dscp, sum(est_bytes) FROM flows GROUP BY 1, 2", true),
    ("SELECT src_mac::text, src_addr::text, dst_addr::text, tos >> 2 FROM flows", true),
    ("SELECT 1 + 1", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_answer_as_one() {
    // why a query fell back is in the log
    let _ = tracing_subscriber::fmt().with_test_writer().with_max_level(tracing::Level::WARN).try_init();
    let (objects, store, _hot) = stores(7).await;
    let alone = engine(&store).await;
    let a = node(&store, "a secret").await;
    let others = [
        node(&open(Arc::clone(&objects)).await.unwrap(), "a secret").await,
        node(&open(Arc::clone(&objects)).await.unwrap(), "a secret").await,
    ];
    a.until_nodes(3).await;
    let mut wrong = Vec::new();
    for (question, is_spread) in QUESTIONS {
        let (before, fell_back) = (a.metrics.spread.get(), a.metrics.fell_back.get());
        let (expected, found) = (answer(&alone, question).await, answer(&a.engine, question).await);
        let or_error = |answer: Result<_, QueryError>| answer.unwrap_or_else(|error| vec![error.to_string()]);
        wrong.extend(expected.as_ref().err().map(|error| format!("{question}: {error}")));
        let (expected, found) = (or_error(expected), or_error(found));
        if let Some(at) = (0..expected.len().max(found.len())).find(|at| expected.get(*at) != found.get(*at))
        {
            let (rows, of) = (found.len(), expected.len());
            wrong.push(format!(
                "{question}: {rows} rows of {of}\n  {:?}\n  {:?}",
                found.get(at),
                expected.get(at)
            ));
        }
        if a.metrics.fell_back.get() > fell_back {
            wrong.push(format!("{question}: fell back to one node"));
            // until the others are trusted again
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        if (a.metrics.spread.get() > before) != *is_spread {
            wrong.push(format!("{question}: spread, or not, against what was expected"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let shown =
        answer(&a.engine, "EXPLAIN SELECT src_addr, sum(bytes) FROM flows GROUP BY src_addr").await.unwrap();
    assert!(shown[0].contains("tasks=3") && shown[0].contains("NetworkShuffleExec"), "{shown:?}");
    let analyzed =
        answer(&a.engine, "EXPLAIN ANALYZE SELECT src_addr, sum(bytes) FROM flows GROUP BY src_addr");
    let analyzed = analyzed.await.unwrap();
    assert!(analyzed.iter().any(|line| line.contains("output_rows")), "{analyzed:?}");

    // the others go without a word: whoever is asked meanwhile answers alone
    others.iter().for_each(|node| node.stop.cancel());
    drop(others);
    let question = "SELECT dst_addr, sum(bytes) FROM flows GROUP BY dst_addr";
    for _ in 0..20 {
        assert_eq!(answer(&a.engine, question).await.unwrap(), answer(&alone, question).await.unwrap());
    }
    a.until_nodes(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_secret_is_none_of_ours() {
    let (objects, store, _hot) = stores(8).await;
    let a = node(&store, "a secret").await;
    let stranger = node(&open(objects).await.unwrap(), "another one").await;
    for _ in 0..100 {
        if stranger.metrics.refused.get() > 0 && a.metrics.refused.get() > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(stranger.metrics.refused.get() > 0 && a.metrics.refused.get() > 0);
    assert_eq!((a.metrics.nodes.get(), stranger.metrics.nodes.get()), (1, 1));
}

#[tokio::test]
async fn a_node_does_nothing_but_read_the_store() {
    let context = SessionContext::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let write = format!("COPY (SELECT 1 AS a) TO '{}' STORED AS PARQUET", path.display());
    let plan = context.sql(&write).await.unwrap().create_physical_plan().await.unwrap();
    assert!(only_reads(plan).unwrap_err().to_string().contains("not done for another node"));
    context.sql(&write).await.unwrap().collect().await.unwrap();
    context.register_parquet("t", path.to_str().unwrap(), Default::default()).await.unwrap();
    let plan = context.sql("SELECT * FROM t").await.unwrap().create_physical_plan().await.unwrap();
    assert!(only_reads(plan).unwrap_err().to_string().contains("file:///"));
    let plan = context.sql("SELECT 1").await.unwrap().create_physical_plan().await.unwrap();
    only_reads(plan).unwrap();
}

#[test]
fn a_door_to_the_network_has_a_secret_and_an_address() {
    let problems = |listen: &str, secret: &str, advertise: Option<&str>| {
        let advertise = advertise.map(|address| address.parse().unwrap());
        let config = ClusterConfig { advertise, secret: secret.to_owned(), ..ClusterConfig::default() };
        config.problems(Some(listen.parse().unwrap())).join("; ")
    };
    assert_eq!(problems("127.0.0.1:5436", "", None), "");
    assert_eq!(problems("10.0.0.1:5436", "0123456789abcdef", None), "");
    assert!(problems("10.0.0.1:5436", "short", None).contains("at least 16"));
    assert!(problems("0.0.0.0:5436", "0123456789abcdef", None).contains("advertise"));
    assert_eq!(problems("0.0.0.0:5436", "0123456789abcdef", Some("10.0.0.1:5436")), "");
    assert!(problems("127.0.0.1:5436", "with space", None).contains("ASCII"));
}
