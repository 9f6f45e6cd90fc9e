//! Data files: batches as Parquet, one file a day.
//!
//! A file holds only the columns that its rows have; readers add the others as NULL. [`super::writer`] makes the Parquet.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{filter_record_batch, max, min};
use arrow::datatypes::{Schema, TimestampMicrosecondType};
use bytes::Bytes;

use super::StoreError;
use super::delta::{Add, Stats, format_day, format_time};
use super::writer::{FileOptions, FileWriter, present};

const DAY_US: i64 = 86_400_000_000;

/// A file that is written but not yet put anywhere.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) day: i32,
    pub(crate) bytes: Bytes,
    pub(crate) rows: usize,
    pub(crate) ranges: Vec<(String, i64, i64)>,
}

impl Encoded {
    /// The Delta action that adds the file as `path`.
    pub(crate) fn add(&self, path: String, data_change: bool) -> Result<Add, StoreError> {
        let mut stats =
            Stats { num_records: i64::try_from(self.rows).unwrap_or(i64::MAX), ..Stats::default() };
        for (name, low, high) in &self.ranges {
            if let (Some(low), Some(high)) = (format_time(*low), format_time(*high)) {
                stats.min_values.insert(name.clone(), low.into());
                stats.max_values.insert(name.clone(), high.into());
            }
        }
        let stats = serde_json::to_string(&stats)
            .map_err(|error| StoreError::Corrupt(format!("statistics cannot be written: {error}")))?;
        Ok(Add {
            path,
            partition_values: BTreeMap::from([("day".to_owned(), Some(format_day(self.day)))]),
            size: i64::try_from(self.bytes.len()).unwrap_or(i64::MAX),
            modification_time: super::delta::now_ms(),
            data_change,
            stats: Some(stats),
        })
    }
}

/// The days of a batch's time column, least and greatest; rows without a time count as day 0.
fn days(batch: &RecordBatch, time_column: &str) -> (i32, i32) {
    let Some(times) = batch.column_by_name(time_column) else { return (0, 0) };
    let Some(times) = times.as_primitive_opt::<TimestampMicrosecondType>() else { return (0, 0) };
    let day = |time: Option<i64>| time.map_or(0, day_of);
    let (low, high) = (day(min(times)), day(max(times)));
    if times.null_count() > 0 { (low.min(0), high.max(0)) } else { (low, high) }
}

pub(crate) fn day_of(time_us: i64) -> i32 {
    i32::try_from(time_us.div_euclid(DAY_US)).unwrap_or(0)
}

/// The batches by the day of their rows.
fn by_day(batches: &[RecordBatch], time_column: &str) -> Result<BTreeMap<i32, Vec<RecordBatch>>, StoreError> {
    let mut result: BTreeMap<i32, Vec<RecordBatch>> = BTreeMap::new();
    for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
        let (low, high) = days(batch, time_column);
        if low == high {
            result.entry(low).or_default().push(batch.clone());
            continue;
        }
        let times =
            batch.column_by_name(time_column).map(|column| column.as_primitive::<TimestampMicrosecondType>());
        let day_at = |row: usize| {
            times.map_or(0, |times| if times.is_null(row) { 0 } else { day_of(times.value(row)) })
        };
        let rows: Vec<i32> = (0..batch.num_rows()).map(day_at).collect();
        let mut distinct = rows.clone();
        distinct.sort_unstable();
        distinct.dedup();
        for day in distinct {
            let mask = rows.iter().map(|found| Some(*found == day)).collect();
            result.entry(day).or_default().push(filter_record_batch(batch, &mask)?);
        }
    }
    Ok(result)
}

/// The least and greatest value of each time column over all batches.
#[derive(Debug, Default)]
pub(crate) struct Ranges(BTreeMap<String, (i64, i64)>);

impl Ranges {
    pub(crate) fn add(&mut self, batch: &RecordBatch) {
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let Some(times) = column.as_primitive_opt::<TimestampMicrosecondType>() else { continue };
            // a file of which some rows have no such time has no range: nothing may be pruned by it wrongly
            let (Some(low), Some(high)) = (min(times), max(times)) else { continue };
            let range = self.0.entry(field.name().clone()).or_insert((low, high));
            *range = (range.0.min(low), range.1.max(high));
        }
    }

    pub(crate) fn finish(self) -> Vec<(String, i64, i64)> {
        self.0.into_iter().map(|(name, (low, high))| (name, low, high)).collect()
    }
}

/// The batches as files, one a day.
pub(crate) fn encode(
    schema: &Schema,
    batches: &[RecordBatch],
    time_column: &str,
    options: FileOptions,
) -> Result<Vec<Encoded>, StoreError> {
    let mut files = Vec::new();
    for (day, batches) in by_day(batches, time_column)? {
        let present = present(schema, &batches);
        let mut writer = FileWriter::new(&present, options)?;
        let mut ranges = Ranges::default();
        let mut rows = 0;
        for batch in &batches {
            ranges.add(batch);
            rows += batch.num_rows();
            writer.write(batch)?;
        }
        let bytes = writer.finish()?;
        files.push(Encoded { day, bytes, rows, ranges: ranges.finish() });
    }
    Ok(files)
}
