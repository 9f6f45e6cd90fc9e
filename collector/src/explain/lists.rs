//! Structured data inside a field: basicList, subTemplateList and subTemplateMultiList (RFC 6313 §4.5).

use weir_schemas::elements::{DataType, Dictionary};

use super::listing::{ElementId, Listing};
use super::values;
use crate::decode::format::{basic_list_head, split_value};
use crate::decode::template::{Field, Template, VARIABLE};
use crate::decode::wire::u16_at;

/// Lists in lists are looked into this deep.
const MAX_DEPTH: u16 = 4;

/// Templates by their id, as the exporter defined them.
pub(super) type Templates<'a> = dyn Fn(u16) -> Option<std::sync::Arc<Template>> + 'a;

/// Lists a value of one of the list types up to `end`; false where it is of another type.
pub(super) fn list(
    listing: &mut Listing<'_>,
    data_type: DataType,
    end: usize,
    near_us: i64,
    templates: &Templates<'_>,
    depth: u16,
) -> bool {
    if depth >= MAX_DEPTH {
        return false;
    }
    match data_type {
        DataType::BasicList => basic(listing, end, near_us, templates, depth),
        DataType::SubTemplateList => sub_template(listing, end, near_us, templates, depth),
        DataType::SubTemplateMultiList => multi(listing, end, near_us, templates, depth),
        _ => return false,
    }
    true
}

/// RFC 6313 §4.4
fn semantic(listing: &mut Listing<'_>) {
    let name = match listing.peek(1) {
        [0] => "noneOf",
        [1] => "exactlyOneOf",
        [2] => "oneOrMoreOf",
        [3] => "allOf",
        [4] => "ordered",
        [255] => "undefined",
        _ => "unassigned",
    };
    let value = listing.peek(1).first().copied().unwrap_or(0);
    listing.field(1, "list semantic").value(format!("{value} ({name})"));
}

fn basic(listing: &mut Listing<'_>, end: usize, near_us: i64, templates: &Templates<'_>, depth: u16) {
    let bytes = listing.peek(listing.left(end));
    let Some((field, _)) = basic_list_head(bytes) else {
        listing.broken(end, "basicList", "shorter than its header of 5 octets (9 with an enterprise number)");
        return;
    };
    semantic(listing);
    let heading = if u16_at(bytes, 1) & 0x8000 != 0 { 8 } else { 4 };
    let name = field.name(listing.dictionary());
    listing.field(heading, "list element").value(format!("{name}, {}", length(field.length)));
    while let Some((value, after)) = split_value(field.length, listing.peek(listing.left(end))) {
        let taken = listing.left(end).saturating_sub(after.len());
        item(listing, field, &name, taken, value.len(), near_us, templates, depth);
    }
    listing.rest(end, "end of the list", "shorter than a value: not read");
}

fn length(octets: u16) -> String {
    if octets == VARIABLE { "variable length".to_owned() } else { format!("{octets} octets") }
}

/// One value, with the octets of its length before it.
#[expect(clippy::too_many_arguments, reason = "a value, and what is needed to read it")]
fn item(
    listing: &mut Listing<'_>,
    field: Field,
    name: &str,
    taken: usize,
    octets: usize,
    near_us: i64,
    templates: &Templates<'_>,
    depth: u16,
) {
    prefix(listing, taken.saturating_sub(octets), octets);
    let end = listing.at().saturating_add(octets);
    let data_type = field.data_type(listing.dictionary());
    if matches!(data_type, DataType::BasicList | DataType::SubTemplateList | DataType::SubTemplateMultiList) {
        let heading = listing.open(name);
        if list(listing, data_type, end, near_us, templates, depth.saturating_add(1)) {
            listing.close(heading);
            return;
        }
        listing.close(heading);
    }
    let value = values::element(field, listing.peek(octets), near_us, listing.dictionary());
    let element = element_id(field, listing.dictionary());
    listing.field(octets, name).value(value).element = Some(element);
}

/// The octets that say how long a value is (RFC 7011 §7).
pub(super) fn prefix(listing: &mut Listing<'_>, octets: usize, length: usize) {
    match octets {
        0 => {}
        1 => {
            listing
                .field(1, "value length")
                .value(length.to_string())
                .rule("variable length, short form (RFC 7011 §7)");
        }
        _ => {
            listing
                .field(octets, "value length")
                .value(length.to_string())
                .rule("variable length, long form: 255 and two octets (RFC 7011 §7)");
        }
    }
}

pub(super) fn element_id(field: Field, dictionary: &Dictionary) -> ElementId {
    ElementId {
        enterprise: field.enterprise,
        number: field.id,
        data_type: field.data_type(dictionary).name(),
    }
}

fn sub_template(listing: &mut Listing<'_>, end: usize, near_us: i64, templates: &Templates<'_>, depth: u16) {
    if listing.left(end) < 3 {
        listing.broken(end, "subTemplateList", "shorter than its header of 3 octets");
        return;
    }
    semantic(listing);
    let id = u16_at(listing.peek(2), 0);
    listing.field(2, "template").value(id.to_string());
    records(listing, id, end, near_us, templates, depth);
}

fn multi(listing: &mut Listing<'_>, end: usize, near_us: i64, templates: &Templates<'_>, depth: u16) {
    if listing.left(end) < 1 {
        listing.broken(end, "subTemplateMultiList", "shorter than its header of 1 octet");
        return;
    }
    semantic(listing);
    while listing.left(end) >= 4 {
        let head = listing.peek(4);
        let (id, length) = (u16_at(head, 0), usize::from(u16_at(head, 2)));
        // RFC 6313 §4.5.3: the length has the four octets of this header in it
        if length < 4 || length > listing.left(end) {
            break;
        }
        let heading = listing.open(format!("records of template {id}"));
        listing.field(2, "template").value(id.to_string());
        listing.field(2, "length").value(length.to_string());
        let stop = listing.at().saturating_add(length.saturating_sub(4)).min(end);
        records(listing, id, stop, near_us, templates, depth);
        listing.close(heading);
    }
    listing.broken_if_left(
        end,
        "subTemplateMultiList",
        "a length that is less than its header or goes beyond the list",
    );
}

fn records(
    listing: &mut Listing<'_>,
    id: u16,
    end: usize,
    near_us: i64,
    templates: &Templates<'_>,
    depth: u16,
) {
    let Some(template) = templates(id) else {
        listing.rest(end, "records", "no template of this number is known");
        return;
    };
    let least = template.min_record();
    let mut number = 0_usize;
    while least > 0 && listing.left(end) >= least {
        number = number.saturating_add(1);
        let heading = listing.open(format!("record {number}"));
        for field in template.fields.iter().filter(|field| field.length > 0) {
            let left = listing.left(end);
            let Some((value, after)) = split_value(field.length, listing.peek(left)) else {
                listing.broken(end, "record", "ends before its fields do");
                break;
            };
            let name = field.name(listing.dictionary());
            let taken = left.saturating_sub(after.len());
            item(listing, *field, &name, taken, value.len(), near_us, templates, depth);
        }
        listing.close(heading);
    }
    listing.rest(end, "end of the list", "shorter than a record: not read");
}
