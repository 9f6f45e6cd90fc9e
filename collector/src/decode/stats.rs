//! What the decoders count and see, as rows of `exporter_stats` and `exporter_events`.

use weir_schemas::Address;
use weir_schemas::tables::{EventColumn, StatsColumn};

use super::exporters::{Counters, ExporterKey, ExporterState};
use crate::columns::Builder;

/// Events kept between two ticks; what is more is told in one row.
const MAX_EVENTS: usize = 1_000;

/// What can happen to an exporter: the values of the column `event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    NewExporter,
    Restart,
    TemplateCollision,
    WithdrawalIgnored,
    SamplingChanged,
    /// A template has elements that no dictionary knows.
    UnknownElements,
}

impl Event {
    const fn label(self) -> &'static str {
        match self {
            Event::NewExporter => "new_exporter",
            Event::Restart => "restart",
            Event::TemplateCollision => "template_collision",
            Event::WithdrawalIgnored => "withdrawal_ignored",
            Event::SamplingChanged => "sampling_changed",
            Event::UnknownElements => "unknown_elements",
        }
    }
}

#[derive(Debug)]
struct Seen {
    at_us: i64,
    exporter: Address,
    key: ExporterKey,
    event: Event,
    template: Option<u16>,
    detail: String,
}

/// Events since the last tick.
#[derive(Debug, Default)]
pub(crate) struct Events {
    seen: Vec<Seen>,
    /// Events that there was no room for, and the last of them.
    more: Option<(u64, Seen)>,
}

impl Events {
    /// A datagram of this exporter came; an event where it is the first one.
    pub(crate) fn heard(&mut self, state: &ExporterState) {
        if state.counters.datagrams == 1 {
            self.add(state, state.last_seen_us, Event::NewExporter, None, String::new);
        }
    }

    pub(crate) fn add(
        &mut self,
        state: &ExporterState,
        at_us: i64,
        event: Event,
        template: Option<u16>,
        detail: impl FnOnce() -> String,
    ) {
        let full = self.seen.len() >= MAX_EVENTS;
        let detail = if full { String::new() } else { detail() };
        let seen = Seen { at_us, exporter: state.exporter_addr(), key: state.key, event, template, detail };
        if full {
            let count = self.more.as_ref().map_or(0, |(count, _)| *count);
            self.more = Some((count + 1, seen));
        } else {
            self.seen.push(seen);
        }
    }

    /// Writes the rows.
    pub(crate) fn write(&mut self, out: &mut Builder) {
        if let Some((count, mut last)) = self.more.take() {
            last.detail = format!("and {} events more", count - 1);
            self.seen.push(last);
        }
        for seen in self.seen.drain(..) {
            out.times(EventColumn::ReceivedAt.index()).push(seen.at_us);
            out.ips(EventColumn::ExporterAddr.index()).push(seen.exporter.0);
            out.u32s(EventColumn::ObservationDomain.index()).push(seen.key.domain);
            out.labels(EventColumn::ProtoVer.index()).push(seen.key.protocol.label());
            out.labels(EventColumn::Event.index()).push(seen.event.label());
            if let Some(template) = seen.template {
                out.u16s(EventColumn::TemplateId.index()).push(template);
            }
            if !seen.detail.is_empty() {
                out.texts(EventColumn::Detail.index()).push(&seen.detail);
            }
            out.advance(1);
        }
    }
}

type Count = (StatsColumn, fn(&mut Counters) -> &mut u64);

/// The counters that are columns.
const COUNTS: [Count; 22] = [
    (StatsColumn::Datagrams, |c| &mut c.datagrams),
    (StatsColumn::DatagramBytes, |c| &mut c.datagram_bytes),
    (StatsColumn::Flows, |c| &mut c.flows),
    (StatsColumn::OptionsRecords, |c| &mut c.options_records),
    (StatsColumn::CounterSamples, |c| &mut c.counter_samples),
    (StatsColumn::Templates, |c| &mut c.templates),
    (StatsColumn::TemplateCollisions, |c| &mut c.template_collisions),
    (StatsColumn::WithdrawalsIgnored, |c| &mut c.withdrawals_ignored),
    (StatsColumn::TemplateMisses, |c| &mut c.template_misses),
    (StatsColumn::SetsReplayed, |c| &mut c.sets_replayed),
    (StatsColumn::SetsExpired, |c| &mut c.sets_expired),
    (StatsColumn::BadTexts, |c| &mut c.bad_texts),
    (StatsColumn::Rejected, |c| &mut c.rejected),
    (StatsColumn::SequenceExpected, |c| &mut c.sequence_expected),
    (StatsColumn::SequenceLost, |c| &mut c.sequence_lost),
    (StatsColumn::SequenceReordered, |c| &mut c.sequence_reordered),
    (StatsColumn::SequenceResets, |c| &mut c.sequence_resets),
    (StatsColumn::SequenceUncertain, |c| &mut c.sequence_uncertain),
    (StatsColumn::AgentDrops, |c| &mut c.agent_drops),
    (StatsColumn::SamplesExpected, |c| &mut c.samples_expected),
    (StatsColumn::SamplesLost, |c| &mut c.samples_lost),
    (StatsColumn::RecordsSkipped, |c| &mut c.records_skipped),
];

/// Of the counters that may go down, what they went down by.
const RECOVERED: [Count; 2] = [
    (StatsColumn::SequenceRecovered, |c| &mut c.sequence_lost),
    (StatsColumn::SamplesRecovered, |c| &mut c.samples_lost),
];

/// What the collector lost of all exporters together, until rows have told it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// Datagrams that the kernel dropped at the sockets.
    pub kernel_drops: f64,
    /// Rows that came to nothing between the decoder and the log.
    pub rows_dropped: f64,
}

impl Losses {
    /// Takes what a datagram and a flow have of it, where `exporters` have new ones; what nobody had a part of stays.
    pub(crate) fn share_out<'a>(&mut self, exporters: impl Iterator<Item = &'a ExporterState>) -> Losses {
        let (mut datagrams, mut flows) = (0, 0);
        for state in exporters {
            datagrams += state.counters.datagrams.saturating_sub(state.reported.datagrams);
            flows += state.counters.flows.saturating_sub(state.reported.flows);
        }
        let part = |lost: &mut f64, of: u64| if of > 0 { std::mem::take(lost) / of as f64 } else { 0.0 };
        Losses {
            kernel_drops: part(&mut self.kernel_drops, datagrams),
            rows_dropped: part(&mut self.rows_dropped, flows),
        }
    }
}

/// Writes what was counted since the last row of this exporter; nothing where nothing was. `lost` is what each datagram
/// and each flow has of the collector's losses.
pub(crate) fn write(state: &mut ExporterState, now_us: i64, lost: Losses, out: &mut Builder) {
    if state.counters == state.reported {
        return;
    }
    out.times(StatsColumn::ReceivedAt.index()).push(now_us);
    out.ips(StatsColumn::ExporterAddr.index()).push(state.exporter_addr().0);
    out.ips(StatsColumn::SenderAddr.index()).push(state.key.sender.0);
    out.u32s(StatsColumn::ObservationDomain.index()).push(state.key.domain);
    out.labels(StatsColumn::ProtoVer.index()).push(state.key.protocol.label());
    let mut counters = state.counters;
    let since = |now: u64, reported: u64| now.saturating_sub(reported) as f64;
    let datagrams = since(counters.datagrams, state.reported.datagrams);
    let flows = since(counters.flows, state.reported.flows);
    out.f64s(StatsColumn::KernelDrops.index()).push(datagrams * lost.kernel_drops);
    out.f64s(StatsColumn::RowsDropped.index()).push(flows * lost.rows_dropped);
    // what was reported as lost and came late is told apart: the sums of both are exact
    for (column, count) in RECOVERED {
        let (now, reported) = (*count(&mut counters), count(&mut state.reported));
        out.u64s(column.index()).push(reported.saturating_sub(now));
        *reported = now.min(*reported);
    }
    for (column, count) in COUNTS {
        let (now, reported) = (*count(&mut counters), count(&mut state.reported));
        out.u64s(column.index()).push(now.saturating_sub(*reported));
        *reported = now.max(*reported);
    }
    if let Some(skew) = state.clock_skew_us {
        out.f64s(StatsColumn::ClockSkewUs.index()).push(skew);
    }
    if let Some(rate) = state.sampling_rate {
        out.f64s(StatsColumn::SamplingRate.index()).push(rate);
    }
    out.advance(1);
}
