//! `weir replay`: the datagrams of a capture, sent again.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use weir_schemas::Address;

use super::ToolError;
use super::input::{Input, is_flow};
use super::pace::{Pacer, due};
use super::target::{Senders, Target, parse_target};

/// How fast to send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// As recorded, so many times as fast.
    Recorded(f64),
    /// As fast as the kernel takes them.
    Max,
    /// Datagrams a second.
    PerSecond(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let positive = |number: &str| {
            number.parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate > 0.0).ok_or_else(|| {
                format!("`{text}` is no rate: give `original`, `max`, datagrams a second (`5000`) or a speed-up (`x10`)")
            })
        };
        match text {
            "original" => Ok(Rate::Recorded(1.0)),
            "max" => Ok(Rate::Max),
            _ => match text.strip_prefix('x') {
                Some(factor) => positive(factor).map(Rate::Recorded),
                None => positive(text).map(Rate::PerSecond),
            },
        }
    }
}

/// Send the flow datagrams of a capture to a collector.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The capture (pcap or pcapng); `-` reads stdin
    #[arg(value_name = "FILE")]
    pub(crate) file: String,

    /// Where to; without a port each datagram goes to the port that it was recorded at
    #[arg(long, value_name = "ADDR[:PORT]", default_value = "127.0.0.1", value_parser = parse_target)]
    pub(crate) to: Target,

    /// original, max, datagrams a second, or xN: N times as fast as recorded
    #[arg(long, default_value = "original")]
    pub(crate) rate: Rate,

    /// How often to send all of it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) r#loop: u32,

    /// Only datagrams recorded at this UDP port (else all that look like a flow protocol)
    #[arg(long)]
    pub(crate) port: Option<u16>,

    /// Send from a 127.x.y.z of its own for each recorded exporter (to a loopback target)
    #[arg(long)]
    pub(crate) spread_sources: bool,

    /// No summary on stderr
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ReplayArgs) -> Result<(), ToolError> {
    if args.spread_sources && !args.to.is_ipv4_loopback() {
        return Err(ToolError::Usage(format!(
            "--spread-sources needs a target in 127.0.0.0/8, not {}",
            args.to
        )));
    }
    if args.r#loop > 1 && args.file == "-" {
        return Err(ToolError::Usage("--loop needs a file: stdin can be read once only".into()));
    }
    let started = Instant::now();
    let mut replay = Replay {
        args,
        senders: Senders::default(),
        exporters: HashMap::new(),
        sessions: HashMap::new(),
        other: 0,
        cut: 0,
    };
    let result = (0..args.r#loop).try_for_each(|_| replay.once());
    if !args.quiet {
        replay.summary(started.elapsed());
    }
    result
}

struct Replay<'a> {
    args: &'a ReplayArgs,
    senders: Senders,
    /// Recorded source addresses, and addresses with ports, numbered as they come.
    exporters: HashMap<Address, u64>,
    sessions: HashMap<(Address, u16), u64>,
    other: u64,
    cut: u64,
}

impl Replay<'_> {
    fn once(&mut self) -> Result<(), ToolError> {
        let mut input = Input::open(&self.args.file)?;
        let mut pacer = Pacer::new();
        let (mut first_us, mut sent) = (None, 0_u64);
        let result = loop {
            let datagram = match input.next() {
                Ok(Some(datagram)) => datagram,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            if !is_flow(&datagram, self.args.port) {
                self.other += 1;
                continue;
            }
            if datagram.cut {
                self.cut += 1;
            }
            let first_us = *first_us.get_or_insert(datagram.time_us);
            match self.args.rate {
                Rate::Max => {}
                Rate::PerSecond(rate) => pacer.wait(due(sent, rate)),
                Rate::Recorded(factor) => {
                    let since = u64::try_from(datagram.time_us.saturating_sub(first_us)).unwrap_or(0);
                    pacer.wait(due(since, factor * 1e6));
                }
            }
            // an address of its own for each exporter, a port of its own for each session
            let exporters = self.exporters.len() as u64;
            let bind = self
                .args
                .spread_sources
                .then(|| loopback(*self.exporters.entry(datagram.src).or_insert(exporters)));
            let sessions = self.sessions.len() as u64;
            let number = *self.sessions.entry((datagram.src, datagram.src_port)).or_insert(sessions);
            let to = self.args.to.addr(datagram.dst_port);
            self.senders.send(number, bind, to, datagram.payload)?;
            sent += 1;
        };
        input.finish();
        result
    }

    fn summary(&self, took: Duration) {
        let (sent, bytes) = (self.senders.sent, self.senders.sent_bytes);
        let seconds = took.as_secs_f64().max(1e-9);
        eprintln!(
            "sent {sent} datagrams, {bytes} bytes to {} in {seconds:.3} s: {:.0} datagrams/s, {:.1} Mbit/s",
            self.args.to,
            sent as f64 / seconds,
            bytes as f64 * 8.0 / seconds / 1e6,
        );
        if self.cut > 0 {
            eprintln!("{} of them are cut in the capture (snap length)", self.cut);
        }
        if self.other > 0 {
            eprintln!(
                "other UDP datagrams: {} (`--port` sends all that were recorded at a port)",
                self.other
            );
        }
        if let Some(complaint) = self.senders.complaint() {
            eprintln!("{complaint}");
        }
    }
}

/// 127.2.0.1 and on, none ending in 0 or 255.
fn loopback(number: u64) -> Ipv4Addr {
    let [high, low] = ((number / 254) as u16).to_be_bytes();
    Ipv4Addr::new(127, 2 + high % 250, low, (number % 254 + 1) as u8)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use weir_collector::pcap::Writer;

    use super::*;

    #[test]
    fn rates_are_understood() {
        assert_eq!("original".parse(), Ok(Rate::Recorded(1.0)));
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("2500.5".parse(), Ok(Rate::PerSecond(2_500.5)));
        assert_eq!("x10".parse(), Ok(Rate::Recorded(10.0)));
        for wrong in ["", "x", "0", "-1", "fast", "inf", "x0"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn datagrams_come_as_recorded_and_in_time() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("three.pcap");
        let mut writer = Writer::new(std::fs::File::create(&path).unwrap()).unwrap();
        let dst = (Address::v4([192, 0, 2, 9]), 2055);
        for n in 0..3_u8 {
            let src = (Address::v4([198, 51, 100, n % 2]), 40_000);
            writer.write(1_700_000_000_000_000 + i64::from(n) * 200_000, src, dst, &[0, 5, n]).unwrap();
        }
        writer.write(1_700_000_001_000_000, (dst.0, 1), (dst.0, 53), b"no flow").unwrap();
        writer.finish().unwrap();
        let args = ReplayArgs {
            file: path.display().to_string(),
            to: parse_target(&format!("127.0.0.1:{port}")).unwrap(),
            rate: "x2".parse().unwrap(),
            r#loop: 2,
            port: None,
            spread_sources: true,
            quiet: true,
        };
        let started = Instant::now();
        run(&args).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(390), "{:?}", started.elapsed());
        let mut buffer = [0; 64];
        for n in [0, 1, 2, 0, 1, 2_u8] {
            let (len, from) = receiver.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..len], [0, 5, n]);
            assert_eq!(from.ip().to_string(), if n % 2 == 0 { "127.2.0.1" } else { "127.2.0.2" });
        }
    }
}
