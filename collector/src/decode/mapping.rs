//! Which information element goes to which column. Those of vendors and users are data: their files name the column
//! ([`Element::column`]). What has no column, and no meaning of its own in [`super::compile`] (times, sampling, MPLS
//! stacks, sampled frames), goes to `extra` under its name.
//!
//! Two elements of one column: a user's comes first, then those of this table in its order, then those of vendors; the
//! others go to `extra`; except for those marked [`Choice::NonZero`], where exporters put both into every record and leave the one that does
//! not apply zero: the first that is not zero is taken record by record.

use std::sync::OnceLock;

use hashbrown::HashMap;
use weir_schemas::Kind;
use weir_schemas::elements::{DataType, Element, IANA};
use weir_schemas::tables::FlowColumn::{self, *};

/// How the octets become the column's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conversion {
    /// A number of one to eight octets; one that is too great for the column is NULL there and goes to `extra`.
    Number,
    /// The same; all ones stand for "unknown" (medianet).
    Counter,
    /// A number times this.
    Times(u32),
    /// Nanoseconds to microseconds.
    Nanos,
    /// The low 24 bits (IE 351: the type of the overlay stands above them).
    Low24,
    /// Six bits that belong above the two of ECN.
    Dscp,
    /// The first or second octet of two (IE 32 and 139: type and code).
    Octet(u8),
    Ipv4,
    Ipv6,
    Mac,
    Text,
    /// RFC 6759: an octet of engine, then the selector.
    Application,
}

/// What happens where a template has several elements for the column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    First,
    NonZero,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mapping {
    pub(crate) enterprise: u32,
    pub(crate) id: u16,
    pub(crate) column: FlowColumn,
    pub(crate) conversion: Conversion,
    pub(crate) choice: Choice,
}

const fn one(enterprise: u32, id: u16, column: FlowColumn, conversion: Conversion) -> Mapping {
    Mapping { enterprise, id, column, conversion, choice: Choice::First }
}

const fn any(enterprise: u32, id: u16, column: FlowColumn, conversion: Conversion) -> Mapping {
    Mapping { enterprise, id, column, conversion, choice: Choice::NonZero }
}

use Conversion::{Application, Counter, Dscp, Ipv4, Ipv6, Low24, Mac, Nanos, Number, Octet, Text, Times};

/// The table. NetFlow v9 field types above 32767 that the dictionary knows as v9's own stand under IANA.
#[rustfmt::skip]
pub(crate) const MAPPINGS: &[Mapping] = &[
    // volume: delta counters before totals, what was seen before what was sent on (rule 37)
    one(IANA, 1, Bytes, Number),
    one(IANA, 85, Bytes, Number),
    one(IANA, 352, Bytes, Number),
    one(IANA, 353, Bytes, Number),
    one(IANA, 2, Packets, Number),
    one(IANA, 86, Packets, Number),
    one(IANA, 224, IpBytes, Number),
    one(IANA, 190, IpBytes, Number),
    one(IANA, 231, InitiatorBytes, Number),
    one(IANA, 232, ResponderBytes, Number),
    one(IANA, 298, InitiatorPackets, Number),
    one(IANA, 299, ResponderPackets, Number),
    one(IANA, 132, DroppedBytes, Number),
    one(IANA, 134, DroppedBytes, Number),
    one(IANA, 133, DroppedPackets, Number),
    one(IANA, 135, DroppedPackets, Number),
    // keys
    any(IANA, 8, SrcAddr, Ipv4),
    any(IANA, 27, SrcAddr, Ipv6),
    any(IANA, 44, SrcAddr, Ipv4),
    any(IANA, 170, SrcAddr, Ipv6),
    any(IANA, 12, DstAddr, Ipv4),
    any(IANA, 28, DstAddr, Ipv6),
    any(IANA, 45, DstAddr, Ipv4),
    any(IANA, 169, DstAddr, Ipv6),
    any(IANA, 7, SrcPort, Number),
    any(IANA, 180, SrcPort, Number),
    any(IANA, 182, SrcPort, Number),
    any(IANA, 11, DstPort, Number),
    any(IANA, 181, DstPort, Number),
    any(IANA, 183, DstPort, Number),
    one(IANA, 4, IpProtocol, Number),
    one(IANA, 6, TcpFlags, Number),
    one(IANA, 5, Tos, Number),
    one(IANA, 195, Tos, Dscp),
    one(IANA, 55, PostTos, Number),
    one(IANA, 98, PostTos, Dscp),
    one(IANA, 192, IpTtl, Number),
    one(IANA, 52, MinTtl, Number),
    one(IANA, 53, MaxTtl, Number),
    one(IANA, 31, Ipv6FlowLabel, Number),
    any(IANA, 176, IcmpType, Number),
    any(IANA, 178, IcmpType, Number),
    any(IANA, 32, IcmpType, Octet(0)),
    any(IANA, 139, IcmpType, Octet(0)),
    any(IANA, 177, IcmpCode, Number),
    any(IANA, 179, IcmpCode, Number),
    any(IANA, 32, IcmpCode, Octet(1)),
    any(IANA, 139, IcmpCode, Octet(1)),
    one(IANA, 54, FragmentId, Number),
    one(IANA, 88, FragmentOffset, Number),
    one(IANA, 61, Direction, Number),
    // where it came in and went out
    one(IANA, 10, InIf, Number),
    one(IANA, 252, InIf, Number),
    one(IANA, 14, OutIf, Number),
    one(IANA, 253, OutIf, Number),
    one(IANA, 234, VrfIn, Number),
    one(IANA, 235, VrfOut, Number),
    one(IANA, 351, Vni, Low24),
    any(IANA, 58, SrcVlan, Number),
    any(IANA, 243, SrcVlan, Number),
    any(IANA, 59, DstVlan, Number),
    any(IANA, 254, DstVlan, Number),
    one(IANA, 245, SrcCustomerVlan, Number),
    one(IANA, 255, DstCustomerVlan, Number),
    one(IANA, 56, SrcMac, Mac),
    one(IANA, 80, DstMac, Mac),
    one(IANA, 256, EtherType, Number),
    // routing
    any(IANA, 15, NextHop, Ipv4),
    any(IANA, 62, NextHop, Ipv6),
    any(IANA, 18, BgpNextHop, Ipv4),
    any(IANA, 63, BgpNextHop, Ipv6),
    one(IANA, 16, SrcAs, Number),
    one(IANA, 17, DstAs, Number),
    one(IANA, 129, PrevAs, Number),
    one(IANA, 128, NextAs, Number),
    any(IANA, 9, SrcMask, Number),
    any(IANA, 29, SrcMask, Number),
    any(IANA, 13, DstMask, Number),
    any(IANA, 30, DstMask, Number),
    one(IANA, 89, ForwardingStatus, Number),
    one(IANA, 136, FlowEndReason, Number),
    // address translation and firewalls
    any(IANA, 225, NatSrcAddr, Ipv4),
    any(IANA, 281, NatSrcAddr, Ipv6),
    any(IANA, 40001, NatSrcAddr, Ipv4),
    any(IANA, 226, NatDstAddr, Ipv4),
    any(IANA, 282, NatDstAddr, Ipv6),
    any(IANA, 40002, NatDstAddr, Ipv4),
    one(IANA, 227, NatSrcPort, Number),
    one(IANA, 40003, NatSrcPort, Number),
    one(IANA, 228, NatDstPort, Number),
    one(IANA, 40004, NatDstPort, Number),
    one(IANA, 230, NatEvent, Number),
    one(IANA, 233, FirewallEvent, Number),
    one(IANA, 40005, FirewallEvent, Number),
    one(IANA, 361, PortBlockStart, Number),
    one(IANA, 362, PortBlockEnd, Number),
    one(IANA, 363, PortBlockStep, Number),
    one(IANA, 364, PortBlockSize, Number),
    // applications and people
    one(IANA, 95, AppId, Application),
    one(IANA, 96, AppName, Text),
    one(IANA, 56701, AppName, Text),
    one(IANA, 371, UserName, Text),
    one(IANA, 40000, UserName, Text),
    one(IANA, 56702, UserName, Text),
    one(IANA, 460, HttpHost, Text),
    one(IANA, 461, HttpUrl, Text),
    // performance
    one(IANA, 386, JitterUs, Counter),
    one(IANA, 385, JitterUs, Times(1000)),
    one(IANA, 387, JitterUs, Nanos),
];

type Index = HashMap<(u32, u16), Vec<(usize, Mapping)>, foldhash::fast::RandomState>;

/// The column that an element names itself, with a rank among those of the table.
pub(crate) fn named(element: &Element) -> Option<(usize, Mapping)> {
    let column = element.column?;
    let measured = matches!(column, RttUs | JitterUs | LostPackets | Retransmits);
    let conversion = match (column.column().kind, element.data_type) {
        (_, DataType::Ipv4Address) => Ipv4,
        (_, DataType::Ipv6Address) => Ipv6,
        (Kind::Mac, _) => Mac,
        (Kind::Text, _) => Text,
        _ if column.column().name.ends_with("_us") => match element.units.as_deref() {
            Some("seconds") => Times(1_000_000),
            Some("milliseconds") => Times(1_000),
            Some("nanoseconds") => Nanos,
            _ => Counter,
        },
        // medianet and its kin say "not measured" with all ones
        _ if measured => Counter,
        _ => Number,
    };
    let choice = if matches!(conversion, Ipv4 | Ipv6) { Choice::NonZero } else { Choice::First };
    let rank = if element.from_user { 0 } else { MAPPINGS.len() + 1 };
    Some((rank, Mapping { enterprise: element.enterprise, id: element.id, column, conversion, choice }))
}

/// All mappings of an element, with their rank: from 1, in the order of the table.
pub(crate) fn mappings(enterprise: u32, id: u16) -> &'static [(usize, Mapping)] {
    static INDEX: OnceLock<Index> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let mut index = Index::default();
        for (rank, mapping) in MAPPINGS.iter().enumerate() {
            index.entry((mapping.enterprise, mapping.id)).or_default().push((rank + 1, *mapping));
        }
        index
    });
    index.get(&(enterprise, id)).map_or(&[], Vec::as_slice)
}

/// For the reverse half of a biflow: the column of the other end.
pub(crate) fn other_end(column: FlowColumn) -> FlowColumn {
    match column {
        SrcAddr => DstAddr,
        DstAddr => SrcAddr,
        SrcPort => DstPort,
        DstPort => SrcPort,
        InIf => OutIf,
        OutIf => InIf,
        VrfIn => VrfOut,
        VrfOut => VrfIn,
        SrcVlan => DstVlan,
        DstVlan => SrcVlan,
        SrcCustomerVlan => DstCustomerVlan,
        DstCustomerVlan => SrcCustomerVlan,
        SrcMac => DstMac,
        DstMac => SrcMac,
        SrcAs => DstAs,
        DstAs => SrcAs,
        PrevAs => NextAs,
        NextAs => PrevAs,
        SrcMask => DstMask,
        DstMask => SrcMask,
        NatSrcAddr => NatDstAddr,
        NatDstAddr => NatSrcAddr,
        NatSrcPort => NatDstPort,
        NatDstPort => NatSrcPort,
        InitiatorBytes => ResponderBytes,
        ResponderBytes => InitiatorBytes,
        InitiatorPackets => ResponderPackets,
        ResponderPackets => InitiatorPackets,
        same => same,
    }
}

/// Columns that tell how much there was of one direction: the reverse half has them of its own or not at all.
pub(crate) fn of_one_direction(column: FlowColumn) -> bool {
    matches!(
        column,
        Bytes
            | Packets
            | IpBytes
            | DroppedBytes
            | DroppedPackets
            | TcpFlags
            | Tos
            | PostTos
            | IpTtl
            | MinTtl
            | MaxTtl
            | Ipv6FlowLabel
            | NextHop
            | BgpNextHop
            | FragmentId
            | FragmentOffset
            | RttUs
            | JitterUs
            | LostPackets
            | Retransmits
            | Direction
            | ForwardingStatus
    )
}

/// True for the elements that say that a record is about a volume of traffic.
pub(crate) fn is_volume(enterprise: u32, id: u16) -> bool {
    enterprise == IANA
        && matches!(id, 1 | 2 | 23 | 24 | 85 | 86 | 171 | 172 | 231 | 232 | 298 | 299 | 352 | 353 | 312 | 315)
}

/// True for the elements that say that a record is an event of a translator or a firewall.
pub(crate) fn is_event(enterprise: u32, id: u16) -> bool {
    enterprise == IANA && matches!(id, 230 | 233 | 361..=364 | 40005 | 24628..=24635 | 33002)
}

/// True for the elements that tell what an address or port was translated to, or by which service (Nokia's inside and
/// outside service ids).
pub(crate) fn is_translation(enterprise: u32, id: u16) -> bool {
    const NOKIA: u32 = 637;
    matches!((enterprise, id), (IANA, 225..=228 | 281 | 282) | (NOKIA, 91 | 92))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_schemas::elements::Dictionary;

    #[test]
    fn every_mapped_element_is_in_the_dictionary_and_fits_its_column() {
        let vendors = Dictionary::builtin().iter().filter_map(named).map(|(_, mapping)| mapping);
        let vendors: Vec<Mapping> = vendors.collect();
        assert!(vendors.len() > 50);
        for mapping in MAPPINGS.iter().chain(&vendors) {
            let dictionary = Dictionary::builtin();
            let known = match mapping.id {
                id if mapping.enterprise == IANA && id > 0x7fff => dictionary.lookup_v9(id),
                id => dictionary.lookup(mapping.enterprise, id),
            };
            assert!(known.is_some(), "{}:{}", mapping.enterprise, mapping.id);
            let kind = mapping.column.column().kind;
            let fits = match mapping.conversion {
                Number => matches!(kind, Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64),
                Counter | Times(_) | Nanos => kind == Kind::U64,
                Low24 => kind == Kind::U32,
                Dscp | Octet(_) => kind == Kind::U8,
                Ipv4 | Ipv6 => kind == Kind::Ip,
                Mac => kind == Kind::Mac,
                Text | Application => kind == Kind::Text,
            };
            assert!(fits, "{}:{} to {}", mapping.enterprise, mapping.id, mapping.column.column().name);
        }
    }

    #[test]
    fn the_other_end_of_the_other_end_is_this_one() {
        for index in 0..FlowColumn::ALL.len() {
            let column = FlowColumn::from_index(index).unwrap();
            assert_eq!(other_end(other_end(column)), column);
        }
    }
}
