//! What decoding costs, in memory: one batch of about 60,000 (ROWS) generated rows of one protocol, over and over. As
//! many rows fill 9 MB of columns; a message of the log has 5,000.
//!
//! `cargo run --release -p weir-collector --example decode_cost -- PROTOCOL [ROUNDS [ROWS]]` prints the CPU time a row of the
//! best round and of the median. `benches/instructions` runs it under callgrind, which counts the instructions of
//! [`measured`] only; there ROUNDS is small.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::RecordBatch;
use weir_collector::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, SharedState};
use weir_collector::generate::{Generator, GeneratorConfig, Protocol};
use weir_collector::receive::socket::RING_SLOTS;
use weir_schemas::{Address, Table};

/// The time at which generated exporters begin, µs since 1970: 2026-11-23.
const START_US: i64 = 1_795_392_000_000_000;
const ROWS: u64 = 60_000;
/// Rows of the rounds that are measured as one.
const GROUP_ROWS: u64 = 25 * ROWS;

/// Nanoseconds that this thread was on a CPU: other work on the machine does not count, what it does to the caches does.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn stream(protocol: Protocol, rows: u64) -> (Vec<Vec<u8>>, u64) {
    let config = GeneratorConfig {
        protocols: vec![protocol],
        exporters: 1,
        flows: rows,
        start_us: START_US,
        ..GeneratorConfig::default()
    };
    let mut generator = Generator::new(&config);
    let (mut datagrams, mut rows, mut buffer) = (Vec::new(), 0, Vec::new());
    while let Some(info) = generator.next(START_US + i64::try_from(rows * 10).unwrap(), &mut buffer) {
        rows += u64::from(info.rows);
        datagrams.push(buffer.clone());
    }
    (datagrams, rows)
}

fn warm_up(
    decoder: &mut Decoder,
    batches: &mut Batches,
    spares: &mut [Option<RecordBatch>; Table::ALL.len()],
    datagrams: &[Vec<u8>],
) {
    for _ in 0..2 {
        decode(decoder, batches, spares, datagrams);
    }
}

/// What callgrind counts: datagrams to one batch of each table, in the memory of the last one, as the writer gives it
/// back to a shard.
#[inline(never)]
fn measured(
    decoder: &mut Decoder,
    batches: &mut Batches,
    spares: &mut [Option<RecordBatch>; Table::ALL.len()],
    datagrams: &[Vec<u8>],
) {
    decode(decoder, batches, spares, datagrams);
}

#[inline(always)]
fn decode(
    decoder: &mut Decoder,
    batches: &mut Batches,
    spares: &mut [Option<RecordBatch>; Table::ALL.len()],
    datagrams: &[Vec<u8>],
) {
    let meta = DatagramMeta {
        sender: Address::v4([127, 1, 0, 1]),
        sender_port: 50_000,
        local_port: 2055,
        received_us: START_US + 1_000_000,
    };
    for call in datagrams.chunks(RING_SLOTS) {
        for datagram in call {
            black_box(decoder.decode_on(datagram, &meta, batches));
        }
        decoder.settle(batches);
    }
    for (builder, spare) in batches.all_mut().into_iter().zip(spares) {
        *spare = builder.finish_reusing(spare.take());
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("PROTOCOL [ROUNDS [ROWS]]");
    let rounds: usize = arguments.next().map_or(200, |rounds| rounds.parse().unwrap());
    let rows: u64 = arguments.next().map_or(ROWS, |rows| rows.parse().unwrap());
    for protocol in Protocol::ALL.into_iter().filter(|protocol| name == "all" || name == protocol.name()) {
        let (datagrams, rows) = stream(protocol, rows);
        let mut decoder = Decoder::new(Arc::new(DecodeConfig::default()), Arc::new(SharedState::new()));
        let mut batches = Batches::new();
        let mut spares = [const { None }; Table::ALL.len()];
        // the templates, and the buffers' growth
        warm_up(&mut decoder, &mut batches, &mut spares, &datagrams);
        // the kernel tells CPU time in ticks of milliseconds: several rounds at a time
        let group = usize::try_from(GROUP_ROWS / rows.max(1)).unwrap().clamp(1, rounds);
        let mut costs: Vec<u64> = (0..rounds.div_ceil(group))
            .map(|_| {
                let before = cpu_ns();
                for _ in 0..group {
                    measured(&mut decoder, &mut batches, &mut spares, &datagrams);
                }
                (cpu_ns() - before) / group as u64
            })
            .collect();
        costs.sort_unstable();
        let per_row = |ns: u64| ns as f64 / rows as f64;
        println!(
            "{}: {rows} rows, {} datagrams; best {:.1}, median {:.1} ns of CPU a row",
            protocol.name(),
            datagrams.len(),
            per_row(costs[0]),
            per_row(costs[costs.len() / 2])
        );
    }
}
