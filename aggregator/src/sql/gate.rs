//! The gate in front of every door: what may be asked, and how long and deep it may be.
//!
//! A statement passes four checks before anything is planned: its length; a scan of its tokens (nesting, operators,
//! set operations), because the parser and the planner recurse where a statement nests or chains; its first word,
//! against the list of what is offered; and its syntax tree, which must hold nothing that writes and must not unfold
//! (common table expressions that name one another) into more relations than the limit. What it plans to is checked
//! once more by [`verify`]. Nothing here does I/O.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::{DFParserBuilder, Statement as ParsedStatement};
use datafusion::sql::sqlparser::ast::{self, ObjectName, Query, SetExpr, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;

use super::error::{ErrorKind, QueryError, position_of, syntax};

/// How long, deep and wide a statement may be. The defaults leave room for anything that a person or a dashboard
/// writes; beyond them the recursion of parser, planner and evaluator costs stack and time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub query_bytes: usize,
    /// Parentheses, brackets and CASE inside one another.
    pub depth: usize,
    /// Function calls inside one another: the parser tries an argument twice, so its time doubles with each.
    pub calls: usize,
    /// Operators, casts and predicates in the whole statement (a long IN list has one).
    pub operators: usize,
    /// UNION, INTERSECT and EXCEPT.
    pub set_operations: usize,
    /// Tables in FROM, with common table expressions unfolded.
    pub relations: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            query_bytes: 256 * 1024,
            depth: 64,
            calls: 12,
            operators: 1_000,
            set_operations: 64,
            relations: 128,
        }
    }
}

/// What a text asks for.
#[derive(Debug)]
pub enum Request {
    /// Nothing but blanks, comments and semicolons.
    Empty,
    /// Something to plan.
    Query(Box<ParsedStatement>),
    /// Something about the session.
    Session(Command),
}

/// Session noise of PostgreSQL clients; none of it reaches the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Begin,
    Commit,
    Rollback,
    /// `DISCARD ALL` and the like; forgets settings and prepared statements.
    Discard,
    /// `LISTEN`-free clients still send `UNLISTEN *` and `CLOSE ALL`.
    Ignored(&'static str),
    Set {
        name: String,
        value: String,
    },
    /// One setting, or all.
    Reset(Option<String>),
    Show(String),
    Prepare {
        name: String,
        sql: String,
    },
    /// The arguments as they stand between the parentheses.
    Execute {
        name: String,
        arguments: Option<String>,
    },
    Deallocate(Option<String>),
}

/// Checks `sql`; what comes back may be planned.
pub fn check(
    sql: &str,
    limits: &Limits,
    catalog_parser: &PostgresCompatibilityParser,
) -> Result<Request, QueryError> {
    if sql.len() > limits.query_bytes {
        return Err(QueryError::new(
            ErrorKind::TooLong,
            format!("the statement has {} bytes; the limit is {}", sql.len(), limits.query_bytes),
        ));
    }
    let tokens = tokens(sql)?;
    let Some(first) = tokens.first() else { return Ok(Request::Empty) };
    single(&tokens, sql)?;
    scan(&tokens, sql, limits)?;
    match first_word(first) {
        Allowed::Query => query(sql, &tokens, limits, catalog_parser).map(Request::Query),
        Allowed::Show => match show(&tokens) {
            Some(name) => Ok(Request::Session(Command::Show(name))),
            None => query(sql, &tokens, limits, catalog_parser).map(Request::Query),
        },
        Allowed::Session => session(sql, &tokens).map(Request::Session),
        Allowed::No(word) => Err(refused(&word).at(position(sql, first))),
    }
}

/// The last check, on the plan: no DDL, no DML, no statements, wherever they may hide.
pub fn verify(plan: &LogicalPlan) -> Result<(), QueryError> {
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(plan)
        .map_err(|_| refused("this statement"))
}

fn refused(what: &str) -> QueryError {
    QueryError::new(
        ErrorKind::Refused,
        format!(
            "{what} is not offered: SQL is read-only here (SELECT, WITH, VALUES, TABLE, EXPLAIN, SHOW, DESCRIBE)"
        ),
    )
}

fn too_complex(what: &str, limit: usize) -> QueryError {
    QueryError::new(ErrorKind::TooComplex, format!("the statement has {what}; the limit is {limit}"))
}

/// The tokens without blanks, comments and closing semicolons.
fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>, QueryError> {
    let all = Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize_with_location().map_err(|error| {
        QueryError::new(ErrorKind::Syntax, format!("syntax error: {}", error.message)).at(position_of(
            sql,
            error.location.line,
            error.location.column,
        ))
    })?;
    let mut tokens: Vec<_> =
        all.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF)).collect();
    while tokens.last().is_some_and(|token| token.token == Token::SemiColon) {
        tokens.pop();
    }
    let leading = tokens.iter().take_while(|token| token.token == Token::SemiColon).count();
    tokens.drain(..leading);
    Ok(tokens)
}

fn position(sql: &str, token: &TokenWithSpan) -> Option<usize> {
    position_of(sql, token.span.start.line, token.span.start.column)
}

fn single(tokens: &[TokenWithSpan], sql: &str) -> Result<(), QueryError> {
    match tokens.iter().find(|token| token.token == Token::SemiColon) {
        Some(token) => Err(QueryError::new(
            ErrorKind::Refused,
            "one statement at a time: remove what follows the semicolon",
        )
        .at(position(sql, token))),
        None => Ok(()),
    }
}

/// Counts what the parser and the planner recurse over.
fn scan(tokens: &[TokenWithSpan], sql: &str, limits: &Limits) -> Result<(), QueryError> {
    let (mut depth, mut cases, mut operators, mut sets, mut joins, mut explains) =
        (0_usize, 0_usize, 0, 0, 0, 0);
    // for each open parenthesis, whether it opens a call's arguments
    let mut open: Vec<bool> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let place = || position(sql, token);
        match &token.token {
            Token::LParen => open.push(at > 0 && may_call(&tokens[at - 1].token)),
            Token::RParen => drop(open.pop()),
            _ => {}
        }
        if open.len() > limits.calls && open.iter().filter(|call| **call).count() > limits.calls {
            return Err(too_complex("too many function calls inside one another", limits.calls).at(place()));
        }
        match &token.token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            Token::Word(word) if word.quote_style.is_none() => match word.keyword {
                Keyword::CASE => cases += 1,
                Keyword::END => cases = cases.saturating_sub(1),
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT | Keyword::MINUS => sets += 1,
                Keyword::JOIN => joins += 1,
                Keyword::EXPLAIN => explains += 1,
                Keyword::AND
                | Keyword::OR
                | Keyword::XOR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::IN
                | Keyword::AT
                | Keyword::COLLATE
                | Keyword::OVERLAPS
                | Keyword::INTERVAL
                | Keyword::PRIOR
                | Keyword::OPERATOR => operators += 1,
                _ => {}
            },
            Token::Word(_)
            | Token::Number(..)
            | Token::Comma
            | Token::Period
            | Token::SemiColon
            | Token::Placeholder(_)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::EscapedStringLiteral(_)
            | Token::DollarQuotedString(_) => {}
            _ => operators += 1,
        }
        if depth + cases > limits.depth {
            return Err(too_complex("parentheses or CASE nested too deeply", limits.depth).at(place()));
        }
        if operators > limits.operators {
            return Err(too_complex(
                "too many operators (IN (…) takes a long list as one)",
                limits.operators,
            )
            .at(place()));
        }
        if sets > limits.set_operations {
            return Err(too_complex("too many UNION, INTERSECT or EXCEPT", limits.set_operations).at(place()));
        }
        if joins > limits.relations {
            return Err(too_complex("too many joins", limits.relations).at(place()));
        }
        if explains > 1 {
            return Err(refused("EXPLAIN of EXPLAIN").at(place()));
        }
    }
    Ok(())
}

/// Whether a parenthesis after `token` opens the arguments of a call.
fn may_call(token: &Token) -> bool {
    use Keyword as K;
    match token {
        Token::Word(word) => !matches!(
            word.keyword,
            K::IN
                | K::AND
                | K::OR
                | K::NOT
                | K::EXISTS
                | K::FROM
                | K::JOIN
                | K::SELECT
                | K::WHERE
                | K::AS
                | K::ON
                | K::BY
                | K::UNION
                | K::ALL
                | K::EXCEPT
                | K::INTERSECT
                | K::WHEN
                | K::THEN
                | K::ELSE
                | K::VALUES
        ),
        _ => false,
    }
}

enum Allowed {
    Query,
    Show,
    Session,
    No(String),
}

fn first_word(token: &TokenWithSpan) -> Allowed {
    let word = match &token.token {
        Token::LParen => return Allowed::Query,
        Token::Word(word) if word.quote_style.is_none() => word.value.clone(),
        other => {
            // no statement begins so: let the parser say it in its words
            return if matches!(other, Token::Word(_)) {
                Allowed::No(other.to_string())
            } else {
                Allowed::Query
            };
        }
    };
    match word.to_uppercase().as_str() {
        "SELECT" | "WITH" | "VALUES" | "TABLE" | "EXPLAIN" | "DESCRIBE" | "DESC" => Allowed::Query,
        "SHOW" => Allowed::Show,
        "BEGIN" | "START" | "COMMIT" | "END" | "ROLLBACK" | "ABORT" | "SET" | "RESET" | "DISCARD"
        | "PREPARE" | "EXECUTE" | "DEALLOCATE" | "UNLISTEN" | "CLOSE" => Allowed::Session,
        _ => Allowed::No(word),
    }
}

/// Parses a query and walks its tree.
fn query(
    sql: &str,
    tokens: &[TokenWithSpan],
    limits: &Limits,
    catalog_parser: &PostgresCompatibilityParser,
) -> Result<Box<ParsedStatement>, QueryError> {
    // the parser knows TABLE inside a query only
    let table = matches!(&tokens[0].token, Token::Word(word) if word.keyword == Keyword::TABLE);
    let spelled =
        if table { tokens.get(1).map(|name| format!("SELECT * FROM {}", rest(sql, name))) } else { None };
    // what is ours, without PostgreSQL's and the information schema's own
    let tables =
        tokens.len() == 2 && matches!(&tokens[1].token, Token::Word(word) if word.keyword == Keyword::TABLES);
    let spelled = if tables && matches!(&tokens[0].token, Token::Word(word) if word.keyword == Keyword::SHOW)
    {
        let listed = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY table_name";
        Some(listed.to_owned())
    } else {
        spelled
    };
    let sql = spelled.as_deref().unwrap_or(sql);
    let parsed = if of_catalog(tokens) {
        let mut statements = catalog_parser.parse(sql).map_err(|error| syntax(&error.to_string(), sql))?;
        if statements.len() != 1 {
            return Err(QueryError::new(ErrorKind::Syntax, "syntax error: expected one statement"));
        }
        ParsedStatement::Statement(Box::new(statements.remove(0)))
    } else {
        parse(sql, limits)?
    };
    allowed(&parsed, limits)?;
    Ok(Box::new(parsed))
}

fn parse(sql: &str, limits: &Limits) -> Result<ParsedStatement, QueryError> {
    let failed = |error: datafusion::common::DataFusionError| QueryError::from_datafusion(&error, sql);
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&PostgreSqlDialect {})
        // the token scan has bounded the nesting; a level of parentheses takes the parser a few calls
        .with_recursion_limit(limits.depth * 8)
        .build()
        .map_err(failed)?
        .parse_statements()
        .map_err(failed)?;
    match (statements.pop_front(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        _ => Err(QueryError::new(ErrorKind::Syntax, "syntax error: expected one statement")),
    }
}

/// Whether the statement asks for PostgreSQL's catalog: those are rewritten to what DataFusion can plan.
fn of_catalog(tokens: &[TokenWithSpan]) -> bool {
    tokens.iter().any(|token| match &token.token {
        Token::Word(word) => {
            let name = word.value.to_ascii_lowercase();
            name.starts_with("pg_")
                || matches!(
                    name.as_str(),
                    "regclass"
                        | "regtype"
                        | "regproc"
                        | "regnamespace"
                        | "current_user"
                        | "session_user"
                        | "current_schema"
                        | "current_schemas"
                        | "current_database"
                        | "current_catalog"
                        | "version"
                        | "any"
                        | "format_type"
                        | "quote_ident"
                )
        }
        _ => false,
    })
}

fn allowed(parsed: &ParsedStatement, limits: &Limits) -> Result<(), QueryError> {
    match parsed {
        ParsedStatement::Statement(statement) => walk(statement, limits),
        ParsedStatement::Explain(explain) => match explain.statement.as_ref() {
            ParsedStatement::Statement(statement) => walk(statement, limits),
            other => Err(refused(&name(&other.to_string()))),
        },
        ParsedStatement::CopyTo(_) => Err(refused("COPY")),
        ParsedStatement::CreateExternalTable(_) => Err(refused("CREATE EXTERNAL TABLE")),
        ParsedStatement::Reset(_) => Err(refused("RESET")),
    }
}

/// The first word of a statement, for an error.
fn name(statement: &str) -> String {
    statement.split_whitespace().next().unwrap_or("this statement").to_uppercase()
}

fn walk(statement: &ast::Statement, limits: &Limits) -> Result<(), QueryError> {
    let mut visitor = Walk { weights: HashMap::new(), limit: limits.relations };
    match statement.visit(&mut visitor) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// Refuses what writes, and estimates into how many relations the statement unfolds.
struct Walk {
    /// How many relations each common table expression stands for.
    weights: HashMap<String, usize>,
    limit: usize,
}

impl Walk {
    fn weight(&self, of: &impl Visit) -> usize {
        struct Sum<'a>(&'a HashMap<String, usize>, usize);
        impl Visitor for Sum<'_> {
            type Break = ();
            fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
                let weight = self.0.get(&relation.to_string().to_lowercase()).copied().unwrap_or(1);
                self.1 = self.1.saturating_add(weight);
                ControlFlow::Continue(())
            }
        }
        let mut sum = Sum(&self.weights, 0);
        let _ = of.visit(&mut sum);
        sum.1
    }
}

impl Visitor for Walk {
    type Break = QueryError;

    fn pre_visit_statement(&mut self, statement: &ast::Statement) -> ControlFlow<QueryError> {
        use ast::Statement as S;
        match statement {
            S::Query(_)
            | S::Explain { .. }
            | S::ExplainTable { .. }
            | S::ShowVariable { .. }
            | S::ShowVariables { .. }
            | S::ShowTables { .. }
            | S::ShowColumns { .. }
            | S::ShowFunctions { .. } => ControlFlow::Continue(()),
            S::ShowCreate { .. }
            | S::ShowDatabases { .. }
            | S::ShowSchemas { .. }
            | S::ShowViews { .. }
            | S::ShowCatalogs { .. }
            | S::ShowCollation { .. }
            | S::ShowStatus { .. } => ControlFlow::Break(QueryError::new(
                ErrorKind::Unsupported,
                "this SHOW is not offered; SHOW TABLES, SHOW COLUMNS FROM …, SHOW FUNCTIONS and \\d are",
            )),
            other => ControlFlow::Break(refused(&name(&other.to_string()))),
        }
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        if writes(&query.body) {
            return ControlFlow::Break(refused("a statement that writes, inside a query,"));
        }
        if !query.locks.is_empty() {
            return ControlFlow::Break(refused("FOR UPDATE or FOR SHARE"));
        }
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            return ControlFlow::Break(QueryError::new(
                ErrorKind::Refused,
                "WITH RECURSIVE is not offered: its rows have no bound; generate_series() counts",
            ));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &ast::Select) -> ControlFlow<QueryError> {
        match select.into {
            Some(_) => ControlFlow::Break(refused("SELECT INTO")),
            None => ControlFlow::Continue(()),
        }
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        // inner queries come first, so every name that a body uses is known already
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            let weight = self.weight(&cte.query);
            let known = self.weights.entry(cte.alias.name.value.to_lowercase()).or_default();
            *known = weight.max(*known).max(1);
        }
        if self.weight(query) > self.limit {
            return ControlFlow::Break(too_complex("too many tables, with WITH unfolded", self.limit));
        }
        ControlFlow::Continue(())
    }
}

fn writes(body: &SetExpr) -> bool {
    match body {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => true,
        SetExpr::SetOperation { left, right, .. } => writes(left) || writes(right),
        _ => false,
    }
}

/// `SHOW name` of a PostgreSQL setting.
fn show(tokens: &[TokenWithSpan]) -> Option<String> {
    let words: Vec<String> =
        tokens.iter().skip(1).map(|token| token.token.to_string().to_lowercase()).collect();
    let name = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["transaction", "isolation", "level"] => "transaction_isolation".to_owned(),
        ["time", "zone"] => "timezone".to_owned(),
        [name] => (*name).to_owned(),
        _ => return None,
    };
    super::settings::known(&name).then_some(name)
}

fn session(sql: &str, tokens: &[TokenWithSpan]) -> Result<Command, QueryError> {
    let word =
        |at: usize| tokens.get(at).map(|token| token.token.to_string().to_uppercase()).unwrap_or_default();
    let bad = |at: usize| {
        let place = tokens.get(at).and_then(|token| position(sql, token));
        QueryError::new(ErrorKind::Syntax, format!("syntax error in {}", word(0))).at(place)
    };
    match word(0).as_str() {
        "BEGIN" | "START" => Ok(Command::Begin),
        "COMMIT" | "END" => Ok(Command::Commit),
        "ROLLBACK" | "ABORT" if word(1) != "PREPARED" => Ok(Command::Rollback),
        "DISCARD" => Ok(Command::Discard),
        "UNLISTEN" => Ok(Command::Ignored("UNLISTEN")),
        "CLOSE" => Ok(Command::Ignored("CLOSE CURSOR")),
        "RESET" if word(1) == "ALL" => Ok(Command::Reset(None)),
        "RESET" => match identifier(tokens.get(1)) {
            Some(name) if tokens.len() == 2 => Ok(Command::Reset(Some(name))),
            _ => Err(bad(1)),
        },
        "SET" => set(tokens).ok_or_else(|| bad(1)),
        "DEALLOCATE" => {
            let at = if word(1) == "PREPARE" { 2 } else { 1 };
            match identifier(tokens.get(at)) {
                Some(name) if name == "all" => Ok(Command::Deallocate(None)),
                Some(name) => Ok(Command::Deallocate(Some(name))),
                None => Err(bad(at)),
            }
        }
        "PREPARE" => {
            let name = identifier(tokens.get(1)).ok_or_else(|| bad(1))?;
            let is_as = |token: &TokenWithSpan| matches!(&token.token, Token::Word(word) if word.keyword == Keyword::AS);
            let at = tokens.iter().position(is_as).ok_or_else(|| bad(2))?;
            let body = tokens.get(at + 1).ok_or_else(|| bad(at))?;
            Ok(Command::Prepare { name, sql: rest(sql, body) })
        }
        "EXECUTE" => {
            let name = identifier(tokens.get(1)).ok_or_else(|| bad(1))?;
            let arguments = match (tokens.get(2), tokens.last()) {
                (None, _) => None,
                (Some(open), Some(close))
                    if open.token == Token::LParen && close.token == Token::RParen && tokens.len() > 4 =>
                {
                    let from = position(sql, &tokens[3]).unwrap_or(1) - 1;
                    let to = position(sql, close).unwrap_or(1) - 1;
                    Some(sql.chars().skip(from).take(to.saturating_sub(from)).collect())
                }
                (Some(open), Some(close)) if open.token == Token::LParen && close.token == Token::RParen => {
                    None
                }
                _ => return Err(bad(2)),
            };
            Ok(Command::Execute { name, arguments })
        }
        _ => Err(refused(&word(0))),
    }
}

/// The text from `token` to the end.
fn rest(sql: &str, token: &TokenWithSpan) -> String {
    sql.chars().skip(position(sql, token).unwrap_or(1) - 1).collect()
}

fn identifier(token: Option<&TokenWithSpan>) -> Option<String> {
    match &token?.token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_lowercase()),
        Token::Word(word) => Some(word.value.clone()),
        _ => None,
    }
}

/// `SET [SESSION|LOCAL] name {=|TO} value`, `SET TIME ZONE value`, `SET [SESSION CHARACTERISTICS AS] TRANSACTION …`,
/// `SET NAMES value`.
fn set(tokens: &[TokenWithSpan]) -> Option<Command> {
    let text =
        |at: usize| tokens.get(at).map(|token| token.token.to_string().to_lowercase()).unwrap_or_default();
    let value = |from: usize| -> Option<String> {
        let parts: Vec<String> = tokens.get(from..)?.iter().map(|token| unquoted(&token.token)).collect();
        (!parts.is_empty()).then(|| parts.join(" ").replace(" , ", ", "))
    };
    let mut at = 1;
    if text(at) == "session" && text(at + 1) == "characteristics" {
        return Some(Command::Ignored("SET"));
    }
    if matches!(text(at).as_str(), "session" | "local") {
        at += 1;
    }
    match text(at).as_str() {
        "transaction" => return Some(Command::Ignored("SET")),
        "time" if text(at + 1) == "zone" => {
            return Some(Command::Set { name: "timezone".to_owned(), value: value(at + 2)? });
        }
        "names" => return Some(Command::Set { name: "client_encoding".to_owned(), value: value(at + 1)? }),
        _ => {}
    }
    let mut name = identifier(tokens.get(at))?;
    at += 1;
    while text(at) == "." {
        name = format!("{name}.{}", identifier(tokens.get(at + 1))?);
        at += 2;
    }
    matches!(text(at).as_str(), "=" | "to").then_some(())?;
    Some(Command::Set { name, value: value(at + 1)? })
}

fn unquoted(token: &Token) -> String {
    match token {
        Token::SingleQuotedString(text) | Token::DoubleQuotedString(text) => text.clone(),
        Token::Word(word) => word.value.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
