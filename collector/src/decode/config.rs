//! What an operator can set about decoding.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use weir_schemas::Address;
use weir_schemas::elements::{Dictionary, DictionaryError};

/// Where the address of the column `exporter_addr` comes from; the first that is known wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentitySource {
    /// sFlow: the agent address.
    Agent,
    /// NetFlow and IPFIX: IE 130 or 131, in the record, else in the options data.
    Element,
    /// The source address of the datagram.
    Sender,
}

/// What is different about some exporters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExporterConfig {
    /// Source addresses of the datagrams: an address or a prefix (`10.0.0.0/8`, `2001:db8::1`).
    pub address: String,
    /// A name for people.
    pub name: Option<String>,
    /// The sampling rate (1 in N), whatever the exporter says.
    pub sampling_rate: Option<f64>,
    /// The exporter multiplies its counters by the sampling rate itself: the rate is 1.
    pub already_scaled: bool,
    /// The exporter sends its sampling interval (IE 34, 50) little-endian (some Mikrotik versions).
    pub little_endian_sampling: bool,
    /// The exporter reports a flow again and again with counters since its start (IE 85, 86): what came since the last
    /// record of the flow counts.
    pub difference_totals: bool,
    /// Sampling options of another observation domain of the same address count here too.
    pub sampling_across_domains: bool,
    /// Sampling options count for the whole domain, whatever their scope says.
    pub ignore_option_scope: bool,
}

impl Default for ExporterConfig {
    fn default() -> Self {
        ExporterConfig {
            address: "0.0.0.0/0".into(),
            name: None,
            sampling_rate: None,
            already_scaled: false,
            little_endian_sampling: false,
            difference_totals: false,
            sampling_across_domains: false,
            ignore_option_scope: false,
        }
    }
}

impl ExporterConfig {
    /// The prefix that `address` names; None where it names none.
    pub fn network(&self) -> Option<IpNet> {
        let text = self.address.trim();
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    }
}

/// Limits and policies of the decoders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeConfig {
    /// Exporters (address and observation domain) that have proved themselves, a shard.
    pub max_exporters: usize,
    /// Exporters still on probation, a shard: the longest silent makes room for the next.
    pub max_probation: usize,
    /// Datagrams after which an exporter is off probation, ...
    pub probation_datagrams: u32,
    /// ... and how long they must have taken.
    pub probation_seconds: u32,
    /// Transport sessions (source ports) remembered of one exporter and domain.
    pub max_sessions: usize,
    /// Templates of one session.
    pub max_templates: usize,
    /// Fields of one template.
    pub max_fields: usize,
    /// Templates of all exporters together.
    pub max_templates_total: usize,
    /// Memory for templates and for what options data said, of all exporters together; those on probation have an
    /// eighth of it.
    pub state_bytes: usize,
    /// A template that was not refreshed for this long, and for three times its refresh interval, decodes no more.
    pub template_lifetime_seconds: u32,
    /// Data that waits for its template: bytes of all exporters together, a shard, ...
    pub pending_bytes: usize,
    /// ... sets of one exporter, ...
    pub pending_sets: usize,
    /// ... and for how long.
    pub pending_seconds: u32,
    /// Samplers, interfaces and applications learned from the options data of one session, each.
    pub max_options_entries: usize,
    /// An exporter that was silent for this long is forgotten.
    pub exporter_idle_seconds: u32,
    /// The sampling rate (1 in N) of exporters that announce none.
    pub default_sampling_rate: Option<f64>,
    /// Where `exporter_addr` comes from, in this order: `agent`, `element`, `sender`. The others stay in `agent_addr`
    /// and `sender_addr`.
    pub identity: Vec<IdentitySource>,
    /// Files of information elements beside those that weir knows, of the form of `schemas/data/enterprise.tsv`: their
    /// names, their types and, where wanted, the columns that they fill.
    pub elements: Vec<PathBuf>,
    /// Flow times outside of the window below give way to the receive time. To be switched off where the receive time
    /// is not the time at which the flows were: captures that are decoded or replayed later.
    pub clock_check: bool,
    /// How far before its arrival a flow may have begun to be believed.
    pub clock_past_seconds: u32,
    /// How far after its arrival a flow may have ended to be believed.
    pub clock_future_seconds: u32,
    /// Exporters that need something of their own; the most specific address wins.
    pub exporters: Vec<ExporterConfig>,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        DecodeConfig {
            max_exporters: 4_096,
            max_probation: 256,
            probation_datagrams: 8,
            probation_seconds: 5,
            max_sessions: 16,
            max_templates: 1_000,
            max_fields: 1_024,
            max_templates_total: 50_000,
            state_bytes: 256 << 20,
            template_lifetime_seconds: 86_400,
            pending_bytes: 8 << 20,
            pending_sets: 256,
            pending_seconds: 60,
            max_options_entries: 20_000,
            exporter_idle_seconds: 86_400,
            default_sampling_rate: None,
            identity: vec![IdentitySource::Agent, IdentitySource::Element, IdentitySource::Sender],
            elements: Vec::new(),
            clock_check: true,
            clock_past_seconds: 86_400,
            clock_future_seconds: 3_600,
            exporters: Vec::new(),
        }
    }
}

impl DecodeConfig {
    /// What is wrong, in words, with the key it is about.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let rate = |key: String, rate: Option<f64>, problems: &mut Vec<String>| {
            if rate.is_some_and(|rate| !(rate.is_finite() && rate >= 1.0)) {
                problems.push(format!("{key}: a sampling rate is 1 in N with N at least 1"));
            }
        };
        rate("default_sampling_rate".into(), self.default_sampling_rate, &mut problems);
        for (index, exporter) in self.exporters.iter().enumerate() {
            if exporter.network().is_none() {
                let address = &exporter.address;
                problems.push(format!("exporters[{index}].address: `{address}` is no address and no prefix"));
            }
            rate(format!("exporters[{index}].sampling_rate"), exporter.sampling_rate, &mut problems);
        }
        for (key, limit) in [
            ("max_exporters", self.max_exporters),
            ("max_probation", self.max_probation),
            ("max_sessions", self.max_sessions),
            ("max_templates", self.max_templates),
            ("max_fields", self.max_fields),
            ("max_templates_total", self.max_templates_total),
            ("state_bytes", self.state_bytes),
        ] {
            if limit == 0 {
                problems.push(format!("{key}: must be at least 1"));
            }
        }
        let times = |source: IdentitySource| self.identity.iter().filter(|other| **other == source).count();
        if self.identity.iter().any(|source| times(*source) > 1) {
            problems.push("identity: names a source twice".into());
        }
        if let Err(error) = self.dictionary() {
            problems.push(format!("elements: {error}"));
        }
        problems
    }

    /// The elements that weir knows, with those of [`DecodeConfig::elements`].
    pub fn dictionary(&self) -> Result<Dictionary, DictionaryError> {
        Dictionary::with_files(&self.elements)
    }

    /// The address of the column `exporter_addr`, of those that are known.
    pub(crate) fn exporter_addr(
        &self,
        agent: Option<[u8; 16]>,
        element: Option<[u8; 16]>,
        sender: [u8; 16],
    ) -> [u8; 16] {
        let known = |source: &IdentitySource| match source {
            IdentitySource::Agent => agent,
            IdentitySource::Element => element,
            IdentitySource::Sender => Some(sender),
        };
        self.identity.iter().find_map(known).unwrap_or(sender)
    }

    /// The entry for a sender, the most specific prefix first.
    pub fn exporter(&self, sender: Address) -> Option<&ExporterConfig> {
        let ip = sender.ip();
        let matching = self.exporters.iter().filter_map(|entry| {
            let network = entry.network()?;
            network.contains(&ip).then_some((network.prefix_len(), entry))
        });
        matching.max_by_key(|(len, _)| *len).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_exporter_entry_wins() {
        let entry = |address: &str, rate: f64| ExporterConfig {
            address: address.into(),
            sampling_rate: Some(rate),
            ..ExporterConfig::default()
        };
        let config = DecodeConfig {
            exporters: vec![entry("10.0.0.0/8", 1.0), entry("10.1.2.3", 3.0), entry("10.1.0.0/16", 2.0)],
            ..DecodeConfig::default()
        };
        assert!(config.problems().is_empty());
        let rate = |text: &str| config.exporter(text.parse().unwrap()).and_then(|entry| entry.sampling_rate);
        assert_eq!(rate("10.1.2.3"), Some(3.0));
        assert_eq!(rate("10.1.2.4"), Some(2.0));
        assert_eq!(rate("10.2.2.4"), Some(1.0));
        assert_eq!(rate("192.0.2.1"), None);
    }

    #[test]
    fn a_wrong_file_of_elements_is_named_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mine.tsv");
        std::fs::write(&path, "12356\t1\tx\tunsigned32\t-\t-\tsrc_prot\n").unwrap();
        let config = DecodeConfig { elements: vec![path.clone()], ..DecodeConfig::default() };
        let place = format!("elements: {}:1:26: ", path.display());
        let problem = "there is no column \"src_prot\"; the nearest is \"src_port\"";
        assert_eq!(config.problems(), [place + problem]);
        let config = DecodeConfig { elements: vec![path.with_extension("no")], ..DecodeConfig::default() };
        assert!(config.problems()[0].starts_with("elements: cannot read the dictionary "));
    }

    #[test]
    fn unknown_keys_and_impossible_rates_are_refused() {
        assert!(serde_json::from_str::<DecodeConfig>(r#"{"max_exporter": 1}"#).is_err());
        let config: DecodeConfig =
            serde_json::from_str(r#"{"exporters": [{"address": "10.0.0.300", "sampling_rate": 0.5}]}"#)
                .unwrap();
        assert_eq!(config.problems().len(), 2);
    }
}
