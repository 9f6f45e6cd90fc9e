//! sFlow version 5: samples of packets and counters of interfaces.
//!
//! Called by the [`Decoder`](super::Decoder) for datagrams whose first word is 5. Framing and records are those of
//! "sFlow Version 5" (sflow.org, July 2004) and of its extensions for tunnels, drops, NAT ports, hosts and queues; the
//! numbers are in the list of structures on sflow.org.
//!
//! * flow samples (formats 1 and 3) become rows of `flows`,
//! * counter samples (2 and 4) rows of `interface_counters`, `host_counters` and `queue_counters`,
//! * discarded packets (5) rows of `discards`.
//!
//! Whatever a datagram holds, its good samples are kept: a sample or record of unknown format is skipped by its length
//! and counted (`records_skipped`), one that ends after what contains it is rejected and counted (`rejected`). A flow
//! sample is kept without its bad records where a packet was read before them. Counts from the wire bound nothing: every
//! step consumes bytes that are there.
//!
//! sFlow has no wall clock: `start_time` and `end_time` are the receive time, and `time_source` says so. The uptime only
//! tells a restart.
//!
//! Not handled: sFlow 2 and 4 (rejected as such), samples of vendors (skipped), 802.11 records (kept as bytes in
//! `extra`).

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub(crate) mod counters;
pub(crate) mod formats;
pub(crate) mod hosts;
pub(crate) mod plain;
pub(crate) mod records;
mod sequence;
mod state;
mod xdr;

use std::iter;

use weir_schemas::{Address, FlowColumn};

pub(crate) use state::AgentState;

use self::plain::{PlainRecords, Waiting};
use self::records::{Context, Row};
use self::state::{Ratio, Series, SourceId};
use self::xdr::Xdr;
use super::config::{DecodeConfig, ExporterConfig};
use super::exporters::{ExporterKey, ExporterState, Exporters, Protocol};
use super::sampling::RateSource;
use super::{Batches, DatagramMeta, RejectReason};
use crate::columns::Builder;

/// ifIndex of the compact and of the expanded form that stands for the device itself.
const INTERNAL: u32 = 0x3fff_ffff;

/// The header of a datagram ("sample_datagram_v5").
struct Header {
    agent: Option<Address>,
    sub_agent: u32,
    sequence: u32,
    uptime_ms: u32,
    samples: u32,
}

impl Header {
    fn read(xdr: &mut Xdr<'_>) -> Result<Header, RejectReason> {
        match xdr.u32().ok_or(RejectReason::TooShort)? {
            5 => {}
            2 | 4 => return Err(RejectReason::OldSflow),
            _ => return Err(RejectReason::UnknownVersion),
        }
        let family = *xdr;
        let Some(agent) = xdr.address() else {
            // an unknown family, or too few bytes for a known one
            let known = family.clone().u32().is_none_or(|family| family <= 2);
            return Err(if known { RejectReason::TooShort } else { RejectReason::BadAgent });
        };
        let mut word = || xdr.u32().ok_or(RejectReason::TooShort);
        Ok(Header {
            agent: agent.filter(|agent| !agent.is_unspecified()),
            sub_agent: word()?,
            sequence: word()?,
            uptime_ms: word()?,
            samples: word()?,
        })
    }
}

/// What is the same for all samples of a datagram.
struct Datagram<'a> {
    header: Header,
    exporter: Address,
    meta: &'a DatagramMeta,
    policy: &'a Policy,
}

/// What the operator says about sampling rates.
struct Policy {
    fixed: Option<f64>,
    default: Option<f64>,
}

impl Policy {
    fn new(exporter: &ExporterConfig, config: &DecodeConfig) -> Policy {
        let fixed = if exporter.already_scaled { Some(1.0) } else { exporter.sampling_rate };
        Policy { fixed, default: config.default_sampling_rate }
    }

    /// The rate and where it comes from (rule 24); 0 where it is unknown.
    #[inline]
    fn rate(&self, announced: u32) -> (f64, RateSource) {
        if let Some(rate) = self.fixed {
            (rate, RateSource::Override)
        } else if announced != 0 {
            (f64::from(announced), RateSource::Record)
        } else if let Some(rate) = self.default {
            (rate, RateSource::Configured)
        } else {
            (0.0, RateSource::Unknown)
        }
    }
}

/// Rows that a datagram gave.
#[derive(Default)]
struct Rows {
    flows: usize,
    discards: usize,
    /// Counter samples.
    counters: usize,
}

/// Decodes a datagram into the open batches; rows of `waiting` are complete but for the columns in it. Answers how many
/// samples or records of it were rejected.
pub(crate) fn decode(
    datagram: &[u8],
    meta: &DatagramMeta,
    exporters: &mut Exporters,
    config: &DecodeConfig,
    waiting: &mut Waiting,
    out: &mut Batches,
) -> Result<u32, RejectReason> {
    let mut xdr = Xdr(datagram);
    let header = Header::read(&mut xdr)?;
    // sFlow v5, rule 35: an agent without an address is known by its sender
    let agent = header.agent.map(|agent| agent.0);
    let exporter = Address(config.exporter_addr(agent, None, meta.sender.0));
    let key =
        ExporterKey { exporter, sender: meta.sender, domain: header.sub_agent, protocol: Protocol::Sflow5 };
    let state = exporters.heard(key, meta.received_us, datagram.len(), config);
    let mut agent = state.sflow.take().unwrap_or_default();
    agent.datagram(header.sequence, header.uptime_ms, &mut state.counters);
    let policy = Policy::new(&state.config, config);
    let datagram = Datagram { header, exporter, meta, policy: &policy };
    let mut rows = Rows::default();
    let rejected = samples(xdr, &datagram, state, &mut agent, &mut rows, waiting, out);
    state.sflow = Some(agent);
    state.counters.flows += rows.flows as u64;
    state.counters.counter_samples += rows.counters as u64;
    state.counters.rejected += u64::from(rejected);
    datagram.close(&rows, out);
    let decoded = rows.flows + rows.discards + rows.counters;
    if rejected > 0 && decoded == 0 { Err(RejectReason::TruncatedRecord) } else { Ok(rejected) }
}

/// Walks the samples; answers how many were rejected, the missing ones at the end as one.
fn samples(
    mut xdr: Xdr<'_>,
    datagram: &Datagram<'_>,
    state: &mut ExporterState,
    agent: &mut AgentState,
    rows: &mut Rows,
    waiting: &mut Waiting,
    out: &mut Batches,
) -> u32 {
    let mut rejected = 0;
    let mut context = Context::default();
    for _ in 0..datagram.header.samples {
        let Some((format, sample)) = xdr.formatted() else {
            rejected += 1;
            break;
        };
        context.bad = 0;
        match format {
            1 | 3 => {
                let builder = &mut out.flows;
                if datagram.flow(format == 3, sample, state, agent, &mut context, waiting, builder).is_some()
                {
                    builder.advance(1);
                    rows.flows += 1;
                } else {
                    context.bad = context.bad.max(1);
                    builder.rollback();
                }
            }
            2 | 4 => {
                if datagram.counters(format == 4, sample, state, agent, &mut context, out).is_some() {
                    rows.counters += 1;
                } else {
                    context.bad = context.bad.max(1);
                }
            }
            5 => {
                let builder = &mut out.discards;
                if datagram.discard(sample, state, agent, &mut context, builder).is_some() {
                    builder.advance(1);
                    rows.discards += 1;
                } else {
                    context.bad = context.bad.max(1);
                    builder.rollback();
                }
            }
            _ => context.skipped += 1,
        }
        rejected += context.bad;
    }
    state.counters.records_skipped += u64::from(context.skipped);
    datagram.close_counters(&context, out);
    rejected
}

/// An interface of a sample: a form and a value ("interface_expanded").
#[derive(Debug, Clone, Copy, Default)]
struct Interface {
    form: u32,
    value: u32,
}

impl Interface {
    /// The form in the top two bits ("interface").
    #[inline]
    fn compact(word: u32) -> Interface {
        Interface { form: word >> 30, value: word & INTERNAL }
    }

    #[inline]
    fn index(self) -> Option<u32> {
        (self.form == 0 && self.value != INTERNAL).then_some(self.value)
    }

    /// Rule 40: what is no ifIndex.
    fn flag(self) -> Option<&'static str> {
        match self.form {
            0 if self.value == INTERNAL => Some("local"),
            0 => None,
            1 => Some("discard"),
            2 => Some("multiple"),
            _ => None,
        }
    }
}

/// Rule 36: ingress where the data source is the input interface, egress where it is the output.
#[inline]
fn direction(source: SourceId, (input, output): (Option<u32>, Option<u32>)) -> Option<u8> {
    if source.class != 0 || source.index == 0 {
        return None;
    }
    let (input, output) = (input == Some(source.index), output == Some(source.index));
    match (input, output) {
        (true, false) => Some(0),
        (false, true) => Some(1),
        _ => None,
    }
}

/// The class of IE 89 (RFC 7270 §4.12) for an sFlow reason: "dropped" and, where there is one, the same reason.
fn forwarding_status(reason: u32) -> u8 {
    match reason {
        // unreachable in one way or another, no route
        0 | 1 | 6 | 7 | 8 | 11 | 12 | 269 => 131,
        // prohibited
        9 | 10 | 13 | 14 | 15 => 129,
        258 => 130,
        // fragmentation needed
        4 | 262 => 133,
        257 => 137,
        261 => 138,
        260 => 139,
        280 | 302 => 140,
        279 | 292 => 132,
        275 => 136,
        _ => 128,
    }
}

impl Datagram<'_> {
    /// A flow sample; None where it is not worth a row.
    #[expect(clippy::too_many_arguments, reason = "the state of all samples")]
    fn flow(
        &self,
        expanded: bool,
        mut xdr: Xdr<'_>,
        state: &mut ExporterState,
        agent: &mut AgentState,
        context: &mut Context,
        waiting: &mut Waiting,
        out: &mut Builder,
    ) -> Option<()> {
        let sample = Sample::read(expanded, &mut xdr)?;
        if sample.is_plain()
            && let Some(records) = PlainRecords::read(xdr, sample.count)
        {
            return self.plain(&sample, &records, state, agent, context, waiting, out);
        }
        plain::flush(waiting, out);
        self.row(&sample, xdr, state, agent, context, out)
    }

    /// A sample that can wait.
    #[expect(clippy::too_many_arguments, reason = "the state of all samples")]
    #[inline]
    fn plain(
        &self,
        sample: &Sample,
        records: &PlainRecords<'_>,
        state: &mut ExporterState,
        agent: &mut AgentState,
        context: &mut Context,
        waiting: &mut Waiting,
        out: &mut Builder,
    ) -> Option<()> {
        let (rate, rate_source) = self.policy.rate(sample.rate);
        if !waiting.has_room(rate_source) {
            waiting.make_room(rate_source, out);
        }
        if records.has_more() {
            let mut row = Row::new(out);
            context.bad += records.write(&mut row);
            row.close();
        }
        let effective = sample.account(state, agent);
        if rate_source != RateSource::Unknown {
            state.sampling_rate = Some(rate);
        }
        let next = waiting.next()?;
        next.set(self.meta.received_us, rate, effective, sample.indices(), sample.direction());
        records.parse(next);
        waiting.keep();
        Some(())
    }

    /// Any other sample, as a row of its own.
    #[inline(never)]
    fn row(
        &self,
        sample: &Sample,
        records: Xdr<'_>,
        state: &mut ExporterState,
        agent: &mut AgentState,
        context: &mut Context,
        out: &mut Builder,
    ) -> Option<()> {
        let (rate, rate_source) = self.policy.rate(sample.rate);
        let mut row = Row::new(out);
        if !row.packet(records, sample.count, context) {
            row.close();
            return None;
        }
        row.out.labels(FlowColumn::SamplingSource.index()).push(rate_source.label());
        if rate_source != RateSource::Unknown {
            row.out.f64s(FlowColumn::SamplingRate.index()).push(rate);
            state.sampling_rate = Some(rate);
        }
        if let Some(ratio) = sample.account(state, agent) {
            row.out.f64s(FlowColumn::SamplingEffective.index()).push(ratio.rate());
        }
        constants(row.out, iter::once(self.meta.received_us));
        row.interfaces(sample.input, sample.output, sample.direction());
        if sample.output.form == 1 {
            row.dropped(sample.output.value);
        }
        row.close();
        Some(())
    }

    /// A discarded packet ("discarded_packet" of sFlow Dropped Packet Notification Structures).
    #[inline(never)]
    fn discard(
        &self,
        mut xdr: Xdr<'_>,
        state: &mut ExporterState,
        agent: &mut AgentState,
        context: &mut Context,
        out: &mut Builder,
    ) -> Option<()> {
        let number = xdr.u32()?;
        let source = source_id(true, &mut xdr)?;
        let drops = xdr.u32()?;
        let mut interface = || Some(Interface { form: 0, value: xdr.u32()? });
        let (input, output) = (interface()?, interface()?);
        let (reason, count) = (xdr.u32()?, xdr.u32()?);
        let mut row = Row::new(out);
        if !row.packet(xdr, count, context) {
            row.close();
            return None;
        }
        if let Some(known) = agent.source(source, state.established)
            && known.sample(Series::Discards, number, &mut state.counters)
        {
            known.drops(Series::Discards, drops, &mut state.counters);
        }
        constants(row.out, iter::once(self.meta.received_us));
        row.interfaces(input, output, direction(source, (input.index(), output.index())));
        row.dropped(reason);
        row.close();
        Some(())
    }

    /// Appends the columns that tell the sender, the same for all rows of the datagram.
    fn close(&self, rows: &Rows, out: &mut Batches) {
        for (builder, n) in [(&mut out.flows, rows.flows), (&mut out.discards, rows.discards)] {
            if n == 0 {
                continue;
            }
            builder.reopen(n);
            builder.ips(FlowColumn::ExporterAddr.index()).push_n(self.exporter.0, n);
            builder.u32s(FlowColumn::ObservationDomain.index()).push_n(self.header.sub_agent, n);
            if let Some(agent) = self.header.agent {
                builder.ips(FlowColumn::AgentAddr.index()).push_n(agent.0, n);
            }
            if self.meta.sender != self.exporter {
                builder.ips(FlowColumn::SenderAddr.index()).push_n(self.meta.sender.0, n);
            }
            builder.advance(n);
        }
    }
}

/// What is the same for all rows of `flows` and `discards`, and their times: of 64 rows at most.
fn constants(out: &mut Builder, received: impl ExactSizeIterator<Item = i64> + Clone) {
    let n = received.len();
    for time in [FlowColumn::ReceivedAt, FlowColumn::StartTime, FlowColumn::EndTime] {
        out.times(time.index()).append_some(u64::MAX, received.clone());
    }
    out.labels(FlowColumn::TimeSource.index()).push_n("received", n);
    out.labels(FlowColumn::ProtoVer.index()).push_n(Protocol::Sflow5.label(), n);
    out.u64s(FlowColumn::Packets.index()).push_n(1, n);
}

impl Row<'_> {
    /// Rule 41: why, by number, name and class.
    fn dropped(&mut self, reason: u32) {
        self.out.u32s(FlowColumn::DropReason.index()).push(reason);
        if let Some(name) = weir_schemas::names::drop_reason_name(reason) {
            self.out.labels(FlowColumn::DropReasonName.index()).push(name);
        }
        self.out.u8s(FlowColumn::ForwardingStatus.index()).push(forwarding_status(reason));
    }

    fn interfaces(&mut self, input: Interface, output: Interface, direction: Option<u8>) {
        use FlowColumn::{Direction, InIf, InIfFlag, OutIf, OutIfFlag};
        for (interface, index, flag, name) in
            [(input, InIf, InIfFlag, "input_interfaces"), (output, OutIf, OutIfFlag, "output_interfaces")]
        {
            if let Some(value) = interface.index() {
                self.out.u32s(index.index()).push(value);
            } else if let Some(label) = interface.flag() {
                self.out.labels(flag.index()).push(label);
                // 0: more than one, nobody knows how many
                if interface.form == 2 && interface.value != 0 {
                    self.number(name, u64::from(interface.value));
                }
            }
        }
        if let Some(direction) = direction {
            self.out.u8s(Direction.index()).push(direction);
        }
    }
}

/// What a flow sample begins with ("flow_sample", "flow_sample_expanded").
struct Sample {
    number: u32,
    source: SourceId,
    rate: u32,
    pool: u32,
    drops: u32,
    input: Interface,
    output: Interface,
    /// Records.
    count: u32,
}

impl Sample {
    #[inline]
    fn read(expanded: bool, xdr: &mut Xdr<'_>) -> Option<Sample> {
        if expanded {
            let [number, class, index, rate, pool, drops, input_form, input, output_form, output, count] =
                xdr.u32s()?;
            let interface = |form, value| Interface { form, value };
            let (input, output) = (interface(input_form, input), interface(output_form, output));
            let source = SourceId { class, index };
            return Some(Sample { number, source, rate, pool, drops, input, output, count });
        }
        let [number, source, rate, pool, drops, input, output, count] = xdr.u32s()?;
        let source = SourceId::compact(source);
        let (input, output) = (Interface::compact(input), Interface::compact(output));
        Some(Sample { number, source, rate, pool, drops, input, output, count })
    }

    /// False where a row of its own is needed: for the reason of a discard, for how many "multiple" are.
    #[inline]
    fn is_plain(&self) -> bool {
        self.input.form == 0 && self.output.form == 0
    }

    #[inline]
    fn indices(&self) -> (Option<u32>, Option<u32>) {
        (self.input.index(), self.output.index())
    }

    #[inline]
    fn direction(&self) -> Option<u8> {
        direction(self.source, self.indices())
    }

    /// Accounts for it by its numbers; answers the rate that they tell.
    #[inline(always)]
    fn account(&self, state: &mut ExporterState, agent: &mut AgentState) -> Option<Ratio> {
        let known = agent.source(self.source, state.established)?;
        if !known.sample(Series::Flows, self.number, &mut state.counters) {
            return None;
        }
        known.drops(Series::Flows, self.drops, &mut state.counters);
        known.effective_rate(self.number, self.pool)
    }
}

/// A data source: the class in the top byte, or in a word of its own.
fn source_id(expanded: bool, xdr: &mut Xdr<'_>) -> Option<SourceId> {
    let word = xdr.u32()?;
    if expanded {
        return Some(SourceId { class: word, index: xdr.u32()? });
    }
    Some(SourceId::compact(word))
}

#[cfg(test)]
mod tests;
