//! The embedded log on disk: frames, segment files and the marks beside them. Bytes only: the writer is the collector's
//! `sink::embedded`, the reader the aggregator's `source::embedded`.
//!
//! ```text
//! <data-dir>/log/lock                       held by the one writer (flock)
//! <data-dir>/log/<partition>/<offset>.seg   frames, one after the other; named by the first offset, 20 digits
//! <data-dir>/log/<partition>/head           mark of the writer: what is durable, hence visible
//! <data-dir>/log/<partition>/committed      mark of the reader: what the store contains
//! ```
//!
//! A frame, all numbers little endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 3 | `F7 57 52` |
//! | 3 | 1 | version of the format |
//! | 4 | 4 | CRC32 of bytes 0 to 4 and 8 to 40, so that a length is never believed that was not written |
//! | 8 | 8 | offset |
//! | 16 | 8 | when it was appended, µs since 1970 UTC |
//! | 24 | 4 | partition |
//! | 28 | 4 | bytes of the headers |
//! | 32 | 4 | bytes of the body |
//! | 36 | 4 | zero |
//! | 40 | | headers of the envelope: each a name (1 byte of length) and a value (2 bytes of length) |
//! | | | body: an Arrow IPC stream |
//! | end | 4 | CRC32 of all that comes before |
//!
//! The first 40 bytes keep their layout in every later version, so that a frame of a newer version is told from damage.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;

use crate::envelope::{Envelope, EnvelopeError};

/// Version of the frames written here.
pub const FRAME_VERSION: u8 = 1;
/// Bytes before the headers of a frame.
pub const FRAME_HEAD_BYTES: usize = 40;
/// Bytes after the body of a frame.
pub const FRAME_TAIL_BYTES: usize = 4;
/// Greatest size of a frame's headers.
pub const MAX_HEADERS_BYTES: usize = 64 * 1024;
/// Greatest size of a frame's body.
pub const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

const MAGIC: [u8; 3] = [0xf7, b'W', b'R'];
/// How much is looked at in one step when searching for the next frame after damage.
const SEARCH_BYTES: usize = 1024 * 1024;

/// What is wrong with bytes where a frame was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    #[error("no frame begins here")]
    Magic,
    #[error("the checksum of the frame's head is wrong")]
    HeadChecksum,
    #[error("the frame's version {0} is newer than this weir's {FRAME_VERSION}")]
    Newer(u8),
    #[error("the frame's lengths are out of bounds")]
    Bounds,
    #[error("the checksum of the frame is wrong")]
    Checksum,
    #[error("the file ends within the frame")]
    Torn,
}

/// A message that no frame can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "headers of {headers} bytes and a body of {body} bytes; the log holds {MAX_HEADERS_BYTES} and {MAX_BODY_BYTES}"
)]
pub struct TooLarge {
    pub headers: usize,
    pub body: usize,
}

/// The fixed part of a frame, its own checksum verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    pub offset: u64,
    /// When the frame was appended, µs since 1970 UTC.
    pub appended_us: i64,
    pub partition: u32,
    headers_bytes: u32,
    body_bytes: u32,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn head_checksum(head: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head.get(..4).unwrap_or_default());
    hasher.update(head.get(8..FRAME_HEAD_BYTES).unwrap_or_default());
    hasher.finalize()
}

impl FrameHead {
    /// Reads the first [`FRAME_HEAD_BYTES`] of a frame. [`Defect::Torn`]: they may be the beginning of a head.
    pub fn parse(bytes: &[u8]) -> Result<FrameHead, Defect> {
        if bytes.iter().zip(MAGIC).any(|(have, want)| *have != want) {
            return Err(Defect::Magic);
        }
        let head = bytes.get(..FRAME_HEAD_BYTES).ok_or(Defect::Torn)?;
        let field = |at| u32_at(head, at).ok_or(Defect::Torn);
        if field(4)? != head_checksum(head) {
            return Err(Defect::HeadChecksum);
        }
        match head.get(3) {
            Some(&FRAME_VERSION) => {}
            Some(&version) => return Err(Defect::Newer(version)),
            None => return Err(Defect::Torn),
        }
        let (headers_bytes, body_bytes) = (field(28)?, field(32)?);
        if headers_bytes as usize > MAX_HEADERS_BYTES || body_bytes as usize > MAX_BODY_BYTES {
            return Err(Defect::Bounds);
        }
        Ok(FrameHead {
            offset: u64_at(head, 8).ok_or(Defect::Torn)?,
            appended_us: u64_at(head, 16).ok_or(Defect::Torn)?.cast_signed(),
            partition: field(24)?,
            headers_bytes,
            body_bytes,
        })
    }

    /// Size of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEAD_BYTES + self.headers_bytes as usize + self.body_bytes as usize + FRAME_TAIL_BYTES
    }
}

/// A frame to be written in three pieces, so that the body is not copied: `prefix`, the body, `checksum`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameParts {
    pub prefix: Vec<u8>,
    pub checksum: [u8; FRAME_TAIL_BYTES],
}

/// The frame of a message around `body`, which may be in several pieces.
pub fn encode_frame<'a>(
    partition: u32,
    offset: u64,
    appended_us: i64,
    envelope: &Envelope,
    body: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>,
) -> Result<FrameParts, TooLarge> {
    let body = body.into_iter();
    let body_len = body.clone().map(<[u8]>::len).sum();
    let mut prefix = Vec::with_capacity(FRAME_HEAD_BYTES + 256);
    prefix.resize(FRAME_HEAD_BYTES, 0);
    let mut fits = true;
    for (name, value) in envelope.headers() {
        match (u8::try_from(name.len()), u16::try_from(value.len())) {
            (Ok(name_bytes), Ok(value_bytes)) => {
                prefix.push(name_bytes);
                prefix.extend_from_slice(name.as_bytes());
                prefix.extend_from_slice(&value_bytes.to_le_bytes());
                prefix.extend_from_slice(value.as_bytes());
            }
            _ => fits = false,
        }
    }
    let headers = prefix.len() - FRAME_HEAD_BYTES;
    let too_large = TooLarge { headers, body: body_len };
    if !fits || headers > MAX_HEADERS_BYTES || body_len > MAX_BODY_BYTES {
        return Err(too_large);
    }
    let headers_bytes = u32::try_from(headers).map_err(|_| too_large)?;
    let body_bytes = u32::try_from(body_len).map_err(|_| too_large)?;
    prefix[..3].copy_from_slice(&MAGIC);
    prefix[3] = FRAME_VERSION;
    prefix[8..16].copy_from_slice(&offset.to_le_bytes());
    prefix[16..24].copy_from_slice(&appended_us.to_le_bytes());
    prefix[24..28].copy_from_slice(&partition.to_le_bytes());
    prefix[28..32].copy_from_slice(&headers_bytes.to_le_bytes());
    prefix[32..36].copy_from_slice(&body_bytes.to_le_bytes());
    let head_checksum = head_checksum(&prefix);
    prefix[4..8].copy_from_slice(&head_checksum.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&prefix);
    body.for_each(|piece| hasher.update(piece));
    Ok(FrameParts { prefix, checksum: hasher.finalize().to_le_bytes() })
}

impl FrameParts {
    /// Size of the frame around a body of `body_bytes`.
    pub fn frame_bytes(&self, body_bytes: usize) -> usize {
        self.prefix.len() + body_bytes + self.checksum.len()
    }
}

/// Value of a header among these.
fn header_in<'a>(mut rest: &'a [u8], wanted: &str) -> Option<&'a str> {
    while let Some((&name_bytes, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(name_bytes.into())?;
        let (value_bytes, after) = after.split_first_chunk::<2>()?;
        let (value, after) = after.split_at_checked(u16::from_le_bytes(*value_bytes).into())?;
        if name == wanted.as_bytes() {
            return std::str::from_utf8(value).ok();
        }
        rest = after;
    }
    None
}

/// What stands before the body of a frame. Only the head's own checksum is verified: the headers may be damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameFront {
    pub head: FrameHead,
    headers: Vec<u8>,
}

impl FrameFront {
    /// The envelope that the headers describe.
    pub fn envelope(&self) -> Result<Envelope, EnvelopeError> {
        Envelope::from_headers(|name| header_in(&self.headers, name))
    }
}

/// A frame that was read, its checksums verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub head: FrameHead,
    bytes: Bytes,
}

impl Frame {
    fn parse(head: FrameHead, bytes: Bytes) -> Result<Frame, Defect> {
        let end = head.frame_bytes() - FRAME_TAIL_BYTES;
        let checksum = u32_at(&bytes, end).ok_or(Defect::Torn)?;
        let content = bytes.get(..end).ok_or(Defect::Torn)?;
        if crc32fast::hash(content) != checksum {
            return Err(Defect::Checksum);
        }
        Ok(Frame { head, bytes })
    }

    /// The body, without copying it.
    pub fn body(&self) -> Bytes {
        let start = FRAME_HEAD_BYTES + self.head.headers_bytes as usize;
        self.bytes.slice(start..start + self.head.body_bytes as usize)
    }

    /// Value of a header.
    pub fn header(&self, wanted: &str) -> Option<&str> {
        let end = FRAME_HEAD_BYTES + self.head.headers_bytes as usize;
        header_in(self.bytes.get(FRAME_HEAD_BYTES..end)?, wanted)
    }

    /// The envelope that the headers describe.
    pub fn envelope(&self) -> Result<Envelope, EnvelopeError> {
        Envelope::from_headers(|name| self.header(name))
    }

    /// The frame as it stands in the file.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Positioned reads: of a file, or of bytes in memory.
pub trait ReadAt {
    /// Reads into `buffer` from `at` on; fewer bytes than it holds only at the end.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Appends what stands in the range, or less at the end, to `out`: into memory that nobody has to clear before.
    fn append(&self, out: &mut Vec<u8>, range: Range<u64>) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        Ok(taken)
    }

    fn append(&self, out: &mut Vec<u8>, range: Range<u64>) -> io::Result<()> {
        let rest = usize::try_from(range.start).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let wanted = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        out.extend_from_slice(rest.get(..wanted).unwrap_or(rest));
        Ok(())
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match std::os::unix::fs::FileExt::read_at(self, &mut buffer[done..], at + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Moves the file's position: a file is read by one thread.
    fn append(&self, out: &mut Vec<u8>, range: Range<u64>) -> io::Result<()> {
        let mut file = self;
        file.seek(SeekFrom::Start(range.start))?;
        file.take(range.end.saturating_sub(range.start)).read_to_end(out).map(|_| ())
    }
}

/// Where the body of a frame begins in memory: Arrow's buffers lie at multiples of this within it, and are used where
/// they lie.
const BODY_ALIGNMENT: usize = 64;

/// Reads a range so that its byte number `aligned` comes to lie at a multiple of [`BODY_ALIGNMENT`].
fn read_aligned<R: ReadAt + ?Sized>(source: &R, range: Range<u64>, aligned: usize) -> io::Result<Bytes> {
    let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let mut buffer: Vec<u8> = Vec::with_capacity(length.saturating_add(BODY_ALIGNMENT));
    let at = buffer.as_ptr().addr().wrapping_add(aligned);
    let before = at.next_multiple_of(BODY_ALIGNMENT) - at;
    buffer.resize(before, 0);
    source.append(&mut buffer, range)?;
    Ok(Bytes::from(buffer).slice(before..))
}

fn read_vec<R: ReadAt + ?Sized>(source: &R, range: Range<u64>) -> io::Result<Vec<u8>> {
    let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let mut buffer = Vec::with_capacity(length);
    source.append(&mut buffer, range)?;
    Ok(buffer)
}

/// What stands next in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A whole frame.
    Frame(Frame),
    /// Bytes that are no frame; after them comes a frame, or the limit.
    Corrupt { range: Range<u64>, defect: Defect },
    /// From here to the limit stands the beginning of a frame: more may come.
    Torn { at: u64 },
    /// The limit.
    End,
}

/// Walks the frames of a segment up to a limit that the caller knows to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scanner {
    at: u64,
}

impl Scanner {
    /// Begins at `at`, which must be the beginning of a frame.
    pub fn new(at: u64) -> Scanner {
        Scanner { at }
    }

    /// Where the next frame is expected.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Reads the frame head here, without the frame.
    pub fn peek<R: ReadAt + ?Sized>(&self, source: &R, limit: u64) -> io::Result<Result<FrameHead, Defect>> {
        let mut buffer = [0; FRAME_HEAD_BYTES];
        let wanted = limit.saturating_sub(self.at).min(FRAME_HEAD_BYTES as u64);
        let buffer = &mut buffer[..usize::try_from(wanted).unwrap_or(0)];
        let read = source.read_at(buffer, self.at)?;
        Ok(FrameHead::parse(&buffer[..read]))
    }

    /// Passes over frames of offsets less than `offset` by their heads alone, as far as these are whole.
    pub fn skip_below<R: ReadAt + ?Sized>(&mut self, source: &R, offset: u64, limit: u64) -> io::Result<()> {
        while let Ok(head) = self.peek(source, limit)? {
            let end = self.at.saturating_add(head.frame_bytes() as u64);
            if head.offset >= offset || end > limit {
                break;
            }
            self.at = end;
        }
        Ok(())
    }

    /// Passes over the frame here by its front, the cost of which does not depend on the size of the body. None where no
    /// whole head of a frame is that ends before the limit: then the position stays.
    pub fn pass<R: ReadAt + ?Sized>(&mut self, source: &R, limit: u64) -> io::Result<Option<FrameFront>> {
        // the headers of our own messages have room in it: one read
        let mut buffer = [0; FRAME_HEAD_BYTES + 472];
        let wanted = usize::try_from(limit.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let read = source.read_at(&mut buffer[..wanted], self.at)?;
        let Ok(head) = FrameHead::parse(&buffer[..read]) else { return Ok(None) };
        let end = self.at.saturating_add(head.frame_bytes() as u64);
        if end > limit {
            return Ok(None);
        }
        let headers_end = FRAME_HEAD_BYTES + head.headers_bytes as usize;
        let headers = match buffer[..read].get(FRAME_HEAD_BYTES..headers_end) {
            Some(headers) => headers.to_vec(),
            None => read_vec(source, self.at + FRAME_HEAD_BYTES as u64..self.at + headers_end as u64)?,
        };
        self.at = end;
        Ok(Some(FrameFront { head, headers }))
    }

    /// The next step; the position moves past a frame and past corrupt bytes.
    pub fn step<R: ReadAt + ?Sized>(&mut self, source: &R, limit: u64) -> io::Result<Step> {
        if self.at >= limit {
            return Ok(Step::End);
        }
        let defect = match self.frame(source, limit)? {
            Ok(frame) => {
                self.at += frame.bytes.len() as u64;
                return Ok(Step::Frame(frame));
            }
            Err(Defect::Torn) => return Ok(Step::Torn { at: self.at }),
            Err(defect) => defect,
        };
        let start = self.at;
        self.at = self.after_damage(source, limit, defect)?;
        Ok(Step::Corrupt { range: start..self.at, defect })
    }

    fn frame<R: ReadAt + ?Sized>(&self, source: &R, limit: u64) -> io::Result<Result<Frame, Defect>> {
        let head = match self.peek(source, limit)? {
            Ok(head) => head,
            Err(defect) => return Ok(Err(defect)),
        };
        let end = self.at.saturating_add(head.frame_bytes() as u64);
        if end > limit {
            return Ok(Err(Defect::Torn));
        }
        let body = FRAME_HEAD_BYTES + head.headers_bytes as usize;
        Ok(Frame::parse(head, read_aligned(source, self.at..end, body)?))
    }

    /// Where reading goes on after damage at the present position: past the frame, if its head is whole and another
    /// begins there, else at the next whole head (two checksums deep: no body looks like that by chance), else the limit.
    fn after_damage<R: ReadAt + ?Sized>(&self, source: &R, limit: u64, defect: Defect) -> io::Result<u64> {
        if defect == Defect::Checksum
            && let Ok(head) = self.peek(source, limit)?
        {
            let next = Scanner::new(self.at.saturating_add(head.frame_bytes() as u64));
            if next.at == limit || next.peek(source, limit)?.is_ok() {
                return Ok(next.at);
            }
        }
        let mut from = self.at + 1;
        while from < limit {
            let chunk = read_vec(source, from..limit.min(from + SEARCH_BYTES as u64))?;
            let found =
                (0..chunk.len()).find(|at| chunk[*at] == MAGIC[0] && FrameHead::parse(&chunk[*at..]).is_ok());
            if let Some(at) = found {
                return Ok(from + at as u64);
            }
            // a head may stand across the edge of two chunks
            let seen = chunk.len().saturating_sub(FRAME_HEAD_BYTES - 1);
            if seen == 0 || from + chunk.len() as u64 >= limit {
                break;
            }
            from += seen as u64;
        }
        Ok(limit)
    }
}

/// Size of a mark.
pub const MARK_BYTES: usize = 64;
/// Where the two copies of a mark stand in its file: each in a sector of its own, written in turn, so that a torn
/// write leaves the other one.
pub const MARK_SLOTS: [u64; 2] = [0, 4096];

const MARK_MAGIC: [u8; 4] = [0xf7, b'W', b'M', 1];

/// How far a writer or a reader has come in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Grows with each write of the mark.
    pub sequence: u64,
    /// One past the last offset.
    pub end: u64,
    /// First offset of the segment that `bytes` is about (writer only).
    pub segment: u64,
    /// Bytes of that segment that may be read (writer only).
    pub bytes: u64,
    /// Boot of the machine that wrote the mark, if what it speaks of may not outlive that boot; else 0 (writer only).
    pub boot: u64,
}

impl Mark {
    /// The mark as bytes, and where they belong in the file.
    pub fn encode(&self) -> (u64, [u8; MARK_BYTES]) {
        let mut bytes = [0; MARK_BYTES];
        bytes[..4].copy_from_slice(&MARK_MAGIC);
        let fields = [self.sequence, self.end, self.segment, self.bytes, self.boot];
        for (slot, value) in bytes[8..48].chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        (MARK_SLOTS[usize::from(self.sequence % 2 == 1)], bytes)
    }

    /// Reads one copy.
    pub fn parse(bytes: &[u8]) -> Option<Mark> {
        if bytes.get(..4)? != MARK_MAGIC || u32_at(bytes, 60)? != crc32fast::hash(bytes.get(..60)?) {
            return None;
        }
        Some(Mark {
            sequence: u64_at(bytes, 8)?,
            end: u64_at(bytes, 16)?,
            segment: u64_at(bytes, 24)?,
            bytes: u64_at(bytes, 32)?,
            boot: u64_at(bytes, 40)?,
        })
    }

    /// The newer of the two copies; `None` if neither is whole.
    pub fn read<R: ReadAt + ?Sized>(source: &R) -> io::Result<Option<Mark>> {
        let mut newest: Option<Mark> = None;
        for at in MARK_SLOTS {
            let mut buffer = [0; MARK_BYTES];
            let read = source.read_at(&mut buffer, at)?;
            if let Some(mark) = Mark::parse(&buffer[..read])
                && newest.is_none_or(|newest| newest.sequence < mark.sequence)
            {
                newest = Some(mark);
            }
        }
        Ok(newest)
    }
}

/// Name of the mark that the writer keeps in a partition's directory.
pub const HEAD_FILE: &str = "head";
/// Name of the mark that the reader keeps in a partition's directory.
pub const COMMITTED_FILE: &str = "committed";
/// Name of the file in the log's directory that the one writer locks.
pub const LOCK_FILE: &str = "lock";

/// Name of the segment whose first offset is `first`.
pub fn segment_name(first: u64) -> String {
    format!("{first:020}.seg")
}

/// First offset of a segment by its file name; `None`: no segment.
pub fn segment_first(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// Number of a partition by its directory's name; `None`: no partition.
pub fn partition_number(name: &str) -> Option<u32> {
    name.parse().ok().filter(|number: &u32| number.to_string() == name)
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
