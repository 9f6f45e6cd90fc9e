//! The settings of a session: the few that PostgreSQL clients send or ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::{ErrorKind, QueryError};

/// What weir says it is to PostgreSQL clients, which choose their catalog queries by it.
pub const SERVER_VERSION: &str = "16.6";

/// Settings with their values at start. Those marked `true` can be set to anything: they change nothing here.
const SETTINGS: &[(&str, &str, bool)] = &[
    ("application_name", "", true),
    ("bytea_output", "hex", false),
    ("client_encoding", "UTF8", false),
    ("client_min_messages", "notice", true),
    ("datestyle", "ISO, MDY", false),
    ("default_transaction_isolation", "read committed", true),
    ("default_transaction_read_only", "on", true),
    ("extra_float_digits", "1", true),
    ("idle_in_transaction_session_timeout", "0", true),
    ("in_hot_standby", "off", false),
    ("integer_datetimes", "on", false),
    ("intervalstyle", "postgres", false),
    ("is_superuser", "off", false),
    ("jit", "off", true),
    ("lock_timeout", "0", true),
    ("max_identifier_length", "63", false),
    ("row_security", "on", true),
    ("search_path", "public", true),
    ("server_encoding", "UTF8", false),
    ("server_version", SERVER_VERSION, false),
    ("server_version_num", "160006", false),
    ("session_authorization", "weir", false),
    ("standard_conforming_strings", "on", false),
    ("statement_timeout", "", false),
    ("synchronous_commit", "on", true),
    ("timezone", "UTC", false),
    ("transaction_isolation", "read committed", true),
    ("transaction_read_only", "on", true),
];

pub(crate) fn known(name: &str) -> bool {
    SETTINGS.iter().any(|(known, ..)| *known == name)
}

/// The settings of one session.
#[derive(Debug, Clone)]
pub struct Settings {
    values: BTreeMap<String, String>,
    timeout: Duration,
    /// The server's own limit: a session may only lower it.
    timeout_max: Duration,
}

impl Settings {
    pub fn new(timeout_max: Duration) -> Self {
        Settings { values: BTreeMap::new(), timeout: timeout_max, timeout_max }
    }

    /// The time that a statement may take, its answer included.
    pub fn statement_timeout(&self) -> Duration {
        self.timeout
    }

    pub fn get(&self, name: &str) -> Option<String> {
        if name == "statement_timeout" {
            return Some(format!("{}ms", self.timeout.as_millis()));
        }
        let (_, default, _) = SETTINGS.iter().find(|(known, ..)| *known == name)?;
        Some(self.values.get(name).cloned().unwrap_or_else(|| (*default).to_owned()))
    }

    pub fn reset(&mut self, name: Option<&str>) {
        match name {
            Some("statement_timeout") => self.timeout = self.timeout_max,
            Some(name) => drop(self.values.remove(name)),
            None => *self = Settings::new(self.timeout_max),
        }
    }

    pub fn set(&mut self, name: &str, value: &str) -> Result<(), QueryError> {
        let name = name.to_lowercase();
        let refuse = |why: String| Err(QueryError::new(ErrorKind::BadSetting, why));
        if value.eq_ignore_ascii_case("default") {
            self.reset(Some(&name));
            return Ok(());
        }
        if name == "statement_timeout" {
            let Some(timeout) = duration(value) else {
                return refuse(format!("statement_timeout = '{value}': give milliseconds, or 30s, 5min"));
            };
            self.timeout = if timeout.is_zero() { self.timeout_max } else { timeout.min(self.timeout_max) };
            return Ok(());
        }
        let Some((_, fixed, free)) = SETTINGS.iter().find(|(known, ..)| *known == name) else {
            return refuse(format!("no setting \"{name}\""));
        };
        let same = match name.as_str() {
            "timezone" => {
                ["utc", "gmt", "etc/utc", "zulu", "+00:00", "0"].contains(&value.to_lowercase().as_str())
            }
            "client_encoding" => ["utf8", "utf-8", "unicode"].contains(&value.to_lowercase().as_str()),
            "datestyle" => value.to_lowercase().starts_with("iso"),
            _ => value.eq_ignore_ascii_case(fixed),
        };
        if !free && !same {
            let why = if name == "timezone" { " (times are UTC here)" } else { "" };
            return refuse(format!("{name} stays \"{fixed}\"{why}: \"{value}\" is not taken"));
        }
        self.values.insert(name, value.to_owned());
        Ok(())
    }
}

/// PostgreSQL's notation of a time: a bare number is milliseconds.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim().to_lowercase().replace(' ', "");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let millis = match &text[split..] {
        "" | "ms" => number,
        "s" => number.checked_mul(1_000)?,
        "min" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        _ => return None,
    };
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_may_only_shorten_the_timeout() {
        let mut settings = Settings::new(Duration::from_secs(30));
        settings.set("statement_timeout", "5s").unwrap();
        assert_eq!(settings.statement_timeout(), Duration::from_secs(5));
        settings.set("statement_timeout", "2h").unwrap();
        assert_eq!(settings.statement_timeout(), Duration::from_secs(30));
        settings.set("statement_timeout", "0").unwrap();
        assert_eq!(settings.statement_timeout(), Duration::from_secs(30));
        assert!(settings.set("statement_timeout", "soon").is_err());
    }

    #[test]
    fn only_known_settings_and_only_true_values() {
        let mut settings = Settings::new(Duration::from_secs(30));
        settings.set("application_name", "psql").unwrap();
        assert_eq!(settings.get("application_name").as_deref(), Some("psql"));
        settings.set("TimeZone", "UTC").unwrap();
        assert!(settings.set("timezone", "Europe/Berlin").is_err());
        assert!(settings.set("shared_buffers", "1GB").is_err());
        assert!(settings.set("datafusion.execution.target_partitions", "64").is_err());
        settings.reset(None);
        assert_eq!(settings.get("application_name").as_deref(), Some(""));
    }
}
