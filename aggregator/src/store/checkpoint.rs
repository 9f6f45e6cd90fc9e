//! Checkpoints of a Delta log: the actions that still count, as one Parquet file.
//!
//! The columns of a checkpoint are the fields of the actions, so the same JSON is read into, and written out of, Arrow.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::error::ArrowError;
use arrow::json::{LineDelimitedWriter, ReaderBuilder};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::StoreError;
use super::delta::{Action, LogState, Txn};

fn map() -> DataType {
    let entry = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entry.into()), false)), false)
}

fn part(name: &str, fields: Vec<(&str, DataType)>) -> Field {
    let fields: Fields = fields.into_iter().map(|(name, kind)| Field::new(name, kind, true)).collect();
    Field::new(name, DataType::Struct(fields), true)
}

fn schema() -> Arc<Schema> {
    let text = || DataType::Utf8;
    let format = vec![Field::new("provider", text(), true), Field::new("options", map(), true)];
    Arc::new(Schema::new(vec![
        part("txn", vec![("appId", text()), ("version", DataType::Int64), ("lastUpdated", DataType::Int64)]),
        part(
            "add",
            vec![
                ("path", text()),
                ("partitionValues", map()),
                ("size", DataType::Int64),
                ("modificationTime", DataType::Int64),
                ("dataChange", DataType::Boolean),
                ("stats", text()),
            ],
        ),
        part(
            "remove",
            vec![
                ("path", text()),
                ("deletionTimestamp", DataType::Int64),
                ("dataChange", DataType::Boolean),
                ("extendedFileMetadata", DataType::Boolean),
                ("partitionValues", map()),
                ("size", DataType::Int64),
            ],
        ),
        part(
            "metaData",
            vec![
                ("id", text()),
                ("name", text()),
                ("format", DataType::Struct(format.into())),
                ("schemaString", text()),
                ("partitionColumns", DataType::List(Arc::new(Field::new("element", text(), true)))),
                ("configuration", map()),
                ("createdTime", DataType::Int64),
            ],
        ),
        part("protocol", vec![("minReaderVersion", DataType::Int32), ("minWriterVersion", DataType::Int32)]),
    ]))
}

/// The actions that make up `state`, as a checkpoint file.
pub(crate) fn write(state: &LogState) -> Result<Bytes, StoreError> {
    let protocol = state
        .protocol
        .iter()
        .map(|protocol| Action { protocol: Some(protocol.clone()), ..Action::default() });
    let metadata =
        state.metadata.iter().map(|found| Action { meta_data: Some(found.clone()), ..Action::default() });
    let txns = state.txns.iter().map(|(app, version)| {
        let txn = Txn { app_id: app.clone(), version: *version, last_updated: None };
        Action { txn: Some(txn), ..Action::default() }
    });
    // a file of a checkpoint is no change to the one who reads it
    let adds = state.files.values().map(|file| {
        let mut add = file.add.clone();
        add.data_change = false;
        Action { add: Some(add), ..Action::default() }
    });
    let removes = state.removed.values().map(|found| {
        let mut remove = found.clone();
        remove.data_change = false;
        Action { remove: Some(remove), ..Action::default() }
    });
    let actions: Vec<Action> = protocol.chain(metadata).chain(txns).chain(adds).chain(removes).collect();
    let schema = schema();
    let mut decoder =
        ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(actions.len().max(1)).build_decoder()?;
    decoder.serialize(&actions)?;
    let batch = decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(Arc::clone(&schema)));
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?.into())
}

/// The actions of a checkpoint file.
pub(crate) fn read(bytes: Bytes) -> Result<Vec<Action>, StoreError> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()?;
    let mut lines = LineDelimitedWriter::new(Vec::new());
    for batch in reader {
        lines.write(&batch?)?;
    }
    lines.finish()?;
    let parsed = serde_json::Deserializer::from_reader(Cursor::new(lines.into_inner())).into_iter::<Action>();
    let actions = parsed.collect::<Result<Vec<_>, _>>();
    actions.map_err(|error| ArrowError::JsonError(format!("checkpoint: {error}")).into())
}
