//! How a configuration is read: a TOML file, then the environment, both strict.
//!
//! A mistake names the file, the line, the key and, where there is one, the nearest valid key.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// A configuration that cannot be used. The message is complete: what, where, what would be right.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{place}: {message}")]
    Invalid { place: String, message: String },
}

/// Prefix of the variables that override keys: `WEIR_SECTION__KEY`.
const PREFIX: &str = "WEIR_";

/// The text of the file; none where there is no file.
pub(crate) fn read(path: Option<&Path>) -> Result<String, ConfigError> {
    let Some(path) = path else { return Ok(String::new()) };
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// Lays the variables of `environment` over the text of the file and returns what it means.
pub(crate) fn load<T: DeserializeOwned>(
    text: &str,
    path: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let place = path.map_or_else(|| "defaults".to_owned(), |path| path.display().to_string());
    // First the file by itself, so that a mistake in it is reported with its line.
    let from_file: T = toml::from_str(text).map_err(|error| explain(&error, &place, Some(text)))?;
    let variables: Vec<_> =
        environment.filter(|(name, _)| name.starts_with(PREFIX) && name.contains("__")).collect();
    if variables.is_empty() {
        return Ok(from_file);
    }
    let base: Table = toml::from_str(text).map_err(|error| explain(&error, &place, Some(text)))?;
    // One at a time, so that a mistake names its variable.
    let mut merged = base;
    for (name, value) in &variables {
        set(&mut merged, name, value)?;
        T::deserialize(Value::Table(merged.clone()))
            .map_err(|error| explain(&error, &format!("environment variable {name}"), None))?;
    }
    T::deserialize(Value::Table(merged)).map_err(|error| explain(&error, "environment", None))
}

/// Sets the key that the variable names. A value that reads as TOML is taken as such, any other as text.
fn set(table: &mut Table, name: &str, text: &str) -> Result<(), ConfigError> {
    let keys: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let Some((last, sections)) = keys.split_last() else { return Ok(()) };
    let mut at = table;
    for section in sections {
        let entry = at.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else {
            return Err(ConfigError::Invalid {
                place: format!("environment variable {name}"),
                message: format!("`{section}` is a value, not a section"),
            });
        };
        at = inner;
    }
    at.insert(last.clone(), value);
    Ok(())
}

/// Turns a TOML error into one line with place, key and remedy.
fn explain(error: &toml::de::Error, place: &str, text: Option<&str>) -> ConfigError {
    let mut place = place.to_owned();
    let mut message = error.message().trim().replace('\n', " ");
    if let (Some(span), Some(text)) = (error.span(), text) {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
        place = format!("{place}:{line}:{column}");
        let found = text.lines().nth(line - 1).unwrap_or("").trim();
        if !found.is_empty() {
            message = format!("{message} (in `{found}`)");
        }
    }
    if let Some(hint) = nearest_key(error.message()) {
        message = format!("{message}; did you mean `{hint}`?");
    }
    ConfigError::Invalid { place, message }
}

/// serde says "unknown field `x`, expected one of `a`, `b`" (or "unknown variant"): which of them is meant?
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown ") {
        return None;
    }
    let wrong = quoted.next()?;
    let near = |known: &&str| strsim::jaro_winkler(wrong, known) > 0.7;
    quoted
        .filter(near)
        .max_by(|a, b| strsim::jaro_winkler(wrong, a).total_cmp(&strsim::jaro_winkler(wrong, b)))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        data_dir: PathBuf,
        batch: Batch,
    }

    impl Default for Sample {
        fn default() -> Self {
            Sample { data_dir: "x".into(), batch: Batch::default() }
        }
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Batch {
        batch_rows: u32,
        batch_age_ms: u32,
        listen: Vec<String>,
    }

    impl Default for Batch {
        fn default() -> Self {
            Batch { batch_rows: 10, batch_age_ms: 500, listen: vec![] }
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn env(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn file_then_environment() {
        let file = file("[batch]\nbatch_rows = 20\n");
        let pairs = [
            ("WEIR_BATCH__BATCH_AGE_MS", "7"),
            ("WEIR_BATCH__LISTEN", "[\"a:1\"]"),
            ("WEIR_KAFKA_BOOTSTRAP", "not a key: no section"),
            ("HOME", "/root"),
        ];
        let text = read(Some(file.path())).unwrap();
        let sample: Sample = load(&text, Some(file.path()), env(&pairs)).unwrap();
        assert_eq!(sample.batch, Batch { batch_rows: 20, batch_age_ms: 7, listen: vec!["a:1".to_owned()] });
    }

    #[test]
    fn mistakes_name_line_key_and_remedy() {
        for (text, pairs, wanted) in [
            (
                "# c\n[batch]\nbatch_row = 20\n",
                &[][..],
                vec![":3:1:", "batch_row", "did you mean `batch_rows`?"],
            ),
            ("[batsh]\n", &[], vec![":1:", "did you mean `batch`?"]),
            ("[batch]\nbatch_rows = \"x\"\n", &[], vec![":2:", "invalid type"]),
            ("[batch\n", &[], vec![":1:"]),
            (
                "",
                &[("WEIR_BATCH__BATCH_AGE", "7")],
                vec!["WEIR_BATCH__BATCH_AGE", "did you mean `batch_age_ms`?"],
            ),
            ("", &[("WEIR_BATCH__BATCH_ROWS", "many")], vec!["WEIR_BATCH__BATCH_ROWS", "invalid type"]),
            ("", &[("WEIR_DATA_DIR__X", "1")], vec!["WEIR_DATA_DIR__X"]),
        ] {
            let file = file(text);
            let error = load::<Sample>(text, Some(file.path()), env(pairs)).unwrap_err().to_string();
            for part in wanted {
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
        }
    }
}
