//! Against a real Apache Kafka, which these tests start themselves (`deploy/kafka/kafka`): they need Java 17, and Maven the
//! first time. `cargo test --release -p weir-aggregator -- --ignored kafka`

use std::path::Path;
use std::process::Command;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tempfile::TempDir;
use weir_collector::sink::kafka::{KafkaSink, KafkaSinkConfig};
use weir_collector::sink::{Acknowledged, Message as SinkMessage, Sink, SinkError};
use weir_schemas::Table;
use weir_schemas::tables::SCHEMA_VERSION;

use super::*;

const LONG: Duration = Duration::from_secs(60);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kafka/kafka");

/// A broker of one's own.
struct Broker {
    directory: TempDir,
    bootstrap: String,
}

impl Broker {
    fn start() -> Broker {
        let directory = tempfile::tempdir().unwrap();
        let bootstrap = script("start", directory.path());
        Broker { directory, bootstrap }
    }

    fn kill(&self) {
        script("kill", self.directory.path());
    }

    fn start_again(&self) {
        assert_eq!(script("start", self.directory.path()), self.bootstrap);
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().unwrap()
    }

    fn sink(&self, topic: &str) -> KafkaSink {
        KafkaSink::open(self.sink_config(topic)).unwrap()
    }

    fn sink_config(&self, topic: &str) -> KafkaSinkConfig {
        KafkaSinkConfig {
            bootstrap_servers: self.bootstrap.clone(),
            topic: topic.to_owned(),
            partitions: 3,
            ..KafkaSinkConfig::default()
        }
    }

    fn source_config(&self, topic: &str) -> KafkaSourceConfig {
        KafkaSourceConfig {
            bootstrap_servers: self.bootstrap.clone(),
            topic: topic.to_owned(),
            ..KafkaSourceConfig::default()
        }
    }

    fn source(&self, topic: &str, positions: Positions) -> KafkaSource {
        KafkaSource::open(self.source_config(topic), positions).unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        Command::new(SCRIPT).arg("kill").arg(self.directory.path()).status().ok();
    }
}

fn script(command: &str, directory: &Path) -> String {
    let output = Command::new(SCRIPT).arg(command).arg(directory).output().unwrap();
    assert!(output.status.success(), "kafka {command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn message(number: u64, key: u64, bytes: usize) -> SinkMessage {
    let envelope = Envelope {
        schema_version: SCHEMA_VERSION,
        table: Table::Flows,
        collector: "c1".to_owned(),
        boot: 1,
        batch_seq: number,
        rows: 10,
        min_time_us: 0,
        max_time_us: 0,
        covered: None,
        origin: None,
    };
    SinkMessage { envelope, body: vec![number.to_le_bytes()[0]; bytes].into(), key, low: None }
}

/// Offers a message until it is taken.
fn append(sink: &mut KafkaSink, message: &SinkMessage) {
    let deadline = Instant::now() + LONG;
    loop {
        match sink.append(message) {
            Ok(()) => return,
            Err(SinkError::Busy(text)) => assert!(Instant::now() < deadline, "still busy: {text}"),
            Err(error) => panic!("{error}"),
        }
        sink.poll(Duration::from_millis(20));
    }
}

fn append_all(sink: &mut KafkaSink, numbers: std::ops::Range<u64>, keys: u64) {
    numbers.clone().for_each(|number| append(sink, &message(number, number % keys, 300)));
    sink.flush(LONG);
    assert_eq!(sink.in_flight(), 0);
}

/// Reads until `count` messages are there, and looks whether more come.
async fn read(source: &mut KafkaSource, count: usize, max_bytes: usize) -> Vec<LogMessage> {
    let (mut all, mut quiet) = (Vec::new(), 0);
    let deadline = Instant::now() + LONG;
    while quiet < 3 {
        match source.poll(max_bytes).await {
            Ok(messages) => {
                quiet = if messages.is_empty() && all.len() >= count { quiet + 1 } else { 0 };
                let bytes: usize = messages.iter().map(size).sum();
                assert!(bytes <= max_bytes || messages.len() == 1);
                all.extend(messages);
            }
            Err(SourceError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < deadline, "{} of {count} messages came", all.len());
    }
    all
}

fn number_of(message: &LogMessage) -> u64 {
    match &message.payload {
        Payload::Batch { envelope, body } => {
            assert!(body.iter().all(|byte| *byte == envelope.batch_seq.to_le_bytes()[0]));
            envelope.batch_seq
        }
        other => panic!("{other:?}"),
    }
}

/// Every number once, and those of a key in order and in one partition.
fn assert_complete(messages: &[LogMessage], numbers: std::ops::Range<u64>, keys: u64) {
    let mut seen: Vec<u64> = messages.iter().map(number_of).collect();
    for key in 0..keys {
        let of_key: Vec<_> = messages.iter().filter(|message| number_of(message) % keys == key).collect();
        assert!(of_key.iter().all(|message| message.partition == of_key[0].partition), "key {key}");
        assert!(of_key.is_sorted_by_key(|message| number_of(message)), "key {key}");
    }
    seen.sort_unstable();
    assert_eq!(seen, numbers.collect::<Vec<_>>());
}

fn positions_after(messages: &[LogMessage]) -> Positions {
    messages.iter().map(|message| (message.partition, message.offset + 1)).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts Apache Kafka: needs Java 17 and Maven"]
async fn kafka_from_sink_to_source() {
    let broker = Broker::start();
    every_message_comes_once_and_keys_keep_their_order(&broker).await;
    what_is_no_batch_is_handed_on_and_what_is_newer_stops(&broker).await;
    what_retention_deleted_is_a_gap(&broker).await;
    a_topic_set_back_stops_the_reader(&broker).await;
    an_absent_topic_is_waited_for(&broker).await;
    messages_too_large_are_refused(&broker).await;
    a_topic_deleted_and_created_again_gets_a_new_producer(&broker).await;
}

async fn every_message_comes_once_and_keys_keep_their_order(broker: &Broker) {
    let mut sink = broker.sink("order");
    append_all(&mut sink, 0..120, 7);
    assert_eq!(sink.stats().partitions, 3);
    for max_bytes in [1, 700, 1 << 20] {
        let mut source = broker.source("order", Positions::new());
        let all = read(&mut source, 120, max_bytes).await;
        assert_complete(&all, 0..120, 7);
        let end = source.end();
        assert_eq!(end, positions_after(&all));
        assert_eq!(end.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    }
    // on from where the store is, in a partition that it knows and from the beginning in one that it does not
    let mut source = broker.source("order", Positions::new());
    let all = read(&mut source, 120, 1 << 20).await;
    let middle = positions_after(&all[..60]);
    let known: Positions = middle.into_iter().filter(|(partition, _)| *partition != 1).collect();
    let rest: Vec<_> = all
        .iter()
        .filter(|message| known.get(&message.partition).is_none_or(|position| message.offset >= *position))
        .map(number_of)
        .collect();
    let mut source = broker.source("order", known.clone());
    let mut again: Vec<_> = read(&mut source, rest.len(), 1 << 20).await.iter().map(number_of).collect();
    again.sort_unstable();
    let mut wanted = rest;
    wanted.sort_unstable();
    assert_eq!(again, wanted);
    // a configured partition alone
    let only = KafkaSourceConfig { partitions: BTreeSet::from([2]), ..broker.source_config("order") };
    let mut source = KafkaSource::open(only, Positions::new()).unwrap();
    let of_two = all.iter().filter(|message| message.partition == 2).count();
    assert!(read(&mut source, of_two, 1 << 20).await.iter().all(|message| message.partition == 2));
    // the group is told
    source.committed(&known).await.unwrap();
    let deadline = Instant::now() + LONG;
    loop {
        let client = broker.source_config("order").client();
        let asking: rdkafka::consumer::BaseConsumer = client.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range("order", 0, 2);
        let told = asking.committed_offsets(list, ANSWER).map(|list| {
            let offset = |partition: u32| Some(list.find_partition("order", number(partition)?)?.offset());
            known.iter().all(|(partition, position)| offset(*partition) == Some(kafka_offset(*position)))
        });
        if told == Ok(true) {
            break;
        }
        assert!(Instant::now() < deadline, "the group is not told: {told:?}");
        source.poll(1).await.unwrap();
    }
}

async fn what_is_no_batch_is_handed_on_and_what_is_newer_stops(broker: &Broker) {
    let one = KafkaSinkConfig { partitions: 1, ..broker.sink_config("foreign") };
    let mut sink = KafkaSink::open(one).unwrap();
    append_all(&mut sink, 0..1, 1);
    let other: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &broker.bootstrap).create().unwrap();
    other.send(BaseRecord::<(), str>::to("foreign").partition(0).payload("{\"flow\": 1}")).unwrap();
    other.send(BaseRecord::<str, str>::to("foreign").partition(0).key("tombstone")).unwrap();
    other.flush(LONG).unwrap();
    append_all(&mut sink, 1..2, 1);
    let mut newer = message(2, 0, 10);
    newer.envelope.schema_version += 1;
    append(&mut sink, &newer);
    sink.flush(LONG);
    let mut source = broker.source("foreign", Positions::new());
    let (mut all, mut stopped) = (Vec::new(), 0);
    while stopped < 2 {
        match source.poll(1 << 20).await {
            Ok(messages) => all.extend(messages),
            Err(SourceError::Fatal(text)) => {
                assert!(text.contains("offset 4") && text.contains("upgrade"), "{text}");
                stopped += 1;
            }
            Err(SourceError::Unavailable(_)) => {}
            Err(error @ SourceError::Moved) => panic!("{error}"),
        }
    }
    assert_eq!(all.len(), 4, "{all:?}");
    assert_eq!((number_of(&all[0]), number_of(&all[3])), (0, 1));
    assert!(
        matches!(&all[1].payload, Payload::Foreign { reason, bytes } if bytes == "{\"flow\": 1}" && reason.contains("weir-schema"))
    );
    assert!(
        matches!(&all[2].payload, Payload::Foreign { reason, bytes } if bytes.is_empty() && reason.contains("body"))
    );
}

async fn what_retention_deleted_is_a_gap(broker: &Broker) {
    let mut sink = broker.sink("gap");
    append_all(&mut sink, 0..30, 3);
    let mut early = broker.source("gap", Positions::from([(0, 0), (1, 0), (2, 4)]));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("gap", 1, Offset::Offset(6)).unwrap();
    list.add_partition_offset("gap", 2, Offset::Offset(4)).unwrap();
    broker.admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
    let all = read(&mut early, 10 + 1 + 4 + 6, 1 << 20).await;
    let gaps: Vec<_> = all
        .iter()
        .filter_map(|message| match message.payload {
            Payload::Gap { from } => Some((message.partition, from, message.offset)),
            _ => None,
        })
        .collect();
    assert_eq!(gaps, [(1, 0, 5)]);
    for (partition, first, count) in [(0, 0, 10), (1, 6, 4), (2, 4, 6)] {
        let offsets: Vec<_> = all
            .iter()
            .filter(|message| {
                message.partition == partition && matches!(message.payload, Payload::Batch { .. })
            })
            .map(|message| message.offset)
            .collect();
        assert_eq!(offsets, (first..first + count).collect::<Vec<_>>(), "partition {partition}");
    }
    // one that begins anew misses nothing
    let all = read(&mut broker.source("gap", Positions::new()), 20, 1 << 20).await;
    assert_eq!(all.iter().map(number_of).count(), 20);
}

async fn a_topic_set_back_stops_the_reader(broker: &Broker) {
    let mut source = broker.source("gap", Positions::from([(0, 11)]));
    let deadline = Instant::now() + LONG;
    loop {
        match source.poll(1 << 20).await {
            Err(SourceError::Fatal(text)) => {
                assert!(text.contains("partition 0") && text.contains("new name"), "{text}");
                return;
            }
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
}

async fn an_absent_topic_is_waited_for(broker: &Broker) {
    let hands_off = KafkaSinkConfig { create_topic: false, ..broker.sink_config("late") };
    let mut sink = KafkaSink::open(hands_off).unwrap();
    let mut source = broker.source("late", Positions::new());
    let deadline = Instant::now() + LONG;
    loop {
        let Err(SinkError::Busy(text)) = sink.append(&message(0, 0, 10)) else { panic!("it takes messages") };
        if text.contains("create_topic") {
            break;
        }
        assert!(Instant::now() < deadline, "{text}");
        sink.poll(Duration::from_millis(50));
    }
    assert!(matches!(source.poll(1).await, Err(SourceError::Unavailable(text)) if text.contains("late")));
    append_all(&mut broker.sink("late"), 0..5, 2);
    append_all(&mut sink, 5..10, 2);
    assert_complete(&read(&mut source, 10, 1 << 20).await, 0..10, 2);
}

async fn messages_too_large_are_refused(broker: &Broker) {
    let mut sink = broker.sink("large");
    append(&mut sink, &message(0, 0, 900_000));
    let error = sink.append(&message(1, 0, 900_001)).unwrap_err();
    assert!(matches!(&error, SinkError::Refused(text) if text.contains("max_message_bytes")), "{error}");
    sink.flush(LONG);
    // the topic's limit is lowered: nothing is lost, and the sink says what to do
    limit(broker, "50000").await;
    append(&mut sink, &message(1, 0, 100_000));
    append(&mut sink, &message(2, 0, 1000));
    let deadline = Instant::now() + LONG;
    loop {
        assert_eq!(sink.poll(Duration::from_millis(50)), Acknowledged::default());
        match sink.append(&message(3, 0, 10)) {
            Err(SinkError::Busy(text)) if text.contains("max.message.bytes") => break,
            Err(SinkError::Busy(text)) => assert!(Instant::now() < deadline, "{text}"),
            other => panic!("{other:?}"),
        }
    }
    limit(broker, "1000000").await;
    assert_eq!(sink.flush(LONG).messages, 2);
    assert_eq!((sink.refused().messages, sink.in_flight()), (0, 0));
    append_all(&mut sink, 3..5, 1);
    assert_complete(&read(&mut broker.source("large", Positions::new()), 5, 1 << 20).await, 0..5, 1);
}

async fn limit(broker: &Broker, bytes: &str) {
    let config = AlterConfig::new(ResourceSpecifier::Topic("large")).set("max.message.bytes", bytes);
    let altered = broker.admin().alter_configs([&config], &AdminOptions::new()).await.unwrap();
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
}

async fn a_topic_deleted_and_created_again_gets_a_new_producer(broker: &Broker) {
    let mut sink = broker.sink("again");
    append_all(&mut sink, 0..20, 3);
    broker.admin().delete_topics(&["again"], &AdminOptions::new()).await.unwrap();
    for number in 20..60 {
        append(&mut sink, &message(number, number % 3, 300));
        sink.poll(Duration::from_millis(5));
    }
    sink.flush(LONG);
    assert_eq!(sink.in_flight(), 0, "{:?}", sink.stats());
    assert!(sink.stats().rebuilt > 0, "{:?}", sink.stats());
    let all = read(&mut broker.source("again", Positions::new()), 1, 1 << 20).await;
    let seen: BTreeSet<u64> = all.iter().map(number_of).collect();
    assert!(seen.contains(&59) && seen.iter().all(|number| *number >= 20), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts Apache Kafka: needs Java 17 and Maven"]
async fn kafka_killed_and_started_again_loses_and_repeats_nothing() {
    const KEYS: u64 = 5;
    const KILLS: usize = 3;
    let broker = Arc::new(Broker::start());
    append_all(&mut broker.sink("kills"), 0..1, KEYS);
    broker.kill();
    // the sink begins while the broker is away
    let mut sink = broker.sink("kills");
    assert!(matches!(sink.append(&message(1, 1, 10)), Err(SinkError::Busy(_))));
    let killing = Arc::clone(&broker);
    let killer = std::thread::spawn(move || {
        killing.start_again();
        for _ in 0..KILLS {
            std::thread::sleep(Duration::from_secs(3));
            killing.kill();
            std::thread::sleep(Duration::from_secs(1));
            killing.start_again();
        }
        std::thread::sleep(Duration::from_secs(3));
    });
    // the stream goes on until the kills are over
    let writer = std::thread::spawn(move || {
        let (mut number, mut acknowledged, mut waited) = (1, 1, 0);
        while !killer.is_finished() {
            waited += append_counting(&mut sink, &message(number, number % KEYS, 40_000), &mut acknowledged);
            acknowledged += sink.poll(Duration::ZERO).messages;
            std::thread::sleep(Duration::from_millis(5));
            number += 1;
        }
        killer.join().unwrap();
        acknowledged += sink.flush(LONG).messages;
        (number, waited, acknowledged, sink.in_flight(), sink.stats())
    });
    let mut source = broker.source("kills", Positions::new());
    let (mut all, mut failures) = (Vec::new(), 0);
    while !writer.is_finished() {
        match source.poll(1 << 20).await {
            Ok(messages) => all.extend(messages),
            Err(SourceError::Unavailable(_)) => failures += 1,
            Err(error) => panic!("{error}"),
        }
    }
    let (messages, waited, acknowledged, in_flight, stats) = writer.join().unwrap();
    all.extend(read(&mut source, messages as usize - all.len(), 1 << 20).await);
    assert_eq!((acknowledged, in_flight, stats.rebuilt), (messages, 0, 0), "{stats:?}");
    assert_complete(&all, 0..messages, KEYS);
    assert!(failures >= KILLS, "the broker was killed and the reader did not notice");
    assert!(waited < 10_000, "offering a message to a sink that is busy spins: {waited} times");
    // what stands in the topic, read anew: nothing twice
    let again = read(&mut broker.source("kills", Positions::new()), messages as usize, 1 << 20).await;
    assert_complete(&again, 0..messages, KEYS);
    assert_eq!(positions_after(&again).values().sum::<u64>(), messages);
    eprintln!("{messages} messages through {KILLS} kills; busy {waited} times, {failures} failed polls");
}

/// Offers a message until it is taken; how often it was not.
fn append_counting(sink: &mut KafkaSink, message: &SinkMessage, acknowledged: &mut u64) -> u64 {
    let (deadline, mut refused) = (Instant::now() + LONG, 0);
    while let Err(error) = sink.append(message) {
        assert!(matches!(error, SinkError::Busy(_)) && Instant::now() < deadline, "{error}");
        *acknowledged += sink.poll(Duration::from_millis(20)).messages;
        refused += 1;
    }
    refused
}
