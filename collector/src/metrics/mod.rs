//! What the collector tells about itself.
//!
//! Nothing is counted twice: a shard counts in plain integers and publishes them ([`ShardStats::publish`]) before it
//! waits for datagrams; the writer and its queue count under one lock; the kernel's counts are read when they are asked
//! for. [`CollectorMetrics::render`] reads all of that and writes OpenMetrics text. Labels are bounded: exporters beyond
//! `max_exporter_labels` share `exporter="other"`, and one that is still on probation has no label of its own.

mod exporters;
mod render;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use crate::decode::DecodeCounters;
use crate::receive::ShardCounts;
use crate::receive::socket::Socket;
use crate::sink::spool::Forwarding;
use crate::writer::{Identity, Queue};

pub use exporters::{ExporterFeed, ExporterTable};

/// What a shard has published.
#[derive(Debug, Clone)]
pub struct Published {
    pub counts: ShardCounts,
    pub decode: DecodeCounters,
    /// When.
    pub at: Instant,
}

/// The counts of one shard, for those who read them.
#[derive(Debug)]
pub struct ShardStats {
    sockets: Vec<Arc<Socket>>,
    published: Mutex<Published>,
    exporters: Arc<ExporterTable>,
}

impl ShardStats {
    pub fn new(sockets: Vec<Arc<Socket>>, exporters: Arc<ExporterTable>) -> ShardStats {
        let counts = ShardCounts { received: vec![(0, 0); sockets.len()], ..ShardCounts::default() };
        let published = Published { counts, decode: DecodeCounters::default(), at: Instant::now() };
        ShardStats { sockets, published: Mutex::new(published), exporters }
    }

    /// Called by the shard, once a round.
    pub fn publish(&self, counts: &ShardCounts, decode: &DecodeCounters) {
        let mut published = self.published.lock();
        published.counts.clone_from(counts);
        published.decode = *decode;
        published.at = Instant::now();
    }

    pub fn published(&self) -> Published {
        self.published.lock().clone()
    }

    pub fn sockets(&self) -> &[Arc<Socket>] {
        &self.sockets
    }

    pub(crate) fn exporters(&self) -> &Arc<ExporterTable> {
        &self.exporters
    }
}

/// Everything that [`CollectorMetrics::render`] reads.
#[derive(Debug)]
pub struct Sources {
    pub shards: Vec<Arc<ShardStats>>,
    pub exporters: Arc<ExporterTable>,
    pub queue: Arc<Queue>,
    pub identity: Identity,
    /// What the sockets were asked to have as receive buffer; None where another process bound them.
    pub buffer_asked: usize,
    /// What becomes of the spool's messages, where there is one.
    pub forwarding: Option<Arc<Forwarding>>,
}

/// The ledger of the collector: every datagram and every row is in exactly one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Datagrams taken from the kernel ...
    pub datagrams_received: u64,
    /// ... decoded, at least in part, ...
    pub datagrams_decoded: u64,
    /// ... or rejected as a whole.
    pub datagrams_rejected: u64,
    /// Rows appended by the decoders, over all tables ...
    pub rows_decoded: u64,
    /// ... in open batches, ...
    pub rows_open: u64,
    /// ... in closed ones on the way to the log, or in the log and not acknowledged, ...
    pub rows_in_flight: u64,
    /// ... acknowledged by the log ...
    pub rows_acknowledged: u64,
    /// ... or dropped and counted.
    pub rows_dropped: u64,
}

impl Ledger {
    /// True where nothing is missing and nothing is there twice. Holds at rest; while datagrams come in, the parts are
    /// read one after the other and may differ by what moved meanwhile.
    pub fn balances(&self) -> bool {
        self.datagrams_received == self.datagrams_decoded + self.datagrams_rejected
            && self.rows_decoded
                == self.rows_open + self.rows_in_flight + self.rows_acknowledged + self.rows_dropped
    }
}

/// The collector's metrics. Cheap to share: a clone reads the same sources.
#[derive(Debug, Clone)]
pub struct CollectorMetrics {
    sources: Arc<Sources>,
    registry: Arc<Registry>,
}

impl CollectorMetrics {
    pub fn new(sources: Sources) -> CollectorMetrics {
        let sources = Arc::new(sources);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&sources)));
        CollectorMetrics { sources, registry: Arc::new(registry) }
    }

    /// All metrics as OpenMetrics text, with the end mark.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16_384);
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Datagrams that the kernel dropped at the sockets since they were made, all together.
    pub fn kernel_drops(&self) -> u64 {
        let sockets = self.sources.shards.iter().flat_map(|shard| shard.sockets());
        sockets.filter_map(|socket| socket.drops().ok()).map(|(drops, _)| drops).sum()
    }

    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        // Shards first: what they have closed must be seen in the queue.
        for shard in &self.sources.shards {
            let Published { counts, decode, .. } = shard.published();
            ledger.datagrams_received += counts.received.iter().map(|(datagrams, _)| datagrams).sum::<u64>();
            ledger.datagrams_decoded += decode.decoded;
            ledger.datagrams_rejected +=
                decode.rejected.iter().sum::<u64>() + counts.panics + counts.truncated;
            ledger.rows_decoded += counts.rows.iter().sum::<u64>();
            ledger.rows_open += counts.rows.iter().sum::<u64>() - counts.closed_rows.iter().sum::<u64>();
        }
        let writer = self.sources.queue.counters();
        ledger.rows_in_flight = writer.rows_in_flight();
        ledger.rows_acknowledged = writer.acknowledged_rows;
        ledger.rows_dropped = writer.dropped_rows.iter().sum();
        ledger
    }
}
