//! The end-to-end tests: one binary, real processes. `cargo test --release -p weir-tests` after
//! `cargo build --release -p weir`; a part of it by name: `… -- exporters::`.
//!
//! Each test has a weir of its own on free ports, and ends with the ledger.

#![allow(clippy::unwrap_used, reason = "an end-to-end test fails by panicking, in its helpers too")]

mod bad_input;
mod clients;
mod configuration;
mod cookbook;
mod corpus;
mod counters;
mod countries;
mod demo;
mod deploy;
mod differential;
mod documents;
mod exporters;
mod faults;
mod full_disk;
mod golden;
mod kafka;
mod open_vswitch;
mod prometheus;
mod readers;
mod receive;
mod reload;
mod scale;
mod tidy;
mod totals;
