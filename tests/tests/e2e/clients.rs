//! The doors to SQL, each by its real client: psql, HTTP, `weir sql`; and the gate in front of all of them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use weir_tests::command::{Ended, program, run, signal};
use weir_tests::ledger::assert_lossless;
use weir_tests::netflow5::{Flow, datagram};
use weir_tests::wait::{LONG, until};
use weir_tests::weir::{Setup, Weir};

/// A weir with five flows: 10.0.0.1 to 10.0.0.5, 100 to 500 bytes, the last two UDP.
fn five_flows(setup: &Setup) -> Weir {
    let weir = setup.start();
    let flow = |n: u8| {
        let flow = Flow::new([10, 0, 0, n], u32::from(n) * 100);
        if n > 3 { Flow { protocol: 17, tos: 0, ..flow } } else { flow }
    };
    weir.send(&datagram(0, &[1, 2, 3, 4, 5].map(flow)));
    weir.until_numbers("select count(*), sum(bytes) from flows", &[5, 1_500]);
    weir
}

fn psql(weir: &Weir) -> Command {
    let mut command = Command::new(program("psql"));
    let postgres = weir.addresses.postgres;
    command.args([
        "-X",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        &postgres.ip().to_string(),
        "-p",
        &postgres.port().to_string(),
    ]);
    command.args(["-U", "weir", "-d", "weir", "-w"]).env("PGCONNECT_TIMEOUT", "10");
    command
}

/// Runs psql commands (each its own `-c`), unaligned and without headers.
fn psql_says(weir: &Weir, commands: &[&str]) -> Ended {
    let mut psql = psql(weir);
    psql.args(["-A", "-t", "-F", "|", "-q"]);
    for command in commands {
        psql.args(["-c", command]);
    }
    run(&mut psql, LONG)
}

#[test]
fn psql_lists_describes_asks_and_prepares() {
    let setup = Setup::new();
    let weir = five_flows(&setup);
    let tables = psql_says(&weir, &["\\dt"]).ok() + &psql_says(&weir, &["\\dv"]).ok();
    for table in
        ["flows", "flows_1m", "top_talkers", "qos_1m", "exporters", "exporter_stats", "interface_counters"]
    {
        assert!(tables.contains(&format!("|{table}|")), "\\dt and \\dv lack {table}:\n{tables}");
    }
    let columns = psql_says(&weir, &["\\d flows"]).ok();
    for (column, kind) in
        [("src_addr", "inet"), ("bytes", "bigint"), ("received_at", "timestamp with time zone")]
    {
        let line = columns.lines().find(|line| line.starts_with(&format!("{column}|")));
        let line = line.unwrap_or_else(|| panic!("\\d flows lacks {column}:\n{columns}"));
        assert!(line.contains(kind), "{line}");
    }
    // The query of the README.
    let demo = "select src_addr, sum(est_bytes) b from flows where received_at > now() - interval '5 minutes' \
                group by 1 order by b desc limit 2";
    assert_eq!(psql_says(&weir, &[demo]).ok(), "10.0.0.5|500\n10.0.0.4|400\n");
    let prepared = psql_says(
        &weir,
        &[
            "prepare big as select count(*), sum(bytes) from flows where bytes >= $1",
            "execute big(300)",
            "execute big(500)",
            "deallocate big",
            "begin",
            "show server_version",
            "commit",
        ],
    );
    let lines = prepared.ok();
    assert!(lines.starts_with("3|1200\n1|500\n"), "{lines}");
    // psql's \gdesc and \bind speak the extended protocol; older psql has only \gdesc.
    let described = run_script(&weir, "select src_addr, bytes, received_at from flows \\gdesc\n").ok();
    assert!(described.contains("src_addr|inet") && described.contains("bytes|bigint"), "{described}");
    assert_lossless(&weir);
    assert!(weir.stop().success());
}

/// Runs a script through psql's standard input, by a file.
fn run_script(weir: &Weir, script: &str) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script.sql");
    std::fs::write(&path, script).unwrap();
    run(psql(weir).args(["-A", "-t", "-F", "|", "-q", "-f"]).arg(&path), LONG)
}

/// A query that would take minutes, canceled by psql's Ctrl-C: it ends at once (and psql the script, as it does).
#[test]
fn psql_cancels() {
    let setup = Setup::new();
    let weir = five_flows(&setup);
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.sql");
    let endless = "select sum(a.value * b.value % 7) from generate_series(1, 1000000) a cross join generate_series(1, 1000000) b";
    std::fs::write(&script, format!("{endless};\n")).unwrap();
    let mut command = psql(&weir);
    command
        .args(["-A", "-t", "-q", "-f"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    until(LONG, "the query to run", || {
        let active = weir.metrics().sum("weir_sql_active_queries", &[]);
        if active >= Some(1.0) { Ok(()) } else { Err(format!("{active:?} queries run")) }
    });
    let asked = Instant::now();
    signal(child.id(), "INT");
    let ended = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(asked.elapsed() < Duration::from_secs(10), "took {:?}", asked.elapsed());
    assert!(errors.to_lowercase().contains("cancel"), "{errors}");
    until(LONG, "no query to run", || {
        let active = weir.metrics().sum("weir_sql_active_queries", &[]);
        if active == Some(0.0) { Ok(()) } else { Err(format!("{active:?} queries run")) }
    });
    assert_eq!(weir.numbers("select count(*) from flows"), [5]);
    assert_lossless(&weir);
}

#[test]
fn http_answers_in_three_formats() {
    let setup = Setup::new();
    let weir = five_flows(&setup);
    let query = "select src_addr, bytes, reverse from flows where cidr_contains('10.0.0.0/30', src_addr) order by bytes";
    let csv = weir.ask(query, "text/csv");
    assert_eq!(csv.status, 200);
    assert!(csv.header("content-type").unwrap().starts_with("text/csv"), "{csv:?}");
    assert_eq!(
        csv.text().lines().collect::<Vec<_>>(),
        ["src_addr,bytes,reverse", "10.0.0.1,100,", "10.0.0.2,200,", "10.0.0.3,300,"]
    );
    let json = weir.ask(query, "application/json");
    assert_eq!(json.status, 200);
    assert!(json.header("content-type").unwrap().starts_with("application/json"), "{json:?}");
    let rows: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!(rows[1]["src_addr"], "10.0.0.2", "{rows}");
    assert_eq!(rows[1]["bytes"], 200, "{rows}");
    assert!(rows[1]["reverse"].is_null(), "{rows}");
    assert_eq!(rows.as_array().map(Vec::len), Some(3), "{rows}");
    let arrow = weir.ask(query, "application/vnd.apache.arrow.stream");
    assert_eq!(
        (arrow.status, arrow.header("content-type")),
        (200, Some("application/vnd.apache.arrow.stream"))
    );
    // An IPC stream: its continuation mark, and its end mark.
    assert_eq!(arrow.body[..4], [0xff; 4]);
    assert_eq!(arrow.body[arrow.body.len() - 8..], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    // No answer is an empty one in the format asked for.
    let none = weir.ask("select src_addr from flows where bytes = 1", "text/csv");
    assert_eq!((none.status, none.text().as_str()), (200, "src_addr\n"));
    assert_lossless(&weir);
}

#[test]
fn weir_sql_prints_three_formats() {
    let setup = Setup::new();
    let weir = five_flows(&setup);
    let query = "select src_addr, bytes from flows where ip_protocol = 17 order by bytes";
    let csv = weir.weir_sql(&["--format", "csv", query]).ok();
    assert_eq!(csv.lines().collect::<Vec<_>>(), ["src_addr,bytes", "10.0.0.4,400", "10.0.0.5,500"]);
    let jsonl = weir.weir_sql(&["--format", "jsonl", query]).ok();
    let rows: Vec<serde_json::Value> =
        jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        rows,
        [
            serde_json::json!({"src_addr": "10.0.0.4", "bytes": 400}),
            serde_json::json!({"src_addr": "10.0.0.5", "bytes": 500})
        ]
    );
    let table = weir.weir_sql(&[query]).ok();
    assert!(table.contains("| 10.0.0.4 ") && table.contains("(2 rows)"), "{table}");
    let failed = weir.weir_sql(&["select nothing from flows"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(failed.stderr.contains("nothing"), "{}", failed.stderr);
    let address = weir.addresses.http;
    assert_lossless(&weir);
    assert!(weir.stop().success());
    let url = format!("http://{address}");
    let gone = run(Command::new(weir_tests::weir::binary()).args(["sql", "--url", &url, "select 1"]), LONG);
    assert_eq!(gone.status.code(), Some(1));
    assert!(gone.stderr.contains(&url), "{}", gone.stderr);
}

/// The error says what, and where.
#[test]
fn bad_queries_are_told_what_and_where() {
    let setup = Setup::new();
    let weir = five_flows(&setup);
    for (query, words, position) in [
        ("select src_adr from flows", &["src_adr", "src_addr"][..], Some(8)),
        ("select * from flowz", &["flowz", "flows"], Some(15)),
        ("selec 1", &["selec"], Some(1)),
        ("select 1 +", &[], None),
        ("select sum(bytes from flows", &[], None),
        ("select no_such_function(bytes) from flows", &["no_such_function"], None),
        ("select 1; select 2", &["one statement"], Some(9)),
        ("", &[], None),
    ] {
        let answer = weir.ask(query, "application/json");
        let text = answer.text();
        assert_eq!(answer.status, 400, "{query}: {text}");
        let error: serde_json::Value = serde_json::from_str(&text).unwrap();
        let message = error["error"]["message"].as_str().unwrap_or_else(|| panic!("{query}: {text}"));
        for word in words {
            assert!(message.contains(word), "{query}: {message:?} lacks {word:?}");
        }
        if position.is_some() {
            assert_eq!(error["error"]["position"].as_u64(), position, "{query}: {text}");
        }
    }
    let shown = run_script(&weir, "select src_adr from flows;\n");
    assert!(!shown.status.success());
    assert!(shown.stderr.contains("src_adr") && shown.stderr.contains('^'), "{}", shown.stderr);
    assert_lossless(&weir);
}

/// Nothing writes, reads a file or reaches the network, at no door.
#[test]
fn the_gate_lets_nothing_write() {
    let setup = Setup::new();
    let weir = five_flows(&setup);
    let outside = setup.folder().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let secret = outside.join("secret.csv");
    std::fs::write(&secret, "password\nhunter2\n").unwrap();
    let (secret, target) = (secret.display(), outside.join("copy.csv"));
    for query in [
        format!("copy (select * from flows) to '{}'", target.display()),
        format!("copy flows to '{}' stored as csv", target.display()),
        format!("create external table t stored as csv location '{secret}'"),
        "create table t as select 1".to_owned(),
        "create view v as select 1".to_owned(),
        "insert into flows_raw select * from flows_raw".to_owned(),
        "delete from flows".to_owned(),
        "update flows set bytes = 0".to_owned(),
        "drop table flows_raw".to_owned(),
        "truncate flows".to_owned(),
        "set datafusion.catalog.information_schema = false".to_owned(),
        format!("select * from '{secret}'"),
        format!("select * from read_csv('{secret}')"),
        "explain analyze insert into flows_raw select * from flows_raw".to_owned(),
        "with x as (select 1) insert into flows_raw select * from x".to_owned(),
    ] {
        let answer = weir.ask(&query, "text/csv");
        assert!((400..500).contains(&answer.status), "{query}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains("hunter2"), "{query}: {}", answer.text());
        let psql = psql_says(&weir, &[&query]);
        assert!(!psql.status.success(), "{query}: {}", psql.stdout);
        assert!(!(psql.stdout + &psql.stderr).contains("hunter2"), "{query}");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "no file was made");
    assert_eq!(weir.numbers("select count(*), sum(bytes) from flows"), [5, 1_500]);
    for query in [
        "explain select * from flows",
        "show tables",
        "values (1)",
        "table exporters",
        "select 1 as \"drop\"",
    ] {
        assert_eq!(weir.ask(query, "text/csv").status, 200, "{query}");
    }
    assert_lossless(&weir);
}
