//! Data directories that earlier versions left behind: a log with rows that are not stored yet, tables, state. Each version
//! that changes what is written adds one; all of them stay readable.
//!
//! Made with `weir run`, `weir generate --seed`, `kill -9`, and `tar` without `run`, `tmp` and the socket.

use std::process::Command;
use std::time::Duration;

use weir_tests::command::run;
use weir_tests::generate::Load;
use weir_tests::repository;
use weir_tests::weir::Setup;

/// The archive; rows, bytes and packets of its flows; rows of options data and of interface counters.
const GOLDEN: [(&str, [u64; 3], u64, u64); 1] = [("0.1-2026-11-25", [500, 8_216_884, 8_846], 4, 12)];

#[test]
fn what_earlier_versions_wrote_is_read_and_gone_on_with() {
    // nothing is too old
    let setup = "[store.retention_days]\n".to_owned();
    let tables = ["flows", "options", "interface_counters", "flows_1m", "qos_1m", "top_talkers"];
    let config = tables.iter().fold(setup, |text, table| text + table + " = 36500\n");
    for (name, flows, options, counters) in GOLDEN {
        let setup = Setup::new().config(&config);
        std::fs::create_dir_all(setup.data_dir()).unwrap();
        let archive = repository().join("tests/data/golden").join(format!("{name}.tar.gz"));
        let mut tar = Command::new("tar");
        run(tar.arg("-xzf").arg(&archive).arg("-C").arg(setup.data_dir()), Duration::from_secs(30)).ok();
        let weir = setup.start();
        weir.until_numbers("select count(*), sum(bytes), sum(packets) from flows", &flows);
        weir.until_numbers("select sum(flows), sum(bytes), sum(packets) from flows_1m", &flows);
        weir.until_numbers("select sum(flows) from qos_1m where direction = 'in'", &flows[..1]);
        weir.until_numbers(
            "select sum(flows) from top_talkers where dimension = 'conversation'",
            &flows[..1],
        );
        weir.until_numbers("select count(*) from options", &[options]);
        weir.until_numbers("select count(*) from interface_counters", &[counters]);
        let more = Load::new(200).rate(2_000).run(&weir);
        let all = [flows[0] + more.rows, flows[1] + more.bytes, flows[2] + more.packets];
        weir.until_numbers("select count(*), sum(bytes), sum(packets) from flows", &all);
        assert!(weir.stop().success(), "{name}");
    }
}
