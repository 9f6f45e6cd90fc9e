//! The same input through the embedded log and through a real Apache Kafka: the same rows, the same rollups; with a
//! crash of the broker on the way.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use weir_tests::command::{readers_python, run};
use weir_tests::generate::{Load, replay};
use weir_tests::kafka::Kafka;
use weir_tests::ledger::assert_lossless;
use weir_tests::repository;
use weir_tests::wait::{LONG, until};
use weir_tests::weir::{Setup, Weir, binary};

/// Every value that does not depend on when the datagrams came.
const ROWS: &str = "select exporter_addr, proto_ver, observation_domain, start_time, end_time, src_addr, dst_addr, src_port, \
    dst_port, ip_protocol, tcp_flags, tos, bytes, packets, ip_bytes, est_bytes, sampling_rate, sampling_source, in_if, out_if, \
    next_hop, src_as, dst_as, src_mask, dst_mask, src_mac, dst_mac, src_vlan, dst_vlan, ip_ttl, direction \
    from flows where proto_ver <> 'sflow5'";
/// sFlow has no clock: its flows are when they came.
const SAMPLES: &str = "select exporter_addr, observation_domain, src_addr, dst_addr, src_port, dst_port, ip_protocol, tos, bytes, \
    packets, ip_bytes, est_bytes, sampling_rate, in_if, out_if, src_mac, dst_mac, frame_vlans \
    from flows where proto_ver = 'sflow5'";
const FLOWS_1M: &str = "select exporter_addr, in_if, out_if, ip_protocol, dscp, sum(flows), sum(bytes), sum(packets), sum(est_bytes) \
    from flows_1m group by 1, 2, 3, 4, 5";
const QOS_1M: &str = "select exporter_addr, direction, if_index, class, sum(flows), sum(bytes), sum(packets) \
    from qos_1m group by 1, 2, 3, 4";
const TALKERS: &str = "select dimension, sum(flows), sum(bytes), sum(packets) from top_talkers group by 1";

/// The rows of the answers to all of them, in an order of their own.
fn answers(weir: &Weir) -> Vec<(&'static str, Vec<Vec<String>>)> {
    let sorted = |query| {
        let mut rows = weir.sql(query);
        rows.sort_unstable();
        (query, rows)
    };
    [ROWS, SAMPLES, FLOWS_1M, QOS_1M, TALKERS].map(sorted).to_vec()
}

/// Consumers that nobody here wrote find in the topic what SQL has.
fn others_read(weir: &Weir, kafka: &Kafka, config: &Path) {
    let sums = "select proto_ver, count(*), sum(bytes), sum(packets) from flows group by 1 order by 1";
    let wanted: serde_json::Map<_, _> = weir
        .sql(sums)
        .into_iter()
        .map(|row| {
            let numbers: Vec<u64> = row[1..].iter().map(|number| number.parse().unwrap()).collect();
            (row[0].clone(), numbers.into())
        })
        .collect();
    let read = |arguments: &[&str], names: &[&str]| {
        let script = repository().join("tests/readers/kafka.py");
        let mut readers = Command::new(readers_python());
        let told = run(readers.arg(script).arg(&kafka.bootstrap).args(arguments), LONG).ok();
        let told: Vec<_> = told.lines().filter_map(|line| line.split_once(' ')).collect();
        assert_eq!(told.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
        for (name, sums) in told {
            let sums: serde_json::Map<_, _> = serde_json::from_str(sums).unwrap();
            assert_eq!(sums, wanted, "{name}");
        }
    };
    read(&["weir"], &["pyarrow", "clickhouse"]);
    // copies in other encodings; whoever copies knows where it was
    for encoding in ["json", "protobuf"] {
        let topic = format!("flows-{encoding}");
        for copied in [true, false] {
            let mut relay = Command::new(binary());
            relay.args(["relay", "--once", "--to", &topic, "--encoding", encoding, "--table", "flows"]);
            let ended = run(relay.arg("--config").arg(config), LONG);
            assert!(ended.status.success(), "{}", ended.stderr);
            assert_eq!(ended.stderr.contains("rows=0 "), !copied, "{}", ended.stderr);
        }
        read(&[&topic, encoding], &[encoding]);
    }
}

#[test]
fn embedded_and_kafka_give_the_same_rows_and_rollups() {
    if std::env::var_os("WEIR_SKIP_KAFKA").is_some() {
        eprintln!("left out: WEIR_SKIP_KAFKA is set");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let capture = folder.path().join("flows.pcap");
    let sent = Load::new(30_000).exporters(8).seed(6).capture(&capture);

    let embedded = Setup::new();
    let weir = embedded.start();
    replay(&weir, &capture, 1_000);
    weir.until_numbers(
        "select count(*), sum(bytes), sum(packets) from flows",
        &[sent.rows, sent.bytes, sent.packets],
    );
    let wanted = answers(&weir);
    assert_lossless(&weir);
    assert!(weir.stop().success());

    let kafka = Kafka::start();
    let through = Setup::new().config(&kafka.config());
    let weir = through.start();
    std::thread::scope(|scope| {
        let replayed = scope.spawn(|| replay(&weir, &capture, 200));
        until(LONG, "the first flows", || {
            let count = weir.try_sql("select count(*) from flows")?;
            if count[0][0] == "0" { Err("none".to_owned()) } else { Ok(()) }
        });
        kafka.crash();
        replayed.join().unwrap();
    });
    weir.until_numbers(
        "select count(*), sum(bytes), sum(packets) from flows",
        &[sent.rows, sent.bytes, sent.packets],
    );
    for ((query, wanted), (_, got)) in wanted.iter().zip(answers(&weir)) {
        if *wanted != got {
            let differing = wanted.iter().zip(&got).find(|(wanted, got)| wanted != got);
            panic!("{query}\nembedded and Kafka differ, first in {differing:#?}");
        }
        assert!(!got.is_empty(), "{query}: no rows");
    }
    others_read(&weir, &kafka, &through.config_file());
    assert_lossless(&weir);
    assert!(weir.stop().success());
    // What was committed is not taken again.
    let weir = through.start();
    weir.until_numbers(
        "select count(*), sum(bytes), sum(packets) from flows",
        &[sent.rows, sent.bytes, sent.packets],
    );
}

/// The broker is away while flows come: the spool has them, and they drain when it is back.
///
/// `WEIR_OUTAGE_S=600 WEIR_RATE=50000` is the long one; it prints how fast the spool drained.
#[test]
fn the_spool_keeps_what_comes_while_the_broker_is_away() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (outage, rate) = (number("WEIR_OUTAGE_S", 6), number("WEIR_RATE", 20_000));
    let limit = LONG + Duration::from_secs(2 * outage);
    let kafka = Kafka::start();
    let setup = Setup::new().config(&kafka.config());
    let started = setup.start();
    let weir = &started;
    let metric = |name: &str| weir.metrics().sum(name, &[]).unwrap_or(0.0);
    std::thread::scope(|scope| {
        // the last half of it after the broker is back
        let seconds = 3 + outage + outage.min(60);
        let total = seconds * rate;
        let sender = scope.spawn(move || Load::new(total).rate(rate).exporters(8).run(weir));
        std::thread::sleep(Duration::from_secs(3));
        kafka.kill();
        std::thread::sleep(Duration::from_secs(outage));
        let forwarded = metric("weir_spool_forwarded_rows_total");
        let (waiting, blocked) =
            (metric("weir_spool_waiting_messages"), metric("weir_spool_blocked_seconds"));
        // each shard closes a batch every half second
        assert!(waiting > outage as f64 && blocked > 1.0, "{waiting} messages wait, blocked for {blocked} s");
        // what comes is taken, and SQL goes on to answer
        assert!(weir.numbers("select count(*) from flows")[0] > 0);
        kafka.start_again();
        let back = Instant::now();
        until(limit, "the spool to drain", || match metric("weir_spool_waiting_messages") {
            waiting if waiting < 10.0 => Ok(()),
            waiting => Err(format!("{waiting} messages wait")),
        });
        let drained = metric("weir_spool_forwarded_rows_total") - forwarded;
        let per_second = drained / back.elapsed().as_secs_f64();
        eprintln!(
            "away for {outage} s at {rate} flows/s: {waiting} messages waited, drained in {:.1} s at {per_second:.0} rows/s, \
             {:.1} times the live rate",
            back.elapsed().as_secs_f64(),
            per_second / rate as f64
        );
        let sent = sender.join().unwrap();
        until(limit, "every flow in SQL", || {
            let rows = weir.try_sql("select count(*) from flows")?;
            if rows[0][0] == sent.rows.to_string() {
                Ok(())
            } else {
                Err(format!("{rows:?} of {}", sent.rows))
            }
        });
        eprintln!("all in SQL {:.1} s after the broker was back", back.elapsed().as_secs_f64());
        weir.until_numbers(
            "select count(*), sum(bytes), sum(packets) from flows",
            &[sent.rows, sent.bytes, sent.packets],
        );
    });
    assert_lossless(weir);
    assert_eq!(metric("weir_spool_lost_messages_total"), 0.0);
    assert!(started.stop().success());
}
