use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, FixedSizeBinaryArray, Float64Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow::compute::{concat_batches, max, min};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, SchemaRef, TimestampMicrosecondType, UInt8Type};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::Encoding;
use parquet::bloom_filter::Sbbf;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::statistics::Statistics;
use weir_schemas::Table;

use super::*;
use crate::hot::align;
use crate::store::testing::{Random, address};

const OPTIONS: FileOptions = FileOptions { zstd_level: 1, row_group_rows: 150_000 };

fn columns(names: &[&str]) -> SchemaRef {
    let schema = Table::Flows.sql_schema();
    let index = |name: &&str| schema.index_of(name).unwrap();
    Arc::new(schema.project(&names.iter().map(index).collect::<Vec<_>>()).unwrap())
}

fn write(schema: &SchemaRef, batches: &[RecordBatch]) -> Bytes {
    let mut writer = FileWriter::new(schema, OPTIONS).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap()
}

fn open(bytes: &Bytes) -> ParquetRecordBatchReaderBuilder<Bytes> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    ParquetRecordBatchReaderBuilder::try_new_with_options(bytes.clone(), options).unwrap()
}

/// Writes the batches, reads them back with the crate's reader, and compares every value.
fn round_trip(schema: &SchemaRef, batches: &[RecordBatch]) -> Bytes {
    let bytes = write(schema, batches);
    let read: Vec<RecordBatch> = open(&bytes).build().unwrap().map(Result::unwrap).collect();
    let read = concat_batches(schema, &read).unwrap();
    let aligned: Vec<_> = batches.iter().map(|batch| align(batch, schema).unwrap()).collect();
    let wanted = concat_batches(schema, &aligned).unwrap();
    for (field, (read, wanted)) in schema.fields().iter().zip(read.columns().iter().zip(wanted.columns())) {
        assert!(read == wanted, "{} differs", field.name());
    }
    bytes
}

/// A batch of every type of the log, with NULLs as the number says.
fn batch(random: &mut Random, rows: usize, nulls: u64) -> RecordBatch {
    let mut some = |bound: u64| -> Vec<Option<u64>> {
        let value = |_| {
            let value = random.below(bound);
            (nulls == 0 || (nulls < 9 && random.below(nulls + 1) == 0)).then_some(value)
        };
        (0..rows).map(value).collect()
    };
    let addresses = |values: Vec<Option<u64>>| {
        let bytes = values.into_iter().map(|value| value.map(|value| address(value % 60_000)));
        Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 16).unwrap()) as ArrayRef
    };
    let macs = |values: Vec<Option<u64>>| {
        let bytes = values.into_iter().map(|value| value.map(|value| value.to_be_bytes()[2..].to_vec()));
        Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 6).unwrap()) as ArrayRef
    };
    let times = |values: Vec<Option<u64>>| {
        let micros = values.into_iter().map(|value| value.map(u64::cast_signed));
        Arc::new(TimestampMicrosecondArray::from_iter(micros).with_timezone("UTC")) as ArrayRef
    };
    let keys = some(3).into_iter().map(|key| key.map(|key| key as u8));
    let labels = Arc::new(StringArray::from(vec!["flow", "received", "unused before"]));
    let labels = DictionaryArray::<UInt8Type>::new(UInt8Array::from_iter(keys), labels);
    let narrow = |value: Option<u64>| value.map(|value| value as u8);
    let text = some(5).into_iter().map(|value| value.map(|value| format!("host{value}.example")));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("received_at", times(some(1 << 50))),
        ("time_source", Arc::new(labels)),
        ("exporter_addr", addresses(some(3))),
        ("src_addr", addresses(some(u64::MAX))),
        ("dst_addr", addresses(some(400))),
        (
            "src_port",
            Arc::new(UInt16Array::from_iter(some(1 << 16).into_iter().map(|v| v.map(|v| v as u16)))),
        ),
        ("ip_protocol", Arc::new(UInt8Array::from_iter(some(4).into_iter().map(narrow)))),
        ("bytes", Arc::new(UInt64Array::from_iter(some(u64::MAX)))),
        ("packets", Arc::new(UInt64Array::from_iter(some(90)))),
        (
            "sampling_rate",
            Arc::new(Float64Array::from_iter(some(5).into_iter().map(|v| v.map(|v| v as f64 / 3.0)))),
        ),
        ("sampling_effective", {
            let doubles = some(u64::MAX).into_iter().map(|value| value.map(|value| value as f64));
            Arc::new(Float64Array::from_iter(doubles))
        }),
        ("src_as", Arc::new(UInt32Array::from_iter(some(1 << 32).into_iter().map(|v| v.map(|v| v as u32))))),
        ("src_mac", macs(some(1 << 48))),
        ("http_host", Arc::new(StringArray::from_iter(text))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[test]
fn every_type_comes_back_over_pages_row_groups_and_absent_columns() {
    let mut random = Random(7);
    for sizes in [vec![1], vec![8, 1, 9], vec![70_000, 3, 65_536, 100_000], vec![40_000; 4]] {
        for nulls in [0, 1, 5, 9] {
            let mut batches: Vec<_> = sizes.iter().map(|rows| batch(&mut random, *rows, nulls)).collect();
            let schema = columns(
                &batches[0].schema_ref().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(),
            );
            // one batch lacks half of its columns, one begins in the middle of its buffers
            let middle = batches.len() / 2;
            if middle > 0 {
                batches[middle] = batches[middle].project(&[0, 3, 4, 7, 9]).unwrap();
                let last = batches.len() - 1;
                batches[last] = batches[last].slice(1, batches[last].num_rows() - 1);
            }
            round_trip(&schema, &batches);
        }
    }
}

#[test]
fn nested_columns_and_many_texts_are_left_to_the_crate() {
    use arrow::array::{ListBuilder, MapBuilder, StringBuilder, UInt32Builder};
    let mut labels = ListBuilder::new(UInt32Builder::new());
    let names =
        arrow::array::MapFieldNames { entry: "key_value".into(), key: "key".into(), value: "value".into() };
    let mut extra = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
    let rows = 70_000_u32;
    for row in 0..rows {
        labels.values().append_value(row);
        labels.append(row % 3 != 0);
        extra.keys().append_value("element");
        extra.values().append_value(row.to_string());
        extra.append(row % 2 == 0).unwrap();
    }
    let texts = StringArray::from_iter(
        (0..rows).map(|row| (row % 5 > 0).then(|| format!("https://example.net/{row}"))),
    );
    let batch = RecordBatch::try_from_iter([
        ("http_url", Arc::new(texts) as ArrayRef),
        ("src_mask", Arc::new(UInt8Array::from_iter_values((0..rows).map(|row| row as u8)))),
        ("mpls_labels", Arc::new(labels.finish())),
        ("extra", Arc::new(extra.finish())),
    ])
    .unwrap();
    round_trip(&columns(&["http_url", "mpls_labels", "src_mask", "extra"]), &[batch]);
}

#[test]
fn differences_of_any_size_come_back() {
    let schema = columns(&["received_at", "bytes"]);
    let series: [&dyn Fn(i64) -> i64; 5] =
        [&|_| 5, &|n| n * 1_000, &|n| if n % 2 == 0 { i64::MIN } else { i64::MAX }, &|n| -n * n, &|n| {
            n << (n % 63)
        }];
    for (kind, series) in series.into_iter().enumerate() {
        for rows in [1, 2, 31, 33, 128, 129, 130, 161, 1_000, 65_537] {
            let values: Vec<i64> = (0..rows).map(series).collect();
            let batch = RecordBatch::try_from_iter([
                (
                    "received_at",
                    Arc::new(TimestampMicrosecondArray::from(values.clone()).with_timezone("UTC"))
                        as ArrayRef,
                ),
                ("bytes", Arc::new(Int64Array::from(values))),
            ])
            .unwrap();
            let bytes = round_trip(&schema, &[batch]);
            let reader = open(&bytes);
            let times = reader.metadata().row_group(0).column(0);
            assert!(times.encodings().any(|encoding| encoding == Encoding::DELTA_BINARY_PACKED), "{kind}");
        }
    }
}

#[test]
fn what_statistics_and_filters_say_is_true() {
    let mut random = Random(3);
    let batches: Vec<_> = (0..4).map(|_| batch(&mut random, 50_000, 3)).collect();
    let schema = columns(&["received_at", "src_port", "bytes", "sampling_rate", "dst_addr", "time_source"]);
    let bytes = write(&schema, &batches);
    let reader = open(&bytes);
    let metadata = Arc::clone(reader.metadata());
    assert_eq!(metadata.num_row_groups(), 2);
    for (group, meta) in metadata.row_groups().iter().enumerate() {
        let rows = open(&bytes).with_row_groups(vec![group]).build().unwrap().map(Result::unwrap);
        let rows = concat_batches(&schema, &rows.collect::<Vec<_>>()).unwrap();
        let statistics = |column: usize| meta.column(column).statistics().unwrap();
        for (index, column) in rows.columns().iter().enumerate() {
            assert_eq!(statistics(index).null_count_opt(), Some(column.null_count() as u64), "{index}");
        }
        let Statistics::Int64(times) = statistics(0) else { panic!() };
        let column = rows.column(0).as_primitive::<TimestampMicrosecondType>();
        assert_eq!((times.min_opt().copied(), times.max_opt().copied()), (min(column), max(column)));
        let Statistics::Int32(ports) = statistics(1) else { panic!() };
        let column = rows.column(1).as_primitive::<Int32Type>();
        assert_eq!((ports.min_opt().copied(), ports.max_opt().copied()), (min(column), max(column)));
        let Statistics::Int64(counts) = statistics(2) else { panic!() };
        let column = rows.column(2).as_primitive::<Int64Type>();
        assert!(column.null_count() > 0);
        assert_eq!((counts.min_opt().copied(), counts.max_opt().copied()), (min(column), max(column)));
        let Statistics::Double(rates) = statistics(3) else { panic!() };
        let column = rows.column(3).as_primitive::<Float64Type>();
        let bounds = (min(column), max(column).unwrap());
        assert_eq!(rates.min_opt().copied().map(f64::abs), bounds.0);
        assert_eq!(rates.max_opt().copied(), Some(bounds.1));
        let Statistics::FixedLenByteArray(addresses) = statistics(4) else { panic!() };
        let column = rows.column(4).as_fixed_size_binary();
        assert_eq!(addresses.min_bytes_opt(), column.iter().flatten().min());
        assert_eq!(addresses.max_bytes_opt(), column.iter().flatten().max());
        let filter = Sbbf::read_from_column_chunk(meta.column(4), &bytes).unwrap().unwrap();
        assert!(column.iter().flatten().all(|address| filter.check(address)));
        let absent = (500..2_500).filter(|last| filter.check(&address(*last)[..])).count();
        assert!(absent < 200, "{absent} of 2,000 are said to be there");
        let Statistics::ByteArray(labels) = statistics(5) else { panic!() };
        let column = rows.column(5).as_string::<i32>();
        assert_eq!(
            labels.min_bytes_opt().map(|b| b.to_vec()),
            column.iter().flatten().min().map(|t| t.as_bytes().to_vec())
        );
        // a page of times says where it is and what is in it
        let pages = &metadata.offset_index().unwrap()[group][0];
        assert_eq!(pages.page_locations().len(), rows.num_rows().div_ceil(65_536));
        assert_eq!(
            metadata.column_index().unwrap()[group][0].num_pages() as usize,
            pages.page_locations().len()
        );
    }
}
