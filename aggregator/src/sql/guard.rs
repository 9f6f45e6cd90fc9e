//! Stops a plan between two batches of any operator that may run long.
//!
//! A join can turn one batch of its input into thousands without giving its thread back; whoever waits above it would
//! not be asked in between. So what makes rows (leaves, joins, unnesting) is wrapped: each batch asks whether the query
//! is stopped or late, and gives the thread back now and then.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, replace_children_if_necessary,
};
use datafusion_distributed::NetworkBoundaryExt;
use futures::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::{ErrorKind, QueryError};

/// What stops a query.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    pub(super) token: CancellationToken,
    pub(super) deadline: Instant,
    pub(super) canceled: QueryError,
    pub(super) late: QueryError,
}

impl Stop {
    fn check(&self) -> Result<()> {
        let error = if self.token.is_cancelled() {
            &self.canceled
        } else if Instant::now() >= self.deadline {
            &self.late
        } else {
            return Ok(());
        };
        Err(DataFusionError::External(Box::new(error.clone())))
    }
}

/// Wraps what makes rows in `plan`, down to where it becomes that of other nodes.
pub(super) fn guarded_plan(plan: Arc<dyn ExecutionPlan>, stop: &Stop) -> Result<Arc<dyn ExecutionPlan>> {
    if plan.is_network_boundary() {
        return Ok(plan);
    }
    let children: Vec<_> = plan
        .children()
        .into_iter()
        .map(|child| guarded_plan(Arc::clone(child), stop))
        .collect::<Result<_>>()?;
    let makes_rows = children.is_empty() || plan.name().ends_with("JoinExec") || plan.name() == "UnnestExec";
    let plan = if children.is_empty() { plan } else { replace_children_if_necessary(plan, children)? };
    Ok(if makes_rows { Arc::new(GuardExec { input: plan, stop: stop.clone() }) } else { plan })
}

/// The time that a plan of another node's query has.
#[derive(Debug, Clone)]
pub(crate) struct Limit(Stop);

impl Limit {
    pub(crate) fn after(left: Duration) -> Limit {
        let late = QueryError::new(ErrorKind::Timeout, "canceled: the time of the query is over".to_owned());
        Limit(Stop {
            token: CancellationToken::new(),
            deadline: Instant::now() + left,
            canceled: late.clone(),
            late,
        })
    }

    pub(crate) fn guarded(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        guarded_plan(plan, &self.0)
    }
}

#[derive(Debug)]
struct GuardExec {
    input: Arc<dyn ExecutionPlan>,
    stop: Stop,
}

impl DisplayAs for GuardExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuardExec")
    }
}

impl ExecutionPlan for GuardExec {
    fn name(&self) -> &str {
        "GuardExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(GuardExec { input: children.swap_remove(0), stop: self.stop.clone() }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let (schema, stop) = (input.schema(), self.stop.clone());
        let checked = input.map(move |batch| {
            stop.check()?;
            batch
        });
        Ok(make_cooperative(Box::pin(RecordBatchStreamAdapter::new(schema, checked))))
    }
}
