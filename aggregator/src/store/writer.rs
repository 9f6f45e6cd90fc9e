//! A Parquet file, row group by row group: flat columns by [`super::columns`], the others by the `parquet` crate.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, ZstdLevel};
use parquet::bloom_filter::Sbbf;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::Result;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;

use super::columns::{ColumnOptions, encode};

/// Addresses by which people look for single flows: their row groups carry a Bloom filter.
const BLOOM: &[&str] =
    &["src_addr", "dst_addr", "nat_src_addr", "nat_dst_addr", "inner_src_addr", "inner_dst_addr"];

/// How files are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileOptions {
    pub(crate) zstd_level: i32,
    pub(crate) row_group_rows: usize,
}

/// Writes batches as one file. They need not have all its columns, and may have them in the types of the log.
pub(crate) struct FileWriter {
    file: SerializedFileWriter<Vec<u8>>,
    schema: SchemaRef,
    options: FileOptions,
    /// The rows of the next row group.
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    row_groups: usize,
}

impl FileWriter {
    /// A file with the columns of `schema`, which has SQL types.
    pub(crate) fn new(schema: &SchemaRef, options: FileOptions) -> Result<FileWriter> {
        let mut properties = WriterProperties::builder()
            .set_created_by(concat!("weir ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(options.zstd_level)?))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .build();
        add_encoded_arrow_schema_to_metadata(schema, &mut properties);
        let parquet = ArrowSchemaConverter::new().convert(schema)?;
        let file = SerializedFileWriter::new(Vec::new(), parquet.root_schema_ptr(), Arc::new(properties))?;
        let schema = Arc::clone(schema);
        Ok(FileWriter { file, schema, options, pending: Vec::new(), pending_rows: 0, row_groups: 0 })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut from = 0;
        while from < batch.num_rows() {
            let rows = (batch.num_rows() - from).min(self.options.row_group_rows - self.pending_rows);
            self.pending.push(batch.slice(from, rows));
            self.pending_rows += rows;
            from += rows;
            if self.pending_rows == self.options.row_group_rows {
                self.row_group()?;
            }
        }
        Ok(())
    }

    /// Whether a row group of another file can be taken as it is: its columns are those of this file.
    pub(crate) fn takes(&self, from: &ParquetMetaData) -> bool {
        let (own, other) = (self.file.schema_descr(), from.file_metadata().schema_descr());
        own.columns() == other.columns()
    }

    /// Carries a row group over from another file, for which [`FileWriter::takes`] holds, without reading its values.
    pub(crate) fn splice(&mut self, bytes: &Bytes, metadata: &ParquetMetaData, at: usize) -> Result<()> {
        if self.pending_rows > 0 {
            self.row_group()?;
        }
        let from = metadata.row_group(at);
        let mut group = self.file.next_row_group()?;
        for (column, chunk) in from.columns().iter().enumerate() {
            let close = ColumnCloseResult {
                bytes_written: u64::try_from(chunk.compressed_size()).unwrap_or(0),
                rows_written: u64::try_from(from.num_rows()).unwrap_or(0),
                metadata: chunk.clone(),
                bloom_filter: Sbbf::read_from_column_chunk(chunk, bytes)?,
                column_index: metadata.column_index().map(|index| index[at][column].clone()),
                offset_index: metadata.offset_index().map(|index| index[at][column].clone()),
            };
            group.append_column(bytes, close)?;
        }
        group.close()?;
        self.row_groups += 1;
        Ok(())
    }

    /// The whole file.
    pub(crate) fn finish(mut self) -> Result<Bytes> {
        if self.pending_rows > 0 {
            self.row_group()?;
        }
        Ok(self.file.into_inner()?.into())
    }

    fn row_group(&mut self) -> Result<()> {
        let batches = std::mem::take(&mut self.pending);
        self.pending_rows = 0;
        let factory = ArrowRowGroupWriterFactory::new(&self.file, Arc::clone(&self.schema));
        let descriptors = self.file.schema_descr().columns().to_vec();
        let mut group = self.file.next_row_group()?;
        let mut others = None;
        let mut leaf = 0;
        for field in self.schema.fields() {
            let arrays: Vec<(Option<ArrayRef>, usize)> = batches
                .iter()
                .map(|batch| (batch.column_by_name(field.name()).cloned(), batch.num_rows()))
                .collect();
            let leaves = leaves(field.data_type());
            let is_time = matches!(field.data_type(), DataType::Timestamp(..));
            let options = ColumnOptions {
                zstd_level: self.options.zstd_level,
                delta: is_time,
                page_index: is_time,
                bloom: BLOOM.contains(&field.name().as_str()),
            };
            match if leaves == 1 { encode(&descriptors[leaf], &arrays, options)? } else { None } {
                Some(chunk) => group.append_column(&chunk.bytes, chunk.close)?,
                None => {
                    let writers = match &mut others {
                        Some(writers) => writers,
                        None => {
                            let made = factory.create_column_writers(self.row_groups)?;
                            others.insert(made.into_iter().map(Some).collect::<Vec<_>>())
                        }
                    };
                    let mut own: Vec<_> =
                        writers[leaf..leaf + leaves].iter_mut().filter_map(Option::take).collect();
                    for (array, rows) in arrays {
                        let array = sql_array(field, array, rows)?;
                        for (writer, leaf) in own.iter_mut().zip(compute_leaves(field, &array)?) {
                            writer.write(&leaf)?;
                        }
                    }
                    for writer in own {
                        writer.close()?.append_to_row_group(&mut group)?;
                    }
                }
            }
            leaf += leaves;
        }
        group.close()?;
        self.row_groups += 1;
        Ok(())
    }
}

/// Parquet's columns for an Arrow type.
fn leaves(kind: &DataType) -> usize {
    match kind {
        DataType::List(item) => leaves(item.data_type()),
        DataType::Map(entries, _) => leaves(entries.data_type()),
        DataType::Struct(fields) => fields.iter().map(|field| leaves(field.data_type())).sum(),
        _ => 1,
    }
}

fn sql_array(field: &Field, array: Option<ArrayRef>, rows: usize) -> Result<ArrayRef> {
    Ok(match array {
        None => new_null_array(field.data_type(), rows),
        Some(array) if array.data_type() == field.data_type() => array,
        Some(array) => cast_with_options(
            &array,
            field.data_type(),
            &CastOptions { safe: true, ..CastOptions::default() },
        )?,
    })
}

/// The columns of `schema` that have a value in any of the batches.
pub(crate) fn present(schema: &Schema, batches: &[RecordBatch]) -> SchemaRef {
    let has = |name: &str| {
        batches
            .iter()
            .any(|batch| batch.column_by_name(name).is_some_and(|column| column.null_count() < column.len()))
    };
    let fields = schema.fields().iter().filter(|field| has(field.name())).cloned().collect::<Vec<_>>();
    Arc::new(Schema::new(fields))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
