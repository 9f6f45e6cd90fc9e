//! Values on their way out: Arrow columns as text, JSON and PostgreSQL's wire formats; and parameters on their way in.
//!
//! In every format an address is its text (`10.1.2.3`); the wire calls it `inet` (or `macaddr`) and has its binary
//! form too. A map or a struct is JSON; a list is an array on the wire, JSON elsewhere.

use std::sync::Arc;

use arrow_pg::datatypes::field_into_pg_type;
use arrow_pg::encoder::encode_value;
use bytes::Bytes;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, ListArray, RecordBatch, RecordBatchOptions, StringArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::WriterBuilder;
use datafusion::arrow::json::writer::LineDelimited;
use datafusion::common::ScalarValue;
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo};
use pgwire::error::PgWireResult;
use pgwire::messages::data::DataRow;
use pgwire::types::format::FormatOptions;
use weir_schemas::{Address, Mac};

use crate::sql::address::Family;
use crate::sql::functions::address::address_text;
use crate::sql::{ErrorKind, QueryError, typed};

/// Seconds from 1970 to 2000, PostgreSQL's epoch.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

fn is_nested(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::List(_)
            | DataType::LargeList(_)
            | DataType::FixedSizeList(..)
            | DataType::ListView(_)
            | DataType::LargeListView(_)
            | DataType::Struct(_)
            | DataType::Map(..)
            | DataType::Union(..)
    )
}

fn list_item(data_type: &DataType) -> Option<&FieldRef> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => Some(item),
        _ => None,
    }
}

/// What the wire calls a column.
pub(crate) fn pg_type(field: &FieldRef) -> Type {
    match field.data_type() {
        DataType::FixedSizeBinary(16) => Type::INET,
        DataType::FixedSizeBinary(6) => Type::MACADDR,
        data_type => match list_item(data_type) {
            Some(item) if Family::of(item.data_type()).is_some() => Type::TEXT_ARRAY,
            Some(item) if is_nested(item.data_type()) => Type::JSON,
            None if is_nested(data_type) => Type::JSON,
            _ => field_into_pg_type(field).unwrap_or(Type::TEXT),
        },
    }
}

/// The wire's description of an answer's columns.
pub(crate) fn pg_fields(schema: &Schema, format: &Format) -> Vec<FieldInfo> {
    let options = Arc::new(FormatOptions::default());
    let field = |(index, field): (usize, &FieldRef)| {
        let format = match format {
            Format::Individual(codes) => {
                codes.get(index).map_or(FieldFormat::Text, |code| FieldFormat::from(*code))
            }
            other => other.format_for(index),
        };
        FieldInfo::new(field.name().clone(), None, None, pg_type(field), format)
            .with_format_options(Arc::clone(&options))
    };
    schema.fields().iter().enumerate().map(field).collect()
}

/// The rows of a batch for the wire.
pub(crate) fn pg_rows(
    batch: &RecordBatch,
    fields: &Arc<Vec<FieldInfo>>,
) -> Result<Vec<PgWireResult<DataRow>>, QueryError> {
    let failed = |error: ArrowError| QueryError::new(ErrorKind::Internal, error.to_string());
    let columns: Vec<(ArrayRef, FieldRef)> = batch
        .columns()
        .iter()
        .zip(batch.schema_ref().fields())
        .map(|(column, field)| wire_column(column, field))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    let mut encoder = DataRowEncoder::new(Arc::clone(fields));
    let row = |row: usize| {
        for ((column, field), wire) in columns.iter().zip(fields.iter()) {
            encode(&mut encoder, column, row, field, wire)?;
        }
        Ok(encoder.take_row())
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

/// A column in a type that the wire's encoder takes.
fn wire_column(column: &ArrayRef, field: &FieldRef) -> Result<(ArrayRef, FieldRef), ArrowError> {
    let data_type = column.data_type();
    let kind = pg_type(field);
    let text = |column: ArrayRef| {
        let field = Arc::new(Field::new(field.name(), column.data_type().clone(), true));
        Ok((column, field))
    };
    match list_item(data_type) {
        _ if kind == Type::JSON => text(json_text(column)?),
        Some(item) if Family::of(item.data_type()).is_some() => {
            let list = cast(column, &DataType::List(Arc::clone(item)))?;
            text(readable(&list)?)
        }
        None if kind == Type::TEXT
            && !matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) =>
        {
            text(cast(column, &DataType::Utf8)?)
        }
        _ => Ok((Arc::clone(column), Arc::clone(field))),
    }
}

fn encode(
    encoder: &mut DataRowEncoder,
    column: &ArrayRef,
    row: usize,
    field: &FieldRef,
    wire: &FieldInfo,
) -> PgWireResult<()> {
    let (kind, format, options) = (wire.datatype(), wire.format(), wire.format_options());
    if column.is_null(row) {
        return encoder.encode_field_with_type_and_format(
            &None::<&str>,
            &Type::TEXT,
            FieldFormat::Text,
            options,
        );
    }
    match Family::of(column.data_type()) {
        Some(family) => {
            let bytes = column.as_fixed_size_binary().value(row);
            if format == FieldFormat::Text {
                let text = family.text(bytes).unwrap_or_default();
                encoder.encode_field_with_type_and_format(&text.as_str(), &Type::TEXT, format, options)
            } else {
                let binary = match family {
                    Family::Ip => inet_binary(bytes),
                    Family::Mac => bytes.to_vec(),
                };
                encoder.encode_field_with_type_and_format(&binary.as_slice(), &Type::BYTEA, format, options)
            }
        }
        None if *kind == Type::JSON => {
            let text = column.as_string_opt::<i32>().map_or("", |column| column.value(row));
            encoder.encode_field_with_type_and_format(&text, &Type::TEXT, format, options)
        }
        // `500`, as PostgreSQL prints it, not `500.0`
        None if *kind == Type::FLOAT8
            && format == FieldFormat::Text
            && column.data_type() == &DataType::Float64 =>
        {
            let text = float_text(column.as_primitive::<Float64Type>().value(row));
            encoder.encode_field_with_type_and_format(&text.as_str(), &Type::TEXT, format, options)
        }
        None => encode_value(encoder, column, row, field, wire),
    }
}

/// The shortest digits that give the same number, never with an exponent: octets of a year are read by people.
fn float_text(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        value => value.to_string(),
    }
}

/// PostgreSQL's binary `inet`: family (2 or 3), prefix length, whether `cidr`, length, address.
fn inet_binary(bytes: &[u8]) -> Vec<u8> {
    let address = bytes.try_into().map_or(Address::UNSPECIFIED, Address);
    match address.as_v4() {
        Some(octets) => [&[2, 32, 0, 4][..], &octets].concat(),
        None => [&[3, 128, 0, 16][..], &address.0].concat(),
    }
}

/// A column as people read it: addresses as text, also inside lists and structs.
pub(crate) fn readable(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let data_type = column.data_type();
    if Family::of(data_type).is_some() {
        return Ok(Arc::new(
            address_text(column).map_err(|error| ArrowError::from_external_error(Box::new(error)))?,
        ));
    }
    match data_type {
        DataType::List(item) if holds_address(item.data_type()) => {
            let list = column.as_list::<i32>();
            let values = readable(list.values())?;
            let item = Arc::new(Field::new(item.name(), values.data_type().clone(), true));
            Ok(Arc::new(ListArray::try_new(item, list.offsets().clone(), values, list.nulls().cloned())?))
        }
        DataType::Struct(fields) if holds_address(data_type) => {
            let values = column.as_struct();
            let columns = values.columns().iter().map(readable).collect::<Result<Vec<_>, _>>()?;
            let fields: Vec<FieldRef> = fields
                .iter()
                .zip(&columns)
                .map(|(field, column)| Arc::new(Field::new(field.name(), column.data_type().clone(), true)))
                .collect();
            Ok(Arc::new(datafusion::arrow::array::StructArray::try_new(
                fields.into(),
                columns,
                values.nulls().cloned(),
            )?))
        }
        _ => Ok(Arc::clone(column)),
    }
}

fn holds_address(data_type: &DataType) -> bool {
    Family::of(data_type).is_some()
        || list_item(data_type).is_some_and(|item| holds_address(item.data_type()))
        || matches!(data_type, DataType::Struct(fields) if fields.iter().any(|field| holds_address(field.data_type())))
}

/// The type of a column after [`readable`].
fn readable_type(data_type: &DataType) -> DataType {
    let renamed =
        |field: &FieldRef| Arc::new(Field::new(field.name(), readable_type(field.data_type()), true));
    match data_type {
        _ if Family::of(data_type).is_some() => DataType::Utf8,
        DataType::List(item) if holds_address(item.data_type()) => DataType::List(renamed(item)),
        DataType::Struct(fields) if holds_address(data_type) => {
            DataType::Struct(fields.iter().map(renamed).collect())
        }
        other => other.clone(),
    }
}

/// The schema of [`readable_batch`]'s batches.
pub(crate) fn readable_schema(schema: &Schema) -> SchemaRef {
    let field = |field: &FieldRef| Field::new(field.name(), readable_type(field.data_type()), true);
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// A batch as people read it.
pub(crate) fn readable_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().map(readable).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
}

/// A batch for CSV: lists, maps and structs are JSON text in their cell.
pub(crate) fn flat_batch(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let column =
        |column: &ArrayRef| if is_nested(column.data_type()) { json_text(column) } else { readable(column) };
    let columns = batch.columns().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let field =
        |(field, column): (&FieldRef, &ArrayRef)| Field::new(field.name(), column.data_type().clone(), true);
    let schema = Schema::new(batch.schema_ref().fields().iter().zip(&columns).map(field).collect::<Vec<_>>());
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(schema), columns, &options)
}

/// Each value of a column as JSON.
fn json_text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let column = readable(column)?;
    let schema = Arc::new(Schema::new(vec![Field::new("v", column.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(&column)])?;
    let mut text = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut text);
    writer.write(&batch)?;
    writer.finish()?;
    drop(writer);
    let text = String::from_utf8(text).map_err(|error| ArrowError::from_external_error(Box::new(error)))?;
    let value = |(row, line): (usize, &str)| {
        let value = line.strip_prefix("{\"v\":").and_then(|line| line.strip_suffix('}'));
        value.filter(|_| column.is_valid(row)).map(str::to_owned)
    };
    Ok(Arc::new(text.lines().enumerate().map(value).collect::<StringArray>()))
}

/// The wire type that a parameter is asked for in.
pub(crate) fn parameter_type(data_type: Option<&DataType>) -> Type {
    match data_type {
        Some(data_type) => pg_type(&Arc::new(Field::new("", data_type.clone(), true))),
        None => Type::TEXT,
    }
}

/// A parameter's value, from what the client sent, as the type that the statement wants.
pub(crate) fn parameter(
    bytes: Option<&Bytes>,
    binary: bool,
    sent_as: &Type,
    wanted: Option<&DataType>,
) -> Result<ScalarValue, QueryError> {
    let bad = |why: &str| {
        QueryError::new(ErrorKind::BadValue, format!("a parameter of type {}: {why}", sent_as.name()))
    };
    let value = match bytes {
        None => ScalarValue::Utf8(None),
        Some(bytes) if !binary => {
            let text = std::str::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
            ScalarValue::Utf8(Some(if *sent_as == Type::BOOL {
                boolean(text).to_owned()
            } else {
                text.to_owned()
            }))
        }
        Some(bytes) => binary_value(bytes, sent_as)
            .ok_or_else(|| bad("its binary form is not understood here; send text"))?,
    };
    typed(value, wanted).map_err(|error| {
        let error = QueryError::from_datafusion(&error, "");
        QueryError::new(ErrorKind::BadValue, error.message)
    })
}

fn boolean(text: &str) -> &str {
    match text {
        "t" | "1" | "yes" | "on" => "true",
        "f" | "0" | "no" | "off" => "false",
        other => other,
    }
}

fn binary_value(bytes: &[u8], kind: &Type) -> Option<ScalarValue> {
    Some(match *kind {
        Type::BOOL => ScalarValue::Boolean(Some(*bytes.first()? != 0)),
        Type::INT2 => ScalarValue::Int16(Some(i16::from_be_bytes(bytes.try_into().ok()?))),
        Type::INT4 => ScalarValue::Int32(Some(i32::from_be_bytes(bytes.try_into().ok()?))),
        Type::INT8 => ScalarValue::Int64(Some(i64::from_be_bytes(bytes.try_into().ok()?))),
        Type::OID => ScalarValue::Int64(Some(u32::from_be_bytes(bytes.try_into().ok()?).into())),
        Type::FLOAT4 => ScalarValue::Float32(Some(f32::from_be_bytes(bytes.try_into().ok()?))),
        Type::FLOAT8 => ScalarValue::Float64(Some(f64::from_be_bytes(bytes.try_into().ok()?))),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON => {
            ScalarValue::Utf8(Some(std::str::from_utf8(bytes).ok()?.to_owned()))
        }
        Type::INET | Type::CIDR => {
            let address = match (bytes.first()?, bytes.get(4..)?) {
                (2, octets) => Address::v4(octets.try_into().ok()?),
                (3, octets) => Address(octets.try_into().ok()?),
                _ => return None,
            };
            let whole = if address.is_v4() { 32 } else { 128 };
            if bytes[1] != whole {
                return Some(ScalarValue::Utf8(Some(format!("{address}/{}", bytes[1]))));
            }
            ScalarValue::FixedSizeBinary(16, Some(address.0.to_vec()))
        }
        Type::MACADDR => ScalarValue::FixedSizeBinary(6, Some(Mac(bytes.try_into().ok()?).0.to_vec())),
        Type::TIMESTAMPTZ | Type::TIMESTAMP => {
            let micros =
                i64::from_be_bytes(bytes.try_into().ok()?).checked_add(POSTGRES_EPOCH_SECONDS * 1_000_000)?;
            ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))
        }
        Type::DATE => {
            let days = i32::from_be_bytes(bytes.try_into().ok()?);
            ScalarValue::Date32(Some(days.checked_add(i32::try_from(POSTGRES_EPOCH_SECONDS / 86_400).ok()?)?))
        }
        Type::BYTEA => ScalarValue::Binary(Some(bytes.to_vec())),
        _ => return None,
    })
}

/// The type of a time parameter where none is known.
#[cfg(test)]
fn time_type() -> DataType {
    use datafusion::arrow::datatypes::TimeUnit;
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_print_as_people_read_them() {
        for (value, text) in [
            (500.0, "500"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e18, "1000000000000000000"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float_text(value), text);
        }
    }

    #[test]
    fn inet_has_postgres_binary_form() {
        let v4: Address = "10.1.2.3".parse().unwrap();
        assert_eq!(inet_binary(&v4.0), [2, 32, 0, 4, 10, 1, 2, 3]);
        let v6: Address = "2001:db8::1".parse().unwrap();
        assert_eq!(inet_binary(&v6.0)[..4], [3, 128, 0, 16]);
        for address in [v4, v6] {
            let value = binary_value(&inet_binary(&address.0), &Type::INET).unwrap();
            assert_eq!(value, ScalarValue::FixedSizeBinary(16, Some(address.0.to_vec())));
        }
    }

    #[test]
    fn parameters_become_what_the_statement_wants() {
        let of = |text: &'static str, kind: Type, wanted: DataType| {
            parameter(Some(&Bytes::from_static(text.as_bytes())), false, &kind, Some(&wanted))
        };
        assert_eq!(of("443", Type::INT4, DataType::Int32).unwrap(), ScalarValue::Int32(Some(443)));
        assert_eq!(of("t", Type::BOOL, DataType::Boolean).unwrap(), ScalarValue::Boolean(Some(true)));
        let address = ScalarValue::FixedSizeBinary(16, Some(Address::v4([10, 1, 2, 3]).0.to_vec()));
        assert_eq!(of("10.1.2.3", Type::INET, DataType::FixedSizeBinary(16)).unwrap(), address);
        assert_eq!(of("10.1.2.3", Type::TEXT, DataType::FixedSizeBinary(16)).unwrap(), address);
        assert!(of("10.1.2", Type::INET, DataType::FixedSizeBinary(16)).is_err());
        assert!(of("2026-11-23 09:00:00Z", Type::TIMESTAMPTZ, time_type()).is_ok());
        assert!(of("x", Type::INT4, DataType::Int32).is_err());
        assert!(parameter(None, false, &Type::INT4, Some(&DataType::Int32)).unwrap().is_null());
    }
}
