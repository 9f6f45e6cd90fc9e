//! What the decoder keeps in memory: for itself, for an exporter, for a template; and an open batch. Resident memory before
//! and after many of each.
//!
//! `cargo run --release -p weir-collector --example memory`
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::sync::Arc;

use weir_collector::batch::{BatchConfig, Batcher};
use weir_collector::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, SharedState};
use weir_schemas::Address;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn meta(sender: u32) -> DatagramMeta {
    DatagramMeta {
        sender: Address::v4(sender.to_be_bytes()),
        sender_port: 50_000,
        local_port: 2055,
        received_us: 1_795_392_000_000_000,
    }
}

fn decoder() -> Decoder {
    let config = DecodeConfig {
        max_exporters: 1_000_000,
        max_probation: 1_000_000,
        max_templates: 60_000,
        max_templates_total: 1_000_000,
        ..DecodeConfig::default()
    };
    Decoder::new(Arc::new(config), Arc::new(SharedState::new()))
}

/// Decodes all, and lets go of the rows from time to time.
fn feed(decoder: &mut Decoder, batches: &mut Batches, datagrams: impl Iterator<Item = (u32, Vec<u8>)>) {
    for (sender, datagram) in datagrams {
        let outcome = decoder.decode(&datagram, &meta(sender), batches);
        assert_eq!(outcome.rejected, None);
        if batches.flows.rows() > 1_000 {
            batches.flows.finish();
        }
    }
    batches.all_mut().into_iter().for_each(|builder| drop(builder.finish()));
}

/// A v5 datagram of one record.
fn v5() -> Vec<u8> {
    let mut datagram = vec![0; 24 + 48];
    datagram[..4].copy_from_slice(&[0, 5, 0, 1]);
    datagram
}

/// An IPFIX message that defines a template of 20 fields, and one record of it.
fn template(id: u16) -> Vec<u8> {
    const FIELDS: [(u16, u16); 20] = [
        (8, 4),
        (12, 4),
        (7, 2),
        (11, 2),
        (4, 1),
        (5, 1),
        (6, 2),
        (1, 8),
        (2, 8),
        (10, 4),
        (14, 4),
        (16, 4),
        (17, 4),
        (9, 1),
        (13, 1),
        (61, 1),
        (152, 8),
        (153, 8),
        (136, 1),
        (192, 1),
    ];
    let record: u16 = FIELDS.iter().map(|(_, length)| length).sum();
    let mut sets = Vec::new();
    let mut word = |value: u16| sets.extend(value.to_be_bytes());
    [2, 4 + 4 + 20 * 4, id, 20].into_iter().for_each(&mut word);
    for (element, length) in FIELDS {
        word(element);
        word(length);
    }
    word(id);
    word(4 + record);
    sets.resize(sets.len() + usize::from(record), 0);
    let mut message = vec![0, 10];
    message.extend(u16::try_from(16 + sets.len()).unwrap().to_be_bytes());
    message.extend([0; 12]);
    message.extend(sets);
    message
}

fn main() {
    let mut batches = Batches::new();
    // what is made once, at the first record: the dictionary of elements
    feed(&mut decoder(), &mut batches, [(1, v5()), (2, template(256))].into_iter());
    let per = |what: &str, count: u64, before: u64| {
        println!("{what}: {} bytes", resident().saturating_sub(before) / count);
    };

    let before = resident();
    let batch = BatchConfig::default().for_messages_of(900_000);
    let idle: Vec<_> = (0..200).map(|shard| (decoder(), Batcher::new(&batch, shard))).collect();
    per("a shard's decoder and empty batches", 200, before);
    drop(idle);

    let (mut exporters, before) = (decoder(), resident());
    feed(&mut exporters, &mut batches, (0..100_000).map(|sender| (sender, v5())));
    per("an exporter of v5", 100_000, before);

    let (mut exporters, before) = (decoder(), resident());
    feed(&mut exporters, &mut batches, (0..20_000).map(|sender| (sender, template(256))));
    per("an exporter of IPFIX with one template of 20 fields", 20_000, before);

    let (mut templates, before) = (decoder(), resident());
    feed(&mut templates, &mut batches, (0..20_000).map(|n| (1, template(256 + n))));
    per("a template of 20 fields", 20_000, before);
}
