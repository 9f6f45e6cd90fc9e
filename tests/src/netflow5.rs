//! NetFlow v5 datagrams made here, byte by byte, for tests that need a few known rows.

use std::time::{SystemTime, UNIX_EPOCH};

/// A flow of a datagram; the rest of the record is 0.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    pub src: [u8; 4],
    pub dst: [u8; 4],
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    pub tos: u8,
    pub packets: u32,
    pub bytes: u32,
}

impl Flow {
    /// TCP to port 443 of 192.0.2.1, class EF, one packet.
    pub fn new(src: [u8; 4], bytes: u32) -> Flow {
        Flow {
            src,
            dst: [192, 0, 2, 1],
            src_port: 40_000,
            dst_port: 443,
            protocol: 6,
            tos: 0xb8,
            packets: 1,
            bytes,
        }
    }
}

/// A datagram exported now: the flows ended a second ago and took two. `sequence` counts flows.
pub fn datagram(sequence: u32, flows: &[Flow]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    let uptime_ms = 3_600_000_u32;
    let mut bytes = Vec::new();
    bytes.extend(5_u16.to_be_bytes());
    bytes.extend((flows.len() as u16).to_be_bytes());
    for word in [uptime_ms, now.as_secs() as u32, now.subsec_nanos(), sequence, 0] {
        bytes.extend(word.to_be_bytes());
    }
    for flow in flows {
        bytes.extend(flow.src);
        bytes.extend(flow.dst);
        bytes.extend([0; 4]);
        for half in [1_u16, 2] {
            bytes.extend(half.to_be_bytes());
        }
        for word in [flow.packets, flow.bytes, uptime_ms - 3_000, uptime_ms - 1_000] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(flow.src_port.to_be_bytes());
        bytes.extend(flow.dst_port.to_be_bytes());
        bytes.extend([0, 0x18, flow.protocol, flow.tos]);
        bytes.extend([0; 8]);
    }
    bytes
}
