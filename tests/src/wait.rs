//! Waiting for something to come true, with a deadline: no test sleeps for a fixed time and hopes.

use std::time::{Duration, Instant};

/// How long the slowest thing may take on a loaded machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Asks every 50 ms until `check` gives a value; panics with its last answer when `limit` has passed.
#[track_caller]
pub fn until<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let last = match check() {
            Ok(value) => return value,
            Err(last) => last,
        };
        assert!(started.elapsed() < limit, "waited {limit:?} for {what}: {last}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until `ask` gives `wanted`.
#[track_caller]
pub fn until_equal<T: PartialEq + std::fmt::Debug>(what: &str, wanted: &T, mut ask: impl FnMut() -> T) {
    until(LONG, what, || {
        let got = ask();
        if got == *wanted { Ok(()) } else { Err(format!("got {got:?}, wanted {wanted:?}")) }
    });
}
