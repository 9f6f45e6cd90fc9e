//! Frames for the tests and the fuzz targets, made layer by layer.

#![allow(clippy::unwrap_used, reason = "for tests only")]

use super::Link;

pub(crate) fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// IPv4 10.0.0.`src` → 10.0.0.`dst`.
pub(crate) fn ipv4_between(src: u8, dst: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(payload.len() + 20).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0x28, total[0], total[1], 0, 7, 0, 0, 63, protocol, 0, 0];
    packet.extend([10, 0, 0, src, 10, 0, 0, dst]);
    packet.extend(payload);
    packet
}

pub(crate) fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_between(1, 2, protocol, payload)
}

/// IPv6 2001:db8::`src` → 2001:db8::`dst`.
pub(crate) fn ipv6(src: u8, dst: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x62, 0x81, 0x23, 0x45, length[0], length[1], next, 62];
    for host in [src, dst] {
        packet.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    packet.extend(payload);
    packet
}

pub(crate) fn tcp(src: u16, dst: u16) -> Vec<u8> {
    let mut header = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x12, 1, 0, 0, 0, 0, 0]);
    header
}

pub(crate) fn udp(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let mut header = [src, dst, length, 0].map(u16::to_be_bytes).concat();
    header.extend(payload);
    header
}

/// The innermost packet of the tunnel tests: TCP 1000 → 80 between 10.0.0.3 and 10.0.0.4.
pub(crate) fn passenger() -> Vec<u8> {
    ipv4_between(3, 4, 6, &tcp(1000, 80))
}

pub(crate) fn cat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// One frame of every kind.
pub(crate) fn zoo() -> Vec<(Link, Vec<u8>)> {
    let frame = ethernet(0x0800, &passenger());
    let srh = cat(&[&[143, 2, 4, 0, 0, 0, 0, 0], &[0x20; 16], &frame]);
    let extensions = cat(&[&[60, 0, 5, 2, 0, 0, 1, 0], &[51, 1], &[0; 14], &[44, 3], &[0; 18]]);
    let fragment = cat(&[&extensions, &[17, 0, 0, 1, 0, 0, 1, 0], &udp(1, 2, &[])]);
    vec![
        (Link::Ethernet, ethernet(0x8100, &cat(&[&[0, 5, 0x88, 0xa8, 0, 6, 8, 0], &passenger()]))),
        (Link::Ethernet, ethernet(0x8864, &cat(&[&[0x11, 0, 0, 1, 0, 42, 0, 0x21], &passenger()]))),
        (Link::Ethernet, ethernet(60, &cat(&[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], &passenger()]))),
        (Link::Ethernet, ethernet(0x8847, &cat(&[&[0, 1, 1, 255, 0, 0, 0, 9], &frame]))),
        (Link::Ethernet, ethernet(0x88e7, &cat(&[&[0x20, 0, 1, 2], &frame]))),
        (Link::Ip, ipv6(1, 2, 43, &srh)),
        (Link::Ip, ipv6(1, 2, 0, &fragment)),
        (Link::Ip, ipv4(47, &cat(&[&[0xb0, 0, 0x65, 0x58], &[0; 12], &frame]))),
        (Link::Ip, ipv4(47, &cat(&[&[0x10, 0, 0x22, 0xeb, 0, 0, 0, 1], &[1; 20], &frame]))),
        (Link::Ip, ipv4(17, &udp(1, 4789, &cat(&[&[8, 0, 0, 0, 0, 0, 5, 0], &frame])))),
        (Link::Ip, ipv4(17, &udp(1, 6081, &cat(&[&[2, 0, 0x65, 0x58, 0, 0, 9, 0], &[0; 8], &frame])))),
        (
            Link::Ip,
            ipv4(
                17,
                &udp(
                    1,
                    2152,
                    &cat(&[
                        &[0x34, 255, 0, 40, 0, 0, 0, 1],
                        &[0, 0, 0, 0x85],
                        &[1, 0x10, 9, 0],
                        &passenger(),
                    ]),
                ),
            ),
        ),
        (
            Link::Ip,
            ipv4(
                17,
                &udp(
                    1,
                    1701,
                    &cat(&[
                        &[0x4a, 2, 0, 48, 0, 1, 0, 2, 0, 3, 0, 4, 0, 2, 0, 0],
                        &[0xff, 3, 0, 0x21],
                        &passenger(),
                    ]),
                ),
            ),
        ),
    ]
}
