//! `kill -9` at seeded moments under load: what SQL showed once stays, nothing is there twice, and what is missing was
//! in the memory of the process that was killed.
//!
//! Every flow sent here has a number of its own, so that a lost one and a repeated one are told apart.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use weir_tests::command::{program, run, signal};
use weir_tests::generate::Load;
use weir_tests::kafka::Kafka;
use weir_tests::ledger::{Ledger, assert_lossless};
use weir_tests::netflow5::{Flow, datagram};
use weir_tests::s3::S3;
use weir_tests::wait::{LONG, until, until_equal};
use weir_tests::weir::{Setup, Weir, binary};

/// Flows a second that are sent.
const RATE: u32 = 15_000;
const PER_DATAGRAM: u32 = 30;
/// Flows that may be in the memory of a killed collector: an open batch is at most a second old, and what is on the way
/// to the disk another; a loaded machine may take three.
const IN_MEMORY: u64 = 3 * RATE as u64;

/// Sends numbered flows until told to stop.
#[derive(Debug, Default)]
struct Sender {
    stop: AtomicBool,
    pause: AtomicBool,
    sent: AtomicU32,
}

impl Sender {
    fn run(&self, to: SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let started = Instant::now();
        let mut paused = Duration::ZERO;
        while !self.stop.load(Ordering::Relaxed) {
            if self.pause.load(Ordering::Relaxed) {
                let since = Instant::now();
                while self.pause.load(Ordering::Relaxed) && !self.stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                paused += since.elapsed();
                continue;
            }
            let first = self.sent.load(Ordering::Relaxed);
            let due = Duration::from_secs_f64(f64::from(first) / f64::from(RATE));
            if let Some(early) = due.checked_sub(started.elapsed().saturating_sub(paused)) {
                std::thread::sleep(early);
            }
            let flows: Vec<Flow> = (first..first + PER_DATAGRAM).map(numbered).collect();
            socket.send_to(&datagram(first, &flows), to).unwrap();
            self.sent.store(first + PER_DATAGRAM, Ordering::Relaxed);
        }
    }

    fn sent(&self) -> u64 {
        u64::from(self.sent.load(Ordering::Relaxed))
    }
}

/// Stops the sender also where an assertion fails: a scope waits for its threads.
struct StopAtEnd<'a>(&'a Sender);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The number in the last three bytes of the source, and again in the bytes.
fn numbered(number: u32) -> Flow {
    let [_, a, b, c] = number.to_be_bytes();
    Flow::new([10, a, b, c], 64 + number % 1_400)
}

/// Rows, distinct numbers, and rows whose bytes do not fit their number.
const COUNTS: &str = "select coalesce(sum(n), 0), count(*), coalesce(sum(odd), 0) from (select src_addr, count(*) as n, \
    sum(case when packets <> 1 then 1 else 0 end) as odd from flows group by src_addr)";

fn seed() -> u64 {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_123);
    eprintln!("WEIR_SEED={seed} repeats this");
    seed
}

/// Moments between kills, from a seed.
struct Moments(u64);

impl Moments {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(300 + self.below(2_200))
    }
}

/// Waits until the log's end is in SQL, and returns how many numbers there are; none twice, at least `floor`.
fn assert_no_duplicate(weir: &Weir, floor: u64) -> u64 {
    let (counts, rollup, talkers) = until(LONG, "the log's end in SQL, at rest", || {
        // what is in the spool comes before what is in the topic
        let spooled = weir.metrics().sum("weir_spool_waiting_messages", &[]).unwrap_or(0.0);
        let lag = weir.metrics().sum("weir_store_lag_offsets", &[]);
        let ledger = Ledger::read(&weir.metrics())?;
        if spooled != 0.0 || lag != Some(0.0) || ledger.rows_in_flight != 0 {
            return Err(format!("spool {spooled}, lag {lag:?} {ledger}\n{}", weir.log()));
        }
        let counts = weir.numbers(COUNTS);
        // what a collector that was just started has yet to decode again is nowhere in flight
        std::thread::sleep(Duration::from_secs(1));
        let rollup = weir.numbers("select sum(flows), sum(packets) from flows_1m");
        let talkers = weir.numbers("select sum(flows) from top_talkers where dimension = 'conversation'");
        // What waited in the sockets while nobody read them comes after a start.
        if weir.numbers(COUNTS) == counts {
            Ok((counts, rollup, talkers))
        } else {
            Err("rows come".to_owned())
        }
    });
    let [rows, distinct, odd] = counts[..] else { panic!("{counts:?}") };
    assert_eq!((rows, odd), (distinct, 0), "rows that are there twice, or odd");
    assert!(rows >= floor, "{rows} rows now, {floor} were shown before");
    assert_eq!(rollup, [rows, rows], "the rollups");
    assert_eq!(talkers, [rows]);
    rows
}

/// The aggregator is killed again and again: nothing at all is lost.
#[test]
fn killed_aggregators_lose_and_repeat_nothing() {
    let setup = Setup::new();
    let weir = setup.start();
    let sender = Sender::default();
    let mut moments = Moments(seed());
    std::thread::scope(|scope| {
        scope.spawn(|| sender.run(weir.addresses.udp[0]));
        let _stop = StopAtEnd(&sender);
        for _ in 0..4 {
            std::thread::sleep(moments.pause());
            let shown = weir.try_sql(COUNTS).ok().and_then(|rows| rows[0][0].parse::<u64>().ok());
            let killed = weir.kill_role("aggregate");
            weir.wait_for_role("aggregate", Some(killed));
            let back = until(LONG, "SQL to answer", || weir.try_sql(COUNTS));
            let now: u64 = back[0][0].parse().unwrap();
            assert!(now >= shown.unwrap_or(0), "{now} rows after the kill, {shown:?} before");
            assert_eq!(back[0][0], back[0][1], "rows that are there twice");
        }
    });
    let sent = sender.sent();
    until_equal("every flow in SQL", &vec![sent, sent, 0], || weir.numbers(COUNTS));
    assert_eq!(assert_no_duplicate(&weir, sent), sent);
    assert_eq!(assert_lossless(&weir).flows_decoded, sent);
    assert!(weir.stop().success());
    let weir = setup.start();
    assert_eq!(assert_no_duplicate(&weir, sent), sent);
}

/// The collector is killed: what it had in memory may be lost, what SQL had shown may not, and the sockets' queues are
/// read by the next one.
#[test]
fn killed_collectors_repeat_nothing() {
    let setup = Setup::new();
    let weir = setup.start();
    let sender = Sender::default();
    let mut moments = Moments(seed() + 1);
    let kills = 4;
    let mut floor = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| sender.run(weir.addresses.udp[0]));
        let _stop = StopAtEnd(&sender);
        for _ in 0..kills {
            std::thread::sleep(moments.pause());
            floor = weir.numbers(COUNTS)[0];
            let killed = weir.kill_role("collect");
            weir.wait_for_role("collect", Some(killed));
        }
        std::thread::sleep(moments.pause());
    });
    let rows = assert_no_duplicate(&weir, floor);
    let lost = sender.sent() - rows;
    assert!(lost <= kills * IN_MEMORY, "{lost} of {} lost by {kills} kills", sender.sent());
    assert!(weir.stop().success());
    let weir = setup.start();
    assert_eq!(assert_no_duplicate(&weir, rows), rows, "after a restart");
}

/// The supervisor is killed, and with it everything: the next start goes on.
#[test]
fn killed_supervisors_lose_nothing_that_was_shown() {
    let setup = Setup::new();
    let sender = Sender::default();
    let mut moments = Moments(seed() + 2);
    let weir = std::thread::scope(|scope| {
        let mut weir = setup.start();
        let to = weir.addresses.udp[0];
        let sender = &sender;
        scope.spawn(move || sender.run(to));
        let _stop = StopAtEnd(sender);
        for _ in 0..3 {
            std::thread::sleep(moments.pause());
            let floor = weir.numbers(COUNTS)[0];
            weir.kill();
            weir = setup.start();
            assert_eq!(weir.addresses.udp[0], to);
            let back = until(LONG, "what was shown", || {
                let rows = weir.try_sql(COUNTS)?;
                let now: u64 = rows[0][0].parse().map_err(|_| format!("{rows:?}"))?;
                if now >= floor { Ok(rows) } else { Err(format!("{now} rows, {floor} before")) }
            });
            assert_eq!(back[0][0], back[0][1], "rows that are there twice");
        }
        // With nothing on the way, a kill takes nothing.
        sender.pause.store(true, Ordering::Relaxed);
        let rows = assert_no_duplicate(&weir, 0);
        weir.kill();
        weir = setup.start();
        assert_eq!(assert_no_duplicate(&weir, rows), rows, "at rest");
        weir
    });
    assert!(weir.stop().success());
}

/// Kernel drops since the sockets were made, which is when their supervisor was started.
fn kernel_drops(weir: &Weir) -> u64 {
    until(LONG, "the collector's counts", || Ledger::read(&weir.metrics())).kernel_drops
}

/// Kills of every process there is, mixed, under load, through a real Kafka: the flows in SQL are those that were sent,
/// less those in datagrams that the kernel dropped while nobody read its queue, and each once.
///
/// `WEIR_KILLS=200` makes it long; `WEIR_SEED` repeats one.
#[test]
fn mixed_kills_through_kafka_count_every_flow_once() {
    let kills = std::env::var("WEIR_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let kafka = Kafka::start();
    let setup = Setup::new().config(&kafka.config());
    let sender = Sender::default();
    let mut moments = Moments(seed() + 3);
    let (weir, drops) = std::thread::scope(|scope| {
        let mut weir = setup.start();
        let (to, sender) = (weir.addresses.udp[0], &sender);
        scope.spawn(move || sender.run(to));
        let _stop = StopAtEnd(sender);
        let (mut drops, mut shown) = (0, 0);
        for kill in 0..kills {
            std::thread::sleep(moments.pause());
            // each kind once, then as it comes
            let kind = if kill < 5 { [0, 4, 7, 8, 9][kill] } else { moments.below(10) };
            match kind {
                0..4 => {
                    weir.kill_role("collect");
                }
                4..7 => {
                    weir.kill_role("aggregate");
                }
                7 => kafka.crash(),
                8 => {
                    // a zombie: it goes on where it stopped
                    let role = ["collect", "aggregate"][moments.below(2) as usize];
                    let pid = weir.wait_for_role(role, None);
                    signal(pid, "STOP");
                    std::thread::sleep(Duration::from_millis(moments.below(800)));
                    signal(pid, "CONT");
                }
                _ => {
                    // the queues of its sockets die with the supervisor: they are empty
                    sender.pause.store(true, Ordering::Relaxed);
                    until(LONG, "empty queues", || {
                        match weir.metrics().sum("weir_collector_socket_queued_bytes", &[]) {
                            Some(0.0) => Ok(()),
                            queued => Err(format!("{queued:?} bytes")),
                        }
                    });
                    drops += kernel_drops(&weir);
                    weir.kill();
                    weir = setup.start();
                    sender.pause.store(false, Ordering::Relaxed);
                }
            }
            if let Ok(rows) = weir.try_sql("select count(*) from flows") {
                let now: u64 = rows[0][0].parse().unwrap();
                assert!(now >= shown, "{now} rows after kill {kill}, {shown} before");
                shown = now;
            }
        }
        (weir, drops)
    });
    let rows = assert_no_duplicate(&weir, 0);
    let dropped = (drops + kernel_drops(&weir)) * u64::from(PER_DATAGRAM);
    let again = weir.metrics().sum("weir_store_repeated_messages_total", &[]);
    eprintln!(
        "{kills} kills, {} flows sent, {dropped} in datagrams that the kernel dropped, {rows} in SQL; \
         {again:?} messages were there again since the aggregator was last started",
        sender.sent()
    );
    assert_eq!(rows + dropped, sender.sent(), "flows lost, or there twice");
    if dropped == 0 {
        let bytes = (0..sender.sent()).map(|number| 64 + number % 1_400).sum();
        weir.until_numbers("select sum(bytes), sum(packets) from flows", &[bytes, rows]);
    }
    assert!(weir.stop().success());
}

/// The tables on a real S3 server, which stands still, dies with requests in hand, and is not there for a while; and the
/// aggregator dies meanwhile.
#[test]
fn tables_on_s3_lose_and_repeat_nothing() {
    let mut s3 = S3::start();
    let setup = Setup::new().config(&s3.config());
    let weir = setup.start();
    let sender = Sender::default();
    let mut moments = Moments(seed() + 4);
    std::thread::scope(|scope| {
        scope.spawn(|| sender.run(weir.addresses.udp[0]));
        let _stop = StopAtEnd(&sender);
        for fault in 0..6 {
            std::thread::sleep(moments.pause());
            match fault % 3 {
                0 => {
                    s3.kill();
                    std::thread::sleep(moments.pause());
                    s3.start_again();
                }
                1 => {
                    // whether a request that stands still has done its work nobody knows
                    s3.signal("STOP");
                    std::thread::sleep(moments.pause());
                    weir.kill_role("aggregate");
                    s3.signal("CONT");
                }
                _ => {
                    s3.signal("STOP");
                    std::thread::sleep(moments.pause());
                    s3.kill();
                    s3.start_again();
                    weir.kill_role("aggregate");
                }
            }
        }
    });
    let sent = sender.sent();
    until(3 * LONG, "every flow in SQL", || {
        let rows = weir.try_sql(COUNTS)?;
        if rows[0][0] == sent.to_string() { Ok(()) } else { Err(format!("{rows:?} of {sent}")) }
    });
    assert_eq!(assert_no_duplicate(&weir, sent), sent);
    assert_lossless(&weir);
    assert!(weir.stop().success());
    let weir = setup.start();
    assert_eq!(assert_no_duplicate(&weir, sent), sent, "after a restart");
}

/// A `strace` that makes system calls of a process fail, detached at the end.
struct Failing(std::process::Child);

impl Failing {
    /// The `first`-th call of one of `calls` and then every `step`-th fails with EIO.
    fn attach(pid: u32, calls: &str, first: u32, step: u32) -> Failing {
        let mut strace = Command::new(program("strace"));
        strace.args(["-f", "-q", "-p", &pid.to_string(), "-e", &format!("trace={calls}")]);
        strace.args(["-e", &format!("inject={calls}:error=EIO:when={first}+{step}")]);
        strace.stderr(Stdio::null()).stdout(Stdio::null());
        Failing(strace.spawn().unwrap())
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // it lets the process go
        signal(self.0.id(), "INT");
        let _ = self.0.wait();
    }
}

/// The disk fails now and then: fsyncs of the log, of data files and of directories, and writes of the log.
#[test]
fn failing_disks_lose_and_repeat_nothing() {
    let setup = Setup::new().config("[store]\ncommit_interval_ms = 500\n");
    let weir = setup.start();
    let sender = Sender::default();
    let mut moments = Moments(seed() + 5);
    let (collect, aggregate) = (weir.wait_for_role("collect", None), weir.wait_for_role("aggregate", None));
    std::thread::scope(|scope| {
        scope.spawn(|| sender.run(weir.addresses.udp[0]));
        let _stop = StopAtEnd(&sender);
        std::thread::sleep(moments.pause());
        let of_collect = Failing::attach(collect, "fdatasync,fsync", 2, 3);
        let of_aggregate = Failing::attach(aggregate, "fdatasync,fsync", 5, 11);
        let errors = until(LONG, "failures to be met", || {
            let metrics = weir.metrics();
            let of = |name: &str| metrics.sum(name, &[]).unwrap_or(0.0);
            let (log, store) = (of("weir_log_disk_errors_total"), of("weir_store_commit_failures_total"));
            if log >= 3.0 && store >= 2.0 { Ok((log, store)) } else { Err(format!("{log} and {store}")) }
        });
        drop((of_collect, of_aggregate));
        // a write that fails half way leaves nothing that counts
        let of_collect = Failing::attach(collect, "writev", 1, 4);
        until(LONG, "failed writes", || {
            let now = weir.metrics().sum("weir_log_disk_errors_total", &[]).unwrap_or(0.0);
            if now >= errors.0 + 2.0 { Ok(()) } else { Err(format!("{now}")) }
        });
        drop(of_collect);
        std::thread::sleep(moments.pause());
    });
    let sent = sender.sent();
    until_equal("every flow in SQL", &vec![sent, sent, 0], || weir.numbers(COUNTS));
    assert_eq!(assert_no_duplicate(&weir, sent), sent);
    assert_lossless(&weir);
    assert!(weir.stop().success());
    let weir = setup.start();
    assert_eq!(assert_no_duplicate(&weir, sent), sent, "after a restart");
}

/// The clock is set, forward and back, by seconds and by a day, while flows of all protocols come.
#[test]
fn a_clock_that_is_set_loses_and_repeats_nothing() {
    const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    assert!(Path::new(FAKETIME).is_file(), "{FAKETIME} is missing: apt-get install faketime");
    const TOTALS: &str = "select count(*), sum(bytes), sum(packets) from flows";
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    let set = |seconds: &str| std::fs::write(&clock, seconds).unwrap();
    set("+0");
    let setup = Setup::new()
        .config("[store]\ncommit_interval_ms = 1000\n")
        .variable("LD_PRELOAD", FAKETIME)
        .variable("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap())
        .variable("FAKETIME_CACHE_DURATION", "1")
        .variable("DONT_FAKE_MONOTONIC", "1");
    let weir = setup.start();
    let sent = std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::new(90_000).rate(6_000).exporters(4).seed(31).run(&weir));
        for seconds in ["+7200", "-10800", "+86400", "+86370", "+0"] {
            std::thread::sleep(Duration::from_millis(2_500));
            set(seconds);
        }
        load.join().unwrap()
    });
    let wanted = [sent.rows, sent.bytes, sent.packets];
    weir.until_numbers(TOTALS, &wanted);
    weir.until_numbers("select sum(flows), sum(bytes), sum(packets) from flows_1m", &wanted);
    assert_lossless(&weir);
    assert!(weir.log().contains("the clock was set"), "{}", weir.log());
    assert!(weir.stop().success());
    set("-3600");
    let weir = setup.start();
    weir.until_numbers(TOTALS, &wanted);
    assert!(weir.stop().success());
}

/// Two weirs on one data directory would take each other's log and state: the second one waits for a while, as for one
/// that is about to end, and then says who is there.
#[test]
fn a_second_weir_on_the_same_data_is_refused() {
    let setup = Setup::new();
    let weir = setup.start();
    let mut second = Command::new(binary());
    second.arg("run").arg("--data-dir").arg(setup.data_dir());
    for flag in ["--listen", "--http", "--postgres"] {
        second.args([flag, "127.0.0.1:0"]);
    }
    let ended = run(&mut second, LONG);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("process id {} runs", weir.pid())), "{}", ended.stderr);
    weir.send(&datagram(0, &[numbered(0)]));
    until_equal("the first goes on", &vec![1, 1, 0], || weir.numbers(COUNTS));
    assert!(weir.stop().success());
}
