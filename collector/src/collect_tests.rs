use std::net::UdpSocket;
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::UInt64Type;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use weir_schemas::Table;
use weir_schemas::envelope::decode_body;

use super::*;
use crate::generate::{Generator, GeneratorConfig, Protocol, Totals};
use crate::sink::Message;
use crate::testing::{Memory, MemorySink};

fn config() -> CollectorConfig {
    let mut config = CollectorConfig { name: Some("c1".into()), ..CollectorConfig::default() };
    config.listen.udp = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()];
    config.receive = ReceiveConfig { shards: 2, buffer_bytes: 4 << 20, ..ReceiveConfig::default() };
    config.batch.max_age_ms = 50;
    config
}

struct Running {
    ports: Vec<SocketAddr>,
    memory: Arc<parking_lot::Mutex<Memory>>,
    admin: Admin,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<Summary, CollectorError>>,
}

fn run(config: &CollectorConfig, data_dir: &Path) -> Running {
    run_on(config, data_dir, config.bind().unwrap())
}

fn run_on(config: &CollectorConfig, data_dir: &Path, sockets: Vec<Socket>) -> Running {
    let mut ports: Vec<SocketAddr> = sockets.iter().map(Socket::local_addr).collect();
    ports.dedup();
    let sink = MemorySink::default();
    let memory = Arc::clone(&sink.0);
    let deps = CollectorDeps {
        data_dir: data_dir.to_owned(),
        sockets,
        sink: Box::new(sink),
        journals: Vec::new(),
        forwarding: None,
    };
    let collector = Collector::new(config, deps).unwrap();
    let admin = collector.admin().clone();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(collector.run(async move {
        let _ = stopped.await;
    }));
    Running { ports, memory, admin, stop, task }
}

async fn get(data_dir: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(Collector::admin_socket(data_dir)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The value of a metric in OpenMetrics text.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_datagram_is_accounted_for() {
    let directory = tempfile::tempdir().unwrap();
    let running = run(&config(), directory.path());
    until(|| running.admin.not_ready().is_none()).await;
    let senders: Vec<UdpSocket> =
        (1..=8).map(|n| UdpSocket::bind((format!("127.0.6.{n}"), 0)).unwrap()).collect();
    for n in 0..2_000_usize {
        senders[n % 8].send_to(&[255; 50], running.ports[n % 2]).unwrap();
    }
    // Stopped at once: what the kernel has is still taken.
    running.stop.send(()).unwrap();
    let summary = running.task.await.unwrap().unwrap();
    assert_eq!(summary.ledger.datagrams_received + summary.kernel_drops, 2_000);
    assert_eq!(summary.kernel_drops, 0);
    assert_eq!(summary.ledger.datagrams_rejected, 2_000);
    assert!(summary.ledger.balances(), "{summary:?}");
    let text = running.admin.metrics().render();
    for port in &running.ports {
        assert_eq!(
            value(&text, &format!("weir_collector_datagrams_total{{port=\"{}\"}}", port.port())),
            1_000.0
        );
    }
    assert_eq!(value(&text, "weir_ledger_datagrams_rejected_total{reason=\"unknown_version\"}"), 2_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_socket_answers() {
    let directory = tempfile::tempdir().unwrap();
    let running = run(&config(), directory.path());
    until(|| running.admin.not_ready().is_none()).await;
    let metrics = get(directory.path(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(
        metrics.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"),
        "{metrics}"
    );
    assert!(metrics.ends_with("# EOF\n"));
    assert!(get(directory.path(), "GET /healthz HTTP/1.0\r\n\r\n").await.ends_with("\r\n\r\nok\n"));
    assert!(get(directory.path(), "GET /readyz?x HTTP/1.1\r\n\r\n").await.contains("200 OK"));
    assert!(get(directory.path(), "HEAD /readyz HTTP/1.1\r\n\r\n").await.ends_with("\r\n\r\n"));
    assert!(get(directory.path(), "GET /etc/passwd HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    assert!(get(directory.path(), "POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    // A request without end: the connection is closed, whatever of it was written.
    let mut stream = UnixStream::connect(Collector::admin_socket(directory.path())).await.unwrap();
    let _ = stream.write_all(&[b'x'; 20_000]).await;
    assert!(!matches!(stream.read_to_string(&mut String::new()).await, Ok(1..)));
    // A second collector on the same directory is refused, and does not take the first one's socket away.
    let second = run(&config(), directory.path());
    let error = second.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("another collector runs"), "{error}");
    assert!(get(directory.path(), "GET /readyz HTTP/1.1\r\n\r\n").await.contains("200 OK"));
    running.stop.send(()).unwrap();
    running.task.await.unwrap().unwrap();
    assert!(!Collector::admin_socket(directory.path()).exists());
    assert_eq!(running.admin.answer("/readyz").body, "not ready: stopping\n");
    // One that was killed leaves its file behind: no hindrance.
    std::os::unix::net::UnixListener::bind(Collector::admin_socket(directory.path())).map(drop).unwrap();
    let third = run(&config(), directory.path());
    until(|| third.admin.not_ready().is_none()).await;
    third.stop.send(()).unwrap();
    third.task.await.unwrap().unwrap();
    drop(running.memory);
}

/// Sends what `generator` makes, each exporter from an address of its own, `rate` datagrams a second.
fn send(generator: &mut Generator, ports: &[SocketAddr], rate: u64) {
    let senders: Vec<UdpSocket> =
        (1..=8).map(|n| UdpSocket::bind((format!("127.0.7.{n}"), 0)).unwrap()).collect();
    let mut buffer = Vec::new();
    let start = Instant::now();
    for sent in 0_u64.. {
        let Some(info) = generator.next(crate::receive::now_us(), &mut buffer) else { return };
        // All of an exporter to one port: its datagrams keep their order.
        let port = ports[info.exporter as usize % ports.len()];
        senders[info.exporter as usize % 8].send_to(&buffer, port).unwrap();
        let due = Duration::from_micros(sent * 1_000_000 / rate);
        if sent % 16 == 0 {
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
}

fn generator(flows: u64) -> Generator {
    Generator::new(&GeneratorConfig {
        exporters: 8,
        protocols: Protocol::ALL.to_vec(),
        flows,
        start_us: crate::receive::now_us(),
        ..GeneratorConfig::default()
    })
}

/// Rows, bytes and packets of the flows in the log, and the rows of the other tables that the generator counts.
fn totals(messages: &[Message]) -> Totals {
    let mut totals = Totals::default();
    for message in messages {
        let batch = decode_body(&message.envelope, &message.body.contiguous()).unwrap();
        let sum = |column: &str| {
            let column = batch.column_by_name(column).unwrap();
            arrow::compute::sum(column.as_primitive::<UInt64Type>()).unwrap()
        };
        let rows = batch.num_rows() as u64;
        match message.envelope.table {
            Table::Flows => {
                totals.rows += rows;
                totals.bytes += sum("bytes");
                totals.packets += sum("packets");
            }
            Table::Options => totals.options_records += rows,
            Table::InterfaceCounters => totals.counter_samples += rows,
            _ => {}
        }
    }
    totals
}

/// What both sides can count.
fn comparable(totals: &Totals) -> Totals {
    Totals { est_bytes: 0, est_packets: 0, datagrams: 0, datagram_bytes: 0, ..*totals }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flow_of_every_protocol_gets_to_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let running = run(&config(), directory.path());
    let mut generator = generator(50_000);
    send(&mut generator, &running.ports, 5_000);
    let sent = Totals::sum(generator.totals().iter().map(|(_, totals)| totals));
    // The exporters' own counts come once a second.
    let text = || running.admin.metrics().render();
    let flows = |text: &str| -> f64 {
        let series = text.lines().filter(|line| line.starts_with("weir_collector_flows_total{"));
        series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    until(|| flows(&text()) == 50_000.0).await;
    let metrics = text();
    assert_eq!(value(&metrics, "weir_collector_records_total{table=\"flows\"}"), 50_000.0);
    assert_eq!(value(&metrics, "weir_collector_template_misses_total"), 0.0);
    assert_eq!(value(&metrics, "weir_exporter_sequence_lost{exporter=\"other\"}"), 0.0);
    running.stop.send(()).unwrap();
    let summary = running.task.await.unwrap().unwrap();
    assert_eq!((summary.kernel_drops, summary.ledger.datagrams_rejected), (0, 0), "{summary:?}");
    assert_eq!(summary.ledger.datagrams_received, sent.datagrams);
    assert!(summary.ledger.balances(), "{summary:?}");
    let memory = running.memory.lock();
    assert_eq!(comparable(&totals(&memory.appended)), comparable(&sent));
    assert!(Path::exists(&directory.path().join("state/templates.json")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_restart_under_load_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config();
    // Room for what comes while nobody reads, on a busy machine too.
    config.receive.buffer_bytes = 32 << 20;
    let held = config.bind().unwrap();
    let sockets = || held.iter().map(|socket| socket.try_clone().unwrap()).collect::<Vec<_>>();
    let mut ports: Vec<SocketAddr> = held.iter().map(Socket::local_addr).collect();
    ports.dedup();
    let sender = std::thread::spawn(move || {
        let mut generator = generator(60_000);
        send(&mut generator, &ports, 1_000);
        Totals::sum(generator.totals().iter().map(|(_, totals)| totals))
    });
    let mut messages = Vec::new();
    let mut received = 0;
    loop {
        let last = sender.is_finished();
        let running = run_on(&config, directory.path(), sockets());
        tokio::time::sleep(Duration::from_millis(300)).await;
        running.stop.send(()).unwrap();
        let summary = running.task.await.unwrap().unwrap();
        assert!(summary.ledger.balances(), "{summary:?}");
        assert_eq!((summary.kernel_drops, summary.ledger.datagrams_rejected), (0, 0), "{summary:?}");
        received += summary.ledger.datagrams_received;
        messages.append(&mut running.memory.lock().appended);
        // The time while nobody reads.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if last {
            break;
        }
    }
    let sent = sender.join().unwrap();
    assert_eq!(received, sent.datagrams);
    assert_eq!(comparable(&totals(&messages)), comparable(&sent));
    let boots: std::collections::BTreeSet<u64> =
        messages.iter().map(|message| message.envelope.boot).collect();
    assert!(boots.len() >= 3, "{}", boots.len());
}

#[test]
fn a_configuration_that_cannot_work_says_which_key() {
    let mut config = CollectorConfig::default();
    assert!(config.problems().is_empty());
    config.listen.udp = vec!["[::]:2055".parse().unwrap(), "[::]:2055".parse().unwrap()];
    config.batch.max_rows = 0;
    config.writer.queue_bytes = 1;
    config.decode.max_fields = 0;
    let problems = config.problems().join("\n");
    for key in ["listen.udp", "batch.max_rows", "writer.queue_bytes", "decode.max_fields"] {
        assert!(problems.contains(key), "{problems}");
    }
    assert!(serde_json::from_str::<CollectorConfig>(r#"{"receive": {"shard": 1}}"#).is_err());
    let config: CollectorConfig =
        serde_json::from_str(r#"{"listen": {"udp": ["0.0.0.0:9995"]}, "receive": {"steer": "flow"}}"#)
            .unwrap();
    assert_eq!(config.receive.steer, Steer::Flow);
}
