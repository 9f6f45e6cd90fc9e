//! Differences that are known, and what is behind them.

use std::collections::HashMap;

use weir_schemas::Address;

use crate::decode::template::{Definition, SetKind, Space, Template, VARIABLE, parse_set};

macro_rules! explanations {
    ($($variant:ident $text:literal)*) => {
        /// Why the two may differ without either being wrong about the octets, or where it is known who is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Explanation { $(#[doc = $text] $variant,)* }

        impl Explanation {
            /// Every explanation.
            pub const ALL: &[Explanation] = &[$(Explanation::$variant,)*];

            /// In a sentence.
            pub const fn text(self) -> &'static str {
                match self { $(Explanation::$variant => $text,)* }
            }
        }
    };
}

explanations! {
    RecordLimit "netflow_parser takes at most 30 records of a v5 and 28 of a v7 datagram; weir takes those that are there."
    ShortOfCount "The header counts more records than the datagram holds: netflow_parser gives up the datagram, weir keeps the whole records."
    NoRecords "netflow_parser refuses a datagram without records or sets; weir counts it as decoded, with no rows."
    SetAfterBad "netflow_parser gives up the datagram (v9) or the rest of it (IPFIX) at a set that cannot be; weir rejects that set and keeps the others."
    ZeroLengthField "netflow_parser refuses an IPFIX template with a field of no octets; weir takes it, the field has no value (RFC 7011 forbids only records of no octets)."
    OnlyScopes "netflow_parser refuses an IPFIX options template whose fields are all scope; weir takes it."
    NoScope "netflow_parser refuses a v9 options template without a scope; weir takes it, as for the whole exporter."
    TemplateLimits "The template is beyond the limits of one of the two (octets or fields of a template)."
    V9InIpfix "netflow_parser takes sets 0 and 1 of IPFIX as NetFlow v9 templates; they are reserved (RFC 7011 §3.3.2), weir skips them."
    VariableInV9 "A NetFlow v9 field of 65535 octets: netflow_parser refuses the template, weir reads it as IPFIX's variable length."
    WithdrawalFollowed "netflow_parser follows template withdrawals; over UDP they must be ignored (RFC 7011 §8.4), as weir does."
    OtherSession "The template came from another source port: weir takes it where all ports of the exporter agree, netflow_parser keeps ports apart."
    Restarted "The exporter restarted (uptime and sequence went back): weir discards its templates (RFC 3954 §9), netflow_parser keeps them."
    WaitedLonger "Data that waited for its template: the two keep such data for different times and in different amounts."
    EmptyVariable "netflow_parser ends a set at a variable-length value of no octets; weir takes the value as absent."
    ControlCharacters "netflow_parser drops control characters from texts, weir keeps them and drops the padding of zeros at the end."
    OtherType "The two have different data types for the element; the octets are the same."
    OutputLimit "Both bound what one message may make, each in its way."
}

/// What was seen of the templates of an exporter's session.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// netflow_parser did not take it, or took it away.
    without: Option<Explanation>,
    defined: bool,
}

/// A template in its scope: sender, source port, domain, id.
pub(super) type Scope = (Address, u16, u32, u16);

/// What is remembered of templates, so that a set that only one of the two decodes can be explained.
#[derive(Debug, Default)]
pub(super) struct Memory {
    seen: HashMap<Scope, Seen>,
}

/// Templates remembered.
const MAX_TEMPLATES: usize = 50_000;

impl Memory {
    /// Takes in a template set. Answers why netflow_parser refuses the whole set, where it is known.
    pub(super) fn templates(&mut self, kind: SetKind, content: &[u8], scope: Scope) -> Option<Explanation> {
        if self.seen.len() > MAX_TEMPLATES {
            self.seen.clear();
        }
        let (mut refused, mut taken, mut bad) = (None, false, false);
        let (sender, port, domain, _) = scope;
        parse_set(kind, content, usize::from(u16::MAX), |definition| match definition {
            Definition::Template(template) => {
                let why = refusal(kind, &template);
                let seen = self.seen.entry((sender, port, domain, template.id)).or_default();
                *seen = Seen { without: why, defined: true };
                refused = refused.or(why);
                taken |= why.is_none();
            }
            Definition::Withdrawal(id) => {
                taken = true;
                let all = id < 256;
                for ((a, p, d, known), seen) in &mut self.seen {
                    let same = (*a, *p, *d) == (sender, port, domain) && (all || *known == id);
                    if same {
                        seen.without = Some(Explanation::WithdrawalFollowed);
                    }
                }
            }
            Definition::Bad(_) => bad = true,
        });
        // a set of which nothing is valid is an error to netflow_parser
        if taken { None } else { refused.or(bad.then_some(Explanation::SetAfterBad)) }
    }

    /// What a set could not be decoded with by netflow_parser.
    pub(super) fn without(&self, scope: Scope) -> Option<Explanation> {
        match self.seen.get(&scope) {
            Some(seen) => seen.without,
            None => Some(Explanation::OtherSession),
        }
    }

    pub(super) fn is_defined(&self, scope: Scope) -> bool {
        self.seen.get(&scope).is_some_and(|seen| seen.defined)
    }

    /// All templates of a session are refused from here on: netflow_parser did not get to see them.
    pub(super) fn lost(&mut self, kind: SetKind, content: &[u8], scope: Scope, why: Explanation) {
        let (sender, port, domain, _) = scope;
        parse_set(kind, content, usize::from(u16::MAX), |definition| {
            if let Definition::Template(template) = definition {
                let scope = (sender, port, domain, template.id);
                self.seen.insert(scope, Seen { without: Some(why), defined: true });
            }
        });
    }
}

/// Why netflow_parser does not take a template.
fn refusal(kind: SetKind, template: &Template) -> Option<Explanation> {
    let fields = &template.fields;
    let octets: usize =
        fields.iter().filter(|field| field.length != VARIABLE).map(|field| usize::from(field.length)).sum();
    if octets > usize::from(u16::MAX) || fields.len() > 10_000 {
        return Some(Explanation::TemplateLimits);
    }
    let scopes = template.scope.map(usize::from);
    match kind {
        SetKind::IpfixTemplate | SetKind::IpfixOptions if fields.iter().any(|field| field.length == 0) => {
            Some(Explanation::ZeroLengthField)
        }
        SetKind::IpfixOptions if scopes == Some(fields.len()) => Some(Explanation::OnlyScopes),
        SetKind::V9Options if scopes == Some(0) => Some(Explanation::NoScope),
        SetKind::V9Template | SetKind::V9Options
            if fields.iter().any(|field| field.space != Space::Ipfix && field.length == VARIABLE) =>
        {
            Some(Explanation::VariableInV9)
        }
        _ => None,
    }
}
