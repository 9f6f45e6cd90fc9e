//! Top talkers: per window and dimension the largest keys of what is rolled up at once, and all others as one row.
//!
//! The totals of a dimension are exact; a key that is among the largest of one part and not of another is short by
//! what it had there, which the row `other` has.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int32Array, RecordBatch, StringArray};
use arrow::error::ArrowError;

use super::group::{Groups, NONE, addresses, longs, shorts, times};
use super::{Col, Rollup, Sums, Volume, measures};

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
    window: i64,
    addr: u128,
    peer: u128,
    /// Port or AS, [`NONE`] for NULL.
    number: i64,
    /// -1 for NULL.
    protocol: i16,
    has_addr: bool,
    has_peer: bool,
}

impl std::hash::Hash for Key {
    /// Three words say nearly all: what they leave out, equality tells apart.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(self.addr);
        state.write_u128(self.peer);
        state.write_i64(self.window ^ self.number.rotate_left(32) ^ i64::from(self.protocol));
    }
}

const EMPTY: Key =
    Key { window: 0, addr: 0, peer: 0, number: NONE, protocol: -1, has_addr: false, has_peer: false };

/// A row of the result: other rows have the window as their key.
struct Row {
    dimension: Dimension,
    other: bool,
    key: Key,
}

pub(super) fn compute(flows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let mut all = Dimension::ALL.map(|_| Groups::default());
    for batch in flows {
        let shares = shares(batch);
        for (dimension, groups) in Dimension::ALL.into_iter().zip(&mut all) {
            group(dimension, batch, &shares, groups);
        }
    }
    let mut rows = Vec::new();
    let mut sums = Vec::new();
    for (dimension, groups) in Dimension::ALL.into_iter().zip(all) {
        let mut entries: Vec<(Key, Sums)> = groups.into_iter().collect();
        entries.sort_unstable_by_key(|(key, _)| key.window);
        for window in entries.chunk_by_mut(|left, right| left.0.window == right.0.window) {
            let rest = keep_largest(window);
            let at = window[0].0.window;
            let (largest, _) = window.split_at_mut(window.len().min(TOP_K));
            largest.sort_unstable_by_key(|(key, _)| *key);
            for (key, sum) in largest {
                rows.push(Row { dimension, other: false, key: *key });
                sums.push(*sum);
            }
            if let Some(rest) = rest {
                rows.push(Row { dimension, other: true, key: Key { window: at, ..EMPTY } });
                sums.push(rest);
            }
        }
    }
    to_batch(&rows, &sums)
}

/// Brings the largest to the front; the sum of the others.
fn keep_largest(window: &mut [(Key, Sums)]) -> Option<Sums> {
    if window.len() <= TOP_K {
        return None;
    }
    window.select_nth_unstable_by(TOP_K, |left, right| {
        right.1.est_bytes.total_cmp(&left.1.est_bytes).then_with(|| left.0.cmp(&right.0))
    });
    let mut rest = Sums::default();
    window[TOP_K..].iter().for_each(|(_, sum)| rest.add(sum));
    Some(rest)
}

/// What a row adds to a window: the same for every dimension.
struct Share {
    row: usize,
    window: i64,
    sums: Sums,
}

fn shares(batch: &RecordBatch) -> Vec<Share> {
    let volume = Volume::new(batch);
    let mut shares = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        volume.spread(row, |window, sums| shares.push(Share { row, window, sums: *sums }));
    }
    shares
}

fn group(dimension: Dimension, batch: &RecordBatch, shares: &[Share], groups: &mut Groups<Key>) {
    match dimension {
        Dimension::Source => {
            let source = Col::addresses(batch, "src_addr");
            add_up(shares, groups, |row| address(source.get(row)));
        }
        Dimension::Destination => {
            let destination = Col::addresses(batch, "dst_addr");
            add_up(shares, groups, |row| address(destination.get(row)));
        }
        Dimension::Conversation => {
            let source = Col::addresses(batch, "src_addr");
            let destination = Col::addresses(batch, "dst_addr");
            add_up(shares, groups, |row| {
                let peer = destination.get(row);
                Key { peer: peer.unwrap_or(0), has_peer: peer.is_some(), ..address(source.get(row)) }
            });
        }
        Dimension::DestinationPort => {
            let (port, protocol) = (Col::ints(batch, "dst_port"), Col::shorts(batch, "ip_protocol"));
            add_up(shares, groups, |row| Key {
                number: port.get(row).map_or(NONE, i64::from),
                protocol: protocol.get(row).unwrap_or(-1),
                ..EMPTY
            });
        }
        Dimension::SourceAs | Dimension::DestinationAs => {
            let asn = Col::longs(batch, dimension.name());
            add_up(shares, groups, |row| Key { number: asn.get(row).unwrap_or(NONE), ..EMPTY });
        }
    }
}

fn address(addr: Option<u128>) -> Key {
    Key { addr: addr.unwrap_or(0), has_addr: addr.is_some(), ..EMPTY }
}

#[inline]
fn add_up(shares: &[Share], groups: &mut Groups<Key>, key_of: impl Fn(usize) -> Key) {
    for share in shares {
        let key = Key { window: share.window, ..key_of(share.row) };
        groups.entry(key).or_default().add(&share.sums);
    }
}

fn to_batch(rows: &[Row], sums: &[Sums]) -> Result<RecordBatch, ArrowError> {
    let number = |wanted: bool, row: &Row| if wanted { row.key.number } else { NONE };
    let is_port = |row: &Row| row.dimension == Dimension::DestinationPort;
    let port = |row: &Row| match number(is_port(row), row) {
        NONE => None,
        port => i32::try_from(port).ok(),
    };
    let mut columns = vec![
        times(rows.iter().map(|row| row.key.window)),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.dimension.name()))) as ArrayRef,
        Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.other)))),
        addresses(rows.iter().map(|row| row.key.has_addr.then_some(row.key.addr)))?,
        addresses(rows.iter().map(|row| row.key.has_peer.then_some(row.key.peer)))?,
        shorts(rows.iter().map(|row| row.key.protocol)),
        Arc::new(Int32Array::from_iter(rows.iter().map(port))),
        longs(rows.iter().map(|row| number(!is_port(row), row))),
    ];
    columns.extend(measures(sums));
    RecordBatch::try_new(Rollup::TopTalkers.schema(), columns)
}
