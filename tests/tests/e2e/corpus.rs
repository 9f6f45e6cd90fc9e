//! Real captures of some forty vendors, where they are to be had (`../shared/corpus`, not part of the repository).

use std::process::Command;
use std::time::Duration;

use weir_tests::command::run;
use weir_tests::{repository, weir};

/// Of all cases, in per cent: what must pass.
const WANTED: u64 = 90;

#[test]
fn captures_decode_as_expected() {
    let check = repository().join("../shared/corpus/check");
    if !check.is_file() {
        eprintln!("no corpus at {}: nothing to compare with here", check.display());
        return;
    }
    let ended = run(Command::new(&check).arg(weir::binary()), Duration::from_secs(300));
    // The last line: `N passed, M failed`.
    let last = ended.stdout.lines().last().unwrap_or_default().to_owned();
    let numbers: Vec<u64> =
        last.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect();
    let [passed, failed] = numbers[..] else { panic!("no totals in {last:?}: {}", ended.stderr) };
    let all = passed + failed;
    eprintln!("corpus: {last}");
    assert!(all >= 75 && passed * 100 >= all * WANTED, "{last}\n{}", ended.stdout);
}
