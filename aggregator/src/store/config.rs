//! What an operator may set about the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datafusion::common::utils::datafusion_strsim;
use serde::{Deserialize, Deserializer, Serialize};

/// `[store]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Where the tables lie: a directory, or a URL (`s3://bucket/prefix`). Empty: `store` in the data directory.
    pub url: String,
    /// Options of the object store, by the names that object_store gives them (`aws_region`, `aws_endpoint`, …); what is
    /// not here comes from the environment.
    pub options: BTreeMap<String, String>,
    /// How long taken rows may wait until they are committed. They are visible before, from memory.
    pub commit_interval_ms: u64,
    /// Hot rows of this size are committed at once.
    pub commit_bytes: u64,
    /// Bound of the hot rows: above it the log is not read until a commit is done.
    pub hot_bytes: u64,
    /// zstd level of the data files.
    pub zstd_level: i32,
    /// Rows of a Parquet row group.
    pub row_group_rows: usize,
    /// Days that a table keeps, by SQL name (`flows`, `flows_1m`, …); 0 keeps for ever. Tables that are not named keep
    /// these defaults.
    #[serde(deserialize_with = "over_the_defaults")]
    pub retention_days: BTreeMap<String, u32>,
    /// Files below half of this are merged.
    pub compact_to_bytes: u64,
    /// How many small files of a day it takes to merge them.
    pub compact_min_files: usize,
    /// How often compaction, retention and vacuum run.
    pub maintenance_interval_s: u64,
    /// How long a file that is no longer referenced stays for the queries that may still read it.
    pub vacuum_grace_s: u64,
    /// Commits between two checkpoints of a table's log.
    pub checkpoint_commits: u64,
    /// How long log files older than the checkpoint stay.
    pub log_retention_s: u64,
    /// Bound of the directory to which messages that cannot be opened go (`quarantine` in the data directory).
    pub quarantine_bytes: u64,
}

/// How long tables keep unless the configuration says otherwise.
const RETENTION_DAYS: [(&str, u32); 23] = [
    ("flows", 30),
    ("nat_events", 30),
    ("discards", 30),
    ("interface_counters", 90),
    ("host_counters", 90),
    ("queue_counters", 90),
    ("options", 30),
    ("exporter_stats", 90),
    ("exporter_events", 365),
    ("log_gaps", 365),
    ("flows_1m", 90),
    ("flows_1h", 730),
    ("flows_1d", 3650),
    ("top_talkers", 60),
    ("top_talkers_1h", 730),
    ("top_talkers_1d", 3650),
    ("distinct_1m", 14),
    ("distinct_1h", 365),
    ("qos_10s", 7),
    ("qos_1m", 90),
    ("qos_1h", 730),
    ("qos_1d", 3650),
    ("remarking_1h", 365),
];

fn retention_days() -> BTreeMap<String, u32> {
    RETENTION_DAYS.into_iter().map(|(name, days)| (name.to_owned(), days)).collect()
}

/// A configured table of days changes those that it names.
fn over_the_defaults<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u32>, D::Error> {
    let mut days = retention_days();
    days.extend(BTreeMap::deserialize(deserializer)?);
    Ok(days)
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            url: String::new(),
            options: BTreeMap::new(),
            commit_interval_ms: 5_000,
            commit_bytes: 96 << 20,
            hot_bytes: 256 << 20,
            zstd_level: 1,
            row_group_rows: 262_144,
            retention_days: retention_days(),
            compact_to_bytes: 128 << 20,
            compact_min_files: 8,
            maintenance_interval_s: 60,
            vacuum_grace_s: 3_600,
            checkpoint_commits: 50,
            log_retention_s: 3_600,
            quarantine_bytes: 64 << 20,
        }
    }
}

impl StoreConfig {
    /// What is wrong with it, by key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |wrong: bool, text: &str| {
            if wrong {
                problems.push(text.to_owned());
            }
        };
        check(self.commit_interval_ms < 10, "commit_interval_ms: at least 10");
        check(self.commit_bytes < 1 << 20, "commit_bytes: at least 1048576");
        check(self.hot_bytes < self.commit_bytes, "hot_bytes: at least commit_bytes");
        check(!(1..=22).contains(&self.zstd_level), "zstd_level: 1 to 22");
        check(self.row_group_rows < 1_024, "row_group_rows: at least 1024");
        check(self.compact_min_files < 2, "compact_min_files: at least 2");
        check(self.checkpoint_commits == 0, "checkpoint_commits: at least 1");
        check(self.maintenance_interval_s == 0, "maintenance_interval_s: at least 1");
        let is_known = |name: &str| RETENTION_DAYS.iter().any(|(known, _)| *known == name);
        for name in self.retention_days.keys().filter(|name| !is_known(name)) {
            let distance = |known: &str| datafusion_strsim::levenshtein(name, known);
            let nearest = RETENTION_DAYS.iter().map(|(known, _)| *known).min_by_key(|known| distance(known));
            let nearest = nearest.unwrap_or_default();
            problems.push(format!("retention_days: there is no table `{name}`; the nearest is `{nearest}`"));
        }
        problems
    }

    /// The store's location below `data_dir` unless a URL is configured.
    pub(crate) fn location(&self, data_dir: &Path) -> String {
        if self.url.is_empty() { data_dir.join("store").display().to_string() } else { self.url.clone() }
    }

    pub(crate) fn quarantine(&self, data_dir: &Path) -> PathBuf {
        data_dir.join("quarantine")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_unknown_tables_are_named() {
        assert_eq!(StoreConfig::default().problems(), Vec::<String>::new());
        let mut config = StoreConfig { zstd_level: 0, ..StoreConfig::default() };
        config.retention_days.insert("flow".into(), 3);
        assert_eq!(config.problems().len(), 2, "{:?}", config.problems());
        assert!(config.problems()[1].ends_with("no table `flow`; the nearest is `flows`"));
        assert!(serde_json::from_str::<StoreConfig>(r#"{"commit_interval": 3}"#).is_err());
        // a table that is not named keeps as long as by default, not for ever
        let named: StoreConfig =
            serde_json::from_str(r#"{"retention_days": {"flows": 90, "qos_1m": 0}}"#).unwrap();
        let mut wanted = StoreConfig::default().retention_days;
        wanted.insert("flows".into(), 90);
        wanted.insert("qos_1m".into(), 0);
        assert_eq!(named.retention_days, wanted);
        let partial: StoreConfig = serde_json::from_str(r#"{"commit_interval_ms": 3000}"#).unwrap();
        assert_eq!(partial, StoreConfig { commit_interval_ms: 3_000, ..StoreConfig::default() });
    }
}
