//! Messages whose columns are compressed where it costs next to nothing: those that hardly change from row to row.
//!
//! Of a batch of flows a quarter to a third of the bytes say the same in row after row: who exported it, how it was
//! sampled, when its datagram came, which columns are NULL. LZ4 makes next to nothing of them at several bytes a
//! nanosecond, and of everything else little at ten times the cost. Arrow's IPC format has it buffer by buffer
//! (`BodyCompression`: a length of -1 stands before a buffer that is as it was), so every reader of Arrow reads it, but
//! `arrow` has no switch for it. So its encoder writes the message without compression, and here the one record batch in
//! it gets another head and other pieces.

use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::{
    BodyCompression, BodyCompressionArgs, BodyCompressionMethod, Buffer as Place, CompressionType, FieldNode,
    Message, MessageArgs, MessageHeader, MetadataVersion, RecordBatch, RecordBatchArgs, root_as_message,
};
use flatbuffers::FlatBufferBuilder;

use self::frame::{PERIOD, Room};

mod frame;

/// Buffers smaller than this are left alone.
const LEAST: usize = 1 << 10;
/// Places in a buffer that are looked at, and how many of them must be followed by the same again.
const SAMPLES: usize = 32;
/// So many are looked at first: where one of them at most is alike, the others are not looked at.
const FEW: usize = 8;
const ALIKE: usize = 18;
/// 2^32 divided by the golden ratio: its multiples, modulo 2^32, are spread out.
const GOLDEN: u64 = 0x9e37_79b9;
/// Buffers begin at multiples of this in the body (Arrow columnar format, "Encapsulated message format").
const ALIGNMENT: usize = 8;

const CONTINUATION: [u8; 4] = [0xff; 4];
const NOT_COMPRESSED: [u8; 8] = (-1_i64).to_le_bytes();

/// Compresses what hardly changes in an Arrow stream of one batch, given in the pieces that `arrow` wrote it in.
pub(crate) fn compress(pieces: Vec<Buffer>) -> Result<Vec<Buffer>, ArrowError> {
    let mut out = Vec::with_capacity(pieces.len() + 16);
    let (stream, mut at, mut room) = (Rope::new(pieces), 0, Room::default());
    // schema, dictionaries, the batch, and a length of 0 at the end
    while at < stream.length {
        let prefix = stream.get(at, 8)?;
        let length = prefix.last_chunk::<4>().map_or(0, |length| i32::from_le_bytes(*length));
        let metadata = stream.get(at + 8, usize::try_from(length).map_err(|_| cut())?)?;
        at += 8 + metadata.len();
        if metadata.is_empty() {
            out.push(prefix);
            continue;
        }
        let message = root_as_message(&metadata)
            .map_err(|error| ArrowError::IpcError(format!("the head of a message: {error}")))?;
        let body = usize::try_from(message.bodyLength()).map_err(|_| cut())?;
        match message.header_as_record_batch() {
            Some(batch) => repack(&batch, &stream, at, &mut room, &mut out)?,
            None => out.extend([prefix, metadata.clone(), stream.get(at, body)?]),
        }
        at += body;
    }
    Ok(out)
}

fn cut() -> ArrowError {
    ArrowError::IpcError("a message that ends before it should".to_owned())
}

/// Writes the batch whose body begins at `start`.
fn repack(
    batch: &RecordBatch<'_>,
    stream: &Rope,
    start: usize,
    room: &mut Room,
    out: &mut Vec<Buffer>,
) -> Result<(), ArrowError> {
    let (mut places, mut body, mut length) = (Vec::new(), Vec::new(), 0_usize);
    for place in batch.buffers().into_iter().flatten() {
        let at = usize::try_from(place.offset()).map_err(|_| cut())?;
        let buffer = stream.get(start + at, usize::try_from(place.length()).map_err(|_| cut())?)?;
        let before = length;
        match squeezed(&buffer, room) {
            // a buffer without octets has no length before it, either
            None if buffer.is_empty() => {}
            None => {
                length += NOT_COMPRESSED.len() + buffer.len();
                body.extend([Buffer::from(&NOT_COMPRESSED[..]), buffer]);
            }
            Some(small) => {
                length += small.len();
                body.push(small);
            }
        }
        places.push(Place::new(before as i64, (length - before) as i64));
        let padding = length.next_multiple_of(ALIGNMENT) - length;
        if padding > 0 {
            body.push(Buffer::from(&[0; ALIGNMENT][..padding]));
            length += padding;
        }
    }
    let metadata = head(batch, &places, length as i64);
    let padded = metadata.len().next_multiple_of(ALIGNMENT);
    let mut head = Vec::with_capacity(8 + padded);
    head.extend(CONTINUATION);
    head.extend(i32::try_from(padded).unwrap_or(i32::MAX).to_le_bytes());
    head.extend(&metadata);
    head.resize(8 + padded, 0);
    out.push(Buffer::from_vec(head));
    out.append(&mut body);
    Ok(())
}

/// The metadata of the batch with other places of its buffers.
fn head(batch: &RecordBatch<'_>, places: &[Place], body: i64) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let nodes: Vec<FieldNode> = batch.nodes().into_iter().flatten().copied().collect();
    let nodes = builder.create_vector(&nodes);
    let buffers = builder.create_vector(places);
    let codec =
        BodyCompressionArgs { codec: CompressionType::LZ4_FRAME, method: BodyCompressionMethod::BUFFER };
    let compression = BodyCompression::create(&mut builder, &codec);
    let batch = RecordBatchArgs {
        length: batch.length(),
        nodes: Some(nodes),
        buffers: Some(buffers),
        compression: Some(compression),
        variadicBufferCounts: None,
    };
    let batch = RecordBatch::create(&mut builder, &batch);
    let message = MessageArgs {
        version: MetadataVersion::V5,
        header_type: MessageHeader::RecordBatch,
        header: Some(batch.as_union_value()),
        bodyLength: body,
        custom_metadata: None,
    };
    let message = Message::create(&mut builder, &message);
    builder.finish(message, None);
    builder.finished_data().to_vec()
}

/// The buffer, compressed, with its length before it; None where that is not worth it.
fn squeezed(buffer: &Buffer, room: &mut Room) -> Option<Buffer> {
    if !hardly_changes(buffer) {
        return None;
    }
    let mut small = Vec::with_capacity(buffer.len() / 4);
    small.extend((buffer.len() as i64).to_le_bytes());
    frame::write(buffer, room, &mut small);
    (small.len() < buffer.len() / 2).then(|| Buffer::from_vec(small))
}

/// Whether octets are followed by the same again at most places.
fn hardly_changes(bytes: &[u8]) -> bool {
    if bytes.len() < LEAST {
        return false;
    }
    // not at equal distances: datagrams of one exporter have the same number of rows, and so do the runs of equal values
    let most = (bytes.len() - 2 * PERIOD) as u64;
    let is_alike = |sample: &usize| {
        let at = (((*sample as u64).wrapping_mul(GOLDEN) & 0xffff_ffff) * most) >> 32;
        let pair = bytes[at as usize..].first_chunk::<{ 2 * PERIOD }>();
        pair.is_some_and(|pair| pair[..PERIOD] == pair[PERIOD..])
    };
    // most columns are told by the first places: each is far from the others, and from the caches
    let first = (0..FEW).filter(is_alike).count();
    first >= 2 && first + (FEW..SAMPLES).filter(is_alike).count() >= ALIKE
}

/// Bytes in pieces that follow one another.
struct Rope {
    /// With where each begins.
    pieces: Vec<(usize, Buffer)>,
    length: usize,
}

impl Rope {
    fn new(pieces: Vec<Buffer>) -> Rope {
        let mut length = 0;
        let with_start = |piece: Buffer| {
            let start = length;
            length += piece.len();
            (start, piece)
        };
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).map(with_start).collect();
        Rope { pieces, length }
    }

    /// The bytes at `start`: where they lie, if that is in one piece.
    fn get(&self, start: usize, length: usize) -> Result<Buffer, ArrowError> {
        if length == 0 {
            return Ok(Buffer::default());
        }
        if start.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(cut());
        }
        let first = self.pieces.partition_point(|(begin, _)| *begin <= start).saturating_sub(1);
        let (begin, piece) = &self.pieces[first];
        if start + length <= begin + piece.len() {
            return Ok(piece.slice_with_length(start - begin, length));
        }
        let bytes = self.pieces[first..].iter().flat_map(|(_, piece)| piece.as_slice());
        Ok(Buffer::from_vec(bytes.skip(start - begin).take(length).copied().collect::<Vec<u8>>()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        Array, ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Int64Array, ListArray,
        RecordBatch, StringArray, UInt8Array, UInt32Array, UInt64Array,
    };
    use arrow::buffer::{NullBuffer, OffsetBuffer};
    use arrow::datatypes::{DataType, Field};
    use proptest::prelude::*;

    use crate::envelope::{Compression, Envelope, decode_body, encode_body, encode_pieces};
    use crate::tables::Table;

    /// A batch with a column of each layout that the tables have; every `run` rows the values change.
    fn batch(rows: usize, run: usize, nulls: bool) -> RecordBatch {
        let value = |row: usize| (row / run.max(1)) as u64;
        let validity = nulls.then(|| NullBuffer::from_iter((0..rows).map(|row| value(row) % 3 != 1)));
        let octets: Vec<u8> =
            (0..rows).flat_map(|row| u128::from(value(row)).wrapping_mul(7).to_be_bytes()).collect();
        let texts: Vec<String> = (0..rows).map(|row| format!("text {}", value(row))).collect();
        let keys = UInt8Array::from_iter_values((0..rows).map(|row| (value(row) % 2) as u8));
        let labels = Arc::new(StringArray::from(vec!["flow", "received"]));
        let items = UInt32Array::from_iter_values((0..2 * rows).map(|row| value(row) as u32));
        let item = Arc::new(Field::new("item", DataType::UInt32, true));
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("constant", Arc::new(Int64Array::from(vec![7; rows]))),
            ("received", Arc::new(UInt64Array::from_iter_values((0..rows).map(value)))),
            ("addr", Arc::new(FixedSizeBinaryArray::new(16, octets.into(), validity))),
            ("text", Arc::new(StringArray::from_iter_values(texts))),
            ("label", Arc::new(DictionaryArray::new(keys, labels))),
            (
                "list",
                Arc::new(ListArray::new(
                    item,
                    OffsetBuffer::from_lengths(vec![2; rows]),
                    Arc::new(items),
                    None,
                )),
            ),
            ("bool", Arc::new(BooleanArray::from_iter((0..rows).map(|row| Some(value(row) % 2 == 0))))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_batch_comes_back(
            rows in 1_usize..3_000, run in 1_usize..400, nulls: bool, from in 0_usize..1_000
        ) {
            let batch = batch(rows, run, nulls);
            let from = from % rows;
            for batch in [batch.slice(from, rows - from), batch] {
                let envelope = Envelope::of(&batch, Table::Flows, "c1", 7, 42);
                let body = encode_body(&batch, Compression::Runs).unwrap();
                prop_assert_eq!(&decode_body(&envelope, &body).unwrap(), &batch);
            }
        }
    }

    /// Runs of thirty rows, as NetFlow v5 has them, in batches of any length.
    #[test]
    fn runs_of_one_length_are_found_whatever_the_length_of_the_batch() {
        for rows in 5_000..5_300 {
            let values: Vec<u128> =
                (0..rows).map(|row| ((row / 30 % 4) as u128 * 0x0101_0101) << 64).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
            let times: Vec<u8> = (0..rows).flat_map(|row| (row as u64 / 30).to_le_bytes()).collect();
            assert!(super::hardly_changes(&bytes) && super::hardly_changes(&times), "{rows}");
        }
    }

    #[test]
    fn what_hardly_changes_is_small_and_the_rest_lies_where_it_was() {
        let rows = 8_192;
        let len = |run, compression| encode_body(&batch(rows, run, false), compression).unwrap().len();
        assert!(len(500, Compression::Runs) < len(500, Compression::None) / 2);
        // values that differ in every row: the constant, the labels (0 1 0 1 …) and the bits are small, all else is as it
        // was
        let saved = len(1, Compression::None) - len(1, Compression::Runs);
        assert!((rows * 8..rows * 10).contains(&saved), "{saved}");
        let batch = batch(rows, 1, false);
        let data = batch.column(2).to_data();
        let there = data.buffers()[0].as_ptr();
        let pieces = encode_pieces(&batch, Compression::Runs).unwrap();
        assert!(pieces.iter().any(|piece| piece.as_ptr() == there));
    }
}
