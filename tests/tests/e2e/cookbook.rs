//! docs/sql-cookbook.md: every query runs on a weir that `weir generate` fed, and many answers are what the raw rows add up
//! to, computed here.

use std::collections::{BTreeMap, BTreeSet};

use weir_tests::generate::Load;
use weir_tests::ledger::assert_lossless;
use weir_tests::repository;
use weir_tests::wait::{LONG, until};
use weir_tests::weir::{Setup, Weir};

/// The page's queries by their titles, without the numbers.
fn queries() -> BTreeMap<String, String> {
    let page = std::fs::read_to_string(repository().join("docs/sql-cookbook.md")).unwrap();
    let sections = page.split("\n### ").skip(1);
    let query = |section: &str| {
        let title = section.lines().next()?.split_once(". ")?.1.to_owned();
        let sql = section.split_once("```sql\n")?.1.split_once("```")?.0;
        Some((title, sql.to_owned()))
    };
    sections.map(|section| query(section).unwrap_or_else(|| panic!("no query in {section}"))).collect()
}

/// A flow, as far as the answers need it.
struct Flow {
    exporter: String,
    src: String,
    dst: String,
    src_port: i64,
    dst_port: i64,
    protocol: i64,
    bytes: f64,
    packets: f64,
    rate: f64,
    in_if: String,
    out_if: String,
    dscp: i64,
    way: i64,
}

fn raw(weir: &Weir) -> Vec<Flow> {
    let rows = weir.sql(
        "select exporter_addr, src_addr, dst_addr, src_port, dst_port, ip_protocol, bytes, packets, sampling_rate, \
         in_if, out_if, tos, direction from flows",
    );
    let number = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
    let whole = |text: &str| text.parse::<i64>().unwrap_or(-1);
    rows.iter()
        .map(|row| Flow {
            exporter: row[0].clone(),
            src: row[1].clone(),
            dst: row[2].clone(),
            src_port: whole(&row[3]),
            dst_port: whole(&row[4]),
            protocol: whole(&row[5]),
            bytes: number(&row[6]),
            packets: number(&row[7]),
            rate: row[8].parse().unwrap_or(1.0),
            in_if: row[9].clone(),
            out_if: row[10].clone(),
            dscp: whole(&row[11]) >> 2,
            way: whole(&row[12]).max(0),
        })
        .collect()
}

fn sum(
    flows: &[Flow],
    mut key: impl FnMut(&Flow) -> Option<String>,
    value: impl Fn(&Flow) -> f64,
) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for flow in flows {
        if let Some(key) = key(flow) {
            *sums.entry(key).or_insert(0.0) += value(flow);
        }
    }
    sums
}

fn near(left: f64, right: f64) -> bool {
    (left - right).abs() <= 1e-6 * left.abs().max(right.abs()).max(1.0)
}

/// The rows' keys (the columns `keys`) have the values of `truth`, and they are its largest.
#[track_caller]
fn assert_top(
    title: &str,
    rows: &[Vec<String>],
    keys: &[usize],
    value: usize,
    truth: &BTreeMap<String, f64>,
) {
    let mut largest: Vec<f64> = truth.values().copied().collect();
    largest.sort_by(|left, right| right.total_cmp(left));
    let wanted = if title.starts_with("all: ") { truth.len() } else { truth.len().min(20) };
    assert_eq!(rows.len(), wanted, "{title}: {rows:?}");
    for (row, largest) in rows.iter().zip(largest) {
        let key = keys.iter().map(|at| row[*at].as_str()).collect::<Vec<_>>().join(" ");
        let got: f64 = row[value].parse().unwrap();
        let true_value = truth.get(&key).unwrap_or_else(|| panic!("{title}: no {key:?} in the rows"));
        assert!(near(got, *true_value), "{title}: {key}: {got}, not {true_value}");
        assert!(near(got, largest), "{title}: {got} stands where {largest} should");
    }
}

fn assert_answers(weir: &Weir, flows: &[Flow]) {
    let queries = queries();
    let ask =
        |title: &str| weir.sql(queries.get(title).unwrap_or_else(|| panic!("the page has no {title:?}")));
    let est = |flow: &Flow| flow.bytes * flow.rate;
    let bits = |flow: &Flow| flow.bytes * flow.rate * 8.0 / 900.0;
    let check = |title: &str, keys: &[usize], value: usize, truth: BTreeMap<String, f64>| {
        assert_top(title, &ask(title.trim_start_matches("all: ")), keys, value, &truth);
    };
    check("Who sends most?", &[0], 1, sum(flows, |flow| Some(flow.src.clone()), est));
    let tuple = |flow: &Flow| {
        format!("{} {} {} {} {}", flow.src, flow.dst, flow.src_port, flow.dst_port, flow.protocol)
    };
    check("Which conversations are largest?", &[0, 1, 2, 3, 4], 5, sum(flows, |flow| Some(tuple(flow)), est));
    let version = |flow: &Flow| Some(if flow.src.contains(':') { "6" } else { "4" }.to_owned());
    let by_version = sum(flows, version, est);
    for row in ask("Which share is IPv6?") {
        assert!(near(row[1].parse().unwrap(), by_version[&row[0]]), "{row:?}");
    }
    let ways = |flow: &Flow| {
        Some(format!("{} {}", flow.in_if, flow.out_if)).filter(|_| flow.exporter == "127.1.0.1")
    };
    check("all: Where does its traffic go on to?", &[0, 1], 2, sum(flows, ways, bits));
    // distinct hosts, counted in sets
    let mut seen = BTreeSet::new();
    let scans = sum(
        flows,
        |flow| {
            (flow.packets <= 2.0 && seen.insert((flow.src.clone(), flow.dst.clone())))
                .then(|| flow.src.clone())
        },
        |_| 1.0,
    );
    check("Who scans? Sources that try many hosts with few packets", &[0], 1, scans);
    let mut seen = BTreeSet::new();
    let sources = sum(
        flows,
        |flow| seen.insert((flow.dst.clone(), flow.src.clone())).then(|| flow.dst.clone()),
        |_| 1.0,
    );
    check("Who is attacked? Destinations with many sources", &[0], 1, sources);
    let mail = |flow: &Flow| (flow.dst_port == 25 && flow.protocol == 6).then(|| flow.src.clone());
    check("Who sends mail that is no mail server?", &[0], 1, sum(flows, mail, |_| 1.0));
    let misused = [19, 53, 123, 161, 389, 1900, 11211];
    let answers = |flow: &Flow| {
        (flow.protocol == 17 && misused.contains(&flow.src_port))
            .then(|| format!("{} {}", flow.src_port, flow.dst))
    };
    check(
        "Amplification: large answers from ports that are misused for it",
        &[0, 2],
        3,
        sum(flows, answers, est),
    );
    let leaves = |flow: &Flow| {
        (flow.src.starts_with("10.") && !flow.dst.starts_with("10.") && !flow.dst.contains(':'))
            .then(|| flow.dst.clone())
    };
    check("What leaves our networks?", &[0], 1, sum(flows, leaves, est));
    let peers = |flow: &Flow| {
        let (host, peer) =
            if flow.src == "10.0.0.0" { (&flow.src, &flow.dst) } else { (&flow.dst, &flow.src) };
        (host == "10.0.0.0").then(|| peer.clone())
    };
    check("Whom does it talk to?", &[0], 1, sum(flows, peers, est));
    // rollups: spread over their minutes, and all of them within the time that is asked for
    let mut interfaces = sum(flows, |flow| Some(format!("{} {} in", flow.exporter, flow.in_if)), bits);
    interfaces.extend(sum(flows, |flow| Some(format!("{} {} out", flow.exporter, flow.out_if)), bits));
    check("Which interfaces are busiest now?", &[0, 1, 2], 3, interfaces);
    let protocols: f64 = ask("Which protocols?").iter().map(|row| row[2].parse::<f64>().unwrap()).sum();
    assert_eq!(protocols, flows.len() as f64);
    // who_fills: what it says of its largest conversation
    let mut fills = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow.exporter == "127.1.0.1") {
        for (direction, interface) in [("in", &flow.in_if), ("out", &flow.out_if)] {
            if interface == "1" {
                let port = flow.src_port.min(flow.dst_port);
                let key = (direction, flow.src.clone(), flow.dst.clone(), flow.dscp, port, flow.protocol);
                *fills.entry(key).or_insert(0.0) += flow.bytes * flow.rate * 8.0 / 900.0;
            }
        }
    }
    let largest = fills.values().copied().fold(0.0, f64::max);
    let fills = ask("Who fills this interface, since when, in which class?");
    assert!(near(fills[0][6].parse().unwrap(), largest), "{:?}, not {largest}", fills[0]);
    // of each conversation only the exporter and direction that reports most of it
    let mut told: BTreeMap<String, BTreeMap<(String, i64), f64>> = BTreeMap::new();
    for flow in flows {
        let of = told.entry(tuple(flow)).or_default();
        *of.entry((flow.exporter.clone(), flow.way)).or_default() += est(flow);
    }
    let most = |flow: &&Flow| {
        let of = &told[&tuple(flow)];
        let better = |(who, bytes): (&(String, i64), &f64)| {
            let own = of[&(flow.exporter.clone(), flow.way)];
            *bytes > own || *bytes == own && *who < (flow.exporter.clone(), flow.way)
        };
        !of.iter().any(better)
    };
    let kept: Vec<&Flow> = flows.iter().filter(most).collect();
    let deduplicated = ask("The traffic without what several exporters report");
    assert_eq!(deduplicated[0][1], kept.len().to_string());
    assert!(near(deduplicated[0][0].parse().unwrap(), kept.iter().map(|flow| bits(flow)).sum()));
    assert!(kept.len() < flows.len(), "some conversations have several exporters");
}

#[test]
fn every_query_of_the_cookbook_runs_and_says_what_the_rows_say() {
    let queries = queries();
    assert!(queries.len() >= 40, "{} queries", queries.len());
    let setup = Setup::new();
    let weir = setup.start();
    // more than 20 s, so that there are two samples of the counters
    let sent = Load::new(60_000).rate(2_500).extras().run(&weir);
    weir.until_numbers("select count(*) from flows", &[sent.rows]);
    weir.until_numbers("select count(*) from nat_events", &[sent.nat_events]);
    weir.until_numbers("select count(*) from discards", &[sent.discards]);
    until(LONG, "exporter statistics", || {
        match weir.try_sql("select count(*) from exporters")?[0][0].as_str() {
            "0" => Err("none".to_owned()),
            _ => Ok(()),
        }
    });
    let mut empty = Vec::new();
    for (title, sql) in &queries {
        if weir.sql(sql).is_empty() && !sql.contains("-- may be empty") {
            empty.push(title);
        }
    }
    assert!(
        empty.is_empty(),
        "queries without an answer (a comment `-- may be empty` allows it): {empty:#?}"
    );
    assert_answers(&weir, &raw(&weir));
    // the generator's counters count what its flows say
    let causes = weir.sql("select likely_cause, ratio from interface_reconciliation('15 minutes')");
    assert!(!causes.is_empty(), "interfaces with counters");
    assert_lossless(&weir);
}
