//! Data sets that came before their template (rule 13: RFC 7011 §9.3, RFC 3954 §9): kept for a while, in bounds.

use std::collections::VecDeque;

use super::config::DecodeConfig;
use super::exporters::ExporterKey;

/// A data set that waits, with what its message said.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) key: ExporterKey,
    pub(crate) port: u16,
    pub(crate) template: u16,
    pub(crate) received_us: i64,
    pub(crate) export_us: i64,
    pub(crate) uptime_ms: Option<u32>,
    pub(crate) data: Vec<u8>,
}

/// All that waits in a shard, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    sets: VecDeque<Waiting>,
    bytes: usize,
}

impl Pending {
    pub(crate) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Keeps a set. Where it makes the exporter's or all sets too many, the oldest go (of the same exporter first):
    /// they are returned.
    pub(crate) fn push(&mut self, waiting: Waiting, config: &DecodeConfig) -> Vec<Waiting> {
        let mut gone = Vec::new();
        let mine = |other: &Waiting| other.key == waiting.key;
        let size = waiting.data.len();
        if size > config.pending_bytes || config.pending_sets == 0 {
            return vec![waiting];
        }
        while self.sets.iter().filter(|other| mine(other)).count() >= config.pending_sets {
            let Some(at) = self.sets.iter().position(mine) else { break };
            gone.extend(self.remove(at));
        }
        while self.bytes + size > config.pending_bytes {
            let at = self.sets.iter().position(mine).unwrap_or(0);
            match self.remove(at) {
                Some(set) => gone.push(set),
                None => break,
            }
        }
        self.bytes += size;
        self.sets.push_back(waiting);
        gone
    }

    /// Puts back a set that was taken.
    pub(crate) fn keep(&mut self, set: Waiting) {
        self.bytes += set.data.len();
        self.sets.push_back(set);
    }

    fn remove(&mut self, at: usize) -> Option<Waiting> {
        let set = self.sets.remove(at)?;
        self.bytes -= set.data.len();
        Some(set)
    }

    /// Takes out what `ready` says, in the order in which it came.
    pub(crate) fn take(&mut self, mut ready: impl FnMut(&Waiting) -> bool) -> Vec<Waiting> {
        let mut taken = Vec::new();
        let mut at = 0;
        while let Some(set) = self.sets.get(at) {
            if ready(set) {
                taken.extend(self.remove(at));
            } else {
                at += 1;
            }
        }
        taken
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
        Waiting { key, port: 1, template: 256, received_us: 0, export_us: 0, uptime_ms: None, data }
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
        assert_eq!(pending.take(|_| true).len(), 5);
        assert_eq!(pending.bytes, 0);
    }
}
