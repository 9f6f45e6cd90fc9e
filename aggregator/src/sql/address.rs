//! Addresses in SQL: every `FixedSizeBinary(16)` is an IP address and every `FixedSizeBinary(6)` a MAC address.
//!
//! They are stored, compared, grouped and sorted as bytes; what people write is text. Three hooks make the two meet:
//! [`AddressPlanner`] turns text beside an address into an address while SQL is planned (DataFusion types a binary
//! operator that early), [`AddressRule`] does the same for everything that is typed later (IN, BETWEEN, CASE, LIKE,
//! casts, parameters), and [`AddressTypes`] knows the type names `inet`, `cidr` and `macaddr`.
//!
//! A literal that is no address is an error with its text; a text *column* that is compared with an address and does
//! not hold one is NULL there, as no address equals it.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::expr::{Between, InList, InSubquery, Like};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr, TypePlanner};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, Case, Cast, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, Subquery, TryCast,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::sql::sqlparser::ast::{BinaryOperator, DataType as SqlType};
use datafusion_pg_catalog::pg_catalog::oid_type_planner::PgOidTypePlanner;
use weir_schemas::{Address, Mac};

use super::error::{ErrorKind, QueryError};
use super::functions::address as functions;

/// The two kinds of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    Ip,
    Mac,
}

impl Family {
    pub fn of(data_type: &DataType) -> Option<Family> {
        match data_type {
            DataType::FixedSizeBinary(16) => Some(Family::Ip),
            DataType::FixedSizeBinary(6) => Some(Family::Mac),
            _ => None,
        }
    }

    pub fn data_type(self) -> DataType {
        DataType::FixedSizeBinary(self.width())
    }

    pub fn width(self) -> i32 {
        match self {
            Family::Ip => 16,
            Family::Mac => 6,
        }
    }

    /// The bytes of an address written as text.
    pub fn parse(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Family::Ip => text.parse::<Address>().ok().map(|address| address.0.to_vec()),
            Family::Mac => parse_mac(text).map(|mac| mac.0.to_vec()),
        }
    }

    /// The text of an address's bytes; None where the width is wrong.
    pub fn text(self, bytes: &[u8]) -> Option<String> {
        match self {
            Family::Ip => bytes.try_into().ok().map(|bytes| Address(bytes).to_string()),
            Family::Mac => bytes.try_into().ok().map(|bytes| Mac(bytes).to_string()),
        }
    }

    /// A NULL or the address that `text` is.
    pub fn scalar(self, text: Option<&str>) -> Result<ScalarValue> {
        let bytes = match text {
            Some(text) => Some(self.parse(text).ok_or_else(|| self.bad(text))?),
            None => None,
        };
        Ok(ScalarValue::FixedSizeBinary(self.width(), bytes))
    }

    pub(crate) fn bad(self, text: &str) -> DataFusionError {
        let message = match self {
            Family::Ip if text.split_once('/').is_some_and(|(net, _)| net.parse::<Address>().is_ok()) => {
                format!("\"{text}\" is a network, not an address: use cidr_contains('{text}', address)")
            }
            Family::Ip => format!("\"{text}\" is not an IP address (10.1.2.3, 2001:db8::1)"),
            Family::Mac => format!("\"{text}\" is not a MAC address (00:1b:21:3c:4d:5e)"),
        };
        DataFusionError::External(Box::new(QueryError::new(ErrorKind::BadValue, message)))
    }
}

/// `00:1b:21:3c:4d:5e`, `00-1b-…`, `001b.213c.4d5e` (Cisco) or twelve digits.
fn parse_mac(text: &str) -> Option<Mac> {
    let digits: Vec<u8> = text
        .trim()
        .chars()
        .filter(|c| !matches!(c, ':' | '-' | '.'))
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let digits: [u8; 12] = digits.try_into().ok()?;
    let mut mac = [0; 6];
    for (byte, pair) in mac.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(Mac(mac))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        || matches!(data_type, DataType::Dictionary(_, value) if is_text(value))
}

fn family_of(expr: &Expr, schema: &DFSchema) -> Option<Family> {
    expr.get_type(schema).ok().as_ref().and_then(Family::of)
}

fn is_text_expr(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema).as_ref().is_ok_and(is_text)
}

/// What `expr` is as an address: a literal at once (or an error), other text by a function that gives NULL for what
/// is no address, or fails for it where `strict`.
fn to_address(expr: Expr, family: Family, strict: bool) -> Result<Expr> {
    match &expr {
        Expr::Literal(
            ScalarValue::Utf8(text) | ScalarValue::Utf8View(text) | ScalarValue::LargeUtf8(text),
            metadata,
        ) => Ok(Expr::Literal(family.scalar(text.as_deref())?, metadata.clone())),
        _ => Ok(functions::parse(family, strict).call(vec![expr])),
    }
}

fn to_text(expr: Expr) -> Expr {
    functions::text().call(vec![expr])
}

/// An address is no network: inside, and inside or equal, are the same.
fn is_inside(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::PGBitwiseShiftLeft)
        || matches!(op, BinaryOperator::Custom(op) if op == "<<=")
}

fn is_around(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::PGBitwiseShiftRight)
        || matches!(op, BinaryOperator::Custom(op) if op == ">>=")
}

/// The addresses of binary operators, while SQL is planned.
#[derive(Debug)]
pub struct AddressPlanner;

impl ExprPlanner for AddressPlanner {
    fn plan_binary_op(
        &self,
        mut expr: RawBinaryExpr,
        schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        use BinaryOperator as Op;
        let (left, right) = (family_of(&expr.left, schema), family_of(&expr.right, schema));
        match expr.op {
            Op::Eq | Op::NotEq | Op::Lt | Op::LtEq | Op::Gt | Op::GtEq | Op::Spaceship => match (left, right)
            {
                (Some(family), None) if is_text_expr(&expr.right, schema) => {
                    expr.right = to_address(expr.right, family, false)?;
                }
                (None, Some(family)) if is_text_expr(&expr.left, schema) => {
                    expr.left = to_address(expr.left, family, false)?;
                }
                _ => {}
            },
            // PostgreSQL's "is inside the network": address << '10.0.0.0/8', and the other way round
            ref op if left == Some(Family::Ip) && is_inside(op) => {
                let contains = functions::cidr_contains().call(vec![expr.right, expr.left]);
                return Ok(PlannerResult::Planned(contains));
            }
            ref op if right == Some(Family::Ip) && is_around(op) => {
                let contains = functions::cidr_contains().call(vec![expr.left, expr.right]);
                return Ok(PlannerResult::Planned(contains));
            }
            Op::StringConcat
            | Op::PGRegexMatch
            | Op::PGRegexIMatch
            | Op::PGRegexNotMatch
            | Op::PGRegexNotIMatch
            | Op::PGLikeMatch
            | Op::PGILikeMatch
            | Op::PGNotLikeMatch
            | Op::PGNotILikeMatch => {
                if left.is_some() {
                    expr.left = to_text(expr.left);
                }
                if right.is_some() {
                    expr.right = to_text(expr.right);
                }
            }
            _ => {}
        }
        Ok(PlannerResult::Original(expr))
    }
}

/// The addresses of every other expression, before and after DataFusion's type coercion.
#[derive(Debug)]
pub struct AddressRule;

impl AnalyzerRule for AddressRule {
    fn name(&self) -> &str {
        "weir_addresses"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        Ok(plan.transform_up_with_subqueries(rewrite_plan)?.data)
    }
}

fn rewrite_plan(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut schema = merge_schema(&plan.inputs());
    if let LogicalPlan::TableScan(scan) = &plan {
        schema.merge(&DFSchema::try_from_qualified_schema(scan.table_name.clone(), &scan.source.schema())?);
    }
    let names = NamePreserver::new(&plan);
    let rewritten = plan.map_expressions(|expr| {
        let name = names.save(&expr);
        Ok(expr.transform_up(|expr| rewrite(expr, &schema))?.update_data(|expr| name.restore(expr)))
    })?;
    if rewritten.transformed { rewritten.map_data(|plan| plan.recompute_schema()) } else { Ok(rewritten) }
}

fn rewrite(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(binary) => rewrite_binary(binary, schema),
        Expr::InList(list) => rewrite_list(list, schema),
        Expr::Between(between) => rewrite_between(between, schema),
        Expr::Like(like) => Ok(rewrite_like(like, schema, Expr::Like)),
        Expr::SimilarTo(like) => Ok(rewrite_like(like, schema, Expr::SimilarTo)),
        Expr::Case(case) => rewrite_case(case, schema),
        Expr::InSubquery(subquery) => rewrite_subquery(subquery, schema),
        Expr::Cast(cast) => {
            let (transformed, inner) = rewrite_cast(*cast.expr, &cast.field, schema, true)?;
            let done = inner.get_type(schema).is_ok_and(|inner| inner == *cast.field.data_type());
            Ok(match (transformed, done) {
                (true, true) => Transformed::yes(inner),
                _ => Transformed::new_transformed(
                    Expr::Cast(Cast::new_from_field(Box::new(inner), cast.field)),
                    transformed,
                ),
            })
        }
        Expr::TryCast(cast) => {
            let (transformed, inner) = rewrite_cast(*cast.expr, &cast.field, schema, false)?;
            Ok(Transformed::new_transformed(
                Expr::TryCast(TryCast::new_from_field(Box::new(inner), cast.field)),
                transformed,
            ))
        }
        other => Ok(Transformed::no(other)),
    }
}

fn is_comparison(op: Operator) -> bool {
    use Operator as O;
    matches!(
        op,
        O::Eq | O::NotEq | O::Lt | O::LtEq | O::Gt | O::GtEq | O::IsDistinctFrom | O::IsNotDistinctFrom
    )
}

fn rewrite_binary(mut binary: BinaryExpr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let (left, right) = (family_of(&binary.left, schema), family_of(&binary.right, schema));
    let mut transformed = false;
    if is_comparison(binary.op) {
        match (left, right) {
            (Some(family), None) if is_text_expr(&binary.right, schema) => {
                *binary.right = to_address(*binary.right, family, false)?;
                transformed = true;
            }
            (None, Some(family)) if is_text_expr(&binary.left, schema) => {
                *binary.left = to_address(*binary.left, family, false)?;
                transformed = true;
            }
            _ => {}
        }
    } else if binary.op == Operator::StringConcat {
        if left.is_some() {
            *binary.left = to_text(*binary.left);
            transformed = true;
        }
        if right.is_some() {
            *binary.right = to_text(*binary.right);
            transformed = true;
        }
    }
    Ok(Transformed::new_transformed(Expr::BinaryExpr(binary), transformed))
}

fn rewrite_list(list: InList, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let InList { expr, list, negated } = list;
    let found = family_of(&expr, schema).or_else(|| list.iter().find_map(|item| family_of(item, schema)));
    let Some(family) = found else {
        return Ok(Transformed::no(Expr::InList(InList::new(expr, list, negated))));
    };
    let mut transformed = false;
    let mut as_address = |item: Expr| {
        if is_text_expr(&item, schema) {
            transformed = true;
            to_address(item, family, false)
        } else {
            Ok(item)
        }
    };
    let expr = as_address(*expr)?;
    let list = list.into_iter().map(&mut as_address).collect::<Result<_>>()?;
    Ok(Transformed::new_transformed(Expr::InList(InList::new(Box::new(expr), list, negated)), transformed))
}

fn rewrite_between(between: Between, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Between { expr, negated, low, high } = between;
    let found = [&expr, &low, &high].into_iter().find_map(|part| family_of(part, schema));
    let Some(family) = found else {
        return Ok(Transformed::no(Expr::Between(Between::new(expr, negated, low, high))));
    };
    let mut transformed = false;
    let mut as_address = |part: Box<Expr>| {
        if is_text_expr(&part, schema) {
            transformed = true;
            to_address(*part, family, false).map(Box::new)
        } else {
            Ok(part)
        }
    };
    let (expr, low, high) = (as_address(expr)?, as_address(low)?, as_address(high)?);
    Ok(Transformed::new_transformed(Expr::Between(Between::new(expr, negated, low, high)), transformed))
}

fn rewrite_like(mut like: Like, schema: &DFSchema, wrap: fn(Like) -> Expr) -> Transformed<Expr> {
    let transformed = family_of(&like.expr, schema).is_some();
    if transformed {
        *like.expr = to_text(*like.expr);
    }
    Transformed::new_transformed(wrap(like), transformed)
}

fn rewrite_case(case: Case, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Case { expr, when_then_expr, else_expr } = case;
    let compared = expr
        .iter()
        .map(AsRef::as_ref)
        .chain(when_then_expr.iter().filter(|_| expr.is_some()).map(|(when, _)| when.as_ref()))
        .find_map(|part| family_of(part, schema));
    let result = when_then_expr
        .iter()
        .map(|(_, then)| then.as_ref())
        .chain(else_expr.iter().map(AsRef::as_ref))
        .find_map(|part| family_of(part, schema));
    let mut transformed = false;
    let mut as_address = |part: Box<Expr>, family: Option<Family>| match family {
        Some(family) if is_text_expr(&part, schema) => {
            transformed = true;
            to_address(*part, family, false).map(Box::new)
        }
        _ => Ok(part),
    };
    let expr = expr.map(|expr| as_address(expr, compared)).transpose()?;
    let when_then_expr = when_then_expr
        .into_iter()
        .map(|(when, then)| Ok((as_address(when, compared)?, as_address(then, result)?)))
        .collect::<Result<_>>()?;
    let else_expr = else_expr.map(|otherwise| as_address(otherwise, result)).transpose()?;
    Ok(Transformed::new_transformed(Expr::Case(Case::new(expr, when_then_expr, else_expr)), transformed))
}

/// `address IN (SELECT text …)`: the subquery's column becomes an address; and the other way round.
fn rewrite_subquery(subquery: InSubquery, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let InSubquery { expr, subquery, negated } = subquery;
    let field = subquery.subquery.schema().field(0).clone();
    let transformed;
    let (expr, subquery) = match (family_of(&expr, schema), Family::of(field.data_type())) {
        (Some(family), None) if is_text(field.data_type()) => {
            transformed = true;
            let column = Expr::Column(subquery.subquery.schema().columns()[0].clone());
            let address = to_address(column, family, false)?.alias(field.name());
            let plan = LogicalPlanBuilder::from(Arc::unwrap_or_clone(subquery.subquery))
                .project([address])?
                .build()?;
            (expr, Subquery { subquery: Arc::new(plan), ..subquery })
        }
        (None, Some(family)) if is_text_expr(&expr, schema) => {
            transformed = true;
            (Box::new(to_address(*expr, family, false)?), subquery)
        }
        _ => {
            transformed = false;
            (expr, subquery)
        }
    };
    Ok(Transformed::new_transformed(Expr::InSubquery(InSubquery::new(expr, subquery, negated)), transformed))
}

/// What stands inside a cast between text and addresses.
fn rewrite_cast(expr: Expr, target: &FieldRef, schema: &DFSchema, strict: bool) -> Result<(bool, Expr)> {
    let from = expr.get_type(schema)?;
    match (Family::of(&from), Family::of(target.data_type())) {
        (Some(_), None) if is_text(target.data_type()) => Ok((true, to_text(expr))),
        (None, Some(family)) if is_text(&from) => Ok((true, to_address(expr, family, strict)?)),
        _ => Ok((false, expr)),
    }
}

/// The type names `inet`, `cidr` and `macaddr`, and those of PostgreSQL's catalog.
#[derive(Debug)]
pub struct AddressTypes;

impl TypePlanner for AddressTypes {
    fn plan_type_field(&self, sql_type: &SqlType) -> Result<Option<FieldRef>> {
        if let SqlType::Custom(name, arguments) = sql_type
            && arguments.is_empty()
        {
            let name = name.to_string().to_lowercase();
            let family = match name.strip_prefix("pg_catalog.").unwrap_or(&name) {
                "inet" | "cidr" => Some(Family::Ip),
                "macaddr" => Some(Family::Mac),
                _ => None,
            };
            if let Some(family) = family {
                return Ok(Some(Arc::new(Field::new("", family.data_type(), true))));
            }
        }
        PgOidTypePlanner.plan_type_field(sql_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_in_every_notation() {
        for text in ["00:1b:21:3c:4d:5e", "00-1B-21-3C-4D-5E", "001b.213c.4d5e", "001b213c4d5e"] {
            assert_eq!(parse_mac(text).map(|mac| mac.to_string()).as_deref(), Some("00:1b:21:3c:4d:5e"));
        }
        for text in ["", "00:1b", "00:1b:21:3c:4d:5g", "00:1b:21:3c:4d:5e:6f"] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }

    #[test]
    fn bad_addresses_say_what_is_wrong() {
        let text = |family: Family, text| family.scalar(Some(text)).unwrap_err().to_string();
        assert!(text(Family::Ip, "10.1.2").contains("\"10.1.2\" is not an IP address"));
        assert!(text(Family::Ip, "10.0.0.0/8").contains("cidr_contains('10.0.0.0/8', address)"));
        assert!(text(Family::Mac, "x").contains("not a MAC address"));
    }
}
