//! Captures: the UDP datagrams of a pcap or pcapng file, read from any [`Read`] in bounded memory.
//!
//! [`Reader`] finds the frames (crate `pcap-parser`), [`frame`] peels the link and network layers off,
//! [`fragments`] puts fragmented datagrams together again, and [`Writer`] writes captures. `weir decode` and `weir
//! replay` read with it, `weir generate --pcap` writes with it.
//!
//! Link types: Ethernet (with VLAN tags and MPLS labels), Linux cooked v1 and v2, raw IP, NULL and LOOP. Checksums are
//! not looked at: offloading leaves wrong ones in captures of one's own host. Not handled: 802.11, PPP, tunnels.

pub mod fragments;
pub mod frame;
mod reader;
mod writer;

pub use frame::LinkType;
pub use reader::Reader;
pub use writer::Writer;

use std::io;

use weir_schemas::Address;

/// The largest block of a file that is taken into memory.
pub const MAX_BLOCK_BYTES: usize = 16 << 20;
/// The most interfaces of a pcapng section.
pub const MAX_INTERFACES: usize = 65_536;

/// A UDP datagram of the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Number of the frame in the file, from 1, as Wireshark counts (of a fragmented datagram the last one).
    pub frame: u64,
    /// When it was captured, µs since 1970 UTC.
    pub time_us: i64,
    pub src: Address,
    pub src_port: u16,
    pub dst: Address,
    pub dst_port: u16,
    pub payload: &'a [u8],
    /// The capture holds less than was on the wire (snap length).
    pub cut: bool,
}

/// What was in the file, up to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames of any kind.
    pub frames: u64,
    /// UDP datagrams handed out.
    pub datagrams: u64,
    /// Frames that hold no UDP (ARP, TCP, …).
    pub not_udp: u64,
    /// Frames of interfaces whose link type is not understood.
    pub other_link: u64,
    /// Frames whose headers are cut or contradict themselves.
    pub malformed: u64,
    /// Datagrams of which the capture holds only the beginning.
    pub cut: u64,
    /// Fragments of datagrams that never came together.
    pub fragments_lost: u64,
}

/// Why a capture cannot be read, or not further.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The first bytes are no capture's.
    #[error("this is no pcap or pcapng file: it begins with {0}")]
    NotACapture(String),
    /// Nothing to read.
    #[error("the capture is empty")]
    Empty,
    /// The whole file is of a link type that is not understood.
    #[error("link type {0} is not supported: Ethernet, Linux cooked, raw IP and loopback captures are")]
    LinkType(i32),
    /// The file ends within a frame.
    #[error("the capture is cut off in frame {frame} ({bytes} bytes of it are there)")]
    Truncated { frame: u64, bytes: usize },
    /// A frame or block that contradicts itself.
    #[error("the capture is damaged at frame {frame}: {what}")]
    Damaged { frame: u64, what: String },
    /// The file cannot be read.
    #[error("reading the capture at frame {frame}: {error}")]
    Io { frame: u64, error: io::Error },
}

#[cfg(test)]
mod tests;
