//! Abstract data types and semantics of information elements (RFC 7012 §3, with the types that RFC 6313 and RFC 9740 added).
//! Public as `elements::{DataType, Semantics}`.

/// How the octets of a value read: the IANA registry "IPFIX Information Element Data Types".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    OctetArray,
    Unsigned8,
    Unsigned16,
    Unsigned32,
    Unsigned64,
    /// RFC 9740: bit fields of up to 256 bits, nearly always sent in fewer octets.
    Unsigned256,
    Signed8,
    Signed16,
    Signed32,
    Signed64,
    Float32,
    Float64,
    /// One octet: 1 is true, 2 is false (RFC 7011 §6.1.5).
    Boolean,
    MacAddress,
    /// UTF-8 (RFC 7011 §6.1.6).
    String,
    DateTimeSeconds,
    DateTimeMilliseconds,
    /// NTP format, seconds since 1900 and a binary fraction (RFC 7011 §6.1.9).
    DateTimeMicroseconds,
    /// NTP format too (RFC 7011 §6.1.10).
    DateTimeNanoseconds,
    Ipv4Address,
    Ipv6Address,
    /// RFC 6313 §4.5.1.
    BasicList,
    /// RFC 6313 §4.5.2.
    SubTemplateList,
    /// RFC 6313 §4.5.3.
    SubTemplateMultiList,
}

impl DataType {
    /// All of them.
    pub const ALL: [DataType; 24] = [
        DataType::OctetArray,
        DataType::Unsigned8,
        DataType::Unsigned16,
        DataType::Unsigned32,
        DataType::Unsigned64,
        DataType::Unsigned256,
        DataType::Signed8,
        DataType::Signed16,
        DataType::Signed32,
        DataType::Signed64,
        DataType::Float32,
        DataType::Float64,
        DataType::Boolean,
        DataType::MacAddress,
        DataType::String,
        DataType::DateTimeSeconds,
        DataType::DateTimeMilliseconds,
        DataType::DateTimeMicroseconds,
        DataType::DateTimeNanoseconds,
        DataType::Ipv4Address,
        DataType::Ipv6Address,
        DataType::BasicList,
        DataType::SubTemplateList,
        DataType::SubTemplateMultiList,
    ];

    /// The name in the registry.
    pub const fn name(self) -> &'static str {
        match self {
            DataType::OctetArray => "octetArray",
            DataType::Unsigned8 => "unsigned8",
            DataType::Unsigned16 => "unsigned16",
            DataType::Unsigned32 => "unsigned32",
            DataType::Unsigned64 => "unsigned64",
            DataType::Unsigned256 => "unsigned256",
            DataType::Signed8 => "signed8",
            DataType::Signed16 => "signed16",
            DataType::Signed32 => "signed32",
            DataType::Signed64 => "signed64",
            DataType::Float32 => "float32",
            DataType::Float64 => "float64",
            DataType::Boolean => "boolean",
            DataType::MacAddress => "macAddress",
            DataType::String => "string",
            DataType::DateTimeSeconds => "dateTimeSeconds",
            DataType::DateTimeMilliseconds => "dateTimeMilliseconds",
            DataType::DateTimeMicroseconds => "dateTimeMicroseconds",
            DataType::DateTimeNanoseconds => "dateTimeNanoseconds",
            DataType::Ipv4Address => "ipv4Address",
            DataType::Ipv6Address => "ipv6Address",
            DataType::BasicList => "basicList",
            DataType::SubTemplateList => "subTemplateList",
            DataType::SubTemplateMultiList => "subTemplateMultiList",
        }
    }

    /// The type of that name, to the letter.
    pub fn from_name(name: &str) -> Option<DataType> {
        DataType::ALL.into_iter().find(|data_type| data_type.name() == name)
    }

    /// The octets of a value in full size; `None` where only the template or the value says (RFC 7011 §6.1).
    pub const fn octets(self) -> Option<u16> {
        match self {
            DataType::Unsigned8 | DataType::Signed8 | DataType::Boolean => Some(1),
            DataType::Unsigned16 | DataType::Signed16 => Some(2),
            DataType::Unsigned32 | DataType::Signed32 | DataType::Float32 => Some(4),
            DataType::DateTimeSeconds | DataType::Ipv4Address => Some(4),
            DataType::MacAddress => Some(6),
            DataType::Unsigned64 | DataType::Signed64 | DataType::Float64 => Some(8),
            DataType::DateTimeMilliseconds
            | DataType::DateTimeMicroseconds
            | DataType::DateTimeNanoseconds => Some(8),
            DataType::Ipv6Address => Some(16),
            DataType::Unsigned256 => Some(32),
            DataType::OctetArray | DataType::String => None,
            DataType::BasicList | DataType::SubTemplateList | DataType::SubTemplateMultiList => None,
        }
    }

    /// May be sent in fewer octets than [`DataType::octets`] (RFC 7011 §6.2).
    pub const fn may_be_reduced(self) -> bool {
        matches!(
            self,
            DataType::Unsigned16
                | DataType::Unsigned32
                | DataType::Unsigned64
                | DataType::Unsigned256
                | DataType::Signed16
                | DataType::Signed32
                | DataType::Signed64
                | DataType::Float64
        )
    }
}

/// What a value is: the IANA registry "IPFIX Information Element Semantics".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Semantics {
    Default,
    Quantity,
    TotalCounter,
    DeltaCounter,
    Identifier,
    Flags,
    List,
    /// RFC 8038.
    SnmpCounter,
    /// RFC 8038.
    SnmpGauge,
}

impl Semantics {
    /// All of them.
    pub const ALL: [Semantics; 9] = [
        Semantics::Default,
        Semantics::Quantity,
        Semantics::TotalCounter,
        Semantics::DeltaCounter,
        Semantics::Identifier,
        Semantics::Flags,
        Semantics::List,
        Semantics::SnmpCounter,
        Semantics::SnmpGauge,
    ];

    /// The name in the registry.
    pub const fn name(self) -> &'static str {
        match self {
            Semantics::Default => "default",
            Semantics::Quantity => "quantity",
            Semantics::TotalCounter => "totalCounter",
            Semantics::DeltaCounter => "deltaCounter",
            Semantics::Identifier => "identifier",
            Semantics::Flags => "flags",
            Semantics::List => "list",
            Semantics::SnmpCounter => "snmpCounter",
            Semantics::SnmpGauge => "snmpGauge",
        }
    }

    /// The semantics of that name, to the letter.
    pub fn from_name(name: &str) -> Option<Semantics> {
        Semantics::ALL.into_iter().find(|semantics| semantics.name() == name)
    }
}

/// The type that a wrong name most likely meant: the common names of other languages first, then the fewest changed letters.
pub(crate) fn nearest_type(wrong: &str) -> &'static str {
    let lower = wrong.to_ascii_lowercase();
    for (prefix, ours) in
        [("uint", "unsigned"), ("int", "signed"), ("u", "unsigned"), ("i", "signed"), ("f", "float")]
    {
        let bits = lower.strip_prefix(prefix).filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
        let name = bits.map(|bits| format!("{ours}{bits}"));
        if let Some(data_type) = name.and_then(|name| DataType::from_name(&name)) {
            return data_type.name();
        }
    }
    match lower.as_str() {
        "ip" | "ip4" | "ipv4" => return DataType::Ipv4Address.name(),
        "ip6" | "ipv6" => return DataType::Ipv6Address.name(),
        "bytes" | "binary" | "octets" => return DataType::OctetArray.name(),
        "text" | "utf8" => return DataType::String.name(),
        "mac" => return DataType::MacAddress.name(),
        _ => {}
    }
    nearest(&lower, DataType::ALL.iter().map(|data_type| data_type.name())).unwrap_or("octetArray")
}

/// The name that takes the fewest changed letters, whatever their case.
pub(crate) fn nearest(wrong: &str, names: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let wrong = wrong.to_ascii_lowercase();
    names.min_by_key(|name| edit_distance(&wrong, &name.to_ascii_lowercase()))
}

/// Letters to insert, delete or change (Levenshtein). The names compared are short; a long wrong one is cut.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (at, other) in right.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
