//! The columns of flow rows as plain vectors: looked up and widened once, not value by value.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float64Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;

/// What stands for NULL among numbers; no column's value reaches it.
pub(super) const NONE: i64 = i64::MIN;

fn push<T: ArrowPrimitiveType>(into: &mut Vec<i64>, column: &ArrayRef, widen: impl Fn(T::Native) -> i64) {
    let array = column.as_primitive::<T>();
    match array.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => into.extend(array.values().iter().map(|value| widen(*value))),
        Some(nulls) => {
            let values = array.values().iter().zip(nulls.iter());
            into.extend(values.map(|(value, valid)| if valid { widen(*value) } else { NONE }));
        }
    }
}

/// The addresses of a batch, in network byte order.
pub(super) enum Addresses<'a> {
    /// The column is absent: as many NULLs.
    None(usize),
    /// None of them is NULL.
    All(&'a [[u8; 16]]),
    /// Some are NULL.
    Some(&'a [[u8; 16]], &'a NullBuffer),
}

/// The flow rows that are rolled up at once.
pub(super) struct Flows<'a> {
    batches: &'a [RecordBatch],
    pub(super) rows: usize,
}

impl<'a> Flows<'a> {
    pub(super) fn new(batches: &'a [RecordBatch]) -> Flows<'a> {
        Flows { batches, rows: batches.iter().map(RecordBatch::num_rows).sum() }
    }

    /// True where a batch has the column.
    pub(super) fn has(&self, name: &str) -> bool {
        self.batches.iter().any(|batch| batch.column_by_name(name).is_some())
    }

    /// Calls `with` for each batch with its column (none where it has not), and how many rows it has.
    fn each(
        &self,
        name: &str,
        mut with: impl FnMut(Option<&ArrayRef>, usize) -> Result<(), ArrowError>,
    ) -> Result<(), ArrowError> {
        self.batches.iter().try_for_each(|batch| with(batch.column_by_name(name), batch.num_rows()))
    }

    /// Whole numbers and times; [`NONE`] for NULL and for what an `i64` does not hold.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<i64>, ArrowError> {
        let mut all = Vec::with_capacity(self.rows);
        self.each(name, |column, rows| {
            let Some(column) = column else {
                all.resize(all.len() + rows, NONE);
                return Ok(());
            };
            match column.data_type() {
                DataType::UInt8 => push::<UInt8Type>(&mut all, column, i64::from),
                DataType::UInt16 => push::<UInt16Type>(&mut all, column, i64::from),
                DataType::UInt32 => push::<UInt32Type>(&mut all, column, i64::from),
                DataType::UInt64 => {
                    push::<UInt64Type>(&mut all, column, |value| i64::try_from(value).unwrap_or(NONE));
                }
                DataType::Int16 => push::<Int16Type>(&mut all, column, i64::from),
                DataType::Int32 => push::<Int32Type>(&mut all, column, i64::from),
                DataType::Int64 => push::<Int64Type>(&mut all, column, |value| value),
                DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) => {
                    push::<TimestampMicrosecondType>(&mut all, column, |value| value);
                }
                _ => push::<Int64Type>(&mut all, &cast(column, &DataType::Int64)?, |value| value),
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Sampling rates; NaN for NULL.
    pub(super) fn doubles(&self, name: &str) -> Result<Vec<f64>, ArrowError> {
        let mut all = Vec::with_capacity(self.rows);
        self.each(name, |column, rows| {
            let Some(column) = column else {
                all.resize(all.len() + rows, f64::NAN);
                return Ok(());
            };
            let column = cast(column, &DataType::Float64)?;
            let array = column.as_primitive::<Float64Type>();
            all.extend(array.iter().map(|value| value.unwrap_or(f64::NAN)));
            Ok(())
        })?;
        Ok(all)
    }

    /// Calls `with` for the addresses of each batch.
    pub(super) fn addresses(
        &self,
        name: &str,
        mut with: impl FnMut(Addresses<'_>),
    ) -> Result<(), ArrowError> {
        self.each(name, |column, rows| {
            with(match column.and_then(|column| column.as_fixed_size_binary_opt()) {
                None => Addresses::None(rows),
                Some(array) => {
                    let values = &array.value_data().as_chunks::<16>().0[..rows];
                    match array.nulls().filter(|nulls| nulls.null_count() > 0) {
                        None => Addresses::All(values),
                        Some(nulls) => Addresses::Some(values, nulls),
                    }
                }
            });
            Ok(())
        })
    }

    /// Calls `with` for each row's text.
    pub(super) fn texts(&self, name: &str, mut with: impl FnMut(Option<&str>)) -> Result<(), ArrowError> {
        self.each(name, |column, rows| {
            let Some(column) = column else {
                (0..rows).for_each(|_| with(None));
                return Ok(());
            };
            let column = cast(column, &DataType::Utf8)?;
            column.as_string::<i32>().iter().for_each(&mut with);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{FixedSizeBinaryArray, UInt8Array, UInt64Array};

    use super::*;

    #[test]
    fn absent_columns_and_values_beyond_a_signed_number_are_null_and_slices_start_where_they_start() {
        let addresses = vec![Some([1_u8; 16]), None, Some([3; 16])];
        let addresses = FixedSizeBinaryArray::try_from_sparse_iter_with_size(addresses.into_iter(), 16);
        let whole = RecordBatch::try_from_iter([
            ("bytes", Arc::new(UInt64Array::from(vec![Some(1), Some(u64::MAX), None])) as ArrayRef),
            ("src_addr", Arc::new(addresses.unwrap())),
        ])
        .unwrap();
        let other = RecordBatch::try_from_iter([("tos", Arc::new(UInt8Array::from(vec![9])) as ArrayRef)]);
        let batches = [whole.slice(1, 2), whole.slice(0, 1), other.unwrap()];
        let flows = Flows::new(&batches);
        assert_eq!(flows.numbers("bytes").unwrap(), [NONE, NONE, 1, NONE]);
        assert_eq!(flows.numbers("tos").unwrap(), [NONE, NONE, NONE, 9]);
        let (mut seen, mut absent) = (Vec::new(), 0);
        let take = |addresses: Addresses<'_>| match addresses {
            Addresses::None(rows) => absent += rows,
            Addresses::All(values) => seen.extend(values.iter().map(|value| Some(value[0]))),
            Addresses::Some(values, nulls) => {
                seen.extend(values.iter().zip(nulls).map(|(value, valid)| valid.then_some(value[0])));
            }
        };
        flows.addresses("src_addr", take).unwrap();
        assert_eq!((seen, absent), (vec![None, Some(3), Some(1)], 1));
        assert!(flows.has("tos") && !flows.has("dst_addr"));
    }
}
