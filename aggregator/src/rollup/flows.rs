//! Sums by exporter, interfaces, protocol, class and ASs, minute by minute; and the walk that feeds the top talkers.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;

use super::columns::{Addresses, Flows, NONE};
use super::config::AggregateConfig;
use super::intern::Interner;
use super::sweep::{Share, Sweep};
use super::talkers::Talkers;
use super::{Basis, Kind, Resolution, Rollup, Sums, addresses, longs, measures, shorts, windows};

/// Rows of one computation beyond which the older minutes are one: flows of a flood that claim to have lasted for hours
/// take no more memory than this.
const MAX_ROWS: usize = 500_000;

/// Shares that are added up at once.
const AT_ONCE: usize = 1_024;

/// A number of at most 32 bits, or none, in 33.
pub(super) fn packed(number: i64) -> u64 {
    if number == NONE { 0 } else { number.clamp(0, i64::from(u32::MAX)).cast_unsigned() + 1 }
}

/// What [`packed`] was given.
pub(super) fn unpacked(packed: u64) -> i64 {
    if packed == 0 { NONE } else { (packed & 0x1_ffff_ffff).cast_signed() - 1 }
}

/// Numbers for addresses; 0 is NULL.
pub(super) struct Hosts {
    interner: Interner<u128>,
    last: (Option<u128>, u32),
}

impl Hosts {
    pub(super) fn new() -> Hosts {
        Hosts { interner: Interner::new(), last: (None, 0) }
    }

    #[inline]
    pub(super) fn number(&mut self, address: Option<u128>) -> u32 {
        if address == self.last.0 {
            return self.last.1;
        }
        let number = address.map_or(0, |address| self.interner.number(address) + 1);
        self.last = (address, number);
        number
    }

    pub(super) fn numbers(&mut self, flows: &Flows<'_>, column: &str) -> Result<Vec<u32>, ArrowError> {
        let mut numbers = Vec::with_capacity(flows.rows);
        flows.addresses(column, |batch| match batch {
            Addresses::None(rows) => numbers.resize(numbers.len() + rows, 0),
            Addresses::All(values) => {
                let from = numbers.len();
                let values = values.iter().map(|value| u128::from_be_bytes(*value));
                self.interner.append_numbers(values, &mut numbers);
                numbers[from..].iter_mut().for_each(|number| *number += 1);
            }
            Addresses::Some(values, nulls) => {
                let values = values.iter().zip(nulls);
                let value = |(value, valid): (&[u8; 16], bool)| valid.then(|| u128::from_be_bytes(*value));
                numbers.extend(values.map(value).map(|address| self.number(address)));
            }
        })?;
        Ok(numbers)
    }

    /// The addresses in the order of their numbers.
    pub(super) fn values(&self) -> Vec<Option<u128>> {
        std::iter::once(None).chain(self.interner.keys().iter().copied().map(Some)).collect()
    }
}

/// Numbers for the exporter and pair of interfaces of each row.
pub(super) struct Links {
    exporters: Vec<Option<u128>>,
    links: Interner<u128>,
    pub(super) of_row: Vec<u32>,
}

impl Links {
    pub(super) fn new(flows: &Flows<'_>) -> Result<Links, ArrowError> {
        let mut hosts = Hosts::new();
        let exporters = hosts.numbers(flows, "exporter_addr")?;
        let (in_if, out_if) = (flows.numbers("in_if")?, flows.numbers("out_if")?);
        let mut links = Interner::new();
        let keys = exporters.iter().zip(in_if.iter().zip(&out_if)).map(|(exporter, (in_if, out_if))| {
            let interfaces = u128::from(packed(*in_if)) << 33 | u128::from(packed(*out_if));
            u128::from(*exporter) << 66 | interfaces
        });
        let of_row = links.numbers(keys);
        Ok(Links { exporters: hosts.values(), links, of_row })
    }

    /// Exporter, input and output interface.
    pub(super) fn get(&self, number: u32) -> (Option<u128>, i64, i64) {
        let key = self.links.keys()[number as usize];
        let exporter = self.exporters[(key >> 66) as usize];
        (exporter, unpacked((key >> 33) as u64 & 0x1_ffff_ffff), unpacked(key as u64 & 0x1_ffff_ffff))
    }
}

/// What `flows_1m` tells flows apart by.
#[derive(Clone, Copy)]
pub(super) struct ClassKey {
    pub(super) exporter: Option<u128>,
    pub(super) in_if: i64,
    pub(super) out_if: i64,
    pub(super) protocol: i64,
    pub(super) dscp: i64,
    pub(super) src_as: i64,
    pub(super) dst_as: i64,
}

/// A ToS byte's class, [`NONE`] for NULL.
pub(super) fn dscp(tos: i64) -> i64 {
    if tos == NONE { NONE } else { tos >> 2 & 0x3f }
}

/// A byte or none in 9 bits.
pub(super) fn small(number: i64) -> u64 {
    if number == NONE { 0 } else { number.clamp(0, 255).cast_unsigned() + 1 }
}

fn classes(flows: &Flows<'_>, links: &Links) -> Result<(Vec<ClassKey>, Vec<u32>), ArrowError> {
    let (protocol, tos) = (flows.numbers("ip_protocol")?, flows.numbers("tos")?);
    let (src_as, dst_as) = (flows.numbers("src_as")?, flows.numbers("dst_as")?);
    let mut interner = Interner::new();
    let key = |row: usize| {
        let class = small(protocol[row]) | small(dscp(tos[row])) << 9;
        let lower = u64::from(links.of_row[row]) | class << 32;
        let systems = u128::from(packed(src_as[row])) << 50 | u128::from(packed(dst_as[row])) << 83;
        u128::from(lower) | systems
    };
    let of_row = interner.numbers((0..flows.rows).map(key));
    let keys = interner.keys().iter().map(|key| {
        let (exporter, in_if, out_if) = links.get(*key as u32);
        ClassKey {
            exporter,
            in_if,
            out_if,
            protocol: unpacked((key >> 32) as u64 & 0x1ff),
            dscp: unpacked((key >> 41) as u64 & 0x1ff),
            src_as: unpacked((key >> 50) as u64 & 0x1_ffff_ffff),
            dst_as: unpacked((key >> 83) as u64 & 0x1_ffff_ffff),
        }
    });
    Ok((keys.collect(), of_row))
}

/// Sums by number, of one window at a time.
pub(super) struct Cells {
    /// Place + 1 in `sums` of each number.
    place: Vec<u32>,
    pub(super) numbers: Vec<u32>,
    pub(super) sums: Vec<Sums>,
}

impl Cells {
    pub(super) fn new(numbers: usize) -> Cells {
        Cells { place: vec![0; numbers], numbers: Vec::new(), sums: Vec::new() }
    }

    #[inline]
    pub(super) fn add(&mut self, number: u32, sums: &Sums) {
        match self.place[number as usize] {
            0 => {
                self.numbers.push(number);
                self.sums.push(*sums);
                self.place[number as usize] = self.sums.len() as u32;
            }
            place => self.sums[place as usize - 1].add(sums),
        }
    }

    pub(super) fn clear(&mut self) {
        for number in self.numbers.drain(..) {
            self.place[number as usize] = 0;
        }
        self.sums.clear();
    }
}

/// Sums by number in windows of one length, which come newest first.
pub(super) struct Rows {
    window_us: i64,
    current: i64,
    cells: Cells,
    pub(super) starts: Vec<i64>,
    pub(super) numbers: Vec<u32>,
    pub(super) sums: Vec<Sums>,
}

impl Rows {
    pub(super) fn new(resolution: Resolution, numbers: usize) -> Rows {
        Rows {
            window_us: resolution.micros(),
            current: 0,
            cells: Cells::new(numbers),
            starts: Vec::new(),
            numbers: Vec::new(),
            sums: Vec::new(),
        }
    }

    /// Goes on to the window in which `time` is.
    pub(super) fn go(&mut self, time: i64) {
        let window = time / self.window_us * self.window_us;
        if window != self.current {
            self.flush();
            self.current = window;
        }
    }

    #[inline]
    pub(super) fn add(&mut self, number: u32, sums: &Sums) {
        self.cells.add(number, sums);
    }

    pub(super) fn flush(&mut self) {
        self.starts.resize(self.numbers.len() + self.cells.numbers.len(), self.current);
        self.numbers.extend_from_slice(&self.cells.numbers);
        self.sums.extend_from_slice(&self.cells.sums);
        self.cells.clear();
    }
}

/// The partial rows of `flows_1m`, `flows_1h` and `flows_1d`, of `top_talkers`, and of `distinct_1m`.
pub(super) fn compute(
    basis: &Basis<'_>,
    config: &AggregateConfig,
) -> Result<(Vec<RecordBatch>, RecordBatch, RecordBatch), ArrowError> {
    let Basis { flows, volumes, links } = basis;
    let (keys, of_row) = classes(flows, links)?;
    let mut talkers = Talkers::new(flows, config, &keys, &of_row)?;
    let mut sweep = Sweep::new(volumes, Resolution::Minute.micros());
    let resolutions = [Resolution::Minute, Resolution::Hour, Resolution::Day];
    let [mut minutes, mut hours, mut days] = resolutions.map(|resolution| Rows::new(resolution, keys.len()));
    let (mut shares, mut sizes, mut added): (Vec<Share>, Vec<f64>, Vec<Sums>) = Default::default();
    loop {
        let next =
            if minutes.numbers.len() < MAX_ROWS { sweep.next(&mut shares) } else { sweep.rest(&mut shares) };
        let Some(window) = next else { break };
        minutes.go(window);
        hours.go(window);
        days.go(window);
        sizes.clear();
        sizes.extend(shares.iter().map(|share| volumes.est_bytes(share)));
        talkers.window(window, &shares, &sizes);
        // some at a time: what they add is in the cache for all who add it up
        for shares in shares.chunks(AT_ONCE) {
            added.clear();
            added.extend(shares.iter().map(|share| volumes.sums(share)));
            for (share, added) in shares.iter().zip(&added) {
                minutes.add(of_row[share.row as usize], added);
            }
            talkers.add(shares, &added);
        }
        talkers.classes(window, &minutes.cells);
        for (class, sums) in minutes.cells.numbers.iter().zip(&minutes.cells.sums) {
            hours.add(*class, sums);
            days.add(*class, sums);
        }
    }
    let parts = [minutes, hours, days].into_iter().zip(resolutions);
    let parts = parts.map(|(rows, resolution)| to_batch(rows, resolution, &keys));
    let (talkers, distinct) = talkers.finish()?;
    Ok((parts.collect::<Result<_, _>>()?, talkers, distinct))
}

fn to_batch(mut rows: Rows, resolution: Resolution, keys: &[ClassKey]) -> Result<RecordBatch, ArrowError> {
    rows.flush();
    let keys: Vec<&ClassKey> = rows.numbers.iter().map(|class| &keys[*class as usize]).collect();
    let mut columns = Vec::from(windows(&rows.starts, resolution));
    columns.extend([
        addresses(keys.iter().map(|key| key.exporter))?,
        longs(keys.iter().map(|key| key.in_if)),
        longs(keys.iter().map(|key| key.out_if)),
        shorts(keys.iter().map(|key| key.protocol)),
        shorts(keys.iter().map(|key| key.dscp)),
        longs(keys.iter().map(|key| key.src_as)),
        longs(keys.iter().map(|key| key.dst_as)),
    ]);
    columns.extend(measures(&rows.sums));
    RecordBatch::try_new(Rollup { kind: Kind::Flows, resolution }.schema(), columns)
}
