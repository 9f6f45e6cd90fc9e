//! One table of the store: its log, its files, and the hot rows in front of them.
//!
//! Everything a query needs is in one [`Snapshot`], replaced as a whole: the files of a version, the offsets that they
//! contain, and the hot batches beyond these offsets. So a row is in the files or in memory, never in both or neither.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use weir_schemas::Table;

use super::delta::{Action, CommitError, DataFile, DeltaLog, Txn, format_day, now_ms};
use super::files::{Encoded, encode};
use super::metrics::{StoreMetrics, TableLabel};
use super::writer::FileOptions;
use super::{StoreError, gaps};
use crate::rollup::{Aggregates, Asker, Rollup};
use crate::source::{Origins, Positions};

/// Where a table's rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The batches of one table of the log.
    Raw(Table),
    /// What the log has lost.
    Gaps,
    /// What the flows add up to.
    Rollup(Rollup),
}

/// What a table is.
#[derive(Debug)]
pub(crate) struct Spec {
    /// Its directory.
    pub(crate) name: &'static str,
    /// Its physical name in SQL.
    pub(crate) sql_name: &'static str,
    pub(crate) content: Content,
    pub(crate) schema: SchemaRef,
    /// The column whose day is the partition.
    pub(crate) time_column: &'static str,
}

impl Spec {
    /// All tables: the raw ones, then the rollups.
    pub(crate) fn all() -> Vec<Spec> {
        let raw = Table::ALL.into_iter().map(|table| Spec {
            name: table.name(),
            sql_name: match table {
                Table::Flows => "flows_raw",
                Table::NatEvents => "nat_events_raw",
                Table::Discards => "discards_raw",
                other => other.name(),
            },
            content: Content::Raw(table),
            schema: table.sql_schema(),
            time_column: "received_at",
        });
        let rollups = Rollup::ALL.into_iter().map(|rollup| Spec {
            name: rollup.name().trim_end_matches("_parts"),
            sql_name: rollup.name(),
            content: Content::Rollup(rollup),
            schema: rollup.schema(),
            time_column: "window_start",
        });
        let gaps = Spec {
            name: "log_gaps",
            sql_name: "log_gaps",
            content: Content::Gaps,
            schema: gaps::schema(),
            time_column: "noticed_at",
        };
        raw.chain(rollups).chain([gaps]).collect()
    }

    /// The table of the log whose messages it takes.
    pub(crate) fn takes(&self) -> Option<Table> {
        match self.content {
            Content::Raw(table) => Some(table),
            Content::Gaps => None,
            Content::Rollup(_) => Some(Table::Flows),
        }
    }
}

/// A batch that is not yet committed.
#[derive(Debug, Clone)]
pub(crate) struct HotBatch {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
    pub(crate) batch: RecordBatch,
    pub(crate) bytes: usize,
    /// Another aggregator stores it: it is shown here until that one has.
    pub(crate) followed: bool,
}

/// A table at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    pub(crate) files: Arc<Vec<Arc<DataFile>>>,
    /// One past the last offset that the files contain.
    pub(crate) positions: Positions,
    /// In the order in which they came.
    pub(crate) hot: Vec<Arc<HotBatch>>,
    /// Those of before the table was read again, by partition and offset: they are shown until the log has been read to
    /// there once more, so that no query misses for a moment what the one before it saw.
    kept: BTreeSet<(u32, u64)>,
}

impl Snapshot {
    /// Of what this process stores.
    pub(crate) fn hot_rows(&self) -> usize {
        self.hot.iter().filter(|hot| self.is_ours(hot)).map(|hot| hot.batch.num_rows()).sum()
    }

    /// Whether this process is to store it.
    fn is_ours(&self, hot: &HotBatch) -> bool {
        !hot.followed && !self.kept.contains(&(hot.partition, hot.offset))
    }

    /// Of what this process stores, or of what others do.
    pub(crate) fn hot_bytes(&self, followed: bool) -> usize {
        self.hot.iter().filter(|hot| self.is_ours(hot) != followed).map(|hot| hot.bytes).sum()
    }

    /// The log has been read again to there: what was kept up to it has been taken once more, or is not there any more.
    fn replace_kept(&mut self, partition: u32, offset: u64) {
        let upto = (partition, 0)..=(partition, offset);
        if self.kept.range(upto.clone()).next().is_none() {
            return;
        }
        self.hot.retain(|hot| {
            !self.kept.contains(&(hot.partition, hot.offset))
                || hot.partition != partition
                || hot.offset > offset
        });
        self.kept.retain(|place| !upto.contains(place));
    }

    fn contains(&self, partition: u32, offset: u64) -> bool {
        self.positions.get(&partition).is_some_and(|position| offset < *position)
    }
}

/// A commit whose files are written: offered again, as it is, until its outcome is known.
#[derive(Debug)]
struct Prepared {
    id: String,
    actions: Vec<Action>,
    fence: Vec<(String, Option<i64>)>,
    upto: Positions,
    rows: u64,
}

/// The part of a table that only commits touch.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) log: DeltaLog,
    /// What this process believes the table's own positions to be, by partition; another writer shows in a difference.
    owned: BTreeMap<u32, i64>,
    prepared: Option<Prepared>,
}

impl Writer {
    /// True for a file that a commit in hand is about to add: however long that takes, it is needed.
    pub(crate) fn has_in_hand(&self, path: &str) -> bool {
        let adds = self.prepared.iter().flat_map(|prepared| &prepared.actions);
        adds.filter_map(|action| action.add.as_ref()).any(|add| add.path == path)
    }
}

/// What one commit did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Committed {
    pub(crate) commits: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// A table of the store.
#[derive(Debug)]
pub(crate) struct StoreTable {
    pub(crate) spec: Spec,
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The rollups of what is hot, shared by all tables.
    pub(crate) aggregates: Arc<Aggregates>,
    /// Rows that were taken, and that another writer has stored.
    given_back: Counter,
    /// The start of its application ids: `weir/<log id>/`.
    apps: String,
    snapshot: RwLock<Arc<Snapshot>>,
    pub(crate) writer: tokio::sync::Mutex<Writer>,
}

/// The positions among the application transactions of a log.
pub(crate) fn positions_of(txns: &BTreeMap<String, i64>, apps: &str) -> BTreeMap<u32, i64> {
    let own = |(app, version): (&String, &i64)| Some((app.strip_prefix(apps)?.parse().ok()?, *version));
    txns.iter().filter_map(own).collect()
}

/// What was seen of spools, among the application transactions of the ledger: `<partition>/<spool>/<its partition>`.
pub(crate) fn origins_of(txns: &BTreeMap<String, i64>, apps: &str) -> Origins {
    let own = |(app, version): (&String, &i64)| {
        let mut parts = app.strip_prefix(apps)?.split('/');
        let partition = parts.next()?.parse().ok()?;
        let spool = u64::from_str_radix(parts.next()?, 16).ok()?;
        let of_spool = parts.next()?.parse().ok()?;
        Some(((partition, spool, of_spool), u64::try_from(*version).ok()?))
    };
    txns.iter().filter_map(own).collect()
}

/// The transactions of what has moved on since.
pub(crate) fn origin_transactions(
    apps: &str,
    txns: &BTreeMap<String, i64>,
    origins: &Origins,
) -> Vec<Action> {
    let moved = |((partition, spool, of_spool), next): (&(u32, u64, u32), &u64)| {
        let app_id = format!("{apps}{partition}/{spool:016x}/{of_spool}");
        let version = i64::try_from(*next).unwrap_or(i64::MAX);
        let txn = Txn { app_id, version, last_updated: Some(now_ms()) };
        (txns.get(&txn.app_id) != Some(&version)).then_some(Action { txn: Some(txn), ..Action::default() })
    };
    origins.iter().filter_map(moved).collect()
}

fn offsets(own: &BTreeMap<u32, i64>) -> Positions {
    own.iter().map(|(partition, version)| (*partition, u64::try_from(*version).unwrap_or(0))).collect()
}

/// The greater position of each partition.
pub(crate) fn at_least(mut positions: Positions, floor: &Positions) -> Positions {
    for (partition, offset) in floor {
        let position = positions.entry(*partition).or_insert(0);
        *position = (*position).max(*offset);
    }
    positions
}

/// The transaction of each partition that moves, with what it must stand at before.
pub(crate) fn transactions(
    apps: &str,
    owned: &BTreeMap<u32, i64>,
    upto: &Positions,
) -> (Vec<Action>, Vec<(String, Option<i64>)>) {
    let mut actions = Vec::new();
    let mut fence = Vec::new();
    for (partition, offset) in upto {
        let version = i64::try_from(*offset).unwrap_or(i64::MAX);
        let before = owned.get(partition).copied();
        if before.is_some_and(|before| before >= version) {
            continue;
        }
        let app_id = format!("{apps}{partition}");
        fence.push((app_id.clone(), before));
        let txn = Txn { app_id, version, last_updated: Some(now_ms()) };
        actions.push(Action { txn: Some(txn), ..Action::default() });
    }
    (actions, fence)
}

impl StoreTable {
    pub(crate) async fn open(
        spec: Spec,
        objects: Arc<dyn ObjectStore>,
        apps: String,
        aggregates: Arc<Aggregates>,
        metrics: &StoreMetrics,
    ) -> Result<StoreTable, StoreError> {
        let log = DeltaLog::open(&objects, spec.name, &spec.schema, true).await?;
        let owned = positions_of(&log.state.txns, &apps);
        let writer = tokio::sync::Mutex::new(Writer { log, owned, prepared: None });
        let given_back = metrics.given_back.get_or_create(&TableLabel { table: spec.name }).clone();
        let snapshot = RwLock::default();
        let table = StoreTable { spec, objects, aggregates, given_back, apps, snapshot, writer };
        table.publish(&*table.writer.lock().await, |_| {});
        Ok(table)
    }

    /// True for a table of the log, false for a rollup.
    pub(crate) fn is_raw(&self) -> bool {
        matches!(self.spec.content, Content::Raw(_) | Content::Gaps)
    }

    pub(crate) fn label(&self) -> TableLabel {
        TableLabel { table: self.spec.name }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read())
    }

    /// Reads the table again; `floor` is what every table is known to contain. What is hot is to be taken again: until then
    /// it is shown, and not stored.
    pub(crate) async fn reload(&self, floor: &Positions) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        if !writer.log.load().await? {
            return Err(StoreError::Corrupt(format!("table `{}` is gone", self.spec.name)));
        }
        writer.prepared = None;
        writer.owned = positions_of(&writer.log.state.txns, &self.apps);
        let positions = at_least(offsets(&writer.owned), floor);
        self.publish(&writer, |snapshot| {
            if self.is_raw() {
                self.given_back.inc_by(snapshot.hot_rows() as u64);
            }
            snapshot.positions = positions;
            let hot = std::mem::take(&mut snapshot.hot);
            let hot = hot.into_iter().filter(|hot| !snapshot.contains(hot.partition, hot.offset));
            snapshot.hot = hot.collect();
            snapshot.kept = snapshot.hot.iter().map(|hot| (hot.partition, hot.offset)).collect();
        });
        Ok(())
    }

    /// Replaces the snapshot by the writer's files and what `change` makes of the rest, in one step. What these files
    /// contain, by whomever they are, is hot no more.
    pub(crate) fn publish(&self, writer: &Writer, change: impl FnOnce(&mut Snapshot)) {
        let files = Arc::new(writer.log.state.files.values().cloned().collect());
        let mut current = self.snapshot.write();
        let mut next = Snapshot::clone(&current);
        next.version = writer.log.version;
        next.files = files;
        change(&mut next);
        let ours = next.hot_rows();
        pass(&mut next, &offsets(&positions_of(&writer.log.state.txns, &self.apps)));
        if self.is_raw() {
            self.given_back.inc_by((ours - next.hot_rows()) as u64);
        }
        *current = Arc::new(next);
    }

    /// Takes those of the batches that the table does not contain yet; says how many rows there are to be stored.
    pub(crate) fn take(&self, batches: &[Arc<HotBatch>]) -> u64 {
        let mut current = self.snapshot.write();
        let mut next = Snapshot::clone(&current);
        let fresh = batches.iter().filter(|hot| !current.contains(hot.partition, hot.offset));
        for hot in fresh.clone() {
            next.replace_kept(hot.partition, hot.offset);
        }
        let known = next.hot.len();
        next.hot.extend(fresh.cloned());
        let ours = next.hot[known..].iter().filter(|hot| !hot.followed);
        let taken = ours.map(|hot| hot.batch.num_rows() as u64).sum();
        *current = Arc::new(next);
        taken
    }

    /// Commits the hot rows before `upto`. Dropped or failed anywhere it leaves the table whole, and may be called again.
    pub(crate) async fn commit(
        &self,
        upto: &Positions,
        options: FileOptions,
    ) -> Result<Committed, CommitError> {
        let mut writer = self.writer.lock().await;
        let mut total = Committed::default();
        loop {
            if writer.prepared.is_none() {
                match self.prepare(&writer, upto, options).await? {
                    Some(prepared) => writer.prepared = Some(prepared),
                    None => return Ok(total),
                }
            }
            let Writer { log, owned, prepared } = &mut *writer;
            let Some(ready) = prepared.as_ref() else { return Ok(total) };
            log.commit(ready.actions.clone(), "WRITE", &ready.fence, &ready.id).await?;
            let Some(done) = prepared.take() else { return Ok(total) };
            moved_on(owned, &done.upto);
            total.commits += 1;
            total.rows += done.rows;
            let sizes = done.actions.iter().filter_map(|action| action.add.as_ref());
            total.bytes += sizes.map(|add| u64::try_from(add.size).unwrap_or(0)).sum::<u64>();
            self.publish(&writer, |snapshot| pass(snapshot, &done.upto));
        }
    }

    /// Learns what other writers have committed: of partitions that are theirs, or that were ours. Rows that are in files
    /// by now are shown from there. What this process believes to own is left as it is: its next commit will tell.
    pub(crate) async fn refresh(&self) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        if writer.log.catch_up().await? {
            self.publish(&writer, |_| {});
        }
        Ok(())
    }

    /// Writes the files of the next commit; None where nothing is hot before `upto`.
    async fn prepare(
        &self,
        writer: &Writer,
        upto: &Positions,
        options: FileOptions,
    ) -> Result<Option<Prepared>, StoreError> {
        let snapshot = self.snapshot();
        let before = |hot: &&Arc<HotBatch>| {
            snapshot.is_ours(hot) && upto.get(&hot.partition).is_some_and(|end| hot.offset < *end)
        };
        let due: Vec<Arc<HotBatch>> = snapshot.hot.iter().filter(before).cloned().collect();
        if due.is_empty() {
            let mut current = self.snapshot.write();
            let mut next = Snapshot::clone(&current);
            pass(&mut next, upto);
            *current = Arc::new(next);
            return Ok(None);
        }
        let batches = match self.spec.content {
            Content::Raw(_) | Content::Gaps => due.iter().map(|hot| hot.batch.clone()).collect(),
            Content::Rollup(rollup) => self.aggregates.parts(rollup, &due, Asker::Commit).await?,
        };
        drop(due);
        let (schema, time_column) = (Arc::clone(&self.spec.schema), self.spec.time_column);
        let encoded = blocking(move || encode(&schema, &batches, time_column, options)).await?;
        let mut actions = Vec::new();
        for file in &encoded {
            actions.push(Action { add: Some(self.put(file, true).await?), ..Action::default() });
        }
        let (transactions, fence) = transactions(&self.apps, &writer.owned, upto);
        actions.extend(transactions);
        let rows = encoded.iter().map(|file| file.rows as u64).sum();
        let id = uuid::Uuid::new_v4().to_string();
        Ok(Some(Prepared { id, actions, fence, upto: upto.clone(), rows }))
    }

    /// Puts a data file where its table's files lie, unseen until a commit adds it.
    pub(crate) async fn put(
        &self,
        file: &Encoded,
        data_change: bool,
    ) -> Result<super::delta::Add, StoreError> {
        let path = format!("day={}/{}.parquet", format_day(file.day), uuid::Uuid::new_v4());
        let full = Path::from(format!("{}/{path}", self.spec.name));
        self.objects.put(&full, file.bytes.clone().into()).await?;
        file.add(path, data_change)
    }

    /// Commits a change of files that changes no position (compaction, retention): the files that it removes must still be
    /// there.
    pub(crate) async fn commit_files(
        &self,
        actions: Vec<Action>,
        operation: &str,
    ) -> Result<(), CommitError> {
        let mut writer = self.writer.lock().await;
        let id = uuid::Uuid::new_v4().to_string();
        writer.log.commit(actions, operation, &[], &id).await?;
        self.publish(&writer, |_| {});
        Ok(())
    }
}

/// Notes own positions after a commit. Only these: where another writer has taken over a partition, the next commit to it
/// must fail.
pub(crate) fn moved_on(owned: &mut BTreeMap<u32, i64>, upto: &Positions) {
    for (partition, offset) in upto {
        let version = i64::try_from(*offset).unwrap_or(i64::MAX);
        let own = owned.entry(*partition).or_insert(version);
        *own = (*own).max(version);
    }
}

/// Moves the positions on, and drops the hot batches that the files now contain.
fn pass(snapshot: &mut Snapshot, upto: &Positions) {
    snapshot.positions = at_least(std::mem::take(&mut snapshot.positions), upto);
    let hot = std::mem::take(&mut snapshot.hot);
    snapshot.hot = hot.into_iter().filter(|hot| !snapshot.contains(hot.partition, hot.offset)).collect();
}

/// Runs CPU work away from the tasks that wait for I/O.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Corrupt(format!("a task of the store died: {error}"))),
    }
}
