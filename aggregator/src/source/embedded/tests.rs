use std::collections::BTreeSet;

use proptest::prelude::*;
use weir_collector::sink::embedded::{EmbeddedConfig, EmbeddedSink, Fsync};
use weir_collector::sink::{Message, Sink};
use weir_schemas::segment::{segment_first, segment_name};
use weir_schemas::tables::SCHEMA_VERSION;
use weir_schemas::{Envelope, Table};

use super::*;
use crate::source::Payload;

const LONG: Duration = Duration::from_secs(10);

fn message(number: u64, bytes: usize) -> Message {
    let envelope = Envelope {
        schema_version: SCHEMA_VERSION,
        table: Table::Flows,
        collector: "c1".to_owned(),
        boot: 1,
        batch_seq: number,
        rows: 10,
        min_time_us: 0,
        max_time_us: 0,
        covered: None,
        origin: None,
    };
    Message { envelope, body: vec![number.to_le_bytes()[0]; bytes].into(), key: number, low: None }
}

fn config() -> EmbeddedConfig {
    EmbeddedConfig { fsync: Fsync::Batch, segment_bytes: 4096, ..EmbeddedConfig::default() }
}

fn open_sink(directory: &Path) -> EmbeddedSink {
    EmbeddedSink::open(directory, config()).unwrap()
}

fn append(sink: &mut EmbeddedSink, numbers: std::ops::Range<u64>, bytes: usize) {
    let count = numbers.end - numbers.start;
    numbers.for_each(|number| sink.append(&message(number, bytes)).unwrap());
    assert_eq!(sink.flush(LONG).messages, count);
}

/// What a message says, short enough to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Batch(u64),
    Foreign,
    Gap(u64),
}

fn said(message: &LogMessage) -> Said {
    match &message.payload {
        Payload::Batch { envelope, body } => {
            assert!(body.iter().all(|byte| *byte == envelope.batch_seq.to_le_bytes()[0]));
            Said::Batch(envelope.batch_seq)
        }
        Payload::Foreign { .. } => Said::Foreign,
        Payload::Gap { from } => Said::Gap(message.offset - from + 1),
    }
}

/// Reads until the log is quiet.
fn read_all(reader: &mut Reader, max_bytes: usize) -> Vec<LogMessage> {
    let mut all = Vec::new();
    loop {
        let mut messages = Vec::new();
        reader.read(max_bytes, &mut messages).unwrap();
        if messages.is_empty() {
            return all;
        }
        let bytes: usize = messages
            .iter()
            .map(|message| match &message.payload {
                Payload::Batch { body, .. } => body.len(),
                Payload::Foreign { .. } | Payload::Gap { .. } => 0,
            })
            .sum();
        assert!(bytes <= max_bytes || messages.len() == 1, "{bytes} bytes in {} messages", messages.len());
        all.extend(messages);
    }
}

fn says(reader: &mut Reader) -> Vec<Said> {
    read_all(reader, 1 << 20).iter().map(said).collect()
}

fn batches(numbers: std::ops::Range<u64>) -> Vec<Said> {
    numbers.map(Said::Batch).collect()
}

fn segments(directory: &Path) -> Vec<u64> {
    let names = fs::read_dir(directory.join("0")).unwrap();
    let mut firsts: Vec<u64> =
        names.filter_map(|entry| segment_first(entry.unwrap().file_name().to_str().unwrap())).collect();
    firsts.sort_unstable();
    firsts
}

#[test]
fn every_message_comes_once_in_order_whatever_the_budget() {
    let directory = tempfile::tempdir().unwrap();
    let mut early = Reader::new(directory.path(), Positions::new());
    assert_eq!(says(&mut early), []);
    let mut sink = open_sink(directory.path());
    append(&mut sink, 0..40, 700);
    assert!(segments(directory.path()).len() > 5);
    for max_bytes in [0, 1, 700, 5000, 1 << 20] {
        let mut reader = Reader::new(directory.path(), Positions::new());
        let all = read_all(&mut reader, max_bytes);
        assert_eq!(all.iter().map(said).collect::<Vec<_>>(), batches(0..40), "budget {max_bytes}");
        assert!(all.iter().map(|message| message.offset).is_sorted_by(|a, b| a + 1 == *b));
        assert_eq!(reader.end(), Positions::from([(0, all[39].offset + 1)]));
        // and from every position on
        for (at, message) in all.iter().enumerate() {
            let mut reader = Reader::new(directory.path(), Positions::from([(0, message.offset)]));
            assert_eq!(says(&mut reader), batches(at as u64..40));
        }
    }
    early.listed = None;
    assert_eq!(says(&mut early), batches(0..40));
    append(&mut sink, 40..45, 700);
    assert_eq!(says(&mut early), batches(40..45));
}

#[test]
fn what_is_not_yet_durable_is_not_seen() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open_sink(directory.path());
    let mut reader = Reader::new(directory.path(), Positions::new());
    sink.append(&message(0, 10)).unwrap();
    assert_eq!(says(&mut reader), []);
    sink.flush(LONG);
    assert_eq!(says(&mut reader), batches(0..1));
}

#[test]
fn all_partitions_are_read_and_a_busy_one_does_not_starve_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let three = EmbeddedConfig { partitions: 3, ..config() };
    let mut sink = EmbeddedSink::open(directory.path(), three).unwrap();
    append(&mut sink, 0..30, 100);
    let mut reader = Reader::new(directory.path(), Positions::new());
    let mut first = BTreeSet::new();
    for _ in 0..3 {
        let mut messages = Vec::new();
        reader.read(1, &mut messages).unwrap();
        first.extend(messages.iter().map(|message| message.partition));
    }
    assert_eq!(first, BTreeSet::from([0, 1, 2]));
    let mut all = says(&mut reader);
    all.sort_by_key(|said| match said {
        Said::Batch(number) => *number,
        _ => panic!("{said:?}"),
    });
    assert_eq!(all, batches(3..30));
}

#[test]
fn segments_that_retention_deleted_are_one_gap() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open_sink(directory.path());
    append(&mut sink, 0..40, 700);
    let mut reader = Reader::new(directory.path(), Positions::new());
    let mut some = Vec::new();
    reader.read(2000, &mut some).unwrap();
    assert_eq!(some.len(), 2);
    let at = some[1].offset + 1;
    let firsts = segments(directory.path());
    for first in &firsts[..4] {
        fs::remove_file(directory.path().join("0").join(segment_name(*first))).unwrap();
    }
    // a new reader at that position: all up to the first segment left is gone
    let mut later = Reader::new(directory.path(), Positions::from([(0, at)]));
    let rest = says(&mut later);
    assert_eq!(rest[0], Said::Gap(firsts[4] - at));
    let next = firsts[4] - firsts[0];
    assert_eq!(rest[1..], batches(next..40));
    // one that begins anew misses nothing, there is no telling that more was there
    assert_eq!(says(&mut Reader::new(directory.path(), Positions::new())), batches(next..40));
    // the one that had the file open reads it to its end first
    let rest = says(&mut reader);
    let kept = (firsts[1] - at) as usize;
    assert_eq!(rest[..kept], batches(2..2 + kept as u64));
    assert_eq!(rest[kept], Said::Gap(firsts[4] - firsts[1]));
    assert_eq!(rest[kept + 1..], batches(next..40));
}

#[test]
fn a_damaged_byte_anywhere_costs_one_message_and_is_handed_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open_sink(directory.path());
    append(&mut sink, 0..4, 20);
    let first = segments(directory.path())[0];
    let path = directory.path().join("0").join(segment_name(first));
    let whole = fs::read(&path).unwrap();
    let size = whole.len() / 4;
    for closed in [false, true] {
        if closed {
            // a further segment: the end of the damaged one is known by the next one's name
            append(&mut sink, 4..5, 4096);
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            let mut reader = Reader::new(directory.path(), Positions::new());
            let all = read_all(&mut reader, 1 << 20);
            let mut wanted = batches(0..if closed { 5 } else { 4 });
            wanted[at / size] = Said::Foreign;
            assert_eq!(all.iter().map(said).collect::<Vec<_>>(), wanted, "byte {at}");
            let Payload::Foreign { reason, bytes } = &all[at / size].payload else { panic!("byte {at}") };
            assert_eq!(bytes[..], damaged[at / size * size..][..size], "byte {at}: {reason}");
            assert_eq!(all[at / size].offset, first + (at / size) as u64);
        }
        // cut: what the mark promised is gone
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut wanted = batches(0..(cut / size) as u64);
            wanted.push(Said::Gap(4 - (cut / size) as u64));
            if closed {
                wanted.push(Said::Batch(4));
            }
            assert_eq!(says(&mut Reader::new(directory.path(), Positions::new())), wanted, "cut at {cut}");
        }
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn what_a_newer_weir_wrote_stops_the_reader() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open_sink(directory.path());
    append(&mut sink, 0..1, 20);
    let mut newer = message(1, 20);
    newer.envelope.schema_version = SCHEMA_VERSION + 1;
    sink.append(&newer).unwrap();
    sink.flush(LONG);
    let mut reader = Reader::new(directory.path(), Positions::new());
    let mut messages = Vec::new();
    for _ in 0..2 {
        let error = reader.read(1 << 20, &mut messages).unwrap_err();
        assert!(matches!(&error, SourceError::Fatal(text) if text.contains("upgrade")), "{error}");
        assert_eq!(messages.iter().map(said).collect::<Vec<_>>(), batches(0..1));
    }
}

#[test]
fn a_log_older_than_the_store_is_refused_and_one_made_after_it_goes_beyond() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = open_sink(directory.path());
    append(&mut sink, 0..3, 20);
    let end = read_mark(&directory.path().join("0").join(HEAD_FILE)).unwrap().unwrap().end;
    let ahead = Positions::from([(0, end + 5)]);
    let mut source = EmbeddedSource::open(directory.path(), ahead.clone());
    let error = source.reader.reader().unwrap().read(1, &mut Vec::new()).unwrap_err();
    assert!(matches!(&error, SourceError::Fatal(text) if text.contains("restart")), "{error}");
    // the remedy that it names
    drop(sink);
    let mut sink = open_sink(directory.path());
    append(&mut sink, 3..4, 20);
    let mut reader = Reader::new(directory.path(), ahead);
    assert_eq!(says(&mut reader), batches(3..4));
    // the log is deleted altogether
    let end = reader.end();
    drop(sink);
    fs::remove_dir_all(directory.path().join("0")).unwrap();
    let mut reader = Reader::new(directory.path(), end);
    assert_eq!(says(&mut reader), []);
    let mut sink = open_sink(directory.path());
    append(&mut sink, 4..6, 20);
    reader.listed = None;
    let all = says(&mut reader);
    assert!(matches!(all[0], Said::Gap(_)), "{all:?}");
    assert_eq!(all[1..], batches(4..6));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_messages_are_seen_soon_and_a_poll_given_up_loses_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let mut source = EmbeddedSource::open(&path, Positions::new());
    assert!(source.poll(1 << 20).await.unwrap().is_empty());
    let writer = std::thread::spawn(move || {
        let mut sink = open_sink(&path);
        let mut written = Vec::new();
        for number in 0..30 {
            append(&mut sink, number..number + 1, 500);
            written.push(Instant::now());
            std::thread::sleep(Duration::from_millis(70));
        }
        (sink, written)
    });
    let (mut seen, mut given_up) = (Vec::new(), 0);
    while seen.len() < 30 {
        match tokio::time::timeout(Duration::from_millis(15), source.poll(1 << 20)).await {
            Ok(messages) => {
                let now = Instant::now();
                seen.extend(messages.unwrap().iter().map(|message| (said(message), now)));
            }
            Err(_) => given_up += 1,
        }
    }
    let (mut sink, written) = writer.join().unwrap();
    assert!(given_up > 30, "{given_up}");
    assert_eq!(seen.iter().map(|(said, _)| said.clone()).collect::<Vec<_>>(), batches(0..30));
    let mut delays: Vec<_> = seen
        .iter()
        .zip(&written)
        .skip(3)
        .map(|((_, seen), written)| seen.saturating_duration_since(*written))
        .collect();
    delays.sort_unstable();
    assert!(delays[delays.len() / 2] < Duration::from_millis(100), "{delays:?}");
    // what the store contains may be deleted
    let end = source.end();
    source.committed(&end).await.unwrap();
    source.committed(&end).await.unwrap();
    let file = File::open(directory.path().join("0").join(COMMITTED_FILE)).unwrap();
    assert_eq!(Mark::read(&file).unwrap().unwrap().end, end[&0]);
    append(&mut sink, 30..31, 500);
    let messages = source.poll(1 << 20).await.unwrap();
    assert_eq!(messages.iter().map(said).collect::<Vec<_>>(), batches(30..31));
}

#[derive(Debug, Clone)]
enum Act {
    Append(usize),
    Sync,
    /// The writer is killed with -9 and starts again.
    Kill,
    /// The machine loses power: of what was never fsynced, some is lost.
    Crash(prop::sample::Index),
    Read(usize),
    /// Everything becomes durable, what was found after a crash too.
    Flush,
    /// The reader starts again where the store is: at some message already read.
    Restart(prop::sample::Index),
    /// The store commits all that was read, and the writer deletes what it may.
    Commit,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// Writer and reader against the simplest log there is, a list: the reader sees each message that became durable
    /// exactly once, in order, without a gap, through kills of the one and restarts of the other.
    #[test]
    fn writer_and_reader_against_a_list(acts in prop::collection::vec(
        prop_oneof![
            8 => (0_usize..3000).prop_map(Act::Append),
            3 => Just(Act::Sync),
            1 => Just(Act::Kill),
            1 => any::<prop::sample::Index>().prop_map(Act::Crash),
            4 => (0_usize..8000).prop_map(Act::Read),
            1 => any::<prop::sample::Index>().prop_map(Act::Restart),
            1 => Just(Act::Commit),
        ],
        1..80,
    )) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let config = EmbeddedConfig { max_bytes: 8192, ..config() };
        let open = || EmbeddedSink::open(path, config.clone()).unwrap();
        let mut sink = open();
        let origin = read_mark(&path.join("0").join(HEAD_FILE)).unwrap().unwrap().end;
        let (mut list, mut next): (Vec<u64>, u64) = (Vec::new(), 0);
        let mut reader = Reader::new(path, Positions::new());
        let mut seen: Vec<(u64, u64)> = Vec::new();
        // the reader never restarts before what the store has committed
        let mut committed = 0;
        for act in acts.into_iter().chain([Act::Flush, Act::Read(usize::MAX)]) {
            match act {
                Act::Append(bytes) => {
                    sink.append(&message(next, bytes)).unwrap();
                    list.push(next);
                    next += 1;
                }
                Act::Sync => {
                    sink.poll(Duration::ZERO);
                }
                Act::Flush => {
                    sink.flush(Duration::from_secs(5));
                }
                Act::Kill => {
                    drop(sink);
                    sink = open();
                }
                Act::Crash(point) => {
                    drop(sink);
                    let mark = read_mark(&path.join("0").join(HEAD_FILE)).unwrap().unwrap();
                    let segment = path.join("0").join(segment_name(mark.segment));
                    let file = File::options().write(true).open(&segment).unwrap();
                    let size = file.metadata().unwrap().len();
                    file.set_len(mark.bytes + point.index((size - mark.bytes) as usize + 1) as u64).unwrap();
                    sink = open();
                    // what was found is promised with the next sync
                    sink.flush(Duration::from_secs(5));
                    // what comes back is a beginning of what was appended, and no less than the mark had promised
                    let after = read_mark(&path.join("0").join(HEAD_FILE)).unwrap().unwrap();
                    prop_assert!(after.end >= mark.end);
                    list.truncate(usize::try_from(after.end - origin).unwrap());
                }
                Act::Read(max_bytes) => {
                    let mut messages = Vec::new();
                    reader.read(max_bytes, &mut messages).unwrap();
                    for message in &messages {
                        let Said::Batch(number) = said(message) else { panic!("{message:?}") };
                        seen.push((message.offset, number));
                    }
                }
                Act::Restart(point) => {
                    let keep = committed + point.index(seen.len() - committed + 1);
                    let position = if keep == 0 { None } else { Some(seen[keep - 1].0 + 1) };
                    seen.truncate(keep);
                    reader = Reader::new(path, position.map(|position| (0, position)).into_iter().collect());
                }
                Act::Commit => {
                    if let Some((offset, _)) = seen.last() {
                        committed = seen.len();
                        let mut marks = CommittedMarks { directory: path.to_owned(), ..CommittedMarks::default() };
                        marks.write(&Positions::from([(0, offset + 1)])).unwrap();
                        drop(sink);
                        sink = open();
                    }
                }
            }
        }
        let numbers: Vec<u64> = seen.iter().map(|(_, number)| *number).collect();
        prop_assert_eq!(numbers, list);
        prop_assert!(seen.is_sorted_by(|a, b| a.0 < b.0));
    }
}
