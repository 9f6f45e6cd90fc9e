//! Columns of fixed width, and which of their rows have a value.

use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};

/// Which rows have a value: nothing is stored until the first NULL.
#[derive(Debug, Default)]
pub struct Validity {
    pub(super) len: usize,
    nulls: usize,
    /// One bit a row, least significant first; empty while `nulls` is 0.
    bits: Vec<u64>,
}

impl Validity {
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn nulls(&self) -> usize {
        self.nulls
    }

    /// `n` rows that have a value.
    #[inline]
    pub fn valid(&mut self, n: usize) {
        if self.nulls == 0 {
            self.len += n;
        } else if (1..=64).contains(&n) {
            self.mixed(u64::MAX >> (64 - n), n);
        } else {
            self.fill(n, true);
            self.len += n;
        }
    }

    /// `n` rows that have none.
    pub fn null(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        if self.nulls == 0 {
            self.begin();
        }
        self.fill(n, false);
        self.len += n;
        self.nulls += n;
    }

    /// `n` rows (64 at most), of which those have a value whose bit is set, the first row's bit being the least.
    #[inline]
    pub fn some(&mut self, bits: u64, n: usize) {
        if n == 0 {
            return;
        }
        let all = u64::MAX >> (64 - n.min(64));
        match bits & all {
            bits if bits == all => self.valid(n),
            bits => self.mixed(bits, n),
        }
    }

    /// `n` rows, 64 at most, that have a value where their bit is set; `bits` has no others.
    fn mixed(&mut self, bits: u64, n: usize) {
        if self.nulls == 0 {
            self.begin();
        }
        let (word, shift) = (self.len / 64, self.len % 64);
        self.len += n;
        self.nulls += n - bits.count_ones() as usize;
        self.bits.resize(self.len.div_ceil(64), 0);
        if let Some(low) = self.bits.get_mut(word) {
            *low |= bits << shift;
        }
        if let (Some(high), 1..) = (self.bits.get_mut(word + 1), shift) {
            *high |= bits >> (64 - shift);
        }
    }

    /// The first NULL: what came before has values.
    #[cold]
    fn begin(&mut self) {
        let len = std::mem::take(&mut self.len);
        self.fill(len, true);
        self.len = len;
    }

    /// Sets the bits of rows `len..len + n`.
    fn fill(&mut self, n: usize, value: bool) {
        let end = self.len + n;
        self.bits.resize(end.div_ceil(64), 0);
        if !value {
            return;
        }
        let mut at = self.len;
        while at < end {
            let (word, bit) = (at / 64, at % 64);
            let count = (64 - bit).min(end - at);
            self.bits[word] |= (u64::MAX >> (64 - count)) << bit;
            at += count;
        }
    }

    /// Makes the row `index` NULL (one that was valid).
    pub fn unset(&mut self, index: usize) {
        if self.nulls == 0 {
            self.begin();
        }
        let mask = 1_u64 << (index % 64);
        if self.bits[index / 64] & mask != 0 {
            self.bits[index / 64] &= !mask;
            self.nulls += 1;
        }
    }

    pub(super) fn take(&mut self) -> Option<NullBuffer> {
        let (len, nulls) = (std::mem::take(&mut self.len), std::mem::take(&mut self.nulls));
        let bits = std::mem::take(&mut self.bits);
        (nulls > 0).then(|| NullBuffer::new(BooleanBuffer::new(Buffer::from_vec(bits), 0, len)))
    }

    pub(super) fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        if self.nulls > 0 {
            self.bits.truncate(len.div_ceil(64));
            if let (Some(last), bit @ 1..) = (self.bits.last_mut(), len % 64) {
                *last &= u64::MAX >> (64 - bit);
            }
            let valid: usize = self.bits.iter().map(|word| word.count_ones() as usize).sum();
            self.nulls = len - valid;
            if self.nulls == 0 {
                self.bits.clear();
            }
        }
        self.len = len;
    }
}

/// What a column of fixed width holds, and how it lies in the buffer. An address lies there as an integer of its octets
/// as they are: a type that Arrow gives buffers back for ([`Builder::finish_reusing`]).
pub trait Item: Copy {
    type Stored: Copy + Default + PartialEq;

    fn stored(self) -> Self::Stored;
}

macro_rules! items {
    ($($type:ty),*) => {
        $(impl Item for $type {
            type Stored = $type;

            #[inline(always)]
            fn stored(self) -> $type {
                self
            }
        })*
    };
}

items!(i64, bool, u8, u16, u32, u64, f64, [u8; 6]);

impl Item for [u8; 16] {
    type Stored = u128;

    #[inline(always)]
    fn stored(self) -> u128 {
        u128::from_ne_bytes(self)
    }
}

/// So many rows at a time are written where the loops are to be short: columns have room for as many more.
pub(crate) const LANES: usize = 4;

/// A column of fixed-width values.
///
/// The values lie in slots that are there before their rows are: to write into slots takes half of what it takes to
/// append, and memory that comes back from a batch has its slots already.
#[derive(Debug)]
pub struct Values<T: Item> {
    /// The values of the first `written` rows, zeros where there is none, and whatever in the slots after them.
    slots: Vec<T::Stored>,
    written: usize,
    /// The value of all rows after these: what set after set has alike is written when something else comes.
    repeated: T::Stored,
    pub(super) validity: Validity,
}

impl<T: Item> Default for Values<T> {
    fn default() -> Self {
        Values {
            slots: Vec::new(),
            written: 0,
            repeated: T::Stored::default(),
            validity: Validity::default(),
        }
    }
}

impl<T: Item> Values<T> {
    /// Rows, with and without a value.
    #[inline]
    pub(super) fn rows(&self) -> usize {
        self.validity.len
    }

    /// The values so far, zeros for NULLs among them, to be changed in place.
    pub(crate) fn values_mut(&mut self) -> &mut [T::Stored] {
        self.write_repeated();
        &mut self.slots[..self.validity.len]
    }

    /// The slots of the next `n` rows, in which the caller writes `rows` of them.
    #[inline]
    fn room(&mut self, n: usize, rows: usize) -> &mut [T::Stored] {
        if self.written < self.validity.len {
            self.write_repeated();
        }
        let (start, end) = (self.written, self.written + n);
        if self.slots.len() < end {
            self.grow(end);
        }
        self.written += rows;
        &mut self.slots[start..end]
    }

    #[inline(never)]
    fn write_repeated(&mut self) {
        let rows = self.validity.len;
        if self.slots.len() < rows {
            self.grow(rows);
        }
        self.slots[self.written..rows].fill(self.repeated);
        self.written = rows;
    }

    /// Slots up to `end` at least, and some more where the memory is there: no more of it is touched than is needed.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, end: usize) {
        let before = self.slots.len();
        self.slots.reserve(end - before);
        let after = (end + 1_024).min(self.slots.capacity());
        // what is in them does not matter: a copy is quicker than to fill them with zeros six octets at a time
        self.slots.extend_from_within(..before.min(after - before));
        self.slots.resize(after, T::Stored::default());
    }

    #[inline]
    pub fn push(&mut self, value: T) {
        self.room(1, 1)[0] = value.stored();
        self.validity.valid(1);
    }

    #[inline]
    pub fn push_null(&mut self) {
        self.push_nulls(1);
    }

    #[inline]
    pub fn push_option(&mut self, value: Option<T>) {
        match value {
            Some(value) => self.push(value),
            None => self.push_null(),
        }
    }

    /// The same value for `n` rows.
    #[inline]
    pub fn push_n(&mut self, value: T, n: usize) {
        let value = value.stored();
        if self.repeated != value || self.written == self.validity.len {
            self.write_repeated();
            self.repeated = value;
        }
        self.validity.valid(n);
    }

    /// Up to 64 rows, of which those have a value whose bit is set in `some` (the first row's is the least); of the
    /// others `values` has zeros.
    #[inline]
    pub fn append_some(&mut self, some: u64, values: impl ExactSizeIterator<Item = T>) {
        let n = values.len();
        for (slot, value) in self.room(n, n).iter_mut().zip(values) {
            *slot = value.stored();
        }
        self.validity.some(some, n);
    }

    /// `n` rows with values, which `fill` writes, all of them, to the first `n` slots that it gets: there are more, up to
    /// a multiple of [`LANES`], in which it may leave what it likes.
    #[inline]
    pub fn append(&mut self, n: usize, fill: impl FnOnce(&mut [T::Stored])) {
        fill(self.room(n.next_multiple_of(LANES), n));
        self.validity.valid(n);
    }

    #[inline]
    pub fn push_nulls(&mut self, n: usize) {
        self.room(n, n).fill(T::Stored::default());
        self.validity.null(n);
    }

    /// The values of all rows and which of them there are; nothing is left.
    pub(super) fn take(&mut self) -> (Vec<T::Stored>, Option<NullBuffer>) {
        self.write_repeated();
        let mut values = std::mem::take(&mut self.slots);
        values.truncate(std::mem::take(&mut self.written));
        (values, self.validity.take())
    }

    pub(super) fn truncate(&mut self, rows: usize) {
        self.written = self.written.min(rows);
        self.validity.truncate(rows);
    }

    /// Room for `rows` rows, in `spare` where that is larger; for a column without rows.
    pub(super) fn reserve(&mut self, rows: usize, spare: Option<Vec<T::Stored>>) {
        debug_assert!(self.validity.is_empty());
        if let Some(spare) = spare.filter(|spare| spare.capacity() > self.slots.capacity()) {
            self.slots = spare;
        }
        self.slots.reserve((rows + LANES).saturating_sub(self.slots.len()));
    }
}
