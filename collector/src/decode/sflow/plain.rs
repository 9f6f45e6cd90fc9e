//! Flow samples as switches send them by the million: a sampled header, perhaps with the records of the switch, the router
//! and the gateway. They are read one by one and written column by column, many rows at a time; samples with anything
//! else are written row by row ([`super::records`]). What is written is the same.

use weir_schemas::FlowColumn;

use super::Interface;
use super::records::Row;
use super::xdr::Xdr;
use crate::columns::{Builder, Item, Values};
use crate::decode::frame::{self, Frame, Link, Packet};

/// Rows that wait at most: a bit each.
pub(super) const MOST: usize = 64;

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
            let format = xdr.u32()?;
            let mut record = Xdr(xdr.structure()?);
            let slot = match format {
                1 if records.header.is_none() => {
                    let (protocol, frame_length, _stripped) = (record.u32()?, record.u32()?, record.u32()?);
                    let length = usize::try_from(record.u32()?).ok()?;
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
        sample.frame = frame::parse(link, header);
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

/// One column of all samples; it is not touched where none has a value.
#[inline]
fn put<T: Item>(
    column: fn(&mut Builder, usize) -> &mut Values<T>,
    name: FlowColumn,
    samples: &[Plain],
    out: &mut Builder,
    value: impl Fn(&Plain) -> Option<T>,
) {
    let some =
        samples.iter().rev().fold(0_u64, |bits, sample| bits << 1 | u64::from(value(sample).is_some()));
    if some != 0 {
        column(out, name.index()).append_some(some, samples.iter().map(value));
    }
}

/// Writes the rows that wait, the last `samples.len()` of the open batch.
pub(super) fn flush(samples: &mut Vec<Plain>, out: &mut Builder) {
    use FlowColumn::{
        Bytes, Direction, DstMac, EtherType, FrameTruncated, InIf, InIfFlag, OutIf, OutIfFlag,
        SamplingEffective, SamplingRate, SamplingSource, SrcMac, Vni,
    };
    let n = samples.len();
    if n == 0 {
        return;
    }
    out.reopen(n);
    put(Builder::u64s, Bytes, samples, out, |sample| Some(u64::from(sample.bytes)));
    put(Builder::macs, SrcMac, samples, out, |sample| sample.frame.macs.map(|(_, src)| src));
    put(Builder::macs, DstMac, samples, out, |sample| sample.frame.macs.map(|(dst, _)| dst));
    put(Builder::u16s, EtherType, samples, out, |sample| sample.frame.ether_type);
    outer(samples, out);
    if samples.iter().any(|sample| sample.frame.is_layered()) {
        layers(samples, out);
    }
    put(Builder::u32s, Vni, samples, out, |sample| sample.frame.vni);
    put(Builder::bools, FrameTruncated, samples, out, |sample| sample.frame.truncated.then_some(true));
    put(Builder::f64s, SamplingRate, samples, out, |sample| sample.rate);
    put(Builder::f64s, SamplingEffective, samples, out, |sample| sample.effective);
    labels(SamplingSource, samples, out, |sample| Some(sample.rate_source));
    put(Builder::u32s, InIf, samples, out, |sample| sample.input.index());
    put(Builder::u32s, OutIf, samples, out, |sample| sample.output.index());
    labels(InIfFlag, samples, out, |sample| sample.input.flag());
    labels(OutIfFlag, samples, out, |sample| sample.output.flag());
    put(Builder::u8s, Direction, samples, out, |sample| sample.direction);
    out.advance(n);
    samples.clear();
}

/// The outermost packet: what [`Frame::write`] writes of it.
fn outer(samples: &[Plain], out: &mut Builder) {
    use FlowColumn::{
        DstAddr, DstPort, FragmentId, FragmentOffset, IcmpCode, IcmpType, IpBytes, IpProtocol, IpTtl,
        Ipv6FlowLabel, SrcAddr, SrcPort, TcpFlags, Tos,
    };
    fn ip(sample: &Plain) -> Option<&Packet> {
        (sample.frame.outer.version != 0).then_some(&sample.frame.outer)
    }
    put(Builder::ips, SrcAddr, samples, out, |sample| ip(sample).map(|packet| packet.src));
    put(Builder::ips, DstAddr, samples, out, |sample| ip(sample).map(|packet| packet.dst));
    put(Builder::u8s, IpProtocol, samples, out, |sample| ip(sample).map(|packet| packet.protocol));
    put(Builder::u8s, Tos, samples, out, |sample| ip(sample).map(|packet| packet.tos));
    put(Builder::u8s, IpTtl, samples, out, |sample| ip(sample).map(|packet| packet.ttl));
    put(Builder::u64s, IpBytes, samples, out, |sample| {
        ip(sample).map(|packet| u64::from(packet.bytes)).filter(|bytes| *bytes != 0)
    });
    put(Builder::u32s, Ipv6FlowLabel, samples, out, |sample| {
        ip(sample).filter(|packet| packet.version == 6).map(|packet| packet.flow_label)
    });
    put(Builder::u32s, FragmentId, samples, out, |sample| ip(sample)?.fragment.map(|(id, _)| id));
    put(Builder::u16s, FragmentOffset, samples, out, |sample| ip(sample)?.fragment.map(|(_, at)| at));
    put(Builder::u16s, SrcPort, samples, out, |sample| sample.frame.outer.ports.map(|(src, _)| src));
    put(Builder::u16s, DstPort, samples, out, |sample| sample.frame.outer.ports.map(|(_, dst)| dst));
    put(Builder::u16s, TcpFlags, samples, out, |sample| sample.frame.outer.tcp_flags.map(u16::from));
    put(Builder::u8s, IcmpType, samples, out, |sample| sample.frame.outer.icmp.map(|(kind, _)| kind));
    put(Builder::u8s, IcmpCode, samples, out, |sample| sample.frame.outer.icmp.map(|(_, code)| code));
}

/// Tags, labels and tunnels.
fn layers(samples: &[Plain], out: &mut Builder) {
    use FlowColumn::{
        FrameVlans, InnerDstAddr, InnerDstPort, InnerIpProtocol, InnerSrcAddr, InnerSrcPort, MplsExp,
        MplsLabels, Tunnel,
    };
    if samples.iter().any(|sample| sample.frame.vlans().next().is_some()) {
        let lists = out.lists(FrameVlans.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.vlans()));
    }
    if samples.iter().any(|sample| sample.frame.labels().next().is_some()) {
        let lists = out.lists(MplsLabels.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.labels()));
        let lists = out.lists(MplsExp.index());
        samples.iter().for_each(|sample| lists.push(sample.frame.exps()));
    }
    labels(Tunnel, samples, out, |sample| sample.frame.tunnel);
    fn inner(sample: &Plain) -> Option<&Packet> {
        sample.frame.tunnel.map(|_| &sample.frame.inner)
    }
    fn ip(sample: &Plain) -> Option<&Packet> {
        inner(sample).filter(|packet| packet.version != 0)
    }
    put(Builder::ips, InnerSrcAddr, samples, out, |sample| ip(sample).map(|packet| packet.src));
    put(Builder::ips, InnerDstAddr, samples, out, |sample| ip(sample).map(|packet| packet.dst));
    put(Builder::u8s, InnerIpProtocol, samples, out, |sample| ip(sample).map(|packet| packet.protocol));
    put(Builder::u16s, InnerSrcPort, samples, out, |sample| inner(sample)?.ports.map(|(src, _)| src));
    put(Builder::u16s, InnerDstPort, samples, out, |sample| inner(sample)?.ports.map(|(_, dst)| dst));
}

fn labels(
    name: FlowColumn,
    samples: &[Plain],
    out: &mut Builder,
    value: impl Fn(&Plain) -> Option<&'static str>,
) {
    if samples.iter().all(|sample| value(sample).is_none()) {
        return;
    }
    let labels = out.labels(name.index());
    // one label for most rows: runs of them
    let mut rest = samples;
    while let Some(first) = rest.first().map(&value) {
        let run = rest.iter().take_while(|sample| value(sample) == first).count();
        match first {
            Some(label) => labels.push_n(label, run),
            None => labels.keys.push_nulls(run),
        }
        rest = rest.get(run..).unwrap_or_default();
    }
}
