//! The two agree where they should, and a difference does not go unseen.

use weir_schemas::Table;

use super::*;
use crate::decode::testing::{corpus, meta};
use crate::decode::tests::hostile;
use crate::generate::{Generator, GeneratorConfig};

const SENDER: &str = "192.0.2.1";

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn ipfix(sets: &[Vec<u8>]) -> Vec<u8> {
    let sets = sets.concat();
    let mut message = words(&[10, u16::try_from(16 + sets.len()).unwrap(), 0x6553, 0xf100, 0, 1, 0, 7]);
    message.extend(sets);
    message
}

fn set(id: u16, content: &[u8]) -> Vec<u8> {
    let mut set = words(&[id, u16::try_from(4 + content.len()).unwrap()]);
    set.extend(content);
    set
}

fn both() -> SecondOpinion {
    SecondOpinion::new(&DecodeConfig::default()).unwrap()
}

/// What is said of the last of these datagrams, which come from one exporter.
fn last(datagrams: &[Vec<u8>]) -> Comparison {
    let mut both = both();
    let mut last = Comparison::default();
    for datagram in datagrams {
        last = both.compare(datagram, &meta(SENDER));
    }
    last
}

#[test]
fn generated_datagrams_decode_alike() {
    let config = GeneratorConfig { flows: 4_000, ..GeneratorConfig::default() };
    let mut generator = Generator::new(&config);
    let (mut both, mut buffer) = (both(), Vec::new());
    let (mut records, mut values, mut covered) = (0, 0, 0);
    while let Some(info) = generator.next(1_700_000_000_000_000, &mut buffer) {
        let sender = generator.exporter_addr(info.exporter).unwrap().to_string();
        let found = both.compare(&buffer, &meta(&sender));
        assert_eq!(found.differences, [], "{found:?}");
        if found.not_covered.is_none() {
            covered += 1;
            assert_eq!(found.records_weir, found.records_netflow_parser);
            assert!(found.records_weir == 0 || found.values > found.records_weir);
        }
        (records, values) = (records + found.records_weir, values + found.values);
    }
    assert!(records > 2_000 && values > 10 * records && covered > 100, "{records} {values} {covered}");
}

#[test]
fn the_corpus_has_no_difference_without_an_explanation() {
    let mut unexplained = Vec::new();
    for case in corpus("") {
        let mut both = both();
        for (number, (datagram, received_us)) in case.datagrams.iter().zip(&case.received_us).enumerate() {
            let meta = DatagramMeta { received_us: *received_us, ..meta(SENDER) };
            let found = both.compare(datagram, &meta);
            let without = found.differences.iter().filter(|difference| difference.explanation.is_none());
            unexplained.extend(without.map(|one| format!("{} datagram {}: {one:?}", case.name, number + 1)));
        }
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

/// A v5 datagram of one flow.
fn v5(octets: u32) -> Vec<u8> {
    let mut datagram = words(&[5, 1, 0, 1000, 0x6553, 0xf100, 0, 0, 0, 9, 0, 0]);
    let mut record = vec![0; 48];
    record[20..24].copy_from_slice(&octets.to_be_bytes());
    datagram.extend(record);
    datagram
}

#[test]
fn a_different_value_is_found() {
    // weir's rows of one datagram, netflow_parser's record of another
    let mut ours = both();
    ours.decoder.trace();
    ours.decoder.decode(&v5(1_000), &meta(SENDER), &mut ours.batches);
    let rows = Rows::take(&mut ours.batches, ours.decoder.trace());
    let (sets, _) = ours.parse(&v5(1_001), &meta(SENDER));
    let header = Header { export_us: 1_700_000_000_000_000, uptime_ms: Some(1_000), received_us: 0 };
    let place = Place { set: 1, template: None, header, start: 0 };
    let outcome = SetOutcome { records: 1, rows: 1, truncated: false };
    let mut found = Comparison::default();
    let records = sets[0].records.as_ref().unwrap();
    compare_set(fixed::plan(5), &v5(1_000)[24..], outcome, records, &rows, place, &mut found);
    assert_eq!(found.unexplained, 1);
    let difference = &found.differences[0];
    assert_eq!((difference.column.as_str(), difference.what.as_str()), ("bytes", "d_octets"));
    assert_eq!((difference.weir.as_str(), difference.netflow_parser.as_str()), ("1000", "1001"));
    // one record more
    let outcome = SetOutcome { records: 0, rows: 0, truncated: false };
    let plan = fixed::plan(5);
    let both = both();
    let empty = words(&[10, 16, 0, 0, 0, 0, 0, 0]);
    let message = message::ipfix(&empty).unwrap();
    let walk = Walk { sets: Vec::new(), replayed: Vec::new(), all: &sets, gave_up: None };
    let scope = (meta(SENDER).sender, 1, 0, 0);
    let meta = meta(SENDER);
    let sides =
        Sides { memory: &both.memory, scope, message: &message, walk: &walk, rows: &rows, meta: &meta };
    let mut found = Comparison::default();
    sides.one(plan, &v5(1)[24..], outcome, sets.first(), place, None, &mut found);
    assert_eq!((found.unexplained, found.differences[0].what.as_str()), (1, "records"));
}

#[test]
fn known_differences_are_explained() {
    let template = set(2, &words(&[256, 1, 8, 4]));
    let data = set(256, &[10, 0, 0, 1]);
    let v5_of = |count: u16, records: usize| {
        let mut datagram = words(&[5, count, 0, 1000, 0x6553, 0xf100, 0, 0, 0, 9, 0, 0]);
        datagram.extend(vec![0; 48 * records]);
        datagram
    };
    for (datagrams, want) in [
        (vec![v5_of(31, 31)], Explanation::RecordLimit),
        (vec![v5_of(3, 2)], Explanation::ShortOfCount),
        (vec![v5_of(0, 0)], Explanation::NoRecords),
        (
            vec![
                ipfix(std::slice::from_ref(&template)),
                ipfix(&[set(2, &words(&[256, 0]))]),
                ipfix(std::slice::from_ref(&data)),
            ],
            Explanation::WithdrawalFollowed,
        ),
        (
            vec![ipfix(&[set(2, &words(&[256, 2, 8, 4, 82, 0]))]), ipfix(std::slice::from_ref(&data))],
            Explanation::ZeroLengthField,
        ),
        (
            vec![ipfix(&[set(3, &words(&[256, 1, 1, 149, 4]))]), ipfix(&[set(256, &[0, 0, 0, 1])])],
            Explanation::OnlyScopes,
        ),
        (
            vec![ipfix(&[set(2, &words(&[256, 1, 82, 0xffff])), set(256, &[1, b'a', 0, 1, b'b'])])],
            Explanation::EmptyVariable,
        ),
        (
            vec![ipfix(&[set(2, &words(&[256, 1, 82, 2])), set(256, b"\x07a")])],
            Explanation::ControlCharacters,
        ),
        (vec![ipfix(&[set(1, &words(&[300, 1, 6])), template, data])], Explanation::V9InIpfix),
    ] {
        let found = last(&datagrams);
        let explanations: Vec<_> =
            found.differences.iter().map(|difference| difference.explanation).collect();
        assert!(explanations.contains(&Some(want)), "{want:?}: {:#?}", found.differences);
        assert_eq!(found.unexplained, 0, "{want:?}: {:#?}", found.differences);
    }
}

#[test]
fn data_before_its_template_is_compared_when_both_decode_it() {
    let template = set(2, &words(&[256, 1, 8, 4]));
    let data = set(256, &[10, 0, 0, 1, 10, 0, 0, 2]);
    let found = last(&[ipfix(std::slice::from_ref(&data)), ipfix(std::slice::from_ref(&template))]);
    assert_eq!(found.differences, []);
    assert_eq!((found.records_weir, found.records_netflow_parser, found.values), (2, 2, 2));
    let found = last(&[ipfix(&[data, template])]);
    assert_eq!(found.differences, []);
    assert_eq!((found.records_weir, found.values), (2, 2));
}

#[test]
fn every_explanation_is_documented() {
    let docs = include_str!("../../../docs/decode.md");
    for explanation in Explanation::ALL {
        assert!(docs.contains(explanation.text()), "{explanation:?} is not in docs/decode.md");
    }
}

#[test]
fn what_has_no_second_opinion_says_so() {
    for (datagram, why) in [
        (words(&[0, 5, 0, 1, 0x0a00, 1, 0, 0, 0, 1, 0, 5, 0, 0]), "sFlow"),
        (words(&[1, 1]), "NetFlow v1"),
        (words(&[8, 1]), "NetFlow v8"),
        (words(&[3, 1]), "a version"),
    ] {
        let found = last(&[datagram]);
        assert!(found.not_covered.unwrap().starts_with(why), "{found:?}");
        assert_eq!((found.values, found.unexplained), (0, 0));
    }
}

/// What costs most, and what is cut or changed anywhere, is compared to its end: no panic, bounded lists, and every
/// record that weir has is counted.
#[test]
fn hostile_datagrams_are_compared() {
    let compare = |name: &str, both: &mut SecondOpinion, datagram: &[u8]| {
        let found = both.compare(datagram, &meta(SENDER));
        assert!(found.differences.len() <= MAX_DIFFERENCES, "{name}");
        let rows: u32 =
            found.outcome.rows[Table::Flows as usize] + found.outcome.rows[Table::Options as usize];
        assert!(found.records_weir <= u64::from(rows), "{name}: {} {rows}", found.records_weir);
        found
    };
    let mut unexplained = Vec::new();
    for (name, first, datagrams) in hostile::costly() {
        let mut both = both();
        for datagram in first.iter().chain(&datagrams) {
            let found = compare(name, &mut both, datagram);
            let without = found.differences.iter().filter(|difference| difference.explanation.is_none());
            unexplained.extend(without.take(1).map(|one| format!("{name}: {one:?}")));
        }
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
    for (number, sample) in hostile::samples().iter().enumerate() {
        let name = format!("sample {number}");
        for end in 0..sample.len() {
            compare(&name, &mut both(), &sample[..end]);
            for value in [0, 1, 0xff, sample[end] ^ 0x80] {
                let mut changed = sample.clone();
                changed[end] = value;
                compare(&name, &mut both(), &changed);
            }
        }
    }
}
