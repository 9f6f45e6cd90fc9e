//! When a plan is spread over the nodes, how its leaves are divided, and when that would not be the same.

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::execution::context::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{LogicalPlan, PlanType, StringifiedPlan};
use datafusion::physical_expr::{Distribution, PhysicalExpr};
use datafusion::physical_plan::analyze::AnalyzeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::explain::ExplainExec;
use datafusion::physical_plan::union::InterleaveExec;
use datafusion::physical_plan::windows::BoundedWindowAggExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, InputOrderMode};
use datafusion_distributed::{
    DesiredTaskCountEvent, DesiredTaskCountEventResponse, DistributedExec, DistributedExt,
    DistributedLeafExec, NetworkBoundaryExt, NetworkBroadcastExec, NetworkCoalesceExec, NetworkShuffleExec,
    RouteTasksEvent, RouteTasksEventResponse, ScaleUpLeafNodeEvent, ScaleUpLeafNodeEventResponse,
    SessionStateBuilderExt, display_plan_ascii,
};
use http::{HeaderMap, HeaderValue};

use super::nodes::{Known, Nodes};
use super::worker::LEFT;
use super::{Cluster, files};

/// A plan for several nodes, and what it runs in.
pub(crate) struct Spread {
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    pub(crate) context: Arc<TaskContext>,
}

impl Cluster {
    /// `local` for several nodes, where that is worth it and the same. `left` is the time that the query has.
    pub(crate) async fn spread(
        &self,
        state: &SessionState,
        logical: &LogicalPlan,
        local: &Arc<dyn ExecutionPlan>,
        left: Duration,
    ) -> Option<Spread> {
        if self.nodes.here().len() < 2 {
            return None;
        }
        let spread = match logical {
            LogicalPlan::Explain(explain) => {
                let planned = state.create_physical_plan(&explain.plan).await.ok()?;
                let spread = self.of(state, &explain.plan, &planned, left).await?;
                let text = display_plan_ascii(spread.plan.as_ref(), false);
                let plans = vec![StringifiedPlan::new(PlanType::FinalPhysicalPlan, text)];
                let plan: Arc<dyn ExecutionPlan> =
                    Arc::new(ExplainExec::new(Arc::clone(explain.schema.inner()), plans, explain.verbose));
                Spread { plan, ..spread }
            }
            logical => {
                let spread = self.of(state, logical, local, left).await?;
                self.metrics.spread.inc();
                spread
            }
        };
        Some(spread)
    }

    async fn of(
        &self,
        state: &SessionState,
        logical: &LogicalPlan,
        local: &Arc<dyn ExecutionPlan>,
        left: Duration,
    ) -> Option<Spread> {
        if file_bytes(local) <= self.config.node_bytes {
            return None;
        }
        let state = match self.state(state, local.is::<AnalyzeExec>(), left) {
            Ok(state) => state,
            Err(error) => {
                tracing::error!(%error, "queries cannot be spread over the nodes");
                return None;
            }
        };
        let plan = match state.create_physical_plan(logical).await {
            Ok(plan) => plan,
            Err(error) => {
                tracing::debug!(%error, "a plan is not made for several nodes");
                return None;
            }
        };
        (is_spread(&plan) && is_same(&plan)).then(|| Spread { plan, context: state.task_ctx() })
    }

    /// The session of a query on several nodes.
    fn state(&self, state: &SessionState, is_analyzed: bool, left: Duration) -> Result<SessionState> {
        let own = self.nodes.own().clone();
        let mut headers = HeaderMap::new();
        headers.insert(LEFT, HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
        let (bytes, nodes) = (self.config.node_bytes, Arc::clone(&self.nodes));
        // with one partition the planner sees nothing to bring together, and so nothing to divide
        let partitions = state.config().target_partitions().max(2);
        let builder = SessionStateBuilder::new_from_existing(state.clone())
            .with_config(state.config().clone().with_target_partitions(partitions))
            .with_physical_optimizer_rules(self.rules.clone())
            .with_distributed_worker_resolver(Known(Arc::clone(&self.nodes)))
            .with_distributed_channel_resolver(self.channels.clone())
            .with_distributed_local_worker_context(self.worker.to_local_worker_context(own))
            .with_distributed_planner()
            .with_distributed_passthrough_headers(headers)?
            .with_distributed_metrics_collection(is_analyzed)?
            // the leaves of a union are divided by task, as all leaves are
            .with_distributed_children_isolator_unions(false)?
            .with_distributed_file_scan_config_bytes_per_partition(bytes.div_ceil(partitions))?
            .with_distributed_desired_task_count_handler(desired)
            .with_distributed_scale_up_leaf_node_handler(scaled)
            .with_distributed_route_tasks_handler(move |event: RouteTasksEvent<'_>| routed(&nodes, &event));
        Ok(builder.build())
    }
}

fn file_scan(plan: &dyn ExecutionPlan) -> Option<&FileScanConfig> {
    plan.downcast_ref::<DataSourceExec>()?.data_source().downcast_ref()
}

/// Whether it is a leaf that every node can read: a scan of the store's files.
fn is_of_files(plan: &dyn ExecutionPlan) -> bool {
    file_scan(plan).is_some_and(|scan| scan.object_store_url == files())
}

/// Bytes of the files that a plan reads.
fn file_bytes(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let own: u64 = match file_scan(plan.as_ref()) {
        Some(scan) => {
            scan.file_groups.iter().flat_map(|group| group.files()).map(|file| file.effective_size()).sum()
        }
        None => 0,
    };
    let below: usize = plan.children().into_iter().map(file_bytes).sum();
    usize::try_from(own).unwrap_or(usize::MAX).saturating_add(below)
}

/// How many tasks a leaf wants. Of files, as many as there are nodes' worth of bytes (which is the library's own answer);
/// of anything else one, which does not keep those beside it from having more.
fn desired(event: DesiredTaskCountEvent<'_>) -> Option<Result<DesiredTaskCountEventResponse>> {
    if !event.plan.children().is_empty() || event.plan.is_network_boundary() {
        return None;
    }
    // a limit that a leaf was given stands nowhere else
    if event.plan.fetch().is_some() {
        return Some(Ok(DesiredTaskCountEventResponse::maximum(1)));
    }
    (!is_of_files(event.plan.as_ref())).then(|| Ok(DesiredTaskCountEventResponse::desired(1)))
}

/// Rows that are in the memory of this node only are the first task's; the others have none of them.
fn scaled(event: ScaleUpLeafNodeEvent<'_>) -> Option<Result<ScaleUpLeafNodeEventResponse>> {
    if is_of_files(event.plan.as_ref()) || event.task_count < 2 {
        return None;
    }
    let partitions = event.plan.output_partitioning().partition_count();
    let none: Arc<dyn ExecutionPlan> =
        Arc::new(EmptyExec::new(event.plan.schema()).with_partitions(partitions));
    let variants =
        std::iter::once(Arc::clone(event.plan)).chain(std::iter::repeat_n(none, event.task_count - 1));
    let leaf = DistributedLeafExec::try_new(Arc::clone(event.plan), variants);
    Some(leaf.map(|leaf| ScaleUpLeafNodeEventResponse::new(Arc::new(leaf))))
}

/// The first task of a stage with leaves is this node's, which has what the others have not; the rest go round.
fn routed(nodes: &Nodes, event: &RouteTasksEvent<'_>) -> Option<Result<RouteTasksEventResponse>> {
    if !has_leaf(event.plan) {
        return None;
    }
    // this node is the first
    let here = nodes.here();
    let urls = (0..event.task_count).map(|task| here[task % here.len()].clone()).collect();
    Some(Ok(RouteTasksEventResponse::new(urls)))
}

/// Whether a stage reads anything but other stages.
fn has_leaf(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if plan.is_network_boundary() {
        return false;
    }
    let children = plan.children();
    children.is_empty() || children.into_iter().any(has_leaf)
}

fn is_spread(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.is::<DistributedExec>() || plan.children().into_iter().any(is_spread)
}

/// Whether every stage of several tasks gives what it would give in one: an operator that needs all rows, or all rows of a
/// key, in one place must get them from all tasks. On one node a leaf of one partition is such a place, and the planner
/// leaves out what would bring the rows together.
fn is_same(plan: &Arc<dyn ExecutionPlan>) -> bool {
    stage_is_same(plan, 1)
}

fn stage_is_same(plan: &Arc<dyn ExecutionPlan>, tasks: usize) -> bool {
    if let Some(boundary) = plan.as_network_boundary() {
        let stage = boundary.input_stage();
        // only what is merged keeps its order: an exchange over the network does not, as one within a process may
        let loses_order = |stage: &Arc<dyn ExecutionPlan>| {
            !plan.is::<NetworkCoalesceExec>() && stage.properties().output_ordering().is_some()
        };
        return stage
            .local_plan()
            .is_none_or(|plan| !loses_order(plan) && stage_is_same(plan, stage.task_count()));
    }
    let children = plan.children();
    if !keeps_its_order(plan) {
        return false;
    }
    if tasks > 1 {
        let is_met = |(wanted, child): (Distribution, &&Arc<dyn ExecutionPlan>)| match wanted {
            Distribution::UnspecifiedDistribution => true,
            Distribution::SinglePartition => comes_from(child, &|plan| plan.is::<NetworkBroadcastExec>()),
            // by key
            _ => comes_from(child, &|plan| plan.is::<NetworkShuffleExec>()),
        };
        let wanted = plan.input_distribution_requirements().into_per_child();
        if plan.is::<InterleaveExec>() || !wanted.into_iter().zip(&children).all(is_met) {
            return false;
        }
    }
    children.into_iter().all(|child| stage_is_same(child, tasks))
}

/// False for a window whose input is in the order of its keys only because a filter below makes one of them constant: where
/// the filter is in another stage, that is not known any more when the plan is read there.
fn keeps_its_order(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let Some(window) = plan.downcast_ref::<BoundedWindowAggExec>() else { return true };
    let sorted = window.input().output_ordering();
    let is_sorted =
        |key: &Arc<dyn PhysicalExpr>| sorted.is_some_and(|sorted| sorted.iter().any(|by| by.expr.eq(key)));
    window.input_order_mode != InputOrderMode::Sorted
        || window.window_expr().iter().all(|expr| expr.partition_by().iter().all(is_sorted))
}

/// Whether all that comes out of `plan` came through such a boundary, in this stage.
fn comes_from(plan: &Arc<dyn ExecutionPlan>, is_it: &impl Fn(&Arc<dyn ExecutionPlan>) -> bool) -> bool {
    if plan.is_network_boundary() {
        return is_it(plan);
    }
    let children = plan.children();
    !children.is_empty() && children.into_iter().all(|child| comes_from(child, is_it))
}
