//! From closed batches to acknowledged messages: the queue that shards push to, and the thread that empties it.
//!
//! A shard never waits here. The queue is bounded in bytes: where the writer does not keep up, the oldest batch goes
//! and is counted. The writer encodes (compression is the most expensive step between a datagram and the log, and so not
//! the shards' work), splits what is too large for a message, and offers the messages to the [`Sink`] in order. What the
//! sink does not take stays in a backlog, bounded too, oldest out first; when the sink takes messages again, it gets the
//! backlog and then what is new. Nothing has to be restarted for that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::buffer::Buffer;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use weir_schemas::Envelope;
use weir_schemas::envelope::{Compression, encode_pieces};

use crate::batch::{BatchConfig, CloseCause, Closed, SizeRatios};
use crate::sink::{Acknowledged, Body, Lease, LogStats, Message, Sink, SinkError};

/// What is kept while the log cannot take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WriterConfig {
    /// Bytes of closed batches, not yet encoded, that may wait for the writer.
    pub queue_bytes: usize,
    /// Memory of encoded messages that may wait for the log.
    pub backlog_bytes: usize,
    /// At the end: how long the log may take to acknowledge the rest.
    pub flush_timeout_ms: u64,
}

impl Default for WriterConfig {
    fn default() -> Self {
        WriterConfig { queue_bytes: 128 << 20, backlog_bytes: 256 << 20, flush_timeout_ms: 30_000 }
    }
}

impl WriterConfig {
    /// What is wrong, in words, with the key it is about.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, value) in [("queue_bytes", self.queue_bytes), ("backlog_bytes", self.backlog_bytes)] {
            if value < 1 << 20 {
                problems.push(format!("{key}: must be at least 1048576 (1 MiB)"));
            }
        }
        problems
    }
}

/// Why rows that were decoded did not get to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The writer did not keep up, and the queue before it was full.
    QueueFull,
    /// The log did not take messages, and the backlog was full.
    BacklogFull,
    /// The log refused the message for good.
    Refused,
    /// The batch could not be encoded (a mistake in weir).
    Encode,
    /// The collector stopped before the log took it.
    Shutdown,
}

impl DropReason {
    pub const ALL: [DropReason; 5] = [
        DropReason::QueueFull,
        DropReason::BacklogFull,
        DropReason::Refused,
        DropReason::Encode,
        DropReason::Shutdown,
    ];

    /// The label of the metric.
    pub const fn label(self) -> &'static str {
        match self {
            DropReason::QueueFull => "queue_full",
            DropReason::BacklogFull => "backlog_full",
            DropReason::Refused => "refused",
            DropReason::Encode => "encode",
            DropReason::Shutdown => "shutdown",
        }
    }
}

/// What has become of batches, as counted by the queue and the writer together: one lock, so that a reader never sees
/// a row twice or not at all.
#[derive(Debug, Clone, Default)]
pub struct WriterCounters {
    /// Waiting for the writer.
    pub queued_batches: u64,
    pub queued_rows: u64,
    pub queued_bytes: u64,
    /// Taken from the queue, being encoded.
    pub encoding_rows: u64,
    /// Encoded, waiting for the log.
    pub backlog_messages: u64,
    pub backlog_rows: u64,
    pub backlog_bytes: u64,
    /// Handed to the log, not yet acknowledged.
    pub unacknowledged_messages: u64,
    pub unacknowledged_rows: u64,
    pub acknowledged_messages: u64,
    pub acknowledged_rows: u64,
    pub acknowledged_bytes: u64,
    /// By [`DropReason`].
    pub dropped_rows: [u64; DropReason::ALL.len()],
    pub dropped_batches: [u64; DropReason::ALL.len()],
    /// Closed by the shards, by [`crate::batch::CloseCause`].
    pub closed_batches: [u64; CloseCause::ALL.len()],
    pub closed_rows: u64,
    pub closed_bytes: u64,
    pub batch_rows: Sizes,
    pub message_bytes: Sizes,
    /// Batches that were too large for one message.
    pub split_batches: u64,
    /// Times that the log did not take a message.
    pub busy: u64,
    /// What a log on the local disk has done.
    pub log: Option<LogStats>,
}

impl WriterCounters {
    /// Rows that shards have closed and that are neither acknowledged nor dropped.
    pub fn rows_in_flight(&self) -> u64 {
        self.queued_rows + self.encoding_rows + self.backlog_rows + self.unacknowledged_rows
    }

    fn drop_rows(&mut self, reason: DropReason, rows: u64) {
        self.dropped_rows[reason as usize] += rows;
        self.dropped_batches[reason as usize] += 1;
    }

    fn acknowledge(&mut self, acknowledged: Acknowledged) {
        self.acknowledged_messages += acknowledged.messages;
        self.acknowledged_rows += acknowledged.rows;
        self.acknowledged_bytes += acknowledged.bytes;
        self.no_longer_in_hand(acknowledged);
    }

    fn refuse(&mut self, refused: Acknowledged) {
        self.dropped_rows[DropReason::Refused as usize] += refused.rows;
        self.dropped_batches[DropReason::Refused as usize] += refused.messages;
        self.no_longer_in_hand(refused);
    }

    fn no_longer_in_hand(&mut self, settled: Acknowledged) {
        self.unacknowledged_messages = self.unacknowledged_messages.saturating_sub(settled.messages);
        self.unacknowledged_rows = self.unacknowledged_rows.saturating_sub(settled.rows);
    }
}

/// How many of what size: powers of four, from 16 on.
#[derive(Debug, Clone, Default)]
pub struct Sizes {
    counts: [u64; 12],
    sum: u64,
}

impl Sizes {
    pub fn observe(&mut self, size: u64) {
        let bucket = (0..11).find(|bucket| size <= 16 << (2 * bucket)).unwrap_or(11);
        self.counts[bucket] += 1;
        self.sum += size;
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Upper bounds and counts, not summed up; the last bound is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = (0..11).map(|bucket| f64::from(16_u32 << (2 * bucket))).chain([f64::INFINITY]);
        bounds.zip(self.counts)
    }
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Closed>,
    counters: WriterCounters,
    closed: bool,
    /// Why the log takes nothing, and since when.
    blocked: Option<(String, Instant)>,
}

/// The queue between the shards and the writer.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    limit_bytes: u64,
}

impl Queue {
    pub fn new(limit_bytes: usize) -> Queue {
        Queue { state: Mutex::default(), filled: Condvar::new(), limit_bytes: limit_bytes as u64 }
    }

    /// Takes a batch, and drops the oldest ones where that is too much. Never waits.
    pub fn push(&self, closed: Closed) {
        let mut state = self.state.lock();
        let State { batches, counters, .. } = &mut *state;
        counters.closed_batches[closed.cause.index()] += 1;
        counters.closed_rows += closed.rows();
        counters.closed_bytes += closed.bytes as u64;
        counters.batch_rows.observe(closed.rows());
        counters.queued_batches += 1;
        counters.queued_rows += closed.rows();
        counters.queued_bytes += closed.bytes as u64;
        batches.push_back(closed);
        while counters.queued_bytes > self.limit_bytes && batches.len() > 1 {
            let Some(oldest) = take(batches, counters) else { break };
            counters.drop_rows(DropReason::QueueFull, oldest.rows());
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Whether there is room for more than usual: who can wait with what it pushes waits while there is not, so that
    /// nothing is dropped that could have come later.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.state.lock();
        state.counters.queued_bytes + state.counters.backlog_bytes < self.limit_bytes / 2
    }

    /// All batches that wait, as a writer would take them.
    #[cfg(test)]
    pub(crate) fn drain(&self) -> Vec<Closed> {
        let mut state = self.state.lock();
        let State { batches, counters, .. } = &mut *state;
        std::iter::from_fn(|| take(batches, counters)).collect()
    }

    /// Nothing more will be pushed.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_one();
    }

    pub fn counters(&self) -> WriterCounters {
        self.state.lock().counters.clone()
    }

    /// Why the log takes nothing now, and since when; None while it does.
    pub fn blocked(&self) -> Option<(String, Instant)> {
        self.state.lock().blocked.clone()
    }

    fn pop(&self, wait: Duration) -> Popped {
        let deadline = Instant::now() + wait;
        let mut state = self.state.lock();
        loop {
            let State { batches, counters, closed, .. } = &mut *state;
            if let Some(batch) = take(batches, counters) {
                counters.encoding_rows += batch.rows();
                return Popped::Batch(batch);
            }
            if *closed {
                return Popped::End;
            }
            if self.filled.wait_until(&mut state, deadline).timed_out() {
                return Popped::Nothing;
            }
        }
    }
}

enum Popped {
    Batch(Closed),
    Nothing,
    End,
}

fn take(batches: &mut VecDeque<Closed>, counters: &mut WriterCounters) -> Option<Closed> {
    let batch = batches.pop_front()?;
    counters.queued_batches -= 1;
    counters.queued_rows -= batch.rows();
    counters.queued_bytes -= batch.bytes as u64;
    Some(batch)
}

/// Who writes: what every envelope says.
#[derive(Debug, Clone)]
pub struct Identity {
    pub collector: String,
    /// Differs at each start.
    pub boot: u64,
}

/// The writer: [`Writer::run`] is its thread.
pub struct Writer {
    sink: Box<dyn Sink>,
    queue: Arc<Queue>,
    ratios: Arc<SizeRatios>,
    identity: Identity,
    compression: Compression,
    max_bytes: usize,
    backlog_limit: u64,
    flush_timeout: Duration,
    next_seq: u64,
    backlog: VecDeque<Message>,
    last_warning: Option<Instant>,
    /// By shard: all rows of the datagrams before this one of its journal are in the log.
    lows: Vec<Arc<AtomicU64>>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("identity", &self.identity)
            .field("next_seq", &self.next_seq)
            .finish_non_exhaustive()
    }
}

/// While the log takes nothing it is asked again this often.
const RETRY: Duration = Duration::from_millis(50);
/// While messages are unacknowledged the sink is polled this often.
const POLL: Duration = Duration::from_millis(10);
/// Else this often, for what it has to do by itself.
const IDLE: Duration = Duration::from_millis(100);

impl Writer {
    pub fn new(
        sink: Box<dyn Sink>,
        queue: Arc<Queue>,
        ratios: Arc<SizeRatios>,
        identity: Identity,
        batch: &BatchConfig,
        config: &WriterConfig,
    ) -> Writer {
        let compression = batch.compression.resolve(sink.compression());
        Writer {
            sink,
            queue,
            ratios,
            identity,
            compression,
            max_bytes: batch.max_bytes,
            backlog_limit: config.backlog_bytes as u64,
            flush_timeout: Duration::from_millis(config.flush_timeout_ms),
            next_seq: 0,
            backlog: VecDeque::new(),
            last_warning: None,
            lows: Vec::new(),
        }
    }

    /// Tells the shards, through these, how far the log is in their journals.
    pub fn tell(&mut self, lows: Vec<Arc<AtomicU64>>) {
        self.lows = lows;
    }

    /// Writes until the queue is closed and empty and the log has acknowledged everything, or takes too long for it.
    /// Returns the rows that did not get there.
    pub fn run(mut self) -> u64 {
        loop {
            let wait = if !self.backlog.is_empty() {
                RETRY
            } else if self.sink.in_flight() > 0 {
                POLL
            } else {
                IDLE
            };
            if !self.step(wait) {
                return self.finish();
            }
        }
    }

    /// One batch, if one comes within `wait`, and what is due besides. False once the queue is closed and empty.
    fn step(&mut self, wait: Duration) -> bool {
        match self.queue.pop(wait) {
            Popped::Batch(closed) => self.encode(closed),
            Popped::Nothing => {}
            Popped::End => return false,
        }
        self.offer();
        self.trim();
        let acknowledged = self.sink.poll(Duration::ZERO);
        self.settle(acknowledged);
        true
    }

    fn encode(&mut self, closed: Closed) {
        let rows = closed.rows();
        let Closed { table, batch, bytes: raw, shard, spares, part, .. } = closed;
        let mut messages = VecDeque::new();
        let (mut failed, mut done) = (0, 0);
        let mut todo = vec![batch];
        while let Some(batch) = todo.pop() {
            let pieces = encode_pieces(&batch, self.compression);
            let whole = batch.num_rows() as u64 == rows;
            match pieces.map(|pieces| (pieces.iter().map(Buffer::len).sum::<usize>(), pieces)) {
                Ok((bytes, _)) if bytes > self.max_bytes && batch.num_rows() > 1 => {
                    // In order: the first half is taken from the stack first.
                    self.ratios.observe(table, raw, bytes.max(self.max_bytes));
                    let half = batch.num_rows() / 2;
                    todo.push(batch.slice(half, batch.num_rows() - half));
                    todo.push(batch.slice(0, half));
                }
                Ok((bytes, pieces)) => {
                    if whole {
                        self.ratios.observe(table, raw, bytes);
                    }
                    done += batch.num_rows() as u64;
                    let is_last = done == rows;
                    let Identity { collector, boot } = &self.identity;
                    let mut envelope = Envelope::of(&batch, table, collector, *boot, self.next_seq);
                    envelope.covered = part.map(|part| part.covered(shard, (!is_last).then_some(done)));
                    let low = part.filter(|_| is_last).map(|part| part.low);
                    self.next_seq += 1;
                    // the parts of a batch that was split share its memory: it is freed with the last of them
                    let lease = whole.then(|| Lease::new(batch, table, Arc::clone(&spares)));
                    messages.push_back(Message { envelope, body: self.body(pieces, lease), key: shard, low });
                }
                Err(error) => {
                    tracing::error!(table = table.name(), %error, "a batch cannot be encoded");
                    failed += batch.num_rows() as u64;
                    done += batch.num_rows() as u64;
                }
            }
        }
        let mut state = self.queue.state.lock();
        let counters = &mut state.counters;
        counters.encoding_rows -= rows;
        if failed > 0 {
            counters.drop_rows(DropReason::Encode, failed);
        }
        counters.split_batches += u64::from(messages.len() > 1);
        for message in &messages {
            counters.message_bytes.observe(message.body.len() as u64);
            counters.backlog_messages += 1;
            counters.backlog_rows += u64::from(message.envelope.rows);
            counters.backlog_bytes += message.body.memory() as u64;
        }
        drop(state);
        self.backlog.append(&mut messages);
    }

    fn body(&self, pieces: Vec<Buffer>, lease: Option<Lease>) -> Body {
        if matches!(self.compression, Compression::None | Compression::Runs) {
            return Body::lent(pieces, lease);
        }
        // one piece of exactly what is counted: the encoder reserves generously
        let mut body = Vec::with_capacity(pieces.iter().map(Buffer::len).sum());
        pieces.iter().for_each(|piece| body.extend_from_slice(piece));
        // the pieces go before the lease does
        drop(pieces);
        drop(lease);
        Body::from(body)
    }

    /// Hands the log what it takes.
    fn offer(&mut self) {
        while let Some(message) = self.backlog.front() {
            let result = self.sink.append(message);
            if let Err(SinkError::Busy(why)) = &result {
                self.blocked(why);
                return;
            }
            if let Err(error) = &result {
                tracing::error!(
                    table = message.envelope.table.name(),
                    rows = message.envelope.rows,
                    bytes = message.body.len(),
                    %error,
                    "a message is dropped"
                );
            }
            let refused = result.is_err();
            // Taken or refused for good, the crash of this process changes nothing about it any more.
            let shard = usize::try_from(message.key).unwrap_or(usize::MAX);
            if let (Some(low), Some(told)) = (message.low, self.lows.get(shard)) {
                told.store(low, Ordering::Release);
            }
            self.unload(|counters, rows| {
                if refused {
                    counters.drop_rows(DropReason::Refused, rows);
                } else {
                    counters.unacknowledged_messages += 1;
                    counters.unacknowledged_rows += rows;
                }
            });
        }
        if let Some((why, since)) = self.queue.state.lock().blocked.take() {
            tracing::info!(after_ms = since.elapsed().as_millis(), "the log takes messages again ({why})");
            self.last_warning = None;
        }
    }

    fn blocked(&mut self, why: &str) {
        let mut state = self.queue.state.lock();
        state.counters.busy += 1;
        let since = state.blocked.as_ref().map_or_else(Instant::now, |(_, since)| *since);
        state.blocked = Some((why.to_owned(), since));
        let (messages, bytes) = (state.counters.backlog_messages, state.counters.backlog_bytes);
        drop(state);
        if self.last_warning.is_none_or(|last| last.elapsed() > Duration::from_secs(10)) {
            self.last_warning = Some(Instant::now());
            tracing::warn!(messages, bytes, limit = self.backlog_limit, "the log takes nothing now: {why}");
        }
    }

    /// Counts what the log has taken for good, and what it has refused after it had taken it in hand.
    fn settle(&mut self, acknowledged: Acknowledged) {
        let refused = self.sink.refused();
        let mut state = self.queue.state.lock();
        state.counters.acknowledge(acknowledged);
        state.counters.refuse(refused);
        state.counters.log = self.sink.stats();
        drop(state);
        if refused.messages > 0 {
            tracing::error!(messages = refused.messages, rows = refused.rows, "the log refused messages");
        }
    }

    /// Removes the oldest message of the backlog and tells what became of it.
    fn unload(&mut self, tell: impl FnOnce(&mut WriterCounters, u64)) {
        let Some(message) = self.backlog.pop_front() else { return };
        let counters = &mut self.queue.state.lock().counters;
        counters.backlog_messages -= 1;
        counters.backlog_rows -= u64::from(message.envelope.rows);
        counters.backlog_bytes -= message.body.memory() as u64;
        tell(counters, u64::from(message.envelope.rows));
    }

    /// Keeps the backlog within its bound.
    fn trim(&mut self) {
        while self.backlog.len() > 1 && self.queue.state.lock().counters.backlog_bytes > self.backlog_limit {
            self.unload(|counters, rows| counters.drop_rows(DropReason::BacklogFull, rows));
        }
    }

    /// The queue is closed and empty: the rest to the log, and until it is there.
    fn finish(mut self) -> u64 {
        let deadline = Instant::now() + self.flush_timeout;
        loop {
            self.offer();
            let left = deadline.saturating_duration_since(Instant::now());
            let step = if self.backlog.is_empty() { left } else { left.min(RETRY) };
            let acknowledged = self.sink.flush(step);
            self.settle(acknowledged);
            if left.is_zero() || (self.backlog.is_empty() && self.sink.in_flight() == 0) {
                break;
            }
        }
        while !self.backlog.is_empty() {
            self.unload(|counters, rows| counters.drop_rows(DropReason::Shutdown, rows));
        }
        let mut state = self.queue.state.lock();
        let counters = &mut state.counters;
        let unacknowledged = std::mem::take(&mut counters.unacknowledged_rows);
        if unacknowledged > 0 {
            counters.unacknowledged_messages = 0;
            counters.drop_rows(DropReason::Shutdown, unacknowledged);
        }
        let lost = counters.dropped_rows[DropReason::Shutdown as usize];
        if lost > 0 {
            tracing::error!(rows = lost, "stopped before the log had acknowledged everything");
        }
        lost
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
