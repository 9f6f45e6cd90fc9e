//! Batches for consumers that do not read Arrow: JSON lines or Protocol Buffers, in pieces that a message takes.

use arrow::array::RecordBatch;
use clap::ValueEnum;
use weir_schemas::Table;

use super::protobuf::Rows;
use super::rows::JsonLines;

/// What rows are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Encoding {
    /// One object a line, as `weir decode` prints them.
    Json,
    /// `docs/weir.proto`.
    Protobuf,
}

impl Encoding {
    /// The media type, for the header `content-type`.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/x-ndjson",
            Encoding::Protobuf => "application/x-protobuf",
        }
    }

    /// The rows of a batch in pieces of at most `most` bytes (a row that is longer by itself is a piece), each with how many
    /// rows it has.
    pub(crate) fn pieces(self, table: Table, batch: &RecordBatch, most: usize) -> Vec<(u32, Vec<u8>)> {
        let mut pieces: Vec<(u32, Vec<u8>)> = Vec::new();
        let (json, mut protobuf) = (JsonLines::of(table, batch), Rows::of(table, batch));
        let mut line = Vec::new();
        for row in 0..batch.num_rows() {
            line.clear();
            match self {
                Encoding::Json => json.write(row, &mut line),
                Encoding::Protobuf => protobuf.write(row, &mut line),
            }
            match pieces.last_mut() {
                Some((rows, piece)) if piece.len() + line.len() <= most => {
                    *rows += 1;
                    piece.extend_from_slice(&line);
                }
                _ => pieces.push((1, line.clone())),
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_all_rows_once_and_keep_to_the_bound() {
        let batch = super::super::rows::tests::batch();
        for encoding in [Encoding::Json, Encoding::Protobuf] {
            let whole = encoding.pieces(Table::Flows, &batch, usize::MAX);
            assert_eq!((whole.len(), whole[0].0), (1, 2));
            let single = encoding.pieces(Table::Flows, &batch, 1);
            assert_eq!(single.iter().map(|(rows, _)| *rows).collect::<Vec<_>>(), [1, 1]);
            let all: Vec<u8> = single.into_iter().flat_map(|(_, piece)| piece).collect();
            assert_eq!(all, whole[0].1);
        }
    }
}
