//! NetFlow v1, v5, v7, v9 and IPFIX: one datagram at a time, with what its exporter said before.
//!
//! A v9 or IPFIX message is gone through in passes (rule 27: options and templates may follow the data that needs
//! them): templates are taken in, and every data set gets the template that holds where it stands; then options data;
//! then data that waited for these templates; then flows, in wire order.

use weir_schemas::Table;
use weir_schemas::elements::Dictionary;

use super::clock::ClockStep;
use super::compile::SharedPlan;
use super::config::DecodeConfig;
use super::exporters::{Counters, ExporterKey, ExporterState, Exporters, Protocol};
use super::format::Around;
use super::message::{Message, Set, Sets};
use super::options::run_options;
use super::pending::{Pending, Waiting};
use super::reject::RejectReason;
use super::run::{Room, Scratch, SetContext, SetOutcome, run_fixed, run_set};
use super::sampling::{Learned, View};
use super::sequence::{Sequence, Step};
use super::shared::{Defined, DomainKey, Lookup, SharedState};
use super::stats::{Event, Events};
use super::template::{Definition, Template, parse_set};
use super::{Batches, DatagramMeta, DecodeCounters, fixed};

/// Templates of a datagram for which others may make room.
const MAX_EVICTIONS: usize = 32;
/// Unknown elements of a template that are named in an event.
const MAX_NAMED: usize = 20;
/// An uptime that goes back by more is a restart, not a late datagram.
const RESTART_MS: i32 = 60_000;

/// What is remembered of an exporter and domain.
#[derive(Debug, Default)]
pub(crate) struct NetflowState {
    pub(crate) lookup: Option<Lookup>,
    sessions: Vec<SessionState>,
}

/// What is remembered of a transport session.
#[derive(Debug, Default)]
struct SessionState {
    /// The source port that it began with: what its templates are kept under.
    id: u16,
    /// The port of its last datagram.
    port: u16,
    sequence: Sequence,
    /// Uptime and clock of the last header.
    uptime: Option<(u32, i64)>,
    /// Receive time and uptime of a datagram that says that the exporter restarted.
    suspected: Option<(i64, u32)>,
    last_us: i64,
}

/// Whether an exporter restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    No,
    /// One datagram says so: it may be invented.
    Suspected,
    /// So does the one after it; the first one came then.
    Since(i64),
}

/// A data set of the datagram in hand, or of the last one: kept until the next for whoever explains it.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) template: u16,
    /// Where its content lies in the sets of the message.
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) plan: Option<SharedPlan>,
    /// The template stands after it in the same datagram.
    pub(crate) late: bool,
    pub(crate) outcome: SetOutcome,
}

/// A set that waited and was decoded with the datagram in hand.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) set: Waiting,
    pub(crate) plan: SharedPlan,
    pub(crate) outcome: SetOutcome,
}

/// What the decoders of this family keep from datagram to datagram.
#[derive(Debug, Default)]
pub(crate) struct Netflow {
    pub(crate) pending: Pending,
    scratch: Scratch,
    /// What the options data of v1, v5 and v7 say: they have none.
    nothing_learned: View,
    pub(crate) work: Vec<Work>,
    /// Somebody wants to know what became of the sets: sets that waited are kept in `replayed`.
    pub(crate) trace: bool,
    pub(crate) replayed: Vec<Replayed>,
    /// The exporter's templates were forgotten with this datagram (rule 12).
    pub(crate) restarted: bool,
    defined: Vec<u16>,
    learned: Vec<Learned>,
    /// Sets of the last datagram that wait for their template.
    pub(crate) waiting: u32,
    /// In which order rows went to `flows` and `nat_events`.
    pub(crate) order: Vec<(Table, u32)>,
}

impl Netflow {
    /// Forgets what became of the last datagram.
    pub(crate) fn begin(&mut self) {
        self.order.clear();
        self.work.clear();
        self.replayed.clear();
        (self.waiting, self.restarted) = (0, false);
    }
}

/// The rest of the decoder.
pub(crate) struct Environment<'a> {
    pub(crate) config: &'a DecodeConfig,
    pub(crate) shared: &'a SharedState,
    pub(crate) exporters: &'a mut Exporters,
    pub(crate) counters: &'a mut DecodeCounters,
    pub(crate) events: &'a mut Events,
}

/// Sets rejected in a datagram.
#[derive(Debug, Default)]
struct Rejects {
    count: u32,
    first: Option<RejectReason>,
}

impl Rejects {
    fn add(&mut self, reason: RejectReason, counters: &mut DecodeCounters) {
        self.count += 1;
        self.first.get_or_insert(reason);
        counters.sets_rejected[reason.index()] += 1;
    }
}

impl NetflowState {
    /// The clock was set.
    pub(crate) fn move_on(&mut self, step: ClockStep) {
        if let Some(lookup) = &mut self.lookup {
            lookup.move_on(step);
        }
        for session in &mut self.sessions {
            step.move_on(&mut session.last_us);
        }
    }

    /// The state of a session; a port that continues another's sequence takes its place (exporters that send from a
    /// new port each time).
    fn session(&mut self, port: u16, number: u32, now_us: i64, most: usize) -> &mut SessionState {
        let find = |test: &dyn Fn(&SessionState) -> bool| self.sessions.iter().position(test);
        let at = find(&|session| session.port == port).or_else(|| find(&|session| session.id == port));
        let at = at.or_else(|| find(&|session| session.sequence.continues(number)));
        let at = at.unwrap_or_else(|| {
            if self.sessions.len() >= most.max(1) {
                let oldest = self.sessions.iter().enumerate().min_by_key(|(_, session)| session.last_us);
                if let Some((oldest, _)) = oldest {
                    self.sessions.swap_remove(oldest);
                }
            }
            self.sessions.push(SessionState { id: port, ..SessionState::default() });
            self.sessions.len() - 1
        });
        let session = &mut self.sessions[at];
        session.port = port;
        session.last_us = session.last_us.max(now_us);
        session
    }
}

impl SessionState {
    /// Rule 12: uptime and sequence went back, but the clock did not (that would be a late datagram, or a capture out of
    /// order). The datagram after it must say so too: a single invented one takes no templates away.
    fn restarted(&mut self, uptime_ms: u32, export_us: i64, number: u32, received_us: i64) -> Restart {
        let back = self.uptime.is_some_and(|(uptime_before, export_before)| {
            let forward = uptime_ms.wrapping_sub(uptime_before).cast_signed();
            forward < -RESTART_MS && export_us >= export_before
        });
        let suspected = self.suspected.take();
        if !back || !self.sequence.is_off(number) {
            self.uptime = Some((uptime_ms, export_us));
            return Restart::No;
        }
        match suspected {
            Some((since_us, uptime)) if uptime_ms >= uptime => {
                self.uptime = Some((uptime_ms, export_us));
                Restart::Since(since_us)
            }
            _ => {
                self.suspected = Some((received_us, uptime_ms));
                Restart::Suspected
            }
        }
    }

    /// Accounts for the message.
    fn account(&mut self, number: u32, units: u32, known: bool, restart: Restart) -> Step {
        match restart {
            Restart::Suspected => self.sequence.stray(number, units, known),
            restart => self.sequence.message(number, units, known, restart != Restart::No),
        }
    }
}

/// Adds what a sequence number told.
pub(crate) fn account(counters: &mut Counters, step: Step) {
    counters.sequence_expected = counters.sequence_expected.wrapping_add(step.expected);
    counters.sequence_lost = counters.sequence_lost.saturating_add_signed(step.lost);
    counters.sequence_reordered = counters.sequence_reordered.saturating_add_signed(step.reordered);
    counters.sequence_resets += step.resets;
    counters.sequence_uncertain += step.uncertain;
}

impl Netflow {
    /// NetFlow v1, v5 or v7. Answers how many sets were rejected: none, or the one there is.
    pub(crate) fn fixed(
        &mut self,
        version: u16,
        datagram: &[u8],
        meta: &DatagramMeta,
        environment: &mut Environment<'_>,
        out: &mut Batches,
    ) -> Result<u32, RejectReason> {
        let message = fixed::parse(version, datagram)?;
        let protocol = match version {
            1 => Protocol::NetFlow1,
            5 => Protocol::NetFlow5,
            _ => Protocol::NetFlow7,
        };
        let key =
            ExporterKey { exporter: meta.sender, sender: meta.sender, domain: message.domain, protocol };
        let Environment { config, exporters, counters, events, .. } = environment;
        let state = exporters.heard(key, meta.received_us, datagram.len(), config);
        events.heard(state);
        state.clock_skew_us = Some((meta.received_us - message.export_us) as f64);
        let netflow = state.netflow.get_or_insert_default();
        if let Some(number) = message.sequence {
            let session = netflow.session(meta.sender_port, number, meta.received_us, config.max_sessions);
            let restart = session.restarted(message.uptime_ms, message.export_us, number, meta.received_us);
            let step = session.account(number, message.count, true, restart);
            account(&mut state.counters, step);
            if let Restart::Since(_) = restart {
                events.add(state, meta.received_us, Event::Restart, None, String::new);
            }
        }
        let context = SetContext {
            protocol,
            received_us: meta.received_us,
            sender: meta.sender,
            domain: message.domain,
            template: 0,
            export_us: message.export_us,
            uptime_ms: Some(message.uptime_ms),
            header_rate: message.rate,
            view: &self.nothing_learned,
            config,
            exporter: &state.config,
            around: Around { near_us: meta.received_us, dictionary: Dictionary::builtin(), templates: None },
        };
        let plan = fixed::plan(version);
        self.scratch.last_rate = None;
        self.scratch.room = Room::default();
        let rows = run_fixed(plan, message.records, &context, &mut out.flows, &mut self.scratch);
        state.counters.flows += u64::from(rows);
        state.sampling_rate = self.scratch.last_rate.or(state.sampling_rate);
        self.ordered(Table::Flows, rows);
        let mut rejects = Rejects::default();
        if message.short {
            rejects.add(RejectReason::BadCount, counters);
            state.counters.rejected += 1;
        }
        Ok(rejects.count)
    }

    fn ordered(&mut self, table: Table, rows: u32) {
        match self.order.last_mut() {
            Some((last, count)) if *last == table => *count += rows,
            _ if rows > 0 => self.order.push((table, rows)),
            _ => {}
        }
    }

    /// NetFlow v9 or IPFIX. Answers how many sets were rejected.
    pub(crate) fn sets(
        &mut self,
        message: &Message<'_>,
        size: usize,
        meta: &DatagramMeta,
        environment: &mut Environment<'_>,
        out: &mut Batches,
    ) -> Result<u32, RejectReason> {
        let protocol = if message.ipfix { Protocol::Ipfix } else { Protocol::NetFlow9 };
        let key =
            ExporterKey { exporter: meta.sender, sender: meta.sender, domain: message.domain, protocol };
        let Environment { config, shared, exporters, counters, events } = environment;
        let (config, shared) = (*config, *shared);
        let state = exporters.heard(key, meta.received_us, size, config);
        events.heard(state);
        state.clock_skew_us = Some((meta.received_us - message.export_us) as f64);
        // out of the state, so that both can be changed
        let mut netflow = state.netflow.take().unwrap_or_default();
        let mut known_before = false;
        let mut lookup = netflow.lookup.take().unwrap_or_else(|| {
            let domain = DomainKey { sender: meta.sender, protocol, domain: message.domain };
            let lookup = Lookup::new(domain, shared);
            known_before = lookup.domain.is_established();
            lookup
        });
        let session =
            netflow.session(meta.sender_port, message.sequence, meta.received_us, config.max_sessions);
        let restart = message.uptime_ms.map_or(Restart::No, |uptime| {
            session.restarted(uptime, message.export_us, message.sequence, meta.received_us)
        });
        let port = session.id;
        lookup.heard(port, meta.received_us, state.established, shared);
        self.restarted = matches!(restart, Restart::Since(_));
        if let Restart::Since(since_us) = restart {
            shared.forget(&lookup.domain, port, since_us);
            events.add(state, meta.received_us, Event::Restart, None, String::new);
        }
        let suspected = restart == Restart::Suspected;
        let mut pass = Pass {
            message,
            meta,
            port,
            suspected,
            config,
            shared,
            state,
            lookup: &mut lookup,
            counters,
            events,
        };
        let mut rejects = self.templates(&mut pass);
        let (units, known) = self.data(&mut pass, &mut rejects, out);
        let step = if message.ipfix {
            session.account(message.sequence, units, known, restart)
        } else {
            session.account(message.sequence, 1, true, restart)
        };
        account(&mut pass.state.counters, step);
        state.counters.bad_texts += std::mem::take(&mut self.scratch.bad_texts);
        if let Some(exporter) = self.scratch.last_exporter.take() {
            state.identity = Some(exporter);
        }
        state.sampling_rate = self.scratch.last_rate.or(state.sampling_rate);
        state.counters.rejected += u64::from(rejects.count);
        netflow.lookup = Some(lookup);
        state.netflow = Some(netflow);
        if known_before {
            exporters.establish(key, config);
        }
        let useful = !self.work.is_empty() || !self.defined.is_empty();
        match rejects.first {
            Some(reason) if !useful => Err(reason),
            _ => Ok(rejects.count),
        }
    }

    /// The first pass: templates, and which one each data set has.
    fn templates(&mut self, pass: &mut Pass<'_, '_>) -> Rejects {
        let mut rejects = Rejects::default();
        self.defined.clear();
        let (port, now_us) = (pass.port, pass.meta.received_us);
        let mut fields = 0;
        let mut sets = Sets::new(pass.message);
        while let Some(set) = sets.next() {
            match set {
                Set::Templates(kind, content) => {
                    parse_set(kind, content, pass.config.max_fields, |definition| {
                        if let Definition::Template(template) = &definition {
                            fields += template.fields.len();
                        }
                        if let Some(reason) = pass.define(definition, fields, &mut self.defined) {
                            rejects.add(reason, pass.counters);
                        }
                    })
                }
                Set::Data(template, content) => {
                    let end = sets.walked();
                    // of an exporter that restarted, if it did, only what it has described since then is believed
                    let holds = !pass.suspected || self.defined.contains(&template);
                    let plan = holds.then(|| pass.lookup.plan(port, template, now_us, pass.shared)).flatten();
                    let start = end - content.len();
                    let outcome = SetOutcome::default();
                    self.work.push(Work { template, start, end, plan, late: false, outcome });
                }
                Set::Reserved(_) => {}
                Set::Bad => rejects.add(RejectReason::BadSetLength, pass.counters),
            }
        }
        for work in self.work.iter_mut().filter(|work| work.plan.is_none()) {
            pass.state.counters.template_misses += 1;
            if !pass.suspected || self.defined.contains(&work.template) {
                work.plan = pass.lookup.plan(port, work.template, now_us, pass.shared);
            }
            work.late = work.plan.is_some();
            pass.state.counters.sets_replayed += u64::from(work.late);
        }
        if !self.defined.is_empty() {
            pass.state.last_seen_us = pass.state.last_seen_us.max(now_us);
        }
        rejects
    }

    /// The other passes: options data, what waited, flows. Answers how many records there were, and whether that is
    /// known.
    fn data(&mut self, pass: &mut Pass<'_, '_>, rejects: &mut Rejects, out: &mut Batches) -> (u32, bool) {
        let port = pass.port;
        let across = pass.state.config.sampling_across_domains;
        let (mut units, mut known) = (0_u32, rejects.first != Some(RejectReason::BadSetLength));
        let mut view = pass.lookup.view(port, pass.shared, across);
        self.learned.clear();
        let mut room = Room::default();
        for work in &mut self.work {
            let Some(plan) = work.plan.as_ref().filter(|plan| plan.is_options()) else { continue };
            let content = pass.message.sets.get(work.start..work.end).unwrap_or_default();
            let context = pass.context(&view, work.template);
            let outcome =
                run_options(plan, content, &context, &mut room, &mut out.options, &mut self.learned);
            work.outcome = outcome;
            units = units.wrapping_add(outcome.records);
            pass.state.counters.options_records += u64::from(outcome.records);
            if outcome.truncated || outcome.records == 0 && !content.is_empty() {
                rejects.add(RejectReason::TruncatedRecord, pass.counters);
                known = false;
            }
        }
        let wide = pass.state.config.ignore_option_scope;
        let now_us = pass.meta.received_us;
        let change = pass.shared.learn(&pass.lookup.domain, port, &self.learned, wide, now_us, pass.config);
        if change.sampling {
            let rate = self.learned.iter().rev().find_map(|learned| learned.rate);
            let detail = || format!("1 in {}", rate.unwrap_or_default());
            pass.events.add(pass.state, now_us, Event::SamplingChanged, None, detail);
        }
        if change.any {
            view = pass.lookup.view(port, pass.shared, across);
        }
        if view.agent.is_some() {
            // rule 35: its statistics are found under the same address as its flows
            pass.state.identity = Some(pass.config.exporter_addr(None, view.agent, pass.meta.sender.0));
        }
        self.scratch.last_rate = None;
        if !self.defined.is_empty() && !self.pending.is_empty() {
            let defined = std::mem::take(&mut self.defined);
            let key = pass.state.key;
            let ready = |set: &Waiting| set.port == port && defined.contains(&set.template);
            for set in self.pending.take(key, ready) {
                let replayed = self.replay(&set, pass.state, pass.lookup, pass.config, pass.shared, out);
                if let Some((plan, outcome)) = replayed.filter(|_| self.trace) {
                    self.replayed.push(Replayed { set, plan, outcome });
                }
            }
            self.defined = defined;
        }
        self.scratch.room = room;
        let mut work = std::mem::take(&mut self.work);
        for work in &mut work {
            let content = pass.message.sets.get(work.start..work.end).unwrap_or_default();
            let Some(plan) = &work.plan else {
                known = false;
                self.wait(work.template, content, pass);
                continue;
            };
            if plan.is_options() {
                continue;
            }
            let context = pass.context(&view, work.template);
            let (table, builder) = if plan.events {
                (Table::NatEvents, &mut out.nat_events)
            } else {
                (Table::Flows, &mut out.flows)
            };
            let outcome = run_set(plan, content, &context, builder, &mut self.scratch);
            work.outcome = outcome;
            units = units.wrapping_add(outcome.records);
            pass.state.counters.flows += u64::from(outcome.rows);
            self.ordered(table, outcome.rows);
            if outcome.truncated || outcome.records == 0 && !content.is_empty() {
                rejects.add(RejectReason::TruncatedRecord, pass.counters);
                known = false;
            }
        }
        self.work = work;
        (units, known)
    }

    /// Keeps a data set until its template comes.
    fn wait(&mut self, template: u16, content: &[u8], pass: &mut Pass<'_, '_>) {
        if content.is_empty() {
            return;
        }
        let waiting = Waiting {
            key: pass.state.key,
            port: pass.port,
            template,
            received_us: pass.meta.received_us,
            since_us: pass.meta.received_us,
            export_us: pass.message.export_us,
            uptime_ms: pass.message.uptime_ms,
            data: content.to_vec(),
        };
        self.waiting += 1;
        for gone in self.pending.push(waiting, pass.config) {
            // of other exporters it is counted with the next expiry; most are this one's
            if gone.key == pass.state.key {
                pass.state.counters.sets_expired += 1;
            }
        }
    }

    /// Decodes a set that waited, with its own times. None where the template is still not there.
    pub(crate) fn replay(
        &mut self,
        set: &Waiting,
        state: &mut ExporterState,
        lookup: &mut Lookup,
        config: &DecodeConfig,
        shared: &SharedState,
        out: &mut Batches,
    ) -> Option<(SharedPlan, SetOutcome)> {
        let plan = lookup.plan(set.port, set.template, set.received_us, shared)?;
        let view = lookup.view(set.port, shared, state.config.sampling_across_domains);
        let context = SetContext {
            protocol: set.key.protocol,
            received_us: set.received_us,
            sender: set.key.sender,
            domain: set.key.domain,
            template: set.template,
            export_us: set.export_us,
            uptime_ms: set.uptime_ms,
            header_rate: None,
            view: &view,
            config,
            exporter: &state.config,
            around: Around {
                near_us: set.received_us,
                dictionary: lookup.dictionary(),
                templates: Some((&lookup.domain, set.port)),
            },
        };
        state.counters.sets_replayed += 1;
        if plan.is_options() {
            let mut learned = Vec::new();
            let mut room = Room::default();
            let outcome = run_options(&plan, &set.data, &context, &mut room, &mut out.options, &mut learned);
            state.counters.options_records += u64::from(outcome.records);
            let wide = state.config.ignore_option_scope;
            shared.learn(&lookup.domain, set.port, &learned, wide, set.received_us, config);
            return Some((plan, outcome));
        }
        let (table, builder) = if plan.events {
            (Table::NatEvents, &mut out.nat_events)
        } else {
            (Table::Flows, &mut out.flows)
        };
        // it came in a datagram of its own
        self.scratch.room = Room::default();
        let outcome = run_set(&plan, &set.data, &context, builder, &mut self.scratch);
        state.counters.flows += u64::from(outcome.rows);
        self.ordered(table, outcome.rows);
        Some((plan, outcome))
    }
}

/// A datagram in hand.
struct Pass<'a, 'b> {
    message: &'a Message<'b>,
    meta: &'a DatagramMeta,
    /// What its session's templates are kept under.
    port: u16,
    /// It says that the exporter restarted, and nothing else does yet.
    suspected: bool,
    config: &'a DecodeConfig,
    shared: &'a SharedState,
    state: &'a mut ExporterState,
    lookup: &'a mut Lookup,
    counters: &'a mut DecodeCounters,
    events: &'a mut Events,
}

impl Pass<'_, '_> {
    fn context<'c>(&'c self, view: &'c View, template: u16) -> SetContext<'c> {
        let Pass { message, meta, .. } = self;
        SetContext {
            protocol: if message.ipfix { Protocol::Ipfix } else { Protocol::NetFlow9 },
            received_us: meta.received_us,
            sender: meta.sender,
            domain: message.domain,
            template,
            export_us: message.export_us,
            uptime_ms: message.uptime_ms,
            header_rate: None,
            view,
            config: self.config,
            exporter: &self.state.config,
            around: Around {
                near_us: meta.received_us,
                dictionary: self.lookup.dictionary(),
                templates: Some((&self.lookup.domain, self.port)),
            },
        }
    }

    /// Rule 51: tells of elements that nobody knows, once a template.
    fn unknown_elements(&mut self, template: &Template) {
        let dictionary = self.lookup.dictionary();
        let mut unknown = template.fields.iter().filter(|field| field.is_unknown(dictionary)).peekable();
        if unknown.peek().is_none() {
            return;
        }
        let count = unknown.clone().count();
        let names: Vec<_> = unknown.take(MAX_NAMED).map(|field| field.name(dictionary)).collect();
        let more = if count > MAX_NAMED { format!(" and {} more", count - MAX_NAMED) } else { String::new() };
        let detail = || format!("{}{more}", names.join(", "));
        self.events.add(self.state, self.meta.received_us, Event::UnknownElements, Some(template.id), detail);
    }

    /// Takes in what a template set says. `fields` counts those of the datagram so far.
    fn define(
        &mut self,
        definition: Definition,
        fields: usize,
        defined: &mut Vec<u16>,
    ) -> Option<RejectReason> {
        let now_us = self.meta.received_us;
        match definition {
            Definition::Bad(reason) => return Some(reason),
            // rule 7, RFC 7011 §8.4: over UDP a withdrawal is not followed
            Definition::Withdrawal(id) => {
                self.state.counters.withdrawals_ignored += 1;
                self.events.add(self.state, now_us, Event::WithdrawalIgnored, Some(id), String::new);
            }
            // compiling costs: no exporter describes thousands of fields at once
            Definition::Template(_) if fields > self.config.max_fields.saturating_mul(4) => {
                return Some(RejectReason::TemplateLimit);
            }
            Definition::Template(template) => {
                let id = template.id;
                self.state.counters.templates += 1;
                // to find out which one makes room takes a look at all of them
                let may_evict = defined.len() < MAX_EVICTIONS;
                let domain = &self.lookup.domain;
                match self.shared.define(domain, self.port, &template, now_us, may_evict, self.config) {
                    Defined::Refused => return Some(RejectReason::TemplateLimit),
                    Defined::Replaced => {
                        self.state.counters.template_collisions += 1;
                        self.events.add(self.state, now_us, Event::TemplateCollision, Some(id), String::new);
                        self.unknown_elements(&template);
                    }
                    Defined::New => self.unknown_elements(&template),
                    Defined::Refreshed => {}
                }
                defined.push(id);
            }
        }
        None
    }
}
