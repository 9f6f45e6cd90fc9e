//! Sequence numbers that count one by one: what is missing, what came late, what came twice, and where they start anew.

/// How many of the last numbers are remembered one by one.
const WINDOW: u32 = 64;
/// A greater step forward is a restart, not loss.
const MAX_GAP: i32 = 1 << 20;

/// What a number told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The first one.
    First,
    /// After the last one, with so many missing between.
    Forward { missing: u32 },
    /// One that was counted as missing.
    Late,
    /// One that came before already, or too late to tell.
    Repeated,
    /// The sender starts anew.
    Reset,
}

/// A series of numbers, modulo 2^32.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sequence {
    last: Option<u32>,
    /// Bit n: `last` - n came.
    seen: u64,
}

impl Sequence {
    pub(super) fn next(&mut self, number: u32) -> Step {
        let Some(last) = self.last else {
            self.restart(number);
            return Step::First;
        };
        let ahead = number.wrapping_sub(last).cast_signed();
        if ahead > MAX_GAP {
            self.restart(number);
            return Step::Reset;
        }
        if ahead > 0 {
            let by = ahead.unsigned_abs();
            self.seen = self.seen.checked_shl(by).unwrap_or(0) | 1;
            self.last = Some(number);
            return Step::Forward { missing: by.saturating_sub(1) };
        }
        let behind = ahead.unsigned_abs();
        if behind >= WINDOW {
            self.restart(number);
            return Step::Reset;
        }
        let bit = 1_u64 << behind;
        if self.seen & bit != 0 {
            return Step::Repeated;
        }
        self.seen |= bit;
        Step::Late
    }

    fn restart(&mut self, number: u32) {
        self.last = Some(number);
        // what was sent before we listened is neither missing nor late
        self.seen = u64::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_22_gaps_reordering_duplicates_and_resets_are_told_apart() {
        let forward = |missing| Step::Forward { missing };
        let mut sequence = Sequence::default();
        for (number, want) in [
            (u32::MAX - 1, Step::First),
            (u32::MAX, forward(0)),
            (0, forward(0)),
            (4, forward(3)),
            (2, Step::Late),
            (2, Step::Repeated),
            (u32::MAX, Step::Repeated),
            (5, forward(0)),
            (100, forward(94)),
            // before the window: it starts anew
            (7, Step::Reset),
            (8, forward(0)),
            (6, Step::Repeated),
            (8 + (1 << 20), forward((1 << 20) - 1)),
            (3_000_000_000, Step::Reset),
            (3_000_000_001, forward(0)),
        ] {
            assert_eq!(sequence.next(number), want, "{number}");
        }
    }

    #[test]
    fn every_number_in_any_order_within_the_window_leaves_no_loss() {
        let mut random = 1_u32;
        let mut numbers: Vec<u32> = (1..2_000).collect();
        for block in numbers.chunks_mut(48) {
            for at in (1..block.len()).rev() {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                block.swap(at, (random >> 16) as usize % (at + 1));
            }
        }
        let mut sequence = Sequence::default();
        sequence.next(0);
        let mut lost = 0_i64;
        for number in numbers {
            match sequence.next(number) {
                Step::Forward { missing } => lost += i64::from(missing),
                Step::Late => lost -= 1,
                other => panic!("{number}: {other:?}"),
            }
        }
        assert_eq!(lost, 0);
    }
}
