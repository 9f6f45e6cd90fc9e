//! What is remembered of an sFlow agent and sub-agent: the sequence of its datagrams, and of every data source the
//! sequences of its samples, the packets it could have sampled and the samples it dropped.

use hashbrown::HashMap;

use super::sequence::{Sequence, Step};
use crate::decode::exporters::Counters;

/// Data sources remembered of an agent that has proved itself, ...
const MAX_SOURCES: usize = 2_048;
/// ... and of one on probation.
const MAX_SOURCES_ON_PROBATION: usize = 64;
/// Samples over which the effective rate is taken, at least (once there are so many): the rate of a single sample
/// would be as uneven as chance makes the distance between two samples.
const RATE_SAMPLES: u32 = 64;
/// Uptime that goes back by more than reordering explains, ms.
const RESTART_MS: i32 = 60_000;

/// What an agent samples: an interface (class 0), a VLAN (1), an entity (2), a logical entity (3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct SourceId {
    pub(super) class: u32,
    pub(super) index: u32,
}

impl SourceId {
    /// The class in the top byte ("sflow_data_source").
    pub(super) fn compact(word: u32) -> SourceId {
        SourceId { class: word >> 24, index: word & 0x00ff_ffff }
    }
}

/// The state of an agent and sub-agent.
#[derive(Debug, Default)]
pub(crate) struct AgentState {
    datagrams: Sequence,
    uptime_ms: Option<u32>,
    /// Uptime and number of a datagram that says that the agent restarted: believed when the next one goes on from it.
    suspected: Option<(u32, u32)>,
    sources: Sources,
}

/// The data sources of an agent.
#[derive(Debug, Default)]
struct Sources {
    states: Vec<SourceState>,
    /// Places in `states`.
    by_id: HashMap<SourceId, usize, foldhash::fast::RandomState>,
    /// Places again, by the last bits of the index: interfaces are numbered one by one, to look here first is quicker.
    recent: [usize; RECENT],
}

const RECENT: usize = 32;

impl Sources {
    #[inline]
    fn get_mut(&mut self, id: SourceId, limit: usize) -> Option<&mut SourceState> {
        let recent = id.index as usize % RECENT;
        let place = self.recent.get(recent).copied().unwrap_or_default();
        if self.states.get(place).is_some_and(|state| state.id == id) {
            return self.states.get_mut(place);
        }
        let place = self.find(id, limit)?;
        if let Some(recent) = self.recent.get_mut(recent) {
            *recent = place;
        }
        self.states.get_mut(place)
    }

    /// The place of a source, a new one where there is none yet and there are not too many.
    #[inline(never)]
    fn find(&mut self, id: SourceId, limit: usize) -> Option<usize> {
        if let Some(place) = self.by_id.get(&id) {
            return Some(*place);
        }
        let place = self.states.len();
        if place >= limit {
            return None;
        }
        self.states.push(SourceState { id, ..SourceState::default() });
        self.by_id.insert(id, place);
        Some(place)
    }

    fn clear(&mut self) {
        self.states.clear();
        self.by_id.clear();
    }
}

#[derive(Debug, Default)]
pub(super) struct SourceState {
    id: SourceId,
    flows: Sequence,
    counters: Sequence,
    discards: Sequence,
    pool: Pool,
    drops: Option<u32>,
    discard_drops: Option<u32>,
}

/// The sample pool at two samples before: the rate is taken since the older one, and they move on.
#[derive(Debug, Default, Clone, Copy)]
struct Pool {
    base: Option<(u32, u32)>,
    next: (u32, u32),
}

/// A rate that is not divided yet: it takes longer than all else that is done with a sample's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ratio {
    packets: u32,
    /// Not 0.
    samples: u32,
}

impl Default for Ratio {
    /// 0
    fn default() -> Ratio {
        Ratio { packets: 0, samples: 1 }
    }
}

impl Ratio {
    #[inline]
    pub(super) fn rate(self) -> f64 {
        f64::from(self.packets) / f64::from(self.samples)
    }
}

/// Which series of a source a sample belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Series {
    Flows,
    Counters,
    Discards,
}

impl AgentState {
    /// Accounts for a datagram (sFlow v5, "sequence_number" and "uptime" of sample_datagram_v5).
    pub(super) fn datagram(&mut self, sequence: u32, uptime_ms: u32, counters: &mut Counters) {
        let back = self.uptime_ms.map_or(0, |last| uptime_ms.wrapping_sub(last).cast_signed());
        let suspected = self.suspected.take().filter(|(suspected_ms, _)| uptime_ms >= *suspected_ms);
        if back < -RESTART_MS {
            let Some((_, first)) = suspected else {
                self.suspected = Some((uptime_ms, sequence));
                counters.sequence_reordered += 1;
                return;
            };
            // the agent restarted, with the datagram before: every series starts anew, none of it is loss
            self.datagrams.clear();
            self.sources.clear();
            self.uptime_ms = None;
            counters.sequence_resets += 1;
            counters.sequence_expected += 1;
            counters.sequence_reordered = counters.sequence_reordered.saturating_sub(1);
            self.datagrams.next(first);
        }
        if self.uptime_ms.is_none() || back > 0 {
            self.uptime_ms = Some(uptime_ms);
        }
        match self.datagrams.next(sequence) {
            Step::First => counters.sequence_expected += 1,
            Step::Forward { missing } => {
                counters.sequence_expected += u64::from(missing) + 1;
                counters.sequence_lost += u64::from(missing);
            }
            Step::Late => {
                counters.sequence_lost = counters.sequence_lost.saturating_sub(1);
                counters.sequence_reordered += 1;
            }
            Step::Repeated | Step::Stray => counters.sequence_reordered += 1,
            Step::Jump { missing, reset } => {
                counters.sequence_expected += u64::from(missing) + 2;
                counters.sequence_lost += u64::from(missing);
                counters.sequence_reordered = counters.sequence_reordered.saturating_sub(1);
                if reset {
                    counters.sequence_resets += 1;
                    self.sources.clear();
                }
            }
        }
    }

    /// The state of a data source; None where there are too many of them, and where the datagram is not believed yet.
    #[inline]
    pub(super) fn source(&mut self, id: SourceId, established: bool) -> Option<&mut SourceState> {
        if self.suspected.is_some() {
            return None;
        }
        let limit = if established { MAX_SOURCES } else { MAX_SOURCES_ON_PROBATION };
        self.sources.get_mut(id, limit)
    }
}

impl SourceState {
    /// Accounts for a sample by the number that its source gave it; false where it is not newer than the last.
    #[inline]
    pub(super) fn sample(&mut self, series: Series, number: u32, counters: &mut Counters) -> bool {
        let sequence = match series {
            Series::Flows => &mut self.flows,
            Series::Counters => &mut self.counters,
            Series::Discards => &mut self.discards,
        };
        match sequence.next(number) {
            Step::First => {
                counters.samples_expected += 1;
                true
            }
            Step::Forward { missing } => {
                counters.samples_expected += u64::from(missing) + 1;
                counters.samples_lost += u64::from(missing);
                true
            }
            Step::Late => {
                counters.samples_lost = counters.samples_lost.saturating_sub(1);
                false
            }
            Step::Repeated | Step::Stray => false,
            Step::Jump { missing, reset } => {
                counters.samples_expected += u64::from(missing) + 2;
                counters.samples_lost += u64::from(missing);
                if reset && matches!(series, Series::Flows) {
                    self.pool = Pool::default();
                    self.drops = None;
                }
                true
            }
        }
    }

    /// Accounts for the samples that the agent dropped: a counter since its start.
    #[inline]
    pub(super) fn drops(&mut self, series: Series, total: u32, counters: &mut Counters) {
        let last = match series {
            Series::Discards => &mut self.discard_drops,
            _ => &mut self.drops,
        };
        let more = last.replace(total).map_or(0, |before| total.wrapping_sub(before));
        // a counter that goes back was reset
        if more.cast_signed() > 0 {
            counters.agent_drops += u64::from(more);
        }
    }

    /// Packets over samples since some samples ago: 1 in how many was taken indeed. None while there is no earlier
    /// sample to compare with, or where the agent does not count its pool.
    #[inline(always)]
    pub(super) fn effective_rate(&mut self, number: u32, pool: u32) -> Option<Ratio> {
        let now = (number, pool);
        let Some(base) = self.pool.base else {
            self.pool = Pool { base: Some(now), next: now };
            return None;
        };
        let samples = number.wrapping_sub(base.0);
        let packets = pool.wrapping_sub(base.1);
        if samples.cast_signed() <= 0 || packets.cast_signed() < 0 {
            self.pool = Pool { base: Some(now), next: now };
            return None;
        }
        if number.wrapping_sub(self.pool.next.0) >= RATE_SAMPLES {
            self.pool = Pool { base: Some(self.pool.next), next: now };
        }
        (packets >= samples).then_some(Ratio { packets, samples })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: SourceId = SourceId { class: 0, index: 7 };

    #[test]
    fn rule_29_the_effective_rate_is_packets_over_samples_and_survives_wraps() {
        let mut source = SourceState::default();
        let (mut pool, mut last) = (u32::MAX - 50_000, None);
        for number in 0..1_000_u32 {
            // chance: now 1 packet, now 1,999 between two samples
            pool = pool.wrapping_add(if number % 2 == 0 { 1 } else { 1_999 });
            last = source.effective_rate(number, pool);
        }
        let rate = last.unwrap().rate();
        assert!((rate - 1_000.0).abs() < 20.0, "{rate}");
        // lost samples do not change it: the source counts them
        pool = pool.wrapping_add(100 * 1_000);
        let rate = source.effective_rate(1_099, pool).unwrap().rate();
        assert!((rate - 1_000.0).abs() < 20.0, "{rate}");
    }

    #[test]
    fn rule_29_a_reset_of_the_pool_gives_no_rate() {
        let mut source = SourceState::default();
        assert_eq!(source.effective_rate(10, 5_000), None);
        assert_eq!(source.effective_rate(11, 6_000).map(Ratio::rate), Some(1_000.0));
        assert_eq!(source.effective_rate(12, 100), None);
        assert_eq!(source.effective_rate(13, 600).map(Ratio::rate), Some(500.0));
        // an agent that does not count its pool
        let mut source = SourceState::default();
        assert_eq!(source.effective_rate(1, 0), None);
        assert_eq!(source.effective_rate(2, 0), None);
    }

    #[test]
    fn rule_21_datagrams_samples_and_drops_are_three_losses() {
        let (mut agent, mut counters) = (AgentState::default(), Counters::default());
        for (sequence, uptime) in [(1, 1_000), (2, 2_000), (5, 5_000), (4, 4_000)] {
            agent.datagram(sequence, uptime, &mut counters);
        }
        assert_eq!((counters.sequence_expected, counters.sequence_lost), (5, 1));
        assert_eq!(counters.sequence_reordered, 1);
        let source = agent.source(SOURCE, true).unwrap();
        for number in [10, 11, 15] {
            source.sample(Series::Flows, number, &mut counters);
        }
        // another series of the same source counts by itself
        source.sample(Series::Counters, 900, &mut counters);
        assert_eq!((counters.samples_expected, counters.samples_lost), (7, 3));
        for drops in [5, 5, 9, 2, 3] {
            source.drops(Series::Flows, drops, &mut counters);
        }
        assert_eq!(counters.agent_drops, 5);
        assert_eq!(counters.sequence_lost, 1);
    }

    #[test]
    fn rule_34_uptime_that_goes_back_is_a_restart_and_no_loss() {
        let (mut agent, mut counters) = (AgentState::default(), Counters::default());
        agent.datagram(100, 10_000_000, &mut counters);
        agent.source(SOURCE, true).unwrap().sample(Series::Flows, 1_000, &mut counters);
        agent.datagram(120, 5_000, &mut counters);
        assert!(agent.source(SOURCE, true).is_none(), "one datagram is not believed");
        assert_eq!((counters.sequence_resets, counters.sequence_reordered), (0, 1));
        agent.datagram(101, 10_001_000, &mut counters);
        assert_eq!((counters.sequence_lost, counters.sequence_expected), (0, 2));
        for (number, uptime) in [(120, 5_000), (121, 6_000)] {
            agent.datagram(number, uptime, &mut counters);
        }
        agent.source(SOURCE, true).unwrap().sample(Series::Flows, 1_020, &mut counters);
        assert_eq!((counters.sequence_lost, counters.sequence_resets, counters.samples_lost), (0, 1, 0));
        assert_eq!((counters.sequence_expected, counters.sequence_reordered), (4, 1));
        // uptime wraps after 49.7 days
        let (mut agent, mut counters) = (AgentState::default(), Counters::default());
        agent.datagram(120, u32::MAX - 10, &mut counters);
        agent.datagram(121, 500, &mut counters);
        agent.datagram(123, 90_000, &mut counters);
        assert_eq!((counters.sequence_lost, counters.sequence_resets), (1, 0));
    }

    #[test]
    fn rule_53_sources_are_bounded() {
        let mut agent = AgentState::default();
        for index in 0..100_000 {
            let kept = agent.source(SourceId { class: 0, index }, false).is_some();
            assert_eq!(kept, index < 64);
        }
        assert!(agent.source(SourceId { class: 0, index: 3 }, false).is_some());
        assert!(agent.source(SourceId { class: 0, index: 100 }, true).is_some());
    }
}
