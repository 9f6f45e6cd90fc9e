//! From a message of the log to rows in memory, ready to be queried.
//!
//! They stay as the log has them: narrow numbers, and labels as dictionaries. A query widens the columns that it reads to
//! their SQL types, and the files are written from the narrow ones: most rows are never asked for before they are stored.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use weir_schemas::envelope::{EnvelopeError, open_body};
use weir_schemas::tables::SCHEMA_VERSION;
use weir_schemas::{Envelope, Table};

/// Opens a message: its batch without the columns that this weir does not know, in the order of the table. What the log
/// does not compress is used where it was read to.
pub(crate) fn open(envelope: &Envelope, body: &Bytes) -> Result<RecordBatch, EnvelopeError> {
    if envelope.schema_version > SCHEMA_VERSION {
        return Err(EnvelopeError::Newer(envelope.schema_version));
    }
    let batch = open_body(envelope, body)?;
    Ok(known(envelope.table, &batch)?)
}

/// Only the columns of the table, in its order. One that has not the type of the log gets that of SQL.
fn known(table: Table, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = table.sql_schema();
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Ok(index) = schema.index_of(field.name()) else {
            tracing::debug!(table = table.name(), column = field.name(), "unknown column left out");
            continue;
        };
        let is_known = *field.data_type() == table.columns()[index].kind.log_type();
        let wanted = if is_known { field.data_type() } else { schema.field(index).data_type() };
        columns.push((index, Field::new(field.name(), wanted.clone(), true), to_sql(column, wanted)?));
    }
    columns.sort_unstable_by_key(|(index, ..)| *index);
    let (fields, arrays): (Vec<_>, Vec<_>) =
        columns.into_iter().map(|(_, field, array)| (field, array)).unzip();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &rows)
}

/// The bytes of a batch's values in memory.
pub(crate) fn bytes(batch: &RecordBatch) -> usize {
    let size = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
    batch.columns().iter().map(size).sum()
}

/// A column in its SQL type. What does not fit (beyond `i64::MAX`) becomes NULL.
pub(crate) fn to_sql(column: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, ArrowError> {
    if column.data_type() == wanted {
        return Ok(Arc::clone(column));
    }
    cast_with_options(column, wanted, &CastOptions { safe: true, ..CastOptions::default() })
}

/// `batch` with exactly the columns of `schema`, in its order and types, absent ones as NULL.
pub(crate) fn align(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |field: &Arc<Field>| match batch.column_by_name(field.name()) {
        Some(column) => to_sql(column, field.data_type()),
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
    };
    let columns = schema.fields().iter().map(column).collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, DictionaryArray, StringArray, UInt8Array, UInt64Array};
    use arrow::datatypes::{Int16Type, Int64Type, UInt8Type};
    use weir_schemas::envelope::{Compression, encode_body};

    use super::*;

    fn batch() -> RecordBatch {
        let labels = DictionaryArray::<UInt8Type>::new(
            UInt8Array::from(vec![1, 0, 1]),
            Arc::new(StringArray::from(vec!["ipfix", "sflow5"])),
        );
        RecordBatch::try_from_iter([
            ("bytes", Arc::new(UInt64Array::from(vec![Some(1), Some(u64::MAX), None])) as ArrayRef),
            ("ip_protocol", Arc::new(UInt8Array::from(vec![6, 17, 255]))),
            ("proto_ver", Arc::new(labels)),
            ("from_the_future", Arc::new(UInt8Array::from(vec![1, 2, 3]))),
        ])
        .unwrap()
    }

    #[test]
    fn columns_get_their_sql_types_and_places() {
        let batch = batch();
        let envelope = Envelope::of(&batch, Table::Flows, "c", 1, 1);
        let opened = open(&envelope, &encode_body(&batch, Compression::Lz4).unwrap().into()).unwrap();
        let indices = |name: &str| Table::Flows.sql_schema().index_of(name).unwrap();
        let wanted = Table::Flows.sql_schema();
        let wanted = wanted.project(&["proto_ver", "ip_protocol", "bytes", "packets"].map(indices)).unwrap();
        assert_eq!(opened.column(1).data_type(), &DataType::UInt8);
        assert!(bytes(&opened) > 3 && opened.num_columns() == 3);
        let opened = align(&opened, &Arc::new(wanted)).unwrap();
        let names: Vec<_> = opened.schema_ref().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["proto_ver", "ip_protocol", "bytes", "packets"]);
        assert_eq!(opened.column(0).as_string::<i32>().value(0), "sflow5");
        assert_eq!(opened.column(1).as_primitive::<Int16Type>().value(2), 255);
        let bytes = opened.column(2).as_primitive::<Int64Type>();
        assert!(bytes.value(0) == 1 && bytes.is_null(1) && bytes.is_null(2));
        assert_eq!(opened.column(3).null_count(), 3);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let batch = batch();
        let mut envelope = Envelope::of(&batch, Table::Flows, "c", 1, 1);
        envelope.schema_version = SCHEMA_VERSION + 1;
        let body = encode_body(&batch, Compression::None).unwrap().into();
        assert!(matches!(open(&envelope, &body), Err(EnvelopeError::Newer(_))));
    }
}
