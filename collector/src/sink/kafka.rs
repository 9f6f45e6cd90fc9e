//! The log on Apache Kafka: one message holds one Arrow IPC stream, its headers are the envelope's.
//!
//! The producer is idempotent and never lets a message expire. Everything that is not acknowledged is also kept here, in
//! order; when the producer fails for good (librdkafka's fatal errors, a topic that was deleted), it is dropped, the
//! topic is looked at again, and what was kept is sent by a new one. A message whose delivery was unknown at that moment
//! may then stand twice in the topic, recognisable by its origin in the spool ([`super::spool`]).
//!
//! Why the origins in a partition never pass over one (so that "at or below the greatest so far" says "there already"):
//! a producer's messages get there in order and without a gap, or not at all; and each producer begins with the first
//! message that none before it knows to be there.

mod topic;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, ProducerContext};
use serde::{Deserialize, Serialize};
use weir_schemas::Envelope;

use super::{Acknowledged, Message, Sink, SinkError};

/// Pause after a failure before the broker is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What a message may have beside its body: key, headers, framing.
const OVERHEAD: usize = 16 * 1024;
/// How often the brokers may find a message too large before it is given up.
const TOO_LARGE_TIMES: u32 = 5;
/// How long one look for delivery reports takes.
const LOOK: Duration = Duration::from_millis(2);

/// `[log.kafka]`, the part that writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSinkConfig {
    /// Brokers to ask first, `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// The topic of the batches.
    pub topic: String,
    /// Creates the topic where it is absent; otherwise its absence is an error.
    pub create_topic: bool,
    /// Of a topic that is created.
    pub partitions: u32,
    /// Of a topic that is created; 0: what the brokers take by default.
    pub replication: u32,
    /// Of a topic that is created: how long messages are kept.
    pub retention_hours: u64,
    /// Greatest body of a message. The topic must take it.
    pub max_message_bytes: usize,
    /// Messages that are not yet acknowledged, in bytes of their bodies: beyond that, the sink is busy.
    pub queue_bytes: usize,
    /// Further settings of librdkafka, such as `security.protocol`; they win over those made here.
    pub settings: BTreeMap<String, String>,
}

impl Default for KafkaSinkConfig {
    fn default() -> Self {
        KafkaSinkConfig {
            bootstrap_servers: "127.0.0.1:9092".to_owned(),
            topic: "weir".to_owned(),
            create_topic: true,
            partitions: 4,
            replication: 0,
            retention_hours: 24,
            max_message_bytes: 900_000,
            queue_bytes: 64 * 1024 * 1024,
            settings: BTreeMap::new(),
        }
    }
}

impl KafkaSinkConfig {
    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", "weir-collect")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // librdkafka drops a message after five minutes by default
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", (self.max_message_bytes + OVERHEAD).to_string())
            // the topic's limit is one for batches of messages
            .set("batch.size", self.max_message_bytes.to_string())
            .set("queue.buffering.max.kbytes", (self.queue_bytes / 512).max(64 * 1024).to_string())
            .set("linger.ms", "5")
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in &self.settings {
            client.set(key, value);
        }
        client
    }
}

/// Why the sink cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum KafkaSinkError {
    #[error("log.kafka.{key} is {value}; it must be {wanted}")]
    Config { key: &'static str, value: String, wanted: &'static str },
    #[error(
        "log.kafka.settings.`{key}` is {value}; it must be {wanted}, or flows could be lost or counted twice: leave it out"
    )]
    Setting { key: &'static str, value: String, wanted: &'static str },
    #[error("log.kafka: {0}")]
    Client(#[from] KafkaError),
}

/// What the sink has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KafkaSinkStats {
    /// Partitions of the topic; 0: not yet known.
    pub partitions: u32,
    /// Times that the producer was replaced.
    pub rebuilt: u64,
    /// Messages given to a new producer because the old one had not said that they were delivered.
    pub sent_again: u64,
    /// Messages that the broker refused.
    pub refused: u64,
}

/// What librdkafka's callbacks leave for the sink.
#[derive(Debug, Default)]
struct Reports {
    /// Number of the message and what became of it.
    delivered: Mutex<Vec<(usize, Result<(), RDKafkaErrorCode>)>>,
    fatal: AtomicBool,
    last_error: Mutex<String>,
}

#[derive(Debug, Clone)]
struct Context(Arc<Reports>);

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{text}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.0.fatal.store(true, Ordering::Relaxed);
        }
        *self.0.last_error.lock() = reason.to_owned();
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, message)) => {
                tracing::debug!(partition = message.partition(), number, "not delivered: {error}");
                Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown))
            }
        };
        self.0.delivered.lock().push((number, result));
    }
}

type Producer = BaseProducer<Context>;

/// How the sink stands to the brokers.
enum State {
    /// A thread looks at the topic and makes it where it is absent.
    Looking(Receiver<Result<u32, String>>),
    Ready {
        producer: Producer,
        partitions: u32,
    },
    Waiting {
        until: Instant,
    },
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Looking(_) => "Looking",
            State::Ready { .. } => "Ready",
            State::Waiting { .. } => "Waiting",
        })
    }
}

/// The writer of a topic.
#[derive(Debug)]
pub struct KafkaSink {
    config: KafkaSinkConfig,
    client: ClientConfig,
    state: State,
    reports: Arc<Reports>,
    /// Appended and not acknowledged, by number.
    kept: BTreeMap<usize, Message>,
    kept_bytes: usize,
    /// Of those: not given to the present producer yet.
    unsent: VecDeque<usize>,
    next: usize,
    error: String,
    /// How often in a row the brokers found something too large.
    too_large: u32,
    /// Over how many partitions messages are spread, whatever number the topic has by now.
    spread: Option<u32>,
    /// Acknowledged and not yet told.
    acknowledged: Acknowledged,
    refused: Acknowledged,
    stats: KafkaSinkStats,
    /// A header of all messages, beside those of the envelope.
    header: Option<(&'static str, &'static str)>,
}

impl KafkaSink {
    /// Checks the configuration and begins to look for the brokers, without waiting for them.
    pub fn open(config: KafkaSinkConfig) -> Result<KafkaSink, KafkaSinkError> {
        let wrong = |key, value: &dyn ToString, wanted| KafkaSinkError::Config {
            key,
            value: value.to_string(),
            wanted,
        };
        if config.topic.is_empty() {
            return Err(wrong("topic", &"``", "the name of a topic"));
        }
        if !(1..=10_000).contains(&config.partitions) {
            return Err(wrong("partitions", &config.partitions, "from 1 to 10000"));
        }
        if !(10_000..=512 * 1024 * 1024).contains(&config.max_message_bytes) {
            return Err(wrong("max_message_bytes", &config.max_message_bytes, "from 10000 to 536870912"));
        }
        // what makes a message get there once and in order is not to be had by halves
        for (key, wanted) in [("enable.idempotence", "true"), ("acks", "all"), ("message.timeout.ms", "0")] {
            if let Some(value) = config.settings.get(key).filter(|value| *value != wanted) {
                return Err(KafkaSinkError::Setting { key, value: value.clone(), wanted });
            }
        }
        let client = config.client();
        let reports = Arc::new(Reports::default());
        // tells of unknown settings and impossible values, without a broker
        Producer::from_config_and_context(&client, Context(Arc::clone(&reports)))?;
        let mut sink = KafkaSink {
            config,
            client,
            state: State::Waiting { until: Instant::now() },
            reports,
            kept: BTreeMap::new(),
            kept_bytes: 0,
            unsent: VecDeque::new(),
            next: 0,
            error: "not connected yet".to_owned(),
            too_large: 0,
            spread: None,
            acknowledged: Acknowledged::default(),
            refused: Acknowledged::default(),
            stats: KafkaSinkStats::default(),
            header: None,
        };
        sink.look();
        Ok(sink)
    }

    /// Gives all messages this header too.
    pub fn with_header(mut self, name: &'static str, value: &'static str) -> KafkaSink {
        self.header = Some((name, value));
        self
    }

    /// What the sink has done.
    pub fn stats(&self) -> KafkaSinkStats {
        self.stats
    }

    /// What is wrong with the brokers, as last known.
    pub fn error(&self) -> String {
        if self.error.is_empty() { self.reports.last_error.lock().clone() } else { self.error.clone() }
    }

    /// Spreads messages over so many partitions, as long as the topic has them: a message that may be in the topic already
    /// must get to the same partition again.
    pub fn spread_over(&mut self, partitions: Option<u32>) {
        self.spread = partitions;
        if let (Some(wanted), State::Ready { partitions, .. }) = (self.spread, &mut self.state) {
            *partitions = wanted.min(self.stats.partitions);
        }
    }

    /// The envelopes of what was appended and is not acknowledged, in order.
    pub fn unacknowledged(&self) -> impl Iterator<Item = &Envelope> {
        self.kept.values().map(|message| &message.envelope)
    }

    /// Looks at the topic on a thread of its own: that may take long.
    fn look(&mut self) {
        let (config, client) = (self.config.clone(), self.client.clone());
        let (sender, receiver) = bounded(1);
        let spawned = std::thread::Builder::new().name("weir-kafka-topic".to_owned()).spawn(move || {
            // nobody waits any more where the sink is gone
            sender.send(topic::ensure(&config, &client)).ok();
        });
        match spawned {
            Ok(_) => self.state = State::Looking(receiver),
            Err(error) => self.wait(&format!("cannot start a thread: {error}")),
        }
    }

    fn wait(&mut self, error: &str) {
        if error != self.error {
            tracing::warn!(topic = self.config.topic, "{error}");
            error.clone_into(&mut self.error);
        }
        self.state = State::Waiting { until: Instant::now() + RETRY_AFTER };
    }

    /// Moves on as far as that is possible without waiting.
    fn drive(&mut self) {
        match &self.state {
            State::Waiting { until } if Instant::now() >= *until => self.look(),
            State::Waiting { .. } => {}
            State::Looking(receiver) => match receiver.try_recv() {
                Ok(Ok(partitions)) => self.connect(partitions),
                Ok(Err(error)) => self.wait(&error),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.wait("the look at the topic has ended unexpectedly"),
            },
            State::Ready { .. } => self.send_unsent(),
        }
    }

    fn connect(&mut self, partitions: u32) {
        self.reports.fatal.store(false, Ordering::Relaxed);
        match Producer::from_config_and_context(&self.client, Context(Arc::clone(&self.reports))) {
            Ok(producer) => {
                self.stats.partitions = partitions;
                let partitions = self.spread.map_or(partitions, |spread| spread.min(partitions));
                self.state = State::Ready { producer, partitions };
                self.unsent = self.kept.keys().copied().collect();
                self.stats.sent_again += self.unsent.len() as u64;
                self.error.clear();
                self.send_unsent();
            }
            Err(error) => self.wait(&error.to_string()),
        }
    }

    /// Gives the producer what it does not have yet, in order.
    fn send_unsent(&mut self) {
        while let (Some(&number), State::Ready { producer, partitions }) = (self.unsent.front(), &self.state)
        {
            let Some(message) = self.kept.get(&number) else {
                self.unsent.pop_front();
                continue;
            };
            match send(producer, &self.config.topic, *partitions, self.header, number, message) {
                Ok(()) => {
                    self.unsent.pop_front();
                }
                Err(RDKafkaErrorCode::QueueFull) => return,
                Err(code) if is_refusal(code) => {
                    self.unsent.pop_front();
                    self.give_up(number, code);
                }
                Err(code) => return self.rebuild(&format!("the producer takes nothing: {code}")),
            }
        }
    }

    fn forget(&mut self, number: usize) -> Option<Message> {
        let message = self.kept.remove(&number)?;
        self.kept_bytes -= message.body.len();
        Some(message)
    }

    fn give_up(&mut self, number: usize, code: RDKafkaErrorCode) {
        if let Some(message) = self.forget(number) {
            tracing::error!(
                topic = self.config.topic,
                bytes = message.body.len(),
                "the broker refuses a message: {code}"
            );
            self.stats.refused += 1;
            self.refused += Acknowledged::of(&message);
        }
    }

    /// The producer is of no use any more: what it had goes to a new one.
    fn rebuild(&mut self, why: &str) {
        self.stats.rebuilt += 1;
        tracing::warn!(topic = self.config.topic, kept = self.kept.len(), "making a new producer: {why}");
        why.clone_into(&mut self.error);
        // dropping the old one gives up what it had; what it delivered in time is reported and not sent again
        self.state = State::Waiting { until: Instant::now() + RETRY_AFTER };
        self.take_reports();
    }

    /// Serves the producer for `look` and takes its delivery reports.
    fn collect(&mut self, look: Duration) {
        if let State::Ready { producer, .. } = &self.state {
            producer.poll(look);
        } else {
            std::thread::sleep(look);
        }
        let failure = self.take_reports();
        if matches!(self.state, State::Ready { .. }) {
            if self.reports.fatal.load(Ordering::Relaxed) {
                let reason = self.reports.last_error.lock().clone();
                self.rebuild(&format!("fatal: {reason}"));
            } else if let Some(code) = failure {
                self.rebuild(&format!("messages were not delivered: {code}"));
            }
        }
    }

    /// Settles what was delivered or refused; what failed otherwise stays, and the last failure is returned.
    fn take_reports(&mut self) -> Option<RDKafkaErrorCode> {
        let (mut failure, mut largest) = (None, None);
        let reports = std::mem::take(&mut *self.reports.delivered.lock());
        for (number, result) in reports {
            match result {
                Ok(()) => {
                    self.too_large = 0;
                    if let Some(message) = self.forget(number) {
                        self.acknowledged += Acknowledged::of(&message);
                    }
                }
                Err(code) if is_refusal(code) => self.give_up(number, code),
                Err(code) => {
                    failure = Some(code);
                    if code == RDKafkaErrorCode::MessageSizeTooLarge {
                        let bytes = self.kept.get(&number).map(|message| message.body.len());
                        largest = largest.max(bytes.map(|bytes| (bytes, number)));
                    }
                }
            }
        }
        if let Some((_, number)) = largest {
            // the whole batch comes back; the new look at the topic says what to do, unless it may not look
            self.too_large += 1;
            if self.too_large >= TOO_LARGE_TIMES {
                self.give_up(number, RDKafkaErrorCode::MessageSizeTooLarge);
            }
        }
        failure
    }

    fn run(&mut self, timeout: Duration, until: impl Fn(&KafkaSink) -> bool) -> Acknowledged {
        let deadline = Instant::now() + timeout;
        loop {
            self.drive();
            self.collect(Duration::ZERO);
            let left = deadline.saturating_duration_since(Instant::now());
            if until(self) || left.is_zero() {
                return std::mem::take(&mut self.acknowledged);
            }
            self.collect(left.min(LOOK));
        }
    }
}

/// Whether the broker will never take the message, whoever sends it.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidMessage, InvalidMessageSize, InvalidRecord};
    matches!(code, InvalidMessageSize | InvalidMessage | InvalidRecord)
}

fn send(
    producer: &Producer,
    topic: &str,
    partitions: u32,
    header: Option<(&str, &str)>,
    number: usize,
    message: &Message,
) -> Result<(), RDKafkaErrorCode> {
    let envelope = message.envelope.headers();
    let all = envelope.iter().map(|(key, value)| (*key, value.as_str())).chain(header);
    let headers = all.fold(OwnedHeaders::new_with_capacity(envelope.len() + 1), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    });
    let partition = message.key % u64::from(partitions.max(1));
    let key = message.key.to_be_bytes();
    let payload = message.body.contiguous();
    let record = BaseRecord::with_opaque_to(topic, number)
        .partition(i32::try_from(partition).unwrap_or(0))
        .key(&key)
        .payload(&payload[..])
        .headers(headers);
    producer
        .send(record)
        .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown))
}

impl Sink for KafkaSink {
    fn append(&mut self, message: &Message) -> Result<(), SinkError> {
        let (bytes, most) = (message.body.len(), self.config.max_message_bytes);
        if bytes > most {
            return Err(SinkError::Refused(format!(
                "its body has {bytes} bytes, topic `{}` is given {most} at most (log.kafka.max_message_bytes): \
                 close batches earlier",
                self.config.topic
            )));
        }
        self.drive();
        if !matches!(self.state, State::Ready { .. }) {
            return Err(SinkError::Busy(format!("topic `{}`: {}", self.config.topic, self.error)));
        }
        if self.kept_bytes + bytes > self.config.queue_bytes && !self.kept.is_empty() {
            let reason = self.reports.last_error.lock().clone();
            return Err(SinkError::Busy(format!(
                "{} messages wait for topic `{}`. {reason}",
                self.kept.len(),
                self.config.topic
            )));
        }
        let number = self.next;
        self.next += 1;
        self.kept_bytes += bytes;
        self.kept.insert(number, message.clone());
        self.unsent.push_back(number);
        self.send_unsent();
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Acknowledged {
        // a sink that takes nothing is waited for, so that whoever offers a message again does not spin
        self.run(timeout, |sink| {
            sink.acknowledged.messages > 0
                || sink.kept.is_empty() && matches!(sink.state, State::Ready { .. })
        })
    }

    fn flush(&mut self, timeout: Duration) -> Acknowledged {
        self.run(timeout, |sink| sink.kept.is_empty())
    }

    fn in_flight(&self) -> u64 {
        self.kept.len() as u64
    }

    fn refused(&mut self) -> Acknowledged {
        std::mem::take(&mut self.refused)
    }
}
