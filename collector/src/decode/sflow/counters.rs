//! Counter samples: a row of `interface_counters`, one of `host_counters`, or one of `queue_counters` a queue.

use weir_schemas::tables::{CounterColumn, HostColumn};

use super::formats::Place;
use super::records::{Context, Records, Row};
use super::state::{AgentState, Series, SourceId};
use super::xdr::Xdr;
use super::{Datagram, Protocol, formats, hosts, source_id};
use crate::columns::Builder;
use crate::decode::Batches;
use crate::decode::exporters::ExporterState;

/// Records of one counter sample that are looked at; hosts send some twenty, switches one a queue.
pub(crate) const MAX_RECORDS: usize = 64;

/// A counter sample in hand.
struct Sample<'a> {
    records: Records<'a, MAX_RECORDS>,
    source: SourceId,
    /// Records that were good.
    good: u32,
}

impl Datagram<'_> {
    /// A counter sample; None where it is not worth a row.
    #[inline(never)]
    pub(super) fn counters(
        &self,
        expanded: bool,
        mut xdr: Xdr<'_>,
        state: &mut ExporterState,
        agent: &mut AgentState,
        context: &mut Context,
        out: &mut Batches,
    ) -> Option<()> {
        let number = xdr.u32()?;
        let source = source_id(expanded, &mut xdr)?;
        let count = xdr.u32()?;
        let records = Records::<MAX_RECORDS>::read_repeated(xdr, count, context, Some(formats::QUEUE));
        let mut sample = Sample { records, source, good: 0 };
        context.queues += sample.queues(context, &mut out.queue_counters);
        context.hosts += sample.host(context, &mut out.host_counters);
        context.interfaces += sample.interface(context, &mut out.interface_counters);
        if context.bad > 0 && sample.good == 0 {
            return None;
        }
        if let Some(known) = agent.source(source, state.established) {
            known.sample(Series::Counters, number, &mut state.counters);
        }
        Some(())
    }

    /// Appends the columns that are the same for all rows of the datagram.
    pub(super) fn close_counters(&self, context: &Context, out: &mut Batches) {
        if context.interfaces + context.hosts + context.queues == 0 {
            return;
        }
        use CounterColumn as C;
        use weir_schemas::tables::{HostColumn as H, QueueColumn as Q};
        let columns = [
            (
                context.interfaces,
                &mut out.interface_counters,
                [C::ReceivedAt, C::ExporterAddr, C::ObservationDomain, C::ProtoVer, C::UptimeMs]
                    .map(C::index),
            ),
            (
                context.hosts,
                &mut out.host_counters,
                [H::ReceivedAt, H::ExporterAddr, H::ObservationDomain, H::ProtoVer, H::UptimeMs]
                    .map(H::index),
            ),
            (
                context.queues,
                &mut out.queue_counters,
                [Q::ReceivedAt, Q::ExporterAddr, Q::ObservationDomain, Q::ProtoVer, Q::UptimeMs]
                    .map(Q::index),
            ),
        ];
        for (n, builder, [received, exporter, domain, version, uptime]) in columns {
            if n == 0 {
                continue;
            }
            builder.reopen(n);
            builder.times(received).push_n(self.meta.received_us, n);
            builder.ips(exporter).push_n(self.exporter.0, n);
            builder.u32s(domain).push_n(self.header.sub_agent, n);
            builder.labels(version).push_n(Protocol::Sflow5.label(), n);
            builder.u32s(uptime).push_n(self.header.uptime_ms, n);
            builder.advance(n);
        }
    }
}

impl Sample<'_> {
    /// A row a queue; answers how many.
    fn queues(&mut self, context: &mut Context, out: &mut Builder) -> usize {
        let interface = (self.source.class == 0).then_some(self.source.index);
        let mut rows = 0;
        for (_, bytes) in self.records.iter().filter(|(format, _)| *format == formats::QUEUE) {
            if hosts::queue(interface, Xdr(bytes), out).is_some() {
                out.advance(1);
                rows += 1;
                self.good += 1;
            } else {
                out.rollback();
                context.bad += 1;
            }
        }
        rows
    }

    /// The row of a host, if there is anything about one.
    fn host(&mut self, context: &mut Context, out: &mut Builder) -> usize {
        let source = self.source;
        let row = Row::with_extra(out, HostColumn::Extra.index());
        let special = |row: &mut Row<'_>, format: u32, bytes: &[u8]| row.host(format, Xdr(bytes));
        self.row(Place::Host, row, context, special, |row| {
            row.out.u32s(HostColumn::SourceClass.index()).push(source.class);
            row.out.u32s(HostColumn::SourceIndex.index()).push(source.index);
        })
    }

    /// The row of an interface: also of one that nothing is said of.
    fn interface(&mut self, context: &mut Context, out: &mut Builder) -> usize {
        let source = self.source;
        let row = Row::with_extra(out, CounterColumn::Extra.index());
        let special =
            |row: &mut Row<'_>, format: u32, bytes: &[u8]| (format == 1).then(|| row.generic(Xdr(bytes)));
        self.row(Place::Interface, row, context, special, |row| {
            if source.class != 0 {
                row.number("source_class", u64::from(source.class));
                row.number("source_index", u64::from(source.index));
            } else if !row.out.has(CounterColumn::IfIndex.index()) {
                row.out.u32s(CounterColumn::IfIndex.index()).push(source.index);
            }
        })
    }

    /// True where a record belongs to that table.
    fn belongs(&self, format: u32, table: Place) -> bool {
        match formats::place(format) {
            Place::Source => (self.source.class == 0) == (table == Place::Interface),
            place => place == table,
        }
    }

    /// A row of the records that belong there; `special` knows those that have columns. Answers how many rows it made.
    fn row(
        &mut self,
        table: Place,
        mut row: Row<'_>,
        context: &mut Context,
        special: impl Fn(&mut Row<'_>, u32, &[u8]) -> Option<Option<()>>,
        end: impl FnOnce(&mut Row<'_>),
    ) -> usize {
        let mut good = 0;
        let empty = table == Place::Interface && self.records.iter().next().is_none() && context.bad == 0;
        for (format, bytes) in self.records.iter().filter(|(format, _)| self.belongs(*format, table)) {
            let whole = match (special(&mut row, format, bytes), formats::counter(format)) {
                (Some(whole), _) => whole,
                (None, Some(fields)) => row.fields(fields, &mut Xdr(bytes)),
                (None, None) => {
                    context.skipped += 1;
                    row.unknown(format, bytes);
                    Some(())
                }
            };
            if whole.is_some() {
                good += 1;
            } else {
                context.bad += 1;
            }
        }
        self.good += good;
        let worth = good > 0 || empty;
        if worth {
            end(&mut row);
        }
        row.close();
        if worth {
            row.out.advance(1);
        } else {
            row.out.rollback();
        }
        usize::from(worth)
    }
}

/// A 64-bit counter from a 32-bit one; all-ones is no value (rule 42).
fn counter32(value: u32) -> Option<u64> {
    (value != u32::MAX).then_some(u64::from(value))
}

fn counter64(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

impl Row<'_> {
    /// "if_counters": nothing is appended unless all of it is there.
    fn generic(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        use CounterColumn::{
            IfAdminUp, IfDirection, IfIndex, IfOperUp, IfSpeed, IfType, InBroadcastPackets, InDiscards,
            InErrors, InMulticastPackets, InOctets, InUnicastPackets, InUnknownProtos, OutBroadcastPackets,
            OutDiscards, OutErrors, OutMulticastPackets, OutOctets, OutUnicastPackets, Promiscuous,
        };
        let mut xdr = Xdr(xdr.take(88)?);
        self.out.u32s(IfIndex.index()).push(xdr.u32()?);
        self.out.u32s(IfType.index()).push(xdr.u32()?);
        self.number64(IfSpeed, counter64(xdr.u64()?));
        if let direction @ 1..=4 = xdr.u32()? {
            self.out.u8s(IfDirection.index()).push(u8::try_from(direction).unwrap_or(0));
        }
        let status = xdr.u32()?;
        if status != u32::MAX {
            self.out.bools(IfAdminUp.index()).push(status & 1 != 0);
            self.out.bools(IfOperUp.index()).push(status & 2 != 0);
        }
        self.number64(InOctets, counter64(xdr.u64()?));
        for column in
            [InUnicastPackets, InMulticastPackets, InBroadcastPackets, InDiscards, InErrors, InUnknownProtos]
        {
            self.number64(column, counter32(xdr.u32()?));
        }
        self.number64(OutOctets, counter64(xdr.u64()?));
        for column in [OutUnicastPackets, OutMulticastPackets, OutBroadcastPackets, OutDiscards, OutErrors] {
            self.number64(column, counter32(xdr.u32()?));
        }
        // TruthValue (RFC 2579): 1 true, 2 false; hosts send 0 for false
        match xdr.u32()? {
            1 => self.out.bools(Promiscuous.index()).push(true),
            0 | 2 => self.out.bools(Promiscuous.index()).push(false),
            _ => {}
        }
        Some(())
    }

    fn number64(&mut self, column: CounterColumn, value: Option<u64>) {
        if let Some(value) = value {
            self.out.u64s(column.index()).push(value);
        }
    }
}
