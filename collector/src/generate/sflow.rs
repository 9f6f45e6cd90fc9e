//! sFlow v5 (<https://sflow.org/sflow_version_5.txt>): flow samples of sampled headers, interface counters.

use super::Context;
use super::netflow::protocol;
use super::traffic::{Flow, INTERFACES, Random, Traffic};

/// Samples a datagram, so that it fits into 1,472 bytes, and how much of a frame is taken.
const SAMPLES: usize = 7;
const HEADER_BYTES: usize = 128;
/// Dropped packets a datagram, and how often there is one where they are asked for.
const DISCARDS: usize = 5;
const DISCARDS_EVERY: u32 = 16;
/// acl, no_buffer_space, ttl_exceeded, traffic_shaping.
const REASONS: [u32; 4] = [258, 259, 257, 261];
/// Interface counters every 20 s, as most agents do.
const COUNTER_INTERVAL_US: i64 = 20_000_000;
/// The frame check sequence: counted in the frame's length, not in the header.
const FCS: usize = 4;
const ETHERNET: usize = 14;

/// An agent.
#[derive(Debug, Default)]
pub(super) struct SFlow {
    sequence: u32,
    interfaces: [Interface; INTERFACES.len()],
    counters_us: Option<i64>,
    counter_sequence: u32,
    discard_sequence: u32,
    /// Datagrams of samples.
    turn: u32,
}

/// What an agent counts of an interface.
#[derive(Debug, Default, Clone, Copy)]
struct Interface {
    samples: u32,
    pool: u32,
    in_octets: u64,
    in_packets: u32,
    out_octets: u64,
    out_packets: u32,
}

fn word(buffer: &mut Vec<u8>, value: u32) {
    buffer.extend_from_slice(&value.to_be_bytes());
}

fn slot(interface: u32) -> usize {
    INTERFACES.iter().position(|known| *known == interface).unwrap_or(0)
}

impl SFlow {
    pub(super) fn write(&mut self, context: Context<'_>, buffer: &mut Vec<u8>) {
        let due = self.counters_us.is_none_or(|last| context.now_us - last >= COUNTER_INTERVAL_US);
        let discards = !due && context.limits.extras && {
            self.turn = self.turn.wrapping_add(1);
            self.turn.is_multiple_of(DISCARDS_EVERY)
        };
        let count = match (due, discards) {
            (true, _) => INTERFACES.len(),
            (_, true) => DISCARDS,
            _ => SAMPLES.min(context.wanted),
        };
        word(buffer, 5);
        word(buffer, 1);
        buffer.extend_from_slice(&context.exporter.addr.octets());
        word(buffer, 0);
        self.sequence = self.sequence.wrapping_add(1);
        word(buffer, self.sequence);
        word(buffer, context.exporter.uptime_ms(context.now_us));
        word(buffer, count as u32);
        if due {
            self.counters_us = Some(context.now_us);
            self.write_counters(buffer);
            context.totals.counter_samples += count as u64;
            return;
        }
        let Context { exporter, traffic, random, totals, .. } = context;
        if discards {
            (0..count).for_each(|_| self.write_discard(traffic, random, buffer));
            totals.discards += count as u64;
            return;
        }
        for _ in 0..count {
            let frame_len = self.write_sample(exporter.sampling_rate, traffic, random, buffer);
            totals.add_flow(frame_len, 1, exporter.sampling_rate);
        }
    }

    /// Returns the length of the sampled frame.
    fn write_sample(
        &mut self,
        rate: u32,
        traffic: &Traffic,
        random: &mut Random,
        buffer: &mut Vec<u8>,
    ) -> u64 {
        let flow = traffic.flow(random);
        let v6 = traffic.is_v6(random);
        let (header, frame_len) = sampled(&flow, v6, random);
        let input = &mut self.interfaces[slot(flow.src.interface)];
        input.samples = input.samples.wrapping_add(1);
        input.pool = input.pool.wrapping_add(rate);
        input.in_octets += frame_len as u64 * u64::from(rate);
        input.in_packets = input.in_packets.wrapping_add(rate);
        let (samples, pool) = (input.samples, input.pool);
        let output = &mut self.interfaces[slot(flow.dst.interface)];
        output.out_octets += frame_len as u64 * u64::from(rate);
        output.out_packets = output.out_packets.wrapping_add(rate);
        let head = [
            1,
            (32 + header.len()) as u32,
            samples,
            flow.src.interface,
            rate,
            pool,
            0,
            flow.src.interface,
            flow.dst.interface,
            1,
        ];
        head.into_iter().for_each(|value| word(buffer, value));
        buffer.extend_from_slice(&header);
        frame_len as u64
    }

    /// A packet that the box dropped (sFlow Dropped Packet Notification Structures).
    fn write_discard(&mut self, traffic: &Traffic, random: &mut Random, buffer: &mut Vec<u8>) {
        let flow = traffic.flow(random);
        let v6 = traffic.is_v6(random);
        let (header, _) = sampled(&flow, v6, random);
        self.discard_sequence = self.discard_sequence.wrapping_add(1);
        let reason = REASONS[random.below(REASONS.len() as u32) as usize];
        let head = [
            5,
            (32 + header.len()) as u32,
            self.discard_sequence,
            // the source: an interface; none was dropped of the notices
            0,
            flow.src.interface,
            0,
            flow.src.interface,
            0,
            reason,
            1,
        ];
        head.into_iter().for_each(|value| word(buffer, value));
        buffer.extend_from_slice(&header);
    }

    /// One counter sample an interface: generic interface counters, 88 bytes.
    fn write_counters(&mut self, buffer: &mut Vec<u8>) {
        self.counter_sequence = self.counter_sequence.wrapping_add(1);
        for (index, counters) in INTERFACES.into_iter().zip(&self.interfaces) {
            for value in [2, 12 + 8 + 88, self.counter_sequence, index, 1, 1, 88] {
                word(buffer, value);
            }
            // ifIndex, ethernetCsmacd, 10 Gbit/s, full duplex, up and up
            word(buffer, index);
            word(buffer, 6);
            buffer.extend_from_slice(&10_000_000_000_u64.to_be_bytes());
            word(buffer, 1);
            word(buffer, 3);
            buffer.extend_from_slice(&counters.in_octets.to_be_bytes());
            for value in [counters.in_packets, 0, 0, 0, 0, 0] {
                word(buffer, value);
            }
            buffer.extend_from_slice(&counters.out_octets.to_be_bytes());
            for value in [counters.out_packets, 0, 0, 0, 0, 0] {
                word(buffer, value);
            }
        }
    }
}

/// A record of a raw header of Ethernet, and the length of the whole frame.
fn sampled(flow: &Flow<'_>, v6: bool, random: &mut Random) -> (Vec<u8>, usize) {
    let header = frame(flow, v6, random.next());
    let frame_len = (flow.packet_len as usize + if v6 { 20 } else { 0 }) + ETHERNET + FCS;
    let len = HEADER_BYTES.min(frame_len - FCS);
    let padded = len.next_multiple_of(4);
    let mut record = Vec::with_capacity(24 + padded);
    let head = [1, (16 + padded) as u32, 1, frame_len as u32, FCS as u32, len as u32];
    head.into_iter().for_each(|value| word(&mut record, value));
    record.extend_from_slice(&header[..len]);
    record.resize(24 + padded, 0);
    (record, frame_len)
}

/// The beginning of a frame of the flow: Ethernet, IPv4 or IPv6, TCP, UDP or ICMP.
fn frame(flow: &Flow<'_>, v6: bool, noise: u64) -> [u8; HEADER_BYTES] {
    let mut frame = [0; HEADER_BYTES];
    frame[..6].copy_from_slice(&[0x02, 0, 0x5e, 0, 1, flow.dst.interface as u8]);
    frame[6..12].copy_from_slice(&[0x02, 0, 0x5e, 0, 2, flow.src.interface as u8]);
    let protocol = protocol(flow, v6);
    let transport = if v6 {
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        let first = 6 << 28 | u32::from(flow.tos) << 20 | flow.label;
        frame[14..18].copy_from_slice(&first.to_be_bytes());
        frame[18..20].copy_from_slice(&((flow.packet_len - 20) as u16).to_be_bytes());
        frame[20] = protocol;
        frame[21] = flow.ttl;
        frame[22..38].copy_from_slice(&flow.src.v6);
        frame[38..54].copy_from_slice(&flow.dst.v6);
        54
    } else {
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14] = 0x45;
        frame[15] = flow.tos;
        frame[16..18].copy_from_slice(&(flow.packet_len as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&(noise as u16).to_be_bytes());
        frame[20] = 0x40;
        frame[22] = flow.ttl;
        frame[23] = protocol;
        frame[26..30].copy_from_slice(&flow.src.v4);
        frame[30..34].copy_from_slice(&flow.dst.v4);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        34
    };
    let ip_payload = flow.packet_len as usize - 20;
    match protocol {
        6 => {
            frame[transport..transport + 2].copy_from_slice(&flow.src_port.to_be_bytes());
            frame[transport + 2..transport + 4].copy_from_slice(&flow.dst_port.to_be_bytes());
            // one packet has the flags of its place in the connection: nothing to acknowledge in the first
            let is_first = noise & 15 == 0;
            frame[transport + 4..transport + 8].copy_from_slice(&(noise as u32).to_be_bytes());
            if !is_first {
                frame[transport + 8..transport + 12]
                    .copy_from_slice(&((noise >> 32) as u32 | 1).to_be_bytes());
            }
            frame[transport + 12] = 5 << 4;
            frame[transport + 13] = if is_first { 0x02 } else { 0x18 };
            frame[transport + 14..transport + 16].copy_from_slice(&[0xff, 0xff]);
        }
        17 => {
            frame[transport..transport + 2].copy_from_slice(&flow.src_port.to_be_bytes());
            frame[transport + 2..transport + 4].copy_from_slice(&flow.dst_port.to_be_bytes());
            frame[transport + 4..transport + 6].copy_from_slice(&(ip_payload as u16).to_be_bytes());
        }
        1 => frame[transport] = 8,
        58 => frame[transport] = 128,
        _ => {}
    }
    frame
}

/// RFC 1071, of an IPv4 header.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
