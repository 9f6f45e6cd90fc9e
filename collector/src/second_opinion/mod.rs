//! A second opinion: the same datagrams decoded by weir and by netflow_parser, and every difference.
//!
//! [`SecondOpinion::compare`] takes datagrams in the order in which they came, as a decoder does: both keep the
//! templates. It compares how many records each made of every data set, and then, record by record, the values: those
//! of the columns and of `extra` in weir's rows against what follows from netflow_parser's. Which column an element
//! goes to is weir's table; what no column holds is compared as octets. Differences that are known have an
//! [`Explanation`]; any other is a mistake of one of the two.
//!
//! netflow_parser knows NetFlow v5, v7, v9 and IPFIX. sFlow, NetFlow v1 and v8 have no second opinion
//! ([`Comparison::not_covered`]). Not compared: columns that follow from the octets of a sampled frame, rates from
//! options data, and names of applications.

mod explained;
mod record;
mod theirs;

use std::net::SocketAddr;
use std::sync::Arc;

use netflow_parser::{AutoScopedParser, ConfigError, NetflowParser, PendingFlowsConfig};

pub use self::explained::Explanation;
use self::explained::{Memory, Scope};
use self::record::{Compared, Disagreement, Header, Why};
use crate::cells::{Rows, table};
use crate::decode::compile::Plan;
use crate::decode::fixed;
use crate::decode::message::{self, Message, Sets};
use crate::decode::netflow::Netflow;
use crate::decode::records::Walked;
use crate::decode::run::SetOutcome;
use crate::decode::wire::{u16_at, unsigned};
use crate::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, Outcome, SharedState};

/// Differences of one datagram that are listed; the rest is counted.
const MAX_DIFFERENCES: usize = 200;
/// Records of one set that are compared.
const MAX_RECORDS: usize = 16_384;
const SECOND_US: i64 = 1_000_000;

/// Something on which the two do not agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which data set of the datagram, from 1; None where it is about the datagram.
    pub set: Option<usize>,
    /// The template of the set.
    pub template: Option<u16>,
    /// Which record of the set, from 1.
    pub record: Option<usize>,
    /// What it is about: an element as netflow_parser calls it, or `records`.
    pub what: String,
    /// weir's column, `extra.name` where it has none of its own.
    pub column: String,
    pub weir: String,
    pub netflow_parser: String,
    /// None: nobody knows why.
    pub explanation: Option<Explanation>,
}

/// A datagram decoded by both.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// Why there is no second opinion about this datagram.
    pub not_covered: Option<&'static str>,
    /// Records that weir decoded, options records too.
    pub records_weir: u64,
    pub records_netflow_parser: u64,
    /// Values compared.
    pub values: u64,
    /// The first of them; `more` were found beyond.
    pub differences: Vec<Difference>,
    pub more: u64,
    /// How many of all have no explanation.
    pub unexplained: u64,
    /// What weir made of the datagram.
    pub outcome: Outcome,
}

impl Comparison {
    fn add(&mut self, difference: Difference) {
        self.unexplained += u64::from(difference.explanation.is_none());
        if self.differences.len() < MAX_DIFFERENCES {
            self.differences.push(difference);
        } else {
            self.more += 1;
        }
    }
}

/// Both decoders, with what they remember.
pub struct SecondOpinion {
    decoder: Decoder,
    batches: Batches,
    theirs: AutoScopedParser,
    memory: Memory,
    next_tick_us: i64,
}

impl std::fmt::Debug for SecondOpinion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecondOpinion").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}

/// netflow_parser refused its configuration.
#[derive(Debug, thiserror::Error)]
#[error("netflow_parser: {0}")]
pub struct SetupError(String);

impl From<ConfigError> for SetupError {
    fn from(error: ConfigError) -> SetupError {
        SetupError(error.to_string())
    }
}

impl SecondOpinion {
    /// The clock check is off, whatever the configuration says: times are compared as they were exported.
    pub fn new(config: &DecodeConfig) -> Result<SecondOpinion, SetupError> {
        let config = DecodeConfig { clock_check: false, ..config.clone() };
        let shared = SharedState::of(&config).map_err(|error| SetupError(error.to_string()))?;
        let builder = NetflowParser::builder()
            .with_max_records_per_flowset(MAX_RECORDS)
            .with_max_field_count(10_000)
            .with_pending_flows(PendingFlowsConfig::default());
        Ok(SecondOpinion {
            decoder: Decoder::new(Arc::new(config), Arc::new(shared)),
            batches: Batches::new(),
            theirs: AutoScopedParser::try_with_builder(builder)?,
            memory: Memory::default(),
            next_tick_us: i64::MIN,
        })
    }

    /// Decodes a datagram by both.
    pub fn compare(&mut self, datagram: &[u8], meta: &DatagramMeta) -> Comparison {
        let mut found = Comparison::default();
        self.decoder.trace();
        found.outcome = self.decoder.decode(datagram, meta, &mut self.batches);
        let rows = Rows::take(&mut self.batches, self.decoder.trace());
        // expiry has the clock of the capture
        if meta.received_us >= self.next_tick_us {
            self.next_tick_us = meta.received_us.saturating_add(SECOND_US);
        }
        let version = u16_at(datagram, 0);
        match version {
            _ if datagram.len() < 2 => found.not_covered = Some("too short to have a version"),
            0 => found.not_covered = Some("sFlow: netflow_parser does not know it"),
            1 => found.not_covered = Some("NetFlow v1: netflow_parser does not know it"),
            5 | 7 => self.fixed(version, datagram, meta, rows, &mut found),
            9 | 10 => self.message(version, datagram, meta, rows, &mut found),
            8 => found.not_covered = Some("NetFlow v8: neither of the two knows it"),
            _ => found.not_covered = Some("a version that neither of the two knows"),
        }
        if meta.received_us.saturating_add(SECOND_US) == self.next_tick_us {
            self.decoder.tick(meta.received_us, &mut self.batches);
            // rows of the tick belong to no datagram
            for builder in self.batches.all_mut() {
                builder.finish();
            }
        }
        found
    }

    fn parse(&mut self, datagram: &[u8], meta: &DatagramMeta) -> (Vec<theirs::Set>, Option<String>) {
        let source = SocketAddr::new(meta.sender.ip(), meta.sender_port);
        let result = self.theirs.parse_from_source(source, datagram);
        let sets = result.packets.first().map(theirs::sets).unwrap_or_default();
        let error = result.error.map(|error| error.to_string());
        // an error behind the first message is about octets that weir does not look at
        let error = error.filter(|_| result.packets.is_empty());
        (sets, error)
    }

    fn fixed(
        &mut self,
        version: u16,
        datagram: &[u8],
        meta: &DatagramMeta,
        rows: Rows,
        found: &mut Comparison,
    ) {
        let (sets, error) = self.parse(datagram, meta);
        let records = sets.first().and_then(|set| set.records.as_deref()).unwrap_or_default();
        found.records_netflow_parser = records.len() as u64;
        let parsed = fixed::parse(version, datagram);
        let count = parsed.as_ref().map_or(0, |message| message.count as usize);
        found.records_weir = count as u64;
        if count != records.len() || error.is_some() && parsed.is_ok() {
            let (header, length) = (24, if version == 5 { 48 } else { 52 });
            let (announced, most) = (usize::from(u16_at(datagram, 2)), if version == 5 { 30 } else { 28 });
            let explanation = if announced == 0 {
                Some(Explanation::NoRecords)
            } else if announced > most {
                Some(Explanation::RecordLimit)
            } else if announced * length > datagram.len().saturating_sub(header) {
                Some(Explanation::ShortOfCount)
            } else {
                None
            };
            found.add(counts(None, None, count, records.len(), error, explanation));
        }
        let Ok(message) = parsed else { return };
        let plan = fixed::plan(version);
        let header = Header {
            export_us: message.export_us,
            uptime_ms: Some(message.uptime_ms),
            received_us: meta.received_us,
        };
        let outcome = SetOutcome { records: message.count, rows: message.count, truncated: false };
        let set = Place { set: 1, template: None, header, start: 0 };
        compare_set(plan, message.records, outcome, records, &rows, set, found);
    }

    fn message(
        &mut self,
        version: u16,
        datagram: &[u8],
        meta: &DatagramMeta,
        rows: Rows,
        found: &mut Comparison,
    ) {
        let parsed = if version == 9 { message::v9(datagram) } else { message::ipfix(datagram) };
        let (sets, error) = self.parse(datagram, meta);
        let Ok(message) = parsed else {
            let records: usize = sets.iter().filter_map(|set| set.records.as_ref()).map(Vec::len).sum();
            found.records_netflow_parser = records as u64;
            if error.is_none() {
                let why = found.outcome.rejected.map_or("rejected", |reason| reason.as_str());
                found.add(datagram_difference(why.to_owned(), format!("{records} records"), None));
            }
            return;
        };
        let scope: Scope = (meta.sender, meta.sender_port, message.domain, 0);
        let walk = Walk::new(&message, &sets, &mut self.memory, scope, error.is_some());
        let trace = self.decoder.trace();
        let mut context =
            Sides { memory: &self.memory, scope, message: &message, walk: &walk, rows: &rows, meta };
        found.records_netflow_parser =
            sets.iter().filter_map(|set| set.records.as_ref()).map(|records| records.len() as u64).sum();
        if let Some(error) = error {
            let explanation = match walk.gave_up {
                None if message.sets.is_empty() => Some(Explanation::NoRecords),
                None if error.contains("limit") => Some(Explanation::OutputLimit),
                gave_up => gave_up,
            };
            found.add(datagram_difference(
                format!("{} sets", walk.sets.len()),
                format!("error: {error}"),
                explanation,
            ));
        }
        context.compare(trace, found);
    }
}

/// About the datagram as a whole.
fn datagram_difference(weir: String, theirs: String, explanation: Option<Explanation>) -> Difference {
    Difference {
        set: None,
        template: None,
        record: None,
        what: "datagram".into(),
        column: String::new(),
        weir,
        netflow_parser: theirs,
        explanation,
    }
}

/// Different numbers of records.
fn counts(
    set: Option<usize>,
    template: Option<u16>,
    weir: usize,
    theirs: usize,
    error: Option<String>,
    explanation: Option<Explanation>,
) -> Difference {
    Difference {
        set,
        template,
        record: None,
        what: "records".into(),
        column: String::new(),
        weir: weir.to_string(),
        netflow_parser: match error {
            Some(error) => format!("{theirs} ({error})"),
            None => theirs.to_string(),
        },
        explanation,
    }
}

/// A set of the message, and what netflow_parser has for it.
struct Pair {
    /// Where its content is in the sets of the message.
    start: usize,
    theirs: Option<usize>,
    /// Why netflow_parser has nothing, where that follows from the sets before.
    lost: Option<Explanation>,
}

/// The sets of a message one by one.
struct Walk<'a> {
    sets: Vec<Pair>,
    /// netflow_parser's sets that are none of the message: data that waited.
    replayed: Vec<&'a theirs::Set>,
    all: &'a [theirs::Set],
    gave_up: Option<Explanation>,
}

impl<'a> Walk<'a> {
    fn new(
        message: &Message<'_>,
        theirs: &'a [theirs::Set],
        memory: &mut Memory,
        scope: Scope,
        error: bool,
    ) -> Walk<'a> {
        use crate::decode::message::Set;
        let mut sets = Vec::new();
        let (mut next, mut gave_up) = (0, None);
        let mut walk = Sets::new(message);
        let mut start = 0;
        while let Some(set) = walk.next() {
            let end = walk.walked();
            let (id, length) = (u16_at(message.sets, start), u16_at(message.sets, start + 2));
            match set {
                Set::Templates(kind, content) => match gave_up {
                    Some(why) => memory.lost(kind, content, scope, why),
                    None => gave_up = memory.templates(kind, content, scope),
                },
                Set::Bad => {
                    gave_up = gave_up.or(Some(Explanation::SetAfterBad));
                    break;
                }
                // they take it as templates of v9, or give up at it
                Set::Reserved(0 | 1) if message.ipfix => {
                    let taken = theirs.get(next).is_some_and(|set| (set.id, set.length) == (id, length));
                    gave_up = gave_up.or((!taken).then_some(Explanation::V9InIpfix));
                }
                Set::Data(..) | Set::Reserved(_) => {}
            }
            let same = theirs.get(next).is_some_and(|set| (set.id, set.length) == (id, length));
            let lost = gave_up.filter(|_| !same);
            sets.push(Pair { start: start + 4, theirs: same.then_some(next), lost });
            next += usize::from(same);
            start = end;
        }
        // of v9 an error is the end of the whole datagram
        if error {
            gave_up = gave_up.or(trailing(message, start).then_some(Explanation::SetAfterBad));
            for pair in &mut sets {
                pair.lost = pair.lost.or(gave_up);
            }
        }
        let replayed = theirs.iter().skip(next).collect();
        Walk { sets, replayed, all: theirs, gave_up }
    }
}

/// Fewer octets than a set header needs follow the last set.
fn trailing(message: &Message<'_>, end: usize) -> bool {
    end < message.sets.len()
}

/// Both sides of a message.
struct Sides<'a> {
    memory: &'a Memory,
    scope: Scope,
    message: &'a Message<'a>,
    walk: &'a Walk<'a>,
    rows: &'a Rows,
    meta: &'a DatagramMeta,
}

/// A set that is compared.
#[derive(Clone, Copy)]
struct Place {
    set: usize,
    template: Option<u16>,
    header: Header,
    /// The first of its rows.
    start: usize,
}

impl Sides<'_> {
    fn compare(&mut self, trace: &Netflow, found: &mut Comparison) {
        let mut replayed: Vec<&theirs::Set> = self.walk.replayed.clone();
        for (waited, start) in trace.replayed.iter().zip(self.rows.replayed.iter().copied()) {
            let header = Header {
                export_us: waited.set.export_us,
                uptime_ms: waited.set.uptime_ms,
                received_us: waited.set.received_us,
            };
            let place = Place { set: 0, template: Some(waited.set.template), header, start };
            let theirs = take_replayed(&mut replayed, waited.set.template, waited.set.data.len());
            let lost =
                Some(self.memory.without(self.of(waited.set.template)).unwrap_or(Explanation::WaitedLonger));
            self.one(&waited.plan, &waited.set.data, waited.outcome, theirs, place, lost, found);
        }
        let header = Header {
            export_us: self.message.export_us,
            uptime_ms: self.message.uptime_ms,
            received_us: self.meta.received_us,
        };
        for (number, (work, start)) in trace.work.iter().zip(&self.rows.work).enumerate() {
            let content = self.message.sets.get(work.start..work.end).unwrap_or_default();
            let pair = self.walk.sets.iter().find(|pair| pair.start == work.start);
            let mut theirs = pair.and_then(|pair| self.walk.all.get(pair.theirs?));
            if theirs.is_none_or(|set| set.records.is_none()) {
                theirs = take_replayed(&mut replayed, work.template, content.len()).or(theirs);
            }
            let lost = pair.and_then(|pair| pair.lost);
            let lost = lost.or_else(|| self.memory.without(self.of(work.template)));
            let place =
                Place { set: number + 1, template: Some(work.template), header, start: start.unwrap_or(0) };
            match &work.plan {
                Some(plan) => self.one(plan, content, work.outcome, theirs, place, lost, found),
                None => self.unknown(theirs, place, trace.restarted, found),
            }
        }
        for set in replayed {
            let count = set.records.as_ref().map_or(0, Vec::len);
            if count > 0 {
                let explanation = Some(Explanation::WaitedLonger);
                found.add(counts(None, Some(set.id), 0, count, None, explanation));
            }
        }
    }

    fn of(&self, template: u16) -> Scope {
        (self.scope.0, self.scope.1, self.scope.2, template)
    }

    /// A set that weir decoded.
    #[expect(clippy::too_many_arguments, reason = "both sides of a set, and where it is")]
    fn one(
        &self,
        plan: &Plan,
        content: &[u8],
        outcome: SetOutcome,
        theirs: Option<&theirs::Set>,
        place: Place,
        lost: Option<Explanation>,
        found: &mut Comparison,
    ) {
        found.records_weir += u64::from(outcome.records);
        let empty = Vec::new();
        let records = theirs.and_then(|set| set.records.as_ref());
        let count = records.map_or(0, Vec::len);
        if count != outcome.records as usize {
            let explanation = match records {
                None => lost,
                Some(_) if ends_at_empty(plan, content, count) => Some(Explanation::EmptyVariable),
                Some(_) if count.max(outcome.records as usize) >= MAX_RECORDS || outcome.truncated => {
                    Some(Explanation::OutputLimit)
                }
                Some(_) => None,
            };
            let set = (place.set > 0).then_some(place.set);
            found.add(counts(set, place.template, outcome.records as usize, count, None, explanation));
        }
        compare_set(plan, content, outcome, records.unwrap_or(&empty), self.rows, place, found);
    }

    /// A set that weir has no template for.
    fn unknown(&self, theirs: Option<&theirs::Set>, place: Place, restarted: bool, found: &mut Comparison) {
        let count = theirs.and_then(|set| set.records.as_ref()).map_or(0, Vec::len);
        if count == 0 {
            return;
        }
        let defined = place.template.is_some_and(|template| self.memory.is_defined(self.of(template)));
        let explanation = match (restarted, defined) {
            (true, _) => Some(Explanation::Restarted),
            // a template that only netflow_parser took
            (false, false) => Some(Explanation::V9InIpfix).filter(|_| self.message.ipfix),
            (false, true) => None,
        };
        found.add(counts(Some(place.set), place.template, 0, count, None, explanation));
    }
}

/// The first of netflow_parser's replayed sets that is of this template and length.
fn take_replayed<'a>(sets: &mut Vec<&'a theirs::Set>, id: u16, length: usize) -> Option<&'a theirs::Set> {
    let at = sets.iter().position(|set| set.id == id && usize::from(set.length) == length + 4)?;
    Some(sets.remove(at))
}

/// True where record `n` of weir's has a variable-length value of no octets.
fn ends_at_empty(plan: &Plan, content: &[u8], n: usize) -> bool {
    let mut places = Vec::new();
    Walked::walk(content, &plan.layout.fields, MAX_RECORDS, &mut places);
    let fields = plan.layout.fields.len().max(1);
    places.chunks_exact(fields).nth(n).is_some_and(|record| record.iter().any(|(_, length)| *length == 0))
}

/// Compares the records that both have.
fn compare_set(
    plan: &Plan,
    content: &[u8],
    outcome: SetOutcome,
    theirs: &[theirs::Record],
    rows: &Rows,
    place: Place,
    found: &mut Comparison,
) {
    let mut places = Vec::new();
    Walked::walk(content, &plan.layout.fields, MAX_RECORDS, &mut places);
    let fields = plan.layout.fields.len().max(1);
    let cells = rows.of(table(plan));
    // the rows of the other direction follow those of all records
    let mut reverse_row = place.start + outcome.records as usize;
    let set = (place.set > 0).then_some(place.set);
    for (number, (record, spans)) in theirs.iter().zip(places.chunks_exact(fields)).enumerate() {
        if number >= outcome.records as usize {
            break;
        }
        let octets = |(start, length): &(u32, u32)| {
            content.get(*start as usize..(*start + *length) as usize).unwrap_or_default()
        };
        let ours: Vec<&[u8]> = spans.iter().map(octets).collect();
        let with_octets: Vec<_> = (record.iter().zip(&plan.template.fields))
            .filter(|(_, field)| field.length > 0)
            .map(|(field, _)| field.clone())
            .collect();
        if record.len() != plan.template.fields.len() {
            let mut difference =
                counts(set, place.template, plan.template.fields.len(), record.len(), None, None);
            difference.what = "fields".into();
            difference.record = Some(number + 1);
            found.add(difference);
            continue;
        }
        let mut compared = Compared {
            plan,
            header: place.header,
            theirs: &with_octets,
            ours: &ours,
            cells,
            values: 0,
            found: Vec::new(),
        };
        let row = place.start + number;
        if plan.is_options() {
            compared.options(row);
        } else {
            let counted = plan.reverse.as_ref().map(|(_, span)| {
                span.is_none_or(|span| ours.get(span.field).is_some_and(|octets| unsigned(octets) != 0))
            });
            let has_reverse = counted == Some(true);
            compared.flow(row, has_reverse.then_some(reverse_row));
            reverse_row += usize::from(has_reverse);
        }
        found.values += compared.values;
        for disagreement in compared.found {
            found.add(difference(disagreement, set, place.template, number + 1));
        }
    }
}

fn difference(found: Disagreement, set: Option<usize>, template: Option<u16>, record: usize) -> Difference {
    let control =
        |text: &Option<String>| text.as_ref().is_some_and(|text| text.chars().any(char::is_control));
    let explanation = match found.why {
        Why::Text if control(&found.weir) => Some(Explanation::ControlCharacters),
        Why::Type if found.same_octets => Some(Explanation::OtherType),
        _ => None,
    };
    let text = |value: Option<String>| value.unwrap_or_else(|| "NULL".to_owned());
    Difference {
        set,
        template,
        record: Some(record),
        what: found.element,
        column: found.column,
        weir: text(found.weir),
        netflow_parser: text(found.theirs),
        explanation,
    }
}

#[cfg(test)]
mod tests;
