//! A NOC's questions as table functions: `SELECT * FROM who_fills('10.0.0.1', 3, '1 hour')`.
//!
//! Each is a SELECT with places for its arguments, written out as literals after they were checked, and planned like a view
//! of that moment: so it is optimised together with the query around it, and does nothing that the asker could not write.

use std::sync::Arc;

use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::ViewTable;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::Expr;
use futures::FutureExt;
use weir_schemas::Address;

use super::functions::bad_value;

/// What an argument may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    Integer,
    /// An interval as text: `15 minutes`.
    Interval,
}

/// A question.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) name: &'static str,
    /// How it is called and what it gives, one line.
    pub(crate) doc: &'static str,
    /// Name and kind of each argument, and what it is where it is left out.
    parameters: &'static [(&'static str, Kind, Option<&'static str>)],
    sql: &'static str,
}

/// All of them.
pub(crate) static QUESTIONS: &[Question] = &[
    Question {
        name: "who_fills",
        doc: "who_fills(exporter, if_index, since = '1 hour') → the 100 conversations that fill an interface, by direction: class, service, bits per second over the whole time, share of the direction, first and last packet, and how many flows are of unknown sampling",
        parameters: &[
            ("exporter", Kind::Address, None),
            ("if_index", Kind::Integer, None),
            ("since", Kind::Interval, Some("1 hour")),
        ],
        sql: include_str!("questions/who_fills.sql"),
    },
    Question {
        name: "interface_reconciliation",
        doc: "interface_reconciliation(since = '1 hour') → for each interface with counters (sFlow) and direction: the rate by counters, the rate by flows, their ratio, and the likely cause of a difference",
        parameters: &[("since", Kind::Interval, Some("1 hour"))],
        sql: include_str!("questions/interface_reconciliation.sql"),
    },
    Question {
        name: "capacity",
        doc: "capacity(since = '30 days') → for each interface and direction: mean, 95th percentile and peak of samples of 5 minutes (an absent one counts as 0), the busy hour (UTC), the growth a day (Theil–Sen over the days' 95th percentiles, with its 95 % interval, from 7 days on), and when it reaches 80 % of the speed",
        parameters: &[("since", Kind::Interval, Some("30 days"))],
        sql: include_str!("questions/capacity.sql"),
    },
    Question {
        name: "calls",
        doc: "calls(since = '1 hour') → voice and video (see media) of which the exporter measures jitter and loss, by exporter, addresses, application and class: loss, mean jitter and round trip; for voice the rating and mean opinion score of the E-model (without a round trip as if it were 0)",
        parameters: &[("since", Kind::Interval, Some("1 hour"))],
        sql: include_str!("questions/calls.sql"),
    },
    Question {
        name: "flows_dedup",
        doc: "flows_dedup(since = '1 hour') → the flows of that time, each conversation (addresses, ports, protocol) of one exporter and direction only: of the one that reports most bytes of it, by estimate; of equals the lowest address, ingress first",
        parameters: &[("since", Kind::Interval, Some("1 hour"))],
        sql: include_str!("questions/flows_dedup.sql"),
    },
];

impl Question {
    /// The SELECT with its arguments in place.
    fn with(&self, arguments: &[Expr]) -> Result<String> {
        if arguments.len() > self.parameters.len() {
            return Err(bad_value(format!(
                "{} takes {} arguments: {}",
                self.name,
                self.parameters.len(),
                self.doc
            )));
        }
        let mut sql = self.sql.to_owned();
        for (at, (name, kind, default)) in self.parameters.iter().enumerate() {
            let wrong = |got: &str| {
                bad_value(format!("{}: {name} is {}, not {got}: {}", self.name, kind.name(), self.doc))
            };
            let literal = match (arguments.get(at), default) {
                (Some(Expr::Literal(value, _)), _) => {
                    kind.literal(value).ok_or_else(|| wrong(&value.to_string()))?
                }
                (Some(other), _) => return Err(wrong(&other.to_string())),
                (None, Some(default)) => {
                    kind.literal(&ScalarValue::from(*default)).ok_or_else(|| wrong(default))?
                }
                (None, None) => return Err(wrong("given")),
            };
            sql = sql.replace(&format!("{{{name}}}"), &literal);
        }
        Ok(sql)
    }
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Address => "an address as text",
            Kind::Integer => "an integer",
            Kind::Interval => "an interval as text ('15 minutes')",
        }
    }

    /// The value as SQL has it.
    fn literal(self, value: &ScalarValue) -> Option<String> {
        let text = || value.try_as_str().flatten();
        match self {
            Kind::Address => Some(format!("inet('{}')", text()?.parse::<Address>().ok()?)),
            Kind::Integer => match value.cast_to(&datafusion::arrow::datatypes::DataType::Int64).ok()? {
                ScalarValue::Int64(Some(number)) => Some(number.to_string()),
                _ => None,
            },
            Kind::Interval => {
                let text = text()?;
                let plain = |c: char| c.is_ascii_alphanumeric() || c == ' ' || c == '.';
                let fits = (1..=40).contains(&text.len()) && text.chars().all(plain);
                (fits && text.chars().any(|c| c.is_ascii_digit())).then(|| format!("INTERVAL '{text}'"))
            }
        }
    }
}

/// A question, as DataFusion calls it.
#[derive(Debug)]
pub(crate) struct Asked(pub(crate) &'static Question);

impl TableFunctionImpl for Asked {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let sql = self.0.with(args.exprs())?;
        let state = args.session().as_any().downcast_ref::<SessionState>();
        let state = state
            .ok_or_else(|| DataFusionError::Internal(format!("{} in a foreign session", self.0.name)))?;
        // our tables are in memory: planning never waits
        let plan = state
            .create_logical_plan(&sql)
            .now_or_never()
            .ok_or_else(|| DataFusionError::Internal(format!("{} waits for its tables", self.0.name)))??;
        let plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
        Ok(Arc::new(ViewTable::new(plan, Some(sql))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(value: impl Into<ScalarValue>) -> Expr {
        Expr::Literal(value.into(), None)
    }

    #[test]
    fn arguments_are_written_out_and_nothing_else_is() {
        let who = &QUESTIONS[0];
        let sql = who.with(&[literal("10.0.0.1"), literal(3_i64)]).unwrap();
        assert!(sql.contains("inet('10.0.0.1')") && sql.contains("INTERVAL '1 hour'") && !sql.contains('{'));
        for wrong in [
            vec![literal("10.0.0.1' OR true --"), literal(3_i64)],
            vec![literal("10.0.0.1"), literal("3 OR true")],
            vec![literal("10.0.0.1"), literal(3_i64), literal("1 hour' OR 'x' = 'x")],
            vec![literal("10.0.0.1"), literal(3_i64), literal("hours")],
            vec![literal("10.0.0.1")],
            vec![literal("10.0.0.1"), literal(3_i64), literal("1 hour"), literal(1_i64)],
        ] {
            assert!(who.with(&wrong).is_err(), "{wrong:?}");
        }
        for question in QUESTIONS {
            let arguments = [literal("10.0.0.1"), literal(3_i64), literal("2 days")];
            let given = &arguments[..question.parameters.len().min(3)];
            let given = if question.parameters.len() == 1 { &arguments[2..] } else { given };
            assert!(!question.with(given).unwrap().contains('{'), "{}", question.name);
        }
    }
}
