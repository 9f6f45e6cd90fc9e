//! Time and rates.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array};
use datafusion::arrow::datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::functions::datetime::date_bin;
use datafusion::logical_expr::simplify::ExprSimplifyResult;
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, Volatility};

use super::instead::call_instead;
use super::{Arg, Floats, Returns, Spec, extent, finish};

/// The type of every time column.
pub(super) fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(super) static SPECS: &[Spec] = &[
    Spec::of(
        "time_bucket",
        &[Arg::Interval, Arg::Time],
        Returns::Last,
        "time_bucket('5 minutes', time) → the start of its bucket, counted from 1970-01-01 UTC",
        time_bucket,
    ),
    Spec::of(
        "rate",
        &[Arg::Float, Arg::Float],
        Returns::Float,
        "rate(bytes, seconds) → bits per second: bytes · 8 / seconds; NULL where seconds is not positive",
        |args, rows| {
            let (rows, constant) = extent(args, rows);
            let (bytes, seconds) = (Floats::of(&args[0])?, Floats::of(&args[1])?);
            let array: Float64Array = (0..rows)
                .map(|row| {
                    let (bytes, seconds) = bytes.get(row).zip(seconds.get(row))?;
                    (seconds > 0.0).then(|| bytes * 8.0 / seconds)
                })
                .collect();
            finish(Arc::new(array), constant)
        },
    ),
];

fn time_bucket(args: &[ColumnarValue], rows: usize) -> Result<ColumnarValue> {
    let fields =
        |arg: &ColumnarValue| Arc::new(datafusion::arrow::datatypes::Field::new("", arg.data_type(), true));
    let function = date_bin();
    let returns = fields(&args[1]);
    function.invoke_with_args(ScalarFunctionArgs {
        args: args.to_vec(),
        arg_fields: args.iter().map(fields).collect(),
        number_rows: rows,
        return_field: returns,
        config_options: Arc::new(ConfigOptions::default()),
    })
}

/// `now()`, in the type of our time columns: a comparison with one then needs no cast, and prunes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Now {
    signature: datafusion::logical_expr::Signature,
    aliases: Vec<String>,
}

impl Default for Now {
    fn default() -> Self {
        let aliases =
            ["current_timestamp", "transaction_timestamp", "statement_timestamp"].map(str::to_owned).to_vec();
        Now { signature: datafusion::logical_expr::Signature::nullary(Volatility::Stable), aliases }
    }
}

impl datafusion::logical_expr::ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        "now"
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &datafusion::logical_expr::Signature {
        &self.signature
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(timestamp_type())
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("now() is a constant of the query")
    }

    fn simplify(
        &self,
        args: Vec<Expr>,
        info: &datafusion::logical_expr::simplify::SimplifyContext,
    ) -> Result<ExprSimplifyResult> {
        let Some(now) = info.query_execution_start_time() else {
            return Ok(ExprSimplifyResult::Original(args));
        };
        let now = ScalarValue::TimestampMicrosecond(Some(now.timestamp_micros()), Some("UTC".into()));
        Ok(ExprSimplifyResult::Simplified(Expr::Literal(now, None)))
    }
}

/// Puts [`truncated_in_utc`] in the place of a session's `date_trunc`.
pub(crate) fn truncate_in_utc(functions: &mut [Arc<ScalarUDF>]) {
    for function in functions.iter_mut().filter(|function| function.name() == "date_trunc") {
        call_instead(function, truncated_in_utc);
    }
}

/// The same times in a zone, or in none.
fn with_zone(times: &ArrayRef, zone: Option<&str>) -> ArrayRef {
    Arc::new(times.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(zone))
}

/// `date_trunc` of our time columns. In UTC hours and days are of one length, but DataFusion counts so only where a time has
/// no zone, and looks at the calendar for each row otherwise, which takes some fifty times as long.
fn truncated_in_utc(date_trunc: &ScalarUDF, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
    let bare = match args.args.get(1) {
        Some(ColumnarValue::Array(times)) if *times.data_type() == timestamp_type() => with_zone(times, None),
        _ => return date_trunc.invoke_with_args(args),
    };
    let field = |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(bare.data_type().clone()));
    args.arg_fields[1] = field(&args.arg_fields[1]);
    args.return_field = field(&args.return_field);
    args.args[1] = ColumnarValue::Array(bare);
    match date_trunc.invoke_with_args(args)? {
        ColumnarValue::Array(times) => Ok(ColumnarValue::Array(with_zone(&times, Some("UTC")))),
        ColumnarValue::Scalar(_) => internal_err!("date_trunc() of a column gave one value"),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Array, TimestampMicrosecondArray};
    use datafusion::arrow::datatypes::Field;
    use datafusion::functions::datetime::date_trunc;

    use super::*;

    #[test]
    fn truncating_in_utc_gives_what_the_calendar_gives() {
        let mut functions = [date_trunc()];
        truncate_in_utc(&mut functions);
        let mut state = 11_u64;
        // three hundred years around 1970, and NULL
        let times: TimestampMicrosecondArray = (0..2_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let time = (state >> 8) as i64 % 9_460_800_000_000_000 - 4_730_400_000_000_000;
                (state >> 60 != 0).then_some(time)
            })
            .collect();
        let times: ArrayRef = Arc::new(times.with_timezone("UTC"));
        let units = ["microsecond", "second", "minute", "hour", "day", "week", "month", "quarter", "YEAR"];
        let ours = units.map(|unit| {
            let of = |function: &ScalarUDF| {
                let field = |kind: DataType| Arc::new(Field::new("", kind, true));
                let args = ScalarFunctionArgs {
                    args: vec![
                        ColumnarValue::Scalar(ScalarValue::from(unit)),
                        ColumnarValue::Array(Arc::clone(&times)),
                    ],
                    arg_fields: vec![field(DataType::Utf8), field(timestamp_type())],
                    number_rows: times.len(),
                    return_field: field(timestamp_type()),
                    config_options: Arc::new(ConfigOptions::default()),
                };
                function.invoke_with_args(args).unwrap().into_array(times.len()).unwrap()
            };
            let (ours, theirs) = (of(&functions[0]), of(&date_trunc()));
            assert_eq!(&ours, &theirs, "{unit}");
            ours
        });
        assert!(ours.windows(2).all(|pair| pair[0].as_ref() != pair[1].as_ref()), "units differ");
    }
}
