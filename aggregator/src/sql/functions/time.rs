//! Time and rates.

use std::sync::Arc;

use datafusion::arrow::array::Float64Array;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::functions::datetime::date_bin;
use datafusion::logical_expr::simplify::ExprSimplifyResult;
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, Volatility};

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
