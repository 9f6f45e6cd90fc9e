//! Writes a capture of UDP datagrams: classic pcap, µs, Ethernet, IPv4 or IPv6, with right checksums.

use std::io::{self, Write};

use weir_schemas::Address;

/// Writes datagrams as frames.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    frame: Vec<u8>,
    id: u16,
}

impl<W: Write> Writer<W> {
    /// Writes the file's header.
    pub fn new(mut out: W) -> io::Result<Writer<W>> {
        let mut header = Vec::with_capacity(24);
        header.extend_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
        header.extend_from_slice(&2_u16.to_le_bytes());
        header.extend_from_slice(&4_u16.to_le_bytes());
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&262_144_u32.to_le_bytes());
        header.extend_from_slice(&1_u32.to_le_bytes());
        out.write_all(&header)?;
        Ok(Writer { out, frame: Vec::with_capacity(2_048), id: 0 })
    }

    /// Writes one datagram. Both addresses must be of one family; the payload must fit into one IP packet.
    pub fn write(
        &mut self,
        time_us: i64,
        src: (Address, u16),
        dst: (Address, u16),
        payload: &[u8],
    ) -> io::Result<()> {
        let too_long =
            || io::Error::new(io::ErrorKind::InvalidInput, "the payload is too long for a datagram");
        let udp_len = u16::try_from(payload.len() + 8).map_err(|_| too_long())?;
        let frame = &mut self.frame;
        frame.clear();
        frame.extend_from_slice(&[0; 16]);
        // locally administered addresses
        frame.extend_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        let mut sum = Checksum::default();
        match (src.0.as_v4(), dst.0.as_v4()) {
            (Some(from), Some(to)) => {
                let total = udp_len.checked_add(20).ok_or_else(too_long)?;
                self.id = self.id.wrapping_add(1);
                frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
                frame.extend_from_slice(&total.to_be_bytes());
                frame.extend_from_slice(&self.id.to_be_bytes());
                frame.extend_from_slice(&[0x40, 0, 64, 17, 0, 0]);
                frame.extend_from_slice(&from);
                frame.extend_from_slice(&to);
                let start = frame.len() - 20;
                let mut header = Checksum::default();
                header.add(&frame[start..]);
                frame[start + 10..start + 12].copy_from_slice(&header.finish().to_be_bytes());
                sum.add(&frame[start + 12..]);
            }
            (None, None) => {
                frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend_from_slice(&udp_len.to_be_bytes());
                frame.extend_from_slice(&[17, 64]);
                frame.extend_from_slice(&src.0.0);
                frame.extend_from_slice(&dst.0.0);
                sum.add(&src.0.0);
                sum.add(&dst.0.0);
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "IPv4 and IPv6 in one datagram")),
        }
        let udp = frame.len();
        frame.extend_from_slice(&src.1.to_be_bytes());
        frame.extend_from_slice(&dst.1.to_be_bytes());
        frame.extend_from_slice(&udp_len.to_be_bytes());
        frame.extend_from_slice(&[0, 0]);
        frame.extend_from_slice(payload);
        sum.add(&[0, 17]);
        sum.add(&udp_len.to_be_bytes());
        sum.add(&frame[udp..]);
        // RFC 768: a sum of zero is sent as all ones
        let sum = if sum.finish() == 0 { u16::MAX } else { sum.finish() };
        frame[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
        let len = u32::try_from(frame.len() - 16).unwrap_or(u32::MAX);
        let seconds = u32::try_from(time_us.div_euclid(1_000_000)).unwrap_or(u32::MAX);
        let micros = u32::try_from(time_us.rem_euclid(1_000_000)).unwrap_or(0);
        for (at, value) in [seconds, micros, len, len].into_iter().enumerate() {
            frame[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        self.out.write_all(frame)
    }

    /// Flushes and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// RFC 1071.
#[derive(Debug, Default, Clone, Copy)]
struct Checksum(u64);

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let mut pairs = bytes.chunks_exact(2);
        self.0 += pairs.by_ref().map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>();
        if let [last] = pairs.remainder() {
            self.0 += u64::from(*last) << 8;
        }
    }

    fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}
