//! `weir decode --explain`: datagrams field by field, as text for people or as JSON lines.

use std::fmt::Write as _;
use std::io::Write;

use serde::Serialize;
use weir_collector::explain::{Explained, Explainer, Kind, Line};
use weir_collector::pcap::Datagram;
use weir_schemas::Table;

use super::{DecodeArgs, Format, Seen, ToolError, decode_config, meta_of, output, summary};
use crate::tools::input::Input;
use crate::tools::rows;

/// Octets of a field that are shown in text.
const MAX_OCTETS: usize = 16;
/// How wide the columns are, where they are not wider.
const OCTETS_WIDTH: usize = 24;
const NAME_WIDTH: usize = 34;
const VALUE_WIDTH: usize = 30;

/// Runs `weir decode --explain`.
pub(super) fn run(args: &DecodeArgs) -> Result<(), ToolError> {
    let mut input = Input::open(&args.file)?;
    let mut out = output(args)?;
    let mut explainer = Explainer::new(decode_config(args)?);
    let mut seen = Seen::default();
    let mut text = Vec::new();
    let ended = input.each_flow(args.port, &mut seen.other, |datagram| {
        let explained = explainer.explain(datagram.payload, &meta_of(datagram));
        seen.sets_pending += u64::from(explained.outcome.sets_pending);
        text.clear();
        match args.format {
            Some(Format::Jsonl) => json(datagram, &explained, &mut text),
            _ => people(datagram, &explained, &mut text),
        }
        out.write_all(&text).map_err(ToolError::output)
    });
    input.finish();
    let flushed = out.flush().map_err(ToolError::output);
    if !args.quiet {
        summary(&input, explainer.decoder(), &seen);
    }
    ended.and(flushed)
}

/// The rows of a table as JSON, one a line.
fn rows_of(explained: &Explained) -> Vec<(Table, Vec<String>)> {
    let mut all = Vec::new();
    for (table, batch) in Table::ALL.iter().zip(&explained.rows) {
        let Some(batch) = batch else { continue };
        let mut text = Vec::new();
        rows::write_json_lines(*table, batch, 0..batch.num_rows(), &mut text);
        let text = String::from_utf8_lossy(&text);
        all.push((*table, text.lines().map(str::to_owned).collect()));
    }
    all
}

fn time(us: i64) -> String {
    let mut text = Vec::new();
    rows::write_instant(us, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// `10.0.0.1:2055`, `[2001:db8::1]:2055`
fn end(address: weir_schemas::Address, port: u16) -> String {
    std::net::SocketAddr::new(address.ip(), port).to_string()
}

fn people(datagram: &Datagram<'_>, explained: &Explained, out: &mut Vec<u8>) {
    let mut text = String::new();
    // writing to memory does not fail
    let _ = writeln!(
        text,
        "datagram {}  {}  {} → {}  {}  {} octets",
        explained.number,
        time(datagram.time_us),
        end(datagram.src, datagram.src_port),
        end(datagram.dst, datagram.dst_port),
        explained.protocol,
        datagram.payload.len(),
    );
    for line in &explained.lines {
        one(line, datagram.payload, &mut text);
    }
    for (table, rows) in rows_of(explained) {
        for (number, row) in rows.iter().enumerate() {
            let _ = writeln!(text, "  row {} of {}: {row}", number + 1, table.name());
        }
    }
    text.push('\n');
    out.extend_from_slice(text.as_bytes());
}

fn octets(line: &Line, payload: &[u8]) -> String {
    // of a set that waited the octets are in another datagram
    if line.held || line.length == 0 {
        return String::new();
    }
    let all = payload.get(line.offset..line.offset + line.length).unwrap_or_default();
    let mut text: String = all.iter().take(MAX_OCTETS).map(|octet| format!("{octet:02x}")).collect();
    if all.len() > MAX_OCTETS {
        text.push('…');
    }
    text
}

fn one(line: &Line, payload: &[u8], text: &mut String) {
    let indent = "  ".repeat(usize::from(line.depth));
    let offset = if line.held { format!("+{}", line.offset) } else { line.offset.to_string() };
    let rule = line.rule.as_ref().map(|rule| format!("  ; {rule}")).unwrap_or_default();
    let column = line.column.as_ref().map(|column| format!("  → {column}")).unwrap_or_default();
    let value = line.value.as_deref().unwrap_or_default();
    let mut written = match line.kind {
        Kind::Heading => {
            let value = if value.is_empty() { String::new() } else { format!(": {value}") };
            format!("  {offset:>5}  {indent}{}{value}{column}{rule}", line.name)
        }
        Kind::Note => {
            let value = if value.is_empty() { String::new() } else { format!(": {value}") };
            format!("         {indent}· {}{value}{column}{rule}", line.name)
        }
        Kind::Field | Kind::Problem => {
            let mark = if line.kind == Kind::Problem { "!! " } else { "" };
            let name = match &line.element {
                Some(element) if element.enterprise != 0 => {
                    format!("{mark}{} ({}:{})", line.name, element.enterprise, element.number)
                }
                Some(element) => format!("{mark}{} ({})", line.name, element.number),
                None => format!("{mark}{}", line.name),
            };
            let octets = octets(line, payload);
            let octets =
                if line.length > MAX_OCTETS { format!("{octets} ({} octets)", line.length) } else { octets };
            format!(
                "  {offset:>5}  {indent}{octets:<OCTETS_WIDTH$}  {name:<NAME_WIDTH$}  {value:<VALUE_WIDTH$}{column}{rule}"
            )
        }
    };
    written.truncate(written.trim_end().len());
    text.push_str(&written);
    text.push('\n');
}

/// A line with its octets.
#[derive(Serialize)]
struct JsonLine<'a> {
    #[serde(skip_serializing_if = "String::is_empty")]
    octets: String,
    depth: u16,
    #[serde(flatten)]
    line: &'a Line,
}

#[derive(Serialize)]
struct JsonDatagram<'a> {
    datagram: u64,
    time: String,
    source: String,
    destination: String,
    protocol: &'a str,
    length: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<&'static str>,
    lines: Vec<JsonLine<'a>>,
}

fn json(datagram: &Datagram<'_>, explained: &Explained, out: &mut Vec<u8>) {
    let payload = datagram.payload;
    let lines = explained.lines.iter().map(|line| {
        let bytes = match line.kind {
            Kind::Field | Kind::Problem if !line.held => {
                payload.get(line.offset..line.offset + line.length).unwrap_or_default()
            }
            _ => &[],
        };
        let octets = bytes.iter().map(|octet| format!("{octet:02x}")).collect();
        JsonLine { octets, depth: line.depth, line }
    });
    let rows: Vec<_> = rows_of(explained).into_iter().flat_map(|(_, rows)| rows).collect();
    let value = JsonDatagram {
        datagram: explained.number,
        time: time(datagram.time_us),
        source: end(datagram.src, datagram.src_port),
        destination: end(datagram.dst, datagram.dst_port),
        protocol: explained.protocol,
        length: payload.len(),
        rejected: explained.outcome.rejected.map(|reason| reason.as_str()),
        lines: lines.collect(),
    };
    // a structure of text and numbers is JSON; the rows are JSON already and go in before its end
    if serde_json::to_writer(&mut *out, &value).is_ok() {
        out.pop_if(|last| *last == b'}');
        out.extend_from_slice(format!(",\"rows\":[{}]}}\n", rows.join(",")).as_bytes());
    }
}
