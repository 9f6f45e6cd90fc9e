//! What top talkers rank: one attribute of flows, or two.

use std::str::FromStr;

use datafusion::common::utils::datafusion_strsim::levenshtein;

/// An attribute by which flows are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    SrcAddr,
    DstAddr,
    SrcNet,
    DstNet,
    SrcPort,
    DstPort,
    SrcAs,
    DstAs,
    Exporter,
    InIf,
    OutIf,
    Protocol,
    Dscp,
    VrfIn,
    VrfOut,
    App,
    SrcCountry,
    DstCountry,
}

impl Atom {
    const ALL: [(Atom, &'static str); 18] = [
        (Atom::SrcAddr, "src_addr"),
        (Atom::DstAddr, "dst_addr"),
        (Atom::SrcNet, "src_net"),
        (Atom::DstNet, "dst_net"),
        (Atom::SrcPort, "src_port"),
        (Atom::DstPort, "dst_port"),
        (Atom::SrcAs, "src_as"),
        (Atom::DstAs, "dst_as"),
        (Atom::Exporter, "exporter"),
        (Atom::InIf, "in_if"),
        (Atom::OutIf, "out_if"),
        (Atom::Protocol, "protocol"),
        (Atom::Dscp, "dscp"),
        (Atom::VrfIn, "vrf_in"),
        (Atom::VrfOut, "vrf_out"),
        (Atom::App, "app"),
        (Atom::SrcCountry, "src_country"),
        (Atom::DstCountry, "dst_country"),
    ];

    /// True where `flows_1m` has it: then it is ranked from those sums, and costs nothing a flow.
    pub(super) fn is_of_class(self) -> bool {
        use Atom::*;
        matches!(self, SrcAs | DstAs | Exporter | InIf | OutIf | Protocol | Dscp)
    }

    /// True where a database of countries is needed.
    pub(super) fn is_country(self) -> bool {
        matches!(self, Atom::SrcCountry | Atom::DstCountry)
    }
}

/// One attribute, or two different ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dimension {
    pub(super) name: String,
    pub(super) first: Atom,
    pub(super) second: Option<Atom>,
}

impl Dimension {
    pub(super) fn is_of_class(&self) -> bool {
        self.first.is_of_class() && self.second.is_none_or(Atom::is_of_class)
    }

    pub(super) fn is_of_countries(&self) -> bool {
        self.first.is_country() || self.second.is_some_and(Atom::is_country)
    }
}

fn atom(name: &str) -> Result<Atom, String> {
    let found = Atom::ALL.iter().find(|(_, known)| *known == name);
    found.map(|(atom, _)| *atom).ok_or_else(|| {
        let nearest = Atom::ALL.iter().map(|(_, known)| *known).min_by_key(|known| levenshtein(name, known));
        format!("there is no dimension `{name}`; the nearest is `{}`", nearest.unwrap_or_default())
    })
}

impl FromStr for Dimension {
    type Err = String;

    fn from_str(name: &str) -> Result<Dimension, String> {
        let of = |first, second| Dimension { name: name.to_owned(), first, second };
        if name == "conversation" {
            return Ok(of(Atom::SrcAddr, Some(Atom::DstAddr)));
        }
        match name.split_once('+') {
            None => Ok(of(atom(name)?, None)),
            Some((first, second)) => {
                let (first, second) = (atom(first)?, atom(second)?);
                if first == second {
                    return Err(format!("`{name}` has the same twice"));
                }
                Ok(of(first, Some(second)))
            }
        }
    }
}

/// An attribute whose different values are counted for each key of a dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) name: String,
    pub(super) value: Atom,
    pub(super) key: Dimension,
}

impl FromStr for Counted {
    type Err = String;

    fn from_str(name: &str) -> Result<Counted, String> {
        let Some((value, key)) = name.split_once(" per ") else {
            return Err(format!("`{name}` is not like `dst_addr per src_addr`"));
        };
        let (value, key) = (atom(value)?, key.parse::<Dimension>()?);
        if key.first == value || key.second == Some(value) {
            return Err(format!("`{name}` counts what it is told by"));
        }
        Ok(Counted { name: name.to_owned(), value, key })
    }
}
