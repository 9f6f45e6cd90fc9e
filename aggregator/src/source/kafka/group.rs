//! Membership of a consumer group: the aggregators of a group share the partitions.
//!
//! The group decides who reads what and nothing else. Where reading begins comes from the store, as ever, and so a
//! change of assignment does one thing only: the round ends, what is not committed is forgotten, the store is read again,
//! and reading goes on where it stands. Whoever still works on a partition that is another's by now loses its next commit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::{KafkaSource, KafkaSourceConfig, Share};
use crate::source::{Positions, SourceError};

/// What the group has given to this member.
#[derive(Debug, Default)]
pub(super) struct Assignment(Mutex<Assigned>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) partitions: BTreeSet<u32>,
    /// Grows with each change.
    pub(super) generation: u64,
}

impl Assignment {
    pub(super) fn get(&self) -> Assigned {
        self.0.lock().clone()
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.lock().generation
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<u32>)) {
        let mut assigned = self.0.lock();
        change(&mut assigned.partitions);
        assigned.generation += 1;
    }
}

/// What librdkafka calls back.
#[derive(Debug)]
pub(super) struct Context {
    /// None: partitions are assigned by hand.
    pub(super) assignment: Option<Arc<Assignment>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{text}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ConsumerContext for Context {
    /// Takes what is given and hands back what is asked for. What is new stands still until the reader has placed it where
    /// the store is.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Context>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let Some(assignment) = &self.assignment else { return };
        let numbers: Vec<u32> =
            list.elements().iter().filter_map(|part| u32::try_from(part.partition()).ok()).collect();
        let result = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            list.set_all_offsets(Offset::Beginning)
                .and_then(|()| consumer.incremental_assign(list))
                .and_then(|()| consumer.pause(list))
        } else {
            consumer.incremental_unassign(list)
        };
        if let Err(error) = result {
            tracing::error!(%error, partitions = ?numbers, "the group's assignment cannot be followed");
        }
        let is_given = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        assignment.change(|partitions| match is_given {
            true => partitions.extend(&numbers),
            false => partitions.retain(|partition| !numbers.contains(partition)),
        });
        let what = if is_given { "given" } else { "taken" };
        tracing::info!(partitions = ?numbers, all = ?assignment.get().partitions, "the group has {what} partitions");
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!("the consumer group was not told how far the store is: {error}");
        }
    }
}

pub(super) type KafkaConsumer = BaseConsumer<Context>;

/// A membership that lasts from one reading of the log to the next.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) consumer: Arc<KafkaConsumer>,
    pub(super) assignment: Arc<Assignment>,
    /// The group's protocol is the one before KIP-848; also set by the reader, where it learns that it has to be.
    pub(super) classic: Arc<AtomicBool>,
}

/// A topic to be read, again and again from where the store is.
pub struct KafkaLog {
    config: KafkaSourceConfig,
    member: Mutex<Option<(bool, Member)>>,
    classic: Arc<AtomicBool>,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("config", &self.config).finish_non_exhaustive()
    }
}

impl KafkaLog {
    pub fn new(config: KafkaSourceConfig) -> KafkaLog {
        KafkaLog { config, member: Mutex::default(), classic: Arc::default() }
    }

    /// Reads on from these positions: all partitions, or those that the group gives.
    pub fn open(&self, positions: Positions) -> Result<KafkaSource, SourceError> {
        if self.config.share == Share::All {
            return KafkaSource::open(self.config.clone(), positions);
        }
        let classic = self.classic.load(Ordering::Relaxed);
        let mut member = self.member.lock();
        if member.as_ref().is_none_or(|(was_classic, _)| *was_classic != classic) {
            // leaves before it joins anew
            *member = None;
            *member = Some((classic, self.join(classic)?));
        }
        let Some((_, member)) = member.as_ref() else {
            return Err(SourceError::Unavailable("no member of the group".to_owned()));
        };
        Ok(KafkaSource::of_member(self.config.clone(), member.clone(), positions))
    }

    /// Reads what the group gives to others. For a member, which [`KafkaLog::open`] makes.
    pub fn others(&self, positions: Positions) -> Result<KafkaSource, SourceError> {
        match self.member.lock().as_ref() {
            Some((_, member)) => KafkaSource::of_others(self.config.clone(), member, positions),
            None => Err(SourceError::Unavailable("not a member of the group yet".to_owned())),
        }
    }

    fn join(&self, classic: bool) -> Result<Member, SourceError> {
        let assignment = Arc::new(Assignment::default());
        let context = Context { assignment: Some(Arc::clone(&assignment)) };
        let fatal = |error: KafkaError| SourceError::Fatal(format!("log.kafka: {error}"));
        let consumer: KafkaConsumer = self.client(classic).create_with_context(context).map_err(fatal)?;
        consumer.subscribe(&[&self.config.topic]).map_err(fatal)?;
        let protocol = if classic { "classic" } else { "consumer" };
        tracing::info!(group = self.config.group, protocol, "joining the group");
        Ok(Member { consumer: Arc::new(consumer), assignment, classic: Arc::clone(&self.classic) })
    }

    fn client(&self, classic: bool) -> ClientConfig {
        let mut client = self.config.client();
        if !classic {
            // what only the classic protocol has is the brokers' to say here
            for key in ["session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"] {
                client.remove(key);
            }
        }
        if classic {
            // settings that the operator made win, as everywhere
            let defaults = [
                ("group.protocol", "classic"),
                ("partition.assignment.strategy", "cooperative-sticky"),
                ("session.timeout.ms", "10000"),
            ];
            for (key, value) in defaults {
                if !self.config.settings.contains_key(key) {
                    client.set(key, value);
                }
            }
        } else if !self.config.settings.contains_key("group.protocol") {
            client.set("group.protocol", "consumer");
        }
        client
    }
}
