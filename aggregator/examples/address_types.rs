//! Measures which Arrow type serves addresses best: group by one address, group by the 5-tuple, prefix match, and size
//! in Parquet. The figures stand in `docs/decisions/0001-addresses.md`.
//!
//! `cargo run --release -p weir-aggregator --example address_types [ROWS]`

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BinaryViewArray, Decimal128Array, FixedSizeBinaryArray, Int16Array, Int32Array, Int64Array,
    RecordBatch, StringViewArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::SchemaRef;
use datafusion::datasource::MemTable;
use datafusion::error::Result;
use datafusion::prelude::{SessionConfig, SessionContext};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use weir_schemas::Address;

const HOSTS: usize = 400_000;
const BATCH: usize = 65_536;

/// A small generator (SplitMix64): the same rows in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A host's number, about Zipf: the u-th power makes few numbers frequent.
    fn host(&mut self) -> usize {
        let u = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        ((HOSTS as f64).powf(u) - 1.0) as usize
    }
}

fn address_of(host: usize) -> Address {
    let mixed = (host as u32).wrapping_mul(0x9e37_79b1);
    Address::v4((0x0a00_0000 | (mixed >> 8)).to_be_bytes())
}

/// A representation: its name, its arrays from addresses, and the SQL of a match of 10.1.0.0/16.
struct Form {
    name: &'static str,
    arrays: fn(&[Address]) -> Vec<ArrayRef>,
    columns: fn(&str) -> Vec<String>,
    prefix: &'static str,
}

fn one(column: &str) -> Vec<String> {
    vec![column.to_owned()]
}

fn forms() -> Vec<Form> {
    vec![
        Form {
            name: "UInt32 (IPv4 only)",
            arrays: |hosts| {
                let number = |a: &Address| u32::from_be_bytes(a.as_v4().unwrap_or_default());
                vec![Arc::new(UInt32Array::from_iter_values(hosts.iter().map(number)))]
            },
            columns: one,
            prefix: "src between 167837696 and 167903231",
        },
        Form {
            name: "FixedSizeBinary(16)",
            arrays: |hosts| {
                let bytes = hosts.iter().flat_map(|a| a.0).collect::<Vec<u8>>();
                vec![Arc::new(FixedSizeBinaryArray::new(16, bytes.into(), None))]
            },
            columns: one,
            prefix: "src between arrow_cast(X'00000000000000000000ffff0a010000', 'FixedSizeBinary(16)') and arrow_cast(X'00000000000000000000ffff0a01ffff', 'FixedSizeBinary(16)')",
        },
        Form {
            name: "BinaryView",
            arrays: |hosts| vec![Arc::new(BinaryViewArray::from_iter_values(hosts.iter().map(|a| a.0)))],
            columns: one,
            prefix: "src between arrow_cast(X'00000000000000000000ffff0a010000', 'BinaryView') and arrow_cast(X'00000000000000000000ffff0a01ffff', 'BinaryView')",
        },
        Form {
            name: "Decimal128",
            arrays: |hosts| {
                let numbers = hosts.iter().map(|a| i128::from_be_bytes(a.0));
                vec![Arc::new(Decimal128Array::from_iter_values(numbers))]
            },
            columns: one,
            prefix: "src between 281470849548288 and 281470849613823",
        },
        Form {
            name: "two UInt64",
            arrays: |hosts| {
                let high = |a: &Address| (u128::from_be_bytes(a.0) >> 64) as u64;
                let low = |a: &Address| u128::from_be_bytes(a.0) as u64;
                vec![
                    Arc::new(UInt64Array::from_iter_values(hosts.iter().map(high))),
                    Arc::new(UInt64Array::from_iter_values(hosts.iter().map(low))),
                ]
            },
            columns: |column| vec![format!("{column}_high"), format!("{column}_low")],
            prefix: "src_high = 0 and src_low between 281470849548288 and 281470849613823",
        },
        Form {
            name: "text (Utf8View)",
            arrays: |hosts| {
                vec![Arc::new(StringViewArray::from_iter_values(hosts.iter().map(Address::to_string)))]
            },
            columns: one,
            prefix: "src like '10.1.%'",
        },
    ]
}

fn batches(form: &Form, rows: usize) -> Result<Vec<RecordBatch>> {
    let mut random = Random(1);
    let mut batches = Vec::new();
    let mut left = rows;
    while left > 0 {
        let n = left.min(BATCH);
        left -= n;
        let src: Vec<_> = (0..n).map(|_| address_of(random.host())).collect();
        let dst: Vec<_> = (0..n).map(|_| address_of(random.host() / 3)).collect();
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        columns.extend((form.columns)("src").into_iter().zip((form.arrays)(&src)));
        columns.extend((form.columns)("dst").into_iter().zip((form.arrays)(&dst)));
        let ports =
            |random: &mut Random| Int32Array::from_iter_values((0..n).map(|_| (random.next() % 1000) as i32));
        columns.push(("src_port".to_owned(), Arc::new(ports(&mut random))));
        columns.push(("dst_port".to_owned(), Arc::new(ports(&mut random))));
        let protocols = (0..n).map(|_| if random.next().is_multiple_of(4) { 17 } else { 6 });
        columns.push(("proto".to_owned(), Arc::new(Int16Array::from_iter_values(protocols))));
        let bytes = (0..n).map(|_| (random.next() % 100_000) as i64);
        columns.push(("bytes".to_owned(), Arc::new(Int64Array::from_iter_values(bytes))));
        batches.push(RecordBatch::try_from_iter(columns)?);
    }
    Ok(batches)
}

fn parquet_bytes_per_address(batches: &[RecordBatch], width: usize) -> Result<f64> {
    let address: Vec<_> = (0..width).collect();
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let schema: SchemaRef = Arc::new(batches[0].schema().project(&address)?);
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    let mut rows = 0;
    for batch in batches {
        writer.write(&batch.project(&address)?)?;
        rows += batch.num_rows();
    }
    Ok(writer.into_inner()?.len() as f64 / rows as f64)
}

async fn best_of_three(context: &SessionContext, query: &str, rows: usize) -> Result<(f64, usize)> {
    let (mut best, mut answers) = (f64::MAX, 0);
    for _ in 0..3 {
        let started = Instant::now();
        let answer = context.sql(query).await?.collect().await?;
        best = best.min(started.elapsed().as_nanos() as f64 / rows as f64);
        answers = answer.iter().map(RecordBatch::num_rows).sum();
    }
    Ok((best, answers))
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "prints its table")]
async fn main() -> Result<()> {
    let rows: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10_000_000);
    println!("{rows} rows, {HOSTS} hosts, 2 partitions, best of 3; ns a row\n");
    println!("| type | group by address | group by 5-tuple | match a /16 | Parquet bytes an address |");
    println!("|---|---|---|---|---|");
    for form in forms() {
        let batches = batches(&form, rows)?;
        let size = parquet_bytes_per_address(&batches[..batches.len().min(32)], (form.columns)("src").len())?;
        let schema = batches[0].schema();
        let half = batches.len() / 2;
        let partitions = vec![batches[..half].to_vec(), batches[half..].to_vec()];
        drop(batches);
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        context.register_table("flows", Arc::new(MemTable::try_new(schema, partitions)?))?;
        let (src, dst) = ((form.columns)("src").join(", "), (form.columns)("dst").join(", "));
        let (one, _) = best_of_three(
            &context,
            &format!("select {src}, sum(bytes) b from flows group by {src} order by b desc limit 20"),
            rows,
        )
        .await?;
        let (five, _) = best_of_three(
            &context,
            &format!("select {src}, {dst}, src_port, dst_port, proto, sum(bytes) b from flows group by {src}, {dst}, src_port, dst_port, proto order by b desc limit 20"),
            rows,
        )
        .await?;
        let (prefix, _) =
            best_of_three(&context, &format!("select count(*) from flows where {}", form.prefix), rows)
                .await?;
        println!("| {} | {one:.0} | {five:.0} | {prefix:.1} | {size:.1} |", form.name);
    }
    Ok(())
}
