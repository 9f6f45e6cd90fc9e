//! LZ4 frames of what repeats itself every 16 octets: columns whose values hardly change.
//!
//! A general encoder looks for matches anywhere, and of a run of equal values it makes one match that overlaps itself, which
//! decoders copy octet by octet. Here matches are looked for at one distance and where the last runs began, and what a run
//! needs is doubled, match after match, so that none overlaps itself: decoders copy large pieces.
//!
//! Formats: "LZ4 Frame Format Description" 1.6.3 and "LZ4 Block Format Description" (github.com/lz4/lz4, doc/).

use std::ops::Range;

/// Distance at which octets are compared: a multiple of the width of most values.
pub(super) const PERIOD: usize = 16;
/// Octets of a block: the smallest size that there is, since decoders take memory for a whole one.
const BLOCK: usize = 64 << 10;
/// Version 1, blocks independent of each other, no checksums (messages of the log have their own); blocks of up to 64 KiB;
/// the second octet of xxh32 of the two.
const HEAD: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82];
const END_MARK: [u8; 4] = [0; 4];
/// The high bit of a block's length: its octets are as they are.
const STORED: u32 = 1 << 31;
/// A match has so many octets at least.
const LEAST_MATCH: usize = 4;
/// No match begins within the last octets of a block.
const LAST_LITERALS: usize = 12;
/// What a run must have beyond its first period to be worth the octets that say so.
const LEAST_RUN: usize = PERIOD;
/// Greatest distance of a match that is a power of two.
const FARTHEST: usize = 32 << 10;

/// Memory for a block, used again and again.
#[derive(Debug, Default)]
pub(super) struct Room(Vec<u8>);

/// Appends a frame of `bytes`.
pub(super) fn write(bytes: &[u8], room: &mut Room, out: &mut Vec<u8>) {
    out.extend(HEAD);
    for block in bytes.chunks(BLOCK) {
        let written = write_block(block, room);
        if written.len() < block.len() {
            out.extend((written.len() as u32).to_le_bytes());
            out.extend_from_slice(written);
        } else {
            out.extend((block.len() as u32 | STORED).to_le_bytes());
            out.extend_from_slice(block);
        }
    }
    out.extend(END_MARK);
}

fn write_block<'a>(bytes: &[u8], room: &'a mut Room) -> &'a [u8] {
    // an octet for each 255 literals more than is there, and what is copied beyond its end
    let most = bytes.len() + bytes.len() / 255 + 4 * PERIOD;
    if room.0.len() < most {
        room.0.resize(most, 0);
    }
    let mut block = Block { bytes, literals: 0, recent: Recent::default(), out: &mut room.0, length: 0 };
    let end = bytes.len().saturating_sub(LAST_LITERALS);
    // of the period before the one at `at`: the octets at its end that do not differ may belong to a run
    let mut before = u128::MAX;
    let mut at = PERIOD;
    while at + PERIOD <= end {
        let difference = difference(bytes, at);
        if difference != 0 {
            (before, at) = (difference, at + PERIOD);
            continue;
        }
        let earlier = (before.leading_zeros() / 8) as usize;
        let start = at - earlier.min(at - block.literals.max(PERIOD));
        let (stop, after) = run_end(bytes, at + PERIOD, end);
        if stop - start >= LEAST_RUN {
            block.run(start, stop);
        }
        (before, at) = (after, stop - stop % PERIOD + PERIOD);
    }
    block.last();
    let length = block.length;
    &room.0[..length]
}

/// In what the period at `at` differs from the one before it: the first octet is the least.
#[inline]
fn difference(bytes: &[u8], at: usize) -> u128 {
    period(bytes, at) ^ period(bytes, at - PERIOD)
}

/// The octets at `at`; all ones where there are too few.
#[inline]
fn period(bytes: &[u8], at: usize) -> u128 {
    let octets = bytes.get(at..).and_then(|rest| rest.first_chunk());
    octets.map_or(u128::MAX, |octets| u128::from_le_bytes(*octets))
}

/// Where the run ends that the octets up to `at` belong to, and in what the period there differs from the one before it.
fn run_end(bytes: &[u8], at: usize, end: usize) -> (usize, u128) {
    let stop = at + alike(bytes, at - PERIOD, at, end);
    let whole = stop - stop % PERIOD;
    (stop, if whole + PERIOD <= end { difference(bytes, whole) } else { u128::MAX })
}

/// How many octets at `one` are those at `other`, up to `end`.
#[inline]
fn alike(bytes: &[u8], one: usize, other: usize, end: usize) -> usize {
    let mut length = 0;
    while other + length + PERIOD <= end {
        let difference = period(bytes, one + length) ^ period(bytes, other + length);
        if difference != 0 {
            return length + (difference.trailing_zeros() / 8) as usize;
        }
        length += PERIOD;
    }
    let last = (other + length..end).zip(one + length..);
    length + last.take_while(|(at, earlier)| bytes[*at] == bytes[*earlier]).count()
}

/// Where runs begin that were met last, at multiples of a period: of few exporters in turn the same values come again.
#[derive(Default)]
struct Recent {
    begins: [usize; 8],
    met: usize,
}

impl Recent {
    fn note(&mut self, begin: usize) {
        self.begins[self.met % self.begins.len()] = begin;
        self.met += 1;
    }

    /// A match (distance, length) for what begins at `first`, up to `end` at most.
    #[inline]
    fn find(&self, bytes: &[u8], first: usize, end: usize) -> Option<(usize, usize)> {
        let more = first.next_multiple_of(PERIOD) - first;
        let sought = period(bytes, first);
        let met = &self.begins[..self.met.min(self.begins.len())];
        // those before `more` wrap to what is beyond the end
        let from =
            met.iter().map(|begin| begin.wrapping_sub(more)).find(|at| period(bytes, *at) == sought)?;
        let distance = first.checked_sub(from).filter(|distance| *distance >= PERIOD)?;
        let end = end.min(first + distance);
        // most runs of a batch are as long as each other: to compare them whole is quicker
        let is_whole = bytes[from..from + (end - first)] == bytes[first..end];
        Some((distance, if is_whole { end - first } else { alike(bytes, from, first, end) }))
    }
}

/// A block that is being written.
struct Block<'a> {
    bytes: &'a [u8],
    /// Where literals begin that are not written yet.
    literals: usize,
    recent: Recent,
    out: &'a mut [u8],
    /// Of what is written.
    length: usize,
}

impl Block<'_> {
    /// Writes a run, octets `start..end`, and the literals that precede it.
    fn run(&mut self, start: usize, end: usize) {
        let bytes = self.bytes;
        // its first period is no part of it yet
        let first = (start - PERIOD).max(self.literals);
        let found = self.recent.find(bytes, first, end).filter(|(_, length)| first + length >= start);
        let half = PERIOD / 2;
        if let Some((distance, length)) = found {
            self.sequence(first, distance, length);
        } else if start >= self.literals + half
            && bytes[start - half..start] == bytes[start - PERIOD..start - half]
        {
            // values half as wide
            self.sequence(start - half, half, half);
        }
        self.recent.note(first.next_multiple_of(PERIOD));
        let mut at = self.literals.max(start);
        while end - at >= LEAST_MATCH {
            let periods = (at - start) / PERIOD + 1;
            let distance = FARTHEST.min(PERIOD << periods.ilog2());
            self.sequence(at, distance, distance.min(end - at));
            at = self.literals;
        }
    }

    /// Writes the literals before `at` and a match there.
    fn sequence(&mut self, at: usize, distance: usize, length: usize) {
        let literals = self.literals..at;
        let (high, more_literals) = beyond(literals.len());
        let (low, more_match) = beyond(length - LEAST_MATCH);
        self.octet(high << 4 | low);
        self.rest(more_literals);
        match self.bytes[literals.start..].first_chunk::<PERIOD>() {
            // what follows is written over
            Some(near) if literals.len() <= PERIOD => {
                self.out[self.length..][..PERIOD].copy_from_slice(near);
                self.length += literals.len();
            }
            _ => self.copy(literals),
        }
        self.out[self.length..][..2].copy_from_slice(&(distance as u16).to_le_bytes());
        self.length += 2;
        self.rest(more_match);
        self.literals = at + length;
    }

    /// Writes the last literals: no match follows.
    fn last(&mut self) {
        let literals = self.literals..self.bytes.len();
        let (high, more) = beyond(literals.len());
        self.octet(high << 4);
        self.rest(more);
        self.copy(literals);
    }

    fn octet(&mut self, octet: u8) {
        self.out[self.length] = octet;
        self.length += 1;
    }

    /// What of a length the token had no room for.
    fn rest(&mut self, rest: Option<usize>) {
        let Some(mut rest) = rest else { return };
        while rest >= 255 {
            self.octet(255);
            rest -= 255;
        }
        self.octet(rest as u8);
    }

    fn copy(&mut self, literals: Range<usize>) {
        let octets = &self.bytes[literals];
        self.out[self.length..][..octets.len()].copy_from_slice(octets);
        self.length += octets.len();
    }
}

/// What of a length the token says, and what it has no room for.
fn beyond(length: usize) -> (u8, Option<usize>) {
    (length.min(15) as u8, length.checked_sub(15))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(bytes, &mut Room::default(), &mut out);
        out
    }

    fn read(frame: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        lz4_flex::frame::FrameDecoder::new(frame).read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Values of one width in runs of these lengths.
    fn values(width: usize, runs: &[(u64, usize)]) -> Vec<u8> {
        let value = |value: u64| value.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(2);
        runs.iter().flat_map(|(of, n)| value(*of)[..width].repeat(*n)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn what_is_written_comes_back(
            width in prop::sample::select(vec![1_usize, 2, 4, 6, 8, 16]),
            runs in prop::collection::vec((any::<u64>(), 1_usize..200), 0..40),
            long in prop::option::of((any::<u64>(), 1_usize..200_000)),
            skip in 0_usize..20,
        ) {
            let runs: Vec<_> = runs.into_iter().chain(long).collect();
            let bytes = values(width, &runs);
            let bytes = &bytes[skip.min(bytes.len())..];
            prop_assert_eq!(read(&frame(bytes)), bytes);
        }
    }

    #[test]
    fn any_length_comes_back() {
        for length in (0..300).chain(BLOCK - 40..BLOCK + 40).chain(2 * BLOCK - 20..2 * BLOCK + 20) {
            for bytes in [vec![7; length], (0..length).map(|at| (at / 50 + at % 3) as u8).collect()] {
                assert_eq!(read(&frame(&bytes)), bytes, "{length}");
            }
        }
    }

    /// The rules for the end of a block, which decoders may rely on, and no match that overlaps itself.
    #[test]
    fn blocks_are_as_the_format_asks() {
        let mut random = 5_u64;
        for _ in 0..2_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let runs: Vec<_> =
                (0..random >> 60).map(|run| (run, 1 + (random >> (run % 32)) as usize % 70)).collect();
            let bytes = values([1, 2, 4, 8, 16][(random >> 40) as usize % 5], &runs);
            let mut room = Room::default();
            let block = write_block(&bytes, &mut room);
            let (mut at, mut written) = (0, 0);
            let length = |at: &mut usize, low: u8| {
                let mut length = usize::from(low);
                let mut more = low == 15;
                while more {
                    length += usize::from(block[*at]);
                    more = block[*at] == 255;
                    *at += 1;
                }
                length
            };
            loop {
                let token = block[at];
                at += 1;
                let literals = length(&mut at, token >> 4);
                (at, written) = (at + literals, written + literals);
                if at == block.len() {
                    break;
                }
                let distance = usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
                at += 2;
                let matched = LEAST_MATCH + length(&mut at, token & 15);
                assert!(distance <= written && matched <= distance && written + LAST_LITERALS <= bytes.len());
                written += matched;
                assert!(written + 5 <= bytes.len());
            }
            assert_eq!(written, bytes.len());
        }
    }

    #[test]
    fn a_constant_is_small_and_noise_is_stored() {
        assert!(frame(&[3; 200_000]).len() < 1_300);
        let noise: Vec<u8> =
            (0..100_000_u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8).collect();
        assert_eq!(read(&frame(&noise)), noise);
        assert!(frame(&noise).len() < noise.len() + 30);
    }
}
