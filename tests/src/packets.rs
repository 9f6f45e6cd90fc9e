//! Capture files with known contents: packets of TCP, UDP, ICMP and ICMPv6 between made-up hosts, written byte by byte
//! (no code shared with weir), for exporters that read captures.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Packets and bytes of an IP protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Volume {
    pub packets: u64,
    /// IP length: without the Ethernet header.
    pub ip_bytes: u64,
}

/// What a capture holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Truth {
    pub protocols: BTreeMap<u8, Volume>,
    /// Bytes of the frames, with their Ethernet headers.
    pub frame_bytes: u64,
}

impl Truth {
    pub fn packets(&self) -> u64 {
        self.protocols.values().map(|volume| volume.packets).sum()
    }

    pub fn ip_bytes(&self) -> u64 {
        self.protocols.values().map(|volume| volume.ip_bytes).sum()
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// Writes `packets` packets, a millisecond apart, the last one just now. `ipv6` mixes in IPv6.
pub fn write_capture(path: &Path, packets: u64, ipv6: bool) -> io::Result<Truth> {
    let mut out = io::BufWriter::new(std::fs::File::create(path)?);
    // classic pcap, little endian, µs, Ethernet
    out.write_all(&0xa1b2_c3d4_u32.to_le_bytes())?;
    out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0])?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_micros() as u64;
    let first = now - packets * 1_000;
    let mut truth = Truth::default();
    for number in 0..packets {
        let (frame, protocol) = frame(number, ipv6);
        let at = first + number * 1_000;
        out.write_all(&((at / 1_000_000) as u32).to_le_bytes())?;
        out.write_all(&((at % 1_000_000) as u32).to_le_bytes())?;
        out.write_all(&(frame.len() as u32).to_le_bytes())?;
        out.write_all(&(frame.len() as u32).to_le_bytes())?;
        out.write_all(&frame)?;
        let volume = truth.protocols.entry(protocol).or_default();
        volume.packets += 1;
        volume.ip_bytes += frame.len() as u64 - 14;
        truth.frame_bytes += frame.len() as u64;
    }
    out.flush()?;
    Ok(truth)
}

/// The frame with that number, and its IP protocol. Some 400 conversations, both directions.
fn frame(number: u64, ipv6: bool) -> (Vec<u8>, u8) {
    let conversation = (number * 7 + number / 11) % 400;
    let reply = number % 3 == 2;
    let six = ipv6 && conversation.is_multiple_of(3);
    let protocol = match conversation % 10 {
        0 => {
            if six {
                ICMP6
            } else {
                ICMP
            }
        }
        1..=3 => UDP,
        _ => TCP,
    };
    let (client, server) = (32_768 + conversation as u16, [80, 443, 53, 22][conversation as usize % 4]);
    let (from_port, to_port) = if reply { (server, client) } else { (client, server) };
    let payload = vec![0x5a; (number % 900) as usize];
    let transport = match protocol {
        TCP => {
            let mut header = Vec::from(from_port.to_be_bytes());
            header.extend(to_port.to_be_bytes());
            header.extend([(number as u32).to_be_bytes(), 1_u32.to_be_bytes()].concat());
            header.extend([0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
            header
        }
        UDP => {
            let mut header = Vec::from(from_port.to_be_bytes());
            header.extend(to_port.to_be_bytes());
            header.extend((payload.len() as u16 + 8).to_be_bytes());
            header.extend([0, 0]);
            header
        }
        ICMP => vec![if reply { 0 } else { 8 }, 0, 0, 0, 0, 1, 0, 1],
        _ => vec![if reply { 129 } else { 128 }, 0, 0, 0, 0, 1, 0, 1],
    };
    let body = [transport, payload].concat();
    let tos = [0_u8, 0xb8, 0x28, 0x60][conversation as usize % 4];
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if six { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(if six {
        header6(conversation, reply, protocol, tos, &body)
    } else {
        header4(conversation, reply, protocol, tos, &body)
    });
    frame.extend(body);
    (frame, protocol)
}

fn header4(conversation: u64, reply: bool, protocol: u8, tos: u8, body: &[u8]) -> Vec<u8> {
    let client = Ipv4Addr::from(0x0a01_0000 + (conversation % 50) as u32).octets();
    let server = Ipv4Addr::from(0xc633_6400 + (conversation % 20) as u32).octets();
    let (from, to) = if reply { (server, client) } else { (client, server) };
    let mut header = vec![0x45, tos];
    header.extend((body.len() as u16 + 20).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    header
}

fn header6(conversation: u64, reply: bool, protocol: u8, tos: u8, body: &[u8]) -> Vec<u8> {
    let host = |net: u16, host: u64| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host as u16).octets();
    let (client, server) = (host(1, conversation % 50), host(2, conversation % 20));
    let (from, to) = if reply { (server, client) } else { (client, server) };
    let mut header = vec![0x60 | tos >> 4, tos << 4, 0, 0];
    header.extend((body.len() as u16).to_be_bytes());
    header.extend([protocol, 64]);
    header.extend(from);
    header.extend(to);
    header
}
