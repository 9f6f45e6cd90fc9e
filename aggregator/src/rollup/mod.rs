//! Rollups: what the raw rows add up to, as partial rows that add up themselves.
//!
//! A rollup is a pure function from flow rows to partial rows; the view over them sums. The same function runs at the
//! commit over the rows that are committed, and at a query over the hot ones. Because every measure is additive, late
//! rows merge into their own window, whenever they come, and compaction may merge partial rows.
//!
//! A flow's bytes and packets are spread over the minutes that it lasted, in proportion, nothing lost to rounding; the
//! flow itself counts once, in the minute in which it ended. A flow without times falls in the minute of its receipt.

mod group;
mod talkers;

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Float64Array, Int16Array, Int32Array, Int64Array,
    PrimitiveArray, RecordBatch, TimestampMicrosecondArray,
};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

pub use talkers::TOP_K;

/// The length of a window, µs.
pub const WINDOW_US: i64 = 60_000_000;

/// A flow that says it lasted longer than this is spread over the last day only.
const LONGEST_US: i64 = 86_400_000_000;

/// The rollups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rollup {
    /// Per exporter, interface pair, protocol, class and pair of ASs.
    Flows1m,
    /// Per window and dimension the largest keys, and the rest as one row.
    TopTalkers,
    /// Per exporter, interface, direction and class.
    Qos1m,
}

impl Rollup {
    pub const ALL: [Rollup; 3] = [Rollup::Flows1m, Rollup::TopTalkers, Rollup::Qos1m];

    /// The SQL name of its partial rows.
    pub const fn name(self) -> &'static str {
        match self {
            Rollup::Flows1m => "flows_1m_parts",
            Rollup::TopTalkers => "top_talkers_parts",
            Rollup::Qos1m => "qos_1m_parts",
        }
    }

    fn keys(self) -> Vec<Field> {
        let field = |name: &str, kind: DataType| Field::new(name, kind, true);
        let address = DataType::FixedSizeBinary(16);
        let window = field("window_start", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
        let rest = match self {
            Rollup::Flows1m => vec![
                field("exporter_addr", address),
                field("in_if", DataType::Int64),
                field("out_if", DataType::Int64),
                field("ip_protocol", DataType::Int16),
                field("dscp", DataType::Int16),
                field("src_as", DataType::Int64),
                field("dst_as", DataType::Int64),
            ],
            Rollup::TopTalkers => vec![
                field("dimension", DataType::Utf8),
                field("other", DataType::Boolean),
                field("addr", address.clone()),
                field("peer_addr", address),
                field("ip_protocol", DataType::Int16),
                field("port", DataType::Int32),
                field("asn", DataType::Int64),
            ],
            Rollup::Qos1m => vec![
                field("exporter_addr", address),
                field("direction", DataType::Utf8),
                field("if_index", DataType::Int64),
                field("dscp", DataType::Int16),
                field("class", DataType::Utf8),
            ],
        };
        std::iter::once(window).chain(rest).collect()
    }

    /// How many of its first columns are the key; the others add up.
    pub fn key_columns(self) -> usize {
        self.keys().len()
    }

    /// The columns of its partial rows: the key, then the measures.
    pub fn schema(self) -> SchemaRef {
        let measures = [
            ("flows", DataType::Int64),
            ("bytes", DataType::Int64),
            ("packets", DataType::Int64),
            ("est_bytes", DataType::Float64),
            ("est_packets", DataType::Float64),
            ("unknown_sampling_flows", DataType::Int64),
        ];
        let measures = measures.into_iter().map(|(name, kind)| Field::new(name, kind, true));
        Arc::new(Schema::new(self.keys().into_iter().chain(measures).collect::<Vec<_>>()))
    }

    /// The partial rows of `flows` (types of the log or of SQL, absent columns absent).
    pub fn compute(self, flows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
        match self {
            Rollup::Flows1m => group::flows_1m(flows),
            Rollup::TopTalkers => talkers::compute(flows),
            Rollup::Qos1m => group::qos_1m(flows),
        }
    }

    /// The same partial rows, those of equal keys added up.
    pub fn merge(self, parts: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
        group::merge(&self.schema(), self.key_columns(), parts)
    }
}

/// What is added up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    flows: i64,
    bytes: i64,
    packets: i64,
    est_bytes: f64,
    est_packets: f64,
    unknown: i64,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.flows += other.flows;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.packets = self.packets.saturating_add(other.packets);
        self.est_bytes += other.est_bytes;
        self.est_packets += other.est_packets;
        self.unknown += other.unknown;
    }
}

/// The measures as columns.
fn measures(sums: &[Sums]) -> Vec<ArrayRef> {
    vec![
        Arc::new(Int64Array::from_iter_values(sums.iter().map(|sum| sum.flows))),
        Arc::new(Int64Array::from_iter_values(sums.iter().map(|sum| sum.bytes))),
        Arc::new(Int64Array::from_iter_values(sums.iter().map(|sum| sum.packets))),
        Arc::new(Float64Array::from_iter_values(sums.iter().map(|sum| sum.est_bytes))),
        Arc::new(Float64Array::from_iter_values(sums.iter().map(|sum| sum.est_packets))),
        Arc::new(Int64Array::from_iter_values(sums.iter().map(|sum| sum.unknown))),
    ]
}

/// A column of a batch, or none: rows of an absent column are NULL. Numbers are widened to their SQL types.
struct Col<A>(Option<A>);

impl<T: ArrowPrimitiveType> Col<PrimitiveArray<T>> {
    fn numbers(batch: &RecordBatch, name: &str, kind: &DataType) -> Result<Self, ArrowError> {
        let Some(column) = batch.column_by_name(name) else { return Ok(Col(None)) };
        Ok(Col(crate::hot::to_sql(column, kind)?.as_primitive_opt::<T>().cloned()))
    }

    #[inline]
    fn get(&self, row: usize) -> Option<T::Native> {
        let array = self.0.as_ref()?;
        (!array.is_null(row)).then(|| array.value(row))
    }
}

fn shorts(batch: &RecordBatch, name: &str) -> Result<Col<Int16Array>, ArrowError> {
    Col::numbers(batch, name, &DataType::Int16)
}

fn ints(batch: &RecordBatch, name: &str) -> Result<Col<Int32Array>, ArrowError> {
    Col::numbers(batch, name, &DataType::Int32)
}

fn longs(batch: &RecordBatch, name: &str) -> Result<Col<Int64Array>, ArrowError> {
    Col::numbers(batch, name, &DataType::Int64)
}

fn times(batch: &RecordBatch, name: &str) -> Result<Col<TimestampMicrosecondArray>, ArrowError> {
    Col::numbers(batch, name, &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
}

impl Col<FixedSizeBinaryArray> {
    fn addresses(batch: &RecordBatch, name: &str) -> Self {
        Col(batch.column_by_name(name).and_then(|column| column.as_fixed_size_binary_opt().cloned()))
    }

    #[inline]
    fn get(&self, row: usize) -> Option<u128> {
        let array = self.0.as_ref()?;
        if array.is_null(row) {
            return None;
        }
        array.value(row).try_into().ok().map(u128::from_be_bytes)
    }
}

/// When, how much, and at what rate: the columns that every rollup reads.
struct Volume {
    received: Col<TimestampMicrosecondArray>,
    start: Col<TimestampMicrosecondArray>,
    end: Col<TimestampMicrosecondArray>,
    bytes: Col<Int64Array>,
    packets: Col<Int64Array>,
    rate: Col<Float64Array>,
}

impl Volume {
    fn new(batch: &RecordBatch) -> Result<Self, ArrowError> {
        Ok(Volume {
            received: times(batch, "received_at")?,
            start: times(batch, "start_time")?,
            end: times(batch, "end_time")?,
            bytes: longs(batch, "bytes")?,
            packets: longs(batch, "packets")?,
            rate: Col::numbers(batch, "sampling_rate", &DataType::Float64)?,
        })
    }

    /// Calls `add` with each window of the row and its share.
    #[inline]
    fn spread(&self, row: usize, mut add: impl FnMut(i64, &Sums)) {
        let end = self.end.get(row).or_else(|| self.received.get(row)).unwrap_or(0);
        let start = self.start.get(row).unwrap_or(end).clamp(end.saturating_sub(LONGEST_US), end);
        let (bytes, packets) = (self.bytes.get(row).unwrap_or(0), self.packets.get(row).unwrap_or(0));
        let rate = self.rate.get(row);
        let unknown = i64::from(rate.is_none());
        let rate = rate.unwrap_or(1.0);
        let window = |time: i64| time.div_euclid(WINDOW_US) * WINDOW_US;
        let share = |flows: i64, bytes: i64, packets: i64| Sums {
            flows,
            bytes,
            packets,
            est_bytes: bytes as f64 * rate,
            est_packets: packets as f64 * rate,
            unknown: unknown * flows,
        };
        let (first, last) = (window(start), window(end));
        if first == last {
            add(last, &share(1, bytes, packets));
            return;
        }
        // what has passed by the end of each window, less what had passed before: the last share takes the remainder
        let duration = i128::from(end - start);
        let passed = |total: i64, until: i64| -> i64 {
            i64::try_from(i128::from(total) * i128::from(until - start) / duration).unwrap_or(total)
        };
        let (mut bytes_before, mut packets_before) = (0, 0);
        let mut at = first;
        while at < last {
            let until = at + WINDOW_US;
            let (bytes_now, packets_now) = (passed(bytes, until), passed(packets, until));
            if bytes_now > bytes_before || packets_now > packets_before {
                add(at, &share(0, bytes_now - bytes_before, packets_now - packets_before));
            }
            (bytes_before, packets_before, at) = (bytes_now, packets_now, until);
        }
        add(last, &share(1, bytes - bytes_before, packets - packets_before));
    }
}

/// The name of a DSCP class, or its number.
fn dscp_class(dscp: i16) -> String {
    let name = u8::try_from(dscp).ok().and_then(weir_schemas::names::dscp_name);
    name.map_or_else(|| dscp.to_string(), str::to_owned)
}
