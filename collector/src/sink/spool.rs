//! The spool: on their way to Kafka, messages lie on the local disk until the brokers have them.
//!
//! It is an embedded log (`embedded`) whose reader sends to Kafka instead of storing, and it is always written, not only
//! while the brokers are slow or gone: so there is one path, tested with every message; the receive path never waits for
//! a broker; and a crash of the collector loses no more than with the embedded log. What a message was in the spool is its
//! [`Origin`](weir_schemas::envelope::Origin): sent twice, it is counted once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weir_schemas::envelope::Compression;

use super::embedded::{EmbeddedConfig, EmbeddedError, EmbeddedSink, Fsync};
use super::{Acknowledged, JournalMark, LogStats, Message, Sink, SinkError};
use crate::receive::journal::InLog;

/// Segments that Kafka has are kept up to this many: a collector that takes up after a crash looks there.
const KEPT_SEGMENTS: u64 = 4;
/// The file with the number of the spool.
const NUMBER_FILE: &str = "number";
/// The file with the number of partitions of the topic that messages are spread over.
const SPREAD_FILE: &str = "spread";

/// `[log.spool]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// Where messages lie until Kafka has them; absent: `spool` in the data directory.
    pub directory: Option<PathBuf>,
    /// A new file begins when this one would grow larger.
    pub segment_bytes: u64,
    /// How large it may grow while the brokers are gone. Beyond, the oldest messages are deleted, and counted as lost.
    pub max_bytes: u64,
    /// How often messages are made durable; then they go to Kafka.
    pub fsync_interval_ms: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        SpoolConfig {
            directory: None,
            segment_bytes: 64 * 1024 * 1024,
            max_bytes: 20 * 1024 * 1024 * 1024,
            fsync_interval_ms: 100,
        }
    }
}

impl SpoolConfig {
    /// Where the spool lies, given the data directory.
    pub fn directory(&self, data_dir: &Path) -> PathBuf {
        self.directory.clone().unwrap_or_else(|| data_dir.join("spool"))
    }

    fn log(&self, shards: usize) -> EmbeddedConfig {
        EmbeddedConfig {
            directory: None,
            partitions: u32::try_from(shards).unwrap_or(1).max(1),
            segment_bytes: self.segment_bytes,
            max_bytes: self.segment_bytes.saturating_mul(KEPT_SEGMENTS),
            max_age_s: 24 * 60 * 60,
            max_uncommitted_bytes: self.max_bytes,
            // a message that a power loss takes back must not have been sent: its offset would be given away again
            fsync: Fsync::Interval,
            fsync_interval_ms: self.fsync_interval_ms,
        }
    }
}

/// The writer of the spool.
#[derive(Debug)]
pub struct SpoolSink {
    log: EmbeddedSink,
    message_bytes: usize,
}

impl SpoolSink {
    /// Opens the spool in `directory` for the messages of so many shards, of at most `message_bytes` each.
    pub fn open(
        directory: &Path,
        config: &SpoolConfig,
        shards: usize,
        message_bytes: usize,
    ) -> Result<SpoolSink, EmbeddedError> {
        Ok(SpoolSink { log: EmbeddedSink::open(directory, config.log(shards))?, message_bytes })
    }
}

impl Sink for SpoolSink {
    fn append(&mut self, message: &Message) -> Result<(), SinkError> {
        self.log.append(message)
    }

    fn poll(&mut self, timeout: Duration) -> Acknowledged {
        self.log.poll(timeout)
    }

    fn flush(&mut self, timeout: Duration) -> Acknowledged {
        self.log.flush(timeout)
    }

    /// What pays on the network.
    fn compression(&self) -> Compression {
        Compression::Lz4
    }

    fn message_bytes(&self) -> usize {
        self.message_bytes
    }

    fn in_flight(&self) -> u64 {
        self.log.in_flight()
    }

    fn in_log(&mut self, journals: &[JournalMark]) -> Option<Vec<InLog>> {
        self.log.in_log(journals)
    }

    fn refused(&mut self) -> Acknowledged {
        self.log.refused()
    }

    fn stats(&self) -> Option<LogStats> {
        Some(self.log.stats())
    }
}

/// The number of the spool in `directory`, given to it now where it has none. Durable before it is told: messages that
/// were sent under it are recognised by it.
pub fn number(directory: &Path) -> io::Result<u64> {
    match read(directory, NUMBER_FILE, 16)? {
        Some(number) => Ok(number),
        None => {
            let number = uuid::Uuid::new_v4().as_u64_pair().0;
            write(directory, NUMBER_FILE, &format!("{number:016x}"))?;
            Ok(number)
        }
    }
}

/// Over how many partitions the messages of the spool are spread, where that was noted.
pub fn spread(directory: &Path) -> io::Result<Option<u32>> {
    let noted = read(directory, SPREAD_FILE, 10)?;
    Ok(noted.and_then(|noted| u32::try_from(noted).ok()).filter(|partitions| *partitions > 0))
}

/// Notes over how many partitions messages are spread from now on. Only to be changed while Kafka has all that was sent:
/// a message that is sent again must get to the partition that it was sent to before.
pub fn note_spread(directory: &Path, partitions: u32) -> io::Result<()> {
    write(directory, SPREAD_FILE, &partitions.to_string())
}

fn read(directory: &Path, name: &str, radix: u32) -> io::Result<Option<u64>> {
    let path = directory.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), radix).map(Some).map_err(|error| {
            io::Error::other(format!(
                "`{}` holds `{}`, which is no number: {error}",
                path.display(),
                text.trim()
            ))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file as a whole or not at all, durably.
fn write(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let path = directory.join(format!(".{name}"));
    let mut file = File::create(&path)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&path, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// What has become of the messages of the spool, since the collector was started.
#[derive(Debug, Clone, Default)]
pub struct Forwarded {
    /// What the brokers have acknowledged.
    pub acknowledged: Acknowledged,
    /// What they refused for good.
    pub refused: Acknowledged,
    /// Sent, and not yet acknowledged.
    pub unacknowledged_messages: u64,
    /// Offsets from the first message that the brokers have not acknowledged to the end of the spool.
    pub waiting: u64,
    /// When the first of those was received, µs since 1970 UTC; None where there is none, or none was read yet.
    pub oldest_us: Option<i64>,
    /// Messages that the spool lost before they were sent: deleted for want of room.
    pub lost_messages: u64,
    /// Damaged places of the spool.
    pub damaged: u64,
    /// Times that a producer was replaced, and messages given to a new one.
    pub rebuilt: u64,
    pub sent_again: u64,
    /// Why the brokers acknowledge nothing, and since when; None while they do, or nothing waits.
    pub blocked: Option<(String, Instant)>,
}

/// [`Forwarded`], as the forwarder last told.
#[derive(Debug, Default)]
pub struct Forwarding(Mutex<Forwarded>);

impl Forwarding {
    pub fn tell(&self, change: impl FnOnce(&mut Forwarded)) {
        change(&mut self.0.lock());
    }

    pub fn get(&self) -> Forwarded {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spool_keeps_its_number_and_its_spread() {
        let folder = tempfile::tempdir().unwrap();
        let first = number(folder.path()).unwrap();
        assert_eq!(number(folder.path()).unwrap(), first);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(number(other.path()).unwrap(), first);
        assert_eq!(spread(folder.path()).unwrap(), None);
        note_spread(folder.path(), 4).unwrap();
        note_spread(folder.path(), 12).unwrap();
        assert_eq!(spread(folder.path()).unwrap(), Some(12));
        // better no start than another number
        fs::write(folder.path().join(NUMBER_FILE), "what").unwrap();
        assert!(number(folder.path()).unwrap_err().to_string().contains("`what`"));
    }
}
