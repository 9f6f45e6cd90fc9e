//! What `/metrics` says, parsed from the OpenMetrics text.

use std::collections::BTreeMap;

/// A metric family: what its `# TYPE`, `# HELP` and `# UNIT` lines say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    pub name: String,
    pub kind: String,
    pub help: String,
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A whole page.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub families: Vec<Family>,
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Panics where a line is none of OpenMetrics, or the end mark is missing.
    #[track_caller]
    pub fn parse(text: &str) -> Metrics {
        assert!(
            text.ends_with("# EOF\n"),
            "the end mark is missing: …{:?}",
            &text[text.len().saturating_sub(80)..]
        );
        let mut metrics = Metrics::default();
        let mut kinds = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
                kinds.insert(name.to_owned(), kind.to_owned());
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
                metrics.families.push(Family {
                    name: name.to_owned(),
                    kind: String::new(),
                    help: help.to_owned(),
                });
            } else if !line.starts_with('#') {
                metrics.samples.push(sample(line).unwrap_or_else(|| panic!("no OpenMetrics line: {line:?}")));
            }
        }
        for family in &mut metrics.families {
            family.kind = kinds.remove(&family.name).unwrap_or_default();
        }
        assert!(kinds.is_empty(), "families without HELP: {kinds:?}");
        metrics
    }

    /// The sum of all samples of a name whose labels include `labels`; None where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matching = self.samples.iter().filter(|sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).map(String::as_str) == Some(*value))
        });
        matching.map(|sample| sample.value).reduce(|a, b| a + b)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = match line.find(['{', ' '])? {
        at if line.as_bytes()[at] == b'{' => (&line[..at], &line[at..]),
        at => (&line[..at], &line[at..]),
    };
    let (labels, rest) =
        if let Some(inside) = rest.strip_prefix('{') { labels(inside)? } else { (BTreeMap::new(), rest) };
    // An exemplar may follow after ` # `.
    let value = rest.trim_start().split(' ').next()?;
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().ok()? };
    Some(Sample { name: name.to_owned(), labels, value })
}

fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.trim_start_matches(',').to_owned(), value);
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_labels_and_sums() {
        let text = "# HELP weir_a Things seen.\n# TYPE weir_a counter\nweir_a_total{x=\"1\",y=\"q\\\"}\"} 3\n\
                    weir_a_total{x=\"2\",y=\"r\"} 4 # {trace=\"z\"} 1\n# HELP weir_b Level.\n# TYPE weir_b gauge\nweir_b 2.5\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.families.len(), 2);
        assert_eq!(metrics.families[0].kind, "counter");
        assert_eq!(metrics.sum("weir_a_total", &[]), Some(7.0));
        assert_eq!(metrics.sum("weir_a_total", &[("x", "2")]), Some(4.0));
        assert_eq!(metrics.sum("weir_a_total", &[("y", "q\"}")]), Some(3.0));
        assert_eq!(metrics.sum("weir_b", &[]), Some(2.5));
        assert_eq!(metrics.sum("weir_c", &[]), None);
    }
}
