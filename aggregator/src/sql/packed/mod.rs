//! Grouping by addresses, ports and the like, faster: one operator in the place of DataFusion's two.
//!
//! The questions of this product group by a few columns of fixed width, and add up. DataFusion keeps each column of the key
//! and each sum by itself, so that a row of many groups is a miss of the cache for each of them, twice: before and after
//! the rows are exchanged. Here a group is one row of words ([`rows`]). Each input is grouped in a table that fits the
//! cache; what does not fit is put aside in 256 parts by hash ([`build`]), on disk where memory ends, and each part is then
//! grouped by itself, again in the cache. `docs/decisions/grouping.md` has the figures.
//!
//! [`PackedGrouping`] puts [`PackedAggregateExec`] in the place of a partial and a final aggregate where it can answer the
//! same: keys of fixed width, and sums, counts, minima and maxima of 64 bits. It stands where nothing above relies on which
//! partition a group comes in.

mod build;
mod rows;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, Partitioning, PlanProperties,
    replace_children_if_necessary,
};
use futures::future::{BoxFuture, FutureExt, Shared, try_join_all};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

use build::{Builder, Built, PARTS, Sizes};
use rows::{Groups, Layout, Op};

/// Rows of a batch that goes out.
const BATCH_ROWS: usize = 8_192;
/// Rows that are grouped at once: they, and the groups they are of, stay in the cache from one column to the next.
const CHUNK_ROWS: usize = 1_024;

/// The rule that puts the operator into a plan.
#[derive(Debug, Default)]
pub(crate) struct PackedGrouping {
    sizes: Sizes,
    /// The plan is a stage of a query on several nodes: its partial and its final aggregates are in different ones.
    of_stage: bool,
}

impl PhysicalOptimizerRule for PackedGrouping {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        self.rewrite(plan, true)
    }

    fn name(&self) -> &'static str {
        "packed_grouping"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

impl PackedGrouping {
    /// Puts the operator into a stage of a query on several nodes.
    pub(crate) fn in_stage(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        PackedGrouping { of_stage: true, ..PackedGrouping::default() }.rewrite(plan, true)
    }

    /// `free`: nothing above relies on how the rows are spread over the partitions.
    fn rewrite(&self, plan: Arc<dyn ExecutionPlan>, free: bool) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = match self.replaced(&plan).filter(|_| free) {
            Some(packed) => packed,
            None => plan,
        };
        let below = if plan.is::<PackedAggregateExec>()
            || plan.is::<RepartitionExec>()
            || plan.is::<CoalescePartitionsExec>()
            || plan.is::<SortPreservingMergeExec>()
        {
            true
        } else {
            let passes = plan.is::<ProjectionExec>()
                || plan.is::<SortExec>()
                || plan.is::<FilterExec>()
                || plan.is::<UnionExec>()
                || plan.is::<GlobalLimitExec>()
                || plan.is::<LocalLimitExec>();
            // a partial aggregate takes rows as they come
            let partial = plan.downcast_ref::<AggregateExec>();
            let partial = partial.is_some_and(|aggregate| *aggregate.mode() == AggregateMode::Partial);
            free && passes || partial
        };
        let children: Vec<_> = plan.children().into_iter().map(Arc::clone).collect();
        if children.is_empty() {
            return Ok(plan);
        }
        let rewritten: Vec<_> =
            children.iter().map(|child| self.rewrite(Arc::clone(child), below)).collect::<Result<_>>()?;
        if children.iter().zip(&rewritten).all(|(before, after)| Arc::ptr_eq(before, after)) {
            return Ok(plan);
        }
        replace_children_if_necessary(plan, rewritten)
    }

    fn replaced(&self, plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
        let aggregate = plan.downcast_ref::<AggregateExec>().filter(|aggregate| is_plain(aggregate))?;
        match aggregate.mode() {
            AggregateMode::FinalPartitioned if self.of_stage => self.last(aggregate, plan),
            AggregateMode::FinalPartitioned => self.both(aggregate, plan),
            AggregateMode::Partial if self.of_stage => {
                let partitions = aggregate.input().output_partitioning().partition_count();
                self.packed(aggregate, plan.schema(), partitions)
            }
            _ => None,
        }
    }

    /// A partial and a final aggregate in one.
    fn both(&self, last: &AggregateExec, plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
        let exchange = last.input().downcast_ref::<RepartitionExec>()?;
        let first = exchange.input().downcast_ref::<AggregateExec>()?;
        if *first.mode() != AggregateMode::Partial || !is_plain(first) {
            return None;
        }
        self.packed(first, last.schema(), plan.output_partitioning().partition_count())
    }

    /// The groups of the rows that come into `first`; `schema` is what comes out.
    fn packed(
        &self,
        first: &AggregateExec,
        schema: SchemaRef,
        partitions: usize,
    ) -> Option<Arc<dyn ExecutionPlan>> {
        let input_schema = first.input_schema();
        let keys: Vec<_> = first.group_expr().expr().iter().map(|(expr, _)| Arc::clone(expr)).collect();
        let mut ops = Vec::new();
        let mut values = Vec::new();
        for aggregate in first.aggr_expr() {
            let (op, value) = operation(aggregate, &input_schema)?;
            ops.push(op);
            values.push(value);
        }
        self.work(first, keys, &input_schema, ops, values, schema, partitions)
    }

    /// The groups of what the partial aggregates of another stage have sent: a column for each measure, after the keys.
    fn last(&self, last: &AggregateExec, plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
        let keys: Vec<_> = last.group_expr().expr().iter().map(|(expr, _)| Arc::clone(expr)).collect();
        let states = last.input().schema();
        if states.fields().len() != keys.len() + last.aggr_expr().len() {
            return None;
        }
        let mut ops = Vec::new();
        let mut values: Vec<Option<Arc<dyn PhysicalExpr>>> = Vec::new();
        for (place, aggregate) in last.aggr_expr().iter().enumerate() {
            let (op, _) = operation(aggregate, &last.input_schema())?;
            ops.push(match op {
                Op::Count | Op::CountRows => Op::SumCount,
                op => op,
            });
            let place = keys.len() + place;
            values.push(Some(Arc::new(Column::new(states.field(place).name(), place))));
        }
        let partitions = plan.output_partitioning().partition_count();
        self.work(last, keys, &states, ops, values, last.schema(), partitions)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of what is computed, named")]
    fn work(
        &self,
        aggregate: &AggregateExec,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        input: &SchemaRef,
        ops: Vec<Op>,
        values: Vec<Option<Arc<dyn PhysicalExpr>>>,
        schema: SchemaRef,
        partitions: usize,
    ) -> Option<Arc<dyn ExecutionPlan>> {
        let types: Vec<DataType> = keys.iter().map(|key| key.data_type(input)).collect::<Result<_>>().ok()?;
        let layout = Arc::new(Layout::new(&types, ops)?);
        let title = title(aggregate);
        let work = Arc::new(Work { keys, values, layout, schema, title, sizes: self.sizes });
        Some(Arc::new(PackedAggregateExec::new(work, Arc::clone(aggregate.input()), partitions)))
    }
}

/// Nothing about it but groups and measures.
fn is_plain(aggregate: &AggregateExec) -> bool {
    aggregate.group_expr().is_single()
        && aggregate.limit_options().is_none()
        && aggregate.filter_expr().iter().all(Option::is_none)
        && aggregate.dynamic_expressions_produced().is_empty()
        && aggregate.properties().output_ordering().is_none()
}

fn title(aggregate: &AggregateExec) -> String {
    let keys =
        aggregate.group_expr().expr().iter().map(|(_, name)| name.clone()).collect::<Vec<_>>().join(", ");
    let values = aggregate.aggr_expr().iter().map(|value| value.name().to_owned());
    format!("gby=[{keys}], aggr=[{}]", values.collect::<Vec<_>>().join(", "))
}

/// What an aggregate does here, and of which expression; None where it is DataFusion's to compute.
fn operation(
    aggregate: &AggregateFunctionExpr,
    input: &SchemaRef,
) -> Option<(Op, Option<Arc<dyn PhysicalExpr>>)> {
    if aggregate.is_distinct() || !aggregate.order_bys().is_empty() {
        return None;
    }
    let arguments = aggregate.expressions();
    let [argument] = arguments.as_slice() else { return None };
    let given = argument.data_type(input).ok()?;
    let result = aggregate.field().data_type().clone();
    let is_time = matches!(given, DataType::Timestamp(TimeUnit::Microsecond, _));
    let op = match aggregate.fun().name() {
        "count" if result == DataType::Int64 => {
            let is_constant = argument.is::<datafusion::physical_expr::expressions::Literal>();
            if is_constant && !argument.nullable(input).ok()? {
                return Some((Op::CountRows, None));
            }
            Op::Count
        }
        "sum" if given == DataType::Int64 && result == given => Op::SumInt,
        "sum" if given == DataType::Float64 && result == given => Op::SumFloat,
        "min" if (given == DataType::Int64 || is_time) && result == given => Op::Min,
        "max" if (given == DataType::Int64 || is_time) && result == given => Op::Max,
        _ => return None,
    };
    Some((op, Some(Arc::clone(argument))))
}

/// What is computed.
#[derive(Debug)]
struct Work {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    /// None counts rows.
    values: Vec<Option<Arc<dyn PhysicalExpr>>>,
    layout: Arc<Layout>,
    schema: SchemaRef,
    title: String,
    sizes: Sizes,
}

type Halves = Arc<Mutex<Vec<Built>>>;
type Grouped = Shared<BoxFuture<'static, std::result::Result<Halves, Arc<DataFusionError>>>>;

/// Groups the rows of all partitions of its input.
pub(crate) struct PackedAggregateExec {
    work: Arc<Work>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    /// The first half, started by the first partition that is asked for, and how many were asked for. The last one takes it
    /// along: it goes with the streams, however long something keeps the plan.
    grouped: Mutex<Option<(Grouped, usize)>>,
}

impl fmt::Debug for PackedAggregateExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedAggregateExec").field("work", &self.work).finish_non_exhaustive()
    }
}

impl PackedAggregateExec {
    fn new(work: Arc<Work>, input: Arc<dyn ExecutionPlan>, partitions: usize) -> PackedAggregateExec {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&work.schema)),
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        PackedAggregateExec { work, input, properties: Arc::new(properties), grouped: Mutex::new(None) }
    }

    /// Starts to group the inputs, a task each.
    fn start(&self, context: &Arc<TaskContext>) -> Result<Grouped> {
        let mut tasks = Vec::new();
        for partition in 0..self.input.output_partitioning().partition_count() {
            let input = self.input.execute(partition, Arc::clone(context))?;
            let (work, context) = (Arc::clone(&self.work), Arc::clone(context));
            let reservation = MemoryConsumer::new(format!("PackedAggregate[{partition}]"))
                .with_can_spill(true)
                .register(context.memory_pool());
            tasks.push(datafusion::common::runtime::SpawnedTask::spawn(async move {
                let disk = Arc::clone(&context.runtime_env().disk_manager);
                let builder = Builder::new(Arc::clone(&work.layout), work.sizes, reservation, disk)?;
                group(&work, input, builder).await
            }));
        }
        let all = async move {
            let joined = tasks.into_iter().map(|task| async {
                task.join_unwind().await.map_err(|error| DataFusionError::External(Box::new(error)))?
            });
            let built = try_join_all(joined).await.map_err(Arc::new)?;
            Ok(Arc::new(Mutex::new(built)))
        };
        Ok(all.boxed().shared())
    }
}

/// Groups the batches of an input.
async fn group(work: &Work, mut input: SendableRecordBatchStream, mut builder: Builder) -> Result<Built> {
    while let Some(batch) = input.next().await.transpose()? {
        let mut from = 0;
        while from < batch.num_rows() {
            let count = (batch.num_rows() - from).min(CHUNK_ROWS.min(work.sizes.groups));
            let part = batch.slice(from, count);
            let evaluate = |expr: &Arc<dyn PhysicalExpr>| -> Result<ArrayRef> {
                expr.evaluate(&part)?.into_array(count)
            };
            let keys: Vec<ArrayRef> = work.keys.iter().map(evaluate).collect::<Result<_>>()?;
            let values: Vec<Option<ArrayRef>> = work
                .values
                .iter()
                .map(|value| value.as_ref().map(evaluate).transpose())
                .collect::<Result<_>>()?;
            builder.add(&keys, &values, count)?;
            from += count;
        }
    }
    builder.finish()
}

/// The second half, for the parts of one output partition.
struct Merger {
    work: Arc<Work>,
    halves: Halves,
    reservation: datafusion::execution::memory_pool::MemoryReservation,
    next: usize,
    step: usize,
    /// Groups that are ready, and how many of their words went out.
    ready: Vec<u64>,
    sent: usize,
}

impl Merger {
    fn batch(&mut self) -> Result<Option<RecordBatch>> {
        let words = self.work.layout.words;
        while self.ready.len() - self.sent < BATCH_ROWS * words && self.next < PARTS {
            self.ready.drain(..self.sent);
            self.sent = 0;
            self.merge(self.next)?;
            self.next += self.step;
        }
        let end = self.ready.len().min(self.sent + BATCH_ROWS * words);
        if end == self.sent {
            return Ok(None);
        }
        let rows = &self.ready[self.sent..end];
        let keys = self.work.keys.len();
        let types: Vec<DataType> =
            self.work.schema.fields().iter().skip(keys).map(|field| field.data_type().clone()).collect();
        let columns = self.work.layout.columns(rows, &types)?;
        self.sent = end;
        Ok(Some(RecordBatch::try_new(Arc::clone(&self.work.schema), columns)?))
    }

    /// Adds the groups of a part to those that are ready.
    fn merge(&mut self, part: usize) -> Result<()> {
        let layout = &self.work.layout;
        let mut chunks = Vec::new();
        {
            let mut halves = self.halves.lock();
            for half in halves.iter_mut() {
                chunks.extend(half.take(part, layout)?);
            }
        }
        let rows = chunks.iter().map(Vec::len).sum::<usize>() / layout.words;
        let chunk_bytes = chunks.iter().map(|chunk| chunk.capacity() * 8).sum::<usize>();
        self.reservation
            .try_resize(Groups::bytes(rows, layout.words) + chunk_bytes + self.ready.capacity() * 8)?;
        let mut groups = Groups::with_capacity(rows);
        groups.rows.reserve(rows * layout.words / 2);
        for chunk in chunks {
            groups.merge_all(layout, &chunk);
        }
        if self.ready.is_empty() {
            self.ready = groups.rows;
        } else {
            self.ready.extend_from_slice(&groups.rows);
        }
        self.reservation.try_resize(self.ready.capacity() * 8)?;
        Ok(())
    }
}

impl DisplayAs for PackedAggregateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedAggregateExec: {}", self.work.title)
    }
}

impl ExecutionPlan for PackedAggregateExec {
    fn name(&self) -> &'static str {
        "PackedAggregateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for expr in self.work.keys.iter().chain(self.work.values.iter().flatten()) {
            if f(expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let partitions = self.properties.partitioning.partition_count();
        Ok(Arc::new(PackedAggregateExec::new(Arc::clone(&self.work), children.swap_remove(0), partitions)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let step = self.properties.partitioning.partition_count();
        let grouped = {
            let mut held = self.grouped.lock();
            let (grouped, asked) = match held.take() {
                Some(held) => held,
                None => (self.start(&context)?, 0),
            };
            if asked + 1 < step {
                *held = Some((grouped.clone(), asked + 1));
            }
            grouped
        };
        let work = Arc::clone(&self.work);
        let reservation =
            MemoryConsumer::new(format!("PackedAggregateMerge[{partition}]")).register(context.memory_pool());
        let schema = Arc::clone(&self.work.schema);
        let stream = async move {
            let halves = grouped.await.map_err(DataFusionError::Shared)?;
            let merger =
                Merger { work, halves, reservation, next: partition, step, ready: Vec::new(), sent: 0 };
            let batches = futures::stream::try_unfold(merger, async |mut merger| {
                let batch = merger.batch()?;
                Ok::<_, DataFusionError>(batch.map(|batch| (batch, merger)))
            });
            Ok::<_, DataFusionError>(batches)
        };
        let stream = futures::stream::once(stream).try_flatten();
        Ok(make_cooperative(Box::pin(RecordBatchStreamAdapter::new(schema, stream))))
    }
}
