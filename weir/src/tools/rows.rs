//! Rows as text: JSON objects and CSV lines, straight from the columns of a batch.
//!
//! Names are those of the tables, with two changes that scripts rely on: times other than `received_at` are
//! milliseconds (`start_time` → `start_ms`), and `dscp` and `ecn` follow `tos`. What a record does not have is left out
//! of JSON and empty in CSV.

use std::io::Write;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, Float64Array, ListArray, MapArray,
    RecordBatch, StringArray, TimestampMicrosecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow::datatypes::{
    Float64Type, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use weir_schemas::{Address, Column, Kind, Mac, Table};

/// A column of a batch, with its type found once.
pub(super) enum Values<'a> {
    /// RFC 3339, µs.
    Instant(&'a TimestampMicrosecondArray),
    Millis(&'a TimestampMicrosecondArray),
    Ip(&'a FixedSizeBinaryArray),
    Mac(&'a FixedSizeBinaryArray),
    Bool(&'a BooleanArray),
    U8(&'a UInt8Array),
    U16(&'a UInt16Array),
    U32(&'a UInt32Array),
    U64(&'a UInt64Array),
    F64(&'a Float64Array),
    Text(&'a StringArray),
    Label(&'a UInt8Array, &'a StringArray),
    List(&'a ListArray, &'a UInt32Array),
    Map(&'a MapArray, &'a StringArray, &'a StringArray),
    Dscp(&'a UInt8Array),
    Ecn(&'a UInt8Array),
}

impl<'a> Values<'a> {
    pub(super) fn of(column: &Column, array: &'a ArrayRef) -> Option<Values<'a>> {
        Some(match column.kind {
            Kind::Time if column.name == "received_at" => {
                Values::Instant(array.as_primitive_opt::<TimestampMicrosecondType>()?)
            }
            Kind::Time => Values::Millis(array.as_primitive_opt::<TimestampMicrosecondType>()?),
            Kind::Ip => Values::Ip(array.as_fixed_size_binary_opt()?),
            Kind::Mac => Values::Mac(array.as_fixed_size_binary_opt()?),
            Kind::Bool => Values::Bool(array.as_boolean_opt()?),
            Kind::U8 => Values::U8(array.as_primitive_opt::<UInt8Type>()?),
            Kind::U16 => Values::U16(array.as_primitive_opt::<UInt16Type>()?),
            Kind::U32 => Values::U32(array.as_primitive_opt::<UInt32Type>()?),
            Kind::U64 => Values::U64(array.as_primitive_opt::<UInt64Type>()?),
            Kind::F64 => Values::F64(array.as_primitive_opt::<Float64Type>()?),
            Kind::Text => Values::Text(array.as_string_opt::<i32>()?),
            Kind::Label => {
                let labels = array.as_dictionary_opt::<UInt8Type>()?;
                Values::Label(labels.keys(), labels.values().as_string_opt::<i32>()?)
            }
            Kind::ListU32 => {
                let list = array.as_list_opt::<i32>()?;
                Values::List(list, list.values().as_primitive_opt::<UInt32Type>()?)
            }
            Kind::Map => {
                let map = array.as_map_opt()?;
                Values::Map(map, map.keys().as_string_opt::<i32>()?, map.values().as_string_opt::<i32>()?)
            }
        })
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        match self {
            Values::Instant(array) | Values::Millis(array) => array.is_null(row),
            Values::Ip(array) | Values::Mac(array) => array.is_null(row),
            Values::Bool(array) => array.is_null(row),
            Values::U8(array) | Values::Dscp(array) | Values::Ecn(array) => array.is_null(row),
            Values::U16(array) => array.is_null(row),
            Values::U32(array) => array.is_null(row),
            Values::U64(array) => array.is_null(row),
            Values::F64(array) => array.is_null(row),
            Values::Text(array) => array.is_null(row),
            Values::Label(keys, _) => keys.is_null(row),
            Values::List(array, _) => array.is_null(row),
            Values::Map(array, ..) => array.is_null(row),
        }
    }

    fn is_quoted(&self) -> bool {
        matches!(self, Values::Instant(_) | Values::Ip(_) | Values::Mac(_))
    }

    /// Values whose text needs no escaping. False for the others.
    fn write_plain(&self, row: usize, out: &mut Vec<u8>) -> bool {
        match self {
            Values::Instant(array) => write_instant(array.value(row), out),
            Values::Millis(array) => write_signed(array.value(row).div_euclid(1_000), out),
            Values::Ip(array) => write_ip(array.value(row), out),
            Values::Mac(array) => {
                let mut octets = [0; 6];
                octets.copy_from_slice(array.value(row));
                // writing to memory does not fail
                let _ = write!(out, "{}", Mac(octets));
            }
            Values::Bool(array) => out.extend_from_slice(if array.value(row) { b"true" } else { b"false" }),
            Values::U8(array) => write_number(u64::from(array.value(row)), out),
            Values::Dscp(array) => write_number(u64::from(array.value(row) >> 2), out),
            Values::Ecn(array) => write_number(u64::from(array.value(row) & 3), out),
            Values::U16(array) => write_number(u64::from(array.value(row)), out),
            Values::U32(array) => write_number(u64::from(array.value(row)), out),
            Values::U64(array) => write_number(array.value(row), out),
            Values::F64(array) => write_float(array.value(row), out),
            Values::Text(_) | Values::Label(..) | Values::List(..) | Values::Map(..) => return false,
        }
        true
    }

    fn text(&self, row: usize) -> &str {
        match self {
            Values::Text(array) => array.value(row),
            Values::Label(keys, values) => values.value(usize::from(keys.value(row))),
            _ => "",
        }
    }

    fn write_list(&self, row: usize, separator: u8, out: &mut Vec<u8>) {
        let Values::List(list, items) = self else { return };
        for at in range(list.value_offsets(), row) {
            write_number(u64::from(items.value(at)), out);
            out.push(separator);
        }
        out.pop_if(|last| *last == separator);
    }

    /// A JSON object. A key that comes twice is numbered, so that no reader drops one.
    fn write_map(&self, row: usize, out: &mut Vec<u8>) {
        let Values::Map(map, keys, values) = self else { return };
        out.push(b'{');
        let entries = range(map.value_offsets(), row);
        for at in entries.clone() {
            if at > entries.start {
                out.push(b',');
            }
            let key = keys.value(at);
            match (entries.start..at).filter(|before| keys.value(*before) == key).count() {
                0 => write_json_text(key, out),
                n => write_json_text(&format!("{key}#{}", n + 1), out),
            }
            out.push(b':');
            if values.is_null(at) {
                out.extend_from_slice(b"null");
            } else {
                write_json_text(values.value(at), out);
            }
        }
        out.push(b'}');
    }

    fn write_json(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_quoted() {
            out.push(b'"');
            self.write_plain(row, out);
            out.push(b'"');
        } else if !self.write_plain(row, out) {
            match self {
                Values::List(..) => {
                    out.push(b'[');
                    self.write_list(row, b',', out);
                    out.push(b']');
                }
                Values::Map(..) => self.write_map(row, out),
                _ => write_json_text(self.text(row), out),
            }
        }
    }

    fn write_csv(&self, row: usize, out: &mut Vec<u8>) {
        if self.write_plain(row, out) {
            return;
        }
        match self {
            Values::List(..) => self.write_list(row, b' ', out),
            Values::Map(..) => {
                let mut map = Vec::new();
                self.write_map(row, &mut map);
                write_csv_text(&String::from_utf8_lossy(&map), out);
            }
            _ => write_csv_text(self.text(row), out),
        }
    }
}

pub(super) fn range(offsets: &[i32], row: usize) -> std::ops::Range<usize> {
    let at = |row: usize| usize::try_from(offsets[row]).unwrap_or(0);
    at(row)..at(row + 1)
}

/// The name of a column in text.
fn text_name(column: &Column) -> String {
    match (column.kind, column.name.strip_suffix("_time")) {
        (Kind::Time, Some(stem)) => format!("{stem}_ms"),
        _ => column.name.to_owned(),
    }
}

/// The names of all columns in text, in order.
pub(super) fn text_names(table: Table) -> Vec<String> {
    let mut names = Vec::new();
    for column in table.columns() {
        names.push(text_name(column));
        if column.name == "tos" {
            names.extend(["dscp".to_owned(), "ecn".to_owned()]);
        }
    }
    names
}

/// The columns that a batch has, each with its name; `dscp` and `ecn` where there is a `tos`.
fn columns_of(table: Table, batch: &RecordBatch) -> Vec<(String, Values<'_>)> {
    let mut all = Vec::new();
    for (field, array) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let Some(column) = table.column(field.name()) else { continue };
        let Some(values) = Values::of(column, array) else { continue };
        all.push((text_name(column), values));
        if column.name == "tos"
            && let Some(tos) = array.as_primitive_opt::<UInt8Type>()
        {
            all.push(("dscp".to_owned(), Values::Dscp(tos)));
            all.push(("ecn".to_owned(), Values::Ecn(tos)));
        }
    }
    all
}

/// The rows of a batch as JSON lines, the first key being `table`.
pub(super) struct JsonLines<'a> {
    start: Vec<u8>,
    /// Each with what stands before its value.
    columns: Vec<(Vec<u8>, Values<'a>)>,
}

impl<'a> JsonLines<'a> {
    pub(super) fn of(table: Table, batch: &'a RecordBatch) -> JsonLines<'a> {
        let columns = columns_of(table, batch).into_iter();
        JsonLines {
            start: format!("{{\"table\":\"{}\"", table.name()).into_bytes(),
            columns: columns.map(|(name, values)| (format!(",\"{name}\":").into_bytes(), values)).collect(),
        }
    }

    /// Appends a row.
    pub(super) fn write(&self, row: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.start);
        for (key, values) in &self.columns {
            if !values.is_null(row) {
                out.extend_from_slice(key);
                values.write_json(row, out);
            }
        }
        out.extend_from_slice(b"}\n");
    }
}

/// Appends rows as JSON lines.
pub(super) fn write_json_lines(
    table: Table,
    batch: &RecordBatch,
    rows: std::ops::Range<usize>,
    out: &mut Vec<u8>,
) {
    let lines = JsonLines::of(table, batch);
    rows.for_each(|row| lines.write(row, out));
}

/// Appends rows as CSV lines with all columns of the table.
pub(super) fn write_csv_lines(table: Table, batch: &RecordBatch, out: &mut Vec<u8>) {
    let present = columns_of(table, batch);
    let columns: Vec<Option<&Values<'_>>> = text_names(table)
        .iter()
        .map(|name| present.iter().find(|(known, _)| known == name).map(|(_, values)| values))
        .collect();
    for row in 0..batch.num_rows() {
        for (at, values) in columns.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            if let Some(values) = values
                && !values.is_null(row)
            {
                values.write_csv(row, out);
            }
        }
        out.push(b'\n');
    }
}

fn write_json_text(text: &str, out: &mut Vec<u8>) {
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // writing a text to memory does not fail
        let _ = serde_json::to_writer(out, text);
    }
}

/// RFC 4180 §2.
fn write_csv_text(text: &str, out: &mut Vec<u8>) {
    if text.bytes().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        out.push(b'"');
        out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

fn write_number(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn write_signed(value: i64, out: &mut Vec<u8>) {
    if value < 0 {
        out.push(b'-');
    }
    write_number(value.unsigned_abs(), out);
}

/// Whole numbers without a point; JSON has no NaN or infinity.
fn write_float(value: f64, out: &mut Vec<u8>) {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        write_signed(value as i64, out);
    } else if value.is_finite() {
        let _ = write!(out, "{value}");
    } else {
        out.extend_from_slice(b"null");
    }
}

fn write_ip(octets: &[u8], out: &mut Vec<u8>) {
    let mut address = [0; 16];
    address.copy_from_slice(octets);
    let address = Address(address);
    match address.as_v4() {
        Some(octets) => {
            for (at, octet) in octets.into_iter().enumerate() {
                if at > 0 {
                    out.push(b'.');
                }
                write_number(u64::from(octet), out);
            }
        }
        None => {
            let _ = write!(out, "{address}");
        }
    }
}

/// RFC 3339 in UTC: `2026-11-23T09:30:00.123456Z`. Civil date of a day number as in the proleptic Gregorian calendar.
pub(super) fn write_instant(us: i64, out: &mut Vec<u8>) {
    let (days, in_day) = (us.div_euclid(86_400_000_000), us.rem_euclid(86_400_000_000));
    // years begin in March, so that the leap day is the last of them; eras have 400 years, 146,097 days
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, micros) = (in_day / 1_000_000, in_day % 1_000_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z");
}

#[cfg(test)]
pub(super) mod tests {
    use weir_collector::columns::Builder;
    use weir_schemas::FlowColumn;

    use super::*;

    pub(in crate::tools) fn batch() -> RecordBatch {
        let mut builder = Builder::new(Table::Flows);
        let column = |column: FlowColumn| column.index();
        builder.times(column(FlowColumn::ReceivedAt)).push_n(1_700_000_000_123_456, 2);
        builder.times(column(FlowColumn::StartTime)).push(1_699_999_999_999_999);
        builder.labels(column(FlowColumn::ProtoVer)).push_n("ipfix", 2);
        builder.ips(column(FlowColumn::SrcAddr)).push(Address::v4([10, 0, 0, 255]).0);
        let v6: Address = "2001:db8::1".parse().unwrap();
        builder.ips(column(FlowColumn::SrcAddr)).push(v6.0);
        builder.u8s(column(FlowColumn::Tos)).push(0xb9);
        builder.u64s(column(FlowColumn::Bytes)).push_n(u64::MAX, 2);
        builder.f64s(column(FlowColumn::SamplingRate)).push(1_000.0);
        builder.f64s(column(FlowColumn::SamplingRate)).push(1.5);
        builder.macs(column(FlowColumn::SrcMac)).push([0, 0x1b, 0, 0, 0, 0xff]);
        builder.lists(column(FlowColumn::MplsLabels)).push([16, 17]);
        builder.bools(column(FlowColumn::Reverse)).push(false);
        builder.texts(column(FlowColumn::AppName)).push("say \"hi\",\n");
        let extra = column(FlowColumn::Extra);
        for (key, value) in [("a", "1"), ("b\\", "2"), ("a", "3")] {
            builder.maps(extra).entry(key, value);
        }
        builder.maps(extra).close_row();
        builder.advance(2);
        builder.finish().unwrap()
    }

    #[test]
    fn json_lines_have_what_the_row_has() {
        let mut out = Vec::new();
        write_json_lines(Table::Flows, &batch(), 0..2, &mut out);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let first = concat!(
            r#"{"table":"flows","received_at":"2023-11-14T22:13:20.123456Z","start_ms":1699999999999,"#,
            r#""proto_ver":"ipfix","reverse":false,"src_addr":"10.0.0.255","tos":185,"dscp":46,"ecn":1,"#,
            r#""bytes":18446744073709551615,"sampling_rate":1000,"src_mac":"00:1b:00:00:00:ff","#,
            r#""mpls_labels":[16,17],"app_name":"say \"hi\",\n","extra":{"a":"1","b\\":"2","a#2":"3"}}"#
        );
        assert_eq!(lines[0], first);
        let second = concat!(
            r#"{"table":"flows","received_at":"2023-11-14T22:13:20.123456Z","proto_ver":"ipfix","#,
            r#""src_addr":"2001:db8::1","bytes":18446744073709551615,"sampling_rate":1.5}"#
        );
        assert_eq!(lines[1], second);
        for line in lines {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn csv_has_every_column_in_place() {
        let mut out = Vec::new();
        write_csv_lines(Table::Flows, &batch(), &mut out);
        let text = String::from_utf8(out).unwrap();
        let names = text_names(Table::Flows);
        assert_eq!(names.len(), FlowColumn::ALL.len() + 2);
        let second = text.lines().last().unwrap();
        let fields: Vec<&str> = second.split(',').collect();
        assert_eq!(fields.len(), names.len());
        let of = |name: &str| fields[names.iter().position(|known| known == name).unwrap()];
        assert_eq!((of("src_addr"), of("dscp"), of("sampling_rate")), ("2001:db8::1", "", "1.5"));
        assert!(text.contains(r#","say ""hi"","#), "{text}");
        assert!(text.contains(r#","{""a"":""1"","#), "{text}");
        assert!(text.contains(",16 17,"), "{text}");
    }

    #[test]
    fn instants_are_civil() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (-1, "1969-12-31T23:59:59.000000Z"),
        ] {
            let mut out = Vec::new();
            write_instant(seconds * 1_000_000, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }
}
