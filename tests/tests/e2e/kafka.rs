//! The same input through the embedded log and through a real Apache Kafka: the same rows, the same rollups; with a
//! crash of the broker on the way.

use std::process::Command;

use weir_tests::command::{readers_python, run};
use weir_tests::generate::{Load, replay};
use weir_tests::kafka::Kafka;
use weir_tests::ledger::assert_lossless;
use weir_tests::repository;
use weir_tests::wait::{LONG, until};
use weir_tests::weir::{Setup, Weir};

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
fn others_read(weir: &Weir, kafka: &Kafka) {
    let sums = "select proto_ver, count(*), sum(bytes), sum(packets) from flows group by 1 order by 1";
    let wanted: serde_json::Map<_, _> = weir
        .sql(sums)
        .into_iter()
        .map(|row| {
            let numbers: Vec<u64> = row[1..].iter().map(|number| number.parse().unwrap()).collect();
            (row[0].clone(), numbers.into())
        })
        .collect();
    let script = repository().join("tests/readers/kafka.py");
    let mut readers = Command::new(readers_python());
    let told = run(readers.arg(script).args([&kafka.bootstrap, "weir"]), LONG).ok();
    let told: Vec<_> = told.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(told.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["pyarrow", "clickhouse"]);
    for (name, sums) in told {
        let sums: serde_json::Map<_, _> = serde_json::from_str(sums).unwrap();
        assert_eq!(sums, wanted, "{name}");
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
    others_read(&weir, &kafka);
    assert_lossless(&weir);
    assert!(weir.stop().success());
    // What was committed is not taken again.
    let weir = through.start();
    weir.until_numbers(
        "select count(*), sum(bytes), sum(packets) from flows",
        &[sent.rows, sent.bytes, sent.packets],
    );
}
