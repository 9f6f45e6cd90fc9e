//! HTTP: SQL in three formats, the tables, metrics and health.
//!
//! `POST /api/v1/sql` takes `{"query": "…"}` and answers by `Accept`: `application/json` (an array of one object a row;
//! addresses as text, times as RFC 3339, integers as numbers, bounded in size), `text/csv` with a header line, or
//! `application/vnd.apache.arrow.stream` (addresses as text, for readers that know nothing of weir). CSV and Arrow
//! stream. An error is `{"error": {"kind", "message", "sqlstate", "position"}}`; one that comes after the first rows
//! breaks the connection off, so that no short answer passes for a whole one.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::csv::WriterBuilder as CsvBuilder;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::arrow::json::writer::{JsonArray, WriterBuilder};
use futures::{StreamExt, TryStreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use weir_schemas::Table;

use super::metrics::{RequestLabels, ask_collector, merge, text_format};
use super::values::{flat_batch, readable_batch, readable_schema};
use super::{HttpConfig, Shared};
use crate::sql::{Answer, Done, Door, ErrorKind, QueryError, Rows};

/// Above the longest statement there is JSON around it, with escapes.
const BODY_BYTES: usize = 2 << 20;
const JSON: &str = "application/json";
const CSV: &str = "text/csv; charset=utf-8";
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
const ARROW: &str = "application/vnd.apache.arrow.stream";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Served {
    shared: Arc<Shared>,
    config: Arc<HttpConfig>,
    stop: CancellationToken,
}

/// Serves HTTP on `listener` until `shutdown`; then running queries are stopped.
pub async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let door = Served { shared, config: Arc::new(config), stop: shutdown.clone() };
    let router = Router::new()
        .route("/", get(index))
        .route("/api/v1/sql", post(sql))
        .route("/api/v1/tables", get(tables))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "no such page; GET / says what is here\n") })
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn_with_state(door.clone(), count))
        .with_state(door);
    let stopped = async move {
        shutdown.cancelled().await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "HTTP ended");
    }
}

/// Counts requests and bounds those in progress.
async fn count(State(door): State<Served>, request: Request, next: Next) -> Response {
    const ROUTES: [&str; 6] = ["/", "/api/v1/sql", "/api/v1/tables", "/metrics", "/healthz", "/readyz"];
    let path = request.uri().path();
    let route = ROUTES.into_iter().find(|route| *route == path).unwrap_or("other");
    let metrics = &door.shared.metrics;
    let active = metrics.http_active.inc() + 1;
    let response = if usize::try_from(active).unwrap_or(0) > door.config.requests {
        failed(&QueryError::new(
            ErrorKind::Busy,
            format!("{} requests are in progress", door.config.requests),
        ))
    } else {
        next.run(request).await
    };
    metrics.http_active.dec();
    let labels = RequestLabels { route, status: response.status().as_u16() };
    metrics.http_requests.get_or_create(&labels).inc();
    response
}

fn failed(error: &QueryError) -> Response {
    let status = StatusCode::from_u16(error.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({ "error": {
        "kind": error.kind.name(),
        "message": error.message,
        "sqlstate": error.kind.sqlstate(),
        "position": error.position,
    }});
    (status, [(header::CONTENT_TYPE, JSON)], format!("{body}\n")).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    query: String,
}

/// The formats of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
    Arrow,
}

impl Format {
    /// The first type of `Accept` that we have, by weight; JSON where nothing is asked for.
    fn of(headers: &HeaderMap) -> Option<Format> {
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("*/*");
        let mut wanted: Vec<(f32, Format)> = accept
            .split(',')
            .filter_map(|part| {
                let mut parts = part.split(';').map(str::trim);
                let format = match parts.next()?.to_ascii_lowercase().as_str() {
                    "application/json" | "application/*" | "*/*" => Format::Json,
                    "text/csv" | "text/*" => Format::Csv,
                    "application/vnd.apache.arrow.stream" => Format::Arrow,
                    _ => return None,
                };
                let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
                (weight > 0.0).then_some((weight, format))
            })
            .collect();
        // stable: of equal weights the first stays first
        wanted.sort_by(|a, b| b.0.total_cmp(&a.0));
        wanted.first().map(|(_, format)| *format)
    }

    const fn content_type(self) -> &'static str {
        match self {
            Format::Json => JSON,
            Format::Csv => CSV,
            Format::Arrow => ARROW,
        }
    }
}

async fn sql(
    State(door): State<Served>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return failed(&QueryError::new(ErrorKind::TooLong, rejection.body_text())),
    };
    match answer(&door, &headers, &body).await {
        Ok(response) => response,
        Err(error) => failed(&error),
    }
}

async fn answer(door: &Served, headers: &HeaderMap, body: &[u8]) -> Result<Response, QueryError> {
    let Some(format) = Format::of(headers) else {
        return Ok((StatusCode::NOT_ACCEPTABLE, format!("{JSON}, text/csv and {ARROW} are offered\n"))
            .into_response());
    };
    let query: Query = serde_json::from_slice(body).map_err(|error| {
        QueryError::new(ErrorKind::Syntax, format!("the body is {{\"query\": \"…\"}} in JSON: {error}"))
    })?;
    let session = door.shared.engine()?.session(Door::Http);
    // dropped with the request: a client that goes away stops its query
    let cancel = door.stop.child_token();
    let rows = match session.execute(&query.query, &cancel).await? {
        Answer::Rows(rows) => rows,
        Answer::Done(Done::Nothing) => {
            return Err(QueryError::new(ErrorKind::Syntax, "there is no statement"));
        }
        Answer::Done(_) => return Ok(([(header::CONTENT_TYPE, JSON)], "[]\n").into_response()),
    };
    let body = match format {
        Format::Json => Body::from(json_rows(rows, &door.config).await?),
        Format::Csv => streamed(rows, |schema| CsvChunks { header: Some(schema) }).await?,
        Format::Arrow => streamed(rows, ArrowChunks::new).await?,
    };
    Ok(([(header::CONTENT_TYPE, format.content_type())], body).into_response())
}

fn internal(error: ArrowError) -> QueryError {
    QueryError::new(ErrorKind::Internal, format!("the answer cannot be written: {error}"))
}

/// All rows as one JSON array, within its bounds.
async fn json_rows(mut rows: Rows, config: &HttpConfig) -> Result<Vec<u8>, QueryError> {
    let schema = readable_schema(&rows.schema());
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(Vec::new());
    let mut count = 0;
    while let Some(batch) = rows.try_next().await? {
        count += batch.num_rows();
        if count > config.json_rows {
            return Err(too_large(format!("{} rows", config.json_rows)));
        }
        // a piece at a time: one batch may be much larger than the bound
        for at in (0..batch.num_rows()).step_by(1_024) {
            let piece = batch.slice(at, (batch.num_rows() - at).min(1_024));
            writer.write(&readable_batch(&piece, &schema).map_err(internal)?).map_err(internal)?;
            if writer.get_ref().len() > config.json_bytes {
                return Err(too_large(format!("{} bytes", config.json_bytes)));
            }
        }
    }
    writer.finish().map_err(internal)?;
    let mut body = writer.into_inner();
    if body.is_empty() {
        body.extend_from_slice(b"[]");
    }
    body.push(b'\n');
    Ok(body)
}

fn too_large(limit: String) -> QueryError {
    QueryError::new(
        ErrorKind::AnswerTooLarge,
        format!("the answer has more than {limit}: add LIMIT, or ask for text/csv or {ARROW}, which stream"),
    )
}

/// What writes a format piece by piece.
trait Chunks: Send + 'static {
    fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ArrowError>;
    /// What follows the last batch.
    fn end(&mut self) -> Result<Vec<u8>, ArrowError>;
}

struct CsvChunks {
    /// Not written yet.
    header: Option<SchemaRef>,
}

impl CsvChunks {
    fn write(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        let mut text = Vec::new();
        let mut writer = CsvBuilder::new().with_header(self.header.take().is_some()).build(&mut text);
        writer.write(&flat_batch(batch)?)?;
        drop(writer);
        Ok(text)
    }
}

impl Chunks for CsvChunks {
    fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        self.write(batch)
    }

    fn end(&mut self) -> Result<Vec<u8>, ArrowError> {
        match self.header.clone() {
            Some(schema) => self.write(&RecordBatch::new_empty(schema)),
            None => Ok(Vec::new()),
        }
    }
}

struct ArrowChunks {
    schema: SchemaRef,
    /// None after the end; the error of its making waits for the first piece.
    writer: Option<StreamWriter<Vec<u8>>>,
}

impl ArrowChunks {
    fn new(schema: SchemaRef) -> Self {
        let schema = readable_schema(&schema);
        ArrowChunks { writer: StreamWriter::try_new(Vec::new(), &schema).ok(), schema }
    }

    fn writer(&mut self) -> Result<&mut StreamWriter<Vec<u8>>, ArrowError> {
        self.writer.as_mut().ok_or_else(|| ArrowError::IpcError("the schema cannot be written".to_owned()))
    }
}

impl Chunks for ArrowChunks {
    fn batch(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
        let batch = readable_batch(batch, &self.schema)?;
        let writer = self.writer()?;
        writer.write(&batch)?;
        Ok(std::mem::take(writer.get_mut()))
    }

    fn end(&mut self) -> Result<Vec<u8>, ArrowError> {
        let writer = self.writer()?;
        writer.finish()?;
        Ok(std::mem::take(writer.get_mut()))
    }
}

/// A body that is written as the rows come. Its first piece is waited for, so that an early error has its status.
async fn streamed<C: Chunks>(rows: Rows, chunks: impl FnOnce(SchemaRef) -> C) -> Result<Body, QueryError> {
    let chunks = chunks(rows.schema());
    let mut pieces = futures::stream::try_unfold(Some((rows, chunks)), |state| async {
        let Some((mut rows, mut chunks)) = state else { return Ok(None) };
        match rows.try_next().await? {
            Some(batch) => {
                let piece = chunks.batch(&batch).map_err(internal)?;
                Ok::<_, QueryError>(Some((Bytes::from(piece), Some((rows, chunks)))))
            }
            None => Ok(Some((Bytes::from(chunks.end().map_err(internal)?), None))),
        }
    })
    .boxed();
    let first = pieces.try_next().await?;
    let first = futures::stream::iter(first.map(Ok));
    Ok(Body::from_stream(first.chain(pieces)))
}

/// The tables with their columns and what they mean.
async fn tables(State(door): State<Served>) -> Response {
    let engine = match door.shared.engine() {
        Ok(engine) => engine,
        Err(error) => return failed(&error),
    };
    let tables: Vec<_> = engine
        .tables()
        .into_iter()
        .map(|(name, schema)| json!({ "name": name, "columns": columns(&name, &schema) }))
        .collect();
    let functions: Vec<_> = crate::sql::functions::reference()
        .into_iter()
        .map(|(name, doc)| json!({ "name": name, "doc": doc }))
        .collect();
    axum::Json(json!({ "tables": tables, "functions": functions })).into_response()
}

fn columns(table: &str, schema: &Schema) -> Vec<serde_json::Value> {
    let documented = Table::from_name(table);
    let doc = |column: &str| {
        documented
            .into_iter()
            .chain(Table::ALL)
            .find_map(|table| table.column(column))
            .map(|column| column.doc)
            .or_else(|| derived(column))
    };
    let column = |field: &datafusion::arrow::datatypes::FieldRef| json!({ "name": field.name(), "type": super::values::pg_type(field).name(), "doc": doc(field.name()) });
    schema.fields().iter().map(column).collect()
}

/// Columns that views derive.
fn derived(column: &str) -> Option<&'static str> {
    Some(match column {
        "noticed_at" => "when the aggregator met it",
        "log_partition" => "partition of the log",
        "first_offset" => "first of the offsets that are in no table",
        "last_offset" => "last of them",
        "reason" => "why: gone from the log before it was read, or what is wrong with the message",
        "dscp" => "differentiated services code point: the upper six bits of tos",
        "post_dscp" => "code point after the box re-marked it",
        "ecn" => "the lower two bits of tos",
        "est_bytes" => {
            "bytes · sampling rate: the estimate of what crossed the wire (unknown rates count as 1)"
        }
        "est_packets" => "packets · sampling rate",
        "duration_ms" => "end less start",
        "window_start" => "start of the window, UTC",
        "unknown_sampling_flows" => "flows whose sampling rate is unknown, counted as 1",
        "dimension" => "what is ranked: source, destination, conversation …",
        "class" => "name of the DSCP class",
        "loss_ratio" => "share of what the exporter says it sent that did not arrive",
        "first_seen" => "first interval",
        "last_seen" => "when it was last heard of",
        "sequence_received" => "sequence_expected less sequence_lost",
        "if_name" => "name of the interface, from options data or sFlow",
        "if_description" => "its description, from options data",
        "vrf_id" => "VRF id, as in vrf_in and vrf_out of flows",
        "vrf_name" => "name of the VRF, from options data",
        "app_description" => "what the exporter says about the application",
        "app_category" => "its category",
        _ => return None,
    })
}

/// OpenMetrics to who asks for it (Prometheus does), else the older text format (`promtool check metrics`, people).
async fn metrics(State(door): State<Served>, headers: HeaderMap) -> Response {
    if let Some(refresh) = door.shared.refresh.read().as_ref() {
        refresh();
    }
    let mut own = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut own, &door.shared.registry.read()) {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response();
    }
    let collector = match &door.shared.collector {
        Some(socket) => match ask_collector(socket, "/metrics").await {
            Ok((200, text)) => text,
            Ok((status, _)) => {
                tracing::warn!(status, "the collector gives no metrics");
                String::new()
            }
            // it is another machine's, or just restarts: up to who reads the metrics to miss it
            Err(_) => String::new(),
        },
        None => String::new(),
    };
    let page = merge(&[&own, &collector]);
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accept.contains("application/openmetrics-text") {
        return ([(header::CONTENT_TYPE, OPENMETRICS)], page).into_response();
    }
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], text_format(&page)).into_response()
}

async fn readyz(State(door): State<Served>) -> Response {
    match not_ready(&door.shared).await {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn not_ready(shared: &Shared) -> Option<String> {
    if shared.engine.read().is_none() {
        return Some(shared.closed());
    }
    let problem = shared.problem.read().as_ref().and_then(|problem| problem());
    if problem.is_some() {
        return problem;
    }
    let socket = shared.collector.as_ref().filter(|_| shared.collector_expected)?;
    match ask_collector(socket, "/readyz").await {
        Ok((200, _)) => None,
        Ok((_, text)) => {
            let text = text.trim();
            Some(format!("collector: {}", text.strip_prefix("not ready: ").unwrap_or(text)))
        }
        Err(error) => Some(format!("collector: {} does not answer: {error}", socket.display())),
    }
}

async fn index(State(door): State<Served>) -> Result<Html<String>, Infallible> {
    let listed = door.shared.engine().map(|engine| engine.tables()).unwrap_or_default();
    let names: Vec<_> = listed.iter().map(|(name, _)| format!("<code>{name}</code>")).collect();
    let tables = if names.is_empty() { "not open yet".to_owned() } else { names.join(", ") };
    Ok(Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>weir</title>\
         <style>body{{font:16px/1.5 system-ui;max-width:44em;margin:3em auto;padding:0 1em}}</style>\
         <h1>weir {version}</h1><p>Measures the flow of a network. Here are:</p><ul>\
         <li><code>POST /api/v1/sql</code> with <code>{{\"query\": \"select count(*) from flows\"}}</code>: JSON, or CSV \
         and Arrow by <code>Accept</code>\
         <li><a href=/api/v1/tables>/api/v1/tables</a>: tables, columns and functions\
         <li><a href=/metrics>/metrics</a>, <a href=/readyz>/readyz</a>, <a href=/healthz>/healthz</a></ul>\
         <p>Tables: {tables}.</p>",
        version = env!("CARGO_PKG_VERSION"),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_heaviest_that_we_have() {
        for (accept, want) in [
            ("*/*", Some(Format::Json)),
            ("application/json", Some(Format::Json)),
            ("text/csv", Some(Format::Csv)),
            ("text/csv;q=0.5, application/json", Some(Format::Json)),
            ("text/html, text/csv;q=0.9, */*;q=0.1", Some(Format::Csv)),
            ("application/vnd.apache.arrow.stream", Some(Format::Arrow)),
            ("image/png", None),
            ("application/json;q=0", None),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(Format::of(&headers), want, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()), Some(Format::Json));
    }
}
