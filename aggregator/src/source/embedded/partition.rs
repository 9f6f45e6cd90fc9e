//! One partition of the embedded log, read segment by segment.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use weir_schemas::EnvelopeError;
use weir_schemas::segment::{Defect, Frame, Mark, ReadAt, Scanner, Step, segment_first, segment_name};

use crate::source::{LogMessage, Payload, SourceError};

/// How much of a damaged place is handed on.
const DAMAGE_BYTES: u64 = 1024 * 1024;

#[derive(Debug)]
struct Segment {
    first: u64,
    file: File,
    scanner: Scanner,
    /// Damage that was passed over since the last whole frame.
    damage: Option<(Defect, Bytes)>,
    /// Whether the file was opened again because it ended too early.
    reopened: bool,
}

/// The reader of one partition.
#[derive(Debug)]
pub(super) struct PartitionReader {
    number: u32,
    path: PathBuf,
    /// The offset that comes next; absent: whichever is the first.
    expected: Option<u64>,
    segment: Option<Segment>,
    mark: Option<Mark>,
}

impl PartitionReader {
    pub(super) fn new(number: u32, path: PathBuf, expected: Option<u64>) -> PartitionReader {
        PartitionReader { number, path, expected, segment: None, mark: None }
    }

    /// As last seen.
    pub(super) fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// Reads what is visible by `mark` until the budget of body bytes is used up.
    pub(super) fn read(
        &mut self,
        mark: Mark,
        budget: &mut usize,
        messages: &mut Vec<LogMessage>,
    ) -> Result<(), SourceError> {
        self.mark = Some(mark);
        if let Some(expected) = self.expected.filter(|expected| *expected > mark.end) {
            return Err(SourceError::Fatal(format!(
                "the store contains partition {} up to offset {expected}, but the log in `{}` ends at {}: an older log \
                 was put in its place; restart `weir collect`, which then goes on beyond that offset",
                self.number,
                self.path.display(),
                mark.end
            )));
        }
        while *budget > 0 && self.read_some(mark, budget, messages).map_err(|error| self.explain(error))? {}
        Ok(())
    }

    fn explain(&self, error: ReadError) -> SourceError {
        match error {
            ReadError::Io(error) => SourceError::Unavailable(format!("`{}`: {error}", self.path.display())),
            ReadError::Fatal(text) => SourceError::Fatal(format!("`{}`: {text}", self.path.display())),
        }
    }

    /// One step; whether there may be more to read.
    fn read_some(
        &mut self,
        mark: Mark,
        budget: &mut usize,
        messages: &mut Vec<LogMessage>,
    ) -> Result<bool, ReadError> {
        let Some(mut segment) = self.segment.take() else {
            return self.open_next(mark, messages);
        };
        // a segment before the one that is written is complete; of that one, the mark says what is durable
        let writing = segment.first >= mark.segment;
        let limit = if writing { mark.bytes } else { segment.file.metadata()?.len() };
        if !messages.is_empty()
            && let Ok(head) = segment.scanner.peek(&segment.file, limit)?
            && head.frame_bytes() > *budget
        {
            *budget = 0;
            self.segment = Some(segment);
            return Ok(false);
        }
        match segment.scanner.step(&segment.file, limit)? {
            Step::Frame(frame) => {
                self.take(frame, segment.damage.take(), budget, messages)?;
                segment.reopened = false;
            }
            Step::Corrupt { defect: Defect::Newer(version), .. } => {
                return Err(ReadError::Fatal(format!(
                    "frames of format version {version} were written by a newer weir: upgrade this one"
                )));
            }
            Step::Corrupt { range, defect } => {
                tracing::warn!(path = %self.path.display(), segment = segment.first, ?range, "damage in the log: {defect}");
                let bytes = read_range(&segment.file, &range)?;
                segment.damage.get_or_insert((defect, bytes));
            }
            Step::Torn { .. } | Step::End => return self.finish(segment, mark, writing, messages),
        }
        self.segment = Some(segment);
        Ok(true)
    }

    /// All of a segment that can be read is read.
    fn finish(
        &mut self,
        mut segment: Segment,
        mark: Mark,
        writing: bool,
        messages: &mut Vec<LogMessage>,
    ) -> Result<bool, ReadError> {
        if !writing {
            let next = self.segments(mark)?.into_iter().find(|first| *first > segment.first);
            self.miss_until(next.unwrap_or(mark.segment), segment.damage.take(), messages);
            return Ok(true);
        }
        if self.expected.is_some_and(|expected| expected < mark.end) {
            // the mark promises more than the file has: perhaps it is another file by now
            if !segment.reopened {
                match File::open(self.path.join(segment_name(segment.first))) {
                    Ok(file) => segment.file = file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
                segment.reopened = true;
                self.segment = Some(segment);
                return Ok(true);
            }
            self.miss_until(mark.end, segment.damage.take(), messages);
        }
        self.segment = Some(segment);
        Ok(false)
    }

    /// Segments that are visible, by their first offsets.
    fn segments(&self, mark: Mark) -> io::Result<Vec<u64>> {
        let mut firsts = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            firsts.extend(entry?.file_name().to_str().and_then(segment_first));
        }
        firsts.retain(|first| *first <= mark.segment);
        firsts.sort_unstable();
        Ok(firsts)
    }

    /// Opens the segment that holds the expected offset, or the next one there is.
    fn open_next(&mut self, mark: Mark, messages: &mut Vec<LogMessage>) -> Result<bool, ReadError> {
        let firsts = self.segments(mark)?;
        let holding = self.expected.and_then(|expected| firsts.iter().rfind(|first| **first <= expected));
        let Some(&first) = holding.or(firsts.first()) else {
            self.miss_until(mark.end, None, messages);
            return Ok(false);
        };
        let file = match File::open(self.path.join(segment_name(first))) {
            Ok(file) => file,
            // deleted by retention just now
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        self.miss_until(first, None, messages);
        let expected = *self.expected.get_or_insert(first);
        let limit = if first >= mark.segment { mark.bytes } else { file.metadata()?.len() };
        let mut scanner = Scanner::default();
        scanner.skip_below(&file, expected, limit)?;
        self.segment = Some(Segment { first, file, scanner, damage: None, reopened: false });
        Ok(true)
    }

    /// A whole frame was read.
    fn take(
        &mut self,
        frame: Frame,
        damage: Option<(Defect, Bytes)>,
        budget: &mut usize,
        messages: &mut Vec<LogMessage>,
    ) -> Result<(), ReadError> {
        let offset = frame.head.offset;
        if self.expected.is_some_and(|expected| offset < expected) {
            return Ok(());
        }
        let payload = match frame.envelope() {
            Ok(envelope) => Payload::Batch { envelope, body: frame.body() },
            Err(error @ EnvelopeError::Newer(_)) => {
                return Err(ReadError::Fatal(format!("offset {offset}: {error}")));
            }
            Err(error) => Payload::Foreign { reason: error.to_string(), bytes: frame.bytes().clone() },
        };
        self.miss_until(offset, damage, messages);
        *budget = budget.saturating_sub(frame.bytes().len());
        messages.push(LogMessage { partition: self.number, offset, payload });
        self.expected = Some(offset + 1);
        Ok(())
    }

    /// The expected offsets before `next` will not come: damaged or gone.
    fn miss_until(&mut self, next: u64, damage: Option<(Defect, Bytes)>, messages: &mut Vec<LogMessage>) {
        let Some(from) = self.expected.filter(|expected| *expected < next) else { return };
        let payload = match damage {
            Some((defect, bytes)) => Payload::Foreign {
                reason: format!("offsets {from} to {} are damaged: {defect}", next - 1),
                bytes,
            },
            None => Payload::Gap { from },
        };
        messages.push(LogMessage { partition: self.number, offset: next - 1, payload });
        self.expected = Some(next);
    }
}

enum ReadError {
    Io(io::Error),
    Fatal(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        ReadError::Io(error)
    }
}

fn read_range(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let size = (range.end - range.start).min(DAMAGE_BYTES);
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let read = ReadAt::read_at(file, &mut bytes, range.start)?;
    bytes.truncate(read);
    Ok(bytes.into())
}
