//! SQL as a whole: statements in, rows out, over tables in memory with the types of the real ones.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, FixedSizeBinaryArray, Int16Array, Int32Array, Int64Array, RecordBatch,
};
use datafusion::arrow::array::{StringArray, TimestampMicrosecondArray, new_null_array};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;
use weir_schemas::{Address, Table};

use super::*;
use crate::countries::Countries;
use crate::serve::values::readable;

/// 2026-11-23 09:00:00 UTC.
const NINE: i64 = 1_795_424_400_000_000;

/// Six flows: (seconds after nine, source, destination, source MAC's last byte, protocol, port, bytes, tos).
const FLOWS: [(i64, Option<&str>, &str, u8, i16, i32, i64, i16); 6] = [
    (0, Some("10.1.2.3"), "192.0.2.1", 1, 6, 443, 100, 0xb8),
    (60, Some("10.1.2.4"), "192.0.2.1", 2, 17, 53, 200, 0),
    (120, Some("10.200.0.1"), "2001:db8::1", 3, 6, 22, 300, 0x28),
    (180, Some("2001:db8::1"), "2001:db8::2", 4, 58, 0, 400, 0),
    (240, Some("192.168.7.7"), "8.8.8.8", 5, 17, 53, 500, 1),
    (300, None, "203.0.113.9", 6, 1, 0, 600, 0),
];

fn addresses(texts: impl Iterator<Item = Option<&'static str>>) -> ArrayRef {
    let bytes = texts.map(|text| text.map(|text| text.parse::<Address>().unwrap().0));
    Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(bytes, 16).unwrap())
}

pub(crate) fn flows() -> RecordBatch {
    let schema = Table::Flows.sql_schema();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "received_at" => Arc::new(
                TimestampMicrosecondArray::from_iter_values(
                    FLOWS.iter().map(|flow| NINE + flow.0 * 1_000_000),
                )
                .with_timezone("UTC"),
            ),
            "exporter_addr" => addresses(FLOWS.iter().map(|_| Some("198.51.100.1"))),
            "proto_ver" => Arc::new(StringArray::from_iter_values(FLOWS.iter().map(|_| "netflow9"))),
            "src_addr" => addresses(FLOWS.iter().map(|flow| flow.1)),
            "dst_addr" => addresses(FLOWS.iter().map(|flow| Some(flow.2))),
            "src_mac" => {
                let macs = FLOWS.iter().map(|flow| [0, 0x1b, 0x21, 0x3c, 0x4d, flow.3]);
                Arc::new(FixedSizeBinaryArray::try_from_iter(macs).unwrap())
            }
            "ip_protocol" => Arc::new(Int16Array::from_iter_values(FLOWS.iter().map(|flow| flow.4))),
            "dst_port" => Arc::new(Int32Array::from_iter_values(FLOWS.iter().map(|flow| flow.5))),
            "bytes" => Arc::new(Int64Array::from_iter_values(FLOWS.iter().map(|flow| flow.6))),
            "tos" => Arc::new(Int16Array::from_iter_values(FLOWS.iter().map(|flow| flow.7))),
            "tcp_flags" => {
                Arc::new(Int32Array::from_iter_values(FLOWS.iter().map(|flow| i32::from(flow.4 == 6) * 0x12)))
            }
            _ => new_null_array(field.data_type(), FLOWS.len()),
        }
    });
    let columns = columns.collect();
    RecordBatch::try_new(schema, columns).unwrap()
}

pub(crate) async fn engine_with(config: SqlConfig) -> Arc<Engine> {
    counted_engine(config, Arc::default()).await
}

pub(crate) async fn counted_engine(config: SqlConfig, metrics: Arc<SqlMetrics>) -> Arc<Engine> {
    let flows = flows();
    let hosts = RecordBatch::try_from_iter([
        ("addr", Arc::new(StringArray::from(vec!["10.1.2.3", "2001:DB8::1", "nonsense"])) as ArrayRef),
        ("name", Arc::new(StringArray::from(vec!["alice", "bob", "carol"])) as ArrayRef),
    ])
    .unwrap();
    let table = |batch: RecordBatch| -> Arc<dyn TableProvider> {
        Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap())
    };
    let tables = vec![("flows_raw".to_owned(), table(flows)), ("hosts".to_owned(), table(hosts))];
    let views = [(
        "flows",
        "SELECT *, CAST(tos >> 2 AS SMALLINT) AS dscp, CAST(bytes AS DOUBLE) AS est_bytes FROM flows_raw",
    )];
    Engine::new(config, tables, &views, Countries::default(), None, metrics).await.unwrap()
}

pub(crate) async fn engine() -> Arc<Engine> {
    engine_with(SqlConfig::default()).await
}

/// The rows of an answer as text, `|` between values.
async fn rows(session: &Session, sql: &str) -> Result<Vec<String>, QueryError> {
    let rows = match session.execute(sql, &CancellationToken::new()).await? {
        Answer::Rows(rows) => rows,
        Answer::Done(done) => return Ok(vec![format!("{done:?}")]),
    };
    let batches: Vec<RecordBatch> = rows.try_collect().await?;
    let options = FormatOptions::default().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch.columns().iter().map(|column| readable(column).unwrap()).collect();
        let formats: Vec<_> =
            columns.iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            lines.push(
                formats.iter().map(|format| format.value(row).to_string()).collect::<Vec<_>>().join("|"),
            );
        }
    }
    Ok(lines)
}

/// Each statement with its rows, or with a part of its error.
async fn golden(cases: &[(&str, Result<&[&str], &str>)]) {
    let session = engine().await.session(Door::Http);
    let mut wrong = Vec::new();
    for (sql, want) in cases {
        let got = rows(&session, sql).await;
        let as_wanted = match (&got, want) {
            (Ok(got), Ok(want)) => got == want,
            (Err(got), Err(want)) => got.message.contains(want),
            _ => false,
        };
        if !as_wanted {
            wrong.push(format!("{sql}\n  want {want:?}\n  got  {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[tokio::test]
async fn addresses_are_addresses_everywhere() {
    golden(&[
        ("select bytes from flows where src_addr = '10.1.2.3'", Ok(&["100"])),
        ("select bytes from flows where '10.1.2.3' = src_addr", Ok(&["100"])),
        ("select bytes from flows f where f.src_addr = '::ffff:10.1.2.3'", Ok(&["100"])),
        ("select bytes from flows where src_addr = '2001:DB8:0::1'", Ok(&["400"])),
        ("select count(*) from flows where src_addr <> '10.1.2.3'", Ok(&["4"])),
        ("select count(*) from flows where src_addr != '10.1.2.3'", Ok(&["4"])),
        ("select count(*) from flows where src_addr < '10.1.2.4'", Ok(&["1"])),
        ("select count(*) from flows where src_addr >= '10.1.2.4' and src_addr <= '10.255.255.255'", Ok(&["2"])),
        ("select bytes from flows where src_addr in ('10.1.2.3', '2001:db8::1') order by 1", Ok(&["100", "400"])),
        ("select count(*) from flows where src_addr not in ('10.1.2.3', '2001:db8::1')", Ok(&["3"])),
        ("select count(*) from flows where src_addr between '10.1.2.3' and '10.1.2.4'", Ok(&["2"])),
        ("select count(*) from flows where src_addr is null", Ok(&["1"])),
        ("select src_addr = '10.1.2.3' from flows order by bytes limit 2", Ok(&["true", "false"])),
        ("select count(*) from flows where src_addr is distinct from '10.1.2.3'", Ok(&["5"])),
        ("select case src_addr when '10.1.2.3' then 'a' else 'b' end from flows order by bytes limit 2", Ok(&["a", "b"])),
        ("select case when bytes = 100 then src_addr else '0.0.0.0' end from flows order by bytes limit 2", Ok(&["10.1.2.3", "0.0.0.0"])),
        ("select case when bytes > 100 then '0.0.0.0' else src_addr end from flows order by bytes limit 2", Ok(&["10.1.2.3", "0.0.0.0"])),
        ("select src_addr from flows order by bytes", Ok(&["10.1.2.3", "10.1.2.4", "10.200.0.1", "2001:db8::1", "192.168.7.7", "NULL"])),
        ("select src_addr from flows where src_addr is not null order by src_addr", Ok(&["10.1.2.3", "10.1.2.4", "10.200.0.1", "192.168.7.7", "2001:db8::1"])),
        ("select src_addr::text from flows order by bytes limit 1", Ok(&["10.1.2.3"])),
        ("select cast(src_addr as varchar) from flows order by bytes limit 1", Ok(&["10.1.2.3"])),
        ("select src_addr::text, count(*) from flows where bytes < 300 group by src_addr::text order by 1", Ok(&["10.1.2.3|1", "10.1.2.4|1"])),
        ("select '10.1.2.3'::inet", Ok(&["10.1.2.3"])),
        ("select cast('2001:db8::1' as inet) = '2001:0db8::1'", Ok(&["true"])),
        ("select count(*) from flows where src_addr = '10.1.2.3'::inet", Ok(&["1"])),
        ("select count(*) from flows where src_addr::text like '10.1.%'", Ok(&["2"])),
        ("select count(*) from flows where src_addr like '10.1.%'", Ok(&["2"])),
        ("select count(*) from flows where src_addr not like '10.1.%'", Ok(&["3"])),
        ("select count(*) from flows where src_addr ~ '^10[.]'", Ok(&["3"])),
        ("select src_addr || ':' || dst_port from flows order by bytes limit 1", Ok(&["10.1.2.3:443"])),
        ("select min(src_addr), max(src_addr), count(distinct src_addr) from flows", Ok(&["10.1.2.3|2001:db8::1|5"])),
        ("select dst_addr, count(*) from flows group by dst_addr having count(*) > 1", Ok(&["192.0.2.1|2"])),
        ("select dst_addr, src_port, count(*) from flows group by 1, 2 having count(*) > 1", Ok(&["192.0.2.1|NULL|2"])),
        ("select count(distinct (dst_addr)) from flows", Ok(&["5"])),
        ("select approx_distinct(dst_addr) from flows", Ok(&["5"])),
        ("select count(*) from flows a join flows b on a.dst_addr = b.src_addr", Ok(&["1"])),
        ("select count(*) from flows a join flows b using (src_addr)", Ok(&["5"])),
        ("select h.name, f.bytes from flows f join hosts h on f.src_addr = h.addr order by 2", Ok(&["alice|100", "bob|400"])),
        ("select bytes from flows where src_addr in (select addr from hosts) order by 1", Ok(&["100", "400"])),
        ("select name from hosts where addr in (select src_addr from flows) order by 1", Ok(&["alice", "bob"])),
        ("select count(*) from flows where src_addr = (select min(addr) from hosts)", Ok(&["1"])),
        ("select array_agg(src_addr order by bytes) from flows where bytes < 300", Ok(&["[10.1.2.3, 10.1.2.4]"])),
        ("select coalesce(src_addr, dst_addr) from flows order by bytes desc limit 1", Ok(&["203.0.113.9"])),
        ("select bytes from flows where src_mac = '00:1b:21:3c:4d:02'", Ok(&["200"])),
        ("select bytes from flows where src_mac = '001B.213C.4D02'", Ok(&["200"])),
        ("select src_mac, src_mac::text as t from flows order by bytes limit 1", Ok(&["00:1b:21:3c:4d:01|00:1b:21:3c:4d:01"])),
        ("select bytes from flows where src_mac in ('00:1b:21:3c:4d:02'::macaddr)", Ok(&["200"])),
        ("with t as (select src_addr a from flows) select count(*) from t where a = '10.1.2.3'", Ok(&["1"])),
        ("select src_addr from flows where bytes = 100 union all select dst_addr from flows where bytes = 200 order by 1", Ok(&["10.1.2.3", "192.0.2.1"])),
        ("select bytes from flows where src_addr = '10.1.2'", Err("\"10.1.2\" is not an IP address")),
        ("select bytes from flows where src_addr in ('10.1.2.3', 'x')", Err("\"x\" is not an IP address")),
        ("select bytes from flows where src_addr between '10.1.2.3' and 'y'", Err("\"y\" is not an IP address")),
        ("select 'x'::inet", Err("\"x\" is not an IP address")),
        ("select bytes from flows where src_addr = '10.0.0.0/8'", Err("cidr_contains('10.0.0.0/8', address)")),
        ("select bytes from flows where src_mac = '10.1.2.3'", Err("is not a MAC address")),
    ])
    .await;
}

#[tokio::test]
async fn functions_of_addresses() {
    golden(&[
        ("select count(*) from flows where cidr_contains('10.0.0.0/8', src_addr)", Ok(&["3"])),
        ("select count(*) from flows where cidr_contains(src_addr, '10.0.0.0/8')", Ok(&["3"])),
        ("select count(*) from flows where src_addr << '10.0.0.0/8'", Ok(&["3"])),
        ("select count(*) from flows where src_addr <<= '10.0.0.0/8' and not src_addr <<= '10.1.2.3/32'", Ok(&["2"])),
        ("select count(*) from flows where '10.0.0.0/8' >>= src_addr and '10.1.2.4/32' >> src_addr", Ok(&["1"])),
        ("select bytes from flows where src_addr <<= '10.0.0/8'", Err("is not a network")),
        ("select 1 <<= 2", Err("<<=")),
        ("select count(*) from flows where not cidr_contains('10.0.0.0/8', src_addr)", Ok(&["2"])),
        ("select count(*) from flows where cidr_contains('0.0.0.0/0', src_addr)", Ok(&["4"])),
        ("select count(*) from flows where cidr_contains('::/0', src_addr)", Ok(&["1"])),
        ("select count(*) from flows where cidr_contains('2001:db8::/32', src_addr)", Ok(&["1"])),
        ("select cidr_contains('10.0.0.0/8', '10.1.2.3'), cidr_contains('10.1.2.3', '11.0.0.0/8')", Ok(&["true|false"])),
        ("select cidr_contains(null, src_addr) from flows limit 1", Ok(&["NULL"])),
        ("select bytes from flows where cidr_contains('10.0.0.0/33', src_addr)", Err("is not a network")),
        ("select bytes from flows where cidr_contains('10.0.0/8', src_addr)", Err("is not a network")),
        ("select prefix(src_addr, 16) p, count(*) from flows where family(src_addr) = 4 group by 1 order by 1", Ok(&["10.1.0.0|2", "10.200.0.0|1", "192.168.0.0|1"])),
        ("select prefix('10.1.2.3', 24), prefix('2001:db8:1:2::3', 48)", Ok(&["10.1.2.0|2001:db8:1::"])),
        ("select network('10.1.2.3', 24), prefix_text('2001:db8::1', 32), network('10.1.2.3', 64)", Ok(&["10.1.2.0/24|2001:db8::/32|10.1.2.3/32"])),
        ("select prefix(src_addr, -1) from flows", Err("a prefix length is")),
        ("select prefix(src_addr) from flows", Err("prefix takes 2 arguments, not 1")),
        ("select prefix(bytes, 8) from flows", Err("does not serve as an IP address")),
        ("select family('10.1.2.3'), family('::1'), family(null)", Ok(&["4|6|NULL"])),
        ("select count(*) from flows where is_private(src_addr)", Ok(&["4"])),
        ("select is_private(dst_addr) from flows where bytes = 500", Ok(&["false"])),
        ("select inet('10.1.2.3') = to_inet('10.1.2.3'), try_inet('x'), host(inet('::1'))", Ok(&["true|NULL|::1"])),
        ("select inet(addr) from hosts", Err("\"nonsense\" is not an IP address")),
        ("select try_inet(addr) from hosts", Ok(&["10.1.2.3", "2001:db8::1", "NULL"])),
        ("select macaddr('00-1B-21-3C-4D-5E'), try_macaddr('x')", Ok(&["00:1b:21:3c:4d:5e|NULL"])),
    ])
    .await;
}

#[tokio::test]
async fn functions_of_names_times_and_rates() {
    golden(&[
        ("select dscp_name(dscp) from flows order by bytes limit 3", Ok(&["EF", "CS0", "AF11"])),
        ("select dscp_name(2), dscp_name(null), dscp_name(99)", Ok(&["2|NULL|99"])),
        ("select ecn_name(0), ecn_name(3)", Ok(&["Not-ECT|CE"])),
        ("select protocol_name(ip_protocol), count(*) from flows group by 1 order by 1", Ok(&["icmp|1", "ipv6-icmp|1", "tcp|2", "udp|2"])),
        ("select port_name(dst_port, ip_protocol) from flows order by bytes limit 4", Ok(&["https", "domain", "ssh", "0"])),
        ("select port_name(65001, 6), port_name(53, 1), port_name(null, 6)", Ok(&["65001|53|NULL"])),
        ("select tcp_flags_text(tcp_flags) from flows order by bytes limit 2", Ok(&["SYN,ACK", ""])),
        ("select tcp_flags_text(255)", Ok(&["SYN,ACK,PSH,URG,FIN,RST,ECE,CWR"])),
        ("select time_bucket('2 minutes', received_at) t, sum(bytes) from flows group by 1 order by 1", Ok(&["2026-11-23T09:00:00Z|300", "2026-11-23T09:02:00Z|700", "2026-11-23T09:04:00Z|1100"])),
        ("select time_bucket(interval '1 hour', received_at), count(*) from flows group by 1", Ok(&["2026-11-23T09:00:00Z|6"])),
        ("select date_trunc('hour', received_at), count(*) from flows group by 1", Ok(&["2026-11-23T09:00:00Z|6"])),
        ("select rate(sum(bytes), 60) from flows", Ok(&["280.0"])),
        ("select rate(100, 0), rate(null, 1)", Ok(&["NULL|NULL"])),
        ("select media(46, 17, 20000, 20002, null), media(null, 17, 41000, 3480, ''), media(46, 6, 1, 2, 'dns')", Ok(&["voice|video|NULL"])),
        // two sketches of Apache DataSketches: of two values, and of one of them
        ("select hll_estimate(x'0201070a030802000500000409000008'), hll_estimate(x'0201070a0308010005000004'), hll_estimate(null)", Ok(&["2|1|NULL"])),
        ("select hll_count(s), hll_estimate(hll_merge(s)), hll_count(s) filter (where false), hll_error(hll_merge(s)) < 0.001 from (values (x'0201070a030802000500000409000008'), (x'0201070a0308010005000004'), (null)) t(s)", Ok(&["2|2|0|true"])),
        ("select hll_count(x'0102')", Err("not a HyperLogLog sketch")),
        ("select abs(p50(value) - 501) < 5, abs(p95(value) - 951) < 5 from generate_series(1, 1001)", Ok(&["true|true"])),
        ("select ip_protocol, p95(bytes) * 8 from flows where ip_protocol = 17 group by 1", Ok(&["17|4000.0"])),
        ("select count(*) from flows where received_at >= '2026-11-23 09:03:00'", Ok(&["3"])),
        ("select count(*) from flows where received_at between '2026-11-23T09:01:00Z' and timestamp '2026-11-23 09:02:00'", Ok(&["2"])),
        ("select count(*) from flows where received_at > now() - interval '5 minutes' and received_at < now() - interval '100 years'", Ok(&["0"])),
        ("select now() - now() = interval '0 seconds', current_timestamp > '2020-01-01'", Ok(&["true|true"])),
        ("select arrow_typeof(now()) = arrow_typeof(received_at) from flows limit 1", Ok(&["true"])),
        ("select extract(epoch from received_at)::bigint from flows order by bytes limit 1", Ok(&["1795424400"])),
    ])
    .await;
}

#[tokio::test]
async fn comparisons_prune_without_a_cast() {
    let session = engine().await.session(Door::Http);
    let plan = |sql: &'static str| {
        let session = &session;
        async move { rows(session, &format!("explain {sql}")).await.unwrap().join("\n") }
    };
    let recent = plan("select count(*) from flows where received_at > now() - interval '5 minutes'").await;
    assert!(
        !recent.contains("CAST(received_at") && !recent.contains("CAST(flows_raw.received_at"),
        "{recent}"
    );
    let inside = plan("select count(*) from flows where cidr_contains('10.0.0.0/8', src_addr)").await;
    assert!(inside.contains("src_addr >=") || inside.contains("src_addr@0 >="), "{inside}");
    assert!(!inside.contains("cidr_contains"), "{inside}");
}

#[tokio::test]
async fn statements_about_the_session_and_the_catalogue() {
    golden(&[
        ("begin", Ok(&["Begin"])),
        ("set application_name = 'x'", Ok(&["Other(\"SET\")"])),
        ("show application_name", Ok(&["x"])),
        ("show statement_timeout", Ok(&["60000ms"])),
        ("set statement_timeout = '1s'", Ok(&["Other(\"SET\")"])),
        ("show statement_timeout", Ok(&["1000ms"])),
        ("set datafusion.execution.batch_size = 1", Err("no setting \"datafusion.execution.batch_size\"")),
        ("set timezone = 'Europe/Berlin'", Err("times are UTC here")),
        ("prepare p as select bytes from flows where src_addr = $1", Ok(&["Other(\"PREPARE\")"])),
        ("execute p('10.1.2.4')", Ok(&["200"])),
        ("execute p('x')", Err("is not an IP address")),
        ("execute p()", Err("1 parameters; 0 were given")),
        ("prepare p as select 1", Err("exists already")),
        ("deallocate p", Ok(&["Other(\"DEALLOCATE\")"])),
        ("execute p('10.1.2.4')", Err("no prepared statement \"p\"")),
        ("prepare q as select count(*) from flows where bytes > $1 and cidr_contains($2, src_addr)", Ok(&["Other(\"PREPARE\")"])),
        ("execute q(100, '10.0.0.0/8')", Ok(&["2"])),
        ("prepare r as delete from flows", Err("delete is not offered")),
        ("select $1", Err("PREPARE it")),
        ("show tables", Ok(&["flows", "hosts"])),
        ("table hosts", Ok(&["10.1.2.3|alice", "2001:DB8::1|bob", "nonsense|carol"])),
        ("select count(*) from flows_raw", Ok(&["6"])),
        ("select table_name from information_schema.tables where table_schema = 'public' order by 1", Ok(&["flows", "hosts"])),
        ("select relname from pg_catalog.pg_class where relname = 'flows' and relkind = 'r'", Ok(&["flows"])),
        ("select t.typname from pg_attribute a join pg_type t on t.oid = a.atttypid join pg_class c on c.oid = a.attrelid where c.relname = 'flows' and a.attname in ('src_addr', 'src_mac', 'bytes', 'received_at') order by a.attnum", Ok(&["timestamptz", "inet", "int8", "macaddr"])),
        ("select current_database(), current_schema()", Ok(&["weir|public"])),
        ("discard all", Ok(&["Other(\"DISCARD ALL\")"])),
        ("show application_name", Ok(&[""])),
        ("", Ok(&["Nothing"])),
    ])
    .await;
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_where() {
    let session = engine().await.session(Door::Http);
    for (sql, kind, part, position) in [
        ("selec 1", ErrorKind::Refused, "selec", Some(1)),
        ("select src_adr from flows", ErrorKind::UnknownColumn, "did you mean \"src_addr\"?", Some(8)),
        ("select * from flowz", ErrorKind::UnknownTable, "did you mean \"flows\"?", Some(15)),
        ("select 1\n  from nothing_like_it", ErrorKind::UnknownTable, "SHOW TABLES", Some(17)),
        ("select sum(bytes from flows", ErrorKind::Syntax, "expected", Some(18)),
        ("select no_such(bytes) from flows", ErrorKind::UnknownFunction, "no_such", None),
        ("select bytes, count(*) from flows", ErrorKind::Plan, "bytes", None),
        ("select 1/0", ErrorKind::DivisionByZero, "division by zero", None),
        ("select 'x'::int", ErrorKind::BadValue, "x", None),
        ("select bytes/(bytes-100) from flows", ErrorKind::DivisionByZero, "division by zero", None),
    ] {
        let error = rows(&session, sql).await.unwrap_err();
        assert!(error.message.contains(part), "{sql}: {error:?}");
        assert_eq!(error.kind, kind, "{sql}: {error:?}");
        if position.is_some() {
            assert_eq!(error.position, position, "{sql}: {error:?}");
        }
    }
}

#[tokio::test]
async fn what_allocates_without_bound_is_refused() {
    let session = engine().await.session(Door::Http);
    for sql in [
        "select repeat('x', 2000000000)",
        "select repeat(src_addr::text, 100000000) from flows",
        "select lpad('x', 2000000000, 'y')",
        "select rpad('x', 2000000000)",
        "select range(0, 9000000000)",
        "select generate_series(1, 9000000000)",
        "select array_repeat(1, 4000000000)",
        "select array_resize([1], 4000000000)",
        "select arrow_cast(null, 'FixedSizeList(2000000000, Int64)')",
        "select count(*) from generate_series(1, 9000000000000)",
        "select count(*) from range(0, 9000000000000)",
        "select count(*) from generate_series(timestamp '1970-01-01', timestamp '2200-01-01', interval '1 microsecond')",
    ] {
        assert!(rows(&session, sql).await.is_err(), "{sql}");
    }
    assert_eq!(
        rows(&session, "select count(*) from generate_series(1, 1000000)").await.unwrap(),
        ["1000000"]
    );
    assert_eq!(rows(&session, "select repeat('ab', 3), lpad('1', 3, '0')").await.unwrap(), ["ababab|001"]);
}

/// Just below the limits of the gate, nothing overflows a stack; at them, nothing is parsed.
#[tokio::test]
async fn deep_and_long_statements_never_crash() {
    let session = engine().await.session(Door::Http);
    let mut case = "0".to_owned();
    for _ in 0..30 {
        case = format!("case when bytes > {} then {case} else 1 end", case.len());
    }
    let mut nested = "select bytes from flows".to_owned();
    for _ in 0..25 {
        nested = format!("select bytes from ({nested}) t");
    }
    for sql in [
        format!("select 1{}", "+1".repeat(990)),
        format!("select count(*) from flows where {}false", "bytes = 7 or ".repeat(490)),
        format!("select count(*) from flows where {}true", "bytes <> 7 and ".repeat(490)),
        format!("select {}1{}", "(".repeat(60), ")".repeat(60)),
        format!("select {}1{}", "abs(".repeat(12), ")".repeat(12)),
        format!("select count(*) from (select 1{})", " union all select 1".repeat(60)),
        format!("select bytes{} from flows limit 1", "::bigint".repeat(900)),
        format!("select {case} from flows"),
        nested,
        format!("select count(*) from flows where bytes in ({})", vec!["7"; 30_000].join(",")),
        format!("select {}true", "not ".repeat(900)),
        format!("select {}1", "- ".repeat(900)),
        format!("select 'a'{}", " || 'a'".repeat(900)),
    ] {
        if let Err(error) = rows(&session, &sql).await {
            assert!(
                matches!(
                    error.kind,
                    ErrorKind::TooComplex | ErrorKind::Syntax | ErrorKind::Plan | ErrorKind::Timeout
                ),
                "{}: {error:?}",
                &sql[..60]
            );
        }
    }
    assert_eq!(rows(&session, "select count(*) from flows").await.unwrap(), ["6"]);
}

#[tokio::test]
async fn timeouts_cancels_and_places_hold() {
    let config = SqlConfig {
        concurrent_queries: 1,
        queued_queries: 1,
        queue_timeout_ms: 300,
        statement_timeout_ms: 2_000,
        ..SqlConfig::default()
    };
    let engine = engine_with(config).await;
    let endless = "select sum(a.value * b.value % 7) from generate_series(1, 1000000) a cross join generate_series(1, 1000000) b";
    let session = engine.session(Door::Http);
    let started = std::time::Instant::now();
    let error = rows(&session, endless).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout, "{error:?}");
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());

    session.settings_for_test("statement_timeout", "60s");
    let token = CancellationToken::new();
    let running = session.execute(endless, &token).await.unwrap();
    let Answer::Rows(mut running) = running else { panic!("rows") };
    // the place is taken: the next waits, and the one after the next is refused at once
    let other = engine.session(Door::Postgres);
    let (waits, refused) = tokio::join!(rows(&other, "select 1"), async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        rows(&engine.session(Door::Http), "select 1").await
    });
    assert_eq!(waits.unwrap_err().kind, ErrorKind::Busy);
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Busy);
    token.cancel();
    assert_eq!(running.try_next().await.unwrap_err().kind, ErrorKind::Canceled);
    drop(running);
    assert_eq!(rows(&other, "select 1").await.unwrap(), ["1"]);
    // an answer that is dropped gives its place back
    let dropped = session.execute(endless, &CancellationToken::new()).await.unwrap();
    drop(dropped);
    assert_eq!(rows(&other, "select 2").await.unwrap(), ["2"]);
}

#[tokio::test]
async fn memory_is_bounded() {
    let engine = engine_with(SqlConfig { memory_bytes: 16 << 20, ..SqlConfig::default() }).await;
    let session = engine.session(Door::Http);
    let sql = "select count(*) from (select (value * 7919) % 4999999 as k, count(*) from generate_series(1, 5000000) group by 1)";
    let error = rows(&session, sql).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Memory, "{error:?}");
    let text = error.to_string();
    assert!(text.contains("sql.memory_bytes") && !text.contains("top memory consumers"), "{text}");
    assert_eq!(rows(&session, "select 1").await.unwrap(), ["1"]);
}

/// What a query costs before it reads anything. Run by hand, in release, on a quiet machine.
#[tokio::test]
#[ignore = "a measurement"]
async fn bench_planning() {
    let session = engine().await.session(Door::Http);
    for sql in [
        "select 1",
        "select count(*) from flows",
        "select src_addr, sum(est_bytes) b from flows where received_at > now() - interval '5 minutes' group by 1 order by b desc limit 10",
    ] {
        rows(&session, sql).await.unwrap();
        let started = std::time::Instant::now();
        for _ in 0..100 {
            rows(&session, sql).await.unwrap();
        }
        eprintln!("{:?} a query: {sql}", started.elapsed() / 100);
    }
}
