//! Sequence accounting, protocol by protocol, through the whole decoder: what is injected is what is counted.

use super::*;

/// What happens to the datagrams on their way.
struct Fault {
    name: &'static str,
    /// The numbers of the datagrams in the order in which they come; an exporter that restarted counts from 100 again.
    order: Vec<u32>,
    /// Datagrams, by what they are counted as.
    expected: u64,
    lost: u64,
    reordered: u64,
    resets: u64,
}

fn faults() -> Vec<Fault> {
    let fault = |name, order: Vec<u32>, expected, lost, reordered, resets| Fault {
        name,
        order,
        expected,
        lost,
        reordered,
        resets,
    };
    vec![
        fault("none", (0..10).collect(), 10, 0, 0, 0),
        fault("one dropped", vec![0, 1, 2, 4, 5], 6, 1, 0, 0),
        fault("three dropped in two places", vec![0, 3, 4, 6, 7], 8, 3, 0, 0),
        fault("two swapped", vec![0, 2, 1, 3, 4], 5, 0, 1, 0),
        fault("one far behind", vec![0, 2, 3, 4, 5, 6, 1, 7], 8, 0, 1, 0),
        fault("one twice", vec![0, 1, 1, 2, 3], 4, 0, 1, 0),
        fault("one twice, later", vec![0, 1, 2, 3, 1, 4], 5, 0, 1, 0),
        fault("dropped, swapped and twice", vec![0, 2, 1, 1, 4, 5], 6, 1, 2, 0),
        fault("a restart", vec![0, 1, 2, 100, 101, 102, 103], 7, 0, 0, 1),
        fault("a restart with loss before and after", vec![0, 2, 100, 102, 103], 7, 2, 0, 1),
        fault("a stray datagram", vec![0, 1, 100, 2, 3], 4, 0, 1, 0),
    ]
}

/// A protocol under test: a datagram by its number, and how many units it is counted as.
struct Exporter {
    name: &'static str,
    units: u64,
    /// The number of the series at datagram 0, close to the end of its 32 bits.
    start: u32,
    datagram: fn(&Exporter, u32) -> Vec<u8>,
}

impl Exporter {
    /// Uptime, clock and sequence number of a datagram.
    fn header(&self, n: u32) -> (u32, u32, u32) {
        let units = u32::try_from(self.units).unwrap();
        match n {
            100.. => (1_000 + n, EXPORT_S + n, (n - 100) * units),
            _ => (UPTIME_MS + n, EXPORT_S, self.start.wrapping_add(n * units)),
        }
    }
}

fn v5(exporter: &Exporter, n: u32) -> Vec<u8> {
    let (uptime, clock, sequence) = exporter.header(n);
    let mut out = bytes(&[5, 3]);
    for word in [uptime, clock, 0, sequence, 0] {
        out.extend(word.to_be_bytes());
    }
    out.extend([0; 3 * 48]);
    out
}

fn v9(exporter: &Exporter, n: u32) -> Vec<u8> {
    let (uptime_ms, export_s, sequence) = exporter.header(n);
    let message = Builder9 { uptime_ms, export_s, ..Builder9::v9(sequence) };
    message.template(256, &[(7, 2)]).set(256, &[0; 8]).build()
}

/// Two flow records and an options record; templates do not count.
fn ipfix(exporter: &Exporter, n: u32) -> Vec<u8> {
    let (_, export_s, sequence) = exporter.header(n);
    let message = Builder9 { export_s, ..Builder9::ipfix(sequence) };
    let message = message.template(256, &[(7, 2)]).options(300, 1, &[(149, 4), (41, 4)]);
    message.set(256, &[0; 4]).set(300, &[0; 8]).build()
}

fn sflow(exporter: &Exporter, n: u32) -> Vec<u8> {
    let (uptime, _, sequence) = exporter.header(n);
    let mut out = Vec::new();
    for word in [5, 1, 0x0a00_0001, 0, sequence, uptime, 0] {
        out.extend(word.to_be_bytes());
    }
    out
}

/// The exporters as they are under a fault: one that restarts does so from a number far from 0.
fn exporters_for(fault: &Fault) -> [Exporter; 4] {
    let restarts = fault.order.iter().any(|n| *n >= 100);
    exporters()
        .map(|exporter| Exporter { start: if restarts { 2_500_000 } else { exporter.start }, ..exporter })
}

fn exporters() -> [Exporter; 4] {
    let exporter = |name, units, start, datagram| Exporter { name, units, start, datagram };
    [
        // rule 17: flows
        exporter("v5", 3, u32::MAX - 7, v5),
        // rule 18: datagrams
        exporter("v9", 1, u32::MAX - 2, v9),
        // rule 19: data records, those of options too
        exporter("ipfix", 3, u32::MAX - 6, ipfix),
        // rule 21: datagrams
        exporter("sflow", 1, u32::MAX - 1, sflow),
    ]
}

/// Rules 17, 18, 19, 21 and 22.
#[test]
fn rule_17_rule_18_rule_19_rule_21_rule_22_what_is_injected_is_what_is_counted() {
    for fault in faults() {
        for exporter in exporters_for(&fault) {
            let mut decoder = Decoder::new(Arc::default(), Arc::default());
            let mut out = Batches::new();
            for n in &fault.order {
                let datagram = (exporter.datagram)(&exporter, *n);
                let outcome = decoder.decode(&datagram, &sender(1), &mut out);
                assert_eq!(outcome.rejected, None);
            }
            let counters = decoder.exporters().iter().next().unwrap().counters;
            let have = [
                counters.sequence_expected,
                counters.sequence_lost,
                counters.sequence_reordered,
                counters.sequence_resets * exporter.units,
            ];
            let want = [fault.expected, fault.lost, fault.reordered, fault.resets];
            assert_eq!(have, want.map(|n| n * exporter.units), "{}: {}", exporter.name, fault.name);
            assert_eq!(counters.datagrams, fault.order.len() as u64);
        }
    }
}

/// What SQL adds up is exact, whenever the rows were written.
#[test]
fn rule_22_sums_of_the_statistics_are_exact() {
    for fault in faults() {
        for exporter in exporters_for(&fault) {
            let mut decoder = Decoder::new(Arc::default(), Arc::default());
            let mut out = Batches::new();
            for n in &fault.order {
                decoder.decode(&(exporter.datagram)(&exporter, *n), &sender(1), &mut out);
                decoder.report(1, &mut out);
            }
            let stats = rows(&mut out.exporter_stats);
            let sum = |name: &str| stats.iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
            let lost = sum("sequence_lost") - sum("sequence_recovered");
            let have = [sum("sequence_expected"), lost, sum("sequence_resets") * exporter.units];
            let want = [fault.expected, fault.lost, fault.resets].map(|n| n * exporter.units);
            assert_eq!(have, want, "{}: {}", exporter.name, fault.name);
        }
    }
}

/// Two source ports of one address and domain are two series, and two engines of v5 too.
#[test]
fn rule_17_rule_19_each_series_is_counted_by_itself() {
    for exporter in exporters().into_iter().filter(|exporter| exporter.name != "sflow") {
        let mut decoder = Decoder::new(Arc::default(), Arc::default());
        let mut out = Batches::new();
        for n in 0..5 {
            decoder.decode(&(exporter.datagram)(&exporter, n), &sender(1), &mut out);
            decoder.decode(&(exporter.datagram)(&exporter, 7 * n + 20), &sender(2), &mut out);
        }
        let counters = decoder.exporters().iter().next().unwrap().counters;
        let want = [5 + 29, 4 * 6].map(|n| n * exporter.units);
        assert_eq!([counters.sequence_expected, counters.sequence_lost], want, "{}", exporter.name);
    }
    let mut decoder = Decoder::new(Arc::default(), Arc::default());
    let mut out = Batches::new();
    let [v5, ..] = exporters();
    for engine in [0_u8, 1] {
        for n in 0..3 {
            let mut datagram = (v5.datagram)(&v5, n + 30 * u32::from(engine));
            datagram[21] = engine;
            decoder.decode(&datagram, &sender(1), &mut out);
        }
    }
    assert_eq!(decoder.exporters().len(), 2);
    assert!(decoder.exporters().iter().all(|state| state.counters.sequence_lost == 0));
}
