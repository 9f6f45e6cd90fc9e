//! What queries cost: counted once a query.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::engine::Door;

/// The door and what came of the query: `ok` or the error's kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct QueryLabels {
    door: &'static str,
    outcome: &'static str,
}

/// The door alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DoorLabels {
    door: &'static str,
}

/// The metrics of SQL.
#[derive(Debug)]
pub struct SqlMetrics {
    queries: Family<QueryLabels, Counter>,
    seconds: Family<DoorLabels, Histogram, fn() -> Histogram>,
    rows: Family<DoorLabels, Counter>,
    active: Gauge,
    pub(super) queued: Gauge,
}

fn histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl Default for SqlMetrics {
    fn default() -> Self {
        SqlMetrics {
            queries: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            rows: Family::default(),
            active: Gauge::default(),
            queued: Gauge::default(),
        }
    }
}

impl SqlMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_sql_queries",
            "Queries by door and outcome (ok, or the kind of error; canceled is one of them)",
            self.queries.clone(),
        );
        registry.register_with_unit(
            "weir_sql_query_duration",
            "Time from a query's arrival to the end of its answer",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("weir_sql_rows", "Rows in answers", self.rows.clone());
        registry.register("weir_sql_active_queries", "Queries that run now", self.active.clone());
        registry.register("weir_sql_queued_queries", "Queries that wait for their turn", self.queued.clone());
    }
}

/// Counts one query when it ends, however it ends. The last clone that is dropped without a word counts it as canceled.
#[derive(Debug, Clone)]
pub(super) struct Recorder(Arc<Recording>);

#[derive(Debug)]
struct Recording {
    metrics: Arc<SqlMetrics>,
    door: Door,
    started: Instant,
    done: AtomicBool,
}

impl Recorder {
    pub(super) fn new(metrics: Arc<SqlMetrics>, door: Door) -> Self {
        metrics.active.inc();
        Recorder(Arc::new(Recording { metrics, door, started: Instant::now(), done: AtomicBool::new(false) }))
    }

    /// For a query inside a query: counts nothing.
    pub(super) fn silent(metrics: Arc<SqlMetrics>, door: Door) -> Self {
        Recorder(Arc::new(Recording { metrics, door, started: Instant::now(), done: AtomicBool::new(true) }))
    }

    pub(super) fn share(&self) -> Self {
        self.clone()
    }

    pub(super) fn rows(&self, rows: u64) {
        self.0.metrics.rows.get_or_create(&DoorLabels { door: self.0.door.name() }).inc_by(rows);
    }

    pub(super) fn finish(&self, outcome: &'static str) {
        self.0.finish(outcome);
    }
}

impl Recording {
    fn finish(&self, outcome: &'static str) {
        if self.done.swap(true, Ordering::Relaxed) {
            return;
        }
        let door = self.door.name();
        self.metrics.active.dec();
        self.metrics.queries.get_or_create(&QueryLabels { door, outcome }).inc();
        self.metrics
            .seconds
            .get_or_create(&DoorLabels { door })
            .observe(self.started.elapsed().as_secs_f64());
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.finish("canceled");
    }
}
