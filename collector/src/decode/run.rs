//! Running a plan over the records of a set: column after column, all records at a time.

use weir_schemas::tables::FlowColumn;
use weir_schemas::{Address, Kind};

use super::compile::{
    AddressChoice, Clock, Extra, IcmpInPort, Plan, Rate, Route, RowPlan, Sampled, Section, Span, Step, When,
};
use super::config::{DecodeConfig, ExporterConfig};
use super::exporters::Protocol;
use super::format::{Around, trimmed, write_time, write_value};
use super::frame::{self, Link};
use super::mapping::Conversion;
use super::records::{BLOCK, Fields, Fixed, Picked, Records, Spaced, Walked};
use super::sampling::{RateSource, View, out_of_rate, packets_rate, plausible};
use super::totals::Totals;
use super::wire::{float, ntp_us, octets, u32_at, unsigned};
use crate::columns::{Builder, Item, LANES, Values};

/// What all records of a set have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetContext<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) received_us: i64,
    pub(crate) sender: Address,
    pub(crate) domain: u32,
    /// The template of the set; 0 where there is none.
    pub(crate) template: u16,
    /// The header's clock.
    pub(crate) export_us: i64,
    /// The exporter's uptime at that time, ms modulo 2^32, where the header has it.
    pub(crate) uptime_ms: Option<u32>,
    /// The sampling rate of a v5 header.
    pub(crate) header_rate: Option<f64>,
    pub(crate) view: &'a View,
    pub(crate) config: &'a DecodeConfig,
    pub(crate) exporter: &'a ExporterConfig,
    pub(crate) around: Around<'a>,
}

impl SetContext<'_> {
    /// Rule 35: `element` is IE 130 or 131 of the record or the options data.
    pub(crate) fn exporter_addr(&self, element: Option<[u8; 16]>) -> [u8; 16] {
        self.config.exporter_addr(None, element, self.sender.0)
    }
}

/// Buffers that are kept from set to set.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// To be renewed with each datagram.
    pub(crate) room: Room,
    starts: Vec<i64>,
    ends: Vec<i64>,
    /// Start and end as the exporter said, of records whose times were replaced ([`ABSENT`] of the others); empty where
    /// none were.
    replaced: Vec<(i64, i64)>,
    places: Vec<(u32, u32)>,
    narrow: Vec<[u8; 64]>,
    wide: Vec<[u8; 128]>,
    rows: Vec<u32>,
    protocols: Vec<u8>,
    samplers: Vec<u64>,
    /// The totals of flows that come again.
    totals: Totals,
    /// Two fields of one column had values, or one was too great for it.
    conflict: bool,
    /// Texts that were not UTF-8.
    pub(crate) bad_texts: u64,
    /// The sampling rate of the last record that had one.
    pub(crate) last_rate: Option<f64>,
    /// Whom the last record or the options data said that the exporter is, where that is not the sender.
    pub(crate) last_exporter: Option<[u8; 16]>,
}

/// What became of a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SetOutcome {
    pub(crate) records: u32,
    pub(crate) rows: u32,
    /// A record is cut off at the end.
    pub(crate) truncated: bool,
}

/// What the rest of a datagram may still make. No datagram of real flows comes near; what a hostile one has beyond is
/// counted as truncated records, or is a "…" where it is text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) records: usize,
    /// Entries of `extra`.
    entries: usize,
    /// Octets of their text.
    octets: usize,
}

impl Default for Room {
    fn default() -> Room {
        Room { records: 16_384, entries: 6_144, octets: 256 << 10 }
    }
}

impl Room {
    /// How many records there is room for.
    fn records_of(&self, plan: &Plan) -> usize {
        let extras = plan.rows.extras.len();
        // a record that is wider than all the room has it for itself
        let wide = usize::from(self.entries == Room::default().entries);
        self.records.min(self.entries.checked_div(extras).map_or(usize::MAX, |most| most.max(wide)))
    }

    fn take(&mut self, plan: &Plan, records: usize) {
        self.records = self.records.saturating_sub(records);
        self.entries = self.entries.saturating_sub(plan.rows.extras.len() * records);
    }
}

/// Decodes a data set of flow records.
pub(crate) fn run_set(
    plan: &Plan,
    data: &[u8],
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
) -> SetOutcome {
    let layout = &plan.layout;
    let most = scratch.room.records_of(plan);
    if !layout.variable {
        let record = layout.record.max(1);
        let whole = data.len() / record;
        let count = whole.min(most);
        scratch.room.take(plan, count);
        let Some(data) = data.get(..count * record) else { return SetOutcome::default() };
        let rows = run_fixed(plan, data, context, out, scratch);
        return SetOutcome { records: count as u32, rows, truncated: count < whole };
    }
    let mut places = std::mem::take(&mut scratch.places);
    let end = Walked::walk(data, &layout.fields, most, &mut places);
    let records = Walked::new(data, &places, layout.fields.len());
    scratch.room.take(plan, records.count());
    let rows = run_records(plan, &records, context, out, scratch);
    let records = records.count();
    scratch.places = places;
    // rule 3: less than the shortest record is padding
    let truncated = data.len() - end >= layout.record;
    SetOutcome { records: records as u32, rows, truncated }
}

/// Decodes whole records of one length; answers how many rows they made.
pub(crate) fn run_fixed(
    plan: &Plan,
    data: &[u8],
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
) -> u32 {
    match plan.layout.record {
        record @ 1..=64 => {
            let mut places = std::mem::take(&mut scratch.narrow);
            let rows = run_blocks(plan, data, record, context, out, scratch, &mut places);
            scratch.narrow = places;
            rows
        }
        record @ 65..=128 => {
            let mut places = std::mem::take(&mut scratch.wide);
            let rows = run_blocks(plan, data, record, context, out, scratch, &mut places);
            scratch.wide = places;
            rows
        }
        record => run_records(plan, &Fixed::new(data, record), context, out, scratch),
    }
}

/// Decodes records of one length, [`BLOCK`] after [`BLOCK`]; answers how many rows they made.
fn run_blocks<const S: usize>(
    plan: &Plan,
    data: &[u8],
    record: usize,
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
    places: &mut Vec<[u8; S]>,
) -> u32 {
    let blocks = data.chunks(record * BLOCK);
    blocks.map(|block| run_records(plan, &Spaced::copy(block, record, places), context, out, scratch)).sum()
}

/// Decodes records; answers how many rows they made.
fn run_records<R: Records>(
    plan: &Plan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
) -> u32 {
    let count = records.count();
    if count == 0 {
        return 0;
    }
    run_rows(&plan.rows, records, context, out, scratch, false);
    let Some((reverse, counted)) = &plan.reverse else { return count as u32 };
    // rule 38: the reverse of no packets is no record
    let mut rows = std::mem::take(&mut scratch.rows);
    rows.clear();
    let some = |row: &u32| counted.is_none_or(|span| unsigned(records.bytes(*row as usize, span)) != 0);
    rows.extend((0..count as u32).filter(some));
    let picked = Picked { records, rows: &rows };
    let more = picked.count();
    if more > 0 {
        run_rows(reverse, &picked, context, out, scratch, true);
    }
    scratch.rows = rows;
    (count + more) as u32
}

fn run_rows<R: Records>(
    plan: &RowPlan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
    reverse: bool,
) {
    if plan.sampled.is_some() {
        // a sampled header fills other columns in every row: one row at a time
        for row in 0..records.count() as u32 {
            let one = Picked { records, rows: &[row] };
            columns(plan, &one, context, out, scratch, reverse);
            sampled(plan, &one, out);
            out.advance(1);
        }
        return;
    }
    columns(plan, records, context, out, scratch, reverse);
    out.advance(records.count());
}

fn columns<R: Records>(
    plan: &RowPlan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
    reverse: bool,
) {
    scratch.conflict = false;
    scratch.last_exporter = constants(plan, records, context, out, reverse);
    for step in &plan.steps {
        scratch.conflict |= run_step(step, records, out, &mut scratch.bad_texts);
    }
    for choice in &plan.addresses {
        scratch.conflict |= run_choice(choice, plan.ip_version, records, out);
    }
    let uptimes_known = times(plan, records, context, out, scratch);
    scratch.last_rate = sampling(plan, records, context, out, &mut scratch.samplers).or(scratch.last_rate);
    if let Some(icmp) = &plan.icmp_in_port {
        icmp_in_port(icmp, records, out, scratch);
    }
    if !plan.mpls.is_empty() || plan.mpls_stack.is_some() {
        mpls(plan, records, out);
    }
    application_names(plan, records, context, out);
    if !plan.properties.is_empty() {
        properties(plan, records, out);
    }
    if let Some(totals) = plan.totals.as_ref().filter(|_| context.exporter.difference_totals) {
        scratch.totals.difference(totals, records, context, reverse, out);
    }
    if !plan.extras.is_empty() || scratch.conflict || !uptimes_known || !scratch.replaced.is_empty() {
        extras(plan, records, context, out, scratch, !uptimes_known);
    }
}

/// Columns that are the same in every row, and whose row it is. Answers who the exporter is, where it is not the sender.
fn constants<R: Records>(
    plan: &RowPlan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    reverse: bool,
) -> Option<[u8; 16]> {
    let n = records.count();
    out.times(FlowColumn::ReceivedAt.index()).push_n(context.received_us, n);
    out.u32s(FlowColumn::ObservationDomain.index()).push_n(context.domain, n);
    out.labels(FlowColumn::ProtoVer.index()).push_n(context.protocol.label(), n);
    if reverse {
        out.bools(FlowColumn::Reverse.index()).push_n(true, n);
    }
    if let Some(event) = plan.nat_event {
        out.u8s(FlowColumn::NatEvent.index()).push_n(event, n);
    }
    let known = context.view.agent;
    if plan.agent.is_empty() {
        let exporter = context.exporter_addr(known);
        out.ips(FlowColumn::ExporterAddr.index()).push_n(exporter, n);
        if exporter != context.sender.0 {
            out.ips(FlowColumn::SenderAddr.index()).push_n(context.sender.0, n);
        }
        if let Some(agent) = known {
            out.ips(FlowColumn::AgentAddr.index()).push_n(agent, n);
        }
        return Some(exporter).filter(|exporter| *exporter != context.sender.0);
    }
    let mut last = None;
    for row in 0..n {
        let spans = plan.agent.iter().map(|(v4, span)| address(*v4, records.bytes(row, *span)));
        let agent = spans.into_iter().find(|agent| !Address(*agent).is_unspecified()).or(known);
        let exporter = context.exporter_addr(agent);
        out.ips(FlowColumn::ExporterAddr.index()).push(exporter);
        out.ips(FlowColumn::AgentAddr.index()).push_option(agent);
        let sender = (exporter != context.sender.0).then_some(context.sender.0);
        out.ips(FlowColumn::SenderAddr.index()).push_option(sender);
        last = sender.map(|_| exporter);
    }
    last
}

#[inline]
fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

fn address(v4: bool, bytes: &[u8]) -> [u8; 16] {
    if v4 { mapped(octets(bytes, 0)) } else { octets(bytes, 0) }
}

/// One column; true where a value was too great for it, or another field of the column had one too.
fn run_step<R: Records>(step: &Step, records: &R, out: &mut Builder, bad_texts: &mut u64) -> bool {
    let column = step.column.index();
    let (n, span) = (records.count(), step.span);
    match step.route {
        Route::Ipv4 => {
            out.ips(column).append(n, |v| records.fill(span, v, |octets| mapped(octets).stored()));
        }
        Route::Ipv6 => {
            out.ips(column).append(n, |v| records.fill(span, v, |octets: [u8; 16]| octets.stored()));
        }
        Route::Mac => out.macs(column).append(n, |v| records.fill(span, v, |octets| octets)),
        Route::Text => {
            let texts = out.texts(column);
            for row in 0..n {
                match trimmed(records.bytes(row, span)) {
                    [] => texts.push_nulls(1),
                    bytes => *bad_texts += u64::from(!texts.push_lossy(bytes)),
                }
            }
        }
        Route::Application => {
            let texts = out.texts(column);
            for row in 0..n {
                match application_id(records.bytes(row, span)) {
                    Some(text) => texts.push(&text),
                    None => texts.push_nulls(1),
                }
            }
        }
        Route::U8 => out.u8s(column).append(n, |v| records.fill(span, v, |[a]: [u8; 1]| a)),
        Route::U16From1 => {
            out.u16s(column).append(n, |v| records.fill(span, v, |[a]: [u8; 1]| u16::from(a)));
        }
        Route::U16 => out.u16s(column).append(n, |v| records.fill(span, v, u16::from_be_bytes)),
        Route::U32From1 => {
            out.u32s(column).append(n, |v| records.fill(span, v, |[a]: [u8; 1]| u32::from(a)));
        }
        Route::U32From2 => out.u32s(column).append(n, |v| {
            records.fill(span, v, |octets| u32::from(u16::from_be_bytes(octets)));
        }),
        Route::U32From3 => out.u32s(column).append(n, |v| {
            records.fill(span, v, |[a, b, c]: [u8; 3]| u32::from_be_bytes([0, a, b, c]));
        }),
        Route::U32 => out.u32s(column).append(n, |v| records.fill(span, v, u32::from_be_bytes)),
        Route::U64From4 => out.u64s(column).append(n, |v| {
            records.fill(span, v, |octets| u64::from(u32::from_be_bytes(octets)));
        }),
        Route::U64 => out.u64s(column).append(n, |v| records.fill(span, v, u64::from_be_bytes)),
        Route::Number => return slow_number(step, records, out),
    }
    false
}

/// Numbers of any width with any conversion, record by record.
fn slow_number<R: Records>(step: &Step, records: &R, out: &mut Builder) -> bool {
    let column = step.column.index();
    let mut conflict = false;
    let mut value = |row: usize| {
        let first = convert(step.conversion, records.bytes(row, step.span));
        let mut rest =
            step.others.iter().map(|(conversion, span)| convert(*conversion, records.bytes(row, *span)));
        match first {
            Some(0) => rest.find(|other| other.is_some_and(|other| other != 0)).unwrap_or(first),
            _ => {
                conflict |= rest.any(|other| other.is_some_and(|other| other != 0));
                first
            }
        }
    };
    fn put<T: Item + TryFrom<u64>>(
        column: &mut Values<T>,
        n: usize,
        mut value: impl FnMut(usize) -> Option<u64>,
    ) -> bool {
        let mut overflow = false;
        for row in 0..n {
            let value = value(row);
            let fits = value.and_then(|value| T::try_from(value).ok());
            overflow |= value.is_some() && fits.is_none();
            column.push_option(fits);
        }
        overflow
    }
    let n = records.count();
    let overflow = match step.column.column().kind {
        Kind::U8 => put(out.u8s(column), n, &mut value),
        Kind::U16 => put(out.u16s(column), n, &mut value),
        Kind::U32 => put(out.u32s(column), n, &mut value),
        _ => put(out.u64s(column), n, &mut value),
    };
    conflict || overflow
}

fn convert(conversion: Conversion, bytes: &[u8]) -> Option<u64> {
    let value = unsigned(bytes);
    let unknown = !bytes.is_empty() && bytes.iter().all(|octet| *octet == 0xff);
    match conversion {
        _ if bytes.is_empty() => None,
        // rule 42: medianet says "unknown" with all ones
        Conversion::Counter | Conversion::Times(_) | Conversion::Nanos if unknown => None,
        Conversion::Times(factor) => Some(value.saturating_mul(u64::from(factor))),
        Conversion::Nanos => Some(value / 1_000),
        Conversion::Low24 => Some(if bytes.len() == 8 { value & 0xff_ffff } else { value }),
        Conversion::Dscp => Some((value & 0x3f) << 2),
        _ => Some(value),
    }
}

/// RFC 6759 §4: the engine, then the selector; engine 20 has a private enterprise number between.
pub(crate) fn application_id(bytes: &[u8]) -> Option<String> {
    let (engine, selector) = bytes.split_first()?;
    if selector.is_empty() || selector.len() > 12 {
        return None;
    }
    Some(match selector.split_at_checked(4) {
        Some((enterprise, selector)) if *engine == 20 && !selector.is_empty() => {
            format!("{engine}:{}:{}", unsigned(enterprise), unsigned(selector))
        }
        _ => format!("{engine}:{}", unsigned(selector)),
    })
}

/// Rule 44: an address of which both families are in the record.
fn run_choice<R: Records>(
    choice: &AddressChoice,
    ip_version: Option<Span>,
    records: &R,
    out: &mut Builder,
) -> bool {
    let column = out.ips(choice.column.index());
    let mut conflict = false;
    for row in 0..records.count() {
        let mut chosen = None;
        let mut set = 0;
        let version = ip_version.map_or(0, |span| unsigned(records.bytes(row, span)));
        for (v4, span) in &choice.spans {
            let bytes = records.bytes(row, *span);
            if bytes.iter().all(|octet| *octet == 0) {
                continue;
            }
            set += 1;
            let wanted = version == if *v4 { 4 } else { 6 };
            if chosen.is_none() || (wanted && set == 2) {
                chosen = Some(address(*v4, bytes));
            }
        }
        conflict |= set > 1;
        let none = || {
            let v4 = version != 6 && choice.spans.iter().any(|(v4, _)| *v4);
            if v4 { mapped([0; 4]) } else { [0; 16] }
        };
        column.push(chosen.unwrap_or_else(none));
    }
    conflict
}

const ABSENT: i64 = i64::MIN;

/// Start and end of the flows. False where the record has times that cannot be told (uptime without boot time).
fn times<R: Records>(
    plan: &RowPlan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
) -> bool {
    let n = records.count();
    // rule 31: of IPFIX the boot time is in the record, or was in the options data
    let booted = context.uptime_ms.map(Booted::Ago).or_else(|| context.view.boot_us.map(Booted::At));
    let known = |clock: &Option<Clock>| match clock {
        Some(Clock::Uptime(_)) => plan.times.boot.is_some() || booted.is_some(),
        clock => clock.is_some(),
    };
    let (has_start, has_end) = (known(&plan.times.start), known(&plan.times.end));
    let uptimes_known = plan.uptimes.is_empty()
        || (has_start || plan.times.start.is_none()) && has_end == plan.times.end.is_some();
    let Scratch { starts, ends, replaced, .. } = scratch;
    // every one is written
    starts.resize(n.next_multiple_of(LANES), ABSENT);
    ends.resize(n.next_multiple_of(LANES), ABSENT);
    replaced.clear();
    let clock = |clock: Option<Clock>, known: bool, times: &mut [i64]| match clock.filter(|_| known) {
        Some(clock) => read_clock(clock, plan.times.boot, booted, records, context, times),
        None => times.fill(ABSENT),
    };
    clock(plan.times.start, has_start, starts);
    clock(plan.times.end, has_end, ends);
    if let Some((span, unit_us)) = plan.times.duration {
        for row in 0..n {
            let duration =
                i64::try_from(unsigned(records.bytes(row, span))).unwrap_or(0).saturating_mul(unit_us);
            match (starts[row], ends[row]) {
                (ABSENT, end) if end != ABSENT => starts[row] = end.saturating_sub(duration),
                (start, ABSENT) if start != ABSENT => ends[row] = start.saturating_add(duration),
                _ => {}
            }
        }
    }
    let (has_start, has_end) = (
        has_start || has_end && plan.times.duration.is_some(),
        has_end || has_start && plan.times.duration.is_some(),
    );
    if !has_start && !has_end {
        out.labels(FlowColumn::TimeSource.index()).push_n("received", n);
        return uptimes_known;
    }
    // a receive time before 2000 is a clock that was never set: nothing to judge others by
    let judge = context.config.clock_check && context.received_us >= YEAR_2000_US;
    let second = |seconds: u32| if judge { i64::from(seconds) * 1_000_000 } else { i64::MAX };
    let first = context.received_us.saturating_sub(second(context.config.clock_past_seconds));
    let last = context.received_us.saturating_add(second(context.config.clock_future_seconds));
    // a time before the first is, as a number without a sign, beyond the last
    let width = last.wrapping_sub(first).cast_unsigned();
    let is_within = |time: &i64| time.wrapping_sub(first).cast_unsigned() <= width;
    let plausible = |times: &[i64]| times.iter().take(n).fold(true, |all, time| all & is_within(time));
    if (!has_start || plausible(starts)) && (!has_end || plausible(ends)) {
        out.labels(FlowColumn::TimeSource.index()).push_n("flow", n);
        for (has, column, times) in
            [(has_start, FlowColumn::StartTime, starts), (has_end, FlowColumn::EndTime, ends)]
        {
            if has {
                out.times(column.index()).append(n, |slots| slots.copy_from_slice(times));
            }
        }
        return uptimes_known;
    }
    // rule 33: a clock that cannot be right does not reach the tables
    for (start, end) in starts.iter_mut().zip(ends.iter_mut()).take(n) {
        let absent = |time: i64| time == ABSENT || time == 0;
        let wrong = |time: i64| !absent(time) && !(first..=last).contains(&time);
        let received = wrong(*start) || wrong(*end);
        let label = if received || absent(*start) && absent(*end) { "received" } else { "flow" };
        out.labels(FlowColumn::TimeSource.index()).push(label);
        // in place of a wrong one the receive time, as far as the other one allows it
        let now = context.received_us;
        let (was_start, was_end) = (*start, *end);
        replaced.push(if received { (was_start, was_end) } else { (ABSENT, ABSENT) });
        if wrong(was_start) {
            *start = if absent(was_end) || wrong(was_end) { now } else { now.min(was_end) };
        }
        if wrong(was_end) {
            *end = if absent(was_start) || wrong(was_start) { now } else { now.max(was_start) };
        }
        for (column, time) in [(FlowColumn::StartTime, *start), (FlowColumn::EndTime, *end)] {
            out.times(column.index()).push_option(Some(time).filter(|time| !absent(*time)));
        }
    }
    uptimes_known
}

/// 2000-01-01T00:00:00Z.
const YEAR_2000_US: i64 = 946_684_800_000_000;

/// When the exporter booted.
#[derive(Debug, Clone, Copy)]
enum Booted {
    /// So many ms before the export time, modulo 2^32.
    Ago(u32),
    At(i64),
}

impl Booted {
    #[inline(always)]
    fn time(self, export_us: i64, time_ms: u32) -> i64 {
        match self {
            Booted::Ago(uptime_ms) => from_uptime(export_us, uptime_ms, time_ms),
            Booted::At(boot_us) => from_boot(export_us, boot_us, time_ms),
        }
    }
}

/// Boot time and uptime; of an uptime of more than 2^32 ms (49.7 days) the multiple that comes nearest to the export
/// time. Nothing runs for ten years: what seems to has its two clocks apart, and the boot time is taken at its word.
#[inline(always)]
fn from_boot(export_us: i64, boot_us: i64, time_ms: u32) -> i64 {
    const WRAP_US: i64 = (1 << 32) * 1_000;
    const MAX_WRAPS: i64 = 73;
    let time = boot_us.saturating_add(i64::from(time_ms) * 1_000);
    // nearly always so, and a division less
    if (export_us.wrapping_sub(time).wrapping_add(WRAP_US / 2) as u64) < WRAP_US as u64 {
        return time;
    }
    let wraps = export_us.saturating_sub(time).saturating_add(WRAP_US / 2).div_euclid(WRAP_US);
    let wraps = if (0..=MAX_WRAPS).contains(&wraps) { wraps } else { 0 };
    time.saturating_add(wraps.saturating_mul(WRAP_US))
}

/// Rule 30: the distance to the export time is signed and modulo 2^32 ms.
#[inline(always)]
fn from_uptime(export_us: i64, uptime_ms: u32, time_ms: u32) -> i64 {
    export_us - i64::from(uptime_ms.wrapping_sub(time_ms).cast_signed()) * 1_000
}

/// What `value` says for every row.
fn each<T>(slots: &mut [T], value: impl Fn(usize) -> T) {
    slots.iter_mut().enumerate().for_each(|(row, slot)| *slot = value(row));
}

fn read_clock<R: Records>(
    clock: Clock,
    boot: Option<Span>,
    booted: Option<Booted>,
    records: &R,
    context: &SetContext<'_>,
    out: &mut [i64],
) {
    let export_us = context.export_us;
    match clock {
        Clock::Epoch(span, unit) if span.width == 8 => records.fill(span, out, |octets| {
            i64::try_from(u64::from_be_bytes(octets)).unwrap_or(i64::MAX).saturating_mul(unit)
        }),
        Clock::Epoch(span, unit) => {
            records.fill(span, out, |octets| i64::from(u32::from_be_bytes(octets)).saturating_mul(unit));
        }
        Clock::Ntp(span) => records.fill(span, out, |octets: [u8; 8]| match u64::from_be_bytes(octets) {
            0 => 0,
            _ => ntp_us(u32_at(&octets, 0), u32_at(&octets, 4), context.received_us),
        }),
        Clock::Before(span) => each(out, |row| {
            export_us.saturating_sub(i64::try_from(unsigned(records.bytes(row, span))).unwrap_or(i64::MAX))
        }),
        Clock::Uptime(span) => match (boot, booted) {
            (Some(boot), header) => each(out, |row| {
                let boot_ms = i64::try_from(unsigned(records.bytes(row, boot))).unwrap_or(0);
                let booted =
                    if boot_ms > 0 { Some(Booted::At(boot_ms.saturating_mul(1_000))) } else { header };
                let time = u32_at(records.bytes(row, span), 0);
                booted.map_or(ABSENT, |booted| booted.time(export_us, time))
            }),
            (None, Some(Booted::At(boot_us))) => {
                records.fill(span, out, |octets| from_boot(export_us, boot_us, u32::from_be_bytes(octets)));
            }
            (None, Some(Booted::Ago(uptime_ms))) => records
                .fill(span, out, |octets| from_uptime(export_us, uptime_ms, u32::from_be_bytes(octets))),
            (None, None) => out.fill(ABSENT),
        },
    }
}

/// Rule 24: which rate holds for each record, and why. Returns the last one.
fn sampling<R: Records>(
    plan: &RowPlan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    samplers: &mut Vec<u64>,
) -> Option<f64> {
    let n = records.count();
    let (column, source) = (FlowColumn::SamplingRate.index(), FlowColumn::SamplingSource.index());
    let view = context.view;
    let (sampling, exporter) = (&plan.sampling, context.exporter);
    let forced = if exporter.already_scaled { Some(1.0) } else { exporter.sampling_rate };
    let wide = view.templates.get(u64::from(context.template)).or(view.system);
    let (rest, rest_source) = match (forced, wide, context.header_rate, context.config.default_sampling_rate)
    {
        (Some(rate), ..) => (Some(rate), RateSource::Override),
        (_, Some(rate), ..) => (Some(rate), RateSource::System),
        (_, _, Some(rate), _) => (Some(rate), RateSource::Header),
        (.., Some(rate)) => (Some(rate), RateSource::Configured),
        _ => (None, RateSource::Unknown),
    };
    let by_sampler = sampling.sampler.filter(|_| !view.samplers.is_empty());
    let by_interface = !view.interfaces.is_empty() && (sampling.in_if.is_some() || sampling.out_if.is_some());
    if forced.is_some() || sampling.rates.is_empty() && by_sampler.is_none() && !by_interface {
        if let Some(rate) = rest {
            out.f64s(column).push_n(rate, n);
        }
        out.labels(source).push_n(rest_source.label(), n);
        return rest;
    }
    let find = |row: usize, sampler: Option<u64>| {
        let number = |span: Span| unsigned(records.bytes(row, span));
        let in_record = sampling.rates.iter().find_map(|rate| record_rate(*rate, row, records, exporter));
        if let Some(rate) = in_record {
            return (Some(rate), RateSource::Record);
        }
        if let Some(rate) = sampler.and_then(|id| view.sampler(id)) {
            return (Some(rate), RateSource::Sampler);
        }
        if by_interface {
            let interfaces = [sampling.in_if, sampling.out_if].into_iter().flatten();
            if let Some(rate) = interfaces.map(number).find_map(|id| view.interfaces.get(id)) {
                return (Some(rate), RateSource::Interface);
            }
        }
        (rest, rest_source)
    };
    let mut put = |(rate, why): (Option<f64>, RateSource), n: usize| {
        match rate {
            Some(rate) => out.f64s(column).push_n(rate, n),
            None => out.f64s(column).push_nulls(n),
        }
        out.labels(source).push_n(why.label(), n);
    };
    samplers.clear();
    if let Some(span) = by_sampler {
        samplers.resize(n.next_multiple_of(LANES), 0);
        numbers(span, records, samplers);
        samplers.truncate(n);
    }
    let (mut row, mut last) = (0, None);
    let mut next = |sampler: Option<u64>, rows: usize| {
        let found = find(row, sampler);
        put(found, rows);
        (row, last) = (row + rows, found.0);
    };
    if sampling.rates.is_empty() && !by_interface {
        // one sampler for most sets: it is looked up where it changes
        samplers.chunk_by(|one, other| one == other).for_each(|run| next(run.first().copied(), run.len()));
    } else {
        (0..n).for_each(|row| next(samplers.get(row).copied(), 1));
    }
    last
}

/// A field of all records, as numbers.
fn numbers<R: Records>(span: Span, records: &R, out: &mut [u64]) {
    match span.width {
        1 => records.fill(span, out, |[octet]: [u8; 1]| u64::from(octet)),
        2 => records.fill(span, out, |octets| u64::from(u16::from_be_bytes(octets))),
        4 => records.fill(span, out, |octets| u64::from(u32::from_be_bytes(octets))),
        _ => each(out, |row| unsigned(records.bytes(row, span))),
    }
}

fn record_rate<R: Records>(rate: Rate, row: usize, records: &R, exporter: &ExporterConfig) -> Option<f64> {
    let number = |span: Span| unsigned(records.bytes(row, span));
    match rate {
        Rate::Interval(span) => {
            let value = interval(records.bytes(row, span), exporter.little_endian_sampling);
            plausible(value as f64)
        }
        Rate::Packets { taken, skipped, algorithm } => {
            packets_rate(number(taken), skipped.map(number), algorithm.map(number))
        }
        Rate::OutOf { size, population } => out_of_rate(number(size), number(population)),
        Rate::Probability(span) => {
            let probability = float(records.bytes(row, span)).filter(|p| *p > 0.0)?;
            plausible(1.0 / probability)
        }
    }
}

/// A sampling interval, of exporters that are known to send it with the least octet first too (rule 27).
pub(crate) fn interval(bytes: &[u8], little_endian: bool) -> u64 {
    if little_endian {
        return bytes.iter().rev().fold(0, |value, octet| value << 8 | u64::from(*octet));
    }
    unsigned(bytes)
}

/// Rule 43.
fn icmp_in_port<R: Records>(icmp: &IcmpInPort, records: &R, out: &mut Builder, scratch: &mut Scratch) {
    let n = records.count();
    let protocols = &mut scratch.protocols;
    protocols.resize(n.next_multiple_of(LANES), 0);
    records.fill(icmp.protocol, protocols, |[protocol]: [u8; 1]| protocol);
    protocols.truncate(n);
    if !protocols.iter().fold(false, |any, protocol| any | (*protocol == 1) | (*protocol == 58)) {
        return;
    }
    // the few rows that have them, and runs of rows without between
    for (column, at) in [(FlowColumn::IcmpType, 0), (FlowColumn::IcmpCode, 1)] {
        let values = out.u8s(column.index());
        let mut rest = protocols.as_slice();
        while let Some(before) = rest.iter().position(|protocol| matches!(protocol, 1 | 58)) {
            let row = n - rest.len() + before;
            let no_source = icmp.src_port.is_none_or(|span| unsigned(records.bytes(row, span)) == 0);
            let value = records.bytes(row, icmp.dst_port).get(at).copied();
            values.push_nulls(before);
            values.push_option(value.filter(|_| no_source));
            rest = rest.get(before + 1..).unwrap_or_default();
        }
        values.push_nulls(rest.len());
    }
}

/// Rule 46: label, EXP and bottom-of-stack bit. Entries of zeros are unused fields of the template, no labels.
fn mpls<R: Records>(plan: &RowPlan, records: &R, out: &mut Builder) {
    fn entries<'a, R: Records>(
        plan: &'a RowPlan,
        records: &'a R,
        row: usize,
    ) -> impl Iterator<Item = u32> + 'a {
        let one = plan.mpls.iter().map(move |span| records.bytes(row, *span));
        // a whole stack: entries of four octets, the last one the TTL
        let stack = plan.mpls_stack.map(|span| records.bytes(row, span)).unwrap_or_default();
        let all = one.chain(stack.chunks_exact(4).map(|entry| &entry[..3]));
        all.map(|entry| unsigned(entry) as u32).take(32).filter(|entry| *entry >> 1 != 0)
    }
    type Part = (FlowColumn, fn(u32) -> u32);
    let columns: [Part; 2] =
        [(FlowColumn::MplsLabels, |entry| entry >> 4), (FlowColumn::MplsExp, |entry| entry >> 1 & 7)];
    for (column, part) in columns {
        let lists = out.lists(column.index());
        for row in 0..records.count() {
            lists.push(entries(plan, records, row).map(part));
        }
    }
}

/// Junos inline monitoring: six bits of type and ten of value; of type 2 the value is the exception for which the packet
/// was dropped, 0 where it was forwarded. RFC 7270: 64 forwarded, 128 dropped.
fn properties<R: Records>(plan: &RowPlan, records: &R, out: &mut Builder) {
    let statuses = out.u8s(FlowColumn::ForwardingStatus.index());
    for row in 0..records.count() {
        let mut words = plan.properties.iter().map(|span| unsigned(records.bytes(row, *span)));
        let exception = words.find(|word| word >> 10 == 2).map(|word| word & 0x3ff);
        statuses.push_option(exception.map(|exception| if exception == 0 { 64 } else { 128 }));
    }
}

/// Names for application ids, from the exporter's option table.
fn application_names<R: Records>(plan: &RowPlan, records: &R, context: &SetContext<'_>, out: &mut Builder) {
    let applications = &context.view.applications;
    if applications.is_empty() {
        return;
    }
    let step = |column| plan.steps.iter().find(|step| step.column == column);
    let (Some(id), None) = (step(FlowColumn::AppId), step(FlowColumn::AppName)) else { return };
    let texts = out.texts(FlowColumn::AppName.index());
    for row in 0..records.count() {
        match applications.get(records.bytes(row, id.span)) {
            Some(name) => texts.push(name),
            None => texts.push_nulls(1),
        }
    }
}

fn extras<R: Records>(
    plan: &RowPlan,
    records: &R,
    context: &SetContext<'_>,
    out: &mut Builder,
    scratch: &mut Scratch,
    uptimes: bool,
) {
    let maps = out.maps(FlowColumn::Extra.index());
    let octets = &mut scratch.room.octets;
    let around = &context.around;
    for row in 0..records.count() {
        // rule 33: what was replaced is not lost
        if let Some((start, end)) = scratch.replaced.get(row) {
            for (name, time) in [("exported_start_time", *start), ("exported_end_time", *end)] {
                if time != ABSENT && time != 0 {
                    maps.entry_with(name, |out| write_time(out, time));
                }
            }
        }
        let mut entry = |extra: &Extra, bytes: &[u8]| {
            maps.entry_with(&extra.name, |out| {
                let before = out.len();
                if *octets == 0 {
                    out.extend_from_slice("…".as_bytes());
                } else {
                    write_value(out, extra.data_type, bytes, around);
                }
                *octets = octets.saturating_sub(out.len() - before);
            });
        };
        for extra in &plan.extras {
            entry(extra, records.bytes(row, extra.span));
        }
        if uptimes {
            for extra in &plan.uptimes {
                entry(extra, records.bytes(row, extra.span));
            }
        }
        for (extra, when) in plan.losers.iter().filter(|_| scratch.conflict) {
            let some = |bytes: &[u8]| bytes.iter().any(|octet| *octet != 0);
            let bytes = records.bytes(row, extra.span);
            let lost = match when {
                When::NeitherIsZero(other) => some(bytes) && some(records.bytes(row, *other)),
                When::Exceeds(most) => unsigned(bytes) > *most,
            };
            if lost {
                entry(extra, bytes);
            }
        }
        maps.close_row();
    }
}

/// What the sampled header of the only record says, in the columns that the record itself has nothing for.
fn sampled<R: Records>(plan: &RowPlan, records: &R, out: &mut Builder) {
    let Some(Sampled { section, span, size, exported, offset, kind }) = plan.sampled else { return };
    let number = |span: Option<Span>| span.map(|span| unsigned(records.bytes(0, span)));
    let bytes = records.bytes(0, span);
    let whole = number(exported).and_then(|length| usize::try_from(length).ok());
    let bytes = whole.and_then(|length| bytes.get(..length)).unwrap_or(bytes);
    let link = match section {
        Section::Frame => Link::Ethernet,
        Section::Packet => Link::Ip,
        Section::Labelled => Link::Labelled,
        Section::Payload(protocol) => Link::Transport(number(protocol).unwrap_or(0) as u8),
    };
    // RFC 7133 §3.4, §3.5: it must begin where the packet does, and be of Ethernet
    if number(offset).unwrap_or(0) == 0 && number(kind).unwrap_or(1) == 1 {
        frame::parse(link, bytes).fill(out);
    }
    // one packet, of the length that the exporter says it had
    let size = number(size).filter(|size| *size > 0);
    if let (Some(size), false) = (size, out.has(FlowColumn::Bytes.index())) {
        out.u64s(FlowColumn::Bytes.index()).push(size);
    }
    if !out.has(FlowColumn::Packets.index()) {
        out.u64s(FlowColumn::Packets.index()).push(1);
    }
}
