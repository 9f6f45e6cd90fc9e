//! Numbers for keys, in the order in which they first come: everything behind is then an array, not a hash table.

/// A key that can be told from others by a hash.
pub(super) trait Key: Copy + Eq {
    /// A word in which the lower and the upper bits are about as good as random.
    fn mixed(self) -> u64;
}

/// The fraction of the golden ratio: multiplying by it and folding the halves mixes all bits.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// A start that no sender knows: whoever could choose keys that collide would make every look-up slow.
fn secret() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::OnceLock;
    static SECRET: OnceLock<u64> = OnceLock::new();
    *SECRET.get_or_init(|| RandomState::new().hash_one(MIX))
}

#[inline]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}

impl Key for u64 {
    #[inline]
    fn mixed(self) -> u64 {
        fold(self ^ MIX, MIX | 1)
    }
}

impl Key for u128 {
    #[inline]
    fn mixed(self) -> u64 {
        fold(fold(self as u64 ^ MIX, 0xd6e8_feb8_6659_fd93) ^ (self >> 64) as u64, MIX)
    }
}

/// How many keys are looked up at once.
const AT_ONCE: usize = 1_024;

/// Keys with their numbers.
#[derive(Debug)]
pub(super) struct Interner<K> {
    /// Number + 1 of the key, and the upper half of its hash; 0 is free. A power of two, at most half full.
    slots: Vec<(u32, u32)>,
    keys: Vec<K>,
    secret: u64,
}

impl<K: Key> Interner<K> {
    pub(super) fn new() -> Interner<K> {
        Interner { slots: vec![(0, 0); 64], keys: Vec::new(), secret: secret() }
    }

    #[inline]
    fn hash(&self, key: K) -> u64 {
        fold(key.mixed() ^ self.secret, MIX)
    }

    /// The number of `key`, which gets the next one where it is new.
    #[inline]
    pub(super) fn number(&mut self, key: K) -> u32 {
        self.number_of(key, self.hash(key))
    }

    /// The numbers of all of `keys`.
    pub(super) fn numbers(&mut self, keys: impl Iterator<Item = K>) -> Vec<u32> {
        let mut numbers = Vec::with_capacity(keys.size_hint().0);
        self.append_numbers(keys, &mut numbers);
        numbers
    }

    /// The numbers of all of `keys`, at the end of `numbers`. Each step is taken for many keys before the next one, so that
    /// the processor waits for the memory of many of them at once.
    pub(super) fn append_numbers(&mut self, mut keys: impl Iterator<Item = K>, numbers: &mut Vec<u32>) {
        let (mut some, mut hashes, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            some.clear();
            some.extend(keys.by_ref().take(AT_ONCE));
            if some.is_empty() {
                return;
            }
            hashes.clear();
            hashes.extend(some.iter().map(|key| self.hash(*key)));
            let mask = self.slots.len() - 1;
            slots.clear();
            slots.extend(hashes.iter().map(|hash| self.slots[*hash as usize & mask]));
            // a number stays what it is where the table grows meanwhile
            numbers.extend(some.iter().zip(&hashes).zip(&slots).map(|((key, hash), (number, tag))| {
                let is_it =
                    *number != 0 && *tag == (hash >> 32) as u32 && self.keys[*number as usize - 1] == *key;
                if is_it { number - 1 } else { self.number_of(*key, *hash) }
            }));
        }
    }

    #[inline]
    fn number_of(&mut self, key: K, hash: u64) -> u32 {
        let tag = (hash >> 32) as u32;
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let (number, known) = self.slots[at];
            if number == 0 {
                return self.insert(key, at, tag);
            }
            if known == tag && self.keys[number as usize - 1] == key {
                return number - 1;
            }
            at = (at + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let size = self.slots.len() * 4;
        let mask = size - 1;
        let mut slots = vec![(0, 0); size];
        for (number, key) in (1..).zip(&self.keys) {
            let hash = self.hash(*key);
            let mut at = hash as usize & mask;
            while slots[at].0 != 0 {
                at = (at + 1) & mask;
            }
            slots[at] = (number, (hash >> 32) as u32);
        }
        self.slots = slots;
    }

    fn insert(&mut self, key: K, at: usize, tag: u32) -> u32 {
        self.keys.push(key);
        // the rows of one computation are fewer than 2^32
        let number = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        self.slots[at] = (number, tag);
        if self.keys.len() * 2 > self.slots.len() {
            self.grow();
        }
        number - 1
    }

    /// The keys in the order of their numbers.
    pub(super) fn keys(&self) -> &[K] {
        &self.keys
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_a_map() {
        let (mut interner, mut at_once) = (Interner::new(), Interner::new());
        let mut model = std::collections::HashMap::new();
        let mut state = 7_u64;
        let (mut keys, mut numbers) = (Vec::new(), Vec::new());
        for _ in 0..50_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // few bits differ, and only in the upper or the lower half
            let value = (state >> 40) % 5_000;
            let key = if state & 1 << 33 == 0 { u128::from(value) } else { u128::from(value) << 64 };
            let next = model.len() as u32;
            assert_eq!(interner.number(key), *model.entry(key).or_insert(next));
            keys.push(key);
        }
        for some in keys.chunks(7_000) {
            at_once.append_numbers(some.iter().copied(), &mut numbers);
        }
        assert!(keys.iter().zip(&numbers).all(|(key, number)| model[key] == *number));
        assert_eq!((numbers.len(), at_once.keys()), (keys.len(), interner.keys()));
        assert_eq!(interner.len(), model.len());
        assert!(interner.keys().iter().all(|key| model.contains_key(key)));
    }
}
