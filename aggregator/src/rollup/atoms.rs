//! The attributes of flows as numbers, and what the numbers stand for: by these the top talkers are ranked and what is
//! distinct is counted.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, StringArray};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use datasketches::hash::value::raw_bytes;
use datasketches::hll::Coupon;

use super::columns::{Flows, NONE};
use super::config::AggregateConfig;
use super::dimension::{Atom, Dimension};
use super::flows::{ClassKey, Hosts, packed, small, unpacked};
use super::intern::Interner;
use super::{addresses, longs, shorts};
use crate::countries::Ranges;

/// The columns that say what a key is, after the window's.
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
        field("country", DataType::Utf8),
        field("peer_country", DataType::Utf8),
    ]
}

/// What the numbers of an attribute stand for.
#[derive(Clone)]
pub(super) enum Values {
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
    Countries(Arc<Ranges>),
}

impl Values {
    pub(super) fn len(&self) -> usize {
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
            Values::Countries(ranges) => usize::from(ranges.numbers()),
        }
    }

    /// What a sketch is given for the value, None for NULL: an address as its 16 bytes, a text as its own, a port as
    /// protocol · 65536 + port, any other number as 64 bits. Sketches that others make of the same can be merged with ours.
    pub(super) fn coupon(&self, number: u32) -> Option<Coupon> {
        let bytes = |bytes: &[u8]| Coupon::from_value(raw_bytes::from_slice(bytes));
        let known = |value: i64| (value != NONE).then(|| Coupon::from_value(value));
        let number = number as usize;
        match self {
            Values::Addresses(values) | Values::Networks(values, ..) => {
                values[number].map(|address| bytes(&address.to_be_bytes()))
            }
            Values::Exporters(values) => values[number].map(|address| bytes(&address.to_be_bytes())),
            Values::Ports(values) => {
                let (protocol, port) = values[number];
                (port != NONE).then(|| Coupon::from_value(protocol.max(0) << 16 | port))
            }
            Values::Systems(values)
            | Values::Protocols(values)
            | Values::Dscps(values)
            | Values::Vrfs(values) => known(values[number]),
            Values::Interfaces(values) => {
                let (exporter, interface) = values[number];
                let exporter = exporter.unwrap_or(0).to_be_bytes();
                (interface != NONE).then(|| bytes(&[&exporter[..], &interface.to_be_bytes()].concat()))
            }
            Values::Texts(values) => values[number].as_ref().map(|text| bytes(text.as_bytes())),
            Values::Countries(ranges) => country(ranges, number).map(|code| bytes(code.as_bytes())),
        }
    }
}

fn country(ranges: &Ranges, number: usize) -> Option<&str> {
    u16::try_from(number).ok().and_then(|number| ranges.code(number))
}

/// An attribute of each row, or of each class, as numbers.
#[derive(Clone)]
pub(super) struct Numbered {
    pub(super) numbers: Rc<Vec<u32>>,
    pub(super) values: Values,
}

/// The attributes of a row of the result.
#[derive(Default, Clone)]
pub(super) struct Attributes {
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
    country: [Option<String>; 2],
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
            Values::Countries(ranges) => self.country[at] = country(ranges, number).map(str::to_owned),
        }
    }
}

/// The columns of [`keys`] after the first two.
pub(super) fn attribute_columns(rows: &[Attributes]) -> Result<Vec<ArrayRef>, ArrowError> {
    let none = |value: Option<i64>| value.unwrap_or(NONE);
    let port = |value: Option<i64>| value.and_then(|port| i32::try_from(port).ok());
    let all = || rows.iter();
    Ok(vec![
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
        Arc::new(StringArray::from_iter(all().map(|row| row.country[0].as_deref()))),
        Arc::new(StringArray::from_iter(all().map(|row| row.country[1].as_deref()))),
    ])
}

/// IPv4 stands as `::ffff:a.b.c.d`.
fn is_v4(address: u128) -> bool {
    address >> 32 == 0xffff
}

/// Pairs of numbers with a number of their own.
#[derive(Clone)]
pub(super) struct Pairs {
    /// Of each row, or of each class.
    pub(super) numbers: Rc<Vec<u32>>,
    /// By number: the first one in the upper half.
    pub(super) pairs: Rc<Vec<u64>>,
}

impl Pairs {
    fn new(first: &[u32], second: &[u32]) -> Pairs {
        let mut interner = Interner::new();
        let numbers = interner.numbers(first.iter().zip(second).map(|(first, second)| pair(*first, *second)));
        Pairs { numbers: Rc::new(numbers), pairs: Rc::new(interner.keys().to_vec()) }
    }
}

/// Two numbers in one word.
pub(super) fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) << 32 | u64::from(second)
}

/// The keys of a dimension.
pub(super) struct Keys {
    first: Values,
    second: Option<(Values, Rc<Vec<u64>>)>,
    /// The key of each row, or of each class.
    pub(super) numbers: Rc<Vec<u32>>,
    pub(super) count: usize,
}

impl Keys {
    /// Of each class where `of_class`, else of each row.
    pub(super) fn new(
        dimension: &Dimension,
        atoms: &mut Atoms<'_>,
        of_class: bool,
    ) -> Result<Keys, ArrowError> {
        let mut get = |atom| if of_class { atoms.get(atom) } else { atoms.by_row(atom) };
        let first = get(dimension.first)?;
        let Some(atom) = dimension.second else {
            let count = first.values.len();
            return Ok(Keys { first: first.values, second: None, numbers: first.numbers, count });
        };
        let second = get(atom)?;
        let place = (dimension.first, atom);
        let pairs = match atoms.pairs.get(&place).filter(|_| !of_class) {
            Some(known) => known.clone(),
            None => Pairs::new(&first.numbers, &second.numbers),
        };
        if !of_class {
            atoms.pairs.insert(place, pairs.clone());
        }
        let count = pairs.pairs.len();
        let second = Some((second.values, pairs.pairs));
        Ok(Keys { first: first.values, second, numbers: pairs.numbers, count })
    }

    pub(super) fn attributes(&self, key: u32) -> Attributes {
        let mut attributes = Attributes::default();
        let Some((second, pairs)) = &self.second else {
            attributes.take(&self.first, key, 0);
            return attributes;
        };
        let pair = pairs[key as usize];
        let is_alike = std::mem::discriminant(&self.first) == std::mem::discriminant(second)
            || matches!((&self.first, second), (Values::Addresses(_), Values::Networks(..)))
            || matches!((&self.first, second), (Values::Networks(..), Values::Addresses(_)));
        attributes.take(&self.first, (pair >> 32) as u32, 0);
        attributes.take(second, pair as u32, usize::from(is_alike));
        attributes
    }
}

/// The attributes that the dimensions need, each numbered once.
pub(super) struct Atoms<'a> {
    flows: &'a Flows<'a>,
    config: &'a AggregateConfig,
    classes: &'a [ClassKey],
    class_of_row: &'a [u32],
    known: HashMap<Atom, Numbered>,
    /// Of two attributes of rows, as they were asked for.
    pairs: HashMap<(Atom, Atom), Pairs>,
    hosts: Hosts,
    /// Of each row, source and destination.
    ends: Option<[Rc<Vec<u32>>; 2]>,
}

impl<'a> Atoms<'a> {
    pub(super) fn new(
        flows: &'a Flows<'a>,
        config: &'a AggregateConfig,
        classes: &'a [ClassKey],
        class_of_row: &'a [u32],
    ) -> Atoms<'a> {
        Atoms {
            flows,
            config,
            classes,
            class_of_row,
            known: HashMap::new(),
            pairs: HashMap::new(),
            hosts: Hosts::new(),
            ends: None,
        }
    }

    /// The attribute of every row; one of classes is that of the row's class.
    pub(super) fn by_row(&mut self, atom: Atom) -> Result<Numbered, ArrowError> {
        let mut found = self.get(atom)?;
        if atom.is_of_class() {
            let numbers = self.class_of_row.iter().map(|class| found.numbers[*class as usize]);
            found.numbers = Rc::new(numbers.collect());
        }
        Ok(found)
    }

    /// The pairs of two attributes that were numbered for all rows before.
    pub(super) fn known_pairs(&self, first: Atom, second: Atom) -> Option<&Pairs> {
        self.pairs.get(&(first, second))
    }

    fn get(&mut self, atom: Atom) -> Result<Numbered, ArrowError> {
        if let Some(known) = self.known.get(&atom) {
            return Ok(known.clone());
        }
        let numbered = if atom.is_of_class() { self.of_classes(atom) } else { self.of_rows(atom)? };
        self.known.insert(atom, numbered.clone());
        Ok(numbered)
    }

    fn of_rows(&mut self, atom: Atom) -> Result<Numbered, ArrowError> {
        // of hosts: both ends have the same values, so they are numbered together
        let (atoms, ends) = match atom {
            Atom::SrcAddr | Atom::DstAddr => ([Atom::SrcAddr, Atom::DstAddr], self.addresses()?),
            Atom::SrcNet | Atom::DstNet => ([Atom::SrcNet, Atom::DstNet], self.networks()?),
            Atom::SrcCountry | Atom::DstCountry => ([Atom::SrcCountry, Atom::DstCountry], self.countries()?),
            Atom::SrcPort => return self.ports("src_port"),
            Atom::DstPort => return self.ports("dst_port"),
            Atom::VrfIn => return self.vrfs("vrf_in"),
            Atom::VrfOut => return self.vrfs("vrf_out"),
            _ => return self.texts("app_name"),
        };
        self.known.extend(atoms.into_iter().zip(ends));
        Ok(self.known[&atom].clone())
    }

    /// The hosts of each row at both ends, as places in [`Hosts::values`].
    fn ends(&mut self) -> Result<[Rc<Vec<u32>>; 2], ArrowError> {
        if let Some(known) = &self.ends {
            return Ok(known.clone());
        }
        let mut numbers = |column| self.hosts.numbers(self.flows, column).map(Rc::new);
        let ends = [numbers("src_addr")?, numbers("dst_addr")?];
        self.ends = Some(ends.clone());
        Ok(ends)
    }

    fn addresses(&mut self) -> Result<[Numbered; 2], ArrowError> {
        let ends = self.ends()?;
        let values = Values::Addresses(Rc::new(self.hosts.values()));
        Ok(ends.map(|numbers| Numbered { numbers, values: values.clone() }))
    }

    /// Masks each host once.
    fn networks(&mut self) -> Result<[Numbered; 2], ArrowError> {
        let ends = self.ends()?;
        let (v4, v6) = (self.config.prefix_v4, self.config.prefix_v6);
        let mask = |length: u32| if length == 0 { 0 } else { u128::MAX << (128 - length.min(128)) };
        let (mask_v4, mask_v6) = (mask(96 + u32::from(v4)), mask(u32::from(v6)));
        let mut networks = Hosts::new();
        let masked = |address: u128| address & if is_v4(address) { mask_v4 } else { mask_v6 };
        let hosts = self.hosts.values();
        let of_host: Vec<u32> = hosts.iter().map(|host| networks.number(host.map(masked))).collect();
        Ok(by_host(&ends, &of_host, &Values::Networks(Rc::new(networks.values()), v4, v6)))
    }

    /// Looks each host up once.
    fn countries(&mut self) -> Result<[Numbered; 2], ArrowError> {
        let ends = self.ends()?;
        let ranges = self.config.countries.current().unwrap_or_else(Ranges::none);
        let number = |host: &Option<u128>| host.map_or(0, |host| u32::from(ranges.number(host)));
        let of_host: Vec<u32> = self.hosts.values().iter().map(number).collect();
        Ok(by_host(&ends, &of_host, &Values::Countries(ranges)))
    }

    fn ports(&self, column: &str) -> Result<Numbered, ArrowError> {
        let (ports, protocols) = (self.flows.numbers(column)?, self.flows.numbers("ip_protocol")?);
        let mut interner = Interner::new();
        let keys =
            ports.iter().zip(&protocols).map(|(port, protocol)| packed(*port) | small(*protocol) << 33);
        let numbers = Rc::new(interner.numbers(keys));
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

/// What is known of each host, at both ends of each row.
fn by_host(ends: &[Rc<Vec<u32>>; 2], of_host: &[u32], values: &Values) -> [Numbered; 2] {
    ends.each_ref().map(|hosts| {
        let numbers = hosts.iter().map(|host| of_host[*host as usize]).collect();
        Numbered { numbers: Rc::new(numbers), values: values.clone() }
    })
}

/// Values of few kinds with their numbers.
fn numbered(values: impl Iterator<Item = i64>) -> (Rc<Vec<u32>>, Vec<i64>) {
    let mut interner = Interner::new();
    let numbers = values.map(|value| interner.number(value.cast_unsigned())).collect();
    (Rc::new(numbers), interner.keys().iter().map(|key| key.cast_signed()).collect())
}
