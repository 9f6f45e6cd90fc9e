//! A real Prometheus scrapes weir, and has nothing to complain about.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use weir_tests::command::{Background, program};
use weir_tests::generate::Load;
use weir_tests::http;
use weir_tests::ledger::assert_lossless;
use weir_tests::wait::{LONG, until};
use weir_tests::weir::Setup;

#[test]
fn prometheus_scrapes_without_a_warning() {
    let setup = Setup::new();
    let weir = setup.start();
    let sent = Load::new(2_000).run(&weir);
    weir.until_numbers("select count(*) from flows", &[sent.rows]);
    let config = setup.folder().join("prometheus.yml");
    let target = weir.addresses.http;
    let text = format!(
        "scrape_configs:\n  - job_name: weir\n    scrape_interval: 1s\n    static_configs:\n      - targets: [\"{target}\"]\n"
    );
    std::fs::write(&config, text).unwrap();
    // A free port: taken and given back, as Prometheus cannot be asked which one it got.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(program("prometheus"));
    command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={address}"));
    command.arg(format!("--storage.tsdb.path={}", setup.folder().join("tsdb").display()));
    let prometheus = Background::start(&mut command, &setup.folder().join("prometheus.log"));
    let query = |query: &str| -> Result<serde_json::Value, String> {
        let path = format!("/api/v1/query?query={query}");
        let answer =
            http::get(address, &path).map_err(|error| format!("{error}\n{}", prometheus.output()))?;
        serde_json::from_slice(&answer.body).map_err(|error| format!("{error}: {}", answer.text()))
    };
    until(LONG, "the target to be up and its flows to be counted", || {
        let up = query("up")?;
        let flows = query("sum(weir_collector_flows_total)")?;
        let value =
            |answer: &serde_json::Value| answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
        if value(&up).as_deref() == Some("1") && value(&flows) == Some(sent.rows.to_string()) {
            Ok(())
        } else {
            Err(format!("up: {up}, flows: {flows}"))
        }
    });
    let targets = http::get(address, "/api/v1/targets").unwrap();
    let targets: serde_json::Value = serde_json::from_slice(&targets.body).unwrap();
    let target = &targets["data"]["activeTargets"][0];
    assert_eq!((target["health"].as_str(), target["lastError"].as_str()), (Some("up"), Some("")), "{target}");
    // Types and help of the families reach it.
    let metadata = http::get(address, "/api/v1/metadata?metric=weir_collector_flows").unwrap();
    assert!(metadata.text().contains("counter"), "{}", metadata.text());
    // By name: families change, the target's own line in the log is what is looked for.
    let log = prometheus.output();
    let complaints: Vec<_> =
        log.lines().filter(|line| line.contains("level=warn") || line.contains("level=error")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert_lossless(&weir);
}

#[test]
fn promtool_finds_nothing_to_mend() {
    let setup = Setup::new();
    let weir = setup.start();
    let sent = Load::new(2_000).run(&weir);
    weir.until_numbers("select count(*) from flows", &[sent.rows]);
    let page = setup.folder().join("metrics");
    std::fs::write(&page, http::get(weir.addresses.http, "/metrics").unwrap().body).unwrap();
    let mut command = Command::new(program("promtool"));
    command.args(["check", "metrics"]).stdin(std::fs::File::open(&page).unwrap());
    let ended = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.trim().is_empty(), "{}: {said}", ended.status);
    assert_lossless(&weir);
}
