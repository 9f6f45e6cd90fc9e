//! What the fuzz targets begin with: our own generator's datagrams, and by hand what it does not make.

use std::sync::Arc;

use weir_schemas::Address;
use weir_schemas::envelope::{Compression, Envelope, encode_body};
use weir_schemas::segment::encode_frame;
use weir_schemas::tables::{SCHEMA_VERSION, Table};

use crate::decode::fuzzing::{frame_seeds, push_datagram, samples};
use crate::decode::{Batches, DatagramMeta, Decoder};
use crate::generate::{Generator, GeneratorConfig, Protocol};
use crate::pcap::Writer;

const START_US: i64 = 1_700_000_000_000_000;

/// The first datagrams of an exporter: templates, options, data.
fn generated(protocol: Protocol, count: usize) -> Vec<Vec<u8>> {
    let config = GeneratorConfig {
        protocols: vec![protocol],
        exporters: 1,
        start_us: START_US,
        ..GeneratorConfig::default()
    };
    let mut generator = Generator::new(&config);
    let mut buffer = Vec::new();
    (0..count).map_while(|_| generator.next(START_US, &mut buffer).map(|_| buffer.clone())).collect()
}

/// Datagrams as the targets read them, after a byte of configuration.
fn sequence(bits: u8, how: u8, datagrams: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![bits];
    for datagram in datagrams {
        push_datagram(&mut out, how, datagram);
    }
    out
}

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// An IPFIX message of (set id, content).
fn ipfix(sequence: u32, sets: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut out = words(&[10, 0]);
    out.extend(1_700_000_000_u32.to_be_bytes());
    out.extend(sequence.to_be_bytes());
    out.extend(7_u32.to_be_bytes());
    for (id, content) in sets {
        out.extend(words(&[*id, u16::try_from(content.len()).unwrap() + 4]));
        out.extend(content);
    }
    let length = u16::try_from(out.len()).unwrap();
    out[2..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// What IPFIX has and the generator does not send.
fn by_hand() -> Vec<Vec<u8>> {
    const ENTERPRISE: u16 = 0x8000;
    // strings, a list, a sampled frame, a label stack, an application
    let odd = words(&[256, 6, 8, 4, 371, 0xffff, 291, 0xffff, 315, 0xffff, 316, 0xffff, 95, 0xffff]);
    let frame = samples::ethernet(0x0800, &samples::passenger());
    let record = [
        &[10, 0, 0, 1, 3][..],
        b"bob",
        &[7, 3, 0, 10, 0, 1, 1, 2],
        &[255, 0, u8::try_from(frame.len()).unwrap()],
        &frame,
        &[4, 0, 1, 1, 255],
        &[4, 3, 0, 0, 9],
    ]
    .concat();
    // RFC 5103: packets and bytes of the other direction
    let mut biflow = words(&[257, 6, 8, 4, 12, 4, 2, 4, 1, 4]);
    biflow.extend(words(&[ENTERPRISE | 2, 4, 0, 29_305, ENTERPRISE | 1, 4, 0, 29_305]));
    // a sampler, the boot time, an application's name
    let options = words(&[300, 3, 1, 302, 8, 305, 4, 306, 4]);
    let boot = words(&[301, 2, 1, 149, 4, 160, 8]);
    let names = words(&[302, 2, 1, 95, 4, 96, 0xffff]);
    // NAT events, NTP times, uptimes, ICMP and MPLS
    let nat = words(&[258, 4, 8, 4, 225, 4, 227, 2, 230, 1]);
    let times = words(&[259, 6, 154, 8, 155, 8, 22, 4, 21, 4, 4, 1, 32, 2]);
    let labels = words(&[260, 3, 70, 3, 71, 3, 302, 8]);
    vec![
        ipfix(0, &[(2, odd), (256, record)]),
        ipfix(1, &[(2, biflow), (257, vec![1; 48])]),
        ipfix(
            3,
            &[
                (3, options),
                (3, boot),
                (3, names),
                (300, vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 9]),
            ],
        ),
        ipfix(
            4,
            &[
                (301, vec![0, 0, 0, 7, 0, 0, 1, 0x8b, 0xcf, 0xe5, 0x68, 0]),
                (302, b"\x03\0\0\x35\x03dns".to_vec()),
            ],
        ),
        ipfix(
            6,
            &[
                (2, nat),
                (2, times),
                (2, labels),
                (258, vec![1; 11]),
                (259, vec![2; 27]),
                (260, vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ],
        ),
        // a withdrawal of all templates, and of one
        ipfix(9, &[(2, words(&[2, 0])), (2, words(&[256, 0])), (257, vec![1; 24])]),
    ]
}

pub(super) fn netflow() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (protocol, count) in [(Protocol::NetFlow5, 2), (Protocol::NetFlow9, 4), (Protocol::Ipfix, 4)] {
        let datagrams = generated(protocol, count);
        all.push(sequence(0, 0, &datagrams));
        // data first, and soon too much of it
        let late: Vec<_> = datagrams.iter().rev().cloned().collect();
        all.push(sequence(1, 0x48, &late));
    }
    let v1 = [&[0, 1, 0, 1][..], &[0, 0x98, 0x96, 0x80], &[0x65, 0x53, 0xf1, 0], &[0; 4], &[1; 52]].concat();
    let v7 = [&[0, 7, 0, 1][..], &[0, 0x98, 0x96, 0x80], &[0x65, 0x53, 0xf1, 0], &[0; 12], &[1; 52]].concat();
    all.push(sequence(0, 0, &[v1, v7]));
    all.push(sequence(0, 8, &by_hand()));
    all.push(sequence(0x1f, 0x18, &by_hand()));
    all
}

pub(super) fn sflow() -> Vec<Vec<u8>> {
    let bodies: Vec<Vec<u8>> =
        generated(Protocol::SFlow5, 3).into_iter().map(|datagram| datagram[4..].to_vec()).collect();
    vec![sequence(0, 0, &bodies), sequence(1, 0x14, &bodies[..1])]
}

pub(super) fn frame() -> Vec<Vec<u8>> {
    frame_seeds()
}

/// A section of pcapng: Ethernet, times in ns.
fn pcapng(frames: &[Vec<u8>]) -> Vec<u8> {
    let block = |kind: u32, content: &[u8]| {
        let padded = content.len().next_multiple_of(4);
        let length = u32::try_from(padded + 12).unwrap().to_le_bytes();
        let mut content = content.to_vec();
        content.resize(padded, 0);
        [&kind.to_le_bytes()[..], &length, &content, &length].concat()
    };
    let mut out =
        block(0x0a0d_0d0a, &[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    out.extend(block(1, &[1, 0, 0, 0, 0, 0, 4, 0, 9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]));
    for frame in frames {
        let length = u32::try_from(frame.len()).unwrap().to_le_bytes();
        let head = [&[0; 4][..], &0x1797_9cfe_u32.to_le_bytes(), &0x362a_0000_u32.to_le_bytes()].concat();
        out.extend(block(6, &[&head[..], &length, &length, frame].concat()));
    }
    out
}

pub(super) fn pcap() -> Vec<Vec<u8>> {
    let address = |host| Address::v4([192, 0, 2, host]);
    let payload = generated(Protocol::NetFlow5, 1).remove(0);
    let mut writer = Writer::new(Vec::new()).unwrap();
    for second in 0..2 {
        let time = START_US + second * 1_000_000;
        writer.write(time, (address(1), 1), (address(2), 2055), &payload).unwrap();
    }
    let v6 = |host| Address::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    writer.write(START_US, (v6(1), 1), (v6(2), 2055), b"six").unwrap();
    let classic = writer.finish().unwrap();
    // a datagram in two fragments
    let mut whole = samples::ipv4(17, &samples::udp(1, 2055, &[7; 40]));
    let second = [&whole[..20], &whole[44..]].concat();
    whole.truncate(44);
    let fragment = |mut packet: Vec<u8>, word: [u8; 2]| {
        let total = u16::try_from(packet.len()).unwrap().to_be_bytes();
        packet[2..4].copy_from_slice(&total);
        packet[6..8].copy_from_slice(&word);
        samples::ethernet(0x0800, &packet)
    };
    let fragments = [fragment(second, [0, 3]), fragment(whole, [0x20, 0])];
    let tagged = samples::ethernet(
        0x8100,
        &[&[0, 5, 8, 0][..], &samples::ipv4(17, &samples::udp(1, 2, &[9]))].concat(),
    );
    vec![classic, pcapng(&fragments), pcapng(&[tagged])]
}

/// Batches of the tables that a decoder fills.
fn batches() -> Vec<arrow::array::RecordBatch> {
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let datagrams = [generated(Protocol::Ipfix, 2), by_hand(), generated(Protocol::SFlow5, 1)].concat();
    for datagram in datagrams {
        let meta = DatagramMeta {
            sender: Address::v4([192, 0, 2, 1]),
            sender_port: 1,
            local_port: 2055,
            received_us: START_US,
        };
        decoder.decode(&datagram, &meta, &mut out);
    }
    out.all_mut()
        .into_iter()
        .filter_map(|builder| builder.finish())
        .map(|batch| batch.slice(0, batch.num_rows().min(3)))
        .collect()
}

pub(super) fn envelope_of(rows: u8) -> Envelope {
    Envelope {
        schema_version: SCHEMA_VERSION,
        table: Table::Flows,
        collector: "c".into(),
        boot: 1,
        batch_seq: 1,
        rows: u32::from(rows),
        min_time_us: 0,
        max_time_us: 0,
        covered: None,
        origin: None,
    }
}

pub(super) fn envelope() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for batch in batches() {
        for compression in [Compression::None, Compression::Runs, Compression::Lz4, Compression::Zstd] {
            let body = encode_body(&batch, compression).unwrap();
            all.push([&[u8::try_from(batch.num_rows()).unwrap()][..], &body].concat());
        }
    }
    all
}

pub(super) fn segment() -> Vec<Vec<u8>> {
    let mut whole = Vec::new();
    let mut parts = Vec::new();
    for offset in 0..3 {
        let body = [7_u8; 50];
        let frame = encode_frame(0, offset, START_US, &envelope_of(3), [&body[..]]).unwrap();
        whole.extend([&frame.prefix[..], &body, &frame.checksum].concat());
        let headers = &frame.prefix[40..];
        let lengths = [headers.len(), body.len()].map(|length| u16::try_from(length).unwrap().to_le_bytes());
        parts.extend([&lengths.concat()[..], headers, &body].concat());
    }
    let mut torn = whole.clone();
    torn[200] ^= 1;
    torn.truncate(torn.len() - 9);
    vec![whole, torn, parts]
}

pub(super) fn state() -> Vec<Vec<u8>> {
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let mut all = Vec::new();
    for datagrams in [generated(Protocol::NetFlow9, 3), by_hand()] {
        for datagram in datagrams {
            let meta = DatagramMeta {
                sender: Address::v4([192, 0, 2, 1]),
                sender_port: 1,
                local_port: 2055,
                received_us: START_US,
            };
            decoder.decode(&datagram, &meta, &mut out);
        }
        all.push(decoder.shared().snapshot());
    }
    all
}
