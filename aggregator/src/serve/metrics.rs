//! Metrics of the doors, and one page of our own and the collector's.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long the collector has for an answer.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(2);
/// Its answer's largest size.
const COLLECTOR_BYTES: u64 = 16 << 20;

/// The route, as written in the router, and the status.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(super) route: &'static str,
    pub(super) status: u16,
}

/// The metrics of the doors.
#[derive(Debug, Default)]
pub struct ServeMetrics {
    pub(super) http_requests: Family<RequestLabels, Counter>,
    pub(super) http_active: Gauge,
    pub(super) pg_connections: Gauge,
}

impl ServeMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_http_requests",
            "HTTP requests by route and status",
            self.http_requests.clone(),
        );
        registry.register("weir_http_active_requests", "HTTP requests in progress", self.http_active.clone());
        registry.register("weir_pg_connections", "Open PostgreSQL connections", self.pg_connections.clone());
    }
}

/// Asks the collector's admin socket for `path`: the status and the body.
pub(super) async fn ask_collector(socket: &Path, path: &str) -> std::io::Result<(u16, String)> {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\nHost: weir\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        stream.take(COLLECTOR_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(COLLECTOR_TIMEOUT, ask)
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let bad = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let text = String::from_utf8(answer).map_err(|_| bad())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok((status, body.to_owned()))
}

/// One exposition of several: each family once, one end mark. A family that an earlier one has is left out of the
/// later, as a family may stand in one place only.
pub(super) fn merge(expositions: &[&str]) -> String {
    let mut merged = String::new();
    let mut seen = HashSet::new();
    for exposition in expositions {
        let mut mine: HashSet<String> = HashSet::new();
        let mut skipping = false;
        for line in exposition.lines() {
            if line == "# EOF" || line.is_empty() {
                continue;
            }
            if let Some(comment) = line.strip_prefix("# ") {
                let family = comment.split(' ').nth(1).unwrap_or_default();
                skipping = seen.contains(family);
                mine.insert(family.to_owned());
            }
            if !skipping {
                merged.push_str(line);
                merged.push('\n');
            }
        }
        seen.extend(mine);
    }
    merged.push_str("# EOF\n");
    merged
}

/// The same page in Prometheus' text format 0.0.4: there a counter's family has the name of its samples (`…_total`),
/// and there are no units and no end mark.
pub(super) fn text_format(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // HELP stands before TYPE, which says what the name becomes
    let mut help = None;
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(family), words) => {
                help = Some((family, words.unwrap_or_default()));
            }
            (Some("#"), Some("TYPE"), Some(family), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                if let Some((_, words)) = help.take().filter(|(helped, _)| *helped == family) {
                    text.push_str(&format!("# HELP {family}{suffix} {words}\n"));
                }
                text.push_str(&format!("# TYPE {family}{suffix} {kind}\n"));
            }
            (Some("#"), ..) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_pages_have_one_end_and_each_family_once() {
        let one = "# HELP a A.\n# TYPE a counter\na_total 1\n# EOF\n";
        let two = "# HELP b B.\n# TYPE b gauge\nb 2\n# HELP a A.\n# TYPE a counter\na_total 5\n# EOF\n";
        let merged = merge(&[one, two]);
        assert_eq!(
            merged,
            "# HELP a A.\n# TYPE a counter\na_total 1\n# HELP b B.\n# TYPE b gauge\nb 2\n# EOF\n"
        );
        assert_eq!(merge(&[]), "# EOF\n");
    }

    #[test]
    fn the_older_format_names_counters_by_their_samples() {
        let page = "# HELP a Some a.\n# TYPE a counter\n# UNIT a bytes\na_total{x=\"1 2\"} 1\n# HELP b B.\n# TYPE b gauge\n\
                    b 2\n# HELP i I.\n# TYPE i info\ni_info{v=\"1\"} 1\n# EOF\n";
        assert_eq!(
            text_format(page),
            "# HELP a_total Some a.\n# TYPE a_total counter\na_total{x=\"1 2\"} 1\n# HELP b B.\n# TYPE b gauge\nb 2\n\
             # HELP i_info I.\n# TYPE i_info gauge\ni_info{v=\"1\"} 1\n"
        );
    }
}
