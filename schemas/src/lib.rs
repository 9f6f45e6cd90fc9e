//! What the parts of weir agree on: the tables and their columns, addresses, and the envelope of a batch.
//!
//! * [`tables`]: every table and column, with its meaning, its type in the log and its type in SQL.
//! * [`address`]: addresses as sixteen bytes, their text and their prefixes.
//! * [`envelope`]: a batch on the way through the log: headers and an Arrow IPC stream.
//! * [`segment`]: the frames, segments and marks of the embedded log.
//!
//! Nothing here does I/O or knows how a flow was exported.

pub mod address;
pub mod elements;
pub mod envelope;
pub mod names;
mod runs;
pub mod segment;
pub mod tables;

pub use address::{Address, Mac};
pub use envelope::{Envelope, EnvelopeError};
pub use tables::{Column, FlowColumn, Kind, Table};
