//! Fragments put together again, bounded in number, bytes and age.

use std::collections::HashMap;

use weir_schemas::Address;

use super::frame::{Fragment, IpPayload};

/// The most datagrams that are being put together, and their bytes.
const MAX_OPEN: usize = 1_024;
const MAX_BYTES: usize = 16 << 20;
/// RFC 1122 §3.3.2 and RFC 8200 §4.5: incomplete after 60 s is given up.
const MAX_AGE_US: i64 = 60_000_000;
/// An IP packet's payload cannot be longer.
const MAX_PACKET: usize = 65_535;

#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
struct Key {
    src: Address,
    dst: Address,
    id: u32,
    protocol: u8,
}

#[derive(Debug)]
struct Open {
    first_us: i64,
    /// Fragments with their offset, in order of it, none overlapping.
    parts: Vec<(usize, Vec<u8>)>,
    bytes: usize,
    /// Known once the last fragment is there.
    total: Option<usize>,
}

/// The datagrams that are being put together.
#[derive(Debug, Default)]
pub struct Reassembly {
    open: HashMap<Key, Open>,
    bytes: usize,
    /// Fragments given up.
    pub lost: u64,
}

impl Reassembly {
    /// Adds a fragment; returns the packet's payload when it was the missing one.
    pub fn add(&mut self, packet: &IpPayload<'_>, fragment: Fragment, now_us: i64) -> Option<Vec<u8>> {
        let key = Key { src: packet.src, dst: packet.dst, id: fragment.id, protocol: packet.protocol };
        let end = fragment.offset + packet.bytes.len();
        // RFC 791: all but the last are multiples of 8 bytes; a cut one can never be completed
        let sound = end <= MAX_PACKET
            && !packet.cut
            && !packet.bytes.is_empty()
            && (!fragment.more || packet.bytes.len().is_multiple_of(8));
        if !sound {
            self.lost += 1;
            self.give_up(key);
            return None;
        }
        self.make_room(packet.bytes.len(), now_us);
        let open = self.open.entry(key).or_insert_with(|| Open {
            first_us: now_us,
            parts: Vec::new(),
            bytes: 0,
            total: None,
        });
        let at = open.parts.partition_point(|(offset, _)| *offset < fragment.offset);
        if open
            .parts
            .get(at)
            .is_some_and(|(offset, part)| *offset == fragment.offset && part.as_slice() == packet.bytes)
        {
            // the same frame twice, as captures on several interfaces have it
            return None;
        }
        let overlaps = at.checked_sub(1).is_some_and(|before| {
            let (offset, part) = &open.parts[before];
            offset + part.len() > fragment.offset
        }) || open.parts.get(at).is_some_and(|(offset, _)| *offset < end)
            || open.total.is_some_and(|total| end > total || !fragment.more);
        if overlaps {
            // RFC 5722: a datagram with overlapping fragments is dropped as a whole
            self.lost += 1;
            self.give_up(key);
            return None;
        }
        open.parts.insert(at, (fragment.offset, packet.bytes.to_vec()));
        open.bytes += packet.bytes.len();
        self.bytes += packet.bytes.len();
        if !fragment.more {
            open.total = Some(end);
        }
        if open.total != Some(open.bytes) {
            return None;
        }
        let open = self.open.remove(&key)?;
        self.bytes -= open.bytes;
        Some(open.parts.into_iter().flat_map(|(_, part)| part).collect())
    }

    /// Counts what is still open as lost: the capture has ended.
    pub fn finish(&mut self) {
        self.lost += self.open.drain().map(|(_, open)| open.parts.len() as u64).sum::<u64>();
        self.bytes = 0;
    }

    fn give_up(&mut self, key: Key) {
        if let Some(open) = self.open.remove(&key) {
            self.bytes -= open.bytes;
            self.lost += open.parts.len() as u64;
        }
    }

    fn make_room(&mut self, bytes: usize, now_us: i64) {
        if self.open.len() < MAX_OPEN && self.bytes + bytes <= MAX_BYTES {
            return;
        }
        let old: Vec<Key> = self
            .open
            .iter()
            .filter(|(_, open)| now_us - open.first_us > MAX_AGE_US)
            .map(|(key, _)| *key)
            .collect();
        old.into_iter().for_each(|key| self.give_up(key));
        while self.open.len() >= MAX_OPEN || self.bytes + bytes > MAX_BYTES {
            let Some(oldest) = self.open.iter().min_by_key(|(_, open)| open.first_us).map(|(key, _)| *key)
            else {
                return;
            };
            self.give_up(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(bytes: &[u8]) -> IpPayload<'_> {
        let src = Address::v4([192, 0, 2, 1]);
        IpPayload { src, dst: src, protocol: 17, bytes, cut: false, fragment: None }
    }

    #[test]
    fn any_order_gives_the_packet_back() {
        let bytes: Vec<u8> = (0..60).collect();
        let pieces = [(0, 16, true), (16, 40, true), (40, 60, false)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut reassembly = Reassembly::default();
            let mut whole = None;
            for (n, piece) in order.into_iter().enumerate() {
                let (from, to, more) = pieces[piece];
                // each of them twice: copies change nothing
                for copy in 0..2 {
                    let fragment = Fragment { id: 1, offset: from, more };
                    if n == 2 && copy == 1 {
                        continue;
                    }
                    whole = whole.or(reassembly.add(&part(&bytes[from..to]), fragment, 0));
                }
                assert_eq!(whole.is_some(), n == 2, "{order:?}");
            }
            assert_eq!(whole.unwrap(), bytes);
            assert_eq!((reassembly.bytes, reassembly.lost, reassembly.open.len()), (0, 0, 0));
        }
    }

    #[test]
    fn overlaps_and_lies_drop_the_datagram() {
        let bytes = [0; 64];
        let mut reassembly = Reassembly::default();
        assert!(reassembly.add(&part(&bytes[..16]), Fragment { id: 1, offset: 0, more: true }, 0).is_none());
        assert!(reassembly.add(&part(&bytes[..16]), Fragment { id: 1, offset: 8, more: false }, 0).is_none());
        assert_eq!((reassembly.lost, reassembly.open.len(), reassembly.bytes), (2, 0, 0));
        assert!(reassembly.add(&part(&bytes), Fragment { id: 2, offset: 65_528, more: true }, 0).is_none());
        assert!(reassembly.add(&part(&bytes[..7]), Fragment { id: 2, offset: 0, more: true }, 0).is_none());
        assert_eq!((reassembly.lost, reassembly.open.len()), (4, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let bytes = vec![0; 32_768];
        let mut reassembly = Reassembly::default();
        for id in 0..5_000 {
            let fragment = Fragment { id, offset: 0, more: true };
            assert!(reassembly.add(&part(&bytes), fragment, i64::from(id)).is_none());
            assert!(reassembly.bytes <= MAX_BYTES && reassembly.open.len() <= MAX_OPEN);
        }
        reassembly.finish();
        assert_eq!(reassembly.lost, 5_000);
    }
}
