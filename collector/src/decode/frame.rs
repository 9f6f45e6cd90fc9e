//! Sampled packet headers: from the first bytes of a packet to columns.
//!
//! Called by the sFlow decoder (record "sampled header") and by the IPFIX decoder (IE 313 `ipHeaderPacketSection`, 314
//! `ipPayloadPacketSection`, 315 `dataLinkFrameSection`, 316 `mplsLabelStackSection`). [`parse`] walks the layers into a
//! [`Frame`], [`Frame::write`] and [`Frame::fill`] append it to the open row.
//!
//! The plain columns are the outermost IP packet; behind the first tunnel the next level goes to `inner_*`, `tunnel` and
//! `vni`, and deeper levels are not looked at. MPLS labels, VLAN tags and PPPoE are no tunnels, but Ethernet over MPLS is
//! one (its plain IP columns stay NULL). A layer that ends before it should sets `frame_truncated`; what came before it
//! stays. The work is bounded: [`MAX_LAYERS`] layers, [`MAX_TAGS`] VLAN tags, [`MAX_LABELS`] labels, [`MAX_EXTENSIONS`]
//! IPv6 extension headers.
//!
//! Columns filled, where the packet has them: `src_mac`, `dst_mac`, `ether_type` (behind the VLAN tags), `frame_vlans`,
//! `mpls_labels`, `mpls_exp`, `src_addr`, `dst_addr`, `ip_protocol`, `tos`, `ip_ttl`, `ip_bytes`, `ipv6_flow_label`,
//! `fragment_id` and `fragment_offset` (of fragments only), `src_port`, `dst_port`, `tcp_flags`, `icmp_type`,
//! `icmp_code`, `inner_src_addr`, `inner_dst_addr`, `inner_ip_protocol`, `inner_src_port`, `inner_dst_port`, `tunnel`,
//! `vni`, `frame_truncated` (true only).
//!
//! Not handled: 802.11, Token Ring, FDDI and ATM headers, reassembly of fragments, Teredo, checksums.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)
)]

use weir_schemas::{Address, FlowColumn};

use crate::columns::Builder;

/// Layers of one frame that are looked at.
const MAX_LAYERS: usize = 24;
/// VLAN tags of one frame.
const MAX_TAGS: usize = 8;
/// MPLS labels of one frame.
const MAX_LABELS: usize = 16;
/// Extension headers of one IPv6 packet.
const MAX_EXTENSIONS: usize = 8;
/// UDP ports of VXLAN: IANA's, and the one that Linux took before there was one.
const VXLAN_PORT: u16 = 4789;
const OLD_VXLAN_PORT: u16 = 8472;
const GENEVE_PORT: u16 = 6081;
const GTP_U_PORT: u16 = 2152;
const L2TP_PORT: u16 = 1701;
const MPLS_IN_UDP_PORT: u16 = 6635;

/// What the first byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Destination MAC.
    Ethernet,
    /// IPv4 or IPv6, by the version nibble.
    Ip,
    /// A label stack.
    Mpls,
    /// What follows a label stack (IE 317).
    Labelled,
    /// PPP, with or without address and control bytes.
    Ppp,
    /// The transport header of a packet of this IP protocol (IE 314).
    Transport(u8),
}

impl Link {
    /// The values of "header_protocol" that are read (sFlow v5).
    pub(crate) fn of_sflow(header_protocol: u32) -> Option<Link> {
        Some(match header_protocol {
            1 => Link::Ethernet,
            7 | 14 => Link::Ppp,
            11 | 12 => Link::Ip,
            13 => Link::Mpls,
            _ => return None,
        })
    }
}

/// What is in UDP, by its ports.
enum UdpTunnel {
    Vxlan,
    Geneve,
    GtpU,
    L2tp,
    Mpls,
}

impl UdpTunnel {
    #[inline]
    fn of((src, dst): (u16, u16)) -> Option<UdpTunnel> {
        Some(match dst {
            VXLAN_PORT | OLD_VXLAN_PORT => UdpTunnel::Vxlan,
            GENEVE_PORT => UdpTunnel::Geneve,
            GTP_U_PORT => UdpTunnel::GtpU,
            L2TP_PORT => UdpTunnel::L2tp,
            MPLS_IN_UDP_PORT => UdpTunnel::Mpls,
            // answers of a gateway come from the well-known port
            _ => match src {
                GTP_U_PORT => UdpTunnel::GtpU,
                L2TP_PORT => UdpTunnel::L2tp,
                _ => return None,
            },
        })
    }
}

/// What a frame or a packet may have, a bit each: columns that are there together share one.
pub(crate) mod has {
    /// Of a frame.
    pub(crate) const MACS: u32 = 1;
    pub(crate) const ETHER_TYPE: u32 = 1 << 1;
    pub(crate) const TAGS: u32 = 1 << 2;
    pub(crate) const LABELS: u32 = 1 << 3;
    pub(crate) const TUNNEL: u32 = 1 << 4;
    pub(crate) const VNI: u32 = 1 << 5;
    /// The header ended before its protocols did.
    pub(crate) const TRUNCATED: u32 = 1 << 6;
    /// Of a packet.
    pub(crate) const IP: u32 = 1 << 7;
    pub(crate) const IPV6: u32 = 1 << 8;
    pub(crate) const IP_BYTES: u32 = 1 << 9;
    pub(crate) const FRAGMENT: u32 = 1 << 10;
    pub(crate) const PORTS: u32 = 1 << 11;
    pub(crate) const TCP: u32 = 1 << 12;
    pub(crate) const ICMP: u32 = 1 << 13;
    /// The first bit that means nothing here.
    pub(crate) const FREE: u32 = 1 << 14;
}

/// One IP packet of a frame. What it has not is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Packet {
    /// [`has`]
    pub(crate) has: u32,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    /// Of IPv6 the last next header.
    pub(crate) protocol: u8,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) tcp_flags: u8,
    /// The length of the whole packet; 0 where it does not say (offloading, jumbograms).
    pub(crate) bytes: u32,
    pub(crate) flow_label: u32,
    /// Identification and offset (8-byte units) of a fragment.
    pub(crate) fragment: (u32, u16),
    /// Source and destination.
    pub(crate) ports: (u16, u16),
    /// Type and code.
    pub(crate) icmp: (u8, u8),
}

impl Packet {
    fn has(&self, what: u32) -> bool {
        self.has & what != 0
    }

    fn set_ports(&mut self, ports: (u16, u16)) {
        self.ports = ports;
        self.has |= has::PORTS;
    }
}

/// What a sampled header says. What it has not is zero, but for what is behind `outer`: nobody looks at that without its
/// bit. In the order of the memory: few frames have that, and of the others it takes no line of the cache.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Frame {
    /// [`has`], of what is not of a packet.
    pub(crate) has: u32,
    pub(crate) vni: u32,
    /// Destination and source.
    pub(crate) macs: ([u8; 6], [u8; 6]),
    pub(crate) ether_type: u16,
    /// The packet is known to end within the bytes there are: what is missing was never sent.
    complete: bool,
    pub(crate) outer: Packet,
    pub(crate) inner: Packet,
    tunnel: &'static str,
    tag_count: usize,
    tags: [u16; MAX_TAGS],
    label_count: usize,
    /// Whole label stack entries (RFC 3032 §2.1).
    labels: [u32; MAX_LABELS],
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Ethernet,
    EtherType(u16),
    Llc,
    Mpls,
    Pseudowire,
    Ip,
    Ppp,
    Transport(u8),
    Done,
}

/// The next layer and its bytes; None where this one ended too early.
type Step<'a> = Option<(Layer, &'a [u8])>;

const END: Step<'static> = Some((Layer::Done, &[]));

/// Walks the layers of a sampled header.
pub(crate) fn parse(link: Link, bytes: &[u8]) -> Frame {
    walk(link, bytes, |_, _, _| {})
}

/// The same, into a frame that is used again: a frame is large, and most of it stays empty.
#[inline]
pub(crate) fn parse_into(frame: &mut Frame, link: Link, bytes: &[u8]) {
    #[inline(never)]
    fn layer_by_layer(frame: &mut Frame, link: Link, bytes: &[u8]) {
        frame.clear();
        walk_into(frame, link, bytes, |_, _, _| {});
    }
    if link != Link::Ethernet || frame.usual(bytes).is_none() {
        layer_by_layer(frame, link, bytes);
    }
}

/// Walks; `each` gets every layer with the bytes from its first one, and what is known so far.
#[inline(always)]
pub(crate) fn walk(link: Link, bytes: &[u8], each: impl FnMut(Layer, &[u8], &Frame)) -> Frame {
    let mut frame = Frame::default();
    walk_into(&mut frame, link, bytes, each);
    frame
}

#[inline(always)]
fn walk_into(frame: &mut Frame, link: Link, bytes: &[u8], mut each: impl FnMut(Layer, &[u8], &Frame)) {
    let mut layer = match link {
        Link::Ethernet => Layer::Ethernet,
        Link::Ip => Layer::Ip,
        Link::Mpls => Layer::Mpls,
        Link::Labelled => labelled(bytes),
        Link::Ppp => Layer::Ppp,
        Link::Transport(protocol) => Layer::Transport(protocol),
    };
    let mut rest = bytes;
    for _ in 0..MAX_LAYERS {
        each(layer, rest, frame);
        let step = match layer {
            Layer::Ethernet => frame.ethernet(rest),
            Layer::EtherType(kind) => frame.ether_type(kind, rest),
            Layer::Llc => frame.llc(rest),
            Layer::Mpls => frame.mpls(rest),
            Layer::Pseudowire => frame.pseudowire(rest),
            Layer::Ip => frame.ip(rest),
            Layer::Ppp => frame.ppp(rest),
            Layer::Transport(protocol) => frame.transport(protocol, rest),
            Layer::Done => break,
        };
        let Some(next) = step else {
            if !frame.complete {
                frame.has |= has::TRUNCATED;
            }
            break;
        };
        (layer, rest) = next;
    }
}

impl Frame {
    /// Forgets the last header. What nobody looks at without its bit stays.
    fn clear(&mut self) {
        self.has = 0;
        self.vni = 0;
        self.macs = Default::default();
        self.ether_type = 0;
        self.complete = false;
        self.outer = Packet::default();
    }

    pub(crate) fn has(&self, what: u32) -> bool {
        self.has & what != 0
    }

    /// VLAN ids, outer first.
    pub(crate) fn vlans(&self) -> impl Iterator<Item = u32> + '_ {
        let count = if self.has(has::TAGS) { self.tag_count } else { 0 };
        self.tags.iter().take(count).map(|tag| u32::from(tag & 0x0fff))
    }

    /// Label stack entries, top first.
    fn stack(&self) -> impl Iterator<Item = u32> + '_ {
        let count = if self.has(has::LABELS) { self.label_count } else { 0 };
        self.labels.iter().take(count).copied()
    }

    /// 20-bit labels, top first.
    pub(crate) fn labels(&self) -> impl Iterator<Item = u32> + '_ {
        self.stack().map(|entry| entry >> 12)
    }

    /// EXP bits of the labels, top first.
    pub(crate) fn exps(&self) -> impl Iterator<Item = u32> + '_ {
        self.stack().map(|entry| entry >> 9 & 7)
    }

    pub(crate) fn tunnel(&self) -> Option<&'static str> {
        self.has(has::TUNNEL).then_some(self.tunnel)
    }

    /// True until a tunnel was entered.
    fn outside(&self) -> bool {
        !self.has(has::TUNNEL)
    }

    fn push_tag(&mut self, tag: u16) {
        if !self.has(has::TAGS) {
            self.has |= has::TAGS;
            self.tag_count = 0;
        }
        if let Some(slot) = self.tags.get_mut(self.tag_count) {
            *slot = tag;
            self.tag_count = self.tag_count.saturating_add(1);
        }
    }

    fn push_label(&mut self, entry: u32) {
        if !self.has(has::LABELS) {
            self.has |= has::LABELS;
            self.label_count = 0;
        }
        if let Some(slot) = self.labels.get_mut(self.label_count) {
            *slot = entry;
            self.label_count = self.label_count.saturating_add(1);
        }
    }

    fn set_vni(&mut self, vni: u32) {
        self.vni = vni;
        self.has |= has::VNI;
    }

    /// The packet of the level that is being read.
    fn packet(&mut self) -> &mut Packet {
        if self.outside() { &mut self.outer } else { &mut self.inner }
    }

    /// Goes into a tunnel, unless in one already: then what is inside is not looked at.
    fn enter<'a>(&mut self, tunnel: &'static str, layer: Layer, rest: &'a [u8]) -> Step<'a> {
        if !self.outside() {
            return END;
        }
        self.tunnel = tunnel;
        self.has |= has::TUNNEL;
        self.inner = Packet::default();
        Some((layer, rest))
    }

    fn ethernet<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let ([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, hi, lo], rest) =
            bytes.split_first_chunk::<14>()?;
        if self.outside() {
            self.macs = ([*d0, *d1, *d2, *d3, *d4, *d5], [*s0, *s1, *s2, *s3, *s4, *s5]);
            self.has |= has::MACS;
        }
        Some((Layer::EtherType(u16::from_be_bytes([*hi, *lo])), rest))
    }

    fn ether_type<'a>(&mut self, kind: u16, bytes: &'a [u8]) -> Step<'a> {
        match kind {
            0x0800 | 0x86dd => {
                self.set_ether_type(kind);
                Some((Layer::Ip, bytes))
            }
            // 802.1Q, 802.1ad and the types that came before it
            0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => {
                let ([t0, t1, k0, k1], rest) = bytes.split_first_chunk::<4>()?;
                if self.outside() {
                    self.push_tag(u16::from_be_bytes([*t0, *t1]));
                }
                Some((Layer::EtherType(u16::from_be_bytes([*k0, *k1])), rest))
            }
            0x8847 | 0x8848 => {
                self.set_ether_type(kind);
                Some((Layer::Mpls, bytes))
            }
            // PPPoE session (RFC 2516 §4): version and type, code, session id, length
            0x8864 => {
                self.set_ether_type(kind);
                let (_, rest) = bytes.split_first_chunk::<6>()?;
                Some((Layer::Ppp, rest))
            }
            // 802.1BR E-TAG, Cisco VN-Tag
            0x893f => skip_tag::<8>(bytes),
            0x8926 => skip_tag::<6>(bytes),
            // 802.1ah: an I-TAG with the service id, then the customer's frame
            0x88e7 => {
                self.set_ether_type(kind);
                let ([_, i0, i1, i2], rest) = bytes.split_first_chunk::<4>()?;
                if self.outside() {
                    self.set_vni(u32::from_be_bytes([0, *i0, *i1, *i2]));
                }
                self.enter("pbb", Layer::Ethernet, rest)
            }
            // 802.3: a length instead of a type
            0..=1500 => Some((Layer::Llc, bytes)),
            _ => {
                self.set_ether_type(kind);
                END
            }
        }
    }

    fn set_ether_type(&mut self, kind: u16) {
        if self.outside() && !self.has(has::ETHER_TYPE) {
            self.ether_type = kind;
            self.has |= has::ETHER_TYPE;
        }
    }

    fn llc<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let ([dsap, ssap, _], rest) = bytes.split_first_chunk::<3>()?;
        if (*dsap, *ssap) != (0xaa, 0xaa) {
            return END;
        }
        let ([o0, o1, o2, k0, k1], rest) = rest.split_first_chunk::<5>()?;
        match [*o0, *o1, *o2] {
            // RFC 1042, and 802.1H's tunnel for the same
            [0, 0, 0] | [0, 0, 0xf8] => Some((Layer::EtherType(u16::from_be_bytes([*k0, *k1])), rest)),
            _ => END,
        }
    }

    /// RFC 3032 §2.1; what the labels mean nobody says, so the payload is told by its first nibble (RFC 4928 §3).
    fn mpls<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let mut rest = bytes;
        for _ in 0..MAX_LABELS {
            let (entry, next) = rest.split_first_chunk::<4>()?;
            let entry = u32::from_be_bytes(*entry);
            rest = next;
            if self.outside() {
                self.push_label(entry);
            }
            if entry & 0x100 == 0 {
                continue;
            }
            // of a label stack section (IE 316) that is all
            return if rest.is_empty() { END } else { Some((labelled(rest), rest)) };
        }
        END
    }

    /// Ethernet over MPLS, with a control word (RFC 4448 §4.6, first nibble 0) or without.
    fn pseudowire<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        if bytes.first()? >> 4 == 0
            && let Some((_, frame)) = bytes.split_first_chunk::<4>()
            && looks_like_ethernet(frame)
        {
            return self.enter("eompls", Layer::Ethernet, frame);
        }
        if looks_like_ethernet(bytes) {
            return self.enter("eompls", Layer::Ethernet, bytes);
        }
        END
    }

    fn ip<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        match bytes.first()? >> 4 {
            4 => self.ipv4(bytes),
            6 => self.ipv6(bytes),
            _ => END,
        }
    }

    /// RFC 791 §3.1
    fn ipv4<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let (fixed, _) = bytes.split_first_chunk::<20>()?;
        let [vihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, src @ .., d0, d1, d2, d3] = *fixed;
        let total = u16::from_be_bytes([l0, l1]);
        let flags = u16::from_be_bytes([f0, f1]);
        let packet = self.packet();
        packet.has = has::IP | if total == 0 { 0 } else { has::IP_BYTES };
        packet.tos = tos;
        packet.ttl = ttl;
        packet.protocol = protocol;
        packet.bytes = u32::from(total);
        packet.src = Address::v4(src).0;
        packet.dst = Address::v4([d0, d1, d2, d3]).0;
        let (offset, more) = (flags & 0x1fff, flags & 0x2000 != 0);
        if offset != 0 || more {
            packet.fragment = (u32::from(u16::from_be_bytes([i0, i1])), offset);
            packet.has |= has::FRAGMENT;
        }
        let header = usize::from(vihl & 0x0f).saturating_mul(4);
        // what follows a fragment that is not the first is no transport header
        if header < 20 || offset != 0 {
            return END;
        }
        let rest = self.bound(bytes, usize::from(total), header).get(header..)?;
        Some((Layer::Transport(protocol), rest))
    }

    /// RFC 8200 §3 and §4
    fn ipv6<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let (fixed, _) = bytes.split_first_chunk::<40>()?;
        let [v0, v1, v2, v3, l0, l1, next, hops, ..] = *fixed;
        let word = u32::from_be_bytes([v0, v1, v2, v3]);
        let payload = u16::from_be_bytes([l0, l1]);
        let packet = self.packet();
        packet.has = has::IP | has::IPV6 | if payload == 0 { 0 } else { has::IP_BYTES };
        packet.tos = u8::try_from(word >> 20 & 0xff).unwrap_or(0);
        packet.flow_label = word & 0x000f_ffff;
        packet.ttl = hops;
        packet.protocol = next;
        packet.bytes = if payload == 0 { 0 } else { u32::from(payload).saturating_add(40) };
        packet.src = *fixed.get(8..)?.first_chunk()?;
        packet.dst = *fixed.get(24..)?.first_chunk()?;
        let total = if payload == 0 { 0 } else { usize::from(payload).saturating_add(40) };
        let rest = self.bound(bytes, total, 40).get(40..)?;
        self.extensions(next, rest)
    }

    /// Walks the extension headers; `ip_protocol` follows.
    fn extensions<'a>(&mut self, first: u8, bytes: &'a [u8]) -> Step<'a> {
        let (mut protocol, mut rest, mut segments) = (first, bytes, false);
        for _ in 0..MAX_EXTENSIONS {
            let length = match protocol {
                // hop-by-hop, routing, destination options, mobility, HIP, Shim6: 8-byte units beyond the first
                0 | 43 | 60 | 135 | 139 | 140 => {
                    usize::from(*rest.get(1)?).saturating_add(1).saturating_mul(8)
                }
                44 => 8,
                // AH counts 4-byte units, less two (RFC 4302 §2.2)
                51 => usize::from(*rest.get(1)?).saturating_add(2).saturating_mul(4),
                4 | 41 | 143 if segments => {
                    let layer = if protocol == 143 { Layer::Ethernet } else { Layer::Ip };
                    return self.enter("srv6", layer, rest);
                }
                _ => return Some((Layer::Transport(protocol), rest)),
            };
            let next = *rest.first()?;
            // a segment routing header (RFC 8754 §2)
            segments |= protocol == 43 && rest.get(2) == Some(&4);
            let fragment = if protocol == 44 {
                let (offset, _) = chunk2(rest, 2)?;
                let id = u32::from_be_bytes(*rest.get(4..)?.first_chunk()?);
                Some((id, offset))
            } else {
                None
            };
            let packet = self.packet();
            packet.protocol = next;
            if let Some((id, word)) = fragment {
                // RFC 8200 §4.5: an atomic fragment (offset 0, no more) is a whole packet
                if word & 0xfff9 != 0 {
                    packet.fragment = (id, word >> 3);
                    packet.has |= has::FRAGMENT;
                }
                if word >> 3 != 0 {
                    return END;
                }
            }
            protocol = next;
            rest = rest.get(length..)?;
        }
        END
    }

    /// Cuts what is beyond the packet (padding of the link), so that it is not taken for a transport header.
    fn bound<'a>(&mut self, bytes: &'a [u8], total: usize, header: usize) -> &'a [u8] {
        match bytes.get(..total) {
            Some(packet) if total >= header => {
                self.complete = true;
                packet
            }
            _ => bytes,
        }
    }

    /// RFC 1661 §2; address and control bytes as of RFC 1662 §3.1 may be there.
    fn ppp<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let bytes = match bytes {
            [0xff, 0x03, rest @ ..] => rest,
            all => all,
        };
        let (protocol, rest) = match bytes {
            // protocol field compression: an odd first byte is the whole field
            [short, rest @ ..] if short & 1 == 1 => (u16::from(*short), rest),
            [hi, lo, rest @ ..] => (u16::from_be_bytes([*hi, *lo]), rest),
            _ => return None,
        };
        match protocol {
            0x0021 | 0x0057 => Some((Layer::Ip, rest)),
            0x0281 | 0x0283 => Some((Layer::Mpls, rest)),
            _ => END,
        }
    }

    fn transport<'a>(&mut self, protocol: u8, bytes: &'a [u8]) -> Step<'a> {
        match protocol {
            6 => {
                let packet = self.packet();
                packet.set_ports(chunk2(bytes, 0)?);
                packet.tcp_flags = *bytes.get(13)?;
                packet.has |= has::TCP;
                END
            }
            17 => self.udp(bytes),
            // DCCP, SCTP, UDP-Lite
            33 | 132 | 136 => {
                self.packet().set_ports(chunk2(bytes, 0)?);
                END
            }
            1 | 58 => {
                let ([kind, code], _) = bytes.split_first_chunk::<2>()?;
                let packet = self.packet();
                packet.icmp = (*kind, *code);
                packet.has |= has::ICMP;
                END
            }
            4 | 41 => self.enter("ipip", Layer::Ip, bytes),
            47 => self.gre(bytes),
            // EtherIP (RFC 3378): two bytes, then a frame
            97 => self.enter("etherip", Layer::Ethernet, bytes.get(2..)?),
            115 => self.enter("l2tp", Layer::Done, bytes),
            137 => self.enter("mpls", Layer::Mpls, bytes),
            _ => END,
        }
    }

    fn udp<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let ports = chunk2(bytes, 0)?;
        self.packet().set_ports(ports);
        let Some(tunnel) = UdpTunnel::of(ports).filter(|_| self.outside()) else { return END };
        let rest = bytes.get(8..)?;
        match tunnel {
            UdpTunnel::Vxlan => self.vxlan(rest),
            UdpTunnel::Geneve => self.geneve(rest),
            UdpTunnel::GtpU => self.gtp_u(rest),
            UdpTunnel::L2tp => self.l2tp(rest),
            UdpTunnel::Mpls => self.enter("mpls", Layer::Mpls, rest),
        }
    }

    /// RFC 7348 §5: flags with the I bit, 24 reserved bits, the identifier, 8 reserved bits
    fn vxlan<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let ([flags, _, _, _, v0, v1, v2, _], rest) = bytes.split_first_chunk::<8>()?;
        if flags & 0x08 == 0 {
            return END;
        }
        self.set_vni(u32::from_be_bytes([0, *v0, *v1, *v2]));
        self.enter("vxlan", Layer::Ethernet, rest)
    }

    /// RFC 8926 §3.4
    fn geneve<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let ([first, _, k0, k1, v0, v1, v2, _], rest) = bytes.split_first_chunk::<8>()?;
        if first >> 6 != 0 {
            return END;
        }
        self.set_vni(u32::from_be_bytes([0, *v0, *v1, *v2]));
        let rest = rest.get(usize::from(first & 0x3f).saturating_mul(4)..)?;
        self.enter("geneve", gre_layer(u16::from_be_bytes([*k0, *k1])), rest)
    }

    /// 3GPP TS 29.281 §5: a G-PDU holds an IP packet
    fn gtp_u<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let ([flags, kind, ..], mut rest) = bytes.split_first_chunk::<8>()?;
        if flags >> 4 != 0x3 || *kind != 255 {
            return END;
        }
        if flags & 0x07 != 0 {
            let ([_, _, _, next], after) = rest.split_first_chunk::<4>()?;
            rest = after;
            let mut next = if flags & 0x04 != 0 { *next } else { 0 };
            for _ in 0..MAX_EXTENSIONS {
                if next == 0 {
                    break;
                }
                let length = usize::from(*rest.first()?).saturating_mul(4);
                if length == 0 {
                    return END;
                }
                next = *rest.get(length.saturating_sub(1))?;
                rest = rest.get(length..)?;
            }
        }
        self.enter("gtpu", Layer::Ip, rest)
    }

    /// RFC 2661 §3.1; of version 3 the length of the cookie is not in the packet.
    fn l2tp<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let (flags, _) = chunk2(bytes, 0)?;
        // control messages hold no packet
        if flags & 0x8000 != 0 {
            return END;
        }
        match flags & 0x000f {
            2 => {}
            3 => return self.enter("l2tp", Layer::Done, bytes),
            _ => return END,
        }
        let mut length: usize = 6;
        for (bit, more) in [(0x4000, 2), (0x0800, 4)] {
            if flags & bit != 0 {
                length = length.saturating_add(more);
            }
        }
        if flags & 0x0200 != 0 {
            let (offset, _) = chunk2(bytes, length)?;
            length = length.saturating_add(2).saturating_add(usize::from(offset));
        }
        self.enter("l2tp", Layer::Ppp, bytes.get(length..)?)
    }

    /// RFC 2784 §2, RFC 2890 §2; version 1 is PPTP's (RFC 2637 §4.1).
    fn gre<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let (flags, kind) = chunk2(bytes, 0)?;
        let mut rest = bytes.get(4..)?;
        if !self.outside() {
            return END;
        }
        if flags & 0x0007 == 1 {
            let mut length: usize = 4;
            for bit in [0x1000, 0x0080] {
                if flags & bit != 0 {
                    length = length.saturating_add(4);
                }
            }
            // without a sequence number there is no payload
            let layer = if flags & 0x1000 == 0 { Layer::Done } else { Layer::Ppp };
            return self.enter("pptp", layer, rest.get(length..)?);
        }
        // checksum and routing share a word; source routes are of variable length and long gone
        if flags & 0xc000 != 0 {
            rest = rest.get(4..)?;
        }
        if flags & 0x4000 != 0 {
            return self.enter("gre", Layer::Done, rest);
        }
        let key = if flags & 0x2000 != 0 {
            let (key, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            Some(u32::from_be_bytes(*key))
        } else {
            None
        };
        let sequence = flags & 0x1000 != 0;
        if sequence {
            rest = rest.get(4..)?;
        }
        match (kind, key) {
            // NVGRE (RFC 7637 §3.2): a key, neither checksum nor sequence, and a frame
            (0x6558, Some(key)) if flags & 0x9000 == 0 => {
                self.set_vni(key >> 8);
                self.enter("nvgre", Layer::Ethernet, rest)
            }
            // ERSPAN: type I has no header of its own and no sequence, type II has 8 bytes, type III 12 and maybe 8
            (0x88be, _) => {
                let skip = if sequence { 8 } else { 0 };
                self.enter("erspan", Layer::Ethernet, rest.get(skip..)?)
            }
            (0x22eb, _) => {
                let more = if rest.get(11)? & 1 == 1 { 8 } else { 0 };
                self.enter("erspan", Layer::Ethernet, rest.get(12..)?.get(more..)?)
            }
            _ => self.enter("gre", gre_layer(kind), rest),
        }
    }
}

/// What follows a label stack, by its first nibble.
fn labelled(bytes: &[u8]) -> Layer {
    match bytes.first().map(|first| first >> 4) {
        Some(4) if looks_like_ipv4(bytes) => Layer::Ip,
        Some(6) if looks_like_ipv6(bytes) => Layer::Ip,
        _ => Layer::Pseudowire,
    }
}

/// What an Ethernet type in a GRE or GENEVE header announces.
fn gre_layer(kind: u16) -> Layer {
    match kind {
        0x6558 => Layer::Ethernet,
        0..=1500 => Layer::Done,
        kind => Layer::EtherType(kind),
    }
}

/// A tag of N bytes that ends in the next Ethernet type.
fn skip_tag<const N: usize>(bytes: &[u8]) -> Step<'_> {
    let (tag, rest) = bytes.split_first_chunk::<N>()?;
    let kind = tag.last_chunk::<2>()?;
    Some((Layer::EtherType(u16::from_be_bytes(*kind)), rest))
}

/// Two 16-bit numbers at `at`.
#[inline]
fn chunk2(bytes: &[u8], at: usize) -> Option<(u16, u16)> {
    let [a, b, c, d] = *bytes.get(at..)?.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// IPv4 and not a frame to a MAC that begins with 4: 45 would be a group address.
fn looks_like_ipv4(bytes: &[u8]) -> bool {
    match bytes {
        [0x45, _, l0, l1, ..] => !matches!(u16::from_be_bytes([*l0, *l1]), 1..20),
        [first, ..] => first & 0x0f >= 5 && !surely_ethernet(bytes),
        [] => false,
    }
}

/// IPv6 and not a frame to a MAC that begins with 6, whose type is where IPv6 has a part of the source address.
fn looks_like_ipv6(bytes: &[u8]) -> bool {
    !surely_ethernet(bytes)
}

/// True where an Ethernet type is followed by what it announces.
fn surely_ethernet(bytes: &[u8]) -> bool {
    match bytes.get(12..) {
        Some([8, 0, first, ..]) => (0x45..0x50).contains(first),
        Some([0x86, 0xdd, first, ..]) => first >> 4 == 6,
        Some([0x81, 0, _, _, 8, 0, first, ..]) => (0x45..0x50).contains(first),
        Some([0x81, 0, _, _, 0x86, 0xdd, first, ..]) => first >> 4 == 6,
        _ => false,
    }
}

/// True where bytes 12 and 13 are an Ethernet type that pseudowires carry, or a length with an LLC header behind it.
fn looks_like_ethernet(bytes: &[u8]) -> bool {
    let Some([hi, lo]) = bytes.get(12..).and_then(|rest| rest.first_chunk::<2>()) else { return false };
    match u16::from_be_bytes([*hi, *lo]) {
        0x0800 | 0x0806 | 0x86dd | 0x8100 | 0x88a8 | 0x9100 | 0x8847 | 0x8848 | 0x8863 | 0x8864 | 0x88cc
        | 0x8809 | 0x888e | 0x88e5 | 0x8902 => true,
        length => (3..=1500).contains(&length) && bytes.len() > 16 && bytes.get(14) == bytes.get(15),
    }
}

/// Appends a value to a column of the open row; with `$fill` only where the row has none yet.
macro_rules! put {
    ($out:expr, $fill:expr, $kind:ident, $column:ident, $value:expr) => {
        if !$fill || !$out.has(FlowColumn::$column.index()) {
            $out.$kind(FlowColumn::$column.index()).push($value);
        }
    };
}

impl Frame {
    /// Appends to columns of which the open row has none yet.
    pub(crate) fn write(&self, out: &mut Builder) {
        self.append::<false>(out);
    }

    /// Appends to those columns that the open row has no value for: what other records said first stays.
    pub(crate) fn fill(&self, out: &mut Builder) {
        self.append::<true>(out);
    }

    #[inline]
    fn append<const FILL: bool>(&self, out: &mut Builder) {
        if self.has(has::MACS) {
            put!(out, FILL, macs, SrcMac, self.macs.1);
            put!(out, FILL, macs, DstMac, self.macs.0);
        }
        if self.has(has::ETHER_TYPE) {
            put!(out, FILL, u16s, EtherType, self.ether_type);
        }
        if self.has(has::TAGS) {
            put!(out, FILL, lists, FrameVlans, self.vlans());
        }
        if self.has(has::LABELS) {
            put!(out, FILL, lists, MplsLabels, self.labels());
            put!(out, FILL, lists, MplsExp, self.exps());
        }
        self.append_outer::<FILL>(out);
        if let Some(tunnel) = self.tunnel() {
            self.append_inner::<FILL>(tunnel, out);
        }
        if self.has(has::VNI) {
            put!(out, FILL, u32s, Vni, self.vni);
        }
        if self.has(has::TRUNCATED) {
            put!(out, FILL, bools, FrameTruncated, true);
        }
    }

    #[inline]
    fn append_outer<const FILL: bool>(&self, out: &mut Builder) {
        let packet = &self.outer;
        if packet.has(has::IP) {
            put!(out, FILL, ips, SrcAddr, packet.src);
            put!(out, FILL, ips, DstAddr, packet.dst);
            put!(out, FILL, u8s, IpProtocol, packet.protocol);
            put!(out, FILL, u8s, Tos, packet.tos);
            put!(out, FILL, u8s, IpTtl, packet.ttl);
        }
        if packet.has(has::IP_BYTES) {
            put!(out, FILL, u64s, IpBytes, u64::from(packet.bytes));
        }
        if packet.has(has::IPV6) {
            put!(out, FILL, u32s, Ipv6FlowLabel, packet.flow_label);
        }
        if packet.has(has::FRAGMENT) {
            put!(out, FILL, u32s, FragmentId, packet.fragment.0);
            put!(out, FILL, u16s, FragmentOffset, packet.fragment.1);
        }
        if packet.has(has::PORTS) {
            put!(out, FILL, u16s, SrcPort, packet.ports.0);
            put!(out, FILL, u16s, DstPort, packet.ports.1);
        }
        if packet.has(has::TCP) {
            put!(out, FILL, u16s, TcpFlags, u16::from(packet.tcp_flags));
        }
        if packet.has(has::ICMP) {
            put!(out, FILL, u8s, IcmpType, packet.icmp.0);
            put!(out, FILL, u8s, IcmpCode, packet.icmp.1);
        }
    }

    fn append_inner<const FILL: bool>(&self, tunnel: &'static str, out: &mut Builder) {
        let packet = &self.inner;
        put!(out, FILL, labels, Tunnel, tunnel);
        if packet.has(has::IP) {
            put!(out, FILL, ips, InnerSrcAddr, packet.src);
            put!(out, FILL, ips, InnerDstAddr, packet.dst);
            put!(out, FILL, u8s, InnerIpProtocol, packet.protocol);
        }
        if packet.has(has::PORTS) {
            put!(out, FILL, u16s, InnerSrcPort, packet.ports.0);
            put!(out, FILL, u16s, InnerDstPort, packet.ports.1);
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
mod usual;
