//! The collector under load, in one process: a sender thread over loopback, the shards, the writer and the embedded log.
//! Prints what was sent, received and dropped, and the CPU time of each thread per flow row.
//!
//! `cargo run --release -p weir-collector --example load -- PROTOCOL DATAGRAMS_PER_SECOND SECONDS [SHARDS [COMPRESSION
//! [MAX_BYTES]]]` (PROTOCOL: netflow5, netflow9, ipfix, sflow5 or `junk`; a rate of 0 sends as fast as it goes;
//! COMPRESSION and MAX_BYTES as in `[batch]`)
//! With NO_JOURNAL=1 it keeps no journal: what that costs.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use weir_collector::collect::{Collector, CollectorConfig, CollectorDeps};
use weir_collector::generate::{Generator, GeneratorConfig, Protocol};
use weir_collector::sink::embedded::{EmbeddedConfig, EmbeddedSink};

/// Nanoseconds on a CPU, by thread name.
fn cpu_by_thread() -> BTreeMap<String, u64> {
    let mut times = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let ns = read("schedstat").split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        *times.entry(read("comm").trim().to_owned()).or_default() += ns;
    }
    times
}

/// Datagrams to send over and over, with the exporter of each.
fn datagrams(protocol: &str, count: usize) -> Vec<(usize, Vec<u8>)> {
    let Some(protocol) = Protocol::ALL.into_iter().find(|known| known.name() == protocol) else {
        return (0..count).map(|n| (n % 4, vec![0xff; 1_400])).collect();
    };
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let config = GeneratorConfig {
        protocols: vec![protocol],
        exporters: 4,
        flows: u64::MAX,
        start_us: now,
        ..GeneratorConfig::default()
    };
    let mut generator = Generator::new(&config);
    let mut buffer = Vec::new();
    let next = |n: usize| {
        let info = generator.next(now + i64::try_from(n).unwrap(), &mut buffer).unwrap();
        (info.exporter as usize, buffer.clone())
    };
    (0..count).map(next).collect()
}

fn send(datagrams: &[(usize, Vec<u8>)], port: u16, rate: u64, time: Duration) -> (u64, f64) {
    let senders: Vec<UdpSocket> =
        (1..=4).map(|n| UdpSocket::bind((format!("127.0.9.{n}"), 0)).unwrap()).collect();
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        if rate > 0 {
            let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
            if sent >= due {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            }
        }
        for _ in 0..16 {
            let (exporter, bytes) = &datagrams[(sent % datagrams.len() as u64) as usize];
            senders[exporter % 4].send_to(bytes, ("127.0.0.1", port)).unwrap();
            sent += 1;
        }
    }
    (sent, start.elapsed().as_secs_f64())
}

#[tokio::main(worker_threads = 1)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [protocol, rate, seconds, ..] = arguments.as_slice() else {
        panic!("PROTOCOL RATE SECONDS [SHARDS]")
    };
    let (rate, seconds): (u64, u64) = (rate.parse().unwrap(), seconds.parse().unwrap());
    let mut config = CollectorConfig::default();
    config.listen.udp = vec!["127.0.0.1:0".parse().unwrap()];
    config.receive.shards = arguments.get(3).map_or(1, |shards| shards.parse().unwrap());
    if let Some(compression) = arguments.get(4) {
        config.batch.compression = serde_json::from_value(compression.as_str().into()).unwrap();
    }
    if let Some(bytes) = arguments.get(5) {
        config.batch.max_bytes = bytes.parse().unwrap();
    }
    let directory = tempfile::tempdir_in(".").unwrap();
    let sink = EmbeddedSink::open(&directory.path().join("log"), EmbeddedConfig::default()).unwrap();
    let sockets = config.bind().unwrap();
    let port = sockets[0].local_addr().port();
    let memory = |_| config.receive.journal_memory().unwrap();
    let journals = if std::env::var_os("NO_JOURNAL").is_some() {
        Vec::new()
    } else {
        (0..config.receive.shard_count()).map(memory).collect()
    };
    let deps = CollectorDeps {
        data_dir: directory.path().to_owned(),
        sockets,
        sink: Box::new(sink),
        journals,
        forwarding: None,
    };
    let collector = Collector::new(&config, deps).unwrap();
    let metrics = collector.metrics().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(collector.run(async move {
        let _ = stopped.await;
    }));
    let datagrams = datagrams(protocol, 20_000);
    let sender = std::thread::Builder::new().name("sender".into());
    let time = Duration::from_secs(seconds);
    let sender = sender.spawn(move || send(&datagrams, port, rate, time)).unwrap();
    let mut cpu = BTreeMap::new();
    while !sender.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cpu.append(&mut cpu_by_thread());
    }
    let (sent, elapsed) = sender.join().unwrap();
    // Until everything is in the log.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let ledger = metrics.ledger();
        let received = ledger.datagrams_received + metrics.kernel_drops() >= sent;
        if (received && ledger.rows_open + ledger.rows_in_flight == 0) || Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cpu.append(&mut cpu_by_thread());
    stop.send(()).unwrap();
    let summary = running.await.unwrap().unwrap();
    let ledger = summary.ledger;
    assert!(ledger.balances(), "{ledger:?}");
    assert_eq!(ledger.datagrams_received + summary.kernel_drops, sent);
    let writer = metrics.sources().queue.counters();
    let rows = ledger.rows_decoded.max(1) as f64;
    println!(
        "{protocol}: sent {sent} datagrams in {elapsed:.1} s = {:.0}/s; lost {:.2} %; {:.2} M rows = {:.0} k rows/s, {:.1} B/row",
        sent as f64 / elapsed,
        100.0 * summary.kernel_drops as f64 / sent as f64,
        rows / 1e6,
        rows / elapsed / 1e3,
        writer.acknowledged_bytes as f64 / rows,
    );
    let calls = metrics.sources().shards.iter().map(|shard| shard.published().counts.calls).sum::<u64>();
    println!("  {:.0} rows a message", rows / writer.acknowledged_messages.max(1) as f64);
    println!("  {:.1} datagrams a system call", ledger.datagrams_received as f64 / calls as f64);
    // not the sender, nor the thread that makes the datagrams and measures
    let ours = |thread: &str| thread != "sender" && thread != "load";
    let collector: u64 = cpu.iter().filter(|(thread, _)| ours(thread)).map(|(_, ns)| *ns).sum();
    println!("  collector: {:.0} ns of CPU a row", collector as f64 / rows);
    for (thread, ns) in cpu.iter().filter(|(_, ns)| **ns > 5_000_000) {
        println!(
            "  {thread:<16} {:>6.2} s = {:>6.0} ns/row = {:>6.0} ns/datagram",
            *ns as f64 / 1e9,
            *ns as f64 / rows,
            *ns as f64 / ledger.datagrams_received as f64
        );
    }
}
