//! Reading octets that somebody else wrote: nothing here panics, and nothing reads past the end.

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

/// The `N` octets at `offset`; zeros where there are not so many (the callers have checked that there are).
#[inline(always)]
pub(crate) fn octets<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    match bytes.get(offset..).and_then(|rest| rest.first_chunk::<N>()) {
        Some(octets) => *octets,
        None => [0; N],
    }
}

#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_be_bytes(octets(bytes, offset))
}

#[inline(always)]
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(octets(bytes, offset))
}

/// An unsigned number of any width (RFC 7011 §6.2: reduced-size encoding). Of more than eight octets the last eight
/// count, and what stands before them makes it too great for any column.
#[inline]
pub(crate) fn unsigned(bytes: &[u8]) -> u64 {
    let (high, low) = bytes.split_at(bytes.len().saturating_sub(8));
    if high.iter().any(|octet| *octet != 0) {
        return u64::MAX;
    }
    low.iter().fold(0, |value, octet| value << 8 | u64::from(*octet))
}

/// A signed number of one to eight octets.
pub(crate) fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|octet| octet & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |value, octet| value << 8 | i64::from(*octet))
}

/// A float of four or eight octets (RFC 7011 §6.2: float64 may come as float32).
pub(crate) fn float(bytes: &[u8]) -> Option<f64> {
    match bytes.len() {
        4 => Some(f64::from(f32::from_be_bytes(octets(bytes, 0)))),
        8 => Some(f64::from_be_bytes(octets(bytes, 0))),
        _ => None,
    }
}

/// Seconds from 1900 (NTP, era 0) to 1970.
const NTP_TO_UNIX_SECONDS: i64 = 2_208_988_800;

/// NTP time (RFC 7011 §6.1.9, §6.1.10) in µs since 1970. `near_us` decides between the eras: the first one ended in
/// 2036.
#[inline]
pub(crate) fn ntp_us(seconds: u32, fraction: u32, near_us: i64) -> i64 {
    const ERA_SECONDS: i64 = 1 << 32;
    let in_era0 = i64::from(seconds).saturating_sub(NTP_TO_UNIX_SECONDS);
    let near = near_us.div_euclid(1_000_000);
    let later = in_era0.saturating_add(ERA_SECONDS);
    let seconds =
        if near.saturating_sub(later).abs() < near.saturating_sub(in_era0).abs() { later } else { in_era0 };
    let micros = (u64::from(fraction).wrapping_mul(1_000_000) >> 32) as i64;
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_32_numbers_of_any_width() {
        assert_eq!(unsigned(&[]), 0);
        assert_eq!(unsigned(&[7]), 7);
        assert_eq!(unsigned(&[1, 0, 0]), 65_536);
        assert_eq!(unsigned(&[0xff; 8]), u64::MAX);
        assert_eq!(unsigned(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 2]), 258);
        assert_eq!(unsigned(&[1, 0, 0, 0, 0, 0, 0, 0, 0]), u64::MAX);
        assert_eq!(signed(&[0xff]), -1);
        assert_eq!(signed(&[0xff, 0x00]), -256);
        assert_eq!(signed(&[0x7f, 0xff]), 32_767);
        assert_eq!(float(&1.5_f32.to_be_bytes()), Some(1.5));
        assert_eq!(float(&0.1_f64.to_be_bytes()), Some(0.1));
        assert_eq!(float(&[0; 3]), None);
    }

    #[test]
    fn rule_31_ntp_times_of_both_eras() {
        let now = 1_763_000_000_000_000;
        assert_eq!(ntp_us(2_208_988_801, 1 << 31, now), 1_500_000);
        // 2036-02-07T06:28:16Z is second 0 of era 1
        let in_2036 = 2_085_978_500_000_000;
        assert_eq!(ntp_us(4, 0, in_2036), 2_085_978_500_000_000);
    }
}
