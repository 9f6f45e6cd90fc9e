//! Loss by sequence numbers. What a unit is depends on the protocol: flows (v5, v7), datagrams (v9), data records
//! (IPFIX, RFC 7011 §3.1). Numbers count modulo 2^32.

/// What one message told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Units that the exporter says it sent since the last message that was in order.
    pub(crate) expected: u64,
    /// Units lost; negative where units that were counted as lost came late.
    pub(crate) lost: i64,
    /// Units that came late or twice; negative where that turns out to have been a restart.
    pub(crate) reordered: i64,
    pub(crate) resets: u64,
    /// One where from here on nobody knows (a set of unknown length in records).
    pub(crate) uncertain: u64,
}

/// Within this distance a message belongs to the series; one that is farther off is believed when the next one goes on
/// from it. So a single stray or invented datagram neither looks like loss nor like a restart.
const NEAR: i64 = 1 << 16;
/// A jump ahead by more is a restart with another number.
const AHEAD: i64 = 1 << 24;
/// So many messages that continue each other, all behind, are a restart.
const RESTART_RUN: u32 = 4;
/// Gaps that may still be filled.
const GAPS: usize = 32;

/// The sequence of one series.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sequence {
    /// The next number; None before the first message and after an uncertain one.
    next: Option<u32>,
    /// Ranges that are missing: first number and count, oldest first.
    gaps: Vec<(u32, u32)>,
    /// Where the last message that was behind ended, how many there were in a row, and their units.
    behind: Option<(u32, u32, u64)>,
    /// A message that was far off.
    stray: Option<Stray>,
}

/// A message that the series may go on from.
#[derive(Debug, Clone, Copy)]
struct Stray {
    start: u32,
    units: u32,
    known: bool,
}

impl Stray {
    /// How many units are missing between it and a message with this number; None where that one does not go on from
    /// it.
    fn missing_before(self, number: u32) -> Option<u32> {
        let missing = number.wrapping_sub(self.start.wrapping_add(self.units));
        (i64::from(missing) < NEAR).then_some(if self.known { missing } else { 0 })
    }
}

impl Sequence {
    /// True where a message with this number continues the series.
    pub(crate) fn continues(&self, number: u32) -> bool {
        self.next == Some(number)
    }

    /// True where a message with this number does not follow the last one.
    pub(crate) fn is_off(&self, number: u32) -> bool {
        self.next.is_some_and(|next| !(0..=NEAR).contains(&distance(next, number)))
    }

    /// A message with that sequence number came, which holds `units`; `known` is false where it holds units that
    /// nobody can count. `restarted`: the exporter is known to have restarted (its uptime went back).
    pub(crate) fn message(&mut self, number: u32, units: u32, known: bool, restarted: bool) -> Step {
        let mut step = match self.next {
            None => Step { expected: u64::from(units), ..Step::default() },
            Some(next) if restarted && number != next => self.reset(number, units),
            Some(next) => {
                // rule 22: the signed distance modulo 2^32
                let distance = distance(next, number);
                if !(-NEAR..=NEAR).contains(&distance) {
                    match self
                        .stray
                        .and_then(|stray| stray.missing_before(number).map(|missing| (stray, missing)))
                    {
                        None => return self.stray(number, units, known),
                        Some((stray, missing)) => self.jump(next, stray, missing, units),
                    }
                } else if distance >= 0 {
                    self.ahead(next, distance.unsigned_abs(), units)
                } else {
                    let step = self.late(number, units);
                    if step.resets == 0 {
                        return step;
                    }
                    step
                }
            }
        };
        self.stray = None;
        self.next = known.then(|| number.wrapping_add(units));
        if !known {
            step.uncertain = 1;
            self.gaps.clear();
        }
        step
    }

    /// A message that is not believed yet.
    pub(crate) fn stray(&mut self, number: u32, units: u32, known: bool) -> Step {
        self.stray = Some(Stray { start: number, units, known });
        Step { reordered: i64::from(units), ..Step::default() }
    }

    /// The series goes on from a message that was far off: much was lost, or it restarted.
    fn jump(&mut self, next: u32, stray: Stray, missing: u32, units: u32) -> Step {
        let before = distance(next, stray.start);
        if !(0..=AHEAD).contains(&before) {
            return self.reset(stray.start.wrapping_add(stray.units).wrapping_add(missing), units);
        }
        self.behind = None;
        let lost = before + i64::from(missing);
        Step {
            expected: lost.unsigned_abs() + u64::from(stray.units) + u64::from(units),
            lost,
            reordered: -i64::from(stray.units),
            ..Step::default()
        }
    }

    fn reset(&mut self, number: u32, units: u32) -> Step {
        self.gaps.clear();
        self.behind = None;
        let mut step = Step { expected: u64::from(units), resets: 1, ..Step::default() };
        // what went before it was no stray
        if let Some(stray) = self.stray.take()
            && let Some(missing) = stray.missing_before(number)
        {
            step.expected += u64::from(stray.units) + u64::from(missing);
            step.reordered = -i64::from(stray.units);
            step.lost = i64::from(missing);
        }
        step
    }

    fn ahead(&mut self, next: u32, missing: u64, units: u32) -> Step {
        self.behind = None;
        if missing > 0 {
            if self.gaps.len() == GAPS {
                self.gaps.remove(0);
            }
            self.gaps.push((next, u32::try_from(missing).unwrap_or(u32::MAX)));
        }
        Step { expected: missing + u64::from(units), lost: missing.cast_signed(), ..Step::default() }
    }

    fn late(&mut self, number: u32, units: u32) -> Step {
        if let Some(found) = self.fill(number, units) {
            self.behind = None;
            return Step { lost: -i64::from(found), reordered: i64::from(units), ..Step::default() };
        }
        let (run, so_far) = match self.behind {
            Some((end, run, so_far)) if end == number => (run + 1, so_far + u64::from(units)),
            _ => (1, u64::from(units)),
        };
        self.behind = Some((number.wrapping_add(units), run, so_far));
        if run >= RESTART_RUN && units > 0 {
            // they were no duplicates: the exporter counts from somewhere else now
            let before = so_far - u64::from(units);
            self.stray = None;
            let reset = self.reset(number, units);
            return Step { expected: so_far, reordered: -before.cast_signed(), ..reset };
        }
        Step { reordered: i64::from(units), ..Step::default() }
    }

    /// Takes the units out of the gap in which they were missing; None where they were not.
    fn fill(&mut self, number: u32, units: u32) -> Option<u32> {
        let inside = |(first, count): &(u32, u32)| number.wrapping_sub(*first) < *count;
        let at = self.gaps.iter().position(inside)?;
        let (first, count) = self.gaps[at];
        let before = number.wrapping_sub(first);
        let found = units.min(count - before);
        let after = count - before - found;
        let tail = (number.wrapping_add(found), after);
        match (before > 0, after > 0) {
            (true, true) => {
                self.gaps[at].1 = before;
                self.gaps.insert(at + 1, tail);
                if self.gaps.len() > GAPS {
                    self.gaps.remove(0);
                }
            }
            (true, false) => self.gaps[at].1 = before,
            (false, true) => self.gaps[at] = tail,
            (false, false) => {
                self.gaps.remove(at);
            }
        }
        Some(found)
    }
}

/// From one number to another, modulo 2^32.
fn distance(from: u32, to: u32) -> i64 {
    i64::from(to.wrapping_sub(from).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums over messages of (number, units).
    fn sum(messages: &[(u32, u32)]) -> (u64, i64, i64, u64) {
        let mut sequence = Sequence::default();
        messages.iter().fold((0, 0, 0, 0), |(expected, lost, late, resets), (number, units)| {
            let step = sequence.message(*number, *units, true, false);
            (expected + step.expected, lost + step.lost, late + step.reordered, resets + step.resets)
        })
    }

    #[test]
    fn rule_17_v5_counts_flows() {
        assert_eq!(sum(&[(100, 30), (130, 30), (160, 5), (165, 30)]), (95, 0, 0, 0));
        assert_eq!(sum(&[(100, 30), (160, 30)]), (90, 30, 0, 0));
    }

    #[test]
    fn rule_18_v9_counts_datagrams() {
        assert_eq!(sum(&[(7, 1), (8, 1), (11, 1)]), (5, 2, 0, 0));
    }

    #[test]
    fn rule_19_numbers_wrap() {
        assert_eq!(sum(&[(u32::MAX - 9, 5), (u32::MAX - 4, 5), (0, 5), (10, 5)]), (25, 5, 0, 0));
    }

    #[test]
    fn rule_20_after_unknown_sets_nothing_is_called_lost() {
        let mut sequence = Sequence::default();
        sequence.message(0, 10, true, false);
        assert_eq!(sequence.message(10, 4, false, false).uncertain, 1);
        let step = sequence.message(93, 10, true, false);
        assert_eq!((step.lost, step.resets), (0, 0));
        assert_eq!(sequence.message(113, 10, true, false).lost, 10);
    }

    #[test]
    fn rule_22_late_units_are_given_back_and_duplicates_are_not() {
        assert_eq!(sum(&[(0, 10), (20, 10), (10, 10), (30, 10)]), (40, 0, 10, 0));
        // the first half of the gap, then the rest, then the first half again
        assert_eq!(sum(&[(0, 10), (20, 10), (10, 5), (15, 5), (10, 5)]), (30, 0, 15, 0));
        assert_eq!(sum(&[(0, 10), (10, 10), (0, 10), (20, 10), (10, 10)]), (30, 0, 20, 0));
    }

    #[test]
    fn rule_22_a_restart_is_no_loss() {
        assert_eq!(sum(&[(3_000_000_000, 10), (0, 10), (10, 10)]), (30, 0, 0, 1));
        // back by little: told from duplicates by going on
        assert_eq!(sum(&[(500, 1), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]), (6, 0, 0, 1));
        let mut sequence = Sequence::default();
        sequence.message(500, 1, true, false);
        assert_eq!(sequence.message(0, 1, true, true).resets, 1);
    }

    #[test]
    fn rule_22_a_single_stray_message_is_neither_loss_nor_a_restart() {
        for stray in [1_000_000, 900_000_000, 3_000_000_000, u32::MAX] {
            let start = 200_000;
            assert_eq!(sum(&[(start, 10), (stray, 7), (start + 10, 10), (start + 25, 10)]), (35, 5, 7, 0));
        }
        // two that go on from each other are believed: much was lost, or all starts anew
        assert_eq!(sum(&[(0, 10), (1_000_000, 10), (1_000_020, 10)]), (1_000_030, 1_000_000, 0, 0));
        assert_eq!(sum(&[(5, 10), (3_000_000_000, 10), (3_000_000_013, 10)]), (33, 3, 0, 1));
        // two strays that have nothing to do with each other
        assert_eq!(sum(&[(0, 1), (1 << 20, 1), (1 << 22, 1), (1, 1)]), (2, 0, 2, 0));
    }

    #[test]
    fn drop_reorder_and_duplicate_against_a_model() {
        // every datagram of 3 units; a few dropped, a few swapped with the next, a few twice
        let mut random = 11_u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % 100
        };
        let start = u32::MAX - 5_000;
        let mut order = Vec::new();
        let (mut dropped, mut late, mut twice) = (0, 0, 0);
        let mut n = 0;
        while n < 10_000_u32 {
            let number = |n: u32| start.wrapping_add(n * 3);
            match next() {
                0..=1 if n > 0 => dropped += 1,
                2..=3 if n > 0 => {
                    order.extend([number(n + 1), number(n)]);
                    late += 1;
                    n += 1;
                }
                4..=5 => {
                    order.extend([number(n), number(n)]);
                    twice += 1;
                }
                _ => order.push(number(n)),
            }
            n += 1;
        }
        order.push(start.wrapping_add(n * 3));
        let messages: Vec<_> = order.iter().map(|number| (*number, 3)).collect();
        let (expected, lost, reordered, resets) = sum(&messages);
        assert_eq!(expected, u64::from(n + 1) * 3);
        assert_eq!(lost, dropped * 3);
        assert_eq!(reordered, (late + twice) * 3);
        assert_eq!(resets, 0);
    }
}
