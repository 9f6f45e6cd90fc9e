//! The records of a flow sample or of a discarded packet, into the open row.

use std::io::Write;

use weir_schemas::{Address, FlowColumn};

use super::formats::{self, Field};
use super::xdr::{Xdr, words};
use crate::columns::Builder;
use crate::decode::frame::{self, Frame, Link};

/// Records of one flow sample that are looked at; agents send three or four, hosts ten.
pub(crate) const MAX_RECORDS: usize = 16;
/// Items of a label or tag stack that are kept.
const MAX_STACK: usize = 64;
/// Bytes of an unknown record that are kept in `extra`.
pub(super) const MAX_UNKNOWN_BYTES: usize = 1_024;

/// What is counted while the samples of a datagram are walked.
#[derive(Debug, Default)]
pub(super) struct Context {
    /// Samples and records of unknown format, repeated ones, and those beyond the limit of a sample.
    pub(super) skipped: u32,
    /// Bad records of the open sample.
    pub(super) bad: u32,
    /// Rows of the three tables of counters.
    pub(super) interfaces: usize,
    pub(super) hosts: usize,
    pub(super) queues: usize,
}

/// The records of a sample: their formats and bytes. The first of a format counts.
pub(super) struct Records<'a, const MAX: usize> {
    found: [(u32, &'a [u8]); MAX],
    len: usize,
}

impl<'a, const MAX: usize> Records<'a, MAX> {
    /// Walks `count` records, or as many as there are.
    pub(super) fn read(xdr: Xdr<'a>, count: u32, context: &mut Context) -> Self {
        Self::read_repeated(xdr, count, context, None)
    }

    /// The same; of the format `repeated` all records count.
    pub(super) fn read_repeated(
        mut xdr: Xdr<'a>,
        count: u32,
        context: &mut Context,
        repeated: Option<u32>,
    ) -> Self {
        let mut records = Records { found: [(0, &[]); MAX], len: 0 };
        for _ in 0..count {
            let Some((format, Xdr(bytes))) = xdr.formatted() else {
                context.bad += 1;
                break;
            };
            let again = Some(format) != repeated && records.get(format).is_some();
            if records.len == MAX || again {
                context.skipped += 1;
            } else if let Some(slot) = records.found.get_mut(records.len) {
                *slot = (format, bytes);
                records.len += 1;
            }
        }
        records
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &'a [u8])> + '_ {
        self.found.iter().take(self.len).copied()
    }

    #[inline]
    fn get(&self, format: u32) -> Option<&'a [u8]> {
        self.iter().find(|(found, _)| *found == format).map(|(_, bytes)| bytes)
    }
}

/// The open row, with the entries of `extra` that it has so far.
pub(super) struct Row<'a> {
    pub(super) out: &'a mut Builder,
    extra_column: usize,
    has_extra: bool,
}

/// Appends a value to a column of the open row that has none yet.
macro_rules! put {
    ($row:expr, $kind:ident, $column:ident, $value:expr) => {
        if !$row.out.has(FlowColumn::$column.index()) {
            $row.out.$kind(FlowColumn::$column.index()).push($value);
        }
    };
}

impl<'a> Row<'a> {
    pub(super) fn new(out: &'a mut Builder) -> Row<'a> {
        Row::with_extra(out, FlowColumn::Extra.index())
    }

    pub(super) fn with_extra(out: &'a mut Builder, extra_column: usize) -> Row<'a> {
        Row { out, extra_column, has_extra: false }
    }

    /// An entry of `extra`; the first of a name counts (names are of one record each, and records do not repeat).
    pub(super) fn entry(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.has_extra = true;
        self.out.maps(self.extra_column).entry_with(name, write);
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        // writing to a vector cannot fail
        self.entry(name, |text| drop(write!(text, "{value}")));
    }

    fn address(&mut self, name: &str, value: Address) {
        self.entry(name, |text| drop(write!(text, "{value}")));
    }

    fn text(&mut self, name: &str, value: &[u8]) {
        self.entry(name, |text| text.extend_from_slice(value));
    }

    /// Ends the row's `extra`. Must be called before the row is advanced or taken back.
    pub(super) fn close(&mut self) {
        if self.has_extra {
            self.out.maps(self.extra_column).close_row();
            self.has_extra = false;
        }
    }

    /// Reads the records; false where the row is not worth keeping: bad before anything about the packet was known.
    pub(super) fn packet(&mut self, xdr: Xdr<'_>, count: u32, context: &mut Context) -> bool {
        let records = Records::<MAX_RECORDS>::read(xdr, count, context);
        // what describes the packet comes first, and of that the header: it knows most
        for format in 1..=4 {
            if let Some(bytes) = records.get(format)
                && self.description(format, Xdr(bytes), context).is_none()
            {
                context.bad += 1;
            }
        }
        if context.bad > 0 && !self.out.has(FlowColumn::Bytes.index()) {
            return false;
        }
        for (format, bytes) in records.iter().filter(|(format, _)| !(1..=4).contains(format)) {
            if self.record(format, Xdr(bytes), context).is_none() {
                context.bad += 1;
            }
        }
        true
    }

    fn description(&mut self, format: u32, xdr: Xdr<'_>, context: &mut Context) -> Option<()> {
        match format {
            1 => self.sampled_header(xdr, context),
            2 => self.sampled_ethernet(xdr),
            3 => self.sampled_ipv4(xdr),
            _ => self.sampled_ipv6(xdr),
        }
    }

    /// "sampled_header": the first bytes of the packet
    fn sampled_header(&mut self, mut xdr: Xdr<'_>, context: &mut Context) -> Option<()> {
        let protocol = xdr.u32()?;
        let frame_length = xdr.u32()?;
        let _stripped = xdr.u32()?;
        let length = usize::try_from(xdr.u32()?).ok()?;
        // a header length that lies is cut to what is there
        let header = xdr.0.get(..length).unwrap_or(xdr.0);
        self.out.u64s(FlowColumn::Bytes.index()).push(u64::from(frame_length));
        let Some(link) = Link::of_sflow(protocol) else {
            context.skipped += 1;
            return Some(());
        };
        let frame: Frame = frame::parse(link, header);
        frame.write(self.out);
        Some(())
    }

    fn sampled_ethernet(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let ethernet = Ethernet::read(&mut xdr)?;
        put!(self, u64s, Bytes, u64::from(ethernet.length));
        put!(self, macs, SrcMac, ethernet.src);
        put!(self, macs, DstMac, ethernet.dst);
        if let Ok(kind) = u16::try_from(ethernet.kind) {
            put!(self, u16s, EtherType, kind);
        }
        Some(())
    }

    fn sampled_ipv4(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let packet = Ip::read_v4(&mut xdr)?;
        self.sampled_ip(&packet);
        Some(())
    }

    fn sampled_ipv6(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let packet = Ip::read_v6(&mut xdr)?;
        self.sampled_ip(&packet);
        Some(())
    }

    fn sampled_ip(&mut self, packet: &Ip) {
        put!(self, u64s, Bytes, u64::from(packet.length));
        // never half of this and half of the header
        if self.out.has(FlowColumn::SrcAddr.index()) {
            return;
        }
        put!(self, u64s, IpBytes, u64::from(packet.length));
        put!(self, ips, SrcAddr, packet.src.0);
        put!(self, ips, DstAddr, packet.dst.0);
        if let Ok(protocol) = u8::try_from(packet.protocol) {
            put!(self, u8s, IpProtocol, protocol);
            self.ports(protocol, packet);
        }
        if let Ok(tos) = u8::try_from(packet.tos) {
            put!(self, u8s, Tos, tos);
        }
    }

    /// "TCP/UDP source port number or equivalent": of ICMP there is none.
    fn ports(&mut self, protocol: u8, packet: &Ip) {
        if !matches!(protocol, 6 | 17 | 33 | 132 | 136) {
            return;
        }
        if let (Ok(src), Ok(dst)) = (u16::try_from(packet.src_port), u16::try_from(packet.dst_port)) {
            put!(self, u16s, SrcPort, src);
            put!(self, u16s, DstPort, dst);
        }
        if protocol == 6
            && let Ok(flags) = u16::try_from(packet.tcp_flags)
        {
            put!(self, u16s, TcpFlags, flags);
        }
    }

    /// Any other record; None where it is too short for its format.
    fn record(&mut self, format: u32, mut xdr: Xdr<'_>, context: &mut Context) -> Option<()> {
        match format {
            1001 => self.extended_switch(xdr),
            1002 => self.extended_router(xdr),
            1003 => self.extended_gateway(xdr),
            1004 => self.extended_user(xdr),
            1005 => self.extended_url(xdr),
            1006 => self.extended_mpls(xdr),
            1007 => self.extended_nat(xdr),
            1020 => self.extended_nat_port(xdr),
            1012 => self.tag_stack("vlan_tunnel", xdr),
            1034 => self.tag_stack("vlan_in", xdr),
            1035 => self.tag_stack("vlan_out", xdr),
            1021 => self.ethernet_tunnel("l2_tunnel_egress", xdr),
            1022 => self.ethernet_tunnel("l2_tunnel_ingress", xdr),
            1023 => self.ip_tunnel("tunnel_egress", Ip::read_v4(&mut xdr)?),
            1024 => self.ip_tunnel("tunnel_ingress", Ip::read_v4(&mut xdr)?),
            1025 => self.ip_tunnel("tunnel_egress", Ip::read_v6(&mut xdr)?),
            1026 => self.ip_tunnel("tunnel_ingress", Ip::read_v6(&mut xdr)?),
            1029 => self.extended_vni("vni_egress", xdr),
            1030 => self.extended_vni("vni_ingress", xdr),
            2209 => self.tcp_info(xdr),
            _ => match formats::flow(format) {
                Some(fields) => self.fields(fields, &mut xdr),
                None => {
                    context.skipped += 1;
                    self.unknown(format, xdr.0);
                    Some(())
                }
            },
        }
    }

    pub(super) fn extended_switch(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        use FlowColumn::{DstPriority, DstVlan, SrcPriority, SrcVlan};
        for (vlan, priority) in [(SrcVlan, SrcPriority), (DstVlan, DstPriority)] {
            // 0xffffffff: unknown
            if let Ok(id) = u16::try_from(xdr.u32()?) {
                self.out.u16s(vlan.index()).push(id);
            }
            if let Ok(value) = u8::try_from(xdr.u32()?) {
                self.out.u8s(priority.index()).push(value);
            }
        }
        Some(())
    }

    pub(super) fn extended_router(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        if let Some(next_hop) = xdr.address()? {
            put!(self, ips, NextHop, next_hop.0);
        }
        for column in [FlowColumn::SrcMask, FlowColumn::DstMask] {
            if let Ok(mask) = u8::try_from(xdr.u32()?)
                && mask <= 128
            {
                self.out.u8s(column.index()).push(mask);
            }
        }
        Some(())
    }

    pub(super) fn extended_gateway(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let next_hop = xdr.address()?;
        let (own, src, src_peer, segments) = (xdr.u32()?, xdr.u32()?, xdr.u32()?, xdr.u32()?);
        let path = AsPath::read(&mut xdr, segments)?;
        let communities = xdr.list()?;
        let local_pref = xdr.u32()?;
        if let Some(next_hop) = next_hop {
            put!(self, ips, BgpNextHop, next_hop.0);
        }
        // 0: not known
        for (value, column) in [
            (src, FlowColumn::SrcAs),
            (src_peer, FlowColumn::PrevAs),
            (path.first.unwrap_or(0), FlowColumn::NextAs),
            (path.last.unwrap_or(0), FlowColumn::DstAs),
        ] {
            if value != 0 {
                self.out.u32s(column.index()).push(value);
            }
        }
        if path.first.is_some() {
            self.out.lists(FlowColumn::AsPath.index()).push(path.members());
        }
        if !communities.is_empty() {
            self.out.lists(FlowColumn::Communities.index()).push(words(communities));
        }
        self.out.u32s(FlowColumn::LocalPref.index()).push(local_pref);
        if own != 0 {
            self.number("gateway_as", u64::from(own));
        }
        Some(())
    }

    fn extended_user(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let src_charset = xdr.u32()?;
        let src = xdr.opaque()?;
        let dst_charset = xdr.u32()?;
        let dst = xdr.opaque()?;
        let user = if src.is_empty() { dst } else { src };
        if !user.is_empty() {
            self.out.texts(FlowColumn::UserName.index()).push_lossy(user);
        }
        if !src.is_empty() && !dst.is_empty() {
            self.text("dst_user", dst);
        }
        // 106 is UTF-8, 0 unknown, 3 ASCII (IANA character sets)
        for (name, charset) in [("src_charset", src_charset), ("dst_charset", dst_charset)] {
            if !matches!(charset, 0 | 3 | 106) {
                self.number(name, u64::from(charset));
            }
        }
        Some(())
    }

    fn extended_url(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let direction = xdr.u32()?;
        let (url, host) = (xdr.opaque()?, xdr.opaque()?);
        for (text, column) in [(url, FlowColumn::HttpUrl), (host, FlowColumn::HttpHost)] {
            if !text.is_empty() {
                self.out.texts(column.index()).push_lossy(text);
            }
        }
        self.number("url_direction", u64::from(direction));
        Some(())
    }

    fn extended_mpls(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let next_hop = xdr.address()?;
        let (input, output) = (xdr.list()?, xdr.list()?);
        if let Some(next_hop) = next_hop {
            if self.out.has(FlowColumn::NextHop.index()) {
                self.address("mpls_next_hop", next_hop);
            } else {
                put!(self, ips, NextHop, next_hop.0);
            }
        }
        if self.out.has(FlowColumn::MplsLabels.index()) {
            self.labels("mpls_in_labels", input);
        } else if !input.is_empty() {
            put!(self, lists, MplsLabels, words(input).map(|entry| entry >> 12));
            put!(self, lists, MplsExp, words(input).map(|entry| entry >> 9 & 7));
        }
        self.labels("mpls_out_labels", output);
        Some(())
    }

    fn labels(&mut self, name: &str, stack: &[u8]) {
        if !stack.is_empty() {
            self.entry(name, |text| {
                formats::join(text, words(stack).take(MAX_STACK).map(|entry| entry >> 12))
            });
        }
    }

    fn extended_nat(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        for column in [FlowColumn::NatSrcAddr, FlowColumn::NatDstAddr] {
            if let Some(address) = xdr.address()? {
                self.out.ips(column.index()).push(address.0);
            }
        }
        Some(())
    }

    fn extended_nat_port(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        for column in [FlowColumn::NatSrcPort, FlowColumn::NatDstPort] {
            if let Ok(port) = u16::try_from(xdr.u32()?) {
                self.out.u16s(column.index()).push(port);
            }
        }
        Some(())
    }

    /// Pairs of TPID and TCI, outer first, as `0x88a8:100`.
    fn tag_stack(&mut self, name: &str, mut xdr: Xdr<'_>) -> Option<()> {
        let stack = xdr.list()?;
        self.entry(name, |text| {
            for (n, tag) in words(stack).take(MAX_STACK).enumerate() {
                let comma = if n == 0 { "" } else { "," };
                drop(write!(text, "{comma}{:#06x}:{}", tag >> 16, tag & 0x0fff));
            }
        });
        Some(())
    }

    fn ethernet_tunnel(&mut self, name: &str, mut xdr: Xdr<'_>) -> Option<()> {
        let ethernet = Ethernet::read(&mut xdr)?;
        let (src, dst) = (weir_schemas::Mac(ethernet.src), weir_schemas::Mac(ethernet.dst));
        let Ethernet { length, kind, .. } = ethernet;
        self.entry(name, |text| {
            drop(write!(text, "src_mac={src} dst_mac={dst} ether_type={kind:#06x} bytes={length}"));
        });
        Some(())
    }

    /// The outer header of a tunnel that begins or ends in this switch: it is not in the sampled packet.
    #[expect(clippy::unnecessary_wraps, reason = "the form of all records")]
    fn ip_tunnel(&mut self, name: &str, packet: Ip) -> Option<()> {
        let Ip { length, protocol, src, dst, src_port, dst_port, tos, .. } = packet;
        self.entry(name, |text| {
            drop(write!(
                text,
                "src_addr={src} dst_addr={dst} ip_protocol={protocol} src_port={src_port} dst_port={dst_port} \
                 tos={tos} bytes={length}"
            ));
        });
        Some(())
    }

    fn extended_vni(&mut self, name: &str, mut xdr: Xdr<'_>) -> Option<()> {
        let vni = xdr.u32()?;
        if self.out.has(FlowColumn::Vni.index()) {
            self.number(name, u64::from(vni));
        } else {
            put!(self, u32s, Vni, vni);
        }
        Some(())
    }

    /// "extended_tcp_info" of hosts: the socket's view of the connection
    fn tcp_info(&mut self, mut xdr: Xdr<'_>) -> Option<()> {
        let mut all = xdr;
        // direction, the two segment sizes, unacknowledged, lost, retransmitted, path MTU, round trip time
        let (_, lost, retransmits) = (xdr.words(4)?, xdr.u32()?, xdr.u32()?);
        let (_, rtt) = (xdr.u32()?, xdr.u32()?);
        self.out.u64s(FlowColumn::LostPackets.index()).push(u64::from(lost));
        self.out.u64s(FlowColumn::Retransmits.index()).push(u64::from(retransmits));
        self.out.u64s(FlowColumn::RttUs.index()).push(u64::from(rtt));
        self.fields(formats::TCP_INFO, &mut all)
    }

    /// The fields of a structure, by name.
    pub(super) fn fields(&mut self, fields: &[Field], xdr: &mut Xdr<'_>) -> Option<()> {
        for field in fields {
            // a newer version of a structure may be longer; an older one ends between two fields
            if xdr.is_empty() {
                break;
            }
            self.has_extra = true;
            let extra = self.out.maps(self.extra_column);
            formats::append(field, xdr, extra)?;
        }
        Some(())
    }

    /// An unknown record: `enterprise:format` and its bytes in hexadecimal.
    pub(super) fn unknown(&mut self, format: u32, bytes: &[u8]) {
        let mut name = [0_u8; 24];
        let mut rest = name.as_mut_slice();
        // two numbers of at most 20 and 12 bits
        drop(write!(rest, "{}:{}", format >> 12, format & 0xfff));
        let left = rest.len();
        let text = name.get(..name.len() - left).and_then(|name| std::str::from_utf8(name).ok());
        let kept = bytes.get(..MAX_UNKNOWN_BYTES).unwrap_or(bytes);
        self.entry(text.unwrap_or_default(), |text| formats::hex(text, kept));
    }
}

/// "sampled_ethernet": addresses are padded to eight bytes
struct Ethernet {
    length: u32,
    src: [u8; 6],
    dst: [u8; 6],
    kind: u32,
}

impl Ethernet {
    fn read(xdr: &mut Xdr<'_>) -> Option<Ethernet> {
        let length = xdr.u32()?;
        let [src @ .., _, _] = xdr.array::<8>()?;
        let [dst @ .., _, _] = xdr.array::<8>()?;
        Some(Ethernet { length, src, dst, kind: xdr.u32()? })
    }
}

/// "sampled_ipv4" and "sampled_ipv6"
struct Ip {
    length: u32,
    protocol: u32,
    src: Address,
    dst: Address,
    src_port: u32,
    dst_port: u32,
    tcp_flags: u32,
    tos: u32,
}

impl Ip {
    fn read_v4(xdr: &mut Xdr<'_>) -> Option<Ip> {
        let (length, protocol) = (xdr.u32()?, xdr.u32()?);
        let (src, dst) = (Address::v4(xdr.array()?), Address::v4(xdr.array()?));
        Ip::read(length, protocol, src, dst, xdr)
    }

    fn read_v6(xdr: &mut Xdr<'_>) -> Option<Ip> {
        let (length, protocol) = (xdr.u32()?, xdr.u32()?);
        let (src, dst) = (Address::v6(xdr.array()?), Address::v6(xdr.array()?));
        Ip::read(length, protocol, src, dst, xdr)
    }

    fn read(length: u32, protocol: u32, src: Address, dst: Address, xdr: &mut Xdr<'_>) -> Option<Ip> {
        let (src_port, dst_port, tcp_flags, tos) = (xdr.u32()?, xdr.u32()?, xdr.u32()?, xdr.u32()?);
        Some(Ip { length, protocol, src, dst, src_port, dst_port, tcp_flags, tos })
    }
}

/// The AS path of "extended_gateway": segments, each of a type (1 set, 2 sequence) and a list.
struct AsPath<'a> {
    segments: &'a [u8],
    count: u32,
    /// The first AS, and the last one of the last sequence.
    first: Option<u32>,
    last: Option<u32>,
}

impl<'a> AsPath<'a> {
    fn read(xdr: &mut Xdr<'a>, count: u32) -> Option<AsPath<'a>> {
        let start = xdr.0;
        let (mut first, mut last, mut last_of_set) = (None, None, None);
        for _ in 0..count {
            let (kind, list) = (xdr.u32()?, xdr.list()?);
            first = first.or_else(|| words(list).next());
            let end = words(list).next_back();
            if kind == 2 {
                last = end.or(last);
            } else {
                last_of_set = end.or(last_of_set);
            }
        }
        let segments = start.get(..start.len() - xdr.0.len())?;
        Some(AsPath { segments, count, first, last: last.or(last_of_set) })
    }

    /// All of them, in the order of the path.
    fn members(&self) -> impl Iterator<Item = u32> + '_ {
        let mut xdr = Xdr(self.segments);
        (0..self.count).map_while(move |_| xdr.u32().and_then(|_| xdr.list())).flat_map(words)
    }
}
