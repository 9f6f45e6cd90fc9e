//! `log_gaps`: what was in the log, or should have been, and is in no table. The aggregator writes it itself, in the
//! commit that passes over the place: once, whatever dies.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

use super::StoreError;

/// A range of offsets of a partition that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) partition: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) reason: String,
}

pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("noticed_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("log_partition", DataType::Int32, true),
        Field::new("first_offset", DataType::Int64, true),
        Field::new("last_offset", DataType::Int64, true),
        Field::new("reason", DataType::Utf8, true),
    ]))
}

impl Gap {
    pub(crate) fn batch(&self, now_us: i64) -> Result<RecordBatch, StoreError> {
        let offset = |offset: u64| i64::try_from(offset).unwrap_or(i64::MAX);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(vec![now_us]).with_timezone("UTC")),
            Arc::new(Int32Array::from(vec![i32::try_from(self.partition).unwrap_or(i32::MAX)])),
            Arc::new(Int64Array::from(vec![offset(self.first)])),
            Arc::new(Int64Array::from(vec![offset(self.last)])),
            Arc::new(StringArray::from(vec![self.reason.as_str()])),
        ];
        Ok(RecordBatch::try_new(schema(), columns)?)
    }
}
