//! weir beside tshark: both decode the same captures, generated ones and those of `../shared/corpus`. Every difference is
//! explained in `tests/data/tshark.tsv`, and every explanation explains one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use weir_tests::command::run;
use weir_tests::pdml::{self, Row, is_zero};
use weir_tests::wait::LONG;
use weir_tests::{repository, weir};

/// Why weir and tshark differ in a column of a case.
struct Explanation {
    case: String,
    column: String,
    line: String,
}

fn explanations() -> Vec<Explanation> {
    let text = std::fs::read_to_string(repository().join("tests/data/tshark.tsv")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let parts: Vec<&str> = line.split('\t').collect();
            let [case, column, right, why] = parts[..] else { panic!("four columns: {line:?}") };
            assert!(["weir", "tshark", "both", "neither"].contains(&right), "{line:?}");
            assert!(why.len() > 20, "{line:?}");
            Explanation { case: case.into(), column: column.into(), line: line.into() }
        })
        .collect()
}

/// The rows that weir prints of a capture, less what tshark has no notion of: the other half of a biflow.
fn decoded(capture: &Path) -> Vec<Row> {
    let mut command = Command::new(weir::binary());
    command.arg("decode").arg(capture).args(["--format", "jsonl"]);
    let text = run(&mut command, LONG).ok();
    let rows = text.lines().map(|line| serde_json::from_str::<Row>(line).unwrap());
    rows.filter(|row| {
        ["flows", "nat_events"].contains(&row["table"].as_str().unwrap())
            && row.get("reverse") != Some(&json!(true))
    })
    .collect()
}

/// Pairs of rows: one by one where both have as many, else by their addresses and ports, in order.
fn paired<'a>(ours: &'a [Row], theirs: &'a [Row]) -> Vec<(&'a Row, &'a Row)> {
    if ours.len() == theirs.len() {
        return ours.iter().zip(theirs).collect();
    }
    let key = |row: &Row| {
        ["src_addr", "dst_addr", "src_port", "dst_port", "bytes"]
            .map(|name| row.get(name).filter(|value| !is_zero(value)).cloned().unwrap_or(Value::Null))
    };
    let mut rest: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in ours.iter().rev() {
        rest.entry(format!("{:?}", key(row))).or_default().push(row);
    }
    let find = |row: &'a Row| Some((rest.get_mut(&format!("{:?}", key(row)))?.pop()?, row));
    theirs.iter().filter_map(find).collect()
}

fn same(column: &str, ours: &Value, theirs: &Value) -> bool {
    let number = |value: &Value| value.as_f64();
    match (ours, theirs) {
        // a record may have the column's element with nothing in it
        (Value::Null, zero) => is_zero(zero),
        (ours, theirs) if column.ends_with("_ms") => {
            number(ours).zip(number(theirs)).is_some_and(|(ours, theirs)| (ours - theirs).abs() <= 1.0)
        }
        (Value::Number(_), Value::Number(_)) => number(ours) == number(theirs),
        (ours, theirs) => ours == theirs,
    }
}

/// What weir and tshark say differently of a capture, by column, with an example.
fn differences(capture: &Path) -> (usize, usize, BTreeMap<String, (usize, String)>) {
    let (ours, theirs) = (decoded(capture), pdml::rows(capture));
    let mut found = BTreeMap::new();
    if ours.len() != theirs.len() {
        let text = format!("weir has {}, tshark {}", ours.len(), theirs.len());
        found.insert("rows".to_owned(), (1, text));
    }
    let mut values = 0;
    for (number, (ours, theirs)) in (1..).zip(paired(&ours, &theirs)) {
        for (column, theirs) in theirs {
            values += 1;
            let ours = ours.get(column).unwrap_or(&Value::Null);
            if !same(column, ours, theirs) {
                let text = format!("row {number}: weir {ours}, tshark {theirs}");
                found.entry(column.clone()).or_insert((0, text)).0 += 1;
            }
        }
    }
    (ours.len(), values, found)
}

/// Compares the captures; every explanation of a case that is `mine` must be needed.
fn compare(captures: &[(String, PathBuf)], mine: fn(&str) -> bool) {
    let explanations = explanations();
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let (mut rows, mut values, mut unexplained) = (0, 0, Vec::new());
    for (case, capture) in captures {
        let (of_case, compared, found) = differences(capture);
        rows += of_case;
        values += compared;
        for (column, (count, example)) in found {
            let explains = |one: &&Explanation| one.case == *case && one.column == column;
            match explanations.iter().find(explains) {
                Some(one) => drop(used.insert(&one.line)),
                None => unexplained.push(format!("{case}\t{column}\t{count} times, {example}")),
            }
        }
    }
    eprintln!("{} captures: {rows} rows of weir's, {values} values of tshark's compared", captures.len());
    assert!(rows > 0 && values > rows, "nothing was compared");
    assert!(unexplained.is_empty(), "not explained in tests/data/tshark.tsv:\n{}", unexplained.join("\n"));
    let idle: Vec<_> = explanations
        .iter()
        .filter(|one| mine(&one.case))
        .map(|one| one.line.as_str())
        .filter(|line| !used.contains(line))
        .collect();
    assert!(idle.is_empty(), "explanations of nothing:\n{}", idle.join("\n"));
}

#[test]
fn generated_traffic_decodes_as_tshark_decodes_it() {
    let folder = tempfile::tempdir().unwrap();
    let captures = ["v5", "v9", "ipfix", "sflow"].map(|protocol| {
        let capture = folder.path().join(format!("{protocol}.pcap"));
        let mut command = Command::new(weir::binary());
        command.args([
            "generate",
            "--protocol",
            protocol,
            "--flows",
            "1500",
            "--exporters",
            "2",
            "--seed",
            "7",
        ]);
        run(command.arg("--pcap").arg(&capture), LONG).ok();
        (format!("generated_{protocol}"), capture)
    });
    compare(&captures, |case| case.starts_with("generated_"));
}

#[test]
fn captures_decode_as_tshark_decodes_them() {
    let Ok(cases) = std::fs::read_dir(repository().join("../shared/corpus/cases")) else {
        eprintln!("no corpus: nothing to compare with here");
        return;
    };
    let mut captures: Vec<(String, PathBuf)> = cases
        .map(|case| case.unwrap())
        .map(|case| (case.file_name().to_string_lossy().into_owned(), case.path().join("input.pcap")))
        .collect();
    captures.sort();
    compare(&captures, |case| !case.starts_with("generated_"));
}
