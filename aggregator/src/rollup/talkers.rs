//! Top talkers: per window and dimension the largest keys of what is rolled up at once, and all others as one row.
//!
//! The totals of a dimension are exact; a key that is among the largest of one part and not of another is short by
//! what it had there, which the row `other` has.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, FixedSizeBinaryArray, Int32Array, RecordBatch, StringArray};
use arrow::error::ArrowError;
use foldhash::fast::RandomState;

use super::group::{Groups, NONE, addresses, long_array, short_array, times};
use super::{Col, Rollup, Sums, Volume, ints, longs, measures, shorts};

/// How many keys a window and dimension keep.
pub const TOP_K: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Source,
    Destination,
    Conversation,
    DestinationPort,
    SourceAs,
    DestinationAs,
}

impl Dimension {
    const ALL: [Dimension; 6] = [
        Dimension::Source,
        Dimension::Destination,
        Dimension::Conversation,
        Dimension::DestinationPort,
        Dimension::SourceAs,
        Dimension::DestinationAs,
    ];

    const fn name(self) -> &'static str {
        match self {
            Dimension::Source => "src_addr",
            Dimension::Destination => "dst_addr",
            Dimension::Conversation => "conversation",
            Dimension::DestinationPort => "dst_port",
            Dimension::SourceAs => "src_as",
            Dimension::DestinationAs => "dst_as",
        }
    }
}

/// A key of any dimension: what a dimension does not use is empty.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Key {
    addr: Option<u128>,
    peer: Option<u128>,
    /// Port or AS, [`NONE`] for NULL.
    number: i64,
    /// -1 for NULL.
    protocol: i16,
}

const EMPTY: Key = Key { addr: None, peer: None, number: NONE, protocol: -1 };

/// A row of the result.
struct Row {
    window: i64,
    dimension: Dimension,
    other: bool,
    key: Key,
}

/// The address that is NULL.
const NO_HOST: u32 = u32::MAX;
/// The port or AS that is NULL: none is as great.
const NO_NUMBER: u64 = u32::MAX as u64 + 1;

/// Numbers for addresses, so that the keys that they are part of fit in one word.
#[derive(Default)]
struct Hosts {
    numbers: HashMap<u128, u32, RandomState>,
    addresses: Vec<u128>,
}

impl Hosts {
    fn numbers(&mut self, column: &Col<FixedSizeBinaryArray>, rows: usize) -> Vec<u32> {
        (0..rows).map(|row| column.get(row).map_or(NO_HOST, |address| self.number(address))).collect()
    }

    #[inline]
    fn number(&mut self, address: u128) -> u32 {
        let next = u32::try_from(self.addresses.len()).unwrap_or(NO_HOST);
        *self.numbers.entry(address).or_insert_with(|| {
            self.addresses.push(address);
            next
        })
    }

    fn address(&self, number: u64) -> Option<u128> {
        self.addresses.get(usize::try_from(number).ok()?).copied()
    }
}

impl Dimension {
    /// What a packed key says.
    fn key(self, packed: u64, hosts: &Hosts) -> Key {
        let number = |number: u64| if number == NO_NUMBER { NONE } else { number.cast_signed() };
        match self {
            Dimension::Source | Dimension::Destination => Key { addr: hosts.address(packed), ..EMPTY },
            Dimension::Conversation => {
                Key { addr: hosts.address(packed >> 32), peer: hosts.address(packed & 0xffff_ffff), ..EMPTY }
            }
            Dimension::DestinationPort => Key {
                number: number(packed & 0x1_ffff_ffff),
                protocol: i16::try_from(packed >> 33).unwrap_or(0) - 1,
                ..EMPTY
            },
            Dimension::SourceAs | Dimension::DestinationAs => Key { number: number(packed), ..EMPTY },
        }
    }
}

/// The sums of one window, by dimension.
type Window = [Groups<u64>; Dimension::ALL.len()];

/// The windows in the order in which they come up.
#[derive(Default)]
struct Windows {
    known: HashMap<i64, usize, RandomState>,
    all: Vec<(i64, Window)>,
}

impl Windows {
    fn number(&mut self, window: i64) -> usize {
        let next = self.all.len();
        *self.known.entry(window).or_insert_with(|| {
            self.all.push((window, Window::default()));
            next
        })
    }
}

pub(super) fn compute(flows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let mut hosts = Hosts::default();
    let mut windows = Windows::default();
    for batch in flows {
        let shares = shares(batch, &mut windows)?;
        for (at, keys) in packed(batch, &mut hosts)?.into_iter().enumerate() {
            for share in &shares {
                windows.all[share.window].1[at].entry(keys[share.row]).or_default().add(&share.sums);
            }
        }
    }
    windows.all.sort_unstable_by_key(|(window, _)| *window);
    let mut rows = Vec::new();
    let mut sums = Vec::new();
    for (at, dimension) in Dimension::ALL.into_iter().enumerate() {
        for (window, groups) in &mut windows.all {
            let (largest, rest) = largest(dimension, std::mem::take(&mut groups[at]), &hosts);
            for (key, sum) in largest {
                rows.push(Row { window: *window, dimension, other: false, key });
                sums.push(sum);
            }
            if let Some(rest) = rest {
                rows.push(Row { window: *window, dimension, other: true, key: EMPTY });
                sums.push(rest);
            }
        }
    }
    to_batch(&rows, &sums)
}

/// The keys that are kept, in their order, and the sum of the others. Of equally large ones the lesser key is kept.
fn largest(dimension: Dimension, groups: Groups<u64>, hosts: &Hosts) -> (Vec<(Key, Sums)>, Option<Sums>) {
    let mut least = f64::NEG_INFINITY;
    if groups.len() > TOP_K {
        let mut sizes: Vec<f64> = groups.values().map(|sums| sums.est_bytes).collect();
        let (_, size, _) = sizes.select_nth_unstable_by(TOP_K - 1, |left, right| right.total_cmp(left));
        least = *size;
    }
    let cut = groups.len() > TOP_K;
    let mut kept = Vec::with_capacity(TOP_K.min(groups.len()));
    let mut equal = Vec::new();
    let mut rest = Sums::default();
    for (packed, sums) in groups {
        match sums.est_bytes.total_cmp(&least) {
            std::cmp::Ordering::Greater => kept.push((dimension.key(packed, hosts), sums)),
            std::cmp::Ordering::Equal => equal.push((dimension.key(packed, hosts), sums)),
            std::cmp::Ordering::Less => rest.add(&sums),
        }
    }
    equal.sort_unstable_by_key(|(key, _)| *key);
    let room = TOP_K - kept.len().min(TOP_K);
    equal.iter().skip(room).for_each(|(_, sums)| rest.add(sums));
    kept.extend(equal.into_iter().take(room));
    kept.sort_unstable_by_key(|(key, _)| *key);
    (kept, cut.then_some(rest))
}

/// What a row adds to a window: the same for every dimension.
struct Share {
    row: usize,
    window: usize,
    sums: Sums,
}

fn shares(batch: &RecordBatch, windows: &mut Windows) -> Result<Vec<Share>, ArrowError> {
    let volume = Volume::new(batch)?;
    let mut shares = Vec::with_capacity(batch.num_rows());
    let mut last = (i64::MIN, 0);
    for row in 0..batch.num_rows() {
        volume.spread(row, |window, sums| {
            if window != last.0 {
                last = (window, windows.number(window));
            }
            shares.push(Share { row, window: last.1, sums: *sums });
        });
    }
    Ok(shares)
}

/// The key of each row in each dimension, in one word.
fn packed(batch: &RecordBatch, hosts: &mut Hosts) -> Result<[Vec<u64>; Dimension::ALL.len()], ArrowError> {
    let rows = batch.num_rows();
    let source = hosts.numbers(&Col::addresses(batch, "src_addr"), rows);
    let destination = hosts.numbers(&Col::addresses(batch, "dst_addr"), rows);
    let (port, protocol) = (ints(batch, "dst_port")?, shorts(batch, "ip_protocol")?);
    let number = |number: Option<i64>| {
        number.and_then(|number| u64::try_from(number).ok()).map_or(NO_NUMBER, |number| number.min(NO_NUMBER))
    };
    let autonomous_systems = |name: &str| -> Result<Vec<u64>, ArrowError> {
        let column = longs(batch, name)?;
        Ok((0..rows).map(|row| number(column.get(row))).collect())
    };
    let conversation = source.iter().zip(&destination);
    Ok([
        source.iter().copied().map(u64::from).collect(),
        destination.iter().copied().map(u64::from).collect(),
        conversation
            .map(|(source, destination)| u64::from(*source) << 32 | u64::from(*destination))
            .collect(),
        (0..rows)
            .map(|row| {
                let protocol = protocol.get(row).and_then(|protocol| u64::try_from(protocol).ok());
                protocol.map_or(0, |protocol| protocol + 1) << 33 | number(port.get(row).map(i64::from))
            })
            .collect(),
        autonomous_systems("src_as")?,
        autonomous_systems("dst_as")?,
    ])
}

fn to_batch(rows: &[Row], sums: &[Sums]) -> Result<RecordBatch, ArrowError> {
    let number = |wanted: bool, row: &Row| if wanted { row.key.number } else { NONE };
    let is_port = |row: &Row| row.dimension == Dimension::DestinationPort;
    let port = |row: &Row| match number(is_port(row), row) {
        NONE => None,
        port => i32::try_from(port).ok(),
    };
    let mut columns = vec![
        times(rows.iter().map(|row| row.window)),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.dimension.name()))) as ArrayRef,
        Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.other)))),
        addresses(rows.iter().map(|row| row.key.addr))?,
        addresses(rows.iter().map(|row| row.key.peer))?,
        short_array(rows.iter().map(|row| row.key.protocol)),
        Arc::new(Int32Array::from_iter(rows.iter().map(port))),
        long_array(rows.iter().map(|row| number(!is_port(row), row))),
    ];
    columns.extend(measures(sums));
    RecordBatch::try_new(Rollup::TopTalkers.schema(), columns)
}
