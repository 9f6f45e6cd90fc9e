//! What only some exporters send, where it is asked for ([`super::GeneratorConfig::extras`]): calls with what AVC measures
//! of them and the class after the box re-marked it (RFC 6759, IE 55), NAT events (RFC 8158), and sFlow's notices of
//! dropped packets.

use super::Context;
use super::netflow::{close_set, fields, open_set, words};
use super::traffic::{Flow, Random};

const TEMPLATE_CALL: u16 = 260;
const TEMPLATE_NAT: u16 = 261;
const TEMPLATE_APPLICATION: u16 = 262;
/// Records a datagram, so that it fits into 1,472 bytes.
const CALLS: usize = 15;
const EVENTS: usize = 20;

/// Cisco's, of the elements that AVC measures with.
const CISCO: u32 = 9;
const ROUND_TRIP_MS: u16 = 4248;
const LOST_PACKETS: u16 = 4251;

const CALL_FIELDS: [(u16, u16); 16] = [
    (8, 4),
    (12, 4),
    (7, 2),
    (11, 2),
    (4, 1),
    (5, 1),
    (55, 1),
    (1, 8),
    (2, 8),
    (10, 4),
    (14, 4),
    (152, 8),
    (153, 8),
    (302, 1),
    (95, 4),
    // rfc3550JitterMicroseconds
    (386, 4),
];
const NAT_FIELDS: [(u16, u16); 9] =
    [(323, 8), (230, 1), (4, 1), (8, 4), (12, 4), (7, 2), (11, 2), (225, 4), (227, 2)];

const EF: u8 = 0xb8;
const AF41: u8 = 0x88;

/// Name, and number in Cisco's engine 13 (NBAR).
const APPLICATIONS: [(u32, &str); 3] = [(61, "rtp-audio"), (62, "rtp-video"), (69, "bittorrent")];
const ENGINE: u32 = 13 << 24;

/// Which kind of datagram is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Usual,
    Calls,
    NatEvents,
}

/// One datagram in eight has calls, another one NAT events.
pub(super) fn due(turn: u32) -> Due {
    match turn % 8 {
        3 => Due::Calls,
        6 => Due::NatEvents,
        _ => Due::Usual,
    }
}

/// The templates, and the names of the applications; the number of options records.
pub(super) fn templates(buffer: &mut Vec<u8>) -> usize {
    let set = open_set(buffer, 2);
    words(buffer, [TEMPLATE_CALL, CALL_FIELDS.len() as u16 + 2]);
    fields(buffer, CALL_FIELDS);
    for element in [ROUND_TRIP_MS, LOST_PACKETS] {
        words(buffer, [element | 0x8000, 4]);
        buffer.extend_from_slice(&CISCO.to_be_bytes());
    }
    words(buffer, [TEMPLATE_NAT, NAT_FIELDS.len() as u16]);
    fields(buffer, NAT_FIELDS);
    close_set(buffer, set);
    // RFC 6759 §5.2: the application is the scope
    let set = open_set(buffer, 3);
    words(buffer, [TEMPLATE_APPLICATION, 2, 1]);
    fields(buffer, [(95, 4), (96, 24)]);
    close_set(buffer, set);
    let set = open_set(buffer, TEMPLATE_APPLICATION);
    for (number, name) in APPLICATIONS {
        buffer.extend_from_slice(&(ENGINE | number).to_be_bytes());
        let mut padded = [0; 24];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        buffer.extend_from_slice(&padded);
    }
    close_set(buffer, set);
    APPLICATIONS.len()
}

/// A call, or what has its class and is none.
struct Call {
    application: u32,
    tos: u8,
    packet_len: u32,
    packets: u32,
    duration_ms: u32,
    ports: (u16, u16),
    jitter_us: u32,
    round_trip_ms: u32,
    lost: u32,
}

impl Call {
    fn new(random: &mut Random) -> Call {
        let kind = random.below(16);
        // G.711 in packets of 20 ms; video in large ones; and a download that has marked itself EF
        let (application, tos, packet_len, packets_per_s) = match kind {
            0 => (APPLICATIONS[2].0, EF, 1_300, 400),
            1..=4 => (APPLICATIONS[1].0, AF41, 1_100, 250),
            _ => (APPLICATIONS[0].0, EF, 200, 50),
        };
        let duration_ms = 2_000 + random.below(28_000);
        let packets = (duration_ms * packets_per_s / 1_000).max(1);
        // most calls are good; one in eight is over a link that is full
        let bad = random.below(8) == 0;
        let (jitter, loss_per_mille) = if bad { (20_000, 40) } else { (4_000, 3) };
        let even = |random: &mut Random| 16_384 + 2 * random.below(8_192) as u16;
        Call {
            application,
            tos,
            packet_len,
            packets,
            duration_ms,
            ports: (even(random), even(random)),
            jitter_us: 300 + random.below(jitter),
            round_trip_ms: 8 + random.below(if bad { 300 } else { 60 }),
            lost: (u64::from(packets) * u64::from(random.below(loss_per_mille)) / 1_000) as u32,
        }
    }
}

/// The uplink 102 takes no classes from inside: it sets them to zero.
fn after(tos: u8, flow: &Flow<'_>) -> u8 {
    if flow.dst.interface == 102 { 0 } else { tos }
}

/// Returns the number of records.
pub(super) fn calls(context: Context<'_>, buffer: &mut Vec<u8>) -> usize {
    let Context { exporter, traffic, random, totals, now_us, wanted, .. } = context;
    let count = CALLS.min(wanted);
    let set = open_set(buffer, TEMPLATE_CALL);
    for _ in 0..count {
        let flow = traffic.flow(random);
        let call = Call::new(random);
        let bytes = u64::from(call.packets) * u64::from(call.packet_len);
        let end = now_us.div_euclid(1_000) as u64 - u64::from(flow.lag_ms);
        buffer.extend_from_slice(&flow.src.v4);
        buffer.extend_from_slice(&flow.dst.v4);
        words(buffer, [call.ports.0, call.ports.1]);
        buffer.extend_from_slice(&[17, call.tos, after(call.tos, &flow)]);
        buffer.extend_from_slice(&bytes.to_be_bytes());
        buffer.extend_from_slice(&u64::from(call.packets).to_be_bytes());
        buffer.extend_from_slice(&flow.src.interface.to_be_bytes());
        buffer.extend_from_slice(&flow.dst.interface.to_be_bytes());
        buffer.extend_from_slice(&(end - u64::from(call.duration_ms)).to_be_bytes());
        buffer.extend_from_slice(&end.to_be_bytes());
        buffer.push(super::netflow::SAMPLER);
        for value in [ENGINE | call.application, call.jitter_us, call.round_trip_ms, call.lost] {
            buffer.extend_from_slice(&value.to_be_bytes());
        }
        totals.add_flow(bytes, u64::from(call.packets), exporter.sampling_rate);
    }
    close_set(buffer, set);
    count
}

/// Sessions of a carrier's NAT, each made or ended; returns the number of records.
pub(super) fn nat_events(context: Context<'_>, buffer: &mut Vec<u8>) -> usize {
    let Context { traffic, random, totals, now_us, .. } = context;
    let set = open_set(buffer, TEMPLATE_NAT);
    for _ in 0..EVENTS {
        let flow = traffic.flow(random);
        // from inside, whichever way the flow went
        let (inside, outside) =
            if flow.src.v4[0] == 10 { (flow.src, flow.dst) } else { (flow.dst, flow.src) };
        let at = now_us.div_euclid(1_000) as u64 - u64::from(flow.lag_ms);
        buffer.extend_from_slice(&at.to_be_bytes());
        // RFC 8158 §4.3: 4 is a NAT44 session made, 5 one deleted
        let event = 4 + (random.below(2) as u8);
        buffer.extend_from_slice(&[event, 6]);
        buffer.extend_from_slice(&inside.v4);
        buffer.extend_from_slice(&outside.v4);
        words(buffer, [32_768 + random.below(28_000) as u16, 443]);
        // few public addresses, of RFC 5737, and few ports of each: the same come again and again
        buffer.extend_from_slice(&[203, 0, 113, 1 + random.below(8) as u8]);
        words(buffer, [40_000 + random.below(32) as u16]);
    }
    close_set(buffer, set);
    totals.nat_events += EVENTS as u64;
    EVENTS
}
