//! NetFlow v1, v5 and v7: records of one form. Their layouts are written down as templates and compiled like all others.

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::OnceLock;

use weir_schemas::elements::Dictionary;

use super::compile::{Plan, compile};
use super::reject::RejectReason;
use super::template::{Field, Space, Template};
use super::wire::{u16_at, u32_at};

/// A message of v1, v5 or v7: its header and where the records are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Message<'a> {
    pub(crate) uptime_ms: u32,
    pub(crate) export_us: i64,
    /// Flows sent before; v1 has no such number.
    pub(crate) sequence: Option<u32>,
    /// Engine type and id of v5.
    pub(crate) domain: u32,
    pub(crate) rate: Option<f64>,
    pub(crate) count: u32,
    pub(crate) records: &'a [u8],
    /// The header counts more records than there are.
    pub(crate) short: bool,
}

/// Parses the header and bounds the records. `version` is 1, 5 or 7.
pub(crate) fn parse(version: u16, datagram: &[u8]) -> Result<Message<'_>, RejectReason> {
    let header = if version == 1 { 16 } else { 24 };
    let record = record_length(version);
    let Some(body) = datagram.get(header..) else { return Err(RejectReason::TooShort) };
    let count = usize::from(u16_at(datagram, 2));
    let whole = body.len().checked_div(record).unwrap_or(0);
    // what the bytes hold decides; a count beyond it is a lie or a datagram that was cut off
    let short = count > whole;
    let count = count.min(whole);
    if short && whole == 0 {
        return Err(RejectReason::BadCount);
    }
    let seconds = i64::from(u32_at(datagram, 8)).saturating_mul(1_000_000);
    // nanoseconds; some send anything here
    let nanos = i64::from(u32_at(datagram, 12));
    let below_second = if nanos < 1_000_000_000 { nanos.checked_div(1_000).unwrap_or(0) } else { 0 };
    // Cisco's v5 header: two bits of mode, fourteen of interval (rule 26)
    let interval = u16_at(datagram, 22) & 0x3fff;
    Ok(Message {
        uptime_ms: u32_at(datagram, 4),
        export_us: seconds.saturating_add(below_second),
        sequence: (version != 1).then(|| u32_at(datagram, 16)),
        domain: if version == 5 { u32::from(u16_at(datagram, 20)) } else { 0 },
        rate: (version == 5 && interval > 0).then(|| f64::from(interval)),
        count: u32::try_from(count).unwrap_or(u32::MAX),
        records: body.get(..count.saturating_mul(record)).unwrap_or_default(),
        short,
    })
}

fn record_length(version: u16) -> usize {
    if version == 5 { 48 } else { 52 }
}

/// The fields of a record: element and octets, 210 for octets without a meaning.
const V1: &[(u16, u16)] = &[
    (8, 4),
    (12, 4),
    (15, 4),
    (10, 2),
    (14, 2),
    (2, 4),
    (1, 4),
    (22, 4),
    (21, 4),
    (7, 2),
    (11, 2),
    (210, 2),
    (4, 1),
    (5, 1),
    (6, 1),
    (210, 3),
    (210, 8),
];
const V5: &[(u16, u16)] = &[
    (8, 4),
    (12, 4),
    (15, 4),
    (10, 2),
    (14, 2),
    (2, 4),
    (1, 4),
    (22, 4),
    (21, 4),
    (7, 2),
    (11, 2),
    (210, 1),
    (6, 1),
    (4, 1),
    (5, 1),
    (16, 2),
    (17, 2),
    (9, 1),
    (13, 1),
    (210, 2),
];
/// v7 has a word at the end: the router that the switch's shortcut goes by.
const V7: &[(u16, u16)] = &[
    (8, 4),
    (12, 4),
    (15, 4),
    (10, 2),
    (14, 2),
    (2, 4),
    (1, 4),
    (22, 4),
    (21, 4),
    (7, 2),
    (11, 2),
    (210, 1),
    (6, 1),
    (4, 1),
    (5, 1),
    (16, 2),
    (17, 2),
    (9, 1),
    (13, 1),
    (210, 2),
    (43, 4),
];

/// The plan for the records of a version.
pub(crate) fn plan(version: u16) -> &'static Plan {
    static PLANS: [OnceLock<Plan>; 3] = [const { OnceLock::new() }; 3];
    let [v1, v5, v7] = &PLANS;
    let (cell, fields) = match version {
        1 => (v1, V1),
        5 => (v5, V5),
        _ => (v7, V7),
    };
    cell.get_or_init(|| {
        let field =
            |(id, length): &(u16, u16)| Field { space: Space::V9, enterprise: 0, id: *id, length: *length };
        let template = Template { id: 256, scope: None, fields: fields.iter().map(field).collect() };
        compile(&template, Dictionary::builtin())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_as_long_as_their_records() {
        for version in [1, 5, 7] {
            assert_eq!(plan(version).layout.record, record_length(version), "v{version}");
            assert!(!plan(version).events);
        }
    }

    #[test]
    fn rule_26_the_mode_is_no_part_of_the_v5_rate() {
        let mut datagram = vec![0; 24 + 48];
        datagram[..4].copy_from_slice(&[0, 5, 0, 1]);
        datagram[22..24].copy_from_slice(&[0x40 | 0x03, 0xe8]);
        assert_eq!(parse(5, &datagram).unwrap().rate, Some(1_000.0));
        datagram[22..24].copy_from_slice(&[0xc0, 0]);
        assert_eq!(parse(5, &datagram).unwrap().rate, None);
    }

    #[test]
    fn counts_beyond_the_datagram_are_cut() {
        let mut datagram = vec![0; 24 + 2 * 48 + 7];
        datagram[..4].copy_from_slice(&[0, 5, 0xff, 0xff]);
        let message = parse(5, &datagram).unwrap();
        assert_eq!((message.count, message.short, message.records.len()), (2, true, 96));
        datagram[2..4].copy_from_slice(&[0, 1]);
        let message = parse(5, &datagram).unwrap();
        assert_eq!((message.count, message.short), (1, false));
        assert_eq!(parse(5, &datagram[..23]), Err(RejectReason::TooShort));
        assert_eq!(parse(5, &datagram[..30]), Err(RejectReason::BadCount));
    }
}
