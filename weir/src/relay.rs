//! `weir relay`: a copy of the topic in another encoding, for consumers that do not read Arrow.
//!
//! It reads the topic as an aggregator does and writes what it has read to another one, as JSON lines or Protocol Buffers.
//! How far it is, its consumer group is told when the brokers have acknowledged the copies: after a crash some come again,
//! never fewer. A copy says in `weir-origin` where it came from (partition and offset in the topic), so that a consumer can
//! tell what comes twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio_util::sync::CancellationToken;
use weir_aggregator::source::kafka::{KafkaSource, KafkaSourceConfig, Share};
use weir_aggregator::source::{LogMessage, Payload, Positions, Source, SourceError};
use weir_collector::sink::kafka::{KafkaSink, KafkaSinkConfig};
use weir_collector::sink::{Acknowledged, Message, Sink, SinkError};
use weir_schemas::Table;
use weir_schemas::envelope::{Origin, open_body};

use crate::config::{Config, LogKind};
use crate::failure::Failure;
use crate::tools::encode::Encoding;

/// How much is read, written and acknowledged at once.
const ROUND_BYTES: usize = 4 << 20;
/// How long one look for what the brokers say takes.
const LOOK: Duration = Duration::from_millis(50);
/// Pause before the topic is read again after an error.
const RETRY: Duration = Duration::from_secs(1);
/// Without an end in sight (all messages before it are gone by retention), nothing that comes for so long is the end.
const NOTHING_COMES: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    /// Configuration file (TOML): brokers, topic and settings are those of `[log.kafka]`.
    #[arg(long, value_name = "FILE", env = "WEIR_CONFIG")]
    pub(crate) config: Option<std::path::PathBuf>,
    /// The topic to write to. It is made where it is absent, with as many partitions as the topic that is read.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) to: String,
    /// How rows are written.
    #[arg(long, value_enum)]
    pub(crate) encoding: Encoding,
    /// Only this table; repeat for more. All of them where it is absent.
    #[arg(long = "table", value_name = "TABLE")]
    pub(crate) tables: Vec<String>,
    /// The consumer group that is told how far the copy is; `weir-relay-TOPIC` where it is absent.
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// Copy what is there and end.
    #[arg(long)]
    pub(crate) once: bool,
}

/// Copies until it is asked to stop.
pub(crate) async fn run(args: RelayArgs, config: Config) -> Result<(), Failure> {
    if config.log.kind != LogKind::Kafka {
        return Err(Failure::usage(
            "log.kind is embedded: `weir relay` copies a topic of Kafka (log.kind = \"kafka\")".to_owned(),
        ));
    }
    if args.to == config.log.kafka.topic {
        return Err(Failure::usage(format!("--to is {}, the topic that is read: name another", args.to)));
    }
    let tables = tables(&args.tables)?;
    let group = args.group.clone().unwrap_or_else(|| format!("weir-relay-{}", args.to));
    let source = KafkaSourceConfig { group, share: Share::All, ..config.log.kafka_source() };
    let stop = crate::signals::stop_token();
    let Some(told) = told(&source, &stop).await? else { return Ok(()) };
    let partitions = u32::try_from(told.partitions).unwrap_or(1);
    let sink = KafkaSinkConfig { topic: args.to.clone(), partitions, ..config.log.kafka.clone() };
    let most = sink.max_message_bytes;
    let sink = KafkaSink::open(sink).map_err(|error| Failure::failed(error.to_string()))?;
    let relay = Relay {
        source: KafkaSource::open(source, told.positions.clone())
            .map_err(|error| Failure::failed(error.to_string()))?,
        sink: sink.with_header("content-type", args.encoding.content_type()),
        encoding: args.encoding,
        tables,
        most,
        positions: told.positions,
        copied: Acknowledged::default(),
        passed_over: 0,
    };
    tracing::info!(from = config.log.kafka.topic, to = args.to, encoding = ?args.encoding, "copying");
    relay.run(&stop, args.once).await
}

fn tables(names: &[String]) -> Result<Vec<Table>, Failure> {
    if names.is_empty() {
        return Ok(Table::ALL.to_vec());
    }
    let known = Table::ALL.map(Table::name).join(", ");
    let of = |name: &String| {
        let unknown = || Failure::usage(format!("there is no table {name}: the tables are {known}"));
        Table::from_name(name).ok_or_else(unknown)
    };
    names.iter().map(of).collect()
}

/// Where the copy begins.
struct Told {
    positions: Positions,
    /// Of the topic that is read.
    partitions: usize,
}

/// Asks the group; while the brokers are away, again and again. None where it was asked to stop.
async fn told(config: &KafkaSourceConfig, stop: &CancellationToken) -> Result<Option<Told>, Failure> {
    let config = Arc::new(config.clone());
    loop {
        let asked = Arc::clone(&config);
        let answer = tokio::task::spawn_blocking(move || KafkaSource::told(&asked)).await;
        match answer.map_err(|error| Failure::failed(error.to_string()))? {
            Ok((positions, partitions)) => return Ok(Some(Told { positions, partitions })),
            Err(SourceError::Unavailable(error)) => tracing::warn!("{error}; trying again"),
            Err(error) => return Err(Failure::failed(error.to_string())),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

struct Relay {
    source: KafkaSource,
    sink: KafkaSink,
    encoding: Encoding,
    tables: Vec<Table>,
    /// The greatest body of a message.
    most: usize,
    /// One past what was copied and acknowledged.
    positions: Positions,
    copied: Acknowledged,
    /// Messages that were not weir's, or damaged, or refused by the brokers.
    passed_over: u64,
}

impl Relay {
    /// Copies, and says in the end how much that was.
    async fn run(mut self, stop: &CancellationToken, once: bool) -> Result<(), Failure> {
        let ended = self.copy_all(stop, once).await;
        tracing::info!(
            messages = self.copied.messages,
            rows = self.copied.rows,
            passed_over = self.passed_over,
            "stopped"
        );
        ended
    }

    async fn copy_all(&mut self, stop: &CancellationToken, once: bool) -> Result<(), Failure> {
        let mut came = Instant::now();
        while !stop.is_cancelled() {
            let messages = tokio::select! {
                () = stop.cancelled() => break,
                messages = self.source.poll(ROUND_BYTES) => messages,
            };
            match messages {
                Ok(messages) if messages.is_empty() => {
                    if once && (self.is_at_end() || came.elapsed() > NOTHING_COMES) {
                        break;
                    }
                }
                Ok(messages) => {
                    came = Instant::now();
                    let mut next = self.positions.clone();
                    for message in messages {
                        next.insert(message.partition, message.offset + 1);
                        if !self.copy(message, stop).await {
                            return Ok(());
                        }
                    }
                    while self.sink.in_flight() > 0 {
                        if stop.is_cancelled() {
                            return Ok(());
                        }
                        self.settle().await;
                    }
                    self.positions = next;
                    if let Err(error) = self.source.committed(&self.positions).await {
                        tracing::warn!(%error, "the group was not told how far the copy is");
                    }
                }
                Err(SourceError::Unavailable(error)) => {
                    tracing::warn!("{error}; trying again");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(Failure::failed(error.to_string())),
            }
        }
        Ok(())
    }

    /// Whether everything that the brokers have said to be there is copied.
    fn is_at_end(&self) -> bool {
        let end = self.source.end();
        !end.is_empty()
            && end.iter().all(|(partition, end)| self.positions.get(partition).unwrap_or(&0) >= end)
    }

    /// Gives a message to the brokers in the other encoding; false where it was asked to stop meanwhile.
    async fn copy(&mut self, message: LogMessage, stop: &CancellationToken) -> bool {
        let LogMessage { partition, offset, payload } = message;
        let (envelope, body) = match payload {
            Payload::Batch { envelope, body } => (envelope, body),
            Payload::Gap { from } => {
                tracing::error!(
                    partition,
                    from,
                    to = offset,
                    "messages are gone from the topic: they are not copied"
                );
                return true;
            }
            Payload::Foreign { reason, .. } => {
                self.passed_over += 1;
                tracing::error!(partition, offset, reason, "not a message of weir: it is not copied");
                return true;
            }
        };
        if !self.tables.contains(&envelope.table) {
            return true;
        }
        let batch = match open_body(&envelope, &body) {
            Ok(batch) => batch,
            Err(error) => {
                self.passed_over += 1;
                tracing::error!(partition, offset, %error, "a damaged message is not copied");
                return true;
            }
        };
        for (rows, piece) in self.encoding.pieces(envelope.table, &batch, self.most) {
            let mut envelope = envelope.clone();
            (envelope.rows, envelope.covered) = (rows, None);
            envelope.origin = Some(Origin { spool: 0, partition, offset });
            let copy = Message { envelope, body: piece.into(), key: partition.into(), low: None };
            loop {
                match self.sink.append(&copy) {
                    Ok(()) => break,
                    Err(SinkError::Refused(why)) => {
                        self.passed_over += 1;
                        tracing::error!(partition, offset, "a copy is dropped: {why}");
                        break;
                    }
                    Err(SinkError::Busy(why)) => {
                        tracing::debug!("{why}");
                        if stop.is_cancelled() {
                            return false;
                        }
                        self.settle().await;
                    }
                }
            }
        }
        true
    }

    /// Takes what the brokers have acknowledged, waiting a little.
    async fn settle(&mut self) {
        self.copied += tokio::task::block_in_place(|| self.sink.poll(LOOK));
        self.passed_over += self.sink.refused().messages;
    }
}
