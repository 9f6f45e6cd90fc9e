//! The way out: messages to the log. One trait, two logs: embedded segments, and Apache Kafka behind a spool on disk.

mod body;
pub mod embedded;
pub mod kafka;
pub mod spool;

use std::time::Duration;

use weir_schemas::Envelope;
use weir_schemas::envelope::Compression;

pub use body::Body;
pub(crate) use body::Lease;
pub use embedded::EmbeddedStats as LogStats;

use crate::receive::journal::InLog;

/// A batch ready for the log.
#[derive(Debug, Clone)]
pub struct Message {
    pub envelope: Envelope,
    /// Arrow IPC stream ([`weir_schemas::envelope::encode_pieces`]).
    pub body: Body,
    /// Messages of one key stay in order: the number of the shard.
    pub key: u64,
    /// Where the shard keeps a journal: with this message all rows of the datagrams before that one are in the log.
    pub low: Option<u64>,
}

/// What the log has taken for good (as its fsync policy or `acks` defines it) since the last call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acknowledged {
    pub messages: u64,
    pub rows: u64,
    pub bytes: u64,
}

impl Acknowledged {
    /// One message.
    pub fn of(message: &Message) -> Acknowledged {
        Acknowledged { messages: 1, rows: message.envelope.rows.into(), bytes: message.body.len() as u64 }
    }
}

impl std::ops::AddAssign for Acknowledged {
    fn add_assign(&mut self, more: Acknowledged) {
        self.messages += more.messages;
        self.rows += more.rows;
        self.bytes += more.bytes;
    }
}

/// A journal that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalMark {
    pub journal: u64,
    pub shard: u64,
    /// This much is known to be in the log.
    pub low: u64,
    /// When the first datagram beyond that was received, µs since 1970 UTC; None where there is none.
    pub since_us: Option<i64>,
}

/// What to do about a message that the log did not take.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The log takes nothing now (queue full, disk full, broker away): keep the message and offer it again.
    #[error("the log takes nothing now: {0}")]
    Busy(String),
    /// The log will never take this message: drop it and count it.
    #[error("the log refuses the message: {0}")]
    Refused(String),
}

/// A log as the collector sees it. Used by one writer thread; nothing here may be called from a receive thread.
pub trait Sink: Send {
    /// Offers a message. `Ok` means the log has it in hand, not yet that it is durable.
    fn append(&mut self, message: &Message) -> Result<(), SinkError>;

    /// Does what is due (fsync, delivery reports), waiting up to `timeout` for something to be acknowledged; returns at
    /// once when nothing is in flight, unless the log is busy.
    fn poll(&mut self, timeout: Duration) -> Acknowledged;

    /// Waits until all that was appended is acknowledged, up to `timeout`; returns what was acknowledged meanwhile.
    fn flush(&mut self, timeout: Duration) -> Acknowledged;

    /// The compression that pays here, where the configuration asks for none in particular.
    fn compression(&self) -> Compression {
        Compression::Lz4
    }

    /// How large messages are, where the configuration does not say: below what a broker takes by default.
    fn message_bytes(&self) -> usize {
        900_000
    }

    /// Messages appended and not yet acknowledged.
    fn in_flight(&self) -> u64;

    /// How far the rows of these journals are in the log. None where a message that was appended may be lost with this
    /// process, or where the log cannot be asked: then there is no going on after a crash.
    fn in_log(&mut self, _journals: &[JournalMark]) -> Option<Vec<InLog>> {
        None
    }

    /// Messages that were appended, but that the log has refused since (each once): dropped, to be counted as such.
    fn refused(&mut self) -> Acknowledged {
        Acknowledged::default()
    }

    /// What a log on the local disk has done.
    fn stats(&self) -> Option<LogStats> {
        None
    }
}
