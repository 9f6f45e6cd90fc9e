//! The references in `docs/` say what the code has. `WEIR_UPDATE_DOCS=1` writes the generated parts anew.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use weir_schemas::Table;
use weir_tests::command::run;
use weir_tests::generate::Load;
use weir_tests::ledger::assert_lossless;
use weir_tests::wait::LONG;
use weir_tests::weir::{Setup, binary};
use weir_tests::{repository, update_docs};

/// Compares a generated part of a document, between `<!-- NAME -->` and `<!-- /NAME -->`, or writes it.
#[track_caller]
fn generated(file: &str, name: &str, wanted: &str) {
    let path = repository().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{file} has no {begin:?}"));
    let (have, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{file} has no {end:?}"));
    if have == wanted {
        return;
    }
    if update_docs() {
        std::fs::write(&path, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        return;
    }
    let have: BTreeSet<_> = have.lines().collect();
    let want: BTreeSet<_> = wanted.lines().collect();
    let lacks: Vec<_> = want.difference(&have).collect();
    let extra: Vec<_> = have.difference(&want).collect();
    panic!(
        "{file} is behind the code (WEIR_UPDATE_DOCS=1 writes it anew)\nlacks: {lacks:#?}\nhas too much: {extra:#?}"
    );
}

/// Families of metrics = those in docs/metrics.md, with their types and help.
#[test]
fn every_metric_is_documented() {
    let setup = Setup::new();
    let weir = setup.start();
    let sent = Load::new(5_000).run(&weir);
    weir.until_numbers("select count(*) from flows", &[sent.rows]);
    weir.sql("select 1");
    let metrics = weir.metrics();
    let mut families = metrics.families.clone();
    families.sort_by(|a, b| a.name.cmp(&b.name));
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for family in &families {
        let of_family = metrics.samples.iter().filter(|sample| {
            let rest = sample.name.strip_prefix(family.name.as_str());
            rest.is_some_and(|rest| ["", "_total", "_bucket", "_count", "_sum", "_info"].contains(&rest))
        });
        let labels: BTreeSet<&str> = of_family
            .flat_map(|sample| sample.labels.keys())
            .map(String::as_str)
            .filter(|label| *label != "le")
            .collect();
        let labels: Vec<_> = labels.into_iter().collect();
        let suffix = if family.kind == "counter" { "_total" } else { "" };
        table += &format!(
            "| `{}{suffix}` | {} | {} | {} |\n",
            family.name,
            family.kind,
            labels.join(", "),
            family.help
        );
    }
    generated("docs/metrics.md", "metrics", &table);
    let undocumented: Vec<_> =
        families.iter().filter(|family| family.help.is_empty() || family.kind.is_empty()).collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
    let foreign: Vec<_> = families.iter().filter(|family| !family.name.starts_with("weir_")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert_lossless(&weir);
}

/// What the views add to the columns of the log; their meaning is told here, their presence is asked of weir.
const DERIVED: &[(&str, &str)] = &[
    ("dscp", "class: the upper six bits of `tos`"),
    ("ecn", "congestion notification: the lower two bits of `tos`"),
    ("post_dscp", "class after the box re-marked it: the upper six bits of `post_tos`"),
    ("est_bytes", "`bytes` times `sampling_rate` (1 where unknown): what crossed the wire"),
    ("est_packets", "`packets` times `sampling_rate` (1 where unknown)"),
    ("duration_ms", "`end_time` less `start_time`"),
    ("window_start", "beginning of the minute"),
    ("flows", "flow records that ended in the window"),
    ("unknown_sampling_flows", "of those, without a known sampling rate: counted as 1 in 1"),
    ("dimension", "what is ranked: src_addr, dst_addr, conversation, dst_port, src_as, dst_as"),
    ("other", "true for the row that holds all keys below the largest 1,000"),
    ("addr", "the address ranked (conversation: the source)"),
    ("peer_addr", "conversation: the destination"),
    ("port", "the port ranked"),
    ("asn", "the AS ranked"),
    ("direction", "in or out: each flow counts once for each"),
    ("if_index", "the interface of that direction"),
    ("class", "name of the DSCP class"),
    ("avg_packet_bytes", "mean packet size"),
    ("first_seen", "first statistics of the exporter"),
    ("last_seen", "last statistics of the exporter"),
    ("loss_ratio", "`sequence_lost` over `sequence_expected`"),
];

/// Tables and columns = those in docs/sql.md, with SQL type and meaning.
#[test]
fn every_table_and_column_is_documented() {
    let setup = Setup::new();
    let weir = setup.start();
    let rows = weir.sql(
        "select table_name, column_name, data_type from information_schema.columns \
         where table_schema = 'public' order by table_name, ordinal_position",
    );
    let mut tables: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for row in &rows {
        tables.entry(&row[0]).or_default().push((&row[1], &row[2]));
    }
    let mut text = String::new();
    let mut untold = Vec::new();
    for (table, columns) in &tables {
        // The parts of rollups and the raw rows behind a view: what a person asks is the view.
        if table.ends_with("_parts") || table.ends_with("_raw") {
            continue;
        }
        text += &format!("### `{table}`\n\n| column | type | meaning |\n|---|---|---|\n");
        let known = Table::from_name(table).unwrap_or(Table::ExporterStats);
        for (column, kind) in columns {
            let derived = DERIVED.iter().find(|(name, _)| name == column).map(|(_, doc)| *doc);
            let logged = [known, Table::Flows]
                .into_iter()
                .find_map(|table| table.column(column))
                .map(|column| column.doc);
            let is_log_table = Table::from_name(table).is_some();
            let doc = if is_log_table { logged.or(derived) } else { derived.or(logged) };
            if doc.is_none() {
                untold.push(format!("{table}.{column}"));
            }
            text += &format!("| `{column}` | {} | {} |\n", short(kind), doc.unwrap_or_default());
        }
        text.push('\n');
    }
    assert!(untold.is_empty(), "columns without a meaning: {untold:?}");
    assert!(tables.len() >= 10, "{:?}", tables.keys());
    generated("docs/sql.md", "tables", &text);
    assert_lossless(&weir);
}

/// Arrow's type, as an engineer would name it.
fn short(kind: &str) -> String {
    match kind {
        "FixedSizeBinary(16)" => "inet".to_owned(),
        "FixedSizeBinary(6)" => "macaddr".to_owned(),
        "Int16" => "smallint".to_owned(),
        "Int32" => "integer".to_owned(),
        "Int64" => "bigint".to_owned(),
        "Float64" => "double".to_owned(),
        "Utf8" | "Utf8View" => "text".to_owned(),
        "Boolean" => "boolean".to_owned(),
        other if other.starts_with("Timestamp") => "timestamptz".to_owned(),
        other if other.starts_with("List") => "bigint[]".to_owned(),
        other if other.starts_with("Map") => "map".to_owned(),
        other => other.to_owned(),
    }
}

/// Every query in docs/sql.md runs, and those on live rows find some.
#[test]
fn every_query_of_the_sql_page_runs() {
    let page = std::fs::read_to_string(repository().join("docs/sql.md")).unwrap();
    let queries: Vec<&str> = page
        .split("```sql\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(sql, _)| sql)
        .collect();
    assert!(queries.len() >= 15, "{} queries", queries.len());
    let setup = Setup::new();
    let weir = setup.start();
    let sent = Load::new(5_000).run(&weir);
    weir.until_numbers("select count(*) from flows", &[sent.rows]);
    weir_tests::wait::until(LONG, "exporter statistics", || {
        match weir.try_sql("select count(*) from exporters")?[0][0].as_str() {
            "0" => Err("none".to_owned()),
            _ => Ok(()),
        }
    });
    let mut empty = Vec::new();
    for query in &queries {
        let rows = weir.sql(query);
        if rows.is_empty() && !query.contains("-- may be empty") {
            empty.push(*query);
        }
    }
    assert!(
        empty.is_empty(),
        "queries without an answer (a comment `-- may be empty` allows it): {empty:#?}"
    );
    assert_lossless(&weir);
}

/// The keys of a TOML text as `section.key`, with their values.
fn keys(toml: &str) -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for line in toml.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_matches(['[', ']']).to_owned() + ".";
        } else if let Some((key, value)) = line.split_once(" = ")
            && !line.starts_with('#')
        {
            keys.insert(format!("{section}{key}"), value.to_owned());
        }
    }
    keys
}

fn print_config(path: Option<&str>) -> String {
    let mut command = Command::new(binary());
    command.args(["check", "--print"]);
    if let Some(path) = path {
        command.arg("--config").arg(repository().join(path));
    }
    run(&mut command, LONG).ok()
}

/// Every key has its line in docs/configuration.md with its default, and the example is the defaults.
#[test]
fn every_key_is_documented_and_the_example_is_the_defaults() {
    let defaults = print_config(None);
    let known = keys(&defaults);
    assert!(known.len() > 20, "{known:?}");
    let page = std::fs::read_to_string(repository().join("docs/configuration.md")).unwrap();
    let mut documented = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> =
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
        if cells.len() >= 3 {
            documented.insert(cells[0].to_owned(), (cells[1].to_owned(), cells[2].to_owned()));
        }
    }
    let missing: Vec<_> = known.iter().filter(|(key, _)| !documented.contains_key(*key)).collect();
    assert!(missing.is_empty(), "docs/configuration.md lacks {missing:#?}");
    let wrong: Vec<_> = known.iter().filter(|(key, value)| documented[*key].0 != **value).collect();
    assert!(wrong.is_empty(), "docs/configuration.md has another default than {wrong:#?}");
    assert_eq!(print_config(Some("deploy/weir.toml")), defaults, "deploy/weir.toml changes a default");
    let example = std::fs::read_to_string(repository().join("deploy/weir.toml")).unwrap();
    let shown = keys(&example.replace("\n# ", "\n").replace("\n#", "\n"));
    let unshown: Vec<_> = known.keys().filter(|key| !shown.contains_key(*key)).collect();
    assert!(unshown.is_empty(), "deploy/weir.toml does not show {unshown:#?}");
    let differing: Vec<_> = known.iter().filter(|(key, value)| shown[*key] != **value).collect();
    assert!(differing.is_empty(), "deploy/weir.toml shows another default than {differing:#?}");
}
