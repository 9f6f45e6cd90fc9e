//! From the log to the store: reads messages, shows them at once, commits them soon.
//!
//! The loop owns the positions: it opens the source where the store stands, and opens it there again when another writer
//! was found. Nothing is acknowledged to the log before it is committed, so whatever stops the loop repeats nothing and
//! loses nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_schemas::envelope::EnvelopeError;

use crate::follow::Beside;
use crate::intake::Intake;
use crate::source::{LogMessage, Positions, Source, SourceError};
use crate::store::{CommitError, Store, StoreError};

/// Opens the log at the given positions.
pub type OpenSource = Box<dyn Fn(&Positions) -> Result<Box<dyn Source>, SourceError> + Send + Sync>;

/// How much is read from the log at once.
pub(crate) const POLL_BYTES: usize = 16 << 20;
/// How long to wait before trying again what failed, or for those who store to catch up.
pub(crate) const RETRY: Duration = Duration::from_secs(1);
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
    /// What other aggregators read.
    others: Option<OpenSource>,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Ingest {
    pub fn new(store: Arc<Store>, open: OpenSource) -> Ingest {
        Ingest { store, open, others: None }
    }

    /// Shows what others read, too, without storing it.
    pub fn beside(self, others: Option<OpenSource>) -> Ingest {
        Ingest { others, ..self }
    }

    /// Runs until `shutdown`; then takes what the log still has, commits it, and returns.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), IngestError> {
        loop {
            let start = match self.store.reload().await {
                Ok(start) => start,
                Err(StoreError::Objects(error)) => {
                    if self.wait(&shutdown, &format!("the store cannot be read: {error}")).await {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let source = match (self.open)(&start.positions) {
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
            let beside =
                self.others.as_ref().and_then(|open| Beside::start(&self.store, open, start.clone()));
            let mut round = Reader {
                store: &self.store,
                source,
                start: start.positions.clone(),
                intake: Intake::new(start, false),
                oldest: None,
                commit: JoinSet::new(),
                committing: None,
                retry_at: None,
                log_away: false,
            };
            let ended = round.run(&shutdown).await;
            if let Some(beside) = beside {
                beside.stop().await;
            }
            match ended? {
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
    intake: Intake,
    /// Where the round began.
    start: Positions,
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
        let mut upto = self.intake.seen.clone();
        upto.retain(|partition, seen| is_read(partition, seen));
        let mut origins = self.intake.origins.clone();
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

    /// Takes what came, and tells how far that is.
    async fn take(&mut self, messages: Vec<LogMessage>) -> Result<(), IngestError> {
        let caught_up = messages.is_empty();
        if !caught_up {
            self.intake.take(self.store, messages).await?;
            self.oldest.get_or_insert_with(Instant::now);
        }
        let end = self.source.end();
        let behind = self.intake.is_behind(&end);
        self.store.note_end(end, caught_up || !behind);
        Ok(())
    }
}
