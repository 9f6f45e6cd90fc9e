//! Addresses as bytes: sixteen for an IP address, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2), six for a MAC.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IP address in the form that columns hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// `::`, which stands for "no address" on the wire.
    pub const UNSPECIFIED: Address = Address([0; 16]);

    pub const fn v4(octets: [u8; 4]) -> Address {
        let [a, b, c, d] = octets;
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    pub const fn v6(octets: [u8; 16]) -> Address {
        Address(octets)
    }

    /// The four octets of an IPv4 (or IPv4-mapped) address.
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    pub fn is_v4(&self) -> bool {
        self.as_v4().is_some()
    }

    /// True for `0.0.0.0` and `::`.
    #[inline]
    pub fn is_unspecified(&self) -> bool {
        self.0 == [0; 16] || self.as_v4() == Some([0; 4])
    }

    /// IPv4 where it is one (mapped addresses too).
    pub fn ip(&self) -> IpAddr {
        match self.as_v4() {
            Some(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
            None => IpAddr::V6(Ipv6Addr::from(self.0)),
        }
    }

    /// The address with all but the first `len` bits cleared. `len` counts in the address's own family (0 to 32 for
    /// IPv4, 0 to 128 for IPv6); a greater one leaves the address as it is.
    pub fn prefix(&self, len: u8) -> Address {
        let len = if self.is_v4() { u32::from(len).saturating_add(96) } else { u32::from(len) };
        if len >= 128 {
            return *self;
        }
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
        Address((u128::from_be_bytes(self.0) & mask).to_be_bytes())
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Address::v4(ip.octets()),
            IpAddr::V6(ip) => Address(ip.octets()),
        }
    }
}

impl FromStr for Address {
    type Err = std::net::AddrParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim().parse::<IpAddr>().map(Address::from)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A MAC address; prints as `00:1b:21:3c:4d:5e`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn text_round_trips_and_mapped_addresses_are_ipv4() {
        for text in ["10.1.2.3", "2001:db8::1", "0.0.0.0", "::", "::1"] {
            assert_eq!(address(text).to_string(), text);
        }
        assert_eq!(address("::ffff:10.1.2.3"), address("10.1.2.3"));
        assert_eq!(address("::ffff:10.1.2.3").to_string(), "10.1.2.3");
    }

    #[test]
    fn prefixes_count_in_their_own_family() {
        for (text, len, want) in [
            ("10.1.2.3", 24, "10.1.2.0"),
            ("10.1.2.3", 0, "0.0.0.0"),
            ("10.1.2.3", 32, "10.1.2.3"),
            ("10.1.2.3", 200, "10.1.2.3"),
            ("2001:db8:1:2::3", 48, "2001:db8:1::"),
            ("2001:db8::3", 0, "::"),
            ("2001:db8::3", 128, "2001:db8::3"),
        ] {
            assert_eq!(address(text).prefix(len), address(want), "{text}/{len}");
        }
    }

    #[test]
    fn macs_print_lower_case_with_colons() {
        assert_eq!(Mac([0, 0x1b, 0x21, 0x3c, 0x4d, 0xfe]).to_string(), "00:1b:21:3c:4d:fe");
    }
}
