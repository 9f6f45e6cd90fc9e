//! Bytes and packets over the windows in which a flow lasted.
//!
//! The windows come newest first, each with the shares of all flows that have one in it. Of a flow only a few words are
//! kept between two windows, so a flow that claims to have lasted a day takes no more memory than any other, and the work
//! is at most [`STEPS`] shares a flow: where the windows are finer than that, a flow is cut into longer steps, and each
//! step is in one of its windows. Which one differs from flow to flow, so that many of them make no peaks.

use std::collections::BTreeMap;

use arrow::error::ArrowError;

use super::columns::{Flows, NONE};
use super::config::Attribute;

/// A flow is cut into steps no finer than this part of it.
pub(super) const STEPS: i64 = 360;

/// A flow that says it lasted longer than this is spread over the last day only.
const LONGEST_US: i64 = 86_400_000_000;

/// The steps that flows are cut into where the windows are too fine.
const LONGER_STEPS_US: [i64; 2] = [60_000_000, 3_600_000_000];

/// Times are kept between 1970 and this: no arithmetic on them overflows.
const LAST_TIME_US: i64 = i64::MAX / 4;

/// When, how much, and at what rate: what every rollup reads.
pub(super) struct Volumes {
    start: Vec<i64>,
    end: Vec<i64>,
    bytes: Vec<i64>,
    packets: Vec<i64>,
    /// 1 where it is unknown.
    rate: Vec<f64>,
    unknown: Vec<bool>,
    /// Estimated variance of a byte of the row, see [`super::Sums`].
    byte_variance: Vec<f64>,
}

impl Volumes {
    pub(super) fn new(flows: &Flows<'_>, attribute: Attribute) -> Result<Volumes, ArrowError> {
        let received = flows.numbers("received_at")?;
        let (start, end) = match attribute {
            Attribute::Received => (vec![NONE; flows.rows], vec![NONE; flows.rows]),
            Attribute::End => (vec![NONE; flows.rows], flows.numbers("end_time")?),
            Attribute::Start | Attribute::Spread => {
                (flows.numbers("start_time")?, flows.numbers("end_time")?)
            }
        };
        let sane = |time: i64| time.clamp(0, LAST_TIME_US);
        let known = |time: i64, other: i64| if time == NONE { other } else { time };
        let mut ends = Vec::with_capacity(flows.rows);
        let mut starts = Vec::with_capacity(flows.rows);
        for ((start, end), received) in start.into_iter().zip(end).zip(received) {
            let end = sane(known(end, received));
            let start = sane(known(start, end)).min(end);
            starts.push(start.max(end - LONGEST_US));
            ends.push(if attribute == Attribute::Start { start } else { end });
        }
        if attribute == Attribute::Start {
            starts.clone_from(&ends);
        }
        let count = |name: &str| -> Result<Vec<i64>, ArrowError> {
            // NULL counts nothing
            Ok(flows.numbers(name)?.into_iter().map(|count| count.max(0)).collect())
        };
        let (bytes, packets) = (count("bytes")?, count("packets")?);
        let rates = flows.doubles("sampling_rate")?;
        let unknown: Vec<bool> = rates.iter().map(|rate| rate.is_nan()).collect();
        let rate: Vec<f64> = rates.into_iter().map(|rate| if rate.is_nan() { 1.0 } else { rate }).collect();
        let mean_size = |row: usize| bytes[row] as f64 / packets[row].max(1) as f64;
        let byte_variance =
            (0..flows.rows).map(|row| rate[row] * (rate[row] - 1.0).max(0.0) * mean_size(row));
        Ok(Volumes {
            byte_variance: byte_variance.collect(),
            start: starts,
            end: ends,
            bytes,
            packets,
            rate,
            unknown,
        })
    }

    /// The mean size of the row's packets; None where it has none.
    pub(super) fn packet_size(&self, row: usize) -> Option<i64> {
        self.bytes[row].checked_div(self.packets[row])
    }

    /// What a share adds to the sum that ranks.
    #[inline]
    pub(super) fn est_bytes(&self, share: &Share) -> f64 {
        share.bytes as f64 * self.rate[share.row as usize]
    }

    /// What a share adds to a sum.
    #[inline]
    pub(super) fn sums(&self, share: &Share) -> super::Sums {
        let row = share.row as usize;
        let rate = self.rate[row];
        let unknown = share.ended && self.unknown[row];
        super::Sums {
            counts: [i64::from(share.ended), share.bytes, share.packets, i64::from(unknown)],
            estimates: [
                self.est_bytes(share),
                share.packets as f64 * rate,
                share.bytes as f64 * self.byte_variance[row],
                0.0,
            ],
        }
    }
}

/// What a flow adds to a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) row: u32,
    /// The flow ended here: it counts once, in this window.
    pub(super) ended: bool,
    pub(super) bytes: i64,
    pub(super) packets: i64,
}

/// How many windows are found without looking for them.
const RECENT: usize = 64;

/// Flows by the number of the next window in which they have a share.
struct Agenda {
    lists: Vec<Vec<u32>>,
    /// The place in `lists` of each window, by its number.
    places: BTreeMap<i64, usize>,
    /// The same of the windows that were used last, by the lowest bits of their number.
    recent: [(i64, usize); RECENT],
}

impl Agenda {
    fn new() -> Agenda {
        Agenda { lists: Vec::new(), places: BTreeMap::new(), recent: [(-1, 0); RECENT] }
    }

    #[inline]
    fn push(&mut self, window: i64, row: u32) {
        let recent = &mut self.recent[window as usize % RECENT];
        if recent.0 != window {
            let place = *self.places.entry(window).or_insert_with(|| {
                self.lists.push(Vec::new());
                self.lists.len() - 1
            });
            *recent = (window, place);
        }
        self.lists[recent.1].push(row);
    }

    fn pop(&mut self) -> Option<(i64, Vec<u32>)> {
        let (window, place) = self.places.pop_last()?;
        self.recent[window as usize % RECENT].0 = -1;
        Some((window, std::mem::take(&mut self.lists[place])))
    }
}

/// Of a flow: what is left of it, and the step that comes next.
#[derive(Clone, Copy)]
struct Cursor {
    bytes: i64,
    packets: i64,
    step_start: i64,
    step: i64,
    /// Its end, where it counts, was seen.
    begun: bool,
}

/// Goes through the windows of `window_us`.
pub(super) struct Sweep<'a> {
    volumes: &'a Volumes,
    window_us: i64,
    cursors: Vec<Cursor>,
    agenda: Agenda,
}

/// The length of the steps of a flow.
fn step(window_us: i64, duration: i64) -> i64 {
    if duration <= window_us * STEPS {
        return window_us;
    }
    let longer = LONGER_STEPS_US.into_iter().find(|step| *step > window_us && duration <= *step * STEPS);
    longer.unwrap_or(LONGER_STEPS_US[1])
}

impl<'a> Sweep<'a> {
    pub(super) fn new(volumes: &'a Volumes, window_us: i64) -> Sweep<'a> {
        let rows = volumes.end.len();
        let mut sweep =
            Sweep { volumes, window_us, cursors: Vec::with_capacity(rows), agenda: Agenda::new() };
        for row in 0..rows {
            let (start, end) = (volumes.start[row], volumes.end[row]);
            let step = step(window_us, end - start);
            let (bytes, packets) = (volumes.bytes[row], volumes.packets[row]);
            sweep.cursors.push(Cursor { bytes, packets, step_start: end / step * step, step, begun: false });
            // the rows of one computation are fewer than 2^32
            sweep.agenda.push(end / window_us, row as u32);
        }
        sweep
    }

    /// The window of a later step of the flow (the first is that of its end).
    #[inline]
    fn window(&self, row: usize, cursor: &Cursor) -> i64 {
        if cursor.step == self.window_us {
            return cursor.step_start;
        }
        let (start, windows) = (self.volumes.start[row], cursor.step / self.window_us);
        let phase =
            (start ^ self.volumes.bytes[row]).cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let window = cursor.step_start + phase.cast_signed() % windows * self.window_us;
        window.max(start / self.window_us * self.window_us)
    }

    /// The next window, older than all before, with its shares.
    pub(super) fn next(&mut self, shares: &mut Vec<Share>) -> Option<i64> {
        shares.clear();
        self.next_with(|share| shares.push(share))
    }

    /// The same; each share goes to `take`.
    #[inline]
    pub(super) fn next_with(&mut self, mut take: impl FnMut(Share)) -> Option<i64> {
        let (window, rows) = self.agenda.pop()?;
        for row in rows {
            let at = row as usize;
            let mut cursor = self.cursors[at];
            let (start, end) = (self.volumes.start[at], self.volumes.end[at]);
            let ended = !cursor.begun;
            // what had passed before the step is left for the older ones; the oldest takes what rounding left
            let (mut bytes, mut packets) = (0, 0);
            if cursor.step_start > start {
                let (elapsed, duration) = (cursor.step_start - start, end - start);
                bytes = passed(self.volumes.bytes[at], elapsed, duration);
                packets = passed(self.volumes.packets[at], elapsed, duration);
            }
            let share = Share { row, ended, bytes: cursor.bytes - bytes, packets: cursor.packets - packets };
            if ended || share.bytes > 0 || share.packets > 0 {
                take(share);
            }
            if bytes > 0 || packets > 0 {
                (cursor.bytes, cursor.packets, cursor.begun) = (bytes, packets, true);
                cursor.step_start -= cursor.step;
                self.cursors[at] = cursor;
                let next = self.window(at, &cursor);
                self.agenda.push(next / self.window_us, row);
            }
        }
        Some(window * self.window_us)
    }

    /// All that is left, as of one window.
    pub(super) fn rest(&mut self, shares: &mut Vec<Share>) -> Option<i64> {
        shares.clear();
        self.rest_with(|share| shares.push(share))
    }

    /// The same; each share goes to `take`.
    pub(super) fn rest_with(&mut self, mut take: impl FnMut(Share)) -> Option<i64> {
        let mut newest = None;
        while let Some((window, rows)) = self.agenda.pop() {
            newest.get_or_insert(window * self.window_us);
            for row in rows {
                let Cursor { bytes, packets, begun, .. } = self.cursors[row as usize];
                take(Share { row, ended: !begun, bytes, packets });
            }
        }
        newest
    }
}

/// The part of `total` that had passed after `elapsed` of `duration`.
#[inline]
fn passed(total: i64, elapsed: i64, duration: i64) -> i64 {
    let (total, elapsed, duration) =
        (total.cast_unsigned(), elapsed.cast_unsigned(), duration.cast_unsigned());
    let part = match total.checked_mul(elapsed) {
        Some(product) => product / duration,
        None => (u128::from(total) * u128::from(elapsed) / u128::from(duration)) as u64,
    };
    part.cast_signed()
}
