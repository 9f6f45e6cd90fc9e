//! What all shards share: templates and what options data said, by exporter, observation domain and transport session.
//!
//! A shard keeps what it looked up ([`Lookup`]) and asks again only where the generation of the domain has changed, so
//! a data set costs no lock. Locks are held for a lookup or a change, never while records are decoded.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashMap;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use weir_schemas::Address;

use super::compile::{SharedPlan, compile};
use super::config::DecodeConfig;
use super::exporters::Protocol;
use super::sampling::{Change, Learned, Rates, View};
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
    /// The longest time between two refreshes so far.
    interval_us: i64,
}

/// One transport session: what came from one source port.
#[derive(Debug)]
struct Session {
    port: u16,
    templates: Map<u16, Entry>,
    view: Arc<View>,
    last_us: i64,
}

/// An observation domain of an exporter.
#[derive(Debug, Default)]
pub(crate) struct SharedDomain {
    generation: AtomicU64,
    sessions: RwLock<Vec<Session>>,
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

/// What all shards share.
#[derive(Debug, Default)]
pub struct SharedState {
    domains: RwLock<Map<DomainKey, Arc<SharedDomain>>>,
    templates: AtomicUsize,
    changes: AtomicU64,
}

impl SharedState {
    pub fn new() -> SharedState {
        SharedState::default()
    }

    /// Counts the changes that a snapshot taken before does not have.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Templates known, of all exporters.
    pub fn templates(&self) -> usize {
        self.templates.load(Ordering::Relaxed)
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
            let count = domain.sessions.get_mut().iter().map(|session| session.templates.len()).sum();
            self.templates.fetch_sub(count, Ordering::Relaxed);
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes in a template of a session.
    pub(crate) fn define(
        &self,
        domain: &SharedDomain,
        port: u16,
        template: Template,
        now_us: i64,
        config: &DecodeConfig,
    ) -> Defined {
        let mut sessions = domain.sessions.write();
        let session = self.session(&mut sessions, port, now_us, config);
        let room = session.templates.len() < config.max_templates
            && self.templates.load(Ordering::Relaxed) < config.max_templates_total;
        let defined = match session.templates.get_mut(&template.id) {
            Some(entry) if *entry.template == template => {
                entry.interval_us = entry.interval_us.max(now_us - entry.refreshed_us);
                entry.refreshed_us = entry.refreshed_us.max(now_us);
                return Defined::Refreshed;
            }
            // rule 10: the last definition owns the id, whether data or options
            Some(entry) => {
                *entry = Entry::new(template, now_us);
                Defined::Replaced
            }
            None if room => {
                session.templates.insert(template.id, Entry::new(template, now_us));
                self.templates.fetch_add(1, Ordering::Relaxed);
                Defined::New
            }
            None => return Defined::Refused,
        };
        domain.generation.fetch_add(1, Ordering::Release);
        self.changed();
        defined
    }

    fn session<'a>(
        &self,
        sessions: &'a mut Vec<Session>,
        port: u16,
        now_us: i64,
        config: &DecodeConfig,
    ) -> &'a mut Session {
        let at = match sessions.iter().position(|session| session.port == port) {
            Some(at) => at,
            None => {
                if sessions.len() >= config.max_sessions.max(1) {
                    let oldest = sessions.iter().enumerate().min_by_key(|(_, session)| session.last_us);
                    if let Some(oldest) = oldest.map(|(at, _)| at) {
                        let gone = sessions.swap_remove(oldest);
                        self.templates.fetch_sub(gone.templates.len(), Ordering::Relaxed);
                    }
                }
                // the port changed: what the options data said holds until it says otherwise
                let view = sessions.iter().max_by_key(|session| session.last_us).map(|s| Arc::clone(&s.view));
                let view = view.filter(|_| sessions.len() == 1).unwrap_or_default();
                sessions.push(Session { port, templates: Map::default(), view, last_us: now_us });
                sessions.len() - 1
            }
        };
        let session = &mut sessions[at];
        session.last_us = session.last_us.max(now_us);
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
        let session = self.session(&mut sessions, port, now_us, config);
        // most say nothing new: copy once, where one does
        let mut view = None;
        for one in learned {
            let view = view.get_or_insert_with(|| View::clone(&session.view));
            let change = view.learn(one, wide, config.max_options_entries);
            all.any |= change.any;
            all.sampling |= change.sampling;
        }
        if let Some(view) = view.filter(|_| all.any) {
            session.view = Arc::new(view);
            domain.generation.fetch_add(1, Ordering::Release);
            self.changed();
        }
        all
    }

    /// Forgets what a session said: the exporter restarted (rule 12).
    pub(crate) fn forget(&self, domain: &SharedDomain, port: u16) {
        let mut sessions = domain.sessions.write();
        if let Some(session) = sessions.iter_mut().find(|session| session.port == port) {
            self.templates.fetch_sub(session.templates.len(), Ordering::Relaxed);
            session.templates.clear();
            session.view = Arc::default();
            domain.generation.fetch_add(1, Ordering::Release);
            self.changed();
        }
    }

    /// Rule 11: removes the templates that were not refreshed for their lifetime. Answers how many.
    pub(crate) fn expire(&self, domain: &SharedDomain, now_us: i64, config: &DecodeConfig) -> usize {
        let lifetime = i64::from(config.template_lifetime_seconds) * 1_000_000;
        let lives =
            |entry: &Entry| now_us - entry.refreshed_us <= lifetime.max(entry.interval_us.saturating_mul(3));
        if domain.sessions.read().iter().all(|session| session.templates.values().all(lives)) {
            return 0;
        }
        let mut gone = 0;
        let mut sessions = domain.sessions.write();
        for session in sessions.iter_mut() {
            let before = session.templates.len();
            session.templates.retain(|_, entry| lives(entry));
            gone += before - session.templates.len();
        }
        sessions.retain(|session| !session.templates.is_empty() || now_us - session.last_us <= lifetime);
        self.templates.fetch_sub(gone, Ordering::Relaxed);
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
            self.domains.write().retain(|_, domain| !empty(domain));
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

impl SharedDomain {
    pub(crate) fn has_templates(&self) -> bool {
        self.sessions.read().iter().any(|session| !session.templates.is_empty())
    }

    /// Rule 9: the template of the session; where the port is new, that of the other sessions if they agree.
    fn find(&self, port: u16, id: u16) -> Option<SharedPlan> {
        let sessions = self.sessions.read();
        let entry = |session: &Session| {
            session.templates.get(&id).map(|e| (Arc::clone(&e.template), Arc::clone(&e.plan)))
        };
        let own = sessions.iter().find(|session| session.port == port).and_then(entry);
        let (template, plan) = own.or_else(|| {
            let mut all = sessions.iter().filter_map(entry);
            let first = all.next()?;
            all.all(|(template, _)| template == first.0).then_some(first)
        })?;
        drop(sessions);
        Some(Arc::clone(plan.get_or_init(|| Arc::new(compile(&template)))))
    }

    fn view(&self, port: u16) -> Arc<View> {
        let sessions = self.sessions.read();
        let own = sessions.iter().find(|session| session.port == port);
        let own = own.or(if let [one] = &sessions[..] { Some(one) } else { None });
        own.map(|session| Arc::clone(&session.view)).unwrap_or_default()
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
    pub(crate) fn plan(&mut self, port: u16, id: u16, shared: &SharedState) -> Option<SharedPlan> {
        self.settle(port, shared, false);
        if let Some((_, plan)) = self.plans.iter().find(|(known, _)| *known == id) {
            return Some(Arc::clone(plan));
        }
        let plan = self.domain.find(port, id)?;
        self.plans.push((id, Arc::clone(&plan)));
        Some(plan)
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
            let room =
                templates.len() < config.max_templates && self.templates() < config.max_templates_total;
            if !possible || !room {
                continue;
            }
            let restored =
                Entry { interval_us: entry.interval_us, ..Entry::new(entry.template, entry.refreshed_us) };
            if templates.insert(restored.template.id, restored).is_none() {
                self.templates.fetch_add(1, Ordering::Relaxed);
            }
        }
        let names = saved.applications.into_iter().take(config.max_options_entries);
        let view = View {
            samplers: saved.samplers,
            interfaces: saved.interfaces,
            templates: saved.by_template,
            system: saved.system,
            boot_us: saved.boot_us,
            agent: saved.agent,
            applications: Arc::new(names.map(|(id, name)| (id.into(), name.into())).collect()),
        };
        sessions.push(Session { port: saved.port, templates, view: Arc::new(view), last_us: saved.last_us });
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
            last_us: session.last_us,
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
