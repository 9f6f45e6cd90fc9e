//! What is in `deploy/` passes the programs that read it, and asks only for what weir has.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use weir_tests::command::run;
use weir_tests::generate::Load;
use weir_tests::ledger::assert_lossless;
use weir_tests::repository;
use weir_tests::wait::{LONG, until};
use weir_tests::weir::Setup;

#[test]
fn files_pass_their_checkers() {
    let ended = run(Command::new(repository().join("deploy/check")).arg("--all"), Duration::from_secs(120));
    eprintln!("{}", ended.stdout);
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
}

/// Every query of the dashboards over SQL is planned by weir, with Grafana's macros put in as Grafana does.
#[test]
fn dashboards_ask_what_weir_answers() {
    let setup = Setup::new();
    let weir = setup.start();
    let folder = repository().join("deploy/grafana/dashboards");
    let mut asked = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let board: serde_json::Value = serde_json::from_str(&text).unwrap();
        let panels = board["panels"].as_array().unwrap();
        let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
        let variables = board["templating"]["list"].as_array().unwrap();
        let queries = targets
            .map(|target| &target["rawSql"])
            .chain(variables.iter().map(|variable| &variable["query"]));
        for query in queries.filter_map(|query| query.as_str()) {
            weir.sql(&expand(query));
            asked += 1;
        }
    }
    assert!(asked > 5, "{asked} queries");
}

/// `$__timeFilter(COLUMN)` and the variable `$exporter`, the way Grafana's PostgreSQL data source writes them.
fn expand(query: &str) -> String {
    let (mut done, mut rest) = (String::new(), query);
    while let Some((before, after)) = rest.split_once("$__timeFilter(") {
        let (column, after) = after.split_once(')').unwrap();
        done += before;
        done += &format!("{column} BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-01T01:00:00.123Z'");
        rest = after;
    }
    done += rest;
    let done = done.replace("$exporter", "'192.0.2.1','2001:db8::1'");
    assert!(!done.contains('$'), "a macro that this test does not know: {done}");
    done
}

/// Every metric that an alert or a panel asks for is one that weir has.
#[test]
fn alerts_and_dashboards_ask_for_metrics_that_exist() {
    let setup = Setup::new();
    let weir = setup.start();
    // Longer than the probation of an exporter: before, it has no series of its own.
    let sent = Load::new(16_000).rate(2_000).run(&weir);
    weir.until_numbers("select count(*) from flows", &[sent.rows]);
    let mut wanted = BTreeSet::new();
    for file in ["deploy/prometheus/weir.rules.yml", "deploy/grafana/dashboards/weir.json"] {
        let text = std::fs::read_to_string(repository().join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        wanted.extend(words.filter(|word| word.starts_with("weir_")).map(str::to_owned));
    }
    assert!(wanted.len() > 15, "{wanted:?}");
    until(LONG, "all metrics", || {
        let metrics = weir.metrics();
        let missing: Vec<_> = wanted.iter().filter(|name| metrics.sum(name, &[]).is_none()).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("/metrics lacks {missing:?}")) }
    });
    assert_lossless(&weir);
}
