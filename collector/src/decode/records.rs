//! The records of a set as columns of octets: four layouts, one interface, so that a plan runs the same over all.

use super::compile::Span;
use super::template::VARIABLE;
use super::wire::octets;
use crate::columns::LANES;

/// Records of which every field can be asked for.
pub(crate) trait Fields {
    fn count(&self) -> usize;

    /// The octets of a field of one record.
    fn bytes(&self, row: usize, span: Span) -> &[u8];
}

/// Records of which the same field can be taken one after the other.
pub(crate) trait Records: Fields {
    /// Writes what `convert` makes of the `W` octets of the field, for every record, to `slots`, of which there is one
    /// for each, and more up to a multiple of [`LANES`]: these may be written, too. `span.width` is `W`.
    fn fill<const W: usize, T>(&self, span: Span, slots: &mut [T], convert: impl Fn([u8; W]) -> T);
}

/// Records of one length, of `S` octets at most.
///
/// They are copied to places of `S` octets each, so that the distance from one to the next is a constant: then a field of
/// [`LANES`] records is read, turned round and written without a check, a count or a sum between, in half of the
/// instructions. Up to [`BLOCK`] at a time: they stay in the nearest cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spaced<'a, const S: usize> {
    places: &'a [[u8; S]],
    count: usize,
}

/// So many records are copied at a time: more than a datagram of 1,500 octets has of flows.
pub(crate) const BLOCK: usize = 64;

impl<'a, const S: usize> Spaced<'a, S> {
    /// `data` has whole records of `record` octets (1 to `S`), up to [`BLOCK`] of which are taken.
    pub(crate) fn copy(data: &[u8], record: usize, places: &'a mut Vec<[u8; S]>) -> Spaced<'a, S> {
        places.resize(BLOCK, [0; S]);
        let mut count = 0_usize;
        let mut rest = data;
        for place in places.iter_mut() {
            if rest.len() < record {
                break;
            }
            match rest.first_chunk::<S>() {
                // what follows the record comes along: nobody looks at it
                Some(octets) => *place = *octets,
                None => place[..rest.len()].copy_from_slice(rest),
            }
            rest = &rest[record..];
            count += 1;
        }
        Spaced { places: &places[..count.next_multiple_of(LANES)], count }
    }
}

impl<const S: usize> Fields for Spaced<'_, S> {
    #[inline]
    fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn bytes(&self, row: usize, span: Span) -> &[u8] {
        let Some(record) = self.places.get(row) else { return &[] };
        record.get(span.offset..span.offset + usize::from(span.width)).unwrap_or_default()
    }
}

impl<const S: usize> Records for Spaced<'_, S> {
    #[inline]
    fn fill<const W: usize, T>(&self, span: Span, slots: &mut [T], convert: impl Fn([u8; W]) -> T) {
        let offset = span.offset;
        // known to be true: said again so that the loop needs no check
        assert!(offset <= S - W);
        let (records, slots) = (self.places.as_chunks::<LANES>().0, slots.as_chunks_mut::<LANES>().0);
        for (records, slots) in records.iter().zip(slots) {
            for (record, slot) in records.iter().zip(slots) {
                *slot = convert(octets::<W>(record, offset));
            }
        }
    }
}

/// Records of one length, where they are: of options, and those too long to be copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fixed<'a> {
    data: &'a [u8],
    record: usize,
    count: usize,
}

impl<'a> Fixed<'a> {
    /// `data` holds whole records of `record` octets (not 0); what is left over is not looked at.
    pub(crate) fn new(data: &'a [u8], record: usize) -> Fixed<'a> {
        let record = record.max(1);
        Fixed { data, record, count: data.len() / record }
    }
}

impl Fields for Fixed<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn bytes(&self, row: usize, span: Span) -> &[u8] {
        let start = row * self.record + span.offset;
        self.data.get(start..start + usize::from(span.width)).unwrap_or_default()
    }
}

impl Records for Fixed<'_> {
    #[inline]
    fn fill<const W: usize, T>(&self, span: Span, slots: &mut [T], convert: impl Fn([u8; W]) -> T) {
        for (record, slot) in self.data.chunks_exact(self.record).zip(slots) {
            *slot = convert(octets::<W>(record, span.offset));
        }
    }
}

/// Records of differing lengths, after [`Walked::walk`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walked<'a> {
    data: &'a [u8],
    /// Start and length of each field of each record.
    places: &'a [(u32, u32)],
    fields: usize,
}

impl<'a> Walked<'a> {
    /// Finds the fields of all records; `lengths` has no zeros. Returns the octets that whole records take: what
    /// follows them is padding or a record that is cut off.
    pub(crate) fn walk(data: &[u8], lengths: &[u16], most: usize, places: &mut Vec<(u32, u32)>) -> usize {
        places.clear();
        let mut at = 0_usize;
        for _ in 0..most {
            let (start, before) = (at, places.len());
            for length in lengths {
                // RFC 7011 §7: one octet of length, or 255 and two
                let mut length = usize::from(*length);
                if length == usize::from(VARIABLE) {
                    let Some(short) = data.get(at) else { break };
                    (length, at) = (usize::from(*short), at + 1);
                    if length == 255 {
                        (length, at) = (usize::from(u16::from_be_bytes(octets(data, at))), at + 2);
                    }
                }
                if at + length > data.len() {
                    break;
                }
                // a datagram has fewer than 2^16 octets
                places.push((at as u32, length as u32));
                at += length;
            }
            if places.len() - before < lengths.len() {
                places.truncate(before);
                return start;
            }
            if at == data.len() {
                break;
            }
        }
        at
    }

    pub(crate) fn new(data: &'a [u8], places: &'a [(u32, u32)], fields: usize) -> Walked<'a> {
        Walked { data, places, fields: fields.max(1) }
    }
}

impl Fields for Walked<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.places.len() / self.fields
    }

    #[inline]
    fn bytes(&self, row: usize, span: Span) -> &[u8] {
        let Some((start, length)) = self.places.get(row * self.fields + span.field) else { return &[] };
        let (start, length) = (*start as usize, *length as usize);
        let value = self.data.get(start..start + length).unwrap_or_default();
        let whole = span.width == VARIABLE || value.len() == usize::from(span.width);
        if whole { value } else { part_of(value, span) }
    }
}

impl Records for Walked<'_> {
    #[inline]
    fn fill<const W: usize, T>(&self, span: Span, slots: &mut [T], convert: impl Fn([u8; W]) -> T) {
        let skip = usize::from(span.skip);
        for (record, slot) in self.places.chunks_exact(self.fields).zip(slots) {
            let start = record.get(span.field).map_or(usize::MAX / 2, |(start, _)| *start as usize);
            *slot = convert(octets::<W>(self.data, start + skip));
        }
    }
}

fn part_of(value: &[u8], span: Span) -> &[u8] {
    let start = usize::from(span.skip);
    value.get(start..start + usize::from(span.width)).unwrap_or_default()
}

/// Some of the records.
#[derive(Clone, Copy)]
pub(crate) struct Picked<'a> {
    pub(crate) records: &'a dyn Fields,
    pub(crate) rows: &'a [u32],
}

impl Fields for Picked<'_> {
    fn count(&self) -> usize {
        self.rows.len()
    }

    fn bytes(&self, row: usize, span: Span) -> &[u8] {
        self.rows.get(row).map_or(&[], |row| self.records.bytes(*row as usize, span))
    }
}

impl Records for Picked<'_> {
    fn fill<const W: usize, T>(&self, span: Span, slots: &mut [T], convert: impl Fn([u8; W]) -> T) {
        for (row, slot) in self.rows.iter().zip(slots) {
            *slot = convert(octets::<W>(self.records.bytes(*row as usize, span), 0));
        }
    }
}
