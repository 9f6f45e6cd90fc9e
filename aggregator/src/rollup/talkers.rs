//! Top talkers: per window and dimension the largest keys of what is rolled up at once, and all others as one row.
//!
//! The totals of a dimension are exact. A key that is among the largest of one part and not of another is short by what
//! it had there, which the row `other` has, and that is at most the largest key that the other part cut off: this is
//! `bound`. In a row of a key it is what the key does not lack, in the row `other` what a key may lack that has no row; both
//! add up, so that a key may lack at most the sum over `other` less the sum over its own rows. This is the summary of
//! Misra and Gries, cut by size: it merges over parts, windows, partitions and machines.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;

use super::atoms::{Atoms, Keys, attribute_columns};
use super::columns::Flows;
use super::config::AggregateConfig;
use super::dimension::Dimension;
use super::distinct::Distinct;
use super::flows::{Cells, ClassKey};
use super::sweep::Share;
use super::{Kind, Resolution, Rollup, Sums, measures, windows};

/// Compaction keeps this many times as many keys as a commit does.
pub(super) const MERGED: usize = 4;

/// A dimension while its windows are ranked.
struct Ranked {
    dimension: Dimension,
    keys: Keys,
    of_class: bool,
    rows: Vec<Row>,
    sums: Vec<Sums>,
    /// Of each key of the window at hand the place of its row in `rows` and `sums`.
    places: Vec<u32>,
}

/// A row of the result.
struct Row {
    window: i64,
    /// None for `other`.
    key: Option<u32>,
    bound: f64,
}

/// The sizes of a window's keys, by number; all are [`UNSEEN`] before and after.
struct Sizes {
    of_key: Vec<f64>,
    /// The keys in the order in which they came.
    seen: Vec<u32>,
}

/// The size of a key that has no flow in the window.
const UNSEEN: f64 = f64::NEG_INFINITY;

impl Sizes {
    #[inline]
    fn add(&mut self, key: u32, size: f64) {
        let sum = &mut self.of_key[key as usize];
        if *sum == UNSEEN {
            *sum = 0.0;
            self.seen.push(key);
        }
        *sum += size;
    }
}

impl Ranked {
    fn new(dimension: Dimension, atoms: &mut Atoms<'_>) -> Result<Ranked, ArrowError> {
        let of_class = dimension.is_of_class();
        let keys = Keys::new(&dimension, atoms, of_class)?;
        let places = vec![0; keys.count];
        Ok(Ranked { dimension, keys, of_class, rows: Vec::new(), sums: Vec::new(), places })
    }

    /// Chooses the `keep` largest keys of a window: `items` are places in `keys`, each with the size that it adds. Every key
    /// has its row then, and the sums of the rows are to be added up: sizes alone stay in the cache where the sums of many
    /// keys would not.
    fn choose(
        &mut self,
        window: i64,
        keep: usize,
        items: impl Iterator<Item = (u32, f64)>,
        sizes: &mut Sizes,
    ) {
        let numbers = &self.keys.numbers;
        items.for_each(|(item, size)| sizes.add(numbers[item as usize], size));
        let mut found: Vec<(f64, u32)> =
            (0..).zip(&sizes.seen).map(|(place, key)| (sizes.of_key[*key as usize], place)).collect();
        let mut bound = 0.0;
        if found.len() > keep {
            // of equally large ones the one that came first is kept
            let order =
                |(left, l): &(f64, u32), (right, r): &(f64, u32)| right.total_cmp(left).then(l.cmp(r));
            let (_, (largest_cut, _), _) = found.select_nth_unstable_by(keep, order);
            bound = *largest_cut;
        }
        let (kept, cut) = found.split_at(keep.min(found.len()));
        for (_, place) in kept {
            let key = sizes.seen[*place as usize];
            self.places[key as usize] = self.rows.len() as u32;
            self.rows.push(Row { window, key: Some(key), bound });
        }
        if !cut.is_empty() {
            cut.iter().for_each(|(_, place)| {
                self.places[sizes.seen[*place as usize] as usize] = self.rows.len() as u32;
            });
            self.rows.push(Row { window, key: None, bound });
        }
        self.sums.resize(self.rows.len(), Sums::default());
        sizes.seen.drain(..).for_each(|key| sizes.of_key[key as usize] = UNSEEN);
    }

    /// Adds to the sums of the window that was chosen: places in `keys`, each with what it adds.
    fn add<'a>(&mut self, items: impl Iterator<Item = (u32, &'a Sums)>) {
        let (numbers, places) = (&self.keys.numbers, &self.places);
        for (item, sums) in items {
            self.sums[places[numbers[item as usize] as usize] as usize].add(sums);
        }
    }
}

/// How many keys the next window keeps of a dimension that has `rows` from newer ones: flows that last long are in many
/// windows, and what they add to the rollup is bounded by keeping less of the older ones.
fn keep(top_k: usize, rows: usize) -> usize {
    if rows < top_k * 16 {
        top_k
    } else if rows < top_k * 24 {
        (top_k / 20).max(10)
    } else {
        (top_k / 100).max(10)
    }
}

/// All dimensions.
pub(super) struct Talkers {
    ranked: Vec<Ranked>,
    /// Of the dimension and window at hand.
    sizes: Sizes,
    top_k: usize,
    counted: Vec<Distinct>,
}

impl Talkers {
    pub(super) fn new(
        flows: &Flows<'_>,
        config: &AggregateConfig,
        classes: &[ClassKey],
        class_of_row: &[u32],
    ) -> Result<Talkers, ArrowError> {
        let mut atoms = Atoms::new(flows, config, classes, class_of_row);
        let dimensions = config.ranked().into_iter();
        let ranked = dimensions.map(|dimension| Ranked::new(dimension, &mut atoms));
        let ranked: Vec<Ranked> = ranked.collect::<Result<_, _>>()?;
        let most = ranked.iter().map(|ranked| ranked.keys.count).max().unwrap_or(0);
        let sizes = Sizes { of_key: vec![UNSEEN; most], seen: Vec::new() };
        // after them: what pairs they have numbered is used again
        let counted = config.counted().into_iter();
        let counted = counted.map(|counted| Distinct::new(counted, config.distinct_top_k, &mut atoms));
        Ok(Talkers { ranked, sizes, top_k: config.top_k, counted: counted.collect::<Result<_, _>>()? })
    }

    /// Takes a window: the shares of rows, with their estimated bytes. The newest comes first. What they add is then to be
    /// given to [`Talkers::add`].
    pub(super) fn window(&mut self, window: i64, shares: &[Share], sizes: &[f64]) {
        for ranked in self.ranked.iter_mut().filter(|ranked| !ranked.of_class) {
            let keep = keep(self.top_k, ranked.rows.len());
            let items = shares.iter().map(|share| share.row).zip(sizes.iter().copied());
            ranked.choose(window, keep, items, &mut self.sizes);
        }
        for counted in &mut self.counted {
            counted.window(window, shares);
        }
    }

    /// Takes shares of the window, each with what it adds.
    pub(super) fn add(&mut self, shares: &[Share], added: &[Sums]) {
        for ranked in self.ranked.iter_mut().filter(|ranked| !ranked.of_class) {
            ranked.add(shares.iter().map(|share| share.row).zip(added));
        }
    }

    /// Takes a window's sums by class.
    pub(super) fn classes(&mut self, window: i64, classes: &Cells) {
        for ranked in self.ranked.iter_mut().filter(|ranked| ranked.of_class) {
            let keep = keep(self.top_k, ranked.rows.len());
            let items = || classes.numbers.iter().copied().zip(&classes.sums);
            ranked.choose(
                window,
                keep,
                items().map(|(class, sums)| (class, sums.est_bytes())),
                &mut self.sizes,
            );
            ranked.add(items());
        }
    }

    /// The partial rows of `top_talkers`, and of `distinct_1m`.
    pub(super) fn finish(self) -> Result<(RecordBatch, RecordBatch), ArrowError> {
        let mut attributes = Vec::new();
        let (mut starts, mut names, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let (mut sums, mut bounds) = (Vec::new(), Vec::new());
        for ranked in &self.ranked {
            for row in &ranked.rows {
                attributes.push(row.key.map(|key| ranked.keys.attributes(key)).unwrap_or_default());
                starts.push(row.window);
                names.push(ranked.dimension.name.as_str());
                others.push(row.key.is_none());
                bounds.push(row.bound);
            }
            sums.extend_from_slice(&ranked.sums);
        }
        let mut columns = Vec::from(windows(&starts, Resolution::Minute));
        columns.push(Arc::new(StringArray::from_iter_values(names)) as ArrayRef);
        columns.push(Arc::new(BooleanArray::from(others)));
        columns.extend(attribute_columns(&attributes)?);
        columns.extend(measures(&sums));
        columns.push(Arc::new(Float64Array::from(bounds)));
        let rollup = Rollup { kind: Kind::Talkers, resolution: Resolution::Minute };
        let ranked = RecordBatch::try_new(rollup.schema(), columns)?;
        Ok((ranked, super::distinct::finish(&self.counted)?))
    }
}

/// A window and dimension of a part that is cut.
#[derive(Default)]
struct Group {
    keys: Vec<u32>,
    other: Option<u32>,
}

/// Cuts by `est_bytes`.
pub(super) fn cut_by_bytes(
    part: &RecordBatch,
    key_columns: usize,
    top_k: usize,
) -> Result<RecordBatch, ArrowError> {
    let Some(sizes) = part.column_by_name("est_bytes") else { return Ok(part.clone()) };
    let sizes = sizes.as_primitive::<Float64Type>().values();
    cut(part, key_columns, top_k, sizes, |row| sizes[row])
}

/// Cuts each window and dimension of merged rows to its `top_k` largest keys, and says in `bound` what this hides. Of
/// `sizes` the rows have the greatest; `at_most` is what their key has at most as far as these rows know.
pub(super) fn cut(
    part: &RecordBatch,
    key_columns: usize,
    top_k: usize,
    sizes: &[f64],
    at_most: impl Fn(usize) -> f64,
) -> Result<RecordBatch, ArrowError> {
    let starts = part.column(0).as_primitive::<TimestampMicrosecondType>().values();
    let dimensions = part.column(2).as_string::<i32>();
    let others = part.column(3).as_boolean();
    let mut places: HashMap<(i64, &str), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (row, start) in (0_u32..).zip(starts) {
        let at = row as usize;
        let group = *places.entry((*start, dimensions.value(at))).or_insert_with(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        if others.value(at) { groups[group].other = Some(row) } else { groups[group].keys.push(row) }
    }
    if groups.iter().all(|group| group.keys.len() <= top_k) {
        return Ok(part.clone());
    }
    // the last column of both kinds
    let bounds = part.column(part.num_columns() - 1).as_primitive::<Float64Type>();
    // each row of the result: where it comes from, whether it is `other`, its bound, and what is added to it
    let mut rows: Vec<(u32, bool, f64)> = Vec::new();
    let mut added: Vec<(usize, Vec<u32>)> = Vec::new();
    for Group { mut keys, other } in groups {
        let before = other.map_or(0.0, |other| bounds.value(other as usize));
        if keys.len() <= top_k {
            rows.extend(keys.iter().map(|row| (*row, false, bounds.value(*row as usize))));
            rows.extend(other.map(|other| (other, true, before)));
            continue;
        }
        let size = |row: u32| sizes[row as usize];
        keys.select_nth_unstable_by(top_k, |left, right| {
            size(*right).total_cmp(&size(*left)).then(left.cmp(right))
        });
        let hidden = keys.split_off(top_k);
        // a key without a row may have what any hidden one has, and what that may lack
        let lacks = |row: u32| at_most(row as usize) + before - bounds.value(row as usize);
        let bound = hidden.iter().map(|row| lacks(*row)).fold(before, f64::max);
        rows.extend(keys.iter().map(|row| (*row, false, bounds.value(*row as usize) + bound - before)));
        let (into, rest) = match other {
            Some(other) => (other, &hidden[..]),
            None => (hidden[0], &hidden[1..]),
        };
        rows.push((into, true, bound));
        added.push((rows.len() - 1, rest.to_vec()));
    }
    let from = UInt32Array::from_iter_values(rows.iter().map(|(row, ..)| *row));
    let attributes = UInt32Array::from_iter(rows.iter().map(|(row, other, _)| (!other).then_some(*row)));
    let mut columns = Vec::with_capacity(part.num_columns());
    for (at, column) in part.columns().iter().enumerate() {
        columns.push(match at {
            0..3 => take(column, &from, None)?,
            3 => Arc::new(BooleanArray::from_iter(rows.iter().map(|(_, other, _)| Some(*other)))),
            _ if at < key_columns => take(column, &attributes, None)?,
            // what is no number does not add up
            _ if *column.data_type() == DataType::Binary => take(column, &attributes, None)?,
            _ if at == part.num_columns() - 1 => {
                Arc::new(Float64Array::from_iter_values(rows.iter().map(|(.., bound)| *bound)))
            }
            _ => add(column, &from, &added)?,
        });
    }
    RecordBatch::try_new(part.schema(), columns)
}

/// The values of `from`, and those of other rows added to some of them.
fn add(column: &ArrayRef, from: &UInt32Array, added: &[(usize, Vec<u32>)]) -> Result<ArrayRef, ArrowError> {
    let taken = take(column, from, None)?;
    Ok(if let Some(values) = column.as_primitive_opt::<Float64Type>() {
        let mut sums: Vec<f64> = taken.as_primitive::<Float64Type>().values().to_vec();
        for (into, rows) in added {
            sums[*into] += rows.iter().map(|row| values.value(*row as usize)).sum::<f64>();
        }
        Arc::new(Float64Array::from(sums))
    } else {
        let values = column.as_primitive::<Int64Type>();
        let mut sums: Vec<i64> = taken.as_primitive::<Int64Type>().values().to_vec();
        for (into, rows) in added {
            for row in rows {
                sums[*into] = sums[*into].saturating_add(values.value(*row as usize));
            }
        }
        Arc::new(Int64Array::from(sums))
    })
}
