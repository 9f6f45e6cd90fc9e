//! A query that runs: its rows are made on one side ([`Driver`]) and read on the other ([`Rows`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::engine::{canceled, guarded, timed_out};
use super::error::{ErrorKind, QueryError};
use super::guard::{Stop, guarded_plan};
use super::metrics::Recorder;
use crate::cluster::{Cluster, Spread};

pub(super) enum Item {
    Batch(RecordBatch),
    Failed(QueryError),
    End,
}

/// The side of a query that makes the rows.
pub(super) struct Driver {
    pub(super) rows: mpsc::Sender<Item>,
    pub(super) stop: CancellationToken,
    pub(super) deadline: Instant,
    pub(super) timeout: Duration,
    pub(super) recorder: Recorder,
    pub(super) cluster: Option<Arc<Cluster>>,
}

/// A query that runs.
struct Started {
    stream: SendableRecordBatchStream,
    /// The same on this node alone, as long as it may take the place.
    local: Option<(SessionState, Arc<dyn ExecutionPlan>)>,
    sql: String,
}

impl Driver {
    /// Plans the query and starts it: on several nodes where there are some and it reads much.
    async fn start(
        &self,
        (state, logical, sql): (SessionState, LogicalPlan, String),
    ) -> Result<Started, QueryError> {
        let failed = |error: DataFusionError| QueryError::from_datafusion(&error, &sql);
        let plan = state.create_physical_plan(&logical).await.map_err(failed)?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let spread = match &self.cluster {
            Some(cluster) => cluster.spread(&state, &logical, &plan, left).await,
            None => None,
        };
        match spread {
            Some(Spread { plan: spread, context }) => {
                let spread = guarded_plan(spread, &self.stop()).map_err(failed)?;
                let stream = execute_stream(spread, context).map_err(failed)?;
                Ok(Started { stream, local: Some((state, plan)), sql })
            }
            None => {
                let stream = self.run(&state, plan).map_err(failed)?;
                Ok(Started { stream, local: None, sql })
            }
        }
    }

    /// Runs a plan on this node.
    fn run(
        &self,
        state: &SessionState,
        plan: Arc<dyn ExecutionPlan>,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        execute_stream(guarded_plan(plan, &self.stop())?, state.task_ctx())
    }

    fn stop(&self) -> Stop {
        Stop {
            token: self.stop.clone(),
            deadline: self.deadline,
            canceled: canceled(),
            late: timed_out(self.timeout),
        }
    }

    /// The next batch; where a query on several nodes fails before its first, that of the query on this one.
    async fn next(&self, started: &mut Started) -> Result<Option<RecordBatch>, QueryError> {
        let mut batch = started.stream.next().await;
        let local = started.local.take();
        if let (Some((state, plan)), Some(Err(error)), Some(cluster)) = (local, &batch, &self.cluster) {
            cluster.fell_back(error);
            started.stream =
                self.run(&state, plan).map_err(|error| QueryError::from_datafusion(&error, &started.sql))?;
            batch = started.stream.next().await;
        }
        batch.transpose().map_err(|error| QueryError::from_datafusion(&error, &started.sql))
    }

    pub(super) async fn drive<F>(self, plan: F, header: oneshot::Sender<Result<SchemaRef, QueryError>>)
    where
        F: Future<Output = Result<(SessionState, LogicalPlan, String), QueryError>>,
    {
        let started = async { self.start(plan.await?).await };
        let started = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(canceled()),
            () = tokio::time::sleep_until(self.deadline) => Err(timed_out(self.timeout)),
            started = guarded(started) => started,
        };
        let mut started = match started {
            Ok(started) => started,
            Err(error) => {
                self.recorder.finish(error.kind.name());
                let _ = header.send(Err(error));
                return;
            }
        };
        if header.send(Ok(started.stream.schema())).is_err() {
            self.recorder.finish("canceled");
            return;
        }
        let mut rows = 0;
        loop {
            let next = tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(canceled()),
                () = tokio::time::sleep_until(self.deadline) => Err(timed_out(self.timeout)),
                next = guarded(self.next(&mut started)) => next,
            };
            let (item, last) = match next {
                Ok(Some(batch)) => {
                    rows += batch.num_rows() as u64;
                    (Item::Batch(batch), None)
                }
                Ok(None) => (Item::End, Some("ok")),
                Err(error) => {
                    let kind = error.kind.name();
                    (Item::Failed(error), Some(kind))
                }
            };
            if last.is_some() {
                // free the query's memory before anyone acts on its end
                drop(std::mem::replace(&mut started.stream, empty_stream()));
            }
            // a reader that does not read holds a place: it has until the deadline
            let sent = tokio::select! {
                sent = self.rows.send(item) => sent.is_ok(),
                () = tokio::time::sleep_until(self.deadline + Duration::from_secs(1)) => false,
            };
            if let Some(outcome) = last {
                self.recorder.rows(rows);
                self.recorder.finish(outcome);
                return;
            }
            if !sent {
                self.recorder.rows(rows);
                self.recorder.finish("canceled");
                return;
            }
        }
    }
}

fn empty_stream() -> SendableRecordBatchStream {
    let schema = Arc::new(datafusion::arrow::datatypes::Schema::empty());
    Box::pin(datafusion::physical_plan::EmptyRecordBatchStream::new(schema))
}

/// The rows of an answer, as they are made. Dropping it stops the query.
pub struct Rows {
    pub(super) schema: SchemaRef,
    pub(super) receiver: mpsc::Receiver<Item>,
    pub(super) ended: bool,
    /// Ends the wait for a driver that does not come to its own end in time.
    pub(super) end: Pin<Box<dyn Future<Output = QueryError> + Send>>,
    pub(super) _stop: Option<DropGuard>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Item")
    }
}

impl Rows {
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// One row of one text.
    pub(super) fn of_text(schema: SchemaRef, text: String) -> Result<Rows, QueryError> {
        let column = Arc::new(datafusion::arrow::array::StringArray::from(vec![text]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column])
            .map_err(|error| QueryError::new(ErrorKind::Internal, error.to_string()))?;
        let (rows, receiver) = mpsc::channel(2);
        for item in [Item::Batch(batch), Item::End] {
            rows.try_send(item).map_err(|_| QueryError::new(ErrorKind::Internal, "no room for a row"))?;
        }
        Ok(Rows { schema, receiver, ended: false, end: Box::pin(std::future::pending()), _stop: None })
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match self.receiver.poll_recv(context) {
            Poll::Ready(item) => item,
            Poll::Pending => Some(Item::Failed(futures::ready!(self.end.as_mut().poll(context)))),
        };
        Poll::Ready(match item {
            Some(Item::Batch(batch)) => Some(Ok(batch)),
            Some(Item::End) => {
                self.ended = true;
                None
            }
            Some(Item::Failed(error)) => {
                self.ended = true;
                Some(Err(error))
            }
            None => {
                self.ended = true;
                Some(Err(QueryError::new(ErrorKind::Canceled, "the query was stopped before its end")))
            }
        })
    }
}
