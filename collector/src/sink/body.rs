//! The body of a message in the pieces that it was encoded to: what is not compressed goes from the columns that the
//! decoder wrote to the disk without a copy between, and the memory goes back to the shard when the log has it.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use bytes::Bytes;
use weir_schemas::Table;

use crate::batch::Spares;

/// An Arrow IPC stream. Clones share it.
#[derive(Debug, Clone)]
pub struct Body(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // before the lease: the batch has one owner when it is given back
    pieces: Vec<Piece>,
    len: usize,
    lease: Option<Lease>,
}

#[derive(Debug)]
enum Piece {
    Columns(Buffer),
    Encoded(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Columns(buffer) => buffer.as_slice(),
            Piece::Encoded(bytes) => bytes,
        }
    }
}

/// The batch whose buffers a body lends, and where they go afterwards.
#[derive(Debug)]
pub(crate) struct Lease {
    batch: Option<RecordBatch>,
    table: Table,
    spares: Arc<Spares>,
}

impl Lease {
    pub(crate) fn new(batch: RecordBatch, table: Table, spares: Arc<Spares>) -> Lease {
        Lease { batch: Some(batch), table, spares }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.spares.give(self.table, batch);
        }
    }
}

impl Body {
    /// A body that lends the buffers of a batch.
    pub(crate) fn lent(pieces: Vec<Buffer>, lease: Option<Lease>) -> Body {
        let len = pieces.iter().map(Buffer::len).sum();
        Body(Arc::new(Inner { pieces: pieces.into_iter().map(Piece::Columns).collect(), len, lease }))
    }

    pub fn len(&self) -> usize {
        self.0.len
    }

    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Bytes that it keeps in memory.
    pub fn memory(&self) -> usize {
        let lent = self.0.lease.as_ref().and_then(|lease| lease.batch.as_ref());
        lent.map_or(0, RecordBatch::get_array_memory_size).max(self.0.len)
    }

    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.0.pieces.iter().map(Piece::bytes)
    }

    /// All of it in one piece, copied where it is in several.
    pub fn contiguous(&self) -> Cow<'_, [u8]> {
        match &self.0.pieces[..] {
            [piece] => Cow::Borrowed(piece.bytes()),
            _ => {
                let mut all = Vec::with_capacity(self.0.len);
                self.pieces().for_each(|piece| all.extend_from_slice(piece));
                Cow::Owned(all)
            }
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        let len = bytes.len();
        Body(Arc::new(Inner { pieces: vec![Piece::Encoded(bytes)], len, lease: None }))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Bytes::from(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, UInt64Array};

    use super::*;

    #[test]
    fn the_memory_goes_back_when_the_last_clone_is_gone() {
        let spares = Arc::new(Spares::default());
        let rows = 4_096_u64;
        let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..rows));
        let batch = RecordBatch::try_from_iter([("bytes", numbers)]).unwrap();
        let buffer = batch.column(0).to_data().buffers()[0].clone();
        let lease = Lease::new(batch, Table::Flows, Arc::clone(&spares));
        let body = Body::lent(vec![Buffer::from([1, 2]), buffer], Some(lease));
        assert_eq!(body.len(), 2 + 8 * 4_096);
        assert_eq!(body.contiguous()[..4], [1, 2, 0, 0]);
        let other = body.clone();
        drop(body);
        assert!(spares.take(Table::Flows, 1 << 20).is_none());
        drop(other);
        assert!(spares.take(Table::Flows, 1 << 20).is_some());
        assert_eq!(Body::from(vec![7; 3]).contiguous(), Cow::Borrowed(&[7_u8; 3][..]));
    }
}
