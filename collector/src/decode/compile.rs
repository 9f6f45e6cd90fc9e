//! From a template to a plan: which octets of each record go where, worked out once, when the template comes.

use std::sync::Arc;

use hashbrown::HashMap;
use weir_schemas::Kind;
use weir_schemas::elements::{DataType, Dictionary, IANA, REVERSE};
use weir_schemas::tables::FlowColumn;

use super::mapping::{self, Choice, Conversion, Mapping};
use super::template::{Field, Template, VARIABLE};
use super::totals::{self, TotalsPlan};

/// Where a value lies in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Octets from the start of a record of fixed length.
    pub(crate) offset: usize,
    /// Which field it is, of those that have octets.
    pub(crate) field: usize,
    /// Octets, or [`VARIABLE`].
    pub(crate) width: u16,
    /// Octets of the field before the value.
    pub(crate) skip: u8,
}

/// One column of a set: for every record the value at `span`.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) column: FlowColumn,
    pub(crate) conversion: Conversion,
    pub(crate) span: Span,
    /// Where the value is zero: the same from the first of these that is not.
    pub(crate) others: Vec<(Conversion, Span)>,
    pub(crate) route: Route,
}

/// How the values of a step get into their column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Ipv4,
    Ipv6,
    Mac,
    Text,
    Application,
    /// A number of so many octets that is all there is for the column, and always fits: into a column of 8 bits, …
    U8,
    U16From1,
    U16,
    U32From1,
    U32From2,
    U32From3,
    U32,
    U64From4,
    U64,
    /// Numbers of any width with any conversion, record by record.
    Number,
}

impl Step {
    fn new(column: FlowColumn, conversion: Conversion, span: Span, others: Vec<(Conversion, Span)>) -> Step {
        let plain = others.is_empty() && matches!(conversion, Conversion::Number | Conversion::Octet(_));
        let route = match (conversion, column.column().kind, span.width) {
            (Conversion::Ipv4, ..) => Route::Ipv4,
            (Conversion::Ipv6, ..) => Route::Ipv6,
            (Conversion::Mac, ..) => Route::Mac,
            (Conversion::Text, ..) => Route::Text,
            (Conversion::Application, ..) => Route::Application,
            (_, Kind::U8, 1) if plain => Route::U8,
            (_, Kind::U16, 1) if plain => Route::U16From1,
            (_, Kind::U16, 2) if plain => Route::U16,
            (_, Kind::U32, 1) if plain => Route::U32From1,
            (_, Kind::U32, 2) if plain => Route::U32From2,
            (_, Kind::U32, 3) if plain => Route::U32From3,
            (_, Kind::U32, 4) if plain => Route::U32,
            (_, Kind::U64, 4) if plain => Route::U64From4,
            (_, Kind::U64, 8) if plain => Route::U64,
            _ => Route::Number,
        };
        Step { column, conversion, span, others, route }
    }
}

/// An address column that two or more fields of a record fill.
#[derive(Debug, Clone)]
pub(crate) struct AddressChoice {
    pub(crate) column: FlowColumn,
    /// IPv4 (true) or IPv6, in the order of preference.
    pub(crate) spans: Vec<(bool, Span)>,
}

/// A field that goes to `extra`.
#[derive(Debug, Clone)]
pub(crate) struct Extra {
    pub(crate) name: Box<str>,
    pub(crate) data_type: DataType,
    pub(crate) span: Span,
}

/// When a field that has a column goes to `extra`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// It is not zero, and neither is this other field of the same column.
    NeitherIsZero(Span),
    /// It is greater than the column can hold.
    Exceeds(u64),
}

/// Where a time of a flow comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Epoch in units of so many µs (IE 150 to 153).
    Epoch(Span, i64),
    /// NTP (IE 154 to 157).
    Ntp(Span),
    /// µs before the export time (IE 158, 159).
    Before(Span),
    /// Milliseconds of uptime (IE 21, 22).
    Uptime(Span),
}

/// Start and end of the flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) start: Option<Clock>,
    pub(crate) end: Option<Clock>,
    /// How long it lasted, in units of so many µs: for the one of both that is absent.
    pub(crate) duration: Option<(Span, i64)>,
    /// The exporter's boot time in the record (IE 160).
    pub(crate) boot: Option<Span>,
}

/// A sampling rate inside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rate {
    /// IE 34, 50: 1 in N.
    Interval(Span),
    /// IE 305 and 306: packets taken and packets skipped; and IE 304, the algorithm.
    Packets { taken: Span, skipped: Option<Span>, algorithm: Option<Span> },
    /// IE 309 and 310: n out of N.
    OutOf { size: Span, population: Span },
    /// IE 311.
    Probability(Span),
}

/// How the sampling rate of a record is found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sampling {
    pub(crate) rates: Vec<Rate>,
    /// IE 48, 302: which sampler of the options data.
    pub(crate) sampler: Option<Span>,
    pub(crate) in_if: Option<Span>,
    pub(crate) out_if: Option<Span>,
}

/// ICMP type and code in the destination port (rule 43).
#[derive(Debug, Clone, Copy)]
pub(crate) struct IcmpInPort {
    pub(crate) protocol: Span,
    pub(crate) src_port: Option<Span>,
    pub(crate) dst_port: Span,
}

/// What an exporter took a piece of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// IE 315; of NetFlow v9 IE 104.
    Frame,
    /// IE 313.
    Packet,
    /// IE 317: what follows the label stack.
    Labelled,
    /// IE 314: what follows the IP header, of the protocol at this place (IE 4).
    Payload(Option<Span>),
}

/// The piece of a frame or packet in a record (IE 313 to 315).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sampled {
    pub(crate) section: Section,
    pub(crate) span: Span,
    /// IE 312: its length on the wire.
    pub(crate) size: Option<Span>,
    /// IE 410: octets of the section; what follows them in the field is padding.
    pub(crate) exported: Option<Span>,
    /// IE 409: octets of the packet before the section.
    pub(crate) offset: Option<Span>,
    /// IE 408: the kind of frame.
    pub(crate) kind: Option<Span>,
}

/// The rows of a set, one a record.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowPlan {
    pub(crate) steps: Vec<Step>,
    pub(crate) addresses: Vec<AddressChoice>,
    /// IE 60, where addresses of both families are in the record.
    pub(crate) ip_version: Option<Span>,
    pub(crate) times: Times,
    pub(crate) sampling: Sampling,
    pub(crate) icmp_in_port: Option<IcmpInPort>,
    /// IE 70 to 79, top first.
    pub(crate) mpls: Vec<Span>,
    /// IE 316: the whole stack.
    pub(crate) mpls_stack: Option<Span>,
    /// IE 130, 131: true for IPv4.
    pub(crate) agent: Vec<(bool, Span)>,
    pub(crate) sampled: Option<Sampled>,
    pub(crate) extras: Vec<Extra>,
    /// What goes to `extra` only in some records: what did not get into its column.
    pub(crate) losers: Vec<(Extra, When)>,
    /// The times to keep as they are where the boot time is unknown.
    pub(crate) uptimes: Vec<Extra>,
    /// What event of address translation all records are, where no element says so (rule 48).
    pub(crate) nat_event: Option<u8>,
    /// Juniper's common properties, where they may say that the packet was dropped.
    pub(crate) properties: Vec<Span>,
    /// `bytes` or `packets` count since the start of the flow (IE 85, 86).
    pub(crate) totals: Option<TotalsPlan>,
}

/// How records are laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Octets of a record; the least where `variable`.
    pub(crate) record: usize,
    pub(crate) variable: bool,
    /// The lengths of the fields that have octets.
    pub(crate) fields: Vec<u16>,
}

/// A template with what is to be done with its records.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) template: Template,
    pub(crate) layout: Layout,
    /// Every field that has octets, for options data and for `extra`.
    pub(crate) named: Vec<Extra>,
    /// Enterprise and id of the fields in `named`, and whether they are scope.
    pub(crate) identities: Vec<(u32, u16, bool)>,
    /// The records are events without volume: rows of `nat_events`.
    pub(crate) events: bool,
    pub(crate) rows: RowPlan,
    /// RFC 5103: the rows of the other direction, and its packets or octets (none: no row).
    pub(crate) reverse: Option<(RowPlan, Option<Span>)>,
}

impl Plan {
    pub(crate) fn is_options(&self) -> bool {
        self.template.scope.is_some()
    }
}

/// What a field of the template is, on the way to a plan.
struct Part {
    /// Of the dictionary; a reverse element has its forward number here.
    enterprise: u32,
    id: u16,
    reverse: bool,
    span: Span,
    extra: Extra,
    /// The column that the element names itself, with its rank.
    column: Option<(usize, Mapping)>,
    /// How often the element came before in this template.
    repeat: usize,
}

/// Compiles a template, its elements being those of `dictionary`.
pub(crate) fn compile(template: &Template, dictionary: &Dictionary) -> Plan {
    let layout = Layout {
        record: template.min_record(),
        variable: template.fields.iter().any(|field| field.length == VARIABLE),
        fields: template.fields.iter().map(|field| field.length).filter(|length| *length > 0).collect(),
    };
    let mut parts: Vec<Part> = Vec::with_capacity(layout.fields.len());
    let mut identities = Vec::with_capacity(layout.fields.len());
    let mut offset = 0;
    let mut seen = Seen::default();
    let scope = usize::from(template.scope.unwrap_or(0));
    for (position, field) in template.fields.iter().enumerate().filter(|(_, field)| field.length > 0) {
        let span = Span { offset, field: parts.len(), width: field.length, skip: 0 };
        offset += if field.length == VARIABLE { 1 } else { usize::from(field.length) };
        let part = part(*field, span, dictionary, &mut seen);
        identities.push((part.enterprise, part.id, position < scope));
        parts.push(part);
    }
    let named = parts.iter().map(|part| part.extra.clone()).collect();
    let mut plan = Plan {
        template: template.clone(),
        layout,
        named,
        identities,
        events: false,
        rows: RowPlan::default(),
        reverse: None,
    };
    if plan.is_options() {
        return plan;
    }
    let has =
        |test: fn(u32, u16) -> bool| parts.iter().any(|part| !part.reverse && test(part.enterprise, part.id));
    plan.events = (has(mapping::is_event) || has(mapping::is_translation)) && !has(mapping::is_volume);
    let v9 = template.fields.first().is_some_and(|field| field.space == super::template::Space::V9);
    let (reverse, forward): (Vec<&Part>, Vec<&Part>) = parts.iter().partition(|part| part.reverse);
    plan.rows = rows(&forward, v9);
    if plan.events && !has(mapping::is_event) {
        plan.rows.nat_event = match (plan.rows.times.start, plan.rows.times.end) {
            (Some(_), None) => Some(NAT_CREATE),
            (None, Some(_)) => Some(NAT_DELETE),
            _ => None,
        };
    }
    if !reverse.is_empty() {
        plan.reverse = Some(reverse_rows(&forward, &reverse));
    }
    plan
}

/// RFC 8158 §4.1.1.2: a translation begins, and ends.
const NAT_CREATE: u8 = 1;
const NAT_DELETE: u8 = 2;

const JUNIPER: u32 = 2636;
const JUNIPER_COMMON_PROPERTIES: u16 = 137;

/// How often each element came so far.
type Seen = HashMap<(u32, u16, bool), usize, foldhash::fast::RandomState>;

fn part(field: Field, span: Span, dictionary: &Dictionary, seen: &mut Seen) -> Part {
    let (mut enterprise, id) = field.identity(dictionary);
    if field.space == super::template::Space::V9Scope {
        // no element: numbered apart from all of them
        enterprise = u32::MAX;
    }
    let reverse = enterprise == REVERSE;
    let enterprise = if reverse { IANA } else { enterprise };
    let seen = seen.entry((enterprise, id, reverse)).or_insert(0);
    let repeat = *seen;
    *seen += 1;
    let mut name = field.name(dictionary);
    if repeat > 0 {
        name = format!("{name}[{}]", repeat + 1).into();
    }
    let extra = Extra { name, data_type: field.data_type(dictionary), span };
    let column = field.element(dictionary).and_then(mapping::named);
    Part { enterprise, id, reverse, span, extra, column, repeat }
}

/// A column's candidate: its rank in the table, the mapping, the place.
type Candidate<'a> = (usize, Mapping, Span, &'a Part);

fn rows(parts: &[&Part], v9: bool) -> RowPlan {
    let mut plan = RowPlan::default();
    let mut used = vec![false; parts.len()];
    specials(&mut plan, parts, &mut used);
    let mut candidates: Vec<(FlowColumn, Vec<Candidate<'_>>)> = Vec::new();
    for part in parts.iter().filter(|part| part.repeat == 0) {
        let named = part.column.as_ref();
        let mappings =
            named.map_or_else(|| mapping::mappings(part.enterprise, part.id), std::slice::from_ref);
        for &(rank, mapping) in mappings {
            let Some(span) = place(mapping.conversion, part.span) else { continue };
            let candidate = (rank, mapping, span, *part);
            match candidates.iter_mut().find(|(column, _)| *column == mapping.column) {
                Some((_, list)) => list.push(candidate),
                None => candidates.push((mapping.column, vec![candidate])),
            }
        }
    }
    for (column, list) in &mut candidates {
        list.sort_by_key(|(rank, ..)| *rank);
        outer_first(list);
        choose(&mut plan, *column, list, &mut used, parts);
    }
    if v9 {
        icmp_in_port(&mut plan);
    }
    let interface =
        |plan: &RowPlan, column| plan.steps.iter().find(|step| step.column == column).map(|step| step.span);
    plan.sampling.in_if = interface(&plan, FlowColumn::InIf);
    plan.sampling.out_if = interface(&plan, FlowColumn::OutIf);
    if !plan.steps.iter().any(|step| step.column == FlowColumn::ForwardingStatus) {
        let properties = parts.iter().filter(|part| {
            (part.enterprise, part.id, part.span.width) == (JUNIPER, JUNIPER_COMMON_PROPERTIES, 2)
        });
        plan.properties = properties.map(|part| part.span).collect();
    }
    let total = |column: FlowColumn, id: u16| {
        let step = plan.steps.iter().find(|step| step.column == column);
        step.is_some_and(|step| {
            parts.iter().any(|part| part.enterprise == IANA && part.id == id && part.span == step.span)
        })
    };
    let (bytes, packets) = (total(FlowColumn::Bytes, 85), total(FlowColumn::Packets, 86));
    plan.totals = (bytes || packets).then(|| {
        let keys = parts.iter().filter(|part| totals::is_key(part.enterprise, part.id));
        TotalsPlan { bytes, packets, keys: keys.map(|part| part.span).collect() }
    });
    let rest = parts.iter().zip(used).filter(|(part, used)| !used && part.id != 210);
    plan.extras = rest.map(|(part, _)| part.extra.clone()).collect();
    plan
}

/// Rule 44: a record about a tunnel has the addresses of two packets, of one family each. As with an element that stands
/// twice, the first is the outer one.
fn outer_first(list: &mut [Candidate<'_>]) {
    let place =
        |ids: [u16; 2]| list.iter().position(|(.., part)| part.enterprise == IANA && ids.contains(&part.id));
    let (Some(v4), Some(v6)) = (place([8, 12]), place([27, 28])) else { return };
    if list[v6].2.field < list[v4].2.field {
        list.swap(v4, v6);
    }
}

/// Where the value lies, if the field's length suits the conversion.
fn place(conversion: Conversion, span: Span) -> Option<Span> {
    let fits = match conversion {
        Conversion::Ipv4 => span.width == 4,
        Conversion::Ipv6 => span.width == 16,
        Conversion::Mac => span.width == 6,
        Conversion::Octet(at) => {
            let wanted = Span { width: 1, skip: at, offset: span.offset + usize::from(at), ..span };
            return (span.width == 2).then_some(wanted);
        }
        Conversion::Text | Conversion::Application => true,
        Conversion::Dscp => span.width == 1,
        Conversion::Number
        | Conversion::Counter
        | Conversion::Times(_)
        | Conversion::Nanos
        | Conversion::Low24 => span.width <= 8 || span.width == VARIABLE,
    };
    fits.then_some(span)
}

/// Takes one of the candidates for a column, or several for a choice record by record.
fn choose(
    plan: &mut RowPlan,
    column: FlowColumn,
    list: &[Candidate<'_>],
    used: &mut [bool],
    parts: &[&Part],
) {
    let Some((_, first, span, part)) = list.first() else { return };
    let mut mark = |part: &Part| {
        if let Some(at) = parts.iter().position(|other| std::ptr::eq(*other, part)) {
            used[at] = true;
        }
    };
    mark(part);
    let others: &[Candidate<'_>] = if first.choice == Choice::NonZero { &list[1..] } else { &[] };
    let is_address = column.column().kind == Kind::Ip;
    for (_, _, other, part) in others {
        mark(part);
        // type and code are two halves of one field: the whole field would be the loser twice
        if other.width == part.span.width {
            plan.losers.push((part.extra.clone(), When::NeitherIsZero(*span)));
        }
    }
    if let (true, Some((_, _, other, _))) = (is_address, others.first()) {
        // with the IP version in the record it may be the first that loses
        plan.losers.push((part.extra.clone(), When::NeitherIsZero(*other)));
    }
    let limit = match column.column().kind {
        Kind::U8 => 1,
        Kind::U16 => 2,
        Kind::U32 => 4,
        _ => 8,
    };
    if first.conversion == Conversion::Number && span.width > limit {
        let most = u64::MAX >> (64 - 8 * u32::from(limit));
        plan.losers.push((part.extra.clone(), When::Exceeds(most)));
    }
    if is_address && !others.is_empty() {
        let spans = list
            .iter()
            .map(|(_, mapping, span, _)| (mapping.conversion == Conversion::Ipv4, *span))
            .collect();
        plan.addresses.push(AddressChoice { column, spans });
        return;
    }
    let others = others.iter().map(|(_, mapping, span, _)| (mapping.conversion, *span)).collect();
    plan.steps.push(Step::new(column, first.conversion, *span, others));
}

/// Elements that are more than a column: times, sampling, label stacks, sampled frames.
fn specials(plan: &mut RowPlan, parts: &[&Part], used: &mut [bool]) {
    let mut take = |id: u16, fits: fn(u16) -> bool| {
        let matches = |part: &&Part| part.enterprise == IANA && part.id == id && part.repeat == 0;
        let at = parts.iter().position(|part| matches(part) && fits(part.span.width))?;
        used[at] = true;
        Some(parts[at].span)
    };
    fn number(width: u16) -> bool {
        width <= 8
    }
    // rule 31 and the corpus: milliseconds before seconds before NTP before what is relative
    let mut clock = |ids: [u16; 6]| {
        let [ms, s, micro, nano, before, uptime] = ids;
        let eight: fn(u16) -> bool = |width| width == 8;
        take(ms, eight)
            .map(|span| Clock::Epoch(span, 1_000))
            .or_else(|| take(s, |width| width == 4 || width == 8).map(|span| Clock::Epoch(span, 1_000_000)))
            .or_else(|| take(micro, eight).map(Clock::Ntp))
            .or_else(|| take(nano, eight).map(Clock::Ntp))
            .or_else(|| take(before, number).map(Clock::Before))
            .or_else(|| take(uptime, |width| width == 4).map(Clock::Uptime))
    };
    plan.times.start = clock([152, 150, 154, 156, 158, 22]);
    plan.times.end = clock([153, 151, 155, 157, 159, 21]);
    if plan.times.start.is_none() && plan.times.end.is_none() {
        // the time of an event, or of a packet (RFC 5477)
        plan.times.start = clock([323, 322, 324, 325, 0, 0]);
        plan.times.end = plan.times.start;
    }
    if plan.times.start.is_none() || plan.times.end.is_none() {
        plan.times.duration =
            take(161, number).map(|span| (span, 1_000)).or_else(|| take(162, number).map(|span| (span, 1)));
    }
    plan.times.boot = take(160, |width| width == 8);
    for part in parts.iter().filter(|part| part.enterprise == IANA && matches!(part.id, 21 | 22)) {
        if [plan.times.start, plan.times.end].contains(&Some(Clock::Uptime(part.span))) {
            plan.uptimes.push(part.extra.clone());
        }
    }
    sampling(plan, parts, &mut take);
    for id in 70..80 {
        plan.mpls.extend(take(id, |width| width == 3));
    }
    plan.mpls_stack = take(316, |_| true);
    plan.agent.extend(take(130, |width| width == 4).map(|span| (true, span)));
    plan.agent.extend(take(131, |width| width == 16).map(|span| (false, span)));
    let protocol = parts.iter().find(|part| part.enterprise == IANA && part.id == 4).map(|part| part.span);
    let sections = [
        (315, Section::Frame),
        (104, Section::Frame),
        (313, Section::Packet),
        (317, Section::Labelled),
        (314, Section::Payload(protocol)),
    ];
    let sampled = sections.into_iter().find_map(|(id, section)| Some((section, take(id, |_| true)?)));
    plan.sampled = sampled.map(|(section, span)| Sampled {
        section,
        span,
        size: take(312, number),
        exported: take(410, number),
        offset: take(409, number),
        kind: take(408, number),
    });
    let both = |ids: [u16; 2]| {
        ids.iter().all(|id| parts.iter().any(|part| part.enterprise == IANA && part.id == *id))
    };
    if both([8, 27]) || both([12, 28]) {
        plan.ip_version = take(60, |width| width == 1);
    }
}

/// Rule 24: the rates inside a record, the surest first.
fn sampling(
    plan: &mut RowPlan,
    parts: &[&Part],
    take: &mut impl FnMut(u16, fn(u16) -> bool) -> Option<Span>,
) {
    fn number(width: u16) -> bool {
        width <= 8
    }
    let has = |id: u16| {
        parts.iter().any(|part| part.enterprise == IANA && part.id == id && number(part.span.width))
    };
    if has(309)
        && has(310)
        && let (Some(size), Some(population)) = (take(309, number), take(310, number))
    {
        plan.sampling.rates.push(Rate::OutOf { size, population });
    }
    if let Some(taken) = take(305, number) {
        let (skipped, algorithm) = (take(306, number), take(304, number));
        plan.sampling.rates.push(Rate::Packets { taken, skipped, algorithm });
    }
    plan.sampling.rates.extend(take(311, |width| width == 4 || width == 8).map(Rate::Probability));
    for id in [50, 34] {
        plan.sampling.rates.extend(take(id, number).map(Rate::Interval));
    }
    plan.sampling.sampler = take(302, number).or_else(|| take(48, number));
}

fn icmp_in_port(plan: &mut RowPlan) {
    let span = |column| {
        let step = plan.steps.iter().find(|step| step.column == column && step.others.is_empty());
        step.map(|step| step.span)
    };
    let explicit = plan.steps.iter().any(|step| step.column == FlowColumn::IcmpType);
    if let (false, Some(protocol), Some(dst_port)) =
        (explicit, span(FlowColumn::IpProtocol), span(FlowColumn::DstPort))
        && protocol.width == 1
        && dst_port.width == 2
    {
        let src_port = span(FlowColumn::SrcPort).filter(|span| span.width == 2);
        plan.icmp_in_port = Some(IcmpInPort { protocol, src_port, dst_port });
    }
}

/// RFC 5103: the record of the other direction has the same keys with the ends swapped, and what is reverse in the
/// record in place of what belongs to the forward direction.
fn reverse_rows(forward: &[&Part], reverse: &[&Part]) -> (RowPlan, Option<Span>) {
    let own = rows(reverse, false);
    let mut plan = rows(forward, false);
    plan.extras.clear();
    plan.sampled = None;
    for step in &mut plan.steps {
        step.column = mapping::other_end(step.column);
    }
    for choice in &mut plan.addresses {
        choice.column = mapping::other_end(choice.column);
    }
    let replaced = |column: FlowColumn| {
        mapping::of_one_direction(column) || own.steps.iter().any(|step| step.column == column)
    };
    plan.steps.retain(|step| !replaced(step.column));
    plan.addresses.retain(|choice| !replaced(choice.column));
    let count =
        |column: FlowColumn| own.steps.iter().find(|step| step.column == column).map(|step| step.span);
    let count = count(FlowColumn::Packets).or_else(|| count(FlowColumn::Bytes));
    plan.steps.extend(own.steps);
    plan.addresses.extend(own.addresses);
    plan.extras = own.extras;
    plan.losers.clear();
    let keys = plan.totals.take().map(|totals| totals.keys).unwrap_or_default();
    plan.totals = own.totals.map(|totals| TotalsPlan { keys, ..totals });
    if own.times.start.is_some() || own.times.end.is_some() {
        plan.times = Times { boot: plan.times.boot, ..own.times };
        plan.uptimes = own.uptimes;
    }
    (plan, count)
}

/// A shared plan.
pub(crate) type SharedPlan = Arc<Plan>;
