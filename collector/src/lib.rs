//! The collector: from UDP datagrams to acknowledged batches.
//!
//! Data flows one way: `receive` (sockets) → [`decode`] (datagram → [`columns`]) → `batch` (columns → `RecordBatch`) →
//! [`sink`] (message → log). Beside the path: [`pcap`] reads and writes captures, [`generate`] makes synthetic exports.

pub mod columns;
pub mod decode;
pub mod generate;
pub mod pcap;
pub mod sink;
