//! Templates as they come on the wire: RFC 7011 §3.4 (IPFIX) and RFC 3954 §5.2, §6.1 (NetFlow v9).

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use serde::{Deserialize, Serialize};
use weir_schemas::elements::{DataType, Dictionary, Element};

use super::reject::RejectReason;
use super::wire::{u16_at, u32_at};

/// The length that says "each record brings its own" (RFC 7011 §7).
pub(crate) const VARIABLE: u16 = u16::MAX;

/// What the number of a field means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Space {
    Ipfix,
    V9,
    /// The scope types of v9's options templates (RFC 3954 §6.1): 1 system, 2 interface, 3 line card, 4 cache,
    /// 5 template.
    V9Scope,
}

/// A field of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Field {
    pub(crate) space: Space,
    /// Private enterprise number, 0 for IANA's elements.
    pub(crate) enterprise: u32,
    pub(crate) id: u16,
    /// Octets, or [`VARIABLE`].
    pub(crate) length: u16,
}

impl Field {
    pub(crate) fn element(self, dictionary: &Dictionary) -> Option<&Element> {
        match self.space {
            Space::Ipfix => dictionary.lookup(self.enterprise, self.id),
            Space::V9 => dictionary.lookup_v9(self.id),
            Space::V9Scope => None,
        }
    }

    /// True where it has no name: the scope types of v9 have, and so has padding.
    pub(crate) fn is_unknown(self, dictionary: &Dictionary) -> bool {
        self.space != Space::V9Scope && self.element(dictionary).is_none()
    }

    /// Enterprise and id of the element: those of the dictionary where it knows better (a v9 field type may stand for
    /// a vendor's element).
    pub(crate) fn identity(self, dictionary: &Dictionary) -> (u32, u16) {
        match self.element(dictionary) {
            Some(element) => (element.enterprise, element.id),
            None => (self.enterprise, self.id),
        }
    }

    /// Its name, `enterprise:number` where the dictionary has none.
    pub(crate) fn name(self, dictionary: &Dictionary) -> Box<str> {
        if self.space == Space::V9Scope {
            return match self.id {
                1 => "system".into(),
                2 => "interface".into(),
                3 => "lineCard".into(),
                4 => "cache".into(),
                5 => "template".into(),
                id => format!("scope:{id}").into(),
            };
        }
        match self.element(dictionary) {
            Some(element) => element.name.clone(),
            None => format!("{}:{}", self.enterprise, self.id).into(),
        }
    }

    pub(crate) fn data_type(self, dictionary: &Dictionary) -> DataType {
        match self.space {
            Space::V9Scope => DataType::Unsigned64,
            _ => self.element(dictionary).map_or(DataType::OctetArray, |element| element.data_type),
        }
    }
}

/// A template or options template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Template {
    pub(crate) id: u16,
    /// How many of the fields, from the first, are scope. None: records of it are flows.
    pub(crate) scope: Option<u16>,
    pub(crate) fields: Vec<Field>,
}

impl Template {
    /// The least octets that a record takes; a variable-length field takes one (RFC 7011 §7).
    pub(crate) fn min_record(&self) -> usize {
        self.fields.iter().fold(0_usize, |sum, field| {
            sum.saturating_add(if field.length == VARIABLE { 1 } else { usize::from(field.length) })
        })
    }
}

/// What a template set says of one id.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Definition {
    Template(Template),
    /// RFC 7011 §8.1: no fields. Over UDP it must be ignored (§8.4).
    Withdrawal(u16),
    Bad(RejectReason),
}

/// Which kind of template set it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetKind {
    V9Template,
    V9Options,
    IpfixTemplate,
    IpfixOptions,
}

/// Calls `each` for every definition of a template set (its content, without the set header). Stops at the first one
/// that cannot be, because nobody knows where the next would begin.
pub(crate) fn parse_set(kind: SetKind, set: &[u8], max_fields: usize, mut each: impl FnMut(Definition)) {
    let mut rest = set;
    while let Some((definition, length)) = next_definition(kind, rest, max_fields) {
        each(definition);
        rest = rest.get(length..).unwrap_or_default();
    }
}

/// The next definition of a template set and its octets (all there are, of one that cannot be); None where the rest is
/// padding.
pub(crate) fn next_definition(kind: SetKind, rest: &[u8], max_fields: usize) -> Option<(Definition, usize)> {
    // RFC 7011 §3.3.1: what is shorter than a record is padding. Zeros are too: no template has the id 0.
    let shortest = if kind == SetKind::IpfixTemplate || kind == SetKind::V9Template { 4 } else { 6 };
    let id = u16_at(rest, 0);
    if rest.len() < shortest {
        // a withdrawal of an options template has four octets
        let withdrawal = kind == SetKind::IpfixOptions && rest.len() >= 4 && id >= 2 && u16_at(rest, 2) == 0;
        return withdrawal.then_some((Definition::Withdrawal(id), 4));
    }
    if id == 0 {
        return None;
    }
    let parsed = match kind {
        SetKind::V9Template => v9_template(rest, max_fields),
        SetKind::V9Options => v9_options(rest, max_fields),
        SetKind::IpfixTemplate => ipfix(rest, false, max_fields),
        SetKind::IpfixOptions => ipfix(rest, true, max_fields),
    };
    Some(parsed.unwrap_or_else(|reason| (Definition::Bad(reason), rest.len())))
}

type Parsed = Result<(Definition, usize), RejectReason>;

/// The record must be able to have at least one octet, or a set would hold any number of them.
fn checked(template: Template) -> Definition {
    // RFC 7011 §3.4.1: ids below 256 are set ids
    if template.id < 256 || template.min_record() == 0 {
        return Definition::Bad(RejectReason::BadTemplate);
    }
    Definition::Template(template)
}

fn v9_fields(bytes: &[u8], count: usize, space: Space, fields: &mut Vec<Field>) {
    for at in (0..count).map(|n| n.saturating_mul(4)) {
        let (id, length) = (u16_at(bytes, at), u16_at(bytes, at.saturating_add(2)));
        fields.push(Field { space, enterprise: 0, id, length });
    }
}

/// RFC 3954 §5.2.
fn v9_template(bytes: &[u8], max_fields: usize) -> Parsed {
    let (id, count) = (u16_at(bytes, 0), usize::from(u16_at(bytes, 2)));
    let length = count.saturating_mul(4).saturating_add(4);
    if count == 0 || count > max_fields || length > bytes.len() {
        return Err(RejectReason::BadTemplate);
    }
    let mut fields = Vec::with_capacity(count);
    v9_fields(bytes.get(4..).unwrap_or_default(), count, Space::V9, &mut fields);
    Ok((checked(Template { id, scope: None, fields }), length))
}

/// RFC 3954 §6.1: the lengths count octets, and a set holds one or more.
fn v9_options(bytes: &[u8], max_fields: usize) -> Parsed {
    let id = u16_at(bytes, 0);
    let (scope, options) = (usize::from(u16_at(bytes, 2)), usize::from(u16_at(bytes, 4)));
    let length = scope.saturating_add(options).saturating_add(6);
    let counts = (scope.checked_div(4).unwrap_or(0), options.checked_div(4).unwrap_or(0));
    let count = counts.0.saturating_add(counts.1);
    if scope % 4 != 0 || options % 4 != 0 || count == 0 || count > max_fields || length > bytes.len() {
        return Err(RejectReason::BadTemplate);
    }
    let mut fields = Vec::with_capacity(count);
    let bytes = bytes.get(6..).unwrap_or_default();
    v9_fields(bytes, counts.0, Space::V9Scope, &mut fields);
    v9_fields(bytes.get(scope..).unwrap_or_default(), counts.1, Space::V9, &mut fields);
    let scope = u16::try_from(counts.0).unwrap_or(u16::MAX);
    Ok((checked(Template { id, scope: Some(scope), fields }), length))
}

/// RFC 7011 §3.4.1 and §3.4.2.
fn ipfix(bytes: &[u8], options: bool, max_fields: usize) -> Parsed {
    let (id, count) = (u16_at(bytes, 0), usize::from(u16_at(bytes, 2)));
    if count == 0 {
        return Ok((Definition::Withdrawal(id), 4));
    }
    let scope = options.then(|| u16_at(bytes, 4));
    let mut at: usize = if options { 6 } else { 4 };
    // RFC 7011 §3.4.2.2: at least one scope field, and not more than there are fields
    let scope_fits = scope.is_none_or(|scope| scope > 0 && usize::from(scope) <= count);
    if count > max_fields || !scope_fits || bytes.len().saturating_sub(at) < count.saturating_mul(4) {
        return Err(RejectReason::BadTemplate);
    }
    let mut fields = Vec::with_capacity(count);
    for _ in 0..count {
        if bytes.len() < at.saturating_add(4) {
            return Err(RejectReason::BadTemplate);
        }
        let (number, length) = (u16_at(bytes, at), u16_at(bytes, at.saturating_add(2)));
        at = at.saturating_add(4);
        // RFC 7011 §3.2: the top bit says that an enterprise number follows, in scope fields too
        let mut field = Field { space: Space::Ipfix, enterprise: 0, id: number & 0x7fff, length };
        if number & 0x8000 != 0 {
            if bytes.len() < at.saturating_add(4) {
                return Err(RejectReason::BadTemplate);
            }
            field.enterprise = u32_at(bytes, at);
            at = at.saturating_add(4);
        }
        fields.push(field);
    }
    Ok((checked(Template { id, scope, fields }), at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: SetKind, words: &[u16]) -> Vec<Definition> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let mut all = Vec::new();
        parse_set(kind, &bytes, 100, |definition| all.push(definition));
        all
    }

    fn template(definition: &Definition) -> &Template {
        match definition {
            Definition::Template(template) => template,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rule_02_rule_03_templates_and_padding_shorter_than_a_record() {
        let set = parse(SetKind::IpfixTemplate, &[256, 1, 8, 4, 257, 2, 7, 2, 11, 2, 0]);
        assert_eq!(set.len(), 2);
        assert_eq!(template(&set[1]).fields.len(), 2);
        // v9 pads with what it likes; zeros after the last template are padding, however many
        let set = parse(SetKind::V9Template, &[256, 1, 8, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn rule_05_a_record_has_at_least_one_octet() {
        for words in [[256, 1, 8, 0], [255, 1, 8, 4]] {
            let set = parse(SetKind::IpfixTemplate, &words);
            assert_eq!(set, [Definition::Bad(RejectReason::BadTemplate)]);
        }
        // a field without octets beside one that has some is legal
        assert_eq!(template(&parse(SetKind::V9Template, &[256, 2, 8, 4, 95, 0])[0]).min_record(), 4);
        assert_eq!(
            template(&parse(SetKind::IpfixTemplate, &[256, 2, 82, VARIABLE, 83, VARIABLE])[0]).min_record(),
            2
        );
    }

    #[test]
    fn rule_07_a_template_without_fields_is_a_withdrawal() {
        assert_eq!(parse(SetKind::IpfixTemplate, &[256, 0, 257, 0]).len(), 2);
        assert_eq!(parse(SetKind::IpfixTemplate, &[2, 0]), [Definition::Withdrawal(2)]);
        assert_eq!(parse(SetKind::IpfixOptions, &[3, 0]), [Definition::Withdrawal(3)]);
    }

    #[test]
    fn rule_15_options_templates_have_a_scope() {
        let v9 = parse(SetKind::V9Options, &[256, 4, 8, 1, 4, 34, 4, 35, 1]);
        assert_eq!(template(&v9[0]).scope, Some(1));
        assert_eq!(template(&v9[0]).fields[0].space, Space::V9Scope);
        let ipfix = parse(SetKind::IpfixOptions, &[256, 2, 1, 149, 4, 34, 4]);
        assert_eq!(template(&ipfix[0]).scope, Some(1));
        for scope in [0, 3] {
            let bad = parse(SetKind::IpfixOptions, &[256, 2, scope, 149, 4, 34, 4]);
            assert_eq!(bad, [Definition::Bad(RejectReason::BadTemplate)]);
        }
        // lengths that are no multiple of a field's four octets
        assert_eq!(
            parse(SetKind::V9Options, &[256, 5, 8, 1, 4, 34, 4, 35, 1]),
            [Definition::Bad(RejectReason::BadTemplate)]
        );
    }

    #[test]
    fn rule_16_the_enterprise_bit_is_no_part_of_the_number() {
        let set = parse(SetKind::IpfixOptions, &[256, 2, 1, 0x8000 | 12, 4, 0, 9, 34, 4]);
        let fields = &template(&set[0]).fields;
        assert_eq!((fields[0].enterprise, fields[0].id), (9, 12));
        assert_eq!((fields[1].enterprise, fields[1].id), (0, 34));
    }

    #[test]
    fn more_fields_than_octets_are_refused() {
        for kind in [SetKind::IpfixTemplate, SetKind::V9Template] {
            assert_eq!(parse(kind, &[256, 99, 8, 4]), [Definition::Bad(RejectReason::BadTemplate)]);
        }
        // the enterprise number is cut off
        assert_eq!(
            parse(SetKind::IpfixTemplate, &[256, 1, 0x8001, 4]),
            [Definition::Bad(RejectReason::BadTemplate)]
        );
    }
}
