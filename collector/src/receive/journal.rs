//! The datagrams that were taken from the kernel and whose rows may not be in the log yet, in memory that outlives the
//! process: what a crash of the collector would take, the next one decodes again.
//!
//! The supervisor makes the memory, one piece a shard, and hands it to each collector that it starts ([`Memory`]). The
//! shard writes every datagram into it before it decodes it; the newest overwrite the oldest. Which of them a restart
//! has to decode again is not written here but in the log itself, with the rows ([`Covered`]): a row and the word that
//! it is there cannot be apart. So each row is in the log once, whatever moment the process dies at.
//!
//! ```text
//! at 0   8 bytes   what this is, and the version of the layout
//!    8   8         number of the journal: differs for each that is begun
//!   16   8         all rows of the datagrams before this one are in the log (may be behind)
//!   24   8         where the oldest datagram begins
//!   32   8         where the next one will be written
//!   40   8         1 more than the datagram that is being decoded again; 0: none
//!   48   8         what stood there when the last process began
//!   56   8         processes that died with that standing there
//!   64   8         datagrams that the kernel dropped at the shard's sockets, as far as rows have told it
//!   72             datagrams: a head and the payload, padded to 8 bytes, each in one piece
//! ```
//!
//! Positions count from the beginning of the journal's life; where a datagram lies is its position modulo the room.
//! Numbers are in the machine's order. A process can die between any two stores: the old datagrams are given up before
//! they are overwritten, and a new one counts only when it is there whole.

use std::sync::atomic::{Ordering, compiler_fence};

use weir_schemas::Address;
use weir_schemas::envelope::Covered;

use super::socket::{Datagram, MAX_DATAGRAM, Memory, RING_SLOTS};
use crate::decode::DatagramMeta;

const MAGIC: u64 = u64::from_le_bytes(*b"weirjnl2");
const HEADER: usize = 72;
const AT_ID: usize = 8;
const AT_LOW: usize = 16;
const AT_START: usize = 24;
const AT_END: usize = 32;
const AT_AGAIN: usize = 40;
const AT_SUSPECT: usize = 48;
const AT_DEATHS: usize = 56;
const AT_DROPS: usize = 64;
/// Processes that die while they decode the same datagram again, before it is left out.
const MAX_DEATHS: u64 = 3;
/// length and ports, number, receive time, sender.
const HEAD: usize = 8 + 8 + 8 + 16;
/// In the place of a length: here nothing more fits before the end of the room.
const SKIP: u32 = u32::MAX;

/// The journal of a shard.
#[derive(Debug)]
pub struct Journal {
    memory: Memory,
    shard: u64,
    start: u64,
    end: u64,
    /// Number of the next datagram.
    next: u64,
}

/// A datagram of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) number: u64,
    pub(crate) meta: DatagramMeta,
    pub(crate) bytes: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().copied().map(u64::from_ne_bytes)
}

impl Journal {
    /// The most that one system call gives, as it lies here.
    pub(crate) const CALL_BYTES: u64 = ((HEAD + MAX_DATAGRAM).next_multiple_of(8) * RING_SLOTS) as u64;
    /// Least bytes of memory that make sense: some datagrams of the greatest size.
    pub const LEAST_BYTES: usize = 1 << 20;

    /// Takes up what a predecessor left in `memory`, or begins anew where there is nothing that can be understood.
    pub fn open(memory: Memory, shard: u64) -> Journal {
        let mut journal = Journal { memory, shard, start: 0, end: 0, next: 0 };
        if !journal.take_up() {
            journal.restart();
            journal.store(AT_DROPS, 0);
        }
        journal
    }

    /// What is in `memory`, which another process may be writing: to look at, not to write. None where there is nothing.
    #[cfg(test)]
    pub(crate) fn peek(memory: Memory, shard: u64) -> Option<Journal> {
        let mut journal = Journal { memory, shard, start: 0, end: 0, next: 0 };
        journal.take_up().then_some(journal)
    }

    /// Finds the datagrams that are there; false where the memory holds something else.
    fn take_up(&mut self) -> bool {
        let bytes = self.memory.bytes();
        let positions = (word(bytes, 0), word(bytes, AT_START), word(bytes, AT_END));
        let (Some(MAGIC), Some(start), Some(end)) = positions else { return false };
        if start > end || end - start > self.room() {
            return false;
        }
        // what is empty says by its mark where it was
        self.next = word(bytes, AT_LOW).unwrap_or(0);
        (self.start, self.end) = (start, start);
        while self.end < end
            && let Some((entry, after)) = self.step(self.end).filter(|(_, after)| *after <= end)
        {
            let number = entry.map(|entry| entry.number);
            self.next = number.map_or(self.next, |number| number + 1);
            self.end = after;
        }
        true
    }

    /// Forgets all of it: everything is in the log, or counted as lost.
    pub fn restart(&mut self) {
        (self.start, self.end, self.next) = (0, 0, 0);
        let id = uuid::Uuid::new_v4().as_u64_pair().0;
        self.store(0, 0);
        for (at, value) in
            [(AT_ID, id), (AT_LOW, 0), (AT_START, 0), (AT_END, 0), (AT_AGAIN, 0), (AT_DEATHS, 0)]
        {
            self.store(at, value);
        }
        self.store(0, MAGIC);
    }

    /// Number of the journal, in what is said about it in the log.
    pub fn id(&self) -> u64 {
        word(self.memory.bytes(), AT_ID).unwrap_or(0)
    }

    pub fn shard(&self) -> u64 {
        self.shard
    }

    /// Number that the next datagram gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// All rows of datagrams before this one are in the log.
    pub fn low(&self) -> u64 {
        word(self.memory.bytes(), AT_LOW).unwrap_or(0).min(self.next)
    }

    /// When the first datagram was received whose rows may not be in the log; None where there is none.
    pub fn since_us(&self) -> Option<i64> {
        let low = self.low();
        self.entries().find(|entry| entry.number >= low).map(|entry| entry.meta.received_us)
    }

    /// Remembers how far the log is.
    pub fn set_low(&mut self, low: u64) {
        if low > self.low() {
            self.store(AT_LOW, low);
        }
    }

    /// The kernel's drops that rows have told, of the sockets that live as long as this memory.
    pub(crate) fn told_drops(&self) -> u64 {
        word(self.memory.bytes(), AT_DROPS).unwrap_or(0)
    }

    pub(crate) fn set_told_drops(&mut self, drops: u64) {
        if drops != self.told_drops() {
            self.store(AT_DROPS, drops);
        }
    }

    /// To be called before what is in the journal is decoded again. Gives the datagram that several processes have died
    /// of: it is to be left out.
    pub(crate) fn begin_replay(&mut self) -> Option<u64> {
        let stored = |at: usize| word(self.memory.bytes(), at).unwrap_or(0);
        let (at, suspect, deaths) = (stored(AT_AGAIN), stored(AT_SUSPECT), stored(AT_DEATHS));
        let deaths = match at {
            0 => 0,
            at if at == suspect => deaths + 1,
            _ => 1,
        };
        self.store(AT_SUSPECT, at);
        self.store(AT_DEATHS, deaths);
        self.store(AT_AGAIN, 0);
        (deaths >= MAX_DEATHS).then(|| at - 1)
    }

    /// This datagram is decoded again now.
    pub(crate) fn replaying(&mut self, number: u64) {
        self.store(AT_AGAIN, number + 1);
    }

    pub(crate) fn end_replay(&mut self) {
        self.store(AT_AGAIN, 0);
    }

    /// Bytes for datagrams.
    fn room(&self) -> u64 {
        (self.memory.bytes().len().saturating_sub(HEADER) & !7) as u64
    }

    fn store(&mut self, at: usize, value: u64) {
        // What is stored before this stays before it, and what comes after stays after: the next process reads what
        // was stored up to the moment when this one was killed.
        compiler_fence(Ordering::SeqCst);
        if let Some(place) = self.memory.bytes_mut().get_mut(at..at + 8) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
        compiler_fence(Ordering::SeqCst);
    }

    fn place(&self, position: u64) -> usize {
        HEADER + usize::try_from(position % self.room().max(8)).unwrap_or(0)
    }

    /// Writes a datagram. One that is larger than the journal is not kept.
    pub(crate) fn append(&mut self, datagram: &Datagram<'_>, local_port: u16, received_us: i64) {
        let size = (HEAD + datagram.bytes.len()).next_multiple_of(8) as u64;
        let number = self.next;
        self.next += 1;
        if size > self.room() {
            return;
        }
        let left = self.room() - self.end % self.room();
        let skip = if left < size { left } else { 0 };
        self.make_room(size + skip);
        if skip > 0 {
            let at = self.place(self.end);
            self.memory.bytes_mut()[at..at + 4].copy_from_slice(&SKIP.to_ne_bytes());
        }
        let at = self.place(self.end + skip);
        let place = &mut self.memory.bytes_mut()[at..at + HEAD + datagram.bytes.len()];
        let (head, payload) = place.split_at_mut(HEAD);
        let len = u32::try_from(datagram.bytes.len()).unwrap_or(0);
        head[..4].copy_from_slice(&len.to_ne_bytes());
        head[4..6].copy_from_slice(&datagram.sender_port.to_ne_bytes());
        head[6..8].copy_from_slice(&local_port.to_ne_bytes());
        head[8..16].copy_from_slice(&number.to_ne_bytes());
        head[16..24].copy_from_slice(&received_us.to_ne_bytes());
        head[24..40].copy_from_slice(&datagram.sender.0);
        payload.copy_from_slice(datagram.bytes);
        self.end += skip + size;
        self.store(AT_END, self.end);
    }

    /// Gives up the oldest datagrams until there is room for `size` more bytes.
    fn make_room(&mut self, size: u64) {
        let before = self.start;
        while self.end + size - self.start > self.room() {
            match self.step(self.start) {
                Some((_, after)) if after <= self.end => self.start = after,
                // it cannot be read: all of it goes
                _ => self.start = self.end,
            }
            if self.start == self.end {
                break;
            }
        }
        if self.start != before {
            self.store(AT_START, self.start);
        }
    }

    /// What lies at `position` (None: nothing to the end of the room), and where the next one begins.
    fn step(&self, position: u64) -> Option<(Option<Entry<'_>>, u64)> {
        let bytes = self.memory.bytes().get(self.place(position)..)?;
        let left = self.room() - position % self.room();
        let len = u32::from_ne_bytes(*bytes.first_chunk()?);
        if len == SKIP {
            return Some((None, position + left));
        }
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let payload = rest.get(..len as usize)?;
        let port = |at: usize| Some(u16::from_ne_bytes(*head.get(at..)?.first_chunk()?));
        let meta = DatagramMeta {
            sender: Address(*head.get(24..)?.first_chunk()?),
            sender_port: port(4)?,
            local_port: port(6)?,
            received_us: word(head, 16)?.cast_signed(),
        };
        let size = (HEAD + payload.len()).next_multiple_of(8) as u64;
        let entry = Entry { number: word(head, 8)?, meta, bytes: payload };
        (size <= left).then_some((Some(entry), position + size))
    }

    /// Where the oldest datagram lies.
    pub(crate) fn first(&self) -> u64 {
        self.start
    }

    /// Whether `bytes` of datagrams can be written without one being overwritten that lies at `position` or behind it.
    pub(crate) fn has_room_behind(&self, position: u64, bytes: u64) -> bool {
        // one place at the end of the room may have to be left empty
        let skip = (HEAD + MAX_DATAGRAM).next_multiple_of(8) as u64;
        (self.end + bytes + skip).saturating_sub(position) <= self.room()
    }

    /// The datagram at `position`, and where the next one lies. None where there is no more.
    pub(crate) fn entry(&self, mut position: u64) -> Option<(Entry<'_>, u64)> {
        while position < self.end {
            let (entry, after) = self.step(position).filter(|(_, after)| *after <= self.end)?;
            if let Some(entry) = entry {
                return Some((entry, after));
            }
            position = after;
        }
        None
    }

    /// All datagrams, the oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut position = self.start;
        std::iter::from_fn(move || {
            let (entry, after) = self.entry(position)?;
            position = after;
            Some(entry)
        })
    }
}

/// What the log says about a journal: how far the rows of each table are in it, in the order of
/// [`weir_schemas::Table::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InLog(pub [Position; weir_schemas::Table::ALL.len()]);

/// All rows of datagrams before this one, and so many more of that table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub datagram: u64,
    pub rows: u64,
}

impl From<Covered> for Position {
    fn from(covered: Covered) -> Position {
        Position { datagram: covered.datagram, rows: covered.rows }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;

    /// Memory, and what a supervisor would hold of it.
    fn memory(bytes: usize) -> OwnedFd {
        Memory::create(c"test", bytes).unwrap()
    }

    fn map(memory: &OwnedFd) -> Memory {
        Memory::map(memory.as_fd(), 0).unwrap()
    }

    fn datagram(bytes: &[u8], port: u16) -> Datagram<'_> {
        Datagram {
            bytes,
            sender: Address::v4([192, 0, 2, 1]),
            sender_port: port,
            received_us: None,
            truncated: false,
        }
    }

    fn numbers(journal: &Journal) -> Vec<u64> {
        journal.entries().map(|entry| entry.number).collect()
    }

    #[test]
    fn what_was_written_is_there_for_the_next_process() {
        let memory = memory(Journal::LEAST_BYTES);
        let mut journal = Journal::open(map(&memory), 3);
        let id = journal.id();
        assert_ne!(id, 0);
        assert_eq!((numbers(&journal), journal.next(), journal.low()), (vec![], 0, 0));
        let payloads: Vec<Vec<u8>> = (0..20_u8).map(|n| vec![n; usize::from(n) * 37]).collect();
        for (n, payload) in payloads.iter().enumerate() {
            let port = u16::try_from(n).unwrap();
            journal.append(&datagram(payload, port), 2055, 1_000 + i64::from(port));
        }
        journal.set_low(7);
        journal.set_low(5);
        drop(journal);
        let journal = Journal::open(map(&memory), 3);
        assert_eq!((journal.id(), journal.next(), journal.low()), (id, 20, 7));
        for ((n, payload), entry) in payloads.iter().enumerate().zip(journal.entries()) {
            assert_eq!((entry.number, entry.bytes), (n as u64, &payload[..]));
            assert_eq!((usize::from(entry.meta.sender_port), entry.meta.local_port), (n, 2055));
            assert_eq!(entry.meta.received_us, 1_000 + i64::try_from(n).unwrap());
            assert_eq!(entry.meta.sender.to_string(), "192.0.2.1");
        }
        drop(journal);
        let mut journal = Journal::open(map(&memory), 3);
        journal.restart();
        assert_ne!(journal.id(), id);
        drop(journal);
        let journal = Journal::open(map(&memory), 3);
        assert_eq!((numbers(&journal), journal.next(), journal.low()), (vec![], 0, 0));
    }

    #[test]
    fn the_newest_overwrite_the_oldest_and_whole_ones_stay() {
        let memory = memory(Journal::LEAST_BYTES);
        let mut journal = Journal::open(map(&memory), 0);
        let mut seed = 1_u64;
        let mut sent: Vec<Vec<u8>> = Vec::new();
        for n in 0..5_000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // now and then the largest that UDP has
            let len = if n % 100 == 0 { 65_507 } else { usize::try_from(seed >> 53).unwrap() };
            let payload = vec![n as u8; len];
            journal.append(&datagram(&payload, 1), 1, 0);
            sent.push(payload);
            if n % 250 == 0 {
                let next = Journal::open(map(&memory), 0);
                let kept: Vec<Entry<'_>> = next.entries().collect();
                assert_eq!(kept.last().unwrap().number, n);
                assert!(n < 1_000 || kept.len() > 200, "{} of {n}", kept.len());
                for (entry, number) in kept.iter().zip(n + 1 - kept.len() as u64..) {
                    assert_eq!(entry.number, number);
                    assert_eq!(entry.bytes, sent[usize::try_from(number).unwrap()]);
                }
            }
        }
    }

    #[test]
    fn a_datagram_that_processes_die_of_is_left_out_the_next_time() {
        let memory = memory(Journal::LEAST_BYTES);
        let begin = |dies_at: Option<u64>| {
            let mut journal = Journal::open(map(&memory), 0);
            let left_out = journal.begin_replay();
            match dies_at {
                Some(number) => journal.replaying(number),
                None => journal.end_replay(),
            }
            left_out
        };
        // killed at different places: nobody's fault
        assert_eq!([7, 7, 9, 9, 3].map(|number| begin(Some(number))), [None; 5]);
        assert_eq!([5, 5, 5].map(|number| begin(Some(number))), [None; 3]);
        assert_eq!(begin(None), Some(5));
        assert_eq!(begin(None), None);
    }

    #[test]
    fn memory_that_holds_something_else_begins_anew() {
        let mut other = map(&memory(Journal::LEAST_BYTES));
        other.bytes_mut().fill(0xa5);
        let journal = Journal::open(other, 0);
        assert_eq!((numbers(&journal), journal.next()), (vec![], 0));
        // right at the front, and nonsense behind: what can be read is read, nothing panics
        let memory = memory(Journal::LEAST_BYTES);
        let mut journal = Journal::open(map(&memory), 0);
        journal.append(&datagram(&[1; 100], 1), 1, 0);
        journal.append(&datagram(&[2; 100], 1), 1, 0);
        let second = HEADER + (HEAD + 100).next_multiple_of(8);
        journal.memory.bytes_mut()[second..second + 4].copy_from_slice(&0x7fff_ffff_u32.to_ne_bytes());
        drop(journal);
        let mut journal = Journal::open(map(&memory), 0);
        assert_eq!(numbers(&journal), [0]);
        for _ in 0..20_000 {
            journal.append(&datagram(&[3; 100], 1), 1, 0);
        }
        assert_eq!(journal.entries().last().unwrap().number, 20_000);
    }
}
