//! Reads the log from Apache Kafka.
//!
//! Partitions are read at the positions that the store gave: all of them or those configured, or those that a consumer
//! group gives to this aggregator (`group`). The group is told how far the store is, so that lag tools see it; that is
//! never read back.
//!
//! Offsets that jump are no gap on Kafka (compaction, transaction markers). A gap is what the broker says is out of its
//! range: then reading goes on at the earliest offset that is left.

mod group;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use weir_schemas::{Envelope, EnvelopeError};

pub use self::group::KafkaLog;
use self::group::{Assignment, Context, KafkaConsumer, Member};
use super::on_thread::OnThread;
use super::{LogMessage, Payload, Positions, Source, SourceError};

/// How long a poll waits for messages.
const WAIT: Duration = Duration::from_millis(200);
/// How long the brokers may take to say how far a partition goes, while messages wait.
const LOOK: Duration = Duration::from_secs(1);
/// How long the brokers may take to answer a question.
const ANSWER: Duration = Duration::from_secs(5);
/// How often the ends of the partitions are asked for.
const ENDS_EVERY: Duration = Duration::from_secs(5);
/// How often new partitions are looked for.
const LIST_EVERY: Duration = Duration::from_secs(30);

/// `[log.kafka]`, the part that reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSourceConfig {
    /// Brokers to ask first, `host:port`, separated by commas.
    pub bootstrap_servers: String,
    pub topic: String,
    /// The consumer group that is told how far the store is.
    pub group: String,
    /// Who reads the other partitions.
    pub share: Share,
    /// Partitions to read; empty: all. Not for a group.
    pub partitions: BTreeSet<u32>,
    /// How much librdkafka fetches ahead.
    pub prefetch_bytes: usize,
    /// Further settings of librdkafka, such as `security.protocol`; they win over those made here.
    pub settings: BTreeMap<String, String>,
}

/// How aggregators share the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// One aggregator reads all of it. A second one on the same store takes turns with it: neither loses nor repeats
    /// anything, and neither gets far.
    #[default]
    All,
    /// The aggregators of the consumer group share its partitions.
    Group,
}

impl Default for KafkaSourceConfig {
    fn default() -> Self {
        KafkaSourceConfig {
            bootstrap_servers: "127.0.0.1:9092".to_owned(),
            topic: "weir".to_owned(),
            group: "weir".to_owned(),
            share: Share::All,
            partitions: BTreeSet::new(),
            prefetch_bytes: 32 * 1024 * 1024,
            settings: BTreeMap::new(),
        }
    }
}

impl KafkaSourceConfig {
    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", "weir-aggregate")
            .set("group.id", &self.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // by default, what is out of range would be skipped without a word
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", (self.prefetch_bytes / 1024).max(1024).to_string())
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning);
        for (key, value) in &self.settings {
            client.set(key, value);
        }
        client
    }
}

/// The reader of a topic.
pub struct KafkaSource {
    reader: OnThread<Reader, Result<Vec<LogMessage>, SourceError>>,
    consumer: Arc<KafkaConsumer>,
    group: Option<Member>,
    topic: String,
    end: Positions,
}

impl std::fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSource")
            .field("topic", &self.topic)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl KafkaSource {
    /// Checks the configuration; the brokers are asked with the first poll.
    pub fn open(config: KafkaSourceConfig, positions: Positions) -> Result<KafkaSource, SourceError> {
        Ok(KafkaSource::of(Reader::by_hand(config, positions)?))
    }

    /// How far the group was told that its reader is, where a reader that has no store goes on, and how many partitions
    /// there are. Waits for the brokers.
    pub fn told(config: &KafkaSourceConfig) -> Result<(Positions, usize), SourceError> {
        let mut reader = Reader::by_hand(config.clone(), Positions::new())?;
        reader.list()?;
        let told =
            reader.consumer.assignment().and_then(|list| reader.consumer.committed_offsets(list, ANSWER));
        let told = told.map_err(|error| reader.unavailable(&error))?;
        let elements = told.elements();
        let position = elements.iter().filter_map(|part| match part.offset() {
            Offset::Offset(offset) => {
                Some((u32::try_from(part.partition()).ok()?, u64::try_from(offset).ok()?))
            }
            _ => None,
        });
        Ok((position.collect(), reader.assigned.len()))
    }

    /// Reads what the group has given to the member.
    fn of_member(config: KafkaSourceConfig, member: Member, positions: Positions) -> KafkaSource {
        let mut reader = Reader::new(Arc::clone(&member.consumer), config, positions);
        let assigned = member.assignment.get();
        reader.assigned = assigned.partitions;
        reader.watched = Some((Arc::clone(&member.assignment), assigned.generation));
        reader.group = Some(Joined { member, placed: false });
        KafkaSource::of(reader)
    }

    /// Reads what the group has not given to the member.
    fn of_others(
        config: KafkaSourceConfig,
        member: &Member,
        positions: Positions,
    ) -> Result<KafkaSource, SourceError> {
        let mut reader = Reader::by_hand(config, positions)?;
        let assigned = member.assignment.get();
        reader.except = assigned.partitions;
        reader.watched = Some((Arc::clone(&member.assignment), assigned.generation));
        Ok(KafkaSource::of(reader))
    }

    fn of(reader: Reader) -> KafkaSource {
        let (consumer, topic) = (Arc::clone(&reader.consumer), reader.config.topic.clone());
        let group = reader.group.as_ref().map(|joined| joined.member.clone());
        KafkaSource { reader: OnThread::new(reader), consumer, group, topic, end: Positions::new() }
    }
}

#[async_trait::async_trait]
impl Source for KafkaSource {
    async fn poll(&mut self, max_bytes: usize) -> Result<Vec<LogMessage>, SourceError> {
        let (reader, messages) = self.reader.run(move |reader| reader.poll(max_bytes)).await?;
        self.end = reader.ends.clone();
        messages
    }

    async fn committed(&mut self, positions: &Positions) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::new();
        // what is another's by now is another's to tell
        let ours = self.group.as_ref().map(|member| member.assignment.get().partitions);
        let ours = |partition: &u32| ours.as_ref().is_none_or(|ours| ours.contains(partition));
        for (&partition, &offset) in positions.iter().filter(|(partition, _)| ours(partition)) {
            let added = number(partition).and_then(|partition| {
                list.add_partition_offset(&self.topic, partition, kafka_offset(offset)).ok()
            });
            added.ok_or_else(|| {
                SourceError::Fatal(format!("partition {partition} has no offset {offset} on Kafka"))
            })?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        self.consumer
            .commit(&list, CommitMode::Async)
            .map_err(|error| SourceError::Unavailable(format!("the group cannot be told: {error}")))
    }

    fn end(&self) -> Positions {
        self.end.clone()
    }
}

fn number(partition: u32) -> Option<i32> {
    i32::try_from(partition).ok()
}

fn kafka_offset(offset: u64) -> Offset {
    Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX))
}

/// The part that waits for brokers, on a thread of its own.
struct Reader {
    consumer: Arc<KafkaConsumer>,
    /// Asks how far partitions go, by a connection of its own: on the consumer's, an answer would wait for the fetch that
    /// waits for messages. Made with the first question.
    asker: Option<KafkaConsumer>,
    config: KafkaSourceConfig,
    /// One past what was handed on, or where the store is.
    positions: Positions,
    assigned: BTreeSet<u32>,
    listed: Option<Instant>,
    ends: Positions,
    ends_asked: Option<Instant>,
    /// Read and not handed on: it did not fit into the budget any more.
    ready: VecDeque<LogMessage>,
    group: Option<Joined>,
    /// Partitions that are not read.
    except: BTreeSet<u32>,
    /// The assignment that this reader was made for, and its generation.
    watched: Option<(Arc<Assignment>, u64)>,
}

/// What is read as a member of a group.
struct Joined {
    member: Member,
    /// Its partitions are read from where the store is.
    placed: bool,
}

impl Reader {
    /// Reads partitions that no group gives.
    fn by_hand(config: KafkaSourceConfig, positions: Positions) -> Result<Reader, SourceError> {
        let consumer = config
            .client()
            .create_with_context(Context { assignment: None })
            .map_err(|error| SourceError::Fatal(format!("log.kafka: {error}")))?;
        Ok(Reader::new(Arc::new(consumer), config, positions))
    }

    fn new(consumer: Arc<KafkaConsumer>, config: KafkaSourceConfig, positions: Positions) -> Reader {
        Reader {
            consumer,
            asker: None,
            config,
            positions,
            assigned: BTreeSet::new(),
            listed: None,
            ends: BTreeMap::new(),
            ends_asked: None,
            ready: VecDeque::new(),
            group: None,
            except: BTreeSet::new(),
            watched: None,
        }
    }

    fn poll(&mut self, max_bytes: usize) -> Result<Vec<LogMessage>, SourceError> {
        self.still_ours()?;
        match &self.group {
            Some(joined) if !joined.placed => self.reassign()?,
            Some(_) => {}
            None if self.listed.is_none_or(|at| at.elapsed() >= LIST_EVERY) => self.list()?,
            None => {}
        }
        if self.ends_asked.is_none_or(|at| at.elapsed() >= ENDS_EVERY) {
            self.ask_ends();
        }
        let (mut messages, mut budget) = (Vec::new(), max_bytes);
        let deadline = Instant::now() + WAIT;
        let mut problem = None;
        loop {
            while let Some(message) = self.ready.pop_front() {
                let bytes = size(&message);
                if bytes > budget && !messages.is_empty() {
                    self.ready.push_front(message);
                    return Ok(messages);
                }
                budget = budget.saturating_sub(bytes);
                messages.push(message);
            }
            let wait = if messages.is_empty() {
                deadline.saturating_duration_since(Instant::now())
            } else {
                Duration::ZERO
            };
            match self.next(wait) {
                Ok(true) => {}
                Ok(false) if messages.is_empty() && Instant::now() < deadline => {}
                Ok(false) => break,
                Err(error) => {
                    problem = Some(error);
                    break;
                }
            }
        }
        // the callbacks of the group come with a poll: what was read then may be another's
        self.still_ours()?;
        match problem {
            // what was read is handed on first; a problem that lasts comes again
            Some(error) if messages.is_empty() => Err(error),
            _ => Ok(messages),
        }
    }

    /// [`SourceError::Moved`] where the group has given other partitions since this reader was made.
    fn still_ours(&self) -> Result<(), SourceError> {
        match &self.watched {
            Some((assignment, generation)) if assignment.generation() != *generation => {
                Err(SourceError::Moved)
            }
            _ => Ok(()),
        }
    }

    /// The brokers do not know the group's protocol: it is joined by the one before.
    fn fall_back(&self) -> Option<SourceError> {
        let joined = self.group.as_ref()?;
        let was_classic = joined.member.classic.swap(true, Ordering::Relaxed);
        (!was_classic).then(|| {
            tracing::warn!(
                "the brokers do not know the consumer group protocol of KIP-848: taking the classic one"
            );
            SourceError::Moved
        })
    }

    /// Puts what comes next into `ready`; whether there was something.
    fn next(&mut self, wait: Duration) -> Result<bool, SourceError> {
        let consumer = Arc::clone(&self.consumer);
        match consumer.poll(wait) {
            None => Ok(false),
            Some(Ok(message)) => {
                let partition = u32::try_from(message.partition()).unwrap_or(0);
                let offset = u64::try_from(message.offset()).unwrap_or(0);
                // fetched before the partition was assigned anew at another position
                if !self.assigned.contains(&partition)
                    || self.positions.get(&partition).is_some_and(|next| offset < *next)
                {
                    return Ok(true);
                }
                let payload = match self.payload(&message) {
                    Ok(payload) => payload,
                    Err(error) => {
                        // it must not be passed over: it comes again with the next poll
                        self.reassign()?;
                        return Err(error);
                    }
                };
                self.positions.insert(partition, offset + 1);
                let end = self.ends.entry(partition).or_default();
                *end = (*end).max(offset + 1);
                self.ready.push_back(LogMessage { partition, offset, payload });
                Ok(true)
            }
            Some(Err(
                KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::UnsupportedFeature)
                | KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::UnsupportedVersion)
                | KafkaError::MessageConsumption(RDKafkaErrorCode::UnsupportedFeature)
                | KafkaError::MessageConsumption(RDKafkaErrorCode::UnsupportedVersion),
            )) if self.group.is_some() => Err(self.fall_back().unwrap_or_else(|| {
                SourceError::Fatal(format!(
                    "topic `{}`: the brokers know no consumer groups",
                    self.config.topic
                ))
            })),
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                Err(SourceError::Fatal(format!("topic `{}`: {code}", self.config.topic)))
            }
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                    self.find_gaps()?;
                    Ok(true)
                }
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownPartition
                    | RDKafkaErrorCode::UnknownTopic,
                ) => {
                    self.listed = None;
                    Err(self.unavailable(&error))
                }
                _ => Err(self.unavailable(&error)),
            },
        }
    }

    fn unavailable(&self, error: &KafkaError) -> SourceError {
        let KafkaSourceConfig { topic, bootstrap_servers, .. } = &self.config;
        SourceError::Unavailable(format!("topic `{topic}` at {bootstrap_servers}: {error}"))
    }

    fn payload(&self, message: &BorrowedMessage<'_>) -> Result<Payload, SourceError> {
        let Some(body) = message.payload() else {
            return Ok(Payload::Foreign { reason: "it has no body".to_owned(), bytes: Bytes::new() });
        };
        let header = |name: &str| {
            let headers = message.headers()?;
            let found = headers.iter().find(|header| header.key == name)?;
            std::str::from_utf8(found.value?).ok()
        };
        match Envelope::from_headers(header) {
            Ok(envelope) => Ok(Payload::Batch { envelope, body: Bytes::copy_from_slice(body) }),
            Err(error @ EnvelopeError::Newer(_)) => Err(SourceError::Fatal(format!(
                "topic `{}` partition {} offset {}: {error}",
                self.config.topic,
                message.partition(),
                message.offset()
            ))),
            Err(error) => {
                Ok(Payload::Foreign { reason: error.to_string(), bytes: Bytes::copy_from_slice(body) })
            }
        }
    }

    /// Finds the partitions and begins to read those that are new.
    fn list(&mut self) -> Result<(), SourceError> {
        let metadata = self.consumer.fetch_metadata(Some(&self.config.topic), ANSWER);
        let metadata = metadata.map_err(|error| self.unavailable(&error))?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == self.config.topic);
        let there: BTreeSet<u32> = topic
            .filter(|topic| {
                topic.error().is_none_or(|error| RDKafkaErrorCode::from(error) == RDKafkaErrorCode::NoError)
            })
            .map(|topic| {
                topic.partitions().iter().filter_map(|partition| u32::try_from(partition.id()).ok()).collect()
            })
            .unwrap_or_default();
        let wanted: BTreeSet<u32> =
            if self.config.partitions.is_empty() { there.clone() } else { self.config.partitions.clone() };
        if there.is_empty() || !wanted.is_subset(&there) {
            return Err(SourceError::Unavailable(format!(
                "topic `{}` at {} has the partitions {there:?}, wanted are {wanted:?}",
                self.config.topic, self.config.bootstrap_servers
            )));
        }
        self.assign(wanted.difference(&self.except).copied().collect())?;
        self.listed = Some(Instant::now());
        Ok(())
    }

    /// Reads these partitions from now on, each from its position.
    fn assign(&mut self, partitions: BTreeSet<u32>) -> Result<(), SourceError> {
        if partitions != self.assigned {
            self.assigned = partitions;
            self.reassign()?;
        }
        Ok(())
    }

    /// Reads what is assigned from its positions on.
    fn reassign(&mut self) -> Result<(), SourceError> {
        let mut list = TopicPartitionList::new();
        for &partition in &self.assigned {
            let offset =
                self.positions.get(&partition).map_or(Offset::Beginning, |offset| kafka_offset(*offset));
            let added = number(partition)
                .map(|partition| list.add_partition_offset(&self.config.topic, partition, offset));
            match added {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(self.unavailable(&error)),
                None => {
                    return Err(SourceError::Fatal(format!("there is no partition {partition} on Kafka")));
                }
            }
        }
        let Some(joined) = &mut self.group else {
            return self.consumer.assign(&list).map_err(|error| self.unavailable(&error));
        };
        if list.count() > 0 {
            let sought = self.consumer.seek_partitions(list, ANSWER).and_then(|sought| {
                sought.elements().iter().try_for_each(|part| part.error())?;
                self.consumer.resume(&sought)
            });
            if let Err(error) = sought {
                // a partition that was just given cannot be sought yet
                joined.placed = false;
                std::thread::sleep(Duration::from_millis(20));
                return Err(self.unavailable(&error));
            }
        }
        joined.placed = true;
        Ok(())
    }

    /// The broker does not have the offset that was asked for in some partition: what is gone is told, and reading goes on
    /// at what is left.
    fn find_gaps(&mut self) -> Result<(), SourceError> {
        for partition in self.assigned.clone() {
            let Some(&position) = self.positions.get(&partition) else { continue };
            let (low, high) = self.watermarks(partition, ANSWER).map_err(|error| self.unavailable(&error))?;
            if position > high {
                return Err(SourceError::Fatal(format!(
                    "the store contains partition {partition} of topic `{}` up to offset {position}, but it ends at {high}: \
                     the topic was deleted and created again, or set back; give weir a topic with a new name",
                    self.config.topic
                )));
            }
            if position < low {
                tracing::error!(
                    topic = self.config.topic,
                    partition,
                    from = position,
                    to = low,
                    "messages are gone from the log"
                );
                self.ready.push_back(LogMessage {
                    partition,
                    offset: low - 1,
                    payload: Payload::Gap { from: position },
                });
                self.positions.insert(partition, low);
            }
        }
        self.reassign()
    }

    fn watermarks(&mut self, partition: u32, timeout: Duration) -> KafkaResult<(u64, u64)> {
        let partition = number(partition).unwrap_or(-1);
        let asker = match self.asker.take() {
            Some(asker) => asker,
            None => self.config.client().create_with_context(Context { assignment: None })?,
        };
        let (low, high) =
            self.asker.insert(asker).fetch_watermarks(&self.config.topic, partition, timeout)?;
        Ok((u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0)))
    }

    /// Asks how far the partitions go, for lag metrics: who does not answer is asked again later.
    fn ask_ends(&mut self) {
        self.ends_asked = Some(Instant::now());
        for partition in self.assigned.clone() {
            match self.watermarks(partition, LOOK) {
                Ok((_, high)) => {
                    self.ends.insert(partition, high);
                }
                Err(error) => {
                    return tracing::debug!(%error, partition, "the end of a partition is not known");
                }
            }
        }
    }
}

fn size(message: &LogMessage) -> usize {
    match &message.payload {
        Payload::Batch { body, .. } => body.len(),
        Payload::Foreign { bytes, .. } => bytes.len(),
        Payload::Gap { .. } => 0,
    }
}
