//! Top talkers: per window and dimension the largest keys of what is rolled up at once, and all others as one row.
//!
//! The totals of a dimension are exact. A key that is among the largest of one part and not of another is short by what
//! it had there, which the row `other` has, and that is at most the largest key that the other part cut off: this is
//! `bound`. In a row of a key it is what the key does not lack, in the row `other` what a key may lack that has no row; both
//! add up, so that a key may lack at most the sum over `other` less the sum over its own rows. This is the summary of
//! Misra and Gries, cut by size: it merges over parts, windows, partitions and machines.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;

use super::columns::{Flows, NONE};
use super::config::AggregateConfig;
use super::dimension::{Atom, Dimension};
use super::flows::{Cells, ClassKey, Hosts, packed, small, unpacked};
use super::intern::Interner;
use super::sweep::Share;
use super::{Kind, Resolution, Rollup, Sums, addresses, longs, measures, shorts, windows};

/// Compaction keeps this many times as many keys as a commit does.
pub(super) const MERGED: usize = 4;

/// The columns of the key, after the window's.
pub(super) fn keys() -> Vec<Field> {
    let field = |name: &str, kind: DataType| Field::new(name, kind, true);
    let address = || DataType::FixedSizeBinary(16);
    vec![
        field("dimension", DataType::Utf8),
        field("other", DataType::Boolean),
        field("addr", address()),
        field("peer_addr", address()),
        field("prefix_len", DataType::Int16),
        field("ip_protocol", DataType::Int16),
        field("port", DataType::Int32),
        field("peer_port", DataType::Int32),
        field("asn", DataType::Int64),
        field("peer_asn", DataType::Int64),
        field("exporter_addr", address()),
        field("if_index", DataType::Int64),
        field("peer_if_index", DataType::Int64),
        field("vrf", DataType::Int64),
        field("peer_vrf", DataType::Int64),
        field("dscp", DataType::Int16),
        field("app", DataType::Utf8),
    ]
}

/// What the numbers of an attribute stand for.
#[derive(Clone)]
enum Values {
    Addresses(Rc<Vec<Option<u128>>>),
    /// With the prefix lengths of IPv4 and IPv6.
    Networks(Rc<Vec<Option<u128>>>, u8, u8),
    /// Protocol and port.
    Ports(Vec<(i64, i64)>),
    Systems(Vec<i64>),
    Interfaces(Vec<(Option<u128>, i64)>),
    Exporters(Vec<Option<u128>>),
    Protocols(Vec<i64>),
    Dscps(Vec<i64>),
    Vrfs(Vec<i64>),
    Texts(Vec<Option<String>>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Values::Addresses(values) | Values::Networks(values, ..) => values.len(),
            Values::Ports(values) => values.len(),
            Values::Systems(values)
            | Values::Protocols(values)
            | Values::Dscps(values)
            | Values::Vrfs(values) => values.len(),
            Values::Interfaces(values) => values.len(),
            Values::Exporters(values) => values.len(),
            Values::Texts(values) => values.len(),
        }
    }
}

/// An attribute of each row, or of each class, as numbers.
#[derive(Clone)]
struct Numbered {
    numbers: Rc<Vec<u32>>,
    values: Values,
}

/// The attributes of a row of the result.
#[derive(Default, Clone)]
struct Attributes {
    addr: [Option<u128>; 2],
    prefix_len: Option<i64>,
    protocol: Option<i64>,
    port: [Option<i64>; 2],
    asn: [Option<i64>; 2],
    exporter: Option<u128>,
    interface: [Option<i64>; 2],
    vrf: [Option<i64>; 2],
    dscp: Option<i64>,
    app: Option<String>,
}

impl Attributes {
    /// Takes an attribute's value; `at` is 1 where the other attribute of the pair is of the same sort.
    fn take(&mut self, values: &Values, number: u32, at: usize) {
        let number = number as usize;
        match values {
            Values::Addresses(values) => self.addr[at] = values[number],
            Values::Networks(values, v4, v6) => {
                self.addr[at] = values[number];
                let length = |address: u128| i64::from(if is_v4(address) { *v4 } else { *v6 });
                self.prefix_len = values[number].map(length).or(self.prefix_len);
            }
            Values::Ports(values) => {
                (self.protocol, self.port[at]) = (Some(values[number].0), Some(values[number].1))
            }
            Values::Systems(values) => self.asn[at] = Some(values[number]),
            Values::Interfaces(values) => {
                (self.exporter, self.interface[at]) = (values[number].0, Some(values[number].1));
            }
            Values::Exporters(values) => self.exporter = values[number],
            Values::Protocols(values) => self.protocol = Some(values[number]),
            Values::Dscps(values) => self.dscp = Some(values[number]),
            Values::Vrfs(values) => self.vrf[at] = Some(values[number]),
            Values::Texts(values) => self.app.clone_from(&values[number]),
        }
    }
}

/// IPv4 stands as `::ffff:a.b.c.d`.
fn is_v4(address: u128) -> bool {
    address >> 32 == 0xffff
}

/// The attributes that the dimensions need, each numbered once.
struct Atoms<'a> {
    flows: &'a Flows<'a>,
    config: &'a AggregateConfig,
    classes: &'a [ClassKey],
    known: HashMap<Atom, Numbered>,
    hosts: Hosts,
    host_numbers: [Option<Rc<Vec<u32>>>; 2],
}

impl Atoms<'_> {
    fn get(&mut self, atom: Atom) -> Result<Numbered, ArrowError> {
        if let Some(known) = self.known.get(&atom) {
            return Ok(known.clone());
        }
        let numbered = if atom.is_of_class() { self.of_classes(atom) } else { self.of_rows(atom)? };
        self.known.insert(atom, numbered.clone());
        Ok(numbered)
    }

    fn hosts_of(&mut self, at: usize) -> Result<Rc<Vec<u32>>, ArrowError> {
        if let Some(known) = &self.host_numbers[at] {
            return Ok(Rc::clone(known));
        }
        let numbers = Rc::new(self.hosts.numbers(self.flows, ["src_addr", "dst_addr"][at])?);
        self.host_numbers[at] = Some(Rc::clone(&numbers));
        Ok(numbers)
    }

    fn of_rows(&mut self, atom: Atom) -> Result<Numbered, ArrowError> {
        Ok(match atom {
            Atom::SrcAddr => self.addresses(0)?,
            Atom::DstAddr => self.addresses(1)?,
            Atom::SrcNet => self.networks(0)?,
            Atom::DstNet => self.networks(1)?,
            Atom::SrcPort => self.ports("src_port")?,
            Atom::DstPort => self.ports("dst_port")?,
            Atom::VrfIn => self.vrfs("vrf_in")?,
            Atom::VrfOut => self.vrfs("vrf_out")?,
            _ => self.texts("app_name")?,
        })
    }

    fn addresses(&mut self, at: usize) -> Result<Numbered, ArrowError> {
        // both directions first: the numbers of both are places in the values
        let numbers = [self.hosts_of(0)?, self.hosts_of(1)?];
        let values = Values::Addresses(Rc::new(self.hosts.values()));
        Ok(Numbered { numbers: Rc::clone(&numbers[at]), values })
    }

    /// Masks each host once.
    fn networks(&mut self, at: usize) -> Result<Numbered, ArrowError> {
        let numbers = [self.hosts_of(0)?, self.hosts_of(1)?];
        let (v4, v6) = (self.config.prefix_v4, self.config.prefix_v6);
        let mask = |length: u32| if length == 0 { 0 } else { u128::MAX << (128 - length.min(128)) };
        let (mask_v4, mask_v6) = (mask(96 + u32::from(v4)), mask(u32::from(v6)));
        let mut networks = Hosts::new();
        let masked = |address: u128| address & if is_v4(address) { mask_v4 } else { mask_v6 };
        let hosts = self.hosts.values();
        let of_host: Vec<u32> = hosts.iter().map(|host| networks.number(host.map(masked))).collect();
        let numbers = numbers[at].iter().map(|host| of_host[*host as usize]).collect();
        let values = Values::Networks(Rc::new(networks.values()), v4, v6);
        Ok(Numbered { numbers: Rc::new(numbers), values })
    }

    fn ports(&self, column: &str) -> Result<Numbered, ArrowError> {
        let (ports, protocols) = (self.flows.numbers(column)?, self.flows.numbers("ip_protocol")?);
        let mut interner = Interner::new();
        let pairs = ports.iter().zip(&protocols);
        let numbers = pairs.map(|(port, protocol)| interner.number(packed(*port) | small(*protocol) << 33));
        let numbers = Rc::new(numbers.collect());
        let value = |key: &u64| (unpacked(key >> 33), unpacked(key & 0x1_ffff_ffff));
        Ok(Numbered { numbers, values: Values::Ports(interner.keys().iter().map(value).collect()) })
    }

    fn vrfs(&self, column: &str) -> Result<Numbered, ArrowError> {
        let (numbers, values) = numbered(self.flows.numbers(column)?.into_iter());
        Ok(Numbered { numbers, values: Values::Vrfs(values) })
    }

    fn texts(&self, column: &str) -> Result<Numbered, ArrowError> {
        let mut known: HashMap<String, u32> = HashMap::new();
        let mut values: Vec<Option<String>> = vec![None];
        let mut numbers = Vec::with_capacity(self.flows.rows);
        self.flows.texts(column, |text| {
            let Some(text) = text else { return numbers.push(0) };
            let number = known.get(text).copied().unwrap_or_else(|| {
                values.push(Some(text.to_owned()));
                let number = (values.len() - 1) as u32;
                known.insert(text.to_owned(), number);
                number
            });
            numbers.push(number);
        })?;
        Ok(Numbered { numbers: Rc::new(numbers), values: Values::Texts(values) })
    }

    fn of_classes(&self, atom: Atom) -> Numbered {
        let by = |of: fn(&ClassKey) -> i64| numbered(self.classes.iter().map(of));
        let (numbers, values) = match atom {
            Atom::Exporter | Atom::InIf | Atom::OutIf => return self.interfaces(atom),
            Atom::SrcAs => by(|class| class.src_as),
            Atom::DstAs => by(|class| class.dst_as),
            Atom::Protocol => by(|class| class.protocol),
            _ => by(|class| class.dscp),
        };
        let values = match atom {
            Atom::SrcAs | Atom::DstAs => Values::Systems(values),
            Atom::Protocol => Values::Protocols(values),
            _ => Values::Dscps(values),
        };
        Numbered { numbers, values }
    }

    fn interfaces(&self, atom: Atom) -> Numbered {
        let mut exporters = Hosts::new();
        let mut interner = Interner::new();
        let mut numbers = Vec::with_capacity(self.classes.len());
        for class in self.classes {
            let interface = match atom {
                Atom::InIf => class.in_if,
                Atom::OutIf => class.out_if,
                _ => NONE,
            };
            let exporter = exporters.number(class.exporter);
            numbers.push(interner.number(u128::from(exporter) << 33 | u128::from(packed(interface))));
        }
        let addresses = exporters.values();
        let exporter = |key: &u128| addresses[(key >> 33) as usize];
        let values = match atom {
            Atom::Exporter => Values::Exporters(interner.keys().iter().map(exporter).collect()),
            _ => {
                let value = |key: &u128| (exporter(key), unpacked(*key as u64 & 0x1_ffff_ffff));
                Values::Interfaces(interner.keys().iter().map(value).collect())
            }
        };
        Numbered { numbers: Rc::new(numbers), values }
    }
}

/// Values of few kinds with their numbers.
fn numbered(values: impl Iterator<Item = i64>) -> (Rc<Vec<u32>>, Vec<i64>) {
    let mut interner = Interner::new();
    let numbers = values.map(|value| interner.number(value.cast_unsigned())).collect();
    (Rc::new(numbers), interner.keys().iter().map(|key| key.cast_signed()).collect())
}

/// A dimension while its windows are ranked.
struct Ranked {
    dimension: Dimension,
    first: Values,
    second: Option<Values>,
    /// The key of each row, or of each class.
    keys: Rc<Vec<u32>>,
    /// Of a pair: the numbers of both, by key.
    pairs: Vec<u64>,
    of_class: bool,
    /// By key, of the window at hand: its size, and its place among those that are kept.
    sizes: Vec<f64>,
    places: Vec<u32>,
    rows: Vec<Row>,
    sums: Vec<Sums>,
}

/// A row of the result.
struct Row {
    window: i64,
    /// None for `other`.
    key: Option<u32>,
    bound: f64,
}

impl Ranked {
    fn new(dimension: Dimension, atoms: &mut Atoms<'_>, class_of_row: &[u32]) -> Result<Ranked, ArrowError> {
        let of_class = dimension.is_of_class();
        // an attribute of classes beside one of rows: each row has that of its class
        let get = |atoms: &mut Atoms<'_>, atom: Atom| -> Result<Numbered, ArrowError> {
            let mut found = atoms.get(atom)?;
            if atom.is_of_class() && !of_class {
                let numbers = class_of_row.iter().map(|class| found.numbers[*class as usize]);
                found.numbers = Rc::new(numbers.collect());
            }
            Ok(found)
        };
        let first = get(atoms, dimension.first)?;
        let second = dimension.second.map(|atom| get(atoms, atom)).transpose()?;
        let (mut keys, mut pairs, mut count) = (Rc::clone(&first.numbers), Vec::new(), first.values.len());
        if let Some(second) = &second {
            let mut interner = Interner::new();
            let both = first.numbers.iter().zip(second.numbers.iter());
            keys = Rc::new(
                both.map(|(left, right)| interner.number(u64::from(*left) << 32 | u64::from(*right)))
                    .collect(),
            );
            pairs = interner.keys().to_vec();
            count = pairs.len();
        }
        Ok(Ranked {
            dimension,
            first: first.values,
            second: second.map(|second| second.values),
            keys,
            pairs,
            of_class,
            sizes: vec![0.0; count],
            places: vec![0; count],
            rows: Vec::new(),
            sums: Vec::new(),
        })
    }

    /// Ranks a window: `items` are places in `keys`, each with what it adds.
    fn window<'a>(&mut self, window: i64, keep: usize, items: impl Iterator<Item = (u32, &'a Sums)> + Clone) {
        /// A key that has come up and is not kept.
        const SEEN: u32 = u32::MAX;
        let mut found: Vec<u32> = Vec::new();
        for (item, sums) in items.clone() {
            let key = self.keys[item as usize];
            self.sizes[key as usize] += sums.est_bytes;
            let place = &mut self.places[key as usize];
            if *place == 0 {
                *place = SEEN;
                found.push(key);
            }
        }
        let mut bound = 0.0;
        let mut kept = &found[..];
        if found.len() > keep {
            let size = |key: &u32| self.sizes[*key as usize];
            // of equally large ones the one that came first is kept
            let order = |left: &u32, right: &u32| size(right).total_cmp(&size(left)).then(left.cmp(right));
            let (_, largest_cut, _) = found.select_nth_unstable_by(keep, order);
            bound = size(largest_cut);
            kept = &found[..keep];
        }
        let base = self.sums.len();
        for (place, key) in (1..).zip(kept) {
            self.places[*key as usize] = place;
            self.rows.push(Row { window, key: Some(*key), bound });
        }
        self.sums.resize(base + kept.len(), Sums::default());
        let (kept, mut rest) = (&mut self.sums[base..], Sums::default());
        for (item, sums) in items {
            let key = self.keys[item as usize];
            match self.places[key as usize] {
                SEEN => rest.add(sums),
                place => kept[place as usize - 1].add(sums),
            }
        }
        if found.len() > keep {
            self.rows.push(Row { window, key: None, bound });
            self.sums.push(rest);
        }
        for key in found {
            self.sizes[key as usize] = 0.0;
            self.places[key as usize] = 0;
        }
    }

    fn attributes(&self, key: u32) -> Attributes {
        let mut attributes = Attributes::default();
        let Some(second) = &self.second else {
            attributes.take(&self.first, key, 0);
            return attributes;
        };
        let pair = self.pairs[key as usize];
        let is_alike = std::mem::discriminant(&self.first) == std::mem::discriminant(second)
            || matches!((&self.first, second), (Values::Addresses(_), Values::Networks(..)))
            || matches!((&self.first, second), (Values::Networks(..), Values::Addresses(_)));
        attributes.take(&self.first, (pair >> 32) as u32, 0);
        attributes.take(second, pair as u32, usize::from(is_alike));
        attributes
    }
}

/// How many keys the next window keeps of a dimension that has `rows` from newer ones: flows that last long are in many
/// windows, and what they add to the rollup is bounded by keeping less of the older ones.
fn keep(top_k: usize, rows: usize) -> usize {
    if rows < top_k * 16 {
        top_k
    } else if rows < top_k * 24 {
        (top_k / 20).max(10)
    } else {
        (top_k / 100).max(10)
    }
}

/// All dimensions.
pub(super) struct Talkers {
    ranked: Vec<Ranked>,
    top_k: usize,
}

impl Talkers {
    pub(super) fn new(
        flows: &Flows<'_>,
        config: &AggregateConfig,
        classes: &[ClassKey],
        class_of_row: &[u32],
    ) -> Result<Talkers, ArrowError> {
        let mut atoms = Atoms {
            flows,
            config,
            classes,
            known: HashMap::new(),
            hosts: Hosts::new(),
            host_numbers: [None, None],
        };
        let dimensions = config.ranked().into_iter();
        let ranked = dimensions.map(|dimension| Ranked::new(dimension, &mut atoms, class_of_row));
        Ok(Talkers { ranked: ranked.collect::<Result<_, _>>()?, top_k: config.top_k })
    }

    /// Takes a window: the shares of rows with what they add, and the same by class. The newest comes first.
    pub(super) fn window(&mut self, window: i64, shares: &[Share], added: &[Sums], classes: &Cells) {
        for ranked in &mut self.ranked {
            let keep = keep(self.top_k, ranked.rows.len());
            if ranked.of_class {
                ranked.window(window, keep, classes.numbers.iter().copied().zip(&classes.sums));
            } else {
                ranked.window(window, keep, shares.iter().map(|share| share.row).zip(added));
            }
        }
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let mut attributes: Vec<Attributes> = Vec::new();
        let (mut starts, mut names, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let (mut sums, mut bounds) = (Vec::new(), Vec::new());
        for ranked in &self.ranked {
            for row in &ranked.rows {
                attributes.push(row.key.map(|key| ranked.attributes(key)).unwrap_or_default());
                starts.push(row.window);
                names.push(ranked.dimension.name.as_str());
                others.push(row.key.is_none());
                bounds.push(row.bound);
            }
            sums.extend_from_slice(&ranked.sums);
        }
        let none = |value: Option<i64>| value.unwrap_or(NONE);
        let port = |value: Option<i64>| value.and_then(|port| i32::try_from(port).ok());
        let all = || attributes.iter();
        let mut columns = Vec::from(windows(&starts, Resolution::Minute));
        columns.extend([
            Arc::new(StringArray::from_iter_values(names)) as ArrayRef,
            Arc::new(BooleanArray::from(others)),
            addresses(all().map(|row| row.addr[0]))?,
            addresses(all().map(|row| row.addr[1]))?,
            shorts(all().map(|row| none(row.prefix_len))),
            shorts(all().map(|row| none(row.protocol))),
            Arc::new(Int32Array::from_iter(all().map(|row| port(row.port[0])))),
            Arc::new(Int32Array::from_iter(all().map(|row| port(row.port[1])))),
            longs(all().map(|row| none(row.asn[0]))),
            longs(all().map(|row| none(row.asn[1]))),
            addresses(all().map(|row| row.exporter))?,
            longs(all().map(|row| none(row.interface[0]))),
            longs(all().map(|row| none(row.interface[1]))),
            longs(all().map(|row| none(row.vrf[0]))),
            longs(all().map(|row| none(row.vrf[1]))),
            shorts(all().map(|row| none(row.dscp))),
            Arc::new(StringArray::from_iter(all().map(|row| row.app.as_deref()))),
        ]);
        columns.extend(measures(&sums));
        columns.push(Arc::new(Float64Array::from(bounds)));
        let rollup = Rollup { kind: Kind::Talkers, resolution: Resolution::Minute };
        RecordBatch::try_new(rollup.schema(), columns)
    }
}

/// A window and dimension of a part that is cut.
#[derive(Default)]
struct Group {
    keys: Vec<u32>,
    other: Option<u32>,
}

/// Cuts each window and dimension of merged rows to its `top_k` largest keys, and says in `bound` what this hides.
pub(super) fn cut(part: &RecordBatch, top_k: usize) -> Result<RecordBatch, ArrowError> {
    let starts = part.column(0).as_primitive::<TimestampMicrosecondType>().values();
    let dimensions = part.column(2).as_string::<i32>();
    let others = part.column(3).as_boolean();
    let mut places: HashMap<(i64, &str), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (row, start) in (0_u32..).zip(starts) {
        let at = row as usize;
        let group = *places.entry((*start, dimensions.value(at))).or_insert_with(|| {
            groups.push(Group::default());
            groups.len() - 1
        });
        if others.value(at) { groups[group].other = Some(row) } else { groups[group].keys.push(row) }
    }
    if groups.iter().all(|group| group.keys.len() <= top_k) {
        return Ok(part.clone());
    }
    let column = |name: &str| part.column_by_name(name).map(|column| column.as_primitive::<Float64Type>());
    let (Some(sizes), Some(bounds)) = (column("est_bytes"), column("bound")) else { return Ok(part.clone()) };
    // each row of the result: where it comes from, whether it is `other`, its bound, and what is added to it
    let mut rows: Vec<(u32, bool, f64)> = Vec::new();
    let mut added: Vec<(usize, Vec<u32>)> = Vec::new();
    for Group { mut keys, other } in groups {
        let before = other.map_or(0.0, |other| bounds.value(other as usize));
        if keys.len() <= top_k {
            rows.extend(keys.iter().map(|row| (*row, false, bounds.value(*row as usize))));
            rows.extend(other.map(|other| (other, true, before)));
            continue;
        }
        let size = |row: u32| sizes.value(row as usize);
        keys.select_nth_unstable_by(top_k, |left, right| {
            size(*right).total_cmp(&size(*left)).then(left.cmp(right))
        });
        let hidden = keys.split_off(top_k);
        // a key without a row may have what any hidden one has, and what that may lack
        let lacks = |row: u32| size(row) + before - bounds.value(row as usize);
        let bound = hidden.iter().map(|row| lacks(*row)).fold(before, f64::max);
        rows.extend(keys.iter().map(|row| (*row, false, bounds.value(*row as usize) + bound - before)));
        let (into, rest) = match other {
            Some(other) => (other, &hidden[..]),
            None => (hidden[0], &hidden[1..]),
        };
        rows.push((into, true, bound));
        added.push((rows.len() - 1, rest.to_vec()));
    }
    let from = UInt32Array::from_iter_values(rows.iter().map(|(row, ..)| *row));
    let attributes = UInt32Array::from_iter(rows.iter().map(|(row, other, _)| (!other).then_some(*row)));
    let first_measure = Rollup { kind: Kind::Talkers, resolution: Resolution::Minute }.key_columns();
    let mut columns = Vec::with_capacity(part.num_columns());
    for (at, column) in part.columns().iter().enumerate() {
        columns.push(match at {
            0..3 => take(column, &from, None)?,
            3 => Arc::new(BooleanArray::from_iter(rows.iter().map(|(_, other, _)| Some(*other)))),
            _ if at < first_measure => take(column, &attributes, None)?,
            _ if at == part.num_columns() - 1 => {
                Arc::new(Float64Array::from_iter_values(rows.iter().map(|(.., bound)| *bound)))
            }
            _ => add(column, &from, &added)?,
        });
    }
    RecordBatch::try_new(part.schema(), columns)
}

/// The values of `from`, and those of other rows added to some of them.
fn add(column: &ArrayRef, from: &UInt32Array, added: &[(usize, Vec<u32>)]) -> Result<ArrayRef, ArrowError> {
    let taken = take(column, from, None)?;
    Ok(if let Some(values) = column.as_primitive_opt::<Float64Type>() {
        let mut sums: Vec<f64> = taken.as_primitive::<Float64Type>().values().to_vec();
        for (into, rows) in added {
            sums[*into] += rows.iter().map(|row| values.value(*row as usize)).sum::<f64>();
        }
        Arc::new(Float64Array::from(sums))
    } else {
        let values = column.as_primitive::<Int64Type>();
        let mut sums: Vec<i64> = taken.as_primitive::<Int64Type>().values().to_vec();
        for (into, rows) in added {
            for row in rows {
                sums[*into] = sums[*into].saturating_add(values.value(*row as usize));
            }
        }
        Arc::new(Int64Array::from(sums))
    })
}
