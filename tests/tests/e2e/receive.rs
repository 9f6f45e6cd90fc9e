//! The receive path as an operator sees it: what the kernel drops is told exactly and at once, and a collector that is
//! killed or stopped under load loses nothing that the sockets could hold.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use weir_tests::command::signal;
use weir_tests::generate::{Load, Sent};
use weir_tests::ledger::at_rest;
use weir_tests::netflow5::{Flow, datagram};
use weir_tests::wait::until;
use weir_tests::weir::{Setup, Weir};

/// Datagrams received and dropped, as `/metrics` says.
fn counts(weir: &Weir) -> (u64, u64) {
    let metrics = weir.metrics();
    let sum = |name: &str| metrics.sum(name, &[]).unwrap_or(-1.0) as u64;
    (sum("weir_ledger_datagrams_received_total"), sum("weir_collector_kernel_drops_total"))
}

/// A burst that the socket's buffer cannot hold, and then silence: no later datagram brings the news of the drops.
#[test]
fn kernel_drops_are_sent_less_received_two_seconds_after_the_last_datagram() {
    let setup = Setup::new().config("[receive]\nbuffer_bytes = 65536\nshards = 1\n");
    let weir = setup.start();
    let collect = weir.wait_for_role("collect", None);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let flows: Vec<Flow> = (0..30).map(|n| Flow::new([10, 0, 0, n], 100)).collect();
    let (mut sent, mut dropped) = (0, 0);
    for burst in [3_000, 500, 2_000] {
        // Nobody reads while the burst comes.
        signal(collect, "STOP");
        for _ in 0..burst {
            sender.send_to(&datagram(sent as u32 * 30, &flows), weir.addresses.udp[0]).unwrap();
            sent += 1;
        }
        let last = Instant::now();
        signal(collect, "CONT");
        let (received, drops) = until(Duration::from_secs(2), "sent = received + dropped", || {
            let (received, drops) = counts(&weir);
            if received + drops == sent { Ok((received, drops)) } else { Err(format!("{received} {drops}")) }
        });
        assert!(last.elapsed() < Duration::from_secs(3), "{:?}", last.elapsed());
        assert!(
            drops > dropped && received > 0,
            "the burst should not fit: {received} received, {drops} dropped"
        );
        dropped = drops;
    }
    // What was received is stored, no more and no less.
    weir.until_numbers("select count(*) from flows", &[(sent - dropped) * 30]);
    // The drops are in SQL, too; a collector that is started anew on the same sockets does not tell them again.
    let told = "select sum(datagrams), cast(round(sum(kernel_drops)) as bigint) from exporter_stats";
    weir.until_numbers(told, &[sent - dropped, dropped]);
    let killed = weir.kill_role("collect");
    weir.wait_for_role("collect", Some(killed));
    sender.send_to(&datagram(sent as u32 * 30, &flows), weir.addresses.udp[0]).unwrap();
    weir.until_numbers(told, &[sent - dropped + 1, dropped]);
    let ratio = weir.sql("select max(kernel_drop_ratio) from trust_1h");
    let ratio: f64 = ratio[0][0].parse().unwrap();
    assert!(ratio > 0.0 && ratio < 1.0, "{ratio}");
    assert!(weir.stop().success());
}

/// Everything sent is in SQL, once, and no datagram killed a collector.
fn assert_all_there(weir: &Weir, sent: Sent) {
    at_rest(weir, sent);
    let died = weir.metrics().sum("weir_collector_died_datagrams_total", &[]);
    assert_eq!(died, Some(0.0));
}

/// SIGKILL of the collector under load: the sockets are held, and what it had in memory is decoded by the next one.
#[test]
fn killed_collectors_lose_nothing() {
    let kills = std::env::var("WEIR_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let setup = Setup::new();
    let weir = setup.start();
    let sent = std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::new(20_000 * (kills + 2)).rate(10_000).exporters(4).run(&weir));
        for kill in 0..kills {
            std::thread::sleep(Duration::from_millis(700 + 137 * (kill % 5)));
            let killed = weir.kill_role("collect");
            weir.wait_for_role("collect", Some(killed));
        }
        load.join().unwrap()
    });
    assert_all_there(&weir, sent);
    assert!(weir.stop().success());
}

/// SIGTERM of the collector under load, as an operator or an upgrade does it: it takes what the kernel has to the log.
#[test]
fn stopped_collectors_lose_nothing() {
    let setup = Setup::new();
    let weir = setup.start();
    let sent = std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::new(60_000).rate(10_000).exporters(4).run(&weir));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(900));
            let stopped = weir.wait_for_role("collect", None);
            signal(stopped, "TERM");
            weir.wait_for_role("collect", Some(stopped));
        }
        load.join().unwrap()
    });
    assert_all_there(&weir, sent);
    let replayed = weir.metrics().sum("weir_collector_replayed_datagrams_total", &[]);
    assert_eq!(replayed, Some(0.0), "what stops in order leaves nothing behind");
    assert!(weir.stop().success());
}
