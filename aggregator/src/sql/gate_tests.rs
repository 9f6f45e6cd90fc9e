use super::*;

fn ask(sql: &str) -> Result<Request, QueryError> {
    check(sql, &Limits::default(), &PostgresCompatibilityParser::new())
}

fn error(sql: &str) -> QueryError {
    match ask(sql) {
        Err(error) => error,
        Ok(request) => panic!("let through: {sql}: {request:?}"),
    }
}

#[test]
fn queries_pass() {
    for sql in [
        "select 1",
        "SELECT * FROM flows WHERE src_addr = '10.1.2.3'",
        "with a as (select 1) select * from a",
        "values (1), (2)",
        "table flows",
        "(select 1) union (select 2)",
        "explain select 1",
        "explain analyze select 1",
        "explain (analyze) select 1",
        "show tables",
        "show columns from flows",
        "describe flows",
        "select 1 as \"drop\"",
        "select 'insert into x'",
        "/* delete */ select 1 -- drop table\n;;",
        "select count(*) from pg_catalog.pg_class",
    ] {
        assert!(matches!(ask(sql), Ok(Request::Query(_))), "{sql}: {:?}", ask(sql));
    }
    for sql in ["", " ", ";", ";;", "-- nothing", "/* nothing */"] {
        assert!(matches!(ask(sql), Ok(Request::Empty)), "{sql}");
    }
}

#[test]
fn what_writes_is_refused_with_its_name() {
    for (sql, name) in [
        ("insert into flows values (1)", "insert"),
        ("copy flows to '/tmp/x'", "copy"),
        ("create external table t stored as csv location '/etc/passwd'", "create"),
        ("explain insert into flows values (1)", "INSERT"),
        ("explain analyze copy flows to '/tmp/x'", "COPY"),
        ("with x as (insert into flows values (1)) select * from x", "writes"),
        ("select * into t from flows", "SELECT INTO"),
        ("select * from flows for update", "FOR UPDATE"),
        ("do $$ begin end $$", "do"),
        ("vacuum", "vacuum"),
        ("explain explain select 1", "EXPLAIN"),
        ("rollback prepared 'x'", "ROLLBACK"),
    ] {
        let error = error(sql);
        assert!(error.message.contains(name), "{sql}: {}", error.message);
        assert!(matches!(error.kind, ErrorKind::Refused | ErrorKind::Syntax), "{sql}: {error:?}");
    }
}

#[test]
fn long_deep_and_wide_statements_are_refused_before_they_are_parsed() {
    let deep = |n: usize| format!("select {}1{}", "(".repeat(n), ")".repeat(n));
    let sum = |n: usize| format!("select 1{}", "+1".repeat(n));
    let or = |n: usize| format!("select 1 from flows where {}true", "bytes = 1 or ".repeat(n));
    let union = |n: usize| format!("select 1{}", " union all select 1".repeat(n));
    let case = |n: usize| format!("select {}1{}", "case when true then ".repeat(n), " end".repeat(n));
    let not = |n: usize| format!("select {}true", "not ".repeat(n));
    let minus = |n: usize| format!("select {}1", "- ".repeat(n));
    let cast = |n: usize| format!("select 1{}", "::int".repeat(n));
    let index = |n: usize| format!("select {}1{}", "[".repeat(n), "]".repeat(n));
    for sql in [
        deep(65),
        deep(100_000),
        sum(1_001),
        sum(100_000),
        or(1_000),
        or(15_000),
        union(65),
        union(10_000),
        case(65),
        case(8_000),
        not(1_001),
        not(60_000),
        minus(1_001),
        cast(1_001),
        index(65),
    ] {
        let error = error(&sql);
        assert_eq!(error.kind, ErrorKind::TooComplex, "{}: {error:?}", &sql[..40]);
    }
    assert_eq!(error(&format!("select '{}'", "x".repeat(300_000))).kind, ErrorKind::TooLong);
    for sql in [deep(60), sum(900), or(400), union(60)] {
        assert!(ask(&sql).is_ok(), "{}: {:?}", &sql[..40], ask(&sql).err());
    }
    // sqlparser tries each argument twice: 13 calls inside one another take it 8,192 tries, 60 for ever
    let calls = |n: usize| format!("select {}1{}", "abs(".repeat(n), ")".repeat(n));
    assert_eq!(error(&calls(13)).kind, ErrorKind::TooComplex);
    let started = std::time::Instant::now();
    assert!(ask(&calls(12)).is_ok());
    assert!(started.elapsed().as_millis() < 500, "{:?}", started.elapsed());
    // a long list is one operator
    let list = format!("select 1 from flows where src_port in ({})", vec!["1"; 20_000].join(","));
    assert!(ask(&list).is_ok());
}

#[test]
fn tables_that_unfold_are_counted_unfolded() {
    let mut sql = "with t0 as (select 1 as x)".to_owned();
    for n in 1..30 {
        sql += &format!(", t{n} as (select a.x from t{p} a, t{p} b)", p = n - 1);
    }
    sql += " select count(*) from t29";
    assert_eq!(error(&sql).kind, ErrorKind::TooComplex);
    let many = format!("select 1 from {}", vec!["flows"; 200].join(", "));
    assert_eq!(error(&many).kind, ErrorKind::TooComplex);
    assert_eq!(
        error("with recursive t as (select 1 union all select 1 from t) select * from t").kind,
        ErrorKind::Refused
    );
}

#[test]
fn one_statement_at_a_time() {
    let error = error("select 1; select 2");
    assert_eq!((error.kind, error.position), (ErrorKind::Refused, Some(9)));
    assert!(ask("select 1;").is_ok());
}

#[test]
fn syntax_errors_have_a_position() {
    assert_eq!(error("selec 1").position, Some(1));
    assert_eq!(error("select 'open").kind, ErrorKind::Syntax);
    let error = error("select 1\nfrom (");
    assert_eq!(error.kind, ErrorKind::Syntax);
}

#[test]
fn session_noise_is_understood() {
    let command = |sql: &str| match ask(sql) {
        Ok(Request::Session(command)) => command,
        other => panic!("{sql}: {other:?}"),
    };
    let set = |name: &str, value: &str| Command::Set { name: name.to_owned(), value: value.to_owned() };
    for (sql, want) in [
        ("BEGIN", Command::Begin),
        ("begin transaction isolation level read committed", Command::Begin),
        ("START TRANSACTION READ ONLY", Command::Begin),
        ("commit;", Command::Commit),
        ("END", Command::Commit),
        ("abort", Command::Rollback),
        ("discard all", Command::Discard),
        ("SET application_name = 'psql'", set("application_name", "psql")),
        ("set session statement_timeout to 5000", set("statement_timeout", "5000")),
        ("SET TIME ZONE 'UTC'", set("timezone", "UTC")),
        ("set datestyle = 'ISO', 'MDY'", set("datestyle", "ISO, MDY")),
        ("set datafusion.execution.batch_size = 1", set("datafusion.execution.batch_size", "1")),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::Ignored("SET")),
        ("reset all", Command::Reset(None)),
        ("show server_version", Command::Show("server_version".to_owned())),
        ("SHOW TRANSACTION ISOLATION LEVEL", Command::Show("transaction_isolation".to_owned())),
        ("deallocate prepare p", Command::Deallocate(Some("p".to_owned()))),
        ("DEALLOCATE ALL", Command::Deallocate(None)),
        (
            "prepare p (inet) as select 1 where $1 = '10.0.0.1'",
            Command::Prepare { name: "p".to_owned(), sql: "select 1 where $1 = '10.0.0.1'".to_owned() },
        ),
        (
            "execute p('10.0.0.1', 1 + 1)",
            Command::Execute { name: "p".to_owned(), arguments: Some("'10.0.0.1', 1 + 1".to_owned()) },
        ),
        ("execute p", Command::Execute { name: "p".to_owned(), arguments: None }),
        ("execute p()", Command::Execute { name: "p".to_owned(), arguments: None }),
    ] {
        assert_eq!(command(sql), want, "{sql}");
    }
}
