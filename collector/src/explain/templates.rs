//! Template sets: every definition, field by field.

use weir_schemas::elements::Dictionary;

use super::listing::Listing;
use super::lists::element_id;
use crate::decode::template::{Definition, Field, SetKind, Space, Template, VARIABLE, next_definition};
use crate::decode::wire::u16_at;

/// What was known of a template before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Unknown,
    /// The same, defined with that datagram.
    Same(u64),
    Other(u64),
}

/// Lists the definitions up to `end`, and hands each to `each`, which says what was known before.
pub(super) fn list(
    listing: &mut Listing<'_>,
    kind: SetKind,
    end: usize,
    max_fields: usize,
    mut each: impl FnMut(&Template) -> Before,
) {
    loop {
        let left = listing.left(end);
        let Some((definition, length)) = next_definition(kind, listing.peek(left), max_fields) else { break };
        let stop = listing.at().saturating_add(length).min(end);
        match definition {
            Definition::Template(template) => {
                let before = each(&template);
                one(listing, kind, &template, stop, before);
            }
            Definition::Withdrawal(id) => {
                let heading = listing.open(format!("withdrawal of template {id}"));
                listing.field(2, "template").value(id.to_string());
                listing.field(2, "field count").value("0");
                if let Some(line) = listing.title(heading) {
                    line.rule("withdrawal ignored: over UDP it must not be followed (RFC 7011 §8.4)");
                }
                listing.close(heading);
            }
            Definition::Bad(reason) => {
                let why = why(kind, listing.peek(left), max_fields);
                bad(listing, kind, stop, &format!("{}: {why}", reason.as_str()));
            }
        }
    }
    listing.rest(end, "padding", "no template has the number 0, nor so few octets (RFC 7011 §3.3.1)");
}

fn one(listing: &mut Listing<'_>, kind: SetKind, template: &Template, end: usize, before: Before) {
    let what = if template.scope.is_some() { "options template" } else { "template" };
    let heading = listing.open(format!("{what} {}", template.id));
    let octets = template.min_record();
    let variable = template.fields.iter().any(|field| field.length == VARIABLE);
    if let Some(line) = listing.title(heading) {
        let least = if variable { "at least " } else { "" };
        line.value(format!("{} fields, records of {least}{octets} octets", template.fields.len()));
        line.rule(match before {
            Before::Unknown => "new".to_owned(),
            Before::Same(datagram) => format!("the same as in datagram {datagram}: refreshed"),
            Before::Other(datagram) => {
                format!("replaces the one of datagram {datagram}, which was another (RFC 7011 §8.4)")
            }
        });
    }
    header(listing, kind);
    let scopes = template.scope.map_or(0, usize::from);
    for (number, field) in template.fields.iter().enumerate() {
        let wire = listing.peek(2);
        let enterprise = field.space == Space::Ipfix && u16_at(wire, 0) & 0x8000 != 0;
        let dictionary = listing.dictionary();
        let name = field.name(dictionary);
        let line = listing.field(if enterprise { 8 } else { 4 }, name);
        line.value(described(*field, number < scopes, dictionary));
        line.element = Some(element_id(*field, dictionary));
        if enterprise {
            line.rule("enterprise bit: its number follows (RFC 7011 §3.2)");
        }
        if field.enterprise == weir_schemas::elements::REVERSE {
            line.rule("reverse element (RFC 5103)");
        }
    }
    listing.rest(end, "rest of the template", "its lengths are no multiple of a field's octets");
    listing.close(heading);
}

fn header(listing: &mut Listing<'_>, kind: SetKind) {
    listing.number(2, "template");
    match kind {
        SetKind::V9Template | SetKind::IpfixTemplate => {
            listing.number(2, "field count");
        }
        SetKind::V9Options => {
            listing.number(2, "scope length");
            listing.number(2, "options length");
        }
        SetKind::IpfixOptions => {
            listing.number(2, "field count");
            listing.number(2, "scope field count");
        }
    }
}

fn described(field: Field, scope: bool, dictionary: &Dictionary) -> String {
    let data_type = field.data_type(dictionary);
    let mut text = match field.length {
        VARIABLE => "variable length".to_owned(),
        1 => "1 octet".to_owned(),
        octets => format!("{octets} octets"),
    };
    if field.space != Space::V9Scope {
        text = format!("{text}, {}", data_type.name());
    }
    if scope { format!("scope, {text}") } else { text }
}

/// A definition that cannot be: its header as far as it is there.
fn bad(listing: &mut Listing<'_>, kind: SetKind, end: usize, why: &str) {
    let heading = listing.open("template that cannot be");
    let octets = if matches!(kind, SetKind::V9Template | SetKind::IpfixTemplate) { 4 } else { 6 };
    if listing.left(end) >= octets {
        header(listing, kind);
    }
    listing.broken(end, "not read", why);
    listing.close(heading);
}

/// What the decoder did not like.
fn why(kind: SetKind, rest: &[u8], max_fields: usize) -> String {
    let (id, second, third) = (u16_at(rest, 0), usize::from(u16_at(rest, 2)), usize::from(u16_at(rest, 4)));
    let (count, octets) = match kind {
        SetKind::V9Options => (second / 4 + third / 4, second + third + 6),
        SetKind::V9Template => (second, second * 4 + 4),
        SetKind::IpfixTemplate => (second, second * 4 + 4),
        SetKind::IpfixOptions => (second, second * 4 + 6),
    };
    if kind == SetKind::V9Options && (second % 4 != 0 || third % 4 != 0) {
        "scope and options length count octets, four a field".to_owned()
    } else if count == 0 {
        "no fields".to_owned()
    } else if count > max_fields {
        format!("{count} fields, more than {max_fields} (decode.max_fields)")
    } else if kind == SetKind::IpfixOptions && (third == 0 || third > count) {
        format!(
            "{third} scope fields of {count}: at least one, and not more than there are (RFC 7011 §3.4.2.2)"
        )
    } else if octets > rest.len() {
        format!("{count} fields take {octets} octets, {} are left in the set", rest.len())
    } else if id < 256 {
        format!("the number {id}: below 256 are numbers of sets (RFC 7011 §3.4.1)")
    } else {
        "records of no octets, or an enterprise number that is cut off".to_owned()
    }
}
