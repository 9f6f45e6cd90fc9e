//! The SQL functions that an engineer expects: of addresses, of names, of time and rates.
//!
//! Each is one [`Spec`]: name, arguments, result, one line of documentation and a function over columns. [`all`] is
//! what a session registers, and what the SQL reference is made from.

pub(crate) mod address;
mod bounds;
mod country;
mod distinct;
mod instead;
mod media;
mod names;
mod percentile;
mod time;
mod trend;

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    AggregateUDF, ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

use super::address::Family;
use super::error::{ErrorKind, QueryError};
use crate::countries::Countries;

pub(crate) use bounds::{bound_scalars, bound_series};
pub(crate) use percentile::PercentilePlanner;
pub(crate) use time::{Now, truncate_in_utc};

/// What an argument may be; what it is not yet, it is cast to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arg {
    /// An IP address, or text that is one.
    Ip,
    /// An address of either kind.
    Address,
    /// Text, or an IP address: whichever is given.
    TextOrIp,
    Text,
    Int,
    Float,
    /// An interval, or text that is one.
    Interval,
    /// A time, kept in its own type.
    Time,
    Bytes,
}

impl Arg {
    fn coerce(self, given: &DataType, function: &str) -> Result<DataType> {
        use DataType as D;
        let text = matches!(given, D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Null)
            || matches!(given, D::Dictionary(_, value) if **value == D::Utf8);
        let number = given.is_numeric() || *given == D::Null;
        match self {
            Arg::Ip if Family::of(given) == Some(Family::Ip) => Ok(given.clone()),
            Arg::Address if Family::of(given).is_some() => Ok(given.clone()),
            Arg::TextOrIp if Family::of(given) == Some(Family::Ip) => Ok(given.clone()),
            Arg::Ip | Arg::Text | Arg::TextOrIp if text => Ok(D::Utf8),
            Arg::Address if *given == D::Null => Ok(Family::Ip.data_type()),
            Arg::Bytes if matches!(given, D::Binary | D::LargeBinary | D::BinaryView | D::Null) => {
                Ok(D::Binary)
            }
            Arg::Int if number => Ok(D::Int64),
            Arg::Float if number => Ok(D::Float64),
            Arg::Interval if text || matches!(given, D::Interval(_) | D::Duration(_)) => {
                Ok(D::Interval(datafusion::arrow::datatypes::IntervalUnit::MonthDayNano))
            }
            Arg::Time if matches!(given, D::Timestamp(..)) => Ok(given.clone()),
            Arg::Time if text || matches!(given, D::Date32 | D::Date64) => Ok(time::timestamp_type()),
            _ => Err(bad_value(format!(
                "{function}: an argument of type {given} does not serve as {}",
                self.name()
            ))),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Arg::Ip => "an IP address",
            Arg::Address => "an address",
            Arg::TextOrIp => "text or an IP address",
            Arg::Text => "text",
            Arg::Int => "an integer",
            Arg::Float => "a number",
            Arg::Interval => "an interval",
            Arg::Time => "a timestamp",
            Arg::Bytes => "bytes",
        }
    }
}

/// The type of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Returns {
    Ip,
    Mac,
    Text,
    Bool,
    Int16,
    Int,
    Float,
    /// The type of the last argument.
    Last,
}

/// Replaces a call while the query is planned.
type Simplify = fn(Vec<Expr>, &SimplifyContext) -> Result<ExprSimplifyResult>;

/// A function of ours.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) aliases: &'static [&'static str],
    /// How it is called and what it gives, one line.
    pub(crate) doc: &'static str,
    pub(crate) args: &'static [Arg],
    pub(crate) returns: Returns,
    pub(crate) volatility: Volatility,
    pub(crate) invoke: fn(&[ColumnarValue], usize) -> Result<ColumnarValue>,
    pub(crate) simplify: Option<Simplify>,
}

impl Spec {
    const fn of(
        name: &'static str,
        args: &'static [Arg],
        returns: Returns,
        doc: &'static str,
        invoke: fn(&[ColumnarValue], usize) -> Result<ColumnarValue>,
    ) -> Spec {
        Spec {
            name,
            aliases: &[],
            doc,
            args,
            returns,
            volatility: Volatility::Immutable,
            invoke,
            simplify: None,
        }
    }
}

#[derive(Debug)]
struct Function {
    spec: &'static Spec,
    signature: Signature,
    aliases: Vec<String>,
}

impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        self.spec.name == other.spec.name
    }
}

impl Eq for Function {}

impl Hash for Function {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spec.name.hash(state);
    }
}

impl ScalarUDFImpl for Function {
    fn name(&self) -> &str {
        self.spec.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        if given.len() != self.spec.args.len() {
            return Err(bad_value(format!(
                "{} takes {} arguments, not {}: {}",
                self.spec.name,
                self.spec.args.len(),
                given.len(),
                self.spec.doc
            )));
        }
        self.spec.args.iter().zip(given).map(|(arg, given)| arg.coerce(given, self.spec.name)).collect()
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        Ok(match self.spec.returns {
            Returns::Ip => Family::Ip.data_type(),
            Returns::Mac => Family::Mac.data_type(),
            Returns::Text => DataType::Utf8,
            Returns::Bool => DataType::Boolean,
            Returns::Int16 => DataType::Int16,
            Returns::Int => DataType::Int64,
            Returns::Float => DataType::Float64,
            Returns::Last => given.last().cloned().unwrap_or(DataType::Null),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        (self.spec.invoke)(&args.args, args.number_rows)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        match self.spec.simplify {
            Some(simplify) => simplify(args, info),
            None => Ok(ExprSimplifyResult::Original(args)),
        }
    }
}

fn udf(spec: &'static Spec) -> ScalarUDF {
    let signature = if spec.args.is_empty() {
        Signature::nullary(spec.volatility)
    } else {
        Signature::user_defined(spec.volatility)
    };
    let aliases = spec.aliases.iter().map(|&alias| alias.to_owned()).collect();
    ScalarUDF::new_from_impl(Function { spec, signature, aliases })
}

/// Every scalar function of ours.
pub(crate) fn specs() -> impl Iterator<Item = &'static Spec> {
    address::SPECS.iter().chain(names::SPECS).chain(time::SPECS).chain(distinct::SPECS).chain(media::SPECS)
}

/// What a session registers.
pub(crate) fn all(countries: &Countries) -> Vec<Arc<ScalarUDF>> {
    let country = Arc::new(country::country(countries.clone()));
    specs().map(|spec| Arc::new(udf(spec))).chain([country]).collect()
}

/// Every aggregate of ours.
pub(crate) fn aggregates() -> Vec<Arc<AggregateUDF>> {
    let own = percentile::aggregates().into_iter().chain(trend::aggregates());
    own.chain(distinct::aggregates()).collect()
}

/// PostgreSQL's functions of its catalogue that clients call to describe ours.
pub(crate) fn of_catalog() -> Vec<ScalarUDF> {
    names::CATALOG.iter().map(udf).collect()
}

/// Our functions with their documentation: name, how it is called, what it gives.
pub fn reference() -> Vec<(&'static str, &'static str)> {
    let mut reference: Vec<_> = specs().map(|spec| (spec.name, spec.doc)).collect();
    reference.push(("p95", percentile::P95_DOC));
    for doc in trend::DOCS.into_iter().chain(distinct::DOCS).chain([country::DOC]) {
        reference.push((doc.split('(').next().unwrap_or_default(), doc));
    }
    reference.sort_unstable();
    reference
}

pub(crate) fn bad_value(message: String) -> DataFusionError {
    DataFusionError::External(Box::new(QueryError::new(ErrorKind::BadValue, message)))
}

/// How many values to compute: one where all arguments are constants.
fn extent(args: &[ColumnarValue], rows: usize) -> (usize, bool) {
    let constant = args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
    (if constant { 1 } else { rows }, constant)
}

fn finish(array: ArrayRef, constant: bool) -> Result<ColumnarValue> {
    Ok(if constant {
        ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)
    } else {
        ColumnarValue::Array(array)
    })
}

/// A column of values, or one value for all rows.
enum Values<A> {
    One(A),
    Many(A),
}

impl<A> Values<A> {
    fn at(&self, row: usize) -> (&A, usize) {
        match self {
            Values::One(array) => (array, 0),
            Values::Many(array) => (array, row),
        }
    }
}

fn column(arg: &ColumnarValue, data_type: &DataType) -> Result<Values<ArrayRef>> {
    let as_type =
        |array: ArrayRef| if array.data_type() == data_type { Ok(array) } else { cast(&array, data_type) };
    Ok(match arg {
        ColumnarValue::Scalar(value) => Values::One(as_type(value.to_array()?)?),
        ColumnarValue::Array(array) => Values::Many(as_type(Arc::clone(array))?),
    })
}

struct Ints(Values<Int64Array>);

impl Ints {
    fn of(arg: &ColumnarValue) -> Result<Ints> {
        Ok(Ints(match column(arg, &DataType::Int64)? {
            Values::One(array) => Values::One(array.as_primitive::<Int64Type>().clone()),
            Values::Many(array) => Values::Many(array.as_primitive::<Int64Type>().clone()),
        }))
    }

    fn get(&self, row: usize) -> Option<i64> {
        let (array, row) = self.0.at(row);
        array.is_valid(row).then(|| array.value(row))
    }
}

struct Floats(Values<Float64Array>);

impl Floats {
    fn of(arg: &ColumnarValue) -> Result<Floats> {
        Ok(Floats(match column(arg, &DataType::Float64)? {
            Values::One(array) => Values::One(array.as_primitive::<Float64Type>().clone()),
            Values::Many(array) => Values::Many(array.as_primitive::<Float64Type>().clone()),
        }))
    }

    fn get(&self, row: usize) -> Option<f64> {
        let (array, row) = self.0.at(row);
        array.is_valid(row).then(|| array.value(row))
    }
}

struct Texts(Values<StringArray>);

impl Texts {
    fn of(arg: &ColumnarValue) -> Result<Texts> {
        Ok(Texts(match column(arg, &DataType::Utf8)? {
            Values::One(array) => Values::One(array.as_string::<i32>().clone()),
            Values::Many(array) => Values::Many(array.as_string::<i32>().clone()),
        }))
    }

    fn get(&self, row: usize) -> Option<&str> {
        let (array, row) = self.0.at(row);
        array.is_valid(row).then(|| array.value(row))
    }
}
