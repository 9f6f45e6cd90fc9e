//! Synthetic exporters: a seeded stream of valid NetFlow v5, v9, IPFIX and sFlow v5 datagrams with exact totals.
//!
//! Pure: no socket, no clock. `weir generate` and `weir demo` send what comes out, the benches and tests feed it to the
//! decoders. It lives in the collector's crate so that all of them reach it without building the aggregator. It is no
//! part of the receive path and shares no code with the decoders, so it is an independent check of them: what the
//! generator counts is what it wrote, not what was read back.
//!
//! Same configuration and same times = same bytes. Traffic: a Zipf-distributed population of hosts inside and outside,
//! services with their ports, classes (DSCP), packet sizes and heavy-tailed lengths ([`traffic`]). Datagrams have the
//! sizes that routers use: v5 30 records, v9 24 (IPv4) or 13 (IPv6), IPFIX 20 or 15, sFlow 7 samples.

mod extras;
mod netflow;
mod repeat;
mod sflow;
mod traffic;

use std::net::Ipv4Addr;

pub use repeat::{Repeater, Turn};
use traffic::{Random, Traffic};

/// An export protocol that can be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    NetFlow5,
    NetFlow9,
    Ipfix,
    SFlow5,
}

impl Protocol {
    pub const ALL: [Protocol; 4] =
        [Protocol::NetFlow5, Protocol::NetFlow9, Protocol::Ipfix, Protocol::SFlow5];

    /// The value of the column `proto_ver`.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::NetFlow5 => "netflow5",
            Protocol::NetFlow9 => "netflow9",
            Protocol::Ipfix => "ipfix",
            Protocol::SFlow5 => "sflow5",
        }
    }

    /// The port it is usually sent to.
    pub const fn port(self) -> u16 {
        match self {
            Protocol::NetFlow5 | Protocol::NetFlow9 => 2055,
            Protocol::Ipfix => 4739,
            Protocol::SFlow5 => 6343,
        }
    }
}

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratorConfig {
    pub seed: u64,
    /// Each exporter speaks one of them, in turn; where there are fewer exporters, some speak several.
    pub protocols: Vec<Protocol>,
    pub exporters: u32,
    /// Stop after so many flow rows; `u64::MAX` goes on for ever.
    pub flows: u64,
    /// The most flow rows of a datagram; routers with little traffic fill few datagrams.
    pub datagram_flows: usize,
    /// Hosts on each side.
    pub hosts: u32,
    /// 1 in N for all exporters, or one of the usual rates for each.
    pub sampling_rate: Option<u32>,
    /// Per cent of v9 and IPFIX datagrams and sFlow samples with IPv6.
    pub ipv6_percent: u8,
    /// Address of the first exporter; the others follow. sFlow names it as the agent.
    pub first_exporter: Ipv4Addr,
    /// When the exporters begin, µs since 1970 UTC; `next` is called with times from then on.
    pub start_us: i64,
    /// Templates and options are sent again after so many datagrams, and so many seconds.
    pub refresh_datagrams: u32,
    pub refresh_seconds: u32,
    /// Also what only some exporters send. IPFIX: calls with jitter, loss, application and re-marked class, and NAT events;
    /// sFlow: dropped packets.
    pub extras: bool,
}

impl Default for GeneratorConfig {
    fn default() -> Self {
        GeneratorConfig {
            seed: 1,
            protocols: Protocol::ALL.to_vec(),
            exporters: 4,
            flows: u64::MAX,
            datagram_flows: usize::MAX,
            hosts: 10_000,
            sampling_rate: None,
            ipv6_percent: 25,
            first_exporter: Ipv4Addr::new(127, 1, 0, 1),
            start_us: 0,
            refresh_datagrams: 500,
            refresh_seconds: 20,
            extras: false,
        }
    }
}

/// What is in a generated datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramInfo {
    pub exporter: u32,
    pub protocol: Protocol,
    /// Flow rows; 0 for templates, counter samples, NAT events and dropped packets.
    pub rows: u32,
}

/// What was generated of a protocol, exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    pub datagrams: u64,
    pub datagram_bytes: u64,
    /// Rows of the table `flows`.
    pub rows: u64,
    pub bytes: u64,
    pub packets: u64,
    /// Scaled by each exporter's sampling rate.
    pub est_bytes: u64,
    pub est_packets: u64,
    /// Rows of the table `options`.
    pub options_records: u64,
    /// Rows of the table `interface_counters`.
    pub counter_samples: u64,
    /// Rows of the table `nat_events`.
    pub nat_events: u64,
    /// Rows of the table `discards`.
    pub discards: u64,
}

impl Totals {
    fn add_flow(&mut self, bytes: u64, packets: u64, sampling_rate: u32) {
        self.rows += 1;
        self.bytes += bytes;
        self.packets += packets;
        self.est_bytes += bytes * u64::from(sampling_rate);
        self.est_packets += packets * u64::from(sampling_rate);
    }

    /// The sum over several protocols.
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Totals>) -> Totals {
        all.into_iter().fold(Totals::default(), |sum, one| sum.combine(one, |sum, one| sum + one))
    }

    /// Field by field.
    fn combine(&self, other: &Totals, with: impl Fn(u64, u64) -> u64) -> Totals {
        Totals {
            datagrams: with(self.datagrams, other.datagrams),
            datagram_bytes: with(self.datagram_bytes, other.datagram_bytes),
            rows: with(self.rows, other.rows),
            bytes: with(self.bytes, other.bytes),
            packets: with(self.packets, other.packets),
            est_bytes: with(self.est_bytes, other.est_bytes),
            est_packets: with(self.est_packets, other.est_packets),
            options_records: with(self.options_records, other.options_records),
            counter_samples: with(self.counter_samples, other.counter_samples),
            nat_events: with(self.nat_events, other.nat_events),
            discards: with(self.discards, other.discards),
        }
    }
}

/// What all streams of an exporter share.
#[derive(Debug, Clone, Copy)]
struct Exporter {
    number: u32,
    addr: Ipv4Addr,
    sampling_rate: u32,
    /// When it booted, µs since 1970 UTC.
    boot_us: i64,
}

impl Exporter {
    /// Milliseconds since it booted, modulo 2^32 as on the wire.
    fn uptime_ms(&self, now_us: i64) -> u32 {
        ((now_us - self.boot_us) / 1_000) as u32
    }

    /// Its observation domain; the v5 engine has 16 bits of it.
    fn domain(&self) -> u32 {
        self.number + 1
    }
}

/// One exporter speaking one protocol.
#[derive(Debug)]
enum Stream {
    V5(netflow::V5),
    V9(netflow::Templated),
    Ipfix(netflow::Templated),
    SFlow(Box<sflow::SFlow>),
}

impl Stream {
    fn protocol(&self) -> Protocol {
        match self {
            Stream::V5(_) => Protocol::NetFlow5,
            Stream::V9(_) => Protocol::NetFlow9,
            Stream::Ipfix(_) => Protocol::Ipfix,
            Stream::SFlow(_) => Protocol::SFlow5,
        }
    }
}

/// The exporters at work.
#[derive(Debug)]
pub struct Generator {
    traffic: Traffic,
    random: Random,
    streams: Vec<(Exporter, Stream)>,
    at: usize,
    remaining: u64,
    totals: [Totals; 4],
    limits: Limits,
}

/// The parts of the configuration that encoders need.
#[derive(Debug, Clone, Copy)]
struct Limits {
    datagram_flows: usize,
    refresh_datagrams: u32,
    refresh_us: i64,
    extras: bool,
}

/// What an encoder works with.
struct Context<'a> {
    exporter: &'a Exporter,
    traffic: &'a Traffic,
    random: &'a mut Random,
    totals: &'a mut Totals,
    limits: Limits,
    now_us: i64,
    /// The most flow rows that are wanted in this datagram, at least 1.
    wanted: usize,
}

/// The sampling rates that exporters choose from.
const SAMPLING_RATES: [u32; 6] = [1, 100, 512, 1_000, 1_024, 2_048];

impl Generator {
    pub fn new(config: &GeneratorConfig) -> Generator {
        let mut random = Random::new(config.seed);
        let traffic = Traffic::new(config.hosts.max(2), config.ipv6_percent, &mut random);
        let limits = Limits {
            refresh_datagrams: config.refresh_datagrams.max(1),
            refresh_us: i64::from(config.refresh_seconds.max(1)) * 1_000_000,
            extras: config.extras,
            datagram_flows: config.datagram_flows.max(1),
        };
        let exporters = config.exporters.max(1);
        let mut protocols = config.protocols.clone();
        protocols.dedup();
        let mut streams = Vec::new();
        for number in 0..exporters {
            let pick = random.below(SAMPLING_RATES.len() as u32) as usize;
            // between ten minutes and some twenty days ago
            let age_ms = 600_000 + i64::from(random.below(1_700_000_000));
            let exporter = Exporter {
                number,
                addr: exporter_addr(config.first_exporter, number),
                sampling_rate: config.sampling_rate.unwrap_or(SAMPLING_RATES[pick]).clamp(1, 0x3fff),
                boot_us: (config.start_us / 1_000 - age_ms) * 1_000,
            };
            let count = protocols.len() as u32;
            let speaks = |index: u32| {
                if exporters >= count { number % count == index } else { index % exporters == number }
            };
            for (index, protocol) in protocols.iter().enumerate() {
                if speaks(index as u32) {
                    let stream = match protocol {
                        Protocol::NetFlow5 => Stream::V5(netflow::V5::default()),
                        Protocol::NetFlow9 => Stream::V9(netflow::Templated::default()),
                        Protocol::Ipfix => Stream::Ipfix(netflow::Templated::default()),
                        Protocol::SFlow5 => Stream::SFlow(Box::default()),
                    };
                    streams.push((exporter, stream));
                }
            }
        }
        Generator {
            traffic,
            random,
            streams,
            at: 0,
            remaining: config.flows,
            totals: [Totals::default(); 4],
            limits,
        }
    }

    /// Writes the next datagram into `buffer`. None when all flows are out.
    ///
    /// `now_us` is the time of export; it must not go back.
    pub fn next(&mut self, now_us: i64, buffer: &mut Vec<u8>) -> Option<DatagramInfo> {
        buffer.clear();
        if self.remaining == 0 {
            return None;
        }
        let (exporter, stream) = self.streams.get_mut(self.at)?;
        let protocol = stream.protocol();
        let totals = &mut self.totals[protocol as usize];
        let before = totals.rows;
        let context = Context {
            exporter,
            traffic: &self.traffic,
            random: &mut self.random,
            totals,
            limits: self.limits,
            now_us,
            wanted: usize::try_from(self.remaining).unwrap_or(usize::MAX).min(self.limits.datagram_flows),
        };
        match stream {
            Stream::V5(stream) => stream.write(context, buffer),
            Stream::V9(stream) => stream.write_v9(context, buffer),
            Stream::Ipfix(stream) => stream.write_ipfix(context, buffer),
            Stream::SFlow(stream) => stream.write(context, buffer),
        }
        let totals = &mut self.totals[protocol as usize];
        totals.datagrams += 1;
        totals.datagram_bytes += buffer.len() as u64;
        let rows = totals.rows - before;
        self.remaining -= rows;
        let exporter = exporter.number;
        // templates and counters come beside the flows of a turn, not instead of them
        if rows > 0 {
            self.at = (self.at + 1) % self.streams.len();
        }
        Some(DatagramInfo { exporter, protocol, rows: rows as u32 })
    }

    /// Flow rows still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// What was written up to now, of the protocols that were asked for.
    pub fn totals(&self) -> Vec<(Protocol, Totals)> {
        let spoken =
            |protocol: &Protocol| self.streams.iter().any(|(_, stream)| stream.protocol() == *protocol);
        Protocol::ALL
            .into_iter()
            .filter(spoken)
            .map(|protocol| (protocol, self.totals[protocol as usize]))
            .collect()
    }

    /// The address of an exporter.
    pub fn exporter_addr(&self, number: u32) -> Option<Ipv4Addr> {
        self.streams.iter().find(|(exporter, _)| exporter.number == number).map(|(exporter, _)| exporter.addr)
    }
}

/// The n-th address from `first` on, none ending in 0 or 255.
fn exporter_addr(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    let first = u32::from(first);
    let host = (first & 0xff).max(1) - 1 + number;
    Ipv4Addr::from((first & !0xff).wrapping_add((host / 254) << 8) | (host % 254 + 1))
}

#[cfg(test)]
mod tests;
