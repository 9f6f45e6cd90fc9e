//! Fills a store with generated flows, as the aggregator would, without sockets and a log on disk: for the benches of
//! queries and storage, where a hundred million flows must come quickly.
//!
//! `cargo run --release -p weir-aggregator --example fill -- DIRECTORY FLOWS [HOURS] [HOSTS]`: the flows arrive evenly over the
//! last whole HOURS (24) before today; they go through the collector's decoder, the ingest, every commit and compaction.
//! `weir run --data-dir DIRECTORY` answers queries about them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use weir_aggregator::ingest::Ingest;
use weir_aggregator::rollup::AggregateConfig;
use weir_aggregator::source::{LogMessage, Payload, Positions, Source, SourceError};
use weir_aggregator::store::{Maintenance, Store, StoreConfig};
use weir_collector::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, SharedState};
use weir_collector::generate::{Generator, GeneratorConfig};
use weir_schemas::envelope::{Compression, encode_body};
use weir_schemas::{Address, Envelope, Table};

const DAY_US: i64 = 86_400_000_000;
const BATCH_ROWS: usize = 65_536;
/// Messages that wait for the ingest: 64 k rows of 150 bytes each.
const WAITING: usize = 4;

/// A log that is made while it is read.
struct Made(Arc<Mutex<Receiver<LogMessage>>>, u64);

#[async_trait]
impl Source for Made {
    async fn poll(&mut self, _: usize) -> Result<Vec<LogMessage>, SourceError> {
        let receiver = Arc::clone(&self.0);
        let next =
            tokio::task::spawn_blocking(move || receiver.lock().recv_timeout(Duration::from_millis(200)));
        match next.await {
            Ok(Ok(message)) => {
                self.1 = message.offset + 1;
                Ok(vec![message])
            }
            Ok(Err(RecvTimeoutError::Disconnected)) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    async fn committed(&mut self, _: &Positions) -> Result<(), SourceError> {
        Ok(())
    }

    fn end(&self) -> Positions {
        Positions::from([(0, self.1)])
    }
}

/// Generates, decodes and sends; gives the number of messages.
fn make(flows: u64, hours: i64, hosts: u32, out: &SyncSender<LogMessage>) -> u64 {
    let today = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as i64) / DAY_US
        * DAY_US;
    let start_us = today - hours * 3_600_000_000;
    let config = GeneratorConfig { flows, hosts, start_us, ..GeneratorConfig::default() };
    let mut generator = Generator::new(&config);
    let mut decoder = Decoder::new(Arc::new(DecodeConfig::default()), Arc::new(SharedState::default()));
    let mut batches = Batches::new();
    let (mut buffer, mut now, mut offset, mut rows) = (Vec::new(), start_us, 0, 0_u64);
    let mut send = |batches: &mut Batches| {
        for (table, batch) in [
            (Table::Flows, batches.flows.finish()),
            (Table::Options, batches.options.finish()),
            (Table::InterfaceCounters, batches.interface_counters.finish()),
        ] {
            let Some(batch) = batch else { continue };
            let envelope = Envelope::of(&batch, table, "fill", 1, offset);
            let body = encode_body(&batch, Compression::None).expect("a batch is encoded");
            let payload = Payload::Batch { envelope, body: Bytes::from(body) };
            if out.send(LogMessage { partition: 0, offset, payload }).is_err() {
                return;
            }
            offset += 1;
        }
    };
    while let Some(info) = generator.next(now, &mut buffer) {
        let addr = generator.exporter_addr(info.exporter).unwrap_or(Ipv4Addr::LOCALHOST);
        let meta = DatagramMeta {
            sender: Address::from(IpAddr::V4(addr)),
            sender_port: 9,
            local_port: info.protocol.port(),
            received_us: now,
        };
        decoder.decode(&buffer, &meta, &mut batches);
        if batches.flows.rows() >= BATCH_ROWS {
            send(&mut batches);
        }
        rows += u64::from(info.rows);
        now = start_us + (i128::from(rows) * i128::from(hours) * 3_600_000_000 / i128::from(flows)) as i64;
    }
    send(&mut batches);
    offset
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: u64| arguments.get(at).map_or(default, |text| text.parse().expect("a number"));
    let directory = PathBuf::from(arguments.first().expect("DIRECTORY FLOWS [HOURS] [HOSTS]"));
    let (flows, hours, hosts) = (number(1, 1_000_000), number(2, 24), number(3, 10_000));
    let config = StoreConfig { maintenance_interval_s: 2, vacuum_grace_s: 1, ..StoreConfig::default() };
    let store =
        Store::open(config, AggregateConfig::default(), &directory, "fill").await.expect("the store opens");
    let started = Instant::now();
    let (sender, receiver) = sync_channel(WAITING);
    let receiver = Arc::new(Mutex::new(receiver));
    let maker = tokio::task::spawn_blocking(move || make(flows, hours as i64, hosts as u32, &sender));
    let stop = CancellationToken::new();
    let open = Box::new(move |_: &Positions| Ok(Box::new(Made(Arc::clone(&receiver), 0)) as Box<dyn Source>));
    let ingest = tokio::spawn(Ingest::new(Arc::clone(&store), open).run(stop.clone()));
    let maintain = tokio::spawn(Maintenance::new(Arc::clone(&store)).run(stop.clone()));
    let messages = maker.await.expect("the flows are made");
    while store.info().seen.get(&0).copied().unwrap_or(0) < messages {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // what is committed at the end is compacted too
    let (mut files, mut quiet) = (0, 0);
    while quiet < 4 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let info = store.info();
        let now = info.tables.iter().map(|table| table.version).sum::<u64>();
        let hot = info.tables.iter().map(|table| table.hot_rows).sum::<u64>();
        quiet = if now == files && hot == 0 { quiet + 1 } else { 0 };
        files = now;
    }
    stop.cancel();
    ingest.await.expect("the ingest ends").expect("everything is ingested");
    let _ = maintain.await;
    let line = |table: &weir_aggregator::store::TableInfo| {
        let per_flow = table.bytes as f64 / flows as f64;
        eprintln!(
            "{:<18} {:>5} files {:>11} rows {per_flow:>7.2} bytes/flow",
            table.name, table.files, table.committed_rows
        );
    };
    store.info().tables.iter().filter(|table| table.files > 0).for_each(line);
    eprintln!("{:.1} s", started.elapsed().as_secs_f64());
}
