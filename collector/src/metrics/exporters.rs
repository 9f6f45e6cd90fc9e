//! The exporters' counters as series with bounded labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;
use weir_schemas::Address;

use crate::decode::{Counters, ExporterKey, Exporters, Protocol};

/// One series of `weir_exporter_*`: an exporter over all its domains and protocols, or all the others.
#[derive(Debug, Clone, Default)]
pub(super) struct Series {
    pub(super) counters: Counters,
    pub(super) last_seen_us: i64,
    pub(super) clock_skew_us: Option<f64>,
    pub(super) sampling_rate: Option<f64>,
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// By exporter; None is `other`.
    pub(super) series: BTreeMap<Option<Address>, Series>,
    /// Rows of flows by protocol.
    pub(super) flows: BTreeMap<Protocol, u64>,
    /// Exporters (address, domain, protocol) that the shards know: established, on probation.
    pub(super) known: BTreeMap<u64, (u64, u64)>,
}

/// What all shards have told about their exporters.
#[derive(Debug)]
pub struct ExporterTable {
    pub(super) tables: Mutex<Tables>,
    max_labels: usize,
    feeds: std::sync::atomic::AtomicU64,
}

impl ExporterTable {
    pub fn new(max_labels: usize) -> ExporterTable {
        ExporterTable { tables: Mutex::default(), max_labels, feeds: std::sync::atomic::AtomicU64::new(0) }
    }
}

/// The counters of an exporter as they were last told, and when it was first heard: an exporter that was forgotten and
/// heard again starts from 0.
type Told = (i64, Counters);

/// One shard's way to tell the table what has changed.
#[derive(Debug)]
pub struct ExporterFeed {
    table: Arc<ExporterTable>,
    told: HashMap<ExporterKey, Told>,
    number: u64,
}

impl ExporterFeed {
    pub fn new(table: Arc<ExporterTable>) -> ExporterFeed {
        let number = table.feeds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ExporterFeed { table, told: HashMap::new(), number }
    }

    /// Adds what was counted since the last call.
    pub fn update(&mut self, exporters: &Exporters) {
        let before = std::mem::take(&mut self.told);
        let mut tables = self.table.tables.lock();
        let mut known = (0, 0);
        for state in exporters.iter() {
            if state.established {
                known.0 += 1;
            } else {
                known.1 += 1;
            }
            self.told.insert(state.key, (state.first_seen_us, state.counters));
            let told = before.get(&state.key).filter(|(first, _)| *first == state.first_seen_us);
            let difference = difference(&state.counters, &told.map_or_else(Counters::default, |(_, c)| *c));
            let exporter = Some(state.key.exporter);
            let labels = tables.series.len() - usize::from(tables.series.contains_key(&None));
            let label = if tables.series.contains_key(&exporter)
                || (state.established && labels < self.table.max_labels)
            {
                exporter
            } else {
                None
            };
            *tables.flows.entry(state.key.protocol).or_default() += difference.flows;
            let series = tables.series.entry(label).or_default();
            add(&mut series.counters, &difference);
            series.last_seen_us = series.last_seen_us.max(state.last_seen_us);
            if label.is_some() {
                series.clock_skew_us = state.clock_skew_us.or(series.clock_skew_us);
                series.sampling_rate = state.sampling_rate.or(series.sampling_rate);
            }
        }
        tables.known.insert(self.number, known);
    }
}

macro_rules! counters {
    ($($field:ident)*) => {
        /// `lost` goes down at times: all of it is arithmetic modulo 2⁶⁴.
        fn difference(now: &Counters, before: &Counters) -> Counters {
            Counters { $($field: now.$field.wrapping_sub(before.$field),)* }
        }

        fn add(total: &mut Counters, difference: &Counters) {
            $(total.$field = total.$field.wrapping_add(difference.$field);)*
        }
    };
}

counters! {
    datagrams datagram_bytes flows options_records counter_samples templates template_collisions
    withdrawals_ignored bad_texts template_misses sets_replayed
    sets_expired rejected sequence_expected sequence_lost sequence_reordered sequence_resets sequence_uncertain
    agent_drops samples_expected samples_lost records_skipped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::DecodeConfig;

    fn hear(exporters: &mut Exporters, n: u8, times: usize, second: i64) {
        let exporter = Address::v4([192, 0, 2, n]);
        let key = ExporterKey { exporter, sender: exporter, domain: 0, protocol: Protocol::Ipfix };
        for _ in 0..times {
            let state = exporters.heard(key, second * 1_000_000, 10, &DecodeConfig::default());
            state.counters.flows += 2;
        }
    }

    #[test]
    fn labels_are_bounded_and_no_count_is_lost() {
        let table = Arc::new(ExporterTable::new(2));
        let mut feed = ExporterFeed::new(Arc::clone(&table));
        let mut exporters = Exporters::new();
        for n in 1..=4 {
            hear(&mut exporters, n, 5, 0);
        }
        feed.update(&exporters);
        let labels = |table: &ExporterTable| {
            let tables = table.tables.lock();
            let series = tables.series.iter().map(|(label, series)| (*label, series.counters.datagrams));
            series.collect::<Vec<_>>()
        };
        assert_eq!(labels(&table), [(None, 20)], "on probation");
        for second in 1..=10 {
            for n in 1..=4 {
                hear(&mut exporters, n, 5, second);
            }
        }
        feed.update(&exporters);
        feed.update(&exporters);
        let label = |n| Some(Address::v4([192, 0, 2, n]));
        assert_eq!(labels(&table), [(None, 20 + 100), (label(1), 50), (label(2), 50)]);
        assert_eq!(table.tables.lock().flows[&Protocol::Ipfix], 2 * 4 * 55);
        assert_eq!(table.tables.lock().known[&0], (4, 0));
    }
}
