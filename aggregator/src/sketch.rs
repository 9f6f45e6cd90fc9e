//! HyperLogLog sketches as the tables and SQL have them: bytes in the format of Apache DataSketches, so that its libraries
//! (Java, C++, Python, PostgreSQL) read ours and the other way round.
//!
//! Up to 96 values a sketch is the list of their hashes and counts exactly but for collisions (a few in a hundred
//! thousand); beyond, it is 1,024 registers of four bits, and the relative standard error is 2.6 %, or 3.3 % where
//! sketches were merged.

use datasketches::common::NumStdDev;
use datasketches::hll::{HllSketch, HllType, HllUnion};

/// The logarithm of the number of registers.
pub(crate) const LG_K: u8 = 10;

/// An empty sketch as we store them.
pub(crate) fn empty() -> HllSketch {
    HllSketch::new(LG_K, HllType::Hll4).expect("a valid size")
}

/// Opens a sketch; the error says what is wrong with it.
pub(crate) fn open(bytes: &[u8]) -> Result<HllSketch, String> {
    HllSketch::deserialize(bytes).map_err(|error| format!("not a HyperLogLog sketch: {error}"))
}

/// The relative standard error of what a sketch counts.
pub(crate) fn relative_error(sketch: &HllSketch) -> f64 {
    let estimate = sketch.estimate();
    if estimate > 0.0 { (sketch.upper_bound(NumStdDev::One) - estimate) / estimate } else { 0.0 }
}

/// What a sketch counts, and three standard errors; a whole number, so that sums of it are exact in whatever order.
pub(crate) fn at_most(sketch: &HllSketch) -> f64 {
    sketch.upper_bound(NumStdDev::Three).ceil()
}

/// Sketches put together.
#[derive(Debug)]
pub(crate) struct Union(HllUnion);

impl Union {
    pub(crate) fn new() -> Union {
        Union(HllUnion::new(LG_K).expect("a valid size"))
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.0.update(&open(bytes)?);
        Ok(())
    }

    pub(crate) fn estimate(&self) -> f64 {
        self.0.estimate()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.0.to_sketch(HllType::Hll4).serialize()
    }

    /// In memory.
    pub(crate) fn size(&self) -> usize {
        size_of_val(self) + self.0.estimated_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: std::ops::Range<u64>) -> Vec<u8> {
        let mut sketch = empty();
        values.for_each(|value| sketch.update(value));
        sketch.serialize()
    }

    #[test]
    fn few_values_are_counted_exactly_and_many_within_the_stated_error() {
        for count in [0_u32, 1, 7, 8, 50, 96] {
            let sketch = open(&of(0..u64::from(count))).unwrap();
            assert!((sketch.estimate() - f64::from(count)).abs() < 0.01, "{count}");
            assert!(relative_error(&sketch) < 0.001);
        }
        let mut errors = Vec::new();
        for seed in 0..200_u64 {
            let sketch = open(&of(seed << 32..(seed << 32) + 20_000)).unwrap();
            assert!((0.02..0.035).contains(&relative_error(&sketch)), "{}", relative_error(&sketch));
            errors.push(sketch.estimate() / 20_000.0 - 1.0);
            assert!(at_most(&sketch) > 20_000.0 * 0.98);
        }
        let deviation = (errors.iter().map(|error| error * error).sum::<f64>() / 200.0).sqrt();
        assert!((0.015..0.035).contains(&deviation), "{deviation}");
    }

    /// Whatever is merged with whatever in whatever order: what is in two of them counts once, and the registers are those
    /// of all values at once.
    #[test]
    fn merged_sketches_count_what_all_of_them_have() {
        for (first, second) in [(0..5, 3..9), (0..40, 30..90), (0..80, 40..3_000), (0..9_000, 4_000..20_000)]
        {
            let (one, other) = (of(first.clone()), of(second.clone()));
            let both = f64::from(u32::try_from(second.end - first.start).unwrap());
            let mut merged = [Union::new(), Union::new()];
            merged[0].add(&one).unwrap();
            merged[0].add(&other).unwrap();
            for sketch in [&other, &one, &other, &of(0..0)] {
                merged[1].add(sketch).unwrap();
            }
            let error = merged[0].estimate() / both - 1.0;
            assert!(error.abs() < if both > 96.0 { 0.12 } else { 0.001 }, "{both}: {error}");
            let again = |union: &Union| {
                let mut again = Union::new();
                again.add(&union.to_bytes()).unwrap();
                again.estimate()
            };
            let difference = again(&merged[0]) / again(&merged[1]) - 1.0;
            assert!(difference.abs() < 0.1, "{both}: {difference}");
        }
    }

    #[test]
    fn bytes_that_are_no_sketch_are_refused_and_never_panic() {
        let good = [of(0..3), of(0..60), of(0..5_000)];
        for bytes in &good {
            for end in 0..bytes.len() {
                let _ = open(&bytes[..end]);
            }
            for at in 0..40.min(bytes.len()) {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut wrong = bytes.clone();
                    wrong[at] = value;
                    let mut union = Union::new();
                    if union.add(&wrong).is_ok() {
                        let _ = (union.estimate(), union.to_bytes());
                    }
                }
            }
        }
        assert!(open(b"").is_err() && open(b"no sketch at all").is_err());
    }
}
