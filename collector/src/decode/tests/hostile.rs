//! What an attacker, or a broken exporter, may send: nothing panics, nothing grows without bound, nothing costs much.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::decode::rows as counts;

fn decode_all(decoder: &mut Decoder, out: &mut Batches, datagrams: &[Vec<u8>]) {
    for datagram in datagrams {
        let before = counts(out);
        let outcome = decoder.decode(datagram, &sender(1), out);
        assert_ne!(outcome.rejected, Some(RejectReason::DecoderPanic), "{datagram:02x?}");
        assert_told(&outcome, before, out);
    }
    for builder in out.all_mut() {
        builder.finish();
    }
}

/// What was appended is what the outcome says.
fn assert_told(outcome: &Outcome, before: [usize; Table::ALL.len()], out: &mut Batches) {
    for ((told, before), after) in outcome.rows.iter().zip(before).zip(counts(out)) {
        assert_eq!(*told as usize, after - before, "{outcome:?}");
    }
}

/// An exporter that makes room for another has a last row of statistics: it is counted like any other.
#[test]
fn the_last_statistics_of_an_exporter_are_in_the_ledger() {
    let config = DecodeConfig { max_probation: 1, ..DecodeConfig::default() };
    let mut decoder = Decoder::new(Arc::new(config), Arc::default());
    let mut out = Batches::new();
    let mut random = generator(5);
    let datagram = v5_datagram(&mut random);
    let mut stats = 0;
    for from in [1, 1, 1, 2, 2, 3] {
        let before = counts(&mut out);
        let meta = DatagramMeta { sender: Address::v4([10, 0, 0, from]), ..sender(1) };
        let outcome = decoder.decode(&datagram, &meta, &mut out);
        assert_told(&outcome, before, &mut out);
        stats += outcome.rows[Table::ExporterStats as usize];
    }
    assert_eq!(stats, 2);
    assert_eq!(decoder.counters().rows[Table::ExporterStats as usize], 2);
}

/// Valid datagrams with all kinds of sets.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let mut random = generator(5);
    let mut strings = ORDINARY.to_vec();
    strings.extend([(82, 0xffff), (291, 0xffff), (315, 0xffff), (95, 0xffff), (316, 0xffff)]);
    let record = [&ordinary_records(1, &mut random)[..], &[3], b"abc", &[7, 3, 0, 10, 0, 1, 1, 2]].concat();
    let record =
        [&record[..], &[14], &[0; 12], &[8, 0], &[4, 3, 0, 0, 9], &[8, 0, 0, 0x11, 1, 0, 0, 1, 1]].concat();
    let v9 = Builder9::v9(0).template(256, ORDINARY).options(300, 1, &[(1, 4), (34, 4), (48, 1)]);
    let ipfix =
        Builder9::ipfix(0).template(256, &strings).options(300, 1, &[(149, 4), (160, 8), (96, 0xffff)]);
    vec![
        v5_datagram(&mut random),
        v9.set(256, &ordinary_records(3, &mut random)).set(300, &[1; 18]).build(),
        ipfix.set(256, &record.repeat(2)).set(300, &[0; 13]).build(),
    ]
}

#[test]
fn truncated_at_every_byte() {
    for sample in samples() {
        let mut decoder = Decoder::new(Arc::default(), Arc::default());
        let mut out = Batches::new();
        let cut: Vec<Vec<u8>> = (0..sample.len()).map(|end| sample[..end].to_vec()).collect();
        decode_all(&mut decoder, &mut out, &cut);
        // the length of an IPFIX message made to agree, so that the sets are looked at
        if sample[..2] == [0, 10] {
            let fitted = cut.into_iter().filter(|cut| cut.len() >= 16).map(|mut cut| {
                let length = u16::try_from(cut.len()).unwrap();
                cut[2..4].copy_from_slice(&length.to_be_bytes());
                cut
            });
            decode_all(&mut decoder, &mut out, &fitted.collect::<Vec<_>>());
        }
        let counters = decoder.counters();
        assert_eq!(counters.datagrams, counters.decoded + counters.rejected.iter().sum::<u64>());
    }
}

#[test]
fn every_byte_replaced() {
    let samples = samples();
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    for sample in &samples {
        for at in 0..sample.len() {
            for value in [0, 1, 0x7f, 0xff, sample[at] ^ 0x80] {
                let mut changed = sample.clone();
                changed[at] = value;
                decode_all(&mut decoder, &mut out, &[changed]);
            }
        }
    }
}

/// The longest that one of these takes, of the best of three rounds.
fn slowest(first: &[Vec<u8>], datagrams: &[Vec<u8>]) -> (f64, usize) {
    let mut best = (f64::MAX, 0);
    // an exporter that is named is believed from the first datagram on: it may have everything
    let named = DecodeConfig { exporters: vec![ExporterConfig::default()], ..DecodeConfig::default() };
    let named = Arc::new(named);
    for _ in 0..3 {
        let mut decoder = Decoder::new(Arc::clone(&named), Arc::default());
        let mut out = Batches::new();
        for datagram in first {
            decoder.decode(datagram, &sender(1), &mut out);
        }
        let mut worst = (0.0, 0);
        for datagram in datagrams {
            let begin = Instant::now();
            let outcome = decoder.decode(datagram, &sender(1), &mut out);
            let ms = begin.elapsed().as_secs_f64() * 1_000.0;
            assert_ne!(outcome.rejected, Some(RejectReason::DecoderPanic));
            let bytes: usize = out.all_mut().into_iter().map(|builder| builder.bytes()).sum();
            out.all_mut().into_iter().for_each(|builder| drop(builder.finish()));
            worst = (f64::max(worst.0, ms), worst.1.max(bytes));
        }
        if worst.0 < best.0 {
            best = worst;
        }
    }
    best
}

/// The most that a datagram carries after an IPFIX header and a set header.
const MOST: usize = 65_507 - 20;

/// A record of basicLists inside of basicLists, as deep as its octets go.
fn nested() -> Vec<u8> {
    let mut list = vec![3, 0, 4, 0, 1, 6];
    while list.len() < 240 {
        let length = list.len() as u8;
        list = [&[3, 1, 0x23, 0xff, 0xff, length][..], &list].concat();
    }
    [&[list.len() as u8][..], &list].concat()
}

/// Options data that names so many applications.
fn applications(from: u32, count: u32) -> Vec<u8> {
    let record = |n: u32| {
        let name = format!("application {n:>12}");
        [&n.to_be_bytes()[..], name.as_bytes()].concat()
    };
    let records: Vec<u8> = (from..from + count).flat_map(record).collect();
    Builder9::ipfix(0).options(256, 1, &[(95, 4), (96, 24)]).set(256, &records).build()
}

/// Datagrams that make as much of as little as they can: a name, what is learned first, and they.
pub(crate) fn costly() -> Vec<(&'static str, Vec<Vec<u8>>, Vec<Vec<u8>>)> {
    let ipfix = || Builder9::ipfix(0);
    let fields = |id: u16, length: u16, count: u16| (0..count).map(|_| (id, length)).collect::<Vec<_>>();
    let many: Vec<(u16, u16)> = (0..1_000).map(|n| (600 + n, 1)).collect();
    let templates = |from: u16| {
        let template = |message: Builder9, id: u16| message.template(id, &fields(8, 4, 1_000));
        (from..from + 16).fold(ipfix(), template).build()
    };
    let tiny: Builder9 = (0..8_000_u16).fold(ipfix(), |message, n| message.template(256 + n, &[(8, 4)]));
    let tiny = Builder9 { sets: tiny.sets[..MOST / 12 * 12].to_vec(), ..tiny };
    vec![
        (
            "records of one octet",
            vec![ipfix().template(256, &[(4, 1)]).build()],
            vec![ipfix().set(256, &vec![1; MOST]).build()],
        ),
        (
            "unknown elements",
            vec![ipfix().template(256, &many).build()],
            vec![ipfix().set(256, &vec![1; MOST]).build()],
        ),
        (
            "unknown elements in many sets",
            vec![ipfix().template(256, &many).build()],
            vec![(0..MOST / 1_004).fold(ipfix(), |message, _| message.set(256, &[1; 1_000])).build()],
        ),
        (
            "lists of records in many sets",
            vec![ipfix().template(257, &[(4, 1)]).template(256, &[(292, 0xffff)]).build()],
            vec![
                (0..MOST / 255)
                    .fold(ipfix(), |message, _| message.set(256, &[&[250, 3, 1, 1][..], &[6; 247]].concat()))
                    .build(),
            ],
        ),
        (
            "one unknown octet",
            vec![ipfix().template(256, &[(600, 1)]).build()],
            vec![ipfix().set(256, &vec![1; MOST]).build()],
        ),
        (
            "empty strings",
            vec![ipfix().template(256, &[(82, 0xffff)]).build()],
            vec![ipfix().set(256, &vec![0; MOST]).build()],
        ),
        (
            "repeated addresses",
            vec![ipfix().template(256, &fields(8, 4, 1_000)).build()],
            vec![ipfix().set(256, &vec![1; MOST]).build()],
        ),
        ("wide templates", vec![], vec![templates(256), templates(272)]),
        ("many templates", vec![], vec![tiny.build()]),
        ("empty sets", vec![], vec![(0..MOST / 4).fold(ipfix(), |message, _| message.set(999, &[])).build()]),
        (
            "lists of records",
            vec![ipfix().template(257, &[(4, 1)]).template(256, &[(292, 0xffff)]).build()],
            vec![ipfix().set(256, &[&[250, 3, 1, 1][..], &[6; 247]].concat().repeat(MOST / 251)).build()],
        ),
        (
            "lists in lists",
            vec![ipfix().template(256, &[(291, 0xffff)]).build()],
            vec![ipfix().set(256, &nested().repeat(MOST / nested().len())).build()],
        ),
        (
            "names of applications beside a full table",
            (0..20).map(|n| applications(n * 1_000, 1_000)).collect(),
            vec![applications(0, 2_000), applications(30_000, 2_000)],
        ),
        (
            "options of one octet",
            vec![ipfix().options(256, 1, &[(600, 1)]).build()],
            vec![ipfix().set(256, &vec![1; MOST]).build()],
        ),
    ]
}

#[test]
fn a_hostile_datagram_is_bounded_in_what_it_makes() {
    for (name, first, datagrams) in costly() {
        let (_, bytes) = slowest(&first, &datagrams);
        assert!(bytes <= 4 << 20, "{name}: {bytes} bytes of columns");
    }
}

/// What is too much for one datagram is counted, and nothing of it is carried over to the next.
#[test]
fn the_room_of_a_datagram_is_its_own() {
    let many: Vec<(u16, u16)> = (0..1_000).map(|n| (600 + n, 1)).collect();
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    decoder.decode(&Builder9::ipfix(0).template(256, &many).build(), &sender(1), &mut out);
    let full = (0..60).fold(Builder9::ipfix(0), |message, _| message.set(256, &[1; 1_000]));
    let outcome = decoder.decode(&full.build(), &sender(1), &mut out);
    assert_eq!((outcome.rejected, outcome.sets_rejected, out.flows.rows()), (None, 54, 6));
    let one = Builder9::ipfix(6).set(256, &[1; 1_000]);
    let outcome = decoder.decode(&one.build(), &sender(1), &mut out);
    assert_eq!((outcome.rejected, outcome.sets_rejected, out.flows.rows()), (None, 0, 7));
}

/// Text beyond the room of a datagram is left out, and shown as such; the records are there.
#[test]
fn text_that_is_too_much_is_cut() {
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let templates = Builder9::ipfix(0).template(257, &[(4, 1)]).template(256, &[(292, 0xffff)]);
    decoder.decode(&templates.build(), &sender(1), &mut out);
    let lists = [&[250, 3, 1, 1][..], &[6; 247]].concat().repeat(200);
    decoder.decode(&Builder9::ipfix(0).set(256, &lists).build(), &sender(1), &mut out);
    let rows = rows(&mut out.flows);
    let texts: Vec<String> = rows.iter().map(|row| row["extra"]["subTemplateList"].to_string()).collect();
    assert_eq!(texts.len(), 200);
    assert!(texts[0].len() > 1_000 && texts[199] == "\"…\"", "{}", texts[199]);
    assert!(texts.iter().map(String::len).sum::<usize>() < 600 << 10);
}

#[test]
#[ignore = "a timing: run with --release -- --ignored --nocapture bench_"]
fn bench_hostile_datagrams() {
    for (name, first, datagrams) in costly() {
        let (ms, bytes) = slowest(&first, &datagrams);
        println!("{name}: {ms:.2} ms, {bytes} bytes");
    }
}

#[test]
fn rule_53_floods_of_domains_and_templates_stay_in_bounds() {
    let config = Arc::new(DecodeConfig { max_templates_total: 2_000, ..DecodeConfig::default() });
    let mut decoder = Decoder::new(Arc::clone(&config), Arc::default());
    let mut out = Batches::new();
    let good = Builder9::v9(0).template(256, ORDINARY);
    for second in 0..20 {
        let meta = DatagramMeta { received_us: sender(1).received_us + second * 1_000_000, ..sender(1) };
        decoder.decode(&Builder9 { sequence: second as u32, ..good.clone() }.build(), &meta, &mut out);
    }
    for n in 0..20_000_u32 {
        let spoofed = DatagramMeta { sender: Address::v4((0x0a00_0000 + n).to_be_bytes()), ..sender(1) };
        let message = Builder9 { domain: n, ..Builder9::v9(0) };
        decoder.decode(&message.template(256, &[(8, 4)]).set(300, &[0; 64]).build(), &spoofed, &mut out);
    }
    assert!(decoder.exporters().len() <= config.max_probation + 1);
    assert!(decoder.shared().templates() <= config.max_probation + 1, "{}", decoder.shared().templates());
    let flows = out.flows.rows();
    let mut random = generator(6);
    let data = Builder9::v9(20).set(256, &ordinary_records(2, &mut random)).build();
    decoder.decode(&data, &sender(1), &mut out);
    assert_eq!(out.flows.rows(), flows + 2, "the established exporter still decodes");
}

/// `cargo test --release -p weir-collector --lib bytes_a_template -- --ignored --nocapture --test-threads 1`
#[test]
#[ignore = "a measurement"]
fn bytes_a_template() {
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
    };
    for (what, enterprise) in [("known", 0_u16), ("unknown", 0x8000)] {
        for fields in [5_u16, 30, 300] {
            let named =
                DecodeConfig { exporters: vec![ExporterConfig::default()], ..DecodeConfig::default() };
            let mut decoder = Decoder::new(Arc::new(named), Arc::default());
            let mut out = Batches::new();
            let before = resident();
            let templates = 30_000 / fields;
            for id in 256..256 + templates.min(1_000) {
                let mut words = vec![id, fields];
                for n in 0..fields {
                    words.extend([enterprise | (1 + n), 1]);
                    words.extend([0, 4_242].iter().filter(|_| enterprise != 0));
                }
                let data = vec![0; usize::from(fields)];
                let message = Builder9::ipfix(0).set(2, &bytes(&words)).set(id, &data);
                decoder.decode(&message.build(), &sender(1), &mut out);
                out.all_mut().into_iter().for_each(|builder| drop(builder.finish()));
            }
            let (count, bytes) = (decoder.shared().templates(), decoder.shared().bytes());
            let used = resident().saturating_sub(before);
            println!("{what}, {fields} fields: {} bytes a template, {} counted", used / count, bytes / count);
        }
    }
}

/// Open vSwitch describes itself by 206 wide templates in the first millisecond, and sends data of some of them at once.
#[test]
fn rule_53_an_unproved_exporter_of_many_templates_is_decoded_at_once() {
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let wide: Vec<(u16, u16)> = (0..50).map(|n| (600 + n, 4)).chain([(8, 4)]).collect();
    for first in (256..462).step_by(5) {
        let ids = first..(first + 5).min(462);
        let message = ids.fold(Builder9::ipfix(0), |message, id| message.template(id, &wide));
        assert_eq!(decoder.decode(&message.build(), &sender(1), &mut out).rejected, None);
    }
    let record = [1; 204];
    for id in 256..462 {
        decoder.decode(&Builder9::ipfix(u32::from(id) - 256).set(id, &record).build(), &sender(1), &mut out);
    }
    assert_eq!(out.flows.rows(), 206);
}

#[test]
fn rule_53_what_unproved_exporters_hold_is_a_small_share_and_the_rest_goes_on() {
    let trusted = ExporterConfig { address: "192.0.2.1".into(), ..ExporterConfig::default() };
    let config = DecodeConfig { state_bytes: 4 << 20, exporters: vec![trusted], ..DecodeConfig::default() };
    let share = config.state_bytes / 8;
    let mut decoder = Decoder::new(Arc::new(config), Arc::default());
    let mut out = Batches::new();
    let wide: Vec<(u16, u16)> = (0..30).map(|n| (600 + n, 1)).collect();
    for n in 0..2_000_u32 {
        let spoofed = DatagramMeta { sender: Address::v4((0x0a00_0000 + n).to_be_bytes()), ..sender(1) };
        let many = (0..20).fold(Builder9::ipfix(0), |message, id| message.template(300 + id, &wide));
        decoder.decode(&many.build(), &spoofed, &mut out);
        decoder.decode(&applications(n * 100, 1_000), &spoofed, &mut out);
        out.all_mut().into_iter().for_each(|builder| drop(builder.finish()));
        assert!(decoder.shared().bytes() <= share, "{} bytes", decoder.shared().bytes());
    }
    assert!(decoder.shared().bytes() > share / 2);
    assert!(decoder.counters().sets_rejected[RejectReason::TemplateLimit.index()] > 1_000);
    // who is known learns all it has to say
    let templates = (0..200).fold(Builder9::ipfix(0), |message, id| message.template(300 + id, ORDINARY));
    let outcome = decoder.decode(&templates.build(), &sender(1), &mut out);
    assert_eq!((outcome.rejected, outcome.sets_rejected), (None, 0));
    let mut random = generator(6);
    decoder.decode(
        &Builder9::ipfix(0).set(499, &ordinary_records(2, &mut random)).build(),
        &sender(1),
        &mut out,
    );
    assert_eq!(out.flows.rows(), 2);
    // nothing is left of who was let go
    decoder.tick(sender(1).received_us + 200_000_000_000, &mut out);
    decoder.tick(sender(1).received_us + 400_000_000_000, &mut out);
    assert_eq!((decoder.shared().bytes(), decoder.shared().templates()), (0, 0));
}

/// Elements of numbers with their column and the widths that fit it.
const NUMBERS: &[(u16, &str, u16)] = &[
    (1, "bytes", 8),
    (2, "packets", 8),
    (7, "src_port", 2),
    (11, "dst_port", 2),
    (4, "ip_protocol", 1),
    (6, "tcp_flags", 2),
    (5, "tos", 1),
    (10, "in_if", 4),
    (14, "out_if", 4),
    (16, "src_as", 4),
    (17, "dst_as", 4),
    (9, "src_mask", 1),
    (234, "vrf_in", 4),
    (31, "ipv6_flow_label", 4),
    (231, "initiator_bytes", 8),
    (61, "direction", 1),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// What is encoded by a template comes out again, in any order of the fields and any width, as records of fixed and
    /// of variable length.
    #[test]
    fn encoded_records_decode_to_themselves(
        picks in proptest::collection::vec((0..NUMBERS.len(), 1..=8_u16), 1..12),
        content in proptest::collection::vec(any::<u64>(), 1..40),
        variable in any::<bool>(),
        v9 in any::<bool>(),
    ) {
        let mut fields: Vec<(u16, &str, u16)> = Vec::new();
        for (pick, width) in picks {
            let (id, name, most) = NUMBERS[pick];
            if fields.iter().all(|(known, ..)| *known != id) {
                fields.push((id, name, width.min(most)));
            }
        }
        let variable = variable && !v9;
        let mut layout: Vec<(u16, u16)> = fields.iter().map(|(id, _, width)| (*id, *width)).collect();
        if variable {
            layout.push((82, 0xffff));
        }
        let mut records = Vec::new();
        let mut want = Vec::new();
        for seed in &content {
            let mut row = Map::new();
            for (at, (_, name, width)) in fields.iter().enumerate() {
                let value = seed.rotate_left(at as u32 * 7) >> (64 - 8 * u32::from(*width));
                records.extend(&value.to_be_bytes()[8 - usize::from(*width)..]);
                row.insert((*name).to_owned(), json!(value));
            }
            if variable {
                let name = format!("if{}", seed % 1_000);
                records.push(name.len() as u8);
                records.extend(name.as_bytes());
                row.insert("extra".into(), json!({"interfaceName": name}));
            }
            want.push(row);
        }
        let message = if v9 { Builder9::v9(0) } else { Builder9::ipfix(0) };
        let message = message.template(256, &layout).set(256, &records);
        let mut decoder = Decoder::new(Arc::default(), Arc::default());
        let mut out = Batches::new();
        prop_assert_eq!(decoder.decode(&message.build(), &sender(1), &mut out).rejected, None);
        let have = rows(&mut out.flows);
        prop_assert_eq!(have.len(), want.len());
        for (have, want) in have.iter().zip(&want) {
            for (name, value) in want {
                prop_assert_eq!(have.get(name), Some(value), "{}", name);
            }
        }
    }

    /// Sets of anything after templates of anything.
    #[test]
    fn random_sets_never_panic(
        sets in proptest::collection::vec((0..6_u16, proptest::collection::vec(any::<u8>(), 0..120)), 0..12),
        ipfix in any::<bool>(),
    ) {
        let message = if ipfix { Builder9::ipfix(0) } else { Builder9::v9(0) };
        let message = sets.iter().fold(message, |message, (id, content)| {
            let id = if *id > 3 { 252 + *id } else { *id };
            // ids that a data set can have
            let mut content = content.clone();
            if id < 4 && content.len() > 4 {
                let head = [1, content[1] % 2, 0, content[3] % 8];
                content[..4].copy_from_slice(&head);
            }
            message.set(id, &content)
        });
        let mut decoder = Decoder::new(Arc::default(), Arc::default());
        let mut out = Batches::new();
        decode_all(&mut decoder, &mut out, &[message.build()]);
    }
}
