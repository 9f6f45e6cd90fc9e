//! The lines of an explanation. Octets are taken from the front of the datagram only, so that whatever is listed covers
//! it without a gap.

use serde::Serialize;
use weir_schemas::elements::Dictionary;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Octets with a name. These lines cover the datagram.
    Field,
    /// A title over the lines that follow; its span is theirs.
    Heading,
    /// What was made of it, about no octets of its own.
    Note,
    /// Where it breaks, and why; may have octets that nobody reads.
    Problem,
}

/// The element of a field, as the template names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ElementId {
    /// 0: IANA's.
    pub enterprise: u32,
    pub number: u16,
    pub data_type: &'static str,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    pub kind: Kind,
    /// How deep it is nested.
    #[serde(skip)]
    pub depth: u16,
    /// Where its octets are in the UDP payload, or in a set that waited.
    pub offset: usize,
    pub length: usize,
    /// Octets of a set that waited since an earlier datagram.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub element: Option<ElementId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the value goes; `extra.name` where there is no column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The rule that was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl Line {
    fn new(kind: Kind, depth: u16, offset: usize, length: usize, name: String) -> Line {
        Line {
            kind,
            depth,
            offset,
            length,
            held: false,
            name,
            element: None,
            value: None,
            column: None,
            rule: None,
        }
    }

    pub(super) fn value(&mut self, value: impl Into<String>) -> &mut Line {
        self.value = Some(value.into());
        self
    }

    pub(super) fn to(&mut self, column: impl Into<String>) -> &mut Line {
        self.column = Some(column.into());
        self
    }

    /// Adds a rule; several are joined.
    pub(super) fn rule(&mut self, rule: impl AsRef<str>) -> &mut Line {
        match &mut self.rule {
            None => self.rule = Some(rule.as_ref().to_owned()),
            Some(before) => {
                before.push_str("; ");
                before.push_str(rule.as_ref());
            }
        }
        self
    }
}

/// Lines in the making.
#[derive(Debug)]
pub(super) struct Listing<'a> {
    data: &'a [u8],
    dictionary: &'a Dictionary,
    at: usize,
    depth: u16,
    pub(super) lines: Vec<Line>,
}

impl<'a> Listing<'a> {
    pub(super) fn new(data: &'a [u8], dictionary: &'a Dictionary) -> Listing<'a> {
        Listing { data, dictionary, at: 0, depth: 0, lines: Vec::new() }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// What elements are called.
    pub(super) fn dictionary(&self) -> &'a Dictionary {
        self.dictionary
    }

    pub(super) fn data(&self) -> &'a [u8] {
        self.data
    }

    /// What is left before `end`.
    pub(super) fn left(&self, end: usize) -> usize {
        end.min(self.data.len()).saturating_sub(self.at)
    }

    /// The next `n` octets, fewer at the end; not taken.
    pub(super) fn peek(&self, n: usize) -> &'a [u8] {
        let end = self.at.saturating_add(n).min(self.data.len());
        self.data.get(self.at..end).unwrap_or_default()
    }

    /// Takes `n` octets, fewer at the end, as a field.
    pub(super) fn field(&mut self, n: usize, name: impl Into<String>) -> &mut Line {
        self.take(Kind::Field, n, name)
    }

    fn take(&mut self, kind: Kind, n: usize, name: impl Into<String>) -> &mut Line {
        let n = n.min(self.data.len().saturating_sub(self.at));
        let line = Line::new(kind, self.depth, self.at, n, name.into());
        self.at = self.at.saturating_add(n);
        self.push(line)
    }

    fn push(&mut self, line: Line) -> &mut Line {
        self.lines.push(line);
        // one was pushed
        let last = self.lines.len().saturating_sub(1);
        &mut self.lines[last]
    }

    /// A number of `n` octets (at most eight); it is both listed and returned.
    pub(super) fn number(&mut self, n: usize, name: impl Into<String>) -> u64 {
        let value = self.peek(n).iter().fold(0_u64, |value, octet| value << 8 | u64::from(*octet));
        self.field(n, name).value(value.to_string());
        value
    }

    /// The last line.
    pub(super) fn last(&mut self) -> Option<&mut Line> {
        self.lines.last_mut()
    }

    /// What is left before `end`, as one field.
    pub(super) fn rest(&mut self, end: usize, name: impl Into<String>, rule: &str) {
        let n = self.left(end);
        if n > 0 {
            self.field(n, name).rule(rule);
        }
    }

    /// Where it breaks: what is left before `end` is read by nobody.
    pub(super) fn broken(&mut self, end: usize, name: impl Into<String>, why: impl AsRef<str>) {
        let n = self.left(end);
        self.take(Kind::Problem, n, name).rule(why);
    }

    /// The same, where there is something left.
    pub(super) fn broken_if_left(&mut self, end: usize, name: impl Into<String>, why: impl AsRef<str>) {
        if self.left(end) > 0 {
            self.broken(end, name, why);
        }
    }

    /// A title; the lines up to [`Listing::close`] are under it.
    pub(super) fn open(&mut self, name: impl Into<String>) -> usize {
        let line = Line::new(Kind::Heading, self.depth, self.at, 0, name.into());
        self.lines.push(line);
        self.depth = self.depth.saturating_add(1);
        self.lines.len().saturating_sub(1)
    }

    /// The title's own line.
    pub(super) fn title(&mut self, heading: usize) -> Option<&mut Line> {
        self.lines.get_mut(heading)
    }

    pub(super) fn close(&mut self, heading: usize) {
        self.depth = self.depth.saturating_sub(1);
        let at = self.at;
        if let Some(line) = self.lines.get_mut(heading) {
            line.length = at.saturating_sub(line.offset);
        }
    }

    /// Something to know, about no octets.
    pub(super) fn note(&mut self, name: impl Into<String>) -> &mut Line {
        let line = Line::new(Kind::Note, self.depth, self.at, 0, name.into());
        self.push(line)
    }

    /// Takes over the lines of a set that waited.
    pub(super) fn append_held(&mut self, held: Listing<'_>) {
        let depth = self.depth;
        self.lines.extend(held.lines.into_iter().map(|line| Line {
            held: true,
            depth: line.depth.saturating_add(depth),
            ..line
        }));
    }
}

/// The first gap or overlap of the lines over `length` octets; None where they cover all.
#[cfg(test)]
pub(super) fn gap(lines: &[Line], length: usize) -> Option<usize> {
    let mut at = 0;
    let covering = |line: &&Line| !line.held && matches!(line.kind, Kind::Field | Kind::Problem);
    for line in lines.iter().filter(covering) {
        if line.offset != at {
            return Some(at);
        }
        at += line.length;
    }
    (at != length).then_some(at)
}
