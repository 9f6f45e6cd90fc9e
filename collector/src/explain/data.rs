//! The records of a data set, field by field, by the plan that the decoder ran over them.

use weir_schemas::Table;
use weir_schemas::elements::{DataType, Dictionary};

use super::destination::{Destination, destinations};
use super::listing::Listing;
use super::lists::{self, Templates};
use super::{frame, values};
use crate::cells::Cells;
use crate::decode::compile::{Clock, Plan, Section};
use crate::decode::frame::Link;
use crate::decode::records::Walked;
use crate::decode::run::SetOutcome;
use crate::decode::template::{Field, VARIABLE};
use crate::decode::wire::unsigned;

/// Records of one set that are looked at: no datagram has more octets.
const MAX_RECORDS: usize = 1 << 16;

/// What the records of a set need of their message.
pub(super) struct Context<'a> {
    pub(super) export_us: i64,
    pub(super) uptime_ms: Option<u32>,
    pub(super) received_us: i64,
    /// The fields have numbers on the wire: not so in v1, v5 and v7.
    pub(super) numbered: bool,
    pub(super) templates: &'a Templates<'a>,
}

/// A set that was decoded: its plan, and the rows that it made.
pub(super) struct Decoded<'a> {
    pub(super) plan: &'a Plan,
    pub(super) outcome: SetOutcome,
    pub(super) table: Table,
    pub(super) cells: &'a Cells,
    /// The first of its rows.
    pub(super) row: usize,
}

/// Lists the content of a data set up to `end`.
pub(super) fn list(listing: &mut Listing<'_>, end: usize, set: &Decoded<'_>, context: &Context<'_>) {
    let content = listing.peek(listing.left(end));
    let base = listing.at();
    let layout = &set.plan.layout;
    let mut places = Vec::new();
    Walked::walk(content, &layout.fields, MAX_RECORDS, &mut places);
    let destinations = destinations(set.plan, listing.dictionary());
    let (mut reverse_row, mut rate) = (set.row + set.outcome.records as usize, None);
    let records = places.chunks_exact(layout.fields.len().max(1)).take(set.outcome.records as usize);
    for (number, places) in records.enumerate() {
        let row = set.row + number;
        let heading = listing.open(format!("record {}", number + 1));
        if let Some(line) = listing.title(heading) {
            line.to(format!("row {} of {}", row + 1, set.table.name()));
        }
        record(listing, base, places, set, row, &destinations, context);
        listing.close(heading);
        if let Some((_, counted)) = &set.plan.reverse {
            let octets = |span: crate::decode::compile::Span| {
                let (start, length) = places.get(span.field).copied().unwrap_or_default();
                content.get(start as usize..(start + length) as usize).unwrap_or_default()
            };
            if counted.is_none_or(|span| unsigned(octets(span)) != 0) {
                listing
                    .note("reverse direction")
                    .to(format!("row {} of {}", reverse_row + 1, set.table.name()))
                    .rule("RFC 5103: the reverse half is a row of its own, its ends swapped");
                reverse_row += 1;
            } else {
                listing
                    .note("reverse direction")
                    .rule("RFC 5103: the reverse half of no packets is no record");
            }
        }
        sampling(listing, set, row, &mut rate);
    }
    remainder(listing, end, set);
}

/// What follows the records.
fn remainder(listing: &mut Listing<'_>, end: usize, set: &Decoded<'_>) {
    let (left, least) = (listing.left(end), set.plan.layout.record);
    let cut = set.outcome.truncated || set.outcome.records == 0;
    if left == 0 {
    } else if cut && left >= least && set.plan.layout.variable {
        let rule = "truncated_record: a length inside of it goes beyond the set";
        listing.broken(end, "record", rule);
    } else if left >= least {
        listing.broken(end, "records", "truncated_record: more records than weir takes of one set");
    } else if set.outcome.records == 0 {
        let rule = format!("truncated_record: the set ends before its only record does ({least} octets)");
        listing.broken(end, "record", rule);
    } else {
        listing.rest(end, "padding", "shorter than a record (RFC 7011 §3.3.1)");
    }
}

/// Where the sampling rate of the rows comes from, where it is another than that of the row before.
fn sampling(listing: &mut Listing<'_>, set: &Decoded<'_>, row: usize, before: &mut Option<(String, String)>) {
    if set.table == Table::Options {
        return;
    }
    let Some(source) = set.cells.text("sampling_source", row) else { return };
    let rate = set.cells.text("sampling_rate", row).unwrap_or_else(|| "NULL".to_owned());
    let now = Some((rate, source));
    if *before == now {
        return;
    }
    *before = now;
    let Some((rate, source)) = before.as_ref() else { return };
    let rule = match source.as_str() {
        "override" => "configured for this exporter, whatever it says",
        "record" => "the record has it",
        "sampler" => "by the sampler that the record names, from the options data",
        "interface" => "by the interface, from the options data",
        "system" => "for the whole domain or for this template, from the options data",
        "header" => "from the header, without the two bits of the mode",
        "configured" => "the configured default: the exporter announced none",
        _ => "unknown: the exporter announced none so far",
    };
    listing.note("sampling rate").value(format!("{rate}, from {source}")).to("sampling_rate").rule(rule);
}

fn record(
    listing: &mut Listing<'_>,
    base: usize,
    places: &[(u32, u32)],
    set: &Decoded<'_>,
    row: usize,
    destinations: &[Destination],
    context: &Context<'_>,
) {
    let mut with_octets = 0;
    for field in &set.plan.template.fields {
        if field.length == 0 {
            let name = field.name(listing.dictionary());
            listing.field(0, name).rule("no octets in the template: no value");
            continue;
        }
        let (Some((start, length)), Some(destination), Some(extra)) =
            (places.get(with_octets), destinations.get(with_octets), set.plan.named.get(with_octets))
        else {
            return;
        };
        with_octets += 1;
        let (start, length) = (base + *start as usize, *length as usize);
        if field.length == VARIABLE {
            lists::prefix(listing, start.saturating_sub(listing.at()), length);
        }
        one(listing, *field, &extra.name, length, set, row, destination, context);
    }
}

#[expect(clippy::too_many_arguments, reason = "a field, and what is known about it")]
fn one(
    listing: &mut Listing<'_>,
    field: Field,
    name: &str,
    length: usize,
    set: &Decoded<'_>,
    row: usize,
    destination: &Destination,
    context: &Context<'_>,
) {
    let end = listing.at().saturating_add(length);
    let data_type = field.data_type(listing.dictionary());
    let (lines, depth_name) = (listing.lines.len(), name.to_owned());
    let inside = inside(set.plan, field, listing.peek(length), listing.dictionary());
    if let Some(link) = inside.filter(|_| length > 0) {
        let heading = listing.open(depth_name);
        describe(listing, heading, field, destination, context);
        frame::list(listing, link, end);
        listing.rest(end, "payload", "not looked at");
        listing.close(heading);
        return;
    }
    let is_list =
        matches!(data_type, DataType::BasicList | DataType::SubTemplateList | DataType::SubTemplateMultiList);
    if is_list && length > 0 {
        let heading = listing.open(depth_name);
        describe(listing, heading, field, destination, context);
        lists::list(listing, data_type, end, context.received_us, context.templates, 0);
        listing.rest(end, "rest of the list", "not read");
        listing.close(heading);
        return;
    }
    let octets = listing.peek(length);
    let value = values::element(field, octets, context.received_us, listing.dictionary());
    listing.field(length, depth_name).value(value);
    describe(listing, lines, field, destination, context);
    clock(listing, octets, set, row, destination, context);
    icmp(listing, name, set, row);
}

/// ICMP in the destination port (v5 and v9): in the rows where it is.
fn icmp(listing: &mut Listing<'_>, name: &str, set: &Decoded<'_>, row: usize) {
    let Some(icmp) = set.plan.rows.icmp_in_port else { return };
    if set.plan.named.get(icmp.dst_port.field).is_none_or(|extra| &*extra.name != name) {
        return;
    }
    if let (Some(kind), Some(code)) = (set.cells.text("icmp_type", row), set.cells.text("icmp_code", row))
        && let Some(line) = listing.last()
    {
        line.to("dst_port, icmp_type, icmp_code")
            .rule(format!("of ICMP: type {kind} in the first octet, code {code} in the second"));
    }
}

/// Element, column and rules of the field whose line this is.
fn describe(
    listing: &mut Listing<'_>,
    line: usize,
    field: Field,
    destination: &Destination,
    context: &Context<'_>,
) {
    let dictionary = listing.dictionary();
    let Some(line) = listing.title(line) else { return };
    if context.numbered {
        line.element = Some(lists::element_id(field, dictionary));
    }
    if !destination.columns.is_empty() {
        line.to(destination.columns.join(", "));
    }
    for rule in &destination.rules {
        line.rule(rule);
    }
}

/// The time that the decoder made of it.
fn clock(
    listing: &mut Listing<'_>,
    octets: &[u8],
    set: &Decoded<'_>,
    row: usize,
    destination: &Destination,
    context: &Context<'_>,
) {
    let Some(clock) = destination.clock else { return };
    let times = set.plan.rows.times;
    let column = if times.start == Some(clock) { "start_time" } else { "end_time" };
    let time = set.cells.text(column, row).and_then(|us| us.parse().ok()).map(values::time);
    let Some(line) = listing.last() else { return };
    if let Some(time) = &time {
        let before = line.value.take().unwrap_or_default();
        line.value(if before.starts_with(time.get(..19).unwrap_or(time)) {
            before
        } else {
            format!("{before} → {time}")
        });
    }
    if !matches!(clock, Clock::Uptime(_)) {
        return;
    }
    match (times.boot, context.uptime_ms, &time) {
        (Some(_), ..) => line.rule("uptime: counts from the boot time in the record (IE 160)"),
        (None, Some(uptime), _) => {
            let first = unsigned(octets) as u32;
            let ago = i64::from(uptime.wrapping_sub(first).cast_signed());
            let export = values::time(context.export_us);
            line.rule(format!(
                "export time {export} − (sysUptime {uptime} − {first} = {ago}) ms, signed, modulo 2^32 ms"
            ))
        }
        (None, None, Some(_)) => line.rule("uptime: counts from the boot time in the options data (IE 160)"),
        (None, None, None) => {
            let column = format!("extra.{}", line.name);
            line.to(column).rule("uptime, and the boot time (IE 160) is not known: there is no time")
        }
    };
}

/// The link layer, where the field is a piece of a packet.
fn inside(plan: &Plan, field: Field, octets: &[u8], dictionary: &Dictionary) -> Option<Link> {
    let (enterprise, id) = field.identity(dictionary);
    if enterprise != 0 || octets.is_empty() {
        return None;
    }
    let sampled = plan.rows.sampled?;
    match (id, sampled.section) {
        (104 | 315, Section::Frame) => Some(Link::Ethernet),
        (317, Section::Labelled) => Some(Link::Labelled),
        (313, Section::Packet) => Some(Link::Ip),
        _ => None,
    }
}
