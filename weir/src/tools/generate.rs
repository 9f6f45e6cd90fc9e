//! `weir generate`: synthetic exporters, with exact totals to compare with.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use weir_collector::generate::{DatagramInfo, Generator, GeneratorConfig, Protocol, Repeater, Totals};
use weir_collector::pcap::Writer;
use weir_schemas::Address;

use super::ToolError;
use super::pace::{Pacer, due};
use super::target::{Senders, Target, parse_target};

/// What the clock of a capture assumes where no rate is given, flows a second.
const CAPTURE_RATE: f64 = 10_000.0;
/// Where exporters are in captures, and where they are on the loopback interface.
const CAPTURE_EXPORTERS: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);
const CAPTURE_COLLECTOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const LOOPBACK_EXPORTERS: Ipv4Addr = Ipv4Addr::new(127, 1, 0, 1);
/// Datagrams that `--repeat` keeps in all (1.5 GB of memory), and that it sends of one exporter at once.
const MAX_REPEATED: u64 = 1_000_000;
const REPEATED_AT_ONCE: usize = 8;

/// What `--protocol` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProtocolArg {
    V5,
    V9,
    Ipfix,
    Sflow,
    /// All of them
    Mixed,
}

impl ProtocolArg {
    fn protocols(self) -> &'static [Protocol] {
        match self {
            ProtocolArg::V5 => &[Protocol::NetFlow5],
            ProtocolArg::V9 => &[Protocol::NetFlow9],
            ProtocolArg::Ipfix => &[Protocol::Ipfix],
            ProtocolArg::Sflow => &[Protocol::SFlow5],
            ProtocolArg::Mixed => &Protocol::ALL,
        }
    }
}

/// Play exporters: send synthetic NetFlow, IPFIX and sFlow, and print exactly what was sent.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// What the exporters speak, each one of them in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "mixed")]
    pub(crate) protocol: Vec<ProtocolArg>,

    /// How many exporters (to loopback each has an address of its own in 127.1.0.0/16)
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) exporters: u32,

    /// Flow records in all; without it until --duration, or until interrupted
    #[arg(long)]
    pub(crate) flows: Option<u64>,

    /// Flow records a second; 0 is as fast as possible
    #[arg(long, default_value_t = 0.0)]
    pub(crate) rate: f64,

    /// For how long: 90, 90s, 5m, 1h
    #[arg(long, value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,

    /// Same seed, same traffic
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Encode only so many datagrams of each exporter, and send those again and again with new sequence numbers and
    /// times: for load tests, where a receiver takes more flows than one core can make
    #[arg(long, value_name = "DATAGRAMS", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) repeat: Option<u32>,

    /// Where to; without a port: 2055, 4739 and 6343 by protocol
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "127.0.0.1", value_parser = parse_target)]
    pub(crate) to: Target,

    /// Write a capture instead of sending
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,

    /// The most flows of a datagram (else as many as fit)
    #[arg(long, value_name = "FLOWS", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) per_datagram: Option<u16>,

    /// Hosts on each side, Zipf-distributed
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=10_000_000))]
    pub(crate) hosts: u32,

    /// Share of IPv6, per cent
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub ipv6_percent: u8,

    /// 1 in N for every exporter (else each has one of the usual rates)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16_383))]
    pub(crate) sampling_rate: Option<u32>,

    /// When the exporters' clocks begin, seconds since 1970 (else now; with it the same seed gives the same bytes where
    /// a capture is written)
    #[arg(long, value_name = "EPOCH")]
    pub(crate) start_time: Option<f64>,

    /// Also what only some exporters send: calls with jitter, loss, application and re-marked class, and NAT events
    /// (IPFIX); dropped packets (sFlow)
    #[arg(long, conflicts_with = "repeat")]
    pub(crate) extras: bool,

    /// Print the totals as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|letter: char| letter.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(format!("`{unit}` is no unit: ms, s, m, h or d")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is no number"))?;
    Duration::try_from_secs_f64(number * factor).map_err(|error| error.to_string())
}

/// What was sent, for `--json`.
#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    flows_per_second: f64,
    datagrams_per_second: f64,
    /// Datagrams that the kernel did not take; they are in the totals.
    not_sent: u64,
    exporters: u32,
    seed: u64,
    protocols: serde_json::Map<String, serde_json::Value>,
    total: Totals,
}

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs) -> Result<(), ToolError> {
    if !args.rate.is_finite() || args.rate < 0.0 {
        return Err(ToolError::Usage(format!(
            "--rate {}: give flows a second, or 0 for as many as possible",
            args.rate
        )));
    }
    if args.pcap.is_some() && args.flows.is_none() && args.duration.is_none() {
        return Err(ToolError::Usage("--pcap needs --flows or --duration: it would never end".into()));
    }
    if let Some(datagrams) = args.repeat {
        if args.pcap.is_some() {
            return Err(ToolError::Usage("--repeat is for sending: not with --pcap".into()));
        }
        if u64::from(datagrams) * u64::from(args.exporters) > MAX_REPEATED {
            return Err(ToolError::Usage(format!(
                "--repeat {datagrams} of {} exporters: {MAX_REPEATED} datagrams in all can be kept",
                args.exporters
            )));
        }
    }
    let start_us = start_us(args)?;
    let config = config(args, start_us);
    match (&args.pcap, args.repeat) {
        (Some(path), _) => {
            let mut generator = Generator::new(&config);
            let took = write(args, path, start_us, &mut generator)?;
            print(args, &generator.totals(), took, 0)
        }
        (None, Some(datagrams)) => {
            let mut repeater = Repeater::new(&config, datagrams as usize);
            let Sent { took, not_sent } = send(args, start_us, &mut repeater)?;
            print(args, &repeater.totals(), took, not_sent)
        }
        (None, None) => {
            let mut generator = Generator::new(&config);
            let Sent { took, not_sent } = send(args, start_us, &mut generator)?;
            print(args, &generator.totals(), took, not_sent)
        }
    }
}

fn start_us(args: &GenerateArgs) -> Result<i64, ToolError> {
    match args.start_time {
        None => Ok(now_us()),
        // NetFlow and captures count seconds in 32 bits
        Some(seconds) if (0.0..=f64::from(u32::MAX)).contains(&seconds) => Ok((seconds * 1e6) as i64),
        Some(seconds) => {
            Err(ToolError::Usage(format!("--start-time {seconds}: give seconds since 1970, up to 2^32")))
        }
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn config(args: &GenerateArgs, start_us: i64) -> GeneratorConfig {
    let mut protocols = Vec::new();
    for protocol in args.protocol.iter().flat_map(|protocol| protocol.protocols()) {
        if !protocols.contains(protocol) {
            protocols.push(*protocol);
        }
    }
    let loopback = args.pcap.is_none() && args.to.is_ipv4_loopback();
    GeneratorConfig {
        seed: args.seed,
        protocols,
        exporters: args.exporters,
        flows: args.flows.unwrap_or(u64::MAX),
        datagram_flows: args.per_datagram.map_or(usize::MAX, usize::from),
        hosts: args.hosts,
        sampling_rate: args.sampling_rate,
        ipv6_percent: args.ipv6_percent,
        first_exporter: if loopback { LOOPBACK_EXPORTERS } else { CAPTURE_EXPORTERS },
        start_us,
        extras: args.extras,
        ..GeneratorConfig::default()
    }
}

/// What sending came to.
#[derive(Debug)]
struct Sent {
    took: Duration,
    /// Datagrams that the kernel did not take.
    not_sent: u64,
}

/// Where the datagrams come from.
trait Play {
    /// Sends the next ones of one exporter; returns their rows, None when all are out.
    fn send_next(&mut self, now_us: i64, way: &mut Way) -> Result<Option<u64>, ToolError>;
}

/// The way of the datagrams.
struct Way {
    senders: Senders,
    to: Target,
    /// Whether each exporter has an address of its own.
    spread: bool,
    buffer: Vec<u8>,
}

impl Play for Generator {
    fn send_next(&mut self, now_us: i64, way: &mut Way) -> Result<Option<u64>, ToolError> {
        let Some(DatagramInfo { exporter, protocol, rows }) = self.next(now_us, &mut way.buffer) else {
            return Ok(None);
        };
        let bind = if way.spread { self.exporter_addr(exporter) } else { None };
        way.senders.send(u64::from(exporter), bind, way.to.addr(protocol.port()), &way.buffer)?;
        Ok(Some(u64::from(rows)))
    }
}

impl Play for Repeater {
    fn send_next(&mut self, now_us: i64, way: &mut Way) -> Result<Option<u64>, ToolError> {
        let Some(turn) = self.next(now_us, REPEATED_AT_ONCE) else { return Ok(None) };
        let bind = way.spread.then_some(turn.addr);
        let to = way.to.addr(turn.protocol.port());
        way.senders.send_all(u64::from(turn.exporter), bind, to, turn.datagrams)?;
        Ok(Some(turn.rows))
    }
}

/// Sends until the flows or the time are over, or somebody interrupts.
fn send(args: &GenerateArgs, start_us: i64, play: &mut impl Play) -> Result<Sent, ToolError> {
    let stop = interrupted();
    let bar = bar(args);
    let spread = args.to.is_ipv4_loopback();
    let mut way = Way { senders: Senders::default(), to: args.to, spread, buffer: Vec::with_capacity(2_048) };
    let mut pacer = Pacer::new();
    let started = Instant::now();
    let (mut rows, mut turns) = (0_u64, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        if args.rate > 0.0 {
            pacer.wait(due(rows, args.rate));
        }
        let elapsed = started.elapsed();
        if args.duration.is_some_and(|duration| elapsed >= duration) {
            break;
        }
        let now = start_us + i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        let Some(new) = play.send_next(now, &mut way)? else { break };
        rows += new;
        turns += 1;
        if let Some(bar) = &bar
            && turns.is_multiple_of(256)
        {
            bar.set_position(rows);
        }
    }
    let took = started.elapsed();
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if let Some(complaint) = way.senders.complaint() {
        eprintln!("weir: {complaint}");
    }
    Ok(Sent { took, not_sent: way.senders.failed })
}

/// Becomes true with the first SIGINT or SIGTERM: the totals are wanted still.
fn interrupted() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            seen.store(true, Ordering::Relaxed);
        });
    });
    stop
}

fn bar(args: &GenerateArgs) -> Option<ProgressBar> {
    let flows = args.flows?;
    let long = flows >= 5_000_000 || args.rate > 0.0 && flows as f64 / args.rate > 5.0;
    (long && io::stderr().is_terminal()).then(|| {
        let bar = ProgressBar::with_draw_target(Some(flows), ProgressDrawTarget::stderr_with_hz(5));
        let template = "{bar:30} {human_pos}/{human_len} flows {per_sec} {eta} left";
        bar.with_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        )
    })
}

/// Writes a capture, whose clock goes as the rate says.
fn write(
    args: &GenerateArgs,
    path: &Path,
    start_us: i64,
    generator: &mut Generator,
) -> Result<Duration, ToolError> {
    let started = Instant::now();
    let failed = |error| ToolError::Failed(format!("cannot write {}: {error}", path.display()));
    let file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    let mut writer = Writer::new(file).map_err(failed)?;
    let collector = match args.to.ip {
        std::net::IpAddr::V4(ip) if !ip.is_loopback() => ip,
        _ => CAPTURE_COLLECTOR,
    };
    let rate = if args.rate > 0.0 { args.rate } else { CAPTURE_RATE };
    let mut buffer = Vec::with_capacity(2_048);
    let mut rows = 0;
    loop {
        let elapsed = due(rows, rate);
        if args.duration.is_some_and(|duration| elapsed >= duration) {
            break;
        }
        let now = start_us + i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        let Some(info) = generator.next(now, &mut buffer) else { break };
        let src = generator.exporter_addr(info.exporter).unwrap_or(CAPTURE_EXPORTERS);
        let to = (Address::v4(collector.octets()), args.to.port.unwrap_or(info.protocol.port()));
        writer.write(now, (Address::v4(src.octets()), 50_000), to, &buffer).map_err(failed)?;
        rows += u64::from(info.rows);
    }
    writer.finish().map_err(failed)?;
    Ok(started.elapsed())
}

fn print(
    args: &GenerateArgs,
    protocols: &[(Protocol, Totals)],
    took: Duration,
    not_sent: u64,
) -> Result<(), ToolError> {
    let total = Totals::sum(protocols.iter().map(|(_, totals)| totals));
    let seconds = took.as_secs_f64().max(1e-9);
    let report = Report {
        seconds,
        flows_per_second: total.rows as f64 / seconds,
        datagrams_per_second: total.datagrams as f64 / seconds,
        not_sent,
        exporters: args.exporters,
        seed: args.seed,
        protocols: protocols
            .iter()
            .map(|(protocol, totals)| (protocol.name().to_owned(), serde_json::json!(totals)))
            .collect(),
        total,
    };
    let mut out = io::stdout().lock();
    let written = if args.json {
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        table(&mut out, protocols, &report)
    };
    written.map_err(ToolError::output)
}

fn table(out: &mut impl Write, protocols: &[(Protocol, Totals)], report: &Report) -> io::Result<()> {
    let line = |out: &mut dyn Write, name: &str, totals: &Totals| {
        let Totals {
            datagrams,
            rows,
            packets,
            bytes,
            est_packets,
            est_bytes,
            options_records,
            counter_samples,
            ..
        } = totals;
        writeln!(
            out,
            "{name:<10} {datagrams:>10} {rows:>12} {packets:>14} {bytes:>17} {est_packets:>17} {est_bytes:>20} \
             {options_records:>8} {counter_samples:>8}"
        )
    };
    writeln!(
        out,
        "{:<10} {:>10} {:>12} {:>14} {:>17} {:>17} {:>20} {:>8} {:>8}",
        "protocol",
        "datagrams",
        "rows",
        "packets",
        "bytes",
        "est_packets",
        "est_bytes",
        "options",
        "counters"
    )?;
    for (protocol, totals) in protocols {
        line(out, protocol.name(), totals)?;
    }
    line(out, "total", &report.total)?;
    writeln!(
        out,
        "{:.3} s: {:.0} flows/s, {:.0} datagrams/s",
        report.seconds, report.flows_per_second, report.datagrams_per_second
    )
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn args(to: &str) -> GenerateArgs {
        GenerateArgs {
            protocol: vec![ProtocolArg::Mixed],
            exporters: 4,
            flows: Some(500),
            rate: 0.0,
            duration: None,
            seed: 7,
            repeat: None,
            to: parse_target(to).unwrap(),
            pcap: None,
            per_datagram: None,
            hosts: 100,
            ipv6_percent: 25,
            sampling_rate: None,
            start_time: Some(1_700_000_000.0),
            extras: false,
            json: true,
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("5 parsecs").is_err());
        assert!(parse_duration("-5s").is_err());
    }

    #[test]
    fn what_is_counted_is_what_arrives() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let args = args(&receiver.local_addr().unwrap().to_string());
        let start_us = 1_700_000_000_000_000;
        let config = config(&args, start_us);
        let (mut generator, mut repeater) = (Generator::new(&config), Repeater::new(&config, 4));
        for repeated in [false, true] {
            let (sent, totals) = if repeated {
                (send(&args, start_us, &mut repeater).unwrap(), repeater.totals())
            } else {
                (send(&args, start_us, &mut generator).unwrap(), generator.totals())
            };
            assert_eq!(sent.not_sent, 0);
            let totals = Totals::sum(totals.iter().map(|(_, totals)| totals));
            assert!(if repeated { (470..=500).contains(&totals.rows) } else { totals.rows == 500 });
            let (mut datagrams, mut bytes, mut sources) = (0, 0, std::collections::BTreeSet::new());
            while let Ok((len, from)) = receiver.recv_from(&mut [0; 2_048]) {
                datagrams += 1;
                bytes += len as u64;
                sources.insert(from.ip().to_string());
            }
            assert_eq!((datagrams, bytes), (totals.datagrams, totals.datagram_bytes));
            assert_eq!(
                sources.into_iter().collect::<Vec<_>>(),
                ["127.1.0.1", "127.1.0.2", "127.1.0.3", "127.1.0.4"]
            );
        }
    }

    #[test]
    fn the_same_seed_writes_the_same_capture() {
        let folder = tempfile::tempdir().unwrap();
        let capture = |name: &str, seed| {
            let path = folder.path().join(name);
            run(&GenerateArgs { pcap: Some(path.clone()), seed, ..args("127.0.0.1") }).unwrap();
            std::fs::read(path).unwrap()
        };
        assert_eq!(capture("one", 7), capture("two", 7));
        assert_ne!(capture("one", 7), capture("three", 8));
        let endless =
            GenerateArgs { flows: None, pcap: Some(folder.path().join("four")), ..args("127.0.0.1") };
        assert!(matches!(run(&endless), Err(ToolError::Usage(_))));
        let too_much = GenerateArgs { repeat: Some(100_000), exporters: 11, ..args("127.0.0.1") };
        assert!(matches!(run(&too_much), Err(ToolError::Usage(_))));
    }
}
