//! Rows whose columns are written later ([`Decoder::decode_on`]) are the rows that [`Decoder::decode`] writes.

use super::*;
use crate::generate::{Generator, GeneratorConfig};

/// Datagrams of all protocols, IPv6 and dropped packets among them; of every third one some octets are not what they were.
fn stream(seed: u64) -> Vec<(Vec<u8>, DatagramMeta)> {
    let start_us = sender(0).received_us;
    let config = GeneratorConfig { seed, exporters: 8, extras: true, start_us, ..GeneratorConfig::default() };
    let (mut traffic, mut random) = (Generator::new(&config), generator(seed));
    let mut datagrams = Vec::new();
    for number in 0..600 {
        let received_us = start_us + number * 1_000;
        let mut datagram = Vec::new();
        let info = traffic.next(received_us, &mut datagram).unwrap();
        if number % 3 == 0 {
            for _ in 0..random() % 8 {
                let at = usize::from(random()) << 3 | usize::from(random() & 7);
                let octet = random();
                datagram.get_mut(at).into_iter().for_each(|place| *place = octet);
            }
        }
        let port = 50_000 + info.exporter as u16 % 8;
        datagrams.push((datagram, DatagramMeta { received_us, ..sender(port) }));
    }
    datagrams
}

#[test]
fn rows_that_wait_are_the_same_rows() {
    let mut waited = 0;
    for seed in 1..30 {
        let (mut random, mut count) = (generator(seed), 0);
        let [mut one, mut other] = [(); 2].map(|()| Decoder::new(Arc::default(), Arc::default()));
        let (mut at_once, mut later) = (Batches::new(), Batches::new());
        for (datagram, meta) in stream(seed) {
            let wanted = one.decode(&datagram, &meta, &mut at_once);
            assert_eq!(other.decode_on(&datagram, &meta, &mut later), wanted);
            waited += u64::from(!other.waiting.is_empty());
            count += 1;
            match random() {
                0..8 => other.settle(&mut later),
                8..10 => {
                    one.tick(meta.received_us, &mut at_once);
                    other.tick(meta.received_us, &mut later);
                }
                10 => {
                    other.settle(&mut later);
                    for (one, other) in at_once.all_mut().into_iter().zip(later.all_mut()) {
                        assert_eq!(one.finish(), other.finish(), "seed {seed}, datagram {count}");
                    }
                }
                _ => {}
            }
        }
        other.settle(&mut later);
        for (one, other) in at_once.all_mut().into_iter().zip(later.all_mut()) {
            assert_eq!(one.finish(), other.finish(), "seed {seed}, at the end");
        }
        assert_eq!(one.counters(), other.counters());
    }
    assert!(waited > 1_000, "{waited}");
}
