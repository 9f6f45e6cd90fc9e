//! Rollups that keep every key, and the merging of partial rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Int16Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use foldhash::fast::RandomState;

use super::{Col, Rollup, Sums, Volume, dscp_class, longs, measures, shorts};

pub(super) type Groups<K> = HashMap<K, Sums, RandomState>;

/// What stands for NULL in a key; no column's value reaches it.
pub(super) const NONE: i64 = i64::MIN;

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct FlowsKey {
    window: i64,
    exporter: Option<u128>,
    in_if: i64,
    out_if: i64,
    /// Protocol and DSCP side by side, -1 for NULL.
    protocol: i16,
    dscp: i16,
    src_as: i64,
    dst_as: i64,
}

/// An address in two words' worth of hash: the halves of an IPv6 address differ by themselves.
fn folded(address: Option<u128>) -> u64 {
    address.map_or(0, |address| address as u64 ^ ((address >> 64) as u64).rotate_left(32))
}

impl std::hash::Hash for FlowsKey {
    /// Three words say nearly all: what they leave out, equality tells apart.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let class = u64::from(self.protocol.cast_unsigned()) | u64::from(self.dscp.cast_unsigned()) << 16;
        state.write_u64(folded(self.exporter) ^ self.window.cast_unsigned().rotate_left(17));
        state.write_u64((self.in_if ^ self.out_if.rotate_left(32)).cast_unsigned());
        state.write_u64((self.src_as ^ self.dst_as.rotate_left(32)).cast_unsigned() ^ class.rotate_left(40));
    }
}

fn dscp(tos: Option<i16>) -> i16 {
    tos.map_or(-1, |tos| tos >> 2)
}

pub(super) fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

pub(super) fn addresses(values: impl Iterator<Item = Option<u128>>) -> Result<ArrayRef, ArrowError> {
    let bytes = values.map(|value| value.map(u128::to_be_bytes));
    Ok(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 16)?))
}

pub(super) fn long_array(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(values.map(|value| (value != NONE).then_some(value))))
}

pub(super) fn short_array(values: impl Iterator<Item = i16>) -> ArrayRef {
    Arc::new(Int16Array::from_iter(values.map(|value| (value >= 0).then_some(value))))
}

/// The groups in the order of their keys: equal input gives equal files.
fn sorted<K: Ord>(groups: Groups<K>) -> (Vec<K>, Vec<Sums>) {
    let mut rows: Vec<(K, Sums)> = groups.into_iter().collect();
    rows.sort_unstable_by(|left, right| left.0.cmp(&right.0));
    rows.into_iter().unzip()
}

pub(super) fn flows_1m(flows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let mut groups: Groups<FlowsKey> = Groups::default();
    for batch in flows {
        let volume = Volume::new(batch)?;
        let exporter = Col::addresses(batch, "exporter_addr");
        let (in_if, out_if) = (longs(batch, "in_if")?, longs(batch, "out_if")?);
        let (protocol, tos) = (shorts(batch, "ip_protocol")?, shorts(batch, "tos")?);
        let (src_as, dst_as) = (longs(batch, "src_as")?, longs(batch, "dst_as")?);
        for row in 0..batch.num_rows() {
            let mut key = FlowsKey {
                window: 0,
                exporter: exporter.get(row),
                in_if: in_if.get(row).unwrap_or(NONE),
                out_if: out_if.get(row).unwrap_or(NONE),
                protocol: protocol.get(row).unwrap_or(-1),
                dscp: dscp(tos.get(row)),
                src_as: src_as.get(row).unwrap_or(NONE),
                dst_as: dst_as.get(row).unwrap_or(NONE),
            };
            volume.spread(row, |window, share| {
                key.window = window;
                groups.entry(key).or_default().add(share);
            });
        }
    }
    let (keys, sums) = sorted(groups);
    let mut columns = vec![
        times(keys.iter().map(|key| key.window)),
        addresses(keys.iter().map(|key| key.exporter))?,
        long_array(keys.iter().map(|key| key.in_if)),
        long_array(keys.iter().map(|key| key.out_if)),
        short_array(keys.iter().map(|key| key.protocol)),
        short_array(keys.iter().map(|key| key.dscp)),
        long_array(keys.iter().map(|key| key.src_as)),
        long_array(keys.iter().map(|key| key.dst_as)),
    ];
    columns.extend(measures(&sums));
    RecordBatch::try_new(Rollup::Flows1m.schema(), columns)
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct QosKey {
    window: i64,
    exporter: Option<u128>,
    out: bool,
    interface: i64,
    dscp: i16,
}

impl std::hash::Hash for QosKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let class = u64::from(self.dscp.cast_unsigned()) << 1 | u64::from(self.out);
        state.write_u64(folded(self.exporter) ^ self.window.cast_unsigned().rotate_left(17));
        state.write_u64(self.interface.cast_unsigned() ^ class.rotate_left(40));
    }
}

pub(super) fn qos_1m(flows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let mut groups: Groups<QosKey> = Groups::default();
    for batch in flows {
        let volume = Volume::new(batch)?;
        let exporter = Col::addresses(batch, "exporter_addr");
        let (in_if, out_if) = (longs(batch, "in_if")?, longs(batch, "out_if")?);
        let tos = shorts(batch, "tos")?;
        for row in 0..batch.num_rows() {
            let (exporter, dscp) = (exporter.get(row), dscp(tos.get(row)));
            let interfaces = [(false, in_if.get(row)), (true, out_if.get(row))];
            volume.spread(row, |window, share| {
                for (out, interface) in interfaces {
                    let interface = interface.unwrap_or(NONE);
                    let key = QosKey { window, exporter, out, interface, dscp };
                    groups.entry(key).or_default().add(share);
                }
            });
        }
    }
    let (keys, sums) = sorted(groups);
    let direction = keys.iter().map(|key| Some(if key.out { "out" } else { "in" }));
    let class = keys.iter().map(|key| (key.dscp >= 0).then(|| dscp_class(key.dscp)));
    let mut columns = vec![
        times(keys.iter().map(|key| key.window)),
        addresses(keys.iter().map(|key| key.exporter))?,
        Arc::new(StringArray::from_iter(direction)) as ArrayRef,
        long_array(keys.iter().map(|key| key.interface)),
        short_array(keys.iter().map(|key| key.dscp)),
        Arc::new(StringArray::from_iter(class)),
    ];
    columns.extend(measures(&sums));
    RecordBatch::try_new(Rollup::Qos1m.schema(), columns)
}

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
    let taken = take_record_batch(&all, &first.iter().copied().collect::<arrow::array::UInt32Array>())?;
    let mut columns = taken.columns()[..keys].to_vec();
    for column in &all.columns()[keys..] {
        columns.push(match column.data_type() {
            DataType::Float64 => {
                let mut sums = vec![0.0; first.len()];
                let values = column.as_primitive::<Float64Type>();
                for (row, group) in group_of.iter().enumerate().filter(|(row, _)| !values.is_null(*row)) {
                    sums[*group] += values.value(row);
                }
                Arc::new(arrow::array::Float64Array::from(sums)) as ArrayRef
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
