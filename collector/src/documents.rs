//! Documents about decoding that are made from the code: `docs/rules.md`, which test shows which rule, and
//! `docs/elements.md`, which information element goes to which column. `WEIR_UPDATE_DOCS=1` writes them anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rules of decoding and accounting, by number from 1.
const RULES: [(&str, &str); 53] = [
    ("Framing and templates", "The record count of a v9 header is a hint: a wrong one costs nothing"),
    (
        "",
        "An IPFIX message is as long as it says if the datagram is; sets are walked by their lengths; a set that nobody knows costs only itself",
    ),
    ("", "Padding is whatever is too short for a record, in template sets too"),
    ("", "Padding may be of any octets, and IE 210 may come more than once"),
    ("", "A template whose records would have no octets is refused: every step of a loop consumes something"),
    (
        "",
        "A variable-length field takes one octet at least; the long form of the length is good for short values",
    ),
    ("", "Over UDP nobody withdraws a template"),
    ("", "Another template under a used id replaces it and is told of; the same again is a refresh"),
    (
        "",
        "Templates belong to a session and domain: two exporters behind one address do not mix, one that changes its port goes on",
    ),
    ("", "Templates and options templates have their ids from one space: the last definition owns the id"),
    ("", "A template that is not refreshed for its lifetime decodes no more"),
    ("", "An exporter that restarted is asked for its templates and options anew"),
    (
        "",
        "Data before its template waits, within bounds of bytes, sets and time, and keeps its own receive time",
    ),
    ("", "An element may be in a template twice: the first is the column, every one is kept"),
    ("", "Options have a scope: what they say holds for that scope, unless the operator says otherwise"),
    ("", "The enterprise bit is no part of an element's number, in scopes and options too"),
    ("Sequence and loss", "v5 and v7 count flows"),
    ("", "v9 counts export packets, of each source id"),
    ("", "IPFIX counts data records, options data included, modulo 2^32"),
    ("", "After a set that could not be read the IPFIX count is uncertain, and nothing is called lost"),
    ("", "sFlow has three losses: datagrams, samples, and what the agent dropped"),
    (
        "",
        "A number that goes back a little is reordering and gives back what was called lost; a long way is a reset",
    ),
    ("", "Loss on the way, in the kernel and in the queues are three counts"),
    (
        "Sampling",
        "The surest rate wins: operator, record, sampler, interface, system, header, default, unknown; and the row says which",
    ),
    ("", "A rate is a ratio: (305+306)/305, 310/309, 1/p"),
    ("", "The two upper bits of v5's sampling field are a mode"),
    (
        "",
        "Options may follow the data that needs them; other domains, little-endian rates and the like only where configured; zero is no rate",
    ),
    (
        "",
        "Counters are kept as exported; the rate stands beside them, and an exporter that scales its own is told by a switch",
    ),
    ("", "sFlow's effective rate is packets of the pool over samples, beside the rate that is announced"),
    (
        "Time",
        "v5 and v9 times are the header's clock less a signed distance of uptimes in milliseconds, modulo 2^32",
    ),
    ("", "Every time element has its own unit and epoch: NTP in 154 to 157, uptime only with the boot time"),
    (
        "",
        "Numbers may be shorter than their type; one that is too great for its column goes to `extra` whole",
    ),
    ("", "Times outside the plausible window give way to the receive time, and the row says so"),
    ("", "sFlow has no clock: its time is the receive time, its uptime only tells a restart"),
    (
        "Identity, direction, duplicates",
        "The exporter is the sFlow agent, IE 130/131 or the UDP source, in the configured order; all are kept",
    ),
    ("", "Direction is what the exporter says, or follows from sFlow's data source; else it is unknown"),
    ("", "Of several counters of one thing one is taken; the others are kept, never added"),
    ("", "The other half of a biflow is a row of its own, unless it has no packets"),
    ("", "Rows that are alike are two rows: nothing is thrown away before a query"),
    ("", "sFlow's interfaces have a form: ifIndex, discarded, multiple, local, unknown"),
    ("", "Discarded packets are rows of their own table, never part of what was delivered"),
    ("", "All ones in a counter is no value"),
    (
        "Fields",
        "ICMP type and code in the destination port are read in v5 and v9, of ICMP only, where no element says better",
    ),
    (
        "",
        "Of an IPv4 and an IPv6 address in one record the one that applies is taken; an IPv4 address stays one",
    ),
    ("", "VLAN ids of different kinds are different columns; tags of a frame are kept outer first"),
    ("", "A label is 20 bits; its EXP bits are kept"),
    ("", "AS numbers are as exported (AS_TRANS too), and a next hop that is not known is not an address"),
    ("", "Events of translators and firewalls have no volume: they go to a table of their own"),
    (
        "",
        "Tunnels are parsed layer by layer within bounds, outer and inner; a cut header says so; later fragments have no ports",
    ),
    (
        "",
        "DSCP and ECN are parts of the ToS byte or the traffic class; before and after re-marking are two columns",
    ),
    (
        "",
        "An element that is not known is kept by its number; a text that is not UTF-8 is kept as far as it is",
    ),
    ("", "What is malformed is counted by its reason and dropped, and what is good beside it is kept"),
    ("", "Whatever a sender can choose the size of has a bound"),
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares a document with what it should be, or writes it.
pub(crate) fn generated(file: &str, wanted: &str) {
    let path = repository().join(file);
    if std::env::var_os("WEIR_UPDATE_DOCS").is_some() {
        fs::write(&path, wanted).unwrap();
    }
    let have = fs::read_to_string(&path).unwrap_or_default();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (have_lines, wanted_lines) = (lines(&have), lines(wanted));
    let lacks: Vec<_> = wanted_lines.difference(&have_lines).collect();
    let extra: Vec<_> = have_lines.difference(&wanted_lines).collect();
    assert!(
        have == wanted,
        "{file} is behind the code (WEIR_UPDATE_DOCS=1 writes it anew)\nlacks: {lacks:#?}\nhas too much: {extra:#?}"
    );
}

/// Rust sources of the workspace that may hold tests of rules.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// Numbers in a text like "rule 3, rule 17" or `rule_03_rule_04_…`.
fn rules_in(text: &str) -> impl Iterator<Item = usize> + '_ {
    let text = text.split(|c: char| !c.is_ascii_alphanumeric()).collect::<Vec<_>>();
    let after = |pair: &[&str]| pair[0].eq_ignore_ascii_case("rule").then(|| pair[1].parse().ok()).flatten();
    text.windows(2).filter_map(after).collect::<Vec<_>>().into_iter()
}

/// The tests of each rule, as `file::test`: those with `rule_NN` in their name, or "Rule NN" in their comment.
fn tests_by_rule() -> BTreeMap<usize, BTreeSet<String>> {
    let mut files = Vec::new();
    for folder in ["schemas/src", "collector/src", "aggregator/src", "weir/src", "tests/tests"] {
        sources(&repository().join(folder), &mut files);
    }
    let mut tests: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.strip_prefix(repository()).unwrap().display().to_string();
        let (mut is_test, mut comment) = (false, Vec::new());
        for line in text.lines().map(str::trim_start) {
            if let Some(text) = line.strip_prefix("///") {
                comment.extend(rules_in(text));
            } else if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")) {
                let function = rest.split(['(', '<']).next().unwrap_or_default();
                if is_test {
                    for rule in comment.drain(..).chain(rules_in(function)) {
                        tests.entry(rule).or_default().insert(format!("{name}::{function}"));
                    }
                }
                (is_test, comment) = (false, Vec::new());
            } else if !line.starts_with('#') {
                comment.clear();
            }
        }
    }
    tests
}

#[test]
fn every_rule_has_a_test_that_names_it() {
    let tests = tests_by_rule();
    let unknown: Vec<_> = tests.keys().filter(|rule| !(1..=RULES.len()).contains(*rule)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    let mut text = String::from(
        "# The rules of decoding\n\nWhat weir holds to, and the tests that show it. Made from the code: \
         `WEIR_UPDATE_DOCS=1 cargo test --release -p weir-collector --lib document` writes it anew.\n",
    );
    let mut without = Vec::new();
    for (number, (section, rule)) in (1..).zip(RULES) {
        if !section.is_empty() {
            text += &format!("\n## {section}\n\n| rule | what | tests |\n|---|---|---|\n");
        }
        let Some(of_rule) = tests.get(&number) else {
            without.push(number);
            continue;
        };
        let links: Vec<String> = of_rule
            .iter()
            .map(|test| {
                let (file, function) = test.split_once("::").unwrap();
                format!("[{function}](../{file})")
            })
            .collect();
        text += &format!("| {number} | {rule} | {} |\n", links.join(" "));
    }
    assert!(without.is_empty(), "no test names rule {without:?}");
    generated("docs/rules.md", &text);
}
