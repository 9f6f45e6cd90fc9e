//! The store: one Delta table each for the tables of the log and for the rollups, and the hot rows in front of them.
//!
//! * `objects`: the object store, made durable on local disk.
//! * `delta`, `checkpoint`: the log of a Delta table.
//! * `files`: batches as data files; `writer`, `columns`: as Parquet.
//! * `table`: a table, its snapshot and its commits.
//! * `maintenance`: compaction, retention, vacuum.
//!
//! Exactly once: a table's data and the offsets that it contains are committed together, so each table is exact by
//! itself. After all tables a last commit, to the ledger, says up to where all of them are; it spares a table without
//! rows a commit of its own, and gives the place from which the log is read after a restart.

mod checkpoint;
mod columns;
mod config;
#[cfg(test)]
mod day_tests;
mod delta;
mod files;
mod gaps;
mod maintenance;
#[cfg(test)]
mod measure;
mod metrics;
mod objects;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use datafusion::catalog::TableProvider;
use futures::future::{join_all, try_join_all};
use object_store::ObjectStore;
use parking_lot::RwLock;
use parquet::errors::ParquetError;

pub use config::StoreConfig;
pub use maintenance::Maintenance;
pub use metrics::{StoreMetrics, TableLabel};

pub(crate) use delta::{CommitError, DataFile};
pub(crate) use gaps::Gap;
pub(crate) use table::{Content, HotBatch, Snapshot, StoreTable};

use delta::DeltaLog;
use table::{Spec, at_least, moved_on, origin_transactions, origins_of, positions_of, transactions};
use writer::FileOptions;

use crate::provider::StoreProvider;
use crate::rollup::{AggregateConfig, Aggregates};
use crate::source::{Origins, Positions};

/// Under which URL the store's files are registered with DataFusion.
pub const OBJECT_STORE_URL: &str = "weir-store://files/";

/// Why the store cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The configuration is wrong: correct it and start again.
    #[error("{0}")]
    Config(String),
    /// The storage does not answer, or is full: try again later.
    #[error("the store's files cannot be written or read: {0}")]
    Objects(#[from] object_store::Error),
    /// Something in the store is not as weir wrote it: stop and look.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    #[error("the store cannot work on a batch: {0}")]
    Arrow(#[from] ArrowError),
    #[error("the store cannot work on a data file: {0}")]
    Parquet(#[from] ParquetError),
}

/// The store as it is now.
#[derive(Debug, Clone, Default)]
pub struct StoreInfo {
    /// One past the last offset that every table contains.
    pub committed: Positions,
    /// One past the last offset that queries see.
    pub seen: Positions,
    /// One past the newest offset of the log as last known.
    pub end: Positions,
    /// The newest `received_at` of the rows taken, by partition.
    pub newest: BTreeMap<u32, i64>,
    /// When the log was last looked at, µs.
    pub looked_at: Option<i64>,
    /// Tables: the raw ones and the rollups.
    pub tables: Vec<TableInfo>,
    /// Why the store cannot commit now; None where all is well.
    pub problem: Option<String>,
    /// Seconds since everything in the log was last seen (None before the first time).
    pub lag_seconds: Option<f64>,
}

/// A table of the store.
#[derive(Debug, Clone, Default)]
pub struct TableInfo {
    pub name: &'static str,
    pub version: u64,
    pub files: u64,
    pub bytes: u64,
    /// Of a rollup: partial rows.
    pub is_rollup: bool,
    pub committed_rows: u64,
    pub hot_rows: u64,
    pub hot_bytes: u64,
}

/// From where the log must be read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Start {
    pub(crate) positions: Positions,
    /// What was seen of spools before these positions.
    pub(crate) origins: Origins,
}

/// What the ingester tells about itself.
#[derive(Debug, Default)]
struct Progress {
    committed: Positions,
    seen: Positions,
    end: Positions,
    newest: BTreeMap<u32, i64>,
    looked_at: Option<i64>,
    problem: Option<String>,
    caught_up: Option<Instant>,
}

/// The ledger: a table without rows whose transactions say what all tables contain.
#[derive(Debug)]
struct Ledger {
    log: DeltaLog,
    owned: BTreeMap<u32, i64>,
}

/// All tables.
#[derive(Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    directory: Option<PathBuf>,
    quarantine: PathBuf,
    config: StoreConfig,
    apps: String,
    tables: Vec<Arc<StoreTable>>,
    ledger: tokio::sync::Mutex<Ledger>,
    progress: RwLock<Progress>,
    metrics: StoreMetrics,
}

impl Store {
    /// Opens the store of `config` (below `data_dir` unless it has a URL), creating what is missing. `log_id` names the
    /// log whose offsets the tables carry: another log's offsets never count.
    pub async fn open(
        config: StoreConfig,
        aggregate: AggregateConfig,
        data_dir: &Path,
        log_id: &str,
    ) -> Result<Arc<Store>, StoreError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(StoreError::Config(format!("[store] {}", problems.join("; "))));
        }
        let options: Vec<_> =
            config.options.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        let root = objects::open(&config.location(data_dir), &options)?;
        let quarantine = config.quarantine(data_dir);
        Store::with_objects((config, aggregate), root.objects, root.directory, quarantine, log_id).await
    }

    pub(crate) async fn with_objects(
        (config, aggregate): (StoreConfig, AggregateConfig),
        objects: Arc<dyn ObjectStore>,
        directory: Option<PathBuf>,
        quarantine: PathBuf,
        log_id: &str,
    ) -> Result<Arc<Store>, StoreError> {
        let apps = format!("weir/{log_id}/");
        let aggregates = Arc::new(Aggregates::new(aggregate));
        let metrics = StoreMetrics::default();
        let open = |spec| {
            StoreTable::open(spec, Arc::clone(&objects), apps.clone(), Arc::clone(&aggregates), &metrics)
        };
        let tables = try_join_all(Spec::all().into_iter().map(open)).await?;
        let ledger_schema = Schema::new(vec![
            Field::new("log_partition", DataType::Int64, true),
            Field::new("log_offset", DataType::Int64, true),
        ]);
        let log = DeltaLog::open(&objects, "_ledger", &ledger_schema, false).await?;
        let owned = positions_of(&log.state.txns, &apps);
        let store = Arc::new(Store {
            objects,
            directory,
            quarantine,
            config,
            apps,
            tables: tables.into_iter().map(Arc::new).collect(),
            ledger: tokio::sync::Mutex::new(Ledger { log, owned }),
            progress: RwLock::default(),
            metrics,
        });
        store.reload().await?;
        Ok(store)
    }

    pub fn config(&self) -> &StoreConfig {
        &self.config
    }

    pub fn metrics(&self) -> &StoreMetrics {
        &self.metrics
    }

    pub(crate) fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.objects)
    }

    /// Keeps a message that cannot be opened for those who want to know why, as long as there is room.
    pub(crate) fn keep_foreign(&self, partition: u32, offset: u64, reason: &str, bytes: &[u8]) {
        let kept = self.metrics.quarantined_bytes.get();
        if kept + bytes.len() as u64 > self.config.quarantine_bytes {
            return;
        }
        let path = self.quarantine.join(format!("{partition}-{offset}"));
        let write = || {
            std::fs::create_dir_all(&self.quarantine)?;
            std::fs::write(path.with_extension("reason"), reason)?;
            std::fs::write(path.with_extension("message"), bytes)
        };
        match write() {
            Ok(()) => {
                self.metrics.quarantined_bytes.inc_by(bytes.len() as u64);
            }
            Err(error) => tracing::warn!(%error, "a message could not be put in quarantine"),
        }
    }

    pub(crate) fn providers(&self) -> Vec<(String, Arc<dyn TableProvider>)> {
        let provider = |table: &Arc<StoreTable>| {
            let provider: Arc<dyn TableProvider> = Arc::new(StoreProvider::new(Arc::clone(table)));
            (table.spec.sql_name.to_owned(), provider)
        };
        self.tables.iter().map(provider).collect()
    }

    /// Reads all tables again, and says from where the log must be read. What is hot is shown until it has been read again.
    pub(crate) async fn reload(&self) -> Result<Start, StoreError> {
        let (floor, origins): (Positions, Origins) = {
            let mut ledger = self.ledger.lock().await;
            ledger.log.load().await?;
            ledger.owned = positions_of(&ledger.log.state.txns, &self.apps);
            let offset =
                |(partition, version): (&u32, &i64)| (*partition, u64::try_from(*version).unwrap_or(0));
            (ledger.owned.iter().map(offset).collect(), origins_of(&ledger.log.state.txns, &self.apps))
        };
        try_join_all(self.tables.iter().map(|table| table.reload(&floor))).await?;
        // The log is read from where the ledger stands: what was seen of the spools is known for that place only. A table
        // that is further, because a crash came between its commit and the ledger's, passes over what it has.
        let start = floor;
        let mut progress = self.progress.write();
        progress.committed = start.clone();
        progress.seen = start.clone();
        Ok(Start { positions: start, origins })
    }

    /// Takes batches of one table of the log, in the order of their offsets.
    pub(crate) fn take(&self, of: weir_schemas::Table, batches: &[Arc<HotBatch>]) {
        for table in self.tables.iter().filter(|table| table.spec.takes() == Some(of)) {
            let rows = table.take(batches);
            if table.is_raw() {
                self.metrics.taken_rows.get_or_create(&table.label()).inc_by(rows);
            }
        }
    }

    /// Notes in `log_gaps` what will be in no table. `offset` is where the log was passed over.
    pub(crate) fn note_gap(&self, gap: &Gap, offset: u64) -> Result<(), StoreError> {
        let batch = gap.batch(delta::now_ms() * 1000)?;
        let bytes = batch.get_array_memory_size();
        let hot = HotBatch { partition: gap.partition, offset, batch, bytes, followed: false };
        for table in self.tables.iter().filter(|table| matches!(table.spec.content, Content::Gaps)) {
            let rows = table.take(&[Arc::new(hot.clone())]);
            self.metrics.taken_rows.get_or_create(&table.label()).inc_by(rows);
        }
        Ok(())
    }

    /// Bytes of the rows in memory that are to be stored (the rollups share the flows').
    pub(crate) fn hot_bytes(&self) -> usize {
        let raw = self.tables.iter().filter(|table| table.is_raw());
        raw.map(|table| table.snapshot().hot_bytes(false)).sum()
    }

    /// Bytes of the rows in memory that others store.
    pub(crate) fn followed_bytes(&self) -> usize {
        let raw = self.tables.iter().filter(|table| table.is_raw());
        raw.map(|table| table.snapshot().hot_bytes(true)).sum()
    }

    /// Commits everything before `upto` to every table, then to the ledger, and there what was seen of spools before it.
    pub(crate) async fn commit(&self, upto: &Positions, origins: &Origins) -> Result<(), CommitError> {
        let options =
            FileOptions { zstd_level: self.config.zstd_level, row_group_rows: self.config.row_group_rows };
        let started = Instant::now();
        let results = join_all(self.tables.iter().map(|table| table.commit(upto, options))).await;
        let mut failed = None;
        for (table, result) in self.tables.iter().zip(results) {
            match result {
                Ok(committed) => self.metrics.committed(table, &committed),
                // being fenced says more than a failure that passes
                Err(error) if failed.is_none() || matches!(error, CommitError::Fenced { .. }) => {
                    failed = Some(error);
                }
                Err(_) => {}
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.settle(upto, origins).await?;
        self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        let mut progress = self.progress.write();
        progress.committed = at_least(std::mem::take(&mut progress.committed), upto);
        Ok(())
    }

    /// The ledger's commit: every table contains everything before `upto`.
    async fn settle(&self, upto: &Positions, origins: &Origins) -> Result<(), CommitError> {
        let mut ledger = self.ledger.lock().await;
        let Ledger { log, owned } = &mut *ledger;
        let (mut actions, fence) = transactions(&self.apps, owned, upto);
        if actions.is_empty() {
            return Ok(());
        }
        actions.extend(origin_transactions(&self.apps, &log.state.txns, origins));
        log.commit(actions, "SETTLE", &fence, &uuid::Uuid::new_v4().to_string()).await?;
        moved_on(owned, upto);
        Ok(())
    }

    /// Learns what other aggregators have committed.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        try_join_all(self.tables.iter().map(|table| table.refresh())).await.map(|_| ())
    }

    pub(crate) fn note_seen(&self, seen: &Positions, newest: &BTreeMap<u32, i64>) {
        let mut progress = self.progress.write();
        // who follows sees more than who stores
        progress.seen = at_least(std::mem::take(&mut progress.seen), seen);
        for (partition, time) in newest {
            let known = progress.newest.entry(*partition).or_insert(*time);
            *known = (*known).max(*time);
        }
    }

    pub(crate) fn note_end(&self, end: Positions, caught_up: bool) {
        let mut progress = self.progress.write();
        progress.end = end;
        progress.looked_at = Some(delta::now_ms() * 1000);
        if caught_up {
            progress.caught_up = Some(Instant::now());
        }
    }

    pub(crate) fn note_problem(&self, problem: Option<String>) {
        self.progress.write().problem = problem;
    }

    /// The state of the store and of the one that fills it.
    pub fn info(&self) -> StoreInfo {
        let progress = self.progress.read();
        let table = |table: &Arc<StoreTable>| {
            let snapshot = table.snapshot();
            TableInfo {
                name: table.spec.name,
                version: snapshot.version,
                files: snapshot.files.len() as u64,
                bytes: snapshot.files.iter().map(|file| file.size).sum(),
                committed_rows: snapshot.files.iter().map(|file| file.rows).sum(),
                // a rollup's hot rows are the flows' and counted there
                hot_rows: if table.is_raw() { snapshot.hot_rows() as u64 } else { 0 },
                hot_bytes: if table.is_raw() { snapshot.hot_bytes(false) as u64 } else { 0 },
                is_rollup: !table.is_raw(),
            }
        };
        StoreInfo {
            committed: progress.committed.clone(),
            seen: progress.seen.clone(),
            end: progress.end.clone(),
            newest: progress.newest.clone(),
            looked_at: progress.looked_at,
            tables: self.tables.iter().map(table).collect(),
            problem: progress.problem.clone(),
            lag_seconds: progress.caught_up.map(|at| at.elapsed().as_secs_f64()),
        }
    }
}
