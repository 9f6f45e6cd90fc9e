//! What the store counts: everything under `weir_store_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::StoreInfo;
use super::table::{Committed, StoreTable};

/// The table that a number is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TableLabel {
    pub table: &'static str,
}

/// The store's counters. Cloning shares them.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    pub rows: Family<TableLabel, Counter>,
    pub commits: Family<TableLabel, Counter>,
    pub written_bytes: Family<TableLabel, Counter>,
    pub commit_seconds: Histogram,
    pub commit_failures: Counter,
    pub fenced: Counter,
    pub messages: Counter,
    pub taken_rows: Family<TableLabel, Counter>,
    pub given_back: Family<TableLabel, Counter>,
    pub rollup_rows: Family<TableLabel, Counter>,
    pub foreign: Counter,
    pub quarantined_bytes: Counter,
    pub gaps: Counter,
    pub gap_offsets: Counter,
    pub repeated_messages: Counter,
    pub repeated_rows: Counter,
    pub compactions: Family<TableLabel, Counter>,
    pub compacted_files: Family<TableLabel, Counter>,
    pub expired_files: Family<TableLabel, Counter>,
    pub vacuumed_files: Counter,
    pub maintenance_failures: Counter,
    files: Family<TableLabel, Gauge>,
    bytes: Family<TableLabel, Gauge>,
    stored_rows: Family<TableLabel, Gauge>,
    hot_rows: Family<TableLabel, Gauge>,
    hot_bytes: Family<TableLabel, Gauge>,
    partitions: Gauge,
    lag_offsets: Gauge,
    lag_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    ready: Gauge,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        StoreMetrics {
            rows: Family::default(),
            commits: Family::default(),
            written_bytes: Family::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 12)),
            commit_failures: Counter::default(),
            fenced: Counter::default(),
            messages: Counter::default(),
            taken_rows: Family::default(),
            given_back: Family::default(),
            rollup_rows: Family::default(),
            foreign: Counter::default(),
            quarantined_bytes: Counter::default(),
            gaps: Counter::default(),
            gap_offsets: Counter::default(),
            repeated_messages: Counter::default(),
            repeated_rows: Counter::default(),
            compactions: Family::default(),
            compacted_files: Family::default(),
            expired_files: Family::default(),
            vacuumed_files: Counter::default(),
            maintenance_failures: Counter::default(),
            files: Family::default(),
            bytes: Family::default(),
            stored_rows: Family::default(),
            hot_rows: Family::default(),
            hot_bytes: Family::default(),
            partitions: Gauge::default(),
            lag_offsets: Gauge::default(),
            lag_seconds: Gauge::default(),
            ready: Gauge::default(),
        }
    }
}

impl StoreMetrics {
    /// Adds all of them to a registry whose prefix is `weir`.
    pub fn register(&self, registry: &mut Registry) {
        let store = registry.sub_registry_with_prefix("weir_store");
        store.register("rows_committed", "Rows committed, by table", self.rows.clone());
        store.register("commits", "Commits, by table", self.commits.clone());
        store.register(
            "written_bytes",
            "Bytes of the data files committed, by table",
            self.written_bytes.clone(),
        );
        store.register("commit_seconds", "Time of a commit of all tables", self.commit_seconds.clone());
        store.register(
            "commit_failures",
            "Commits that failed and are tried again",
            self.commit_failures.clone(),
        );
        store.register("fenced", "Times that another writer was found", self.fenced.clone());
        store.register("messages", "Messages taken from the log", self.messages.clone());
        store.register("rows_taken", "Rows taken from the log, by table", self.taken_rows.clone());
        store.register(
            "rows_given_back",
            "Rows forgotten before they were committed, to be read again (another writer was found), by table",
            self.given_back.clone(),
        );
        store.register(
            "rollup_rows_committed",
            "Partial rows committed, by rollup",
            self.rollup_rows.clone(),
        );
        store.register("foreign_messages", "Messages that could not be opened", self.foreign.clone());
        store.register(
            "quarantined_bytes",
            "Bytes of messages put in quarantine",
            self.quarantined_bytes.clone(),
        );
        store.register(
            "gaps",
            "Times that the log had lost messages before they were read",
            self.gaps.clone(),
        );
        store.register("gap_offsets", "Offsets lost in these gaps", self.gap_offsets.clone());
        store.register(
            "repeated_messages",
            "Messages that stood in the log again, sent twice by a collector; counted once",
            self.repeated_messages.clone(),
        );
        store.register("repeated_rows", "Their rows", self.repeated_rows.clone());
        store.register("compactions", "Compactions, by table", self.compactions.clone());
        store.register(
            "compacted_files",
            "Files merged by compactions, by table",
            self.compacted_files.clone(),
        );
        store.register("expired_files", "Files removed by retention, by table", self.expired_files.clone());
        store.register("vacuumed_files", "Unreferenced files deleted", self.vacuumed_files.clone());
        store.register(
            "maintenance_failures",
            "Rounds of maintenance that failed and are tried again",
            self.maintenance_failures.clone(),
        );
        store.register("files", "Data files, by table", self.files.clone());
        store.register("bytes", "Bytes of the data files, by table", self.bytes.clone());
        store.register("rows", "Rows in the data files, by table", self.stored_rows.clone());
        store.register("hot_rows", "Rows served from memory, by table", self.hot_rows.clone());
        store.register("hot_bytes", "Memory of these rows, by table", self.hot_bytes.clone());
        store.register(
            "partitions",
            "Partitions of the log that this aggregator reads",
            self.partitions.clone(),
        );
        store.register(
            "lag_offsets",
            "Offsets in the log that queries do not see yet",
            self.lag_offsets.clone(),
        );
        store.register("lag_seconds", "Time since queries saw the whole log", self.lag_seconds.clone());
        store.register("ready", "1 where commits succeed", self.ready.clone());
    }

    /// Sets the gauges; called before a scrape.
    pub fn update(&self, info: &StoreInfo) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for table in &info.tables {
            let label = TableLabel { table: table.name };
            if !table.is_rollup {
                self.hot_rows.get_or_create(&label).set(gauge(table.hot_rows));
                self.hot_bytes.get_or_create(&label).set(gauge(table.hot_bytes));
            }
            self.files.get_or_create(&label).set(gauge(table.files));
            self.bytes.get_or_create(&label).set(gauge(table.bytes));
            self.stored_rows.get_or_create(&label).set(gauge(table.committed_rows));
        }
        let behind = info
            .end
            .iter()
            .map(|(partition, end)| end.saturating_sub(info.seen.get(partition).copied().unwrap_or(0)));
        self.lag_offsets.set(gauge(behind.sum()));
        self.partitions.set(gauge(info.end.len() as u64));
        self.lag_seconds.set(info.lag_seconds.unwrap_or(f64::NAN));
        self.ready.set(i64::from(info.problem.is_none()));
    }

    pub(super) fn committed(&self, table: &StoreTable, committed: &Committed) {
        if committed.commits > 0 {
            let label = table.label();
            self.commits.get_or_create(&label).inc_by(committed.commits);
            let rows = if table.is_raw() { &self.rows } else { &self.rollup_rows };
            rows.get_or_create(&label).inc_by(committed.rows);
            self.written_bytes.get_or_create(&label).inc_by(committed.bytes);
        }
    }
}
