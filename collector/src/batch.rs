//! When a batch is closed: at so many rows, at so many bytes, or when its first row has waited long enough.
//!
//! A shard owns a [`Batcher`]; the decoder appends to its [`Batches`]. Nothing here reads a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weir_schemas::Table;
use weir_schemas::envelope::{Compression, Covered};

use crate::decode::Batches;
use crate::receive::journal::{InLog, Position};

/// When batches are closed and how they are encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Rows at which a batch is closed.
    pub max_rows: usize,
    /// Bytes, encoded and compressed, that a message of the log may have; 0: what suits the log, which is 900,000 for Kafka
    /// (a broker takes 1 MiB by default) and 2,000,000 for the embedded log.
    pub max_bytes: usize,
    /// How long a row waits at most for its batch to be closed; what SQL shows is at least that old.
    pub max_age_ms: u64,
    /// Compression of the Arrow buffers: `lz4`, `zstd`, `runs` (only the columns that hardly change from row to row, by
    /// lz4), `none`, or `auto`: runs for the embedded log, lz4 for Kafka.
    pub compression: BatchCompression,
}

/// What is asked for in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchCompression {
    /// What pays for the log: lz4 for Kafka, runs for the embedded one (docs/decisions/log-compression.md).
    #[default]
    Auto,
    None,
    Runs,
    Lz4,
    Zstd,
}

impl BatchCompression {
    /// `usual`: what pays for the log in use.
    pub fn resolve(self, usual: Compression) -> Compression {
        match self {
            BatchCompression::Auto => usual,
            BatchCompression::None => Compression::None,
            BatchCompression::Runs => Compression::Runs,
            BatchCompression::Lz4 => Compression::Lz4,
            BatchCompression::Zstd => Compression::Zstd,
        }
    }
}

impl Default for BatchConfig {
    fn default() -> Self {
        BatchConfig {
            max_rows: 65_536,
            max_bytes: 0,
            max_age_ms: 500,
            compression: BatchCompression::default(),
        }
    }
}

impl BatchConfig {
    /// With the size of messages that suits the log, where none in particular is asked for.
    pub fn for_messages_of(&self, usual_bytes: usize) -> BatchConfig {
        let max_bytes = if self.max_bytes == 0 { usual_bytes } else { self.max_bytes };
        BatchConfig { max_bytes, ..self.clone() }
    }

    /// What is wrong, in words, with the key it is about.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.max_rows == 0 || self.max_rows > 1 << 20 {
            problems.push("max_rows: must be 1 to 1048576".into());
        }
        if (1..16_384).contains(&self.max_bytes) {
            problems
                .push("max_bytes: must be 0 or at least 16384, the datagrams are larger than that".into());
        }
        if self.max_age_ms == 0 || self.max_age_ms > 60_000 {
            problems.push("max_age_ms: must be 1 to 60000".into());
        }
        problems
    }
}

/// Why a batch was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCause {
    Rows,
    Bytes,
    Age,
    /// The collector stops.
    Stop,
    /// It came out of the journal of a collector that died.
    Replay,
}

impl CloseCause {
    pub const ALL: [CloseCause; 5] =
        [CloseCause::Rows, CloseCause::Bytes, CloseCause::Age, CloseCause::Stop, CloseCause::Replay];

    /// The label of the metric.
    pub const fn label(self) -> &'static str {
        match self {
            CloseCause::Rows => "rows",
            CloseCause::Bytes => "bytes",
            CloseCause::Age => "age",
            CloseCause::Stop => "stop",
            CloseCause::Replay => "replay",
        }
    }

    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A batch on its way from a shard to the writer.
#[derive(Debug, Clone)]
pub struct Closed {
    pub table: Table,
    pub batch: RecordBatch,
    pub cause: CloseCause,
    /// Number of the shard: what keeps the batches of an exporter in order.
    pub shard: u64,
    /// Bytes in memory.
    pub bytes: usize,
    /// Where the memory goes when the log has the batch.
    pub spares: Arc<Spares>,
    /// What of the shard's journal it holds; None where none is kept.
    pub part: Option<JournalPart>,
}

/// Batches that are written and in nobody's hands any more, on their way back to the shard that filled them: it uses
/// their memory again. Memory fresh from the kernel costs as much as decoding into it.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Vec<(Table, RecordBatch)>>);

impl Spares {
    /// As many as are on the way between two fsyncs at most rates; what is more is freed.
    const MOST: usize = 4;
    /// Smaller batches are not worth it.
    const LEAST_ROWS: usize = 1_024;

    pub(crate) fn give(&self, table: Table, batch: RecordBatch) {
        if batch.num_rows() < Spares::LEAST_ROWS {
            return;
        }
        let mut spares = self.0.lock();
        let oldest = if spares.len() < Spares::MOST { None } else { Some(spares.remove(0)) };
        spares.push((table, batch));
        drop(spares);
        drop(oldest);
    }

    /// One of a table, for batches of about so many bytes: much larger ones are let go, so that the memory shrinks when
    /// the traffic does.
    pub(crate) fn take(&self, table: Table, bytes: usize) -> Option<RecordBatch> {
        let mut spares = self.0.lock();
        let at = spares.iter().rposition(|(of, _)| *of == table)?;
        let (_, batch) = spares.remove(at);
        drop(spares);
        (batch.get_array_memory_size() <= bytes.saturating_mul(4)).then_some(batch)
    }
}

/// The part of a shard's journal whose rows of one table a batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalPart {
    pub journal: u64,
    pub from: Position,
    /// Up to this datagram, which does not belong to it.
    pub to: u64,
    /// When this batch is in the log, and those that were closed before it, all rows of datagrams before this one are.
    pub low: u64,
}

impl JournalPart {
    /// How far the log is with the first `rows` rows of the batch; None: with all of them.
    pub fn covered(&self, shard: u64, rows: Option<u64>) -> Covered {
        let Position { datagram, rows } = match rows {
            Some(rows) => Position { rows: self.from.rows + rows, ..self.from },
            None => Position { datagram: self.to, rows: 0 },
        };
        Covered { journal: self.journal, shard, datagram, rows }
    }
}

impl Closed {
    pub fn rows(&self) -> u64 {
        self.batch.num_rows() as u64
    }
}

/// How much smaller a batch gets on its way to a message, by table: the writer measures it, the shards close their
/// batches by it.
#[derive(Debug)]
pub struct SizeRatios([AtomicU32; Table::ALL.len()]);

impl Default for SizeRatios {
    fn default() -> Self {
        SizeRatios::new(Compression::Lz4)
    }
}

impl SizeRatios {
    pub fn new(compression: Compression) -> SizeRatios {
        // Until measured: random traffic.
        let ratio = match compression {
            Compression::None => 1_000,
            Compression::Runs => 750,
            Compression::Lz4 | Compression::Zstd => 350,
        };
        SizeRatios(std::array::from_fn(|_| AtomicU32::new(ratio)))
    }

    /// Batches smaller than this say nothing about larger ones: most of their message is the schema.
    const LEAST: usize = 65_536;

    /// A batch of `raw` bytes became a message of `encoded` bytes.
    pub fn observe(&self, table: Table, raw: usize, encoded: usize) {
        if raw < Self::LEAST {
            return;
        }
        let now = u32::try_from(encoded.saturating_mul(1_000) / raw).unwrap_or(u32::MAX).clamp(20, 1_500);
        let ratio = &self.0[table as usize];
        let before = ratio.load(Ordering::Relaxed);
        // Worse counts at once, better by and by: a batch that has to be split is encoded twice.
        let next = if now > before { now } else { (before * 7 + now) / 8 };
        ratio.store(next, Ordering::Relaxed);
    }

    /// Bytes in memory at which a batch is about to exceed `max_bytes` as a message.
    pub fn raw_limit(&self, table: Table, max_bytes: usize) -> usize {
        let ratio = self.0[table as usize].load(Ordering::Relaxed).max(1) as usize;
        max_bytes.saturating_mul(850) / ratio
    }
}

/// The open batches of a shard and the rules for closing them.
#[derive(Debug)]
pub struct Batcher {
    batches: Batches,
    /// Since when a table has rows.
    opened: [Option<Instant>; Table::ALL.len()],
    max_rows: usize,
    max_bytes: usize,
    max_age: Duration,
    shard: u64,
    spares: Arc<Spares>,
    progress: Option<Progress>,
}

/// Where the batches stand in the shard's journal.
#[derive(Debug)]
struct Progress {
    journal: u64,
    /// The next datagram: the rows of all before it are in the open batches, or closed.
    next: u64,
    /// `next` when batches were last looked at.
    looked_at: u64,
    /// Of each table: where its last batch ended.
    closed: InLog,
    /// Of each table whose batch is open: all its rows are of this datagram or later ones.
    opened: [Option<u64>; Table::ALL.len()],
    /// Of the batch that was closed last.
    low: u64,
}

impl Batcher {
    /// `config` says how large messages are ([`BatchConfig::for_messages_of`]).
    pub fn new(config: &BatchConfig, shard: u64) -> Batcher {
        Batcher {
            batches: Batches::new(),
            opened: [None; Table::ALL.len()],
            max_rows: config.max_rows,
            max_bytes: config.max_bytes,
            max_age: Duration::from_millis(config.max_age_ms),
            shard,
            spares: Arc::default(),
            progress: None,
        }
    }

    /// From now on the shard keeps a journal; the log has of it what `in_log` says.
    pub fn keep_journal(&mut self, journal: u64, in_log: InLog, next: u64) {
        let opened = [None; Table::ALL.len()];
        self.progress = Some(Progress { journal, next, looked_at: next, closed: in_log, opened, low: 0 });
    }

    /// The datagrams before this one are decoded.
    pub fn set_next_datagram(&mut self, next: u64) {
        if let Some(progress) = &mut self.progress {
            progress.next = next;
        }
    }

    /// Where no batch is open: [`JournalPart::low`] of the batch that was closed last. When the log has reached it, it
    /// has everything.
    pub fn idle_low(&mut self) -> Option<u64> {
        let is_idle = self.open_rows() == 0;
        self.progress.as_ref().filter(|_| is_idle).map(|progress| progress.low)
    }

    /// Where the decoder appends.
    pub fn batches(&mut self) -> &mut Batches {
        &mut self.batches
    }

    /// Rows in the open batches.
    pub fn open_rows(&mut self) -> u64 {
        self.batches.all_mut().iter().map(|builder| builder.rows() as u64).sum()
    }

    /// When the next batch will be due by its age.
    pub fn next_due(&self) -> Option<Instant> {
        self.opened.iter().flatten().min().map(|opened| *opened + self.max_age)
    }

    /// Closes what is due, after rows were appended or time has passed.
    pub fn close_due(&mut self, now: Instant, ratios: &SizeRatios, emit: impl FnMut(Closed)) {
        let (max_rows, max_bytes, max_age) = (self.max_rows, self.max_bytes, self.max_age);
        self.close(emit, |builder, opened| {
            let opened = opened.get_or_insert(now);
            if builder.rows() >= max_rows {
                Some(CloseCause::Rows)
            } else if builder.bytes() >= ratios.raw_limit(builder.table(), max_bytes) {
                Some(CloseCause::Bytes)
            } else if now.saturating_duration_since(*opened) >= max_age {
                Some(CloseCause::Age)
            } else {
                None
            }
        });
    }

    /// Closes what is full, after rows came out of a journal: how old they are does not count.
    pub fn close_full(&mut self, ratios: &SizeRatios, emit: impl FnMut(Closed)) {
        let (max_rows, max_bytes) = (self.max_rows, self.max_bytes);
        self.close(emit, |builder, _| {
            let is_full =
                builder.rows() >= max_rows || builder.bytes() >= ratios.raw_limit(builder.table(), max_bytes);
            is_full.then_some(CloseCause::Replay)
        });
    }

    /// Closes everything, at the end.
    pub fn close_all(&mut self, emit: impl FnMut(Closed)) {
        self.close(emit, |_, _| Some(CloseCause::Stop));
    }

    fn close(
        &mut self,
        mut emit: impl FnMut(Closed),
        mut due: impl FnMut(&crate::columns::Builder, &mut Option<Instant>) -> Option<CloseCause>,
    ) {
        if let Some(progress) = &mut self.progress {
            progress.look(self.batches.all_mut().map(|builder| builder.rows() > 0));
        }
        for (builder, opened) in self.batches.all_mut().into_iter().zip(&mut self.opened) {
            if builder.rows() == 0 {
                continue;
            }
            let Some(cause) = due(builder, opened) else { continue };
            let (table, bytes) = (builder.table(), builder.bytes());
            *opened = None;
            if let Some(batch) = builder.finish_reusing(self.spares.take(table, bytes)) {
                let part = self.progress.as_mut().map(|progress| progress.close(table));
                let spares = Arc::clone(&self.spares);
                emit(Closed { table, batch, cause, shard: self.shard, bytes, spares, part });
            }
        }
    }

    /// Closes everything that a journal gave, but of each table not the first rows, as many as `discard` says: those
    /// are in the log. To be called only where that is all that the log has of the table.
    pub fn close_replayed(&mut self, discard: &mut [u64; Table::ALL.len()], mut emit: impl FnMut(Closed)) {
        let rows = self.batches.all_mut().map(|builder| builder.rows() as u64);
        if let Some(progress) = &mut self.progress {
            let kept: [bool; Table::ALL.len()] = std::array::from_fn(|table| rows[table] > discard[table]);
            progress.look(kept);
        }
        for ((builder, discard), rows) in self.batches.all_mut().into_iter().zip(discard).zip(rows) {
            let (table, bytes) = (builder.table(), builder.bytes());
            let discarded = rows.min(std::mem::take(discard));
            let batch = builder.finish().filter(|_| discarded < rows);
            let Some(batch) = batch else {
                if let Some(progress) = &mut self.progress {
                    progress.pass(table);
                }
                continue;
            };
            let from = usize::try_from(discarded).unwrap_or(0);
            let batch = batch.slice(from, batch.num_rows() - from);
            let part = self.progress.as_mut().map(|progress| progress.close(table));
            // a part of a batch is no memory to be used again
            let spares = Arc::default();
            emit(Closed { table, batch, cause: CloseCause::Replay, shard: self.shard, bytes, spares, part });
        }
    }
}

impl Progress {
    /// Notes which batches are open now.
    fn look(&mut self, open: [bool; Table::ALL.len()]) {
        for (opened, open) in self.opened.iter_mut().zip(open) {
            if open {
                opened.get_or_insert(self.looked_at);
            }
        }
        self.looked_at = self.next;
    }

    /// The log has all rows of the table so far, without a batch that says so.
    fn pass(&mut self, table: Table) {
        self.opened[table as usize] = None;
        let closed = &mut self.closed.0[table as usize];
        *closed = Position { datagram: self.next, rows: 0 }.max(*closed);
    }

    fn close(&mut self, table: Table) -> JournalPart {
        let opened = self.opened[table as usize].take();
        let to = Position { datagram: self.next, rows: 0 };
        let closed = std::mem::replace(&mut self.closed.0[table as usize], to);
        // Where the table had no rows for a while, the batch begins where it was opened. It must not name an earlier
        // datagram: the log may be known to be beyond that one by then, and so many rows "from there on" would be no
        // place in it.
        let opened = Position { datagram: opened.unwrap_or(0), rows: 0 };
        let from = if closed.rows == 0 { closed.max(opened) } else { closed };
        self.low = self.opened.iter().flatten().min().map_or(self.next, |oldest| *oldest);
        JournalPart { journal: self.journal, from, to: self.next, low: self.low }
    }
}

#[cfg(test)]
mod tests {
    use weir_schemas::FlowColumn;

    use super::*;

    fn append(batcher: &mut Batcher, rows: usize) {
        let flows = &mut batcher.batches().flows;
        flows.ips(FlowColumn::SrcAddr.index()).push_n([7; 16], rows);
        flows.u64s(FlowColumn::Bytes.index()).push_n(9, rows);
        flows.advance(rows);
    }

    fn due(batcher: &mut Batcher, now: Instant) -> Vec<(CloseCause, u64)> {
        let mut closed = Vec::new();
        batcher.close_due(now, &SizeRatios::default(), |batch| closed.push((batch.cause, batch.rows())));
        closed
    }

    #[test]
    fn a_batch_closes_on_rows_bytes_or_age_whichever_is_first() {
        let start = Instant::now();
        let config =
            BatchConfig { max_rows: 100_000, max_bytes: 900_000, max_age_ms: 500, ..BatchConfig::default() };
        let mut batcher = Batcher::new(&config, 3);
        assert_eq!((due(&mut batcher, start), batcher.next_due()), (vec![], None));
        append(&mut batcher, 10);
        assert_eq!(due(&mut batcher, start), []);
        append(&mut batcher, 10);
        let age = Duration::from_millis(500);
        assert_eq!(due(&mut batcher, start + age - Duration::from_micros(1)), []);
        assert_eq!(batcher.next_due(), Some(start + age));
        assert_eq!(due(&mut batcher, start + age), [(CloseCause::Age, 20)]);
        assert_eq!(batcher.next_due(), None);
        // 24 bytes a row, 350 in a thousand expected on the wire: 90,000 rows are below 85 % of the limit, 95,000 not.
        append(&mut batcher, 90_000);
        assert_eq!(due(&mut batcher, start), []);
        append(&mut batcher, 5_000);
        assert_eq!(due(&mut batcher, start), [(CloseCause::Bytes, 95_000)]);
        let config = BatchConfig { max_rows: 100, ..config };
        let mut batcher = Batcher::new(&config, 3);
        append(&mut batcher, 99);
        assert_eq!(due(&mut batcher, start), []);
        append(&mut batcher, 2);
        assert_eq!(due(&mut batcher, start), [(CloseCause::Rows, 101)]);
        append(&mut batcher, 1);
        assert_eq!(batcher.open_rows(), 1);
        let mut closed = Vec::new();
        batcher.close_all(|batch| closed.push((batch.cause, batch.rows(), batch.shard)));
        assert_eq!(closed, [(CloseCause::Stop, 1, 3)]);
        assert_eq!((batcher.open_rows(), batcher.next_due()), (0, None));
    }

    #[test]
    fn messages_are_as_large_as_suits_the_log_unless_told_otherwise() {
        let config = BatchConfig::default();
        assert_eq!((config.max_bytes, config.problems()), (0, vec![]));
        assert_eq!(config.for_messages_of(2_000_000).max_bytes, 2_000_000);
        let told = BatchConfig { max_bytes: 100_000, ..config };
        assert_eq!(told.for_messages_of(2_000_000), told);
        assert_eq!(BatchConfig { max_bytes: 16_383, ..told }.problems().len(), 1);
    }

    #[test]
    fn the_byte_limit_follows_what_the_writer_measures() {
        let ratios = SizeRatios::default();
        let at_first = ratios.raw_limit(Table::Flows, 900_000);
        ratios.observe(Table::Flows, 1_000, 1_000);
        assert_eq!(ratios.raw_limit(Table::Flows, 900_000), at_first, "too small to count");
        ratios.observe(Table::Flows, 100_000, 100_000);
        assert_eq!(ratios.raw_limit(Table::Flows, 900_000), 765_000);
        assert_eq!(ratios.raw_limit(Table::Options, 900_000), at_first, "each table by itself");
        for _ in 0..100 {
            ratios.observe(Table::Flows, 1_000_000, 100_000);
        }
        let limit = ratios.raw_limit(Table::Flows, 900_000);
        assert!((6_500_000..=7_700_000).contains(&limit), "{limit}");
    }
}
