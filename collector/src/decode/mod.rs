//! From a datagram to columns. No I/O and no clock: the datagram brings its receive time, `now` is an argument.
//!
//! A [`Decoder`] belongs to one shard. It looks at the version, and hands the datagram to the decoder of its protocol,
//! which writes straight into the open [`Batches`].

mod config;
mod exporters;
mod frame;
mod reject;
mod sflow;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use weir_schemas::{Address, Table};

pub use config::{DecodeConfig, ExporterConfig, IdentitySource};
pub use exporters::{Counters, ExporterKey, ExporterState, Exporters, Protocol};
pub use reject::RejectReason;

use crate::columns::Builder;

/// Where and when a datagram came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramMeta {
    /// Source address of the UDP datagram.
    pub sender: Address,
    /// Source port of the UDP datagram.
    pub sender_port: u16,
    /// The port it was sent to.
    pub local_port: u16,
    /// When the kernel received it, µs since 1970 UTC.
    pub received_us: i64,
}

/// The open batches of a shard, one a table.
#[derive(Debug)]
pub struct Batches {
    pub flows: Builder,
    pub nat_events: Builder,
    pub discards: Builder,
    pub interface_counters: Builder,
    pub options: Builder,
    pub exporter_stats: Builder,
    pub exporter_events: Builder,
}

impl Batches {
    pub fn new() -> Batches {
        Batches {
            flows: Builder::new(Table::Flows),
            nat_events: Builder::new(Table::NatEvents),
            discards: Builder::new(Table::Discards),
            interface_counters: Builder::new(Table::InterfaceCounters),
            options: Builder::new(Table::Options),
            exporter_stats: Builder::new(Table::ExporterStats),
            exporter_events: Builder::new(Table::ExporterEvents),
        }
    }

    /// All of them, in the order of [`Table::ALL`].
    pub fn all_mut(&mut self) -> [&mut Builder; 7] {
        [
            &mut self.flows,
            &mut self.nat_events,
            &mut self.discards,
            &mut self.interface_counters,
            &mut self.options,
            &mut self.exporter_stats,
            &mut self.exporter_events,
        ]
    }
}

impl Default for Batches {
    fn default() -> Self {
        Batches::new()
    }
}

/// What all shards share: templates and sampling rates. Read by every shard, written when a template changes.
#[derive(Debug, Default)]
pub struct SharedState {}

impl SharedState {
    pub fn new() -> SharedState {
        SharedState::default()
    }
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows appended, by table in the order of [`Table::ALL`].
    pub rows: [u32; Table::ALL.len()],
    /// Why the whole datagram was rejected; None where it was decoded (its bad sets are counted apart).
    pub rejected: Option<RejectReason>,
    /// Sets of it that were rejected.
    pub sets_rejected: u32,
    /// Sets of it that nobody knows a template for, kept for later.
    pub sets_pending: u32,
}

/// What a shard has decoded since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeCounters {
    pub datagrams: u64,
    pub datagram_bytes: u64,
    /// `datagrams` = `decoded` + the sum of `rejected`.
    pub decoded: u64,
    /// Datagrams rejected as a whole, by [`RejectReason::index`].
    pub rejected: [u64; RejectReason::ALL.len()],
    /// Sets rejected in datagrams that were decoded otherwise.
    pub sets_rejected: [u64; RejectReason::ALL.len()],
    /// Rows appended, by table in the order of [`Table::ALL`].
    pub rows: [u64; Table::ALL.len()],
}

/// The decoder of one shard.
#[derive(Debug)]
pub struct Decoder {
    config: Arc<DecodeConfig>,
    shared: Arc<SharedState>,
    exporters: Exporters,
    counters: DecodeCounters,
}

impl Decoder {
    pub fn new(config: Arc<DecodeConfig>, shared: Arc<SharedState>) -> Decoder {
        Decoder { config, shared, exporters: Exporters::new(), counters: DecodeCounters::default() }
    }

    /// The state that this shard shares with the others.
    pub fn shared(&self) -> &Arc<SharedState> {
        &self.shared
    }

    pub fn counters(&self) -> &DecodeCounters {
        &self.counters
    }

    pub fn exporters(&self) -> &Exporters {
        &self.exporters
    }

    /// Decodes a datagram into the open batches. Whatever it holds, what was appended are whole rows.
    pub fn decode(&mut self, datagram: &[u8], meta: &DatagramMeta, out: &mut Batches) -> Outcome {
        let before = rows(out);
        self.counters.datagrams += 1;
        self.counters.datagram_bytes += datagram.len() as u64;
        let result = self.dispatch(datagram, meta, out);
        let mut outcome = Outcome::default();
        for (builder, (n, before)) in out.all_mut().into_iter().zip(outcome.rows.iter_mut().zip(before)) {
            builder.rollback();
            *n = u32::try_from(builder.rows() - before).unwrap_or(u32::MAX);
        }
        for (total, n) in self.counters.rows.iter_mut().zip(outcome.rows) {
            *total += u64::from(n);
        }
        match result {
            Ok(rejected) => {
                outcome.sets_rejected = rejected;
                self.counters.decoded += 1;
                self.counters.sets_rejected[RejectReason::TruncatedRecord.index()] += u64::from(rejected);
            }
            Err(reason) => {
                outcome.rejected = Some(reason);
                self.counters.rejected[reason.index()] += 1;
            }
        }
        outcome
    }

    /// Answers how many sets or samples of the datagram were rejected.
    fn dispatch(
        &mut self,
        datagram: &[u8],
        meta: &DatagramMeta,
        out: &mut Batches,
    ) -> Result<u32, RejectReason> {
        let Some(version) = datagram.first_chunk::<2>() else { return Err(RejectReason::TooShort) };
        match u16::from_be_bytes(*version) {
            8 => Err(RejectReason::NetFlow8),
            // sFlow's version is 32 bits wide: 0 and then 5
            0 => sflow::decode(datagram, meta, &mut self.exporters, &self.config, out),
            _ => Err(RejectReason::UnknownVersion),
        }
    }

    /// What is due at `now_us`, at most every second or so: pending data that waited too long, idle exporters; once in
    /// ten seconds the rows of `exporter_stats` and `exporter_events`.
    pub fn tick(&mut self, _now_us: i64, _out: &mut Batches) {}
}

fn rows(out: &mut Batches) -> [usize; Table::ALL.len()] {
    out.all_mut().map(|builder| builder.rows())
}
