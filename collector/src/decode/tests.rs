//! NetFlow and IPFIX: the corpus, the rules, hostile input.

use serde_json::{Map, Value, json};

use super::testing::{Case, corpus, differences, rows};
use super::*;

mod accounting;
mod counting;
mod elements;
pub(crate) mod hostile;
mod properties;
mod rules;
mod waiting;

/// Decodes a case as `weir decode` does: rows in wire order, datagram by datagram.
fn decode_case(case: &Case) -> (Vec<Map<String, Value>>, Decoder) {
    let config = DecodeConfig { clock_check: false, ..DecodeConfig::default() };
    let mut decoder = Decoder::new(Arc::new(config), Arc::default());
    let mut out = Batches::new();
    let mut all = Vec::new();
    for (datagram, received_us) in case.datagrams.iter().zip(&case.received_us) {
        let sender = "192.0.2.10".parse().unwrap();
        let meta = DatagramMeta { sender, sender_port: 50_000, local_port: 2055, received_us: *received_us };
        let outcome = decoder.decode(datagram, &meta, &mut out);
        assert_ne!(outcome.rejected, Some(RejectReason::DecoderPanic), "{}", case.name);
        let (mut flows, mut events) =
            (rows(&mut out.flows).into_iter(), rows(&mut out.nat_events).into_iter());
        for (table, count) in decoder.row_order() {
            let from = if *table == Table::NatEvents { &mut events } else { &mut flows };
            all.extend(from.by_ref().take(*count as usize));
        }
        assert!(
            flows.next().is_none() && events.next().is_none(),
            "{}: row_order is not complete",
            case.name
        );
    }
    (all, decoder)
}

#[test]
fn corpus_cases_decode_to_the_expected_rows() {
    let mut cases: Vec<Case> = ["v5", "v7", "v9", "ipfix"].into_iter().flat_map(corpus).collect();
    if cases.is_empty() {
        // outside of the place where the corpus lies there is nothing to compare with
        return;
    }
    let mut wrong = Vec::new();
    for case in &mut cases {
        let (mut rows, decoder) = decode_case(case);
        rows.retain(|row| row.get("reverse") != Some(&json!(true)));
        let expected = &case.meta["expected"];
        if expected["flow_records_if_buffered"].as_u64() == Some(rows.len() as u64) {
            rows.drain(..rows.len() - case.expected.len());
        }
        let mut found = differences(case, &rows, true);
        let sum = |count: fn(&Counters) -> u64| {
            decoder.exporters().iter().map(|state| count(&state.counters)).sum::<u64>()
        };
        let templates = ["templates", "options_templates"].map(|key| expected[key].as_u64().unwrap());
        for (what, have, want) in [
            ("templates", sum(|c| c.templates), templates.iter().sum()),
            ("options records", sum(|c| c.options_records), expected["options_records"].as_u64().unwrap()),
            ("unknown sets", sum(|c| c.template_misses), expected["unknown_template_sets"].as_u64().unwrap()),
        ] {
            if have != want {
                found.push(format!("{}: {have} {what}, expected {want}", case.name));
            }
        }
        let errors = !expected["decode_errors"].as_array().unwrap().is_empty();
        let rejected =
            decoder.counters().rejected.iter().chain(&decoder.counters().sets_rejected).sum::<u64>();
        if errors != (rejected > 0) {
            found.push(format!("{}: {rejected} rejects, expected {}", case.name, expected["decode_errors"]));
        }
        found.truncate(6);
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{} cases, {} differences:\n{}", cases.len(), wrong.len(), wrong.join("\n"));
}

/// A v9 or IPFIX message under construction.
#[derive(Clone)]
struct Builder9 {
    ipfix: bool,
    sequence: u32,
    domain: u32,
    export_s: u32,
    uptime_ms: u32,
    sets: Vec<u8>,
}

const EXPORT_S: u32 = 1_700_000_000;
const UPTIME_MS: u32 = 10_000_000;

impl Builder9 {
    fn v9(sequence: u32) -> Builder9 {
        let (export_s, uptime_ms) = (EXPORT_S, UPTIME_MS);
        Builder9 { ipfix: false, sequence, domain: 7, export_s, uptime_ms, sets: Vec::new() }
    }

    fn ipfix(sequence: u32) -> Builder9 {
        Builder9 { ipfix: true, ..Builder9::v9(sequence) }
    }

    fn set(mut self, id: u16, content: &[u8]) -> Builder9 {
        self.sets.extend(id.to_be_bytes());
        self.sets.extend(u16::try_from(content.len() + 4).unwrap().to_be_bytes());
        self.sets.extend(content);
        self
    }

    /// A template of (element, length) pairs of IANA.
    fn template(self, id: u16, fields: &[(u16, u16)]) -> Builder9 {
        let mut words = vec![id, fields.len() as u16];
        words.extend(fields.iter().flat_map(|(id, length)| [*id, *length]));
        let set = if self.ipfix { 2 } else { 0 };
        self.set(set, &bytes(&words))
    }

    /// An options template with that many scope fields.
    fn options(self, id: u16, scope: usize, fields: &[(u16, u16)]) -> Builder9 {
        let mut words = if self.ipfix {
            vec![id, fields.len() as u16, scope as u16]
        } else {
            vec![id, scope as u16 * 4, (fields.len() - scope) as u16 * 4]
        };
        words.extend(fields.iter().flat_map(|(id, length)| [*id, *length]));
        let set = if self.ipfix { 3 } else { 1 };
        self.set(set, &bytes(&words))
    }

    fn build(&self) -> Vec<u8> {
        let mut out = if self.ipfix {
            let mut out = bytes(&[10, self.sets.len() as u16 + 16]);
            out.extend(self.export_s.to_be_bytes());
            out
        } else {
            let mut out = bytes(&[9, 1]);
            out.extend(self.uptime_ms.to_be_bytes());
            out.extend(self.export_s.to_be_bytes());
            out
        };
        out.extend(self.sequence.to_be_bytes());
        out.extend(self.domain.to_be_bytes());
        out.extend(&self.sets);
        out
    }
}

fn bytes(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn sender(port: u16) -> DatagramMeta {
    let received_us = i64::from(EXPORT_S) * 1_000_000 + 250_000;
    DatagramMeta { sender: "192.0.2.1".parse().unwrap(), sender_port: port, local_port: 2055, received_us }
}

/// The nineteen fields of an ordinary IPv4 flow.
const ORDINARY: &[(u16, u16)] = &[
    (8, 4),
    (12, 4),
    (15, 4),
    (10, 4),
    (14, 4),
    (2, 8),
    (1, 8),
    (22, 4),
    (21, 4),
    (7, 2),
    (11, 2),
    (6, 1),
    (4, 1),
    (5, 1),
    (16, 4),
    (17, 4),
    (9, 1),
    (13, 1),
    (61, 1),
];

/// Records of [`ORDINARY`] with random content and times that can be.
fn ordinary_records(count: usize, random: &mut impl FnMut() -> u8) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..count {
        for (id, length) in ORDINARY {
            match id {
                21 | 22 => out.extend((UPTIME_MS - 5_000).to_be_bytes()),
                // one flow in 64 is ICMP
                4 => out.push(
                    [6, 17, 1][if random().is_multiple_of(64) { 2 } else { usize::from(random() % 2) }],
                ),
                _ => out.extend((0..*length).map(|_| random())),
            }
        }
    }
    out
}

fn generator(mut seed: u64) -> impl FnMut() -> u8 {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    }
}

/// ns a record of datagrams decoded over and over, after the templates in `first`.
fn time(name: &str, first: &[Vec<u8>], datagrams: &[Vec<u8>], records: usize) {
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let meta = sender(50_000);
    for datagram in first {
        assert_eq!(decoder.decode(datagram, &meta, &mut out).rejected, None);
    }
    let mut best = (f64::MAX, 0.0);
    // fewer for a count of instructions: valgrind --tool=callgrind
    let wanted = std::env::var("BENCH_RECORDS").map_or(2_000_000, |count| count.parse().unwrap());
    for _ in 0..7 {
        let (mut n, mut finishing) = (0, 0.0);
        let begin = std::time::Instant::now();
        while n < wanted {
            for datagram in datagrams {
                decoder.decode(datagram, &meta, &mut out);
                n += records;
            }
            if out.flows.rows() > 60_000 {
                let begin = std::time::Instant::now();
                std::hint::black_box(out.flows.finish());
                finishing += begin.elapsed().as_nanos() as f64;
            }
        }
        let all = begin.elapsed().as_nanos() as f64 / n as f64;
        if all < best.0 {
            best = (all, finishing / n as f64);
        }
    }
    assert_eq!(decoder.counters().rejected.iter().sum::<u64>(), 0);
    assert_eq!(decoder.counters().sets_rejected.iter().sum::<u64>(), 0);
    println!("{name}: {:.1} ns a record, of which {:.1} closing batches", best.0, best.1);
}

/// A v5 datagram with thirty random records.
fn v5_datagram(random: &mut impl FnMut() -> u8) -> Vec<u8> {
    let mut datagram = bytes(&[5, 30]);
    datagram.extend(UPTIME_MS.to_be_bytes());
    datagram.extend(EXPORT_S.to_be_bytes());
    datagram.extend([0; 12]);
    for _ in 0..30 {
        let mut record: Vec<u8> = (0..48).map(|_| random()).collect();
        record[24..28].copy_from_slice(&(UPTIME_MS - 5_000).to_be_bytes());
        record[28..32].copy_from_slice(&(UPTIME_MS - 1_000).to_be_bytes());
        record[38] = if random().is_multiple_of(2) { 6 } else { 17 };
        datagram.extend(record);
    }
    datagram
}

#[test]
#[ignore = "a timing: run with --release -- --ignored --nocapture bench_"]
fn bench_v5() {
    let mut random = generator(1);
    let datagrams: Vec<_> = (0..50).map(|_| v5_datagram(&mut random)).collect();
    time("v5, 30 records", &[], &datagrams, 30);
}

#[test]
#[ignore = "a timing: run with --release -- --ignored --nocapture bench_"]
fn bench_v9() {
    let mut random = generator(2);
    let first = Builder9::v9(0).template(256, ORDINARY).build();
    let data = |n| Builder9::v9(n).set(256, &ordinary_records(24, &mut random)).build();
    let datagrams: Vec<_> = (0..50).map(data).collect();
    time("v9, 24 records of 19 fields", &[first], &datagrams, 24);
}

#[test]
#[ignore = "a timing: run with --release -- --ignored --nocapture bench_"]
fn bench_ipfix() {
    let mut random = generator(3);
    let boot_ms = (u64::from(EXPORT_S) * 1_000 - u64::from(UPTIME_MS)).to_be_bytes();
    let first = Builder9::ipfix(0).template(256, ORDINARY).options(300, 1, &[(149, 4), (160, 8)]);
    let first = first.set(300, &[&[0, 0, 0, 7][..], &boot_ms].concat()).build();
    let data = |n| Builder9::ipfix(n).set(256, &ordinary_records(20, &mut random)).build();
    let datagrams: Vec<_> = (0..50).map(data).collect();
    time("ipfix, 20 records of 19 fields", &[first], &datagrams, 20);
}

#[test]
#[ignore = "a timing: run with --release -- --ignored --nocapture bench_"]
fn bench_variable_length() {
    let mut random = generator(4);
    let mut fields = ORDINARY.to_vec();
    fields.push((82, 0xffff));
    let first = Builder9::ipfix(0).template(257, &fields).build();
    let mut record = || [ordinary_records(1, &mut random), b"\x08ge-0/0/0".to_vec()].concat();
    let mut records = || (0..20).flat_map(|_| record()).collect::<Vec<u8>>();
    let datagrams: Vec<_> = (0..50).map(|n| Builder9::ipfix(n).set(257, &records()).build()).collect();
    time("ipfix, 20 records with a string to extra", &[first], &datagrams, 20);
}
