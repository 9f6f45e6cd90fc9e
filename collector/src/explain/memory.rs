//! Which datagram defined which template: what the decoder does not need to know.

use std::collections::HashMap;
use std::sync::Arc;

use weir_schemas::Address;

use crate::decode::template::Template;

/// Where templates belong: RFC 7011 §8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub(super) sender: Address,
    pub(super) ipfix: bool,
    pub(super) domain: u32,
    pub(super) port: u16,
}

/// Templates remembered; more are forgotten all at once.
const MAX_TEMPLATES: usize = 50_000;

/// Templates by session and number, with the datagram that defined them last.
#[derive(Debug, Default)]
pub(super) struct Memory {
    known: HashMap<(Session, u16), (Arc<Template>, u64)>,
}

impl Memory {
    pub(super) fn own(&self, session: Session, id: u16) -> Option<(Arc<Template>, u64)> {
        self.known.get(&(session, id)).cloned()
    }

    pub(super) fn put(&mut self, session: Session, template: &Template, number: u64) {
        if self.known.len() >= MAX_TEMPLATES {
            self.known.clear();
        }
        self.known.insert((session, template.id), (Arc::new(template.clone()), number));
    }

    pub(super) fn forget(&mut self, session: Session) {
        self.known.retain(|(known, _), _| *known != session);
    }

    /// Port and datagram that a template came from: of this session, else of another port of the exporter.
    pub(super) fn owner(&self, session: Session, id: u16) -> Option<(u16, u64)> {
        self.find(session, id).map(|(port, (_, number))| (port, *number))
    }

    pub(super) fn template(&self, session: Session, id: u16) -> Option<Arc<Template>> {
        self.find(session, id).map(|(_, (template, _))| Arc::clone(template))
    }

    fn find(&self, session: Session, id: u16) -> Option<(u16, &(Arc<Template>, u64))> {
        if let Some(known) = self.known.get(&(session, id)) {
            return Some((session.port, known));
        }
        let same = |other: &Session| Session { port: session.port, ..*other } == session;
        let others = self.known.iter().filter(|((other, known), _)| *known == id && same(other));
        others.max_by_key(|(_, (_, number))| *number).map(|((other, _), known)| (other.port, known))
    }
}
