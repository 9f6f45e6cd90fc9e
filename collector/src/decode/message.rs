//! NetFlow v9 (RFC 3954) and IPFIX (RFC 7011) messages: headers, and the walk over their sets.

#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use super::reject::RejectReason;
use super::template::SetKind;
use super::wire::{u16_at, u32_at};

/// The header of a message, and its sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) ipfix: bool,
    pub(crate) export_us: i64,
    /// v9: since the exporter booted.
    pub(crate) uptime_ms: Option<u32>,
    pub(crate) sequence: u32,
    pub(crate) domain: u32,
    pub(crate) sets: &'a [u8],
}

/// RFC 3954 §5.1.
pub(crate) fn v9(datagram: &[u8]) -> Result<Message<'_>, RejectReason> {
    let sets = datagram.get(20..).ok_or(RejectReason::TooShort)?;
    Ok(Message {
        ipfix: false,
        export_us: i64::from(u32_at(datagram, 8)).saturating_mul(1_000_000),
        uptime_ms: Some(u32_at(datagram, 4)),
        sequence: u32_at(datagram, 12),
        domain: u32_at(datagram, 16),
        sets,
    })
}

/// RFC 7011 §3.1.
pub(crate) fn ipfix(datagram: &[u8]) -> Result<Message<'_>, RejectReason> {
    if datagram.len() < 16 {
        return Err(RejectReason::TooShort);
    }
    let length = usize::from(u16_at(datagram, 2));
    let sets = datagram.get(16..length).ok_or(RejectReason::BadLength)?;
    Ok(Message {
        ipfix: true,
        export_us: i64::from(u32_at(datagram, 4)).saturating_mul(1_000_000),
        uptime_ms: None,
        sequence: u32_at(datagram, 8),
        domain: u32_at(datagram, 12),
        sets,
    })
}

/// A set of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set<'a> {
    Templates(SetKind, &'a [u8]),
    Data(u16, &'a [u8]),
    /// A set id that means nothing in this protocol.
    Reserved(u16),
    /// A set that is shorter than its header or ends after the message: what follows cannot be found.
    Bad,
}

/// The sets of a message, one after the other; after [`Set::Bad`] there are no more.
pub(crate) struct Sets<'a> {
    rest: &'a [u8],
    total: usize,
    ipfix: bool,
}

impl<'a> Sets<'a> {
    pub(crate) fn new(message: &Message<'a>) -> Sets<'a> {
        Sets { rest: message.sets, total: message.sets.len(), ipfix: message.ipfix }
    }

    /// Octets walked so far: where the last set ended.
    pub(crate) fn walked(&self) -> usize {
        self.total.saturating_sub(self.rest.len())
    }
}

impl<'a> Iterator for Sets<'a> {
    type Item = Set<'a>;

    fn next(&mut self) -> Option<Set<'a>> {
        // less than a set header is padding
        if self.rest.len() < 4 {
            return None;
        }
        let (id, length) = (u16_at(self.rest, 0), usize::from(u16_at(self.rest, 2)));
        let Some((set, rest)) = self.rest.split_at_checked(length).filter(|_| length >= 4) else {
            self.rest = &[];
            return Some(Set::Bad);
        };
        self.rest = rest;
        let content = set.get(4..).unwrap_or_default();
        // RFC 7011 §3.3.2, RFC 3954 §5.2, §6.1: 0 and 1 are v9's, 2 and 3 IPFIX's
        Some(match (self.ipfix, id) {
            (false, 0) => Set::Templates(SetKind::V9Template, content),
            (false, 1) => Set::Templates(SetKind::V9Options, content),
            (true, 2) => Set::Templates(SetKind::IpfixTemplate, content),
            (true, 3) => Set::Templates(SetKind::IpfixOptions, content),
            (_, 256..) => Set::Data(id, content),
            _ => Set::Reserved(id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(ipfix: bool, words: &[u16]) -> Vec<String> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let message = Message { ipfix, export_us: 0, uptime_ms: None, sequence: 0, domain: 0, sets: &bytes };
        Sets::new(&message)
            .map(|set| match set {
                Set::Templates(_, content) => format!("t{}", content.len()),
                Set::Data(id, content) => format!("d{id}:{}", content.len()),
                Set::Reserved(id) => format!("r{id}"),
                Set::Bad => "bad".into(),
            })
            .collect()
    }

    #[test]
    fn rule_02_sets_are_walked_by_their_length() {
        assert_eq!(walk(true, &[2, 6, 9, 300, 8, 1, 1, 4, 4, 0]), ["t2", "d300:4", "r4"]);
        assert_eq!(walk(false, &[0, 4, 1, 4, 2, 4, 255, 4]), ["t0", "t0", "r2", "r255"]);
        assert_eq!(walk(true, &[0, 4, 1, 4]), ["r0", "r1"]);
    }

    #[test]
    fn a_set_shorter_than_its_header_or_past_the_message_ends_the_walk() {
        for length in [0, 3, 9, 0xffff] {
            assert_eq!(walk(true, &[300, 4, 300, length, 300, 4]), ["d300:0", "bad"], "{length}");
        }
    }

    #[test]
    fn rule_02_ipfix_length_lies_are_refused() {
        let message = |length: u16| {
            let mut bytes = vec![0, 10];
            bytes.extend(length.to_be_bytes());
            bytes.extend([0; 16]);
            ipfix(&bytes).map(|message| message.sets.len())
        };
        assert_eq!(message(20), Ok(4));
        assert_eq!(message(18), Ok(2));
        assert_eq!(message(16), Ok(0));
        assert_eq!(message(21), Err(RejectReason::BadLength));
        assert_eq!(message(15), Err(RejectReason::BadLength));
        assert_eq!(ipfix(&[0, 10, 0, 4]), Err(RejectReason::TooShort));
    }
}
