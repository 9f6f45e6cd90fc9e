//! One partition of the embedded log: its segments, its `head` mark and what is not yet durable.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use weir_schemas::segment::{
    COMMITTED_FILE, Defect, FrameParts, HEAD_FILE, MARK_BYTES, MARK_SLOTS, Mark, Scanner, Step, TooLarge,
    encode_frame, segment_first, segment_name,
};

use super::{EmbeddedError, EmbeddedStats, io_error, sync_directory};
use crate::sink::{Acknowledged, Body, Message};

/// How far offsets jump where the clock does not carry them over what may have been given away.
const JUMP: u64 = 1 << 20;

/// How much of the sealed segments stays in the page cache: what a reader that is not far behind will read. What is further
/// back it reads from the disk. So the log does not take the memory that the tables' files could have, and its own pages are
/// used again while they are warm: on a virtual machine a page that the host has to give first costs ten times as much.
const CACHED_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 256 * 1024 * 1024 };

/// Why something is not in the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the message is too large: {0}")]
    TooLarge(TooLarge),
    #[error("cannot {what} `{path}`: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

impl WriteError {
    pub(super) fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, WriteError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError + use<> {
    let path = path.to_owned();
    move |source| WriteError::Io { what, path, source }
}

/// A segment that is written no more.
#[derive(Debug)]
struct Sealed {
    bytes: u64,
    newest_us: i64,
}

/// The segment being written.
#[derive(Debug)]
struct Active {
    file: File,
    first: u64,
    bytes: u64,
    newest_us: i64,
}

/// A message that is written but not durable: kept to be written again where the disk loses it.
#[derive(Debug)]
struct Pending {
    offset: u64,
    appended_us: i64,
    message: Message,
}

/// The segment that would be deleted next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Oldest {
    pub(super) newest_us: i64,
    /// Whether the store contains all of it.
    pub(super) committed: bool,
}

/// The writer of one partition.
#[derive(Debug)]
pub(super) struct Partition {
    number: u32,
    path: PathBuf,
    head: File,
    /// As last published.
    mark: Mark,
    /// One past the last offset that the store contains, as last read.
    committed: u64,
    sealed: BTreeMap<u64, Sealed>,
    active: Option<Active>,
    /// Segments below this offset were taken out of the page cache.
    uncached: u64,
    next: u64,
    pending: VecDeque<Pending>,
    pending_bytes: u64,
    unsynced_since: Option<Instant>,
    acknowledged: Acknowledged,
    /// An fsync failed: the kernel may have thrown away what it could not write, so all that is pending is written again.
    rewrite: bool,
    /// Whether anything is fsynced.
    durable: bool,
    /// This boot of the machine; 0: unknown.
    boot: u64,
    /// A segment that was left without a whole frame.
    emptied: Option<u64>,
}

impl Partition {
    pub(super) fn open(
        log: &Path,
        number: u32,
        durable: bool,
        now_us: i64,
        stats: &mut EmbeddedStats,
    ) -> Result<Partition, EmbeddedError> {
        let path = log.join(number.to_string());
        fs::create_dir_all(&path).map_err(io_error("create the directory", &path))?;
        let head_path = path.join(HEAD_FILE);
        let head = File::options().create(true).truncate(false).read(true).write(true).open(&head_path);
        let head = head.map_err(io_error("open", &head_path))?;
        let mark = Mark::read(&head).map_err(io_error("read", &head_path))?;
        let allocated = MARK_SLOTS[1] + MARK_BYTES as u64;
        if mark.is_none() {
            // both copies get their disk blocks now: a full disk must not keep the mark from being written
            let zeros = vec![0; usize::try_from(allocated).unwrap_or(0)];
            head.write_all_at(&zeros, 0).map_err(io_error("write", &head_path))?;
        }
        let mut partition = Partition {
            number,
            path,
            head,
            mark: mark.unwrap_or_default(),
            committed: 0,
            sealed: BTreeMap::new(),
            active: None,
            uncached: 0,
            next: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            unsynced_since: None,
            acknowledged: Acknowledged::default(),
            rewrite: false,
            durable,
            boot: machine_boot(),
            emptied: None,
        };
        partition.read_committed();
        partition.list()?;
        partition.recover_last(stats)?;
        partition.next = partition.next.max(partition.mark.end).max(partition.committed);
        // What a power loss may have taken back was perhaps stored: those offsets are passed over. A new log begins at
        // the clock, so that it stays ahead of one that lay here before and of the positions that the store has in it.
        let now = u64::try_from(now_us).unwrap_or(0);
        let unsure = mark.is_none_or(|mark| mark.boot != 0 && mark.boot != partition.boot);
        if unsure {
            partition.next = now.max(partition.next.saturating_add(JUMP));
        }
        if let Some((last, _)) = partition.sealed.last_key_value() {
            partition.next = partition.next.max(last + 1);
        }
        if let Some(first) = partition.emptied.take().filter(|first| *first != partition.next) {
            let path = partition.segment(first);
            fs::remove_file(&path).map_err(io_error("remove the empty", &path))?;
        }
        match partition.create_segment(partition.next) {
            Ok(active) => {
                partition.active = Some(active);
                partition.publish().map_err(io_error("write", &head_path))?;
            }
            Err(error) => tracing::warn!("the log is open for writing, but {error}"),
        }
        sync_directory(&partition.path).map_err(io_error("fsync the directory", &partition.path))?;
        Ok(partition)
    }

    fn list(&mut self) -> Result<(), EmbeddedError> {
        let entries = fs::read_dir(&self.path).map_err(io_error("list", &self.path))?;
        for entry in entries {
            let entry = entry.map_err(io_error("list", &self.path))?;
            let Some(first) = entry.file_name().to_str().and_then(segment_first) else { continue };
            let metadata = entry.metadata().map_err(io_error("read", &self.path))?;
            let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let newest_us = modified.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
            self.sealed.insert(first, Sealed { bytes: metadata.len(), newest_us });
        }
        Ok(())
    }

    /// Keeps the whole frames of the last segment and cuts what comes after them. Up to where the mark says that it is
    /// whole and durable it is not read again: how long this takes does not depend on the size of the segment.
    fn recover_last(&mut self, stats: &mut EmbeddedStats) -> Result<(), EmbeddedError> {
        let Some((&first, _)) = self.sealed.last_key_value() else { return Ok(()) };
        let path = self.segment(first);
        let file = File::options().read(true).write(true).open(&path).map_err(io_error("open", &path))?;
        let size = file.metadata().map_err(io_error("read", &path))?.len();
        let (mut scanner, mut kept, mut end) = (Scanner::default(), 0, first);
        let is_sure = self.mark.boot == 0 || self.mark.boot == self.boot;
        if self.mark.segment == first && self.mark.bytes <= size && is_sure {
            if let Err(Defect::Newer(version)) = scanner.peek(&file, size).map_err(io_error("read", &path))? {
                return Err(EmbeddedError::Newer { path, version });
            }
            (scanner, end) = (Scanner::new(self.mark.bytes), end.max(self.mark.end));
        }
        loop {
            match scanner.step(&file, size).map_err(io_error("read", &path))? {
                Step::Frame(frame) => {
                    kept = scanner.position();
                    end = end.max(frame.head.offset.saturating_add(1));
                }
                Step::Corrupt { defect: Defect::Newer(version), .. } => {
                    return Err(EmbeddedError::Newer { path, version });
                }
                Step::Corrupt { range, defect } => {
                    stats.damaged += 1;
                    tracing::warn!(path = %path.display(), ?range, "damage in the log: {defect}");
                }
                Step::Torn { .. } | Step::End => break,
            }
        }
        // what readers may have seen is left to them, damaged as it is
        if self.mark.segment == first {
            kept = kept.max(self.mark.bytes.min(size));
        }
        if kept < size {
            stats.torn_bytes += size - kept;
            file.set_len(kept).map_err(io_error("cut the torn end of", &path))?;
        }
        file.sync_all().map_err(io_error("fsync", &path))?;
        self.next = end;
        if kept == 0 {
            // the file stays: a reader may have it open, and it may be needed again under its name
            self.sealed.remove(&first);
            self.emptied = Some(first);
        } else if let Some(sealed) = self.sealed.get_mut(&first) {
            sealed.bytes = kept;
        }
        Ok(())
    }

    fn segment(&self, first: u64) -> PathBuf {
        self.path.join(segment_name(first))
    }

    fn create_segment(&self, first: u64) -> Result<Active, WriteError> {
        let path = self.segment(first);
        // a file of that name can only be one that was begun and given up: `first` is greater than those kept
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
        let file = file.map_err(failed("create", &path))?;
        if self.durable {
            file.sync_all().and_then(|()| sync_directory(&self.path)).map_err(failed("fsync", &path))?;
        }
        Ok(Active { file, first, bytes: 0, newest_us: 0 })
    }

    /// Appends a message. It is acknowledged by [`Self::sync`].
    pub(super) fn append(
        &mut self,
        message: &Message,
        now_us: i64,
        segment_bytes: u64,
        stats: &mut EmbeddedStats,
    ) -> Result<(), WriteError> {
        if self.rewrite {
            self.sync(stats)?;
        }
        let offset = self.next;
        let parts = encode_frame(self.number, offset, now_us, &message.envelope, message.body.pieces());
        let parts = parts.map_err(WriteError::TooLarge)?;
        let size = parts.frame_bytes(message.body.len()) as u64;
        if self.active.as_ref().is_some_and(|active| active.bytes > 0 && active.bytes + size > segment_bytes)
        {
            self.sync(stats)?;
            if let Some(active) = self.active.take() {
                let sealed = Sealed { bytes: active.bytes, newest_us: active.newest_us };
                self.sealed.insert(active.first, sealed);
                self.uncache();
            }
        }
        self.write(offset, now_us, &parts, &message.body)?;
        self.pending.push_back(Pending { offset, appended_us: now_us, message: message.clone() });
        self.pending_bytes += size;
        self.unsynced_since.get_or_insert_with(Instant::now);
        self.next += 1;
        Ok(())
    }

    fn write(&mut self, offset: u64, now_us: i64, parts: &FrameParts, body: &Body) -> Result<(), WriteError> {
        let active = match self.active.take() {
            Some(active) => active,
            None => self.create_segment(offset)?,
        };
        let path = self.segment(active.first);
        let active = self.active.insert(active);
        let pieces = std::iter::once(&parts.prefix[..]).chain(body.pieces()).chain([&parts.checksum[..]]);
        let written = write_pieces(&active.file, active.bytes, pieces);
        if let Err(source) = written {
            // no reader looks there; the room is given back, and the next frame is written over it in any case
            active.file.set_len(active.bytes).ok();
            return Err(failed("write", &path)(source));
        }
        active.bytes += parts.frame_bytes(body.len()) as u64;
        active.newest_us = now_us;
        Ok(())
    }

    /// Makes all that is pending durable, visible and acknowledged; on error it all stays pending.
    pub(super) fn sync(&mut self, stats: &mut EmbeddedStats) -> Result<(), WriteError> {
        if self.rewrite {
            self.rewrite_pending()?;
        }
        if self.durable
            && !self.pending.is_empty()
            && let Some(active) = &self.active
        {
            let begun = Instant::now();
            let synced = active.file.sync_data();
            stats.fsyncs += 1;
            stats.fsync_us += u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            if let Err(source) = synced {
                self.rewrite = true;
                return Err(failed("fsync", &self.segment(active.first))(source));
            }
        }
        self.publish().map_err(failed("write", &self.path.join(HEAD_FILE)))?;
        self.rewrite = false;
        for pending in self.pending.drain(..) {
            self.acknowledged += Acknowledged::of(&pending.message);
        }
        self.pending_bytes = 0;
        self.unsynced_since = None;
        Ok(())
    }

    /// Takes out of the page cache what is further back than [`CACHED_BYTES`]. That is advice: what comes of it is not known.
    fn uncache(&mut self) {
        let mut newer = 0;
        let mut far = Vec::new();
        for (first, sealed) in self.sealed.range(self.uncached..).rev() {
            if newer >= CACHED_BYTES {
                far.push(*first);
            }
            newer += sealed.bytes;
        }
        for first in &far {
            if let Ok(file) = File::open(self.segment(*first)) {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok();
            }
        }
        self.uncached = far.first().map_or(self.uncached, |newest| newest + 1);
    }

    /// After a failed fsync: cuts the segment to what was durable before and writes what is pending into a new one.
    fn rewrite_pending(&mut self) -> Result<(), WriteError> {
        if let Some(active) = self.active.take() {
            let path = self.segment(active.first);
            let kept = if self.mark.segment == active.first { self.mark.bytes } else { 0 };
            // with nothing durable in it, its first offset is the first that is pending: it is truncated and used again
            if kept > 0 {
                active.file.set_len(kept).map_err(failed("cut", &path))?;
                self.sealed.insert(active.first, Sealed { bytes: kept, newest_us: active.newest_us });
            }
        }
        let pending = std::mem::take(&mut self.pending);
        let mut written = Ok(());
        for Pending { offset, appended_us, message } in &pending {
            let pieces = message.body.pieces();
            let parts = encode_frame(self.number, *offset, *appended_us, &message.envelope, pieces);
            written = parts
                .map_err(WriteError::TooLarge)
                .and_then(|parts| self.write(*offset, *appended_us, &parts, &message.body));
            if written.is_err() {
                break;
            }
        }
        self.pending = pending;
        written
    }

    /// Lets readers see all that is written.
    fn publish(&mut self) -> io::Result<()> {
        let Some(active) = &self.active else { return Ok(()) };
        let mark = Mark {
            sequence: self.mark.sequence + 1,
            end: self.next,
            segment: active.first,
            bytes: active.bytes,
            boot: if self.durable { 0 } else { self.boot },
        };
        let (at, bytes) = mark.encode();
        self.head.write_all_at(&bytes, at)?;
        self.mark = mark;
        Ok(())
    }

    /// Messages that are not yet acknowledged.
    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// For how long the oldest pending message has waited.
    pub(super) fn unsynced_for(&self) -> Duration {
        self.unsynced_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// What was acknowledged since the last call.
    pub(super) fn take_acknowledged(&mut self) -> Acknowledged {
        std::mem::take(&mut self.acknowledged)
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The segments that are written no more, the newest first, each with its size.
    pub(super) fn sealed(&self) -> impl Iterator<Item = (PathBuf, u64)> {
        self.sealed.iter().rev().map(|(first, sealed)| (self.segment(*first), sealed.bytes))
    }

    /// Learns how far the store is.
    pub(super) fn read_committed(&mut self) {
        let path = self.path.join(COMMITTED_FILE);
        match File::open(&path).and_then(|file| Mark::read(&file)) {
            Ok(Some(mark)) => self.committed = self.committed.max(mark.end),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), "cannot read how far the store is: {error}"),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let sealed: u64 = self.sealed.values().map(|sealed| sealed.bytes).sum();
        sealed + self.active.as_ref().map_or(0, |active| active.bytes)
    }

    pub(super) fn segments(&self) -> u64 {
        self.sealed.len() as u64 + u64::from(self.active.is_some())
    }

    /// The segment to be deleted next, if there is one that is neither written nor spoken of by the mark.
    pub(super) fn oldest(&self) -> Option<Oldest> {
        let (first, sealed) = self.sealed.first_key_value()?;
        (*first != self.mark.segment).then(|| Oldest {
            newest_us: sealed.newest_us,
            committed: self.segment_end(*first) <= self.committed,
        })
    }

    fn segment_end(&self, first: u64) -> u64 {
        let after = self.sealed.range(first + 1..).next().map(|(first, _)| *first);
        after.or(self.active.as_ref().map(|active| active.first)).unwrap_or(self.next)
    }

    /// Deletes it; whether that succeeded.
    pub(super) fn delete_oldest(&mut self, stats: &mut EmbeddedStats) -> bool {
        let Some((&first, _)) =
            self.sealed.first_key_value().filter(|(first, _)| **first != self.mark.segment)
        else {
            return false;
        };
        let (path, end) = (self.segment(first), self.segment_end(first));
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), "cannot delete an old segment: {error}");
            return false;
        }
        self.sealed.remove(&first);
        stats.deleted_segments += 1;
        let lost = end.saturating_sub(self.committed.max(first));
        if lost > 0 {
            stats.lost_offsets += lost;
            tracing::error!(path = %path.display(), lost, "deleted messages that the store does not contain");
        }
        true
    }
}

/// Writes pieces one after the other from `at` on, with as few system calls as they need.
fn write_pieces<'a>(mut file: &File, at: u64, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    let mut slices: Vec<IoSlice<'_>> = pieces.filter(|piece| !piece.is_empty()).map(IoSlice::new).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn machine_boot() -> u64 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::message;
    use super::*;

    #[test]
    fn what_is_far_back_is_taken_out_of_the_page_cache_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut stats = EmbeddedStats::default();
        let mut partition = Partition::open(directory.path(), 0, true, 1, &mut stats).unwrap();
        let mut before = 0;
        for number in 0..100 {
            partition.append(&message(number, 1_000), 1, 4_096, &mut stats).unwrap();
            assert!(partition.uncached >= before);
            before = partition.uncached;
        }
        let kept: Vec<u64> = partition.sealed.range(before..).map(|(_, sealed)| sealed.bytes).collect();
        let bytes: u64 = kept.iter().sum();
        assert!(
            kept.len() < partition.sealed.len() && bytes >= CACHED_BYTES && bytes - kept[0] < CACHED_BYTES
        );
    }
}
