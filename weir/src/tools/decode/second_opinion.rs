//! `weir decode --second-opinion`: what netflow_parser makes of the same datagrams, and where the two differ.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use weir_collector::pcap::Datagram;
use weir_collector::second_opinion::{Comparison, Difference, Explanation, SecondOpinion};

use super::{DecodeArgs, Format, ToolError, decode_config, meta_of, output};
use crate::tools::input::Input;
use crate::tools::rows;

/// What was compared in all.
#[derive(Debug, Default)]
struct Total {
    datagrams: u64,
    compared: u64,
    records: u64,
    values: u64,
    explained: BTreeMap<Explanation, u64>,
    unexplained: u64,
    /// Differences beyond those that a datagram lists.
    more: u64,
    not_covered: BTreeMap<&'static str, u64>,
    other: u64,
}

/// Runs `weir decode --second-opinion`.
pub(super) fn run(args: &DecodeArgs) -> Result<(), ToolError> {
    let mut input = Input::open(&args.file)?;
    let mut out = output(args)?;
    let mut both = SecondOpinion::new(&decode_config(args)?)
        .map_err(|error| ToolError::Failed(format!("cannot start the second decoder: {error}")))?;
    let mut total = Total::default();
    let jsonl = args.format == Some(Format::Jsonl);
    let mut others = 0;
    let ended = input.each_flow(args.port, &mut others, |datagram| {
        total.datagrams += 1;
        let comparison = both.compare(datagram.payload, &meta_of(datagram));
        total.add(&comparison);
        let printed = if jsonl {
            json(total.datagrams, datagram, &comparison, &mut out)
        } else {
            people(total.datagrams, datagram, &comparison, &mut out)
        };
        printed.map_err(ToolError::output)
    });
    total.other = others;
    input.finish();
    ended?;
    if !jsonl {
        total.write(&mut out).map_err(ToolError::output)?;
    }
    out.flush().map_err(ToolError::output)?;
    match total.unexplained {
        0 => Ok(()),
        1 => Err(ToolError::Failed("1 difference without an explanation".into())),
        n => Err(ToolError::Failed(format!("{n} differences without an explanation"))),
    }
}

impl Total {
    fn add(&mut self, comparison: &Comparison) {
        match comparison.not_covered {
            Some(why) => *self.not_covered.entry(why).or_default() += 1,
            None => self.compared += 1,
        }
        self.records += comparison.records_weir;
        self.values += comparison.values;
        self.unexplained += comparison.unexplained;
        self.more += comparison.more;
        for explanation in comparison.differences.iter().filter_map(|difference| difference.explanation) {
            *self.explained.entry(explanation).or_default() += 1;
        }
    }

    fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(
            out,
            "{} datagrams, {} compared with netflow_parser: {} records, {} values",
            self.datagrams, self.compared, self.records, self.values
        )?;
        for (why, count) in &self.not_covered {
            writeln!(out, "no second opinion on {count} datagrams: {why}")?;
        }
        for (explanation, count) in &self.explained {
            writeln!(out, "{count} differences explained: {}", explanation.text())?;
        }
        if self.more > 0 {
            writeln!(out, "{} more differences were not listed", self.more)?;
        }
        if self.other > 0 {
            writeln!(
                out,
                "{} other UDP datagrams (`--port` takes all that were sent to a port)",
                self.other
            )?;
        }
        writeln!(out, "{} differences without an explanation", self.unexplained)
    }
}

/// `set 2 (template 256), record 3`
fn place(difference: &Difference) -> String {
    let mut parts = Vec::new();
    if let Some(set) = difference.set {
        parts.push(format!("set {set}"));
    }
    if let Some(template) = difference.template {
        parts.push(format!("template {template}"));
    }
    if let Some(record) = difference.record {
        parts.push(format!("record {record}"));
    }
    if parts.is_empty() { "the datagram".to_owned() } else { parts.join(", ") }
}

fn people(
    number: u64,
    datagram: &Datagram<'_>,
    comparison: &Comparison,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if comparison.differences.is_empty() {
        return Ok(());
    }
    let source = std::net::SocketAddr::new(datagram.src.ip(), datagram.src_port);
    writeln!(
        out,
        "datagram {number} from {source}: weir {} records, netflow_parser {}",
        comparison.records_weir, comparison.records_netflow_parser
    )?;
    for difference in &comparison.differences {
        let column = match difference.column.as_str() {
            "" => String::new(),
            column => format!(" ({column})"),
        };
        writeln!(
            out,
            "  {}: {}{column}: weir {}, netflow_parser {}",
            place(difference),
            difference.what,
            difference.weir,
            difference.netflow_parser
        )?;
        match difference.explanation {
            Some(explanation) => writeln!(out, "    explained: {}", explanation.text())?,
            None => writeln!(out, "    NOT EXPLAINED")?,
        }
    }
    Ok(())
}

/// A difference as JSON.
#[derive(Serialize)]
struct JsonDifference<'a> {
    datagram: u64,
    time: String,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    template: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<usize>,
    what: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    column: &'a str,
    weir: &'a str,
    netflow_parser: &'a str,
    /// null: none.
    explanation: Option<&'static str>,
}

fn json(
    number: u64,
    datagram: &Datagram<'_>,
    comparison: &Comparison,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for difference in &comparison.differences {
        let mut time = Vec::new();
        rows::write_instant(datagram.time_us, &mut time);
        let line = JsonDifference {
            datagram: number,
            time: String::from_utf8_lossy(&time).into_owned(),
            source: std::net::SocketAddr::new(datagram.src.ip(), datagram.src_port).to_string(),
            set: difference.set,
            template: difference.template,
            record: difference.record,
            what: &difference.what,
            column: &difference.column,
            weir: &difference.weir,
            netflow_parser: &difference.netflow_parser,
            explanation: difference.explanation.map(Explanation::text),
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
