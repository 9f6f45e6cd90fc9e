//! `docs/elements.md`: which information element goes to which column, asked of the template compiler.

use std::collections::BTreeSet;

use weir_schemas::elements::{Dictionary, Element, IANA};

use crate::decode::compile::{Clock, RowPlan, compile};
use crate::decode::template::{Field, Space, Template};

/// Elements that mean something only beside others.
const COMPANIONS: &[(u16, &[u16])] = &[
    (60, &[8, 27]),
    (160, &[22]),
    (161, &[22]),
    (162, &[22]),
    (304, &[305]),
    (306, &[305]),
    (309, &[310]),
    (310, &[309]),
    (312, &[315]),
    (408, &[315]),
    (409, &[315]),
    (410, &[315]),
];

/// A length that suits the type.
fn length(element: &Element) -> u16 {
    use weir_schemas::elements::DataType as T;
    match element.data_type {
        T::Unsigned8 | T::Signed8 | T::Boolean => 1,
        T::Unsigned16 | T::Signed16 => 2,
        T::Unsigned32 | T::Signed32 | T::Float32 | T::DateTimeSeconds | T::Ipv4Address => 4,
        T::MacAddress => 6,
        T::Ipv6Address => 16,
        T::Unsigned64 | T::Signed64 | T::Float64 => 8,
        T::DateTimeMilliseconds | T::DateTimeMicroseconds | T::DateTimeNanoseconds => 8,
        _ if element.enterprise == IANA && (70..80).contains(&element.id) => 3,
        _ => 0xffff,
    }
}

fn plan(elements: &[&Element], space: Space) -> RowPlan {
    let field = |element: &&Element| Field {
        space,
        enterprise: if space == Space::V9 { 0 } else { element.enterprise },
        id: element.id,
        length: length(element),
    };
    let template = Template { id: 256, scope: None, fields: elements.iter().map(field).collect() };
    compile(&template, Dictionary::builtin()).rows
}

/// The columns that a plan fills.
fn columns(plan: &RowPlan) -> BTreeSet<&'static str> {
    let mut found: BTreeSet<&str> = plan.steps.iter().map(|step| step.column.column().name).collect();
    found.extend(plan.addresses.iter().map(|choice| choice.column.column().name));
    let is_time = |clock: Option<Clock>| clock.is_some();
    if is_time(plan.times.start) || plan.times.duration.is_some() {
        found.insert("start_time");
    }
    if is_time(plan.times.end) || plan.times.duration.is_some() {
        found.insert("end_time");
    }
    if !plan.sampling.rates.is_empty() || plan.sampling.sampler.is_some() {
        found.insert("sampling_rate");
    }
    if !plan.mpls.is_empty() || plan.mpls_stack.is_some() {
        found.extend(["mpls_labels", "mpls_exp"]);
    }
    if !plan.agent.is_empty() {
        found.extend(["exporter_addr", "agent_addr"]);
    }
    if plan.sampled.is_some() {
        found.insert("(those of a sampled header)");
    }
    found
}

/// The columns of an element; None where it goes to `extra`.
fn columns_of(element: &Element, space: Space) -> Option<BTreeSet<&'static str>> {
    let dictionary = Dictionary::builtin();
    let companions = COMPANIONS.iter().find(|(id, _)| element.enterprise == IANA && element.id == *id);
    let companions = companions.map_or(&[][..], |(_, with)| with);
    let mut all: Vec<&Element> = companions.iter().map(|id| dictionary.lookup(IANA, *id).unwrap()).collect();
    all.push(element);
    let plan = plan(&all, space);
    let kept = plan.extras.iter().any(|extra| extra.name == element.name);
    (!kept).then(|| columns(&plan))
}

#[test]
fn every_element_with_a_column_is_documented() {
    let dictionary = Dictionary::builtin();
    let mut text = String::from(
        "# From information elements to columns\n\nWhere the value of an element goes in a row of `flows` (or \
         `nat_events`). Every other element of a record is in `extra`, under its name, or as `enterprise:number` \
         where the dictionary has none; so is one that stands a second time in its template (`name[2]`), one that \
         lost against another of the same column, and a number that is too great for its column. Padding (IE 210) is \
         dropped. The fields of options records are in `options`, under their names. Made from the code: \
         `WEIR_UPDATE_DOCS=1 cargo test --release -p weir-collector --lib document` writes it anew.\n",
    );
    let mut documented = 0;
    let mut table = |title: &str, elements: &mut dyn Iterator<Item = &Element>, space: Space| {
        text += &format!("\n## {title}\n\n| number | element | columns |\n|---|---|---|\n");
        let mut elements: Vec<&Element> = elements.collect();
        elements.sort_by_key(|element| (element.enterprise, element.id));
        for element in elements {
            let Some(columns) = columns_of(element, space) else { continue };
            let columns: Vec<String> = columns.into_iter().map(|column| format!("`{column}`")).collect();
            let number = match element.enterprise {
                IANA => element.id.to_string(),
                enterprise => format!("{enterprise}:{}", element.id),
            };
            let columns = if columns.is_empty() { "—".to_owned() } else { columns.join(", ") };
            text += &format!("| {number} | {} | {columns} |\n", element.name);
            documented += 1;
        }
    };
    let reverse = weir_schemas::elements::REVERSE;
    table("IANA", &mut dictionary.iter().filter(|element| element.enterprise == IANA), Space::Ipfix);
    table(
        "Enterprises",
        &mut dictionary.iter().filter(|element| element.enterprise != IANA && element.enterprise != reverse),
        Space::Ipfix,
    );
    table(
        "Only in NetFlow v9",
        &mut dictionary.iter_v9().filter(|element| element.enterprise == IANA),
        Space::V9,
    );
    assert!(documented > 100, "{documented} elements");
    crate::documents::generated(
        "docs/elements.md",
        &text.replace("`(those of a sampled header)`", "those of a sampled header"),
    );
}
