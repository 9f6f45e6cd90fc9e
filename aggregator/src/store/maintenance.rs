//! Housekeeping: small files become large ones, old days go, what nobody references is deleted, logs are summed up.
//!
//! Every step is a commit of its own, or deletes only what no snapshot of the last hour can name; so it may stop or fail
//! anywhere and be run again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use tokio_util::sync::CancellationToken;

use super::delta::{Action, CommitError, DataFile, Remove, now_ms};
use super::files::{Encoded, day_of, encode};
use super::table::{Content, StoreTable, blocking};
use super::writer::{FileOptions, FileWriter};
use super::{Store, StoreError, objects};
use crate::hot::align;

/// A row group of this many rows is not worth writing anew.
pub(super) const SPLICE_ROWS: i64 = 65_536;

/// Runs the housekeeping of a store.
#[derive(Debug)]
pub struct Maintenance {
    store: Arc<Store>,
}

impl Maintenance {
    pub fn new(store: Arc<Store>) -> Maintenance {
        Maintenance { store }
    }

    /// Runs a round every `maintenance_interval_s` until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let interval = Duration::from_secs(self.store.config.maintenance_interval_s);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.round(now_ms()) => {}
            }
        }
    }

    /// One round at the time `now_ms`; what fails is logged, counted and tried again in the next round.
    async fn round(&self, now_ms: i64) {
        for table in &self.store.tables {
            if let Err(error) = self.table(table, now_ms).await {
                self.store.metrics.maintenance_failures.inc();
                tracing::warn!(table = table.spec.name, %error, "maintenance failed; trying again in the next round");
            }
        }
        if let Err(error) = self.ledger().await {
            self.store.metrics.maintenance_failures.inc();
            tracing::warn!(%error, "maintenance of the ledger failed; trying again in the next round");
        }
        if let Some(directory) = self.store.directory.clone() {
            let grace = Duration::from_secs(self.store.config.vacuum_grace_s);
            let swept = blocking(move || Ok(objects::sweep_staged(&directory, grace).unwrap_or(0)));
            let _ = swept.await;
        }
    }

    async fn table(&self, table: &Arc<StoreTable>, now_ms: i64) -> Result<(), CommitError> {
        self.expire(table, now_ms).await?;
        self.compact(table).await?;
        self.checkpoint(table).await?;
        self.vacuum(table, now_ms).await?;
        Ok(())
    }

    /// Removes the days that are older than the table keeps.
    pub(crate) async fn expire(&self, table: &StoreTable, now_ms: i64) -> Result<(), CommitError> {
        let days = self.store.config.retention_days.get(table.spec.name).copied().unwrap_or(0);
        if days == 0 {
            return Ok(());
        }
        let first = day_of(now_ms * 1000).saturating_sub_unsigned(days);
        let snapshot = table.snapshot();
        let old: Vec<_> = snapshot.files.iter().filter(|file| file.day < first).collect();
        if old.is_empty() {
            return Ok(());
        }
        let actions = old.iter().map(|file| remove(file, true)).collect();
        table.commit_files(actions, "DELETE").await?;
        self.store.metrics.expired_files.get_or_create(&table.label()).inc_by(old.len() as u64);
        Ok(())
    }

    /// Merges files of about one size of a day, in the order of their times. Only among their like: so a row is
    /// rewritten a few times until its file is large, and not with every round.
    pub(crate) async fn compact(&self, table: &StoreTable) -> Result<(), CommitError> {
        let config = &self.store.config;
        let mut alike: BTreeMap<(i32, u32), Vec<Arc<DataFile>>> = BTreeMap::new();
        for file in table.snapshot().files.iter().filter(|file| file.size < config.compact_to_bytes / 2) {
            alike.entry((file.day, size_class(file.size))).or_default().push(Arc::clone(file));
        }
        for ((day, _), mut small) in alike {
            small.sort_by_key(|file| file.range(table.spec.time_column).unwrap_or_default());
            while small.len() >= config.compact_min_files {
                let (mut size, mut count) = (0, 0);
                for file in &small {
                    size += file.size;
                    if count >= 2 && size > config.compact_to_bytes {
                        break;
                    }
                    count += 1;
                }
                let group: Vec<_> = small.drain(..count).collect();
                self.merge(table, day, &group).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn merge(
        &self,
        table: &StoreTable,
        day: i32,
        group: &[Arc<DataFile>],
    ) -> Result<(), CommitError> {
        let config = &self.store.config;
        let options = FileOptions { zstd_level: config.zstd_level, row_group_rows: config.row_group_rows };
        let (files, changes) = match table.spec.content {
            Content::Raw(_) | Content::Gaps => (vec![self.rewrite(table, day, group, options).await?], false),
            Content::Rollup(rollup) => {
                let mut parts = Vec::new();
                for file in group {
                    parts.extend(read_all(table, file).await?);
                }
                let schema = Arc::clone(&table.spec.schema);
                let time_column = table.spec.time_column;
                let aggregate = Arc::clone(table.aggregates.config());
                let merged = blocking(move || {
                    let aligned =
                        parts.iter().map(|part| align(part, &schema)).collect::<Result<Vec<_>, _>>()?;
                    encode(&schema, &[rollup.merge(&aligned, &aggregate)?], time_column, options)
                });
                // fewer rows that say the same: a change of rows all the same
                (merged.await?, true)
            }
        };
        let mut actions: Vec<Action> = group.iter().map(|file| remove(file, changes)).collect();
        for file in &files {
            actions.push(Action { add: Some(table.put(file, changes).await?), ..Action::default() });
        }
        table.commit_files(actions, "OPTIMIZE").await?;
        self.store.metrics.compactions.get_or_create(&table.label()).inc();
        self.store.metrics.compacted_files.get_or_create(&table.label()).inc_by(group.len() as u64);
        Ok(())
    }

    /// The rows of several files as one file, one file in memory at a time. Row groups that are large already are
    /// carried over as they are: at line rate all are, and merging costs next to nothing.
    async fn rewrite(
        &self,
        table: &StoreTable,
        day: i32,
        group: &[Arc<DataFile>],
        options: FileOptions,
    ) -> Result<Encoded, StoreError> {
        let mut present: HashSet<String> = HashSet::new();
        for file in group {
            let reader = open(table, file).await?.1;
            present.extend(reader.schema().fields().iter().map(|field| field.name().clone()));
        }
        let fields = table.spec.schema.fields().iter().filter(|field| present.contains(field.name()));
        let schema = Arc::new(Schema::new(fields.cloned().collect::<Vec<_>>()));
        let mut writer = FileWriter::new(&schema, options)?;
        let mut rows = 0;
        let mut ranges: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for file in group {
            let (bytes, reader) = open(table, file).await?;
            for (name, low, high) in &file.ranges {
                let range = ranges.entry(name.clone()).or_insert((*low, *high));
                *range = (range.0.min(*low), range.1.max(*high));
            }
            rows += usize::try_from(file.rows).unwrap_or(usize::MAX);
            writer = blocking(move || {
                append(&mut writer, &bytes, reader.metadata())?;
                Ok(writer)
            })
            .await?;
        }
        let bytes = blocking(move || Ok(writer.finish()?)).await?;
        let ranges = ranges.into_iter().map(|(name, (low, high))| (name, low, high)).collect();
        Ok(Encoded { day, bytes, rows, ranges })
    }

    async fn checkpoint(&self, table: &StoreTable) -> Result<(), StoreError> {
        let config = &self.store.config;
        let mut writer = table.writer.lock().await;
        let due = writer.log.version >= writer.log.checkpoint.unwrap_or(0) + config.checkpoint_commits;
        if due {
            writer
                .log
                .checkpoint(seconds_ms(config.vacuum_grace_s), seconds_ms(config.log_retention_s))
                .await?;
        }
        Ok(())
    }

    async fn ledger(&self) -> Result<(), StoreError> {
        let config = &self.store.config;
        let mut ledger = self.store.ledger.lock().await;
        if ledger.log.version >= ledger.log.checkpoint.unwrap_or(0) + config.checkpoint_commits {
            ledger.log.checkpoint(0, seconds_ms(config.log_retention_s)).await?;
        }
        Ok(())
    }

    /// Deletes data files that the table does not name, older than the grace: removed ones, and those of commits that
    /// never came to be.
    pub(crate) async fn vacuum(&self, table: &StoreTable, now_ms: i64) -> Result<(), StoreError> {
        let before = now_ms - seconds_ms(self.store.config.vacuum_grace_s);
        let prefix = Path::from(table.spec.name);
        // listed before the log is looked at: a file that a commit adds meanwhile is younger than the grace
        let listed: Vec<ObjectMeta> = table.objects.list(Some(&prefix)).try_collect().await?;
        let writer = table.writer.lock().await;
        let state = &writer.log.state;
        let mut unneeded = Vec::new();
        for meta in listed {
            let Some(path) = meta.location.as_ref().strip_prefix(table.spec.name) else { continue };
            let path = path.trim_start_matches('/');
            if !path.ends_with(".parquet") || path.starts_with("_delta_log") || state.files.contains_key(path)
            {
                continue;
            }
            // an outage may have held a commit up for longer than the grace
            if writer.has_in_hand(path) {
                continue;
            }
            let removed = state.removed.get(path).and_then(|remove| remove.deletion_timestamp);
            let since = removed.unwrap_or_else(|| meta.last_modified.timestamp_millis());
            if since < before {
                unneeded.push(meta.location);
            }
        }
        drop(writer);
        for location in unneeded {
            table.objects.delete(&location).await?;
            self.store.metrics.vacuumed_files.inc();
        }
        Ok(())
    }
}

fn seconds_ms(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX / 2)
}

fn remove(file: &DataFile, data_change: bool) -> Action {
    let remove = Remove {
        path: file.path.clone(),
        deletion_timestamp: Some(now_ms()),
        data_change,
        extended_file_metadata: Some(true),
        partition_values: Some(file.add.partition_values.clone()),
        size: Some(file.add.size),
    };
    Action { remove: Some(remove), ..Action::default() }
}

/// Files of one class are merged: below a megabyte, and from there on by factors of eight.
fn size_class(bytes: u64) -> u32 {
    (bytes >> 20).checked_ilog2().map_or(0, |log| 1 + log / 3)
}

/// Puts the rows of a file behind those of `writer`.
fn append(writer: &mut FileWriter, bytes: &Bytes, metadata: &Arc<ParquetMetaData>) -> Result<(), StoreError> {
    let takes = writer.takes(metadata);
    for (at, group) in metadata.row_groups().iter().enumerate() {
        if takes && group.num_rows() >= SPLICE_ROWS {
            writer.splice(bytes, metadata, at)?;
            continue;
        }
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone())?;
        for batch in reader.with_row_groups(vec![at]).with_batch_size(65_536).build()? {
            writer.write(&batch?)?;
        }
    }
    Ok(())
}

/// A data file, read whole: those that are merged are small.
async fn open(
    table: &StoreTable,
    file: &DataFile,
) -> Result<(Bytes, ParquetRecordBatchReaderBuilder<Bytes>), StoreError> {
    let path = Path::from(format!("{}/{}", table.spec.name, file.path));
    let bytes = table.objects.get(&path).await?.bytes().await?;
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    Ok((bytes.clone(), ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options)?))
}

async fn read_all(table: &StoreTable, file: &DataFile) -> Result<Vec<RecordBatch>, StoreError> {
    let (_, reader) = open(table, file).await?;
    blocking(move || Ok(reader.build()?.collect::<Result<Vec<_>, _>>()?)).await
}
