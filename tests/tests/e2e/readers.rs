//! What others read in the store: DuckDB, and the files that the Delta log names (delta-rs), give the totals that SQL gives.

use std::process::Command;
use std::time::Duration;

use weir_tests::command::{queries_python, run};
use weir_tests::generate::Load;
use weir_tests::ledger::assert_lossless;
use weir_tests::weir::Setup;

const PROGRAM: &str = r#"
import duckdb, sys
from deltalake import DeltaTable
for table, columns in [("flows", "sum(bytes), sum(packets), count(DISTINCT src_addr)"),
                       ("flows_1m", "sum(bytes), sum(packets), sum(flows)"),
                       ("qos_1m", "sum(bytes), sum(packets), sum(flows)")]:
    delta = DeltaTable(sys.argv[1] + "/store/" + table)
    files = [uri.removeprefix("file://") for uri in delta.file_uris()]
    connection = duckdb.connect()
    question = f"SELECT count(*), {columns} FROM read_parquet({files!r}, union_by_name = true)"
    row = connection.execute(question).fetchone()
    assert delta.count() == row[0], (table, delta.count(), row[0])
    print(table, *[int(value) for value in row])
"#;

#[test]
fn duckdb_and_delta_rs_read_what_sql_says() {
    let setup = Setup::new();
    let weir = setup.start();
    let sent = Load::new(20_000).run(&weir);
    weir.until_numbers("select count(*) from flows", &[sent.rows]);
    let flows =
        weir.numbers("select count(*), sum(bytes), sum(packets), count(distinct src_addr) from flows");
    let minutes = weir.numbers("select sum(bytes), sum(packets), sum(flows) from flows_1m");
    let classes = weir.numbers("select sum(bytes), sum(packets), sum(flows) from qos_1m");
    assert_eq!(flows[1..3], [sent.bytes, sent.packets]);
    assert_lossless(&weir);
    // what is hot is committed at the end
    weir.stop();
    let mut command = Command::new(queries_python());
    command.args(["-c", PROGRAM]).arg(setup.data_dir());
    let text = run(&mut command, Duration::from_secs(120)).ok();
    let numbers = |table: &str| -> Vec<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{table} ")));
        let line = line.unwrap_or_else(|| panic!("no {table} in {text}"));
        line.split(' ').map(|number| number.parse().unwrap()).collect()
    };
    assert_eq!(numbers("flows"), flows);
    assert_eq!(numbers("flows_1m")[1..], minutes);
    assert_eq!(numbers("qos_1m")[1..], classes);
}
