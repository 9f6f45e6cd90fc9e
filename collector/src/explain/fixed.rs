//! NetFlow v1, v5 and v7: a header, and records of one form.

use weir_schemas::Table;

use super::data::{self, Context, Decoded};
use super::listing::Listing;
use super::values;
use crate::cells::Rows;
use crate::decode::DatagramMeta;
use crate::decode::fixed;
use crate::decode::run::SetOutcome;
use crate::decode::wire::{u16_at, u32_at};

/// Lists the datagram.
pub(super) fn list(listing: &mut Listing<'_>, version: u16, meta: &DatagramMeta, rows: &Rows) {
    let datagram = listing.data();
    let octets = if version == 1 { 16 } else { 24 };
    let heading = listing.open(format!("header of NetFlow v{version}"));
    if datagram.len() < octets {
        listing.broken(usize::MAX, "header", format!("too_short: the header has {octets} octets"));
        listing.close(heading);
        return;
    }
    header(listing, version, datagram);
    listing.close(heading);
    let message = match fixed::parse(version, datagram) {
        Ok(message) => message,
        Err(reason) => {
            let count = u16_at(datagram, 2);
            let why = format!("{}: the header counts {count} records, not one is there", reason.as_str());
            listing.broken(usize::MAX, "records", why);
            return;
        }
    };
    let plan = fixed::plan(version);
    let end = listing.at() + message.records.len();
    let outcome = SetOutcome { records: message.count, rows: message.count, truncated: false };
    let set = Decoded { plan, outcome, table: Table::Flows, cells: rows.of(Table::Flows), row: 0 };
    let context = Context {
        export_us: message.export_us,
        uptime_ms: Some(message.uptime_ms),
        received_us: meta.received_us,
        numbered: false,
        templates: &|_| None,
    };
    data::list(listing, end, &set, &context);
    if message.short {
        let count = u16_at(datagram, 2);
        let why = format!("bad_count: the header counts {count} records, {} are there", message.count);
        if listing.left(usize::MAX) > 0 {
            listing.broken(usize::MAX, "record", why);
        } else {
            listing.note("records").rule(why);
        }
    }
    listing.rest(usize::MAX, "octets after the records", "not looked at: the header counts no record there");
}

fn header(listing: &mut Listing<'_>, version: u16, datagram: &[u8]) {
    listing.number(2, "version");
    listing.number(2, "count");
    let uptime = u32_at(datagram, 4);
    listing.field(4, "sysUptime").value(format!("{uptime} ms ({})", values::uptime(uptime)));
    let seconds = u32_at(datagram, 8);
    let time = values::time(i64::from(seconds) * 1_000_000);
    listing.field(4, "unix seconds").value(format!("{seconds} ({time})"));
    let nanos = u32_at(datagram, 12);
    let line = listing.field(4, "unix nanoseconds").value(nanos.to_string());
    if nanos >= 1_000_000_000 {
        line.rule("more than a second: taken as 0");
    }
    if version == 1 {
        return;
    }
    listing.number(4, "flow sequence");
    if let Some(line) = listing.last() {
        line.rule("flows sent before");
    }
    if version == 7 {
        listing.number(4, "reserved");
        return;
    }
    listing.number(1, "engine type");
    listing.number(1, "engine id");
    if let Some(line) = listing.last() {
        line.to("observation_domain").rule("type × 256 + id");
    }
    let sampling = u16_at(datagram, 22);
    listing
        .field(2, "sampling")
        .value(format!("mode {}, interval {}", sampling >> 14, sampling & 0x3fff))
        .to("sampling_rate")
        .rule("two bits of mode, fourteen of interval");
}
