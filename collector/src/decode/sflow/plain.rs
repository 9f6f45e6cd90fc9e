//! Flow samples as switches send them by the million: a sampled header, perhaps with the records of the switch, the router
//! and the gateway. They are read one by one and written column by column, many rows at a time, of several datagrams where
//! whoever decodes lets them wait ([`super::super::Decoder::decode_on`]); samples with anything else are written row by row
//! ([`super::records`]). What is written is the same.

use weir_schemas::FlowColumn;

use super::constants;
use super::records::Row;
use super::state::Ratio;
use super::xdr::Xdr;
use crate::columns::{Builder, Item, Values};
use crate::decode::frame::{self, Frame, Link, Packet, has};
use crate::decode::sampling::RateSource;

/// Rows that wait at most: a bit each.
const MOST: usize = 64;
/// Formats of records.
const HEADER: u32 = 1;
const SWITCH: u32 = 1001;
const ROUTER: u32 = 1002;
const GATEWAY: u32 = 1003;

/// The samples whose columns are not written yet, in memory that is used again and again. They are the last rows of the
/// open batch.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    samples: Vec<Plain>,
    len: usize,
    /// Where their rates come from.
    rate_source: RateSource,
}

impl Waiting {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether another sample may wait, or those that do are to be written first: they are too many, or their rates are
    /// from elsewhere.
    #[inline]
    pub(super) fn has_room(&self, rate_source: RateSource) -> bool {
        self.len < self.samples.len() && self.rate_source == rate_source
    }

    /// Writes those that wait.
    #[inline(never)]
    pub(super) fn make_room(&mut self, rate_source: RateSource, out: &mut Builder) {
        flush(self, out);
        self.rate_source = rate_source;
        self.samples.resize(MOST, Plain::default());
    }

    /// Where there is room: another sample, with what an earlier one left there. All of it is to be written, and then it
    /// is to be kept.
    #[inline]
    pub(super) fn next(&mut self) -> Option<&mut Plain> {
        self.samples.get_mut(self.len)
    }

    /// The sample is whole: its row is there.
    #[inline]
    pub(super) fn keep(&mut self) {
        self.len += 1;
    }
}

/// A sample whose columns are not written yet. What it has not is zero. In the order of the memory: what few frames
/// have comes last, so that 64 samples are few lines of the cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Plain {
    /// [`also`]
    has: u32,
    bytes: u32,
    received: i64,
    rate: f64,
    effective: Ratio,
    input: u32,
    output: u32,
    direction: u8,
    frame: Frame,
}

/// What samples may have beside what their frames [`has`], a bit each.
mod also {
    use super::has::FREE;

    pub(super) const EFFECTIVE: u32 = FREE;
    pub(super) const INPUT: u32 = FREE << 1;
    pub(super) const OUTPUT: u32 = FREE << 2;
    pub(super) const DIRECTION: u32 = FREE << 3;
}

impl Plain {
    /// Sets everything but the frame and its length.
    #[inline]
    pub(super) fn set(
        &mut self,
        received: i64,
        rate: f64,
        effective: Option<Ratio>,
        (input, output): (Option<u32>, Option<u32>),
        direction: Option<u8>,
    ) {
        let bit = |there: bool, what: u32| if there { what } else { 0 };
        self.has = bit(effective.is_some(), also::EFFECTIVE)
            | bit(input.is_some(), also::INPUT)
            | bit(output.is_some(), also::OUTPUT)
            | bit(direction.is_some(), also::DIRECTION);
        self.received = received;
        self.rate = rate;
        self.effective = effective.unwrap_or_default();
        self.input = input.unwrap_or_default();
        self.output = output.unwrap_or_default();
        self.direction = direction.unwrap_or_default();
    }
}

/// The records of a sample that is plain: a header, and perhaps others.
#[derive(Debug)]
pub(super) struct PlainRecords<'a> {
    link: Link,
    frame_length: u32,
    header: &'a [u8],
    /// All of them.
    records: Xdr<'a>,
    count: u32,
}

impl<'a> PlainRecords<'a> {
    /// The records, where all are whole and of these kinds, none twice, and one is a header that can be read.
    #[inline]
    pub(super) fn read(records: Xdr<'a>, count: u32) -> Option<PlainRecords<'a>> {
        let (mut header, mut seen, mut rest) = (None, 0_u32, records);
        for _ in 0..count {
            let (format, mut record) = rest.formatted()?;
            let kind = match format {
                HEADER => {
                    let [protocol, frame_length, _stripped, length] = record.u32s()?;
                    let length = usize::try_from(length).ok()?;
                    // a header length that lies is cut to what is there
                    let bytes = record.0.get(..length).unwrap_or(record.0);
                    header = Some((Link::of_sflow(protocol)?, frame_length, bytes));
                    1
                }
                SWITCH => 1 << 1,
                ROUTER => 1 << 2,
                GATEWAY => 1 << 3,
                _ => return None,
            };
            if seen & kind != 0 {
                return None;
            }
            seen |= kind;
        }
        let (link, frame_length, header) = header?;
        Some(PlainRecords { link, frame_length, header, records, count })
    }

    /// Reads the header into a sample.
    #[inline]
    pub(super) fn parse(&self, sample: &mut Plain) {
        sample.bytes = self.frame_length;
        frame::parse_into(&mut sample.frame, self.link, self.header);
    }

    /// Whether there is more than a header.
    #[inline]
    pub(super) fn has_more(&self) -> bool {
        self.count > 1
    }

    /// Writes all records but the header, none of which fills a column of the frame; answers how many were too short.
    pub(super) fn write(&self, row: &mut Row<'_>) -> u32 {
        let mut bad = 0;
        let mut rest = self.records;
        for _ in 0..self.count {
            let Some((format, record)) = rest.formatted() else { break };
            let written = match format {
                SWITCH => row.extended_switch(record),
                ROUTER => row.extended_router(record),
                GATEWAY => row.extended_gateway(record),
                _ => Some(()),
            };
            bad += u32::from(written.is_none());
        }
        bad
    }
}

/// Which samples have what.
struct Kinds {
    /// Of as many as there are, then zeros.
    of: [u32; MOST],
    any: u32,
    all: u32,
}

impl Kinds {
    #[inline]
    fn new(bits: impl Iterator<Item = u32>) -> Kinds {
        let mut kinds = Kinds { of: [0; MOST], any: 0, all: u32::MAX };
        for (kind, bits) in kinds.of.iter_mut().zip(bits) {
            *kind = bits;
            kinds.any |= *kind;
            kinds.all &= *kind;
        }
        kinds
    }

    /// The samples that have it, the first one's bit being the least.
    #[inline]
    fn mask(&self, what: u32) -> u64 {
        if self.any & what == 0 {
            return 0;
        }
        if self.all & what != 0 {
            return u64::MAX;
        }
        let shift = what.trailing_zeros();
        let there = self.of.map(|kind| u8::from(kind >> shift & 1 != 0));
        // of eight octets that are 0 or 1 the product has all in its last octet, a bit each
        let eight = |octets: &[u8; 8]| u64::from_le_bytes(*octets).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        there.as_chunks().0.iter().rev().fold(0, |bits, octets| bits << 8 | eight(octets))
    }
}

/// The samples, and where their columns go.
struct Flush<'a> {
    samples: &'a [Plain],
    kinds: &'a Kinds,
    out: &'a mut Builder,
}

impl Flush<'_> {
    /// A column of all samples, of which those have a value whose bit is set in `some`; it is not touched where none has.
    /// Of those that have none `value` is zero.
    #[inline]
    fn put<T: Item>(
        &mut self,
        column: fn(&mut Builder, usize) -> &mut Values<T>,
        name: FlowColumn,
        some: u64,
        value: impl Fn(&Plain) -> T,
    ) {
        if some != 0 {
            column(self.out, name.index()).append_some(some, self.samples.iter().map(value));
        }
    }
}

/// Writes the rows that wait, the last of the open batch.
pub(crate) fn flush(waiting: &mut Waiting, out: &mut Builder) {
    use FlowColumn::{
        Bytes, Direction, DstMac, EtherType, FrameTruncated, InIf, InIfFlag, OutIf, OutIfFlag,
        SamplingEffective, SamplingRate, SamplingSource, SrcMac, Vni,
    };
    let n = std::mem::take(&mut waiting.len);
    let samples = waiting.samples.get(..n).unwrap_or_default();
    if n == 0 {
        return;
    }
    let kinds =
        &Kinds::new(samples.iter().map(|sample| sample.has | sample.frame.has | sample.frame.outer.has));
    out.reopen(n);
    let all = u64::MAX >> (MOST - n);
    constants(out, samples.iter().map(|sample| sample.received));
    let mut to = Flush { samples, kinds, out };
    to.put(Builder::u64s, Bytes, all, |sample| u64::from(sample.bytes));
    let macs = kinds.mask(has::MACS);
    to.put(Builder::macs, SrcMac, macs, |sample| sample.frame.macs.1);
    to.put(Builder::macs, DstMac, macs, |sample| sample.frame.macs.0);
    to.put(Builder::u16s, EtherType, kinds.mask(has::ETHER_TYPE), |sample| sample.frame.ether_type);
    outer(&mut to);
    layers(&mut to);
    to.put(Builder::u32s, Vni, kinds.mask(has::VNI), |sample| sample.frame.vni);
    let truncated = kinds.mask(has::TRUNCATED);
    to.put(Builder::bools, FrameTruncated, truncated, |sample| sample.frame.has(has::TRUNCATED));
    let rate = if waiting.rate_source == RateSource::Unknown { 0 } else { all };
    to.put(Builder::f64s, SamplingRate, rate, |sample| sample.rate);
    to.put(Builder::f64s, SamplingEffective, kinds.mask(also::EFFECTIVE), |sample| sample.effective.rate());
    to.out.labels(SamplingSource.index()).push_n(waiting.rate_source.label(), n);
    let (input, output) = (kinds.mask(also::INPUT), kinds.mask(also::OUTPUT));
    to.put(Builder::u32s, InIf, input, |sample| sample.input);
    to.put(Builder::u32s, OutIf, output, |sample| sample.output);
    // of samples with other flags each is written as a row
    for (column, some) in [(InIfFlag, input & all), (OutIfFlag, output & all)] {
        if some != all {
            let labels = to.out.labels(column.index());
            (0..n).for_each(|at| labels.push_option((some >> at & 1 == 0).then_some("local")));
        }
    }
    to.put(Builder::u8s, Direction, kinds.mask(also::DIRECTION), |sample| sample.direction);
    out.advance(n);
}

/// The outermost packet: what [`Frame::write`] writes of it.
fn outer(to: &mut Flush<'_>) {
    use FlowColumn::{
        DstAddr, DstPort, FragmentId, FragmentOffset, IcmpCode, IcmpType, IpBytes, IpProtocol, IpTtl,
        Ipv6FlowLabel, SrcAddr, SrcPort, TcpFlags, Tos,
    };
    fn packet(sample: &Plain) -> &Packet {
        &sample.frame.outer
    }
    let kinds = to.kinds;
    let ip = kinds.mask(has::IP);
    to.put(Builder::ips, SrcAddr, ip, |sample| packet(sample).src);
    to.put(Builder::ips, DstAddr, ip, |sample| packet(sample).dst);
    to.put(Builder::u8s, IpProtocol, ip, |sample| packet(sample).protocol);
    to.put(Builder::u8s, Tos, ip, |sample| packet(sample).tos);
    to.put(Builder::u8s, IpTtl, ip, |sample| packet(sample).ttl);
    to.put(Builder::u64s, IpBytes, kinds.mask(has::IP_BYTES), |sample| u64::from(packet(sample).bytes));
    to.put(Builder::u32s, Ipv6FlowLabel, kinds.mask(has::IPV6), |sample| packet(sample).flow_label);
    let fragment = kinds.mask(has::FRAGMENT);
    to.put(Builder::u32s, FragmentId, fragment, |sample| packet(sample).fragment.0);
    to.put(Builder::u16s, FragmentOffset, fragment, |sample| packet(sample).fragment.1);
    let ports = kinds.mask(has::PORTS);
    to.put(Builder::u16s, SrcPort, ports, |sample| packet(sample).ports.0);
    to.put(Builder::u16s, DstPort, ports, |sample| packet(sample).ports.1);
    to.put(Builder::u16s, TcpFlags, kinds.mask(has::TCP), |sample| u16::from(packet(sample).tcp_flags));
    let icmp = kinds.mask(has::ICMP);
    to.put(Builder::u8s, IcmpType, icmp, |sample| packet(sample).icmp.0);
    to.put(Builder::u8s, IcmpCode, icmp, |sample| packet(sample).icmp.1);
}

/// Tags, labels and tunnels.
fn layers(to: &mut Flush<'_>) {
    use FlowColumn::{
        FrameVlans, InnerDstAddr, InnerDstPort, InnerIpProtocol, InnerSrcAddr, InnerSrcPort, MplsExp,
        MplsLabels, Tunnel,
    };
    let samples = to.samples;
    if to.kinds.any & has::TAGS != 0 {
        let lists = to.out.lists(FrameVlans.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.vlans()));
    }
    if to.kinds.any & has::LABELS != 0 {
        let lists = to.out.lists(MplsLabels.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.labels()));
        let lists = to.out.lists(MplsExp.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.exps()));
    }
    if to.kinds.any & has::TUNNEL == 0 {
        return;
    }
    let labels = to.out.labels(Tunnel.index());
    samples.iter().for_each(|sample| labels.push_option(sample.frame.tunnel()));
    /// What an earlier tunnel left there is none.
    fn inner(sample: &Plain) -> Packet {
        sample.frame.tunnel().map(|_| sample.frame.inner).unwrap_or_default()
    }
    let kinds = Kinds::new(samples.iter().map(|sample| inner(sample).has));
    let (ip, ports) = (kinds.mask(has::IP), kinds.mask(has::PORTS));
    to.put(Builder::ips, InnerSrcAddr, ip, |sample| inner(sample).src);
    to.put(Builder::ips, InnerDstAddr, ip, |sample| inner(sample).dst);
    to.put(Builder::u8s, InnerIpProtocol, ip, |sample| inner(sample).protocol);
    to.put(Builder::u16s, InnerSrcPort, ports, |sample| inner(sample).ports.0);
    to.put(Builder::u16s, InnerDstPort, ports, |sample| inner(sample).ports.1);
}
