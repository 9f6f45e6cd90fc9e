//! The doors with their real clients: `psql`, and HTTP as bytes on a socket.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::ipc::reader::StreamReader;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::sql::tests::{counted_engine, engine_with};
use crate::sql::{SqlConfig, SqlMetrics};

struct Doors {
    http: SocketAddr,
    postgres: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    folder: tempfile::TempDir,
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Both doors on free ports; open when `sql` is given.
async fn doors(sql: Option<SqlConfig>, postgres: PostgresConfig) -> Doors {
    let stop = CancellationToken::new();
    let folder = tempfile::tempdir().unwrap();
    let mut registry = Registry::default();
    let metrics = Arc::new(SqlMetrics::default());
    metrics.register(&mut registry);
    let shared = Shared::new(registry, Some(folder.path().join("collect.sock")), true);
    if let Some(sql) = sql {
        shared.watch(Box::new(|| None), Box::new(|| {}));
        shared.open(counted_engine(sql, metrics).await);
    }
    let listeners =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    let [http, pg] = listeners;
    let config = HttpConfig { json_rows: 2_000, ..HttpConfig::default() };
    tokio::spawn(http::serve(http, config, Arc::clone(&shared), stop.clone()));
    tokio::spawn(pg::serve(pg, postgres, Arc::clone(&shared), stop.clone()));
    Doors { http: addresses[0], postgres: addresses[1], shared, stop, folder }
}

async fn open() -> Doors {
    doors(Some(SqlConfig::default()), PostgresConfig::default()).await
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

async fn request(address: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // a server that refuses a large body may reset the connection after its answer
    let _ = stream.read_to_end(&mut answer).await;
    let at = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&answer[..at]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer[at + 4..].to_vec();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(&body) } else { body };
    Reply { status, head, body }
}

fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(at) = body.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&body[at + 2..at + 2 + size]);
        body = &body[at + 4 + size..];
    }
    whole
}

async fn get(doors: &Doors, path: &str) -> Reply {
    request(doors.http, format!("GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n").as_bytes())
        .await
}

/// Until a query runs.
async fn until_active(doors: &Doors) {
    for _ in 0..400 {
        if get(doors, "/metrics").await.text().contains("\nweir_sql_active_queries 1\n") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no query runs: {}", get(doors, "/metrics").await.text());
}

async fn ask(doors: &Doors, sql: &str, accept: &str) -> Reply {
    let body = serde_json::json!({ "query": sql }).to_string();
    let head = format!(
        "POST /api/v1/sql HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    request(doors.http, (head + &body).as_bytes()).await
}

fn psql(doors: &Doors) -> Command {
    let mut command = Command::new("psql");
    command.args([
        "-X",
        "-h",
        "127.0.0.1",
        "-p",
        &doors.postgres.port().to_string(),
        "-U",
        "weir",
        "-d",
        "weir",
        "-w",
    ]);
    command
        .args(["-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"])
        .env("PGCONNECT_TIMEOUT", "10")
        .kill_on_drop(true);
    command
}

/// stdout, and stderr.
async fn says(command: &mut Command) -> (String, String) {
    let output =
        tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("psql ends").unwrap();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

async fn psql_says(doors: &Doors, commands: &[&str]) -> (String, String) {
    let mut command = psql(doors);
    for text in commands {
        command.args(["-c", text]);
    }
    says(&mut command).await
}

/// Until the place of a connection that went away is free again.
async fn until_psql_says(doors: &Doors, number: &str) {
    let mut said = Default::default();
    for _ in 0..200 {
        said = psql_says(doors, &[&format!("select {number}")]).await;
        if said.0 == format!("{number}\n") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{said:?}");
}

/// The error that psql prints.
async fn psql_error(doors: &Doors, sql: &str) -> Option<String> {
    let script = doors.folder.path().join("script.sql");
    let (_, errors) = if sql.len() > 100_000 {
        std::fs::write(&script, sql).unwrap();
        says(psql(doors).arg("-f").arg(&script)).await
    } else {
        psql_says(doors, &[sql]).await
    };
    let at = errors.find("ERROR:  ")?;
    Some(errors[at + 8..].lines().next().unwrap_or_default().to_owned())
}

fn hostile(folder: &Path) -> Vec<String> {
    let (secret, target) = (folder.join("secret.csv"), folder.join("out"));
    std::fs::write(&secret, "password\nhunter2\n").unwrap();
    let (secret, target) = (secret.display(), target.display());
    let mut statements: Vec<String> = [
        "insert into flows values (1)",
        "insert into flows_raw select * from flows_raw",
        "update flows set bytes = 0",
        "delete from flows",
        "merge into flows using hosts on true when matched then delete",
        "truncate flows",
        "drop table flows",
        "drop view flows",
        "drop schema public cascade",
        "drop database weir",
        "create table t (a int)",
        "create table t as select * from flows",
        "create temporary table t as select 1",
        "create view v as select 1",
        "create or replace view flows as select 1",
        "create schema s",
        "create database d",
        "create function f() returns int language sql as 'select 1'",
        "create role r",
        "create user u",
        "create extension x",
        "create index i on flows (bytes)",
        "alter table flows add column x int",
        "alter system set x = 1",
        "alter user weir password 'x'",
        "grant all on flows to weir",
        "revoke all on flows from weir",
        "vacuum",
        "analyze",
        "reindex table flows",
        "cluster flows",
        "checkpoint",
        "lock table flows",
        "listen x",
        "notify x",
        "load 'x'",
        "call f()",
        "do $$ begin delete from flows; end $$",
        "comment on table flows is 'x'",
        "refresh materialized view flows",
        "import foreign schema s from server x into y",
        "declare c cursor for select 1",
        "fetch 1 from c",
        "savepoint s",
        "prepare transaction 'x'",
        "rollback prepared 'x'",
        "install httpfs",
        "attach 'x' as y",
        "pragma x",
        "use x",
        "kill 1",
        "select 1; drop table flows",
        "select 1; select 2",
        "select * into t from flows",
        "select * from flows for update",
        "with x as (insert into flows_raw values (1) returning *) select * from x",
        "with x as (delete from flows returning *) select * from x",
        "explain insert into flows_raw select * from flows_raw",
        "explain analyze insert into flows_raw select * from flows_raw",
        "explain explain select 1",
        "with recursive t as (select 1 as n union all select n + 1 from t) select count(*) from t",
        "set datafusion.catalog.information_schema = false",
        "set datafusion.execution.target_partitions = 10000",
        "set datafusion.runtime.memory_limit = '100G'",
        "reset datafusion.runtime.memory_limit",
        "select pg_read_file('/etc/passwd')",
        "select lo_import('/etc/passwd')",
        "select * from pg_ls_dir('/')",
        "select * from read_csv('/etc/passwd')",
        "select * from read_parquet('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from \"/etc/passwd\"",
        "select * from 'https://example.com/x.parquet'",
        "select * from generate_series(1, 9000000000000)",
        "select repeat('x', 2000000000)",
        "select arrow_cast(null, 'FixedSizeList(2000000000, Int64)')",
        "select pg_sleep(3600)",
        "select set_config('x', 'y', false)",
    ]
    .map(str::to_owned)
    .to_vec();
    statements.extend([
        format!("copy flows to '{target}'"),
        format!("copy (select * from flows) to '{target}.parquet'"),
        format!("copy flows to '{target}.csv' stored as csv"),
        format!("copy flows from '{secret}'"),
        format!("create external table t stored as csv location '{secret}'"),
        format!("create unbounded external table t stored as csv location '{secret}'"),
        format!("explain analyze copy flows to '{target}'"),
        format!("select * from '{secret}'"),
        format!("select 1{}", "+1".repeat(20_000)),
        format!("select {}1{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("select 1 from flows where {}true", "bytes = 1 or ".repeat(10_000)),
        format!("select 1{}", " union all select 1".repeat(5_000)),
        format!("select {}1{}", "case when true then ".repeat(5_000), " end".repeat(5_000)),
        format!("select {}true", "not ".repeat(50_000)),
        format!("select '{}'", "x".repeat(300_000)),
        format!("select 1 from {}", vec!["flows"; 500].join(",")),
    ]);
    statements
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_statements_are_refused_alike_at_both_doors() {
    let doors = open().await;
    let outside = tempfile::tempdir().unwrap();
    let statements = hostile(outside.path());
    assert!(statements.len() >= 60);
    for sql in &statements {
        let short = &sql[..sql.len().min(100)];
        let reply = ask(&doors, sql, "application/json").await;
        assert!((400..500).contains(&reply.status), "{short}: {} {}", reply.status, reply.text());
        let error: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        let http = error["error"]["message"].as_str().unwrap();
        assert!(!http.contains("hunter2") && !http.contains("root:"), "{short}: {http}");
        assert_eq!(psql_error(&doors, sql).await.as_deref(), Some(http), "{short}");
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "no file was made");
    assert_eq!(psql_says(&doors, &["select count(*), sum(bytes) from flows"]).await.0, "6|2100\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_lists_describes_and_asks() {
    let doors = open().await;
    let (tables, errors) = psql_says(&doors, &["\\dt"]).await;
    assert_eq!(tables, "public|flows|table|weir\npublic|hosts|table|weir\n", "{errors}");
    let (all, errors) = psql_says(&doors, &["\\d"]).await;
    assert!(all.contains("|flows|"), "{all}{errors}");
    let (columns, errors) = psql_says(&doors, &["\\d flows"]).await;
    for (column, kind) in [
        ("src_addr", "inet"),
        ("src_mac", "macaddr"),
        ("bytes", "bigint"),
        ("received_at", "timestamp with time zone"),
        ("as_path", "bigint[]"),
        ("extra", "json"),
        ("dscp", "smallint"),
        ("est_bytes", "double precision"),
    ] {
        let line = columns.lines().find(|line| line.starts_with(&format!("{column}|")));
        let line = line.unwrap_or_else(|| panic!("{column}: {columns}{errors}"));
        assert!(line.contains(&format!("|{kind}|")), "{line}");
    }
    let (databases, errors) = psql_says(&doors, &["\\l"]).await;
    assert!(databases.contains("weir|"), "{databases}{errors}");
    let (info, errors) = psql_says(&doors, &["\\conninfo"]).await;
    assert!(info.contains("database \"weir\" as user \"weir\""), "{info}{errors}");
    for command in ["\\dn", "\\df", "\\du", "\\dv", "\\di", "\\dT", "\\d+ flows", "\\dt+"] {
        let (_, errors) = psql_says(&doors, &[command]).await;
        assert!(!errors.contains("FATAL") && !errors.contains("panicked"), "{command}: {errors}");
    }
    let asked = psql_says(
        &doors,
        &[
            "select src_addr, src_mac, received_at, bytes, tos, proto_ver, reverse from flows order by bytes limit 2",
            "select array_agg(dst_port order by bytes), array_agg(src_addr order by bytes) from flows where bytes < 300",
            "begin",
            "prepare p as select bytes from flows where src_addr = $1",
            "execute p('10.1.2.4')",
            "commit",
            "select null, true, 1.5, 'x', date '2026-11-23', interval '1 hour'",
            "select src_addr from flows where bytes = 1",
        ],
    )
    .await;
    assert_eq!(
        asked.0,
        "10.1.2.3|00:1b:21:3c:4d:01|2026-11-23 09:00:00.000000+00|100|184|netflow9|\n\
         10.1.2.4|00:1b:21:3c:4d:02|2026-11-23 09:01:00.000000+00|200|0|netflow9|\n\
         {443,53}|{10.1.2.3,10.1.2.4}\n200\n|t|1.5|x|2026-11-23|01:00:00\n",
        "{}",
        asked.1
    );
    let described = doors.folder.path().join("describe.sql");
    std::fs::write(
        &described,
        "select src_addr, bytes, received_at from flows where src_addr = '10.1.2.3' \\gdesc\n",
    )
    .unwrap();
    let (described, errors) = says(psql(&doors).arg("-f").arg(&described)).await;
    assert_eq!(described, "src_addr|inet\nbytes|bigint\nreceived_at|timestamp with time zone\n", "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_shows_where_the_error_is() {
    let doors = open().await;
    let (_, errors) = psql_says(&doors, &["select src_adr from flows"]).await;
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines[0], "ERROR:  no column \"src_adr\"; did you mean \"src_addr\"?");
    assert_eq!(lines[1], "LINE 1: select src_adr from flows");
    assert_eq!(lines[2].find('^'), lines[1].find("src_adr"), "{errors}");
    let (state, _) = says(psql(&doors).args(["-v", "ON_ERROR_STOP=0", "-f", "-"]).stdin({
        let path = doors.folder.path().join("state.sql");
        std::fs::write(&path, "select x from flows;\n\\echo :SQLSTATE\nselect * from nowhere;\n\\echo :SQLSTATE\ndelete from flows;\n\\echo :SQLSTATE\n").unwrap();
        Stdio::from(std::fs::File::open(path).unwrap())
    }))
    .await;
    assert_eq!(state, "42703\n42P01\n25006\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_cancels() {
    let doors = open().await;
    let script = doors.folder.path().join("cancel.sql");
    let endless = "select sum(a.value * b.value % 7) from generate_series(1, 1000000) a cross join generate_series(1, 1000000) b";
    std::fs::write(&script, format!("{endless};\nselect 'goes on';\n")).unwrap();
    let child = psql(&doors)
        .args(["-v", "ON_ERROR_STOP=0", "-f"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until_active(&doors).await;
    let asked = Instant::now();
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.unwrap().success());
    let output =
        tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await.unwrap().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    // psql ends a script at Ctrl-C; the server goes on
    assert_eq!(psql_says(&doors, &["select 'goes on'"]).await.0, "goes on\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("ERROR:  canceled on request"), "{output:?}");
}

/// A client that goes away stops its query, at both doors.
#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_stops_the_query() {
    let doors =
        doors(Some(SqlConfig { concurrent_queries: 1, ..SqlConfig::default() }), PostgresConfig::default())
            .await;
    let endless = "select sum(a.value * b.value % 7) from generate_series(1, 1000000) a cross join generate_series(1, 1000000) b";
    let mut child = psql(&doors).args(["-c", endless]).stderr(Stdio::null()).spawn().unwrap();
    until_active(&doors).await;
    child.kill().await.unwrap();
    // the only place is free again
    assert_eq!(ask(&doors, "select 1 as one", "text/csv").await.text(), "one\n1\n");

    let body = serde_json::json!({ "query": endless }).to_string();
    let head = format!("POST /api/v1/sql HTTP/1.1\r\nHost: weir\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = TcpStream::connect(doors.http).await.unwrap();
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    until_active(&doors).await;
    drop(stream);
    assert_eq!(ask(&doors, "select 2 as two", "text/csv").await.text(), "two\n2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_asks_for_the_password_where_there_is_one() {
    let config = PostgresConfig { password: Some(Secret::new("sesame")), ..PostgresConfig::default() };
    let doors = doors(Some(SqlConfig::default()), config).await;
    let (said, errors) = says(psql(&doors).env("PGPASSWORD", "sesame").args(["-c", "select 1"])).await;
    assert_eq!(said, "1\n", "{errors}");
    let (_, errors) = says(psql(&doors).env("PGPASSWORD", "wrong").args(["-c", "select 1"])).await;
    assert!(errors.contains("FATAL"), "{errors}");
    let (_, errors) = says(psql(&doors).args(["-c", "select 1"])).await;
    assert!(errors.contains("password"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_knows_its_user_database_and_bounds() {
    let doors =
        doors(Some(SqlConfig::default()), PostgresConfig { connections: 1, ..PostgresConfig::default() })
            .await;
    let port = doors.postgres.port().to_string();
    let as_other = |user: &'static str, database: &'static str| {
        let mut command = Command::new("psql");
        command.args([
            "-X",
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            user,
            "-d",
            database,
            "-w",
            "-c",
            "select 1",
        ]);
        command
    };
    let (_, errors) = says(&mut as_other("root", "weir")).await;
    assert!(errors.contains("the user is \"weir\""), "{errors}");
    let (_, errors) = says(&mut as_other("weir", "postgres")).await;
    assert!(errors.contains("the database is \"weir\""), "{errors}");
    // its first answer says that it is connected
    let mut holds = psql(&doors)
        .args(["-c", "select 'connected'", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answer = [0; 9];
    holds.stdout.as_mut().unwrap().read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"connected");
    let (_, errors) = psql_says(&doors, &["select 1"]).await;
    assert!(errors.contains("too many connections"), "{errors}");
    holds.kill().await.unwrap();
    until_psql_says(&doors, "1").await;
    // what is no PostgreSQL at all disturbs nobody
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]] {
        let mut stream = TcpStream::connect(doors.postgres).await.unwrap();
        stream.write_all(noise).await.unwrap();
        drop(stream);
    }
    until_psql_says(&doors, "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_answers_in_three_formats() {
    let doors = open().await;
    let sql = "select src_addr, src_mac, bytes, received_at, as_path, extra, reverse from flows where src_addr << '10.1.0.0/16' order by bytes";
    let json = ask(&doors, sql, "application/json").await;
    assert_eq!(json.status, 200, "{}", json.text());
    assert!(json.head.contains("content-type: application/json"));
    let rows: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!(
        rows[1],
        serde_json::json!({ "src_addr": "10.1.2.4", "src_mac": "00:1b:21:3c:4d:02", "bytes": 200,
            "received_at": "2026-11-23T09:01:00Z", "as_path": null, "extra": null, "reverse": null })
    );
    assert_eq!(rows.as_array().unwrap().len(), 2);
    let csv = ask(&doors, sql, "text/csv").await;
    assert_eq!(
        csv.text(),
        "src_addr,src_mac,bytes,received_at,as_path,extra,reverse\n\
         10.1.2.3,00:1b:21:3c:4d:01,100,2026-11-23T09:00:00Z,,,\n10.1.2.4,00:1b:21:3c:4d:02,200,2026-11-23T09:01:00Z,,,\n"
    );
    let nested = ask(&doors, "select array_agg(src_addr order by bytes) a, named_struct('x', 1, 'y', 'z') s from flows where bytes < 300", "text/csv").await;
    assert_eq!(
        nested.text(),
        "a,s\n\"[\"\"10.1.2.3\"\",\"\"10.1.2.4\"\"]\",\"{\"\"x\"\":1,\"\"y\"\":\"\"z\"\"}\"\n"
    );
    let arrow = ask(&doors, sql, "application/vnd.apache.arrow.stream").await;
    let batches: Vec<_> =
        StreamReader::try_new(arrow.body.as_slice(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 2);
    assert_eq!(batches[0].schema().field(0).data_type(), &datafusion::arrow::datatypes::DataType::Utf8);
    for (accept, want) in [("application/json", "[]\n"), ("text/csv", "bytes\n")] {
        assert_eq!(ask(&doors, "select bytes from flows where bytes = 1", accept).await.text(), want);
    }
    let empty =
        ask(&doors, "select bytes from flows where bytes = 1", "application/vnd.apache.arrow.stream").await;
    assert_eq!(StreamReader::try_new(empty.body.as_slice(), None).unwrap().count(), 0);
    assert_eq!(ask(&doors, "select 1", "image/png").await.status, 406);
    let much = "select value from generate_series(1, 100000)";
    let reply = ask(&doors, much, "application/json").await;
    assert_eq!((reply.status, reply.text().contains("answer_too_large")), (413, true), "{}", reply.text());
    assert_eq!(ask(&doors, much, "text/csv").await.text().lines().count(), 100_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn http_errors_have_status_kind_and_position() {
    let doors = doors(
        Some(SqlConfig { statement_timeout_ms: 500, ..SqlConfig::default() }),
        PostgresConfig::default(),
    )
    .await;
    let endless = "select sum(a.value * b.value % 7) from generate_series(1, 1000000) a cross join generate_series(1, 1000000) b";
    for (sql, status, kind, position) in [
        ("select src_adr from flows", 400, "unknown_column", Some(8)),
        ("select * from flowz", 400, "unknown_table", Some(15)),
        ("selec 1", 400, "refused", Some(1)),
        ("", 400, "syntax", None),
        (&format!("select '{}'", "x".repeat(300_000)), 413, "too_long", None),
        (endless, 408, "timeout", None),
    ] {
        let reply = ask(&doors, sql, "application/json").await;
        let error: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!((reply.status, error["error"]["kind"].as_str()), (status, Some(kind)), "{}", reply.text());
        if position.is_some() {
            assert_eq!(error["error"]["position"].as_u64(), position, "{}", reply.text());
        }
    }
    for body in ["", "select 1", "{}", "{\"query\": 1}", "{\"query\": \"select 1\", \"x\": 1}"] {
        let head = format!(
            "POST /api/v1/sql HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        assert_eq!(request(doors.http, (head + body).as_bytes()).await.status, 400, "{body}");
    }
    assert_eq!(get(&doors, "/api/v1/sql").await.status, 405);
    assert_eq!(get(&doors, "/nowhere").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_take_the_collector_in() {
    let doors = doors(None, PostgresConfig::default()).await;
    assert_eq!(get(&doors, "/healthz").await.text(), "ok\n");
    let reply = get(&doors, "/readyz").await;
    assert_eq!((reply.status, reply.text().as_str()), (503, "not ready: the store is not open\n"));
    assert_eq!(ask(&doors, "select 1", "*/*").await.status, 503);
    let (_, errors) = psql_says(&doors, &["select 1"]).await;
    assert!(errors.contains("not ready: the store is not open"), "{errors}");

    let engine = engine_with(SqlConfig::default()).await;
    doors.shared.watch(Box::new(|| None), Box::new(|| {}));
    doors.shared.open(engine);
    let reply = get(&doors, "/readyz").await;
    assert!(reply.status == 503 && reply.text().contains("collect.sock does not answer"), "{}", reply.text());

    // the collector's own server, as it answers
    let socket = UnixListener::bind(doors.folder.path().join("collect.sock")).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            let body = if request[..length].starts_with(b"GET /metrics") {
                "# HELP weir_collector_flows Flows.\n# TYPE weir_collector_flows counter\nweir_collector_flows_total 7\n# EOF\n"
            } else {
                "ready\n"
            };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    assert_eq!(get(&doors, "/readyz").await.status, 200);
    let text = get(&doors, "/metrics").await;
    assert!(text.head.contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    assert!(text.text().contains("# TYPE weir_collector_flows_total counter\n"), "{}", text.text());
    let asked = "GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n";
    let reply = request(doors.http, asked.as_bytes()).await;
    assert!(
        reply.head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{}",
        reply.head
    );
    let text = reply.text();
    assert!(
        text.contains("weir_collector_flows_total 7\n") && text.contains("weir_http_requests_total{"),
        "{text}"
    );
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    let tables: serde_json::Value =
        serde_json::from_slice(&get(&doors, "/api/v1/tables").await.body).unwrap();
    let flows = tables["tables"].as_array().unwrap().iter().find(|table| table["name"] == "flows").unwrap();
    let column =
        flows["columns"].as_array().unwrap().iter().find(|column| column["name"] == "src_addr").unwrap();
    assert_eq!((column["type"].as_str(), column["doc"].as_str()), (Some("inet"), Some("source address")));
    assert!(get(&doors, "/").await.text().contains("/api/v1/sql"));
}

#[test]
fn doors_stay_on_loopback() {
    assert!(may_listen("http", "127.0.0.1:80".parse().unwrap(), false).is_ok());
    assert!(may_listen("http", "[::1]:80".parse().unwrap(), false).is_ok());
    assert!(
        may_listen("http", "0.0.0.0:80".parse().unwrap(), false).unwrap_err().contains("listen.insecure")
    );
    assert!(may_listen("http", "0.0.0.0:80".parse().unwrap(), true).is_ok());
}

#[test]
fn a_password_is_never_printed() {
    let config = PostgresConfig { password: Some(Secret::new("sesame")), ..PostgresConfig::default() };
    assert!(!format!("{config:?}").contains("sesame"));
    assert!(!serde_json::to_string(&config).unwrap().contains("sesame"));
}
