//! NetFlow v5 (Cisco's format), v9 (RFC 3954) and IPFIX (RFC 7011).

use super::extras::{self, Due};
use super::traffic::Flow;
use super::{Context, Exporter};

/// Records a datagram, so that it fits into 1,472 bytes.
const V5_RECORDS: usize = 30;
const V9_RECORDS: usize = 24;
const V9_RECORDS_V6: usize = 13;
const IPFIX_RECORDS: usize = 20;
const IPFIX_RECORDS_V6: usize = 15;

const TEMPLATE_V4: u16 = 256;
const TEMPLATE_V6: u16 = 257;
const TEMPLATE_SAMPLER: u16 = 258;
/// The sampler that all flows of an exporter name.
pub(super) const SAMPLER: u8 = 1;
/// AS_TRANS (RFC 6793 §9) stands for numbers that do not fit into 16 bits.
const AS_TRANS: u16 = 23_456;

fn put<const N: usize>(record: &mut [u8], at: usize, bytes: [u8; N]) {
    record[at..at + N].copy_from_slice(&bytes);
}

/// An exporter of v5.
#[derive(Debug, Default)]
pub(super) struct V5 {
    flows: u32,
}

impl V5 {
    pub(super) fn write(&mut self, context: Context<'_>, buffer: &mut Vec<u8>) {
        let Context { exporter, traffic, random, totals, now_us, wanted, .. } = context;
        let count = V5_RECORDS.min(wanted);
        let uptime = exporter.uptime_ms(now_us);
        let mut header = [0; 24];
        put(&mut header, 0, 5_u16.to_be_bytes());
        put(&mut header, 2, (count as u16).to_be_bytes());
        put(&mut header, 4, uptime.to_be_bytes());
        put(&mut header, 8, seconds(now_us).to_be_bytes());
        put(&mut header, 12, ((now_us.rem_euclid(1_000_000) * 1_000) as u32).to_be_bytes());
        put(&mut header, 16, self.flows.to_be_bytes());
        put(&mut header, 20, (exporter.domain() as u16).to_be_bytes());
        // mode 1 (deterministic) in the top two bits, where there is sampling at all
        let mode = if exporter.sampling_rate > 1 { 1 << 14 } else { 0 };
        put(&mut header, 22, (mode | exporter.sampling_rate as u16).to_be_bytes());
        buffer.extend_from_slice(&header);
        for _ in 0..count {
            let flow = traffic.flow(random);
            let (first, last) = times(&flow, uptime);
            let mut record = [0; 48];
            put(&mut record, 0, flow.src.v4);
            put(&mut record, 4, flow.dst.v4);
            put(&mut record, 8, next_hop(&flow));
            put(&mut record, 12, (flow.src.interface as u16).to_be_bytes());
            put(&mut record, 14, (flow.dst.interface as u16).to_be_bytes());
            put(&mut record, 16, flow.packets.to_be_bytes());
            put(&mut record, 20, flow.bytes.to_be_bytes());
            put(&mut record, 24, first.to_be_bytes());
            put(&mut record, 28, last.to_be_bytes());
            put(&mut record, 32, flow.src_port.to_be_bytes());
            put(&mut record, 34, flow.dst_port.to_be_bytes());
            record[37] = flow.tcp_flags;
            record[38] = flow.protocol;
            record[39] = flow.tos;
            put(&mut record, 40, as16(flow.src.autonomous_system));
            put(&mut record, 42, as16(flow.dst.autonomous_system));
            record[44] = flow.src.mask;
            record[45] = flow.dst.mask;
            buffer.extend_from_slice(&record);
            totals.add_flow(u64::from(flow.bytes), u64::from(flow.packets), exporter.sampling_rate);
        }
        self.flows = self.flows.wrapping_add(count as u32);
    }
}

fn as16(number: u32) -> [u8; 2] {
    u16::try_from(number).unwrap_or(AS_TRANS).to_be_bytes()
}

fn seconds(now_us: i64) -> u32 {
    now_us.div_euclid(1_000_000) as u32
}

/// First and last packet in the exporter's uptime.
fn times(flow: &Flow<'_>, uptime: u32) -> (u32, u32) {
    let last = uptime.wrapping_sub(flow.lag_ms);
    (last.wrapping_sub(flow.duration_ms), last)
}

/// The router behind the outgoing interface.
fn next_hop(flow: &Flow<'_>) -> [u8; 4] {
    [10, 255, 255, flow.dst.interface as u8]
}

fn next_hop_v6(flow: &Flow<'_>) -> [u8; 16] {
    [0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, flow.dst.interface as u8]
}

/// An exporter of v9 or IPFIX.
#[derive(Debug, Default)]
pub(super) struct Templated {
    /// v9: datagrams; IPFIX: data records.
    sequence: u32,
    since_refresh: u32,
    /// Which of the extras are due.
    turn: u32,
    /// When templates were sent last.
    refreshed_us: Option<i64>,
}

/// The fields behind the addresses, as (element, length). v9: 43 bytes in IPv4 records.
const V9_FIELDS: [(u16, u16); 17] = [
    (10, 4),
    (14, 4),
    (2, 4),
    (1, 4),
    (22, 4),
    (21, 4),
    (7, 2),
    (11, 2),
    (6, 1),
    (4, 1),
    (5, 1),
    (16, 4),
    (17, 4),
    (9, 1),
    (13, 1),
    (61, 1),
    (48, 1),
];
const V9_TAIL: usize = 43;
const V9_V4: [(u16, u16); 3] = [(8, 4), (12, 4), (15, 4)];
const V9_V6: [(u16, u16); 4] = [(27, 16), (28, 16), (62, 16), (31, 4)];

const IPFIX_FIELDS: [(u16, u16); 20] = [
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
    (302, 1),
    (58, 2),
    (136, 1),
    (192, 1),
];
const IPFIX_TAIL: usize = 64;
const IPFIX_V4: [(u16, u16); 2] = [(8, 4), (12, 4)];
const IPFIX_V6: [(u16, u16); 2] = [(27, 16), (28, 16)];
/// IPv6 records carry other elements for the prefix lengths.
const fn v6_element(element: u16) -> u16 {
    match element {
        9 => 29,
        13 => 30,
        other => other,
    }
}

impl Templated {
    fn is_refresh_due(&mut self, context: &Context<'_>) -> bool {
        let due = match self.refreshed_us {
            None => true,
            Some(last) => {
                self.since_refresh >= context.limits.refresh_datagrams
                    || context.now_us - last >= context.limits.refresh_us
            }
        };
        if due {
            self.refreshed_us = Some(context.now_us);
            self.since_refresh = 0;
        }
        due
    }

    pub(super) fn write_v9(&mut self, context: Context<'_>, buffer: &mut Vec<u8>) {
        let mut header = [0; 20];
        put(&mut header, 0, 9_u16.to_be_bytes());
        put(&mut header, 4, context.exporter.uptime_ms(context.now_us).to_be_bytes());
        put(&mut header, 8, seconds(context.now_us).to_be_bytes());
        put(&mut header, 12, self.sequence.to_be_bytes());
        put(&mut header, 16, context.exporter.domain().to_be_bytes());
        buffer.extend_from_slice(&header);
        let refresh = self.is_refresh_due(&context);
        let count = if refresh {
            v9_templates(context.exporter, buffer);
            context.totals.options_records += 1;
            4
        } else {
            self.since_refresh += 1;
            v9_data(context, buffer)
        };
        put(buffer, 2, (count as u16).to_be_bytes());
        // RFC 3954 §5.1: counts export packets
        self.sequence = self.sequence.wrapping_add(1);
    }

    pub(super) fn write_ipfix(&mut self, context: Context<'_>, buffer: &mut Vec<u8>) {
        let mut header = [0; 16];
        put(&mut header, 0, 10_u16.to_be_bytes());
        put(&mut header, 4, seconds(context.now_us).to_be_bytes());
        put(&mut header, 8, self.sequence.to_be_bytes());
        put(&mut header, 12, context.exporter.domain().to_be_bytes());
        buffer.extend_from_slice(&header);
        let refresh = self.is_refresh_due(&context);
        let records = if refresh {
            ipfix_templates(context.exporter, buffer);
            let records = 1 + if context.limits.extras { extras::templates(buffer) } else { 0 };
            context.totals.options_records += records as u64;
            records
        } else {
            self.since_refresh += 1;
            let due = if context.limits.extras { extras::due(self.turn) } else { Due::Usual };
            self.turn = self.turn.wrapping_add(1);
            match due {
                Due::Usual => ipfix_data(context, buffer),
                Due::Calls => extras::calls(context, buffer),
                Due::NatEvents => extras::nat_events(context, buffer),
            }
        };
        let len = buffer.len() as u16;
        put(buffer, 2, len.to_be_bytes());
        // RFC 7011 §3.1: counts data records, those of options too, and says how many came before this message
        self.sequence = self.sequence.wrapping_add(records as u32);
    }
}

/// Opens a set; [`close_set`] writes its length.
pub(super) fn open_set(buffer: &mut Vec<u8>, id: u16) -> usize {
    let at = buffer.len();
    buffer.extend_from_slice(&id.to_be_bytes());
    buffer.extend_from_slice(&[0, 0]);
    at
}

/// Pads to four bytes and writes the length.
pub(super) fn close_set(buffer: &mut Vec<u8>, at: usize) {
    while !(buffer.len() - at).is_multiple_of(4) {
        buffer.push(0);
    }
    let len = (buffer.len() - at) as u16;
    put(buffer, at + 2, len.to_be_bytes());
}

pub(super) fn words<const N: usize>(buffer: &mut Vec<u8>, words: [u16; N]) {
    words.into_iter().for_each(|word| buffer.extend_from_slice(&word.to_be_bytes()));
}

pub(super) fn fields(buffer: &mut Vec<u8>, fields: impl IntoIterator<Item = (u16, u16)>) {
    fields.into_iter().for_each(|(element, len)| words(buffer, [element, len]));
}

fn v9_templates(exporter: &Exporter, buffer: &mut Vec<u8>) {
    let set = open_set(buffer, 0);
    words(buffer, [TEMPLATE_V4, (V9_V4.len() + V9_FIELDS.len()) as u16]);
    fields(buffer, V9_V4.into_iter().chain(V9_FIELDS));
    words(buffer, [TEMPLATE_V6, (V9_V6.len() + V9_FIELDS.len()) as u16]);
    fields(buffer, V9_V6.into_iter().chain(V9_FIELDS).map(|(element, len)| (v6_element(element), len)));
    close_set(buffer, set);
    // RFC 3954 §6.1: lengths of scope and options in bytes; scope 1 is the system
    let set = open_set(buffer, 1);
    words(buffer, [TEMPLATE_SAMPLER, 4, 12]);
    fields(buffer, [(1, 4), (48, 1), (49, 1), (50, 4)]);
    close_set(buffer, set);
    let set = open_set(buffer, TEMPLATE_SAMPLER);
    buffer.extend_from_slice(&exporter.addr.octets());
    // mode 2: random
    buffer.extend_from_slice(&[SAMPLER, 2]);
    buffer.extend_from_slice(&exporter.sampling_rate.to_be_bytes());
    close_set(buffer, set);
}

fn v9_data(context: Context<'_>, buffer: &mut Vec<u8>) -> usize {
    let Context { exporter, traffic, random, totals, now_us, wanted, .. } = context;
    let v6 = traffic.is_v6(random);
    let count = if v6 { V9_RECORDS_V6 } else { V9_RECORDS }.min(wanted);
    let uptime = exporter.uptime_ms(now_us);
    let set = open_set(buffer, if v6 { TEMPLATE_V6 } else { TEMPLATE_V4 });
    for _ in 0..count {
        let flow = traffic.flow(random);
        if v6 {
            let mut head = [0; 52];
            put(&mut head, 0, flow.src.v6);
            put(&mut head, 16, flow.dst.v6);
            put(&mut head, 32, next_hop_v6(&flow));
            put(&mut head, 48, flow.label.to_be_bytes());
            buffer.extend_from_slice(&head);
        } else {
            let mut head = [0; 12];
            put(&mut head, 0, flow.src.v4);
            put(&mut head, 4, flow.dst.v4);
            put(&mut head, 8, next_hop(&flow));
            buffer.extend_from_slice(&head);
        }
        buffer.extend_from_slice(&v9_tail(&flow, uptime, v6));
        totals.add_flow(u64::from(flow.bytes), u64::from(flow.packets), exporter.sampling_rate);
    }
    close_set(buffer, set);
    count
}

/// [`V9_FIELDS`].
fn v9_tail(flow: &Flow<'_>, uptime: u32, v6: bool) -> [u8; V9_TAIL] {
    let (first, last) = times(flow, uptime);
    let mut tail = [0; V9_TAIL];
    put(&mut tail, 0, flow.src.interface.to_be_bytes());
    put(&mut tail, 4, flow.dst.interface.to_be_bytes());
    put(&mut tail, 8, flow.packets.to_be_bytes());
    put(&mut tail, 12, flow.bytes.to_be_bytes());
    put(&mut tail, 16, first.to_be_bytes());
    put(&mut tail, 20, last.to_be_bytes());
    put(&mut tail, 24, flow.src_port.to_be_bytes());
    put(&mut tail, 26, flow.dst_port.to_be_bytes());
    tail[28] = flow.tcp_flags;
    tail[29] = protocol(flow, v6);
    tail[30] = flow.tos;
    put(&mut tail, 31, flow.src.autonomous_system.to_be_bytes());
    put(&mut tail, 35, flow.dst.autonomous_system.to_be_bytes());
    tail[39] = if v6 { flow.src.mask_v6 } else { flow.src.mask };
    tail[40] = if v6 { flow.dst.mask_v6 } else { flow.dst.mask };
    tail[41] = 0;
    tail[42] = SAMPLER;
    tail
}

/// ICMP has a number of its own in IPv6.
pub(super) fn protocol(flow: &Flow<'_>, v6: bool) -> u8 {
    if v6 && flow.protocol == 1 { 58 } else { flow.protocol }
}

fn ipfix_templates(exporter: &Exporter, buffer: &mut Vec<u8>) {
    let set = open_set(buffer, 2);
    words(buffer, [TEMPLATE_V4, (IPFIX_V4.len() + IPFIX_FIELDS.len()) as u16]);
    fields(buffer, IPFIX_V4.into_iter().chain(IPFIX_FIELDS));
    words(buffer, [TEMPLATE_V6, (IPFIX_V6.len() + IPFIX_FIELDS.len()) as u16]);
    fields(buffer, IPFIX_V6.into_iter().chain(IPFIX_FIELDS).map(|(element, len)| (v6_element(element), len)));
    close_set(buffer, set);
    // RFC 7011 §3.4.2.2 and RFC 5477: the selector's id is the scope; one packet taken, N - 1 left
    let set = open_set(buffer, 3);
    words(buffer, [TEMPLATE_SAMPLER, 4, 1]);
    fields(buffer, [(302, 4), (304, 2), (305, 4), (306, 4)]);
    close_set(buffer, set);
    let set = open_set(buffer, TEMPLATE_SAMPLER);
    buffer.extend_from_slice(&u32::from(SAMPLER).to_be_bytes());
    words(buffer, [1]);
    buffer.extend_from_slice(&1_u32.to_be_bytes());
    buffer.extend_from_slice(&(exporter.sampling_rate - 1).to_be_bytes());
    close_set(buffer, set);
}

fn ipfix_data(context: Context<'_>, buffer: &mut Vec<u8>) -> usize {
    let Context { exporter, traffic, random, totals, now_us, wanted, .. } = context;
    let v6 = traffic.is_v6(random);
    let count = if v6 { IPFIX_RECORDS_V6 } else { IPFIX_RECORDS }.min(wanted);
    let now_ms = now_us.div_euclid(1_000) as u64;
    let set = open_set(buffer, if v6 { TEMPLATE_V6 } else { TEMPLATE_V4 });
    for _ in 0..count {
        let flow = traffic.flow(random);
        if v6 {
            buffer.extend_from_slice(&flow.src.v6);
            buffer.extend_from_slice(&flow.dst.v6);
        } else {
            buffer.extend_from_slice(&flow.src.v4);
            buffer.extend_from_slice(&flow.dst.v4);
        }
        buffer.extend_from_slice(&ipfix_tail(&flow, now_ms, v6));
        totals.add_flow(u64::from(flow.bytes), u64::from(flow.packets), exporter.sampling_rate);
    }
    close_set(buffer, set);
    count
}

/// [`IPFIX_FIELDS`].
fn ipfix_tail(flow: &Flow<'_>, now_ms: u64, v6: bool) -> [u8; IPFIX_TAIL] {
    let end = now_ms.saturating_sub(u64::from(flow.lag_ms));
    let start = end.saturating_sub(u64::from(flow.duration_ms));
    let mut tail = [0; IPFIX_TAIL];
    put(&mut tail, 0, flow.src_port.to_be_bytes());
    put(&mut tail, 2, flow.dst_port.to_be_bytes());
    tail[4] = protocol(flow, v6);
    tail[5] = flow.tos;
    put(&mut tail, 6, u16::from(flow.tcp_flags).to_be_bytes());
    put(&mut tail, 8, u64::from(flow.bytes).to_be_bytes());
    put(&mut tail, 16, u64::from(flow.packets).to_be_bytes());
    put(&mut tail, 24, flow.src.interface.to_be_bytes());
    put(&mut tail, 28, flow.dst.interface.to_be_bytes());
    put(&mut tail, 32, flow.src.autonomous_system.to_be_bytes());
    put(&mut tail, 36, flow.dst.autonomous_system.to_be_bytes());
    tail[40] = if v6 { flow.src.mask_v6 } else { flow.src.mask };
    tail[41] = if v6 { flow.dst.mask_v6 } else { flow.dst.mask };
    put(&mut tail, 43, start.to_be_bytes());
    put(&mut tail, 51, end.to_be_bytes());
    tail[59] = SAMPLER;
    put(&mut tail, 60, (flow.src.interface as u16).to_be_bytes());
    // active timeout, end of flow, idle timeout
    tail[62] = match (flow.duration_ms, flow.tcp_flags & 1) {
        (60_000.., _) => 2,
        (_, 1) => 3,
        _ => 1,
    };
    tail[63] = flow.ttl;
    tail
}
