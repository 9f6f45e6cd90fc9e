//! What the fuzz targets share.

use std::fs;
use std::path::Path;

pub use weir_collector::fuzzing::target;

/// Puts the seeds of a target where libFuzzer begins: `corpus/TARGET`.
///
/// libFuzzer's panic hook ends the process, but weir catches the panics of the Arrow reader: of that target only a panic
/// that nobody catches counts.
pub fn write_seeds(name: &str) {
    if name == "envelope" {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    fs::create_dir_all(&folder).expect("a folder for the seeds");
    for (number, seed) in (target(name).seeds)().into_iter().enumerate() {
        fs::write(folder.join(format!("seed-{number:02}")), seed).expect("a file for a seed");
    }
}
