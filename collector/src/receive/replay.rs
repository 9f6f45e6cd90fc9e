//! After a crash: what the journal holds and the log does not is decoded again.
//!
//! All that is still in the journal is decoded, because templates, sampling rates and sequence numbers of before the
//! crash are learned from it; but of the rows only those are kept that the log does not have, table by table. The order
//! of the rows is the order of the datagrams, so "so many rows from this datagram on" names the same rows as before.
//!
//! Data that waits for its template is the exception: when it is decoded depends on what other shards learn. What waited
//! when the log's position was passed is given up and counted, rather than stored twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weir_schemas::Table;

use super::journal::{Entry, Journal, Position};
use super::socket::{Datagram, RING_SLOTS, Ring};
use super::{KeptJournal, ROUNDS, Work, now_us};
use crate::decode::RejectReason;

/// The tables whose rows come from datagrams alone; the others tell what the collector itself has seen.
const FROM_DATAGRAMS: [bool; Table::ALL.len()] = {
    let mut from = [true; Table::ALL.len()];
    from[Table::ExporterStats as usize] = false;
    from[Table::ExporterEvents as usize] = false;
    from
};
/// Open rows at which the batches of what is only learned from are emptied.
const MOST_ROWS: u64 = 65_536;
/// Datagrams that are decoded again before the kernel is asked for new ones.
const TAKE_EVERY: u64 = 256;
/// Datagrams between two looks at whether batches are full: what one call gives.
const CLOSE_EVERY: u64 = RING_SLOTS as u64;
/// A writer that gets nothing done for so long is waited for no more: new datagrams must not wait with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes datagrams into a journal.
fn keep<'a>(journal: &mut Journal, datagrams: impl Iterator<Item = Datagram<'a>>, local_port: u16) {
    for datagram in datagrams.filter(|datagram| !datagram.truncated) {
        journal.append(&datagram, local_port, datagram.received_us.unwrap_or_else(now_us));
    }
}

/// How far decoding again has come.
#[derive(Debug)]
struct Course {
    in_log: [Position; Table::ALL.len()],
    /// The first datagram that the dead collector did not leave behind: those that came since.
    first_since: u64,
    /// Of each table: rows from its position on that the log has, and that were not met yet.
    skip: [u64; Table::ALL.len()],
    /// Of each table: rows at the beginning of the open batch that the log has.
    discard: [u64; Table::ALL.len()],
    /// Whether all that the log has is behind.
    is_past_log: bool,
    /// Where the next datagram lies.
    position: u64,
    /// Where the first one lies whose rows may not be in the log, or the next one.
    kept_from: u64,
    /// Decoded so far.
    datagrams: u64,
}

impl Course {
    fn new(kept: &KeptJournal) -> Course {
        let in_log = kept.in_log.0;
        let skip = std::array::from_fn(|table| if FROM_DATAGRAMS[table] { in_log[table].rows } else { 0 });
        let first = kept.journal.first();
        Course {
            in_log,
            first_since: kept.journal.next(),
            skip,
            discard: [0; Table::ALL.len()],
            is_past_log: false,
            position: first,
            kept_from: first,
            datagrams: 0,
        }
    }

    /// Where the log is, by tables.
    fn positions(&self) -> impl Iterator<Item = Position> {
        self.in_log.iter().zip(FROM_DATAGRAMS).filter(|(_, from)| *from).map(|(position, _)| *position)
    }

    /// These rows were decoded from a datagram: returns how many of them the log does not have.
    fn count(&mut self, number: u64, rows: [u32; Table::ALL.len()]) -> [u64; Table::ALL.len()] {
        let mut new = [0; Table::ALL.len()];
        for (table, rows) in rows.into_iter().map(u64::from).enumerate() {
            let is_in_log = FROM_DATAGRAMS[table] && number < self.in_log[table].datagram;
            let left_out = if is_in_log { rows } else { rows.min(self.skip[table]) };
            self.skip[table] -= if is_in_log { 0 } else { left_out };
            self.discard[table] += left_out;
            new[table] = rows - left_out;
        }
        new
    }
}

impl Work {
    /// Writes datagrams into the journal.
    pub(super) fn keep<'a>(&mut self, datagrams: impl Iterator<Item = Datagram<'a>>, local_port: u16) {
        let Some(KeptJournal { journal, .. }) = &mut self.parts.journal else { return };
        keep(journal, datagrams, local_port);
    }

    /// What the collector that died had taken from the kernel, and not written into the journal yet.
    pub(super) fn take_left_over(&mut self, ring: &mut Ring) {
        if let Some(kept) = &mut self.parts.journal
            && let Some((number, local_port, _)) = ring.left_over()
        {
            // The first of them was to have the number before; some may be there.
            let written = (kept.journal.next() + 1).saturating_sub(number);
            let left = ring.datagrams().filter(|datagram| !datagram.truncated);
            for datagram in left.skip(usize::try_from(written).unwrap_or(usize::MAX)) {
                let received_us = datagram.received_us.unwrap_or_else(now_us);
                kept.journal.append(&datagram, local_port, received_us);
            }
        }
        ring.end_batch();
    }

    /// All that is in the journal is decoded.
    pub(super) fn mark_decoded(&mut self) {
        self.settle();
        if let Some(KeptJournal { journal, .. }) = &self.parts.journal {
            self.parts.batcher.set_next_datagram(journal.next());
        }
    }

    /// Decodes what a collector that died has left, and what comes meanwhile.
    pub(super) fn replay(&mut self, ring: &mut Ring) {
        let Some(mut kept) = self.parts.journal.take() else { return };
        let journal = &mut kept.journal;
        let low = journal.low();
        let oldest = journal.entries().next().map_or(journal.next(), |entry| entry.number);
        self.counts.died += oldest.saturating_sub(low);
        let deadly = journal.begin_replay();
        kept.in_log.0.iter_mut().for_each(|position| {
            *position = (*position).max(Position { datagram: low, rows: 0 });
        });
        self.parts.batcher.keep_journal(journal.id(), kept.in_log, oldest);
        self.decode_again(&mut kept, ring, deadly);
        kept.journal.end_replay();
        if self.counts.replayed > 0 || self.counts.died > 0 {
            tracing::info!(
                shard = self.parts.index,
                datagrams = self.counts.replayed,
                rows = self.counts.rows.iter().sum::<u64>(),
                lost_datagrams = self.counts.died,
                "took up what the last collector had in hand when it died"
            );
        }
        self.parts.journal = Some(kept);
    }

    fn decode_again(&mut self, kept: &mut KeptJournal, ring: &mut Ring, deadly: Option<u64>) {
        let mut course = Course::new(kept);
        let first_new = course.positions().map(|position| position.datagram).min().unwrap_or(0);
        let last_known = course.positions().map(|position| position.datagram).max().unwrap_or(0);
        let mut relearning = true;
        while let Some(number) = kept.journal.entry(course.position).map(|(entry, _)| entry.number) {
            // Whoever finds this number there knows what the process died of.
            kept.journal.replaying(number);
            let Some((entry, after)) = kept.journal.entry(course.position) else { break };
            course.position = after;
            course.datagrams += 1;
            if deadly == Some(number) {
                self.leave_out(&entry);
                continue;
            }
            if relearning && number >= first_new {
                relearning = false;
                self.end_relearning();
            }
            if course.positions().any(|position| position.datagram == number) {
                self.parts.decoder.give_up_pending();
            }
            let outcome = self.parts.decoder.decode(entry.bytes, &entry.meta, self.parts.batcher.batches());
            self.parts.batcher.set_next_datagram(number + 1);
            if relearning {
                if self.parts.batcher.open_rows() >= MOST_ROWS {
                    self.clear();
                }
            } else {
                self.count_again(&entry, number < course.first_since);
                if outcome.rejected == Some(RejectReason::DecoderPanic) {
                    self.report_panic(entry.bytes, &entry.meta);
                }
                for (total, new) in self.counts.rows.iter_mut().zip(course.count(number, outcome.rows)) {
                    *total += new;
                }
                if number >= last_known {
                    self.close_again(&mut course);
                }
            }
            if course.datagrams.is_multiple_of(TAKE_EVERY) {
                self.take_meanwhile(kept, ring, &mut course);
            }
            if course.datagrams.is_multiple_of(CLOSE_EVERY) {
                self.wait_for_writer(kept, ring, &mut course);
            }
        }
        if relearning {
            self.end_relearning();
        }
        self.parts.batcher.set_next_datagram(kept.journal.next());
        if !course.is_past_log {
            self.close(|batcher, _, emit| batcher.close_replayed(&mut course.discard, emit));
        }
    }

    fn count_again(&mut self, entry: &Entry<'_>, was_left: bool) {
        self.counts.replayed += u64::from(was_left);
        let port = entry.meta.local_port;
        let of_port = self.parts.sockets.iter().position(|socket| socket.local_addr().port() == port);
        if let Some(received) = self.counts.received.get_mut(of_port.unwrap_or(0)) {
            received.0 += 1;
            received.1 += entry.bytes.len() as u64;
        }
    }

    /// Closes what is full, when all that the log has is behind: nothing may go there that would say less than what is
    /// there, for whoever reads back stops at it; nor anything while rows are still skipped, for then the other tables
    /// would say that the log has all of their datagrams.
    fn close_again(&mut self, course: &mut Course) {
        if course.is_past_log {
            if course.datagrams.is_multiple_of(CLOSE_EVERY) {
                self.close(|batcher, ratios, emit| batcher.close_full(ratios, emit));
            }
            return;
        }
        // What is not met among so many rows will not be: it had waited for its template, and was given up.
        let is_late = self.parts.batcher.open_rows() >= 4 * MOST_ROWS;
        if is_late || course.skip.iter().all(|rows| *rows == 0) {
            course.is_past_log = true;
            course.skip = [0; Table::ALL.len()];
            self.close(|batcher, _, emit| batcher.close_replayed(&mut course.discard, emit));
        }
    }

    /// Takes what the kernel has into the journal, behind what is being decoded again: its turn comes, and the socket's
    /// buffer does not fill meanwhile. Nothing is overwritten for it that is not decoded, or not known to be in the log.
    fn take_meanwhile(&mut self, kept: &mut KeptJournal, ring: &mut Ring, course: &mut Course) {
        let KeptJournal { journal, low, .. } = kept;
        journal.set_low(low.load(Ordering::Acquire));
        while course.kept_from < course.position
            && let Some((_, after)) =
                journal.entry(course.kept_from).filter(|(entry, _)| entry.number < journal.low())
        {
            course.kept_from = after;
        }
        for index in 0..self.parts.sockets.len() {
            let socket = Arc::clone(&self.parts.sockets[index]);
            let local_port = socket.local_addr().port();
            for _ in 0..ROUNDS {
                if !journal.has_room_behind(course.kept_from, Journal::CALL_BYTES) {
                    break;
                }
                ring.begin_batch(journal.next() + 1, local_port);
                let count = match ring.receive(&socket) {
                    Ok(count) => count,
                    Err(error) => return self.failed("receive datagrams", &error),
                };
                self.counts.calls += 1;
                self.counts.full_calls += u64::from(count == RING_SLOTS);
                keep(journal, ring.datagrams(), local_port);
                ring.end_batch();
                for cut in ring.datagrams().filter(|datagram| datagram.truncated) {
                    self.counts.truncated += 1;
                    self.counts.received[index].0 += 1;
                    self.counts.received[index].1 += cut.bytes.len() as u64;
                }
                if count < RING_SLOTS {
                    break;
                }
            }
        }
        self.parts.stats.publish(&self.counts, self.parts.decoder.counters());
    }

    /// Waits while the writer has its hands full. Unlike datagrams that are received, what is decoded again can wait: it
    /// is safe where it is, while batches that the queue has no room for are dropped.
    fn wait_for_writer(&mut self, kept: &mut KeptJournal, ring: &mut Ring, course: &mut Course) {
        if self.parts.queue.has_room() {
            return;
        }
        let progress = |work: &Work| {
            let counters = work.parts.queue.counters();
            (counters.queued_batches, counters.backlog_messages)
        };
        let (mut last, mut since) = (progress(self), Instant::now());
        while !self.parts.queue.has_room() && since.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
            self.take_meanwhile(kept, ring, course);
            let now = progress(self);
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    }

    fn leave_out(&mut self, entry: &Entry<'_>) {
        self.counts.died += 1;
        let kept = self.parts.quarantine.keep(entry.bytes, &entry.meta);
        tracing::error!(
            exporter = %entry.meta.sender,
            kept = matches!(kept, Ok(true)),
            directory = %self.parts.quarantine.directory().display(),
            "several collectors have died of a datagram: it is left out. Please report it with the file"
        );
    }

    fn end_relearning(&mut self) {
        self.clear();
        self.parts.decoder.give_up_pending();
        self.parts.decoder.forget_counts();
    }

    /// Forgets the open batches.
    fn clear(&mut self) {
        for builder in self.parts.batcher.batches().all_mut() {
            builder.finish();
        }
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
