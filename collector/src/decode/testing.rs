//! What the decoders' tests share: batches as JSON, and the cases of the corpus.

use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Float64Type, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use serde_json::{Map, Value, json};
use weir_schemas::{Address, Mac};

use super::DatagramMeta;
use crate::columns::Builder;

pub(crate) const RECEIVED_US: i64 = 1_700_000_000_123_456;

/// Marsaglia's xorshift64: the same numbers in every run.
pub(crate) fn xorshift(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// A datagram from `sender`.
pub(crate) fn meta(sender: &str) -> DatagramMeta {
    DatagramMeta {
        sender: sender.parse().unwrap(),
        sender_port: 50_000,
        local_port: 6343,
        received_us: RECEIVED_US,
    }
}

/// A value as JSON; NULL where it has none.
pub(crate) fn value(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Timestamp(..) => json!(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::FixedSizeBinary(16) => {
            let bytes = array.as_fixed_size_binary().value(row);
            json!(Address(bytes.try_into().unwrap()).to_string())
        }
        DataType::FixedSizeBinary(_) => {
            json!(Mac(array.as_fixed_size_binary().value(row).try_into().unwrap()).to_string())
        }
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::UInt8 => json!(array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => json!(array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => json!(array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => json!(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float64 => json!(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Dictionary(..) => {
            let labels = array.as_dictionary::<UInt8Type>();
            json!(labels.values().as_string::<i32>().value(labels.keys().value(row).into()))
        }
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            (0..items.len()).map(|at| value(&items, at)).collect()
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let text = |array: &ArrayRef, at| array.as_string::<i32>().value(at).to_owned();
            let map: Map<String, Value> =
                (0..entries.len()).map(|at| (text(keys, at), json!(text(values, at)))).collect();
            // a map with a key twice is a mistake
            assert_eq!(map.len(), entries.len(), "{keys:?}");
            Value::Object(map)
        }
        other => panic!("{other}"),
    }
}

/// The rows of the open batch, which is closed: NULLs are left out.
pub(crate) fn rows(builder: &mut Builder) -> Vec<Map<String, Value>> {
    let Some(batch) = builder.finish() else { return Vec::new() };
    let fields = batch.schema();
    let row = |row: usize| {
        let columns = fields.fields().iter().zip(batch.columns());
        let named = columns.map(|(field, column)| (field.name().clone(), value(column, row)));
        named.filter(|(_, value)| !value.is_null()).collect()
    };
    (0..batch.num_rows()).map(row).collect()
}

/// Where the random choices come from: octets of proptest, then zeros. So a failure shrinks to few and small choices.
pub(crate) struct Choices<'a> {
    octets: &'a [u8],
    at: usize,
}

impl<'a> Choices<'a> {
    pub(crate) fn new(octets: &'a [u8]) -> Choices<'a> {
        Choices { octets, at: 0 }
    }

    pub(crate) fn octet(&mut self) -> u8 {
        self.at += 1;
        self.octets.get(self.at - 1).copied().unwrap_or(0)
    }

    /// Less than `most`.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::from(u16::from_be_bytes([self.octet(), self.octet()])) % most.max(1)
    }

    pub(crate) fn octets(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.octet()).collect()
    }

    /// One in `n`.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
}

/// A case of the corpus.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) datagrams: Vec<Vec<u8>>,
    /// When each was captured.
    pub(crate) received_us: Vec<i64>,
    pub(crate) expected: Vec<Map<String, Value>>,
    pub(crate) meta: Value,
}

/// The cases whose name begins so; none where the corpus is not there.
pub(crate) fn corpus(prefix: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/cases");
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(named).collect();
    paths.sort();
    let case = |path: PathBuf| {
        let lines = std::fs::read_to_string(path.join("expected.jsonl")).unwrap();
        let (received_us, datagrams) = payloads(&std::fs::read(path.join("input.pcap")).unwrap());
        Case {
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
            datagrams,
            received_us,
            expected: lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
            meta: serde_json::from_str(&std::fs::read_to_string(path.join("meta.json")).unwrap()).unwrap(),
        }
    };
    paths.into_iter().map(case).collect()
}

/// Times and UDP payloads of a classic little-endian pcap of Ethernet, IPv4 and UDP without options.
fn payloads(pcap: &[u8]) -> (Vec<i64>, Vec<Vec<u8>>) {
    let mut rest = &pcap[24..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let length = word(8) as usize;
        found
            .push((i64::from(word(0)) * 1_000_000 + i64::from(word(4)), rest[16 + 42..16 + length].to_vec()));
        rest = &rest[16 + length..];
    }
    found.into_iter().unzip()
}

/// Fields that are compared only where a row has them (the corpus' `check`).
const OPTIONAL: [&str; 4] = ["rev_bytes", "rev_packets", "agent_addr", "ip_bytes"];

/// What differs from the corpus' expectation, by the rules of its README. `strict`: NULL is not zero.
pub(crate) fn differences(case: &Case, rows: &[Map<String, Value>], strict: bool) -> Vec<String> {
    let mut found = Vec::new();
    let allowed = &case.meta["expected"]["flow_records_allowed"];
    let count = rows.len() as u64;
    if count < allowed[0].as_u64().unwrap() || count > allowed[1].as_u64().unwrap() {
        found.push(format!("{}: {count} rows, expected {allowed}", case.name));
    }
    for (number, (want, have)) in case.expected.iter().zip(rows).enumerate() {
        for (field, want) in want {
            if OPTIONAL.contains(&field.as_str()) && !have.contains_key(field) {
                continue;
            }
            let have = match (field.as_str(), field.strip_suffix("_ms")) {
                (_, Some(stem)) => have
                    .get(&format!("{stem}_time"))
                    .map_or(Value::Null, |us| json!(us.as_i64().unwrap().div_euclid(1_000))),
                _ => have.get(field).cloned().unwrap_or(Value::Null),
            };
            let zero = *want == json!(0)
                || ["0.0.0.0", "::", "00:00:00:00:00:00"].iter().any(|zero| want == &json!(zero));
            let address = |value: &Value| value.as_str().and_then(|text| text.parse::<Address>().ok());
            let same = match (&have, want) {
                _ if address(want).is_some() && address(&have).is_some() => address(want) == address(&have),
                (Value::Number(have), Value::Number(want)) => have.as_f64() == want.as_f64(),
                (Value::Null, _) => zero && !strict,
                (have, want) => have == want,
            };
            if !same {
                found.push(format!("{} row {}: {field} is {have}, expected {want}", case.name, number + 1));
            }
        }
    }
    found
}
