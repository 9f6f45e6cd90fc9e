//! The ledger: every datagram and every row is in exactly one place. Each test ends by asking for it.

use std::fmt;

use crate::generate::Sent;
use crate::metrics::Metrics;
use crate::wait::{LONG, until};
use crate::weir::Weir;

/// What weir's own accounts say, since its collector started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    pub kernel_drops: u64,
    pub datagrams_received: u64,
    pub datagrams_decoded: u64,
    pub datagrams_rejected: u64,
    pub rows_decoded: u64,
    pub rows_acknowledged: u64,
    pub rows_dropped: u64,
    pub rows_in_flight: u64,
    /// Of the table `flows`.
    pub flows_decoded: u64,
}

impl Ledger {
    /// Reads it from `/metrics`; an account that is missing is an error, not a zero.
    pub fn read(metrics: &Metrics) -> Result<Ledger, String> {
        let of = |name: &str, labels: &[(&str, &str)]| {
            metrics
                .sum(name, labels)
                .map(|value| value as u64)
                .ok_or_else(|| format!("/metrics has no {name}"))
        };
        Ok(Ledger {
            kernel_drops: of("weir_collector_kernel_drops_total", &[])?,
            datagrams_received: of("weir_ledger_datagrams_received_total", &[])?,
            datagrams_decoded: of("weir_ledger_datagrams_decoded_total", &[])?,
            datagrams_rejected: of("weir_ledger_datagrams_rejected_total", &[])?,
            rows_decoded: of("weir_ledger_rows_decoded_total", &[])?,
            rows_acknowledged: of("weir_ledger_rows_acknowledged_total", &[])?,
            rows_dropped: of("weir_ledger_rows_dropped_total", &[])?,
            rows_in_flight: of("weir_ledger_rows_in_flight", &[])?,
            flows_decoded: of("weir_ledger_rows_decoded_total", &[("table", "flows")])?,
        })
    }

    /// What does not add up; None where all does.
    pub fn mismatch(&self) -> Option<String> {
        let accounted = self.datagrams_decoded + self.datagrams_rejected;
        if self.datagrams_received != accounted {
            return Some(format!(
                "{} datagrams received, {accounted} accounted for",
                self.datagrams_received
            ));
        }
        let accounted = self.rows_acknowledged + self.rows_dropped + self.rows_in_flight;
        (self.rows_decoded != accounted)
            .then(|| format!("{} rows decoded, {accounted} accounted for", self.rows_decoded))
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// The tables whose rows the ledger counts.
const TABLES: [&str; 9] = [
    "flows",
    "nat_events",
    "discards",
    "interface_counters",
    "host_counters",
    "queue_counters",
    "options",
    "exporter_stats",
    "exporter_events",
];

/// Waits until the ledger balances with nothing in flight, and SQL has every row that the log acknowledged. For a weir
/// whose data directory was new when it started: its collector's counts are then those of the tables.
#[track_caller]
pub fn assert_settled(weir: &Weir) -> Ledger {
    settled(weir, 0)
}

/// The same where the tables held `before` rows when this collector started.
#[track_caller]
pub fn settled(weir: &Weir, before: u64) -> Ledger {
    let counts = TABLES.map(|table| format!("(select count(*) from {table})")).join(" + ");
    until(LONG, "a settled ledger", || {
        let ledger = Ledger::read(&weir.metrics())?;
        if let Some(mismatch) = ledger.mismatch() {
            return Err(format!("{mismatch}: {ledger}"));
        }
        if ledger.rows_in_flight != 0 {
            return Err(format!("rows are in flight: {ledger}"));
        }
        let rows = weir.try_sql(&format!("select {counts}"))?;
        let rows: u64 = rows[0][0].parse().map_err(|error| format!("{:?}: {error}", rows[0][0]))?;
        // Statistics rows keep coming: what SQL had when it was asked lies between two readings.
        let after = Ledger::read(&weir.metrics())?;
        let wanted = before + ledger.rows_acknowledged..=before + after.rows_acknowledged;
        if wanted.contains(&rows) {
            Ok(ledger)
        } else {
            Err(format!("SQL has {rows} rows, the log {wanted:?}: {ledger}"))
        }
    })
}

/// Settled, with no datagram dropped by the kernel, none rejected, and no row dropped.
#[track_caller]
pub fn assert_lossless(weir: &Weir) -> Ledger {
    let ledger = assert_settled(weir);
    assert_eq!((ledger.kernel_drops, ledger.datagrams_rejected, ledger.rows_dropped), (0, 0, 0), "{ledger}");
    ledger
}

/// Waits until SQL has everything sent, once, and nothing is in flight; also where the collector was started anew on the
/// way, so that its counts are not those of the tables. The kernel dropped nothing.
#[track_caller]
pub fn at_rest(weir: &Weir, sent: Sent) -> Ledger {
    let query = "select count(*), sum(bytes), sum(packets) from flows";
    weir.until_numbers(query, &[sent.rows, sent.bytes, sent.packets]);
    let ledger = until(LONG, "nothing in flight", || {
        let ledger = Ledger::read(&weir.metrics())?;
        if ledger.rows_in_flight == 0 { Ok(ledger) } else { Err(format!("{ledger}")) }
    });
    assert_eq!(ledger.kernel_drops, 0, "{ledger}");
    ledger
}
