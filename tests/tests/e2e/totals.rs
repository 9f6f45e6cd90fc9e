//! What the generator sends is what SQL has: rows, bytes and packets by protocol, through a stop and a start.

use weir_tests::generate::{Load, until_stored};
use weir_tests::ledger::{assert_lossless, settled};
use weir_tests::weir::{Setup, Weir};

/// The rollups add up to the rows.
fn assert_rollups(weir: &Weir) {
    let rows = weir.numbers("select count(*), sum(bytes), sum(packets) from flows");
    weir.until_numbers("select sum(flows), sum(bytes), sum(packets) from flows_1m", &rows);
    for direction in ["in", "out"] {
        let query = format!(
            "select sum(flows), sum(bytes), sum(packets) from qos_1m where direction = '{direction}'"
        );
        weir.until_numbers(&query, &rows);
    }
    for dimension in ["src_addr", "dst_addr", "conversation"] {
        let query = format!(
            "select sum(flows), sum(bytes), sum(packets) from top_talkers where dimension = '{dimension}'"
        );
        weir.until_numbers(&query, &rows);
    }
}

#[test]
fn sql_has_what_was_sent() {
    let setup = Setup::new();
    let weir = setup.start();
    let (protocols, all) = Load::new(200_000).exporters(8).by_protocol(&weir);
    assert_eq!(protocols.len(), 4, "{protocols:?}");
    until_stored(&weir, &protocols);
    assert_rollups(&weir);
    let ledger = assert_lossless(&weir);
    assert_eq!((ledger.datagrams_received, ledger.flows_decoded), (all.datagrams, all.rows));
    let exporters = weir.numbers(
        "select count(distinct exporter_addr), sum(sequence_lost), sum(template_misses) from exporters",
    );
    assert_eq!(exporters, [8, 0, 0]);
}

/// SIGTERM with the datagrams just sent: all are in the store before the exit, so that the next start takes none of
/// them from the log.
#[test]
fn sigterm_loses_nothing() {
    let setup = Setup::new();
    let weir = setup.start();
    let (protocols, sent) = Load::new(100_000).seed(2).by_protocol(&weir);
    let status = weir.stop();
    assert!(status.success(), "{status}");

    let weir = setup.start();
    until_stored(&weir, &protocols);
    let taken = weir.metrics().sum("weir_store_rows_taken_total", &[("table", "flows")]);
    assert_eq!(taken.unwrap_or(0.0), 0.0, "rows that the first weir had not stored");
    assert_rollups(&weir);
    let all = "select (select count(*) from flows) + (select count(*) from options) + (select count(*) from interface_counters) \
               + (select count(*) from exporter_stats) + (select count(*) from exporter_events)";
    let before = weir.numbers(all)[0];
    assert!(before >= sent.rows);
    settled(&weir, before);
    assert!(weir.stop().success());
}

/// Five million flows, with two kills of the aggregator on the way: `cargo test … -- --ignored five_million`.
#[test]
#[ignore = "takes minutes"]
fn five_million_flows_with_kills() {
    let setup = Setup::new();
    let weir = setup.start();
    let (protocols, all) = std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::new(5_000_000).rate(60_000).seed(5).exporters(16).by_protocol(&weir));
        for at in [15, 40] {
            std::thread::sleep(std::time::Duration::from_secs(at));
            let killed = weir.kill_role("aggregate");
            weir.wait_for_role("aggregate", Some(killed));
        }
        load.join().unwrap()
    });
    until_stored(&weir, &protocols);
    assert_rollups(&weir);
    let ledger = assert_lossless(&weir);
    assert_eq!(ledger.flows_decoded, all.rows);
    assert!(weir.stop().success());
    let weir = setup.start();
    until_stored(&weir, &protocols);
    assert_rollups(&weir);
}
