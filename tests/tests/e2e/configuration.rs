//! The configuration reference and the example are made from the code: the meaning of a key is the comment at its
//! field, its default what `weir check --print` prints.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use toml::{Table, Value};
use weir_tests::command::run;
use weir_tests::wait::LONG;
use weir_tests::weir::binary;
use weir_tests::{repository, update_docs};

use crate::documents::generated;

/// A field of a configuration struct.
#[derive(Debug, Clone)]
struct Field {
    name: String,
    doc: String,
    kind: String,
}

/// A key of the configuration, `section.key`.
#[derive(Debug, Clone)]
struct Key {
    section: String,
    name: String,
    doc: String,
    /// As TOML; None where there is no value by default.
    default: Option<String>,
}

/// The sources, by path.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["weir/src", "collector/src", "aggregator/src", "schemas/src"]
        .map(|folder| repository().join(folder))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                found.push((path.clone(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The fields of a struct with their comments; `near` is searched first, as two structs may have one name.
fn fields(sources: &[(PathBuf, String)], name: &str, near: &PathBuf) -> Option<(PathBuf, Vec<Field>)> {
    let mut ordered: Vec<_> = sources.iter().collect();
    ordered.sort_by_key(|(path, _)| path != near);
    let head = format!("struct {name} {{\n");
    let (path, body) = ordered.iter().find_map(|(path, text)| Some((path, text.split_once(&head)?.1)))?;
    let body = body.split_once("\n}").map_or(body, |(body, _)| body);
    let (mut fields, mut doc) = (Vec::new(), Vec::new());
    let mut lines = body.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line == "#[serde(skip)]" {
            // no key
            lines.next();
            doc.clear();
            continue;
        }
        if let Some(comment) = line.strip_prefix("///") {
            doc.push(comment.trim().to_owned());
        } else if let Some((name, kind)) =
            line.trim_start_matches("pub(crate) ").trim_start_matches("pub ").split_once(": ")
            && !line.starts_with(['#', '/'])
        {
            let kind = kind.trim_end_matches(',').to_owned();
            fields.push(Field { name: name.trim_start_matches("r#").to_owned(), doc: doc.join(" "), kind });
            doc.clear();
        }
    }
    Some((path.clone(), fields))
}

/// The inside of `Vec<…>` and `Option<…>`.
fn inner(kind: &str) -> &str {
    ["Vec<", "Option<"].iter().find_map(|outer| kind.strip_prefix(outer)?.strip_suffix('>')).unwrap_or(kind)
}

/// All keys below a struct. Their defaults are looked up in `values`.
fn keys(
    sources: &[(PathBuf, String)],
    name: &str,
    near: &PathBuf,
    section: &str,
    values: Option<&Table>,
) -> Vec<Key> {
    let (path, fields) = fields(sources, name, near).unwrap_or_else(|| panic!("no struct {name}"));
    let (mut own, mut below) = (Vec::new(), Vec::new());
    for field in fields {
        let value = values.and_then(|values| values.get(&field.name));
        let kind = inner(&field.kind).rsplit("::").next().unwrap_or_default();
        let dotted =
            if section.is_empty() { field.name.clone() } else { format!("{section}.{}", field.name) };
        if kind.ends_with("Config") {
            let list = field.kind.starts_with("Vec<");
            let at = if list { format!("{dotted}[]") } else { dotted };
            let values = if list { None } else { value.and_then(Value::as_table) };
            below.extend(keys(sources, kind, &path, &at, values));
        } else {
            own.push(Key {
                section: section.to_owned(),
                name: field.name,
                doc: field.doc,
                default: value.map(ToString::to_string),
            });
        }
    }
    own.extend(below);
    own
}

fn print_config(path: Option<&str>) -> String {
    let mut command = Command::new(binary());
    command.args(["check", "--print"]);
    if let Some(path) = path {
        command.arg("--config").arg(repository().join(path));
    }
    run(&mut command, LONG).ok()
}

/// All keys, with the defaults of the binary.
fn all_keys() -> Vec<Key> {
    let defaults: Table = toml::from_str(&print_config(None)).unwrap();
    let start = repository().join("weir/src/config/mod.rs");
    let keys = keys(&sources(), "Config", &start, "", Some(&defaults));
    // The reading of the sources is checked against the binary: every key that it prints was found, and none else.
    let mut printed = BTreeMap::new();
    flatten("", &defaults, &keys, &mut printed);
    let found: BTreeMap<String, String> = keys
        .iter()
        .filter_map(|key| {
            Some((
                format!("{}.{}", key.section, key.name).trim_start_matches('.').to_owned(),
                key.default.clone()?,
            ))
        })
        .collect();
    assert_eq!(found, printed);
    keys
}

/// The keys of a TOML table; a table that is itself a key (a map) is one.
fn flatten(section: &str, table: &Table, keys: &[Key], into: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let dotted = format!("{section}.{name}").trim_start_matches('.').to_owned();
        let is_key = keys.iter().any(|key| key.section == section && key.name == *name);
        match value {
            Value::Table(inner) if !is_key => flatten(&dotted, inner, keys, into),
            // A list of sections, empty by default.
            Value::Array(list) if !is_key && list.is_empty() => {}
            other => drop(into.insert(dotted, other.to_string())),
        }
    }
}

#[test]
fn every_key_is_documented() {
    let keys = all_keys();
    assert!(keys.len() > 50, "{} keys", keys.len());
    let untold: Vec<_> = keys
        .iter()
        .filter(|key| key.doc.is_empty())
        .map(|key| format!("{}.{}", key.section, key.name))
        .collect();
    assert!(untold.is_empty(), "keys without a comment at their field: {untold:#?}");
    let mut text = String::new();
    let mut section = None;
    for key in &keys {
        if section != Some(&key.section) {
            section = Some(&key.section);
            let heading = match key.section.as_str() {
                "" => "At the top".to_owned(),
                list if list.ends_with("[]") => format!("`[[{}]]`", list.trim_end_matches("[]")),
                name => format!("`[{name}]`"),
            };
            text += &format!(
                "{}### {heading}\n\n| key | default | meaning |\n|---|---|---|\n",
                if text.is_empty() { "" } else { "\n" }
            );
        }
        let default = key.default.as_ref().map_or_else(|| "none".to_owned(), |value| format!("`{value}`"));
        text += &format!("| `{}` | {default} | {} |\n", key.name, key.doc.replace('|', "\\|"));
    }
    generated("docs/configuration.md", "keys", &text);
}

const EXAMPLE: &str = "deploy/weir.toml";

/// The example shows every key with its default, commented out.
#[test]
fn the_example_is_the_defaults() {
    let mut text = String::from(
        "# Every key of weir with its default. Copy what you change to /etc/weir/weir.toml; `weir check --config FILE` explains\n\
         # what is wrong with it. WEIR_SECTION__KEY in the environment comes before the file.\n",
    );
    let mut section = "";
    for key in &all_keys() {
        if key.section != section {
            section = &key.section;
            let list = section.ends_with("[]");
            let name = section.trim_end_matches("[]");
            text += &if list { format!("\n#[[{name}]]\n") } else { format!("\n[{name}]\n") };
        }
        text += &wrapped(&key.doc);
        text += &match &key.default {
            Some(value) => format!("#{} = {value}\n", key.name),
            None => format!("#{} =\n", key.name),
        };
    }
    let path = repository().join(EXAMPLE);
    if update_docs() {
        std::fs::write(&path, &text).unwrap();
    }
    let have = std::fs::read_to_string(&path).unwrap();
    assert!(have == text, "{EXAMPLE} is behind the code (WEIR_UPDATE_DOCS=1 writes it anew)");
    let defaults = print_config(None);
    assert_eq!(print_config(Some(EXAMPLE)), defaults);
    // With the comment signs of the keys removed it still says the same.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("set.toml");
    std::fs::write(&file, uncommented(&text)).unwrap();
    let printed = run(Command::new(binary()).args(["check", "--print", "--config"]).arg(&file), LONG).ok();
    assert_eq!(printed, defaults);
}

/// The example with its keys set, but for those that have no default and the lists of sections.
fn uncommented(text: &str) -> String {
    let mut in_list = false;
    let mut kept = String::new();
    for line in text.lines() {
        if line.starts_with('[') || line.starts_with("#[[") {
            in_list = line.starts_with("#[[");
        }
        if !in_list && !line.ends_with(" =") {
            let key = line.starts_with('#') && !line.starts_with("# ");
            kept += if key { &line[1..] } else { line };
            kept.push('\n');
        }
    }
    kept
}

/// A comment of at most 118 columns.
fn wrapped(doc: &str) -> String {
    let (mut text, mut line) = (String::new(), String::from("#"));
    for word in doc.split_whitespace() {
        if line.len() + 1 + word.len() > 118 {
            text += &line;
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line += word;
    }
    text + &line + "\n"
}
