//! The references in `docs/` say what the code has. `WEIR_UPDATE_DOCS=1` writes the generated parts anew.

use std::collections::{BTreeMap, BTreeSet};

use weir_schemas::Table;
use weir_tests::generate::Load;
use weir_tests::ledger::assert_lossless;
use weir_tests::wait::LONG;
use weir_tests::weir::Setup;
use weir_tests::{repository, update_docs};

/// Compares a generated part of a document, between `<!-- NAME -->` and `<!-- /NAME -->`, or writes it.
#[track_caller]
pub(crate) fn generated(file: &str, name: &str, wanted: &str) {
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
    // Longer than the probation of an exporter: before, it has no series of its own.
    let sent = Load::new(16_000).rate(2_000).run(&weir);
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
    ("noticed_at", "when the aggregator met it"),
    ("log_partition", "partition of the log"),
    ("first_offset", "first of the offsets that are in no table"),
    ("last_offset", "last of them"),
    ("reason", "why: gone from the log before it was read, or what is wrong with the message"),
    ("dscp", "class: the upper six bits of `tos`"),
    ("ecn", "congestion notification: the lower two bits of `tos`"),
    ("post_dscp", "class after the box re-marked it: the upper six bits of `post_tos`"),
    ("est_bytes", "`bytes` times `sampling_rate` (1 where unknown): what crossed the wire"),
    ("est_packets", "`packets` times `sampling_rate` (1 where unknown)"),
    ("duration_ms", "`end_time` less `start_time`"),
    ("window_start", "beginning of the window"),
    ("flows", "flow records that ended in the window"),
    ("unknown_sampling_flows", "of those, without a known sampling rate: counted as 1 in 1"),
    ("window_end", "end of the window"),
    ("est_bytes_variance", "square of `est_bytes_error`: adds up where errors do not"),
    ("est_bytes_error", "standard error of `est_bytes` by sampling"),
    (
        "dimension",
        "what is ranked (`aggregate.dimensions` of the configuration), or counted (`aggregate.distinct`)",
    ),
    ("other", "true for the row that holds all keys below the largest"),
    ("addr", "the address or network ranked (conversation: the source)"),
    ("peer_addr", "of two addresses the second (conversation: the destination)"),
    ("prefix_len", "src_net, dst_net: length of the prefix"),
    ("port", "the port ranked"),
    ("peer_port", "of two ports the second"),
    ("asn", "the AS ranked"),
    ("peer_asn", "of two ASs the second"),
    ("peer_if_index", "of two interfaces the second"),
    ("vrf", "the VRF ranked"),
    ("peer_vrf", "of two VRFs the second"),
    ("app", "the application ranked"),
    ("country", "the country ranked, two letters"),
    ("peer_country", "of two countries the second"),
    ("share", "part of the whole: of the dimension in the window, of the interface and direction"),
    ("rank", "place by `est_bytes` (`distinct_…`: by `distinct_count`), 1 is the largest"),
    (
        "distinct_count",
        "how many different values the flows have that ended in the window, estimated from `sketch`",
    ),
    ("relative_error", "standard error of `distinct_count`, as part of it"),
    (
        "sketch",
        "the values as a HyperLogLog sketch of Apache DataSketches: `hll_count` puts those of several rows together",
    ),
    (
        "error_bound",
        "what the key may have beyond `est_bytes` (`distinct_…`: beyond `distinct_count`), because it was not among the largest of every commit",
    ),
    ("previous_est_bytes", "the same in the window before"),
    ("est_bytes_change", "`est_bytes` less `previous_est_bytes`"),
    ("previous_rank", "place in the window before"),
    ("rank_change", "places won since the window before"),
    ("is_new", "true where it was not there in the window before"),
    ("bits_per_s", "mean rate over the window, sampling multiplied in"),
    ("packets_per_s", "mean rate over the window"),
    ("packets_to_64", "packets of flows with a mean size up to 64 bytes"),
    ("packets_to_128", "65 to 128 bytes"),
    ("packets_to_256", "129 to 256 bytes"),
    ("packets_to_512", "257 to 512 bytes"),
    ("packets_to_1024", "513 to 1,024 bytes"),
    ("packets_to_1518", "1,025 to 1,518 bytes"),
    ("packets_larger", "larger than 1,518 bytes"),
    ("ect_packets", "packets of flows with ECN: ECT or CE"),
    ("ce_packets", "packets of flows marked CE: congestion was met"),
    ("ce_share", "part of the packets that is `ce_packets`"),
    ("not_forwarded_bytes", "bytes of flows whose `forwarding_status` says dropped"),
    ("not_forwarded_packets", "packets of flows whose `forwarding_status` says dropped"),
    ("loss_measured_packets", "packets, those lost too, of the flows whose exporter measures loss"),
    ("rtt_flows", "flows with a round trip time"),
    ("avg_rtt_us", "mean round trip time, µs"),
    ("rtt_to_1ms", "flows with a round trip time up to 1 ms"),
    ("rtt_to_2ms", "beyond, up to 2 ms"),
    ("rtt_to_5ms", "beyond, up to 5 ms"),
    ("rtt_to_10ms", "beyond, up to 10 ms"),
    ("rtt_to_20ms", "beyond, up to 20 ms"),
    ("rtt_to_50ms", "beyond, up to 50 ms"),
    ("rtt_to_100ms", "beyond, up to 100 ms"),
    ("rtt_to_200ms", "beyond, up to 200 ms"),
    ("rtt_larger", "beyond 200 ms"),
    ("jitter_flows", "flows with a jitter"),
    ("avg_jitter_us", "mean jitter, µs"),
    ("jitter_to_1ms", "flows with a jitter up to 1 ms"),
    ("jitter_to_2ms", "beyond, up to 2 ms"),
    ("jitter_to_5ms", "beyond, up to 5 ms"),
    ("jitter_to_10ms", "beyond, up to 10 ms"),
    ("jitter_to_20ms", "beyond, up to 20 ms"),
    ("jitter_to_50ms", "beyond, up to 50 ms"),
    ("jitter_to_100ms", "beyond, up to 100 ms"),
    ("jitter_larger", "beyond 100 ms"),
    ("avg_bits_per_s", "mean rate over the hour"),
    ("peak_bits_per_s", "rate of the busiest ten seconds"),
    ("p95_bits_per_s", "95th percentile of the rates of ten seconds"),
    ("r_factor", "rating of the E-model (ITU-T G.107), 0 to 93.2"),
    ("mos", "mean opinion score estimated from it, 1 to 4.5"),
    ("error_ratio", "`est_bytes_error` over `est_bytes`"),
    ("unknown_sampling_ratio", "part of the flows without a known sampling rate"),
    ("log_partition", "partition of the log"),
    ("committed_offset", "one past the last offset that every table contains"),
    ("seen_offset", "one past the last offset that queries see"),
    ("end_offset", "one past the newest offset of the log as last known"),
    ("caught_up", "true where queries see everything of the log as last known"),
    ("newest_received_at", "the newest `received_at` taken since the start"),
    ("complete_until", "what was in the log until then is in SQL"),
    ("direction", "in or out: each flow counts once for each"),
    ("if_index", "the interface of that direction"),
    ("class", "name of the class: the operator's (`aggregate.classes`), else the DSCP's"),
    ("avg_packet_bytes", "mean packet size"),
    (
        "first_seen",
        "when it was first heard of: an exporter by its statistics; a talker by the hour, or longer ago the day, in which it was first among the largest",
    ),
    ("last_seen", "when it was last heard of"),
    ("sequence_received", "`sequence_expected` less `sequence_lost`"),
    ("if_name", "name of the interface, from options data or sFlow"),
    ("if_description", "its description, from options data"),
    ("vrf_id", "VRF id, as in `vrf_in` and `vrf_out` of flows"),
    ("vrf_name", "name of the VRF, from options data"),
    ("app_description", "what the exporter says about the application"),
    ("app_category", "its category"),
    ("if_speed", "speed of the interface, bits a second"),
    ("in_octets", "rise of the counter since the sample before; NULL after a restart"),
    ("out_octets", "rise of the counter since the sample before"),
    ("in_discards", "rise of the counter since the sample before"),
    ("out_discards", "rise of the counter since the sample before"),
    ("in_errors", "rise of the counter since the sample before"),
    ("out_errors", "rise of the counter since the sample before"),
    ("hour", "beginning of the hour"),
    ("day", "beginning of the day"),
    ("seconds", "since the sample before"),
    ("in_bits_per_s", "rate of what came in, by the counter"),
    ("out_bits_per_s", "rate of what went out"),
    ("in_utilisation", "its share of `if_speed`"),
    ("out_utilisation", "its share of `if_speed`"),
    ("restarted", "true where the agent restarted since the sample before: the counters then say nothing"),
    ("utilisation", "its share of `if_speed`"),
    (
        "loss_ratio",
        "part that was lost: of what exporters say they sent (`exporters`, `trust_…`), of the packets measured (`qos_…`)",
    ),
    (
        "kernel_drop_ratio",
        "part of its datagrams that the kernel dropped here (estimated, see `exporter_stats`); in `loss_ratio`, too, where the exporter counts",
    ),
    ("row_drop_ratio", "part of its flows that the collector gave up, the log not taking them (estimated)"),
];

/// Tables and columns = those in docs/tables.md, with SQL type and meaning; tables of the same columns together.
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
    let mut sections: Vec<(Vec<&str>, String)> = Vec::new();
    let mut untold = Vec::new();
    for (table, columns) in &tables {
        // The parts of rollups and the raw rows behind a view: what a person asks is the view.
        if table.ends_with("_parts") || table.ends_with("_raw") {
            continue;
        }
        let mut text = String::from("| column | type | meaning |\n|---|---|---|\n");
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
        match sections.iter_mut().find(|(_, same)| *same == text) {
            Some((names, _)) => names.push(table),
            None => sections.push((vec![table], text)),
        }
    }
    assert!(untold.is_empty(), "columns without a meaning: {untold:?}");
    assert!(tables.len() >= 10, "{:?}", tables.keys());
    let section = |(names, text): &(Vec<&str>, String)| format!("## `{}`\n\n{text}\n", names.join("`, `"));
    generated("docs/tables.md", "tables", &sections.iter().map(section).collect::<String>());
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
        "Binary" => "bytea".to_owned(),
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

/// Functions = those of the code: each has its documentation as a text `name(arguments) → meaning`.
#[test]
fn every_function_is_documented() {
    let folder = repository().join("aggregator/src/sql/functions");
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for text in source.split('"').filter(|text| text.contains(" → ") && !text.contains('\n')) {
            let (call, meaning) = text.split_once(" → ").unwrap();
            let name = call.split('(').next().unwrap_or_default();
            if !name.is_empty()
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            {
                found.insert(name.to_owned(), (call.to_owned(), meaning.to_owned()));
            }
        }
    }
    assert!(found.len() >= 20, "{:?}", found.keys());
    let mut table = String::from("| function | gives |\n|---|---|\n");
    for (call, meaning) in found.values() {
        table += &format!("| `{call}` | {} |\n", meaning.replace('|', "\\|"));
    }
    generated("docs/sql.md", "functions", &table);
    // And weir has each of them.
    let setup = Setup::new();
    let weir = setup.start();
    for name in found.keys() {
        let answer = weir.ask(&format!("select {name}()"), "application/json").text();
        assert!(!answer.contains("unknown_function"), "{name}: {answer}");
    }
    let unknown = weir.ask("select no_such_function()", "application/json").text();
    assert!(unknown.contains("unknown_function"), "{unknown}");
}
