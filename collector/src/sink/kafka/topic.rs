//! The topic: looked at, and made where it is absent.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

use super::{KafkaSinkConfig, OVERHEAD};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Number of the topic's partitions; the text says what to do where there is none to be had.
pub(super) fn ensure(config: &KafkaSinkConfig, client: &ClientConfig) -> Result<u32, String> {
    let servers = &config.bootstrap_servers;
    let admin: AdminClient<DefaultClientContext> =
        client.create().map_err(|error| format!("cannot make a client for {servers}: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    if let Some(partitions) = partitions(&admin, config)? {
        runtime.block_on(check_size(&admin, config))?;
        return Ok(partitions);
    }
    if !config.create_topic {
        return Err(format!(
            "topic `{}` is not there: create it, or set log.kafka.create_topic to true",
            config.topic
        ));
    }
    runtime.block_on(create(&admin, config))?;
    // the brokers learn of it one after the other
    for _ in 0..50 {
        if let Some(partitions) = partitions(&admin, config)? {
            return Ok(partitions);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(format!("topic `{}` was created and is still not there", config.topic))
}

fn partitions(
    admin: &AdminClient<DefaultClientContext>,
    config: &KafkaSinkConfig,
) -> Result<Option<u32>, String> {
    let metadata = admin.inner().fetch_metadata(Some(&config.topic), TIMEOUT);
    let metadata =
        metadata.map_err(|error| format!("no answer from {}: {error}", config.bootstrap_servers))?;
    let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == config.topic) else {
        return Ok(None);
    };
    match topic.error().map(RDKafkaErrorCode::from) {
        None | Some(RDKafkaErrorCode::NoError) => {
            Ok(u32::try_from(topic.partitions().len()).ok().filter(|partitions| *partitions > 0))
        }
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::LeaderNotAvailable) => Ok(None),
        Some(error) => Err(format!("topic `{}`: {error}", config.topic)),
    }
}

async fn create(admin: &AdminClient<DefaultClientContext>, config: &KafkaSinkConfig) -> Result<(), String> {
    let wrong = |text: String| format!("cannot create topic `{}`: {text}", config.topic);
    let partitions = i32::try_from(config.partitions).map_err(|error| wrong(error.to_string()))?;
    let replication = match config.replication {
        0 => -1,
        stated => i32::try_from(stated).map_err(|error| wrong(error.to_string()))?,
    };
    let retention = config.retention_hours.saturating_mul(3_600_000).min(i64::MAX.unsigned_abs()).to_string();
    let largest = (config.max_message_bytes + OVERHEAD).max(1_048_588).to_string();
    let topic = NewTopic::new(&config.topic, partitions, TopicReplication::Fixed(replication))
        .set("retention.ms", &retention)
        .set("max.message.bytes", &largest)
        .set("compression.type", "producer");
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    let results = admin.create_topics([&topic], &options).await.map_err(|error| wrong(error.to_string()))?;
    for result in results {
        match result {
            Ok(_) => tracing::info!(topic = config.topic, partitions, "topic created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(wrong(code.to_string())),
        }
    }
    Ok(())
}

/// A topic made by someone else must take the messages that are made here.
async fn check_size(
    admin: &AdminClient<DefaultClientContext>,
    config: &KafkaSinkConfig,
) -> Result<(), String> {
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
    let resource = ResourceSpecifier::Topic(&config.topic);
    let Ok(answers) = admin.describe_configs([&resource], &options).await else { return Ok(()) };
    let most = answers
        .into_iter()
        .flatten()
        .find_map(|answer| answer.get("max.message.bytes")?.value.as_ref()?.parse::<usize>().ok());
    match most {
        Some(most) if most < config.max_message_bytes + OVERHEAD => Err(format!(
            "topic `{}` takes messages of {most} bytes, weir sends up to {} with their headers: raise the topic's \
             max.message.bytes or lower log.kafka.max_message_bytes",
            config.topic,
            config.max_message_bytes + OVERHEAD
        )),
        // one who may not look at the settings may still write
        _ => Ok(()),
    }
}
