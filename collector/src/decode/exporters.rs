//! The exporters that a shard hears: one state for each exporter, observation domain and protocol, with the counters
//! that become rows of `exporter_stats`. New ones are on probation, in a small cache of their own: a flood of invented
//! sources can push out other unknown ones, never an exporter that has proved itself.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use weir_schemas::Address;

use super::clock::ClockStep;
use super::config::{DecodeConfig, ExporterConfig};

/// The protocol of an exporter; each is accounted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    NetFlow1,
    NetFlow5,
    NetFlow7,
    NetFlow9,
    Ipfix,
    Sflow5,
}

impl Protocol {
    /// The value of the column `proto_ver`.
    pub const fn label(self) -> &'static str {
        match self {
            Protocol::NetFlow1 => "netflow1",
            Protocol::NetFlow5 => "netflow5",
            Protocol::NetFlow7 => "netflow7",
            Protocol::NetFlow9 => "netflow9",
            Protocol::Ipfix => "ipfix",
            Protocol::Sflow5 => "sflow5",
        }
    }

    pub fn from_label(label: &str) -> Option<Protocol> {
        use Protocol::{Ipfix, NetFlow1, NetFlow5, NetFlow7, NetFlow9, Sflow5};
        [NetFlow1, NetFlow5, NetFlow7, NetFlow9, Ipfix, Sflow5].into_iter().find(|p| p.label() == label)
    }
}

/// What tells exporters apart. The source port is not part of it: sessions are kept within an exporter's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExporterKey {
    /// sFlow: the agent (the sender where the agent is unspecified); else the sender.
    pub exporter: Address,
    /// Source address of the datagrams.
    pub sender: Address,
    /// Observation domain, source id, engine (`type << 8 | id`) or sub-agent.
    pub domain: u32,
    pub protocol: Protocol,
}

/// What is counted for an exporter; the names are those of the columns of `exporter_stats`. Totals since the exporter
/// was first heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub datagrams: u64,
    pub datagram_bytes: u64,
    pub flows: u64,
    pub options_records: u64,
    pub counter_samples: u64,
    pub templates: u64,
    /// Templates that replaced another one of the same id.
    pub template_collisions: u64,
    /// Withdrawals over UDP: not followed.
    pub withdrawals_ignored: u64,
    pub template_misses: u64,
    pub sets_replayed: u64,
    pub sets_expired: u64,
    pub rejected: u64,
    /// Texts that were not UTF-8: what was wrong in them is replaced.
    pub bad_texts: u64,
    pub sequence_expected: u64,
    /// Goes down where a unit that was counted as lost comes late.
    pub sequence_lost: u64,
    pub sequence_reordered: u64,
    pub sequence_resets: u64,
    pub sequence_uncertain: u64,
    pub agent_drops: u64,
    /// sFlow: samples by the numbers that their data sources gave them.
    pub samples_expected: u64,
    /// sFlow: of those, missing, whether lost with their datagram or in the agent.
    pub samples_lost: u64,
    /// sFlow: samples and records of unknown format.
    pub records_skipped: u64,
}

/// What a shard knows of one exporter.
#[derive(Debug)]
pub struct ExporterState {
    pub key: ExporterKey,
    pub counters: Counters,
    /// The counters of the last `exporter_stats` row.
    pub(crate) reported: Counters,
    /// Receive time of the first and of the last datagram.
    pub first_seen_us: i64,
    pub last_seen_us: i64,
    /// Receive time less export time, last seen.
    pub clock_skew_us: Option<f64>,
    /// Sampling rate last seen.
    pub sampling_rate: Option<f64>,
    /// The value of `exporter_addr`, where it is another than that of the key: IE 130 or 131 said so.
    pub(crate) identity: Option<[u8; 16]>,
    /// False while on probation.
    pub established: bool,
    /// What the operator says about it.
    pub(crate) config: ExporterConfig,
    /// What the NetFlow and IPFIX decoders remember.
    pub(crate) netflow: Option<Box<super::netflow::NetflowState>>,
    /// What the sFlow decoder remembers.
    pub(crate) sflow: Option<Box<super::sflow::AgentState>>,
}

/// All exporters of a shard.
#[derive(Debug)]
pub struct Exporters {
    states: Vec<ExporterState>,
    by_key: HashTable<usize>,
    hasher: foldhash::fast::RandomState,
    established: usize,
    /// States that made room or were silent for too long, for the decoder to clear up after.
    gone: Vec<ExporterState>,
}

impl ExporterState {
    /// The clock was set.
    pub(crate) fn move_on(&mut self, step: ClockStep) {
        step.move_on(&mut self.first_seen_us);
        step.move_on(&mut self.last_seen_us);
        if let Some(netflow) = &mut self.netflow {
            netflow.move_on(step);
        }
    }

    /// What its rows have as `exporter_addr`.
    pub(crate) fn exporter_addr(&self) -> Address {
        self.identity.map_or(self.key.exporter, Address)
    }
}

impl Default for Exporters {
    fn default() -> Self {
        Exporters::new()
    }
}

impl Exporters {
    pub fn new() -> Exporters {
        Exporters {
            states: Vec::new(),
            by_key: HashTable::new(),
            hasher: foldhash::fast::RandomState::default(),
            established: 0,
            gone: Vec::new(),
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut ExporterState> {
        self.states.iter_mut()
    }

    pub(crate) fn find_mut(&mut self, key: ExporterKey) -> Option<&mut ExporterState> {
        let hash = self.hasher.hash_one(key);
        let states = &self.states;
        let index =
            self.by_key.find(hash, |index| states.get(*index).is_some_and(|state| state.key == key))?;
        self.states.get_mut(*index)
    }

    /// Ends an exporter's probation early: it is known from before a restart, or to another shard.
    pub(crate) fn establish(&mut self, key: ExporterKey, config: &DecodeConfig) {
        let room = self.established < config.max_exporters;
        if let Some(state) = self.find_mut(key).filter(|state| room && !state.established) {
            state.established = true;
            self.established += 1;
        }
    }

    #[inline]
    pub(crate) fn has_gone(&self) -> bool {
        !self.gone.is_empty()
    }

    /// States that made room for others since the last call.
    pub(crate) fn take_gone(&mut self) -> Vec<ExporterState> {
        std::mem::take(&mut self.gone)
    }

    /// Lets go of exporters that were silent for too long.
    pub(crate) fn retire(&mut self, now_us: i64, config: &DecodeConfig) {
        let oldest = now_us - i64::from(config.exporter_idle_seconds) * 1_000_000;
        while let Some(index) = self.states.iter().position(|state| state.last_seen_us < oldest) {
            let state = self.remove(index);
            self.gone.push(state);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &ExporterState> {
        self.states.iter()
    }

    pub fn len(&self) -> usize {
        self.states.len()
    }

    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// The state of an exporter from which a datagram of `bytes` came at `received_us`: made where there is none yet,
    /// counted as one more datagram.
    pub fn heard(
        &mut self,
        key: ExporterKey,
        received_us: i64,
        bytes: usize,
        config: &DecodeConfig,
    ) -> &mut ExporterState {
        let hash = self.hasher.hash_one(key);
        let states = &self.states;
        let found = self.by_key.find(hash, |index| states.get(*index).is_some_and(|state| state.key == key));
        let index = match found.copied() {
            Some(index) => index,
            None => self.insert(key, hash, received_us, config),
        };
        self.promote(index, received_us, config);
        let state = &mut self.states[index];
        state.counters.datagrams += 1;
        state.counters.datagram_bytes += bytes as u64;
        state.last_seen_us = state.last_seen_us.max(received_us);
        state
    }

    fn insert(&mut self, key: ExporterKey, hash: u64, now_us: i64, config: &DecodeConfig) -> usize {
        if self.states.len() - self.established >= config.max_probation.max(1) {
            let probation = self.states.iter().enumerate().filter(|(_, state)| !state.established);
            if let Some((oldest, _)) = probation.min_by_key(|(_, state)| state.last_seen_us) {
                let state = self.remove(oldest);
                self.gone.push(state);
            }
        }
        let entry = config.exporter(key.sender);
        let established = entry.is_some() && self.established < config.max_exporters;
        self.established += usize::from(established);
        self.states.push(ExporterState {
            key,
            counters: Counters::default(),
            reported: Counters::default(),
            first_seen_us: now_us,
            last_seen_us: now_us,
            clock_skew_us: None,
            sampling_rate: None,
            identity: None,
            established,
            config: entry.cloned().unwrap_or_default(),
            netflow: None,
            sflow: None,
        });
        let index = self.states.len() - 1;
        let (states, hasher) = (&self.states, &self.hasher);
        self.by_key.insert_unique(hash, index, |index| hasher.hash_one(states[*index].key));
        index
    }

    fn promote(&mut self, index: usize, now_us: i64, config: &DecodeConfig) {
        let state = &mut self.states[index];
        if !state.established
            && state.counters.datagrams >= u64::from(config.probation_datagrams)
            && now_us - state.first_seen_us >= i64::from(config.probation_seconds) * 1_000_000
            && self.established < config.max_exporters
        {
            state.established = true;
            self.established += 1;
        }
    }

    fn remove(&mut self, index: usize) -> ExporterState {
        let find = |states: &[ExporterState], key: ExporterKey, at: usize| states[at].key == key;
        let key = self.states[index].key;
        let hash = self.hasher.hash_one(key);
        let states = &self.states;
        if let Ok(entry) = self.by_key.find_entry(hash, |at| find(states, key, *at)) {
            entry.remove();
        }
        let last = self.states.len() - 1;
        if index != last {
            let moved = self.states[last].key;
            let hash = self.hasher.hash_one(moved);
            let states = &self.states;
            if let Some(at) = self.by_key.find_mut(hash, |at| find(states, moved, *at)) {
                *at = index;
            }
        }
        let state = self.states.swap_remove(index);
        self.established -= usize::from(state.established);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> ExporterKey {
        let [a, b, c, d] = n.to_be_bytes();
        let exporter = Address::v4([a, b, c, d]);
        ExporterKey { exporter, sender: exporter, domain: 0, protocol: Protocol::Ipfix }
    }

    #[test]
    fn rule_53_a_flood_of_new_sources_never_evicts_an_established_exporter() {
        let config = DecodeConfig { max_probation: 16, ..DecodeConfig::default() };
        let mut exporters = Exporters::new();
        for second in 0..20 {
            for n in 0..10 {
                exporters.heard(key(n), second * 1_000_000, 100, &config);
            }
        }
        assert!(exporters.iter().all(|state| state.established));
        for n in 0..10_000 {
            exporters.heard(key(1_000 + n), 20_000_000, 100, &config);
        }
        assert_eq!(exporters.len(), 26);
        for n in 0..10 {
            let state = exporters.heard(key(n), 21_000_000, 100, &config);
            assert_eq!(state.counters.datagrams, 21);
        }
    }
}
