//! Columns under construction: where the decoders write.
//!
//! A [`Builder`] holds the open batch of one table. A decoder asks for a column once a set (or once a sample), appends
//! a value for each record of that set, and then calls [`Builder::advance`] with the number of records. A column that a
//! set has nothing for is not touched: the next one to ask, or [`Builder::finish`], fills the gap with NULLs in one
//! step, and a column that no record had is not in the batch at all.
//!
//! Nothing here allocates per record beyond the amortised growth of the buffers, which are kept from batch to batch.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Float64Array, ListArray, MapArray,
    PrimitiveArray, RecordBatch, RecordBatchOptions, StringArray, StructArray, UInt8Array, UInt16Array,
    UInt32Array, UInt64Array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowNativeType, ArrowPrimitiveType, DataType, Field, Fields, Float64Type, Schema,
    TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use weir_schemas::tables::{Kind, Table};

mod values;

pub(crate) use values::LANES;
pub use values::{Item, Validity, Values};

/// A column of texts.
#[derive(Debug)]
pub struct Texts {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    pub validity: Validity,
}

impl Default for Texts {
    fn default() -> Self {
        Texts { offsets: vec![0], bytes: Vec::new(), validity: Validity::default() }
    }
}

impl Texts {
    /// Rows, with and without a value.
    #[inline]
    fn rows(&self) -> usize {
        self.validity.len()
    }

    pub fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.close(1, true);
    }

    /// UTF-8 with what is invalid replaced; false where something was (RFC 7011 §6.1.6 asks for UTF-8).
    pub fn push_lossy(&mut self, bytes: &[u8]) -> bool {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                self.push(text);
                true
            }
            Err(_) => {
                self.push(&String::from_utf8_lossy(bytes));
                false
            }
        }
    }

    pub fn push_nulls(&mut self, n: usize) {
        self.close(n, false);
    }

    fn close(&mut self, n: usize, valid: bool) {
        // A batch is bounded in bytes far below i32::MAX (BatchLimits).
        let end = i32::try_from(self.bytes.len()).unwrap_or(i32::MAX);
        self.offsets.resize(self.offsets.len() + n, end);
        if valid { self.validity.valid(n) } else { self.validity.null(n) }
    }

    fn take(&mut self) -> StringArray {
        let offsets = std::mem::replace(&mut self.offsets, vec![0]);
        let bytes = Buffer::from_vec(std::mem::take(&mut self.bytes));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        StringArray::new(offsets, bytes, self.validity.take())
    }

    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.bytes.truncate(self.offsets.last().map_or(0, |end| usize::try_from(*end).unwrap_or(0)));
        self.validity.truncate(rows);
    }
}

/// A column of lists of numbers.
#[derive(Debug)]
pub struct Lists {
    offsets: Vec<i32>,
    items: Vec<u32>,
    pub validity: Validity,
}

impl Default for Lists {
    fn default() -> Self {
        Lists { offsets: vec![0], items: Vec::new(), validity: Validity::default() }
    }
}

impl Lists {
    /// Rows, with and without a value.
    #[inline]
    fn rows(&self) -> usize {
        self.validity.len()
    }

    /// A list; an empty one is NULL.
    pub fn push(&mut self, items: impl IntoIterator<Item = u32>) {
        let before = self.items.len();
        self.items.extend(items);
        self.close(1, self.items.len() > before);
    }

    pub fn push_nulls(&mut self, n: usize) {
        self.close(n, false);
    }

    fn close(&mut self, n: usize, valid: bool) {
        let end = i32::try_from(self.items.len()).unwrap_or(i32::MAX);
        self.offsets.resize(self.offsets.len() + n, end);
        if valid { self.validity.valid(n) } else { self.validity.null(n) }
    }

    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.items.truncate(self.offsets.last().map_or(0, |end| usize::try_from(*end).unwrap_or(0)));
        self.validity.truncate(rows);
    }
}

/// A column of maps from text to text. Entries are added to the open row, which [`Maps::close_row`] ends; a row
/// without entries is NULL.
#[derive(Debug)]
pub struct Maps {
    offsets: Vec<i32>,
    keys: Texts,
    values: Texts,
    pub validity: Validity,
}

impl Default for Maps {
    fn default() -> Self {
        Maps {
            offsets: vec![0],
            keys: Texts::default(),
            values: Texts::default(),
            validity: Validity::default(),
        }
    }
}

impl Maps {
    /// Rows, with and without a value.
    #[inline]
    fn rows(&self) -> usize {
        self.validity.len()
    }

    /// Adds an entry to the open row.
    pub fn entry(&mut self, key: &str, value: &str) {
        self.keys.push(key);
        self.values.push(value);
    }

    /// Adds an entry whose value `write` appends; what is not UTF-8 is replaced.
    pub fn entry_with(&mut self, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.keys.push(key);
        let start = self.values.bytes.len();
        write(&mut self.values.bytes);
        if std::str::from_utf8(&self.values.bytes[start..]).is_err() {
            let text = String::from_utf8_lossy(&self.values.bytes[start..]).into_owned();
            self.values.bytes.truncate(start);
            self.values.bytes.extend_from_slice(text.as_bytes());
        }
        self.values.close(1, true);
    }

    /// True where the open row has the key already.
    pub fn has(&self, key: &str) -> bool {
        let start = self.offsets.last().map_or(0, |start| usize::try_from(*start).unwrap_or(0));
        self.keys.offsets[start..].windows(2).any(|pair| {
            let (from, to) = (usize::try_from(pair[0]).unwrap_or(0), usize::try_from(pair[1]).unwrap_or(0));
            self.keys.bytes[from..to] == *key.as_bytes()
        })
    }

    pub fn close_row(&mut self) {
        let end = i32::try_from(self.keys.validity.len()).unwrap_or(i32::MAX);
        let valid = self.offsets.last() != Some(&end);
        self.offsets.push(end);
        if valid { self.validity.valid(1) } else { self.validity.null(1) }
    }

    pub fn push_nulls(&mut self, n: usize) {
        let end = i32::try_from(self.keys.validity.len()).unwrap_or(i32::MAX);
        self.offsets.resize(self.offsets.len() + n, end);
        self.validity.null(n);
    }

    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        let entries = self.offsets.last().map_or(0, |end| usize::try_from(*end).unwrap_or(0));
        self.keys.truncate(entries);
        self.values.truncate(entries);
        self.validity.truncate(rows);
    }
}

/// A column of labels: keys into a list that grows as new labels come, at most 255 a batch (all are ours).
#[derive(Debug, Default)]
pub struct Labels {
    pub keys: Values<u8>,
    labels: Vec<&'static str>,
}

impl Labels {
    /// Rows, with and without a label.
    #[inline]
    fn rows(&self) -> usize {
        self.keys.rows()
    }

    fn push_nulls(&mut self, n: usize) {
        self.keys.push_nulls(n);
    }

    /// The key of a label, for [`Labels::keys`].
    pub fn key(&mut self, label: &'static str) -> u8 {
        let at = self
            .labels
            .iter()
            .position(|known| std::ptr::eq(*known, label) || *known == label)
            .unwrap_or_else(|| {
                self.labels.push(label);
                self.labels.len() - 1
            });
        u8::try_from(at).unwrap_or(u8::MAX)
    }

    pub fn push(&mut self, label: &'static str) {
        let key = self.key(label);
        self.keys.push(key);
    }

    pub fn push_option(&mut self, label: Option<&'static str>) {
        match label {
            Some(label) => self.push(label),
            None => self.push_nulls(1),
        }
    }

    pub fn push_n(&mut self, label: &'static str, n: usize) {
        let key = self.key(label);
        self.keys.push_n(key, n);
    }

    fn finish(&mut self) -> ArrayRef {
        let labels = Arc::new(StringArray::from(std::mem::take(&mut self.labels)));
        let rows = self.rows();
        let all_first = self.keys.values_mut().iter().fold(0, |any, key| any | key) == 0;
        if all_first && self.keys.validity.nulls() == 0 && rows <= ZEROS {
            // most columns of labels have one: its keys are known to be right, which to check takes as long as to
            // write them
            static FIRST: LazyLock<DictionaryArray<UInt8Type>> = LazyLock::new(|| {
                DictionaryArray::new(vec![0; ZEROS].into(), Arc::new(StringArray::from(vec![""])))
            });
            self.keys.truncate(0);
            return Arc::new(FIRST.slice(0, rows).with_values(labels));
        }
        let (keys, nulls) = self.keys.take();
        Arc::new(DictionaryArray::new(UInt8Array::new(keys.into(), nulls), labels))
    }
}

/// Rows up to which a column of one label shares its keys with others.
const ZEROS: usize = 1 << 16;

#[derive(Debug)]
enum Buffers {
    Time(Values<i64>),
    Ip(Values<[u8; 16]>),
    Mac(Values<[u8; 6]>),
    Bool(Values<bool>),
    U8(Values<u8>),
    U16(Values<u16>),
    U32(Values<u32>),
    U64(Values<u64>),
    F64(Values<f64>),
    Text(Texts),
    Label(Labels),
    List(Lists),
    Map(Box<Maps>),
}

impl Buffers {
    fn new(kind: Kind) -> Buffers {
        match kind {
            Kind::Time => Buffers::Time(Values::default()),
            Kind::Ip => Buffers::Ip(Values::default()),
            Kind::Mac => Buffers::Mac(Values::default()),
            Kind::Bool => Buffers::Bool(Values::default()),
            Kind::U8 => Buffers::U8(Values::default()),
            Kind::U16 => Buffers::U16(Values::default()),
            Kind::U32 => Buffers::U32(Values::default()),
            Kind::U64 => Buffers::U64(Values::default()),
            Kind::F64 => Buffers::F64(Values::default()),
            Kind::Text => Buffers::Text(Texts::default()),
            Kind::Label => Buffers::Label(Labels::default()),
            Kind::ListU32 => Buffers::List(Lists::default()),
            Kind::Map => Buffers::Map(Box::default()),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Buffers::Time(column) => column.rows(),
            Buffers::Ip(column) => column.rows(),
            Buffers::Mac(column) => column.rows(),
            Buffers::Bool(column) => column.rows(),
            Buffers::U8(column) => column.rows(),
            Buffers::U16(column) => column.rows(),
            Buffers::U32(column) => column.rows(),
            Buffers::U64(column) => column.rows(),
            Buffers::F64(column) => column.rows(),
            Buffers::Text(column) => column.rows(),
            Buffers::Label(column) => column.rows(),
            Buffers::List(column) => column.rows(),
            Buffers::Map(column) => column.rows(),
        }
    }

    /// NULLs up to `rows`; what was appended beyond (a record that failed half-way) goes.
    fn settle(&mut self, rows: usize) {
        let len = self.rows();
        if len < rows {
            let n = rows - len;
            match self {
                Buffers::Time(column) => column.push_nulls(n),
                Buffers::Ip(column) => column.push_nulls(n),
                Buffers::Mac(column) => column.push_nulls(n),
                Buffers::Bool(column) => column.push_nulls(n),
                Buffers::U8(column) => column.push_nulls(n),
                Buffers::U16(column) => column.push_nulls(n),
                Buffers::U32(column) => column.push_nulls(n),
                Buffers::U64(column) => column.push_nulls(n),
                Buffers::F64(column) => column.push_nulls(n),
                Buffers::Text(column) => column.push_nulls(n),
                Buffers::Label(column) => column.push_nulls(n),
                Buffers::List(column) => column.push_nulls(n),
                Buffers::Map(column) => column.push_nulls(n),
            }
        } else if len > rows {
            match self {
                Buffers::Time(column) => column.truncate(rows),
                Buffers::Ip(column) => column.truncate(rows),
                Buffers::Mac(column) => column.truncate(rows),
                Buffers::Bool(column) => column.truncate(rows),
                Buffers::U8(column) => column.truncate(rows),
                Buffers::U16(column) => column.truncate(rows),
                Buffers::U32(column) => column.truncate(rows),
                Buffers::U64(column) => column.truncate(rows),
                Buffers::F64(column) => column.truncate(rows),
                Buffers::Text(column) => column.truncate(rows),
                Buffers::Label(column) => column.keys.truncate(rows),
                Buffers::List(column) => column.truncate(rows),
                Buffers::Map(column) => column.truncate(rows),
            }
        }
    }

    /// The values as an array; the column is empty afterwards, without memory.
    fn finish(&mut self) -> ArrayRef {
        fn primitive<A: ArrowPrimitiveType<Native: Item<Stored = A::Native>>>(
            column: &mut Values<A::Native>,
        ) -> PrimitiveArray<A> {
            let (values, nulls) = column.take();
            PrimitiveArray::new(ScalarBuffer::from(values), nulls)
        }
        fn fixed<const N: usize>(octets: Buffer, nulls: Option<NullBuffer>) -> ArrayRef {
            Arc::new(FixedSizeBinaryArray::new(i32::try_from(N).unwrap_or(i32::MAX), octets, nulls))
        }
        match self {
            Buffers::Time(column) => {
                Arc::new(primitive::<TimestampMicrosecondType>(column).with_timezone("UTC"))
            }
            Buffers::Ip(column) => {
                let (values, nulls) = column.take();
                fixed::<16>(Buffer::from_vec(values), nulls)
            }
            Buffers::Mac(column) => {
                let (values, nulls) = column.take();
                fixed::<6>(Buffer::from_vec(values.into_flattened()), nulls)
            }
            Buffers::Bool(column) => {
                let (values, nulls) = column.take();
                Arc::new(BooleanArray::new(values.as_slice().into(), nulls))
            }
            Buffers::U8(column) => Arc::new(primitive::<UInt8Type>(column)) as Arc<UInt8Array>,
            Buffers::U16(column) => Arc::new(primitive::<UInt16Type>(column)) as Arc<UInt16Array>,
            Buffers::U32(column) => Arc::new(primitive::<UInt32Type>(column)) as Arc<UInt32Array>,
            Buffers::U64(column) => Arc::new(primitive::<UInt64Type>(column)) as Arc<UInt64Array>,
            Buffers::F64(column) => Arc::new(primitive::<Float64Type>(column)) as Arc<Float64Array>,
            Buffers::Text(column) => Arc::new(column.take()),
            Buffers::Label(column) => column.finish(),
            Buffers::List(column) => {
                let offsets = std::mem::replace(&mut column.offsets, vec![0]);
                let items = UInt32Array::from(std::mem::take(&mut column.items));
                let field = Arc::new(Field::new("item", DataType::UInt32, true));
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(ListArray::new(field, offsets, Arc::new(items), column.validity.take()))
            }
            Buffers::Map(column) => {
                let offsets = std::mem::replace(&mut column.offsets, vec![0]);
                let DataType::Map(field, sorted) = Kind::Map.log_type() else { unreachable!("a map's type") };
                let DataType::Struct(fields) = field.data_type() else { unreachable!("a map's entries") };
                let fields: Fields = fields.clone();
                let entries: Vec<ArrayRef> =
                    vec![Arc::new(column.keys.take()), Arc::new(column.values.take())];
                let entries = StructArray::new(fields, entries, None);
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(MapArray::new(field, offsets, entries, column.validity.take(), sorted))
            }
        }
    }

    /// Takes memory for as many values as the last batch had: that of an array which nobody else holds, or new.
    fn reserve(&mut self, rows: usize, spare: Option<ArrayRef>) {
        fn vec<T: ArrowNativeType>(buffer: Option<Buffer>) -> Option<Vec<T>> {
            buffer.and_then(|buffer| buffer.into_vec().ok())
        }
        // the array must be gone before its buffers have one owner
        let buffers = spare.map(|array| array.to_data().buffers().to_vec()).unwrap_or_default();
        let mut buffers = buffers.into_iter();
        let first = buffers.next();
        match self {
            Buffers::Time(column) => column.reserve(rows, vec(first)),
            Buffers::Ip(column) => column.reserve(rows, vec(first)),
            Buffers::U8(column) => column.reserve(rows, vec(first)),
            Buffers::U16(column) => column.reserve(rows, vec(first)),
            Buffers::U32(column) => column.reserve(rows, vec(first)),
            Buffers::U64(column) => column.reserve(rows, vec(first)),
            Buffers::F64(column) => column.reserve(rows, vec(first)),
            Buffers::Label(column) => column.keys.reserve(rows, vec(first)),
            Buffers::Mac(column) => column.reserve(rows, None),
            Buffers::Text(column) => {
                if let Some(mut spare) =
                    vec::<u8>(buffers.next()).filter(|v| v.capacity() > column.bytes.capacity())
                {
                    spare.clear();
                    column.bytes = spare;
                }
                column.offsets.reserve(rows);
            }
            Buffers::Bool(_) | Buffers::List(_) | Buffers::Map(_) => {}
        }
    }
}

macro_rules! accessors {
    ($($(#[$meta:meta])* $name:ident $variant:ident $type:ty;)*) => {
        $($(#[$meta])*
        #[inline]
        pub fn $name(&mut self, column: usize) -> &mut $type {
            let Some(Buffers::$variant(buffers)) = self.columns.get_mut(column) else {
                panic!("column {column} does not hold {}", stringify!($variant))
            };
            // a column that has a value or NULL for every row was touched since the last batch
            if buffers.rows() < self.rows.max(1) {
                self.touched.note(column);
                buffers.push_nulls(self.rows - buffers.rows());
            }
            buffers
        })*
    };
}

/// Which columns were asked for since the last batch.
#[derive(Debug)]
struct Touched {
    /// In no order.
    columns: Vec<u16>,
    is: Vec<bool>,
}

impl Touched {
    #[cold]
    #[inline(never)]
    fn note(&mut self, column: usize) {
        if let Some(is) = self.is.get_mut(column).filter(|is| !**is) {
            *is = true;
            self.columns.push(u16::try_from(column).unwrap_or(u16::MAX));
        }
    }
}

/// The open batch of one table.
#[derive(Debug)]
pub struct Builder {
    table: Table,
    rows: usize,
    columns: Vec<Buffers>,
    touched: Touched,
}

impl Builder {
    pub fn new(table: Table) -> Builder {
        let width = table.columns().len();
        Builder {
            table,
            rows: 0,
            columns: table.columns().iter().map(|column| Buffers::new(column.kind)).collect(),
            touched: Touched { columns: Vec::with_capacity(width), is: vec![false; width] },
        }
    }

    pub fn table(&self) -> Table {
        self.table
    }

    /// Rows that are complete.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `n` more rows are complete. Every column asked for since the last call holds `rows` + `n` values, or `rows`
    /// (it is filled with NULLs later).
    pub fn advance(&mut self, n: usize) {
        self.rows += n;
    }

    /// Opens the last `n` rows again, for columns that none of them has: a value for each of the `n` is appended to
    /// such a column at once (a datagram's constants), and [`Builder::advance`] closes them.
    pub fn reopen(&mut self, n: usize) {
        self.rows -= n;
    }

    /// Takes back what was appended to any column for rows after the last [`Builder::advance`].
    pub fn rollback(&mut self) {
        for &index in &self.touched.columns {
            match &mut self.columns[usize::from(index)] {
                // entries of a row that was not closed yet
                Buffers::Map(column) if column.validity.len() >= self.rows => column.truncate(self.rows),
                column if column.rows() > self.rows => column.settle(self.rows),
                _ => {}
            }
        }
    }

    /// True where the column has a value for the row that is being built (one row at a time only).
    pub fn has(&self, column: usize) -> bool {
        self.columns[column].rows() > self.rows
    }

    accessors! {
        /// The columns by kind; each panics where the column is of another kind (a mistake in our code, found by
        /// any test that touches the column).
        times Time Values<i64>;
        ips Ip Values<[u8; 16]>;
        macs Mac Values<[u8; 6]>;
        bools Bool Values<bool>;
        u8s U8 Values<u8>;
        u16s U16 Values<u16>;
        u32s U32 Values<u32>;
        u64s U64 Values<u64>;
        f64s F64 Values<f64>;
        texts Text Texts;
        labels Label Labels;
        lists List Lists;
        maps Map Maps;
    }

    /// About how many bytes the batch has.
    pub fn bytes(&self) -> usize {
        let size = |column: &Buffers| match column {
            Buffers::Ip(column) => column.rows() * 16,
            Buffers::Mac(column) => column.rows() * 6,
            Buffers::Text(column) => column.bytes.len() + column.offsets.len() * 4,
            Buffers::List(column) => (column.items.len() + column.offsets.len()) * 4,
            Buffers::Map(column) => {
                column.keys.bytes.len() + column.values.bytes.len() + column.keys.offsets.len() * 12
            }
            Buffers::Bool(_) | Buffers::U8(_) | Buffers::Label(_) => self.rows,
            Buffers::U16(_) => self.rows * 2,
            Buffers::U32(_) => self.rows * 4,
            Buffers::Time(_) | Buffers::U64(_) | Buffers::F64(_) => self.rows * 8,
        };
        self.touched.columns.iter().map(|index| size(&self.columns[usize::from(*index)])).sum()
    }

    /// Closes the batch: its touched columns in the order of the table. None where there are no rows.
    pub fn finish(&mut self) -> Option<RecordBatch> {
        self.finish_reusing(None)
    }

    /// [`Builder::finish`], and takes the memory of an earlier batch for the next one, as far as nobody else holds it:
    /// memory fresh from the kernel costs as much as writing to it.
    pub fn finish_reusing(&mut self, spare: Option<RecordBatch>) -> Option<RecordBatch> {
        let rows = std::mem::take(&mut self.rows);
        if rows == 0 {
            for index in self.touched.columns.drain(..) {
                self.touched.is[usize::from(index)] = false;
                self.columns[usize::from(index)].settle(0);
            }
            return None;
        }
        self.touched.columns.sort_unstable();
        let mut fields = Vec::with_capacity(self.touched.columns.len());
        let mut arrays = Vec::with_capacity(self.touched.columns.len());
        let (schema, mut spares) = match spare.map(RecordBatch::into_parts) {
            Some((schema, spares, _)) => (Some(schema), spares.into_iter().map(Some).collect()),
            None => (None, Vec::new()),
        };
        for index in self.touched.columns.drain(..).map(usize::from) {
            self.touched.is[index] = false;
            let column = &mut self.columns[index];
            column.settle(rows);
            let definition = &self.table.columns()[index];
            fields.push(Field::new(definition.name, definition.kind.log_type(), true));
            arrays.push(column.finish());
            let at = schema.as_ref().and_then(|schema| schema.index_of(definition.name).ok());
            column.reserve(rows, at.and_then(|at| spares[at].take()));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::new(Schema::new(fields));
        // Every array has `rows` values of its column's type: `settle` and `finish` see to it.
        Some(RecordBatch::try_new_with_options(schema, arrays, &options).expect("columns of one length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use weir_schemas::FlowColumn;

    #[test]
    fn absent_columns_are_absent_and_gaps_are_null() {
        let mut builder = Builder::new(Table::Flows);
        builder.u64s(FlowColumn::Bytes.index()).append(3, |slots| slots.copy_from_slice(&[0, 1, 2, 9]));
        builder.advance(3);
        builder.u16s(FlowColumn::SrcPort.index()).push_n(53, 2);
        builder.advance(2);
        builder.u64s(FlowColumn::Bytes.index()).push(9);
        builder.labels(FlowColumn::ProtoVer.index()).push("ipfix");
        builder.advance(1);
        let batch = builder.finish().unwrap();
        let names: Vec<_> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["proto_ver", "src_port", "bytes"]);
        let bytes = batch.column(2).as_primitive::<UInt64Type>();
        assert_eq!(bytes.iter().collect::<Vec<_>>(), [Some(0), Some(1), Some(2), None, None, Some(9)]);
        let ports = batch.column(1).as_primitive::<UInt16Type>();
        assert_eq!(ports.iter().collect::<Vec<_>>(), [None, None, None, Some(53), Some(53), None]);
        assert!(builder.finish().is_none());
        builder.u64s(FlowColumn::Bytes.index()).push(1);
        builder.advance(1);
        assert_eq!(builder.finish().unwrap().num_columns(), 1);
    }

    #[test]
    fn rollback_takes_back_half_a_record() {
        let mut builder = Builder::new(Table::Flows);
        let extra = FlowColumn::Extra.index();
        builder.maps(extra).entry("a", "1");
        builder.maps(extra).close_row();
        builder.lists(FlowColumn::MplsLabels.index()).push([1, 2]);
        builder.advance(1);
        builder.maps(extra).entry("b", "2");
        builder.maps(extra).close_row();
        builder.lists(FlowColumn::MplsLabels.index()).push([3]);
        builder.texts(FlowColumn::AppName.index()).push("x");
        builder.u16s(FlowColumn::SrcPort.index()).push(1);
        builder.maps(extra).entry("c", "of a row that is not closed");
        assert!(builder.has(extra));
        builder.rollback();
        assert!(!builder.has(extra));
        builder.advance(1);
        let batch = builder.finish().unwrap();
        assert_eq!(batch.num_rows(), 2);
        for column in batch.columns() {
            assert!(column.is_null(1));
        }
        let map = batch.column_by_name("extra").unwrap().as_map();
        assert_eq!(map.value_length(0), 1);
    }

    #[test]
    fn validity_agrees_with_a_list_of_bools() {
        // every mix of runs around the word boundaries
        let mut random = 7_u64;
        for _ in 0..200 {
            let mut validity = Validity::default();
            let mut model = Vec::new();
            for _ in 0..20 {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let n = (random >> 33) as usize % 70;
                match random >> 62 {
                    0 => validity.null(n),
                    1 => validity.valid(n),
                    _ => {
                        let n = n.min(64);
                        validity.some(random, n);
                        model.extend((0..n).map(|row| random >> row & 1 == 1));
                        continue;
                    }
                }
                model.extend(std::iter::repeat_n(random >> 62 == 1, n));
            }
            let keep = (random >> 20) as usize % (model.len() + 1);
            validity.truncate(keep);
            model.truncate(keep);
            assert_eq!(validity.len(), model.len());
            match validity.take() {
                None => assert!(model.iter().all(|valid| *valid)),
                Some(nulls) => assert_eq!(nulls.iter().collect::<Vec<_>>(), model),
            }
        }
    }

    #[test]
    fn every_column_can_be_built() {
        for table in Table::ALL {
            let mut builder = Builder::new(table);
            for (index, column) in table.columns().iter().enumerate() {
                match column.kind {
                    Kind::Time => builder.times(index).push(1),
                    Kind::Ip => builder.ips(index).push([1; 16]),
                    Kind::Mac => builder.macs(index).push([1; 6]),
                    Kind::Bool => builder.bools(index).push(true),
                    Kind::U8 => builder.u8s(index).push(1),
                    Kind::U16 => builder.u16s(index).push(1),
                    Kind::U32 => builder.u32s(index).push(1),
                    Kind::U64 => builder.u64s(index).push(1),
                    Kind::F64 => builder.f64s(index).push(1.0),
                    Kind::Text => builder.texts(index).push("x"),
                    Kind::Label => builder.labels(index).push("x"),
                    Kind::ListU32 => builder.lists(index).push([1]),
                    Kind::Map => {
                        builder.maps(index).entry("k", "v");
                        builder.maps(index).close_row();
                    }
                }
            }
            builder.advance(1);
            let batch = builder.finish().unwrap();
            assert_eq!(batch.num_columns(), table.columns().len());
        }
    }
}
