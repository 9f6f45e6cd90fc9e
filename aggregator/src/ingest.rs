//! From the log to the store: reads messages, shows them at once, commits them soon.
//!
//! The loop owns the positions: it opens the source where the store stands, and opens it there again when another writer
//! was found. Nothing is acknowledged to the log before it is committed, so whatever stops the loop repeats nothing and
//! loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_schemas::Table;
use weir_schemas::envelope::{EnvelopeError, Origin};

use crate::hot;
use crate::source::{LogMessage, Origins, Payload, Positions, Source, SourceError};
use crate::store::{CommitError, HotBatch, Start, Store, StoreError};

/// Opens the log at the given positions.
pub type OpenSource = Box<dyn Fn(&Positions) -> Result<Box<dyn Source>, SourceError> + Send + Sync>;

/// How much is read from the log at once.
const POLL_BYTES: usize = 16 << 20;
/// How long to wait before trying again what failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a stop may take to empty the log and commit.
const STOP: Duration = Duration::from_secs(60);

/// Why the loop ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A message of a newer weir: its rows would be lost or wrong.
    #[error("offset {offset} of partition {partition}: {error}")]
    Newer { partition: u32, offset: u64, error: EnvelopeError },
}

/// Why a round ended.
enum Round {
    Stopped,
    /// Read the store again and go on from there.
    Again,
}

/// The loop from a log to a store.
pub struct Ingest {
    store: Arc<Store>,
    open: OpenSource,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Ingest {
    pub fn new(store: Arc<Store>, open: OpenSource) -> Ingest {
        Ingest { store, open }
    }

    /// Runs until `shutdown`; then takes what the log still has, commits it, and returns.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), IngestError> {
        loop {
            let Start { positions: start, origins } = match self.store.reload().await {
                Ok(start) => start,
                Err(StoreError::Objects(error)) => {
                    if self.wait(&shutdown, &format!("the store cannot be read: {error}")).await {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let source = match (self.open)(&start) {
                Ok(source) => source,
                Err(SourceError::Unavailable(error)) => {
                    if self.wait(&shutdown, &format!("the log cannot be opened: {error}")).await {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.store.note_problem(None);
            let mut round = Reader {
                store: &self.store,
                source,
                seen: start.clone(),
                start,
                origins,
                oldest: None,
                commit: JoinSet::new(),
                committing: None,
                retry_at: None,
                log_away: false,
            };
            match round.run(&shutdown).await? {
                Round::Stopped => return Ok(()),
                Round::Again => {}
            }
        }
    }

    /// Notes the problem and waits; true where the loop is to stop.
    async fn wait(&self, shutdown: &CancellationToken, problem: &str) -> bool {
        tracing::warn!(problem, "trying again");
        self.store.note_problem(Some(problem.to_owned()));
        tokio::select! {
            () = shutdown.cancelled() => true,
            () = tokio::time::sleep(RETRY) => false,
        }
    }
}

/// One reading of the log from a known state of the store.
struct Reader<'a> {
    store: &'a Arc<Store>,
    source: Box<dyn Source>,
    /// One past the last offset taken.
    seen: Positions,
    /// Where the round began.
    start: Positions,
    /// Of the messages before `seen`.
    origins: Origins,
    /// When the oldest row that no commit has in hand was taken.
    oldest: Option<Instant>,
    /// At most one commit runs at a time; dropping the reader stops it at its next await.
    commit: JoinSet<Result<(), CommitError>>,
    committing: Option<Positions>,
    /// Set after a failed commit.
    retry_at: Option<Instant>,
    /// The last read of the log failed.
    log_away: bool,
}

impl Reader<'_> {
    async fn run(&mut self, shutdown: &CancellationToken) -> Result<Round, IngestError> {
        let config = self.store.config().clone();
        let interval = Duration::from_millis(config.commit_interval_ms);
        let full = |bytes: usize, bound: u64| bytes as u64 >= bound;
        loop {
            if shutdown.is_cancelled() {
                return self.stop().await;
            }
            let mut hot = self.store.hot_bytes();
            let due = match (self.retry_at, self.oldest) {
                (Some(at), _) => at <= Instant::now(),
                (None, Some(oldest)) => oldest.elapsed() >= interval || full(hot, config.commit_bytes),
                (None, None) => false,
            };
            if due && self.commit.is_empty() {
                self.start_commit();
            }
            // back-pressure: the log keeps what does not fit
            while full(hot, config.hot_bytes) && !shutdown.is_cancelled() {
                if self.commit.is_empty() {
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = tokio::time::sleep(RETRY) => self.start_commit(),
                    }
                }
                if self.finish_commit().await? {
                    return Ok(Round::Again);
                }
                hot = self.store.hot_bytes();
            }
            match self.source.poll(POLL_BYTES).await {
                Ok(messages) => {
                    if std::mem::take(&mut self.log_away) && self.retry_at.is_none() {
                        self.store.note_problem(None);
                    }
                    self.take(messages).await?;
                }
                Err(SourceError::Unavailable(error)) => {
                    tracing::warn!(error, "the log cannot be read; trying again");
                    self.store.note_problem(Some(format!("the log cannot be read: {error}")));
                    self.log_away = true;
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(RETRY) => {}
                    }
                    // what was read stays; the source recovers by itself
                }
                Err(SourceError::Moved) => return Ok(Round::Again),
                Err(error) => return Err(error.into()),
            }
            if let Some(result) = self.commit.try_join_next()
                && self.committed(result).await?
            {
                return Ok(Round::Again);
            }
        }
    }

    /// Takes what the log still has, commits everything and ends.
    async fn stop(&mut self) -> Result<Round, IngestError> {
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if self.store.hot_bytes() as u64 >= self.store.config().hot_bytes {
                if self.commit.is_empty() {
                    self.start_commit();
                }
                if self.finish_commit().await? {
                    break;
                }
                continue;
            }
            match self.source.poll(POLL_BYTES).await {
                Ok(messages) if messages.is_empty() => break,
                Ok(messages) => self.take(messages).await?,
                Err(_) => break,
            }
        }
        while Instant::now() < deadline {
            if self.commit.is_empty() {
                match (self.retry_at, self.oldest) {
                    (Some(at), _) => tokio::time::sleep_until(at.into()).await,
                    (None, Some(_)) => {}
                    (None, None) => break,
                }
                self.start_commit();
            }
            if self.finish_commit().await? {
                break;
            }
        }
        Ok(Round::Stopped)
    }

    fn start_commit(&mut self) {
        // Of partitions that were not read in this round nothing is known but where they stood: another aggregator may
        // have them.
        let is_read = |partition: &u32, seen: &u64| self.start.get(partition) != Some(seen);
        let mut upto = self.seen.clone();
        upto.retain(|partition, seen| is_read(partition, seen));
        let mut origins = self.origins.clone();
        origins.retain(|(partition, ..), _| upto.contains_key(partition));
        let store = Arc::clone(self.store);
        self.committing = Some(upto.clone());
        self.oldest = None;
        self.retry_at = None;
        self.commit.spawn(async move { store.commit(&upto, &origins).await });
    }

    async fn finish_commit(&mut self) -> Result<bool, IngestError> {
        match self.commit.join_next().await {
            Some(result) => self.committed(result).await,
            None => Ok(false),
        }
    }

    /// What came of a commit; true where the store must be read again.
    async fn committed(
        &mut self,
        result: Result<Result<(), CommitError>, tokio::task::JoinError>,
    ) -> Result<bool, IngestError> {
        let upto = self.committing.take().unwrap_or_default();
        let result = result.unwrap_or_else(|error| {
            Err(CommitError::Store(StoreError::Corrupt(format!("a commit died: {error}"))))
        });
        match result {
            Ok(()) => {
                self.store.note_problem(None);
                if let Err(error) = self.source.committed(&upto).await {
                    tracing::debug!(%error, "the log could not be told what is committed");
                }
                Ok(false)
            }
            Err(error @ CommitError::Fenced { .. }) => {
                tracing::warn!(%error, "fenced");
                self.store.metrics().fenced.inc();
                Ok(true)
            }
            Err(CommitError::Store(error @ StoreError::Objects(_))) => {
                tracing::warn!(%error, "commit failed; trying again");
                self.store.metrics().commit_failures.inc();
                self.store.note_problem(Some(error.to_string()));
                self.retry_at = Some(Instant::now() + RETRY);
                Ok(false)
            }
            Err(CommitError::Store(error)) => Err(error.into()),
        }
    }

    /// Opens messages and shows their rows.
    async fn take(&mut self, messages: Vec<LogMessage>) -> Result<(), IngestError> {
        let caught_up = messages.is_empty();
        if !caught_up {
            let fresh = |message: &LogMessage| {
                self.seen.get(&message.partition).is_none_or(|seen| message.offset >= *seen)
            };
            let fresh: Vec<LogMessage> = messages.into_iter().filter(fresh).collect();
            let opened = tokio::task::spawn_blocking(move || fresh.into_iter().map(open).collect::<Vec<_>>());
            let opened =
                opened.await.map_err(|error| StoreError::Corrupt(format!("opening died: {error}")))?;
            let mut batches: BTreeMap<Table, Vec<Arc<HotBatch>>> = BTreeMap::new();
            let mut newest: BTreeMap<u32, i64> = BTreeMap::new();
            for (message, opened) in opened {
                if let Payload::Batch { envelope, .. } = &message.payload {
                    let known = newest.entry(message.partition).or_insert(envelope.max_time_us);
                    *known = (*known).max(envelope.max_time_us);
                }
                if !self.is_again(&message) {
                    self.account(&message, opened, &mut batches)?;
                }
                self.seen.insert(message.partition, message.offset + 1);
            }
            for (table, batches) in batches {
                self.store.take(table, &batches);
            }
            self.oldest.get_or_insert_with(Instant::now);
            self.store.note_seen(&self.seen, &newest);
        }
        let end = self.source.end();
        let behind = end.iter().any(|(partition, end)| self.seen.get(partition).copied().unwrap_or(0) < *end);
        self.store.note_end(end, caught_up || !behind);
        Ok(())
    }

    /// True for a message that stands in the log for the second time: a collector that crashed, or whose broker did not
    /// answer, has sent it again.
    fn is_again(&mut self, message: &LogMessage) -> bool {
        let Payload::Batch { envelope, .. } = &message.payload else { return false };
        let Some(Origin { spool, partition, offset }) = envelope.origin else { return false };
        let next = self.origins.entry((message.partition, spool, partition)).or_insert(0);
        if offset < *next {
            let metrics = self.store.metrics();
            metrics.repeated_messages.inc();
            metrics.repeated_rows.inc_by(envelope.rows.into());
            return true;
        }
        *next = offset + 1;
        false
    }

    fn account(
        &self,
        message: &LogMessage,
        opened: Opened,
        batches: &mut BTreeMap<Table, Vec<Arc<HotBatch>>>,
    ) -> Result<(), IngestError> {
        let metrics = self.store.metrics();
        let (partition, offset) = (message.partition, message.offset);
        metrics.messages.inc();
        match opened {
            Opened::Batch(table, batch) => {
                let bytes = hot::bytes(&batch);
                batches.entry(table).or_default().push(Arc::new(HotBatch {
                    partition,
                    offset,
                    batch,
                    bytes,
                }));
            }
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
                self.store.keep_foreign(partition, offset, &reason, bytes);
            }
            Opened::Gap(from) => {
                metrics.gaps.inc();
                metrics.gap_offsets.inc_by((offset + 1).saturating_sub(from));
                tracing::error!(partition, from, to = offset, "the log lost messages before they were read");
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
