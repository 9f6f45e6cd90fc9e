//! Classes of service: by exporter, interface, direction and class, in windows of ten seconds.
//!
//! Each flow counts once as `in` at its input interface and once as `out` at its output interface; an interface that is
//! not known keeps its row, so that each direction sums to the whole. What a share adds is first added up by everything
//! that matters at once (interfaces, ToS, packet size, whether it was dropped), and then goes to the two directions.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::error::ArrowError;

use super::columns::{Flows, NONE};
use super::config::AggregateConfig;
use super::flows::{self, Cells, Hosts, Links, dscp, packed, small, unpacked};
use super::intern::Interner;
use super::sweep::{Share, Sweep, Volumes};
use super::{Basis, Kind, Resolution, Rollup, Sums, addresses, longs, measures, shorts, windows};

/// Rows of one computation beyond which the older windows are one.
const MAX_ROWS: usize = 500_000;

/// What is counted beside the sums. All are additive; those from [`MEASURED`] on are NULL where no row has them.
pub(super) const MEASURES: [&str; 37] = [
    "packets_to_64",
    "packets_to_128",
    "packets_to_256",
    "packets_to_512",
    "packets_to_1024",
    "packets_to_1518",
    "packets_larger",
    "ect_packets",
    "ce_packets",
    "not_forwarded_bytes",
    "not_forwarded_packets",
    "dropped_bytes",
    "dropped_packets",
    "lost_packets",
    "loss_measured_packets",
    "retransmits",
    "rtt_flows",
    "rtt_us",
    "rtt_to_1ms",
    "rtt_to_2ms",
    "rtt_to_5ms",
    "rtt_to_10ms",
    "rtt_to_20ms",
    "rtt_to_50ms",
    "rtt_to_100ms",
    "rtt_to_200ms",
    "rtt_larger",
    "jitter_flows",
    "jitter_us",
    "jitter_to_1ms",
    "jitter_to_2ms",
    "jitter_to_5ms",
    "jitter_to_10ms",
    "jitter_to_20ms",
    "jitter_to_50ms",
    "jitter_to_100ms",
    "jitter_larger",
];

const ECT: usize = 7;
const CE: usize = 8;
const NOT_FORWARDED: usize = 9;
/// From here on they are of few exporters, and counted where a flow ended.
const MEASURED: usize = 11;

const SIZES: [i64; 6] = [64, 128, 256, 512, 1024, 1518];
const RTTS_US: [i64; 8] = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000];
const JITTERS_US: [i64; 7] = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];

type Counts = [i64; MEASURES.len()];

/// The first bin that holds `value`.
fn bin(edges: &[i64], value: i64) -> usize {
    edges.iter().position(|edge| value <= *edge).unwrap_or(edges.len())
}

/// What exporters measure themselves; counted where the flow ends. Absent columns are empty.
struct Measured {
    columns: [Vec<i64>; 6],
    packets: Vec<i64>,
}

const MEASURED_COLUMNS: [&str; 6] =
    ["dropped_bytes", "dropped_packets", "lost_packets", "retransmits", "rtt_us", "jitter_us"];

impl Measured {
    fn new(flows: &Flows<'_>) -> Result<Measured, ArrowError> {
        let mut columns = [const { Vec::new() }; 6];
        for (column, name) in columns.iter_mut().zip(MEASURED_COLUMNS) {
            if flows.has(name) {
                *column = flows.numbers(name)?;
            }
        }
        let packets = if columns[2].is_empty() { Vec::new() } else { flows.numbers("packets")? };
        Ok(Measured { columns, packets })
    }

    fn is_empty(&self) -> bool {
        self.columns.iter().all(Vec::is_empty)
    }

    /// True where a column was there that feeds the measure.
    fn has(&self, measure: usize) -> bool {
        let column = match measure {
            11 => 0,
            12 => 1,
            13 | 14 => 2,
            15 => 3,
            16..27 => 4,
            _ => 5,
        };
        !self.columns[column].is_empty()
    }

    /// What the row adds; None where it has nothing of the kind.
    fn counts(&self, row: usize) -> Option<Counts> {
        let get = |column: usize| self.columns[column].get(row).copied().filter(|value| *value >= 0);
        let all: [Option<i64>; 6] = std::array::from_fn(get);
        if all.iter().all(Option::is_none) {
            return None;
        }
        let mut counts = [0; MEASURES.len()];
        counts[11] = all[0].unwrap_or(0);
        counts[12] = all[1].unwrap_or(0);
        if let Some(lost) = all[2] {
            // a share of loss is of the packets that should have come
            (counts[13], counts[14]) = (lost, lost.saturating_add(self.packets[row].max(0)));
        }
        counts[15] = all[3].unwrap_or(0);
        if let Some(rtt) = all[4] {
            (counts[16], counts[17]) = (1, rtt);
            counts[18 + bin(&RTTS_US, rtt)] = 1;
        }
        if let Some(jitter) = all[5] {
            (counts[27], counts[28]) = (1, jitter);
            counts[29 + bin(&JITTERS_US, jitter)] = 1;
        }
        Some(counts)
    }
}

/// What shares are added up by at first.
struct Classes {
    keys: Vec<u64>,
    of_row: Vec<u32>,
    /// The groups of each class: as `in` and as `out`.
    groups: Vec<[u32; 2]>,
    /// Exporter, direction, interface and DSCP of each group.
    group_keys: Vec<(Option<u128>, bool, i64, i64)>,
}

impl Classes {
    fn new(flows: &Flows<'_>, volumes: &Volumes, links: &Links) -> Result<Classes, ArrowError> {
        let tos = flows.numbers("tos")?;
        let status =
            if flows.has("forwarding_status") { flows.numbers("forwarding_status")? } else { Vec::new() };
        let mut interner = Interner::new();
        let key = |(row, (link, tos)): (usize, (&u32, &i64))| {
            let size = volumes.packet_size(row).map_or(0, |size| bin(&SIZES, size)) as u64;
            // RFC 7270 §4.12: the upper two bits 10 say dropped
            let dropped = status.get(row).is_some_and(|status| *status != NONE && status >> 6 == 2);
            u64::from(*link) | small(*tos) << 32 | size << 41 | u64::from(dropped) << 44
        };
        let of_row = interner.numbers(links.of_row.iter().zip(&tos).enumerate().map(key));
        let keys = interner.keys().to_vec();
        let mut exporters = Hosts::new();
        let mut group_interner: Interner<u128> = Interner::new();
        let groups = keys.iter().map(|key| {
            let (exporter, in_if, out_if) = links.get(*key as u32);
            let class = u128::from(exporters.number(exporter)) << 9 | u128::from(small(class_dscp(*key)));
            [(0, in_if), (1, out_if)].map(|(out, interface)| {
                group_interner.number((class << 1 | out) << 33 | u128::from(packed(interface)))
            })
        });
        let groups = groups.collect();
        let exporters = exporters.values();
        let group_keys = group_interner.keys().iter().map(|key| {
            let interface = unpacked(*key as u64 & 0x1_ffff_ffff);
            let dscp = unpacked((key >> 34) as u64 & 0x1ff);
            (exporters[(key >> 43) as usize], key >> 33 & 1 == 1, interface, dscp)
        });
        Ok(Classes { group_keys: group_keys.collect(), keys, of_row, groups })
    }
}

fn class_tos(key: u64) -> i64 {
    unpacked(key >> 32 & 0x1ff)
}

fn class_dscp(key: u64) -> i64 {
    dscp(class_tos(key))
}

/// What a class's sums count as.
fn count(key: u64, sums: &Sums, counts: &mut Counts) {
    let packets = sums.packets();
    counts[(key >> 41 & 7) as usize] += packets;
    let tos = class_tos(key);
    if tos != NONE && tos & 3 != 0 {
        counts[ECT] += packets;
        counts[CE] += if tos & 3 == 3 { packets } else { 0 };
    }
    if key >> 44 & 1 == 1 {
        counts[NOT_FORWARDED] = counts[NOT_FORWARDED].saturating_add(sums.bytes());
        counts[NOT_FORWARDED + 1] += packets;
    }
}

/// The rows that come of it.
#[derive(Default)]
struct Rows {
    starts: Vec<i64>,
    groups: Vec<u32>,
    sums: Vec<Sums>,
    counts: Vec<Counts>,
}

impl Rows {
    /// The row of `group` in the window that began at row `from`.
    fn at(&mut self, places: &mut [u32], from: usize, window: i64, group: u32) -> usize {
        let place = places[group as usize] as usize;
        if place >= from && self.groups.get(place).is_some_and(|found| *found == group) {
            return place;
        }
        let place = self.groups.len();
        places[group as usize] = place as u32;
        self.starts.push(window);
        self.groups.push(group);
        self.sums.push(Sums::default());
        self.counts.push([0; MEASURES.len()]);
        place
    }

    fn into_batch(
        self,
        classes: &Classes,
        measured: &Measured,
        config: &AggregateConfig,
    ) -> Result<RecordBatch, ArrowError> {
        let names: Vec<String> = (0..64).map(|dscp| config.class(dscp)).collect();
        let keys: Vec<_> = self.groups.iter().map(|group| &classes.group_keys[*group as usize]).collect();
        let name = |dscp: i64| usize::try_from(dscp).ok().and_then(|dscp| names.get(dscp));
        let mut columns = Vec::from(windows(&self.starts, Resolution::TenSeconds));
        columns.extend([
            addresses(keys.iter().map(|key| key.0))?,
            Arc::new(StringArray::from_iter_values(keys.iter().map(|key| if key.1 { "out" } else { "in" }))),
            longs(keys.iter().map(|key| key.2)),
            shorts(keys.iter().map(|key| key.3)),
            Arc::new(StringArray::from_iter(keys.iter().map(|key| name(key.3)))) as ArrayRef,
        ]);
        columns.extend(measures(&self.sums));
        for measure in 0..MEASURES.len() {
            let known = measure < MEASURED || measured.has(measure);
            let values = self.counts.iter().map(|counts| known.then_some(counts[measure]));
            columns.push(Arc::new(Int64Array::from_iter(values)));
        }
        let rollup = Rollup { kind: Kind::Qos, resolution: Resolution::TenSeconds };
        RecordBatch::try_new(rollup.schema(), columns)
    }
}

/// Re-marking: the class before and after, by the hour. Only of flows that tell the class after.
struct Remarking {
    keys: Vec<u64>,
    /// [`u32::MAX`] where the flow does not tell.
    of_row: Vec<u32>,
    rows: flows::Rows,
}

impl Remarking {
    fn new(flows: &Flows<'_>, links: &Links) -> Result<Option<Remarking>, ArrowError> {
        if !flows.has("post_tos") {
            return Ok(None);
        }
        let (tos, post) = (flows.numbers("tos")?, flows.numbers("post_tos")?);
        let mut interner = Interner::new();
        let of_row = (0..flows.rows).map(|row| match post[row] {
            NONE => u32::MAX,
            post => {
                let classes = small(dscp(tos[row])) << 32 | small(dscp(post)) << 41;
                interner.number(u64::from(links.of_row[row]) | classes)
            }
        });
        let of_row = of_row.collect();
        let rows = flows::Rows::new(Resolution::Hour, interner.len());
        Ok(Some(Remarking { keys: interner.keys().to_vec(), of_row, rows }))
    }
}

fn remarking(found: Option<Remarking>, links: &Links) -> Result<RecordBatch, ArrowError> {
    let rollup = Rollup { kind: Kind::Remarking, resolution: Resolution::Hour };
    let Some(mut found) = found else { return Ok(RecordBatch::new_empty(rollup.schema())) };
    found.rows.flush();
    let keys: Vec<u64> = found.rows.numbers.iter().map(|key| found.keys[*key as usize]).collect();
    let link = |key: &u64| links.get(*key as u32);
    let mut columns = Vec::from(windows(&found.rows.starts, Resolution::Hour));
    columns.extend([
        addresses(keys.iter().map(|key| link(key).0))?,
        longs(keys.iter().map(|key| link(key).1)),
        longs(keys.iter().map(|key| link(key).2)),
        shorts(keys.iter().map(|key| unpacked(key >> 32 & 0x1ff))),
        shorts(keys.iter().map(|key| unpacked(key >> 41 & 0x1ff))),
    ]);
    columns.extend(measures(&found.rows.sums));
    RecordBatch::try_new(rollup.schema(), columns)
}

/// The partial rows of `qos_10s` and of `remarking_1h`.
pub(super) fn compute(
    basis: &Basis<'_>,
    config: &AggregateConfig,
) -> Result<(RecordBatch, RecordBatch), ArrowError> {
    let Basis { flows, volumes, links } = basis;
    let classes = Classes::new(flows, volumes, links)?;
    let measured = Measured::new(flows)?;
    let mut remarked = Remarking::new(flows, links)?;
    let mut sweep = Sweep::new(volumes, Resolution::TenSeconds.micros());
    let mut cells = Cells::new(classes.keys.len());
    let mut places = vec![0; classes.group_keys.len()];
    let mut rows = Rows::default();
    // a window's flows with measures of their own, and those that tell how they were re-marked
    let (mut ended, mut marked): (Vec<u32>, Vec<Share>) = (Vec::new(), Vec::new());
    loop {
        let take = |share: Share| {
            cells.add(classes.of_row[share.row as usize], &volumes.sums(&share));
            if share.ended && !measured.is_empty() {
                ended.push(share.row);
            }
            if remarked.is_some() {
                marked.push(share);
            }
        };
        let next = if rows.groups.len() < MAX_ROWS { sweep.next_with(take) } else { sweep.rest_with(take) };
        let Some(window) = next else { break };
        let from = rows.groups.len();
        for (class, sums) in cells.numbers.iter().zip(&cells.sums) {
            for group in classes.groups[*class as usize] {
                let at = rows.at(&mut places, from, window, group);
                rows.sums[at].add(sums);
                count(classes.keys[*class as usize], sums, &mut rows.counts[at]);
            }
        }
        cells.clear();
        for row in ended.drain(..) {
            let Some(counts) = measured.counts(row as usize) else { continue };
            for group in classes.groups[classes.of_row[row as usize] as usize] {
                let at = rows.at(&mut places, from, window, group);
                let into = rows.counts[at].iter_mut().zip(counts);
                into.for_each(|(into, count)| *into = into.saturating_add(count));
            }
        }
        if let Some(remarked) = &mut remarked {
            remarked.rows.go(window);
            for share in &marked {
                let key = remarked.of_row[share.row as usize];
                if key != u32::MAX {
                    remarked.rows.add(key, &volumes.sums(share));
                }
            }
            marked.clear();
        }
    }
    Ok((rows.into_batch(&classes, &measured, config)?, remarking(remarked, links)?))
}
