//! The harness of the end-to-end tests: it starts the real binary, feeds it by real exporters, asks it through its real
//! doors, and ends each test with the ledger.
//!
//! - [`weir`]: a running weir, its addresses, its doors; started, stopped and killed
//! - [`ledger`]: received = decoded + rejected + in flight, down to the rows in SQL
//! - [`metrics`]: what `/metrics` says, parsed
//! - [`http`]: a minimal HTTP client, so that the test shares no code with the server
//! - [`netflow5`], [`generate`]: datagrams made here, and by `weir generate`
//! - [`packets`]: capture files with known contents, for the exporters
//! - [`command`]: other programs, with a deadline; a missing one is a failure that says what to install
//! - [`wait`]: deadlines instead of sleeps
//!
//! The tests are in `tests/e2e/`. They need a built binary: `cargo build --release -p weir`.
// A harness panics where it cannot go on: that is how it fails a test.
#![allow(clippy::unwrap_used)]

pub mod command;
pub mod csv;
pub mod generate;
pub mod http;
pub mod kafka;
pub mod ledger;
pub mod metrics;
pub mod netflow5;
pub mod packets;
pub mod pdml;
pub mod s3;
pub mod wait;
pub mod weir;

use std::path::PathBuf;

/// The repository's root.
pub fn repository() -> PathBuf {
    // as cargo says now: a target directory that checkouts share may hold a test that was built in another
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(tests).parent().expect("tests/ lies in the repository").to_owned()
}

/// True where the documents are to be written anew from the code (`WEIR_UPDATE_DOCS=1`).
pub fn update_docs() -> bool {
    std::env::var("WEIR_UPDATE_DOCS").is_ok_and(|value| value == "1")
}
