//! From the sockets to closed batches: the receive threads.
//!
//! One plain thread a shard. It waits on its sockets of all ports at once (`ppoll`), takes what each has
//! (`recvmmsg` into a [`Ring`]), decodes every datagram into the open batches, closes what is due and pushes it to the
//! writer's queue. A thread for each socket instead would need no `ppoll`, but as many decoders and open batches as
//! ports: smaller batches, more threads than cores, and an exporter that uses two ports decoded in two places.
//!
//! A shard never waits for anything but datagrams as long as the sockets need it: the queue drops rather than block, the
//! quarantine is bounded. While the writer is behind and the sockets' buffers have room, what comes waits there: it would
//! only push older batches out of the queue.

pub mod journal;
pub mod quarantine;
mod replay;
pub mod socket;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use weir_schemas::Table;

use crate::batch::{Batcher, Closed, SizeRatios};
use crate::decode::{DatagramMeta, Decoder, Losses, RejectReason};
use crate::metrics::{ExporterFeed, ShardStats};
use crate::writer::Queue;
use journal::{InLog, Journal};
use quarantine::Quarantine;
use socket::{Datagram, RING_SLOTS, Ring, Socket};

/// How often a shard does what is due by the clock.
const TICK: Duration = Duration::from_secs(1);
/// How long a shard waits at most before it looks around (for the signal to stop).
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// How often a socket that has more is read before the next one has its turn.
const ROUNDS: usize = 8;
/// A round that emptied the sockets is followed by a pause, while datagrams come in a stream: to wake up for every two
/// or three of them costs more CPU time than to decode them. What comes meanwhile waits in the socket's buffer, which must
/// have room for it: see [`pause`].
const LONGEST_PAUSE: Duration = Duration::from_millis(8);
/// Shorter ones are not worth a call.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// Room in a buffer for a millisecond: several times what comes in it at the most that one shard can take.
const ROOM_FOR_A_MS: usize = 2 << 20;
/// After the signal to stop, a shard reads what came before it; at most for this long.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Tells the shards to stop: they still take what the kernel received before.
#[derive(Debug, Default)]
pub struct StopSignal(AtomicI64);

impl StopSignal {
    /// Stop now. What arrives later stays in the sockets.
    pub fn stop(&self) {
        self.0.store(now_us().max(1), Ordering::Release);
    }

    /// When [`StopSignal::stop`] was called, µs since 1970 UTC.
    pub fn stopped_us(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|at| *at != 0)
    }
}

/// The clock, µs since 1970 UTC.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Datagrams that the kernel has dropped at the sockets since they were made. One that does not tell has dropped none.
fn kernel_drops(sockets: &[Arc<Socket>]) -> u64 {
    sockets.iter().filter_map(|socket| socket.drops().ok()).map(|(drops, _)| drops).sum()
}

/// What a shard needs.
#[derive(Debug)]
pub struct ShardParts {
    /// Its number, from 0.
    pub index: u64,
    /// Its socket of each listen address.
    pub sockets: Vec<Arc<Socket>>,
    pub decoder: Decoder,
    pub batcher: Batcher,
    pub ratios: Arc<SizeRatios>,
    pub queue: Arc<Queue>,
    pub quarantine: Arc<Quarantine>,
    pub stats: Arc<ShardStats>,
    pub stop: Arc<StopSignal>,
    pub journal: Option<KeptJournal>,
}

/// A shard's journal.
#[derive(Debug)]
pub struct KeptJournal {
    pub journal: Journal,
    /// How far the log was in it when the collector started.
    pub in_log: InLog,
    /// How far the log is since, as the writer says.
    pub low: Arc<AtomicU64>,
}

/// A shard; [`Shard::run`] is its thread.
#[derive(Debug)]
pub struct Shard {
    ring: Ring,
    ready: Vec<bool>,
    work: Work,
}

/// All of a shard but its ring, which lends the datagrams that this works on.
#[derive(Debug)]
struct Work {
    parts: ShardParts,
    counts: ShardCounts,
    feed: ExporterFeed,
    told: Told,
}

/// The losses that the decoder has been told of.
#[derive(Debug, Default)]
struct Told {
    /// Of the shard's sockets, since they were made.
    kernel_drops: u64,
    /// Of all shards together.
    dropped_rows: u64,
    closed_rows: u64,
    /// Of this shard.
    own_rows: u64,
}

/// What a shard counts by itself, beside its decoder.
#[derive(Debug, Clone, Default)]
pub struct ShardCounts {
    /// By socket: datagrams and bytes.
    pub received: Vec<(u64, u64)>,
    /// Datagrams that were longer than the ring's slot; not decoded.
    pub truncated: u64,
    /// Datagrams that made the decoder panic.
    pub panics: u64,
    /// Rows appended, by table.
    pub rows: [u64; Table::ALL.len()],
    /// Rows closed, by table.
    pub closed_rows: [u64; Table::ALL.len()],
    /// Calls of `recvmmsg`, those that filled the ring, and those that failed.
    pub calls: u64,
    pub full_calls: u64,
    pub errors: u64,
    /// Datagrams that an earlier collector had received when it died, decoded again.
    pub replayed: u64,
    /// Datagrams that died with it.
    pub died: u64,
}

impl Shard {
    /// `ring` lies in the memory of the journal, where there is one.
    pub fn new(ring: Ring, parts: ShardParts) -> Shard {
        let counts = ShardCounts { received: vec![(0, 0); parts.sockets.len()], ..ShardCounts::default() };
        let feed = ExporterFeed::new(Arc::clone(parts.stats.exporters()));
        // sockets may be older than this process: a predecessor has told its part
        let drops = kernel_drops(&parts.sockets);
        let told = parts.journal.as_ref().map_or(drops, |kept| kept.journal.told_drops());
        let told = Told { kernel_drops: if told > drops { 0 } else { told }, ..Told::default() };
        Shard { ring, ready: Vec::new(), work: Work { parts, counts, feed, told } }
    }

    /// Decodes what a collector that died has left in the journal, then receives until told to stop, drains the sockets
    /// and closes all batches. Returns the journal, to be begun anew when the log has everything.
    pub fn run(mut self) -> Option<Journal> {
        self.work.take_left_over(&mut self.ring);
        self.work.replay(&mut self.ring);
        self.work.publish();
        let mut next_tick = Instant::now() + TICK;
        let mut stopping: Option<Instant> = None;
        let pause = pause(self.work.parts.sockets.iter().map(|socket| socket.buffer_granted()));
        let mut received_at: Option<Instant> = None;
        loop {
            let stop_us = self.work.parts.stop.stopped_us();
            if stop_us.is_some() && stopping.is_none() {
                stopping = Some(Instant::now() + DRAIN_LIMIT);
            }
            let before = self.work.received();
            let drained = if self.work.can_wait(stopping.is_some()) {
                std::thread::sleep(SHORTEST_PAUSE);
                false
            } else {
                self.receive_ready(self.wait_time(next_tick, stop_us), stop_us)
            };
            let now = Instant::now();
            let received = self.work.received() - before;
            if received > 0 {
                let since = received_at.replace(now).map(|before| now - before);
                if let (Some(pause), Some(since)) = (pause, since)
                    && since < 2 * pause
                    && drained
                    && stopping.is_none()
                {
                    std::thread::sleep(pause);
                }
            }
            if now >= next_tick {
                self.work.tick();
                next_tick = now + TICK;
            }
            self.work.close(|batcher, ratios, emit| batcher.close_due(now, ratios, emit));
            if stopping.is_some_and(|limit| drained || now >= limit) {
                break;
            }
            self.work.publish();
        }
        self.work.tick();
        self.work.close(|batcher, _, emit| batcher.close_all(emit));
        self.work.publish();
        self.work.parts.journal.map(|kept| kept.journal)
    }

    fn wait_time(&self, next_tick: Instant, stop_us: Option<i64>) -> Duration {
        if stop_us.is_some() {
            return Duration::ZERO;
        }
        let due = self.work.parts.batcher.next_due().map_or(next_tick, |due| due.min(next_tick));
        due.saturating_duration_since(Instant::now()).min(LONGEST_WAIT)
    }

    /// One round over the sockets that have something. True where none had anything more from before `stop_us`.
    fn receive_ready(&mut self, wait: Duration, stop_us: Option<i64>) -> bool {
        if let Err(error) = socket::wait(&self.work.parts.sockets, wait, &mut self.ready) {
            self.work.failed("wait for datagrams", &error);
            return false;
        }
        let mut drained = true;
        for index in 0..self.work.parts.sockets.len() {
            if !self.ready.get(index).copied().unwrap_or(false) {
                continue;
            }
            for round in 0..ROUNDS {
                let (count, newest_us) = self.receive(index);
                if count < RING_SLOTS || stop_us.is_some_and(|stop| newest_us > stop) {
                    break;
                }
                drained &= round + 1 < ROUNDS;
            }
        }
        drained
    }

    /// One system call on one socket, and the datagrams it gave. Returns how many, and when the last one arrived.
    fn receive(&mut self, index: usize) -> (usize, i64) {
        let Shard { ring, work, .. } = self;
        let socket = &work.parts.sockets[index];
        let local_port = socket.local_addr().port();
        if let Some(kept) = &work.parts.journal {
            ring.begin_batch(kept.journal.next() + 1, local_port);
        }
        let count = match ring.receive(socket) {
            Ok(count) => count,
            Err(error) => {
                work.failed("receive datagrams", &error);
                return (0, 0);
            }
        };
        work.counts.calls += 1;
        work.counts.full_calls += u64::from(count == RING_SLOTS);
        let mut newest_us = 0;
        let mut bytes = 0;
        // Kept before the first of them is decoded.
        work.keep(ring.datagrams(), local_port);
        ring.end_batch();
        for datagram in ring.datagrams() {
            newest_us = datagram.received_us.unwrap_or_else(now_us);
            bytes += datagram.bytes.len() as u64;
            work.decode(&datagram, local_port, newest_us);
        }
        work.mark_decoded();
        let received = &mut work.counts.received[index];
        received.0 += count as u64;
        received.1 += bytes;
        (count, newest_us)
    }
}

/// How long a shard whose sockets have buffers of these sizes may leave them alone while datagrams come in a stream, which
/// is to say that the last ones came less than two pauses ago.
fn pause(buffers: impl Iterator<Item = usize>) -> Option<Duration> {
    let room = Duration::from_millis((buffers.min()? / ROOM_FOR_A_MS) as u64);
    let pause = room.min(LONGEST_PAUSE);
    (pause >= SHORTEST_PAUSE).then_some(pause)
}

impl Work {
    /// Datagrams so far, of all sockets.
    fn received(&self) -> u64 {
        self.counts.received.iter().map(|(datagrams, _)| *datagrams).sum()
    }

    fn decode(&mut self, datagram: &Datagram<'_>, local_port: u16, received_us: i64) {
        if datagram.truncated {
            self.counts.truncated += 1;
            return;
        }
        let meta = DatagramMeta {
            sender: datagram.sender,
            sender_port: datagram.sender_port,
            local_port,
            received_us,
        };
        let ShardParts { decoder, batcher, .. } = &mut self.parts;
        // What a panic leaves behind is safe to go on with: half a row is rolled back below, the decoder's own state
        // is counters and caches that are valid in any state.
        let decode = AssertUnwindSafe(|| decoder.decode_on(datagram.bytes, &meta, batcher.batches()));
        match catch_unwind(decode) {
            Ok(outcome) => {
                for (total, rows) in self.counts.rows.iter_mut().zip(outcome.rows) {
                    *total += u64::from(rows);
                }
                if outcome.rejected == Some(RejectReason::DecoderPanic) {
                    self.report_panic(datagram.bytes, &meta);
                }
            }
            Err(_) => {
                self.recount();
                self.report_panic(datagram.bytes, &meta);
            }
        }
    }

    /// Writes what the decoder let wait: before anybody looks at the batches.
    fn settle(&mut self) {
        let ShardParts { decoder, batcher, .. } = &mut self.parts;
        if catch_unwind(AssertUnwindSafe(|| decoder.settle(batcher.batches()))).is_err() {
            tracing::error!("the decoder panicked when it wrote rows of several datagrams: they are lost");
            self.recount();
        }
    }

    fn recount(&mut self) {
        self.counts.panics += 1;
        // Rows that were complete before the panic stay, and are counted here: the decoder could not.
        let totals = self.counts.rows.iter_mut().zip(self.counts.closed_rows);
        for (builder, (total, closed)) in self.parts.batcher.batches().all_mut().into_iter().zip(totals) {
            builder.rollback();
            *total = closed + builder.rows() as u64;
        }
    }

    /// Keeps the datagram for whoever mends the decoder.
    fn report_panic(&mut self, datagram: &[u8], meta: &DatagramMeta) {
        match self.parts.quarantine.keep(datagram, meta) {
            Ok(true) => tracing::error!(
                exporter = %meta.sender,
                bytes = datagram.len(),
                directory = %self.parts.quarantine.directory().display(),
                "the decoder panicked on a datagram: please report it with the file"
            ),
            // enough are kept, and a sender may cause any number of them: the metric counts on
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot keep a datagram that made the decoder panic"),
        }
    }

    /// Whether the writer is behind, and all sockets can hold what comes meanwhile. What waits in a socket at the stop is
    /// the next collector's, where somebody holds the socket for it.
    fn can_wait(&self, stopping: bool) -> bool {
        let ShardParts { queue, sockets, journal, .. } = &self.parts;
        let is_half_empty = |socket: &Arc<Socket>| {
            socket.mem_info().is_ok_and(|memory| memory.queued_bytes < memory.limit_bytes / 2)
        };
        !queue.has_room() && (!stopping || journal.is_some()) && sockets.iter().all(is_half_empty)
    }

    /// Tells the decoder what was lost since it was told last.
    fn tell_losses(&mut self) {
        let Work { parts, counts, told, .. } = self;
        let drops = kernel_drops(&parts.sockets).max(told.kernel_drops);
        let kernel_drops = (drops - told.kernel_drops) as f64;
        told.kernel_drops = drops;
        let writer = parts.queue.counters();
        let (closed, own) = (writer.closed_rows, counts.closed_rows.iter().sum());
        let mut rows_dropped = 0.0;
        if closed > told.closed_rows {
            let dropped = writer.dropped_rows.iter().sum();
            let part = (own - told.own_rows) as f64 / (closed - told.closed_rows) as f64;
            rows_dropped = (dropped - told.dropped_rows) as f64 * part;
            (told.dropped_rows, told.closed_rows, told.own_rows) = (dropped, closed, own);
        }
        parts.decoder.note_losses(Losses { kernel_drops, rows_dropped });
    }

    fn tick(&mut self) {
        self.tell_losses();
        let ShardParts { decoder, batcher, .. } = &mut self.parts;
        let rows = |batcher: &mut Batcher| batcher.batches().all_mut().map(|builder| builder.rows() as u64);
        let before = rows(batcher);
        let now_us = now_us();
        let ticked = catch_unwind(AssertUnwindSafe(|| {
            decoder.mind_clock(Instant::now(), now_us);
            decoder.tick(now_us, batcher.batches());
        }));
        if ticked.is_err() {
            tracing::error!("the decoder panicked in its own upkeep");
            batcher.batches().all_mut().into_iter().for_each(crate::columns::Builder::rollback);
        }
        for (total, (after, before)) in self.counts.rows.iter_mut().zip(rows(batcher).iter().zip(before)) {
            *total += after - before;
        }
        self.feed.update(decoder.exporters());
        let has_told = decoder.losses().kernel_drops == 0.0;
        if let Some(kept) = self.parts.journal.as_mut().filter(|_| has_told) {
            kept.journal.set_told_drops(self.told.kernel_drops);
        }
        // Where nothing is open and the log has all that was closed, it has everything.
        if let (Some(kept), Some(low)) = (&mut self.parts.journal, self.parts.batcher.idle_low())
            && kept.low.load(Ordering::Acquire) == low
        {
            kept.journal.set_low(kept.journal.next());
        }
    }

    fn close(&mut self, close: impl FnOnce(&mut Batcher, &SizeRatios, &mut dyn FnMut(Closed))) {
        let ShardParts { batcher, ratios, queue, .. } = &mut self.parts;
        let closed_rows = &mut self.counts.closed_rows;
        close(batcher, ratios, &mut |closed| {
            closed_rows[closed.table as usize] += closed.rows();
            queue.push(closed);
        });
    }

    fn publish(&mut self) {
        if let Some(kept) = &mut self.parts.journal {
            kept.journal.set_low(kept.low.load(Ordering::Acquire));
        }
        self.parts.stats.publish(&self.counts, self.parts.decoder.counters());
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        if self.counts.errors.is_power_of_two() || self.counts.errors == 0 {
            tracing::error!(shard = self.parts.index, %error, errors = self.counts.errors + 1, "cannot {what}");
        }
        self.counts.errors += 1;
        // A socket that keeps failing must not take the whole core.
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests;
