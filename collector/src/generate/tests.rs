//! The generator against itself (totals, determinism) and against tshark; against our decoders in
//! `tests/` of the decoders, where they are.

use std::process::Command;

use super::*;
use crate::pcap::Writer;
use weir_schemas::Address;

const START_US: i64 = 1_700_000_000_000_000;

fn config(protocols: &[Protocol], exporters: u32, flows: u64) -> GeneratorConfig {
    GeneratorConfig {
        protocols: protocols.to_vec(),
        exporters,
        flows,
        hosts: 500,
        start_us: START_US,
        ..GeneratorConfig::default()
    }
}

/// All datagrams, one a millisecond.
fn run(config: &GeneratorConfig) -> (Vec<(DatagramInfo, Vec<u8>)>, Generator) {
    let mut generator = Generator::new(config);
    let mut buffer = Vec::new();
    let mut all = Vec::new();
    let mut now = config.start_us;
    while let Some(info) = generator.next(now, &mut buffer) {
        all.push((info, buffer.clone()));
        now += 1_000;
    }
    (all, generator)
}

#[test]
fn the_number_of_flows_is_exact_and_datagrams_fit() {
    for (protocols, exporters, flows) in [
        (&Protocol::ALL[..], 4, 1),
        (&Protocol::ALL[..], 4, 999),
        (&Protocol::ALL[..], 1, 5_000),
        (&Protocol::ALL[..], 7, 5_001),
        (&[Protocol::SFlow5][..], 3, 100),
        (&[Protocol::NetFlow9][..], 2, 60_000),
    ] {
        let (all, generator) = run(&config(protocols, exporters, flows));
        let totals = generator.totals();
        assert_eq!(Totals::sum(totals.iter().map(|(_, totals)| totals)).rows, flows);
        assert_eq!(all.iter().map(|(info, _)| u64::from(info.rows)).sum::<u64>(), flows);
        assert_eq!(totals.len(), protocols.len());
        for (info, datagram) in &all {
            assert!(datagram.len() <= 1_472, "{info:?} has {} bytes", datagram.len());
        }
        for (protocol, totals) in totals {
            let of: Vec<_> = all.iter().filter(|(info, _)| info.protocol == protocol).collect();
            assert_eq!(of.len() as u64, totals.datagrams);
            assert_eq!(of.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>(), totals.datagram_bytes);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let first = config(&Protocol::ALL, 5, 3_000);
    let (one, two) = (run(&first).0, run(&first).0);
    assert_eq!(one, two);
    let other = GeneratorConfig { seed: 2, ..first };
    assert_ne!(one, run(&other).0);
}

#[test]
fn exporters_have_addresses_of_their_own() {
    let generator = Generator::new(&config(&[Protocol::NetFlow5], 600, 1));
    let addresses: std::collections::BTreeSet<_> =
        (0..600).map(|number| generator.exporter_addr(number).unwrap()).collect();
    assert_eq!(addresses.len(), 600);
    assert!(addresses.iter().all(|addr| !matches!(addr.octets()[3], 0 | 255) && addr.octets()[0] == 127));
}

/// Reads the sums back with arithmetic of its own from fixed positions: v5 has no templates.
#[test]
fn v5_totals_are_what_the_bytes_say() {
    let (all, generator) = run(&config(&[Protocol::NetFlow5], 2, 10_000));
    let mut sums = Totals::default();
    let mut sequence = std::collections::BTreeMap::new();
    for (info, datagram) in &all {
        let word = |at: usize| u32::from_be_bytes(datagram[at..at + 4].try_into().unwrap());
        let expected = sequence.entry(info.exporter).or_insert(0);
        assert_eq!(word(16), *expected);
        *expected += info.rows;
        let rate = u32::from(u16::from_be_bytes([datagram[22], datagram[23]]) & 0x3fff);
        for record in (24..datagram.len()).step_by(48) {
            sums.add_flow(u64::from(word(record + 20)), u64::from(word(record + 16)), rate);
            assert!(word(record + 24) <= word(record + 28) && word(record + 28) <= word(4));
        }
    }
    let (_, totals) = generator.totals()[0];
    let of_header = Totals { datagrams: totals.datagrams, datagram_bytes: totals.datagram_bytes, ..sums };
    assert_eq!(totals, of_header);
}

/// What only some exporters send is decoded to what was counted, with jitter in its unit and applications by name; and what
/// all send stays what it is.
#[test]
fn extras_are_decoded_to_what_was_counted() {
    use arrow::array::{Array, AsArray, RecordBatch};
    use arrow::datatypes::UInt64Type;

    let config = GeneratorConfig { extras: true, ..config(&Protocol::ALL, 4, 20_000) };
    let (all, generator) = run(&config);
    let mut decoder = crate::decode::Decoder::new(Default::default(), Default::default());
    let mut batches = crate::decode::Batches::new();
    for (index, (info, datagram)) in all.iter().enumerate() {
        assert!(datagram.len() <= 1_472, "{info:?} has {} bytes", datagram.len());
        let meta = crate::decode::DatagramMeta {
            sender: Address::from(std::net::IpAddr::from(generator.exporter_addr(info.exporter).unwrap())),
            sender_port: 50_000,
            local_port: info.protocol.port(),
            received_us: START_US + index as i64 * 1_000,
        };
        decoder.decode(datagram, &meta, &mut batches);
    }
    let totals = Totals::sum(generator.totals().iter().map(|(_, totals)| totals));
    let (flows, events) = (batches.flows.finish().unwrap(), batches.nat_events.finish().unwrap());
    let (discards, options) = (batches.discards.finish().unwrap(), batches.options.finish().unwrap());
    let rows = |batch: &RecordBatch| batch.num_rows() as u64;
    assert_eq!(
        [rows(&flows), rows(&events), rows(&discards), rows(&options)],
        [20_000, totals.nat_events, totals.discards, totals.options_records]
    );
    assert!(totals.nat_events > 500 && totals.discards > 50, "{totals:?}");
    let number = |name: &str| flows.column_by_name(name).unwrap().as_primitive::<UInt64Type>().clone();
    let (jitter, bytes) = (number("jitter_us"), number("bytes"));
    assert_eq!(bytes.iter().flatten().sum::<u64>(), totals.bytes);
    let calls = jitter.len() - jitter.null_count();
    assert!(calls > 300, "{calls}");
    assert!(jitter.iter().flatten().all(|jitter| (300..=20_300).contains(&jitter)));
    let (rtt, lost) = (number("rtt_us"), number("lost_packets"));
    assert!(rtt.iter().flatten().all(|rtt| (8_000..=308_000).contains(&rtt)));
    assert!(lost.iter().flatten().any(|lost| lost > 0));
    let names =
        arrow::compute::cast(flows.column_by_name("app_name").unwrap(), &arrow::datatypes::DataType::Utf8);
    let names = names.unwrap();
    let found: std::collections::BTreeSet<&str> = names.as_string::<i32>().iter().flatten().collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["bittorrent", "rtp-audio", "rtp-video"]);
}

/// Wireshark's dissectors find nothing malformed, no sequence out of place, and as many records as we counted.
#[test]
fn tshark_agrees() {
    if Command::new("tshark").arg("--version").output().is_err() {
        return;
    }
    let (all, generator) = run(&config(&Protocol::ALL, 4, 2_000));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generated.pcap");
    let mut writer = Writer::new(std::fs::File::create(&path).unwrap()).unwrap();
    for (index, (info, datagram)) in all.iter().enumerate() {
        let src = Address::from(std::net::IpAddr::from(generator.exporter_addr(info.exporter).unwrap()));
        let dst = (Address::v4([192, 0, 2, 1]), info.protocol.port());
        writer.write(START_US + index as i64 * 1_000, (src, 50_000), dst, datagram).unwrap();
    }
    writer.finish().unwrap();
    let tshark = |arguments: &[&str]| {
        let mut command = Command::new("tshark");
        command.arg("-r").arg(&path).args(arguments);
        // what the sampled packets carry is zeros: their applications are not ours to get right
        for inner in [
            "dns",
            "tls",
            "mysql",
            "nbss",
            "ssh",
            "ntp",
            "http",
            "imap",
            "smtp",
            "snmp",
            "sip",
            "bgp",
            "stun",
            "bittorrent",
        ] {
            command.args(["--disable-protocol", inner]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let trouble = "_ws.malformed || _ws.expert.severity >= 6291456 || cflow.sequence_analysis.expected_sn";
    assert_eq!(
        tshark(&["-Y", trouble, "-T", "fields", "-e", "frame.protocols", "-e", "_ws.expert.message"]),
        ""
    );
    let totals: std::collections::BTreeMap<_, _> = generator.totals().into_iter().collect();
    let values = |filter: &str, field: &str| {
        let text = tshark(&["-Y", filter, "-T", "fields", "-E", "aggregator=;", "-e", field]);
        text.split([';', '\n'])
            .filter(|value| !value.is_empty())
            .map(|value| value.parse().unwrap())
            .collect::<Vec<u64>>()
    };
    for (protocol, filter) in [
        (Protocol::NetFlow5, "cflow.version == 5"),
        (Protocol::NetFlow9, "cflow.version == 9"),
        (Protocol::Ipfix, "cflow.version == 10"),
    ] {
        let bytes = values(filter, "cflow.octets");
        assert_eq!(bytes.len() as u64, totals[&protocol].rows, "{protocol:?}");
        assert_eq!(bytes.iter().sum::<u64>(), totals[&protocol].bytes, "{protocol:?}");
        assert_eq!(values(filter, "cflow.packets").iter().sum::<u64>(), totals[&protocol].packets);
    }
    let lengths = values("sflow", "sflow_245.header.frame_length");
    assert_eq!(lengths.len() as u64, totals[&Protocol::SFlow5].rows);
    assert_eq!(lengths.iter().sum::<u64>(), totals[&Protocol::SFlow5].bytes);
}
