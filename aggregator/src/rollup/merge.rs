//! Partial rows put together: those of equal keys added up, and windows made coarser.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, UInt32Array, new_null_array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use foldhash::fast::RandomState;

use super::times;

/// Adds up the rows of equal keys (the first `keys` columns), in the order in which they first come.
pub(super) fn merge(
    schema: &SchemaRef,
    keys: usize,
    parts: &[RecordBatch],
) -> Result<RecordBatch, ArrowError> {
    let all = concat_batches(schema, parts)?;
    let fields = all.schema_ref().fields()[..keys].iter();
    let converter =
        RowConverter::new(fields.map(|field| SortField::new(field.data_type().clone())).collect())?;
    let rows = converter.convert_columns(&all.columns()[..keys])?;
    let mut groups: HashMap<_, usize, RandomState> = HashMap::default();
    let mut first: Vec<u32> = Vec::new();
    let mut group_of = Vec::with_capacity(all.num_rows());
    for (index, row) in rows.iter().enumerate() {
        let group = *groups.entry(row).or_insert_with(|| {
            first.push(u32::try_from(index).unwrap_or(u32::MAX));
            first.len() - 1
        });
        group_of.push(group);
    }
    if first.len() == all.num_rows() {
        return Ok(all);
    }
    let taken = take_record_batch(&all, &first.iter().copied().collect::<UInt32Array>())?;
    let mut columns = taken.columns()[..keys].to_vec();
    for column in &all.columns()[keys..] {
        columns.push(match column.data_type() {
            // what no part has stays unknown
            kind if column.null_count() == column.len() => new_null_array(kind, first.len()),
            DataType::Binary => super::distinct::union(column, &group_of, first.len())?,
            DataType::Float64 => {
                let mut sums = vec![0.0; first.len()];
                let values = column.as_primitive::<Float64Type>();
                for (row, group) in group_of.iter().enumerate().filter(|(row, _)| !values.is_null(*row)) {
                    sums[*group] += values.value(row);
                }
                Arc::new(Float64Array::from(sums)) as ArrayRef
            }
            _ => {
                let mut sums = vec![0_i64; first.len()];
                let values = column.as_primitive::<Int64Type>();
                for (row, group) in group_of.iter().enumerate().filter(|(row, _)| !values.is_null(*row)) {
                    sums[*group] = sums[*group].saturating_add(values.value(row));
                }
                Arc::new(Int64Array::from(sums))
            }
        });
    }
    RecordBatch::try_new(Arc::clone(schema), columns)
}

/// The same rows in windows of `window_us`. The first two columns are the window's start and end.
pub(super) fn widen(part: &RecordBatch, window_us: i64) -> Result<RecordBatch, ArrowError> {
    let starts = part.column(0).as_primitive::<TimestampMicrosecondType>().values();
    let starts: Vec<i64> = starts.iter().map(|start| start.div_euclid(window_us) * window_us).collect();
    let mut columns = part.columns().to_vec();
    columns[1] = times(starts.iter().map(|start| start + window_us));
    columns[0] = times(starts.into_iter());
    RecordBatch::try_new(part.schema(), columns)
}
