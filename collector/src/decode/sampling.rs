//! What an exporter says in its options data and a flow record needs: sampling rates, the boot time, the exporter's own
//! address, the names of applications.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where a sampling rate comes from: the values of the column `sampling_source`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum RateSource {
    Override,
    Record,
    Sampler,
    Interface,
    System,
    Header,
    Configured,
    #[default]
    Unknown,
}

impl RateSource {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            RateSource::Override => "override",
            RateSource::Record => "record",
            RateSource::Sampler => "sampler",
            RateSource::Interface => "interface",
            RateSource::System => "system",
            RateSource::Header => "header",
            RateSource::Configured => "configured",
            RateSource::Unknown => "unknown",
        }
    }
}

/// A rate that can be: 0 means "unknown" (rule 27: it must not multiply by 0), less than 1 is none.
pub(crate) fn plausible(rate: f64) -> Option<f64> {
    (rate.is_finite() && rate >= 1.0).then_some(rate)
}

/// Rule 25: of `taken` + `skipped` packets `taken` are seen. Without `skipped`, `taken` is the interval only where the
/// algorithm is 1, systematic count-based sampling as some exporters mean it.
pub(crate) fn packets_rate(taken: u64, skipped: Option<u64>, algorithm: Option<u64>) -> Option<f64> {
    match skipped {
        Some(skipped) if taken > 0 => plausible((taken as f64 + skipped as f64) / taken as f64),
        None if algorithm == Some(1) => plausible(taken as f64),
        _ => None,
    }
}

/// `size` out of `population`.
pub(crate) fn out_of_rate(size: u64, population: u64) -> Option<f64> {
    if size == 0 { None } else { plausible(population as f64 / size as f64) }
}

/// A list of rates by number, sorted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rates(Vec<(u64, f64)>);

impl Rates {
    pub(crate) fn get(&self, id: u64) -> Option<f64> {
        let at = self.0.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.0.get(at).map(|(_, rate)| *rate)
    }

    /// Sets a rate; false where it was that already, or where there is no room.
    fn set(&mut self, id: u64, rate: f64, max: usize) -> bool {
        match self.0.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => {
                let changed = self.0[at].1 != rate;
                self.0[at].1 = rate;
                changed
            }
            Err(at) if self.0.len() < max => {
                self.0.insert(at, (id, rate));
                true
            }
            Err(_) => false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rate of the only entry.
    fn only(&self) -> Option<f64> {
        match self.0[..] {
            [(_, rate)] => Some(rate),
            _ => None,
        }
    }
}

/// Names of applications by the octets of their id: cheap to copy, because a copy is what a change makes.
pub(crate) type Applications = HashMap<Arc<[u8]>, Arc<str>, foldhash::fast::RandomState>;
/// Memory of an entry beside its octets.
const APPLICATION_BYTES: usize = 128;
const RATE_BYTES: usize = 32;
/// Names are kept up to this many octets.
const MAX_NAME_BYTES: usize = 255;

/// A name as it is kept: not longer than a name is.
pub(crate) fn cut_name(name: &str) -> &str {
    name.get(..name.floor_char_boundary(MAX_NAME_BYTES)).unwrap_or_default()
}

/// What one options data record says that flows need.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Learned {
    pub(crate) rate: Option<f64>,
    pub(crate) sampler: Option<u64>,
    pub(crate) interface: Option<u64>,
    /// Scope: records of this template.
    pub(crate) template: Option<u64>,
    pub(crate) boot_us: Option<i64>,
    pub(crate) agent: Option<[u8; 16]>,
    pub(crate) application: Option<(Arc<[u8]>, Arc<str>)>,
    /// The scope is something that neither the whole domain nor a sampler nor an interface is (a line card).
    pub(crate) narrow: bool,
}

impl Learned {
    /// The memory that it takes at most.
    pub(crate) fn bytes(&self) -> usize {
        let name = self.application.as_ref();
        RATE_BYTES + name.map_or(0, |(id, name)| APPLICATION_BYTES + id.len() + name.len())
    }
}

/// All that was learned from the options data of a session. Copied when it changes, shared otherwise.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct View {
    pub(crate) samplers: Rates,
    pub(crate) interfaces: Rates,
    pub(crate) templates: Rates,
    pub(crate) system: Option<f64>,
    pub(crate) boot_us: Option<i64>,
    pub(crate) agent: Option<[u8; 16]>,
    pub(crate) applications: Arc<Applications>,
    /// Octets of ids and names.
    pub(crate) text_bytes: usize,
}

/// What changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) any: bool,
    pub(crate) sampling: bool,
}

impl View {
    /// Takes in a record. `wide`: what a scope narrows counts for the whole domain all the same.
    pub(crate) fn learn(&mut self, learned: &Learned, wide: bool, max: usize) -> Change {
        let mut change = Change::default();
        if let Some(rate) = learned.rate {
            change.sampling = match (learned.sampler, learned.interface, learned.template) {
                (Some(id), ..) => self.samplers.set(id, rate, max),
                (None, Some(id), _) if !wide => self.interfaces.set(id, rate, max),
                (None, None, Some(id)) if !wide => self.templates.set(id, rate, max),
                _ if learned.narrow && !wide => false,
                _ => self.system.replace(rate) != Some(rate),
            };
        }
        change.any = change.sampling;
        if learned.boot_us.is_some() && learned.boot_us != self.boot_us {
            self.boot_us = learned.boot_us;
            change.any = true;
        }
        if learned.agent.is_some() && learned.agent != self.agent {
            self.agent = learned.agent;
            change.any = true;
        }
        if let Some((id, name)) = &learned.application {
            let known = self.applications.get(id);
            if known != Some(name) && (known.is_some() || self.applications.len() < max) {
                let before = Arc::make_mut(&mut self.applications).insert(Arc::clone(id), Arc::clone(name));
                self.text_bytes += id.len() + name.len();
                self.text_bytes -= before.map_or(0, |before| id.len() + before.len());
                change.any = true;
            }
        }
        change
    }

    /// Its memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let rates = self.samplers.0.len() + self.interfaces.0.len() + self.templates.0.len();
        rates * RATE_BYTES + self.applications.len() * APPLICATION_BYTES + self.text_bytes
    }

    /// The rate of a sampler. Some exporters (Catalyst 6500, 7600) send 0 for the only one there is.
    pub(crate) fn sampler(&self, id: u64) -> Option<f64> {
        self.samplers.get(id).or_else(|| if id == 0 { self.samplers.only() } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_25_rates_are_ratios() {
        assert_eq!(packets_rate(1, Some(999), None), Some(1_000.0));
        assert_eq!(packets_rate(2, Some(3), None), Some(2.5));
        assert_eq!(packets_rate(0, Some(3), None), None);
        assert_eq!(packets_rate(100, None, Some(1)), Some(100.0));
        assert_eq!(packets_rate(1, None, Some(3)), None);
        assert_eq!(out_of_rate(1, 256), Some(256.0));
        assert_eq!(out_of_rate(3, 4), Some(4.0 / 3.0));
        assert_eq!(out_of_rate(0, 4), None);
    }

    #[test]
    fn rule_27_a_rate_of_zero_is_no_rate() {
        assert_eq!(plausible(0.0), None);
        assert_eq!(plausible(f64::NAN), None);
        assert_eq!(plausible(f64::INFINITY), None);
        assert_eq!(plausible(1.0), Some(1.0));
    }

    #[test]
    fn rule_15_a_rate_counts_where_its_scope_says() {
        let mut view = View::default();
        let rate = |rate| Learned { rate: Some(rate), ..Learned::default() };
        let sampler = Learned { sampler: Some(7), ..rate(10.0) };
        assert!(view.learn(&sampler, false, 10).sampling);
        assert!(!view.learn(&sampler, false, 10).any, "a refresh changes nothing");
        view.learn(&Learned { interface: Some(3), ..rate(20.0) }, false, 10);
        view.learn(&Learned { narrow: true, ..rate(30.0) }, false, 10);
        assert_eq!((view.sampler(7), view.interfaces.get(3), view.system), (Some(10.0), Some(20.0), None));
        view.learn(&Learned { narrow: true, ..rate(30.0) }, true, 10);
        assert_eq!(view.system, Some(30.0));
        assert_eq!(view.sampler(0), Some(10.0));
        view.learn(&Learned { sampler: Some(8), ..rate(11.0) }, false, 10);
        assert_eq!(view.sampler(0), None);
    }

    #[test]
    fn rule_53_learned_tables_are_bounded() {
        let mut view = View::default();
        for id in 0..1_000_u64 {
            let application = Some((id.to_be_bytes().into(), format!("app{id}").into()));
            let learned = Learned { rate: Some(2.0), sampler: Some(id), application, ..Learned::default() };
            view.learn(&learned, false, 100);
        }
        assert_eq!(view.samplers.0.len(), 100);
        assert_eq!(view.applications.len(), 100);
    }
}
