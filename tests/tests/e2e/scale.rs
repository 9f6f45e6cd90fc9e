//! Several collectors, several aggregators, one Kafka, one store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_tests::generate::{Load, Sent};
use weir_tests::kafka::Kafka;
use weir_tests::wait::{LONG, until};
use weir_tests::weir::{Setup, Weir};

const TOTALS: &str = "select count(*), sum(bytes), sum(packets) from flows";
/// Rows, and those that differ in anything: hardly two generated flows are the same.
const DISTINCT: &str = "select count(*), count(distinct concat_ws('/', exporter_addr::text, src_addr::text, dst_addr::text, \
    src_port, dst_port, bytes, packets, start_time, received_at)) from flows";
const ROLLUP: &str = "select sum(flows), sum(bytes), sum(packets) from flows_1m";
/// A member that is gone is soon noticed.
const QUICK: &str = "group.consumer.min.session.timeout.ms=2000;group.consumer.session.timeout.ms=3000;\
                     group.consumer.min.heartbeat.interval.ms=500;group.consumer.heartbeat.interval.ms=500";

/// Ends the watching also where an assertion fails: a scope waits for its threads.
struct DoneAtEnd<'a>(&'a AtomicBool);

impl Drop for DoneAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Partitions that each has, once they have all of them between them.
fn shares(aggregators: &[&Weir], partitions: usize) -> Vec<usize> {
    until(LONG, "every partition at one aggregator", || {
        let shares: Vec<usize> = aggregators
            .iter()
            .map(|weir| weir.metrics().sum("weir_store_partitions", &[]).unwrap_or(0.0) as usize)
            .collect();
        let fair = shares.iter().all(|share| *share > 0);
        if fair && shares.iter().sum::<usize>() == partitions {
            Ok(shares)
        } else {
            Err(format!("{shares:?}"))
        }
    })
}

/// Nine processes each: one after the other.
static TURN: Mutex<()> = Mutex::new(());

/// Collectors and aggregators come, go and are killed, while flows are sent: every aggregator ends with all of them.
fn aggregators_come_and_go(settings: &str, protocol: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let kafka = Kafka::with(settings);
    let store = tempfile::tempdir().unwrap();
    let config = format!(
        "{}partitions = 6\n[log.kafka.settings]\n\"session.timeout.ms\" = \"6000\"\n\
         [log.kafka_reader]\nshare = \"group\"\n[store]\nurl = \"{}\"\ncommit_interval_ms = 500\n",
        kafka.config(),
        store.path().display()
    );
    let setups: Vec<Setup> = (0..6).map(|_| Setup::new().config(&config)).collect();
    let [first, second, a, b, c, q] = &setups[..] else { unreachable!() };
    let collectors = [first.start_role("collect"), second.start_role("collect")];
    let one = a.start_role("aggregate");
    assert_eq!(shares(&[&one], 6), [6]);
    let (joined, protocols) = (one.log(), ["classic", "consumer"]);
    assert!(
        protocols.contains(&protocol) && joined.contains(&format!("protocol=\"{protocol}\"")),
        "{joined}"
    );
    // A node that stores nothing, and one of those that do: each shows a prefix of what is there, and no row twice.
    let query = q.start_role("query");
    let mut total = Sent::default();
    let done = AtomicBool::new(false);
    let sent: Vec<Sent> = std::thread::scope(|scope| {
        let _done = DoneAtEnd(&done);
        let watched = scope.spawn(|| {
            let mut last = [0; 2];
            while !done.load(Ordering::Relaxed) {
                for (weir, last) in [&query, &one].into_iter().zip(&mut last) {
                    let rows = weir.numbers(DISTINCT);
                    assert!(rows[1] + rows[0] / 1_000 >= rows[0], "rows that are there twice: {rows:?}");
                    assert!(rows[0] >= *last, "{} rows, {last} before", rows[0]);
                    *last = rows[0];
                }
                std::thread::sleep(Duration::from_millis(400));
            }
        });
        let senders: Vec<_> = collectors
            .iter()
            .zip(1..)
            .map(|(collector, seed)| {
                scope.spawn(move || Load::new(60_000).rate(3_000).exporters(8).seed(seed).run(collector))
            })
            .collect();
        let two = b.start_role("aggregate");
        assert_eq!(shares(&[&one, &two], 6), [3, 3]);
        let three = c.start_role("aggregate");
        shares(&[&one, &two, &three], 6);
        two.kill();
        shares(&[&one, &three], 6);
        assert!(three.stop().success());
        shares(&[&one], 6);
        let sent = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        watched.join().unwrap();
        sent
    });
    for sent in sent {
        total.rows += sent.rows;
        total.bytes += sent.bytes;
        total.packets += sent.packets;
    }
    let wanted = [total.rows, total.bytes, total.packets];
    for weir in [&one, &query] {
        weir.until_numbers(TOTALS, &wanted);
        weir.until_numbers(ROLLUP, &wanted);
    }
    // one that comes late sees what the others have stored
    let late = b.start_role("aggregate");
    late.until_numbers(TOTALS, &wanted);
    late.until_numbers(ROLLUP, &wanted);
    // a rebalance storm changes nothing
    let storm = Instant::now();
    while storm.elapsed() < Duration::from_secs(6) {
        c.start_role("aggregate").kill();
    }
    for collector in collectors {
        assert!(collector.stop().success());
    }
    for weir in [&one, &late, &query] {
        weir.until_numbers(TOTALS, &wanted);
        weir.until_numbers(ROLLUP, &wanted);
    }
    assert!(late.stop().success());
    assert!(one.stop().success());
}

#[test]
fn aggregators_share_the_partitions_by_the_new_group_protocol() {
    aggregators_come_and_go(QUICK, "consumer");
}

#[test]
fn aggregators_share_the_partitions_by_the_classic_group_protocol() {
    aggregators_come_and_go(
        "group.coordinator.rebalance.protocols=classic;group.min.session.timeout.ms=3000",
        "classic",
    );
}

/// A query runs on all nodes of a store, and on those that are left when one dies.
#[test]
fn queries_run_on_all_nodes() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let kafka = Kafka::with(QUICK);
    let store = tempfile::tempdir().unwrap();
    let config = format!(
        "[listen]\ncluster = \"127.0.0.1:0\"\n[cluster]\nnode_bytes = 1000\nsecret = \"known-to-all-of-them\"\n\
         {}partitions = 4\n[log.kafka_reader]\nshare = \"group\"\n[store]\nurl = \"{}\"\ncommit_interval_ms = 500\n",
        kafka.config(),
        store.path().display()
    );
    let setups: Vec<Setup> = (0..4).map(|_| Setup::new().config(&config)).collect();
    let [c, a, b, q] = &setups[..] else { unreachable!() };
    let collector = c.start_role("collect");
    let (one, two, query) = (a.start_role("aggregate"), b.start_role("aggregate"), q.start_role("query"));
    let nodes = |weir: &Weir, wanted: f64| {
        until(LONG, "the nodes to know each other", || {
            let nodes = weir.metrics().sum("weir_cluster_nodes", &[]);
            if nodes == Some(wanted) { Ok(()) } else { Err(format!("{nodes:?}, wanted {wanted}")) }
        });
    };
    [&one, &two, &query].into_iter().for_each(|weir| nodes(weir, 3.0));
    let sent = Load::new(60_000).rate(6_000).exporters(8).seed(11).run(&collector);
    let wanted = [sent.rows, sent.bytes, sent.packets];
    for weir in [&one, &two, &query] {
        weir.until_numbers(TOTALS, &wanted);
        weir.until_numbers(ROLLUP, &wanted);
        // some of it is in files by now
        until(LONG, "a plan for three nodes", || {
            let plan = weir.sql("explain select src_addr, sum(bytes) from flows group by src_addr");
            let plan = plan.concat().concat();
            if plan.contains("tasks=3") { Ok(()) } else { Err(plan) }
        });
        assert!(weir.metrics().sum("weir_cluster_queries_total", &[]) > Some(0.0));
        assert_eq!(weir.metrics().sum("weir_cluster_fallbacks_total", &[]), Some(0.0));
    }
    let by_source =
        "select src_addr, sum(bytes), count(*) from flows group by src_addr order by 2 desc, 1 limit 20";
    let top = query.sql(by_source);
    assert_eq!((top.len(), &top), (20, &one.sql(by_source)));
    // one of them dies: the others answer, at any time
    let killed = Instant::now();
    two.kill();
    while killed.elapsed() < Duration::from_secs(5) {
        for weir in [&one, &query] {
            assert_eq!(weir.numbers(ROLLUP), wanted);
            assert_eq!(weir.sql(by_source), top);
        }
    }
    [&one, &query].into_iter().for_each(|weir| nodes(weir, 2.0));
    assert!(one.stop().success() && query.stop().success() && collector.stop().success());
}
