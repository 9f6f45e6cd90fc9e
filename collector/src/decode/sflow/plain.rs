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
const MOST: usize = 64;

/// One column of the rows that wait.
#[derive(Debug)]
struct Column<T: Item> {
    values: [T::Stored; MOST],
    /// The rows that have a value.
    some: u64,
}

impl<T: Item> Default for Column<T> {
    fn default() -> Self {
        Column { values: [T::Stored::default(); MOST], some: 0 }
    }
}

impl<T: Item> Column<T> {
    #[inline(always)]
    fn set(&mut self, row: usize, value: T) {
        if let Some(slot) = self.values.get_mut(row) {
            *slot = value.stored();
            self.some |= 1 << row;
        }
    }

    #[inline(always)]
    fn set_option(&mut self, row: usize, value: Option<T>) {
        if let Some(value) = value {
            self.set(row, value);
        }
    }

    /// The column is not touched where no row has a value.
    #[inline]
    fn flush(
        &mut self,
        n: usize,
        column: fn(&mut Builder, usize) -> &mut Values<T>,
        name: FlowColumn,
        out: &mut Builder,
    ) {
        let some = std::mem::take(&mut self.some);
        let Some(values) = self.values.get_mut(..n) else { return };
        if some == 0 {
            return;
        }
        if some.count_ones() as usize != n {
            // of rows before
            let absent = |(row, _): &(usize, &mut T::Stored)| some >> row & 1 == 0;
            values.iter_mut().enumerate().filter(absent).for_each(|(_, value)| *value = T::Stored::default());
        }
        column(out, name.index()).append_some(some, values);
    }
}

/// A column of labels of the rows that wait.
#[derive(Debug)]
struct Labels([Option<&'static str>; MOST]);

impl Default for Labels {
    fn default() -> Self {
        Labels([None; MOST])
    }
}

impl Labels {
    #[inline(always)]
    fn set(&mut self, row: usize, label: Option<&'static str>) {
        if let Some(slot) = self.0.get_mut(row) {
            *slot = label;
        }
    }

    fn flush(&mut self, n: usize, name: FlowColumn, out: &mut Builder) {
        let mut rest = self.0.get(..n).unwrap_or_default();
        if rest.iter().all(Option::is_none) {
            return;
        }
        let labels = out.labels(name.index());
        // one label for most rows: runs of them
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|label| *label == first).count();
            match first {
                Some(label) => labels.push_n(label, run),
                None => labels.keys.push_nulls(run),
            }
            rest = rest.get(run..).unwrap_or_default();
        }
    }
}

macro_rules! columns {
    ($($field:ident: $type:ty, $kind:ident $name:ident;)*) => {
        /// The columns that [`Frame::write`] fills, and those of a sample.
        #[derive(Debug, Default)]
        struct Columns {
            $($field: Column<$type>,)*
        }

        impl Columns {
            fn flush(&mut self, n: usize, out: &mut Builder) {
                $(self.$field.flush(n, Builder::$kind, FlowColumn::$name, out);)*
            }
        }
    };
}

columns! {
    bytes: u64, u64s Bytes;
    src_mac: [u8; 6], macs SrcMac;
    dst_mac: [u8; 6], macs DstMac;
    ether_type: u16, u16s EtherType;
    src_addr: [u8; 16], ips SrcAddr;
    dst_addr: [u8; 16], ips DstAddr;
    protocol: u8, u8s IpProtocol;
    tos: u8, u8s Tos;
    ttl: u8, u8s IpTtl;
    ip_bytes: u64, u64s IpBytes;
    flow_label: u32, u32s Ipv6FlowLabel;
    fragment_id: u32, u32s FragmentId;
    fragment_offset: u16, u16s FragmentOffset;
    src_port: u16, u16s SrcPort;
    dst_port: u16, u16s DstPort;
    tcp_flags: u16, u16s TcpFlags;
    icmp_type: u8, u8s IcmpType;
    icmp_code: u8, u8s IcmpCode;
    inner_src_addr: [u8; 16], ips InnerSrcAddr;
    inner_dst_addr: [u8; 16], ips InnerDstAddr;
    inner_protocol: u8, u8s InnerIpProtocol;
    inner_src_port: u16, u16s InnerSrcPort;
    inner_dst_port: u16, u16s InnerDstPort;
    vni: u32, u32s Vni;
    truncated: bool, bools FrameTruncated;
    rate: f64, f64s SamplingRate;
    effective: f64, f64s SamplingEffective;
    in_if: u32, u32s InIf;
    out_if: u32, u32s OutIf;
    direction: u8, u8s Direction;
}

/// What a sample says beside its records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) rate: Option<f64>,
    pub(super) rate_source: &'static str,
    pub(super) effective: Option<f64>,
    pub(super) input: Interface,
    pub(super) output: Interface,
    pub(super) direction: Option<u8>,
}

/// Rows of `flows` that are complete but for the columns in here.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    n: usize,
    columns: Columns,
    rate_source: Labels,
    in_if_flag: Labels,
    out_if_flag: Labels,
    tunnel: Labels,
    /// Rows with tags or labels.
    layered: Vec<(usize, Frame)>,
}

impl Waiting {
    /// Forgets all rows: those of a datagram that failed.
    pub(super) fn clear(&mut self) {
        if self.n > 0 {
            *self = Waiting::default();
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.n == MOST
    }

    pub(super) fn push(&mut self, bytes: u32, frame: &Frame, sample: &Sample) {
        let (row, columns) = (self.n, &mut self.columns);
        self.n += 1;
        columns.bytes.set(row, u64::from(bytes));
        if let Some((dst, src)) = frame.macs {
            columns.src_mac.set(row, src);
            columns.dst_mac.set(row, dst);
        }
        columns.ether_type.set_option(row, frame.ether_type);
        outer(columns, row, &frame.outer);
        if frame.tunnel.is_some() {
            inner(columns, row, &frame.inner);
        }
        self.tunnel.set(row, frame.tunnel);
        if frame.is_layered() {
            self.layered.push((row, *frame));
        }
        columns.vni.set_option(row, frame.vni);
        if frame.truncated {
            columns.truncated.set(row, true);
        }
        columns.rate.set_option(row, sample.rate);
        columns.effective.set_option(row, sample.effective);
        self.rate_source.set(row, Some(sample.rate_source));
        columns.in_if.set_option(row, sample.input.index());
        columns.out_if.set_option(row, sample.output.index());
        self.in_if_flag.set(row, sample.input.flag());
        self.out_if_flag.set(row, sample.output.flag());
        columns.direction.set_option(row, sample.direction);
    }

    /// Writes the rows, which are the last ones of the open batch.
    pub(super) fn flush(&mut self, out: &mut Builder) {
        let n = std::mem::take(&mut self.n);
        if n == 0 {
            return;
        }
        out.reopen(n);
        self.columns.flush(n, out);
        self.rate_source.flush(n, FlowColumn::SamplingSource, out);
        self.in_if_flag.flush(n, FlowColumn::InIfFlag, out);
        self.out_if_flag.flush(n, FlowColumn::OutIfFlag, out);
        self.tunnel.flush(n, FlowColumn::Tunnel, out);
        if !self.layered.is_empty() {
            lists(&self.layered, n, FlowColumn::FrameVlans, out, Frame::vlans);
            lists(&self.layered, n, FlowColumn::MplsLabels, out, Frame::labels);
            lists(&self.layered, n, FlowColumn::MplsExp, out, Frame::exps);
            self.layered.clear();
        }
        out.advance(n);
    }
}

/// The outermost packet: what [`Frame::write`] writes of it.
#[inline]
fn outer(columns: &mut Columns, row: usize, packet: &Packet) {
    if packet.version != 0 {
        columns.src_addr.set(row, packet.src);
        columns.dst_addr.set(row, packet.dst);
        columns.protocol.set(row, packet.protocol);
        columns.tos.set(row, packet.tos);
        columns.ttl.set(row, packet.ttl);
        if packet.bytes != 0 {
            columns.ip_bytes.set(row, u64::from(packet.bytes));
        }
        if packet.version == 6 {
            columns.flow_label.set(row, packet.flow_label);
        }
        if let Some((id, offset)) = packet.fragment {
            columns.fragment_id.set(row, id);
            columns.fragment_offset.set(row, offset);
        }
    }
    if let Some((src, dst)) = packet.ports {
        columns.src_port.set(row, src);
        columns.dst_port.set(row, dst);
    }
    columns.tcp_flags.set_option(row, packet.tcp_flags.map(u16::from));
    if let Some((kind, code)) = packet.icmp {
        columns.icmp_type.set(row, kind);
        columns.icmp_code.set(row, code);
    }
}

/// The packet inside a tunnel.
fn inner(columns: &mut Columns, row: usize, packet: &Packet) {
    if packet.version != 0 {
        columns.inner_src_addr.set(row, packet.src);
        columns.inner_dst_addr.set(row, packet.dst);
        columns.inner_protocol.set(row, packet.protocol);
    }
    if let Some((src, dst)) = packet.ports {
        columns.inner_src_port.set(row, src);
        columns.inner_dst_port.set(row, dst);
    }
}

fn lists<'a, I: Iterator<Item = u32>>(
    layered: &'a [(usize, Frame)],
    n: usize,
    name: FlowColumn,
    out: &mut Builder,
    items: impl Fn(&'a Frame) -> I,
) {
    if layered.iter().all(|(_, frame)| items(frame).next().is_none()) {
        return;
    }
    let lists = out.lists(name.index());
    let mut done = 0;
    for (row, frame) in layered {
        lists.push_nulls(row - done);
        lists.push(items(frame));
        done = row + 1;
    }
    lists.push_nulls(n - done);
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

    /// The packet and its length.
    pub(super) fn packet(&self) -> Option<(Frame, u32)> {
        let (link, frame_length, header) = self.header?;
        Some((frame::parse(link, header), frame_length))
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
