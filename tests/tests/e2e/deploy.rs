//! What is in `deploy/` passes the programs that read it, and asks only for what weir has.

use std::process::Command;
use std::time::Duration;

use weir_tests::command::run;
use weir_tests::repository;
use weir_tests::weir::Setup;

#[test]
fn files_pass_their_checkers() {
    let ended = run(&mut Command::new(repository().join("deploy/check")), Duration::from_secs(120));
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
