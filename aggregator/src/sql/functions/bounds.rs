//! Functions whose result could be of any size whatever their input's: bounded, or not offered.
//!
//! The memory pool sees what operators hold, not what one call of a function allocates.

use std::sync::Arc;

use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF};

use super::instead::call_instead;
use super::{Ints, Texts, bad_value, extent};

/// What one call may produce, over the rows of a batch.
const CALL_BYTES: u64 = 64 << 20;
/// Rows of `generate_series()` and `range()`.
const SERIES_ROWS: u64 = 10_000_000;

/// Functions that make a list of any length of nothing, or reinterpret types below SQL.
const NOT_OFFERED: [&str; 12] = [
    "range",
    "generate_series",
    "gen_series",
    "array_repeat",
    "list_repeat",
    "array_resize",
    "list_resize",
    "arrow_cast",
    "arrow_try_cast",
    "space",
    "arrow_metadata",
    "with_metadata",
];

/// `repeat`, `lpad` and `rpad` with a bound on what they produce.
fn bounded(function: &ScalarUDF, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
    let name = function.name();
    let bytes = produced(name, &args)?;
    if bytes > CALL_BYTES {
        return Err(bad_value(format!(
            "{name} would produce {bytes} bytes in one call; the limit is {CALL_BYTES}"
        )));
    }
    function.invoke_with_args(args)
}

fn produced(name: &str, args: &ScalarFunctionArgs) -> Result<u64> {
    let [text, count, ..] = args.args.as_slice() else { return Ok(0) };
    let (texts, counts) = (Texts::of(text)?, Ints::of(count)?);
    let (rows, constant) = extent(&args.args, args.number_rows);
    let of_row = |row: usize| {
        let count = counts.get(row).and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
        let len = texts.get(row).map_or(0, str::len) as u64;
        // a pad may be four bytes a character
        if name == "repeat" { len.saturating_mul(count) } else { count.saturating_mul(4) }
    };
    let total = (0..rows).map(of_row).fold(0, u64::saturating_add);
    Ok(if constant {
        total.saturating_mul(args.number_rows.max(1) as u64).min(total.saturating_mul(8192))
    } else {
        total
    })
}

/// Puts bounds into a session's scalar functions.
pub(crate) fn bound_scalars(functions: &mut Vec<Arc<ScalarUDF>>) {
    functions.retain(|function| !NOT_OFFERED.contains(&function.name()));
    for function in functions.iter_mut() {
        if matches!(function.name(), "repeat" | "lpad" | "rpad") {
            call_instead(function, bounded);
        }
    }
}

/// `generate_series()` and `range()` as tables, up to ten million rows.
#[derive(Debug)]
pub(crate) struct Series {
    inner: Arc<dyn TableFunctionImpl>,
}

pub(crate) fn bound_series(inner: Arc<dyn TableFunctionImpl>) -> Arc<dyn TableFunctionImpl> {
    Arc::new(Series { inner })
}

impl TableFunctionImpl for Series {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let rows = series_rows(args.exprs());
        if rows > SERIES_ROWS {
            return Err(bad_value(format!("generate_series: more than {SERIES_ROWS} rows")));
        }
        self.inner.call_with_args(args)
    }
}

/// How many rows a series has, at most.
fn series_rows(args: &[Expr]) -> u64 {
    let nanos_of_month = 28 * 86_400_000_000_000_i128;
    let value = |expr: &Expr| -> Option<i128> {
        let Expr::Literal(value, _) = expr else { return None };
        Some(match value {
            ScalarValue::Int32(Some(value)) => i128::from(*value),
            ScalarValue::Int64(Some(value)) => i128::from(*value),
            ScalarValue::TimestampNanosecond(Some(value), _) => i128::from(*value),
            ScalarValue::Date32(Some(days)) => i128::from(*days) * 86_400_000_000_000,
            ScalarValue::IntervalMonthDayNano(Some(step)) => {
                i128::from(step.months) * nanos_of_month
                    + i128::from(step.days) * 86_400_000_000_000
                    + i128::from(step.nanoseconds)
            }
            _ => return None,
        })
    };
    let values: Option<Vec<i128>> = args.iter().map(value).collect();
    let (from, to, step) = match values.as_deref() {
        Some([to]) => (0, *to, 1),
        Some([from, to]) => (*from, *to, 1),
        Some([from, to, step]) => (*from, *to, *step),
        // NULL and what the function itself refuses
        _ => return 0,
    };
    if step == 0 {
        return 0;
    }
    u64::try_from((to - from) / step).map_or(0, |rows| rows.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::logical_expr::lit;

    #[test]
    fn a_series_is_counted_before_it_is_made() {
        assert_eq!(series_rows(&[lit(10_i64)]), 11);
        assert_eq!(series_rows(&[lit(1_i64), lit(9_000_000_000_i64)]), 9_000_000_000);
        assert_eq!(series_rows(&[lit(1_i64), lit(10_i64), lit(-1_i64)]), 0);
        assert_eq!(series_rows(&[lit(10_i64), lit(1_i64), lit(-3_i64)]), 4);
        assert_eq!(series_rows(&[lit(i64::MIN), lit(i64::MAX)]), u64::MAX);
    }
}
