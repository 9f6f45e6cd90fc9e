//! What can go wrong with a query, in one type: the same text, SQLSTATE and HTTP status at every door.

use std::fmt;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError, utils::datafusion_strsim};

/// What kind of failure it was; the SQLSTATE and the HTTP status follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The text is no SQL.
    Syntax,
    /// A statement that would write, or that this server does not offer.
    Refused,
    /// Longer than the limit.
    TooLong,
    /// Nested or chained beyond the limits.
    TooComplex,
    UnknownTable,
    UnknownColumn,
    UnknownFunction,
    /// Known to SQL, not to us.
    Unsupported,
    /// The statement cannot be planned: types, grouping, ambiguity.
    Plan,
    /// A value that does not read as its type (an address, a number, a time).
    BadValue,
    DivisionByZero,
    /// A setting that does not exist or does not take the value.
    BadSetting,
    /// A prepared statement that does not exist, or exists already.
    Prepared,
    /// The statement timeout passed.
    Timeout,
    /// The client asked to cancel, or went away.
    Canceled,
    /// Too many queries already run and wait.
    Busy,
    /// The memory budget of queries is used up.
    Memory,
    /// The answer is larger than this door gives in one piece.
    AnswerTooLarge,
    /// The store is not open yet, or the server stops.
    NotReady,
    /// It failed while running, not by the statement's fault.
    Execution,
    /// A bug: the log has more.
    Internal,
}

impl ErrorKind {
    /// The five letters that PostgreSQL clients act on.
    pub const fn sqlstate(self) -> &'static str {
        match self {
            ErrorKind::Syntax => "42601",
            ErrorKind::Refused => "25006",
            ErrorKind::TooLong | ErrorKind::AnswerTooLarge => "54000",
            ErrorKind::TooComplex => "54001",
            ErrorKind::UnknownTable => "42P01",
            ErrorKind::UnknownColumn => "42703",
            ErrorKind::UnknownFunction => "42883",
            ErrorKind::Unsupported => "0A000",
            ErrorKind::Plan => "42000",
            ErrorKind::BadValue => "22P02",
            ErrorKind::DivisionByZero => "22012",
            ErrorKind::BadSetting => "42704",
            ErrorKind::Prepared => "26000",
            ErrorKind::Timeout | ErrorKind::Canceled => "57014",
            ErrorKind::Busy => "53300",
            ErrorKind::Memory => "53200",
            ErrorKind::NotReady => "57P03",
            ErrorKind::Execution => "58000",
            ErrorKind::Internal => "XX000",
        }
    }

    pub const fn http_status(self) -> u16 {
        match self {
            ErrorKind::TooLong | ErrorKind::AnswerTooLarge => 413,
            ErrorKind::Timeout | ErrorKind::Canceled => 408,
            ErrorKind::Busy => 429,
            ErrorKind::Memory | ErrorKind::NotReady => 503,
            ErrorKind::Execution | ErrorKind::Internal => 500,
            _ => 400,
        }
    }

    /// The name in HTTP answers and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::Syntax => "syntax",
            ErrorKind::Refused => "refused",
            ErrorKind::TooLong => "too_long",
            ErrorKind::TooComplex => "too_complex",
            ErrorKind::UnknownTable => "unknown_table",
            ErrorKind::UnknownColumn => "unknown_column",
            ErrorKind::UnknownFunction => "unknown_function",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Plan => "plan",
            ErrorKind::BadValue => "bad_value",
            ErrorKind::DivisionByZero => "division_by_zero",
            ErrorKind::BadSetting => "bad_setting",
            ErrorKind::Prepared => "prepared_statement",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Canceled => "canceled",
            ErrorKind::Busy => "busy",
            ErrorKind::Memory => "memory",
            ErrorKind::AnswerTooLarge => "answer_too_large",
            ErrorKind::NotReady => "not_ready",
            ErrorKind::Execution => "execution",
            ErrorKind::Internal => "internal",
        }
    }
}

/// A failed query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    pub kind: ErrorKind,
    pub message: String,
    /// Where in the query, in characters from 1 (as PostgreSQL counts).
    pub position: Option<usize>,
}

impl std::error::Error for QueryError {}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl QueryError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        QueryError { kind, message: message.into(), position: None }
    }

    pub fn at(mut self, position: Option<usize>) -> Self {
        self.position = self.position.or(position);
        self
    }

    /// With the nearest of `names` in mind, where the name of a table is not known.
    pub(crate) fn suggest<'a>(mut self, names: impl Iterator<Item = &'a str>) -> Self {
        if self.kind != ErrorKind::UnknownTable {
            return self;
        }
        let wanted = self.message.split('"').nth(1).unwrap_or_default().to_owned();
        let close = wanted.len().div_ceil(3).max(2);
        let near = names.map(|name| (datafusion_strsim::levenshtein(&wanted, name), name)).min();
        if let Some((_, name)) = near.filter(|(distance, _)| *distance <= close) {
            self.message = format!("no table \"{wanted}\"; did you mean \"{name}\"?");
        }
        self
    }

    /// From what DataFusion says about `sql`.
    pub fn from_datafusion(error: &DataFusionError, sql: &str) -> Self {
        let position = error
            .diagnostic()
            .and_then(|diagnostic| diagnostic.span)
            .and_then(|span| position_of(sql, span.start.line, span.start.column));
        let mut result = classify(error);
        if result.kind == ErrorKind::Syntax {
            result = syntax(&result.message, sql);
        }
        result.at(position).locate(sql)
    }

    /// The place of an unknown name, where the planner gave none.
    fn locate(self, sql: &str) -> Self {
        if !matches!(self.kind, ErrorKind::UnknownTable | ErrorKind::UnknownColumn) {
            return self;
        }
        let name = self.message.split('"').nth(1).unwrap_or_default();
        let name = name.rsplit('.').next().unwrap_or(name);
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let lower = sql.to_ascii_lowercase();
        let found = lower.match_indices(&name.to_ascii_lowercase()).find(|(at, text)| {
            let (before, after) = (&lower[..*at], &lower[at + text.len()..]);
            !text.is_empty() && !is_word(before.chars().next_back()) && !is_word(after.chars().next())
        });
        let position = found.map(|(at, _)| lower[..at].chars().count() + 1);
        self.at(position)
    }
}

/// The position in characters from 1, of a line and column from 1.
pub(crate) fn position_of(sql: &str, line: u64, column: u64) -> Option<usize> {
    if line == 0 || column == 0 {
        return None;
    }
    let before: usize = sql
        .split_inclusive('\n')
        .take(usize::try_from(line).ok()? - 1)
        .map(|line| line.chars().count())
        .sum();
    Some(before + usize::try_from(column).ok()?)
}

/// A syntax error from the parser's text, its place moved from the text to the position.
pub(crate) fn syntax(message: &str, sql: &str) -> QueryError {
    let message = message.trim_start_matches("sql parser error: ");
    if message.contains("recursion limit exceeded") {
        return QueryError::new(ErrorKind::TooComplex, "the statement is nested too deeply");
    }
    let (text, place) = match message.rfind(" at Line: ") {
        Some(at) => (&message[..at], Some(&message[at + " at Line: ".len()..])),
        None => (message, None),
    };
    let position = place.and_then(|place| {
        let (line, column) = place.split_once(", Column: ")?;
        let digits = |text: &str| text.trim().trim_end_matches('.').parse::<u64>().ok();
        position_of(sql, digits(line)?, digits(column)?)
    });
    QueryError::new(ErrorKind::Syntax, format!("syntax error: {}", lower_first(text))).at(position)
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        // `SQL`, `EOF` stay; `Expected` becomes lower case
        Some(first) if chars.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

fn classify(error: &DataFusionError) -> QueryError {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => classify(inner),
        DataFusionError::Shared(inner) => classify(inner),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => classify(first),
            None => QueryError::new(ErrorKind::Internal, "the query failed"),
        },
        DataFusionError::External(inner) => external(inner.as_ref()),
        DataFusionError::ArrowError(inner, _) => arrow(inner),
        DataFusionError::SQL(inner, _) => QueryError::new(ErrorKind::Syntax, inner.to_string()),
        DataFusionError::SchemaError(inner, _) => schema(inner),
        DataFusionError::NotImplemented(message) => {
            QueryError::new(ErrorKind::Unsupported, format!("not supported: {}", first_line(message)))
        }
        DataFusionError::Plan(message) => plan(message),
        DataFusionError::Configuration(message) => QueryError::new(ErrorKind::Plan, first_line(message)),
        DataFusionError::ResourcesExhausted(message) => {
            let line = first_line(message);
            // the operators that have most of it, on the lines below, are not of the asker's words
            let what = line.split(" with top memory consumers").next().unwrap_or_default();
            let message =
                format!("the query needs more memory than queries may use (sql.memory_bytes): {what}");
            QueryError::new(ErrorKind::Memory, message)
        }
        DataFusionError::Execution(message) => QueryError::new(ErrorKind::Execution, first_line(message)),
        DataFusionError::Internal(message) => {
            QueryError::new(ErrorKind::Internal, format!("internal error: {}", first_line(message)))
        }
        other => QueryError::new(ErrorKind::Execution, first_line(&other.strip_backtrace())),
    }
}

fn external(error: &(dyn std::error::Error + Send + Sync + 'static)) -> QueryError {
    if let Some(error) = error.downcast_ref::<QueryError>() {
        return error.clone();
    }
    if let Some(error) = error.downcast_ref::<DataFusionError>() {
        return classify(error);
    }
    if let Some(error) = error.downcast_ref::<ArrowError>() {
        return arrow(error);
    }
    QueryError::new(ErrorKind::Execution, first_line(&error.to_string()))
}

fn arrow(error: &ArrowError) -> QueryError {
    match error {
        ArrowError::DivideByZero => QueryError::new(ErrorKind::DivisionByZero, "division by zero"),
        ArrowError::ExternalError(inner) => external(inner.as_ref()),
        ArrowError::CastError(message) | ArrowError::ParseError(message) => {
            QueryError::new(ErrorKind::BadValue, first_line(message))
        }
        ArrowError::ArithmeticOverflow(message) => QueryError::new(ErrorKind::BadValue, first_line(message)),
        other => QueryError::new(ErrorKind::Execution, first_line(&other.to_string())),
    }
}

fn schema(error: &SchemaError) -> QueryError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let mut near: Vec<(usize, &str)> = valid_fields
                .iter()
                .map(|valid| (datafusion_strsim::levenshtein(&field.name, &valid.name), valid.name.as_str()))
                .collect();
            near.sort_unstable();
            near.dedup();
            let close = field.name.len().div_ceil(3).max(2);
            let hint = match near.first() {
                Some((distance, name)) if *distance <= close => format!("; did you mean \"{name}\"?"),
                _ if valid_fields.is_empty() => String::new(),
                _ => "; DESCRIBE the table for its columns".to_owned(),
            };
            QueryError::new(
                ErrorKind::UnknownColumn,
                format!("no column \"{}\"{hint}", field.flat_name().replace('"', "")),
            )
        }
        SchemaError::AmbiguousReference { field } => QueryError::new(
            ErrorKind::Plan,
            format!("column \"{}\" is ambiguous: name its table", field.flat_name()),
        ),
        other => QueryError::new(ErrorKind::Plan, first_line(&other.to_string())),
    }
}

fn plan(message: &str) -> QueryError {
    let message = first_line(message);
    if let Some(rest) = message.strip_prefix("table '") {
        let name = rest.split('\'').next().unwrap_or_default();
        let name = name.strip_prefix("weir.public.").or_else(|| name.strip_prefix("weir.")).unwrap_or(name);
        return QueryError::new(
            ErrorKind::UnknownTable,
            format!("no table \"{name}\"; SHOW TABLES lists what there is"),
        );
    }
    let unknown_function = message.starts_with("Invalid function") || message.contains("function '");
    if unknown_function && (message.contains("not found") || message.starts_with("Invalid function")) {
        return QueryError::new(ErrorKind::UnknownFunction, lower_first(&message));
    }
    QueryError::new(ErrorKind::Plan, lower_first(&message))
}

/// Errors go to clients as one line: backtraces and candidate lists stay out.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim_end();
    let line = line.strip_prefix("Error during planning: ").unwrap_or(line);
    match line.char_indices().nth(500) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_over_lines() {
        assert_eq!(position_of("select 1", 1, 8), Some(8));
        assert_eq!(position_of("sélect\n  x", 2, 3), Some(10));
        assert_eq!(position_of("x", 0, 0), None);
    }

    #[test]
    fn the_parsers_place_becomes_a_position() {
        let error = syntax("Expected: an expression, found: EOF at Line: 2, Column: 3", "select\n  ");
        assert_eq!(error.message, "syntax error: expected: an expression, found: EOF");
        assert_eq!(error.position, Some(10));
    }

    #[test]
    fn every_kind_has_a_state_of_five_letters() {
        assert!(ErrorKind::Syntax.sqlstate().len() == 5 && ErrorKind::Busy.http_status() == 429);
    }
}
