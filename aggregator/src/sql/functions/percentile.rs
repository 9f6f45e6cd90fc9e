//! `p95(x)` and its like: DataFusion's approximate percentile under the name that capacity reviews use.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, not_impl_err};
use datafusion::functions_aggregate::approx_percentile_cont::approx_percentile_cont_udaf;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawAggregateExpr};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, Signature, Volatility, lit,
};

pub(super) const P95_DOC: &str = "p95(x) → the 95th percentile by t-digest, within about 1 % of the rank (also p50, p90, p99); exact: percentile_cont(0.95) WITHIN GROUP (ORDER BY x)";

const PERCENTILES: [(&str, f64); 4] = [("p50", 0.50), ("p90", 0.90), ("p95", 0.95), ("p99", 0.99)];

/// Known to the planner by name only; [`PercentilePlanner`] puts the real function in its place.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Named {
    name: &'static str,
    signature: Signature,
}

impl AggregateUDFImpl for Named {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn accumulator(&self, _args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        not_impl_err!("{} here", self.name)
    }

    fn state_fields(&self, _args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        not_impl_err!("{} here", self.name)
    }
}

pub(super) fn aggregates() -> Vec<Arc<AggregateUDF>> {
    let named = |(name, _): &(&'static str, f64)| {
        let signature = Signature::numeric(1, Volatility::Immutable);
        Arc::new(AggregateUDF::new_from_impl(Named { name, signature }))
    };
    PERCENTILES.iter().map(named).collect()
}

/// Plans `p95(x)` as `approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY x)` over doubles.
#[derive(Debug)]
pub(crate) struct PercentilePlanner;

impl ExprPlanner for PercentilePlanner {
    fn plan_aggregate(&self, raw: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        let found = PERCENTILES.iter().find(|(name, _)| *name == raw.func.name());
        let (Some((name, percentile)), [argument]) = (found, raw.args.as_slice()) else {
            return Ok(PlannerResult::Original(raw));
        };
        let title = format!("{name}({})", argument.schema_name());
        let value = datafusion::logical_expr::cast(argument.clone(), DataType::Float64);
        let aggregate = AggregateFunction::new_udf(
            approx_percentile_cont_udaf(),
            vec![value.clone(), lit(*percentile)],
            raw.distinct,
            raw.filter,
            vec![value.sort(true, false)],
            raw.null_treatment,
        );
        Ok(PlannerResult::Planned(Expr::AggregateFunction(aggregate).alias(title)))
    }
}
