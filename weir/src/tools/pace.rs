//! Keeping to a rate without burning the processor that the receiver needs.

use std::thread;
use std::time::{Duration, Instant};

/// Early by less than this is on time: datagrams go out in small bursts instead of after a spinning wait.
const SLACK: Duration = Duration::from_micros(200);
/// Late by more than this is not made up for: a burst would be no rate.
const MAX_LAG: Duration = Duration::from_millis(100);

/// A clock that waits.
#[derive(Debug)]
pub(super) struct Pacer {
    start: Instant,
}

impl Pacer {
    pub(super) fn new() -> Pacer {
        Pacer { start: Instant::now() }
    }

    /// Waits until `due` after the start.
    pub(super) fn wait(&mut self, due: Duration) {
        let elapsed = self.start.elapsed();
        if elapsed > due + MAX_LAG {
            self.start += elapsed - due - MAX_LAG;
        } else if due > elapsed + SLACK {
            thread::sleep(due - elapsed);
        }
    }
}

/// A rate of so many units a second, as the time when unit number `n` is due.
pub(super) fn due(n: u64, per_second: f64) -> Duration {
    Duration::from_secs_f64(n as f64 / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept() {
        let start = Instant::now();
        let mut pacer = Pacer::new();
        for n in 0..1_000 {
            pacer.wait(due(n, 10_000.0));
        }
        let took = start.elapsed();
        assert!((Duration::from_millis(95)..Duration::from_millis(400)).contains(&took), "{took:?}");
    }

    #[test]
    fn a_stall_is_not_made_up_for_by_a_burst() {
        let mut pacer = Pacer::new();
        pacer.wait(Duration::ZERO);
        thread::sleep(Duration::from_millis(300));
        pacer.wait(Duration::ZERO);
        let start = Instant::now();
        pacer.wait(Duration::from_millis(150));
        assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());
    }
}
