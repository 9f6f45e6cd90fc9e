mod alike;
mod hostile;
mod properties;

use serde_json::{Map, Value, json};

use super::*;
use crate::decode::IdentitySource;
use crate::decode::testing::{RECEIVED_US, corpus, differences, meta, rows, xorshift};

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

/// A datagram by itself.
fn decode_one(
    datagram: &[u8],
    meta: &DatagramMeta,
    exporters: &mut Exporters,
    config: &DecodeConfig,
    out: &mut Batches,
) -> Result<u32, RejectReason> {
    let mut waiting = Waiting::default();
    let rejected = super::decode(datagram, meta, exporters, config, &mut waiting, out);
    plain::flush(&mut waiting, &mut out.flows);
    rejected
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
    hosts: Vec<Map<String, Value>>,
    queues: Vec<Map<String, Value>>,
}

#[derive(Default)]
struct Decoder {
    exporters: Exporters,
    config: DecodeConfig,
}

impl Decoder {
    fn decode(&mut self, datagram: &[u8]) -> Decoded {
        let mut out = Batches::new();
        let result = decode_one(datagram, &meta("192.0.2.10"), &mut self.exporters, &self.config, &mut out);
        let [flows, discards, counters] =
            [&mut out.flows, &mut out.discards, &mut out.interface_counters].map(rows);
        let [hosts, queues] = [&mut out.host_counters, &mut out.queue_counters].map(rows);
        Decoded { result, flows, discards, counters, hosts, queues }
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
            let _ = decode_one(datagram, &meta("192.0.2.10"), &mut exporters, &config, &mut out);
        }
        let counters: u64 = exporters.iter().map(|state| state.counters.counter_samples).sum();
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

/// `cargo test --release -p weir-collector nanoseconds -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn nanoseconds_per_sample() {
    let mut frame = frame();
    frame.resize(128, 0);
    let switch = || record(1001, Words::of(&[100, 0, 200, 0]));
    let router = || record(1002, Words::of(&[1, 0x0a00_0002, 24, 16]));
    for (name, records) in [
        ("header", vec![header(1, &frame)]),
        ("header, switch", vec![header(1, &frame), switch()]),
        ("header, switch, router", vec![switch(), router(), header(1, &frame)]),
    ] {
        let samples: Vec<Words> = (1..=7).map(|number| sample(number, &records)).collect();
        let datagrams: Vec<Vec<u8>> = (1..=1_000_u32).map(|n| datagram(n, &samples)).collect();
        let (mut exporters, config, mut out) = (Exporters::new(), DecodeConfig::default(), Batches::new());
        let mut best = [f64::MAX; 2];
        for _ in 0..30 {
            let start = std::time::Instant::now();
            for datagram in &datagrams {
                decode_one(datagram, &meta_v4(), &mut exporters, &config, &mut out).unwrap();
            }
            let decoded = start.elapsed();
            let n = out.flows.rows();
            let batch = out.flows.finish().unwrap();
            let all = start.elapsed();
            assert_eq!((n, batch.num_rows()), (7_000, 7_000));
            for (best, time) in best.iter_mut().zip([decoded, all]) {
                *best = best.min(time.as_nanos() as f64 / n as f64);
            }
        }
        eprintln!("{name}: {:.0} ns a sample, {:.0} with the batch closed", best[0], best[1]);
    }
}

fn meta_v4() -> DatagramMeta {
    let sender = Address::v4([10, 0, 0, 1]);
    DatagramMeta { sender, sender_port: 1, local_port: 6343, received_us: RECEIVED_US }
}

#[test]
fn headers_that_are_none_are_rejected_as_such() {
    let whole = datagram(1, &[]);
    for end in 0..whole.len() {
        assert_eq!(decode(&whole[..end]).result, Err(RejectReason::TooShort), "{end} bytes");
    }
    assert_eq!(decode(&whole).result, Ok(0));
    for (version, reason) in
        [(2, RejectReason::OldSflow), (4, RejectReason::OldSflow), (6, RejectReason::UnknownVersion)]
    {
        let mut datagram = whole.clone();
        datagram[3] = version;
        assert_eq!(decode(&datagram).result, Err(reason));
    }
    let mut datagram = whole;
    datagram[7] = 3;
    assert_eq!(decode(&datagram).result, Err(RejectReason::BadAgent));
}

#[test]
fn rule_35_the_agent_is_the_exporter_unless_it_is_unspecified() {
    let one = sample(1, &[header(1, &frame())]);
    for (agent, exporter, sender) in [
        (Words::of(&[1, AGENT]), "10.0.0.1", json!("192.0.2.10")),
        (Words::of(&[2, 0x2001_0db8, 0, 0, 5]), "2001:db8::5", json!("192.0.2.10")),
        (Words::of(&[1, 0]), "192.0.2.10", Value::Null),
        (Words::of(&[2, 0, 0, 0, 0]), "192.0.2.10", Value::Null),
        (Words::of(&[0]), "192.0.2.10", Value::Null),
    ] {
        let datagram = Words::of(&[5]).bytes(&agent.0).and(&[3, 1, 90_000, 1]).bytes(&one.0).0;
        let row = decode(&datagram).flows.remove(0);
        let agent = if sender.is_null() { Value::Null } else { json!(exporter) };
        has(&row, json!({"exporter_addr": exporter, "sender_addr": sender, "agent_addr": agent}));
    }
    let config = DecodeConfig { identity: vec![IdentitySource::Sender], ..DecodeConfig::default() };
    let mut decoder = Decoder { config, ..Decoder::default() };
    let row = decoder.decode(&datagram(1, &[one])).flows.remove(0);
    has(&row, json!({"exporter_addr": "192.0.2.10", "sender_addr": null, "agent_addr": "10.0.0.1"}));
}

#[test]
fn rule_40_interfaces_that_are_no_interface() {
    let null = Value::Null;
    for (input, output, want) in [
        (5, 6, json!({"in_if": 5, "out_if": 6, "in_if_flag": null, "out_if_flag": null})),
        (0, 0x3fff_ffff, json!({"in_if": 0, "out_if": null, "out_if_flag": "local"})),
        (0x3fff_ffff, 6, json!({"in_if": null, "in_if_flag": "local", "out_if": 6})),
        (
            5,
            0x8000_0007,
            json!({"out_if": null, "out_if_flag": "multiple",
                                "extra": {"output_interfaces": "7"}}),
        ),
        (5, 0x8000_0000, json!({"out_if": null, "out_if_flag": "multiple", "extra": null})),
        (5, 0xc000_0001, json!({"out_if": null, "out_if_flag": null})),
        (
            5,
            0x4000_0102,
            json!({"out_if": null, "out_if_flag": "discard", "drop_reason": 258,
                                "forwarding_status": 130}),
        ),
    ] {
        let samples = [sample_with(&[1, 5, 100, 100, 0, input, output], &[header(1, &frame())])];
        has(&decode(&datagram(1, &samples)).flows.remove(0), want.clone());
        // the expanded form says the same in two words
        let pairs = [input >> 30, input & 0x3fff_ffff, output >> 30, output & 0x3fff_ffff];
        let body = Words::of(&[1, 0, 5, 100, 100, 0]).and(&pairs).and(&[1]);
        let expanded = Words::default().structure(3, &body.bytes(&header(1, &frame()).0));
        has(&decode(&datagram(1, &[expanded])).flows.remove(0), want);
    }
    // 32-bit ifIndexes
    let body = Words::of(&[1, 0, 0x8000_0005, 100, 100, 0, 0, 0x8000_0005, 0, 0x4000_0001, 1]);
    let expanded = Words::default().structure(3, &body.bytes(&header(1, &frame()).0));
    let row = decode(&datagram(1, &[expanded])).flows.remove(0);
    has(&row, json!({"in_if": 0x8000_0005_u32, "out_if": 0x4000_0001, "direction": 0, "drop_reason": null}));
    assert_eq!(row.get("out_if_flag"), None, "{null}");
}

#[test]
fn rule_36_the_direction_is_where_the_data_source_is() {
    for (source, input, output, want) in [
        (5, 5, 6, json!(0)),
        (5, 6, 5, json!(1)),
        (5, 5, 5, Value::Null),
        (5, 6, 7, Value::Null),
        (5, 0x8000_0005, 6, Value::Null),
        (0, 0, 6, Value::Null),
        // a VLAN of the same number
        (0x0100_0005, 5, 6, Value::Null),
    ] {
        let samples = [sample_with(&[1, source, 100, 100, 0, input, output], &[header(1, &frame())])];
        has(&decode(&datagram(1, &samples)).flows.remove(0), json!({"direction": want}));
    }
}

#[test]
fn rule_24_the_rate_is_the_operators_or_the_samples_or_the_default() {
    let exporter = |sampling_rate, already_scaled| ExporterConfig {
        address: "192.0.2.0/24".into(),
        sampling_rate,
        already_scaled,
        ..ExporterConfig::default()
    };
    for (exporters, default, announced, rate, source) in [
        (vec![], None, 512, json!(512.0), "record"),
        (vec![], Some(9.0), 512, json!(512.0), "record"),
        (vec![], Some(9.0), 0, json!(9.0), "configured"),
        (vec![], None, 0, Value::Null, "unknown"),
        (vec![exporter(Some(77.0), false)], Some(9.0), 512, json!(77.0), "override"),
        (vec![exporter(None, true)], None, 512, json!(1.0), "override"),
    ] {
        let config = DecodeConfig { exporters, default_sampling_rate: default, ..DecodeConfig::default() };
        let mut decoder = Decoder { config, ..Decoder::default() };
        let samples = [sample_with(&[1, 5, announced, 100, 0, 5, 6], &[header(1, &frame())])];
        let row = decoder.decode(&datagram(1, &samples)).flows.remove(0);
        has(&row, json!({"sampling_rate": rate, "sampling_source": source}));
    }
}

#[test]
fn rule_29_the_effective_rate_is_that_of_the_pool() {
    let mut decoder = Decoder::default();
    let mut last = Map::new();
    for n in 1..=50 {
        // announced 1 in 1,000, sampled 1 in 1,200; one sample in two is lost on the way
        let samples = [sample_with(&[2 * n, 5, 1_000, 2_400 * n, 0, 5, 6], &[header(1, &frame())])];
        last = decoder.decode(&datagram(n, &samples)).flows.remove(0);
    }
    has(&last, json!({"sampling_rate": 1000.0, "sampling_effective": 1200.0}));
    assert_eq!(decoder.counted().samples_lost, 49);
}

#[test]
fn rule_21_datagrams_samples_and_drops_are_counted_apart() {
    let mut decoder = Decoder::default();
    let one =
        |number, drops| sample_with(&[number, 5, 1_000, number * 1_000, drops, 5, 6], &[header(1, &frame())]);
    decoder.decode(&datagram(10, &[one(1, 3), one(2, 3)]));
    decoder.decode(&datagram(14, &[one(5, 10)]));
    decoder.decode(&datagram(12, &[one(3, 3)]));
    let counted = *decoder.counted();
    assert_eq!((counted.sequence_expected, counted.sequence_lost, counted.sequence_reordered), (5, 2, 1));
    assert_eq!((counted.samples_expected, counted.samples_lost), (5, 1));
    assert_eq!(counted.agent_drops, 7);
    assert_eq!((counted.flows, counted.datagrams), (4, 3));
}

#[test]
fn good_samples_of_a_bad_datagram_are_kept() {
    let good = sample(1, &[header(1, &frame())]);
    let unknown = Words::default().structure(1991 << 12 | 1, &Words::of(&[1, 2, 3]));
    let whole = datagram(1, &[unknown, good.clone(), good.clone()]);
    let mut decoder = Decoder::default();
    let decoded = decoder.decode(&whole);
    assert_eq!((decoded.result, decoded.flows.len()), (Ok(0), 2));
    assert_eq!(decoder.counted().records_skipped, 1);
    // stray bytes behind the last sample
    assert_eq!(decode(&[&whole[..], &[7; 13]].concat()).result, Ok(0));
    // the last sample ends after the datagram, or is not there at all
    for missing in 1..good.0.len() {
        let decoded = decode(&whole[..whole.len() - missing]);
        assert_eq!((decoded.result, decoded.flows.len()), (Ok(1), 1), "{missing}");
    }
    // nothing good at all
    let alone = datagram(1, &[good]);
    assert_eq!(decode(&alone[..alone.len() - 1]).result, Err(RejectReason::TruncatedRecord));
}

#[test]
fn lengths_that_lie_cost_a_record_or_a_sample_and_no_more() {
    let router = record(1002, Words::of(&[1, 0x0a00_0009, 24, 16]));
    // more records announced than there are
    let mut body = Words::of(&[1, 7, 100, 100, 0, 7, 8, 99]).bytes(&header(1, &frame()).0);
    let sample = |body: &Words| Words::default().structure(1, body);
    let decoded = decode(&datagram(1, &[sample(&body)]));
    assert_eq!((decoded.result, decoded.flows.len()), (Ok(1), 1));
    // a record that ends after its sample, behind a good one
    body = body.and(&[1002, 4_000, 1, 2]);
    let decoded = decode(&datagram(1, &[sample(&body)]));
    assert_eq!((decoded.result, decoded.flows.len()), (Ok(1), 1));
    // before anything about the packet is known: no row
    let body = Words::of(&[1, 7, 100, 100, 0, 7, 8, 2]).bytes(&router.0).and(&[1, 0xffff_fff0, 1, 2]);
    let decoded = decode(&datagram(1, &[sample(&body)]));
    assert_eq!((decoded.result, decoded.flows.len()), (Err(RejectReason::TruncatedRecord), 0));
    // padding behind the last record of a sample
    let body = Words::of(&[1, 7, 100, 100, 0, 7, 8, 1]).bytes(&header(1, &frame()).0).and(&[0]);
    assert_eq!(decode(&datagram(1, &[sample(&body)])).result, Ok(0));
    // a header length beyond its record is cut
    let lying = record(1, Words::of(&[1, 1_518, 4, 0xffff_ffff]).bytes(&frame()));
    let row = decode(&datagram(1, &[super::tests::sample(1, &[lying])])).flows.remove(0);
    has(&row, json!({"dst_port": 443, "bytes": 1518}));
    // the first of a format counts
    let second = record(1002, Words::of(&[1, 0x0a00_00ff, 8, 8]));
    let samples = [super::tests::sample(1, &[header(1, &frame()), router, second])];
    let row = decode(&datagram(1, &samples)).flows.remove(0);
    has(&row, json!({"next_hop": "10.0.0.9", "src_mask": 24, "dst_mask": 16}));
}

/// The row of a sample with these records beside its header.
fn row_of(records: &[Words]) -> Map<String, Value> {
    let records = [records, &[header(1, &frame())]].concat();
    let decoded = decode(&datagram(1, &[sample(1, &records)]));
    assert_eq!(decoded.result, Ok(0));
    decoded.flows.into_iter().next().unwrap()
}

#[test]
fn switch_and_router_records() {
    let row = row_of(&[record(1001, Words::of(&[100, 5, 200, 0])), record(1002, Words::of(&[1, 7, 24, 16]))]);
    has(
        &row,
        json!({"src_vlan": 100, "src_priority": 5, "dst_vlan": 200, "dst_priority": 0,
               "next_hop": "0.0.0.7", "src_mask": 24, "dst_mask": 16}),
    );
    let unknown =
        [record(1001, Words::of(&[u32::MAX, u32::MAX, 200, 0])), record(1002, Words::of(&[0, 0, 0]))];
    has(
        &row_of(&unknown),
        json!({"src_vlan": null, "src_priority": null, "dst_vlan": 200, "next_hop": null, "dst_mask": 0}),
    );
    let ipv6 = record(1002, Words::of(&[2, 0x2001_0db8, 0, 0, 1, 48, 64]));
    has(&row_of(&[ipv6]), json!({"next_hop": "2001:db8::1", "src_mask": 48, "dst_mask": 64}));
}

#[test]
fn gateway_records() {
    let gateway = Words::of(&[1, 0x0a00_0009, 65_000, 65_001, 65_002])
        .and(&[3, 2, 2, 64_500, 64_501, 2, 1, 64_502, 1, 2, 64_510, 64_511])
        .and(&[2, 0xfde8_0001, 0xfde8_0002, 150]);
    has(
        &row_of(&[record(1003, gateway.clone())]),
        json!({
            "bgp_next_hop": "10.0.0.9", "src_as": 65_001, "prev_as": 65_002, "next_as": 64_500,
            "dst_as": 64_502, "as_path": [64_500, 64_501, 64_502, 64_510, 64_511],
            "communities": [0xfde8_0001_u32, 0xfde8_0002_u32], "local_pref": 150,
            "extra": {"gateway_as": "65000"},
        }),
    );
    // an empty path: the destination is our own, which nobody says
    let local = Words::of(&[1, 0, 0, 0, 0, 0, 0, 0]);
    has(
        &row_of(&[record(1003, local)]),
        json!({"bgp_next_hop": "0.0.0.0", "src_as": null, "dst_as": null, "as_path": null,
               "communities": null, "local_pref": 0, "extra": null}),
    );
    // truncated at every byte: the sample keeps its header and nothing of the record
    for end in 0..gateway.0.len() {
        let cut = record(1003, Words(gateway.0[..end].to_vec()));
        let decoded = decode(&datagram(1, &[sample(1, &[cut, header(1, &frame())])]));
        assert_eq!(decoded.result, Ok(1), "{end}");
        has(&decoded.flows[0], json!({"as_path": null, "src_as": null, "dst_port": 443}));
    }
    // counts that lie: 2^32 - 1 segments, AS numbers and communities
    for words in [
        vec![1, 9, 1, 2, 3, u32::MAX, 2, 1, 5],
        vec![1, 9, 1, 2, 3, 1, 2, u32::MAX, 5],
        vec![1, 9, 1, 2, 3, 0, 0x4000_0000, 5],
    ] {
        let decoded =
            decode(&datagram(1, &[sample(1, &[record(1003, Words::of(&words)), header(1, &frame())])]));
        assert_eq!((decoded.result, decoded.flows.len()), (Ok(1), 1));
    }
}

#[test]
fn user_url_and_nat_records() {
    let user = Words::of(&[106]).opaque("zoë".as_bytes()).and(&[0]).opaque(b"");
    let url = Words::of(&[2]).opaque(b"/a?b").opaque(b"example.net");
    let nat = Words::of(&[1, 0x0a09_0909, 2, 0x2001_0db8, 0, 0, 2]);
    has(
        &row_of(&[
            record(1004, user),
            record(1005, url),
            record(1007, nat),
            record(1020, Words::of(&[4_000, 5_000])),
        ]),
        json!({
            "user_name": "zoë", "http_url": "/a?b", "http_host": "example.net",
            "nat_src_addr": "10.9.9.9", "nat_dst_addr": "2001:db8::2",
            "nat_src_port": 4_000, "nat_dst_port": 5_000, "extra": {"url_direction": "2"},
        }),
    );
    // not UTF-8: kept, lossy
    let user = Words::of(&[4]).opaque(b"\xff\xfeb").and(&[0]).opaque(b"dst");
    has(
        &row_of(&[record(1004, user)]),
        json!({"user_name": "\u{fffd}\u{fffd}b", "extra": {"dst_user": "dst", "src_charset": "4"}}),
    );
}

#[test]
fn mpls_records_and_their_kin_go_to_columns_and_extra() {
    let row = row_of(&[
        record(1006, Words::of(&[1, 0x0a00_0005, 2, 16 << 12 | 0x0aff, 300_012 << 12 | 0x01ff, 1, 17 << 12])),
        record(1008, Words::default().opaque(b"lsp1").and(&[4, 5])),
        record(1009, Words::default().opaque(b"vc").and(&[6, 7])),
        record(1010, Words::default().opaque(b"ftn").and(&[8])),
        record(1011, Words::of(&[24])),
        record(1012, Words::of(&[2, 0x88a8_0064, 0x8100_a005])),
    ]);
    has(
        &row,
        json!({
            "next_hop": "10.0.0.5", "mpls_labels": [16, 300_012], "mpls_exp": [5, 0],
            "extra": {
                "mpls_out_labels": "17", "mpls_tunnel.lsp_name": "lsp1", "mpls_tunnel.id": "4",
                "mpls_tunnel.cos": "5", "mpls_vc.instance_name": "vc", "mpls_vc.vll_vc_id": "6",
                "mpls_vc.label_cos": "7", "mplsFTNDescr": "ftn", "mplsFTNMask": "8",
                "mplsFecAddrPrefixLength": "24", "vlan_tunnel": "0x88a8:100,0x8100:5",
            },
        }),
    );
}

#[test]
fn tunnels_that_end_here_are_told_from_the_sampled_packet() {
    let outer = Words::of(&[140, 17, 0xc000_0201, 0xc000_0202, 50_000, 4789, 0, 0xb8]);
    let row = row_of(&[
        record(1024, outer),
        record(1030, Words::of(&[5_001])),
        record(1029, Words::of(&[5_002])),
        record(1028, Words::of(&[50])),
        record(1021, Words::of(&[100, 0x0200_0000, 0x0001_0000, 0x0200_0000, 0x0002_0000, 0x800])),
    ]);
    has(
        &row,
        json!({
            "src_addr": "10.1.1.1", "vni": 5_001, "tunnel": null,
            "extra": {
                "tunnel_ingress": "src_addr=192.0.2.1 dst_addr=192.0.2.2 ip_protocol=17 src_port=50000 \
                                   dst_port=4789 tos=184 bytes=140",
                "vni_egress": "5002", "decapsulate_ingress.inner_header_offset": "50",
                "l2_tunnel_egress": "src_mac=02:00:00:00:00:01 dst_mac=02:00:00:00:00:02 \
                                     ether_type=0x0800 bytes=100",
            },
        }),
    );
}

#[test]
fn records_of_hosts_and_queues() {
    let row = row_of(&[
        record(1036, Words::of(&[3])),
        record(1039, Words::of(&[1_500])),
        record(1040, Words::of(&[u32::MAX])),
        record(1037, Words::of(&[100]).opaque(b"edge-in").and(&[1])),
        record(2100, Words::of(&[6, 0x7f00_0001, 0x0a00_0001, 80, 5_000])),
        record(2209, Words::of(&[1, 1448, 536, 2, 3, 4, 1500, 25_000, 900, 10, 3, 20_000])),
    ]);
    has(&row, json!({"rtt_us": 25_000, "lost_packets": 3, "retransmits": 4}));
    let extra = row["extra"].as_object().unwrap();
    has(
        extra,
        json!({"egress_queue": "3", "transit_delay_ns": "1500", "queue_depth_bytes": null,
               "acl.name": "edge-in", "socket.local_ip": "127.0.0.1", "tcp_info.min_rtt": "20000"}),
    );
}

#[test]
fn rule_51_unknown_records_are_kept_as_bytes_and_counted() {
    let records = [
        header(1, &frame()),
        record(4413 << 12 | 77, Words::of(&[0xdead_beef])),
        record(1014, Words::of(&[1, 2])),
        record(900, Words(vec![7; 5_000])),
    ];
    let mut decoder = Decoder::default();
    let decoded = decoder.decode(&datagram(1, &[sample(1, &records)]));
    assert_eq!(decoded.result, Ok(0));
    let extra = decoded.flows[0]["extra"].as_object().unwrap();
    has(extra, json!({"4413:77": "deadbeef", "0:1014": "0000000100000002"}));
    assert_eq!(extra["0:900"].as_str().unwrap().len(), 2 * records::MAX_UNKNOWN_BYTES);
    assert_eq!(decoder.counted().records_skipped, 3);
}

#[test]
fn sampled_ethernet_and_ip_records_without_a_header() {
    let ethernet = record(2, Words::of(&[64, 0x0200_0000, 0x0001_0000, 0x0200_0000, 0x0002_0000, 0x800]));
    let ipv4 = record(3, Words::of(&[50, 6, 0x0a01_0101, 0x0a02_0202, 1234, 443, 0x12, 0x28]));
    let ipv6 = record(4, Words::of(&[70, 58, 0x2001_0db8, 0, 0, 1, 0x2001_0db8, 0, 0, 2, 128, 0, 0, 0]));
    let rows = |records: &[Words]| decode(&datagram(1, &[sample(1, records)])).flows.remove(0);
    has(
        &rows(&[ipv4.clone(), ethernet]),
        json!({"bytes": 64, "ip_bytes": 50, "src_mac": "02:00:00:00:00:01", "ether_type": 0x800,
               "src_addr": "10.1.1.1", "dst_port": 443, "tcp_flags": 0x12, "tos": 0x28}),
    );
    has(
        &rows(&[ipv6]),
        json!({"bytes": 70, "ip_bytes": 70, "src_addr": "2001:db8::1", "ip_protocol": 58,
               "src_port": null, "tcp_flags": null}),
    );
    // the header knows more: half of one and half of the other would be neither
    has(&row_of(&[ipv4]), json!({"bytes": 1518, "ip_bytes": 1500, "src_port": 1234, "tcp_flags": 0x18}));
}

#[test]
fn other_links_than_ethernet() {
    let ip = &frame()[14..];
    for (protocol, bytes) in [
        (11, ip.to_vec()),
        (7, [&[0xff, 3, 0, 0x21], ip].concat()),
        (14, [&[0, 0x21], ip].concat()),
        (13, [&[0, 1, 1, 255], ip].concat()),
    ] {
        let row = decode(&datagram(1, &[sample(1, &[header(protocol, &bytes)])])).flows.remove(0);
        has(&row, json!({"src_addr": "10.1.1.1", "dst_port": 443, "src_mac": null, "bytes": 1518}));
    }
    // a link that we do not know: its length counts all the same
    let mut decoder = Decoder::default();
    let row = decoder.decode(&datagram(1, &[sample(1, &[header(15, ip)])])).flows.remove(0);
    has(&row, json!({"bytes": 1518, "src_addr": null}));
    assert_eq!(decoder.counted().records_skipped, 1);
}

#[test]
fn rule_41_discarded_packets_are_rows_of_their_own() {
    let body = Words::of(&[9, 0, 7, 2, 7, 0, 258, 2])
        .bytes(&header(1, &frame()).0)
        .bytes(&record(1041, Words::default().opaque(b"acl_drops").opaque(b"ingress_flow")).0);
    let mut decoder = Decoder::default();
    let decoded = decoder.decode(&datagram(1, &[Words::default().structure(5, &body)]));
    assert_eq!((decoded.result, decoded.flows.len()), (Ok(0), 0));
    has(
        &decoded.discards[0],
        json!({
            "exporter_addr": "10.0.0.1", "received_at": RECEIVED_US, "drop_reason": 258,
            "forwarding_status": 130, "in_if": 7, "out_if": 0, "direction": 0, "packets": 1, "bytes": 1518,
            "src_addr": "10.1.1.1", "dst_port": 443, "sampling_rate": null,
            "extra": {"hw_trap.group": "acl_drops", "hw_trap.trap": "ingress_flow"},
        }),
    );
    assert_eq!(decoder.counted().flows, 0);
}

const GENERIC: [u32; 22] =
    [5, 6, 2, 0x540b_e400, 1, 3, 1, 2, 11, 12, 13, 14, 15, 16, 3, 4, 21, 22, 23, 24, 25, 2];

fn counter_sample(source: u32, records: &[Words]) -> Words {
    let head = Words::of(&[1, source]).and(&[u32::try_from(records.len()).unwrap()]);
    let body = records.iter().fold(head, |all, record| all.bytes(&record.0));
    Words::default().structure(2, &body)
}

#[test]
fn counter_samples_are_rows_of_interface_counters() {
    let ethernet: Vec<u32> = (100..113).collect();
    let samples = [counter_sample(5, &[record(2, Words::of(&ethernet)), record(1, Words::of(&GENERIC))])];
    let mut decoder = Decoder::default();
    let decoded = decoder.decode(&datagram(1, &samples));
    assert_eq!(decoded.result, Ok(0));
    has(
        &decoded.counters[0],
        json!({
            "received_at": RECEIVED_US, "exporter_addr": "10.0.0.1", "observation_domain": 3,
            "proto_ver": "sflow5", "uptime_ms": 90_000, "if_index": 5, "if_type": 6,
            "if_speed": 10_000_000_000_u64, "if_direction": 1, "if_admin_up": true, "if_oper_up": true,
            "in_octets": 0x1_0000_0002_u64, "in_unicast_packets": 11, "in_multicast_packets": 12,
            "in_broadcast_packets": 13, "in_discards": 14, "in_errors": 15, "in_unknown_protos": 16,
            "out_octets": 0x3_0000_0004_u64, "out_unicast_packets": 21, "out_multicast_packets": 22,
            "out_broadcast_packets": 23, "out_discards": 24, "out_errors": 25, "promiscuous": false,
        }),
    );
    let extra = decoded.counters[0]["extra"].as_object().unwrap();
    has(extra, json!({"dot3StatsAlignmentErrors": "100", "dot3StatsSymbolErrors": "112"}));
    assert_eq!(decoder.counted().counter_samples, 1);
}

#[test]
fn rule_42_all_ones_is_no_value() {
    let mut generic = GENERIC;
    generic[2..22].fill(u32::MAX);
    let samples =
        [counter_sample(5, &[record(1, Words::of(&generic)), record(5, Words::of(&[u32::MAX; 7]))])];
    let row = decode(&datagram(1, &samples)).counters.remove(0);
    let kept: Vec<_> = row.keys().map(String::as_str).collect();
    let mut want = [
        "received_at",
        "exporter_addr",
        "observation_domain",
        "proto_ver",
        "if_index",
        "if_type",
        "uptime_ms",
    ];
    want.sort_unstable();
    assert_eq!(kept, want);
}

#[test]
fn host_counters_are_rows_of_their_own() {
    let host = Words::default().opaque(b"box").bytes(&[0x11; 16]).and(&[3, 2]).opaque(b"6.1");
    let adapters = Words::of(&[2, 1, 1, 0x0200_0000, 0x0001_0000, 2, 0]);
    // a processor without fifteen minutes of load, of an old agent that ends there
    let cpu = Words::of(&[0x3f80_0000, 0x3f00_0000, 0xbf80_0000, 2, u32::MAX, 4]);
    let disk = Words::of(&[0, 1_000, 0, 900, 1_234]);
    let samples = [counter_sample(
        2 << 24 | 1,
        &[
            record(2000, host),
            record(2001, adapters),
            record(2003, cpu),
            record(2005, disk),
            record(4413 << 12 | 1, Words::of(&[1])),
        ],
    )];
    let mut decoder = Decoder::default();
    let mut decoded = decoder.decode(&datagram(1, &samples));
    assert_eq!((decoded.result, decoded.counters.len(), decoded.queues.len()), (Ok(0), 0, 0));
    let row = decoded.hosts.remove(0);
    assert_eq!(
        Value::Object(row),
        json!({
            "received_at": RECEIVED_US, "exporter_addr": "10.0.0.1", "observation_domain": 3,
            "proto_ver": "sflow5", "uptime_ms": 90_000, "source_class": 2, "source_index": 1,
            "host_name": "box", "host_uuid": "11111111-1111-1111-1111-111111111111", "machine_type": 3,
            "os_name": 2, "os_release": "6.1", "load_one": 1.0, "load_five": 0.5, "processes_running": 2,
            "cpu_count": 4, "disk_total_bytes": 1_000, "disk_free_bytes": 900, "disk_max_used_percent": 12.34,
            "extra": {"host_adapters": "1=02:00:00:00:00:01;2=", "4413:1": "00000001"},
        })
    );
    assert_eq!((decoder.counted().records_skipped, decoder.counted().counter_samples), (1, 1));
}

#[test]
fn queue_counters_are_a_row_a_queue_beside_those_of_the_interface() {
    let queue = |index: u32| {
        let mut words = [index, 208, 1_000, 1, 2, 3, 4, 5, 6, 7, 8, 9, u32::MAX];
        words[3] += index;
        record(1003, Words::of(&words))
    };
    let lanes = Words::of(&[1, 1, 3_300, (-5_i32).cast_unsigned(), 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let samples = [counter_sample(
        5,
        &[record(1, Words::of(&GENERIC)), queue(0), queue(1), record(10, lanes), queue(7)],
    )];
    let decoded = decode(&datagram(1, &samples));
    assert_eq!((decoded.result, decoded.hosts.len()), (Ok(0), 0));
    has(&decoded.counters[0], json!({"if_index": 5, "in_discards": 14}));
    assert_eq!(
        decoded.counters[0]["extra"],
        json!({
            "sfp.module_id": "1", "sfp.total_lanes": "1", "sfp.supply_voltage_mv": "3300",
            "sfp.temperature_mc": "-5", "sfp.lanes": "1,2,3,4,5,6,7,8,9,10",
        })
    );
    let of = |name: &str| decoded.queues.iter().map(|row| row[name].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((of("queue_index"), of("if_index")), (vec![0, 1, 7], vec![5, 5, 5]));
    assert_eq!((of("length_0"), of("length_more")), (vec![1, 2, 8], vec![9, 9, 9]));
    assert!(decoded.queues.iter().all(|row| !row.contains_key("dropped_packets")));
}

#[test]
fn counter_samples_with_bad_records() {
    // half of the generic counters is no row, beside a good record it is one
    let half = record(1, Words::of(&GENERIC[..11]));
    let decoded = decode(&datagram(1, &[counter_sample(5, std::slice::from_ref(&half))]));
    assert_eq!((decoded.result, decoded.counters.len()), (Err(RejectReason::TruncatedRecord), 0));
    let decoded =
        decode(&datagram(1, &[counter_sample(5, &[half, record(5, Words::of(&[1, 0, 3, 0, 4, 0, 5]))])]));
    assert_eq!(decoded.result, Ok(1));
    has(&decoded.counters[0], json!({"if_index": 5, "in_octets": null}));
}
