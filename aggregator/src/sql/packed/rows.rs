//! Groups as rows of 64-bit words: the key, packed; then a word for each aggregate; then a word of which were seen.

use std::hash::BuildHasher;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, Int16Array, Int32Array, PrimitiveArray,
};
use datafusion::arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Float64Type, Int16Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use datafusion::common::{Result, internal_err};

/// More columns are left to DataFusion.
const MAX_COLUMNS: usize = 32;

/// What is computed of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    CountRows,
    Count,
    SumInt,
    /// Of counts: of none it is 0, and not NULL.
    SumCount,
    SumFloat,
    Min,
    Max,
}

impl Op {
    fn start(self) -> u64 {
        match self {
            Op::Min => i64::MAX.cast_unsigned(),
            Op::Max => i64::MIN.cast_unsigned(),
            _ => 0,
        }
    }

    #[inline]
    fn combine(self, into: u64, other: u64) -> u64 {
        match self {
            Op::CountRows | Op::Count | Op::SumInt | Op::SumCount => into.wrapping_add(other),
            Op::SumFloat => (f64::from_bits(into) + f64::from_bits(other)).to_bits(),
            Op::Min => into.cast_signed().min(other.cast_signed()).cast_unsigned(),
            Op::Max => into.cast_signed().max(other.cast_signed()).cast_unsigned(),
        }
    }
}

/// Where a column of the key lies: its bits, and the bit that says it is NULL.
#[derive(Debug, Clone)]
struct Field {
    data_type: DataType,
    word: usize,
    shift: u32,
    null_word: usize,
    null_bit: u32,
}

/// Bits of a column in a key; None where it has no fixed width that is worth it.
fn width(data_type: &DataType) -> Option<u32> {
    match data_type {
        DataType::FixedSizeBinary(16) => Some(128),
        DataType::Int64 | DataType::Timestamp(TimeUnit::Microsecond, _) => Some(64),
        DataType::FixedSizeBinary(6) => Some(48),
        DataType::Int32 => Some(32),
        DataType::Int16 => Some(16),
        DataType::Boolean => Some(1),
        _ => None,
    }
}

/// How a group is laid out in words.
#[derive(Debug)]
pub(super) struct Layout {
    fields: Vec<Field>,
    pub(super) ops: Vec<Op>,
    pub(super) key_words: usize,
    /// Words of a row.
    pub(super) words: usize,
    seeds: (u64, u64),
}

impl Layout {
    /// None where a column of the key has no fixed width.
    pub(super) fn new(keys: &[DataType], ops: Vec<Op>) -> Option<Layout> {
        if keys.is_empty() || keys.len() > MAX_COLUMNS || ops.len() > MAX_COLUMNS {
            return None;
        }
        let mut widths = Vec::with_capacity(keys.len());
        for key in keys {
            widths.push(width(key)?);
        }
        let mut words = 0;
        let mut places = vec![(0, 0); keys.len()];
        for (at, bits) in widths.iter().enumerate().filter(|(_, bits)| **bits >= 64) {
            places[at] = (words, 0);
            words += *bits as usize / 64;
        }
        // the narrow ones and the NULL bits share words, widest first
        let mut used: Vec<u32> = Vec::new();
        let mut place = |bits: u32| {
            let word = used.iter().position(|used| used + bits <= 64).unwrap_or_else(|| {
                used.push(0);
                used.len() - 1
            });
            used[word] += bits;
            (words + word, used[word] - bits)
        };
        let mut narrow: Vec<usize> = (0..keys.len()).filter(|at| widths[*at] < 64).collect();
        narrow.sort_by_key(|at| std::cmp::Reverse(widths[*at]));
        for at in narrow {
            places[at] = place(widths[at]);
        }
        let nulls: Vec<(usize, u32)> = keys.iter().map(|_| place(1)).collect();
        let key_words = words + used.len();
        let fields = keys.iter().zip(places).zip(nulls);
        let fields = fields.map(|((data_type, (word, shift)), (null_word, null_bit))| Field {
            data_type: data_type.clone(),
            word,
            shift,
            null_word,
            null_bit,
        });
        // keys come from the network: nobody must be able to choose ones that collide
        let random = std::hash::RandomState::new();
        let seeds = (random.hash_one(1), random.hash_one(2) | 1);
        Some(Layout { fields: fields.collect(), words: key_words + ops.len() + 1, key_words, ops, seeds })
    }

    /// Writes rows with the keys and the aggregates' first values.
    pub(super) fn pack(&self, keys: &[ArrayRef], count: usize, rows: &mut Vec<u64>) -> Result<()> {
        rows.clear();
        rows.resize(count * self.words, 0);
        for (field, column) in self.fields.iter().zip(keys) {
            field.pack(column, rows, self.words)?;
        }
        for (at, op) in self.ops.iter().enumerate().filter(|(_, op)| op.start() != 0) {
            rows.iter_mut().skip(self.key_words + at).step_by(self.words).for_each(|word| *word = op.start());
        }
        Ok(())
    }

    #[inline(always)]
    pub(super) fn hash(&self, key: &[u64]) -> u64 {
        let fold = |word: u64| {
            let product = u128::from(word) * u128::from(self.seeds.1);
            (product as u64) ^ (product >> 64) as u64
        };
        fold(key.iter().fold(self.seeds.0, |hash, word| fold(hash ^ word)) ^ self.seeds.0)
    }

    /// Adds a column of values to the aggregate `at` of the rows at `places`.
    pub(super) fn accumulate(
        &self,
        at: usize,
        rows: &mut [u64],
        places: &[u32],
        values: Option<&ArrayRef>,
    ) -> Result<()> {
        let (op, words) = (self.ops[at], self.words);
        let (word, seen, bit) = (self.key_words + at, self.words - 1, 1_u64 << at);
        let Some(values) = values else {
            places.iter().for_each(|place| rows[*place as usize * words + word] += 1);
            return Ok(());
        };
        let nulls = values.nulls().filter(|nulls| nulls.null_count() > 0);
        let mut each = |value: &dyn Fn(usize) -> u64| {
            for (row, place) in places.iter().enumerate() {
                if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                    let start = *place as usize * words;
                    rows[start + word] = op.combine(rows[start + word], value(row));
                    rows[start + seen] |= bit;
                }
            }
        };
        match (op, values.data_type()) {
            (Op::Count, _) => each(&|_| 1),
            (Op::SumFloat, DataType::Float64) => {
                let values = values.as_primitive::<Float64Type>().values();
                if nulls.is_some() {
                    each(&|row| values[row].to_bits());
                } else {
                    for (place, value) in places.iter().zip(values.iter()) {
                        let start = *place as usize * words;
                        rows[start + word] = (f64::from_bits(rows[start + word]) + value).to_bits();
                        rows[start + seen] |= bit;
                    }
                }
            }
            (Op::SumInt | Op::SumCount, DataType::Int64) => {
                let values = values.as_primitive::<Int64Type>().values();
                if nulls.is_some() {
                    each(&|row| values[row].cast_unsigned());
                } else {
                    for (place, value) in places.iter().zip(values.iter()) {
                        let start = *place as usize * words;
                        rows[start + word] = rows[start + word].wrapping_add(value.cast_unsigned());
                        rows[start + seen] |= bit;
                    }
                }
            }
            (Op::Min | Op::Max, DataType::Int64) => {
                let values = values.as_primitive::<Int64Type>().values();
                each(&|row| values[row].cast_unsigned());
            }
            (Op::Min | Op::Max, DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                let values = values.as_primitive::<TimestampMicrosecondType>().values();
                each(&|row| values[row].cast_unsigned());
            }
            (op, other) => return internal_err!("{op:?} of {other}"),
        }
        Ok(())
    }

    /// Adds the aggregates of a row to those of another.
    #[inline]
    fn combine(&self, into: &mut [u64], other: &[u64]) {
        for (at, op) in self.ops.iter().enumerate() {
            let word = self.key_words + at;
            into[word] = op.combine(into[word], other[word]);
        }
        into[self.words - 1] |= other[self.words - 1];
    }

    /// The rows as columns: the key's, then the aggregates of the given types.
    pub(super) fn columns(&self, rows: &[u64], aggregates: &[DataType]) -> Result<Vec<ArrayRef>> {
        let keys = self.fields.iter().map(|field| field.unpack(rows, self.words));
        let aggregates =
            aggregates.iter().enumerate().map(|(at, data_type)| self.values(rows, at, data_type));
        keys.chain(aggregates).collect()
    }

    fn values(&self, rows: &[u64], at: usize, data_type: &DataType) -> Result<ArrayRef> {
        let values = || rows.iter().skip(self.key_words + at).step_by(self.words);
        let seen = || rows.iter().skip(self.words - 1).step_by(self.words);
        let nulls = match self.ops[at] {
            Op::CountRows | Op::Count | Op::SumCount => None,
            _ => Some(NullBuffer::new(seen().map(|seen| seen >> at & 1 == 1).collect::<BooleanBuffer>())),
        };
        let longs = || values().map(|word| word.cast_signed()).collect();
        Ok(match data_type {
            DataType::Int64 => Arc::new(PrimitiveArray::<Int64Type>::new(longs(), nulls)),
            DataType::Float64 => {
                let doubles = values().map(|word| f64::from_bits(*word)).collect();
                Arc::new(PrimitiveArray::<Float64Type>::new(doubles, nulls))
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => Arc::new(
                PrimitiveArray::<TimestampMicrosecondType>::new(longs(), nulls)
                    .with_data_type(data_type.clone()),
            ),
            other => return internal_err!("an aggregate of type {other}"),
        })
    }
}

impl Field {
    fn pack(&self, column: &ArrayRef, rows: &mut [u64], words: usize) -> Result<()> {
        if let Some(nulls) = column.nulls().filter(|nulls| nulls.null_count() > 0) {
            for (row, valid) in nulls.iter().enumerate().filter(|(_, valid)| !valid) {
                rows[row * words + self.null_word] |= u64::from(!valid) << self.null_bit;
            }
        }
        let nulls = column.nulls().filter(|nulls| nulls.null_count() > 0);
        let valid = |row: usize| nulls.is_none_or(|nulls| nulls.is_valid(row));
        match &self.data_type {
            DataType::FixedSizeBinary(size @ (6 | 16)) => {
                let Some(column) = column.as_fixed_size_binary_opt() else {
                    return internal_err!("a key of type {}", column.data_type());
                };
                if *size == 16 {
                    let values = column.value_data().as_chunks::<16>().0;
                    for (row, value) in values.iter().enumerate().filter(|(row, _)| valid(*row)) {
                        let (start, value) = (row * words + self.word, u128::from_be_bytes(*value));
                        rows[start] = (value >> 64) as u64;
                        rows[start + 1] = value as u64;
                    }
                } else {
                    for row in (0..column.len()).filter(|row| valid(*row)) {
                        let bytes = column.value(row).iter();
                        let value = bytes.fold(0, |word, byte| word << 8 | u64::from(*byte));
                        rows[row * words + self.word] |= value << self.shift;
                    }
                }
            }
            DataType::Int64 => {
                self.pack_numbers::<Int64Type>(column, rows, words, valid, |value| value.cast_unsigned())
            }
            DataType::Timestamp(..) => {
                self.pack_numbers::<TimestampMicrosecondType>(column, rows, words, valid, |value| {
                    value.cast_unsigned()
                })
            }
            DataType::Int32 => self.pack_numbers::<Int32Type>(column, rows, words, valid, |value| {
                u64::from(value.cast_unsigned())
            }),
            DataType::Int16 => self.pack_numbers::<Int16Type>(column, rows, words, valid, |value| {
                u64::from(value.cast_unsigned())
            }),
            _ => {
                let column = column.as_boolean();
                for row in (0..column.len()).filter(|row| valid(*row)) {
                    rows[row * words + self.word] |= u64::from(column.value(row)) << self.shift;
                }
            }
        }
        Ok(())
    }

    fn pack_numbers<T: ArrowPrimitiveType>(
        &self,
        column: &ArrayRef,
        rows: &mut [u64],
        words: usize,
        valid: impl Fn(usize) -> bool,
        bits: impl Fn(T::Native) -> u64,
    ) {
        for (row, value) in column.as_primitive::<T>().values().iter().enumerate() {
            if valid(row) {
                rows[row * words + self.word] |= bits(*value) << self.shift;
            }
        }
    }

    fn unpack(&self, rows: &[u64], words: usize) -> Result<ArrayRef> {
        let is_null = |row: &[u64]| row[self.null_word] >> self.null_bit & 1 == 1;
        let each = || rows.chunks_exact(words);
        let nulls = each()
            .any(is_null)
            .then(|| NullBuffer::new(each().map(|row| !is_null(row)).collect::<BooleanBuffer>()));
        let values = || each().map(|row| row[self.word] >> self.shift);
        Ok(match &self.data_type {
            DataType::FixedSizeBinary(16) => {
                let mut bytes = Vec::with_capacity(rows.len() / words * 16);
                for row in each() {
                    bytes.extend_from_slice(&row[self.word].to_be_bytes());
                    bytes.extend_from_slice(&row[self.word + 1].to_be_bytes());
                }
                Arc::new(FixedSizeBinaryArray::try_new(16, Buffer::from_vec(bytes), nulls)?)
            }
            DataType::FixedSizeBinary(6) => {
                let bytes: Vec<u8> =
                    values().flat_map(|value| value.to_be_bytes().into_iter().skip(2)).collect();
                Arc::new(FixedSizeBinaryArray::try_new(6, Buffer::from_vec(bytes), nulls)?)
            }
            DataType::Int64 => {
                Arc::new(PrimitiveArray::<Int64Type>::new(values().map(u64::cast_signed).collect(), nulls))
            }
            DataType::Timestamp(..) => Arc::new(
                PrimitiveArray::<TimestampMicrosecondType>::new(
                    values().map(u64::cast_signed).collect(),
                    nulls,
                )
                .with_data_type(self.data_type.clone()),
            ),
            DataType::Int32 => {
                Arc::new(Int32Array::new(values().map(|value| (value as u32).cast_signed()).collect(), nulls))
            }
            DataType::Int16 => {
                Arc::new(Int16Array::new(values().map(|value| (value as u16).cast_signed()).collect(), nulls))
            }
            _ => Arc::new(BooleanArray::new(values().map(|value| value & 1 == 1).collect(), nulls)),
        })
    }
}

/// Groups by their keys: rows, and an open-addressed table of their places.
#[derive(Debug)]
pub(super) struct Groups {
    /// The upper half of the hash, and the row's number plus one; 0 is free.
    slots: Vec<u64>,
    pub(super) rows: Vec<u64>,
    len: usize,
    hashes: Vec<u64>,
}

/// The half of a slot that is of the hash.
const TAG: u64 = !0xffff_ffff;

impl Groups {
    /// Room for `capacity` groups; it grows beyond.
    pub(super) fn with_capacity(capacity: usize) -> Groups {
        Groups { slots: vec![0; Groups::slots_for(capacity)], rows: Vec::new(), len: 0, hashes: Vec::new() }
    }

    fn slots_for(capacity: usize) -> usize {
        (capacity.max(8) * 2).next_power_of_two()
    }

    /// Bytes of a table for `capacity` groups.
    pub(super) fn bytes(capacity: usize, words: usize) -> usize {
        (Groups::slots_for(capacity) + capacity * words) * 8
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.slots.fill(0);
        self.rows.clear();
        self.len = 0;
    }

    /// The number of the row with the key of `row`, and whether it was put there now.
    #[inline]
    fn place(&mut self, layout: &Layout, hash: u64, row: &[u64]) -> (usize, bool) {
        let (mask, tag) = (self.slots.len() - 1, hash & TAG);
        let mut slot = hash as usize & mask;
        loop {
            let found = self.slots[slot];
            if found == 0 {
                self.slots[slot] = tag | (self.len as u64 + 1);
                self.rows.extend_from_slice(row);
                self.len += 1;
                if self.len * 2 > self.slots.len() {
                    self.grow(layout);
                }
                return (self.len - 1, true);
            }
            if found & TAG == tag {
                let number = (found & !TAG) as usize - 1;
                if self.is_at(layout, number, row) {
                    return (number, false);
                }
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Whether the row of that number has the key of `row`.
    #[inline]
    fn is_at(&self, layout: &Layout, number: usize, row: &[u64]) -> bool {
        let (start, words) = (number * layout.words, layout.key_words);
        // word by word: a comparison of slices is a call
        self.rows[start..start + words].iter().zip(row).all(|(known, word)| known == word)
    }

    #[cold]
    fn grow(&mut self, layout: &Layout) {
        let size = self.slots.len() * 4;
        let mask = size - 1;
        self.slots.clear();
        self.slots.resize(size, 0);
        for (number, row) in (1..).zip(self.rows.chunks_exact(layout.words)) {
            let hash = layout.hash(&row[..layout.key_words]);
            let mut slot = hash as usize & mask;
            while self.slots[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = hash & TAG | number;
        }
    }

    /// Puts rows there, and writes to `places` where each of them is.
    pub(super) fn place_all(&mut self, layout: &Layout, rows: &[u64], places: &mut Vec<u32>) {
        let rows = || rows.chunks_exact(layout.words);
        // Short loops one after the other, rather than one that does it all for a row: then the processor waits for the
        // memory of many rows at once. What it waits for is nearly all of the time where there are many groups.
        let mut hashes = std::mem::take(&mut self.hashes);
        hashes.clear();
        match layout.key_words {
            3 => hashes.extend(rows().filter_map(|row| row.first_chunk::<3>()).map(|key| layout.hash(key))),
            words => hashes.extend(rows().map(|row| layout.hash(&row[..words]))),
        }
        let mask = self.slots.len() - 1;
        places.clear();
        places.extend(hashes.iter().map(|hash| {
            let found = self.slots[*hash as usize & mask];
            if found & TAG == hash & TAG { found as u32 } else { 0 }
        }));
        for ((place, hash), row) in places.iter_mut().zip(&hashes).zip(rows()) {
            *place = match place.checked_sub(1).filter(|number| self.is_at(layout, *number as usize, row)) {
                Some(number) => number,
                None => self.place(layout, *hash, row).0 as u32,
            };
        }
        self.hashes = hashes;
    }

    /// Puts rows there, or adds each to the one of its key.
    pub(super) fn merge_all(&mut self, layout: &Layout, rows: &[u64]) {
        for row in rows.chunks_exact(layout.words) {
            let hash = layout.hash(&row[..layout.key_words]);
            let (number, is_new) = self.place(layout, hash, row);
            if !is_new {
                let start = number * layout.words;
                layout.combine(&mut self.rows[start..start + layout.words], row);
            }
        }
    }
}
