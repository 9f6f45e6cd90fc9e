//! From a captured frame to the UDP datagram in it: link layer, VLAN tags, MPLS, IPv4, IPv6 with extension headers.

use weir_schemas::Address;

/// The most VLAN tags and MPLS labels taken off, and IPv6 extension headers.
const MAX_TAGS: usize = 8;
const MAX_EXTENSION_HEADERS: usize = 16;

const IPPROTO_UDP: u8 = 17;

/// The link types that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkType {
    Ethernet,
    /// BSD loopback: an address family in the byte order of the host that captured.
    Null,
    /// OpenBSD loopback: the same in network order.
    Loop,
    /// An IP header, v4 or v6.
    RawIp,
    /// Linux cooked capture (interface `any`), version 1 and 2.
    LinuxSll,
    LinuxSll2,
}

impl LinkType {
    /// The number in the file (<https://www.tcpdump.org/linktypes.html>); 12 and 14 are what old files say for raw IP.
    pub fn from_number(number: i32) -> Option<LinkType> {
        Some(match number {
            0 => LinkType::Null,
            1 => LinkType::Ethernet,
            12 | 14 | 101 | 228 | 229 => LinkType::RawIp,
            108 => LinkType::Loop,
            113 => LinkType::LinuxSll,
            276 => LinkType::LinuxSll2,
            _ => return None,
        })
    }
}

/// An IP packet's payload or a piece of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPayload<'a> {
    pub src: Address,
    pub dst: Address,
    pub protocol: u8,
    pub bytes: &'a [u8],
    /// The capture holds less than the header says.
    pub cut: bool,
    /// Set where the packet is a fragment.
    pub fragment: Option<Fragment>,
}

/// Where a fragment belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    /// In bytes.
    pub offset: usize,
    pub more: bool,
}

/// Why a frame gives no datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Sound, but not IP, or not UDP.
    NotUdp,
    /// Cut in a header, or contradictory.
    Malformed,
}

/// A UDP header and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp<'a> {
    pub src_port: u16,
    pub dst_port: u16,
    pub payload: &'a [u8],
    pub cut: bool,
}

fn be16(bytes: &[u8], at: usize) -> Result<u16, Skip> {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => Ok(u16::from_be_bytes([a, b])),
        _ => Err(Skip::Malformed),
    }
}

fn from(bytes: &[u8], at: usize) -> Result<&[u8], Skip> {
    bytes.get(at..).ok_or(Skip::Malformed)
}

/// The UDP (or fragment of it) in a frame.
pub fn ip_payload(link: LinkType, frame: &[u8]) -> Result<IpPayload<'_>, Skip> {
    match link {
        LinkType::Ethernet => network(be16(frame, 12)?, from(frame, 14)?),
        LinkType::LinuxSll => network(be16(frame, 14)?, from(frame, 16)?),
        LinkType::LinuxSll2 => network(be16(frame, 0)?, from(frame, 20)?),
        LinkType::RawIp => ip(frame),
        LinkType::Null | LinkType::Loop => ip(from(frame, 4)?),
    }
}

/// What an EtherType announces.
fn network(mut ether_type: u16, mut bytes: &[u8]) -> Result<IpPayload<'_>, Skip> {
    for _ in 0..=MAX_TAGS {
        match ether_type {
            0x0800 | 0x86dd => return ip(bytes),
            // IEEE 802.1Q, 802.1ad and the older types for outer tags
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                ether_type = be16(bytes, 2)?;
                bytes = from(bytes, 4)?;
            }
            0x8847 | 0x8848 => return ip(behind_labels(bytes)?),
            _ => return Err(Skip::NotUdp),
        }
    }
    Err(Skip::Malformed)
}

/// RFC 3032 §2.1: labels up to the one with the bottom-of-stack bit.
fn behind_labels(mut bytes: &[u8]) -> Result<&[u8], Skip> {
    for _ in 0..MAX_TAGS {
        let bottom = bytes.get(2).ok_or(Skip::Malformed)? & 1 == 1;
        bytes = from(bytes, 4)?;
        if bottom {
            return Ok(bytes);
        }
    }
    Err(Skip::Malformed)
}

fn ip(bytes: &[u8]) -> Result<IpPayload<'_>, Skip> {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => ipv4(bytes),
        Some(6) => ipv6(bytes),
        Some(_) => Err(Skip::NotUdp),
        None => Err(Skip::Malformed),
    }
}

/// RFC 791 §3.1.
fn ipv4(bytes: &[u8]) -> Result<IpPayload<'_>, Skip> {
    let header = bytes.get(..20).ok_or(Skip::Malformed)?;
    let header_len = usize::from(header[0] & 15) * 4;
    let total = match usize::from(be16(header, 2)?) {
        // segmentation offload writes 0: the packet is what was captured
        0 => bytes.len(),
        total => total,
    };
    if header_len < 20 || total < header_len || bytes.len() < header_len {
        return Err(Skip::Malformed);
    }
    let flags = be16(header, 6)?;
    let (more, offset) = (flags & 0x2000 != 0, usize::from(flags & 0x1fff) * 8);
    let fragment = (more || offset > 0).then_some(Fragment { id: u32::from(be16(header, 4)?), offset, more });
    let end = total.min(bytes.len());
    Ok(IpPayload {
        src: Address::v4([header[12], header[13], header[14], header[15]]),
        dst: Address::v4([header[16], header[17], header[18], header[19]]),
        protocol: header[9],
        bytes: &bytes[header_len..end],
        cut: end < total,
        fragment,
    })
}

/// RFC 8200 §3 and §4.
fn ipv6(bytes: &[u8]) -> Result<IpPayload<'_>, Skip> {
    let header = bytes.get(..40).ok_or(Skip::Malformed)?;
    let mut rest = &bytes[40..];
    let mut cut = false;
    match usize::from(be16(header, 4)?) {
        // a jumbogram, or segmentation offload: what was captured
        0 => {}
        len if len <= rest.len() => rest = &rest[..len],
        _ => cut = true,
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Address::v6(octets)
    };
    let mut protocol = header[6];
    let mut fragment = None;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let len = match protocol {
            // hop-by-hop, routing, destination options: in 8 bytes, the first not counted
            0 | 43 | 60 => (usize::from(*rest.get(1).ok_or(Skip::Malformed)?) + 1) * 8,
            // RFC 4302: the authentication header counts in 4 bytes, less 2
            51 => (usize::from(*rest.get(1).ok_or(Skip::Malformed)?) + 2) * 4,
            44 => {
                let word = be16(rest, 2)?;
                let id = rest.get(4..8).ok_or(Skip::Malformed)?;
                let id = u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
                let (more, offset) = (word & 1 == 1, usize::from(word & 0xfff8));
                // RFC 8200 §4.5: an atomic fragment is a whole packet
                fragment = (more || offset > 0).then_some(Fragment { id, offset, more });
                8
            }
            _ => {
                return Ok(IpPayload {
                    src: address(8),
                    dst: address(24),
                    protocol,
                    bytes: rest,
                    cut,
                    fragment,
                });
            }
        };
        let next = *rest.first().ok_or(Skip::Malformed)?;
        let is_later_fragment = fragment.is_some_and(|fragment| fragment.offset > 0);
        rest = from(rest, len)?;
        protocol = next;
        if is_later_fragment {
            // what follows is the middle of the payload, whatever `next` says of its beginning
            return Ok(IpPayload { src: address(8), dst: address(24), protocol, bytes: rest, cut, fragment });
        }
    }
    Err(Skip::Malformed)
}

/// RFC 768. `bytes` is a whole UDP packet or its captured beginning.
pub fn udp(bytes: &[u8], cut: bool) -> Result<Udp<'_>, Skip> {
    let header = bytes.get(..8).ok_or(Skip::Malformed)?;
    let payload = &bytes[8..];
    let (payload, cut) = match usize::from(be16(header, 4)?) {
        0 => (payload, cut),
        len @ ..8 => {
            let _ = len;
            return Err(Skip::Malformed);
        }
        len if len - 8 <= payload.len() => (&payload[..len - 8], false),
        _ => (payload, true),
    };
    Ok(Udp { src_port: be16(header, 0)?, dst_port: be16(header, 2)?, payload, cut })
}

/// True for the protocol that is looked for.
pub fn is_udp(payload: &IpPayload<'_>) -> bool {
    payload.protocol == IPPROTO_UDP
}
