//! The collector: from UDP datagrams to acknowledged batches.
//!
//! Data flows one way: [`receive`] (sockets) → [`decode`] (datagram → [`columns`]) → [`batch`] (columns →
//! `RecordBatch`) → [`writer`] → [`sink`] (message → log). [`collect`] wires it together, [`metrics`] and [`admin`] tell
//! what it does. Beside the path: [`pcap`] reads and writes captures, [`generate`] makes synthetic exports.

pub mod admin;
pub mod batch;
mod cells;
pub mod collect;
pub mod columns;
pub mod decode;
pub mod explain;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod generate;
pub mod metrics;
pub mod pcap;
pub mod receive;
pub mod second_opinion;
pub mod sink;
pub mod state;
pub mod writer;

#[cfg(test)]
mod documents;
#[cfg(test)]
mod testing;
