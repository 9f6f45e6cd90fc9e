//! The table `traffic`: what the flows add up to, read from the coarsest rollups that give the same answer.
//!
//! It looks like the rows of `flows_1m`, with the hour and the day of each. A flow is spread over its minutes, hours and days
//! by the same cut, so the sums of sixty minutes are those of their hour. Therefore only the minutes at the ends of the time
//! that is asked for, and questions that show the minute itself, are read from minutes; whole hours and days are read from
//! theirs. `docs/decisions/rollup-choice.md` says why `flows` itself is not answered like this.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::{TableType, provider_as_source};
use datafusion::functions::datetime::date_bin;
use datafusion::logical_expr::{
    BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, cast, col, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;

const MINUTE: i64 = 60_000_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// The rollups that may serve, coarsest first: SQL name of the partial rows, and length of a window.
const LEVELS: [(&str, i64); 3] =
    [("flows_1d_parts", DAY), ("flows_1h_parts", HOUR), ("flows_1m_parts", MINUTE)];

/// The columns that stand for the time, each with its length.
const TIMES: [(&str, i64); 3] = [("window_start", MINUTE), ("hour", HOUR), ("day", DAY)];

/// The provider of `traffic`.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// Coarsest first; the last are minutes.
    levels: Vec<(Arc<dyn TableProvider>, i64)>,
    schema: SchemaRef,
}

impl Traffic {
    /// Over those of the tables that are rollups of flows; None where there are no minutes.
    pub(crate) fn over(tables: &[(String, Arc<dyn TableProvider>)]) -> Option<Traffic> {
        let table =
            |name: &str| tables.iter().find(|(known, _)| known == name).map(|(_, table)| Arc::clone(table));
        let found: Vec<_> =
            LEVELS.iter().filter_map(|(name, length)| Some((table(name)?, *length))).collect();
        let (minutes, MINUTE) = found.last()? else { return None };
        let minutes = minutes.schema();
        let same = |(table, _): &(Arc<dyn TableProvider>, i64)| {
            minutes.fields().iter().all(|field| table.schema().field_with_name(field.name()).is_ok())
        };
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let times = TIMES.iter().map(|(name, _)| Arc::new(Field::new(*name, time.clone(), true)));
        let others = minutes.fields().iter().filter(|field| field.name() != "window_start").cloned();
        let schema = Arc::new(Schema::new(times.chain(others).collect::<Vec<_>>()));
        let levels: Vec<_> = found.into_iter().filter(same).collect();
        Some(Traffic { levels, schema })
    }

    /// The rows of a segment with the columns of `names`.
    fn part(&self, segment: &Segment, names: &[&str], filters: &[Expr]) -> Result<LogicalPlan> {
        let (table, length) = &self.levels[segment.level];
        let mut plan = LogicalPlanBuilder::scan("rollup", provider_as_source(Arc::clone(table)), None)?;
        let at = |time: i64| lit(ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())));
        if segment.from > i64::MIN {
            plan = plan.filter(col("window_start").gt_eq(at(segment.from)))?;
        }
        if segment.to < i64::MAX {
            plan = plan.filter(col("window_start").lt(at(segment.to)))?;
        }
        for filter in filters {
            plan = plan.filter(unqualified(filter)?)?;
        }
        let time_type = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let column = |name: &&str| match TIMES.iter().find(|(known, _)| known == name) {
            // a column of time that is coarser than the rollup
            Some((_, wanted)) if wanted > length => {
                let interval = ScalarValue::new_interval_mdn(0, 0, wanted * 1_000);
                cast(date_bin().call(vec![lit(interval), col("window_start")]), time_type.clone())
                    .alias(*name)
            }
            Some(_) => col("window_start").alias(*name),
            None => col(*name).alias(*name),
        };
        plan.project(names.iter().map(column))?.build()
    }
}

/// The filter with bare column names.
fn unqualified(filter: &Expr) -> Result<Expr> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    let bare = |expr: Expr| {
        Ok(match expr {
            Expr::Column(column) => {
                Transformed::yes(col(datafusion::common::Column::new_unqualified(column.name)))
            }
            other => Transformed::no(other),
        })
    };
    Ok(filter.clone().transform(bare)?.data)
}

/// A stretch of time that one rollup answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    level: usize,
    from: i64,
    to: i64,
}

/// Cuts the minutes from `from` to `to` into stretches, each of the coarsest windows that fit; `lengths` are of the levels
/// that may serve, coarsest first.
fn segments(from: i64, to: i64, lengths: &[(usize, i64)], found: &mut Vec<Segment>) {
    if from >= to {
        return;
    }
    let Some(((level, length), finer)) = lengths.split_first() else { return };
    // the ends of time are whole windows of any length
    let first =
        if from == i64::MIN { from } else { from.saturating_add(length - 1).div_euclid(*length) * length };
    let last = if to == i64::MAX { to } else { to.div_euclid(*length) * length };
    if first >= last {
        segments(from, to, finer, found);
        return;
    }
    segments(from, first, finer, found);
    found.push(Segment { level: *level, from: first, to: last });
    segments(last, to, finer, found);
}

/// The bound that a filter sets to the minutes, where it is one: (from, to).
fn bounds(filter: &Expr) -> Option<(i64, i64)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    let (column, op, value) = match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
        (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
        _ => return None,
    };
    if column.name != "window_start" {
        return None;
    }
    let ScalarValue::TimestampMicrosecond(Some(time), _) = value else { return None };
    let at_or_after = time.saturating_add(MINUTE - 1).div_euclid(MINUTE) * MINUTE;
    let after = time.div_euclid(MINUTE) * MINUTE + MINUTE;
    match op {
        Operator::GtEq => Some((at_or_after, i64::MAX)),
        Operator::Gt => Some((after, i64::MAX)),
        Operator::Lt => Some((i64::MIN, at_or_after)),
        Operator::LtEq => Some((i64::MIN, after)),
        _ => None,
    }
}

/// Whether the filter is about columns that every rollup has, and not about time.
fn is_plain(filter: &Expr) -> bool {
    let of_time = |name: &str| TIMES.iter().any(|(known, _)| *known == name);
    !filter.column_refs().iter().any(|column| of_time(&column.name)) && !filter.is_volatile()
}

#[async_trait]
impl TableProvider for Traffic {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match filter {
            filter if bounds(filter).is_some() => TableProviderFilterPushDown::Exact,
            filter if is_plain(filter) => TableProviderFilterPushDown::Inexact,
            _ => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(answer).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let wanted = projection.unwrap_or(&all);
        // what asks for no column counts rows
        let shown: Vec<usize> =
            if wanted.is_empty() { vec![self.schema.index_of("flows")?] } else { wanted.clone() };
        let names: Vec<&str> = shown.iter().map(|at| self.schema.field(*at).name().as_str()).collect();
        let shows = |name: &str| names.contains(&name);
        let finest = TIMES.iter().find(|(name, _)| shows(name)).map_or(DAY, |(_, length)| *length);
        let serve: Vec<(usize, i64)> = self
            .levels
            .iter()
            .enumerate()
            .filter(|(_, (_, length))| *length <= finest)
            .map(|(level, (_, length))| (level, *length))
            .collect();
        let (mut from, mut to) = (i64::MIN, i64::MAX);
        for (low, high) in filters.iter().filter_map(bounds) {
            (from, to) = (from.max(low), to.min(high));
        }
        let mut found = Vec::new();
        segments(from, to, &serve, &mut found);
        if found.is_empty() {
            // no time at all
            found.push(Segment { level: self.levels.len() - 1, from: 0, to: 0 });
        }
        let plain: Vec<Expr> = filters.iter().filter(|filter| is_plain(filter)).cloned().collect();
        let mut parts = found.iter().map(|segment| self.part(segment, &names, &plain));
        let first = parts.next().ok_or_else(|| DataFusionError::Internal("no segment".to_owned()))??;
        let mut plan = LogicalPlanBuilder::from(first);
        for part in parts {
            plan = plan.union(part?)?;
        }
        let plan = state.create_physical_plan(&plan.build()?).await?;
        if wanted.is_empty() {
            let none: Vec<datafusion::physical_plan::projection::ProjectionExpr> = Vec::new();
            return Ok(Arc::new(ProjectionExec::try_new(none, plan)?));
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use datafusion::arrow::array::{
        ArrayRef, Int16Array, Int64Array, RecordBatch, TimestampMicrosecondArray,
    };
    use datafusion::datasource::MemTable;
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::store::testing::Random;

    const START: i64 = 1_795_392_000_000_000;

    /// Minutes of three days as partial rows, and the coarser rollups of them; one more key in the coarser ones' `bytes`
    /// where `marked`, so that an answer tells where it comes from.
    fn tables(seed: u64, marked: bool) -> Vec<(String, Arc<dyn TableProvider>)> {
        let mut random = Random(seed);
        let rows: Vec<(i64, i16, i64)> = (0..4_000)
            .map(|_| {
                let minute = START + random.below(3 * 1_440) as i64 * MINUTE;
                (minute, random.below(3) as i16, random.below(1_000) as i64)
            })
            .collect();
        let table = |length: i64| -> Arc<dyn TableProvider> {
            let mut sums: BTreeMap<(i64, i16), (i64, i64)> = BTreeMap::new();
            for (time, protocol, bytes) in &rows {
                let sum = sums.entry((time.div_euclid(length) * length, *protocol)).or_default();
                *sum = (sum.0 + bytes, sum.1 + 1);
            }
            let mark = if marked { length } else { 0 };
            let times = sums.keys().map(|(time, _)| *time);
            let columns: Vec<(&str, ArrayRef)> = vec![
                (
                    "window_start",
                    Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
                ),
                (
                    "ip_protocol",
                    Arc::new(Int16Array::from_iter_values(sums.keys().map(|(_, protocol)| *protocol))),
                ),
                ("flows", Arc::new(Int64Array::from_iter_values(sums.values().map(|(_, flows)| *flows)))),
                (
                    "bytes",
                    Arc::new(Int64Array::from_iter_values(sums.values().map(|(bytes, _)| bytes + mark))),
                ),
            ];
            let batch = RecordBatch::try_from_iter_with_nullable(
                columns.into_iter().map(|(name, column)| (name, column, true)),
            )
            .unwrap();
            Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap())
        };
        LEVELS.iter().map(|(name, length)| ((*name).to_owned(), table(*length))).collect()
    }

    fn context(tables: &[(String, Arc<dyn TableProvider>)]) -> SessionContext {
        let context = SessionContext::new();
        context.register_table("traffic", Arc::new(Traffic::over(tables).unwrap())).unwrap();
        let minutes = Arc::clone(&tables.last().unwrap().1);
        context.register_table("minutes", minutes).unwrap();
        context
    }

    async fn lines(context: &SessionContext, sql: &str) -> Vec<String> {
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let text = datafusion::arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
        // the width of a column is that of its name: only the values count
        let values = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
        let rows = text.lines().skip(3).filter(|line| line.starts_with('|'));
        let mut lines: Vec<String> = rows.map(values).collect();
        lines.sort();
        lines
    }

    #[tokio::test]
    async fn the_answer_is_that_of_the_minutes() {
        for seed in 0..40 {
            let context = context(&tables(seed, false));
            let mut random = Random(seed + 1_000);
            let mut time = || {
                let step = [1, 1_000_000, MINUTE, HOUR, DAY][random.below(5) as usize];
                let at = START + random.below((3 * DAY / step) as u64) as i64 * step;
                format!("arrow_cast({at}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
            };
            let (from, to) = (time(), time());
            for filter in [
                format!("window_start >= {from} AND window_start < {to}"),
                format!("window_start > {from}"),
                format!("window_start <= {to} AND ip_protocol = 1"),
                format!("window_start = {from}"),
                "ip_protocol <> 2".to_owned(),
                "true".to_owned(),
            ] {
                for (of_traffic, of_minutes, group) in [
                    ("ip_protocol", "ip_protocol", true),
                    ("hour", "date_trunc('hour', window_start)", true),
                    ("day, ip_protocol", "date_trunc('day', window_start), ip_protocol", true),
                    ("window_start", "window_start", true),
                    ("1", "1", false),
                ] {
                    let ask = |table: &str, keys: &str| {
                        let group = if group { format!("GROUP BY {keys}") } else { String::new() };
                        format!("SELECT {keys}, sum(bytes), sum(flows) FROM {table} WHERE {filter} {group}")
                    };
                    let ours = lines(&context, &ask("traffic", of_traffic)).await;
                    let theirs = lines(&context, &ask("minutes", of_minutes)).await;
                    assert_eq!(ours, theirs, "seed {seed}: {} {filter}", of_traffic);
                }
            }
        }
    }

    #[tokio::test]
    async fn whole_days_are_read_from_days() {
        let marked = context(&tables(1, true));
        let plain = context(&tables(1, false));
        let sum = async |context: &SessionContext, what: &str| {
            let lines = lines(context, what).await;
            lines.iter().find_map(|line| line.split('|').nth(1)?.trim().parse::<i64>().ok()).unwrap()
        };
        for (sql, rows, length) in [
            ("SELECT sum(bytes) FROM traffic", 9, DAY),
            (
                "SELECT sum(bytes) FROM (SELECT hour, sum(bytes) AS bytes FROM traffic GROUP BY hour)",
                216,
                HOUR,
            ),
        ] {
            assert_eq!(sum(&marked, sql).await - sum(&plain, sql).await, rows * length, "{sql}");
        }
        assert!(!lines(&plain, "SELECT count(*) FROM traffic").await.is_empty());
    }

    #[test]
    fn ranges_are_cut_at_whole_windows() {
        let cut = |from: i64, to: i64| {
            let mut found = Vec::new();
            segments(from, to, &[(0, DAY), (1, HOUR), (2, MINUTE)], &mut found);
            found.iter().map(|segment| (segment.level, segment.from, segment.to)).collect::<Vec<_>>()
        };
        assert_eq!(cut(i64::MIN, i64::MAX), [(0, i64::MIN, i64::MAX)]);
        assert_eq!(cut(5, 5), []);
        assert_eq!(cut(0, MINUTE), [(2, 0, MINUTE)]);
        assert_eq!(cut(HOUR - MINUTE, 2 * HOUR), [(2, HOUR - MINUTE, HOUR), (1, HOUR, 2 * HOUR)]);
        assert_eq!(
            cut(DAY - HOUR - MINUTE, i64::MAX),
            [(2, DAY - HOUR - MINUTE, DAY - HOUR), (1, DAY - HOUR, DAY), (0, DAY, i64::MAX)]
        );
    }
}
