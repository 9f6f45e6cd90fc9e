//! Nanoseconds a flow sample from datagram to columns, beside `flowparser-sflow` on the same bytes (which does not parse
//! the sampled header). Ratios within one run are what counts.
#![allow(missing_docs, reason = "what the macros make")]

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::RecordBatch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowparser_sflow::SflowParser;
use weir_benches::{START_US, Stream, stream};
use weir_collector::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, SharedState};
use weir_collector::generate::Protocol;
use weir_collector::receive::socket::RING_SLOTS;
use weir_schemas::{Address, Table};

/// Rows of a batch: about what a message of the log has.
const BATCH_ROWS: usize = 13_000;
/// Rows of a stream: one that the caches hold, as they hold what the kernel has just received, and one that they do not.
const ROWS: [u64; 2] = [BATCH_ROWS as u64, 60_000];

/// A decoder with its batches, and the memory of the last ones, as a shard has them.
struct Weir {
    decoder: Decoder,
    batches: Batches,
    spares: [Option<RecordBatch>; Table::ALL.len()],
}

impl Weir {
    fn new() -> Weir {
        let decoder = Decoder::new(Arc::new(DecodeConfig::default()), Arc::new(SharedState::new()));
        Weir { decoder, batches: Batches::new(), spares: [const { None }; Table::ALL.len()] }
    }

    /// Decodes the stream into batches.
    fn decode(&mut self, stream: &Stream) {
        let meta = DatagramMeta {
            sender: Address::v4([127, 1, 0, 1]),
            sender_port: 50_000,
            local_port: 2055,
            received_us: START_US + 1_000_000,
        };
        for call in stream.datagrams.chunks(RING_SLOTS) {
            for datagram in call {
                black_box(self.decoder.decode_on(datagram, &meta, &mut self.batches));
            }
            self.decoder.settle(&mut self.batches);
            if self.batches.flows.rows() >= BATCH_ROWS {
                self.close();
            }
        }
        self.close();
    }

    fn close(&mut self) {
        for (builder, spare) in self.batches.all_mut().into_iter().zip(&mut self.spares) {
            *spare = builder.finish_reusing(spare.take());
        }
    }
}

fn sflow(criterion: &mut Criterion) {
    ROWS.into_iter().for_each(|rows| beside_flowparser(criterion, rows));
}

fn beside_flowparser(criterion: &mut Criterion, rows: u64) {
    let stream = stream(Protocol::SFlow5, rows);
    let mut group = criterion.benchmark_group(format!("sflow5, {rows} rows"));
    group.throughput(Throughput::Elements(stream.rows)).sample_size(20);
    group.bench_function("weir", |bencher| {
        let mut weir = Weir::new();
        weir.decode(&stream);
        bencher.iter(|| weir.decode(&stream));
    });
    group.bench_function("flowparser-sflow", |bencher| {
        let parser = SflowParser::default();
        bencher.iter(|| {
            for datagram in &stream.datagrams {
                black_box(parser.parse_bytes(datagram));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, sflow);
criterion_main!(benches);
