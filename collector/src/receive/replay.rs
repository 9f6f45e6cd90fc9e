//! After a crash: what the journal holds and the log does not is decoded again.
//!
//! All that is still in the journal is decoded, because templates, sampling rates and sequence numbers of before the
//! crash are learned from it; but of the rows only those are kept that the log does not have, table by table. The order
//! of the rows is the order of the datagrams, so "so many rows from this datagram on" names the same rows as before.
//!
//! Data that waits for its template is the exception: when it is decoded depends on what other shards learn. What waited
//! when the log's position was passed is given up and counted, rather than stored twice.

use weir_schemas::Table;

use super::journal::{Entry, Journal, Position};
use super::socket::{Datagram, Ring};
use super::{KeptJournal, Work, now_us};

/// The tables whose rows come from datagrams alone; the others tell what the collector itself has seen.
const FROM_DATAGRAMS: [bool; Table::ALL.len()] = {
    let mut from = [true; Table::ALL.len()];
    from[Table::ExporterStats as usize] = false;
    from[Table::ExporterEvents as usize] = false;
    from
};
/// Open rows at which the batches of a replay are closed.
const CLOSE_ROWS: u64 = 65_536;

impl Work {
    /// Writes datagrams into the journal.
    pub(super) fn keep<'a>(&mut self, datagrams: impl Iterator<Item = Datagram<'a>>, local_port: u16) {
        let Some(KeptJournal { journal, .. }) = &mut self.parts.journal else { return };
        for datagram in datagrams.filter(|datagram| !datagram.truncated) {
            journal.append(&datagram, local_port, datagram.received_us.unwrap_or_else(now_us));
        }
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
        if let Some(KeptJournal { journal, .. }) = &self.parts.journal {
            self.parts.batcher.set_next_datagram(journal.next());
        }
    }

    /// Decodes what a collector that died has left.
    pub(super) fn replay(&mut self) {
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
        self.decode_again(journal, kept.in_log.0, deadly);
        journal.end_replay();
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

    fn decode_again(
        &mut self,
        journal: &mut Journal,
        in_log: [Position; Table::ALL.len()],
        deadly: Option<u64>,
    ) {
        let positions =
            || in_log.iter().zip(FROM_DATAGRAMS).filter(|(_, from)| *from).map(|(place, _)| *place);
        let first_new = positions().map(|position| position.datagram).min().unwrap_or(0);
        let last_known = positions().map(|position| position.datagram).max().unwrap_or(0);
        let mut skip: [u64; Table::ALL.len()] =
            std::array::from_fn(|table| if FROM_DATAGRAMS[table] { in_log[table].rows } else { 0 });
        let mut discard = [0; Table::ALL.len()];
        let mut relearning = true;
        let mut position = journal.first();
        while let Some(number) = journal.entry(position).map(|(entry, _)| entry.number) {
            // Whoever finds this number there knows what the process died of.
            journal.replaying(number);
            let Some((entry, after)) = journal.entry(position) else { break };
            position = after;
            if deadly == Some(number) {
                self.leave_out(&entry);
                continue;
            }
            if relearning && entry.number >= first_new {
                relearning = false;
                self.end_relearning();
            }
            if positions().any(|position| position.datagram == entry.number) {
                self.parts.decoder.give_up_pending();
            }
            let outcome = self.parts.decoder.decode(entry.bytes, &entry.meta, self.parts.batcher.batches());
            self.parts.batcher.set_next_datagram(entry.number + 1);
            let is_large = self.parts.batcher.open_rows() >= CLOSE_ROWS;
            if relearning {
                if is_large {
                    self.clear();
                }
                continue;
            }
            self.counts.replayed += 1;
            let port = entry.meta.local_port;
            let of_port = self.parts.sockets.iter().position(|socket| socket.local_addr().port() == port);
            let received = &mut self.counts.received[of_port.unwrap_or(0)];
            received.0 += 1;
            received.1 += entry.bytes.len() as u64;
            for (table, rows) in outcome.rows.into_iter().map(u64::from).enumerate() {
                let is_in_log = FROM_DATAGRAMS[table] && entry.number < in_log[table].datagram;
                let left_out = if is_in_log { rows } else { rows.min(skip[table]) };
                skip[table] -= if is_in_log { 0 } else { left_out };
                discard[table] += left_out;
                self.counts.rows[table] += rows - left_out;
            }
            // Nothing goes to the log that would say less than what is there: whoever reads back stops at it.
            if is_large && number >= last_known {
                self.close(|batcher, _, emit| batcher.close_replayed(&mut discard, emit));
            }
        }
        if relearning {
            self.end_relearning();
        }
        self.parts.batcher.set_next_datagram(journal.next());
        self.close(|batcher, _, emit| batcher.close_replayed(&mut discard, emit));
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
