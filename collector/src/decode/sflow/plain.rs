//! Flow samples as switches send them by the million: a sampled header, perhaps with the records of the switch, the router
//! and the gateway. They are read one by one and written column by column, many rows at a time, of several datagrams where
//! whoever decodes lets them wait ([`super::super::Decoder::decode_on`]); samples with anything else are written row by row
//! ([`super::records`]). What is written is the same.

use weir_schemas::FlowColumn;

use super::Interface;
use super::records::Row;
use super::xdr::Xdr;
use crate::columns::{Builder, Item, Values};
use crate::decode::frame::{self, Frame, Link, Packet};

/// Rows that wait at most: a bit each.
const MOST: usize = 64;

/// The samples whose columns are not written yet, in memory that is used again and again. They are the last rows of the
/// open batch.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    samples: Vec<Plain>,
    len: usize,
}

impl Waiting {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= MOST
    }

    /// Room for another sample, with what an earlier one left there: all of it is to be written, and then it is to be
    /// kept. None where it is full.
    pub(super) fn next(&mut self) -> Option<&mut Plain> {
        if self.is_full() {
            return None;
        }
        if self.samples.len() <= self.len {
            self.samples.push(Plain::default());
        }
        self.samples.get_mut(self.len)
    }

    /// The sample is whole: its row is there.
    pub(super) fn keep(&mut self) {
        self.len += 1;
    }
}

/// A sample whose columns are not written yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Plain {
    pub(super) bytes: u32,
    pub(super) frame: Frame,
    pub(super) rate: Option<f64>,
    pub(super) rate_source: &'static str,
    pub(super) effective: Option<f64>,
    pub(super) input: Interface,
    pub(super) output: Interface,
    pub(super) direction: Option<u8>,
}

/// The records of a sample that may be plain.
#[derive(Debug, Default)]
pub(super) struct PlainRecords<'a> {
    header: Option<(Link, u32, &'a [u8])>,
    switch: Option<Xdr<'a>>,
    router: Option<Xdr<'a>>,
    gateway: Option<Xdr<'a>>,
}

impl<'a> PlainRecords<'a> {
    /// The records, where all are whole and of these kinds, none twice, and one is a header that can be read.
    pub(super) fn read(mut xdr: Xdr<'a>, count: u32) -> Option<PlainRecords<'a>> {
        let mut records = PlainRecords::default();
        for _ in 0..count {
            let (format, mut record) = xdr.formatted()?;
            let slot = match format {
                1 if records.header.is_none() => {
                    let [protocol, frame_length, _stripped, length] = record.u32s()?;
                    let length = usize::try_from(length).ok()?;
                    let link = Link::of_sflow(protocol)?;
                    // a header length that lies is cut to what is there
                    let header = record.0.get(..length).unwrap_or(record.0);
                    records.header = Some((link, frame_length, header));
                    continue;
                }
                1001 => &mut records.switch,
                1002 => &mut records.router,
                1003 => &mut records.gateway,
                _ => return None,
            };
            if slot.replace(record).is_some() {
                return None;
            }
        }
        records.header.is_some().then_some(records)
    }

    /// Reads the header into a sample.
    pub(super) fn parse(&self, sample: &mut Plain) {
        let Some((link, frame_length, header)) = self.header else { return };
        sample.bytes = frame_length;
        frame::parse_into(&mut sample.frame, link, header);
    }

    /// Whether there is more than a header.
    pub(super) fn has_more(&self) -> bool {
        self.switch.is_some() || self.router.is_some() || self.gateway.is_some()
    }

    /// Writes all records but the header, none of which fills a column of the frame; answers how many were too short.
    pub(super) fn write(&self, row: &mut Row<'_>) -> u32 {
        let mut bad = 0;
        if let Some(record) = self.switch {
            bad += u32::from(row.extended_switch(record).is_none());
        }
        if let Some(record) = self.router {
            bad += u32::from(row.extended_router(record).is_none());
        }
        if let Some(record) = self.gateway {
            bad += u32::from(row.extended_gateway(record).is_none());
        }
        bad
    }
}

/// What samples may have, a bit each: columns that are there together share one.
mod has {
    pub(super) const ALWAYS: u32 = 1;
    pub(super) const MACS: u32 = 1 << 1;
    pub(super) const ETHER_TYPE: u32 = 1 << 2;
    pub(super) const IP: u32 = 1 << 3;
    pub(super) const IP_BYTES: u32 = 1 << 4;
    pub(super) const IPV6: u32 = 1 << 5;
    pub(super) const FRAGMENT: u32 = 1 << 6;
    pub(super) const PORTS: u32 = 1 << 7;
    pub(super) const TCP: u32 = 1 << 8;
    pub(super) const ICMP: u32 = 1 << 9;
    pub(super) const LAYERS: u32 = 1 << 10;
    pub(super) const VNI: u32 = 1 << 11;
    pub(super) const TRUNCATED: u32 = 1 << 12;
    pub(super) const RATE: u32 = 1 << 13;
    pub(super) const EFFECTIVE: u32 = 1 << 14;
    pub(super) const INPUT: u32 = 1 << 15;
    pub(super) const OUTPUT: u32 = 1 << 16;
    pub(super) const INPUT_FLAG: u32 = 1 << 17;
    pub(super) const OUTPUT_FLAG: u32 = 1 << 18;
    pub(super) const DIRECTION: u32 = 1 << 19;
    pub(super) const INNER: u32 = 1 << 20;
    pub(super) const INNER_IP: u32 = 1 << 21;
    pub(super) const INNER_PORTS: u32 = 1 << 22;
}

/// Which samples have what.
struct Kinds {
    /// Of the first `len`.
    of: [u32; MOST],
    len: usize,
    any: u32,
    all: u32,
}

impl Kinds {
    fn new(samples: &[Plain]) -> Kinds {
        let mut kinds = Kinds { of: [0; MOST], len: samples.len(), any: 0, all: u32::MAX };
        for (kind, sample) in kinds.of.iter_mut().zip(samples) {
            *kind = sample.kind();
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
        let of = self.of.get(..self.len).unwrap_or(&self.of);
        of.iter().rev().fold(0, |bits, kind| bits << 1 | u64::from(kind & what != 0))
    }
}

impl Plain {
    #[inline]
    fn kind(&self) -> u32 {
        let Plain { frame, input, output, .. } = self;
        let outer = &frame.outer;
        let bit = |there: bool, what: u32| if there { what } else { 0 };
        let is_ip = outer.version != 0;
        let plain = has::ALWAYS
            | bit(frame.macs.is_some(), has::MACS)
            | bit(frame.ether_type.is_some(), has::ETHER_TYPE)
            | bit(is_ip, has::IP)
            | bit(is_ip && outer.bytes != 0, has::IP_BYTES)
            | bit(outer.version == 6, has::IPV6)
            | bit(is_ip && outer.fragment.is_some(), has::FRAGMENT)
            | bit(outer.ports.is_some(), has::PORTS)
            | bit(outer.tcp_flags.is_some(), has::TCP)
            | bit(outer.icmp.is_some(), has::ICMP)
            | bit(frame.is_layered(), has::LAYERS)
            | bit(frame.vni.is_some(), has::VNI)
            | bit(frame.truncated, has::TRUNCATED)
            | bit(self.rate.is_some(), has::RATE)
            | bit(self.effective.is_some(), has::EFFECTIVE)
            | bit(input.index().is_some(), has::INPUT)
            | bit(output.index().is_some(), has::OUTPUT)
            | bit(input.flag().is_some(), has::INPUT_FLAG)
            | bit(output.flag().is_some(), has::OUTPUT_FLAG)
            | bit(self.direction.is_some(), has::DIRECTION);
        if frame.tunnel.is_none() {
            return plain;
        }
        let inner = &frame.inner;
        plain
            | has::INNER
            | bit(inner.version != 0, has::INNER_IP)
            | bit(inner.ports.is_some(), has::INNER_PORTS)
    }
}

/// The samples, and where their columns go.
struct Flush<'a> {
    samples: &'a [Plain],
    kinds: &'a Kinds,
    out: &'a mut Builder,
}

impl Flush<'_> {
    /// A column of all samples; it is not touched where none has a value. Of those that have none `value` is zero.
    #[inline]
    fn put<T: Item>(
        &mut self,
        column: fn(&mut Builder, usize) -> &mut Values<T>,
        name: FlowColumn,
        what: u32,
        value: impl Fn(&Plain) -> T,
    ) {
        let some = self.kinds.mask(what);
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
    let kinds = &Kinds::new(samples);
    out.reopen(n);
    let mut to = Flush { samples, kinds, out };
    to.put(Builder::u64s, Bytes, has::ALWAYS, |sample| u64::from(sample.bytes));
    to.put(Builder::macs, SrcMac, has::MACS, |sample| sample.frame.macs.unwrap_or_default().1);
    to.put(Builder::macs, DstMac, has::MACS, |sample| sample.frame.macs.unwrap_or_default().0);
    to.put(Builder::u16s, EtherType, has::ETHER_TYPE, |sample| sample.frame.ether_type.unwrap_or(0));
    outer(&mut to);
    if kinds.any & has::LAYERS != 0 {
        layers(&mut to);
    }
    to.put(Builder::u32s, Vni, has::VNI, |sample| sample.frame.vni.unwrap_or(0));
    to.put(Builder::bools, FrameTruncated, has::TRUNCATED, |sample| sample.frame.truncated);
    to.put(Builder::f64s, SamplingRate, has::RATE, |sample| sample.rate.unwrap_or_default());
    to.put(Builder::f64s, SamplingEffective, has::EFFECTIVE, |sample| sample.effective.unwrap_or_default());
    labels(SamplingSource, samples, to.out, |sample| Some(sample.rate_source));
    to.put(Builder::u32s, InIf, has::INPUT, |sample| sample.input.index().unwrap_or(0));
    to.put(Builder::u32s, OutIf, has::OUTPUT, |sample| sample.output.index().unwrap_or(0));
    if kinds.any & has::INPUT_FLAG != 0 {
        labels(InIfFlag, samples, to.out, |sample| sample.input.flag());
    }
    if kinds.any & has::OUTPUT_FLAG != 0 {
        labels(OutIfFlag, samples, to.out, |sample| sample.output.flag());
    }
    to.put(Builder::u8s, Direction, has::DIRECTION, |sample| sample.direction.unwrap_or(0));
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
    to.put(Builder::ips, SrcAddr, has::IP, |sample| packet(sample).src);
    to.put(Builder::ips, DstAddr, has::IP, |sample| packet(sample).dst);
    to.put(Builder::u8s, IpProtocol, has::IP, |sample| packet(sample).protocol);
    to.put(Builder::u8s, Tos, has::IP, |sample| packet(sample).tos);
    to.put(Builder::u8s, IpTtl, has::IP, |sample| packet(sample).ttl);
    to.put(Builder::u64s, IpBytes, has::IP_BYTES, |sample| u64::from(packet(sample).bytes));
    to.put(Builder::u32s, Ipv6FlowLabel, has::IPV6, |sample| packet(sample).flow_label);
    to.put(Builder::u32s, FragmentId, has::FRAGMENT, |sample| packet(sample).fragment.unwrap_or_default().0);
    to.put(Builder::u16s, FragmentOffset, has::FRAGMENT, |sample| {
        packet(sample).fragment.unwrap_or_default().1
    });
    to.put(Builder::u16s, SrcPort, has::PORTS, |sample| packet(sample).ports.unwrap_or_default().0);
    to.put(Builder::u16s, DstPort, has::PORTS, |sample| packet(sample).ports.unwrap_or_default().1);
    to.put(Builder::u16s, TcpFlags, has::TCP, |sample| u16::from(packet(sample).tcp_flags.unwrap_or(0)));
    to.put(Builder::u8s, IcmpType, has::ICMP, |sample| packet(sample).icmp.unwrap_or_default().0);
    to.put(Builder::u8s, IcmpCode, has::ICMP, |sample| packet(sample).icmp.unwrap_or_default().1);
}

/// Tags, labels and tunnels.
fn layers(to: &mut Flush<'_>) {
    use FlowColumn::{
        FrameVlans, InnerDstAddr, InnerDstPort, InnerIpProtocol, InnerSrcAddr, InnerSrcPort, MplsExp,
        MplsLabels, Tunnel,
    };
    let samples = to.samples;
    if samples.iter().any(|sample| sample.frame.vlans().next().is_some()) {
        let lists = to.out.lists(FrameVlans.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.vlans()));
    }
    if samples.iter().any(|sample| sample.frame.labels().next().is_some()) {
        let lists = to.out.lists(MplsLabels.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.labels()));
        let lists = to.out.lists(MplsExp.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.exps()));
    }
    if to.kinds.any & has::INNER == 0 {
        return;
    }
    labels(Tunnel, samples, to.out, |sample| sample.frame.tunnel);
    /// What an earlier tunnel left there is none.
    fn inner(sample: &Plain) -> Packet {
        sample.frame.tunnel.map(|_| sample.frame.inner).unwrap_or_default()
    }
    to.put(Builder::ips, InnerSrcAddr, has::INNER_IP, |sample| inner(sample).src);
    to.put(Builder::ips, InnerDstAddr, has::INNER_IP, |sample| inner(sample).dst);
    to.put(Builder::u8s, InnerIpProtocol, has::INNER_IP, |sample| inner(sample).protocol);
    to.put(Builder::u16s, InnerSrcPort, has::INNER_PORTS, |sample| inner(sample).ports.unwrap_or_default().0);
    to.put(Builder::u16s, InnerDstPort, has::INNER_PORTS, |sample| inner(sample).ports.unwrap_or_default().1);
}

fn labels(
    name: FlowColumn,
    samples: &[Plain],
    out: &mut Builder,
    value: impl Fn(&Plain) -> Option<&'static str>,
) {
    let labels = out.labels(name.index());
    // one label for most rows: runs of them
    let mut rest = samples;
    // by where they lie: quicker, and where one text lies twice it is two runs
    let place = |label: Option<&'static str>| label.map(|label| (label.as_ptr(), label.len()));
    while let Some(first) = rest.first().map(&value) {
        let run = rest.iter().take_while(|sample| place(value(sample)) == place(first)).count();
        match first {
            Some(label) => labels.push_n(label, run),
            None => labels.keys.push_nulls(run),
        }
        rest = rest.get(run..).unwrap_or_default();
    }
}
