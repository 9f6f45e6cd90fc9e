use serde_json::{Map, Value, json};

use super::*;
use crate::decode::testing::{RECEIVED_US, corpus, differences, meta, rows};

/// Words of a datagram under construction.
#[derive(Default, Clone)]
struct Words(Vec<u8>);

impl Words {
    fn of(words: &[u32]) -> Words {
        Words(words.iter().flat_map(|word| word.to_be_bytes()).collect())
    }

    fn and(mut self, words: &[u32]) -> Words {
        self.0.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Words {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A string or opaque data: length, bytes, padding.
    fn opaque(self, bytes: &[u8]) -> Words {
        let length = u32::try_from(bytes.len()).unwrap();
        let padding = [0; 3];
        self.and(&[length]).bytes(bytes).bytes(&padding[..bytes.len().wrapping_neg() & 3])
    }

    /// A structure: format, length, bytes.
    fn structure(self, format: u32, body: &Words) -> Words {
        self.and(&[format, u32::try_from(body.0.len()).unwrap()]).bytes(&body.0)
    }
}

const AGENT: u32 = 0x0a00_0001;

fn datagram(sequence: u32, samples: &[Words]) -> Vec<u8> {
    let head = Words::of(&[5, 1, AGENT, 3, sequence, 90_000, u32::try_from(samples.len()).unwrap()]);
    samples.iter().fold(head, |all, sample| all.bytes(&sample.0)).0
}

/// A flow sample of source 7, with input 7 and output 8.
fn sample(number: u32, records: &[Words]) -> Words {
    let pool = number * 1_000;
    sample_with(&[number, 7, 1_000, pool, 0, 7, 8], records)
}

fn sample_with(head: &[u32], records: &[Words]) -> Words {
    let head = Words::of(head).and(&[u32::try_from(records.len()).unwrap()]);
    let body = records.iter().fold(head, |all, record| all.bytes(&record.0));
    Words::default().structure(1, &body)
}

fn record(format: u32, body: Words) -> Words {
    Words::default().structure(format, &body)
}

/// Ethernet, IPv4 10.1.1.1 → 10.2.2.2, TCP 1234 → 443.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0xb8, 5, 0xdc, 0, 1, 0, 0, 64, 6, 0, 0, 10, 1, 1, 1, 10, 2, 2, 2]);
    frame.extend([4, 210, 1, 187, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn header(protocol: u32, frame: &[u8]) -> Words {
    record(1, Words::of(&[protocol, 1_518, 4]).opaque(frame))
}

struct Decoded {
    result: Result<u32, RejectReason>,
    flows: Vec<Map<String, Value>>,
    discards: Vec<Map<String, Value>>,
    counters: Vec<Map<String, Value>>,
}

#[derive(Default)]
struct Decoder {
    exporters: Exporters,
    config: DecodeConfig,
}

impl Decoder {
    fn decode(&mut self, datagram: &[u8]) -> Decoded {
        let mut out = Batches::new();
        let result =
            super::decode(datagram, &meta("192.0.2.10"), &mut self.exporters, &self.config, &mut out);
        let [flows, discards, counters] =
            [&mut out.flows, &mut out.discards, &mut out.interface_counters].map(rows);
        Decoded { result, flows, discards, counters }
    }

    fn counted(&self) -> &crate::decode::Counters {
        &self.exporters.iter().next().unwrap().counters
    }
}

fn decode(datagram: &[u8]) -> Decoded {
    Decoder::default().decode(datagram)
}

fn has(row: &Map<String, Value>, want: Value) {
    for (name, want) in want.as_object().unwrap() {
        assert_eq!(row.get(name).unwrap_or(&Value::Null), want, "{name} of {row:?}");
    }
}

#[test]
fn every_case_of_the_corpus_decodes_to_what_is_expected() {
    let cases = corpus("sflow_");
    let mut found = Vec::new();
    for case in &cases {
        let (mut exporters, config) = (Exporters::new(), DecodeConfig::default());
        let mut out = Batches::new();
        for datagram in &case.datagrams {
            let _ = super::decode(datagram, &meta("192.0.2.10"), &mut exporters, &config, &mut out);
        }
        let counters = out.interface_counters.rows() as u64;
        let expected = &case.meta["expected"];
        if Some(counters) != expected["counter_samples"].as_u64() {
            found.push(format!("{}: {counters} counter samples", case.name));
        }
        found.extend(differences(case, &rows(&mut out.flows), true));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    // absent outside the founders' machines
    assert!(cases.is_empty() || cases.len() >= 23, "{} cases", cases.len());
}

#[test]
fn a_sample_gives_a_row_with_what_its_header_says() {
    let decoded = decode(&datagram(1, &[sample(1, &[header(1, &frame())])]));
    assert_eq!(decoded.result, Ok(0));
    let [row] = &decoded.flows[..] else { panic!("{:?}", decoded.flows) };
    has(
        row,
        json!({
            "received_at": RECEIVED_US, "start_time": RECEIVED_US, "end_time": RECEIVED_US,
            "time_source": "received", "exporter_addr": "10.0.0.1", "agent_addr": "10.0.0.1",
            "sender_addr": "192.0.2.10", "observation_domain": 3, "proto_ver": "sflow5",
            "src_addr": "10.1.1.1", "dst_addr": "10.2.2.2", "src_port": 1234, "dst_port": 443,
            "ip_protocol": 6, "tcp_flags": 0x18, "tos": 0xb8, "ip_ttl": 64, "bytes": 1518, "packets": 1,
            "ip_bytes": 1500, "sampling_rate": 1000.0, "sampling_source": "record", "in_if": 7, "out_if": 8,
            "direction": 0, "src_mac": "02:00:00:00:00:01", "dst_mac": "02:00:00:00:00:02",
            "ether_type": 0x800, "frame_truncated": null, "extra": null, "sampling_effective": null,
        }),
    );
}
