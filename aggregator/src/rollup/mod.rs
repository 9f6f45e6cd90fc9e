//! Rollups: what the raw rows add up to, as partial rows that add up themselves.
//!
//! A rollup is a pure function from flow rows to partial rows; the view over them sums. The same function runs at the
//! commit over the rows that are committed, and at a query over the hot ones. Because every measure is additive, late
//! rows merge into their own window, whenever they come, and compaction may merge partial rows.
//!
//! * `columns`: the columns of flow rows as plain vectors; `intern`: numbers for keys.
//! * `sweep`: bytes and packets over the windows in which a flow lasted, nothing lost to rounding.
//! * `flows`: sums by exporter, interfaces, protocol, class and ASs, and `talkers` from them and from the flows.
//! * `distinct`: how many different peers or ports a key has, as sketches; `atoms`: what it and `talkers` tell keys by.
//! * `qos`: sums by interface, direction and class in windows of ten seconds.
//! * `merge`: partial rows put together; the windows of an hour and a day are made of the finer ones.
//!
//! The bounds are in `docs/decisions/rollups.md`.

mod atoms;
mod columns;
mod config;
mod dimension;
mod distinct;
#[cfg(test)]
mod distinct_tests;
mod flows;
mod intern;
mod merge;
mod qos;
mod shared;
mod sweep;
mod talkers;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, Float64Array, Int16Array, Int64Array, RecordBatch,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

use columns::{Flows, NONE};
pub use config::{AggregateConfig, Attribute};
use flows::Links;
pub(crate) use shared::{Aggregates, Asker};
use sweep::Volumes;

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resolution {
    TenSeconds,
    Minute,
    Hour,
    Day,
}

impl Resolution {
    /// In microseconds.
    pub const fn micros(self) -> i64 {
        match self {
            Resolution::TenSeconds => 10_000_000,
            Resolution::Minute => 60_000_000,
            Resolution::Hour => 3_600_000_000,
            Resolution::Day => 86_400_000_000,
        }
    }
}

/// What a rollup adds up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Exporter, interface pair, protocol, class and pair of ASs.
    Flows,
    /// Of each dimension the largest keys, and the rest as one row.
    Talkers,
    /// Of keys those with the most different values of another attribute, and the rest as one row.
    Distinct,
    /// Exporter, interface, direction and class.
    Qos,
    /// Exporter, interface pair, class before and class after.
    Remarking,
}

/// What is computed in one pass over the flow rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    /// Flows, talkers and distinct counts.
    Volume,
    /// Classes and re-marking.
    Classes,
}

impl Family {
    /// Its rollups, in the order in which [`Family::compute`] gives them.
    pub(crate) fn rollups(self) -> impl Iterator<Item = Rollup> {
        Rollup::ALL.into_iter().filter(move |rollup| rollup.family() == self)
    }

    /// The partial rows of `flows` (types of the log or of SQL, absent columns absent).
    pub(crate) fn compute(
        self,
        flows: &[RecordBatch],
        config: &AggregateConfig,
    ) -> Result<Vec<RecordBatch>, ArrowError> {
        self.of(&Basis::new(flows, config)?, config)
    }

    fn of(self, basis: &Basis<'_>, config: &AggregateConfig) -> Result<Vec<RecordBatch>, ArrowError> {
        match self {
            Family::Volume => {
                let (mut parts, talkers, distinct) = flows::compute(basis, config)?;
                parts.extend(coarser(Kind::Talkers, talkers, config)?);
                parts.extend(coarser(Kind::Distinct, distinct, config)?);
                Ok(parts)
            }
            Family::Classes => {
                let (qos, remarking) = qos::compute(basis, config)?;
                let mut parts = coarser(Kind::Qos, qos, config)?;
                parts.push(remarking);
                Ok(parts)
            }
        }
    }
}

/// What every rollup reads of the flows.
struct Basis<'a> {
    flows: Flows<'a>,
    volumes: Volumes,
    links: Links,
}

impl<'a> Basis<'a> {
    fn new(batches: &'a [RecordBatch], config: &AggregateConfig) -> Result<Basis<'a>, ArrowError> {
        let flows = Flows::new(batches);
        let volumes = Volumes::new(&flows, config.attribute)?;
        let links = Links::new(&flows)?;
        Ok(Basis { flows, volumes, links })
    }
}

/// The partial rows of every rollup, in the order of [`Rollup::ALL`].
pub(crate) fn compute(
    flows: &[RecordBatch],
    config: &AggregateConfig,
) -> Result<Vec<RecordBatch>, ArrowError> {
    let basis = Basis::new(flows, config)?;
    let mut parts = Family::Volume.of(&basis, config)?;
    parts.extend(Family::Classes.of(&basis, config)?);
    Ok(parts)
}

/// The finest of a kind, and the coarser ones, each made of the one before.
fn coarser(
    kind: Kind,
    finest: RecordBatch,
    config: &AggregateConfig,
) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut parts = vec![finest];
    for rollup in Rollup::ALL.into_iter().filter(|rollup| rollup.kind == kind).skip(1) {
        let wide = merge::widen(&parts[parts.len() - 1], rollup.resolution.micros())?;
        parts.push(rollup.merge_with(&[wide], rollup.keys_kept(config))?);
    }
    Ok(parts)
}

/// A rollup: a table of partial rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rollup {
    pub kind: Kind,
    pub resolution: Resolution,
}

const fn rollup(kind: Kind, resolution: Resolution) -> Rollup {
    Rollup { kind, resolution }
}

impl Rollup {
    /// Every rollup, by family; of each kind the finest first.
    pub const ALL: [Rollup; 13] = [
        rollup(Kind::Flows, Resolution::Minute),
        rollup(Kind::Flows, Resolution::Hour),
        rollup(Kind::Flows, Resolution::Day),
        rollup(Kind::Talkers, Resolution::Minute),
        rollup(Kind::Talkers, Resolution::Hour),
        rollup(Kind::Talkers, Resolution::Day),
        rollup(Kind::Distinct, Resolution::Minute),
        rollup(Kind::Distinct, Resolution::Hour),
        rollup(Kind::Qos, Resolution::TenSeconds),
        rollup(Kind::Qos, Resolution::Minute),
        rollup(Kind::Qos, Resolution::Hour),
        rollup(Kind::Qos, Resolution::Day),
        rollup(Kind::Remarking, Resolution::Hour),
    ];

    /// The SQL name of its partial rows.
    pub const fn name(self) -> &'static str {
        match (self.kind, self.resolution) {
            (Kind::Flows, Resolution::Hour) => "flows_1h_parts",
            (Kind::Flows, Resolution::Day) => "flows_1d_parts",
            (Kind::Flows, _) => "flows_1m_parts",
            (Kind::Talkers, Resolution::Hour) => "top_talkers_1h_parts",
            (Kind::Talkers, Resolution::Day) => "top_talkers_1d_parts",
            (Kind::Talkers, _) => "top_talkers_parts",
            (Kind::Distinct, Resolution::Hour) => "distinct_1h_parts",
            (Kind::Distinct, _) => "distinct_1m_parts",
            (Kind::Qos, Resolution::TenSeconds) => "qos_10s_parts",
            (Kind::Qos, Resolution::Minute) => "qos_1m_parts",
            (Kind::Qos, Resolution::Hour) => "qos_1h_parts",
            (Kind::Qos, Resolution::Day) => "qos_1d_parts",
            (Kind::Remarking, _) => "remarking_1h_parts",
        }
    }

    pub(crate) const fn family(self) -> Family {
        match self.kind {
            Kind::Flows | Kind::Talkers | Kind::Distinct => Family::Volume,
            Kind::Qos | Kind::Remarking => Family::Classes,
        }
    }

    fn keys(self) -> Vec<Field> {
        let field = |name: &str, kind: DataType| Field::new(name, kind, true);
        let address = || DataType::FixedSizeBinary(16);
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        // the end is there to be matched with the start of the next window
        let window = [field("window_start", time.clone()), field("window_end", time)];
        let rest = match self.kind {
            Kind::Flows => vec![
                field("exporter_addr", address()),
                field("in_if", DataType::Int64),
                field("out_if", DataType::Int64),
                field("ip_protocol", DataType::Int16),
                field("dscp", DataType::Int16),
                field("src_as", DataType::Int64),
                field("dst_as", DataType::Int64),
            ],
            Kind::Talkers | Kind::Distinct => atoms::keys(),
            Kind::Qos => vec![
                field("exporter_addr", address()),
                field("direction", DataType::Utf8),
                field("if_index", DataType::Int64),
                field("dscp", DataType::Int16),
                field("class", DataType::Utf8),
            ],
            Kind::Remarking => vec![
                field("exporter_addr", address()),
                field("in_if", DataType::Int64),
                field("out_if", DataType::Int64),
                field("dscp", DataType::Int16),
                field("post_dscp", DataType::Int16),
            ],
        };
        window.into_iter().chain(rest).collect()
    }

    /// How many of its first columns are the key; the others add up.
    pub fn key_columns(self) -> usize {
        self.keys().len()
    }

    /// The columns of its partial rows: the key, then the measures.
    pub fn schema(self) -> SchemaRef {
        let mut fields = self.keys();
        let measure = |name: &str, kind: DataType| Field::new(name, kind, true);
        if self.kind == Kind::Distinct {
            let measures =
                [("flows", DataType::Int64), ("sketch", DataType::Binary), ("bound", DataType::Float64)];
            fields.extend(measures.map(|(name, kind)| measure(name, kind)));
            return Arc::new(Schema::new(fields));
        }
        fields.extend([
            measure("flows", DataType::Int64),
            measure("bytes", DataType::Int64),
            measure("packets", DataType::Int64),
            measure("est_bytes", DataType::Float64),
            measure("est_packets", DataType::Float64),
            measure("unknown_sampling_flows", DataType::Int64),
            measure("est_bytes_variance", DataType::Float64),
        ]);
        match self.kind {
            Kind::Talkers => fields.push(measure("bound", DataType::Float64)),
            Kind::Qos => fields.extend(qos::MEASURES.iter().map(|name| measure(name, DataType::Int64))),
            Kind::Flows | Kind::Remarking | Kind::Distinct => {}
        }
        Arc::new(Schema::new(fields))
    }

    /// The same partial rows, those of equal keys added up, for good.
    pub(crate) fn merge(
        self,
        parts: &[RecordBatch],
        config: &AggregateConfig,
    ) -> Result<RecordBatch, ArrowError> {
        let more = if self.kind == Kind::Distinct { distinct::MERGED } else { talkers::MERGED };
        self.merge_with(parts, self.keys_kept(config) * more)
    }

    /// How many keys of a window and dimension a commit keeps.
    fn keys_kept(self, config: &AggregateConfig) -> usize {
        if self.kind == Kind::Distinct { config.distinct_top_k } else { config.top_k }
    }

    fn merge_with(self, parts: &[RecordBatch], top_k: usize) -> Result<RecordBatch, ArrowError> {
        let merged = merge::merge(&self.schema(), self.key_columns(), parts)?;
        match self.kind {
            Kind::Talkers => talkers::cut_by_bytes(&merged, self.key_columns(), top_k),
            Kind::Distinct => distinct::cut(&merged, self.key_columns(), top_k),
            Kind::Flows | Kind::Qos | Kind::Remarking => Ok(merged),
        }
    }
}

/// What is added up: a line of the cache, of which the processor adds two numbers at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(align(64))]
struct Sums {
    /// Flows, bytes, packets, and flows whose sampling is not known; none is negative.
    counts: [i64; 4],
    /// Estimated bytes and packets, and the variance of the bytes, by sampling: N (N - 1) Σ b², where the packets of a row
    /// are taken to be of one size. The last one is 0.
    estimates: [f64; 4],
}

impl Sums {
    #[inline]
    fn add(&mut self, other: &Sums) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            // what is negative has overflowed: then it stays at the largest number
            let wrapped = sum.wrapping_add(count);
            *sum = (wrapped | wrapped >> 63) & i64::MAX;
        }
        for (sum, estimate) in self.estimates.iter_mut().zip(other.estimates) {
            *sum += estimate;
        }
    }

    fn bytes(&self) -> i64 {
        self.counts[1]
    }

    fn packets(&self) -> i64 {
        self.counts[2]
    }

    /// What ranks.
    fn est_bytes(&self) -> f64 {
        self.estimates[0]
    }
}

/// The measures as columns.
fn measures(sums: &[Sums]) -> Vec<ArrayRef> {
    let count = |at: usize| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(sums.iter().map(|sum| sum.counts[at])))
    };
    let estimate = |at: usize| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(sums.iter().map(|sum| sum.estimates[at])))
    };
    vec![count(0), count(1), count(2), estimate(0), estimate(1), count(3), estimate(2)]
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

/// The start and the end of each row's window.
fn windows(starts: &[i64], resolution: Resolution) -> [ArrayRef; 2] {
    [times(starts.iter().copied()), times(starts.iter().map(|start| start + resolution.micros()))]
}

fn addresses(values: impl Iterator<Item = Option<u128>>) -> Result<ArrayRef, ArrowError> {
    let bytes = values.map(|value| value.map(u128::to_be_bytes));
    Ok(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 16)?))
}

fn longs(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(values.map(|value| (value != NONE).then_some(value))))
}

fn shorts(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int16Array::from_iter(values.map(|value| i16::try_from(value).ok())))
}
