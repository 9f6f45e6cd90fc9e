//! What the benches share: streams of generated datagrams.
//!
//! `cargo bench -p weir-benches` measures decoding in memory; results with date, commit and machine are in
//! `docs/performance.md`. Benches are benches: no test asserts a time.

use weir_collector::generate::{Generator, GeneratorConfig, Protocol};

/// The time at which generated exporters begin, µs since 1970: 2026-11-23.
pub const START_US: i64 = 1_795_392_000_000_000;

/// Datagrams of one protocol, and the flow rows that they hold.
#[derive(Debug)]
pub struct Stream {
    pub datagrams: Vec<Vec<u8>>,
    pub rows: u64,
}

/// `rows` flow rows from one exporter, templates first, as fast as an exporter of 100,000 flows a second sends them.
pub fn stream(protocol: Protocol, rows: u64) -> Stream {
    let config = GeneratorConfig {
        protocols: vec![protocol],
        exporters: 1,
        flows: rows,
        start_us: START_US,
        ..GeneratorConfig::default()
    };
    let mut generator = Generator::new(&config);
    let (mut datagrams, mut sent) = (Vec::new(), 0);
    let mut buffer = Vec::new();
    loop {
        let now_us = START_US + i64::try_from(sent * 10).unwrap_or(i64::MAX);
        let Some(info) = generator.next(now_us, &mut buffer) else { break };
        sent += u64::from(info.rows);
        datagrams.push(buffer.clone());
    }
    Stream { datagrams, rows: sent }
}
