//! Functions of addresses. They take an address column, or text that is an address; prefix lengths count in the
//! address's own family.

use std::sync::{Arc, OnceLock};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, FixedSizeBinaryBuilder, Int16Array,
    StringArray, StringBuilder,
};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarUDF};
use weir_schemas::Address;

use super::{Arg, Ints, Returns, Spec, Texts, Values, bad_value, extent, finish, udf};
use crate::sql::address::Family;

const PARSE_IP: usize = 0;
const PARSE_MAC: usize = 1;
const TRY_IP: usize = 2;
const TRY_MAC: usize = 3;
const TEXT: usize = 4;
const CONTAINS: usize = 5;

pub(super) static SPECS: &[Spec] = &[
    Spec {
        aliases: &["to_inet"],
        ..Spec::of(
            "inet",
            &[Arg::TextOrIp],
            Returns::Ip,
            "inet(text) → address; an error where the text is none",
            |args, rows| parse_all(args, rows, Family::Ip, true),
        )
    },
    Spec::of(
        "macaddr",
        &[Arg::Text],
        Returns::Mac,
        "macaddr(text) → MAC address; an error where the text is none",
        |args, rows| parse_all(args, rows, Family::Mac, true),
    ),
    Spec::of(
        "try_inet",
        &[Arg::TextOrIp],
        Returns::Ip,
        "try_inet(text) → address; NULL where the text is none",
        |args, rows| parse_all(args, rows, Family::Ip, false),
    ),
    Spec::of(
        "try_macaddr",
        &[Arg::Text],
        Returns::Mac,
        "try_macaddr(text) → MAC address; NULL where the text is none",
        |args, rows| parse_all(args, rows, Family::Mac, false),
    ),
    Spec {
        aliases: &["host", "inet_text"],
        ..Spec::of(
            "address_text",
            &[Arg::Address],
            Returns::Text,
            "address_text(address) → its text, as address::text",
            text_all,
        )
    },
    Spec {
        simplify: Some(contains_as_range),
        ..Spec::of(
            "cidr_contains",
            &[Arg::TextOrIp, Arg::TextOrIp],
            Returns::Bool,
            "cidr_contains('10.0.0.0/8', address) → whether the address is in the network (either order; also address <<= '10.0.0.0/8'); IPv4 and IPv6 never contain one another",
            contains_all,
        )
    },
    Spec::of(
        "prefix",
        &[Arg::Ip, Arg::Int],
        Returns::Ip,
        "prefix(address, len) → the address with all but its first len bits cleared (0–32 for IPv4, 0–128 for IPv6)",
        prefix_all,
    ),
    Spec {
        aliases: &["prefix_text"],
        ..Spec::of(
            "network",
            &[Arg::Ip, Arg::Int],
            Returns::Text,
            "network(address, len) → the prefix as text, 10.1.2.0/24",
            network_all,
        )
    },
    Spec::of(
        "masklen",
        &[Arg::TextOrIp],
        Returns::Int16,
        "masklen('10.0.0.0/8') → the length of its prefix, 8; of an address 32 or 128",
        |args, rows| {
            let (rows, constant) = extent(args, rows);
            let bits = |ip: &Address| if ip.is_v4() { 32 } else { 128 };
            let array: Int16Array = if Family::of(&args[0].data_type()).is_some() {
                let ips = Ips::of(&args[0])?;
                (0..rows).map(|row| ips.get(row).map(|ip| bits(&ip))).collect()
            } else {
                let texts = Texts::of(&args[0])?;
                let length = |text: &str| match text.split_once('/') {
                    Some((_, length)) => {
                        Network::parse(text)?;
                        length.parse().map_err(|_| bad_value(format!("\"{text}\" is no network")))
                    }
                    None => match text.parse::<Address>() {
                        Ok(ip) => Ok(bits(&ip)),
                        Err(_) => Err(bad_value(format!("\"{text}\" is no network"))),
                    },
                };
                let lengths: Result<Vec<_>> =
                    (0..rows).map(|row| texts.get(row).map(length).transpose()).collect();
                Int16Array::from(lengths?)
            };
            finish(Arc::new(array), constant)
        },
    ),
    Spec::of("family", &[Arg::Ip], Returns::Int16, "family(address) → 4 or 6", |args, rows| {
        let (rows, constant) = extent(args, rows);
        let ips = Ips::of(&args[0])?;
        let array: Int16Array =
            (0..rows).map(|row| ips.get(row).map(|ip| if ip.is_v4() { 4 } else { 6 })).collect();
        finish(Arc::new(array), constant)
    }),
    Spec::of(
        "is_private",
        &[Arg::Ip],
        Returns::Bool,
        "is_private(address) → whether it is not of the public Internet: RFC 1918, CGNAT, link-local, loopback, unique local (fc00::/7), unspecified",
        |args, rows| {
            let (rows, constant) = extent(args, rows);
            let ips = Ips::of(&args[0])?;
            let array: BooleanArray = (0..rows).map(|row| ips.get(row).map(|ip| is_private(&ip))).collect();
            finish(Arc::new(array), constant)
        },
    ),
];

fn shared(index: usize) -> &'static ScalarUDF {
    static FUNCTIONS: OnceLock<Vec<ScalarUDF>> = OnceLock::new();
    &FUNCTIONS.get_or_init(|| SPECS.iter().map(udf).collect())[index]
}

/// Text to address; `strict` fails where it is none, else it is NULL.
pub(crate) fn parse(family: Family, strict: bool) -> &'static ScalarUDF {
    shared(match (family, strict) {
        (Family::Ip, true) => PARSE_IP,
        (Family::Mac, true) => PARSE_MAC,
        (Family::Ip, false) => TRY_IP,
        (Family::Mac, false) => TRY_MAC,
    })
}

pub(crate) fn text() -> &'static ScalarUDF {
    shared(TEXT)
}

pub(crate) fn cidr_contains() -> &'static ScalarUDF {
    shared(CONTAINS)
}

fn parse_all(args: &[ColumnarValue], rows: usize, family: Family, strict: bool) -> Result<ColumnarValue> {
    if Family::of(&args[0].data_type()) == Some(family) {
        return Ok(args[0].clone());
    }
    let (rows, constant) = extent(args, rows);
    let texts = Texts::of(&args[0])?;
    let mut builder = FixedSizeBinaryBuilder::with_capacity(rows, family.width());
    for row in 0..rows {
        match texts.get(row).map(|text| family.parse(text).ok_or(text)) {
            Some(Ok(bytes)) => builder.append_value(bytes)?,
            Some(Err(text)) if strict => return Err(family.bad(text)),
            _ => builder.append_null(),
        }
    }
    finish(Arc::new(builder.finish()), constant)
}

fn text_all(args: &[ColumnarValue], rows: usize) -> Result<ColumnarValue> {
    let (_, constant) = extent(args, rows);
    let array = args[0].to_array(if constant { 1 } else { rows })?;
    finish(Arc::new(address_text(&array)?), constant)
}

/// The text of an address column.
pub(crate) fn address_text(array: &ArrayRef) -> Result<StringArray> {
    let Some(family) = Family::of(array.data_type()) else {
        return Err(bad_value(format!("{} is no address", array.data_type())));
    };
    let bytes = array.as_fixed_size_binary();
    let mut builder = StringBuilder::with_capacity(bytes.len(), bytes.len() * 14);
    for row in 0..bytes.len() {
        builder.append_option(bytes.is_valid(row).then(|| family.text(bytes.value(row))).flatten());
    }
    Ok(builder.finish())
}

/// IP addresses, from an address column or from text.
pub(super) struct Ips(Values<FixedSizeBinaryArray>);

impl Ips {
    pub(super) fn of(arg: &ColumnarValue) -> Result<Ips> {
        let rows = match arg {
            ColumnarValue::Array(array) => array.len(),
            ColumnarValue::Scalar(_) => 1,
        };
        Ok(Ips(match parse_all(std::slice::from_ref(arg), rows, Family::Ip, true)? {
            ColumnarValue::Scalar(value) => Values::One(value.to_array()?.as_fixed_size_binary().clone()),
            ColumnarValue::Array(array) => Values::Many(array.as_fixed_size_binary().clone()),
        }))
    }

    pub(super) fn get(&self, row: usize) -> Option<Address> {
        let (array, row) = self.0.at(row);
        array.is_valid(row).then(|| array.value(row).try_into().ok().map(Address)).flatten()
    }
}

/// A network: the addresses from its first to its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    first: Address,
    last: Address,
}

impl Network {
    /// `10.0.0.0/8`; bits beyond the length are ignored, an address alone is its own network.
    fn parse(text: &str) -> Result<Network> {
        let bad = || bad_value(format!("\"{text}\" is not a network (10.0.0.0/8, 2001:db8::/32)"));
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len.trim().parse::<u8>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let address: Address = address.parse().map_err(|_| bad())?;
        let bits = if address.is_v4() { 32 } else { 128 };
        let len = len.unwrap_or(bits);
        if len > bits {
            return Err(bad());
        }
        let first = address.prefix(len);
        let host = 1_u128.checked_shl(u32::from(bits - len)).map_or(u128::MAX, |size| size - 1);
        Ok(Network { first, last: Address((u128::from_be_bytes(first.0) | host).to_be_bytes()) })
    }

    fn contains(&self, address: &Address) -> bool {
        self.first.0 <= address.0 && address.0 <= self.last.0 && self.first.is_v4() == address.is_v4()
    }

    /// Whether a comparison of bytes alone tells: not where an IPv6 network covers the IPv4-mapped range.
    fn is_range(&self) -> bool {
        let mapped = Address::v4([0, 0, 0, 0]);
        self.first.is_v4() || self.last.0 < mapped.0 || self.first.0 > Address::v4([255; 4]).0
    }
}

fn contains_all(args: &[ColumnarValue], rows: usize) -> Result<ColumnarValue> {
    let (rows, constant) = extent(args, rows);
    let is_address = |arg: &ColumnarValue| Family::of(&arg.data_type()).is_some();
    // the network is the text; of two texts the one with a slash, else the first
    let slash = |arg: &ColumnarValue| match arg {
        ColumnarValue::Scalar(value) => value.try_as_str().flatten().is_some_and(|text| text.contains('/')),
        ColumnarValue::Array(_) => false,
    };
    let swapped = match (is_address(&args[0]), is_address(&args[1])) {
        (true, true) => {
            return Err(bad_value(
                "cidr_contains: one argument is a network as text, '10.0.0.0/8'".to_owned(),
            ));
        }
        (true, false) => true,
        (false, true) => false,
        (false, false) => slash(&args[1]) && !slash(&args[0]),
    };
    let (network, address) = if swapped { (&args[1], &args[0]) } else { (&args[0], &args[1]) };
    let (networks, addresses) = (Texts::of(network)?, Ips::of(address)?);
    let fixed = match (network, networks.get(0)) {
        (ColumnarValue::Scalar(_), Some(text)) => Some(Network::parse(text)?),
        _ => None,
    };
    let mut found = Vec::with_capacity(rows);
    for row in 0..rows {
        let network = match (fixed, networks.get(row)) {
            (Some(network), _) => Some(network),
            (None, Some(text)) => Some(Network::parse(text)?),
            (None, None) => None,
        };
        found.push(network.zip(addresses.get(row)).map(|(network, address)| network.contains(&address)));
    }
    finish(Arc::new(BooleanArray::from(found)), constant)
}

/// With a constant network it is a range of bytes: then files and row groups are pruned by it.
fn contains_as_range(args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
    let text = |expr: &Expr| match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten().map(str::to_owned),
        _ => None,
    };
    let (network, address) = match (text(&args[0]), text(&args[1])) {
        (Some(network), None) => (network, &args[1]),
        (None, Some(network)) => (network, &args[0]),
        _ => return Ok(ExprSimplifyResult::Original(args)),
    };
    let network = Network::parse(&network)?;
    if Family::of(&info.get_data_type(address)?) != Some(Family::Ip) || !network.is_range() {
        return Ok(ExprSimplifyResult::Original(args));
    }
    let literal =
        |address: Address| Expr::Literal(ScalarValue::FixedSizeBinary(16, Some(address.0.to_vec())), None);
    let range = if network.first == network.last {
        address.clone().eq(literal(network.first))
    } else {
        address.clone().gt_eq(literal(network.first)).and(address.clone().lt_eq(literal(network.last)))
    };
    Ok(ExprSimplifyResult::Simplified(range))
}

fn prefix_len(len: i64, address: &Address) -> Result<u8> {
    let bits = if address.is_v4() { 32 } else { 128 };
    u8::try_from(len)
        .ok()
        .filter(|len| *len <= 128)
        .map(|len| len.min(bits))
        .ok_or_else(|| bad_value(format!("a prefix length is 0 to 32 or 128, not {len}")))
}

fn prefix_all(args: &[ColumnarValue], rows: usize) -> Result<ColumnarValue> {
    let (rows, constant) = extent(args, rows);
    let (ips, lens) = (Ips::of(&args[0])?, Ints::of(&args[1])?);
    let mut builder = FixedSizeBinaryBuilder::with_capacity(rows, 16);
    for row in 0..rows {
        match ips.get(row).zip(lens.get(row)) {
            Some((ip, len)) => builder.append_value(ip.prefix(prefix_len(len, &ip)?).0)?,
            None => builder.append_null(),
        }
    }
    finish(Arc::new(builder.finish()), constant)
}

fn network_all(args: &[ColumnarValue], rows: usize) -> Result<ColumnarValue> {
    let (rows, constant) = extent(args, rows);
    let (ips, lens) = (Ips::of(&args[0])?, Ints::of(&args[1])?);
    let mut builder = StringBuilder::new();
    for row in 0..rows {
        match ips.get(row).zip(lens.get(row)) {
            Some((ip, len)) => {
                let len = prefix_len(len, &ip)?;
                builder.append_value(format!("{}/{len}", ip.prefix(len)));
            }
            None => builder.append_null(),
        }
    }
    finish(Arc::new(builder.finish()), constant)
}

fn is_private(address: &Address) -> bool {
    use std::net::IpAddr;
    match address.ip() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_broadcast()
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(ip) => {
            let first = ip.segments()[0];
            ip.is_loopback() || ip.is_unspecified() || first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_ranges_of_their_family() {
        let contains = |network: &str, address: &str| {
            Network::parse(network).unwrap().contains(&address.parse().unwrap())
        };
        for (network, address, want) in [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.1.2.3/24", "10.1.2.200", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "10.1.2.3", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("2001:db8::1/128", "2001:db8::1", true),
        ] {
            assert_eq!(contains(network, address), want, "{network} {address}");
        }
        assert!(!Network::parse("::/0").unwrap().is_range());
        assert!(!Network::parse("::/64").unwrap().is_range());
        assert!(Network::parse("2001:db8::/32").unwrap().is_range());
        for bad in ["10.0.0.0/33", "10.0.0/8", "::/129", "x", "10.0.0.0/", "10.0.0.0/8/8", ""] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn private_addresses() {
        for (address, want) in [
            ("10.0.0.1", true),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("127.0.0.1", true),
            ("169.254.1.1", true),
            ("8.8.8.8", false),
            ("fd00::1", true),
            ("fe80::1", true),
            ("::1", true),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_private(&address.parse().unwrap()), want, "{address}");
        }
    }

    #[test]
    fn the_shared_functions_are_the_named_ones() {
        assert_eq!(parse(Family::Ip, true).name(), "inet");
        assert_eq!(parse(Family::Mac, true).name(), "macaddr");
        assert_eq!(parse(Family::Ip, false).name(), "try_inet");
        assert_eq!(parse(Family::Mac, false).name(), "try_macaddr");
        assert_eq!(text().name(), "address_text");
        assert_eq!(cidr_contains().name(), "cidr_contains");
    }
}
