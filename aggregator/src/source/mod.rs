//! The log as the aggregator reads it: ordered, offset-addressed, replayable partitions of messages.

pub mod embedded;
pub mod kafka;
mod on_thread;

use std::collections::BTreeMap;

use bytes::Bytes;
use weir_schemas::Envelope;

/// A message of the log.
#[derive(Debug, Clone)]
pub struct LogMessage {
    pub partition: u32,
    /// Grows within the partition; need not be gapless.
    pub offset: u64,
    pub payload: Payload,
}

/// What a message holds.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A batch: open it with [`weir_schemas::envelope::open_body`].
    Batch { envelope: Envelope, body: Bytes },
    /// Something that is no batch (foreign, corrupt): counted, quarantined and passed over.
    Foreign { reason: String, bytes: Bytes },
    /// Offsets from `from` up to and with this message's own are gone from the log: retention passed over them, the
    /// disk lost them, or the writer skipped them because it could not know whether they had been used.
    Gap { from: u64 },
}

/// Why the log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Try again later; the source recovers by itself.
    #[error("the log cannot be read now: {0}")]
    Unavailable(String),
    /// Other partitions are to be read from now on: read the store again and open the log at its positions.
    #[error("the group has given other partitions")]
    Moved,
    /// Stop and tell the operator: going on would lose or repeat rows.
    #[error("the log cannot be read: {0}")]
    Fatal(String),
}

/// One past the last offset that the store contains, by partition. A partition that is absent starts at its beginning.
pub type Positions = BTreeMap<u32, u64>;

/// One past the greatest offset of a spool's partition that has been seen in a partition of the log: (partition of the
/// log, spool, partition of the spool). What comes at or below is there for the second time.
pub type Origins = BTreeMap<(u32, u64, u32), u64>;

/// Where messages come from.
#[async_trait::async_trait]
pub trait Source: Send {
    /// The next messages, at most `max_bytes` of bodies or one message; empty after about 200 ms without any.
    /// Starts at the positions that the source was opened with and goes on from there.
    async fn poll(&mut self, max_bytes: usize) -> Result<Vec<LogMessage>, SourceError>;

    /// Tells the log how far the store is (for lag tools and for retention); never read back.
    async fn committed(&mut self, positions: &Positions) -> Result<(), SourceError>;

    /// One past the newest offset of each partition as last known (for lag metrics).
    fn end(&self) -> Positions;
}
