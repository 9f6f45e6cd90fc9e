//! The envelope: what goes through the log is one Arrow IPC stream of one batch, with headers that a consumer can read
//! without opening it. On Kafka they are message headers; in the embedded log's frames they are the frame's header.

use std::panic::catch_unwind;

use arrow::array::{AsArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::compute::{max, min};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use arrow::ipc::{CompressionType, root_as_message};
use bytes::Bytes;

use crate::runs;
use crate::tables::{SCHEMA_VERSION, Table};

/// What a batch is, for those who carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u16,
    pub table: Table,
    /// Name of the collector that decoded it.
    pub collector: String,
    /// Differs at each start of the collector.
    pub boot: u64,
    /// Number of the batch in that boot, from 0, over all tables and shards.
    pub batch_seq: u64,
    pub rows: u32,
    /// Least and greatest `received_at`, µs since 1970 UTC.
    pub min_time_us: i64,
    pub max_time_us: i64,
    /// Where the collector keeps a journal of what it has received: how far the log is with this batch.
    pub covered: Option<Covered>,
    /// On Kafka: where in a collector's spool the message stood. A message that was sent again after a crash has the
    /// same origin.
    pub origin: Option<Origin>,
}

/// A place in the spool of a collector. The messages of one spool partition are in one Kafka partition, in this order;
/// those that stand there again have an offset at or below the greatest one before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Number of the spool; each that is begun has its own.
    pub spool: u64,
    pub partition: u32,
    pub offset: u64,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Origin { spool, partition, offset } = self;
        write!(f, "{spool:016x}/{partition}/{offset}")
    }
}

impl std::str::FromStr for Origin {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Origin, Self::Err> {
        let mut parts = text.splitn(3, '/');
        let spool = u64::from_str_radix(parts.next().unwrap_or_default(), 16)?;
        let partition = parts.next().unwrap_or_default().parse()?;
        Ok(Origin { spool, partition, offset: parts.next().unwrap_or_default().parse()? })
    }
}

/// How far the rows of one table are in the log, counted in the datagrams of a shard's journal: all rows of the
/// datagrams before `datagram`, and `rows` more. A collector that takes up the journal after a crash goes on there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Covered {
    /// Number of the journal; each that is begun has its own.
    pub journal: u64,
    pub shard: u64,
    pub datagram: u64,
    pub rows: u64,
}

impl std::fmt::Display for Covered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Covered { journal, shard, datagram, rows } = self;
        write!(f, "{journal:016x}/{shard}/{datagram}/{rows}")
    }
}

impl std::str::FromStr for Covered {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Covered, Self::Err> {
        let mut parts = text.split('/');
        let journal = u64::from_str_radix(parts.next().unwrap_or_default(), 16)?;
        let mut number = || parts.next().unwrap_or_default().parse();
        Ok(Covered { journal, shard: number()?, datagram: number()?, rows: number()? })
    }
}

/// Why an envelope or its body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("header `{0}` is missing")]
    Missing(&'static str),
    #[error("header `{name}` has the value `{value}`, which is no {wanted}")]
    Invalid { name: &'static str, value: String, wanted: &'static str },
    #[error(
        "schema version {0} is newer than this weir's {SCHEMA_VERSION}: upgrade weir before its collectors"
    )]
    Newer(u16),
    #[error("the body holds {0} batches, one was expected")]
    Batches(usize),
    #[error("the body has {body} rows, the header says {header}")]
    Rows { body: usize, header: u32 },
    #[error("the body is no Arrow IPC stream: {0}")]
    Arrow(#[from] ArrowError),
    #[error("the body is damaged: {0}")]
    Damaged(&'static str),
}

/// How the body's buffers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    /// Only the columns that hardly change from row to row, by LZ4.
    Runs,
    #[default]
    Lz4,
    Zstd,
}

impl Envelope {
    /// Describes `batch`; its `received_at` gives the time range.
    pub fn of(batch: &RecordBatch, table: Table, collector: &str, boot: u64, batch_seq: u64) -> Envelope {
        let times = batch
            .column_by_name("received_at")
            .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        Envelope {
            schema_version: SCHEMA_VERSION,
            table,
            collector: collector.to_owned(),
            boot,
            batch_seq,
            rows: u32::try_from(batch.num_rows()).unwrap_or(u32::MAX),
            min_time_us: times.and_then(min).unwrap_or(0),
            max_time_us: times.and_then(max).unwrap_or(0),
            covered: None,
            origin: None,
        }
    }

    /// The headers as names and text, for Kafka and for the frames of the embedded log.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("weir-schema", self.schema_version.to_string()),
            ("weir-table", self.table.name().to_owned()),
            ("weir-collector", self.collector.clone()),
            ("weir-boot", format!("{:016x}", self.boot)),
            ("weir-batch", self.batch_seq.to_string()),
            ("weir-rows", self.rows.to_string()),
            ("weir-min-time-us", self.min_time_us.to_string()),
            ("weir-max-time-us", self.max_time_us.to_string()),
        ];
        headers.extend(self.covered.map(|covered| ("weir-covered", covered.to_string())));
        headers.extend(self.origin.map(|origin| ("weir-origin", origin.to_string())));
        headers
    }

    /// Reads the headers back. Unknown headers are ignored; a newer schema version is refused.
    pub fn from_headers<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Envelope, EnvelopeError> {
        fn number<T: std::str::FromStr>(
            name: &'static str,
            value: Option<&str>,
            wanted: &'static str,
        ) -> Result<T, EnvelopeError> {
            let value = value.ok_or(EnvelopeError::Missing(name))?;
            value.parse().map_err(|_| EnvelopeError::Invalid { name, value: value.to_owned(), wanted })
        }
        let schema_version = number("weir-schema", get("weir-schema"), "number up to 65535")?;
        if schema_version > SCHEMA_VERSION {
            return Err(EnvelopeError::Newer(schema_version));
        }
        let table = get("weir-table").ok_or(EnvelopeError::Missing("weir-table"))?;
        let table = Table::from_name(table).ok_or_else(|| EnvelopeError::Invalid {
            name: "weir-table",
            value: table.to_owned(),
            wanted: "table",
        })?;
        let boot = get("weir-boot").ok_or(EnvelopeError::Missing("weir-boot"))?;
        let boot = u64::from_str_radix(boot, 16).map_err(|_| EnvelopeError::Invalid {
            name: "weir-boot",
            value: boot.to_owned(),
            wanted: "hexadecimal number",
        })?;
        Ok(Envelope {
            schema_version,
            table,
            collector: get("weir-collector").ok_or(EnvelopeError::Missing("weir-collector"))?.to_owned(),
            boot,
            batch_seq: number("weir-batch", get("weir-batch"), "number")?,
            rows: number("weir-rows", get("weir-rows"), "number")?,
            min_time_us: number("weir-min-time-us", get("weir-min-time-us"), "time in µs")?,
            max_time_us: number("weir-max-time-us", get("weir-max-time-us"), "time in µs")?,
            covered: match get("weir-covered") {
                None => None,
                position => Some(number("weir-covered", position, "position in a journal")?),
            },
            origin: match get("weir-origin") {
                None => None,
                place => Some(number("weir-origin", place, "place in a spool")?),
            },
        })
    }
}

/// The body of a message: an Arrow IPC stream that holds `batch`, in pieces that follow one another. Buffers that are
/// not compressed are the batch's own.
pub fn encode_pieces(batch: &RecordBatch, compression: Compression) -> Result<Vec<Buffer>, EnvelopeError> {
    let squeeze = compression == Compression::Runs;
    let compression = match compression {
        Compression::None | Compression::Runs => None,
        Compression::Lz4 => Some(CompressionType::LZ4_FRAME),
        Compression::Zstd => Some(CompressionType::ZSTD),
    };
    let options = IpcWriteOptions::default().try_with_compression(compression)?;
    let mut encoder = StreamEncoder::try_new_with_options(batch.schema_ref(), options)?;
    let mut pieces = encoder.encode(batch)?;
    pieces.extend(encoder.finish()?);
    Ok(if squeeze { runs::compress(pieces)? } else { pieces })
}

/// The body of a message in one piece.
pub fn encode_body(batch: &RecordBatch, compression: Compression) -> Result<Vec<u8>, EnvelopeError> {
    let pieces = encode_pieces(batch, compression)?;
    let mut body = Vec::with_capacity(pieces.iter().map(Buffer::len).sum());
    pieces.iter().for_each(|piece| body.extend_from_slice(piece));
    Ok(body)
}

/// Reads a body back; it must hold one batch of as many rows as the envelope says. Copies the body.
pub fn decode_body(envelope: &Envelope, body: &[u8]) -> Result<RecordBatch, EnvelopeError> {
    open_body(envelope, &Bytes::copy_from_slice(body))
}

/// Reads a body back where it lies: what is not compressed stays there, and the batch keeps the body in memory. Columns
/// that do not lie as their type must are copied.
///
/// The reader of the `arrow` crate trusts what it reads: it panics on types and lengths that cannot be, and asks for as
/// much memory as the stream names. So the stream is looked through before, and a panic is an error.
pub fn open_body(envelope: &Envelope, body: &Bytes) -> Result<RecordBatch, EnvelopeError> {
    check_lengths(body)?;
    let read = || -> Result<Vec<RecordBatch>, ArrowError> {
        let mut rest = Buffer::from(body.clone());
        let (mut decoder, mut batches) = (StreamDecoder::new(), Vec::new());
        while let Some(batch) = decoder.decode(&mut rest)? {
            batches.push(batch);
        }
        decoder.finish()?;
        Ok(batches)
    };
    let read = catch_unwind(read).map_err(|_| EnvelopeError::Damaged("the Arrow reader panicked on it"))?;
    let mut batches = read?;
    let (Some(batch), true) = (batches.pop(), batches.is_empty()) else {
        return Err(EnvelopeError::Batches(batches.len()));
    };
    if batch.num_rows() != envelope.rows as usize {
        return Err(EnvelopeError::Rows { body: batch.num_rows(), header: envelope.rows });
    }
    Ok(batch)
}

/// The most that a buffer of a batch may say to have when decompressed, and all of them together.
const MAX_DECOMPRESSED: u64 = 1 << 30;

/// Goes through the messages of a stream: every length must lie within what is there, and what is compressed must not
/// claim to be more than a batch can be.
fn check_lengths(body: &[u8]) -> Result<(), EnvelopeError> {
    const DAMAGED: EnvelopeError = EnvelopeError::Damaged("a length in it cannot be");
    let mut rest = body;
    let mut decompressed = 0_u64;
    while let Some((head, after)) = rest.split_first_chunk::<4>() {
        // a message begins with a mark and its length; before Arrow 0.15 there was no mark
        let (head, after) = match *head {
            [0xff, 0xff, 0xff, 0xff] => after.split_first_chunk::<4>().ok_or(DAMAGED)?,
            _ => (head, after),
        };
        let length = usize::try_from(i32::from_le_bytes(*head)).map_err(|_| DAMAGED)?;
        if length == 0 {
            return Ok(());
        }
        let (message, after) = after.split_at_checked(length).ok_or(DAMAGED)?;
        let message = root_as_message(message).map_err(|_| DAMAGED)?;
        let length = usize::try_from(message.bodyLength()).map_err(|_| DAMAGED)?;
        let (buffers, after) = after.split_at_checked(length).ok_or(DAMAGED)?;
        rest = after;
        let batch = message
            .header_as_record_batch()
            .or_else(|| message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()));
        let Some(batch) = batch else { continue };
        let compressed = batch.compression().is_some();
        for buffer in batch.buffers().into_iter().flatten() {
            let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
            let (offset, length) = range.ok_or(DAMAGED)?;
            let end = offset.checked_add(length).ok_or(DAMAGED)?;
            let bytes = buffers.get(offset..end).ok_or(DAMAGED)?;
            // what is compressed begins with its length; -1 where it is not after all
            if let (true, Some(length)) = (compressed, bytes.first_chunk::<8>()) {
                let length = i64::from_le_bytes(*length);
                decompressed = decompressed.saturating_add(u64::try_from(length.max(0)).unwrap_or(0));
            }
        }
        if decompressed > MAX_DECOMPRESSED {
            return Err(DAMAGED);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, TimestampMicrosecondArray, UInt64Array};

    use super::*;

    fn batch() -> RecordBatch {
        let times = TimestampMicrosecondArray::from(vec![30, 10, 20]).with_timezone("UTC");
        let bytes = UInt64Array::from(vec![Some(1), None, Some(3)]);
        RecordBatch::try_from_iter([("received_at", Arc::new(times) as ArrayRef), ("bytes", Arc::new(bytes))])
            .unwrap()
    }

    #[test]
    fn a_batch_survives_the_trip_in_every_compression() {
        let batch = batch();
        let envelope = Envelope::of(&batch, Table::Flows, "c1", 7, 42);
        assert_eq!((envelope.min_time_us, envelope.max_time_us, envelope.rows), (10, 30, 3));
        for compression in [Compression::None, Compression::Runs, Compression::Lz4, Compression::Zstd] {
            let body = encode_body(&batch, compression).unwrap();
            assert_eq!(decode_body(&envelope, &body).unwrap(), batch);
        }
        let covered = Covered { journal: 0xfedc, shard: 3, datagram: 1 << 40, rows: 17 };
        let origin = Origin { spool: 0xfedc, partition: 3, offset: 1 << 40 };
        for (covered, origin) in [(None, None), (Some(covered), None), (Some(covered), Some(origin))] {
            let envelope = Envelope { covered, origin, ..envelope.clone() };
            let headers = envelope.headers();
            let get = |name: &str| {
                headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
            };
            assert_eq!(Envelope::from_headers(get).unwrap(), envelope);
        }
        for wrong in ["", "1/2/3", "x/0/0/0", "1/2/3/-4"] {
            assert!(wrong.parse::<Covered>().is_err(), "{wrong}");
            assert!(wrong.parse::<Origin>().is_err() || wrong == "1/2/3", "{wrong}");
        }
    }

    /// The `arrow` crate's reader panics on some of these, and for others it would ask for any amount of memory.
    #[test]
    fn damage_anywhere_is_an_error_or_another_batch() {
        let batch = batch();
        let envelope = Envelope::of(&batch, Table::Flows, "c1", 7, 42);
        for compression in [Compression::None, Compression::Runs, Compression::Lz4] {
            let body = encode_body(&batch, compression).unwrap();
            let mut refused = 0;
            for at in 0..body.len() {
                for octet in [0, 0x7f, 0xff, body[at] ^ 1] {
                    let mut damaged = body.clone();
                    damaged[at] = octet;
                    refused += usize::from(decode_body(&envelope, &damaged).is_err());
                }
            }
            assert!(refused > 100, "{refused}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let batch = batch();
        let mut envelope = Envelope::of(&batch, Table::Flows, "c1", 7, 42);
        let body = encode_body(&batch, Compression::Lz4).unwrap();
        assert!(matches!(decode_body(&envelope, &body[..40]), Err(EnvelopeError::Damaged(_))));
        envelope.rows = 4;
        assert!(matches!(decode_body(&envelope, &body), Err(EnvelopeError::Rows { body: 3, header: 4 })));
        envelope.schema_version = SCHEMA_VERSION + 1;
        let headers = envelope.headers();
        let get =
            |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        let error = Envelope::from_headers(get).unwrap_err();
        assert!(matches!(error, EnvelopeError::Newer(_)), "{error}");
        assert!(matches!(Envelope::from_headers(|_| None), Err(EnvelopeError::Missing("weir-schema"))));
    }
}
