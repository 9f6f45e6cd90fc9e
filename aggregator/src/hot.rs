//! From a message of the log to rows of SQL types, ready to be queried from memory.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::array::RecordBatchOptions;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use weir_schemas::envelope::{EnvelopeError, decode_body};
use weir_schemas::tables::SCHEMA_VERSION;
use weir_schemas::{Envelope, Table};

/// Opens a message: its batch with SQL types, in the order of the table, only the columns that it has.
pub(crate) fn open(envelope: &Envelope, body: &[u8]) -> Result<RecordBatch, EnvelopeError> {
    if envelope.schema_version > SCHEMA_VERSION {
        return Err(EnvelopeError::Newer(envelope.schema_version));
    }
    let batch = decode_body(envelope, body)?;
    Ok(to_sql(envelope.table, &batch)?)
}

/// Casts the columns to their SQL types. What does not fit (beyond `i64::MAX`) becomes NULL; columns that this weir does
/// not know are left out.
pub(crate) fn to_sql(table: Table, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = table.sql_schema();
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Ok(index) = schema.index_of(field.name()) else {
            tracing::debug!(table = table.name(), column = field.name(), "unknown column left out");
            continue;
        };
        let wanted = schema.field(index).data_type();
        let column = if field.data_type() == wanted {
            Arc::clone(column)
        } else {
            cast_with_options(column, wanted, &options)?
        };
        columns.push((index, column));
    }
    columns.sort_unstable_by_key(|(index, _)| *index);
    let fields: Vec<_> = columns.iter().map(|(index, _)| Arc::clone(&schema.fields()[*index])).collect();
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &rows)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, StringArray, UInt8Array, UInt64Array};
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
        let opened = open(&envelope, &encode_body(&batch, Compression::Lz4).unwrap()).unwrap();
        let names: Vec<_> = opened.schema_ref().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["proto_ver", "ip_protocol", "bytes"]);
        assert_eq!(opened.column(0).as_string::<i32>().value(0), "sflow5");
        assert_eq!(opened.column(1).as_primitive::<Int16Type>().value(2), 255);
        let bytes = opened.column(2).as_primitive::<Int64Type>();
        assert!(bytes.value(0) == 1 && bytes.is_null(1) && bytes.is_null(2));
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let batch = batch();
        let mut envelope = Envelope::of(&batch, Table::Flows, "c", 1, 1);
        envelope.schema_version = SCHEMA_VERSION + 1;
        let body = encode_body(&batch, Compression::None).unwrap();
        assert!(matches!(open(&envelope, &body), Err(EnvelopeError::Newer(_))));
    }
}
