//! sFlow version 5: the header, then sample by sample and record by record. Structures whose fields go to `extra` are
//! listed from the decoder's own table of formats, the others from [`structures`].

mod structures;

use weir_schemas::names;
use weir_schemas::tables::HostColumn;

use self::structures::{Field, Shape};
use super::listing::Listing;
use super::{frame, values};
use crate::decode::Outcome;
use crate::decode::frame::Link;
use crate::decode::sflow::{counters, formats, hosts, records};
use crate::decode::wire::u32_at;

/// Values of a list that are shown.
const MAX_SHOWN: usize = 64;

/// Lists the datagram.
pub(super) fn list(listing: &mut Listing<'_>, outcome: Outcome) {
    let Some(samples) = header(listing) else { return };
    // rows can be told where every sample made one
    let mut rows = (outcome.rejected.is_none() && outcome.sets_rejected == 0).then(Counts::default);
    for number in 1..=samples {
        if listing.left(usize::MAX) == 0 {
            let why = format!("truncated_record: {samples} samples are announced, {} are there", number - 1);
            listing.note("samples").rule(why);
            break;
        }
        if !sample(listing, number, rows.as_mut()) {
            break;
        }
    }
    listing.rest(usize::MAX, "octets after the samples", "not looked at: the header counts no sample there");
}

/// Rows so far, by table.
#[derive(Default)]
struct Counts {
    flows: usize,
    discards: usize,
}

/// Answers how many samples are announced; None where the header is none.
fn header(listing: &mut Listing<'_>) -> Option<u32> {
    let heading = listing.open("sFlow header (sample_datagram_v5)");
    let samples = header_fields(listing);
    listing.close(heading);
    samples
}

fn header_fields(listing: &mut Listing<'_>) -> Option<u32> {
    let end = usize::MAX;
    let cut = |listing: &mut Listing<'_>| {
        listing.broken(end, "header", "too_short: it ends before its fields do");
        None
    };
    if listing.left(end) < 4 {
        return cut(listing);
    }
    match listing.number(4, "version") {
        5 => {}
        2 | 4 => {
            listing.broken(end, "datagram", "old_sflow: version 5 is decoded");
            return None;
        }
        _ => {
            listing.broken(end, "datagram", "unknown_version: none that weir knows");
            return None;
        }
    }
    if listing.left(end) < 4 {
        return cut(listing);
    }
    let family = u32_at(listing.peek(4), 0);
    if family > 2 {
        listing.number(4, "agent address type");
        listing.broken(end, "datagram", "bad_agent: address types are 0 unknown, 1 IPv4 and 2 IPv6");
        return None;
    }
    if !address(listing, end, "agent address", "exporter_addr, agent_addr") || listing.left(end) < 16 {
        return cut(listing);
    }
    listing.number(4, "sub-agent");
    if let Some(line) = listing.last() {
        line.to("observation_domain");
    }
    listing.number(4, "sequence number");
    if let Some(line) = listing.last() {
        line.rule("counts datagrams of this sub-agent");
    }
    let uptime = u32_at(listing.peek(4), 0);
    listing
        .field(4, "uptime")
        .value(format!("{uptime} ms ({})", values::uptime(uptime)))
        .rule("no clock: the times of the rows are the receive time");
    Some(u32::try_from(listing.number(4, "samples")).unwrap_or(u32::MAX))
}

/// A type and an address; false where it is cut off.
fn address(listing: &mut Listing<'_>, end: usize, name: &str, column: &str) -> bool {
    let octets = match listing.peek(4) {
        [0, 0, 0, 0] => 0,
        [0, 0, 0, 1] => 4,
        [0, 0, 0, 2] => 16,
        _ => return false,
    };
    if listing.left(end) < 4 + octets {
        return false;
    }
    let family = match octets {
        0 => "0 (unknown)",
        4 => "1 (IPv4)",
        _ => "2 (IPv6)",
    };
    listing.field(4, format!("{name} type")).value(family);
    if octets > 0 {
        let value = ip(listing.peek(octets));
        to(listing.field(octets, name).value(value), column);
    }
    true
}

fn ip(octets: &[u8]) -> String {
    use weir_schemas::Address;
    if let Ok(octets) = octets.try_into() {
        return Address::v4(octets).to_string();
    }
    octets.try_into().map_or_else(|_| String::new(), |octets| Address::v6(octets).to_string())
}

fn to(line: &mut super::listing::Line, column: &str) {
    if !column.is_empty() {
        line.to(column);
    }
}

/// `0:1` and the like: enterprise and format of a structure.
fn format_name(format: u32) -> String {
    format!("{}:{}", format >> 12, format & 0xfff)
}

/// One sample; false where nobody knows where the next begins.
fn sample(listing: &mut Listing<'_>, number: u32, rows: Option<&mut Counts>) -> bool {
    let left = listing.left(usize::MAX);
    let (format, length) = (u32_at(listing.peek(4), 0), u32_at(listing.peek(8), 4) as usize);
    if left < 8 || length > left - 8 {
        let heading = listing.open(format!("sample {number} that is cut off"));
        if left >= 8 {
            listing.field(4, "sample format").value(format_name(format));
            listing.number(4, "sample length");
        }
        let why = "truncated_record: the sample goes beyond the datagram";
        listing.broken(usize::MAX, "not read", why);
        listing.close(heading);
        return false;
    }
    let (name, table) = match format {
        1 => ("flow sample", "flows"),
        3 => ("expanded flow sample", "flows"),
        2 => ("counter sample", COUNTERS),
        4 => ("expanded counter sample", COUNTERS),
        5 => ("discarded packet", "discards"),
        _ => ("sample of an unknown format", ""),
    };
    let heading = listing.open(format!("sample {number}: {name}"));
    let row = rows.and_then(|rows| {
        let count = match table {
            "flows" => &mut rows.flows,
            "discards" => &mut rows.discards,
            _ => return None,
        };
        *count += 1;
        Some(*count)
    });
    match (listing.title(heading), row) {
        (Some(line), Some(row)) => drop(line.to(format!("row {row} of {table}"))),
        (Some(line), None) if table == COUNTERS => drop(line.to(COUNTERS.to_owned())),
        _ => {}
    }
    listing.field(4, "sample format").value(format_name(format));
    listing.number(4, "sample length");
    let end = listing.at() + length;
    match format {
        1 | 3 => flow_sample(listing, format == 3, end),
        2 | 4 => counter_sample(listing, format == 4, end),
        5 => discard(listing, end),
        _ => {
            listing.rest(
                end,
                "sample",
                "a format that weir does not know: skipped by its length, and counted",
            );
        }
    }
    listing.rest(end, "rest of the sample", "not looked at: no record is counted there");
    listing.close(heading);
    true
}

/// A word of a sample; None where the sample is cut off, which is listed.
fn word(listing: &mut Listing<'_>, end: usize, name: &str, column: &str) -> Option<u32> {
    if listing.left(end) < 4 {
        listing.broken(end, name, "truncated_record: the sample ends before its fields do");
        return None;
    }
    let value = u32_at(listing.peek(4), 0);
    to(listing.field(4, name).value(value.to_string()), column);
    Some(value)
}

/// Class and index of what is sampled.
fn source(listing: &mut Listing<'_>, expanded: bool, end: usize) -> Option<()> {
    let class_name = |class: u32| match class {
        0 => "ifIndex",
        1 => "VLAN",
        2 => "entity",
        _ => "class",
    };
    if expanded {
        let class = word(listing, end, "source class", "")?;
        if let Some(line) = listing.last() {
            line.value(format!("{class} ({})", class_name(class)));
        }
        word(listing, end, "source index", "")?;
        return Some(());
    }
    let source = word(listing, end, "source id", "")?;
    if let Some(line) = listing.last() {
        let (class, index) = (source >> 24, source & 0x00ff_ffff);
        line.value(format!("{} {index} (class {class})", class_name(class)))
            .rule("class in the top octet, index below");
    }
    Some(())
}

/// Rule 40: the form in the top two bits, or in a word of its own.
fn interface(listing: &mut Listing<'_>, expanded: bool, end: usize, output: bool) -> Option<()> {
    let name = if output { "output" } else { "input" };
    let (form, value) = if expanded {
        let form = word(listing, end, &format!("{name} form"), "")?;
        (form, word(listing, end, name, "")?)
    } else {
        let word = word(listing, end, name, "")?;
        (word >> 30, word & 0x3fff_ffff)
    };
    let (column, flag) = if output { ("out_if", "out_if_flag") } else { ("in_if", "in_if_flag") };
    if let Some(line) = listing.last() {
        match form {
            0 if value == 0x3fff_ffff => line.value("the device itself").to(flag),
            0 => line.value(format!("ifIndex {value}")).to(column),
            1 => line
                .value(format!("discarded, reason {}", reason(value)))
                .to(format!("{flag}, drop_reason, forwarding_status")),
            2 => line.value(format!("{value} interfaces")).to(flag),
            _ => line.value(format!("form {form}, {value}")).rule("a form that there is not"),
        };
    }
    Some(())
}

fn reason(reason: u32) -> String {
    values::with_name(reason.into(), names::drop_reason_name(reason))
}

fn flow_sample(listing: &mut Listing<'_>, expanded: bool, end: usize) {
    let count = (|| {
        word(listing, end, "sequence number", "")?;
        if let Some(line) = listing.last() {
            line.rule("counts the samples of this source");
        }
        source(listing, expanded, end)?;
        word(listing, end, "sampling rate", "sampling_rate")?;
        if let Some(line) = listing.last() {
            line.rule("the rate that the agent declares; 0: unknown");
        }
        word(listing, end, "sample pool", "sampling_effective")?;
        if let Some(line) = listing.last() {
            line.rule("packets that could have been sampled: against the samples, the rate in effect");
        }
        word(listing, end, "drops", "")?;
        interface(listing, expanded, end, false)?;
        interface(listing, expanded, end, true)?;
        word(listing, end, "records", "")
    })();
    if let Some(count) = count {
        records_of(listing, count, end, records::MAX_RECORDS, flow_record);
    }
}

fn counter_sample(listing: &mut Listing<'_>, expanded: bool, end: usize) {
    let count = (|| {
        word(listing, end, "sequence number", "")?;
        source(listing, expanded, end)?;
        word(listing, end, "records", "")
    })();
    if let Some(count) = count {
        records_of(listing, count, end, counters::MAX_RECORDS, counter_record);
    }
}

fn discard(listing: &mut Listing<'_>, end: usize) {
    let count = (|| {
        word(listing, end, "sequence number", "")?;
        source(listing, true, end)?;
        word(listing, end, "drops", "")?;
        word(listing, end, "input", "in_if")?;
        word(listing, end, "output", "out_if")?;
        let why = word(listing, end, "reason", "drop_reason, forwarding_status")?;
        if let Some(line) = listing.last() {
            line.value(reason(why));
        }
        word(listing, end, "records", "")
    })();
    if let Some(count) = count {
        records_of(listing, count, end, records::MAX_RECORDS, flow_record);
    }
}

/// The records of a sample, each with format and length.
fn records_of(
    listing: &mut Listing<'_>,
    count: u32,
    end: usize,
    most: usize,
    each: fn(&mut Listing<'_>, u32, usize) -> &'static str,
) {
    let mut seen: Vec<u32> = Vec::new();
    for number in 0..count {
        let left = listing.left(end);
        if left == 0 {
            let why = format!("truncated_record: {count} records are announced, {number} are there");
            listing.note("records").rule(why);
            return;
        }
        let (format, length) = (u32_at(listing.peek(4), 0), u32_at(listing.peek(8), 4) as usize);
        if left < 8 || length > left - 8 {
            let heading = listing.open("record that is cut off");
            if left >= 8 {
                listing.field(4, "record format").value(format_name(format));
                listing.number(4, "record length");
            }
            listing.broken(end, "not read", "truncated_record: the record goes beyond its sample");
            listing.close(heading);
            return;
        }
        let heading = listing.open("record");
        listing.field(4, "record format").value(format_name(format));
        listing.number(4, "record length");
        let stop = listing.at() + length;
        if seen.contains(&format) {
            listing.rest(
                stop,
                "record",
                "a second record of this format in the sample: skipped, and counted",
            );
        } else if seen.len() >= most {
            listing.rest(
                stop,
                "record",
                "beyond the records that weir takes of one sample: skipped, and counted",
            );
        } else {
            seen.push(format);
            let name = each(listing, format, stop);
            if let Some(line) = listing.title(heading) {
                line.name = format!("record {name} ({})", format_name(format));
            }
        }
        listing.rest(
            stop,
            "rest of the record",
            "not looked at: a newer version of the structure, or padding",
        );
        listing.close(heading);
    }
}

/// Lists a record, and answers what it is called.
fn flow_record(listing: &mut Listing<'_>, format: u32, end: usize) -> &'static str {
    if format == 1 {
        sampled_header(listing, end);
        return "sampled_header";
    }
    if let Some((name, fields)) = structures::flow(format) {
        structure(listing, fields, end);
        return name;
    }
    match formats::flow(format) {
        Some(fields) => by_table(listing, fields, end),
        None => unknown(listing, format, end),
    }
}

/// Where the rows of a counter sample go: one for its interface, one for its host, one a queue.
const COUNTERS: &str = "rows of interface_counters, host_counters or queue_counters";

/// A structure whose fields have columns of `host_counters`.
fn host(listing: &mut Listing<'_>, fields: &'static [(HostColumn, hosts::Wire)], end: usize) -> &'static str {
    for (column, wire) in fields {
        if listing.left(end) == 0 {
            listing.note(column.column().name).rule("an older version of the structure: it ends here");
            break;
        }
        let shape = match wire {
            hosts::Wire::U32 | hosts::Wire::Percent => Shape::U32,
            hosts::Wire::U64 => Shape::U64,
            hosts::Wire::F32 => Shape::F32,
            hosts::Wire::Text => Shape::Text,
            hosts::Wire::Uuid => Shape::Uuid,
        };
        let name = column.column().name;
        if !one(listing, name, shape, name, end) {
            listing.broken(end, name, "truncated_record: the record ends before its fields do");
            break;
        }
    }
    "host counters"
}

/// A queue: a row of `queue_counters`.
fn queue(listing: &mut Listing<'_>, end: usize) -> &'static str {
    for column in hosts::QUEUE_COLUMNS {
        let name = column.column().name;
        if !one(listing, name, Shape::U32, name, end) {
            listing.broken(end, name, "truncated_record: the record ends before its fields do");
            break;
        }
    }
    "queue counters"
}

fn counter_record(listing: &mut Listing<'_>, format: u32, end: usize) -> &'static str {
    if format == formats::QUEUE {
        return queue(listing, end);
    }
    if let Some(fields) = hosts::columns(format) {
        return host(listing, fields, end);
    }
    match formats::counter(format) {
        _ if format == 1 => {
            structure(listing, structures::IF_COUNTERS, end);
            "if_counters"
        }
        Some(fields) => by_table(listing, fields, end),
        None => unknown(listing, format, end),
    }
}

fn unknown(listing: &mut Listing<'_>, format: u32, end: usize) -> &'static str {
    let column = format!("extra.{}", format_name(format));
    if listing.left(end) > 0 {
        let n = listing.left(end);
        listing
            .field(n, "record")
            .to(column)
            .rule("a format that weir does not know: kept as octets, and counted");
    }
    "of an unknown format"
}

/// The first octets of the packet.
fn sampled_header(listing: &mut Listing<'_>, end: usize) {
    let read = (|| {
        let protocol = word(listing, end, "header protocol", "")?;
        let (name, link) = match protocol {
            1 => ("Ethernet", Some(Link::Ethernet)),
            7 => ("PPP", Some(Link::Ppp)),
            14 => ("POS", Some(Link::Ppp)),
            11 => ("IPv4", Some(Link::Ip)),
            12 => ("IPv6", Some(Link::Ip)),
            13 => ("MPLS", Some(Link::Mpls)),
            _ => ("not decoded", None),
        };
        if let Some(line) = listing.last() {
            line.value(format!("{protocol} ({name})"));
        }
        word(listing, end, "frame length", "bytes")?;
        word(listing, end, "stripped", "")?;
        let length = word(listing, end, "header length", "")? as usize;
        Some((link, length))
    })();
    let Some((link, length)) = read else { return };
    // a length that lies is cut to what is there
    if length > listing.left(end)
        && let Some(line) = listing.last()
    {
        line.rule("more than there is: cut to the record");
    }
    let stop = (listing.at().saturating_add(length)).min(end);
    let heading = listing.open("header");
    match link {
        Some(link) => frame::list(listing, link, stop),
        None => listing.rest(stop, "octets", "a link layer that weir does not read"),
    }
    listing.close(heading);
    listing.rest(end, "padding", "to four octets (XDR)");
}

/// A structure with columns of its own.
fn structure(listing: &mut Listing<'_>, fields: &[Field], end: usize) {
    for field in fields {
        if !one(listing, field.name, field.shape, field.column, end) {
            listing.broken(end, field.name, "truncated_record: the record ends before its fields do");
            return;
        }
    }
}

/// A structure of the decoder's table: its fields go to `extra` by name.
fn by_table(listing: &mut Listing<'_>, fields: &'static [formats::Field], end: usize) -> &'static str {
    use formats::Type;
    let first = fields.first().map_or("", |field| field.name);
    let name = first.split_once('.').map_or(first, |(structure, _)| structure);
    for field in fields {
        if listing.left(end) == 0 {
            listing.note(field.name).rule("an older version of the structure: it ends here");
            break;
        }
        let shape = match field.kind {
            Type::U32 => Shape::U32,
            Type::U64 => Shape::U64,
            Type::I32 => Shape::I32,
            Type::Text => Shape::Text,
            Type::Mac => Shape::Mac,
            Type::Ipv4 => Shape::Ipv4,
            Type::Ipv6 => Shape::Ipv6,
            Type::Adapters => Shape::Adapters,
            Type::Lanes => Shape::Lanes,
        };
        if !one(listing, field.name, shape, &format!("extra.{}", field.name), end) {
            listing.broken(end, field.name, "truncated_record: the record ends before its fields do");
            break;
        }
    }
    name
}

/// One field; false where it is cut off.
fn one(listing: &mut Listing<'_>, name: &str, shape: Shape, column: &str, end: usize) -> bool {
    let left = listing.left(end);
    if let Some(octets) = shape.octets() {
        if left < octets {
            return false;
        }
        let bytes = listing.peek(octets);
        let value = shape.show(bytes);
        let line = listing.field(octets, name).value(value);
        to(line, column);
        let ones = bytes.iter().all(|octet| *octet == 0xff);
        if ones && matches!(shape, Shape::U32 | Shape::U64) {
            line.rule("all ones: unknown, NULL");
        }
        return true;
    }
    match shape {
        Shape::Address => address(listing, end, name, column),
        Shape::Text => text(listing, name, column, end),
        Shape::Words => words(listing, name, column, end, 1, &|word| word.to_string()),
        Shape::Labels => words(listing, name, column, end, 1, &|entry| {
            format!("{} (EXP {}, TTL {})", entry >> 12, entry >> 9 & 7, entry & 0xff)
        }),
        Shape::Tags => {
            words(listing, name, column, end, 1, &|tag| format!("{:#06x}:{}", tag >> 16, tag & 0x0fff))
        }
        Shape::Lanes => words(listing, name, column, end, 10, &|word| word.to_string()),
        Shape::AsPath => as_path(listing, column, end),
        Shape::Adapters => adapters(listing, name, column, end),
        _ => false,
    }
}

/// A length, the octets, and padding to four.
fn text(listing: &mut Listing<'_>, name: &str, column: &str, end: usize) -> bool {
    let left = listing.left(end);
    let length = u32_at(listing.peek(4), 0) as usize;
    if left < 4 || length > left - 4 {
        return false;
    }
    listing.field(4, format!("{name} length")).value(length.to_string());
    let value = format!("{:?}", String::from_utf8_lossy(listing.peek(length)));
    to(listing.field(length, name).value(value), column);
    let padding = length.wrapping_neg() & 3;
    let padding = padding.min(listing.left(end));
    if padding > 0 {
        listing.field(padding, "padding").rule("to four octets (XDR)");
    }
    true
}

/// A count, and so many times `each` words.
fn words(
    listing: &mut Listing<'_>,
    name: &str,
    column: &str,
    end: usize,
    each: usize,
    show: &dyn Fn(u32) -> String,
) -> bool {
    let left = listing.left(end);
    let count = u32_at(listing.peek(4), 0) as usize;
    let Some(octets) = count.checked_mul(4 * each) else { return false };
    if left < 4 || octets > left - 4 {
        return false;
    }
    listing.field(4, format!("{name} count")).value(count.to_string());
    if octets == 0 {
        return true;
    }
    let (all, _) = listing.peek(octets).as_chunks::<4>();
    let mut shown: Vec<_> = all.iter().take(MAX_SHOWN).map(|word| show(u32::from_be_bytes(*word))).collect();
    if all.len() > MAX_SHOWN {
        shown.push("…".to_owned());
    }
    to(listing.field(octets, name).value(shown.join(", ")), column);
    true
}

/// Segments, each of a type (1 set, 2 sequence) and a list.
fn as_path(listing: &mut Listing<'_>, column: &str, end: usize) -> bool {
    if listing.left(end) < 4 {
        return false;
    }
    let segments = listing.number(4, "AS path segments");
    for _ in 0..segments {
        if listing.left(end) < 8 {
            return false;
        }
        let kind = match listing.peek(4) {
            [0, 0, 0, 1] => "1 (set)",
            [0, 0, 0, 2] => "2 (sequence)",
            _ => "unknown",
        };
        listing.field(4, "segment type").value(kind);
        if !words(listing, "segment", column, end, 1, &|asn| asn.to_string()) {
            return false;
        }
    }
    true
}

/// ifIndex and MAC addresses of each adapter.
fn adapters(listing: &mut Listing<'_>, name: &str, column: &str, end: usize) -> bool {
    if listing.left(end) < 4 {
        return false;
    }
    let count = listing.number(4, format!("{name} count"));
    for _ in 0..count {
        let left = listing.left(end);
        if left < 8 {
            return false;
        }
        let macs = u32_at(listing.peek(8), 4) as usize;
        if macs.checked_mul(8).is_none_or(|octets| octets > left - 8) {
            return false;
        }
        listing.number(4, "ifIndex");
        listing.number(4, "MAC addresses");
        for _ in 0..macs {
            let value = Shape::Mac.show(listing.peek(8));
            to(listing.field(8, "MAC address").value(value), column);
        }
    }
    true
}
