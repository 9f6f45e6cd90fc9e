//! Fuzz targets: functions of any bytes that hold for all of them what this project promises for all input (nothing
//! panics, the ledger balances, rows are whole, memory is bounded). `fuzz/` runs them under libFuzzer, the plain tests
//! with the seeds and with every input that once failed (`fuzz/corpus-of-findings`).
//!
//! Not part of the product: compiled for tests and with the feature `fuzzing`, which `fuzz/` asks for.

#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

mod seeds;

use std::io::{self, Read};

use weir_schemas::envelope::{Envelope, decode_body};
use weir_schemas::segment::{Mark, Scanner, Step};
use weir_schemas::tables::{SCHEMA_VERSION, Table};

use crate::decode::fuzzing;
use crate::pcap::{Reader, Stats};

/// A target: its name, what it does, and what it begins with.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target, one a parser of bytes that weir has not made itself, or that a disk may have changed.
pub const TARGETS: &[Target] = &[
    Target { name: "netflow", run: fuzzing::netflow, seeds: seeds::netflow },
    Target { name: "sflow", run: fuzzing::sflow, seeds: seeds::sflow },
    Target { name: "frame", run: fuzzing::frame, seeds: seeds::frame },
    Target { name: "pcap", run: pcap, seeds: seeds::pcap },
    Target { name: "segment", run: segment, seeds: seeds::segment },
    Target { name: "envelope", run: envelope, seeds: seeds::envelope },
    Target { name: "state", run: fuzzing::state, seeds: seeds::state },
];

/// The target of that name.
pub fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("the name of a target")
}

/// Bytes that come a few at a time, as from a pipe.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1 % 7 + 1;
        let taken = self.1.min(self.0.len()).min(buffer.len());
        let (now, rest) = self.0.split_at(taken);
        buffer[..taken].copy_from_slice(now);
        self.0 = rest;
        Ok(taken)
    }
}

/// Everything that a capture gives, and how it ends.
fn capture(reader: impl Read + Send, length: usize) -> (Vec<(u64, i64, u64, Vec<u8>)>, Stats, String) {
    let mut found = Vec::new();
    let mut reader = match Reader::new(reader) {
        Ok(reader) => reader,
        Err(error) => return (found, Stats::default(), ending(&error)),
    };
    let end = loop {
        match reader.next() {
            Ok(Some(datagram)) => {
                assert!(datagram.payload.len() <= 65_535);
                let ports = u64::from(datagram.src_port) << 16 | u64::from(datagram.dst_port);
                found.push((datagram.frame, datagram.time_us, ports, datagram.payload.to_vec()));
            }
            Ok(None) => break String::new(),
            Err(error) => break ending(&error),
        }
    };
    assert!(reader.next().unwrap().is_none(), "after the end there is nothing");
    let stats = reader.stats();
    assert_eq!(stats.datagrams, found.len() as u64);
    // a frame is at least sixteen bytes of header
    assert!(stats.frames <= length as u64 / 12 && reader.bytes() <= length as u64);
    (found, stats, end)
}

/// The kind of an error; its details depend on how much was read at once.
fn ending(error: &crate::pcap::CaptureError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

/// A capture, read from memory and from a pipe: the same.
pub fn pcap(data: &[u8]) {
    let whole = capture(data, data.len());
    let dribbled = capture(Dribble(data, 0), data.len());
    assert_eq!(whole, dribbled);
}

/// A segment of the embedded log: as it is, and as frames with right checksums around the same bytes (each: 2 bytes of
/// header length, 2 bytes of body length, then both).
pub fn segment(data: &[u8]) {
    scan(data);
    let mut sealed = Vec::new();
    let mut rest = data;
    while let Some(([a, b, c, d], after)) = rest.split_first_chunk::<4>() {
        let headers = usize::from(u16::from_le_bytes([*a, *b])).min(after.len());
        let (headers, after) = after.split_at(headers);
        let body = usize::from(u16::from_le_bytes([*c, *d])).min(after.len());
        let (body, after) = after.split_at(body);
        rest = after;
        sealed.extend(seal(headers, body));
    }
    assert_eq!(scan(&sealed), sealed.len());
    let _ = Mark::parse(data);
    let _ = Mark::read(data);
}

/// A frame with right checksums, as [`weir_schemas::segment`] describes it.
fn seal(headers: &[u8], body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xf7, b'W', b'R', 1];
    frame.extend([0; 32]);
    frame.extend([0; 4]);
    frame[28..32].copy_from_slice(&u32::try_from(headers.len()).unwrap().to_le_bytes());
    frame[32..36].copy_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..4]);
    hasher.update(&frame[8..40]);
    let checksum = hasher.finalize();
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    frame.extend_from_slice(headers);
    frame.extend_from_slice(body);
    frame.extend(crc32fast::hash(&frame).to_le_bytes());
    frame
}

/// Walks a segment from end to end. Answers how many bytes of it are frames.
fn scan(data: &[u8]) -> usize {
    let limit = data.len() as u64;
    let mut scanner = Scanner::new(0);
    let mut frames = 0;
    loop {
        let at = scanner.position();
        match scanner.step(data, limit).unwrap() {
            Step::Frame(frame) => {
                let bytes = frame.bytes().len();
                assert_eq!(scanner.position(), at + bytes as u64);
                assert_eq!(bytes, frame.head.frame_bytes());
                assert!(frame.body().len() < bytes);
                let _ = frame.envelope();
                frames += bytes;
            }
            Step::Corrupt { range, .. } => {
                assert!(range.start == at && range.end > at && range.end <= limit);
                assert_eq!(scanner.position(), range.end);
            }
            Step::Torn { at: torn } => {
                assert!(torn <= limit);
                break;
            }
            Step::End => break,
        }
    }
    let mut skipping = Scanner::new(0);
    skipping.skip_below(data, 1, limit).unwrap();
    assert!(skipping.position() <= limit);
    frames
}

/// A message's body: a byte of how many rows its envelope says, then an Arrow IPC stream.
pub fn envelope(data: &[u8]) {
    let Some((rows, body)) = data.split_first() else { return };
    let envelope = Envelope {
        schema_version: SCHEMA_VERSION,
        table: Table::Flows,
        collector: "c".into(),
        boot: 1,
        batch_seq: 1,
        rows: u32::from(*rows),
        min_time_us: 0,
        max_time_us: 0,
        covered: None,
        origin: None,
    };
    if let Ok(batch) = decode_body(&envelope, body) {
        assert_eq!(batch.num_rows(), usize::from(*rows));
        for column in batch.columns() {
            assert_eq!(column.len(), batch.num_rows());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Each seed whole, cut short, and with octets changed.
    #[test]
    fn the_seeds_hold() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            for seed in seeds {
                (target.run)(&seed);
                let step = seed.len() / 40 + 1;
                for at in (0..seed.len()).step_by(step) {
                    (target.run)(&seed[..at]);
                    for value in [0, 0xff, seed[at] ^ 1] {
                        let mut changed = seed.clone();
                        changed[at] = value;
                        (target.run)(&changed);
                    }
                }
            }
        }
    }

    /// Whatever was found stays found: `fuzz/corpus-of-findings/TARGET/*`.
    #[test]
    fn the_findings_hold() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus-of-findings");
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if !entry.path().is_dir() {
                continue;
            }
            let target = target(entry.file_name().to_str().unwrap());
            for finding in std::fs::read_dir(entry.path()).unwrap() {
                (target.run)(&std::fs::read(finding.unwrap().path()).unwrap());
            }
        }
    }

    #[test]
    fn the_seeds_reach_what_they_are_for() {
        let batch = |seed: &[u8]| decode_body(&seeds::envelope_of(seed[0]), &seed[1..]).unwrap();
        assert!(seeds::envelope().iter().all(|seed| batch(seed).num_rows() > 0));
        assert!(seeds::segment().iter().any(|seed| scan(seed) > 0));
        for seed in seeds::pcap() {
            let (datagrams, _, end) = capture(&seed[..], seed.len());
            assert!(!datagrams.is_empty() && end.is_empty(), "{end}");
        }
    }
}
