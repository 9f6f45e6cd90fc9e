//! What all shards share: templates and what options data said, by exporter, observation domain and transport session.
//!
//! A shard keeps what it looked up ([`Lookup`]) and asks again only where the generation of the domain has changed, so
//! a data set costs no lock. Locks are held for a lookup or a change, never while records are decoded.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use weir_schemas::Address;
use weir_schemas::elements::{Dictionary, DictionaryError};

use super::clock::{Clock, ClockStep};
use super::compile::{SharedPlan, compile};
use super::config::DecodeConfig;
use super::exporters::Protocol;
use super::sampling::{Applications, Change, Learned, Rates, View, cut_name};
use super::template::Template;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// RFC 7011 §8, RFC 3954 §5.1: templates belong to an exporter's observation domain. The session (source port) is one
/// level below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DomainKey {
    pub(crate) sender: Address,
    pub(crate) protocol: Protocol,
    pub(crate) domain: u32,
}

/// A template as it is known.
#[derive(Debug)]
struct Entry {
    template: Arc<Template>,
    /// Compiled when the first data set asks for it.
    plan: Arc<OnceLock<SharedPlan>>,
    refreshed_us: i64,
    /// The longest time between two refreshes so far; 0 where it came only once.
    interval_us: i64,
}

/// One transport session: what came from one source port.
#[derive(Debug)]
struct Session {
    port: u16,
    templates: Map<u16, Entry>,
    view: Arc<View>,
    created_us: i64,
    /// When the last data set, template or options record came, to the second.
    last_us: AtomicI64,
    /// When the options data last said something.
    learned_us: i64,
}

/// An observation domain of an exporter.
#[derive(Debug, Default)]
pub(crate) struct SharedDomain {
    generation: AtomicU64,
    sessions: RwLock<Vec<Session>>,
    /// The exporter has proved itself: before, it has a small share of the memory.
    established: AtomicBool,
    /// What its templates and options data weigh.
    held: Held,
}

/// Templates and bytes (estimated) that are held.
#[derive(Debug, Default)]
struct Held {
    templates: AtomicUsize,
    bytes: AtomicUsize,
}

/// What a template definition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defined {
    New,
    /// The same again.
    Refreshed,
    /// Another one under the same id (rule 8).
    Replaced,
    /// There is no room.
    Refused,
}

/// Templates of a session of an exporter on probation. Open vSwitch describes itself by 206 at once, and then not again for
/// ten minutes.
const PROBATION_TEMPLATES: usize = 512;
/// Entries of its options data: NBAR has some 1,500 applications, a large router as many interfaces, and both are said
/// again only after minutes.
const PROBATION_ENTRIES: usize = 4_096;
/// Exporters on probation have this part of the memory, all together.
const PROBATION_PART: usize = 8;
/// A session that was silent for longer makes room for a new one.
const SESSION_IDLE_US: i64 = 60_000_000;
/// After so long a session may go on from another port.
const QUIET_US: i64 = 5_000_000;
/// So many sessions that agree are one exporter that changes its port all the time.
const SAME_EXPORTER: usize = 3;
/// A session is touched once in so long.
const TOUCH_US: i64 = 1_000_000;

/// Memory of a template, compiled: what one costs, and each of its fields (`bytes_a_template` among the tests measures
/// it).
const TEMPLATE_BYTES: usize = 768;
const FIELD_BYTES: usize = 384;

fn weight(template: &Template) -> usize {
    TEMPLATE_BYTES + template.fields.len() * FIELD_BYTES
}

/// What all shards share.
#[derive(Debug, Default)]
pub struct SharedState {
    domains: RwLock<Map<DomainKey, Arc<SharedDomain>>>,
    all: Held,
    /// Of `all`, what exporters on probation have.
    probation: Held,
    changes: AtomicU64,
    /// None: the elements that weir comes with.
    dictionary: RwLock<Option<Arc<Dictionary>>>,
    clock: Mutex<Clock>,
}

impl Held {
    fn add(&self, templates: usize, bytes: usize) {
        self.templates.fetch_add(templates, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, templates: usize, bytes: usize) {
        self.templates.fetch_sub(templates, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn now(&self) -> (usize, usize) {
        (self.templates.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl SharedState {
    pub fn new() -> SharedState {
        SharedState::default()
    }

    /// For a decoder of that configuration: with the elements of its files.
    pub fn of(config: &DecodeConfig) -> Result<SharedState, DictionaryError> {
        let shared = SharedState::new();
        if !config.elements.is_empty() {
            shared.set_dictionary(config.dictionary()?);
        }
        Ok(shared)
    }

    /// Takes other elements than those that weir comes with. What was compiled before is compiled anew.
    pub fn set_dictionary(&self, dictionary: Dictionary) {
        *self.dictionary.write() = Some(Arc::new(dictionary));
        for domain in self.domains.read().values() {
            for entry in domain.sessions.write().iter_mut().flat_map(|session| session.templates.values_mut())
            {
                entry.plan = Arc::default();
            }
            domain.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// Looks whether the clock was set: the ages of templates and sessions stay.
    pub(crate) fn mind_clock(&self, at: Instant, now_us: i64) {
        let Some(step) = self.clock.lock().step(at, now_us) else { return };
        tracing::warn!(seconds = step.seconds(), "the clock was set: ages of templates go on as before");
        for domain in self.domains.read().values() {
            for session in domain.sessions.write().iter_mut() {
                step.move_on(&mut session.created_us);
                step.move_on(session.last_us.get_mut());
                step.move_on(&mut session.learned_us);
                session.templates.values_mut().for_each(|entry| step.move_on(&mut entry.refreshed_us));
            }
        }
    }

    pub(crate) fn dictionary(&self) -> Option<Arc<Dictionary>> {
        self.dictionary.read().clone()
    }

    /// Bytes that templates and options data take, estimated; bounded by `decode.state_bytes`.
    pub fn bytes(&self) -> usize {
        self.all.now().1
    }

    fn hold(&self, domain: &SharedDomain, templates: usize, bytes: usize) {
        self.all.add(templates, bytes);
        domain.held.add(templates, bytes);
        if !domain.established.load(Ordering::Relaxed) {
            self.probation.add(templates, bytes);
        }
    }

    fn let_go(&self, domain: &SharedDomain, templates: usize, bytes: usize) {
        self.all.remove(templates, bytes);
        domain.held.remove(templates, bytes);
        if !domain.established.load(Ordering::Relaxed) {
            self.probation.remove(templates, bytes);
        }
    }

    /// True where the exporter may have so much more.
    fn has_room(&self, domain: &SharedDomain, templates: usize, bytes: usize, config: &DecodeConfig) -> bool {
        let (held, part) = match domain.established.load(Ordering::Relaxed) {
            true => (self.all.now(), 1),
            false => (self.probation.now(), PROBATION_PART),
        };
        let fits = |held: (usize, usize), part: usize| {
            held.0 + templates <= config.max_templates_total / part
                && held.1 + bytes <= config.state_bytes / part
        };
        fits(held, part) && fits(self.all.now(), 1)
    }

    /// The exporter has proved itself.
    pub(crate) fn establish(&self, domain: &SharedDomain) {
        // under the lock that changes of what is held are made under
        let _sessions = domain.sessions.write();
        if !domain.established.swap(true, Ordering::Relaxed) {
            let (templates, bytes) = domain.held.now();
            self.probation.remove(templates, bytes);
        }
    }

    /// Counts the changes that a snapshot taken before does not have.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Templates known, of all exporters.
    pub fn templates(&self) -> usize {
        self.all.now().0
    }

    pub(crate) fn domain(&self, key: DomainKey) -> Arc<SharedDomain> {
        if let Some(domain) = self.domains.read().get(&key) {
            return Arc::clone(domain);
        }
        Arc::clone(self.domains.write().entry(key).or_default())
    }

    /// Forgets a domain of which no shard has a state any more.
    pub(crate) fn release(&self, key: DomainKey, mut held: Arc<SharedDomain>) {
        let mut domains = self.domains.write();
        // one more is in the map
        let Some(known) = domains.get(&key) else { return };
        if !Arc::ptr_eq(known, &held) || Arc::strong_count(&held) > 2 {
            return;
        }
        domains.remove(&key);
        drop(domains);
        if let Some(domain) = Arc::get_mut(&mut held) {
            let (templates, bytes) = domain.held.now();
            self.let_go(domain, templates, bytes);
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes in a template of a session. `may_evict`: where the session is full, another one makes room.
    pub(crate) fn define(
        &self,
        domain: &SharedDomain,
        port: u16,
        template: &Template,
        now_us: i64,
        may_evict: bool,
        config: &DecodeConfig,
    ) -> Defined {
        let mut sessions = domain.sessions.write();
        let session = self.session(domain, &mut sessions, port, now_us, config);
        let id = template.id;
        let before = match session.templates.get_mut(&id) {
            Some(entry) if *entry.template == *template => {
                entry.interval_us = entry.interval_us.max(now_us - entry.refreshed_us);
                entry.refreshed_us = entry.refreshed_us.max(now_us);
                return Defined::Refreshed;
            }
            Some(entry) => Some(weight(&entry.template)),
            None => None,
        };
        let more = weight(template).saturating_sub(before.unwrap_or(0));
        if !self.has_room(domain, usize::from(before.is_none()), more, config) {
            return Defined::Refused;
        }
        let established = domain.established.load(Ordering::Relaxed);
        let most =
            if established { config.max_templates } else { PROBATION_TEMPLATES.min(config.max_templates) };
        let full = before.is_none() && session.templates.len() >= most;
        if full && !may_evict {
            return Defined::Refused;
        }
        if full {
            // what was never refreshed is the most likely to be invented: the exporter's own stay
            let last =
                session.templates.iter().min_by_key(|(_, entry)| (entry.interval_us > 0, entry.refreshed_us));
            if let Some(gone) = last.map(|(id, _)| *id).and_then(|id| session.templates.remove(&id)) {
                self.let_go(domain, 1, weight(&gone.template));
            }
        }
        // rule 10: the last definition owns the id, whether data or options
        let weight = weight(template);
        session.templates.insert(id, Entry::new(template.clone(), now_us));
        if let Some(before) = before {
            self.let_go(domain, 1, before);
        }
        self.hold(domain, 1, weight);
        domain.generation.fetch_add(1, Ordering::Release);
        self.changed();
        if before.is_some() { Defined::Replaced } else { Defined::New }
    }

    fn session<'a>(
        &self,
        domain: &SharedDomain,
        sessions: &'a mut Vec<Session>,
        port: u16,
        now_us: i64,
        config: &DecodeConfig,
    ) -> &'a mut Session {
        let at = match sessions.iter().position(|session| session.port == port) {
            Some(at) => at,
            None => {
                if sessions.len() >= config.max_sessions.max(1) {
                    // the longest silent one; where none is silent, the newest: an attacker's sessions push out each other
                    let order = |session: &Session| {
                        let last = session.last_us.load(Ordering::Relaxed);
                        if now_us - last > SESSION_IDLE_US { (0, last) } else { (1, -session.created_us) }
                    };
                    let least = sessions.iter().enumerate().min_by_key(|(_, session)| order(session));
                    if let Some(least) = least.map(|(at, _)| at) {
                        let gone = sessions.swap_remove(least);
                        self.let_go(domain, gone.templates.len(), gone.bytes());
                    }
                }
                // where the port changed, what the options data said holds until it says otherwise
                let view = if quiet(sessions.iter(), now_us) { common_view(sessions) } else { None };
                let view =
                    view.filter(|view| self.has_room(domain, 0, view.bytes(), config)).unwrap_or_default();
                self.hold(domain, 0, view.bytes());
                sessions.push(Session {
                    port,
                    templates: Map::default(),
                    view,
                    created_us: now_us,
                    last_us: AtomicI64::new(now_us),
                    learned_us: 0,
                });
                sessions.len() - 1
            }
        };
        let session = &mut sessions[at];
        session.last_us.fetch_max(now_us, Ordering::Relaxed);
        session
    }

    /// Takes in options data records of a session. Answers whether a sampling rate changed.
    pub(crate) fn learn(
        &self,
        domain: &SharedDomain,
        port: u16,
        learned: &[Learned],
        wide: bool,
        now_us: i64,
        config: &DecodeConfig,
    ) -> Change {
        let mut all = Change::default();
        if learned.is_empty() {
            return all;
        }
        let mut sessions = domain.sessions.write();
        let session = self.session(domain, &mut sessions, port, now_us, config);
        session.learned_us = session.learned_us.max(now_us);
        let established = domain.established.load(Ordering::Relaxed);
        let most = if established { usize::MAX } else { PROBATION_ENTRIES };
        let before = session.view.bytes();
        // most say nothing new: copy once, where one does
        let mut view = None;
        for one in learned {
            let view = view.get_or_insert_with(|| View::clone(&session.view));
            let more = view.bytes().saturating_sub(before) + one.bytes();
            let most = if self.has_room(domain, 0, more, config) { most } else { 0 };
            let change = view.learn(one, wide, most.min(config.max_options_entries));
            all.any |= change.any;
            all.sampling |= change.sampling;
        }
        if let Some(view) = view.filter(|_| all.any) {
            self.hold(domain, 0, view.bytes());
            self.let_go(domain, 0, before);
            session.view = Arc::new(view);
            domain.generation.fetch_add(1, Ordering::Release);
            self.changed();
        }
        all
    }

    /// Forgets what a session said before: the exporter restarted then (rule 12).
    pub(crate) fn forget(&self, domain: &SharedDomain, port: u16, restarted_us: i64) {
        let mut sessions = domain.sessions.write();
        let Some(session) = sessions.iter_mut().find(|session| session.port == port) else { return };
        let before = (session.templates.len(), session.bytes());
        session.templates.retain(|_, entry| entry.refreshed_us >= restarted_us);
        if session.learned_us < restarted_us {
            session.view = Arc::default();
        }
        self.let_go(domain, before.0 - session.templates.len(), before.1 - session.bytes());
        domain.generation.fetch_add(1, Ordering::Release);
        self.changed();
    }

    /// Rule 11: removes the templates that were not refreshed for their lifetime. Answers how many.
    pub(crate) fn expire(&self, domain: &SharedDomain, now_us: i64, config: &DecodeConfig) -> usize {
        let lifetime = i64::from(config.template_lifetime_seconds) * 1_000_000;
        let lives =
            |entry: &Entry| now_us - entry.refreshed_us <= lifetime.max(entry.interval_us.saturating_mul(3));
        if domain.sessions.read().iter().all(|session| session.templates.values().all(lives)) {
            return 0;
        }
        let mut sessions = domain.sessions.write();
        let held = |sessions: &[Session]| {
            let count: usize = sessions.iter().map(|session| session.templates.len()).sum();
            (count, sessions.iter().map(Session::bytes).sum::<usize>())
        };
        let before = held(&sessions);
        for session in sessions.iter_mut() {
            session.templates.retain(|_, entry| lives(entry));
        }
        sessions.retain(|session| {
            !session.templates.is_empty() || now_us - session.last_us.load(Ordering::Relaxed) <= lifetime
        });
        let after = held(&sessions);
        let gone = before.0 - after.0;
        self.let_go(domain, gone, before.1 - after.1);
        domain.generation.fetch_add(1, Ordering::Release);
        self.changed();
        gone
    }

    /// Expires templates everywhere, and forgets domains that have none and that no shard holds.
    pub(crate) fn sweep(&self, now_us: i64, config: &DecodeConfig) -> usize {
        let all: Vec<_> = self.domains.read().values().map(Arc::clone).collect();
        let gone = all.iter().map(|domain| self.expire(domain, now_us, config)).sum();
        drop(all);
        let empty = |domain: &Arc<SharedDomain>| Arc::strong_count(domain) == 1 && !domain.has_templates();
        if self.domains.read().values().any(empty) {
            self.domains.write().retain(|_, domain| {
                let goes = empty(domain);
                if goes {
                    let (templates, bytes) = domain.held.now();
                    self.let_go(domain, templates, bytes);
                }
                !goes
            });
        }
        gone
    }

    /// The rates that another observation domain of the same exporter announced (rule 27, where it is asked for).
    fn across(&self, key: DomainKey) -> Option<Arc<View>> {
        let domains = self.domains.read();
        let others = domains.iter().filter(|(other, _)| {
            other.sender == key.sender && other.protocol == key.protocol && other.domain != key.domain
        });
        others
            .filter_map(|(_, domain)| {
                let sessions = domain.sessions.read();
                let rated = |view: &View| !view.samplers.is_empty() || view.system.is_some();
                sessions.iter().find(|session| rated(&session.view)).map(|session| Arc::clone(&session.view))
            })
            .next()
    }
}

impl Entry {
    fn new(template: Template, now_us: i64) -> Entry {
        Entry { template: Arc::new(template), plan: Arc::default(), refreshed_us: now_us, interval_us: 0 }
    }
}

impl Session {
    fn bytes(&self) -> usize {
        self.view.bytes() + self.templates.values().map(|entry| weight(&entry.template)).sum::<usize>()
    }
}

/// True where none of these sessions was heard of late: another one may be the same exporter with another port.
fn quiet<'a>(mut sessions: impl Iterator<Item = &'a Session>, now_us: i64) -> bool {
    sessions.all(|session| now_us - session.last_us.load(Ordering::Relaxed) >= QUIET_US)
}

/// What the options data of all sessions said, where those that said something said the same.
fn common_view(sessions: &[Session]) -> Option<Arc<View>> {
    let mut views = sessions.iter().map(|session| &session.view).filter(|view| ***view != View::default());
    let first = views.next()?;
    views.all(|view| Arc::ptr_eq(view, first) || view == first).then(|| Arc::clone(first))
}

impl SharedDomain {
    /// True where its exporter has proved itself, here or before a restart.
    pub(crate) fn is_established(&self) -> bool {
        self.established.load(Ordering::Relaxed)
    }

    fn has_templates(&self) -> bool {
        self.sessions.read().iter().any(|session| !session.templates.is_empty())
    }

    /// Rule 9: the template of the session. Where the port has sent none at all, that of the other sessions if they
    /// agree, and if it is an exporter that changed its port: the others are silent, or many. Else it may be another
    /// exporter behind the same address.
    pub(crate) fn find(
        &self,
        port: u16,
        id: u16,
        now_us: i64,
        dictionary: &Dictionary,
    ) -> Option<SharedPlan> {
        let sessions = self.sessions.read();
        let entry = |session: &Session| {
            session.templates.get(&id).map(|e| (Arc::clone(&e.template), Arc::clone(&e.plan)))
        };
        let own = sessions.iter().find(|session| session.port == port && !session.templates.is_empty());
        let (template, plan) = match own {
            Some(own) => entry(own)?,
            None => {
                let known = || sessions.iter().filter(|session| session.templates.contains_key(&id));
                let one_exporter = known().count() >= SAME_EXPORTER || quiet(known(), now_us);
                let mut all = known().filter_map(entry).filter(|_| one_exporter);
                let first = all.next()?;
                all.all(|(template, _)| template == first.0).then_some(first)?
            }
        };
        drop(sessions);
        Some(Arc::clone(plan.get_or_init(|| Arc::new(compile(&template, dictionary)))))
    }

    fn view(&self, port: u16) -> Arc<View> {
        let sessions = self.sessions.read();
        let own = sessions.iter().find(|session| session.port == port);
        let own = own.map(|session| Arc::clone(&session.view));
        own.or_else(|| common_view(&sessions)).unwrap_or_default()
    }

    fn touch(&self, port: u16, now_us: i64) {
        let sessions = self.sessions.read();
        if let Some(session) = sessions.iter().find(|session| session.port == port) {
            session.last_us.fetch_max(now_us, Ordering::Relaxed);
        }
    }
}

/// What a shard has looked up in a domain.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) key: DomainKey,
    pub(crate) domain: Arc<SharedDomain>,
    generation: u64,
    port: u16,
    plans: Vec<(u16, SharedPlan)>,
    view: Arc<View>,
    dictionary: Option<Arc<Dictionary>>,
    touched_us: i64,
    established: bool,
}

impl Lookup {
    pub(crate) fn new(key: DomainKey, shared: &SharedState) -> Lookup {
        Lookup {
            key,
            domain: shared.domain(key),
            generation: u64::MAX,
            port: 0,
            plans: Vec::new(),
            view: Arc::default(),
            dictionary: shared.dictionary(),
            touched_us: i64::MIN,
            established: false,
        }
    }

    /// The clock was set.
    pub(crate) fn move_on(&mut self, step: ClockStep) {
        step.move_on(&mut self.touched_us);
    }

    /// A datagram of the session came.
    pub(crate) fn heard(&mut self, port: u16, now_us: i64, established: bool, shared: &SharedState) {
        if established && !self.established {
            self.established = true;
            shared.establish(&self.domain);
        }
        if now_us.saturating_sub(self.touched_us) >= TOUCH_US || port != self.port {
            self.touched_us = now_us;
            self.domain.touch(port, now_us);
        }
    }

    /// Forgets what is no longer so; `across`: sampling rates may come from other domains of the exporter.
    fn settle(&mut self, port: u16, shared: &SharedState, across: bool) {
        let generation = self.domain.generation.load(Ordering::Acquire);
        if generation == self.generation && port == self.port && !across {
            return;
        }
        if generation != self.generation || port != self.port {
            self.plans.clear();
            (self.generation, self.port) = (generation, port);
            self.view = self.domain.view(port);
            self.dictionary = shared.dictionary();
        }
        if across
            && self.view.samplers.is_empty()
            && self.view.system.is_none()
            && let Some(other) = shared.across(self.key)
        {
            let mut view = View::clone(&self.view);
            (view.samplers, view.system) = (other.samplers.clone(), other.system);
            self.view = Arc::new(view);
        }
    }

    /// The plan for a data set.
    pub(crate) fn plan(
        &mut self,
        port: u16,
        id: u16,
        now_us: i64,
        shared: &SharedState,
    ) -> Option<SharedPlan> {
        self.settle(port, shared, false);
        if let Some((_, plan)) = self.plans.iter().find(|(known, _)| *known == id) {
            return Some(Arc::clone(plan));
        }
        let plan = self.domain.find(port, id, now_us, self.dictionary())?;
        self.plans.push((id, Arc::clone(&plan)));
        Some(plan)
    }

    /// The elements by which the templates are compiled.
    pub(crate) fn dictionary(&self) -> &Dictionary {
        self.dictionary.as_deref().unwrap_or_else(|| Dictionary::builtin())
    }

    pub(crate) fn view(&mut self, port: u16, shared: &SharedState, across: bool) -> Arc<View> {
        self.settle(port, shared, across);
        Arc::clone(&self.view)
    }
}

/// The form of a snapshot.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    version: u32,
    domains: Vec<SavedDomain>,
}

#[derive(Serialize, Deserialize)]
struct SavedDomain {
    sender: String,
    protocol: String,
    domain: u32,
    #[serde(default)]
    established: bool,
    sessions: Vec<SavedSession>,
}

#[derive(Serialize, Deserialize)]
struct SavedSession {
    port: u16,
    last_us: i64,
    templates: Vec<SavedTemplate>,
    samplers: Rates,
    interfaces: Rates,
    by_template: Rates,
    system: Option<f64>,
    boot_us: Option<i64>,
    agent: Option<[u8; 16]>,
    applications: Vec<(Vec<u8>, String)>,
}

#[derive(Serialize, Deserialize)]
struct SavedTemplate {
    template: Template,
    refreshed_us: i64,
    interval_us: i64,
}

const SNAPSHOT_VERSION: u32 = 1;

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the saved templates cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the saved templates are of version {0}, which this weir does not know")]
    Version(u32),
}

impl SharedState {
    /// Everything, as JSON, for [`SharedState::restore`].
    pub fn snapshot(&self) -> Vec<u8> {
        let domains = self.domains.read();
        let saved = domains.iter().map(|(key, domain)| SavedDomain {
            sender: key.sender.to_string(),
            protocol: key.protocol.label().into(),
            domain: key.domain,
            established: domain.is_established(),
            sessions: domain.sessions.read().iter().map(SavedSession::of).collect(),
        });
        let snapshot = Snapshot { version: SNAPSHOT_VERSION, domains: saved.collect() };
        // plain data with text keys
        serde_json::to_vec(&snapshot).expect("a snapshot is always JSON")
    }

    /// Takes in a snapshot: data sets decode at once after a restart. What an exporter said since then stays; what was
    /// saved beyond the limits is left out. Answers how many templates were restored.
    pub fn restore(&self, bytes: &[u8], config: &DecodeConfig) -> Result<usize, RestoreError> {
        let snapshot: Snapshot = serde_json::from_slice(bytes)?;
        if snapshot.version != SNAPSHOT_VERSION {
            return Err(RestoreError::Version(snapshot.version));
        }
        let before = self.templates();
        for saved in snapshot.domains {
            let (Ok(sender), Some(protocol)) = (saved.sender.parse(), Protocol::from_label(&saved.protocol))
            else {
                continue;
            };
            let domain = self.domain(DomainKey { sender, protocol, domain: saved.domain });
            if saved.established {
                self.establish(&domain);
            }
            for session in saved.sessions {
                self.restore_session(&domain, session, config);
            }
        }
        Ok(self.templates() - before)
    }

    fn restore_session(&self, domain: &SharedDomain, saved: SavedSession, config: &DecodeConfig) {
        let mut sessions = domain.sessions.write();
        if sessions.iter().any(|session| session.port == saved.port) || sessions.len() >= config.max_sessions
        {
            return;
        }
        let mut templates = Map::default();
        for entry in saved.templates {
            let possible =
                entry.template.min_record() > 0 && entry.template.fields.len() <= config.max_fields;
            let weight = weight(&entry.template);
            let room = templates.len() < config.max_templates && self.has_room(domain, 1, weight, config);
            if !possible || !room {
                continue;
            }
            let restored =
                Entry { interval_us: entry.interval_us, ..Entry::new(entry.template, entry.refreshed_us) };
            if templates.insert(restored.template.id, restored).is_none() {
                self.hold(domain, 1, weight);
            }
        }
        let names = saved.applications.into_iter().take(config.max_options_entries);
        let applications: Applications =
            names.map(|(id, name)| (Arc::from(id), Arc::from(cut_name(&name)))).collect();
        let view = View {
            samplers: saved.samplers,
            interfaces: saved.interfaces,
            templates: saved.by_template,
            system: saved.system,
            boot_us: saved.boot_us,
            agent: saved.agent,
            text_bytes: applications.iter().map(|(id, name)| id.len() + name.len()).sum(),
            applications: Arc::new(applications),
        };
        let fits = self.has_room(domain, 0, view.bytes(), config);
        let view = if fits { Arc::new(view) } else { Arc::default() };
        self.hold(domain, 0, view.bytes());
        let last_us = AtomicI64::new(saved.last_us);
        sessions.push(Session {
            port: saved.port,
            templates,
            view,
            created_us: saved.last_us,
            last_us,
            learned_us: saved.last_us,
        });
        domain.generation.fetch_add(1, Ordering::Release);
    }
}

impl SavedSession {
    fn of(session: &Session) -> SavedSession {
        let view = &session.view;
        let template = |entry: &Entry| SavedTemplate {
            template: Template::clone(&entry.template),
            refreshed_us: entry.refreshed_us,
            interval_us: entry.interval_us,
        };
        SavedSession {
            port: session.port,
            last_us: session.last_us.load(Ordering::Relaxed),
            templates: session.templates.values().map(template).collect(),
            samplers: view.samplers.clone(),
            interfaces: view.interfaces.clone(),
            by_template: view.templates.clone(),
            system: view.system,
            boot_us: view.boot_us,
            agent: view.agent,
            applications: view
                .applications
                .iter()
                .map(|(id, name)| (id.to_vec(), name.to_string()))
                .collect(),
        }
    }
}
