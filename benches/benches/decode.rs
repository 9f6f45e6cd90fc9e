//! Nanoseconds a flow record from datagram to columns, beside `netflow_parser` on the same bytes; `benches/peers` is the
//! same beside `flowparser-sflow`. Ratios within one run are what counts.

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::RecordBatch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use netflow_parser::NetflowParser;
use weir_benches::{START_US, Stream, stream};
use weir_collector::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, SharedState};
use weir_collector::generate::Protocol;
use weir_collector::receive::socket::RING_SLOTS;
use weir_schemas::{Address, Table};

const ROWS: u64 = 60_000;

/// Memory of the last batch of each table.
type Spares = [Option<RecordBatch>; Table::ALL.len()];

/// Decodes the stream into one batch of each table, as a shard does.
fn weir(decoder: &mut Decoder, batches: &mut Batches, spares: &mut Spares, stream: &Stream) {
    let meta = DatagramMeta {
        sender: Address::v4([127, 1, 0, 1]),
        sender_port: 50_000,
        local_port: 2055,
        received_us: START_US + 1_000_000,
    };
    for call in stream.datagrams.chunks(RING_SLOTS) {
        for datagram in call {
            black_box(decoder.decode_on(datagram, &meta, batches));
        }
        decoder.settle(batches);
    }
    for (builder, spare) in batches.all_mut().into_iter().zip(spares) {
        *spare = builder.finish_reusing(spare.take());
    }
}

fn decode(criterion: &mut Criterion) {
    for protocol in Protocol::ALL {
        let stream = stream(protocol, ROWS);
        let mut group = criterion.benchmark_group(protocol.name());
        group.throughput(Throughput::Elements(stream.rows)).sample_size(20);
        group.bench_function("weir", |bencher| {
            let mut decoder = Decoder::new(Arc::new(DecodeConfig::default()), Arc::new(SharedState::new()));
            let mut batches = Batches::new();
            let mut spares = [const { None }; Table::ALL.len()];
            weir(&mut decoder, &mut batches, &mut spares, &stream);
            bencher.iter(|| weir(&mut decoder, &mut batches, &mut spares, &stream));
        });
        if protocol != Protocol::SFlow5 {
            group.bench_function("netflow_parser", |bencher| {
                let mut parser = NetflowParser::builder()
                    .with_max_records_per_flowset(65_535)
                    .build()
                    .expect("the settings are within its limits");
                bencher.iter(|| {
                    for datagram in &stream.datagrams {
                        let _ = black_box(parser.parse_bytes(datagram));
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
