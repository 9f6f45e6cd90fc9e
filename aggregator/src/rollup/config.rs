//! What an operator may set about the rollups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::dimension::{Counted, Dimension};
use crate::countries::Countries;

/// Which time a flow's bytes and packets belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribute {
    /// All of the time that it lasted, in proportion.
    #[default]
    Spread,
    /// The window in which it ended.
    End,
    /// The window in which it began.
    Start,
    /// The window in which its record was received.
    Received,
}

/// `[aggregate]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AggregateConfig {
    /// Which time a flow's bytes and packets belong to: `spread` (all of the time that it lasted, in proportion), `end`,
    /// `start` or `received`. Rows that are stored already stay as they are.
    pub attribute: Attribute,
    /// What `top_talkers` ranks: `src_addr`, `dst_addr`, `conversation`, `src_net`, `dst_net`, `src_port`, `dst_port`,
    /// `src_as`, `dst_as`, `src_country`, `dst_country`, `exporter`, `in_if`, `out_if`, `protocol`, `dscp`, `vrf_in`,
    /// `vrf_out`, `app`, or two of them, such as `src_addr+dscp`. Each costs time for every flow.
    pub dimensions: Vec<String>,
    /// How many keys a window and dimension keep of each commit; the others are one row.
    pub top_k: usize,
    /// What `distinct_1m` counts: `dst_addr per src_addr` (whom a source talks to), or any other attribute per dimension
    /// that `dimensions` may have. Empty: nothing. Each costs time for every flow.
    pub distinct: Vec<String>,
    /// How many keys a window keeps of each commit and count, those with most; the others are one row.
    pub distinct_top_k: usize,
    /// Prefix length of `src_net` and `dst_net`, IPv4.
    pub prefix_v4: u8,
    /// Prefix length of `src_net` and `dst_net`, IPv6.
    pub prefix_v6: u8,
    /// A database in MaxMind's format (GeoLite2-Country, DB-IP, IPinfo) that says of which country an address is: for
    /// `src_country`, `dst_country` and SQL's `country()`. It is read again when the file is another one.
    pub countries: Countries,
    /// Your own names of classes, with the DSCPs that are of the class: `{ voice = [46, 44], bulk = [8, 10] }`. What is
    /// not named has the name of its DSCP.
    pub classes: BTreeMap<String, Vec<u8>>,
}

/// What is ranked unless the configuration says otherwise.
const DIMENSIONS: [&str; 15] = [
    "src_addr",
    "dst_addr",
    "conversation",
    "src_net",
    "dst_net",
    "dst_port",
    "src_as",
    "dst_as",
    "src_as+dst_as",
    "exporter",
    "in_if",
    "out_if",
    "protocol",
    "dscp",
    "in_if+dscp",
];

/// What is counted unless the configuration says otherwise.
const DISTINCT: [&str; 3] = ["dst_addr per src_addr", "src_addr per dst_addr", "dst_port per conversation"];

impl Default for AggregateConfig {
    fn default() -> Self {
        AggregateConfig {
            attribute: Attribute::Spread,
            dimensions: DIMENSIONS.map(str::to_owned).to_vec(),
            top_k: 1000,
            distinct: DISTINCT.map(str::to_owned).to_vec(),
            distinct_top_k: 100,
            prefix_v4: 24,
            prefix_v6: 48,
            countries: Countries::default(),
            classes: BTreeMap::new(),
        }
    }
}

impl AggregateConfig {
    /// What is wrong with it, by key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (at, name) in self.dimensions.iter().enumerate() {
            if let Err(problem) = name.parse::<Dimension>() {
                problems.push(format!("dimensions: {problem}"));
            }
            if self.dimensions[..at].contains(name) {
                problems.push(format!("dimensions: `{name}` is there twice"));
            }
        }
        for (at, name) in self.distinct.iter().enumerate() {
            if let Err(problem) = name.parse::<Counted>() {
                problems.push(format!("distinct: {problem}"));
            }
            if self.distinct[..at].contains(name) {
                problems.push(format!("distinct: `{name}` is there twice"));
            }
        }
        let of_countries = self.ranked().iter().any(Dimension::is_of_countries)
            || self
                .counted()
                .iter()
                .any(|counted| counted.key.is_of_countries() || counted.value.is_country());
        if of_countries && !self.countries.is_configured() {
            problems
                .push("countries: `src_country` and `dst_country` need a database of countries".to_owned());
        }
        if let Some(problem) = self.countries.problem() {
            problems.push(format!("countries: {problem}"));
        }
        if self.distinct.len() > 16 {
            problems.push("distinct: at most 16".to_owned());
        }
        if !(10..=10_000).contains(&self.distinct_top_k) {
            problems.push("distinct_top_k: 10 to 10000".to_owned());
        }
        if self.dimensions.len() > 64 {
            problems.push("dimensions: at most 64".to_owned());
        }
        if !(10..=100_000).contains(&self.top_k) {
            problems.push("top_k: 10 to 100000".to_owned());
        }
        if self.prefix_v4 > 32 {
            problems.push("prefix_v4: at most 32".to_owned());
        }
        if self.prefix_v6 > 128 {
            problems.push("prefix_v6: at most 128".to_owned());
        }
        let mut class_of = BTreeMap::new();
        for (class, dscp) in
            self.classes.iter().flat_map(|(class, all)| all.iter().map(move |dscp| (class, dscp)))
        {
            if *dscp > 63 {
                problems.push(format!("classes: {class} has DSCP {dscp}; the greatest is 63"));
            }
            if let Some(other) = class_of.insert(*dscp, class) {
                problems.push(format!("classes: DSCP {dscp} is of `{other}` and of `{class}`"));
            }
        }
        problems
    }

    /// The dimensions; what is none was refused before.
    pub(super) fn ranked(&self) -> Vec<Dimension> {
        self.dimensions.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// What is counted; what is wrong was refused before.
    pub(super) fn counted(&self) -> Vec<Counted> {
        self.distinct.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// The name of a DSCP's class: the operator's, else the DSCP's own, else its digits.
    pub(super) fn class(&self, dscp: u8) -> String {
        let own = self.classes.iter().find(|(_, all)| all.contains(&dscp)).map(|(class, _)| class.clone());
        own.or_else(|| weir_schemas::names::dscp_name(dscp).map(str::to_owned))
            .unwrap_or_else(|| dscp.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_what_is_wrong_is_named() {
        assert_eq!(AggregateConfig::default().problems(), Vec::<String>::new());
        let mut wrong = AggregateConfig { top_k: 3, prefix_v4: 33, prefix_v6: 129, ..Default::default() };
        wrong.dimensions =
            ["src_addr", "src_adr", "src_addr", "src_addr+src_addr", "a+b+c"].map(str::to_owned).into();
        wrong.distinct_top_k = 0;
        let distinct = ["dst_addr of src_addr", "dst_adr per src_addr", "src_addr per conversation"];
        wrong.distinct = distinct.map(str::to_owned).into();
        wrong.dimensions.push("dst_country".to_owned());
        wrong.countries = Countries::at("/nowhere/countries.mmdb");
        wrong.classes.insert("voice".into(), vec![46, 64]);
        wrong.classes.insert("video".into(), vec![46]);
        assert_eq!(wrong.problems().len(), 14, "{:#?}", wrong.problems());
        let unread = AggregateConfig { dimensions: vec!["dst_country".into()], ..Default::default() };
        assert!(unread.problems()[0].starts_with("countries:"), "{:?}", unread.problems());
        assert!(wrong.problems()[0].contains("`src_adr`") && wrong.problems()[0].contains("`src_addr`"));
        assert_eq!(
            (wrong.class(46), wrong.class(0), wrong.class(43)),
            ("video".into(), "CS0".into(), "43".into())
        );
    }
}
