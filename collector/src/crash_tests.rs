//! Collectors that are killed, as real processes: this test's own binary runs as the collector.

use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use weir_schemas::Table;
use weir_schemas::envelope::decode_body;
use weir_schemas::segment::{Scanner, Step, segment_first};

use super::*;
use crate::generate::{Generator, GeneratorConfig, Protocol, Totals};
use crate::receive::socket::take_inherited;
use crate::sink::embedded::{EmbeddedConfig, EmbeddedSink};

const CHILD: &str = "WEIR_TEST_COLLECTOR";

fn config() -> CollectorConfig {
    let mut config = CollectorConfig { name: Some("c1".into()), ..CollectorConfig::default() };
    config.listen.udp = vec!["127.0.0.1:0".parse().unwrap()];
    config.receive.shards = 2;
    config.batch.max_age_ms = 100;
    // Some batches go in parts.
    config.batch.max_bytes = 65_536;
    config
}

/// Not a test by itself: the collector that the tests kill. Ends in order when its stdin ends.
#[test]
fn child_that_collects() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let mut parts = told.split(';');
    let data_dir = PathBuf::from(parts.next().unwrap());
    let mut numbers = || -> Vec<i32> {
        let list = parts.next().unwrap().split(',').filter(|text| !text.is_empty());
        list.map(|text| text.parse().unwrap()).collect()
    };
    let sockets = numbers().into_iter().map(|fd| Socket::from_inherited(fd).unwrap()).collect();
    let journals = numbers().into_iter().map(|fd| take_inherited(fd).unwrap()).collect();
    let begun = Instant::now();
    let sink = Box::new(EmbeddedSink::open(&data_dir.join("log"), EmbeddedConfig::default()).unwrap());
    let opened = begun.elapsed();
    let deps = CollectorDeps { data_dir, sockets, sink, journals, forwarding: None };
    let collector = Collector::new(&config(), deps).unwrap();
    eprintln!("{} ms for the log, {} with reading back", opened.as_millis(), begun.elapsed().as_millis());
    let metrics = collector.metrics().clone();
    let watched = metrics.clone();
    std::thread::spawn(move || tell_what_happens(&watched, begun));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let summary = runtime.block_on(async {
        let stopped = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
        tokio::spawn(async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            eprintln!("collecting");
        });
        collector.run(async { drop(stopped.await) }).await.unwrap()
    });
    assert!(summary.ledger.balances(), "{summary:?}");
    let counts = || metrics.sources().shards.iter().map(|shard| shard.published().counts);
    eprintln!("replayed {}", counts().map(|counts| counts.replayed).sum::<u64>());
    eprintln!("died {}", counts().map(|counts| counts.died).sum::<u64>());
}

/// Says on stderr what the one who kills this process cannot ask it any more.
fn tell_what_happens(metrics: &CollectorMetrics, begun: Instant) {
    let mut last = String::new();
    loop {
        let shards = metrics.sources().shards.iter().map(|shard| shard.published().counts);
        let shards: Vec<_> = shards
            .map(|counts| (counts.calls > 0, counts.replayed, counts.died, counts.truncated, counts.panics))
            .collect();
        let queue = metrics.sources().queue.counters();
        let now = format!(
            "shards (receiving, replayed, died, truncated, panics) {shards:?}, dropped rows {:?}, busy {}",
            queue.dropped_rows, queue.busy
        );
        if now != last {
            eprintln!("at {} ms: {now}", begun.elapsed().as_millis());
            last = now;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a supervisor holds.
struct Held {
    data_dir: tempfile::TempDir,
    sockets: Vec<Socket>,
    journals: Vec<OwnedFd>,
}

impl Held {
    fn new(journals: usize) -> Held {
        let sockets = config().bind().unwrap();
        let receive = ReceiveConfig { journal_bytes: 64 << 20, ..config().receive };
        let journals: Vec<OwnedFd> = (0..journals).map(|_| receive.journal_memory().unwrap()).collect();
        sockets.iter().for_each(|socket| socket.set_inheritable(true).unwrap());
        journals.iter().for_each(|fd| socket2::SockRef::from(fd).set_cloexec(false).unwrap());
        Held { data_dir: tempfile::tempdir().unwrap(), sockets, journals }
    }

    /// Starts a collector and waits until it collects.
    fn start(&self) -> (Child, std::thread::JoinHandle<String>) {
        let list = |numbers: Vec<String>| numbers.join(",");
        let sockets = list(self.sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect());
        let journals = list(self.journals.iter().map(|fd| fd.as_raw_fd().to_string()).collect());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "collect::crash_tests::child_that_collects", "--nocapture"])
            .env(CHILD, format!("{};{sockets};{journals}", self.data_dir.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("collecting") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "the collector ended by itself:\n{said}");
        }
        let rest = std::thread::spawn(move || {
            lines.read_to_string(&mut said).unwrap();
            said
        });
        (child, rest)
    }

    /// The journals as they are now.
    fn peek(&self) -> Vec<Journal> {
        let open = |(shard, fd): (u64, &OwnedFd)| {
            Journal::peek(Memory::map(fd.as_fd(), Ring::BYTES).unwrap(), shard)
        };
        (0..).zip(&self.journals).filter_map(open).collect()
    }

    /// How far the journals are: datagrams that collectors have taken from the kernel.
    fn received(&self) -> u64 {
        self.peek().iter().map(Journal::next).sum()
    }

    /// Everything that is in the log, by the collector (`boot`, in the order of the log) and the shard that wrote it.
    fn log(&self) -> Vec<(u64, u64, Sums)> {
        let mut found: Vec<(u64, u64, Sums)> = Vec::new();
        let entries = std::fs::read_dir(self.data_dir.path().join("log/0")).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if path.file_name().and_then(|name| segment_first(name.to_str()?)).is_none() {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let mut scanner = Scanner::default();
            while let Step::Frame(frame) = scanner.step(&bytes[..], bytes.len() as u64).unwrap() {
                let envelope = frame.envelope().unwrap();
                let batch = decode_body(&envelope, &frame.body()).unwrap();
                let sum = |name: &str| {
                    let column = batch.column_by_name(name);
                    let column = column.and_then(|column| column.as_primitive_opt::<UInt64Type>());
                    column.map_or(0, |column| column.iter().flatten().sum::<u64>())
                };
                let shard = envelope.covered.map_or(u64::MAX, |covered| covered.shard);
                let at = found.iter().position(|(boot, of, _)| (*boot, *of) == (envelope.boot, shard));
                let at = at.unwrap_or_else(|| {
                    found.push((envelope.boot, shard, Sums::default()));
                    found.len() - 1
                });
                let table = &mut found[at].2[envelope.table as usize];
                table.0 += u64::from(envelope.rows);
                table.1 += sum("bytes");
                table.2 += sum("packets");
            }
        }
        found
    }
}

/// Of each table the rows, the sum of `bytes` and of `packets`.
type Sums = [(u64, u64, u64); Table::ALL.len()];

fn total(log: &[(u64, u64, Sums)]) -> Sums {
    let mut total = Sums::default();
    for (_, _, sums) in log {
        for (total, (rows, bytes, packets)) in total.iter_mut().zip(sums) {
            *total = (total.0 + rows, total.1 + bytes, total.2 + packets);
        }
    }
    total
}

/// Sends all protocols from eight exporters until told to stop; returns what was sent.
fn send(to: SocketAddr, stop: &AtomicBool, per_ms: usize, datagram_flows: usize) -> Totals {
    let start_us = crate::receive::now_us();
    let config = GeneratorConfig {
        protocols: Protocol::ALL.to_vec(),
        exporters: 8,
        datagram_flows,
        start_us,
        refresh_datagrams: 100,
        ..GeneratorConfig::default()
    };
    let mut generator = Generator::new(&config);
    let senders: Vec<UdpSocket> =
        (1..=8).map(|n| UdpSocket::bind((format!("127.0.11.{n}"), 0)).unwrap()).collect();
    let mut buffer = Vec::new();
    let started = Instant::now();
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = started.elapsed().as_millis() as usize * per_ms;
        for _ in sent..due {
            let now = start_us + i64::try_from(started.elapsed().as_micros()).unwrap();
            let info = generator.next(now, &mut buffer).unwrap();
            senders[info.exporter as usize].send_to(&buffer, to).unwrap();
        }
        sent = sent.max(due);
        std::thread::sleep(Duration::from_millis(1));
    }
    Totals::sum(generator.totals().iter().map(|(_, totals)| totals))
}

/// A collector that was killed: what it said, and how it left the journals.
struct Killed {
    said: std::thread::JoinHandle<String>,
    journals: String,
}

impl Killed {
    fn new(held: &Held, said: std::thread::JoinHandle<String>) -> Killed {
        let left = held.peek().into_iter().map(|journal| {
            let first = journal.entries().next().map(|entry| entry.number);
            format!("{:x}: low {} first {first:?} next {}", journal.id(), journal.low(), journal.next())
        });
        Killed { said, journals: left.collect::<Vec<_>>().join("; ") }
    }
}

/// `kill -9` under load, again and again: every flow is in the log once. `WEIR_KILLS`, `WEIR_DATAGRAMS_PER_MS` and
/// `WEIR_LIFE_MS` (the longest that a collector lives) make it longer and harder, `WEIR_DATAGRAM_FLOWS` (the most flows of a
/// datagram) easier; what the kernel drops, because the load is
/// more than a collector that has to decode again what its predecessor left can take, fails it.
#[test]
fn collectors_that_are_killed_lose_nothing_and_store_nothing_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let (kills, per_ms) = (number("WEIR_KILLS").unwrap_or(8), number("WEIR_DATAGRAMS_PER_MS").unwrap_or(2));
    let datagram_flows = number("WEIR_DATAGRAM_FLOWS").unwrap_or(usize::MAX);
    let life_ms = number("WEIR_LIFE_MS").unwrap_or(400) as u64;
    let held = Held::new(2);
    let to = held.sockets[0].local_addr();
    let stop = AtomicBool::new(false);
    let drops = || held.sockets.iter().map(|socket| socket.drops().unwrap().0).sum::<u64>();
    let mut lives = Vec::new();
    let mut dropped = Vec::new();
    let (sent, said) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(to, &stop, per_ms, datagram_flows));
        let mut seed = 20_261_124_u64;
        for _ in 0..kills {
            let (mut child, said) = held.start();
            dropped.push(drops());
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_millis(20 + (seed >> 33) % life_ms));
            child.kill().unwrap();
            child.wait().unwrap();
            lives.push(Killed::new(&held, said));
        }
        let (mut child, said) = held.start();
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        // It takes what the kernel has (some of it may not even be in the sockets yet), and stops in order.
        let started = Instant::now();
        while held.received() + drops() < sent.datagrams && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        lives.push(Killed::new(&held, std::thread::spawn(String::new)));
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        (sent, said.join().unwrap())
    });
    let log = held.log();
    let mut report = format!("{kills} kills, sent {sent:?}; kernel drops at each start {dropped:?}\n");
    for (at, Killed { said, journals }) in lives.into_iter().enumerate() {
        report += &format!("collector {at}: {}left {journals}\n", said.join().unwrap());
    }
    report += &format!("the last one: {said}");
    for (boot, shard, sums) in &log {
        report += &format!("log of {boot:x}, shard {shard}: {sums:?}\n");
    }
    if std::env::var_os("WEIR_REPORT").is_some() {
        eprintln!("{report}");
    }
    assert_eq!(drops(), 0, "dropped by the kernel\n{report}");
    assert!(said.contains("died 0"), "{report}");
    eprintln!("{kills} kills, {} datagrams, {} flows", sent.datagrams, sent.rows);
    let all = total(&log);
    assert_eq!(all[Table::Flows as usize], (sent.rows, sent.bytes, sent.packets), "{report}");
    assert_eq!(all[Table::Options as usize].0, sent.options_records, "{report}");
    assert_eq!(all[Table::InterfaceCounters as usize].0, sent.counter_samples, "{report}");
    // Stopped in order: nothing is left to be decoded again.
    let (mut child, _) = held.start();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(total(&held.log())[Table::Flows as usize].0, sent.rows);
}
