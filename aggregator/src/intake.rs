//! From messages of the log to rows in memory, each row once: opened, told apart from what stands there for the second
//! time, and shown to queries.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_schemas::Table;
use weir_schemas::envelope::{EnvelopeError, Origin};

use crate::hot;
use crate::ingest::IngestError;
use crate::source::{LogMessage, Origins, Payload, Positions};
use crate::store::{Gap, HotBatch, Start, Store, StoreError};

/// How far the log is taken.
pub(crate) struct Intake {
    /// One past the last offset taken.
    pub(crate) seen: Positions,
    /// Of the messages before `seen`.
    pub(crate) origins: Origins,
    /// Another aggregator stores what is taken here.
    followed: bool,
}

impl Intake {
    pub(crate) fn new(start: Start, followed: bool) -> Intake {
        Intake { seen: start.positions, origins: start.origins, followed }
    }

    /// True while something that is known to be there is not taken.
    pub(crate) fn is_behind(&self, end: &Positions) -> bool {
        end.iter().any(|(partition, end)| self.seen.get(partition).copied().unwrap_or(0) < *end)
    }

    /// Opens messages and shows their rows.
    pub(crate) async fn take(
        &mut self,
        store: &Arc<Store>,
        messages: Vec<LogMessage>,
    ) -> Result<(), IngestError> {
        let fresh = |message: &LogMessage| {
            self.seen.get(&message.partition).is_none_or(|seen| message.offset >= *seen)
        };
        let fresh: Vec<LogMessage> = messages.into_iter().filter(fresh).collect();
        let opened = tokio::task::spawn_blocking(move || fresh.into_iter().map(open).collect::<Vec<_>>());
        let opened = opened.await.map_err(|error| StoreError::Corrupt(format!("opening died: {error}")))?;
        let mut batches: BTreeMap<Table, Vec<Arc<HotBatch>>> = BTreeMap::new();
        let mut newest: BTreeMap<u32, i64> = BTreeMap::new();
        for (message, opened) in opened {
            if let Payload::Batch { envelope, .. } = &message.payload {
                let known = newest.entry(message.partition).or_insert(envelope.max_time_us);
                *known = (*known).max(envelope.max_time_us);
            }
            if !self.is_again(store, &message) {
                self.account(store, &message, opened, &mut batches)?;
            }
            self.seen.insert(message.partition, message.offset + 1);
        }
        for (table, batches) in batches {
            store.take(table, &batches);
        }
        store.note_seen(&self.seen, &newest);
        Ok(())
    }

    /// True for a message that stands in the log for the second time: a collector that crashed, or whose broker did not
    /// answer, has sent it again.
    fn is_again(&mut self, store: &Store, message: &LogMessage) -> bool {
        let Payload::Batch { envelope, .. } = &message.payload else { return false };
        let Some(Origin { spool, partition, offset }) = envelope.origin else { return false };
        let next = self.origins.entry((message.partition, spool, partition)).or_insert(0);
        if offset < *next {
            if !self.followed {
                let metrics = store.metrics();
                metrics.repeated_messages.inc();
                metrics.repeated_rows.inc_by(envelope.rows.into());
            }
            return true;
        }
        *next = offset + 1;
        false
    }

    fn account(
        &self,
        store: &Store,
        message: &LogMessage,
        opened: Opened,
        batches: &mut BTreeMap<Table, Vec<Arc<HotBatch>>>,
    ) -> Result<(), IngestError> {
        let metrics = store.metrics();
        let (partition, offset) = (message.partition, message.offset);
        if !self.followed {
            metrics.messages.inc();
        }
        match opened {
            Opened::Batch(table, batch) => {
                let bytes = hot::bytes(&batch);
                batches.entry(table).or_default().push(Arc::new(HotBatch {
                    partition,
                    offset,
                    batch,
                    bytes,
                    followed: self.followed,
                }));
            }
            // whoever stores it tells
            Opened::Foreign(_) | Opened::Gap(_) if self.followed => {}
            Opened::Newer(error) => return Err(IngestError::Newer { partition, offset, error }),
            Opened::Foreign(reason) => {
                metrics.foreign.inc();
                tracing::warn!(
                    partition,
                    offset,
                    reason,
                    "a message of the log cannot be opened; passed over"
                );
                let bytes = match &message.payload {
                    Payload::Batch { body, .. } => body,
                    Payload::Foreign { bytes, .. } => bytes,
                    Payload::Gap { .. } => return Ok(()),
                };
                store.keep_foreign(partition, offset, &reason, bytes);
                store.note_gap(&Gap { partition, first: offset, last: offset, reason }, offset)?;
            }
            Opened::Gap(from) => {
                metrics.gaps.inc();
                metrics.gap_offsets.inc_by((offset + 1).saturating_sub(from));
                tracing::error!(partition, from, to = offset, "the log lost messages before they were read");
                let reason = "gone from the log before it was read".to_owned();
                store.note_gap(&Gap { partition, first: from, last: offset, reason }, offset)?;
            }
        }
        Ok(())
    }
}

/// A message, opened.
enum Opened {
    Batch(Table, arrow::array::RecordBatch),
    Foreign(String),
    Newer(EnvelopeError),
    Gap(u64),
}

fn open(message: LogMessage) -> (LogMessage, Opened) {
    let opened = match &message.payload {
        Payload::Batch { envelope, body } => match hot::open(envelope, body) {
            Ok(batch) => Opened::Batch(envelope.table, batch),
            Err(error @ EnvelopeError::Newer(_)) => Opened::Newer(error),
            Err(error) => Opened::Foreign(error.to_string()),
        },
        Payload::Foreign { reason, .. } => Opened::Foreign(reason.clone()),
        Payload::Gap { from } => Opened::Gap(*from),
    };
    (message, opened)
}
