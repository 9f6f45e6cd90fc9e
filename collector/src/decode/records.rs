//! The records of a set as columns of octets: three layouts, one interface, so that a plan runs the same over all.

use super::compile::Span;
use super::template::VARIABLE;
use super::wire::octets;

/// Records of which the same field can be taken one after the other.
pub(crate) trait Records {
    fn count(&self) -> usize;

    /// The octets of a field of one record.
    fn bytes(&self, row: usize, span: Span) -> &[u8];

    /// Appends what `convert` makes of the `W` octets of the field, for every record. `span.width` is `W`.
    fn extend<const W: usize, T>(&self, span: Span, out: &mut Vec<T>, convert: impl Fn([u8; W]) -> T);
}

/// Records of one length.
#[derive(Debug, Clone)]
pub(crate) struct Fixed<'a> {
    data: &'a [u8],
    record: usize,
    /// Divided once: a division costs as much as a dozen of the loops' steps.
    count: usize,
    chunks: std::slice::ChunksExact<'a, u8>,
}

impl<'a> Fixed<'a> {
    /// `data` holds whole records of `record` octets (not 0); what is left over is not looked at.
    pub(crate) fn new(data: &'a [u8], record: usize) -> Fixed<'a> {
        let record = record.max(1);
        Fixed { data, record, count: data.len() / record, chunks: data.chunks_exact(record) }
    }
}

impl Records for Fixed<'_> {
    #[inline]
    fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn bytes(&self, row: usize, span: Span) -> &[u8] {
        let start = row * self.record + span.offset;
        self.data.get(start..start + usize::from(span.width)).unwrap_or_default()
    }

    #[inline]
    fn extend<const W: usize, T>(&self, span: Span, out: &mut Vec<T>, convert: impl Fn([u8; W]) -> T) {
        let offset = span.offset;
        // known to be true: said again so that the loop needs no check
        assert!(offset + W <= self.record);
        out.extend(self.chunks.clone().map(|record| convert(octets::<W>(record, offset))));
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

impl Records for Walked<'_> {
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

    #[inline]
    fn extend<const W: usize, T>(&self, span: Span, out: &mut Vec<T>, convert: impl Fn([u8; W]) -> T) {
        let skip = usize::from(span.skip);
        let records = self.places.chunks_exact(self.fields);
        out.extend(records.map(|record| {
            let start = record.get(span.field).map_or(usize::MAX / 2, |(start, _)| *start as usize);
            convert(octets::<W>(self.data, start + skip))
        }));
    }
}

fn part_of(value: &[u8], span: Span) -> &[u8] {
    let start = usize::from(span.skip);
    value.get(start..start + usize::from(span.width)).unwrap_or_default()
}

/// Some of the records.
pub(crate) struct Picked<'a, R> {
    pub(crate) records: &'a R,
    pub(crate) rows: &'a [u32],
}

impl<R: Records> Records for Picked<'_, R> {
    fn count(&self) -> usize {
        self.rows.len()
    }

    fn bytes(&self, row: usize, span: Span) -> &[u8] {
        self.rows.get(row).map_or(&[], |row| self.records.bytes(*row as usize, span))
    }

    fn extend<const W: usize, T>(&self, span: Span, out: &mut Vec<T>, convert: impl Fn([u8; W]) -> T) {
        let rows = self.rows.iter().map(|row| self.records.bytes(*row as usize, span));
        out.extend(rows.map(|bytes| convert(octets::<W>(bytes, 0))));
    }
}
