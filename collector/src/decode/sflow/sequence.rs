//! Sequence numbers that count one by one: what is missing, what came late, what came twice, and where they start anew.

/// How many of the last numbers are remembered one by one.
const WINDOW: u32 = 64;
/// A number that is farther ahead is believed when the next one goes on from it: one stray or invented datagram is
/// neither loss nor a restart.
const NEAR: u32 = 1 << 12;
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
    /// One that is far off: maybe the sender starts anew.
    Stray,
    /// One that goes on from the stray before it, with so many missing before and between: the sender starts anew
    /// (`reset`), or many were lost.
    Jump { missing: u32, reset: bool },
}

/// A series of numbers, modulo 2^32.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sequence {
    last: Option<u32>,
    /// Bit n: `last` - n came.
    seen: u64,
    stray: Option<u32>,
}

impl Sequence {
    #[inline]
    pub(super) fn next(&mut self, number: u32) -> Step {
        // nearly always
        if self.last.is_some_and(|last| number == last.wrapping_add(1)) {
            return self.forward(number, 1);
        }
        self.other(number)
    }

    #[inline(always)]
    fn forward(&mut self, number: u32, by: u32) -> Step {
        self.stray = None;
        self.seen = self.seen.checked_shl(by).unwrap_or(0) | 1;
        self.last = Some(number);
        Step::Forward { missing: by.saturating_sub(1) }
    }

    #[inline(never)]
    fn other(&mut self, number: u32) -> Step {
        let Some(last) = self.last else {
            self.restart(number);
            return Step::First;
        };
        let ahead = number.wrapping_sub(last).cast_signed();
        let behind = ahead.unsigned_abs();
        let near = if ahead > 0 { behind <= NEAR } else { behind < WINDOW };
        if !near {
            return self.far(last, number);
        }
        if ahead > 0 {
            return self.forward(number, behind);
        }
        self.stray = None;
        let bit = 1_u64 << behind;
        if self.seen & bit != 0 {
            return Step::Repeated;
        }
        self.seen |= bit;
        Step::Late
    }

    #[cold]
    fn far(&mut self, last: u32, number: u32) -> Step {
        let stray = self.stray.replace(number);
        let between = stray.map_or(u32::MAX, |stray| number.wrapping_sub(stray).wrapping_sub(1));
        if between >= NEAR {
            return Step::Stray;
        }
        self.restart(number);
        let ahead = number.wrapping_sub(last).cast_signed();
        match ahead {
            // of those in between, the stray came
            2..=MAX_GAP => Step::Jump { missing: ahead.unsigned_abs().saturating_sub(2), reset: false },
            _ => Step::Jump { missing: between, reset: true },
        }
    }

    /// The sender is known to start anew: forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Sequence::default();
    }

    fn restart(&mut self, number: u32) {
        self.stray = None;
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
            // before the window: once it is a stray, twice it starts anew
            (7, Step::Stray),
            (101, forward(0)),
            (7, Step::Stray),
            (9, Step::Jump { missing: 1, reset: true }),
            (8, Step::Repeated),
            (10, forward(0)),
            (10 + (1 << 20), Step::Stray),
            (11, forward(0)),
            (11 + (1 << 19), Step::Stray),
            (14 + (1 << 19), Step::Jump { missing: (1 << 19) + 1, reset: false }),
            (3_000_000_000, Step::Stray),
            (3_000_000_001, Step::Jump { missing: 0, reset: true }),
            (3_000_000_002, forward(0)),
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
