//! Data sets that came before their template (rule 13: RFC 7011 §9.3, RFC 3954 §9): kept for a while, in bounds.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::clock::ClockStep;
use super::config::DecodeConfig;
use super::exporters::ExporterKey;

/// A data set that waits, with what its message said.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) key: ExporterKey,
    pub(crate) port: u16,
    pub(crate) template: u16,
    pub(crate) received_us: i64,
    /// Since when it waits: as `received_us`, unless the clock was set meanwhile.
    pub(crate) since_us: i64,
    pub(crate) export_us: i64,
    pub(crate) uptime_ms: Option<u32>,
    pub(crate) data: Vec<u8>,
}

/// All that waits in a shard.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Of each exporter the oldest first; no queue is empty.
    queues: HashMap<ExporterKey, VecDeque<Waiting>, foldhash::fast::RandomState>,
    bytes: usize,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// The clock was set.
    pub(crate) fn move_on(&mut self, step: ClockStep) {
        self.queues.values_mut().flatten().for_each(|set| step.move_on(&mut set.since_us));
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a set. Where it makes the exporter's or all sets too many, older ones go, of the same exporter first, then
    /// of the one that has most: they are returned.
    pub(crate) fn push(&mut self, waiting: Waiting, config: &DecodeConfig) -> Vec<Waiting> {
        let mut gone = Vec::new();
        let (key, size) = (waiting.key, waiting.data.len());
        if size > config.pending_bytes || config.pending_sets == 0 {
            return vec![waiting];
        }
        let count = |pending: &Pending| pending.queues.get(&key).map_or(0, VecDeque::len);
        while count(self) >= config.pending_sets {
            gone.extend(self.oldest_of(key));
        }
        while self.bytes + size > config.pending_bytes {
            let most = || self.queues.iter().max_by_key(|(_, queue)| queue.len()).map(|(key, _)| *key);
            let Some(from) = Some(key).filter(|_| count(self) > 0).or_else(most) else { break };
            gone.extend(self.oldest_of(from));
        }
        self.keep(waiting);
        gone
    }

    /// Puts back a set that was taken, or a new one.
    pub(crate) fn keep(&mut self, set: Waiting) {
        self.bytes += set.data.len();
        self.queues.entry(set.key).or_default().push_back(set);
    }

    fn oldest_of(&mut self, key: ExporterKey) -> Option<Waiting> {
        let queue = self.queues.get_mut(&key)?;
        let set = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&key);
        }
        self.bytes -= set.as_ref().map_or(0, |set| set.data.len());
        set
    }

    /// Takes out what `ready` says of an exporter's sets, in the order in which they came.
    pub(crate) fn take(&mut self, key: ExporterKey, mut ready: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let Some(queue) = self.queues.remove(&key) else { return Vec::new() };
        let (mut taken, mut rest) = (Vec::new(), VecDeque::new());
        for set in queue {
            if ready(&set) { taken.push(set) } else { rest.push_back(set) }
        }
        self.bytes -= taken.iter().map(|set| set.data.len()).sum::<usize>();
        if !rest.is_empty() {
            self.queues.insert(key, rest);
        }
        taken
    }

    /// Takes out everything, exporter by exporter.
    pub(crate) fn take_all(&mut self) -> Vec<Waiting> {
        self.bytes = 0;
        std::mem::take(&mut self.queues).into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::exporters::Protocol;
    use weir_schemas::Address;

    fn set(exporter: u8, bytes: usize) -> Waiting {
        let exporter = Address::v4([10, 0, 0, exporter]);
        let key = ExporterKey { exporter, sender: exporter, domain: 0, protocol: Protocol::Ipfix };
        let data = vec![0; bytes];
        Waiting {
            key,
            port: 1,
            template: 256,
            received_us: 0,
            since_us: 0,
            export_us: 0,
            uptime_ms: None,
            data,
        }
    }

    #[test]
    fn rule_13_what_waits_is_bounded() {
        let config = DecodeConfig { pending_bytes: 1_000, pending_sets: 4, ..DecodeConfig::default() };
        let mut pending = Pending::default();
        for _ in 0..4 {
            assert!(pending.push(set(1, 100), &config).is_empty());
        }
        assert_eq!(pending.push(set(1, 100), &config).len(), 1);
        assert!(pending.push(set(2, 600), &config).is_empty());
        // an exporter's own sets go before those of others
        let gone = pending.push(set(2, 500), &config);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].data.len(), 600);
        assert_eq!(pending.push(set(3, 1_001), &config).len(), 1);
        assert_eq!(pending.take_all().len(), 5);
        assert_eq!(pending.bytes, 0);
    }
}
