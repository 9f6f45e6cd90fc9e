//! One column of a row group as Parquet: flat columns by encoders of our own.
//!
//! The `parquet` crate's column writers cost three to five times as much a value (docs/decisions/store-layout.md), and
//! Parquet is what storing a flow costs. So this module makes the pages; the crate still writes the page headers, the
//! row groups and the footer. Every file is plain Parquet 1.0 with its oldest encodings: PLAIN, RLE_DICTIONARY and
//! DELTA_BINARY_PACKED.
//!
//! A column chunk is gathered as a whole (its values without the NULLs, and which rows are NULL), looked over once for
//! its least and greatest value, and then written as
//! * a dictionary and the places in it, one or two whole bytes each, so that zstd finds them again; or
//! * for integers and times of too many values, differences; for anything else the values as they are.
//!
//! The batches may have the narrow types of the log or those of SQL. Lists, maps, booleans and text of many values are
//! left to the crate: [`encode`] answers `None`.

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanBufferBuilder, FixedSizeBinaryArray, StringArray,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, Float64Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use bytes::Bytes;
use foldhash::fast::RandomState;
use parquet::basic::{Compression, Encoding, Type, ZstdLevel};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{ByteArray, FixedLenByteArray};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

/// Rows of a data page. A multiple of eight: a page's NULLs begin at a whole byte.
const PAGE_ROWS: usize = 65_536;
/// The most entries that a dictionary has: places are two bytes.
const DICTIONARY_MAX: usize = 65_536;
/// Text of a dictionary; beyond it the crate writes the column.
const TEXT_MAX_BYTES: usize = 1 << 20;
/// How often a Bloom filter says "perhaps" of a value that is not there.
const BLOOM_FALSE: f64 = 0.02;
/// Values of a block of DELTA_BINARY_PACKED, and of a part of it with a width of its own.
const DELTA_BLOCK: usize = 128;
const DELTA_MINI: usize = 32;

/// What the encoder is told about a column.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColumnOptions {
    pub(super) zstd_level: i32,
    /// Differences without looking for repetition: times.
    pub(super) delta: bool,
    /// Least and greatest value of every page, not only of the whole.
    pub(super) page_index: bool,
    /// A filter by which a row group that has not a value can be passed over.
    pub(super) bloom: bool,
}

/// A column chunk, ready to be put in a row group.
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    pub(super) close: ColumnCloseResult,
}

/// The values of a chunk, NULLs left out.
enum Values {
    /// Integers and times; `wide` is INT64, else INT32.
    Ints { values: Vec<i64>, wide: bool },
    /// The bits of doubles.
    Doubles(Vec<i64>),
    /// Bytes of one length, at most 16, as big-endian numbers.
    Fixed { values: Vec<u128>, width: usize },
    /// Text: places in the dictionary.
    Text { places: Vec<u16>, dictionary: Vec<String> },
}

/// A dictionary and the place in it of each value.
struct Dictionary<T> {
    entries: Vec<T>,
    places: Vec<u16>,
}

/// The column of the arrays, one after the other; `None` stands for that many NULLs. `None` is the answer where this
/// module does not write such columns.
pub(super) fn encode(
    descriptor: &ColumnDescPtr,
    arrays: &[(Option<ArrayRef>, usize)],
    options: ColumnOptions,
) -> Result<Option<Chunk>> {
    if descriptor.max_rep_level() != 0 || descriptor.max_def_level() != 1 {
        return Ok(None);
    }
    let rows: usize = arrays.iter().map(|(_, rows)| rows).sum();
    let arrays = fitting(arrays)?;
    let Some(values) = gather(descriptor, &arrays)? else { return Ok(None) };
    let validity = validity(&arrays, rows);
    let nulls = rows - values.len();
    let mut writer = Writer {
        options,
        compressor: zstd::bulk::Compressor::new(options.zstd_level).map_err(external)?,
        sink: TrackedWrite::new(Vec::with_capacity(rows)),
        page: Vec::new(),
        compressed: Vec::new(),
        uncompressed_size: 0,
        dictionary_page: None,
        data_page: None,
        encodings: vec![Encoding::RLE],
        offsets: OffsetIndexBuilder::new(),
    };
    let mut index = options.page_index.then(|| ColumnIndexBuilder::new(descriptor.physical_type()));
    let (statistics, bloom) = writer.values(&values, &validity, rows, nulls as u64, index.as_mut())?;
    let Writer { sink, uncompressed_size, dictionary_page, data_page, encodings, offsets, .. } = writer;
    let bytes: Bytes = sink.into_inner()?.into();
    let metadata = ColumnChunkMetaData::builder(descriptor.clone())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(options.zstd_level)?))
        .set_encodings(encodings)
        .set_num_values(long(rows))
        .set_total_compressed_size(long(bytes.len()))
        .set_total_uncompressed_size(uncompressed_size)
        .set_data_page_offset(data_page.unwrap_or(0))
        .set_dictionary_page_offset(dictionary_page)
        .set_statistics(statistics)
        .build()?;
    let close = ColumnCloseResult {
        bytes_written: bytes.len() as u64,
        rows_written: rows as u64,
        metadata,
        bloom_filter: bloom,
        column_index: index.map(ColumnIndexBuilder::build).transpose()?,
        offset_index: Some(offsets.build()),
    };
    Ok(Some(Chunk { bytes, close }))
}

fn external(error: std::io::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

fn long(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What SQL cannot hold (beyond `i64::MAX`) becomes NULL.
fn fitting(arrays: &[(Option<ArrayRef>, usize)]) -> Result<Vec<(Option<ArrayRef>, usize)>> {
    let fit = |(array, rows): &(Option<ArrayRef>, usize)| {
        let Some(array) = array else { return Ok((None, *rows)) };
        let beyond = array
            .as_primitive_opt::<UInt64Type>()
            .is_some_and(|array| array.values().iter().any(|value| i64::try_from(*value).is_err()));
        let array = if beyond {
            cast_with_options(array, &DataType::Int64, &CastOptions { safe: true, ..CastOptions::default() })?
        } else {
            array.clone()
        };
        Ok((Some(array), *rows))
    };
    arrays.iter().map(fit).collect()
}

/// One bit a row, set where there is a value.
fn validity(arrays: &[(Option<ArrayRef>, usize)], rows: usize) -> BooleanBufferBuilder {
    let mut bits = BooleanBufferBuilder::new(rows);
    for (array, rows) in arrays {
        match array.as_ref().map(|array| array.nulls()) {
            None => bits.append_n(*rows, false),
            Some(None) => bits.append_n(*rows, true),
            Some(Some(nulls)) => bits.append_buffer(nulls.inner()),
        }
    }
    bits
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Values::Ints { values, .. } | Values::Doubles(values) => values.len(),
            Values::Fixed { values, .. } => values.len(),
            Values::Text { places, .. } => places.len(),
        }
    }
}

fn gather(descriptor: &ColumnDescPtr, arrays: &[(Option<ArrayRef>, usize)]) -> Result<Option<Values>> {
    let arrays = arrays.iter().filter_map(|(array, _)| array.as_ref());
    let rows = arrays.clone().map(|array| array.len() - array.null_count()).sum();
    Ok(match descriptor.physical_type() {
        kind @ (Type::INT32 | Type::INT64) => {
            let mut values = Vec::with_capacity(rows);
            let taken = arrays.into_iter().all(|array| integers(array, &mut values));
            taken.then_some(Values::Ints { values, wide: kind == Type::INT64 })
        }
        Type::DOUBLE => {
            let mut values = Vec::with_capacity(rows);
            let taken = arrays.into_iter().all(|array| match array.as_primitive_opt::<Float64Type>() {
                Some(array) => {
                    primitive(array, &mut values, |value| value.to_bits().cast_signed());
                    true
                }
                None => false,
            });
            taken.then_some(Values::Doubles(values))
        }
        Type::FIXED_LEN_BYTE_ARRAY => {
            let width = usize::try_from(descriptor.type_length()).unwrap_or(usize::MAX);
            let mut values = Vec::with_capacity(rows);
            let taken = width <= 16
                && arrays.into_iter().all(|array| match array.as_fixed_size_binary_opt() {
                    Some(array) => fixed(array, width, &mut values),
                    None => false,
                });
            taken.then_some(Values::Fixed { values, width })
        }
        Type::BYTE_ARRAY => {
            let mut texts = Texts { places: Vec::with_capacity(rows), ..Texts::default() };
            let taken = arrays.into_iter().all(|array| texts.take(array));
            taken.then_some(Values::Text { places: texts.places, dictionary: texts.dictionary })
        }
        _ => None,
    })
}

fn primitive<T: ArrowPrimitiveType>(
    array: &arrow::array::PrimitiveArray<T>,
    values: &mut Vec<i64>,
    convert: impl Fn(T::Native) -> i64,
) {
    match array.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => values.extend(array.values().iter().map(|value| convert(*value))),
        Some(nulls) => {
            let all = array.values();
            values.extend(nulls.valid_indices().map(|row| convert(all[row])));
        }
    }
}

/// Takes the array's values; false where it has none of the integer types.
fn integers(array: &ArrayRef, values: &mut Vec<i64>) -> bool {
    match array.data_type() {
        DataType::UInt8 => primitive(array.as_primitive::<UInt8Type>(), values, i64::from),
        DataType::UInt16 => primitive(array.as_primitive::<UInt16Type>(), values, i64::from),
        DataType::UInt32 => primitive(array.as_primitive::<UInt32Type>(), values, i64::from),
        DataType::UInt64 => primitive(array.as_primitive::<UInt64Type>(), values, u64::cast_signed),
        DataType::Int16 => primitive(array.as_primitive::<Int16Type>(), values, i64::from),
        DataType::Int32 => primitive(array.as_primitive::<Int32Type>(), values, i64::from),
        DataType::Int64 => primitive(array.as_primitive::<Int64Type>(), values, |value| value),
        DataType::Timestamp(..) => match array.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(array) => primitive(array, values, |value| value),
            None => return false,
        },
        _ => return false,
    }
    true
}

fn fixed(array: &FixedSizeBinaryArray, width: usize, values: &mut Vec<u128>) -> bool {
    if usize::try_from(array.value_length()) != Ok(width) {
        return false;
    }
    let number = |bytes: &[u8]| match bytes.try_into() {
        Ok(bytes) => u128::from_be_bytes(bytes),
        Err(_) => bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)),
    };
    match array.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => values.extend(array.iter().flatten().map(number)),
        Some(nulls) => values.extend(nulls.valid_indices().map(|row| number(array.value(row)))),
    }
    true
}

/// The texts of a column chunk, as long as they are few.
#[derive(Default)]
struct Texts {
    known: HashMap<String, u16, RandomState>,
    dictionary: Vec<String>,
    places: Vec<u16>,
    bytes: usize,
}

impl Texts {
    fn place(&mut self, text: &str) -> Option<u16> {
        if let Some(place) = self.known.get(text) {
            return Some(*place);
        }
        self.bytes += text.len();
        let place = u16::try_from(self.dictionary.len()).ok().filter(|_| self.bytes <= TEXT_MAX_BYTES)?;
        self.known.insert(text.to_owned(), place);
        self.dictionary.push(text.to_owned());
        Some(place)
    }

    /// Takes the array's texts; false where they are too many, or no text.
    fn take(&mut self, array: &ArrayRef) -> bool {
        if let Some(labels) = array.as_dictionary_opt::<UInt8Type>() {
            let Some(texts) = labels.values().as_string_opt::<i32>() else { return false };
            if texts.null_count() > 0 {
                return false;
            }
            // only what is used gets a place
            let mut places = [None; 256];
            for key in labels.keys().iter().flatten() {
                let known = &mut places[usize::from(key)];
                let place = match *known {
                    Some(place) => place,
                    None => match self.place(texts.value(usize::from(key))) {
                        Some(place) => *known.insert(place),
                        None => return false,
                    },
                };
                self.places.push(place);
            }
            return true;
        }
        let Some(texts) = array.as_string_opt::<i32>() else { return false };
        self.texts(texts)
    }

    fn texts(&mut self, texts: &StringArray) -> bool {
        let mut last: Option<(&str, u16)> = None;
        for text in texts.iter().flatten() {
            let place = match last {
                Some((same, place)) if same == text => place,
                _ => match self.place(text) {
                    Some(place) => place,
                    None => return false,
                },
            };
            last = Some((text, place));
            self.places.push(place);
        }
        true
    }
}

/// A dictionary of the values where they repeat enough for it to pay.
fn dictionary<T: Copy + Eq + std::hash::Hash>(values: &[T]) -> Option<Dictionary<T>> {
    let most = (values.len() / 8).clamp(256, DICTIONARY_MAX);
    let mut known: HashMap<T, u16, RandomState> = HashMap::default();
    let mut entries: Vec<T> = Vec::new();
    let mut places = Vec::with_capacity(values.len());
    let mut last: Option<(T, u16)> = None;
    for value in values {
        let place = match last {
            Some((same, place)) if same == *value => place,
            _ => match known.get(value) {
                Some(place) => *place,
                None => {
                    if entries.len() == most {
                        return None;
                    }
                    let place = u16::try_from(entries.len()).ok()?;
                    known.insert(*value, place);
                    entries.push(*value);
                    place
                }
            },
        };
        last = Some((*value, place));
        places.push(place);
    }
    Some(Dictionary { entries, places })
}

/// The same for integers that lie close together: a table instead of a hash.
fn dense_dictionary(values: &[i64], least: i64, greatest: i64) -> Option<Dictionary<i64>> {
    let most = (values.len() / 8).clamp(256, DICTIONARY_MAX);
    let range = usize::try_from(greatest.checked_sub(least)?).ok().filter(|range| *range < DICTIONARY_MAX)?;
    const NEW: u32 = u32::MAX;
    let mut known = vec![NEW; range + 1];
    let mut entries: Vec<i64> = Vec::new();
    let mut places = Vec::with_capacity(values.len());
    for value in values {
        let place = &mut known[(*value - least) as usize];
        if *place == NEW {
            if entries.len() == most {
                return None;
            }
            *place = u32::try_from(entries.len()).ok()?;
            entries.push(*value);
        }
        places.push(*place as u16);
    }
    Some(Dictionary { entries, places })
}

/// The least and greatest of integers.
fn extremes(values: &[i64]) -> Option<(i64, i64)> {
    let first = *values.first()?;
    Some(
        values
            .iter()
            .fold((first, first), |(least, greatest), value| (least.min(*value), greatest.max(*value))),
    )
}

struct Writer {
    options: ColumnOptions,
    compressor: zstd::bulk::Compressor<'static>,
    sink: TrackedWrite<Vec<u8>>,
    page: Vec<u8>,
    compressed: Vec<u8>,
    uncompressed_size: i64,
    dictionary_page: Option<i64>,
    data_page: Option<i64>,
    encodings: Vec<Encoding>,
    offsets: OffsetIndexBuilder,
}

impl Writer {
    /// Writes all pages; the chunk's statistics and its Bloom filter come back.
    fn values(
        &mut self,
        values: &Values,
        validity: &BooleanBufferBuilder,
        rows: usize,
        nulls: u64,
        mut index: Option<&mut ColumnIndexBuilder>,
    ) -> Result<(Statistics, Option<Sbbf>)> {
        let mut bloom = None;
        let statistics = match values {
            Values::Ints { values, wide } => {
                let range = extremes(values);
                let plain = |out: &mut Vec<u8>, value: &i64| {
                    if *wide {
                        out.extend_from_slice(&value.to_le_bytes());
                    } else {
                        out.extend_from_slice(&(*value as i32).to_le_bytes());
                    }
                };
                let found = match range {
                    Some((least, greatest)) if !self.options.delta => match greatest.checked_sub(least) {
                        Some(distance) if distance < DICTIONARY_MAX as i64 => {
                            dense_dictionary(values, least, greatest)
                        }
                        _ => dictionary(values),
                    },
                    _ => None,
                };
                let append = |index: &mut ColumnIndexBuilder, values: &[i64], nulls: i64| {
                    let mut bytes = [Vec::new(), Vec::new()];
                    if let Some((least, greatest)) = extremes(values) {
                        plain(&mut bytes[0], &least);
                        plain(&mut bytes[1], &greatest);
                    }
                    let [least, greatest] = bytes;
                    index.append(values.is_empty(), least, greatest, nulls);
                };
                if let Some(found) = &found {
                    self.dictionary(&found.entries, plain)?;
                }
                for page in pages(validity, rows) {
                    self.begin(validity, &page);
                    let encoding = match &found {
                        Some(found) => self.places(&found.places[page.values.clone()], found.entries.len()),
                        None => {
                            delta(&mut self.page, &values[page.values.clone()]);
                            Encoding::DELTA_BINARY_PACKED
                        }
                    };
                    self.end(&page, encoding)?;
                    if let Some(index) = index.as_deref_mut() {
                        append(
                            index,
                            &values[page.values.clone()],
                            long(page.rows.len() - page.values.len()),
                        );
                    }
                }
                let (least, greatest) = range.unzip();
                if *wide {
                    Statistics::int64(least, greatest, None, Some(nulls), false)
                } else {
                    let narrow = |value: i64| value as i32;
                    Statistics::int32(least.map(narrow), greatest.map(narrow), None, Some(nulls), false)
                }
            }
            Values::Doubles(values) => {
                self.repeating(values, validity, rows, |out, value| {
                    out.extend_from_slice(&value.to_le_bytes())
                })?;
                let doubles = values.iter().map(|bits| f64::from_bits(bits.cast_unsigned()));
                let real = doubles.filter(|value| !value.is_nan());
                let least =
                    real.clone().reduce(f64::min).map(|least| if least == 0.0 { -0.0 } else { least });
                let greatest =
                    real.reduce(f64::max).map(|greatest| if greatest == 0.0 { 0.0 } else { greatest });
                Statistics::double(least, greatest, None, Some(nulls), false)
            }
            Values::Fixed { values, width } => {
                let bytes = |value: u128| value.to_be_bytes()[16 - width..].to_vec();
                let plain = |out: &mut Vec<u8>, value: &u128| {
                    out.extend_from_slice(&value.to_be_bytes()[16 - width..])
                };
                let found = self.repeating(values, validity, rows, plain)?;
                let distinct = found.as_deref().unwrap_or(values);
                if self.options.bloom && found.is_some() {
                    let mut filter = Sbbf::new_with_ndv_fpp(distinct.len() as u64, BLOOM_FALSE)?;
                    distinct.iter().for_each(|value| filter.insert(&bytes(*value)[..]));
                    bloom = Some(filter);
                }
                let bound = |value: Option<&u128>| value.map(|value| FixedLenByteArray::from(bytes(*value)));
                let (least, greatest) = (bound(distinct.iter().min()), bound(distinct.iter().max()));
                Statistics::fixed_len_byte_array(least, greatest, None, Some(nulls), false)
            }
            Values::Text { places, dictionary } => {
                self.dictionary(dictionary, |out, text: &String| {
                    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
                    out.extend_from_slice(text.as_bytes());
                })?;
                for page in pages(validity, rows) {
                    self.begin(validity, &page);
                    let encoding = self.places(&places[page.values.clone()], dictionary.len());
                    self.end(&page, encoding)?;
                }
                let bound = |text: Option<&String>| text.map(|text| ByteArray::from(text.as_str()));
                let (least, greatest) = (bound(dictionary.iter().min()), bound(dictionary.iter().max()));
                Statistics::byte_array(least, greatest, None, Some(nulls), false)
            }
        };
        Ok((statistics, bloom))
    }

    /// Values with a dictionary where it pays, else as they are; the dictionary comes back.
    fn repeating<T: Copy + Eq + std::hash::Hash>(
        &mut self,
        values: &[T],
        validity: &BooleanBufferBuilder,
        rows: usize,
        plain: impl Fn(&mut Vec<u8>, &T),
    ) -> Result<Option<Vec<T>>> {
        let found = dictionary(values);
        if let Some(found) = &found {
            self.dictionary(&found.entries, &plain)?;
        }
        for page in pages(validity, rows) {
            self.begin(validity, &page);
            let encoding = match &found {
                Some(found) => self.places(&found.places[page.values.clone()], found.entries.len()),
                None => {
                    values[page.values.clone()].iter().for_each(|value| plain(&mut self.page, value));
                    Encoding::PLAIN
                }
            };
            self.end(&page, encoding)?;
        }
        Ok(found.map(|found| found.entries))
    }

    fn compress(&mut self) -> Result<Bytes> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(self.page.len()));
        self.compressor.compress_to_buffer(&self.page, &mut self.compressed).map_err(external)?;
        Ok(Bytes::copy_from_slice(&self.compressed))
    }

    fn dictionary<T>(&mut self, entries: &[T], plain: impl Fn(&mut Vec<u8>, &T)) -> Result<()> {
        self.page.clear();
        entries.iter().for_each(|entry| plain(&mut self.page, entry));
        let page = Page::DictionaryPage {
            buf: self.compress()?,
            num_values: count(entries.len()),
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        let spec = SerializedPageWriter::new(&mut self.sink)
            .write_page(CompressedPage::new(page, self.page.len()))?;
        self.uncompressed_size += long(spec.uncompressed_size);
        self.dictionary_page = Some(0);
        self.note(Encoding::PLAIN);
        Ok(())
    }

    fn note(&mut self, encoding: Encoding) {
        if !self.encodings.contains(&encoding) {
            self.encodings.push(encoding);
        }
    }

    /// Begins a data page with which of its rows are NULL: levels of one bit, which is what Arrow has.
    fn begin(&mut self, validity: &BooleanBufferBuilder, page: &PageRange) {
        self.page.clear();
        self.page.extend_from_slice(&[0; 4]);
        let rows = page.rows.len();
        if page.values.is_empty() || page.values.len() == rows {
            varint(&mut self.page, (rows as u64) << 1);
            self.page.push(u8::from(!page.values.is_empty()));
        } else {
            let bytes = page.rows.start / 8..page.rows.end.div_ceil(8);
            varint(&mut self.page, (bytes.len() as u64) << 1 | 1);
            self.page.extend_from_slice(&validity.as_slice()[bytes]);
        }
        let length = count(self.page.len() - 4).to_le_bytes();
        self.page[..4].copy_from_slice(&length);
    }

    /// Places in a dictionary of that many entries, as one run of whole bytes.
    fn places(&mut self, places: &[u16], entries: usize) -> Encoding {
        let narrow = entries <= 256;
        self.page.push(if narrow { 8 } else { 16 });
        let groups = places.len().div_ceil(8);
        varint(&mut self.page, (groups as u64) << 1 | 1);
        if narrow {
            self.page.extend(places.iter().map(|place| *place as u8));
        } else {
            places.iter().for_each(|place| self.page.extend_from_slice(&place.to_le_bytes()));
        }
        let width = if narrow { 1 } else { 2 };
        self.page.resize(self.page.len() + (groups * 8 - places.len()) * width, 0);
        Encoding::RLE_DICTIONARY
    }

    fn end(&mut self, range: &PageRange, encoding: Encoding) -> Result<()> {
        let page = Page::DataPage {
            buf: self.compress()?,
            num_values: count(range.rows.len()),
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let spec = SerializedPageWriter::new(&mut self.sink)
            .write_page(CompressedPage::new(page, self.page.len()))?;
        self.uncompressed_size += long(spec.uncompressed_size);
        let offset = i64::try_from(spec.offset).unwrap_or(i64::MAX);
        self.data_page.get_or_insert(offset);
        self.offsets.append_row_count(long(range.rows.len()));
        self.offsets.append_offset_and_size(offset, i32::try_from(spec.compressed_size).unwrap_or(i32::MAX));
        self.note(encoding);
        Ok(())
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The rows of a data page, and its values among those of the chunk.
struct PageRange {
    rows: Range<usize>,
    values: Range<usize>,
}

fn pages(validity: &BooleanBufferBuilder, rows: usize) -> impl Iterator<Item = PageRange> {
    let bytes = validity.as_slice();
    let mut values = 0;
    let page = move |first: usize| {
        let rows = first..rows.min(first + PAGE_ROWS);
        let set: u32 = bytes[rows.start / 8..rows.end.div_ceil(8)].iter().map(|byte| byte.count_ones()).sum();
        let range = values..values + set as usize;
        values = range.end;
        PageRange { rows, values: range }
    };
    (0..rows).step_by(PAGE_ROWS).map(page)
}

/// ULEB128.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

/// DELTA_BINARY_PACKED: differences less the least of their block, in blocks of four parts with a width each.
fn delta(out: &mut Vec<u8>, values: &[i64]) {
    varint(out, DELTA_BLOCK as u64);
    varint(out, (DELTA_BLOCK / DELTA_MINI) as u64);
    varint(out, values.len() as u64);
    varint(out, zigzag(values.first().copied().unwrap_or(0)));
    let mut last = values.first().copied().unwrap_or(0);
    for block in values.get(1..).unwrap_or(&[]).chunks(DELTA_BLOCK) {
        let mut differences = [0_i64; DELTA_BLOCK];
        for (difference, value) in differences.iter_mut().zip(block) {
            *difference = value.wrapping_sub(last);
            last = *value;
        }
        let known = &differences[..block.len()];
        let least = known.iter().copied().min().unwrap_or(0);
        varint(out, zigzag(least));
        let mut packed = [0_u64; DELTA_BLOCK];
        for (packed, difference) in packed.iter_mut().zip(known) {
            *packed = difference.wrapping_sub(least).cast_unsigned();
        }
        let minis = packed.chunks_exact(DELTA_MINI);
        let used = block.len().div_ceil(DELTA_MINI);
        let mut widths = [0_u8; DELTA_BLOCK / DELTA_MINI];
        for (width, mini) in widths.iter_mut().zip(minis.clone()).take(used) {
            *width = (64 - mini.iter().fold(0, |all, value| all | value).leading_zeros()) as u8;
        }
        out.extend_from_slice(&widths);
        for (mini, width) in minis.zip(widths).take(used) {
            pack(out, mini, u32::from(width));
        }
    }
}

/// The lowest `width` bits of each value, one after the other, from the least bit of each byte on.
fn pack(out: &mut Vec<u8>, values: &[u64], width: u32) {
    let mut bits = 0_u128;
    let mut held = 0;
    for value in values {
        bits |= u128::from(*value) << held;
        held += width;
        if held >= 64 {
            out.extend_from_slice(&(bits as u64).to_le_bytes());
            bits >>= 64;
            held -= 64;
        }
    }
    // 32 values fill whole bytes
    out.extend_from_slice(&(bits as u64).to_le_bytes()[..held.div_ceil(8) as usize]);
}
