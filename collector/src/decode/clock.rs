//! The clock of the machine, when it is set: what is measured by it goes on as if it had not been.
//!
//! Templates, exporters and data that waits have an age, by the receive times of datagrams: of captures, too. Where a
//! machine gets its time by NTP after weir has started, or goes on after it was suspended, that clock jumps, and without
//! care all templates would be too old at once.

use std::time::Instant;

/// Smaller differences are those of a clock that is adjusted slowly, or of a thread that had to wait in between.
const LEAST_STEP_US: i64 = 2_000_000;

/// Notices that the clock was set.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: Option<(Instant, i64)>,
}

/// By how much the clock was set, and what it says now, µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockStep {
    step_us: i64,
    now_us: i64,
}

impl Clock {
    /// To be asked every second or so.
    pub(crate) fn step(&mut self, at: Instant, now_us: i64) -> Option<ClockStep> {
        let (last, last_us) = self.last.replace((at, now_us))?;
        let passed = i64::try_from(at.saturating_duration_since(last).as_micros()).unwrap_or(i64::MAX);
        let step_us = now_us.saturating_sub(last_us).saturating_sub(passed);
        (step_us.abs() >= LEAST_STEP_US).then_some(ClockStep { step_us, now_us })
    }
}

impl ClockStep {
    /// A time that was noted before, as the clock would have had it. Datagrams that came between the step and now have
    /// noted the new time already: nothing is in the future, and what is not needs no setting back.
    pub(crate) fn move_on(self, time_us: &mut i64) {
        let ClockStep { step_us, now_us } = self;
        if step_us > 0 || *time_us > now_us {
            *time_us = time_us.saturating_add(step_us).min(now_us);
        }
    }

    pub(crate) fn seconds(self) -> i64 {
        self.step_us / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_is_set_is_noticed() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        let mut at = |seconds: u64, now_us: i64| clock.step(start + Duration::from_secs(seconds), now_us);
        assert_eq!(at(0, 5_000_000), None);
        assert_eq!(at(1, 6_100_000), None);
        let forward = at(2, 3_607_000_000).unwrap();
        assert_eq!(forward.seconds(), 3_599);
        assert_eq!(at(3, 3_608_000_000), None);
        let back = at(4, 9_000_000).unwrap();
        assert_eq!(back.seconds(), -3_600);
        let moved = |step: ClockStep, mut time: i64| {
            step.move_on(&mut time);
            time
        };
        // an age of a second stays one, what is new already stays
        assert_eq!(
            (moved(forward, 6_100_000), moved(forward, 3_606_500_000)),
            (3_606_000_000, 3_607_000_000)
        );
        assert_eq!((moved(back, 3_608_000_000), moved(back, 8_500_000)), (8_000_000, 8_500_000));
        assert_eq!(moved(back, i64::MIN), i64::MIN);
    }
}
