//! The information elements (IEs) that exporters name in their templates: what a (enterprise, id) pair is called, how its octets
//! read and in what unit it counts.
//!
//! A template compiler asks [`Dictionary::lookup`] (IPFIX, RFC 7011 §3.2) or [`Dictionary::lookup_v9`] (NetFlow v9, RFC 3954 §6)
//! once a field. The data lies in `schemas/data/*.tsv`; each file says where it comes from and how to add to it. An operator may
//! give files of the form of `enterprise.tsv`, whose elements come on top ([`Dictionary::with_files`]).
//!
//! Not here: the octets themselves (reduced-size encoding, variable lengths, lists) are the decoder's business, and so are the
//! names of values, which are in [`crate::names`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;

mod types;

pub use types::{DataType, Semantics};
use types::{nearest, nearest_type};

use crate::tables::{FlowColumn, Kind};

/// The enterprise of the elements that IANA keeps: no enterprise number on the wire (RFC 7011 §3.2).
pub const IANA: u32 = 0;
/// Under this enterprise number, id n is the reverse direction of IANA's element n (RFC 5103 §6.1).
pub const REVERSE: u32 = 29305;
/// Cisco Systems.
pub const CISCO: u32 = 9;
/// ntop (nProbe).
pub const NTOP: u32 = 35632;

/// An IPFIX id has 15 bits (RFC 7011 §3.2); above them NetFlow v9 numbers the vendors' own fields.
const MAX_IPFIX_ID: u16 = 0x7fff;
/// nProbe exports its element n in NetFlow v9 as field type 57472 + n (nProbe user's guide, information elements).
const NTOP_V9_BASE: u16 = 57472;
/// Cisco exports its element n in NetFlow v9 as field type 32768 + n: the bit that means "enterprise" in IPFIX.
const CISCO_V9_BASE: u16 = 32768;
/// What stands in the first column of a user's file instead of an enterprise number for a NetFlow v9 field type.
const V9_KEYWORD: &str = "netflow9";
const MAX_NAME_BYTES: usize = 128;

/// An information element: a row of the dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The private enterprise number; 0 for IANA's elements and for NetFlow v9 field types, which have none.
    pub enterprise: u32,
    /// The id within the enterprise; for a NetFlow v9 field type all 16 bits of it.
    pub id: u16,
    /// The name as its registry or vendor spells it. No two elements of a dictionary have the same.
    pub name: Box<str>,
    /// How the octets read.
    pub data_type: DataType,
    /// What the value is.
    pub semantics: Semantics,
    /// The unit, in the words of the IANA registry: `octets`, `packets`, `milliseconds`, …
    pub units: Option<Box<str>>,
    /// The column of `flows` that it fills; None: it goes to `extra` under its name, or the decoder knows what it is.
    pub column: Option<FlowColumn>,
    /// It comes from a user's file: its column goes before what weir would choose.
    pub from_user: bool,
}

/// Why a dictionary file was not taken. Nothing of the file is.
#[derive(Debug, thiserror::Error)]
pub enum DictionaryError {
    /// The file could not be read.
    #[error("cannot read the dictionary {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A line is not an element. Line and column count from 1; the column is that of the first character of the wrong field.
    #[error("{file}:{line}:{column}: {problem}")]
    Line { file: String, line: usize, column: usize, problem: String },
}

/// Which numbers an element is found under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Ipfix(u32, u16),
    V9(u16),
}

/// What the columns of a file are.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// enterprise, id, name, type, semantics, units, column
    Enterprise,
    /// The same, of a user
    User,
    /// id, name, type, semantics, units: all of IANA
    Iana,
    /// the same: all NetFlow v9 field types
    V9,
}

impl Form {
    /// Which field is the id.
    const fn first_field(self) -> usize {
        if matches!(self, Form::Enterprise | Form::User) { 1 } else { 0 }
    }
}

/// All elements that are known, by number and by name.
#[derive(Debug, Clone, Default)]
pub struct Dictionary {
    elements: Vec<(Key, Element)>,
    by_key: HashMap<Key, usize>,
    by_name: HashMap<Box<str>, usize>,
}

impl Dictionary {
    /// The elements that weir comes with: IANA's, their reverses (RFC 5103), the NetFlow v9 field types that IANA does not have, and
    /// those of some twenty vendors. Parsed at the first call.
    pub fn builtin() -> &'static Dictionary {
        static BUILTIN: OnceLock<Dictionary> = OnceLock::new();
        BUILTIN.get_or_init(|| {
            let mut dictionary = Dictionary::default();
            for (form, text, name) in [
                (Form::Iana, include_str!("../data/iana.tsv"), "iana.tsv"),
                (Form::V9, include_str!("../data/netflow9.tsv"), "netflow9.tsv"),
                (Form::Enterprise, include_str!("../data/enterprise.tsv"), "enterprise.tsv"),
            ] {
                // the files are part of the program and a test reads them: an error here is a bug of ours
                dictionary.extend(form, text, name).expect("a built-in dictionary file is wrong");
            }
            dictionary
        })
    }

    /// The built-in dictionary with users' files on top of it, the later ones over the earlier.
    pub fn with_files(paths: &[PathBuf]) -> Result<Dictionary, DictionaryError> {
        let mut dictionary = Dictionary::builtin().clone();
        for path in paths {
            let text = std::fs::read_to_string(path)
                .map_err(|source| DictionaryError::Read { path: path.clone(), source })?;
            dictionary.extend_from_str(&text, &path.display().to_string())?;
        }
        Ok(dictionary)
    }

    /// Takes the elements of a text of the form of `schemas/data/enterprise.tsv`: enterprise number, id, name, type, semantics,
    /// units and column, separated by tabs; the last three may be missing. `netflow9` as the enterprise makes it a NetFlow v9
    /// field type. An element that the dictionary has already is replaced. `source_name` is the file's name in messages. After an
    /// error the dictionary is unchanged.
    pub fn extend_from_str(&mut self, text: &str, source_name: &str) -> Result<(), DictionaryError> {
        self.extend(Form::User, text, source_name)
    }

    /// The element of an IPFIX field: its enterprise number (0 without one) and its id without the enterprise bit.
    pub fn lookup(&self, enterprise: u32, id: u16) -> Option<&Element> {
        self.get(Key::Ipfix(enterprise, id))
    }

    /// The element of a NetFlow v9 field type. v9's own meaning comes first, then IANA's element of the same number, then the
    /// numbers under which ntop and Cisco send their enterprise elements; those come back as that enterprise's element.
    pub fn lookup_v9(&self, id: u16) -> Option<&Element> {
        if let Some(element) = self.get(Key::V9(id)) {
            return Some(element);
        }
        if id <= MAX_IPFIX_ID {
            return self.lookup(IANA, id);
        }
        let ntop = id.checked_sub(NTOP_V9_BASE).and_then(|id| self.lookup(NTOP, id));
        ntop.or_else(|| self.lookup(CISCO, id - CISCO_V9_BASE))
    }

    /// The element of that name, to the letter.
    pub fn by_name(&self, name: &str) -> Option<&Element> {
        self.by_name.get(name).map(|&at| &self.elements[at].1)
    }

    /// All IPFIX elements, in the order of the files; each of IANA's is followed by its reverse.
    pub fn iter(&self) -> impl Iterator<Item = &Element> {
        self.elements.iter().filter(|(key, _)| matches!(key, Key::Ipfix(..))).map(|(_, element)| element)
    }

    /// The field types that only NetFlow v9 has.
    pub fn iter_v9(&self) -> impl Iterator<Item = &Element> {
        self.elements.iter().filter(|(key, _)| matches!(key, Key::V9(_))).map(|(_, element)| element)
    }

    fn get(&self, key: Key) -> Option<&Element> {
        self.by_key.get(&key).map(|&at| &self.elements[at].1)
    }

    fn extend(&mut self, form: Form, text: &str, source_name: &str) -> Result<(), DictionaryError> {
        let before = self.clone();
        let result = self.extend_lines(form, text, source_name);
        if result.is_err() {
            *self = before;
        }
        result
    }

    fn extend_lines(&mut self, form: Form, text: &str, source_name: &str) -> Result<(), DictionaryError> {
        let mut lines_of: HashMap<Key, usize> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let taken = parse_line(form, line).and_then(|(key, element)| {
                if let Some(first) = lines_of.insert(key, index + 1) {
                    return Err(Wrong {
                        field: 0,
                        problem: format!("the element is already on line {first}"),
                    });
                }
                let name_field = form.first_field() + 1;
                let in_name = |problem| Wrong { field: name_field, problem };
                if let Key::Ipfix(IANA, _) = key {
                    let (key, reverse) = reverse_of(&element);
                    self.insert(Key::Ipfix(IANA, element.id), element).map_err(in_name)?;
                    return self.insert(key, reverse).map_err(in_name);
                }
                self.insert(key, element).map_err(in_name)
            });
            taken.map_err(|wrong| DictionaryError::Line {
                file: source_name.to_owned(),
                line: index + 1,
                column: column_of(line, wrong.field),
                problem: wrong.problem,
            })?;
        }
        Ok(())
    }

    fn insert(&mut self, key: Key, element: Element) -> Result<(), String> {
        let known = self.by_key.get(&key).copied();
        if let Some(&at) = self.by_name.get(&element.name)
            && Some(at) != known
        {
            let (_, other) = &self.elements[at];
            return Err(format!(
                "the name {:?} belongs to element {}:{}; give this one another",
                element.name, other.enterprise, other.id
            ));
        }
        let at = known.unwrap_or(self.elements.len());
        if let Some((_, old)) = self.elements.get(at) {
            self.by_name.remove(&old.name);
        }
        self.by_name.insert(element.name.clone(), at);
        self.by_key.insert(key, at);
        match self.elements.get_mut(at) {
            Some(slot) => *slot = (key, element),
            None => self.elements.push((key, element)),
        }
        Ok(())
    }
}

/// RFC 5103 §6.1: the same element with "reverse" before its name, under an enterprise number of its own.
fn reverse_of(element: &Element) -> (Key, Element) {
    let mut letters = element.name.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    let name: String = "reverse".chars().chain(first).chain(letters).collect();
    let reverse = Element { enterprise: REVERSE, name: name.into(), column: None, ..element.clone() };
    (Key::Ipfix(REVERSE, element.id), reverse)
}

/// What is wrong with a line, and in which of its fields (from 0).
struct Wrong {
    field: usize,
    problem: String,
}

fn parse_line(form: Form, line: &str) -> Result<(Key, Element), Wrong> {
    let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
    let first = form.first_field();
    let wrong = |field: usize, problem: String| Err(Wrong { field, problem });
    if fields.len() == 1 {
        return wrong(0, "no tab in this line: the columns are separated by tabs".to_owned());
    }
    if fields.len() < first + 3 {
        let problem = format!("{} columns: at least id, name and type are needed", fields.len());
        return wrong(fields.len() - 1, problem);
    }
    let most = if first == 1 { 7 } else { 5 };
    if fields.len() > most {
        return wrong(most, format!("a column too many: {:?}", fields[most]));
    }

    let id = match fields[first].parse::<u16>() {
        Ok(id) => id,
        Err(_) => return wrong(first, format!("{:?} is not an id from 0 to 65535", fields[first])),
    };
    let key = match form {
        Form::Iana => Key::Ipfix(IANA, id),
        Form::V9 => Key::V9(id),
        Form::Enterprise | Form::User if fields[0] == V9_KEYWORD => Key::V9(id),
        Form::Enterprise | Form::User => match fields[0].parse::<u32>() {
            Ok(REVERSE) => {
                return wrong(
                    0,
                    format!("{REVERSE} is the reverse of IANA's element (RFC 5103): define that"),
                );
            }
            Ok(enterprise) => Key::Ipfix(enterprise, id),
            Err(_) => {
                let problem = format!("{:?} is not an enterprise number (nor {V9_KEYWORD:?})", fields[0]);
                return wrong(0, problem);
            }
        },
    };
    if matches!(key, Key::Ipfix(..)) && id > MAX_IPFIX_ID {
        let problem = format!(
            "id {id} is more than {MAX_IPFIX_ID}; for a NetFlow v9 field type write {V9_KEYWORD} as the enterprise"
        );
        return wrong(first, problem);
    }

    let name = fields[first + 1];
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(fits) {
        let problem =
            format!("{name:?} is not a name: 1 to {MAX_NAME_BYTES} letters, digits, '_', '-' or '.'");
        return wrong(first + 1, problem);
    }
    let type_name = fields[first + 2];
    let Some(data_type) = DataType::from_name(type_name) else {
        let problem =
            format!("{type_name:?} is not a data type; the nearest is {:?}", nearest_type(type_name));
        return wrong(first + 2, problem);
    };
    let semantics_name = fields.get(first + 3).copied().unwrap_or_default();
    let semantics = match semantics_name {
        "" | "-" => Semantics::Default,
        name => match Semantics::from_name(name) {
            Some(semantics) => semantics,
            None => {
                let all: Vec<_> = Semantics::ALL.iter().map(|semantics| semantics.name()).collect();
                return wrong(first + 3, format!("{name:?} is not a semantics; one of {}", all.join(", ")));
            }
        },
    };
    let units = fields.get(first + 4).copied().filter(|units| !matches!(*units, "" | "-")).map(Box::from);
    let enterprise = if let Key::Ipfix(enterprise, _) = key { enterprise } else { IANA };
    let column = match fields.get(first + 5).copied().filter(|_| first == 1) {
        None | Some("" | "-") => None,
        Some(column) => match target(column, data_type, units.as_deref()) {
            Ok(column) => Some(column),
            Err(problem) => return wrong(first + 5, problem),
        },
    };
    let from_user = matches!(form, Form::User);
    Ok((key, Element { enterprise, id, name: name.into(), data_type, semantics, units, column, from_user }))
}

/// The column of that name, if an element of this type and unit can fill it.
fn target(name: &str, data_type: DataType, units: Option<&str>) -> Result<FlowColumn, String> {
    use DataType as T;
    let open = || FlowColumn::all().filter(|column| accepts(*column));
    let Some(column) = open().find(|column| column.column().name == name) else {
        if FlowColumn::all().any(|column| column.column().name == name) {
            return Err(format!("the column {name:?} is filled by weir itself"));
        }
        let near = nearest(name, open().map(|column| column.column().name)).unwrap_or_default();
        return Err(format!("there is no column {name:?}; the nearest is {near:?}"));
    };
    let kind = column.column().kind;
    let fits = match kind {
        Kind::Ip => matches!(data_type, T::Ipv4Address | T::Ipv6Address),
        Kind::Mac => data_type == T::MacAddress,
        Kind::Text => data_type == T::String,
        _ => matches!(data_type, T::Unsigned8 | T::Unsigned16 | T::Unsigned32 | T::Unsigned64),
    };
    if !fits {
        return Err(format!("an element of type {} cannot fill the column {name:?}", data_type.name()));
    }
    let units = units.unwrap_or("microseconds");
    if name.ends_with("_us") && !["seconds", "milliseconds", "microseconds", "nanoseconds"].contains(&units) {
        return Err(format!("the column {name:?} holds microseconds: {units:?} cannot be converted"));
    }
    Ok(column)
}

/// True for the columns that an element can fill by its value alone.
fn accepts(column: FlowColumn) -> bool {
    use FlowColumn::{AgentAddr, ExporterAddr, ObservationDomain, SenderAddr};
    match column.column().kind {
        Kind::Ip | Kind::U32 => !matches!(column, ExporterAddr | SenderAddr | AgentAddr | ObservationDomain),
        Kind::Mac | Kind::U8 | Kind::U16 | Kind::U64 | Kind::Text => true,
        _ => false,
    }
}

/// The column, in characters from 1, at which a tab-separated field of the line starts, its leading spaces left out.
fn column_of(line: &str, field: usize) -> usize {
    let mut column = 1;
    for (index, text) in line.split('\t').enumerate() {
        if index == field {
            return column + text.chars().take_while(|letter| *letter == ' ').count();
        }
        column += text.chars().count() + 1;
    }
    column
}

#[cfg(test)]
mod tests;
