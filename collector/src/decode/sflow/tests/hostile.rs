//! Datagrams that lie: cut at every byte, mutated, and made to be as much work as 64 KB can be.

use std::time::{Duration, Instant};

use super::*;

/// Every sFlow datagram of the corpus, and one with every record of the other tests.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = corpus("sflow_").into_iter().flat_map(|case| case.datagrams).collect();
    let gateway = Words::of(&[1, 9, 1, 2, 3, 1, 2, 2, 64_500, 64_501, 1, 7, 150]);
    let all = [
        header(1, &frame()),
        record(1001, Words::of(&[100, 0, 200, 0])),
        record(1003, gateway),
        record(1004, Words::of(&[106]).opaque(b"user").and(&[0]).opaque(b"")),
        record(1006, Words::of(&[1, 5, 1, 16 << 12, 1, 17 << 12])),
        record(1012, Words::of(&[1, 0x8100_0005])),
        record(1037, Words::of(&[100]).opaque(b"acl").and(&[1])),
        record(77, Words::of(&[1, 2, 3])),
    ];
    let lanes = Words::of(&[1, 1, 3_300, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let adapters = Words::of(&[1, 1, 1, 0x0200_0000, 0x0001_0000]);
    let counters =
        counter_sample(5, &[record(1, Words::of(&GENERIC)), record(10, lanes), record(2001, adapters)]);
    let dropped = Words::of(&[9, 0, 7, 2, 7, 0, 258, 1]).bytes(&header(1, &frame()).0);
    let dropped = Words::default().structure(5, &dropped);
    seeds.push(datagram(1, &[sample(1, &all), counters, dropped]));
    seeds
}

/// Decodes into the same batches again and again, and checks what must hold whatever came.
struct Check {
    decoder: Decoder,
    out: Batches,
    datagrams: usize,
}

impl Check {
    fn new() -> Check {
        Check { decoder: Decoder::default(), out: Batches::new(), datagrams: 0 }
    }

    fn decode(&mut self, datagram: &[u8]) {
        let Check { decoder, out, .. } = self;
        let before: usize = out.all_mut().iter().map(|builder| builder.rows()).sum();
        let result = decode_one(datagram, &meta_v4(), &mut decoder.exporters, &decoder.config, out);
        let after: usize = out.all_mut().iter().map(|builder| builder.rows()).sum();
        if result.is_err() {
            assert_eq!(before, after, "a rejected datagram gave rows");
        }
        // the least sample is a counter sample of 20 bytes
        assert!((after - before) * 20 <= datagram.len(), "more rows than bytes");
        self.datagrams += 1;
        if self.datagrams.is_multiple_of(500) {
            self.close();
        }
    }

    /// Every column has a value or NULL for every row, or this panics.
    fn close(&mut self) {
        for builder in self.out.all_mut() {
            let rows = builder.rows();
            assert_eq!(builder.finish().map_or(0, |batch| batch.num_rows()), rows);
        }
    }
}

#[test]
fn rule_52_cut_at_every_byte_nothing_panics() {
    let mut check = Check::new();
    for seed in seeds() {
        for end in 0..=seed.len() {
            check.decode(&seed[..end]);
        }
    }
    check.close();
}

#[test]
fn rule_52_mutated_datagrams_never_panic() {
    let seeds = seeds();
    let mut random = xorshift(0x2545_f491_4f6c_dd1d);
    let mut next = move |below: usize| (random() >> 11) as usize % below;
    let lies = [0, 1, 3, 4, 8, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffc, u32::MAX];
    let mut check = Check::new();
    for _ in 0..30_000 {
        let mut datagram = seeds[next(seeds.len())].clone();
        for _ in 0..=next(4) {
            let at = next(datagram.len());
            match next(4) {
                0 => datagram[at] = next(256) as u8,
                1 => datagram[at] ^= 1 << next(8),
                2 => {
                    // a word that counts or measures something
                    let at = at / 4 * 4;
                    if let Some(word) = datagram.get_mut(at..at + 4) {
                        word.copy_from_slice(&lies[next(lies.len())].to_be_bytes());
                    }
                }
                _ => {
                    // a piece of another datagram
                    let other = &seeds[next(seeds.len())];
                    let from = next(other.len()) / 4 * 4;
                    let n = next(64).min(other.len() - from).min(datagram.len() - at);
                    datagram[at..at + n].copy_from_slice(&other[from..from + n]);
                }
            }
        }
        check.decode(&datagram);
    }
    check.close();
}

/// As much work as 64 KB can be, one kind of it each.
fn heavy() -> Vec<(&'static str, Vec<u8>)> {
    const SIZE: usize = 65_000;
    let fill = |unit: &Words| unit.0.repeat(SIZE / unit.0.len());
    let samples = |unit: &Words| {
        let n = u32::try_from(SIZE / unit.0.len()).unwrap();
        Words::of(&[5, 1, AGENT, 3, 1, 90_000, n]).bytes(&fill(unit)).0
    };
    let one = |records: Words, n: u32| {
        let body = Words::of(&[1, 7, 1, 1, 0, 7, 8, n]).bytes(&records.0);
        datagram(1, &[Words::default().structure(1, &body)])
    };
    let mut formats = Words::default();
    for format in 10_000..18_000 {
        formats = formats.structure(format, &Words::default());
    }
    let words = vec![1_u32; SIZE / 4];
    let path = Words::of(&[1, 9, 1, 2, 3, 1, 2, 16_000]).and(&words[..16_000]).and(&[0, 1]);
    let segments = [2, 0].repeat(8_000);
    let segments = Words::of(&[1, 9, 1, 2, 3, 8_000]).and(&segments).and(&[0, 1]);
    let adapters = Words::of(&[8_000]).and(&[1, 0].repeat(8_000));
    let sources: Vec<Words> =
        (0..3_200).map(|n| Words::default().structure(2, &Words::of(&[1, n, 0]))).collect();
    vec![
        ("samples of unknown format", samples(&Words::of(&[99, 0]))),
        ("the least flow samples", samples(&sample_with(&[1, 7, 1, 1, 0, 7, 8], &[]))),
        ("the least counter samples, a source each", datagram(1, &sources)),
        (
            "the least discards",
            samples(&Words::default().structure(5, &Words::of(&[1, 0, 7, 2, 7, 0, 258, 0]))),
        ),
        ("multiple outputs", samples(&sample_with(&[1, 7, 1, 1, 0, 7, 0x8000_0002], &[]))),
        ("unknown records of a sample", one(formats, 8_000)),
        ("the same record again and again", one(Words(fill(&Words::of(&[1014, 0]))), 8_000)),
        (
            "samples with unknown records",
            samples(&sample(1, &(0..32).map(|n| record(20_000 + n, Words::default())).collect::<Vec<_>>())),
        ),
        ("a long AS path", one(Words::default().structure(1003, &path), 1)),
        ("an AS path of empty segments", one(Words::default().structure(1003, &segments), 1)),
        (
            "a long list of tags",
            one(Words::default().structure(1012, &Words::of(&[16_000]).and(&words[..16_000])), 1),
        ),
        (
            "a long user name that is not UTF-8",
            one(Words::default().structure(1004, &Words::of(&[0]).opaque(&[0xff; 60_000]).and(&[0, 0])), 1),
        ),
        ("adapters without addresses", datagram(1, &[counter_sample(5, &[record(2001, adapters)])])),
        (
            "lanes",
            datagram(
                1,
                &[counter_sample(5, &[record(10, Words::of(&[1, 1, 1, 1, 1_600]).and(&words[..16_000]))])],
            ),
        ),
        (
            "queues",
            samples(&counter_sample(
                5,
                &(0..64).map(|n| record(1003, Words::of(&[n; 13]))).collect::<Vec<_>>(),
            )),
        ),
        (
            "hosts",
            samples(&counter_sample(
                2 << 24 | 1,
                &[
                    record(2000, Words::default().opaque(b"h").bytes(&[1; 16]).and(&[1, 1]).opaque(b"1")),
                    record(2003, Words::of(&[1; 20])),
                ],
            )),
        ),
        ("headers of labels", samples(&sample(1, &[header(13, &[0, 1, 0, 255].repeat(32))]))),
        (
            "headers of extension headers",
            samples(&sample(
                1,
                &[header(
                    12,
                    &[&[0x60, 0, 0, 0, 0, 0, 60, 1][..], &[0; 32], &[60, 0, 0, 0, 0, 0, 0, 0].repeat(11)]
                        .concat(),
                )],
            )),
        ),
    ]
}

/// The best of some runs: another test may have the processor.
fn cost(bytes: &[u8]) -> (Duration, usize) {
    let mut best = (Duration::MAX, 0);
    for _ in 0..5 {
        let mut check = Check::new();
        let start = Instant::now();
        check.decode(bytes);
        best.0 = best.0.min(start.elapsed());
        best.1 = check.out.all_mut().iter().map(|builder| builder.bytes()).sum();
        check.close();
    }
    best
}

#[test]
fn rule_53_no_datagram_is_more_than_a_millisecond_of_work_and_four_megabytes() {
    // a debug build is some thirty times slower, and shares the machine with other tests
    let limit = Duration::from_millis(if cfg!(debug_assertions) { 250 } else { 1 });
    for (name, bytes) in heavy() {
        assert!(bytes.len() <= 65_535, "{name}: {} bytes", bytes.len());
        let (time, size) = cost(&bytes);
        eprintln!("{name}: {} µs, {size} bytes", time.as_micros());
        assert!(time <= limit, "{name}: {time:?}");
        assert!(size <= 4 << 20, "{name}: {size} bytes");
    }
}
