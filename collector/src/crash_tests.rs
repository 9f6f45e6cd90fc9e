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
    let sink = Box::new(EmbeddedSink::open(&data_dir.join("log"), EmbeddedConfig::default()).unwrap());
    let deps = CollectorDeps { data_dir, sockets, sink, journals, forwarding: None };
    let collector = Collector::new(&config(), deps).unwrap();
    let metrics = collector.metrics().clone();
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

    /// Everything that is in the log: of each table the rows, the sum of `bytes` and of `packets`.
    fn log(&self) -> [(u64, u64, u64); Table::ALL.len()] {
        let mut sums = [(0, 0, 0); Table::ALL.len()];
        for entry in std::fs::read_dir(self.data_dir.path().join("log/0")).unwrap() {
            let path = entry.unwrap().path();
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
                let table = &mut sums[envelope.table as usize];
                table.0 += u64::from(envelope.rows);
                table.1 += sum("bytes");
                table.2 += sum("packets");
            }
        }
        sums
    }
}

/// Sends all protocols from eight exporters until told to stop; returns what was sent.
fn send(to: SocketAddr, stop: &AtomicBool, per_ms: usize) -> Totals {
    let start_us = crate::receive::now_us();
    let config = GeneratorConfig {
        protocols: Protocol::ALL.to_vec(),
        exporters: 8,
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

/// `kill -9` under load, again and again: every flow is in the log once.
#[test]
fn collectors_that_are_killed_lose_nothing_and_store_nothing_twice() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
    let (kills, per_ms) = (number("WEIR_KILLS").unwrap_or(8), number("WEIR_DATAGRAMS_PER_MS").unwrap_or(2));
    let held = Held::new(2);
    let to = held.sockets[0].local_addr();
    let stop = AtomicBool::new(false);
    let (sent, said) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(to, &stop, per_ms));
        let mut seed = 20_261_124_u64;
        for _ in 0..kills {
            let (mut child, _) = held.start();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_millis(20 + (seed >> 33) % 400));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let (mut child, said) = held.start();
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        // It takes what the kernel has, and stops in order.
        let started = Instant::now();
        while held.sockets.iter().any(|socket| socket.mem_info().unwrap().queued_bytes > 0) {
            assert!(started.elapsed() < Duration::from_secs(60), "the sockets are never empty");
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        (sent, said.join().unwrap())
    });
    let drops: u64 = held.sockets.iter().map(|socket| socket.drops().unwrap().0).sum();
    assert_eq!(drops, 0);
    assert!(said.contains("died 0"), "{said}");
    let log = held.log();
    eprintln!("{kills} kills, {} datagrams, {} flows", sent.datagrams, sent.rows);
    assert_eq!(log[Table::Flows as usize], (sent.rows, sent.bytes, sent.packets));
    assert_eq!(log[Table::Options as usize].0, sent.options_records);
    assert_eq!(log[Table::InterfaceCounters as usize].0, sent.counter_samples);
    // Stopped in order: nothing is left to be decoded again.
    let (mut child, _) = held.start();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(held.log()[Table::Flows as usize].0, sent.rows);
}
