//! Distinct counts: of the keys of a dimension, how many different values of another attribute the flows have that ended in
//! a window: destinations per source, sources per destination, ports per pair.
//!
//! Within one part (what is rolled up at once) the values are counted exactly, by numbers; the `distinct_top_k` keys with
//! the most get a sketch of them, which adds up over parts, windows and machines. All other keys are the row `other`, whose
//! `bound` says how many values any of them has at most: it adds up as that of the top talkers does (`talkers`), as two
//! sets have together no more values than both.
//!
//! Where the pairs of key and value have no numbers yet (`talkers` makes those of its own pairs), numbers are made for the
//! keys with the most flows only, [`SCREENED_KEYS`] of them: a key has no more values than flows.

use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
};
use arrow::error::ArrowError;
use datasketches::hll::Coupon;

use super::atoms::{Atoms, Attributes, Keys, Pairs, attribute_columns, pair};
use super::dimension::Counted;
use super::intern::Interner;
use super::sweep::Share;
use super::{Kind, Resolution, Rollup, windows};
use crate::sketch::{self, Union};

/// Compaction keeps this many times as many keys as a commit does.
pub(super) const MERGED: usize = 2;

/// Of keys whose pairs with values have no numbers yet, this many get them.
const SCREENED_KEYS: usize = 4_096;

/// The unit of a row whose key was left out.
const LEFT_OUT: u32 = u32::MAX;

/// Pairs of key and value with their numbers: the units.
struct Units {
    pairs: Pairs,
    /// The key is the second of the pair.
    is_swapped: bool,
    /// The most flows, and so the most values, of a key that was left out.
    left_out: u32,
}

impl Units {
    fn new(keys: &Keys, counted: &Counted, values: &[u32], top_k: usize, atoms: &Atoms<'_>) -> Units {
        let known = |first, second| atoms.known_pairs(first, second).cloned();
        if counted.key.second.is_none() {
            let (key, value) = (counted.key.first, counted.value);
            if let Some(pairs) = known(key, value) {
                return Units { pairs, is_swapped: false, left_out: 0 };
            }
            if let Some(pairs) = known(value, key) {
                return Units { pairs, is_swapped: true, left_out: 0 };
            }
        }
        let mut flows = vec![0_u32; keys.count];
        keys.numbers.iter().for_each(|key| flows[*key as usize] += 1);
        let least = least_flows(&flows, (top_k * 16).max(SCREENED_KEYS));
        let mut interner = Interner::new();
        let numbers = keys.numbers.iter().zip(values).map(|(key, value)| {
            if flows[*key as usize] < least { LEFT_OUT } else { interner.number(pair(*key, *value)) }
        });
        let numbers = Rc::new(numbers.collect());
        let pairs = Pairs { numbers, pairs: Rc::new(interner.keys().to_vec()) };
        Units { pairs, is_swapped: false, left_out: least.saturating_sub(1) }
    }

    /// Key and value.
    #[inline]
    fn get(&self, unit: u32) -> (u32, u32) {
        let pair = self.pairs.pairs[unit as usize];
        let (first, second) = ((pair >> 32) as u32, pair as u32);
        if self.is_swapped { (second, first) } else { (first, second) }
    }
}

/// The fewest flows with which a key is among at most `most` keys; 1 where all are.
fn least_flows(flows: &[u32], most: usize) -> u32 {
    const LEVELS: usize = 1 << 16;
    let mut keys_at = vec![0_usize; LEVELS];
    for count in flows.iter().filter(|count| **count > 0) {
        keys_at[(*count as usize).min(LEVELS - 1)] += 1;
    }
    let mut keys = 0;
    for level in (1..LEVELS).rev() {
        keys += keys_at[level];
        if keys > most {
            return u32::try_from(level + 1).unwrap_or(u32::MAX);
        }
    }
    1
}

/// A unit in the window at hand.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Of the window in which it was seen last.
    stamp: u32,
    flows: u32,
}

/// A row of the result.
struct Row {
    window: i64,
    /// None for `other`.
    key: Option<u32>,
    flows: i64,
    sketch: Option<Vec<u8>>,
    bound: f64,
}

/// A distinct count while its windows are gone through.
pub(super) struct Distinct {
    name: String,
    top_k: usize,
    keys: Keys,
    /// What a sketch is given for each value; None for NULL, which does not count.
    coupons: Vec<Option<Coupon>>,
    units: Units,
    seen: Vec<Seen>,
    stamp: u32,
    /// By key, of the window at hand: how many values it has, and its place among those that are kept.
    sizes: Vec<u32>,
    places: Vec<u32>,
    rows: Vec<Row>,
}

impl Distinct {
    pub(super) fn new(counted: Counted, top_k: usize, atoms: &mut Atoms<'_>) -> Result<Distinct, ArrowError> {
        let keys = Keys::new(&counted.key, atoms, false)?;
        let values = atoms.by_row(counted.value)?;
        let units = Units::new(&keys, &counted, &values.numbers, top_k, atoms);
        Ok(Distinct {
            name: counted.name,
            top_k,
            coupons: (0..values.values.len()).map(|value| values.values.coupon(value as u32)).collect(),
            seen: vec![Seen::default(); units.pairs.pairs.len()],
            stamp: 0,
            sizes: vec![0; keys.count],
            places: vec![0; keys.count],
            keys,
            units,
            rows: Vec::new(),
        })
    }

    /// Counts a window. Flows that claim to have ended at all sorts of times make many windows: what they add to the rollup
    /// is bounded by keeping less of the older ones.
    pub(super) fn window(&mut self, window: i64, shares: &[Share]) {
        let keep = match self.rows.len() {
            rows if rows < self.top_k * 16 => self.top_k,
            rows if rows < self.top_k * 64 => self.top_k.min(10),
            _ => 0,
        };
        self.stamp += 1;
        let (mut units, mut rest, mut all_kept) = (Vec::new(), 0_i64, true);
        // the keys that have values, and how many in `sizes`
        let mut found: Vec<u32> = Vec::new();
        for share in shares.iter().filter(|share| share.ended) {
            let unit = self.units.pairs.numbers[share.row as usize];
            if unit == LEFT_OUT {
                (rest, all_kept) = (rest + 1, false);
                continue;
            }
            let seen = &mut self.seen[unit as usize];
            if seen.stamp == self.stamp {
                seen.flows += 1;
            } else {
                *seen = Seen { stamp: self.stamp, flows: 1 };
                units.push(unit);
                let (key, value) = self.units.get(unit);
                if self.coupons[value as usize].is_some() {
                    let size = &mut self.sizes[key as usize];
                    *size += 1;
                    if *size == 1 {
                        found.push(key);
                    }
                }
            }
        }
        let mut bound = if all_kept { 0 } else { self.units.left_out };
        if found.len() > keep {
            let size = |key: &u32| self.sizes[*key as usize];
            // of equal ones the one that came first is kept
            let (_, most_cut, _) = found.select_nth_unstable_by(keep, |left, right| {
                size(right).cmp(&size(left)).then(left.cmp(right))
            });
            bound = bound.max(size(most_cut));
            all_kept = false;
        }
        let kept = found.len().min(keep);
        for (place, key) in (1..).zip(&found[..kept]) {
            self.places[*key as usize] = place;
        }
        let mut sketches = vec![(sketch::empty(), 0_i64); kept];
        for unit in units {
            let (key, value) = self.units.get(unit);
            let flows = i64::from(self.seen[unit as usize].flows);
            match self.places[key as usize] {
                0 => rest += flows,
                place => {
                    let coupon = self.coupons[value as usize];
                    let (sketch, sum) = &mut sketches[place as usize - 1];
                    *sum += flows;
                    coupon.into_iter().for_each(|coupon| sketch.update_with_coupon(coupon));
                }
            }
        }
        let bound = f64::from(bound);
        for (key, (sketch, flows)) in found.iter().zip(sketches) {
            let sketch = Some(sketch.serialize());
            self.rows.push(Row { window, key: Some(*key), flows, sketch, bound });
        }
        if !all_kept || rest > 0 {
            self.rows.push(Row { window, key: None, flows: rest, sketch: None, bound });
        }
        for key in found {
            self.sizes[key as usize] = 0;
            self.places[key as usize] = 0;
        }
    }
}

/// The partial rows of all.
pub(super) fn finish(counted: &[Distinct]) -> Result<RecordBatch, ArrowError> {
    let rows = || counted.iter().flat_map(|counted| counted.rows.iter().map(move |row| (counted, row)));
    let attributes = |(counted, row): (&Distinct, &Row)| {
        row.key.map_or_else(Attributes::default, |key| counted.keys.attributes(key))
    };
    let starts: Vec<i64> = rows().map(|(_, row)| row.window).collect();
    let mut columns = Vec::from(windows(&starts, Resolution::Minute));
    let names = rows().map(|(counted, _)| Some(counted.name.as_str()));
    columns.push(Arc::new(StringArray::from_iter(names)) as ArrayRef);
    columns.push(Arc::new(BooleanArray::from_iter(rows().map(|(_, row)| Some(row.key.is_none())))));
    columns.extend(attribute_columns(&rows().map(attributes).collect::<Vec<_>>())?);
    columns.push(Arc::new(Int64Array::from_iter_values(rows().map(|(_, row)| row.flows))));
    columns.push(Arc::new(BinaryArray::from_iter(rows().map(|(_, row)| row.sketch.as_deref()))));
    columns.push(Arc::new(Float64Array::from_iter_values(rows().map(|(_, row)| row.bound))));
    let rollup = Rollup { kind: Kind::Distinct, resolution: Resolution::Minute };
    RecordBatch::try_new(rollup.schema(), columns)
}

/// Sketches put together by group; NULL where a group has none.
pub(super) fn union(column: &ArrayRef, group_of: &[usize], groups: usize) -> Result<ArrayRef, ArrowError> {
    let sketches = column.as_binary::<i32>();
    // most groups have one row: its sketch stays as it is
    let mut first: Vec<Option<usize>> = vec![None; groups];
    let mut unions: std::collections::HashMap<usize, Union> = std::collections::HashMap::new();
    let wrong = ArrowError::ParseError;
    for (row, group) in group_of.iter().enumerate().filter(|(row, _)| sketches.is_valid(*row)) {
        match first[*group] {
            None => first[*group] = Some(row),
            Some(other) => {
                if !unions.contains_key(group) {
                    let mut union = Union::new();
                    union.add(sketches.value(other)).map_err(wrong)?;
                    unions.insert(*group, union);
                }
                if let Some(union) = unions.get_mut(group) {
                    union.add(sketches.value(row)).map_err(wrong)?;
                }
            }
        }
    }
    let merged = (0..groups).map(|group| match (unions.get(&group), first[group]) {
        (Some(union), _) => Some(union.to_bytes()),
        (None, row) => row.map(|row| sketches.value(row).to_vec()),
    });
    Ok(Arc::new(BinaryArray::from_iter(merged)))
}

/// Cuts each window and dimension of merged rows to the `top_k` keys with the most values.
pub(super) fn cut(part: &RecordBatch, key_columns: usize, top_k: usize) -> Result<RecordBatch, ArrowError> {
    let sketches = part.column(part.num_columns() - 2).as_binary::<i32>();
    let opened = sketches.iter().map(|bytes| bytes.map(sketch::open).transpose());
    let opened = opened.collect::<Result<Vec<_>, _>>().map_err(ArrowError::ParseError)?;
    let sizes: Vec<f64> =
        opened.iter().map(|sketch| sketch.as_ref().map_or(0.0, |sketch| sketch.estimate())).collect();
    let at_most = |row: usize| opened[row].as_ref().map_or(0.0, sketch::at_most);
    super::talkers::cut(part, key_columns, top_k, &sizes, at_most)
}
