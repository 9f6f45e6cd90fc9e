//! From a datagram to columns. No I/O and no clock: the datagram brings its receive time, `now` is an argument.
//!
//! A [`Decoder`] belongs to one shard. It looks at the version, and hands the datagram to the decoder of its protocol,
//! which writes straight into the open [`Batches`].

mod clock;
pub(crate) mod compile;
mod config;
mod exporters;
pub(crate) mod fixed;
pub(crate) mod format;
pub(crate) mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod mapping;
pub(crate) mod message;
pub(crate) mod netflow;
mod options;
mod pending;
pub(crate) mod records;
mod reject;
pub(crate) mod run;
mod sampling;
mod sequence;
pub(crate) mod sflow;
mod shared;
mod stats;
pub(crate) mod template;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;
mod totals;
pub(crate) mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use weir_schemas::{Address, Table};

pub use config::{DecodeConfig, ExporterConfig, IdentitySource};
pub use exporters::{Counters, ExporterKey, ExporterState, Exporters, Protocol};
pub use reject::RejectReason;
pub use shared::{RestoreError, SharedState};

use self::clock::Clock;
use self::netflow::{Environment, Netflow};
use self::sflow::plain::Waiting;
use self::stats::Events;
pub use self::stats::Losses;
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
    pub host_counters: Builder,
    pub queue_counters: Builder,
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
            host_counters: Builder::new(Table::HostCounters),
            queue_counters: Builder::new(Table::QueueCounters),
            options: Builder::new(Table::Options),
            exporter_stats: Builder::new(Table::ExporterStats),
            exporter_events: Builder::new(Table::ExporterEvents),
        }
    }

    /// All of them, in the order of [`Table::ALL`].
    pub fn all_mut(&mut self) -> [&mut Builder; Table::ALL.len()] {
        [
            &mut self.flows,
            &mut self.nat_events,
            &mut self.discards,
            &mut self.interface_counters,
            &mut self.host_counters,
            &mut self.queue_counters,
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
    netflow: Netflow,
    /// Rows of `flows` whose columns are not written yet.
    waiting: Waiting,
    events: Events,
    losses: Losses,
    clock: Clock,
    swept_us: i64,
    reported_us: i64,
}

/// Between two rows of `exporter_stats`.
const REPORT_US: i64 = 10_000_000;
/// Between two searches for what has expired.
const SWEEP_US: i64 = 60_000_000;

impl Decoder {
    pub fn new(config: Arc<DecodeConfig>, shared: Arc<SharedState>) -> Decoder {
        Decoder {
            config,
            shared,
            exporters: Exporters::new(),
            counters: DecodeCounters::default(),
            netflow: Netflow::default(),
            waiting: Waiting::default(),
            events: Events::default(),
            losses: Losses::default(),
            clock: Clock::default(),
            swept_us: i64::MIN,
            reported_us: i64::MIN,
        }
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

    /// What the NetFlow and IPFIX decoders did with the sets of the last datagram; from now on they keep what waited, too.
    pub(crate) fn trace(&mut self) -> &mut Netflow {
        self.netflow.trace = true;
        &mut self.netflow
    }

    /// In which order the rows of the last datagram went to `flows` and `nat_events`: runs of rows of one table.
    pub fn row_order(&self) -> &[(Table, u32)] {
        &self.netflow.order
    }

    /// Decodes a datagram into the open batches. Whatever it holds, what was appended are whole rows.
    pub fn decode(&mut self, datagram: &[u8], meta: &DatagramMeta, out: &mut Batches) -> Outcome {
        let outcome = self.decode_on(datagram, meta, out);
        self.settle(out);
        outcome
    }

    /// Writes what [`Decoder::decode_on`] let wait.
    #[inline]
    pub fn settle(&mut self, out: &mut Batches) {
        if !self.waiting.is_empty() {
            sflow::plain::flush(&mut self.waiting, &mut out.flows);
        }
    }

    /// [`Decoder::decode`] for one of several datagrams: what it appends are whole rows, but columns of theirs are not
    /// there before [`Decoder::settle`], which is to be called before anybody else looks at the batches. sFlow has few
    /// samples in a datagram; to write a column of many takes hardly more than to write it of one.
    pub fn decode_on(&mut self, datagram: &[u8], meta: &DatagramMeta, out: &mut Batches) -> Outcome {
        // of sFlow the first two bytes are zeros; the others append to the same columns
        if datagram.first_chunk() != Some(&[0, 0]) {
            self.settle(out);
        }
        let before = rows(out);
        self.counters.datagrams += 1;
        self.counters.datagram_bytes += datagram.len() as u64;
        self.netflow.begin();
        // a mistake of ours costs one datagram: what it left half done is taken back below
        let result = catch_unwind(AssertUnwindSafe(|| self.dispatch(datagram, meta, out)));
        let result = result.unwrap_or_else(|_| {
            let trace = self.netflow.trace;
            self.netflow = Netflow::default();
            self.netflow.trace = trace;
            Err(RejectReason::DecoderPanic)
        });
        // whole rows only: of what failed half-way, what was appended goes
        let failed = result.is_err();
        if failed {
            out.all_mut().into_iter().for_each(Builder::rollback);
        }
        if self.exporters.has_gone() {
            for gone in self.exporters.take_gone() {
                self.let_go(gone, meta.received_us, out);
            }
        }
        let mut outcome = Outcome { sets_pending: self.netflow.waiting, ..Outcome::default() };
        let counts = outcome.rows.iter_mut().zip(&mut self.counters.rows);
        for (builder, (before, (n, total))) in out.all_mut().into_iter().zip(before.into_iter().zip(counts)) {
            let new = builder.rows().saturating_sub(before);
            *n = u32::try_from(new).unwrap_or(u32::MAX);
            *total += new as u64;
        }
        match result {
            Ok(rejected) => {
                outcome.sets_rejected = rejected;
                self.counters.decoded += 1;
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
        let version = u16::from_be_bytes(*version);
        let Decoder { config, shared, exporters, counters, netflow, waiting, events, .. } = self;
        let mut environment = Environment { config, shared, exporters, counters, events };
        match version {
            1 | 5 | 7 => netflow.fixed(version, datagram, meta, &mut environment, out),
            8 => Err(RejectReason::NetFlow8),
            9 => netflow.sets(&message::v9(datagram)?, datagram.len(), meta, &mut environment, out),
            10 => netflow.sets(&message::ipfix(datagram)?, datagram.len(), meta, &mut environment, out),
            // sFlow's version is 32 bits wide: 0 and then 5
            0 => {
                let rejected = sflow::decode(datagram, meta, exporters, config, waiting, out)?;
                counters.sets_rejected[RejectReason::TruncatedRecord.index()] += u64::from(rejected);
                Ok(rejected)
            }
            _ => Err(RejectReason::UnknownVersion),
        }
    }

    /// Looks whether the machine's clock, which says `now_us` at this instant, was set; to be called every second or so, where datagrams
    /// are received by it.
    pub fn mind_clock(&mut self, at: Instant, now_us: i64) {
        self.shared.mind_clock(at, now_us);
        let Some(step) = self.clock.step(at, now_us) else { return };
        step.move_on(&mut self.swept_us);
        step.move_on(&mut self.reported_us);
        self.exporters.iter_mut().for_each(|state| state.move_on(step));
        self.netflow.pending.move_on(step);
    }

    /// What is due at `now_us`; to be called every second or so. Data whose template came by way of another shard is
    /// decoded, what waited too long is given up; every ten seconds come the rows of `exporter_stats` and
    /// `exporter_events`; every minute expired templates and silent exporters go.
    pub fn tick(&mut self, now_us: i64, out: &mut Batches) {
        self.settle(out);
        self.retry_pending(now_us, out);
        if now_us.saturating_sub(self.swept_us) >= SWEEP_US {
            self.swept_us = now_us;
            self.exporters.retire(now_us, &self.config);
            self.shared.sweep(now_us, &self.config);
            for gone in self.exporters.take_gone() {
                self.let_go(gone, now_us, out);
            }
        }
        if now_us.saturating_sub(self.reported_us) >= REPORT_US {
            self.reported_us = now_us;
            self.report(now_us, out);
        }
    }

    /// What no row of `exporter_stats` has told yet.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// The collector has lost so much more: the next rows of `exporter_stats` tell it.
    pub fn note_losses(&mut self, more: Losses) {
        self.losses.kernel_drops += more.kernel_drops;
        self.losses.rows_dropped += more.rows_dropped;
    }

    /// Writes the rows of `exporter_stats` and `exporter_events` that are not yet written: before the end, too.
    pub fn report(&mut self, now_us: i64, out: &mut Batches) {
        let lost = self.losses.share_out(self.exporters.iter());
        for state in self.exporters.iter_mut() {
            stats::write(state, now_us, lost, &mut out.exporter_stats);
        }
        self.events.write(&mut out.exporter_events);
    }

    /// Forgets what was counted, not what was learned: what is decoded from here on is new.
    pub(crate) fn forget_counts(&mut self) {
        self.counters = DecodeCounters::default();
        for state in self.exporters.iter_mut() {
            state.counters = Counters::default();
            state.reported = Counters::default();
        }
        self.events = Events::default();
    }

    /// Gives up the data that waits for its template.
    pub(crate) fn give_up_pending(&mut self) {
        for set in self.netflow.pending.take_all() {
            if let Some(state) = self.exporters.find_mut(set.key) {
                state.counters.sets_expired += 1;
            }
        }
    }

    fn retry_pending(&mut self, now_us: i64, out: &mut Batches) {
        if self.netflow.pending.is_empty() {
            return;
        }
        let oldest = now_us - i64::from(self.config.pending_seconds) * 1_000_000;
        let before = rows(out);
        for set in self.netflow.pending.take_all() {
            let Some(state) = self.exporters.find_mut(set.key) else { continue };
            let Some(mut netflow) = state.netflow.take() else { continue };
            let replayed = netflow.lookup.as_mut().is_some_and(|lookup| {
                self.netflow.replay(&set, state, lookup, &self.config, &self.shared, out).is_some()
            });
            state.netflow = Some(netflow);
            if replayed {
                continue;
            }
            if set.since_us < oldest {
                state.counters.sets_expired += 1;
            } else {
                self.netflow.pending.keep(set);
            }
        }
        for (total, (before, after)) in self.counters.rows.iter_mut().zip(before.into_iter().zip(rows(out))) {
            *total += after.saturating_sub(before) as u64;
        }
    }

    /// An exporter made room for another, or was silent for long.
    fn let_go(&mut self, mut state: ExporterState, now_us: i64, out: &mut Batches) {
        let key = state.key;
        let waiting = self.netflow.pending.take(key, |_| true).len();
        state.counters.sets_expired += waiting as u64;
        // of a single datagram from an invented source nobody needs a row
        if state.established || state.counters.datagrams > 1 {
            stats::write(&mut state, now_us, Losses::default(), &mut out.exporter_stats);
        }
        if let Some(lookup) = state.netflow.and_then(|netflow| netflow.lookup) {
            self.shared.release(lookup.key, lookup.domain);
        }
    }
}

fn rows(out: &mut Batches) -> [usize; Table::ALL.len()] {
    out.all_mut().map(|builder| builder.rows())
}
