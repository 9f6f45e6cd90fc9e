//! The configuration: one TOML file, every key with a default; the environment and the command line come after it.
//!
//! The sections are the parts' own types, so a key is documented where it is used.

mod load;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_aggregator::aggregate::{AggregatorConfig, ClusterConfig, HttpConfig, PostgresConfig};
use weir_aggregator::rollup::AggregateConfig;
use weir_aggregator::source::kafka::{KafkaSourceConfig, Share};
use weir_aggregator::sql::SqlConfig;
use weir_aggregator::store::StoreConfig;
use weir_collector::batch::BatchConfig;
use weir_collector::collect::{self, CollectorConfig, MetricsConfig, ReceiveConfig};
use weir_collector::decode::DecodeConfig;
use weir_collector::sink::embedded::EmbeddedConfig;
use weir_collector::sink::kafka::KafkaSinkConfig;
use weir_collector::sink::spool::SpoolConfig;
use weir_collector::writer::WriterConfig;

pub(crate) use self::load::ConfigError;
use crate::cli::RoleArgs;

/// All of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The file as it was read.
    #[serde(skip)]
    pub(crate) text: String,
    /// Where the log, the tables and the state live.
    pub(crate) data_dir: PathBuf,
    /// Name of this collector in the log; the machine's where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) listen: ListenConfig,
    pub(crate) logging: LoggingConfig,
    pub(crate) receive: ReceiveConfig,
    pub(crate) decode: DecodeConfig,
    pub(crate) batch: BatchConfig,
    pub(crate) writer: WriterConfig,
    pub(crate) metrics: MetricsConfig,
    pub(crate) log: LogConfig,
    pub(crate) store: StoreConfig,
    pub(crate) aggregate: AggregateConfig,
    pub(crate) sql: SqlConfig,
    pub(crate) http: HttpConfig,
    pub(crate) postgres: PostgresConfig,
    pub(crate) cluster: ClusterConfig,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            text: String::new(),
            data_dir: PathBuf::from("./weir-data"),
            name: None,
            listen: ListenConfig::default(),
            logging: LoggingConfig::default(),
            receive: ReceiveConfig::default(),
            decode: DecodeConfig::default(),
            batch: BatchConfig::default(),
            writer: WriterConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
            store: StoreConfig::default(),
            aggregate: AggregateConfig::default(),
            sql: SqlConfig::default(),
            http: HttpConfig::default(),
            postgres: PostgresConfig::default(),
            cluster: ClusterConfig::default(),
        }
    }
}

/// Addresses. All but UDP stay on loopback unless `insecure` says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ListenConfig {
    /// UDP addresses; each takes any of the protocols. `[::]` takes IPv4 too.
    pub(crate) udp: Vec<SocketAddr>,
    /// SQL, metrics and health over HTTP.
    pub(crate) http: SocketAddr,
    /// SQL over the PostgreSQL wire protocol.
    pub(crate) postgres: SocketAddr,
    /// For other nodes on the same store, so that a query runs on all of them; absent: queries run on the node that is
    /// asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<SocketAddr>,
    /// Allows `http`, `postgres` and `cluster` to be other than loopback, although there is no TLS.
    pub(crate) insecure: bool,
}

impl Default for ListenConfig {
    fn default() -> Self {
        ListenConfig {
            udp: collect::ListenConfig::default().udp,
            http: SocketAddr::from(([127, 0, 0, 1], 8080)),
            postgres: SocketAddr::from(([127, 0, 0, 1], 15432)),
            cluster: None,
            insecure: false,
        }
    }
}

/// weir's own log, on stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LoggingConfig {
    /// error, warn, info, debug, trace, or a filter such as `info,weir_collector=debug`.
    pub(crate) level: String,
    /// `text`, or `json` for a log collector.
    pub(crate) format: LogFormat,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        LoggingConfig { level: "info".to_owned(), format: LogFormat::Text }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The log of batches between collector and aggregator.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogConfig {
    /// `embedded`, on this machine's disk, or `kafka`, where collectors and aggregators are many.
    pub(crate) kind: LogKind,
    pub(crate) embedded: EmbeddedConfig,
    pub(crate) kafka: KafkaSinkConfig,
    pub(crate) kafka_reader: KafkaReaderConfig,
    pub(crate) spool: SpoolConfig,
}

/// What only the reading side of Kafka needs; brokers, topic and settings are those of `[log.kafka]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KafkaReaderConfig {
    /// The consumer group that is told how far the store is.
    pub(crate) group: String,
    /// `all`: this aggregator reads all partitions. `group`: the aggregators of the group share them, all on one store.
    pub(crate) share: Share,
    /// How much is fetched ahead.
    pub(crate) prefetch_bytes: usize,
}

impl Default for KafkaReaderConfig {
    fn default() -> Self {
        let KafkaSourceConfig { group, share, prefetch_bytes, .. } = KafkaSourceConfig::default();
        KafkaReaderConfig { group, share, prefetch_bytes }
    }
}

impl LogConfig {
    /// How the aggregator reads from Kafka.
    pub(crate) fn kafka_source(&self) -> KafkaSourceConfig {
        KafkaSourceConfig {
            bootstrap_servers: self.kafka.bootstrap_servers.clone(),
            topic: self.kafka.topic.clone(),
            group: self.kafka_reader.group.clone(),
            share: self.kafka_reader.share,
            prefetch_bytes: self.kafka_reader.prefetch_bytes,
            settings: self.kafka.settings.clone(),
            ..KafkaSourceConfig::default()
        }
    }
}

/// `embedded` on one machine, `kafka` on many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogKind {
    #[default]
    Embedded,
    Kafka,
}

impl Config {
    /// The file (for a role what its supervisor has read of it), then the environment. Does not say whether it can be
    /// used: [`Config::validate`].
    pub(crate) fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let kept = crate::supervisor::inherited().get("config").and_then(|found| found.first().copied());
        // opened anew: the roles share the place that an inherited descriptor has come to
        let kept = kept.map(|number| PathBuf::from(format!("/proc/self/fd/{number}")));
        let text = load::read(kept.as_deref().or(path))?;
        let mut config: Config = load::load(&text, path, std::env::vars())?;
        config.text = text;
        // files that a file names lie beside it
        if let Some(directory) = path.and_then(Path::parent) {
            for file in &mut config.decode.elements {
                *file = directory.join(&*file);
            }
        }
        Ok(config)
    }

    /// The file, the environment and the flags of `run`, `collect` or `aggregate`, checked.
    pub(crate) fn for_role(args: &RoleArgs) -> Result<Config, ConfigError> {
        let mut config = Config::load(args.config.as_deref())?;
        if let Some(data_dir) = &args.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        if !args.listen.is_empty() {
            config.listen.udp.clone_from(&args.listen);
        }
        if let Some(http) = args.http {
            config.listen.http = http;
        }
        if let Some(postgres) = args.postgres {
            config.listen.postgres = postgres;
        }
        config.validate()?;
        Ok(config)
    }

    /// Refuses what cannot be, each with its key.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = self.collector().problems();
        problems.extend(self.aggregator().problems());
        let cluster = self.cluster.problems(self.listen.cluster);
        problems.extend(cluster.into_iter().map(|problem| format!("cluster.{problem}")));
        let doors = [("http", self.listen.http), ("postgres", self.listen.postgres)];
        for (key, address) in doors.into_iter().chain(self.listen.cluster.map(|address| ("cluster", address)))
        {
            if !address.ip().is_loopback() && !self.listen.insecure {
                problems.push(format!(
                    "listen.{key}: {address} is not on loopback, and there is no TLS: use 127.0.0.1 behind a proxy, \
                     or set listen.insecure = true"
                ));
            }
        }
        match problems.is_empty() {
            true => Ok(()),
            false => {
                Err(ConfigError::Invalid { place: "configuration".to_owned(), message: problems.join("; ") })
            }
        }
    }

    /// What the collect role is configured with.
    pub(crate) fn collector(&self) -> CollectorConfig {
        CollectorConfig {
            name: self.name.clone(),
            listen: collect::ListenConfig { udp: self.listen.udp.clone() },
            receive: self.receive.clone(),
            decode: self.decode.clone(),
            batch: self.batch.clone(),
            writer: self.writer.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// What the aggregate role is configured with.
    pub(crate) fn aggregator(&self) -> AggregatorConfig {
        AggregatorConfig {
            store: self.store.clone(),
            aggregate: self.aggregate.clone(),
            sql: self.sql.clone(),
            http: self.http.clone(),
            postgres: self.postgres.clone(),
            cluster: self.cluster.clone(),
            insecure_listen: self.listen.insecure,
        }
    }

    /// What the configuration means, a line each, for `weir check`.
    pub(crate) fn explain(&self) -> Vec<String> {
        let addresses: Vec<_> = self.listen.udp.iter().map(SocketAddr::to_string).collect();
        let log = match self.log.kind {
            LogKind::Embedded => {
                format!("embedded, in {}", self.log.embedded.directory(&self.data_dir).display())
            }
            LogKind::Kafka => {
                format!(
                    "Apache Kafka, topic {} at {}, by way of the spool in {}",
                    self.log.kafka.topic,
                    self.log.kafka.bootstrap_servers,
                    self.log.spool.directory(&self.data_dir).display()
                )
            }
        };
        let store = match self.store.url.as_str() {
            "" => self.data_dir.join("store").display().to_string(),
            url => url.to_owned(),
        };
        vec![
            format!("receives on UDP {}, {} shard(s)", addresses.join(", "), self.receive.shard_count()),
            format!("log: {log}"),
            format!("tables: {store}"),
            format!("answers HTTP on {} and PostgreSQL on {}", self.listen.http, self.listen.postgres),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let text = toml::to_string_pretty(&Config::default()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        let text = load::read(Some(file.path())).unwrap();
        let config: Config = load::load(&text, Some(file.path()), std::iter::empty()).unwrap();
        assert_eq!(toml::to_string_pretty(&config).unwrap(), text);
        config.validate().unwrap();
    }

    #[test]
    fn a_wrong_line_of_a_file_of_elements_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weir.toml");
        std::fs::write(&path, "[decode]\nelements = [\"mine.tsv\"]\n").unwrap();
        std::fs::write(directory.path().join("mine.tsv"), "# ours\n12356\t1\tx\tuint32\n").unwrap();
        let error = Config::load(Some(&path)).unwrap().validate().unwrap_err().to_string();
        let place = format!("decode.elements: {}:2:", directory.path().join("mine.tsv").display());
        assert!(error.contains(&place) && error.contains("unsigned32"), "{error}");
    }

    #[test]
    fn doors_other_than_udp_stay_on_loopback() {
        let mut config = Config::default();
        config.listen.http = "0.0.0.0:8080".parse().unwrap();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("listen.http") && error.contains("listen.insecure"), "{error}");
        config.listen.insecure = true;
        config.validate().unwrap();
    }
}
