//! Where the fields of a template go: the decoder's plan, read from the field's side.

use weir_schemas::elements::{DataType, Dictionary, IANA, REVERSE};

use crate::decode::compile::{Clock, Plan, Rate, RowPlan, Section, Span, When};
use crate::decode::mapping::Conversion;
use crate::decode::template::{Field, Space, VARIABLE};

/// What becomes of a field.
#[derive(Debug, Clone, Default)]
pub(super) struct Destination {
    pub(super) columns: Vec<String>,
    pub(super) rules: Vec<String>,
    /// It is the start or end of the flow: the row has the time.
    pub(super) clock: Option<Clock>,
}

impl Destination {
    /// The column of a row; that of the other direction (`prefix`) only where it is another.
    fn column(&mut self, prefix: &str, name: &str) {
        let known = |name: &str| self.columns.iter().any(|known| known == name);
        let full = format!("{prefix}{name}");
        if !known(name) && !known(&full) {
            self.columns.push(full);
        }
    }

    fn rule(&mut self, rule: impl Into<String>) {
        let rule = rule.into();
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
    }
}

/// For every field of the template that has octets, in order.
pub(super) fn destinations(plan: &Plan, dictionary: &Dictionary) -> Vec<Destination> {
    let mut all = vec![Destination::default(); plan.named.len()];
    let fields = plan.template.fields.iter().filter(|field| field.length > 0);
    for (destination, field) in all.iter_mut().zip(fields) {
        encoding(*field, destination, dictionary);
    }
    if plan.is_options() {
        for ((destination, extra), (_, id, scope)) in all.iter_mut().zip(&plan.named).zip(&plan.identities) {
            if *id != 210 {
                let map = if *scope { "scope" } else { "fields" };
                destination.column("", &format!("{map}.{}", extra.name));
            }
        }
        return all;
    }
    rows(&plan.rows, &mut all, "");
    if let Some((reverse, _)) = &plan.reverse {
        rows(reverse, &mut all, "reverse row: ");
    }
    for (destination, (_, id, _)) in all.iter_mut().zip(&plan.identities) {
        if *id == 210 {
            destination.rule("padding (IE 210), not kept");
        }
    }
    all
}

/// How the value is encoded, where that is not the plain way.
fn encoding(field: Field, destination: &mut Destination, dictionary: &Dictionary) {
    let data_type = field.data_type(dictionary);
    let full = data_type.octets();
    let known = match field.space {
        Space::Ipfix => dictionary.lookup(field.enterprise, field.id).is_some(),
        Space::V9 => dictionary.lookup_v9(field.id).is_some(),
        Space::V9Scope => true,
    };
    if !known {
        destination.rule("weir does not know this element: its octets are kept");
    }
    match full {
        _ if field.length == VARIABLE => {}
        Some(full) if field.length < full && data_type.may_be_reduced() && field.space == Space::Ipfix => {
            destination
                .rule(format!("reduced-size encoding: {} of {full} octets (RFC 7011 §6.2)", field.length));
        }
        Some(full) if field.length > full && field.space == Space::Ipfix => {
            destination.rule(format!("{} octets for a type of {full}", field.length));
        }
        Some(full)
            if field.length != full
                && matches!(
                    data_type,
                    DataType::Ipv4Address | DataType::Ipv6Address | DataType::MacAddress
                ) =>
        {
            destination.rule(format!("{} octets are no {}: kept as octets", field.length, data_type.name()));
        }
        _ => {}
    }
    if field.enterprise == REVERSE {
        destination.rule("reverse element (RFC 5103): belongs to the row of the other direction");
    }
    let (enterprise, id) = field.identity(dictionary);
    if field.space == Space::V9 && enterprise != IANA {
        destination.rule(format!("NetFlow v9 number {} of enterprise {enterprise}'s element {id}", field.id));
    }
}

fn rows(plan: &RowPlan, all: &mut [Destination], prefix: &str) {
    let mut put = |span: Span, column: &str, rule: Option<String>| {
        let Some(destination) = all.get_mut(span.field) else { return };
        if !column.is_empty() {
            destination.column(prefix, column);
        }
        if let Some(rule) = rule {
            destination.rule(rule);
        }
    };
    for step in &plan.steps {
        let name = step.column.column().name;
        put(step.span, name, conversion(step.conversion));
        for (other, span) in &step.others {
            let first = format!("only where the first field of {name} is zero");
            put(*span, name, conversion(*other).or(Some(first)));
        }
    }
    for choice in &plan.addresses {
        for (_, span) in &choice.spans {
            let rule = "of both families the one that is not zero, or that of ipVersion (60)";
            put(*span, choice.column.column().name, Some(rule.into()));
        }
    }
    if let Some(span) = plan.ip_version {
        put(span, "", Some("chooses between the addresses of both families".into()));
    }
    sampling(plan, &mut put);
    for span in plan.mpls.iter().chain(&plan.mpls_stack) {
        put(*span, "mpls_labels, mpls_exp", None);
    }
    for (_, span) in &plan.agent {
        put(*span, "agent_addr", Some("the exporter's own address: exporter_addr, as configured".into()));
    }
    if let Some(sampled) = &plan.sampled {
        let what = match sampled.section {
            Section::Frame => "a frame from its Ethernet header on (RFC 7133)",
            Section::Packet => "a packet from its IP header on (RFC 5477)",
            Section::Labelled => "a packet behind its label stack (RFC 5477)",
            Section::Payload(_) => "a packet behind its IP header (RFC 5477)",
        };
        put(sampled.span, "", Some(format!("{what}: fills the columns that the record has nothing for")));
        if let Some(span) = sampled.size {
            put(
                span,
                "bytes",
                Some("the size on the wire, where the record has no octets of its own".into()),
            );
        }
    }
    if let Some(sampled) = &plan.sampled {
        for (span, what) in [
            (sampled.exported, "octets of the section: what follows them in the field is padding (RFC 7133)"),
            (sampled.offset, "octets before the section: it is read only where there are none (RFC 7133)"),
            (sampled.kind, "the kind of frame: only Ethernet (1) is read (RFC 7133)"),
        ] {
            if let Some(span) = span {
                put(span, "", Some(what.into()));
            }
        }
    }
    for span in &plan.properties {
        put(
            *span,
            "forwarding_status",
            Some("Junos: type 2 is the exception for which the packet was dropped".into()),
        );
    }
    for extra in &plan.extras {
        put(extra.span, &format!("extra.{}", extra.name), None);
    }
    for (extra, when) in &plan.losers {
        let when = match when {
            When::NeitherIsZero(_) => "to extra where both fields of the column have a value".to_owned(),
            When::Exceeds(most) => format!("to extra where it is greater than {most}"),
        };
        put(extra.span, "", Some(when));
    }
    times(plan, all, prefix);
}

fn conversion(conversion: Conversion) -> Option<String> {
    Some(match conversion {
        Conversion::Counter => "all ones: unknown, NULL".to_owned(),
        Conversion::Times(factor) => format!("times {factor}; all ones: unknown, NULL"),
        Conversion::Nanos => "ns to µs; all ones: unknown, NULL".to_owned(),
        Conversion::Low24 => "the low 24 bits; the type of the overlay stands above them".to_owned(),
        Conversion::Dscp => "six bits, put above those of ECN".to_owned(),
        Conversion::Octet(0) => "type in the first octet, code in the second".to_owned(),
        Conversion::Application => "engine and selector (RFC 6759 §4)".to_owned(),
        _ => return None,
    })
}

fn sampling(plan: &RowPlan, put: &mut impl FnMut(Span, &str, Option<String>)) {
    for rate in &plan.sampling.rates {
        match rate {
            Rate::Interval(span) => {
                put(*span, "sampling_rate", Some("a rate in the record comes first".into()))
            }
            Rate::Packets { taken, skipped, algorithm } => {
                put(*taken, "sampling_rate", Some("(taken + skipped) / taken (RFC 5477)".into()));
                skipped.iter().chain(algorithm).for_each(|span| put(*span, "sampling_rate", None));
            }
            Rate::OutOf { size, population } => {
                put(*size, "sampling_rate", Some("population / size (RFC 5477)".into()));
                put(*population, "sampling_rate", None);
            }
            Rate::Probability(span) => put(*span, "sampling_rate", Some("1 / probability (RFC 5477)".into())),
        }
    }
    if let Some(span) = plan.sampling.sampler {
        put(span, "", Some("names the sampler whose rate the options data say".into()));
    }
}

fn times(plan: &RowPlan, all: &mut [Destination], prefix: &str) {
    for (clock, column) in [(plan.times.start, "start_time"), (plan.times.end, "end_time")] {
        let Some(clock) = clock else { continue };
        let (span, rule) = match clock {
            Clock::Epoch(span, _) => (span, None),
            Clock::Ntp(span) => (span, Some("NTP time: seconds since 1900 and a fraction (RFC 7011 §6.1.9)")),
            Clock::Before(span) => (span, Some("µs before the export time")),
            Clock::Uptime(span) => (span, None),
        };
        if let Some(destination) = all.get_mut(span.field) {
            destination.column(prefix, column);
            destination.clock = destination.clock.or(Some(clock));
            rule.into_iter().for_each(|rule| destination.rule(rule));
        }
    }
    if let Some((span, _)) = plan.times.duration
        && let Some(destination) = all.get_mut(span.field)
    {
        destination.rule("gives the one of start and end that the record does not have");
    }
    if let Some(span) = plan.times.boot
        && let Some(destination) = all.get_mut(span.field)
    {
        destination.rule("boot time: uptimes of this record count from here");
    }
}
