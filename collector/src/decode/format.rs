//! Elements without a column of their own, as text: each by its data type (RFC 7011 §6.1), lists (RFC 6313) as JSON.

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::io::Write;

use weir_schemas::Address;
use weir_schemas::elements::{DataType, Dictionary};

use super::shared::SharedDomain;
use super::template::{Field, Space, VARIABLE};
use super::wire::{float, ntp_us, octets, signed, u16_at, u32_at, unsigned};

/// Values and fields of a list, with those of the lists inside, are written up to this many.
const MAX_LIST_ITEMS: usize = 256;
/// Lists inside of lists.
const MAX_LIST_DEPTH: usize = 4;
/// Octets of an opaque value are written up to this many.
const MAX_HEX_OCTETS: usize = 512;

/// What must be known beside a value and its type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Around<'a> {
    /// The receive time: it tells the eras of NTP apart.
    pub(crate) near_us: i64,
    pub(crate) dictionary: &'a Dictionary,
    /// Where the templates of lists are found: the domain and the session (source port).
    pub(crate) templates: Option<(&'a SharedDomain, u16)>,
}

/// Appends a value. What does not fit its type (an address of five octets) is written as octets.
pub(crate) fn write_value(out: &mut Vec<u8>, data_type: DataType, bytes: &[u8], around: &Around<'_>) {
    use DataType as T;
    match data_type {
        T::Unsigned8 | T::Unsigned16 | T::Unsigned32 | T::Unsigned64 if bytes.len() <= 8 => {
            decimal(out, unsigned(bytes));
        }
        T::Signed8 | T::Signed16 | T::Signed32 | T::Signed64 if bytes.len() <= 8 => {
            let value = signed(bytes);
            if value < 0 {
                out.push(b'-');
            }
            decimal(out, value.unsigned_abs());
        }
        T::Float32 | T::Float64 => match float(bytes) {
            Some(value) => put(out, format_args!("{value}")),
            None => hex(out, bytes),
        },
        T::Boolean => match bytes {
            [1] => out.extend_from_slice(b"true"),
            [2] => out.extend_from_slice(b"false"),
            _ => hex(out, bytes),
        },
        T::MacAddress if bytes.len() == 6 => {
            put(out, format_args!("{}", weir_schemas::Mac(octets(bytes, 0))));
        }
        T::String => text(out, bytes),
        T::Ipv4Address if bytes.len() == 4 => {
            for (at, octet) in bytes.iter().enumerate() {
                if at > 0 {
                    out.push(b'.');
                }
                decimal(out, u64::from(*octet));
            }
        }
        T::Ipv6Address if bytes.len() == 16 => {
            put(out, format_args!("{}", Address::v6(octets(bytes, 0))));
        }
        T::DateTimeSeconds if bytes.len() == 4 || bytes.len() == 8 => {
            instant(out, i64::try_from(unsigned(bytes)).unwrap_or(i64::MAX).saturating_mul(1_000_000), 0);
        }
        T::DateTimeMilliseconds if bytes.len() == 8 => {
            instant(out, i64::try_from(unsigned(bytes)).unwrap_or(i64::MAX).saturating_mul(1_000), 3);
        }
        T::DateTimeMicroseconds | T::DateTimeNanoseconds if bytes.len() == 8 => {
            instant(out, ntp_us(u32_at(bytes, 0), u32_at(bytes, 4), around.near_us), 6);
        }
        T::BasicList | T::SubTemplateList | T::SubTemplateMultiList => {
            let mut room = Room { items: MAX_LIST_ITEMS, depth: MAX_LIST_DEPTH };
            list(out, data_type, bytes, around, &mut room);
            if room.items == 0 {
                out.extend_from_slice("…".as_bytes());
            }
        }
        _ => hex(out, bytes),
    }
}

/// A string up to its padding of zeros.
pub(crate) fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|octet| *octet != 0).map_or(0, |last| last.saturating_add(1));
    bytes.get(..end).unwrap_or_default()
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(trimmed(bytes));
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // writing to memory cannot fail
    let _ = out.write_fmt(text);
}

/// A number, faster than the formatter of the standard library.
pub(crate) fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [b'0'; 20];
    let mut count = 0_usize;
    for digit in digits.iter_mut().rev() {
        count = count.saturating_add(1);
        *digit = b'0'.saturating_add((value % 10) as u8);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(20_usize.saturating_sub(count)..).unwrap_or_default());
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    out.extend_from_slice(b"0x");
    for octet in bytes.iter().take(MAX_HEX_OCTETS) {
        for nibble in [octet >> 4, octet & 15] {
            out.push(DIGITS.get(usize::from(nibble)).map_or(b'0', |digit| *digit as u8));
        }
    }
    if bytes.len() > MAX_HEX_OCTETS {
        out.extend_from_slice("…".as_bytes());
    }
}

/// A time to the millisecond.
pub(crate) fn write_time(out: &mut Vec<u8>, us: i64) {
    instant(out, us, 3);
}

/// RFC 3339 in UTC, with `digits` of the second's fraction.
pub(crate) fn instant(out: &mut Vec<u8>, us: i64, digits: usize) {
    let (seconds, micros) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    put(out, format_args!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"));
    match digits {
        3 => put(out, format_args!(".{:03}", micros / 1_000)),
        6 => put(out, format_args!(".{micros:06}")),
        _ => {}
    }
    out.push(b'Z');
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar: years counted from March in eras of 400.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "the days come from an i64 of microseconds: far from overflow"
)]
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A list (RFC 6313) as JSON: numbers as they are, records as objects, everything else quoted. What is malformed is
/// written as octets, what is nested too deep too.
fn list(out: &mut Vec<u8>, data_type: DataType, bytes: &[u8], around: &Around<'_>, room: &mut Room) {
    if room.depth == 0 {
        quoted(out, |out| hex(out, bytes));
        return;
    }
    let mut inner = Room { depth: room.depth.saturating_sub(1), ..*room };
    match data_type {
        DataType::BasicList => basic_list(out, bytes, around, &mut inner),
        DataType::SubTemplateList => {
            out.push(b'[');
            let mut first = true;
            if let (Some(_), Some(records)) = (bytes.first(), bytes.get(3..)) {
                list_records(out, u16_at(bytes, 1), records, around, &mut inner, &mut first);
            }
            out.push(b']');
        }
        _ => sub_template_multi_list(out, bytes, around, &mut inner),
    }
    room.items = inner.items;
}

/// RFC 6313 §4.5.1: semantic, element, length, then the values.
fn basic_list(out: &mut Vec<u8>, bytes: &[u8], around: &Around<'_>, room: &mut Room) {
    let Some((field, mut rest)) = basic_list_head(bytes) else {
        quoted(out, |out| hex(out, bytes));
        return;
    };
    let data_type = field.data_type(around.dictionary);
    out.push(b'[');
    let mut first = true;
    while let Some((value, after)) = split_value(field.length, rest) {
        if !room.item(out, &mut first) {
            break;
        }
        list_value(out, data_type, value, around, room);
        rest = after;
    }
    out.push(b']');
}

/// RFC 6313 §4.5.3: semantic, then of each template its id, a length with these four octets, and records.
fn sub_template_multi_list(out: &mut Vec<u8>, bytes: &[u8], around: &Around<'_>, room: &mut Room) {
    out.push(b'[');
    let mut first = true;
    let mut rest = bytes.get(1..).unwrap_or_default();
    while let (Some(_), length @ 4..) = (rest.get(..4), usize::from(u16_at(rest, 2))) {
        let Some((part, after)) = rest.split_at_checked(length) else { break };
        let records = part.get(4..).unwrap_or_default();
        list_records(out, u16_at(part, 0), records, around, room, &mut first);
        rest = after;
    }
    out.push(b']');
}

/// The records of a template, each an object; octets where nobody knows the template.
fn list_records(
    out: &mut Vec<u8>,
    template: u16,
    records: &[u8],
    around: &Around<'_>,
    room: &mut Room,
    first: &mut bool,
) {
    let plan = around
        .templates
        .and_then(|(domain, port)| domain.find(port, template, around.near_us, around.dictionary));
    let Some(plan) = plan else {
        if !records.is_empty() && room.item(out, first) {
            let id = u64::from(template);
            out.extend_from_slice(b"{\"template\":");
            decimal(out, id);
            out.extend_from_slice(b",\"octets\":");
            quoted(out, |out| hex(out, records));
            out.push(b'}');
        }
        return;
    };
    let mut rest = records;
    while rest.len() >= plan.layout.record && plan.layout.record > 0 {
        if !room.item(out, first) {
            return;
        }
        out.push(b'{');
        let mut before = false;
        for (field, length) in plan.named.iter().zip(&plan.layout.fields) {
            let split = if *length == VARIABLE {
                split_value(*length, rest)
            } else {
                rest.split_at_checked(usize::from(*length))
            };
            let Some((value, after)) = split else {
                rest = &[];
                break;
            };
            rest = after;
            if !room.item(out, &mut !before) {
                continue;
            }
            before = true;
            quoted(out, |out| out.extend_from_slice(field.name.as_bytes()));
            out.push(b':');
            list_value(out, field.data_type, value, around, room);
        }
        out.push(b'}');
    }
}

/// A value inside of a list.
fn list_value(out: &mut Vec<u8>, data_type: DataType, bytes: &[u8], around: &Around<'_>, room: &mut Room) {
    use DataType as T;
    match data_type {
        T::BasicList | T::SubTemplateList | T::SubTemplateMultiList => {
            list(out, data_type, bytes, around, room)
        }
        T::Unsigned8 | T::Unsigned16 | T::Unsigned32 | T::Unsigned64 if bytes.len() <= 8 => {
            decimal(out, unsigned(bytes));
        }
        T::String => quoted(out, |out| escaped(out, trimmed(bytes))),
        _ => quoted(out, |out| write_value(out, data_type, bytes, around)),
    }
}

fn quoted(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    content(out);
    out.push(b'"');
}

/// The text of a JSON string (RFC 8259 §7). What is no UTF-8 is replaced where the entry is closed.
fn escaped(out: &mut Vec<u8>, text: &[u8]) {
    for octet in text {
        match octet {
            b'"' | b'\\' => out.extend([b'\\', *octet]),
            0..=0x1f => put(out, format_args!("\\u{octet:04x}")),
            _ => out.push(*octet),
        }
    }
}

/// How much more a list may hold: what an exporter sends in one value must not become a book. A list that was cut
/// has a "…" behind it.
#[derive(Debug, Clone, Copy)]
struct Room {
    items: usize,
    depth: usize,
}

impl Room {
    /// Begins an item; false where there is no room.
    fn item(&mut self, out: &mut Vec<u8>, first: &mut bool) -> bool {
        if self.items == 0 {
            return false;
        }
        if !*first {
            out.push(b',');
        }
        *first = false;
        self.items = self.items.saturating_sub(1);
        true
    }
}

/// The element of a basicList, and its values.
pub(crate) fn basic_list_head(bytes: &[u8]) -> Option<(Field, &[u8])> {
    let (id, length) = (u16_at(bytes, 1), u16_at(bytes, 3));
    let mut field = Field { space: Space::Ipfix, enterprise: 0, id: id & 0x7fff, length };
    let mut head = 5;
    if id & 0x8000 != 0 {
        field.enterprise = u32_at(bytes, 5);
        head = 9;
    }
    bytes.get(head..).map(|rest| (field, rest))
}

/// The next value of a list, and what follows. None at the end, at a value that is cut off, and for values of no
/// length.
pub(crate) fn split_value(length: u16, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if length != VARIABLE {
        return if length == 0 { None } else { bytes.split_at_checked(usize::from(length)) };
    }
    let (first, rest) = bytes.split_first()?;
    if *first < 255 {
        return rest.split_at_checked(usize::from(*first));
    }
    let length = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?));
    rest.get(2..)?.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(data_type: DataType, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        let dictionary = Dictionary::builtin();
        let around = Around { near_us: 1_763_000_000_000_000, dictionary, templates: None };
        write_value(&mut out, data_type, bytes, &around);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_print_by_their_type() {
        for (data_type, bytes, want) in [
            (DataType::Unsigned32, &[0, 1, 0][..], "256"),
            (DataType::Unsigned64, &[0xff; 8], "18446744073709551615"),
            (DataType::Unsigned8, &[], "0"),
            (DataType::Signed32, &[0xff, 0xfe], "-2"),
            (DataType::Float64, &[0x3f, 0xc0, 0, 0], "1.5"),
            (DataType::Boolean, &[1], "true"),
            (DataType::Boolean, &[2], "false"),
            (DataType::Boolean, &[0], "0x00"),
            (DataType::MacAddress, &[0, 1, 2, 0xa, 0xb, 0xc], "00:01:02:0a:0b:0c"),
            (DataType::Ipv4Address, &[10, 0, 0, 1], "10.0.0.1"),
            (DataType::Ipv4Address, &[10, 0, 0, 1, 9], "0x0a00000109"),
            (DataType::String, b"ge-0/0/0\0\0\0", "ge-0/0/0"),
            (DataType::OctetArray, &[0xde, 0xad], "0xdead"),
            (DataType::DateTimeSeconds, &[0, 0, 0, 0], "1970-01-01T00:00:00Z"),
            (DataType::DateTimeSeconds, &[0x65, 0xe0, 0x5c, 0x7f], "2024-02-29T10:29:19Z"),
            (
                DataType::DateTimeMilliseconds,
                &[0, 0, 1, 0x8d, 0xf4, 0x67, 0xd9, 0x80],
                "2024-02-29T10:27:43.104Z",
            ),
        ] {
            assert_eq!(show(data_type, bytes), want);
        }
    }

    #[test]
    fn rule_06_lists_of_both_length_forms() {
        // RFC 6313: semantic 3, element 82 (interfaceName), variable length
        let list = [3, 0, 82, 0xff, 0xff, 1, b'a', 255, 0, 2, b'b', b'c', 9];
        assert_eq!(show(DataType::BasicList, &list), r#"["a","bc"]"#);
        let list = [3, 0, 10, 0, 4, 0, 0, 0, 1, 0, 0, 0, 2];
        assert_eq!(show(DataType::BasicList, &list), "[1,2]");
        assert_eq!(show(DataType::BasicList, &[3, 0, 10, 0, 0, 1, 2]), "[]");
        assert_eq!(show(DataType::BasicList, &[3, 0]), r#""0x0300""#);
        let text = [3, 0, 82, 0xff, 0xff, 4, b'"', b'\\', b'\n', b'x'];
        assert_eq!(show(DataType::BasicList, &text), r#"["\"\\\u000ax"]"#);
    }

    #[test]
    fn rule_53_lists_are_bounded_in_items_and_depth() {
        let many = [&[3, 0, 4, 0, 1][..], &[6; 1_000]].concat();
        let shown = show(DataType::BasicList, &many);
        assert!(shown.ends_with("6]…") && shown.matches('6').count() == MAX_LIST_ITEMS, "{shown}");
        // a basicList (291) of basicLists of ...
        let mut nested = vec![3, 0, 4, 0, 1, 6];
        for _ in 0..10 {
            let length = nested.len() as u8;
            nested = [&[3, 1, 0x23, 0xff, 0xff, length][..], &nested].concat();
        }
        assert!(show(DataType::BasicList, &nested).starts_with("[[[[\"0x0301"));
        // a template that nobody knows
        let list = [3, 1, 0, 1, 2];
        assert_eq!(show(DataType::SubTemplateList, &list), r#"[{"template":256,"octets":"0x0102"}]"#);
        assert_eq!(show(DataType::SubTemplateMultiList, &[3, 1, 0, 0, 3, 9]), "[]");
    }
}
