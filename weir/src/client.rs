//! The client side: `weir sql` and `weir status` over HTTP.

use std::io::{Cursor, Read, Write};
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use arrow::json::writer::LineDelimitedWriter;
use arrow::util::pretty::pretty_format_batches;

use crate::cli::{Format, SqlArgs, StatusArgs};
use crate::failure::Failure;

/// Rows that a table shows at most; a person who wants more wants another format.
const TABLE_ROWS: usize = 10_000;

/// Asks one query and prints the answer on stdout.
pub(crate) async fn sql(args: SqlArgs) -> Result<(), Failure> {
    let query = if args.query == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| Failure::failed(format!("cannot read the query from stdin: {error}")))?;
        text
    } else {
        args.query
    };
    let accept = match args.format {
        Format::Csv => "text/csv",
        Format::Table | Format::Jsonl => "application/vnd.apache.arrow.stream",
    };
    let url = format!("{}/api/v1/sql", args.url.trim_end_matches('/'));
    let body = serde_json::json!({ "query": query }).to_string();
    let request = http()?.post(&url).header("content-type", "application/json").header("accept", accept);
    let answer = request.body(body).send().await.map_err(|error| unreachable(&url, &error))?;
    let status = answer.status();
    let bytes = answer.bytes().await.map_err(|error| unreachable(&url, &error))?;
    if !status.is_success() {
        return Err(Failure::failed(error_text(&bytes)));
    }
    let mut out = std::io::stdout().lock();
    let written = match args.format {
        Format::Csv => out.write_all(&bytes),
        Format::Table | Format::Jsonl => print_arrow(&bytes, args.format, &mut out)?,
    };
    match written.and_then(|()| out.flush()) {
        // `weir sql … | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::failed(format!("cannot write the answer: {error}"))),
        Ok(()) => Ok(()),
    }
}

fn print_arrow(bytes: &[u8], format: Format, out: &mut impl Write) -> Result<std::io::Result<()>, Failure> {
    let broken = |error| Failure::failed(format!("the answer is no Arrow stream: {error}"));
    let reader = StreamReader::try_new(Cursor::new(bytes), None).map_err(broken)?;
    if format == Format::Jsonl {
        let mut writer = LineDelimitedWriter::new(out);
        for batch in reader {
            let batch = batch.map_err(broken)?;
            if writer.write(&batch).is_err() {
                return Ok(Err(std::io::ErrorKind::BrokenPipe.into()));
            }
        }
        return Ok(writer.finish().map_err(std::io::Error::other));
    }
    let schema = reader.schema();
    let (mut batches, mut rows, mut shown) = (Vec::new(), 0, 0);
    for batch in reader {
        let batch = batch.map_err(broken)?;
        rows += batch.num_rows();
        let take = batch.num_rows().min(TABLE_ROWS - shown);
        shown += take;
        batches.push(batch.slice(0, take));
    }
    if batches.is_empty() {
        batches.push(arrow::array::RecordBatch::new_empty(schema));
    }
    let table = pretty_format_batches(&batches).map_err(broken)?;
    let more = if rows > shown { format!(", the first {shown} shown") } else { String::new() };
    Ok(writeln!(out, "{table}\n({rows} row{}{more})", if rows == 1 { "" } else { "s" }))
}

/// Prints how the weir at `url` is: its readiness, its exporters and its ledger.
pub(crate) async fn status(args: StatusArgs) -> Result<(), Failure> {
    let url = args.url.trim_end_matches('/').to_owned();
    let ready =
        http()?.get(format!("{url}/readyz")).send().await.map_err(|error| unreachable(&url, &error))?;
    let is_ready = ready.status().is_success();
    let reason = ready.text().await.unwrap_or_default();
    let mut out = std::io::stdout().lock();
    let state = if is_ready { "ready".to_owned() } else { format!("not ready: {}", reason.trim()) };
    writeln!(out, "{url} is {state}").map_err(Failure::output)?;
    drop(out);
    sql(SqlArgs {
        url,
        format: Format::Table,
        query: "select * from exporters order by 1, 2 limit 100".to_owned(),
    })
    .await?;
    if is_ready { Ok(()) } else { Err(Failure::failed("not ready".to_owned())) }
}

fn http() -> Result<reqwest::Client, Failure> {
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .no_proxy()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start an HTTP client: {error}")))
}

fn unreachable(url: &str, error: &reqwest::Error) -> Failure {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        reason = inner.to_string();
        source = inner.source();
    }
    Failure::failed(format!("cannot reach weir at {url}: {reason}; is `weir run` up, and is --url right?"))
}

/// The text of an error answer: `{"error": {"message": …}}`, or whatever came.
fn error_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).trim().to_owned();
    let json: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let message = json.as_ref().and_then(|json| {
        let error = &json["error"];
        error["message"].as_str().or(error.as_str()).map(str::to_owned)
    });
    message.unwrap_or(text)
}
