//! Rows as Protocol Buffers: `docs/weir.proto`, made from the tables, and its encoding, straight from the columns of a
//! batch.
//!
//! A field has the number of its column's place in the table, so columns are only ever added at the end of a table (a test
//! holds the numbers against the file). Fields are `optional`: what a record does not have is not there. The encoding is
//! that of <https://protobuf.dev/programming-guides/encoding/>.

use arrow::array::{Array, RecordBatch};
#[cfg(test)]
use weir_schemas::Kind;
use weir_schemas::{Address, Column, Table};

use super::rows::Values;

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;

/// The message of a table's rows: those that are decoded the same way share one.
#[cfg(test)]
fn message_of(table: Table) -> &'static str {
    match table {
        Table::Flows | Table::NatEvents | Table::Discards => "Flow",
        Table::InterfaceCounters => "InterfaceCounters",
        Table::HostCounters => "HostCounters",
        Table::QueueCounters => "QueueCounters",
        Table::Options => "Options",
        Table::ExporterStats => "ExporterStats",
        Table::ExporterEvents => "ExporterEvent",
    }
}

#[cfg(test)]
fn type_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Time => "optional int64",
        Kind::Ip | Kind::Mac => "optional bytes",
        Kind::Bool => "optional bool",
        Kind::U8 | Kind::U16 | Kind::U32 => "optional uint32",
        Kind::U64 => "optional uint64",
        Kind::F64 => "optional double",
        Kind::Text | Kind::Label => "optional string",
        Kind::ListU32 => "repeated uint32",
        Kind::Map => "map<string, string>",
    }
}

/// `docs/weir.proto`.
#[cfg(test)]
fn proto_file() -> String {
    use std::fmt::Write;

    let mut out = String::from(
        "// The messages of a topic that `weir relay --encoding protobuf` writes. Generated from the tables.\n\
         //\n\
         // The value of a Kafka message is one of the messages below whose name ends in `Rows`; the header `weir-table`\n\
         // says of which table: FlowRows of `flows`, `nat_events` and `discards`. Times are µs since 1970 UTC, addresses 4\n\
         // or 16 bytes, MAC addresses 6. What a record does not have is absent.\n\n\
         syntax = \"proto3\";\n\npackage weir;\n",
    );
    let mut known = Vec::new();
    for table in Table::ALL {
        let message = message_of(table);
        if known.contains(&message) {
            continue;
        }
        known.push(message);
        // writing to a text does not fail
        let _ = write!(
            out,
            "\nmessage {message}Rows {{\n  repeated {message} rows = 1;\n}}\n\nmessage {message} {{\n"
        );
        for (place, column) in table.columns().iter().enumerate() {
            let _ = writeln!(out, "  // {}", column.doc);
            let _ = writeln!(out, "  {} {} = {};", type_of(column.kind), column.name, place + 1);
        }
        out.push_str("}\n");
    }
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(field: u64, wire: u64, out: &mut Vec<u8>) {
    varint(field << 3 | wire, out);
}

fn bytes(field: u64, value: &[u8], out: &mut Vec<u8>) {
    tag(field, BYTES, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// The columns that a batch has, each with its field number.
fn columns_of(table: Table, batch: &RecordBatch) -> Vec<(u64, Values<'_>)> {
    let place = |column: &Column| table.columns().iter().position(|known| known.name == column.name);
    let fields = batch.schema_ref().fields().iter().zip(batch.columns());
    fields
        .filter_map(|(field, array)| {
            let column = table.column(field.name())?;
            Some((place(column)? as u64 + 1, Values::of(column, array)?))
        })
        .collect()
}

fn field(number: u64, values: &Values<'_>, row: usize, scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    let mut unsigned = |value: u64| {
        tag(number, VARINT, out);
        varint(value, out);
    };
    match values {
        // two's complement of 64 bits
        Values::Instant(array) | Values::Millis(array) => unsigned(array.value(row) as u64),
        Values::Bool(array) => unsigned(array.value(row).into()),
        Values::U8(array) | Values::Dscp(array) | Values::Ecn(array) => unsigned(array.value(row).into()),
        Values::U16(array) => unsigned(array.value(row).into()),
        Values::U32(array) => unsigned(array.value(row).into()),
        Values::U64(array) => unsigned(array.value(row)),
        Values::F64(array) => {
            tag(number, FIXED64, out);
            out.extend_from_slice(&array.value(row).to_le_bytes());
        }
        Values::Ip(array) => {
            let octets: [u8; 16] = array.value(row).try_into().unwrap_or_default();
            match Address(octets).as_v4() {
                Some(octets) => bytes(number, &octets, out),
                None => bytes(number, &octets, out),
            }
        }
        Values::Mac(array) => bytes(number, array.value(row), out),
        Values::Text(array) => bytes(number, array.value(row).as_bytes(), out),
        Values::Label(keys, texts) => {
            bytes(number, texts.value(usize::from(keys.value(row))).as_bytes(), out);
        }
        Values::List(list, items) => {
            scratch.clear();
            for at in super::rows::range(list.value_offsets(), row) {
                varint(items.value(at).into(), scratch);
            }
            bytes(number, scratch, out);
        }
        Values::Map(map, keys, texts) => {
            for at in super::rows::range(map.value_offsets(), row) {
                scratch.clear();
                bytes(1, keys.value(at).as_bytes(), scratch);
                if !texts.is_null(at) {
                    bytes(2, texts.value(at).as_bytes(), scratch);
                }
                bytes(number, scratch, out);
            }
        }
    }
}

/// Appends a row to a message of rows.
pub(super) struct Rows<'a> {
    columns: Vec<(u64, Values<'a>)>,
    row: Vec<u8>,
    scratch: Vec<u8>,
}

impl<'a> Rows<'a> {
    pub(super) fn of(table: Table, batch: &'a RecordBatch) -> Rows<'a> {
        Rows { columns: columns_of(table, batch), row: Vec::new(), scratch: Vec::new() }
    }

    pub(super) fn write(&mut self, row: usize, out: &mut Vec<u8>) {
        self.row.clear();
        for (number, values) in &self.columns {
            if !values.is_null(row) {
                field(*number, values, row, &mut self.scratch, &mut self.row);
            }
        }
        bytes(1, &self.row, out);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/weir.proto");

    /// Message and number → field name.
    fn numbers(file: &str) -> BTreeMap<(String, String), String> {
        let (mut message, mut found) = (String::new(), BTreeMap::new());
        for line in file.lines() {
            if let Some(rest) = line.strip_prefix("message ") {
                message = rest.trim_end_matches(" {").to_owned();
            } else if let Some((field, number)) = line.trim_end_matches(';').rsplit_once(" = ")
                && line.starts_with("  ")
                && !line.starts_with("  //")
            {
                let name = field.rsplit(' ').next().unwrap().to_owned();
                found.insert((message.clone(), number.to_owned()), name);
            }
        }
        found
    }

    #[test]
    fn the_proto_file_is_of_the_tables_and_its_numbers_stay() {
        let wanted = proto_file();
        let have = std::fs::read_to_string(FILE).unwrap_or_default();
        let (before, now) = (numbers(&have), numbers(&wanted));
        for (place, name) in &before {
            assert_eq!(now.get(place), Some(name), "{place:?}: consumers know it by that number");
        }
        if std::env::var_os("WEIR_UPDATE_DOCS").is_some() {
            std::fs::write(FILE, &wanted).unwrap();
        } else {
            assert_eq!(
                have, wanted,
                "docs/weir.proto is behind the tables: WEIR_UPDATE_DOCS=1 writes it anew"
            );
        }
        assert!(now.len() > 150 && now[&("Flow".to_owned(), "1".to_owned())] == "received_at");
    }

    #[test]
    fn rows_are_encoded_as_the_specification_has_it() {
        let batch = super::super::rows::tests::batch();
        let mut rows = Rows::of(Table::Flows, &batch);
        let mut out = Vec::new();
        (0..2).for_each(|row| rows.write(row, &mut out));
        let mut messages = Vec::new();
        let mut rest = &out[..];
        while let Some((number, 2, value)) = next(&mut rest) {
            assert_eq!(number, 1);
            let (mut fields, mut row) = (BTreeMap::<u64, Vec<Vec<u8>>>::new(), &value[..]);
            while let Some((number, _, value)) = next(&mut row) {
                fields.entry(number).or_default().push(value);
            }
            messages.push(fields);
        }
        assert_eq!(messages.len(), 2);
        let of = |row: usize, name: &str| {
            let number =
                Table::Flows.columns().iter().position(|column| column.name == name).unwrap() as u64 + 1;
            messages[row].get(&number).cloned().unwrap_or_default()
        };
        assert_eq!(of(0, "received_at"), [1_700_000_000_123_456_u64.to_be_bytes().to_vec()]);
        assert_eq!(of(0, "proto_ver"), [b"ipfix"]);
        assert_eq!(of(0, "src_addr"), [[10, 0, 0, 255]]);
        assert_eq!(of(1, "src_addr")[0].len(), 16);
        assert_eq!(of(1, "bytes"), [u64::MAX.to_be_bytes()]);
        assert_eq!(of(1, "sampling_rate"), [1.5_f64.to_le_bytes()]);
        assert_eq!(of(0, "src_mac"), [[0, 0x1b, 0, 0, 0, 0xff]]);
        assert_eq!(of(0, "mpls_labels"), [[16, 17]]);
        assert_eq!(
            of(0, "extra"),
            [&b"\x0a\x01a\x12\x011"[..], b"\x0a\x02b\\\x12\x012", b"\x0a\x01a\x12\x013"]
        );
        assert_eq!(of(0, "reverse"), [0_u64.to_be_bytes()]);
        assert!(of(1, "tos").is_empty() && of(1, "extra").is_empty());
    }

    /// A field: number, wire type, value (of a varint, eight bytes).
    fn next(rest: &mut &[u8]) -> Option<(u64, u64, Vec<u8>)> {
        fn varint(rest: &mut &[u8]) -> Option<u64> {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let (byte, after) = rest.split_first()?;
                *rest = after;
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        }
        let tag = varint(rest)?;
        let length = match tag & 7 {
            0 => return Some((tag >> 3, 0, varint(rest)?.to_be_bytes().to_vec())),
            1 => 8,
            2 => varint(rest)? as usize,
            wire => panic!("wire type {wire}"),
        };
        let (value, after) = rest.split_at(length);
        *rest = after;
        Some((tag >> 3, tag & 7, value.to_vec()))
    }
}
