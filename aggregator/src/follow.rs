//! What other aggregators store: the end of the log beyond the tables, read to be shown and not to be stored.
//!
//! So any aggregator of a group, and a node that only answers queries, shows the rows that are in nobody's files yet. They
//! leave the memory when a refresh of the tables ([`Store::refresh`]) finds them in files.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ingest::{IngestError, OpenSource, POLL_BYTES, RETRY};
use crate::intake::Intake;
use crate::source::{Source, SourceError};
use crate::store::{Start, Store, StoreError};

/// The following that goes on beside an ingester, from one round to the next.
pub(crate) struct Beside(JoinHandle<()>);

impl Beside {
    /// Follows from `start` on until it is stopped, or the group has given other partitions.
    pub(crate) fn start(store: &Arc<Store>, open: &OpenSource, start: Start) -> Option<Beside> {
        let source = match open(&start.positions) {
            Ok(source) => source,
            Err(error) => {
                tracing::warn!(%error, "what other aggregators read cannot be read");
                return None;
            }
        };
        let store = Arc::clone(store);
        Some(Beside(tokio::spawn(async move {
            if let Err(error) = follow(&store, source, start, false).await {
                tracing::error!(%error, "queries do not show what other aggregators have not stored yet");
            }
        })))
    }

    /// Stops it: then the store may be read again.
    pub(crate) async fn stop(self) {
        self.0.abort();
        // it ends with its next await
        let _ = self.0.await;
    }
}

/// Follows until the group has given other partitions, or the log cannot be read any more.
async fn follow(
    store: &Arc<Store>,
    mut source: Box<dyn Source>,
    start: Start,
    alone: bool,
) -> Result<(), IngestError> {
    let bound = store.config().hot_bytes;
    let mut intake = Intake::new(start, true);
    loop {
        // those who store are behind: the log keeps what does not fit
        while store.followed_bytes() as u64 >= bound {
            tokio::time::sleep(RETRY).await;
        }
        let messages = match source.poll(POLL_BYTES).await {
            Ok(messages) => messages,
            Err(SourceError::Unavailable(error)) => {
                tracing::debug!(error, "the log cannot be followed; trying again");
                if alone {
                    store.note_problem(Some(format!("the log cannot be read: {error}")));
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(SourceError::Moved) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let caught_up = messages.is_empty();
        if !caught_up {
            intake.take(store, messages).await?;
        }
        if alone {
            let end = source.end();
            let behind = intake.is_behind(&end);
            store.note_problem(None);
            store.note_end(end, caught_up || !behind);
        }
    }
}

/// Follows all of the log until `shutdown`: a node that stores nothing.
pub(crate) async fn follow_all(
    store: Arc<Store>,
    open: OpenSource,
    shutdown: CancellationToken,
) -> Result<(), IngestError> {
    loop {
        let round = async {
            let start = store.reload().await?;
            let source = open(&start.positions)?;
            follow(&store, source, start, true).await
        };
        let ended = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            ended = round => ended,
        };
        match ended {
            Ok(()) => {}
            Err(
                IngestError::Store(StoreError::Objects(_)) | IngestError::Source(SourceError::Unavailable(_)),
            ) => {
                store.note_problem(ended.err().map(|error| error.to_string()));
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}
