//! The frames that most are, read at once instead of layer by layer.

use weir_schemas::Address;

use super::{Frame, Packet, UdpTunnel, has};

impl Frame {
    /// Ethernet, IPv4 without options or IPv6 without extension headers, and TCP or UDP without a tunnel in it: what a
    /// walk would say of it. None where it is anything else, or does not end where it says: then it is to be walked.
    #[inline]
    pub(super) fn usual(&mut self, bytes: &[u8]) -> Option<()> {
        let ([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, hi, lo], bytes) =
            bytes.split_first_chunk::<14>()?;
        let ether_type = u16::from_be_bytes([*hi, *lo]);
        match ether_type {
            0x0800 => ipv4(&mut self.outer, bytes)?,
            0x86dd => ipv6(&mut self.outer, bytes)?,
            _ => return None,
        }
        self.has = has::MACS | has::ETHER_TYPE;
        self.macs = ([*d0, *d1, *d2, *d3, *d4, *d5], [*s0, *s1, *s2, *s3, *s4, *s5]);
        self.ether_type = ether_type;
        self.vni = 0;
        Some(())
    }
}

#[inline]
fn ipv4(packet: &mut Packet, bytes: &[u8]) -> Option<()> {
    let (fixed, rest) = bytes.split_first_chunk::<20>()?;
    let [vihl, tos, l0, l1, _, _, f0, f1, ttl, protocol, _, _, src @ .., d0, d1, d2, d3] = *fixed;
    let total = u16::from_be_bytes([l0, l1]);
    if vihl != 0x45 || u16::from_be_bytes([f0, f1]) & 0x3fff != 0 {
        return None;
    }
    let transport = Transport::read(protocol, rest, usize::from(total).checked_sub(20)?)?;
    *packet = Packet {
        has: has::IP | has::IP_BYTES | has::PORTS | transport.has,
        src: Address::v4(src).0,
        dst: Address::v4([d0, d1, d2, d3]).0,
        protocol,
        tos,
        ttl,
        bytes: u32::from(total),
        ports: transport.ports,
        tcp_flags: transport.flags,
        ..Packet::default()
    };
    Some(())
}

#[inline]
fn ipv6(packet: &mut Packet, bytes: &[u8]) -> Option<()> {
    let (fixed, rest) = bytes.split_first_chunk::<40>()?;
    let [v0, v1, v2, v3, l0, l1, protocol, ttl, addresses @ ..] = *fixed;
    let word = u32::from_be_bytes([v0, v1, v2, v3]);
    let payload = u16::from_be_bytes([l0, l1]);
    if word >> 28 != 6 {
        return None;
    }
    let (src, dst) = addresses.split_first_chunk::<16>()?;
    let transport = Transport::read(protocol, rest, usize::from(payload))?;
    *packet = Packet {
        has: has::IP | has::IPV6 | has::IP_BYTES | has::PORTS | transport.has,
        src: *src,
        dst: *dst.first_chunk()?,
        protocol,
        tos: u8::try_from(word >> 20 & 0xff).unwrap_or(0),
        ttl,
        bytes: u32::from(payload).saturating_add(40),
        flow_label: word & 0x000f_ffff,
        ports: transport.ports,
        tcp_flags: transport.flags,
        ..Packet::default()
    };
    Some(())
}

struct Transport {
    has: u32,
    ports: (u16, u16),
    flags: u8,
}

impl Transport {
    /// TCP or UDP, of which the packet has `length` octets.
    #[inline]
    fn read(protocol: u8, bytes: &[u8], length: usize) -> Option<Transport> {
        match protocol {
            6 => {
                let [s0, s1, d0, d1, .., flags] = *bytes.first_chunk::<14>().filter(|_| length >= 14)?;
                let ports = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
                Some(Transport { has: has::TCP, ports, flags })
            }
            17 => {
                let [s0, s1, d0, d1] = *bytes.first_chunk::<4>().filter(|_| length >= 4)?;
                let ports = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
                UdpTunnel::of(ports).is_none().then_some(Transport { has: 0, ports, flags: 0 })
            }
            _ => None,
        }
    }
}
