//! Samples that wait ([`super::plain`]) give the rows that they would give as rows of their own.

use super::*;
use crate::decode::frame::samples;

/// What no sample that waits has.
fn stranger() -> Words {
    record(4_000 << 12 | 1, Words::of(&[1]))
}

/// A sample twice: as it is, and with a record that only `extra` tells of.
fn samples(number: u32, random: &mut impl FnMut() -> usize) -> [Words; 2] {
    let zoo = samples::zoo();
    let mut frames: Vec<(u32, Vec<u8>)> = zoo
        .into_iter()
        .map(|(link, bytes)| (if link == crate::decode::frame::Link::Ethernet { 1 } else { 11 }, bytes))
        .collect();
    frames.push((1, samples::ethernet(0x0800, &samples::passenger())));
    frames.push((1, samples::ethernet(0x86dd, &samples::ipv6(1, 2, 17, &samples::udp(53, 1_234, &[])))));
    let (protocol, mut frame) = frames.swap_remove(random() % frames.len());
    if random().is_multiple_of(4) {
        let at = random() % frame.len();
        frame[at] = random() as u8;
    }
    if random().is_multiple_of(4) {
        frame.truncate(random() % frame.len());
    }
    let interface = |random: &mut dyn FnMut() -> usize| [7, 8, INTERNAL, 2 << 30 | 5][random() % 4];
    let rate = [0, 100, 1_000][random() % 3];
    let source = [7, 8, 1 << 24 | 7][random() % 3];
    let head = [number, source, rate, number * 1_000, number / 9, interface(random), interface(random)];
    let mut records = vec![header(protocol, &frame)];
    if random().is_multiple_of(3) {
        records.push(record(1001, Words::of(&[random() as u32 % 4_095, 3, u32::MAX, 0])));
    }
    let plain = sample_with(&head, &records);
    records.push(stranger());
    [plain, sample_with(&head, &records)]
}

#[test]
fn what_waits_gives_the_same_rows() {
    let mut random = xorshift(0x9e37_79b9_7f4a_7c15);
    let mut random = move || (random() >> 16) as usize;
    let (mut one, mut other) = (Decoder::default(), Decoder::default());
    let mut effective = 0;
    for sequence in 1..2_000 {
        let made: Vec<[Words; 2]> = (0..7).map(|at| samples(sequence * 7 + at, &mut random)).collect();
        let [plain, rows] = [0, 1].map(|which| {
            let samples: Vec<Words> = made.iter().map(|both| both[which].clone()).collect();
            datagram(sequence, &samples)
        });
        let (plain, rows) = (one.decode(&plain), other.decode(&rows));
        assert_eq!(plain.result, rows.result);
        let without = |rows: Vec<Map<String, Value>>| -> Vec<Map<String, Value>> {
            let known = |mut row: Map<String, Value>| {
                if let Some(Value::Object(extra)) = row.get_mut("extra") {
                    extra.retain(|name, _| !name.contains("4000"));
                    if extra.is_empty() {
                        row.remove("extra");
                    }
                }
                row
            };
            rows.into_iter().map(known).collect()
        };
        effective += plain.flows.iter().filter(|row| row.contains_key("sampling_effective")).count();
        assert_eq!(without(plain.flows), without(rows.flows), "datagram {sequence}");
    }
    assert!(effective > 1_000, "{effective}");
}
