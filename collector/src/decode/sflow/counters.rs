//! Counter samples: one row of `interface_counters` each.

use weir_schemas::tables::CounterColumn;

use super::records::{Context, Records, Row};
use super::state::{AgentState, Series};
use super::xdr::Xdr;
use super::{Datagram, Protocol, formats, source_id};
use crate::columns::Builder;
use crate::decode::exporters::ExporterState;

/// Records of one counter sample that are looked at; hosts send some twenty.
pub(crate) const MAX_RECORDS: usize = 32;

impl Datagram<'_> {
    /// A counter sample; None where it is not worth a row.
    pub(super) fn counters(
        &self,
        expanded: bool,
        mut xdr: Xdr<'_>,
        state: &mut ExporterState,
        agent: &mut AgentState,
        context: &mut Context,
        out: &mut Builder,
    ) -> Option<()> {
        let number = xdr.u32()?;
        let source = source_id(expanded, &mut xdr)?;
        let count = xdr.u32()?;
        let records = Records::<MAX_RECORDS>::read(xdr, count, context);
        let mut row = Row::with_extra(out, CounterColumn::Extra.index());
        let mut good = 0;
        for (format, bytes) in records.iter() {
            let mut xdr = Xdr(bytes);
            let whole = match (format, formats::counter(format)) {
                (1, _) => row.generic(xdr),
                (_, Some(fields)) => row.fields(fields, &mut xdr),
                (_, None) => {
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
        if context.bad > 0 && good == 0 {
            row.close();
            return None;
        }
        if let Some(known) = agent.source(source, state.established) {
            known.sample(Series::Counters, number, &mut state.counters);
        }
        if source.class != 0 {
            row.number("source_class", u64::from(source.class));
            row.number("source_index", u64::from(source.index));
        } else if !row.out.has(CounterColumn::IfIndex.index()) {
            row.out.u32s(CounterColumn::IfIndex.index()).push(source.index);
        }
        row.close();
        Some(())
    }

    /// Appends the columns that are the same for all rows of the datagram.
    pub(super) fn close_counters(&self, n: usize, out: &mut Builder) {
        out.reopen(n);
        out.times(CounterColumn::ReceivedAt.index()).push_n(self.meta.received_us, n);
        out.ips(CounterColumn::ExporterAddr.index()).push_n(self.exporter.0, n);
        out.u32s(CounterColumn::ObservationDomain.index()).push_n(self.header.sub_agent, n);
        out.labels(CounterColumn::ProtoVer.index()).push_n(Protocol::Sflow5.label(), n);
        out.u32s(CounterColumn::UptimeMs.index()).push_n(self.header.uptime_ms, n);
        out.advance(n);
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
