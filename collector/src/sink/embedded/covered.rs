//! How far the log is in the journals of a collector that died, as its last messages say.

use std::fs::File;
use std::io;

use weir_schemas::segment::{Scanner, Step};

use super::partition::Partition;
use crate::receive::journal::{InLog, Position};
use crate::sink::JournalMark;

/// A message is appended after its datagrams are received; but the clock may be set back in between.
const CLOCK_STEP_US: i64 = 60_000_000;

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
        let (mut scanner, mut newest_us, mut frames, mut ours) = (Scanner::default(), i64::MIN, 0_u64, 0_u64);
        loop {
            let frame = match scanner.step(&file, size)? {
                Step::Frame(frame) => frame,
                Step::Corrupt { .. } => continue,
                Step::Torn { .. } | Step::End => break,
            };
            frames += 1;
            newest_us = newest_us.max(frame.head.appended_us);
            let Ok(envelope) = frame.envelope() else { continue };
            let Some(covered) = envelope.covered else { continue };
            let is_it =
                |journal: &JournalMark| (journal.journal, journal.shard) == (covered.journal, covered.shard);
            let Some(index) = journals.iter().position(is_it) else { continue };
            ours += 1;
            let place = &mut found[index].0[envelope.table as usize];
            *place = Position::from(covered).max(*place);
            // Batches close in the order of the journal. A part of one that was split says where it began, which may
            // be long ago.
            if covered.rows == 0 && covered.datagram <= journals[index].low {
                wanted[index] = None;
            }
        }
        // The messages of a journal are the last ones of the log: before a segment that has none there are none, nor in
        // one that was full before the datagrams came.
        if frames > 0 && (ours == 0 || newest_us.saturating_add(CLOCK_STEP_US) < since_us) {
            break;
        }
    }
    Ok(())
}
