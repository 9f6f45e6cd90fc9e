//! The embedded log: segment files on the local disk, written by one process, read by another.
//!
//! The format is [`weir_schemas::segment`]. A message is acknowledged when it is durable as [`Fsync`] says, and only then
//! does the `head` mark of its partition let readers see it: what a reader has seen, a power loss cannot take back, and
//! its offset is never given to another message. Killed at any moment, the log opens again with every whole frame; the
//! torn tail is cut. Write errors and a full disk make the sink busy, never wrong; it recovers by itself.

mod covered;
mod partition;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use partition::{Partition, WriteError};
use serde::{Deserialize, Serialize};
use weir_schemas::envelope::Compression;
use weir_schemas::segment::{LOCK_FILE, partition_number};

use super::{Acknowledged, JournalMark, LogStats, Message, Sink, SinkError};
use crate::receive::journal::InLog;

/// How often retention is looked after.
const RETENTION_EVERY: Duration = Duration::from_secs(5);
/// Messages of this size that are not yet durable force an fsync, whatever the interval: they are held in memory.
const PENDING_BYTES: u64 = 32 * 1024 * 1024;
/// Pause after an error before the disk is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// When appended messages are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// As soon as the writer has nothing more to append at once. A power loss takes nothing that was acknowledged.
    Batch,
    /// Every `fsync_interval_ms`. A power loss takes nothing that was acknowledged; it may take that much more that was
    /// received and not yet acknowledged.
    #[default]
    Interval,
    /// When the operating system likes. A power loss may take what was acknowledged and even stored: the store then
    /// keeps it, and the log goes on with offsets that were never used.
    Never,
}

/// `[log.embedded]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddedConfig {
    /// Where the log lies; absent: `log` in the data directory.
    pub directory: Option<PathBuf>,
    /// Partitions that are written. Others that exist are kept and read.
    pub partitions: u32,
    /// A new segment file begins when this one would grow larger.
    pub segment_bytes: u64,
    /// Segments that the store contains are deleted, oldest first, while the log is larger than this.
    pub max_bytes: u64,
    /// Segments that the store contains are deleted when their newest message is older than this.
    pub max_age_s: u64,
    /// Segments that the store does not contain yet are deleted too, and counted as lost, beyond this.
    pub max_uncommitted_bytes: u64,
    /// When messages are made durable: `batch` (as soon as the writer has nothing more to append at once), `interval`
    /// (every `fsync_interval_ms`), or `never` (when the operating system likes; a power loss may take stored rows).
    pub fsync: Fsync,
    /// How often, where `fsync` is `interval`.
    pub fsync_interval_ms: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        EmbeddedConfig {
            directory: None,
            partitions: 1,
            segment_bytes: 128 * 1024 * 1024,
            max_bytes: 10 * 1024 * 1024 * 1024,
            max_age_s: 24 * 60 * 60,
            max_uncommitted_bytes: 20 * 1024 * 1024 * 1024,
            fsync: Fsync::Interval,
            fsync_interval_ms: 200,
        }
    }
}

impl EmbeddedConfig {
    /// Where the log lies, given the data directory.
    pub fn directory(&self, data_dir: &Path) -> PathBuf {
        self.directory.clone().unwrap_or_else(|| data_dir.join("log"))
    }
}

/// Why the log cannot be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error("the log in `{0}` has a writer already: only one `weir collect` may write it")]
    Locked(PathBuf),
    #[error("cannot {what} `{path}`: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("`{path}` holds frames of format version {version}: they were written by a newer weir")]
    Newer { path: PathBuf, version: u8 },
    #[error("log.embedded.{key} is {value}; it must be at least {least}")]
    Config { key: &'static str, value: u64, least: u64 },
}

/// What the log has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EmbeddedStats {
    /// Size of all segments.
    pub bytes: u64,
    /// Segment files.
    pub segments: u64,
    pub fsyncs: u64,
    /// Time spent in them, µs.
    pub fsync_us: u64,
    /// Writes and fsyncs that failed.
    pub errors: u64,
    /// Bytes of torn frames cut when the log was opened.
    pub torn_bytes: u64,
    /// Damaged places found when the log was opened.
    pub damaged: u64,
    /// Segments deleted that the store contained.
    pub deleted_segments: u64,
    /// Offsets deleted that the store did not contain.
    pub lost_offsets: u64,
}

/// The writer of the embedded log.
#[derive(Debug)]
pub struct EmbeddedSink {
    directory: PathBuf,
    config: EmbeddedConfig,
    /// Held for life: one writer.
    _lock: File,
    /// By number; the first `config.partitions` of them are written.
    partitions: Vec<Partition>,
    stats: EmbeddedStats,
    retention_at: Instant,
    retry_at: Option<Instant>,
    /// The error that the retry is for.
    last_error: String,
}

impl EmbeddedSink {
    /// Opens the log in `directory`, creating it where it is absent and recovering it where it was left in a hurry.
    pub fn open(directory: &Path, config: EmbeddedConfig) -> Result<EmbeddedSink, EmbeddedError> {
        for (key, value, least) in
            [("partitions", u64::from(config.partitions), 1), ("segment_bytes", config.segment_bytes, 4096)]
        {
            if value < least {
                return Err(EmbeddedError::Config { key, value, least });
            }
        }
        fs::create_dir_all(directory).map_err(io_error("create the directory", directory))?;
        let lock_path = directory.join(LOCK_FILE);
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(io_error("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(EmbeddedError::Locked(directory.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
        }
        let mut numbers: Vec<u32> = (0..config.partitions).collect();
        let entries = fs::read_dir(directory).map_err(io_error("list", directory))?;
        let existing = entries.flatten().filter_map(|entry| partition_number(entry.file_name().to_str()?));
        numbers.extend(existing);
        numbers.sort_unstable();
        numbers.dedup();
        let mut stats = EmbeddedStats::default();
        let durable = config.fsync != Fsync::Never;
        let partitions: Result<Vec<_>, _> = numbers
            .into_iter()
            .map(|number| Partition::open(directory, number, durable, now_us(), &mut stats))
            .collect();
        let partitions = partitions?;
        sync_directory(directory).map_err(io_error("fsync the directory", directory))?;
        let mut sink = EmbeddedSink {
            directory: directory.to_owned(),
            config,
            _lock: lock,
            partitions,
            stats,
            retention_at: Instant::now(),
            retry_at: None,
            last_error: String::new(),
        };
        sink.retain();
        Ok(sink)
    }

    /// Where the log lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the log has done.
    pub fn stats(&self) -> EmbeddedStats {
        self.stats
    }

    fn failed(&mut self, error: &WriteError) -> SinkError {
        self.stats.errors += 1;
        let text = error.to_string();
        if text != self.last_error {
            tracing::error!(log = %self.directory.display(), "{text}");
        }
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
        self.last_error.clone_from(&text);
        SinkError::Busy(text)
    }

    /// Makes everything appended durable and visible. Errors are remembered; what failed stays pending.
    fn sync(&mut self, due: impl Fn(&Partition) -> bool) {
        for at in 0..self.partitions.len() {
            let partition = &mut self.partitions[at];
            if partition.pending() == 0 || !due(partition) {
                continue;
            }
            match partition.sync(&mut self.stats) {
                Ok(()) => {
                    if !self.last_error.is_empty() {
                        tracing::info!(log = %self.directory.display(), "the log can be written again");
                        self.last_error.clear();
                    }
                }
                Err(error) => {
                    self.failed(&error);
                    return;
                }
            }
        }
    }

    fn sync_due(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        let interval = self.interval();
        self.sync(|partition| partition.unsynced_for() >= interval);
    }

    fn interval(&self) -> Duration {
        match self.config.fsync {
            Fsync::Interval => Duration::from_millis(self.config.fsync_interval_ms),
            Fsync::Batch | Fsync::Never => Duration::ZERO,
        }
    }

    /// How long the oldest pending message still waits for its fsync.
    fn until_due(&self) -> Duration {
        let interval = self.interval();
        let pending = self.partitions.iter().filter(|partition| partition.pending() > 0);
        pending.map(|partition| interval.saturating_sub(partition.unsynced_for())).min().unwrap_or_default()
    }

    /// Deletes what may go.
    fn retain(&mut self) {
        self.retention_at = Instant::now() + RETENTION_EVERY;
        let oldest =
            now_us() - i64::try_from(self.config.max_age_s.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        for partition in &mut self.partitions {
            partition.read_committed();
            while partition
                .oldest()
                .is_some_and(|oldest_segment| oldest_segment.committed && oldest_segment.newest_us < oldest)
            {
                partition.delete_oldest(&mut self.stats);
            }
        }
        while self.size() > self.config.max_bytes && self.delete_oldest(true) {}
        while self.size() > self.config.max_uncommitted_bytes && self.delete_oldest(false) {}
        self.stats.bytes = self.size();
        self.stats.segments = self.partitions.iter().map(Partition::segments).sum();
    }

    fn take_acknowledged(&mut self) -> Acknowledged {
        let mut sum = Acknowledged::default();
        self.partitions.iter_mut().map(Partition::take_acknowledged).for_each(|part| sum += part);
        sum
    }

    fn size(&self) -> u64 {
        self.partitions.iter().map(Partition::bytes).sum()
    }

    /// Deletes the oldest segment of all partitions; of those that the store contains, or of all.
    fn delete_oldest(&mut self, committed: bool) -> bool {
        let oldest = self
            .partitions
            .iter_mut()
            .filter_map(|partition| {
                let oldest = partition.oldest()?;
                (oldest.committed || !committed).then_some((oldest.newest_us, partition))
            })
            .min_by_key(|(newest_us, _)| *newest_us);
        oldest.is_some_and(|(_, partition)| partition.delete_oldest(&mut self.stats))
    }

    /// Makes room on a full disk; whether that did something.
    fn make_room(&mut self) -> bool {
        for partition in &mut self.partitions {
            partition.read_committed();
        }
        self.delete_oldest(true)
    }
}

impl Sink for EmbeddedSink {
    fn append(&mut self, message: &Message) -> Result<(), SinkError> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(SinkError::Busy(self.last_error.clone()));
        }
        let number = message.key % u64::from(self.config.partitions);
        let at = usize::try_from(number).unwrap_or(0);
        loop {
            let partition = &mut self.partitions[at];
            match partition.append(message, now_us(), self.config.segment_bytes, &mut self.stats) {
                Ok(()) => break,
                Err(WriteError::TooLarge(error)) => return Err(SinkError::Refused(error.to_string())),
                Err(error) if error.is_full() && self.make_room() => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        if self.config.fsync == Fsync::Never || self.partitions[at].pending_bytes() >= PENDING_BYTES {
            self.sync(|_| true);
        }
        Ok(())
    }

    fn poll(&mut self, timeout: Duration) -> Acknowledged {
        let deadline = Instant::now() + timeout;
        loop {
            self.sync_due();
            let now = Instant::now();
            if now >= self.retention_at {
                self.retain();
            }
            let acknowledged = self.take_acknowledged();
            // a disk that takes nothing is waited for, so that whoever offers a message again does not spin
            let idle = self.in_flight() == 0 && self.retry_at.is_none();
            if acknowledged.messages > 0 || idle || now >= deadline {
                return acknowledged;
            }
            let wait = self.retry_at.map_or_else(|| self.until_due(), |at| at.saturating_duration_since(now));
            std::thread::sleep(wait.max(Duration::from_millis(1)).min(deadline - now));
        }
    }

    fn flush(&mut self, timeout: Duration) -> Acknowledged {
        let deadline = Instant::now() + timeout;
        loop {
            self.sync(|_| true);
            if self.in_flight() == 0 || Instant::now() >= deadline {
                return self.take_acknowledged();
            }
            std::thread::sleep(RETRY_AFTER.min(deadline.saturating_duration_since(Instant::now())));
        }
    }

    /// A local disk takes bytes for less than compressing them costs, but for what hardly changes.
    fn compression(&self) -> Compression {
        Compression::Runs
    }

    /// A message has a schema to be written, a hundred pieces of memory to be handed about: with twice as many rows in it
    /// that is a tenth less for each. Beyond, the columns are out of the caches when they are written to the file.
    fn message_bytes(&self) -> usize {
        2_000_000
    }

    fn in_log(&mut self, journals: &[JournalMark]) -> Option<Vec<InLog>> {
        let mut found = vec![InLog::default(); journals.len()];
        for partition in &self.partitions {
            if let Err(error) = covered::find(partition, self.config.partitions, journals, &mut found) {
                tracing::warn!(log = %self.directory.display(), %error, "cannot read how far the log is");
                return None;
            }
        }
        Some(found)
    }

    fn in_flight(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.pending() as u64).sum()
    }

    fn stats(&self) -> Option<LogStats> {
        Some(self.stats)
    }
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> EmbeddedError + 'a {
    move |source| EmbeddedError::Io { what, path: path.to_owned(), source }
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
