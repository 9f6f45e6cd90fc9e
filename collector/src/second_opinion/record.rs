//! One record: what weir's rows say, against what follows from netflow_parser's values.
//!
//! Which column an element belongs to is weir's own table (the plan); the values are netflow_parser's, brought into the
//! column's form here, apart from the decoder's code. What the plan gives to no column is compared as octets.

use weir_schemas::elements::{DataType, Dictionary};
use weir_schemas::tables::FlowColumn;
use weir_schemas::{Address, Kind, Mac};

use super::theirs::{Field, Plain};
use crate::cells::Cells;
use crate::decode::compile::{Clock, Plan, Rate, RowPlan, Span};
use crate::decode::format::{Around, decimal, instant, trimmed, write_value};
use crate::decode::mapping::Conversion;
use crate::decode::run::application_id;
use crate::decode::wire::ntp_us;

/// What a record needs of its message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) export_us: i64,
    pub(super) uptime_ms: Option<u32>,
    pub(super) received_us: i64,
}

/// A value on which the two do not agree.
#[derive(Debug)]
pub(super) struct Disagreement {
    pub(super) element: String,
    pub(super) column: String,
    pub(super) weir: Option<String>,
    pub(super) theirs: Option<String>,
    /// The octets are the same: they read them as something else.
    pub(super) same_octets: bool,
    pub(super) why: Why,
}

/// What kind of value it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Value,
    /// A text: they drop control characters.
    Text,
    /// They have another data type for the element.
    Type,
}

/// A record of both.
pub(super) struct Compared<'a> {
    pub(super) plan: &'a Plan,
    pub(super) header: Header,
    /// Their fields that have octets: those of `plan.named`, in that order.
    pub(super) theirs: &'a [Field],
    /// The octets that weir takes for each of them.
    pub(super) ours: &'a [&'a [u8]],
    pub(super) cells: &'a Cells,
    /// Values compared so far, and what was found.
    pub(super) values: u64,
    pub(super) found: Vec<Disagreement>,
}

impl Compared<'_> {
    fn field(&self, span: Span) -> Option<&Field> {
        self.theirs.get(span.field)
    }

    fn octets(&self, span: Span) -> &[u8] {
        self.ours.get(span.field).copied().unwrap_or_default()
    }

    /// Notes a difference, if there is one.
    fn check(&mut self, span: Span, column: &str, weir: Option<String>, theirs: Option<String>, why: Why) {
        self.values += 1;
        if weir == theirs {
            return;
        }
        let Some(field) = self.field(span) else { return };
        self.found.push(Disagreement {
            element: field.name.clone(),
            column: column.to_owned(),
            weir,
            theirs,
            same_octets: field.octets == self.octets(span),
            why,
        });
    }

    /// A record of options data: its row of the table `options`.
    pub(super) fn options(&mut self, row: usize) {
        for (at, (extra, (_, id, scope))) in self.plan.named.iter().zip(&self.plan.identities).enumerate() {
            if *id == 210 {
                continue;
            }
            let column = if *scope { "scope" } else { "fields" };
            let weir = self.cells.entry(column, row, &extra.name);
            self.named(at, column, weir);
        }
    }

    /// A flow record: its row, and that of the reverse direction where there is one.
    pub(super) fn flow(&mut self, row: usize, reverse_row: Option<usize>) {
        let plan = self.plan;
        let mut used = vec![false; self.theirs.len()];
        self.row(&plan.rows, row, &mut used);
        if let Some((reverse, _)) = &plan.reverse {
            let mut also = vec![false; self.theirs.len()];
            match reverse_row {
                Some(row) => self.row(reverse, row, &mut used),
                None => self.touch(reverse, &mut also),
            }
            for (used, also) in used.iter_mut().zip(also) {
                *used |= also;
            }
        }
        // what no column holds: the octets
        for at in (0..self.theirs.len()).filter(|at| !used[*at]) {
            let (Some(field), Some(ours)) = (self.theirs.get(at), self.ours.get(at)) else { continue };
            self.values += 1;
            if field.octets != *ours {
                self.found.push(Disagreement {
                    element: field.name.clone(),
                    column: String::new(),
                    weir: Some(hex(ours)),
                    theirs: Some(hex(&field.octets)),
                    same_octets: false,
                    why: Why::Value,
                });
            }
        }
    }

    /// Marks the fields of a plan whose row is not there.
    fn touch(&self, plan: &RowPlan, used: &mut [bool]) {
        let steps = plan.steps.iter().map(|step| step.span);
        let addresses = plan.addresses.iter().flat_map(|choice| choice.spans.iter().map(|(_, span)| *span));
        let extras = plan.extras.iter().map(|extra| extra.span);
        for span in steps.chain(addresses).chain(extras) {
            if let Some(used) = used.get_mut(span.field) {
                *used = true;
            }
        }
    }

    fn row(&mut self, plan: &RowPlan, row: usize, used: &mut [bool]) {
        let mut mark = |span: Span| {
            if let Some(used) = used.get_mut(span.field) {
                *used = true;
            }
        };
        for step in &plan.steps {
            let column = step.column.column();
            mark(step.span);
            let all = std::iter::once((step.conversion, step.span)).chain(step.others.iter().copied());
            let mut chosen = None;
            for (conversion, span) in all {
                mark(span);
                let value = self.field(span).and_then(|field| expected(conversion, field));
                let zero = value.as_deref().is_none_or(|value| value == "0");
                if chosen.is_none() || !zero {
                    chosen = Some((span, value));
                    // where the first says that it does not know, nobody else is asked
                    if !zero || self.field(span).is_some_and(|field| field.octets.is_empty()) {
                        break;
                    }
                }
            }
            let Some((span, value)) = chosen else { continue };
            let value = value.filter(|value| fits(column.kind, value));
            let text = matches!(step.conversion, Conversion::Text | Conversion::Application);
            let why = if text { Why::Text } else { Why::Value };
            let weir = self.cells.text(column.name, row);
            self.check(span, column.name, weir, value, why);
        }
        for choice in &plan.addresses {
            let column = choice.column.column();
            choice.spans.iter().for_each(|(_, span)| mark(*span));
            let version = plan.ip_version.and_then(|span| number(self.field(span)?));
            let (span, address) = self.address(choice.spans.as_slice(), version);
            let weir = self.cells.text(column.name, row);
            self.check(span, column.name, weir, address.map(|address| address.to_string()), Why::Value);
        }
        self.times(plan, row, &mut mark);
        self.rates(plan, row, &mut mark);
        self.labels(plan, row, &mut mark);
        for extra in &plan.extras {
            mark(extra.span);
            let weir = self.cells.entry("extra", row, &extra.name);
            self.named(extra.span.field, "extra", weir);
        }
    }

    /// Rule 44: the address that is not all zeros; of two, that of the IP version.
    fn address(&self, spans: &[(bool, Span)], version: Option<u64>) -> (Span, Option<Address>) {
        let value = |span: Span| self.field(span).and_then(address);
        let set =
            |span: Span| self.field(span).is_some_and(|field| field.octets.iter().any(|octet| *octet != 0));
        let some: Vec<_> = spans.iter().filter(|(_, span)| set(*span)).collect();
        let wanted = some.iter().take(2).find(|(v4, _)| version == Some(if *v4 { 4 } else { 6 }));
        if let Some((_, span)) = wanted.or(some.first()) {
            return (*span, value(*span));
        }
        // none: the unspecified address, of IPv4 if that is one of them
        let v4 = version != Some(6) && spans.iter().any(|(v4, _)| *v4);
        let none = if v4 { Address::v4([0; 4]) } else { Address::v6([0; 16]) };
        (spans.first().map_or(Span { offset: 0, field: 0, width: 0, skip: 0 }, |(_, span)| *span), Some(none))
    }

    fn times(&mut self, plan: &RowPlan, row: usize, mark: &mut impl FnMut(Span)) {
        for (clock, column) in
            [(plan.times.start, FlowColumn::StartTime), (plan.times.end, FlowColumn::EndTime)]
        {
            let Some(clock) = clock else { continue };
            let (span, time_us) = self.clock(clock, plan.times.boot);
            // without a boot time there is no time: the octets are compared
            let Some(time_us) = time_us else { continue };
            mark(span);
            let weir = self.cells.text(column.column().name, row);
            self.check(span, column.column().name, weir, Some(time_us.to_string()), Why::Value);
        }
    }

    fn clock(&self, clock: Clock, boot: Option<Span>) -> (Span, Option<i64>) {
        let export_us = self.header.export_us;
        match clock {
            Clock::Epoch(span, unit_us) => {
                let time = self.field(span).and_then(|field| match field.plain {
                    Plain::Clock { unit_us, value } => i64::try_from(value).ok()?.checked_mul(unit_us),
                    _ => i64::try_from(number(field)?).ok()?.checked_mul(unit_us),
                });
                (span, time)
            }
            Clock::Ntp(span) => {
                let time = self.field(span).and_then(|field| match field.plain {
                    Plain::Ntp { seconds: 0, fraction: 0 } => Some(0),
                    Plain::Ntp { seconds, fraction } => {
                        Some(ntp_us(seconds, fraction, self.header.received_us))
                    }
                    _ => None,
                });
                (span, time)
            }
            Clock::Before(span) => {
                let before = self.field(span).and_then(number).and_then(|us| i64::try_from(us).ok());
                (span, before.and_then(|before| export_us.checked_sub(before)))
            }
            Clock::Uptime(span) => {
                let time = self.field(span).and_then(|field| match field.plain {
                    Plain::Clock { value, .. } => Some(value),
                    _ => number(field),
                });
                let (Some(time), Some(uptime), None) = (time, self.header.uptime_ms, boot) else {
                    return (span, None);
                };
                // rule 30: the distance is signed, modulo 2^32 ms
                let ago_ms = i64::from(uptime) - time as i64;
                let wrapped = (ago_ms + (1 << 31)).rem_euclid(1 << 32) - (1 << 31);
                (span, Some(export_us - wrapped * 1_000))
            }
        }
    }

    /// A rate in the record, where weir took it.
    fn rates(&mut self, plan: &RowPlan, row: usize, mark: &mut impl FnMut(Span)) {
        if self.cells.text("sampling_source", row).as_deref() != Some("record") {
            return;
        }
        if let Some(Rate::Interval(span)) = plan.sampling.rates.first() {
            mark(*span);
            let rate = self.field(*span).and_then(number).map(|rate| (rate as f64).to_string());
            let weir = self.cells.text("sampling_rate", row);
            self.check(*span, "sampling_rate", weir, rate, Why::Value);
        }
    }

    /// Rule 46: labels of 20 bits, of entries that are not zero.
    fn labels(&mut self, plan: &RowPlan, row: usize, mark: &mut impl FnMut(Span)) {
        if plan.mpls_stack.is_some() || plan.sampled.is_some() {
            return;
        }
        let Some(first) = plan.mpls.first() else { return };
        let entry = |span: &Span| {
            let octets = &self.field(*span)?.octets;
            let value = octets.iter().fold(0_u32, |value, octet| value << 8 | u32::from(*octet));
            (value >> 1 != 0).then(|| (value >> 4).to_string())
        };
        let labels: Vec<_> = plan.mpls.iter().filter_map(entry).collect();
        plan.mpls.iter().for_each(|span| mark(*span));
        let weir = self.cells.text("mpls_labels", row);
        self.check(*first, "mpls_labels", weir, Some(labels.join(",")), Why::Value);
    }

    /// A field that weir keeps by name as text.
    fn named(&mut self, at: usize, column: &str, weir: Option<String>) {
        let (Some(field), Some(extra)) = (self.theirs.get(at), self.plan.named.get(at)) else { return };
        // of lists of records netflow_parser has the octets only: nothing to compare with
        if matches!(extra.data_type, DataType::SubTemplateList | DataType::SubTemplateMultiList) {
            return;
        }
        let near_us = self.header.received_us;
        let mut text = Vec::new();
        let around = Around { near_us, dictionary: Dictionary::builtin(), templates: None };
        write_value(&mut text, extra.data_type, &field.octets, &around);
        let mut by_octets = String::from_utf8_lossy(&text).into_owned();
        // of options data weir writes an application's id as it does in flows
        let is_application =
            self.plan.identities.get(at).is_some_and(|(enterprise, id, _)| (*enterprise, *id) == (0, 95));
        if let Some(application) =
            application_id(&field.octets).filter(|_| is_application && self.plan.is_options())
        {
            by_octets = application;
        }
        let column = format!("{column}.{}", extra.name);
        let (span, data_type) = (extra.span, extra.data_type);
        // first what they took for the field, then what they read in it
        let by_type = typed(field, data_type);
        if weir.as_deref() == Some(by_octets.as_str())
            && let Some((typed, why)) = by_type
        {
            self.check(span, &column, weir, Some(typed), why);
        } else {
            self.check(span, &column, weir, Some(by_octets), Why::Value);
        }
    }
}

/// A number that a column of this kind can hold.
fn fits(kind: Kind, value: &str) -> bool {
    let most = match kind {
        Kind::U8 => u64::from(u8::MAX),
        Kind::U16 => u64::from(u16::MAX),
        Kind::U32 => u64::from(u32::MAX),
        _ => return true,
    };
    value.parse::<u64>().is_ok_and(|value| value <= most)
}

/// Their value as a number: what they left as octets is one, too.
fn number(field: &Field) -> Option<u64> {
    match &field.plain {
        Plain::Number(value) => u64::try_from(*value).ok(),
        Plain::Clock { value, .. } => Some(*value),
        _ if field.octets.len() <= 8 => {
            Some(field.octets.iter().fold(0, |value, octet| value << 8 | u64::from(*octet)))
        }
        _ => None,
    }
}

fn address(field: &Field) -> Option<Address> {
    match (&field.plain, field.octets.as_slice()) {
        (Plain::Address(address), _) => Some(*address),
        (_, [a, b, c, d]) => Some(Address::v4([*a, *b, *c, *d])),
        (_, octets) => Some(Address::v6(octets.try_into().ok()?)),
    }
}

/// Their value in the form of the column.
fn expected(conversion: Conversion, field: &Field) -> Option<String> {
    let octets = field.octets.as_slice();
    let unknown = !octets.is_empty() && octets.iter().all(|octet| *octet == 0xff);
    if octets.is_empty() {
        return None;
    }
    let value = match conversion {
        Conversion::Ipv4 | Conversion::Ipv6 => return address(field).map(|address| address.to_string()),
        Conversion::Mac => return Some(Mac(octets.try_into().ok()?).to_string()),
        Conversion::Text => {
            let text = match &field.plain {
                Plain::Text(text) => text.clone(),
                _ => String::from_utf8_lossy(trimmed(octets)).into_owned(),
            };
            return Some(text).filter(|text| !text.is_empty());
        }
        // RFC 6759 §4
        Conversion::Application => {
            let (engine, selector) = octets.split_first()?;
            let number = |octets: &[u8]| octets.iter().fold(0_u64, |n, octet| n << 8 | u64::from(*octet));
            return match selector {
                [] => None,
                [a, b, c, d, rest @ ..] if *engine == 20 && !rest.is_empty() => {
                    Some(format!("{engine}:{}:{}", number(&[*a, *b, *c, *d]), number(rest)))
                }
                selector => (selector.len() <= 12).then(|| format!("{engine}:{}", number(selector))),
            };
        }
        Conversion::Octet(at) => u64::from(*octets.get(usize::from(at))?),
        Conversion::Counter | Conversion::Times(_) | Conversion::Nanos if unknown => return None,
        Conversion::Times(factor) => number(field)?.saturating_mul(factor.into()),
        Conversion::Nanos => number(field)? / 1_000,
        Conversion::Low24 if octets.len() == 8 => number(field)? & 0xff_ffff,
        Conversion::Dscp => (number(field)? & 0x3f) << 2,
        Conversion::Number | Conversion::Counter | Conversion::Low24 => number(field)?,
    };
    Some(value.to_string())
}

/// Their value as weir writes values of this type, where both have a type for it.
fn typed(field: &Field, data_type: DataType) -> Option<(String, Why)> {
    use DataType as T;
    let mut text = Vec::new();
    let mut why = Why::Type;
    match (&field.plain, data_type) {
        (Plain::Octets | Plain::Application, _) => return None,
        (_, T::OctetArray | T::BasicList | T::SubTemplateList | T::SubTemplateMultiList | T::Unsigned256) => {
            return None;
        }
        (Plain::Number(1), T::Boolean) => text.extend_from_slice(b"true"),
        (Plain::Number(2), T::Boolean) => text.extend_from_slice(b"false"),
        // other numbers are no truth values: weir keeps the octets
        (Plain::Number(_), T::Boolean) => return None,
        (Plain::Number(value), T::DateTimeSeconds) => instant(&mut text, scaled(*value, 1_000_000), 0),
        (Plain::Number(value), T::DateTimeMilliseconds) => instant(&mut text, scaled(*value, 1_000), 3),
        (Plain::Number(value), _) => text.extend_from_slice(value.to_string().as_bytes()),
        (Plain::Float(value), _) => text.extend_from_slice(value.to_string().as_bytes()),
        (Plain::Address(address), _) => text.extend_from_slice(address.to_string().as_bytes()),
        (Plain::Mac(mac), _) => text.extend_from_slice(mac.to_string().as_bytes()),
        (Plain::Text(value), _) => {
            why = Why::Text;
            text.extend_from_slice(value.as_bytes());
        }
        (Plain::Clock { unit_us, value }, T::DateTimeSeconds) => {
            instant(&mut text, scaled((*value).into(), *unit_us), 0);
        }
        (Plain::Clock { unit_us, value }, T::DateTimeMilliseconds) => {
            instant(&mut text, scaled((*value).into(), *unit_us), 3);
        }
        (Plain::Clock { value, .. }, _) => decimal(&mut text, *value),
        // the same octets are the same NTP time
        (Plain::Ntp { .. }, _) => return None,
    }
    Some((String::from_utf8_lossy(&text).into_owned(), why))
}

fn scaled(value: i128, unit_us: i64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX).saturating_mul(unit_us)
}

/// Octets in hexadecimal, shortened.
pub(super) fn hex(octets: &[u8]) -> String {
    let mut text = String::from("0x");
    for octet in octets.iter().take(32) {
        text.push_str(&format!("{octet:02x}"));
    }
    if octets.len() > 32 {
        text.push('…');
    }
    text
}
