//! `weir decode`: the records of a capture as JSON lines, CSV or Arrow; explained field by field (`--explain`), or compared
//! with a second decoder (`--second-opinion`).

mod explain;
mod second_opinion;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::ipc::writer::StreamWriter;
use clap::{Args, ValueEnum};
use weir_collector::decode::{Batches, DatagramMeta, DecodeConfig, Decoder, RejectReason, SharedState};
use weir_collector::pcap::Datagram;
use weir_schemas::Table;

use super::ToolError;
use super::input::Input;
use super::rows;
use crate::config::Config;

/// Rows that wait for a batch of their own kind, and bytes of text that wait for the output.
const BATCH_ROWS: usize = 8_192;
const TEXT_BYTES: usize = 256 << 10;
const SECOND_US: i64 = 1_000_000;

/// What `--format` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people: `--explain` and `--second-opinion` only, where it is the default.
    Text,
    /// One JSON object a record (`--explain`: a datagram; `--second-opinion`: a difference), in wire order, all tables.
    /// The default.
    Jsonl,
    /// One table, with a header line and all its columns.
    Csv,
    /// One table as an Arrow IPC stream, with the types that SQL has.
    Arrow,
}

/// Decode the NetFlow, IPFIX and sFlow datagrams of a capture.
#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// The capture (pcap or pcapng); `-` reads stdin
    #[arg(value_name = "FILE")]
    pub(crate) file: String,

    /// What to print
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,

    /// Print every datagram field by field: offset, octets, element, value, column and the rule that was applied, then
    /// the rows that came of it
    #[arg(long, conflicts_with_all = ["second_opinion", "table", "stats"])]
    pub(crate) explain: bool,

    /// Decode by netflow_parser, too, and print every difference: exit status 0 where there is none or each has its
    /// explanation, 1 where one has none. NetFlow v5, v7, v9 and IPFIX; netflow_parser knows no sFlow
    #[arg(long, conflicts_with_all = ["table", "stats"])]
    pub(crate) second_opinion: bool,

    /// Only this table (csv and arrow: `flows` unless given): flows, nat_events, discards, interface_counters,
    /// host_counters, queue_counters, options, exporter_stats, exporter_events
    #[arg(long, value_parser = parse_table)]
    pub(crate) table: Option<Table>,

    /// Only datagrams sent to this UDP port (else all that look like a flow protocol)
    #[arg(long)]
    pub(crate) port: Option<u16>,

    /// Print the rows of exporter_stats and exporter_events, too
    #[arg(long)]
    pub(crate) stats: bool,

    /// Decode as this configuration says (its section `decode`)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Take the information elements of this file, too (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) elements: Vec<PathBuf>,

    /// Write to this file instead of stdout
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// No summary on stderr
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

fn parse_table(name: &str) -> Result<Table, String> {
    Table::from_name(name).ok_or_else(|| {
        let known: Vec<_> = Table::ALL.iter().map(|table| table.name()).collect();
        format!("there is no table `{name}`; there are {}", known.join(", "))
    })
}

/// Runs the command.
pub(crate) fn run(args: &DecodeArgs) -> Result<(), ToolError> {
    if args.explain || args.second_opinion {
        if matches!(args.format, Some(Format::Csv | Format::Arrow)) {
            let message = "--explain and --second-opinion print text or jsonl (--format)";
            return Err(ToolError::Usage(message.into()));
        }
        return if args.explain { explain::run(args) } else { second_opinion::run(args) };
    }
    if args.format == Some(Format::Text) {
        let message = "--format text is for --explain and --second-opinion; records are jsonl, csv or arrow";
        return Err(ToolError::Usage(message.into()));
    }
    let mut input = Input::open(&args.file)?;
    let out = output(args)?;
    let mut printer = Printer::new(args, out)?;
    let config = decode_config(args)?;
    let shared = SharedState::of(&config).map_err(|error| ToolError::Usage(error.to_string()))?;
    let mut decoder = Decoder::new(Arc::new(config), Arc::new(shared));
    let mut seen = Seen::default();
    let ended = decode_all(args, &mut input, &mut decoder, &mut printer, &mut seen);
    input.finish();
    // what was decoded before a damaged frame is printed in any case
    let finished = printer.finish();
    if !args.quiet {
        summary(&input, &decoder, &seen);
    }
    ended.and(finished)
}

/// How captures are decoded: as the section `decode` of a configuration says, with the elements of further files.
fn decode_config(args: &DecodeArgs) -> Result<DecodeConfig, ToolError> {
    let mut config = match &args.config {
        None => DecodeConfig::default(),
        // read whole: a mistake elsewhere in it may be a key of this section
        Some(path) => Config::load(Some(path)).map_err(|error| ToolError::Usage(error.to_string()))?.decode,
    };
    config.elements.extend_from_slice(&args.elements);
    // a capture may be years old: times are printed as the exporter gave them
    config.clock_check = false;
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(ToolError::Usage(format!("decode.{}", problems.join("; decode."))));
    }
    Ok(config)
}

/// What the summary tells beside the decoder's counters.
#[derive(Debug, Default)]
struct Seen {
    /// UDP datagrams of other protocols.
    other: u64,
    sets_pending: u64,
}

/// Where the output goes.
fn output(args: &DecodeArgs) -> Result<Box<dyn Write>, ToolError> {
    Ok(match &args.output {
        None => Box::new(io::stdout().lock()),
        Some(path) => {
            let failed = ToolError::failed(format!("cannot write {}", path.display()));
            Box::new(BufWriter::new(File::create(path).map_err(failed)?))
        }
    })
}

/// Where and when a datagram came in.
fn meta_of(datagram: &Datagram<'_>) -> DatagramMeta {
    DatagramMeta {
        sender: datagram.src,
        sender_port: datagram.src_port,
        local_port: datagram.dst_port,
        received_us: datagram.time_us,
    }
}

fn decode_all(
    args: &DecodeArgs,
    input: &mut Input,
    decoder: &mut Decoder,
    printer: &mut Printer,
    seen: &mut Seen,
) -> Result<(), ToolError> {
    let mut batches = Batches::new();
    let mut next_tick_us = i64::MIN;
    let mut last_us = 0;
    let result = input.each_flow(args.port, &mut seen.other, |datagram| {
        let meta = meta_of(datagram);
        let before = rows_of(&mut batches);
        let outcome = decoder.decode(datagram.payload, &meta, &mut batches);
        seen.sets_pending += u64::from(outcome.sets_pending);
        // the capture's clock is the decoder's: it drives what expires
        last_us = datagram.time_us;
        if last_us >= next_tick_us {
            decoder.tick(last_us, &mut batches);
            next_tick_us = last_us + SECOND_US;
        }
        printer.take(&mut batches, before, decoder.row_order())
    });
    // late enough for everything that waits
    decoder.tick(last_us + 3_600 * SECOND_US, &mut batches);
    printer.flush(&mut batches)?;
    result
}

fn rows_of(batches: &mut Batches) -> [usize; Table::ALL.len()] {
    batches.all_mut().map(|builder| builder.rows())
}

/// Where the rows go.
enum Sink {
    Text { format: Format, out: Box<dyn Write>, text: Vec<u8> },
    Arrow(Box<StreamWriter<Box<dyn Write>>>),
}

/// Prints batches in wire order.
struct Printer {
    wanted: [bool; Table::ALL.len()],
    sink: Sink,
}

impl Printer {
    fn new(args: &DecodeArgs, mut out: Box<dyn Write>) -> Result<Printer, ToolError> {
        let format = args.format.unwrap_or(Format::Jsonl);
        let one = match (args.table, format) {
            (Some(table), _) => Some(table),
            (None, Format::Jsonl | Format::Text) => None,
            (None, Format::Csv | Format::Arrow) => Some(Table::Flows),
        };
        let is_stats = |table: Table| matches!(table, Table::ExporterStats | Table::ExporterEvents);
        let wanted = Table::ALL.map(|table| match one {
            Some(one) => table == one,
            None => args.stats || !is_stats(table),
        });
        let sink = match format {
            Format::Arrow => {
                let table = one.unwrap_or(Table::Flows);
                let writer = StreamWriter::try_new(out, &table.sql_schema());
                Sink::Arrow(Box::new(writer.map_err(arrow_failed)?))
            }
            format => {
                if format == Format::Csv {
                    let header = rows::text_names(one.unwrap_or(Table::Flows)).join(",");
                    writeln!(out, "{header}").map_err(ToolError::output)?;
                }
                Sink::Text { format, out, text: Vec::with_capacity(TEXT_BYTES + 65_536) }
            }
        };
        Ok(Printer { wanted, sink })
    }

    /// Prints what must be printed to keep the order; `before` are the rows that were there before this datagram,
    /// `order` is how its rows went to `flows` and `nat_events`.
    ///
    /// Rows of one table may wait for more of their kind: only where a second table comes in are all of them due, the
    /// older rows first.
    fn take(
        &mut self,
        batches: &mut Batches,
        before: [usize; Table::ALL.len()],
        order: &[(Table, u32)],
    ) -> Result<(), ToolError> {
        let (mut tables, mut most) = (0, 0);
        for (builder, wanted) in batches.all_mut().into_iter().zip(self.wanted) {
            if builder.rows() == 0 {
                continue;
            }
            if wanted {
                tables += 1;
                most = most.max(builder.rows());
            } else if builder.rows() >= BATCH_ROWS {
                builder.finish();
            }
        }
        if tables <= 1 && most < BATCH_ROWS {
            return Ok(());
        }
        let mut finished: Vec<(Table, usize, RecordBatch)> = (batches.all_mut().into_iter())
            .zip(Table::ALL.into_iter().zip(before))
            .zip(self.wanted)
            .filter(|(_, wanted)| *wanted)
            .filter_map(|((builder, (table, before)), _)| {
                builder.finish().map(|batch| (table, before, batch))
            })
            .collect();
        for (table, before, batch) in &finished {
            self.print(*table, batch, 0..*before)?;
        }
        for (table, count) in order {
            if let Some((_, at, batch)) = finished.iter_mut().find(|(one, ..)| one == table) {
                let end = batch.num_rows().min(*at + *count as usize);
                self.print(*table, batch, *at..end)?;
                *at = end;
            }
        }
        for (table, at, batch) in &finished {
            self.print(*table, batch, *at..batch.num_rows())?;
        }
        Ok(())
    }

    /// Prints what waits.
    fn flush(&mut self, batches: &mut Batches) -> Result<(), ToolError> {
        for (builder, (table, wanted)) in
            batches.all_mut().into_iter().zip(Table::ALL.into_iter().zip(self.wanted))
        {
            if let Some(batch) = builder.finish()
                && wanted
            {
                self.print(table, &batch, 0..batch.num_rows())?;
            }
        }
        Ok(())
    }

    fn print(
        &mut self,
        table: Table,
        batch: &RecordBatch,
        rows: std::ops::Range<usize>,
    ) -> Result<(), ToolError> {
        if rows.is_empty() {
            return Ok(());
        }
        match &mut self.sink {
            Sink::Text { format, out, text } => {
                match format {
                    Format::Csv => rows::write_csv_lines(table, &batch.slice(rows.start, rows.len()), text),
                    _ => rows::write_json_lines(table, batch, rows, text),
                }
                if text.len() >= TEXT_BYTES {
                    out.write_all(text).map_err(ToolError::output)?;
                    text.clear();
                }
                Ok(())
            }
            Sink::Arrow(writer) => {
                let batch = unified(table, &batch.slice(rows.start, rows.len())).map_err(arrow_failed)?;
                writer.write(&batch).map_err(arrow_failed)
            }
        }
    }

    fn finish(self) -> Result<(), ToolError> {
        match self.sink {
            Sink::Text { mut out, text, .. } => {
                out.write_all(&text).and_then(|()| out.flush()).map_err(ToolError::output)
            }
            Sink::Arrow(mut writer) => {
                writer.finish().map_err(arrow_failed)?;
                writer.get_mut().flush().map_err(ToolError::output)
            }
        }
    }
}

fn arrow_failed(error: arrow::error::ArrowError) -> ToolError {
    match error {
        arrow::error::ArrowError::IoError(_, error) => ToolError::output(error),
        other => ToolError::Failed(format!("writing Arrow: {other}")),
    }
}

/// All columns of the table with their SQL types.
fn unified(table: Table, batch: &RecordBatch) -> Result<RecordBatch, arrow::error::ArrowError> {
    let schema = table.sql_schema();
    let column = |field: &arrow::datatypes::FieldRef| -> Result<ArrayRef, arrow::error::ArrowError> {
        match batch.column_by_name(field.name()) {
            Some(array) => cast(array, field.data_type()),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        }
    };
    let columns = schema.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema, columns)
}

/// Tells on stderr what there was, and what was not decoded and why.
fn summary(input: &Input, decoder: &Decoder, seen: &Seen) {
    let counters = decoder.counters();
    let capture = input.reader.stats();
    let list = |parts: Vec<(String, u64)>| {
        let parts: Vec<_> =
            parts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{n} {name}")).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    };
    eprintln!(
        "datagrams: {} decoded of {} ({} frames in the capture)",
        counters.decoded, counters.datagrams, capture.frames
    );
    let rows = Table::ALL.iter().zip(counters.rows).map(|(table, n)| (table.name().to_owned(), n));
    eprintln!("rows: {}", list(rows.collect()));
    let reasons = |counts: [u64; RejectReason::ALL.len()], what: &str| {
        let named = RejectReason::ALL.iter().zip(counts);
        named.map(|(reason, n)| (format!("{what} {}", reason.as_str()), n)).collect::<Vec<_>>()
    };
    let mut trouble = reasons(counters.rejected, "datagrams");
    trouble.extend(reasons(counters.sets_rejected, "sets"));
    trouble.extend([
        ("data sets that came before their template".to_owned(), seen.sets_pending),
        ("datagrams cut by the capture's snap length".to_owned(), capture.cut),
        ("frames malformed".to_owned(), capture.malformed),
        ("frames of unknown link types".to_owned(), capture.other_link),
        ("fragments without their datagram".to_owned(), capture.fragments_lost),
    ]);
    if trouble.iter().any(|(_, n)| *n > 0) {
        eprintln!("not decoded: {}", list(trouble));
    }
    if seen.other > 0 {
        eprintln!("other UDP datagrams: {} (`--port` decodes all that were sent to a port)", seen.other);
    }
}

#[cfg(test)]
mod tests;
