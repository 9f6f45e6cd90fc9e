//! Datagrams that are encoded once and sent again and again: a load test wants more of them than one core can make.
//!
//! What a collector judges a stream by goes on as if they were new: sequence numbers, export time and uptime, the
//! numbers and pools of sFlow's samples. The flows themselves, their times too, are those of the recording.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::{DatagramInfo, Exporter, Generator, GeneratorConfig, Protocol, Totals};

/// Records, and plays for ever.
#[derive(Debug)]
pub struct Repeater {
    streams: Vec<Recording>,
    at: usize,
    remaining: u64,
    totals: [Totals; 4],
}

/// The datagrams of one exporter in one protocol.
#[derive(Debug)]
struct Recording {
    exporter: Exporter,
    protocol: Protocol,
    datagrams: Vec<Vec<u8>>,
    /// What each of them adds to the totals.
    parts: Vec<Totals>,
    /// What each pass over the recording adds to its numbers: (offset, increment).
    steps: Vec<Vec<(usize, u32)>>,
    next: usize,
}

/// Some datagrams of one exporter, to be sent in this order.
#[derive(Debug)]
pub struct Turn<'a> {
    pub exporter: u32,
    pub addr: Ipv4Addr,
    pub protocol: Protocol,
    pub rows: u64,
    pub datagrams: &'a [Vec<u8>],
}

impl Repeater {
    /// Records `datagrams` of each exporter and protocol.
    pub fn new(config: &GeneratorConfig, datagrams: usize) -> Repeater {
        let datagrams = datagrams.max(1);
        let mut generator = Generator::new(&GeneratorConfig { flows: u64::MAX, ..config.clone() });
        let mut streams: Vec<Recording> = generator
            .streams
            .iter()
            .map(|(exporter, stream)| Recording {
                exporter: *exporter,
                protocol: stream.protocol(),
                datagrams: Vec::with_capacity(datagrams + 1),
                parts: Vec::with_capacity(datagrams),
                steps: Vec::with_capacity(datagrams),
                next: 0,
            })
            .collect();
        let mut buffer = Vec::with_capacity(2_048);
        // one more than wanted: its sequence number says by how much a pass moves them
        while streams.iter().any(|stream| stream.datagrams.len() <= datagrams) {
            let at = generator.at;
            let before = generator.totals;
            let Some(DatagramInfo { protocol, rows, .. }) = generator.next(config.start_us, &mut buffer)
            else {
                break;
            };
            let stream = &mut streams[at];
            // interface counters that never move would be no use, templates are
            if stream.datagrams.len() > datagrams || (rows == 0 && protocol == Protocol::SFlow5) {
                continue;
            }
            let index = protocol as usize;
            stream
                .parts
                .push(generator.totals[index].combine(&before[index], |after, before| after - before));
            stream.datagrams.push(buffer.clone());
        }
        streams.iter_mut().for_each(|stream| stream.prepare(datagrams));
        Repeater { streams, at: 0, remaining: config.flows, totals: [Totals::default(); 4] }
    }

    /// The next datagrams to send, at most `most` of one exporter. None when the next one would be beyond the flows
    /// that were asked for.
    ///
    /// They count as sent with this call.
    pub fn next(&mut self, now_us: i64, most: usize) -> Option<Turn<'_>> {
        let count = self.streams.len();
        let stream = self.streams.get_mut(self.at)?;
        self.at = (self.at + 1) % count;
        let (from, limit) = (stream.next, (stream.next + most.max(1)).min(stream.datagrams.len()));
        let totals = &mut self.totals[stream.protocol as usize];
        let mut rows = 0;
        let mut to = from;
        while to < limit && rows + stream.parts[to].rows <= self.remaining {
            rows += stream.parts[to].rows;
            *totals = totals.combine(&stream.parts[to], |sum, part| sum + part);
            stream.renew(to, now_us);
            to += 1;
        }
        if to == from {
            return None;
        }
        self.remaining -= rows;
        stream.next = to % stream.datagrams.len();
        Some(Turn {
            exporter: stream.exporter.number,
            addr: stream.exporter.addr,
            protocol: stream.protocol,
            rows,
            datagrams: &stream.datagrams[from..to],
        })
    }

    /// What was given out up to now, of the protocols that were asked for.
    pub fn totals(&self) -> Vec<(Protocol, Totals)> {
        let spoken = |protocol: &Protocol| self.streams.iter().any(|stream| stream.protocol == *protocol);
        Protocol::ALL
            .into_iter()
            .filter(spoken)
            .map(|protocol| (protocol, self.totals[protocol as usize]))
            .collect()
    }
}

/// Where the fields of a datagram's header are: its sequence number, uptime in ms, export time in seconds.
struct Header {
    sequence: usize,
    uptime: Option<usize>,
    seconds: Option<usize>,
}

const fn header(protocol: Protocol) -> Header {
    match protocol {
        Protocol::NetFlow5 => Header { sequence: 16, uptime: Some(4), seconds: Some(8) },
        Protocol::NetFlow9 => Header { sequence: 12, uptime: Some(4), seconds: Some(8) },
        Protocol::Ipfix => Header { sequence: 8, uptime: None, seconds: Some(4) },
        Protocol::SFlow5 => Header { sequence: 16, uptime: Some(20), seconds: None },
    }
}

fn get(datagram: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&datagram[at..at + 4]);
    u32::from_be_bytes(word)
}

fn set(datagram: &mut [u8], at: usize, value: u32) {
    datagram[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn add(datagram: &mut [u8], at: usize, increment: u32) {
    set(datagram, at, get(datagram, at).wrapping_add(increment));
}

impl Recording {
    /// Works out the increments, and takes them off once: every pass adds them, the first too.
    fn prepare(&mut self, datagrams: usize) {
        let sequence = header(self.protocol).sequence;
        let moved = match (self.datagrams.first(), self.datagrams.get(datagrams)) {
            (Some(first), Some(beyond)) => get(beyond, sequence).wrapping_sub(get(first, sequence)),
            _ => 0,
        };
        self.datagrams.truncate(datagrams);
        self.parts.truncate(datagrams);
        self.steps = self.datagrams.iter().map(|_| vec![(sequence, moved)]).collect();
        if self.protocol == Protocol::SFlow5 {
            self.prepare_samples();
        }
        for (datagram, steps) in self.datagrams.iter_mut().zip(&self.steps) {
            for (at, increment) in steps {
                add(datagram, *at, increment.wrapping_neg());
            }
        }
    }

    /// Samples are numbered by data source, and say how many packets that source has seen.
    fn prepare_samples(&mut self) {
        let samples: Vec<Vec<usize>> = self.datagrams.iter().map(|datagram| flow_samples(datagram)).collect();
        let mut by_source: HashMap<u32, u32> = HashMap::new();
        for (datagram, samples) in self.datagrams.iter().zip(&samples) {
            for at in samples {
                *by_source.entry(get(datagram, at + 12)).or_default() += 1;
            }
        }
        for ((datagram, samples), steps) in self.datagrams.iter().zip(&samples).zip(&mut self.steps) {
            for at in samples {
                let count = by_source[&get(datagram, at + 12)];
                steps.push((at + 8, count));
                steps.push((at + 20, count.wrapping_mul(self.exporter.sampling_rate)));
            }
        }
    }

    /// Makes a datagram the next one of its exporter.
    fn renew(&mut self, index: usize, now_us: i64) {
        let datagram = &mut self.datagrams[index];
        for (at, increment) in &self.steps[index] {
            add(datagram, *at, *increment);
        }
        let Header { uptime, seconds, .. } = header(self.protocol);
        if let Some(at) = uptime {
            set(datagram, at, self.exporter.uptime_ms(now_us));
        }
        if let Some(at) = seconds {
            set(datagram, at, now_us.div_euclid(1_000_000) as u32);
        }
    }
}

/// Where the flow samples of an sFlow datagram (with an IPv4 agent) begin.
fn flow_samples(datagram: &[u8]) -> Vec<usize> {
    let mut at = 28;
    let mut found = Vec::new();
    for _ in 0..get(datagram, 24) {
        if get(datagram, at) == 1 {
            found.push(at);
        }
        at += 8 + get(datagram, at + 4) as usize;
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, SharedState};

    const START_US: i64 = 1_700_000_000_000_000;

    fn config(protocol: Protocol) -> GeneratorConfig {
        GeneratorConfig {
            protocols: vec![protocol],
            exporters: 2,
            flows: 40_000,
            hosts: 500,
            start_us: START_US,
            ..GeneratorConfig::default()
        }
    }

    #[test]
    fn a_collector_sees_a_stream_without_a_gap_and_the_totals_are_exact() {
        for protocol in Protocol::ALL {
            let mut repeater = Repeater::new(&config(protocol), 64);
            let shared = Arc::new(SharedState::new());
            let mut decoder = Decoder::new(Arc::new(DecodeConfig::default()), shared);
            let mut batches = Batches::new();
            let (mut now, mut datagrams, mut bytes, mut rows) = (START_US, 0_u64, 0_u64, 0_u64);
            while let Some(turn) = repeater.next(now, 16) {
                assert!(turn.datagrams.len() <= 16 && turn.protocol == protocol);
                for datagram in turn.datagrams {
                    let meta = DatagramMeta {
                        sender: weir_schemas::Address::v4(turn.addr.octets()),
                        sender_port: 4_000,
                        local_port: protocol.port(),
                        received_us: now,
                    };
                    decoder.decode(datagram, &meta, &mut batches);
                    datagrams += 1;
                    bytes += datagram.len() as u64;
                }
                rows += turn.rows;
                now += 1_000;
            }
            let [(_, totals)] = repeater.totals()[..] else { panic!("one protocol") };
            assert!((39_970..=40_000).contains(&totals.rows), "{protocol:?}: {}", totals.rows);
            assert_eq!((totals.datagrams, totals.datagram_bytes, totals.rows), (datagrams, bytes, rows));
            assert_eq!(batches.flows.rows() as u64, rows, "{protocol:?}");
            let exporters: Vec<_> = decoder.exporters().iter().map(|state| state.counters).collect();
            assert!(!exporters.is_empty());
            for counters in exporters {
                let lost = (counters.sequence_lost, counters.sequence_resets, counters.samples_lost);
                assert_eq!(lost, (0, 0, 0), "{protocol:?}");
                assert!(counters.sequence_expected > 0);
            }
        }
    }
}
