//! How far the log is in the journals of a collector that died, as its last messages say.
//!
//! What this costs is part of the time in which nobody receives. So of the frames only the fronts are read, and of each
//! table and journal the one frame that says most is read whole, its checksum verified: what is damaged says nothing.

use std::fs::File;
use std::io;

use weir_schemas::Table;
use weir_schemas::envelope::Covered;
use weir_schemas::segment::{Scanner, Step};

use super::partition::Partition;
use crate::receive::journal::{InLog, Position};
use crate::sink::JournalMark;

/// A message is appended after its datagrams are received; but the clock may be set back in between.
const CLOCK_STEP_US: i64 = 60_000_000;

/// What a frame says.
#[derive(Debug, Clone, Copy)]
struct Said {
    /// Which of the journals it is about.
    index: usize,
    table: Table,
    covered: Covered,
    /// Where the frame begins.
    at: u64,
}

impl Said {
    /// Whether the frame is whole and says so.
    fn is_true(&self, file: &File, size: u64) -> io::Result<bool> {
        let Step::Frame(frame) = Scanner::new(self.at).step(file, size)? else { return Ok(false) };
        let Ok(envelope) = frame.envelope() else { return Ok(false) };
        Ok(envelope.table == self.table && envelope.covered == Some(self.covered))
    }
}

/// The frames of a segment that are about one of the journals.
#[derive(Debug, Default)]
struct Segment {
    said: Vec<Said>,
    newest_us: Option<i64>,
}

impl Segment {
    fn read(file: &File, size: u64, journals: &[JournalMark]) -> io::Result<Segment> {
        let (mut segment, mut scanner) = (Segment::default(), Scanner::default());
        loop {
            let (at, head, envelope) = match scanner.pass(file, size)? {
                Some(front) => (front.at, front.head, front.envelope()),
                None => {
                    let at = scanner.position();
                    match scanner.step(file, size)? {
                        Step::Frame(frame) => (at, frame.head, frame.envelope()),
                        Step::Corrupt { .. } => continue,
                        Step::Torn { .. } | Step::End => return Ok(segment),
                    }
                }
            };
            segment.newest_us = segment.newest_us.max(Some(head.appended_us));
            let Ok(envelope) = envelope else { continue };
            let Some(covered) = envelope.covered else { continue };
            let is_it =
                |journal: &JournalMark| (journal.journal, journal.shard) == (covered.journal, covered.shard);
            if let Some(index) = journals.iter().position(is_it) {
                segment.said.push(Said { index, table: envelope.table, covered, at });
            }
        }
    }
}

/// Whether the segment has a frame that is not damaged: where none says a word about the journals, damage may be why.
fn has_whole_frame(file: &File, size: u64) -> io::Result<bool> {
    let mut scanner = Scanner::default();
    loop {
        match scanner.step(file, size)? {
            Step::Frame(_) => return Ok(true),
            Step::Corrupt { .. } => {}
            Step::Torn { .. } | Step::End => return Ok(false),
        }
    }
}

/// Reads back from the end of a partition (one of `partitions`) that was just opened, as far as there may be something
/// that is not known.
pub(super) fn find(
    partition: &Partition,
    partitions: u32,
    journals: &[JournalMark],
    found: &mut [InLog],
) -> io::Result<()> {
    // Since when the messages are wanted; None where nothing is beyond the mark, and where what is at the mark was met.
    let here = |journal: &JournalMark| journal.shard % u64::from(partitions) == u64::from(partition.number());
    let mut wanted: Vec<Option<i64>> =
        journals.iter().map(|journal| journal.since_us.filter(|_| here(journal))).collect();
    for (path, size) in partition.sealed() {
        let Some(since_us) = wanted.iter().flatten().min().copied() else { break };
        let file = File::open(path)?;
        let mut segment = Segment::read(&file, size, journals)?;
        // the furthest first
        segment.said.sort_by_key(|said| std::cmp::Reverse(Position::from(said.covered)));
        for said in &segment.said {
            let place = &mut found[said.index].0[said.table as usize];
            if Position::from(said.covered) > *place && said.is_true(&file, size)? {
                *place = Position::from(said.covered);
            }
        }
        // Batches close in the order of the journal. A part of one that was split says where it began, which may be long
        // ago.
        for said in &segment.said {
            let Said { index, covered, .. } = *said;
            let is_at_mark = covered.rows == 0 && covered.datagram <= journals[index].low;
            if is_at_mark && wanted[index].is_some() && said.is_true(&file, size)? {
                wanted[index] = None;
            }
        }
        // The messages of a journal are the last ones of the log: before a segment that has none there are none, nor in
        // one that was full before the datagrams came.
        let is_older = segment.newest_us.is_some_and(|us| us.saturating_add(CLOCK_STEP_US) < since_us);
        if is_older || (segment.said.is_empty() && has_whole_frame(&file, size)?) {
            break;
        }
    }
    Ok(())
}
