//! What is generated comes out of `weir decode` in full, in order, in every format.

use std::collections::HashMap;
use std::path::Path;

use arrow::array::AsArray;
use arrow::ipc::reader::StreamReader;
use weir_collector::generate::{Generator, GeneratorConfig, Totals};
use weir_collector::pcap::Writer;
use weir_schemas::Address;

use super::*;

/// A capture of all protocols, and what is in it.
fn capture(path: &Path, flows: u64) -> HashMap<&'static str, Totals> {
    let start_us = 1_700_000_000_000_000;
    let config = GeneratorConfig { flows, start_us, ..GeneratorConfig::default() };
    let mut generator = Generator::new(&config);
    let mut writer = Writer::new(File::create(path).unwrap()).unwrap();
    let mut buffer = Vec::new();
    let mut now = start_us;
    while let Some(info) = generator.next(now, &mut buffer) {
        let src = Address::v4(generator.exporter_addr(info.exporter).unwrap().octets());
        let dst = (Address::v4([192, 0, 2, 1]), info.protocol.port());
        writer.write(now, (src, 50_000), dst, &buffer).unwrap();
        now += 1_000;
    }
    writer.finish().unwrap();
    generator.totals().into_iter().map(|(protocol, totals)| (protocol.name(), totals)).collect()
}

fn decode(path: &Path, format: Format, table: Option<Table>) -> Vec<u8> {
    let output = path.with_extension("out");
    let args = DecodeArgs {
        file: path.display().to_string(),
        format: Some(format),
        table,
        port: None,
        stats: false,
        explain: false,
        second_opinion: false,
        config: None,
        elements: Vec::new(),
        output: Some(output.clone()),
        quiet: true,
    };
    run(&args).unwrap();
    std::fs::read(output).unwrap()
}

#[test]
fn generated_totals_come_out_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generated.pcap");
    let want = capture(&path, 20_000);
    let text = String::from_utf8(decode(&path, Format::Jsonl, None)).unwrap();
    let mut sums: HashMap<String, Totals> = HashMap::new();
    let mut last_time = String::new();
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let time = row["received_at"].as_str().unwrap().to_owned();
        assert!(time >= last_time, "rows are in wire order");
        last_time = time;
        let sum = sums.entry(row["proto_ver"].as_str().unwrap().to_owned()).or_default();
        match row["table"].as_str().unwrap() {
            "flows" => {
                let number = |key: &str| row[key].as_u64().unwrap();
                let rate = row["sampling_rate"].as_f64().unwrap() as u64;
                sum.rows += 1;
                sum.bytes += number("bytes");
                sum.packets += number("packets");
                sum.est_bytes += number("bytes") * rate;
                sum.est_packets += number("packets") * rate;
                assert_eq!(number("dscp"), number("tos") >> 2);
                let exporter = row["exporter_addr"].as_str().unwrap();
                assert!(exporter.starts_with("127.1.0."), "{exporter}");
            }
            "options" => sum.options_records += 1,
            "interface_counters" => sum.counter_samples += 1,
            other => panic!("unexpected table {other}"),
        }
    }
    for (protocol, totals) in want {
        let of_wire =
            Totals { datagrams: totals.datagrams, datagram_bytes: totals.datagram_bytes, ..sums[protocol] };
        assert_eq!(of_wire, totals, "{protocol}");
    }
}

#[test]
fn csv_and_arrow_have_the_same_rows_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generated.pcap");
    capture(&path, 20_000);
    let json = String::from_utf8(decode(&path, Format::Jsonl, Some(Table::Flows))).unwrap();
    let json: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json.len(), 20_000);
    let csv = String::from_utf8(decode(&path, Format::Csv, None)).unwrap();
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let at = |name: &str| header.iter().position(|known| *known == name).unwrap();
    let (bytes, src, start) = (at("bytes"), at("src_addr"), at("start_ms"));
    assert_eq!(lines.clone().count(), json.len());
    for (line, row) in lines.zip(&json) {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields[bytes], row["bytes"].to_string());
        assert_eq!(fields[src], row["src_addr"].as_str().unwrap());
        assert_eq!(fields[start], row.get("start_ms").map(ToString::to_string).unwrap_or_default());
    }
    let arrow = decode(&path, Format::Arrow, None);
    let reader = StreamReader::try_new(arrow.as_slice(), None).unwrap();
    assert_eq!(reader.schema(), Table::Flows.sql_schema());
    let batches = reader.collect::<Result<Vec<_>, _>>().unwrap();
    let sum: i64 = (batches.iter())
        .filter_map(|batch| {
            arrow::compute::sum(
                batch.column_by_name("bytes")?.as_primitive_opt::<arrow::datatypes::Int64Type>()?,
            )
        })
        .sum();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), json.len());
    assert_eq!(sum, json.iter().map(|row| row["bytes"].as_i64().unwrap()).sum::<i64>());
}

#[test]
fn a_cut_capture_gives_its_beginning_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generated.pcap");
    capture(&path, 1_000);
    let whole = decode(&path, Format::Jsonl, None);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    let output = folder.path().join("cut.out");
    let args = DecodeArgs {
        file: path.display().to_string(),
        format: Some(Format::Jsonl),
        table: None,
        port: None,
        stats: false,
        explain: false,
        second_opinion: false,
        config: None,
        elements: Vec::new(),
        output: Some(output.clone()),
        quiet: true,
    };
    let error = run(&args).unwrap_err();
    assert!(error.to_string().contains("is cut off in frame"), "{error}");
    let cut = std::fs::read(output).unwrap();
    assert!(cut.len() > whole.len() / 2 && whole.starts_with(&cut));
}

/// Arguments for a mode.
fn mode(path: &Path, format: Option<Format>, explain: bool) -> DecodeArgs {
    DecodeArgs {
        file: path.display().to_string(),
        format,
        table: None,
        port: None,
        stats: false,
        config: None,
        elements: Vec::new(),
        explain,
        second_opinion: !explain,
        output: Some(path.with_extension("out")),
        quiet: true,
    }
}

#[test]
fn explanations_have_every_datagram_and_every_octet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generated.pcap");
    let want = capture(&path, 2_000);
    let datagrams: u64 = want.values().map(|totals| totals.datagrams).sum();
    let args = mode(&path, Some(Format::Jsonl), true);
    run(&args).unwrap();
    let text = std::fs::read_to_string(args.output.as_ref().unwrap()).unwrap();
    let mut rows = 0;
    for line in text.lines() {
        let datagram: serde_json::Value = serde_json::from_str(line).unwrap();
        let octets = datagram["lines"].as_array().unwrap().iter().filter_map(|line| line["octets"].as_str());
        let covered: usize = octets.map(|octets| octets.len() / 2).sum();
        assert_eq!(covered as u64, datagram["length"].as_u64().unwrap());
        rows += datagram["rows"].as_array().unwrap().len();
    }
    assert_eq!(text.lines().count() as u64, datagrams);
    let decoded = decode(&path, Format::Jsonl, None);
    assert_eq!(rows, decoded.iter().filter(|byte| **byte == b'\n').count());

    let args = mode(&path, None, true);
    run(&args).unwrap();
    let text = std::fs::read_to_string(args.output.as_ref().unwrap()).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("datagram ")).count() as u64, datagrams);
    for wanted in
        ["→ src_addr", "→ observation_domain", "row 1 of flows: {\"table\":\"flows\"", "sampled_header"]
    {
        assert!(text.contains(wanted), "{wanted}");
    }
}

#[test]
fn the_second_opinion_on_generated_flows_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generated.pcap");
    capture(&path, 2_000);
    let args = mode(&path, None, false);
    run(&args).unwrap();
    let text = std::fs::read_to_string(args.output.as_ref().unwrap()).unwrap();
    assert!(text.contains("0 differences without an explanation"), "{text}");
    assert!(text.contains("no second opinion on") && text.contains("sFlow"), "{text}");
}

#[test]
fn formats_that_do_not_go_with_a_mode_are_refused() {
    let path = Path::new("no such file");
    for args in [
        mode(path, Some(Format::Csv), true),
        mode(path, Some(Format::Arrow), false),
        DecodeArgs { explain: false, second_opinion: false, ..mode(path, Some(Format::Text), true) },
    ] {
        assert!(matches!(run(&args), Err(ToolError::Usage(_))));
    }
}
