use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use weir_schemas::Envelope;
use weir_schemas::envelope::{Compression, decode_body, encode_pieces};
use weir_schemas::segment::{Scanner, Step, segment_first};

use super::*;
use crate::batch::{BatchConfig, Batcher, Closed, SizeRatios};
use crate::decode::{Batches, DecodeConfig, Decoder, SharedState};
use crate::generate::{Generator, GeneratorConfig, Protocol};
use crate::metrics::{ExporterFeed, ExporterTable, ShardStats};
use crate::receive::quarantine::Quarantine;
use crate::receive::socket::{Memory, Socket};
use crate::receive::{ShardCounts, ShardParts, StopSignal};
use crate::sink::embedded::{EmbeddedConfig, EmbeddedSink, Fsync};
use crate::sink::{JournalMark, Message, Sink};
use crate::writer::{Identity, Queue, Writer, WriterConfig};

const PORT: u16 = 2055;

/// A datagram as the kernel gives it.
struct Sent {
    bytes: Vec<u8>,
    exporter: u8,
    received_us: i64,
}

impl Sent {
    fn datagram(&self) -> Datagram<'_> {
        Datagram {
            bytes: &self.bytes,
            sender: weir_schemas::Address::v4([127, 0, 11, self.exporter]),
            sender_port: 5_000,
            received_us: Some(self.received_us),
            truncated: false,
        }
    }
}

/// Datagrams of all protocols from four exporters, their templates again and again.
fn datagrams(count: usize, seed: u64) -> Vec<Sent> {
    let start_us = now_us();
    let config = GeneratorConfig {
        seed,
        protocols: Protocol::ALL.to_vec(),
        exporters: 4,
        start_us,
        refresh_datagrams: 10,
        ..GeneratorConfig::default()
    };
    let mut generator = Generator::new(&config);
    let mut bytes = Vec::new();
    let mut next = |n: usize| {
        let received_us = start_us + 1_000 * i64::try_from(n).unwrap();
        let info = generator.next(received_us, &mut bytes).unwrap();
        Sent { bytes: bytes.clone(), exporter: u8::try_from(info.exporter + 1).unwrap(), received_us }
    };
    (0..count).map(&mut next).collect()
}

/// Of each table, in order, what its rows say: `bytes` of flows, else nothing but that they are there.
type Rows = [Vec<u64>; Table::ALL.len()];

fn rows_of(batch: &arrow::array::RecordBatch) -> Vec<u64> {
    let column = batch.column_by_name("bytes").and_then(|column| column.as_primitive_opt::<UInt64Type>());
    column.map_or_else(
        || vec![0; batch.num_rows()],
        |column| column.iter().map(Option::unwrap_or_default).collect(),
    )
}

/// What decoding all of them once gives.
fn decoded(sent: &[Sent]) -> Rows {
    let config = Arc::new(DecodeConfig::default());
    let shared = Arc::new(SharedState::of(&config).unwrap());
    let (mut decoder, mut batches) = (Decoder::new(config, shared), Batches::new());
    for sent in sent {
        let datagram = sent.datagram();
        let meta = crate::decode::DatagramMeta {
            sender: datagram.sender,
            sender_port: datagram.sender_port,
            local_port: PORT,
            received_us: sent.received_us,
        };
        decoder.decode(&sent.bytes, &meta, &mut batches);
    }
    batches.all_mut().map(|builder| builder.finish().map_or_else(Vec::new, |batch| rows_of(&batch)))
}

fn stored(log: &Path) -> Rows {
    let mut rows = Rows::default();
    let directory = log.join("0");
    let names =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| segment_first(name).is_some()).collect();
    names.sort();
    for name in names {
        let bytes = fs::read(directory.join(name)).unwrap();
        let mut scanner = Scanner::default();
        while let Step::Frame(frame) = scanner.step(&bytes[..], bytes.len() as u64).unwrap() {
            let envelope = frame.envelope().unwrap();
            let batch = decode_body(&envelope, &frame.body()).unwrap();
            rows[envelope.table as usize].extend(rows_of(&batch));
        }
    }
    rows
}

/// A collector with one shard and no sockets, taken step by step, with a writer that is in no hurry.
struct Life {
    work: Work,
    ring: Ring,
    sink: EmbeddedSink,
    told: Arc<std::sync::atomic::AtomicU64>,
    /// Encoded and not in the log yet.
    messages: VecDeque<Message>,
    number: u64,
    now: Instant,
}

impl Life {
    fn begin(directory: &Path, memory: &OwnedFd, journal_at: usize, queue_bytes: usize) -> Life {
        let ring = Ring::open(Memory::map(memory.as_fd(), 0).unwrap()).unwrap();
        let journal = Journal::open(Memory::map(memory.as_fd(), journal_at).unwrap(), 0);
        let config =
            EmbeddedConfig { fsync: Fsync::Never, segment_bytes: 100_000, ..EmbeddedConfig::default() };
        let mut sink = reopen(&directory.join("log"), &config);
        let mark =
            JournalMark { journal: journal.id(), shard: 0, low: journal.low(), since_us: journal.since_us() };
        let in_log = sink.in_log(&[mark]).unwrap()[0];
        let told: Arc<std::sync::atomic::AtomicU64> = Arc::default();
        let decode = Arc::new(DecodeConfig::default());
        let shared = Arc::new(SharedState::of(&decode).unwrap());
        let exporters = Arc::new(ExporterTable::new(10));
        let batch = BatchConfig { max_bytes: 60_000, max_age_ms: 100, ..BatchConfig::default() };
        let parts = ShardParts {
            index: 0,
            sockets: Vec::new(),
            decoder: Decoder::new(decode, shared),
            batcher: Batcher::new(&batch, 0),
            ratios: Arc::new(SizeRatios::new(Compression::None)),
            queue: Arc::new(Queue::new(queue_bytes)),
            quarantine: Arc::new(Quarantine::new(directory.join("quarantine"))),
            stats: Arc::new(ShardStats::new(Vec::new(), exporters)),
            stop: Arc::new(StopSignal::default()),
            journal: Some(KeptJournal { journal, in_log, low: Arc::clone(&told) }),
        };
        let feed = ExporterFeed::new(Arc::clone(parts.stats.exporters()));
        let work = Work { parts, counts: ShardCounts::default(), feed, told: Default::default() };
        Life { work, ring, sink, told, messages: VecDeque::new(), number: 0, now: Instant::now() }
    }

    fn replay(&mut self) {
        self.work.take_left_over(&mut self.ring);
        self.work.replay(&mut self.ring);
    }

    /// What one system call gave; killed after so many datagrams were decoded, where that is less.
    fn receive(&mut self, sent: &[Sent], decoded: usize) {
        self.work.keep(sent.iter().map(Sent::datagram), PORT);
        for sent in sent.iter().take(decoded) {
            self.work.decode(&sent.datagram(), PORT, sent.received_us);
        }
        self.work.mark_decoded();
    }

    fn round(&mut self) {
        let now = self.now;
        self.work.close(|batcher, ratios, emit| batcher.close_due(now, ratios, emit));
        self.work.publish();
    }

    /// What is closed becomes messages, in as many parts as `cut` says.
    fn encode(&mut self, mut cut: impl FnMut(u64) -> u64) {
        for closed in self.work.parts.queue.drain() {
            let Closed { table, batch, shard, part, .. } = closed;
            let (rows, mut done) = (batch.num_rows() as u64, 0);
            while done < rows {
                let piece = cut(rows - done).clamp(1, rows - done);
                let batch = batch.slice(done as usize, piece as usize);
                done += piece;
                let is_last = done == rows;
                let mut envelope = Envelope::of(&batch, table, "c1", 1, self.number);
                envelope.covered = part.map(|part| part.covered(shard, (!is_last).then_some(done)));
                let low = part.filter(|_| is_last).map(|part| part.low);
                let body: Vec<u8> = encode_pieces(&batch, Compression::None)
                    .unwrap()
                    .iter()
                    .flat_map(|piece| piece.as_slice().to_vec())
                    .collect();
                self.number += 1;
                self.messages.push_back(Message { envelope, body: body.into(), key: shard, low });
            }
        }
    }

    fn append(&mut self, count: usize) {
        for _ in 0..count.min(self.messages.len()) {
            let message = self.messages.pop_front().unwrap();
            self.sink.append(&message).unwrap();
            if let Some(low) = message.low {
                self.told.store(low, Ordering::Release);
            }
        }
    }
}

/// Opens a log that was closed just now. Where a test beside this one starts a process, that has every open file for a
/// moment, the lock too.
fn reopen(directory: &Path, config: &EmbeddedConfig) -> EmbeddedSink {
    for _ in 0..500 {
        match EmbeddedSink::open(directory, config.clone()) {
            Ok(sink) => return sink,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    panic!("{} stays locked", directory.display());
}

fn assert_same(directory: &Path, sent: &[Sent], what: &str) {
    let (stored, decoded) = (stored(&directory.join("log")), decoded(sent));
    for table in Table::ALL.into_iter().filter(|table| FROM_DATAGRAMS[*table as usize]) {
        let (stored, decoded) = (&stored[table as usize], &decoded[table as usize]);
        let same = stored.iter().zip(decoded).take_while(|(a, b)| a == b).count();
        assert_eq!(
            (stored.len(), same),
            (decoded.len(), decoded.len()),
            "{}: rows stored and the same as sent, {what}",
            table.name()
        );
    }
}

/// One run: lives that end at random moments, and a last one that ends in order.
fn killed_at_random(seed: u64) {
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &{
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes
    });
    let mut below = move |most: usize| random.random_range(0..most.max(1));
    let directory = tempfile::tempdir().unwrap();
    let memory = Memory::create(c"test", Ring::BYTES + (2 << 20)).unwrap();
    let sent = datagrams(200 + below(1_500), seed);
    let (mut next, mut lives) = (0, 0);
    while next < sent.len() {
        lives += 1;
        let mut life = Life::begin(directory.path(), &memory, Ring::BYTES, 1 << 30);
        life.replay();
        assert_eq!(life.work.counts.died, 0, "seed {seed}");
        let rounds = below(120);
        for _ in 0..rounds {
            // Sometimes a few datagrams at a time: then some rounds have none with flows.
            let burst = (1 + if below(3) == 0 { below(RING_SLOTS) } else { below(2) }).min(sent.len() - next);
            life.receive(&sent[next..next + burst], burst);
            next += burst;
            life.now += Duration::from_millis(below(60) as u64);
            if below(8) == 0 {
                life.work.tick();
            }
            life.round();
            life.encode(|rows| if below(3) == 0 { 1 + below(rows as usize) as u64 } else { rows });
            let count = if below(2) == 0 { 0 } else { below(6) };
            life.append(count);
            if life.messages.len() > 60 {
                life.append(60);
            }
        }
        // Killed: within a burst, or with what is closed partly in the log.
        let burst = below(RING_SLOTS).min(sent.len() - next);
        life.receive(&sent[next..next + burst], below(burst + 1));
        next += burst;
        life.encode(|rows| 1 + below(rows as usize) as u64);
        let count = below(life.messages.len() + 1);
        life.append(count);
        life.work.publish();
    }
    let mut life = Life::begin(directory.path(), &memory, Ring::BYTES, 1 << 30);
    life.replay();
    life.work.close(|batcher, _, emit| batcher.close_all(emit));
    life.encode(|rows| rows);
    life.append(usize::MAX);
    drop(life);
    assert_same(directory.path(), &sent, &format!("seed {seed}, {lives} lives"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whenever collectors die, whatever of their batches is in the log: in the end every row is there once, in order.
    #[test]
    fn every_row_is_in_the_log_once_whenever_collectors_die(seed: u64) {
        killed_at_random(seed);
    }
}

/// Received faster than it is written: what the queue has no room for waits in the socket's buffer.
#[test]
fn while_the_socket_has_room_the_queue_drops_nothing() {
    let listen = "127.0.0.1:0".parse().unwrap();
    let sockets = crate::receive::socket::bind_all(&[listen], 1, 16 << 20, Default::default()).unwrap();
    if sockets[0].buffer_granted() < 16 << 20 {
        // without the right to have a large buffer there is not enough room for the test
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let memory = Memory::create(c"test", Ring::BYTES + (8 << 20)).unwrap();
    let Life { mut work, ring, sink, told, .. } =
        // half of it is room for what is closed at once
        Life::begin(directory.path(), &memory, Ring::BYTES, 4 << 20);
    let sockets: Vec<Arc<Socket>> = sockets.into_iter().map(Arc::new).collect();
    work.parts.stats = Arc::new(ShardStats::new(sockets.clone(), Arc::new(ExporterTable::new(10))));
    work.parts.sockets = sockets.clone();
    let (queue, stop) = (Arc::clone(&work.parts.queue), Arc::clone(&work.parts.stop));
    let writer = writer(sink, &work.parts, told);
    let shard = crate::receive::Shard::new(ring, work.parts);
    let shard = std::thread::spawn(move || shard.run());
    let mut sent = datagrams(12_000, 11);
    let senders: Vec<_> =
        (1..=4).map(|n| std::net::UdpSocket::bind((format!("127.0.11.{n}"), 0)).unwrap()).collect();
    // Slowly, until the queue is full, and then some more.
    let (mut count, mut more) = (0, 1_000);
    for sent in &sent {
        senders[usize::from(sent.exporter) - 1].send_to(&sent.bytes, sockets[0].local_addr()).unwrap();
        count += 1;
        if !queue.has_room() {
            more -= 1;
        } else if count % 50 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        if more == 0 {
            break;
        }
    }
    sent.truncate(count);
    // It has taken what the queue has room for, and no more.
    assert!(!queue.has_room());
    std::thread::sleep(Duration::from_millis(300));
    assert!(sockets[0].mem_info().unwrap().queued_bytes > 0);
    let writer = std::thread::spawn(move || writer.run());
    while sockets[0].mem_info().unwrap().queued_bytes > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    stop.stop();
    shard.join().unwrap();
    queue.close();
    assert_eq!(writer.join().unwrap(), 0);
    let counters = queue.counters();
    assert_eq!(counters.dropped_rows.iter().sum::<u64>(), 0, "{counters:?}");
    assert_eq!(sockets[0].drops().unwrap().0, 0);
    let (stored, sent) = (stored(&directory.path().join("log")), decoded(&sent));
    assert_eq!(stored[Table::Flows as usize], sent[Table::Flows as usize]);
}

fn writer(sink: EmbeddedSink, parts: &ShardParts, told: Arc<std::sync::atomic::AtomicU64>) -> Writer {
    let mut writer = Writer::new(
        Box::new(sink),
        Arc::clone(&parts.queue),
        Arc::clone(&parts.ratios),
        Identity { collector: "c1".into(), boot: 1 },
        &BatchConfig { max_bytes: 60_000, ..BatchConfig::default() },
        &WriterConfig::default(),
    );
    writer.tell(vec![told]);
    writer
}

/// What a shard decodes again is more than the queue holds: the writer is waited for.
#[test]
fn what_is_decoded_again_does_not_overrun_the_queue() {
    let directory = tempfile::tempdir().unwrap();
    let memory = Memory::create(c"test", Ring::BYTES + (8 << 20)).unwrap();
    let sent = datagrams(4_000, 7);
    let mut life = Life::begin(directory.path(), &memory, Ring::BYTES, 1 << 30);
    life.replay();
    for burst in sent.chunks(RING_SLOTS) {
        life.receive(burst, burst.len());
    }
    drop(life);
    // 16 MB of batches through a queue of one
    let life = Life::begin(directory.path(), &memory, Ring::BYTES, 1 << 20);
    let Life { mut work, mut ring, sink, told, .. } = life;
    let queue = Arc::clone(&work.parts.queue);
    let writer = writer(sink, &work.parts, told);
    let writer = std::thread::spawn(move || writer.run());
    work.replay(&mut ring);
    work.close(|batcher, _, emit| batcher.close_all(emit));
    queue.close();
    assert_eq!(writer.join().unwrap(), 0);
    let counters = queue.counters();
    assert_eq!(counters.dropped_rows.iter().sum::<u64>(), 0, "{counters:?}");
    assert!(counters.closed_bytes > 8 << 20, "{counters:?}");
    assert_same(directory.path(), &sent, "through a small queue");
}
