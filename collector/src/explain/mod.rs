//! Datagrams explained field by field: where each octet is, what it means, which column it goes to and which rule was
//! applied.
//!
//! [`Explainer::explain`] runs the real decoder over the datagram, and lists it with the decoder's own parsers, plans and
//! tables: what the lines say is what the rows beside them come from. The lines that are fields or problems cover the
//! datagram without a gap, whatever it holds. No I/O: `weir decode --explain` prints what comes out.

mod data;
mod destination;
mod fixed;
mod frame;
mod listing;
mod lists;
mod memory;
mod message;
mod sflow;
mod templates;
mod values;

use std::sync::Arc;

use arrow::array::RecordBatch;
use weir_schemas::Table;
use weir_schemas::elements::Dictionary;

use self::listing::Listing;
pub use self::listing::{ElementId, Kind, Line};
use self::memory::Memory;
use crate::cells::Rows;
use crate::decode::wire::u16_at;
use crate::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, Outcome, RejectReason, SharedState};

/// A datagram explained.
#[derive(Debug)]
pub struct Explained {
    /// Which datagram it is, from 1.
    pub number: u64,
    /// The protocol as its version says it.
    pub protocol: &'static str,
    pub lines: Vec<Line>,
    pub outcome: Outcome,
    /// The rows that the decoder made, in the order of [`Table::ALL`].
    pub rows: [Option<RecordBatch>; Table::ALL.len()],
}

/// Explains datagrams one after the other: templates are kept as a decoder keeps them.
#[derive(Debug)]
pub struct Explainer {
    config: Arc<DecodeConfig>,
    dictionary: Arc<Dictionary>,
    decoder: Decoder,
    batches: Batches,
    memory: Memory,
    number: u64,
    next_tick_us: i64,
}

const SECOND_US: i64 = 1_000_000;

impl Explainer {
    pub fn new(config: DecodeConfig) -> Explainer {
        // files of elements that cannot be read: whoever made the configuration has been told
        let shared = Arc::new(SharedState::of(&config).unwrap_or_default());
        let dictionary = shared.dictionary().unwrap_or_else(|| Arc::new(Dictionary::builtin().clone()));
        let config = Arc::new(config);
        Explainer {
            dictionary,
            decoder: Decoder::new(Arc::clone(&config), shared),
            config,
            batches: Batches::new(),
            memory: Memory::default(),
            number: 0,
            next_tick_us: i64::MIN,
        }
    }

    /// The decoder that the explanations come from.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Decodes a datagram and lists it.
    pub fn explain(&mut self, datagram: &[u8], meta: &DatagramMeta) -> Explained {
        self.number += 1;
        self.tick(meta.received_us);
        // from now on it keeps what it replays
        self.decoder.trace();
        let before = *self.decoder.counters();
        let outcome = self.decoder.decode(datagram, meta, &mut self.batches);
        let rows = Rows::take(&mut self.batches, self.decoder.trace());
        let dictionary = Arc::clone(&self.dictionary);
        let mut listing = Listing::new(datagram, &dictionary);
        let version = u16_at(datagram, 0);
        let protocol = self.list(&mut listing, version, meta, &rows, outcome);
        listing.rest(usize::MAX, "octets after the message", "not looked at: its length ends before");
        self.conclude(&mut listing, outcome, &before.sets_rejected);
        Explained { number: self.number, protocol, lines: listing.lines, outcome, rows: rows.into_batches() }
    }

    /// What expires has the clock of the capture.
    fn tick(&mut self, now_us: i64) {
        if now_us >= self.next_tick_us {
            self.next_tick_us = now_us.saturating_add(SECOND_US);
            self.decoder.tick(now_us, &mut self.batches);
            // rows of the tick belong to no datagram
            for builder in self.batches.all_mut() {
                builder.finish();
            }
        }
    }

    fn list(
        &mut self,
        listing: &mut Listing<'_>,
        version: u16,
        meta: &DatagramMeta,
        rows: &Rows,
        outcome: Outcome,
    ) -> &'static str {
        let datagram = listing.data();
        if datagram.len() < 2 {
            listing.broken(usize::MAX, "datagram", "too_short: a version has 2 octets");
            return "unknown";
        }
        match version {
            1 | 5 | 7 => {
                fixed::list(listing, version, meta, rows);
                match version {
                    1 => "NetFlow v1",
                    5 => "NetFlow v5",
                    _ => "NetFlow v7",
                }
            }
            8 => {
                listing.number(2, "version");
                listing.broken(usize::MAX, "datagram", "netflow8: router-based aggregation is not decoded");
                "NetFlow v8"
            }
            9 | 10 => {
                self.message(listing, version == 10, meta, rows);
                if version == 10 { "IPFIX" } else { "NetFlow v9" }
            }
            0 => {
                sflow::list(listing, outcome);
                "sFlow"
            }
            _ => {
                listing.number(2, "version");
                listing.broken(usize::MAX, "datagram", "unknown_version: none that weir knows");
                "unknown"
            }
        }
    }

    fn message(&mut self, listing: &mut Listing<'_>, ipfix: bool, meta: &DatagramMeta, rows: &Rows) {
        use crate::decode::message::{ipfix as parse_ipfix, v9 as parse_v9};
        let datagram = listing.data();
        if !message::header(listing, ipfix) {
            return;
        }
        let parsed = if ipfix { parse_ipfix(datagram) } else { parse_v9(datagram) };
        let message = match parsed {
            Ok(message) => message,
            Err(reason) => {
                let why = format!(
                    "{}: the header says {} octets, the datagram has {}",
                    reason.as_str(),
                    u16_at(datagram, 2),
                    datagram.len()
                );
                listing.broken(usize::MAX, "message", why);
                return;
            }
        };
        let explanation = message::Explanation {
            message,
            meta,
            trace: self.decoder.trace(),
            rows,
            max_fields: self.config.max_fields,
            pending_seconds: self.config.pending_seconds,
            number: self.number,
            memory: &mut self.memory,
        };
        explanation.list(listing);
    }

    /// What became of the datagram.
    fn conclude(&self, listing: &mut Listing<'_>, outcome: Outcome, before: &[u64; RejectReason::ALL.len()]) {
        if let Some(reason) = outcome.rejected {
            listing.note("rejected").value(reason.as_str()).rule("the whole datagram");
        }
        let now = &self.decoder.counters().sets_rejected;
        for (reason, (before, now)) in RejectReason::ALL.iter().zip(before.iter().zip(now)) {
            if now > before {
                let count = now - before;
                listing.note("rejected").value(format!("{count} × {}", reason.as_str()));
            }
        }
        if outcome.sets_pending > 0 {
            listing.note("held").value(format!("{} sets wait for their template", outcome.sets_pending));
        }
    }
}

#[cfg(test)]
mod tests;
