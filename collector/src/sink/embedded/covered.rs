//! How far the log is in the journals of a collector that died, as its last messages say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;

use weir_schemas::segment::{Scanner, Step};
use weir_schemas::{Envelope, Table};

use super::partition::Partition;
use crate::receive::journal::{InLog, Position};
use crate::sink::JournalMark;

/// A message is appended after its datagrams are received; but the clock may be set back in between.
const CLOCK_STEP_US: i64 = 60_000_000;

/// What a segment says about the journals.
#[derive(Debug, Default)]
struct Said {
    /// Of each journal and table the furthest place, and where the frame stands that says so.
    furthest: HashMap<(usize, Table), (Position, u64)>,
    /// Journals of which a frame says that it is at the mark or before, and where that one stands.
    at_mark: BTreeMap<usize, u64>,
    newest_us: Option<i64>,
}

impl Said {
    fn add(&mut self, at: u64, appended_us: i64, envelope: &Envelope, journals: &[JournalMark]) {
        self.newest_us = self.newest_us.max(Some(appended_us));
        let Some(covered) = envelope.covered else { return };
        let is_it =
            |journal: &JournalMark| (journal.journal, journal.shard) == (covered.journal, covered.shard);
        let Some(index) = journals.iter().position(is_it) else { return };
        let place = self.furthest.entry((index, envelope.table)).or_insert((Position::default(), at));
        if Position::from(covered) > place.0 {
            *place = (Position::from(covered), at);
        }
        // Batches close in the order of the journal. A part of one that was split says where it began, which may be
        // long ago.
        if covered.rows == 0 && covered.datagram <= journals[index].low {
            self.at_mark.insert(index, at);
        }
    }

    /// By the fronts of the frames; those that count are then read whole. None where something is damaged.
    fn by_fronts(file: &File, size: u64, journals: &[JournalMark]) -> io::Result<Option<Said>> {
        let (mut said, mut scanner, mut last) = (Said::default(), Scanner::default(), None);
        while scanner.position() < size {
            let at = scanner.position();
            let Some(front) = scanner.pass(file, size)? else { return Ok(None) };
            let Ok(envelope) = front.envelope() else { return Ok(None) };
            said.add(at, front.head.appended_us, &envelope, journals);
            last = Some(at);
        }
        // where none is about the journals, that the last one is whole says that this is no damage
        let places = said.furthest.values().map(|(_, at)| *at);
        for at in places.chain(said.at_mark.values().copied()).chain(last).collect::<BTreeSet<_>>() {
            if !matches!(Scanner::new(at).step(file, size)?, Step::Frame(_)) {
                return Ok(None);
            }
        }
        Ok(Some(said))
    }

    /// By all frames that are whole.
    fn by_frames(file: &File, size: u64, journals: &[JournalMark]) -> io::Result<Said> {
        let (mut said, mut scanner) = (Said::default(), Scanner::default());
        loop {
            let at = scanner.position();
            match scanner.step(file, size)? {
                Step::Frame(frame) => match frame.envelope() {
                    Ok(envelope) => said.add(at, frame.head.appended_us, &envelope, journals),
                    Err(_) => said.newest_us = said.newest_us.max(Some(frame.head.appended_us)),
                },
                Step::Corrupt { .. } => {}
                Step::Torn { .. } | Step::End => return Ok(said),
            }
        }
    }
}

/// Reads back from the end of a partition (one of `partitions`) that was just opened, as far as there may be something
/// that is not known. What this costs is time in which nobody receives.
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
        let said = match Said::by_fronts(&file, size, journals)? {
            Some(said) => said,
            None => Said::by_frames(&file, size, journals)?,
        };
        for ((index, table), (position, _)) in &said.furthest {
            let place = &mut found[*index].0[*table as usize];
            *place = (*place).max(*position);
        }
        said.at_mark.keys().for_each(|index| wanted[*index] = None);
        // The messages of a journal are the last ones of the log: before a segment that has none there are none, nor in
        // one that was full before the datagrams came.
        let is_older = |newest_us: i64| newest_us.saturating_add(CLOCK_STEP_US) < since_us;
        if said.newest_us.is_some_and(|newest_us| said.furthest.is_empty() || is_older(newest_us)) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use weir_schemas::envelope::Covered;

    use weir_schemas::segment::segment_first;

    use super::*;
    use crate::sink::embedded::EmbeddedSink;
    use crate::sink::embedded::Fsync;
    use crate::sink::embedded::tests::{config, message};
    use crate::sink::{Message, Sink};

    /// What two shards say of their journals; returns the segments.
    fn write(directory: &std::path::Path, below: &mut impl FnMut(u64) -> u64) -> Vec<std::path::PathBuf> {
        let mut sink = EmbeddedSink::open(directory, config(Fsync::Never)).unwrap();
        let mut ends = [0; 2];
        for number in 0..20 + below(80) {
            let shard = below(2);
            ends[shard as usize] += below(4);
            let rows = below(3) * 10;
            let covered = Covered { journal: 77 + shard, shard, datagram: ends[shard as usize], rows };
            let mut message: Message = message(number, below(900) as usize);
            message.envelope.table = Table::ALL[below(3) as usize];
            message.envelope.covered = Some(covered);
            sink.append(&message).unwrap();
        }
        sink.flush(std::time::Duration::from_secs(5));
        let entries = std::fs::read_dir(directory.join("0")).unwrap().map(|entry| entry.unwrap());
        let is_segment =
            |entry: &std::fs::DirEntry| entry.file_name().to_str().and_then(segment_first).is_some();
        let mut paths: Vec<_> = entries.filter(is_segment).map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// What the fronts say and the frames that count confirm is what all whole frames say, whatever bits are wrong.
        #[test]
        fn fronts_say_what_whole_frames_say(seed: u64, flips in 0_usize..4) {
            let mut state = seed | 1;
            let mut below = move |most: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % most.max(1)
            };
            let directory = tempfile::tempdir().unwrap();
            let paths = write(directory.path(), &mut below);
            for _ in 0..flips {
                let path = &paths[below(paths.len() as u64) as usize];
                let mut bytes = std::fs::read(path).unwrap();
                let at = below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << below(8);
                std::fs::write(path, &bytes).unwrap();
            }
            let mark = |shard: u64, low| JournalMark { journal: 77 + shard, shard, low, since_us: Some(0) };
            let journals = [mark(0, below(60)), mark(1, below(60))];
            for path in &paths {
                let (file, size) = (File::open(path).unwrap(), std::fs::metadata(path).unwrap().len());
                let frames = Said::by_frames(&file, size, &journals).unwrap();
                let fronts = Said::by_fronts(&file, size, &journals).unwrap();
                prop_assert!(fronts.is_some() || flips > 0);
                let Some(fronts) = fronts else { continue };
                let places = |said: &Said| -> BTreeMap<(usize, &str), Position> {
                    let furthest = said.furthest.iter();
                    furthest.map(|((index, table), (place, _))| ((*index, table.name()), *place)).collect()
                };
                prop_assert_eq!(places(&fronts), places(&frames));
                prop_assert!(fronts.at_mark.keys().eq(frames.at_mark.keys()));
            }
        }
    }
}
