//! What the fuzz targets do with their input, as far as it goes to the decoders: any sequence of datagrams, any sampled
//! frame, any saved state. The targets themselves are in `fuzz/`; the plain tests run these functions with the seeds and
//! with everything that was found ([`crate::fuzzing`]).

#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]

use std::sync::Arc;

use serde_json::Value;
use weir_schemas::{Address, Table};

pub(crate) use super::frame::samples;
use super::frame::{self, Link, has};
use super::{Batches, DatagramMeta, DecodeConfig, Decoder, ExporterConfig, RejectReason, SharedState};
use crate::columns::Builder;

/// When the first datagram comes.
const START_US: i64 = 1_700_000_000_000_000;
/// What one datagram may make of columns, unless it lets out what had waited.
const MOST_BYTES: usize = 4 << 20;

/// Rows that [`super::DecodeCounters::rows`] counts; the others are written by the clock.
const COUNTED: [Table; 5] =
    [Table::Flows, Table::NatEvents, Table::Discards, Table::InterfaceCounters, Table::Options];

/// A configuration by the bits of a byte: bit 0 for limits that are soon met, the others for the operator's switches.
fn config(bits: u8) -> DecodeConfig {
    let is = |bit: u8| bits >> bit & 1 == 1;
    let exporter = ExporterConfig {
        already_scaled: is(1),
        little_endian_sampling: is(2),
        sampling_across_domains: is(3),
        ignore_option_scope: is(4),
        sampling_rate: is(6).then_some(100.0),
        ..ExporterConfig::default()
    };
    let config = DecodeConfig { clock_check: !is(5), exporters: vec![exporter], ..DecodeConfig::default() };
    if !is(0) {
        return config;
    }
    DecodeConfig {
        max_exporters: 6,
        max_probation: 3,
        probation_datagrams: 2,
        probation_seconds: 0,
        max_sessions: 2,
        max_templates: 4,
        max_templates_total: 12,
        pending_bytes: 2_048,
        pending_sets: 4,
        max_options_entries: 4,
        ..config
    }
}

/// One datagram of a sequence: a byte that says how it comes, its length, its bytes.
///
/// Of the first byte, bits 0 and 1 are the source port, bit 2 the sender, bit 3 lets the length in an IPFIX header
/// agree, bits 4 and 5 are the time since the last one, bit 6 calls `tick` afterwards.
fn next_datagram(data: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([how, high, low], rest) = data.split_first_chunk::<3>()?;
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    let (datagram, rest) = rest.split_at(length);
    Some((*how, datagram, rest))
}

/// As [`next_datagram`] reads it.
pub(crate) fn push_datagram(out: &mut Vec<u8>, how: u8, datagram: &[u8]) {
    out.push(how);
    out.extend(u16::try_from(datagram.len()).unwrap().to_be_bytes());
    out.extend_from_slice(datagram);
}

/// NetFlow and IPFIX: a byte of configuration, then datagrams.
pub(crate) fn netflow(data: &[u8]) {
    let _ = datagrams(data, &[]);
}

/// sFlow: the same; the version, which every datagram begins with, is put before each.
pub(crate) fn sflow(data: &[u8]) {
    let _ = datagrams(data, &SFLOW5);
}

const SFLOW5: [u8; 4] = [0, 0, 0, 5];

/// Answers the rows of each table, and how much was rejected.
fn datagrams(data: &[u8], prefix: &[u8]) -> ([usize; Table::ALL.len()], u64) {
    let mut total = [0; Table::ALL.len()];
    let Some((bits, mut rest)) = data.split_first() else { return (total, 0) };
    let config = Arc::new(config(*bits));
    let mut decoder = Decoder::new(Arc::clone(&config), Arc::default());
    let mut out = Batches::new();
    let mut now_us = START_US;
    let mut count = 0;
    while let Some((how, datagram, after)) = next_datagram(rest) {
        rest = after;
        count += 1;
        now_us += [0, 1_000_000, 61_000_000, 86_400_000_000][usize::from(how >> 4 & 3)];
        let meta = DatagramMeta {
            sender: Address::v4([192, 0, 2, how >> 2 & 1]),
            sender_port: u16::from(how & 3),
            local_port: 2055,
            received_us: now_us,
        };
        let mut datagram = [prefix, datagram].concat();
        if how & 8 != 0 && datagram.len() >= 4 && datagram[..2] == [0, 10] {
            let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
            datagram[2..4].copy_from_slice(&length.to_be_bytes());
        }
        if how & 0x80 == 0 {
            send(&mut decoder, &datagram, &meta, &mut out);
        } else {
            let outcome = decoder.decode_on(&datagram, &meta, &mut out);
            assert_ne!(outcome.rejected, Some(RejectReason::DecoderPanic));
        }
        if how & 0x40 != 0 {
            decoder.tick(now_us, &mut out);
        }
        let counters = decoder.counters();
        assert_eq!(counters.datagrams, count);
        assert_eq!(counters.datagrams, counters.decoded + counters.rejected.iter().sum::<u64>());
        assert!(decoder.exporters().len() <= config.max_exporters + config.max_probation);
        assert!(decoder.shared().templates() <= config.max_templates_total);
        assert!(decoder.netflow.pending.bytes() <= config.pending_bytes);
    }
    // what was learned survives a restart
    let saved = decoder.shared().snapshot();
    let restored = SharedState::new().restore(&saved, &config).unwrap();
    assert_eq!(restored, decoder.shared().templates());
    decoder.tick(now_us + 100_000_000, &mut out);
    decoder.report(now_us + 100_000_000, &mut out);
    let counters = decoder.counters();
    for ((builder, counted), total) in out.all_mut().into_iter().zip(counters.rows).zip(&mut total) {
        let table = builder.table();
        *total = close(builder);
        assert!(
            !COUNTED.contains(&table) || *total as u64 == counted,
            "{table:?}: {total} rows, {counted} counted"
        );
    }
    (total, counters.rejected.iter().chain(&counters.sets_rejected).sum())
}

/// Decodes a datagram and checks what it says of it.
fn send(decoder: &mut Decoder, datagram: &[u8], meta: &DatagramMeta, out: &mut Batches) {
    let replayed =
        |decoder: &Decoder| decoder.exporters().iter().map(|state| state.counters.sets_replayed).sum::<u64>();
    let size = |out: &mut Batches| out.all_mut().into_iter().map(|builder| builder.bytes()).sum::<usize>();
    let rejected_sets = |decoder: &Decoder| decoder.counters().sets_rejected.iter().sum::<u64>();
    let (replayed_before, size_before) = (replayed(decoder), size(out));
    let sets_before = rejected_sets(decoder);
    let outcome = decoder.decode(datagram, meta, out);
    assert_ne!(outcome.rejected, Some(RejectReason::DecoderPanic));
    if replayed(decoder) == replayed_before {
        let size = size(out).saturating_sub(size_before);
        assert!(size <= MOST_BYTES, "{} bytes made {size} bytes of columns", datagram.len());
    }
    if outcome.rejected.is_some() {
        return;
    }
    assert_eq!(rejected_sets(decoder) - sets_before, u64::from(outcome.sets_rejected));
    if datagram[0] == 0 && datagram[1] != 0 {
        let ordered = |table| {
            let runs = decoder.row_order().iter().filter(|(of, _)| *of == table);
            runs.map(|(_, count)| count).sum::<u32>()
        };
        for (at, table) in Table::ALL.into_iter().enumerate() {
            if matches!(table, Table::Flows | Table::NatEvents) {
                assert_eq!(ordered(table), outcome.rows[at], "{table:?}");
            }
        }
    }
}

/// Closes a batch; its arrays must be what Arrow says of them. Answers its rows.
fn close(builder: &mut Builder) -> usize {
    let rows = builder.rows();
    let Some(batch) = builder.finish() else {
        assert_eq!(rows, 0);
        return 0;
    };
    assert_eq!(batch.num_rows(), rows);
    for column in batch.columns() {
        column.to_data().validate_full().unwrap();
    }
    rows
}

/// A sampled frame: a byte of link type, then the bytes.
pub(crate) fn frame(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let link = match kind & 7 {
        0 | 1 => Link::Ethernet,
        2 => Link::Labelled,
        3 => Link::Ip,
        4 => Link::Mpls,
        5 => Link::Ppp,
        _ => Link::Transport(kind >> 3),
    };
    let frame = frame::parse(link, bytes);
    // rule 49: only the first fragment has a transport header
    for packet in [&frame.outer, &frame.inner] {
        if packet.fragment.1 > 0 {
            assert_eq!(packet.has & (has::PORTS | has::TCP | has::ICMP), 0);
        }
    }
    assert!(frame.tunnel().is_some() || frame.inner == frame::Packet::default());
    let mut again = frame::parse(Link::Ethernet, data);
    frame::parse_into(&mut again, link, bytes);
    let [written, written_again] = [&frame, &again].map(|frame| {
        let mut builder = Builder::new(Table::Flows);
        frame.write(&mut builder);
        builder.advance(1);
        builder.finish()
    });
    assert_eq!(written, written_again);
    let mut builder = Builder::new(Table::Flows);
    frame.write(&mut builder);
    builder.advance(1);
    frame.fill(&mut builder);
    builder.advance(1);
    assert_eq!(close(&mut builder), 2);
}

/// A frame of every kind, as [`frame`] reads it.
pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let seed = |(link, bytes): (Link, Vec<u8>)| {
        let kind = match link {
            Link::Ethernet => 0,
            Link::Labelled => 2,
            Link::Ip => 3,
            Link::Mpls => 4,
            Link::Ppp => 5,
            Link::Transport(protocol) => 6 | protocol << 3,
        };
        [&[kind][..], &bytes].concat()
    };
    samples::zoo().into_iter().map(seed).collect()
}

/// A file of saved templates: whatever it holds, what was taken from it can be saved again, and decodes.
pub(crate) fn state(data: &[u8]) {
    let config = Arc::new(config(1));
    let shared = Arc::new(SharedState::new());
    let Ok(templates) = shared.restore(data, &config) else { return };
    assert!(templates <= config.max_templates_total);
    assert_eq!(templates, shared.templates());
    let saved = shared.snapshot();
    assert_eq!(SharedState::new().restore(&saved, &config).unwrap(), templates);
    let saved: Value = serde_json::from_slice(&saved).unwrap();
    let mut decoder = Decoder::new(Arc::clone(&config), shared);
    let mut out = Batches::new();
    let items = |value: &Value| value.as_array().unwrap().clone();
    for domain in items(&saved["domains"]) {
        let ipfix = domain["protocol"] == "ipfix";
        let number = u32::try_from(domain["domain"].as_u64().unwrap()).unwrap();
        for session in items(&domain["sessions"]) {
            let meta = DatagramMeta {
                sender: domain["sender"].as_str().unwrap().parse().unwrap(),
                sender_port: u16::try_from(session["port"].as_u64().unwrap()).unwrap(),
                local_port: 2055,
                received_us: START_US,
            };
            for entry in items(&session["templates"]) {
                let id = u16::try_from(entry["template"]["id"].as_u64().unwrap()).unwrap();
                for octet in [0, 3, 255] {
                    send(&mut decoder, &data_set(ipfix, number, id, octet), &meta, &mut out);
                }
            }
        }
    }
    for builder in out.all_mut() {
        close(builder);
    }
}

/// A message with one set of equal octets.
fn data_set(ipfix: bool, domain: u32, template: u16, octet: u8) -> Vec<u8> {
    const CONTENT: usize = 300;
    let set = [&template.to_be_bytes()[..], &(CONTENT as u16 + 4).to_be_bytes(), &[octet; CONTENT]].concat();
    let mut out = if ipfix {
        [&[0, 10][..], &(set.len() as u16 + 16).to_be_bytes()].concat()
    } else {
        [&[0, 9, 0, 1][..], &[0, 0x98, 0x96, 0x80]].concat()
    };
    out.extend(1_700_000_000_u32.to_be_bytes());
    out.extend([0; 4]);
    out.extend(domain.to_be_bytes());
    out.extend(set);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing;

    /// Seeds that do nothing would be no seeds: between them they fill every table, and are rejected nowhere.
    #[test]
    fn the_seeds_are_decoded() {
        let mut sum = [0; Table::ALL.len()];
        for (name, prefix) in [("netflow", &[][..]), ("sflow", &SFLOW5)] {
            for seed in (fuzzing::target(name).seeds)() {
                let (rows, rejected) = datagrams(&seed, prefix);
                assert!(rejected == 0 || seed[0] & 1 == 1, "{name}: {rejected} rejected");
                sum.iter_mut().zip(rows).for_each(|(sum, rows)| *sum += rows);
            }
        }
        let empty: Vec<Table> =
            Table::ALL.into_iter().zip(sum).filter(|(_, rows)| *rows == 0).map(|(table, _)| table).collect();
        assert_eq!(empty, [Table::Discards, Table::HostCounters, Table::QueueCounters], "{sum:?}");
        for seed in (fuzzing::target("state").seeds)() {
            assert!(SharedState::new().restore(&seed, &DecodeConfig::default()).unwrap() > 0);
        }
    }
}
