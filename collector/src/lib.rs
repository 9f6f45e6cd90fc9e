//! The collector: from UDP datagrams to acknowledged batches.
//!
//! Data flows one way: `receive` (sockets) → [`decode`] (datagram → [`columns`]) → `batch` (columns → `RecordBatch`) →
//! [`sink`] (message → log).

pub mod columns;
pub mod decode;
pub mod sink;
