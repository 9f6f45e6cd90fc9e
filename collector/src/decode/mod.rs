//! From a datagram to columns. No I/O and no clock: the datagram brings its receive time, `now` is an argument.

use weir_schemas::{Address, Table};

use crate::columns::Builder;

/// Where and when a datagram came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatagramMeta {
    /// Source address of the UDP datagram.
    pub sender: Address,
    /// Source port of the UDP datagram.
    pub sender_port: u16,
    /// The port it was sent to.
    pub local_port: u16,
    /// When the kernel received it, µs since 1970 UTC.
    pub received_us: i64,
}

/// The open batches of a shard, one a table.
#[derive(Debug)]
pub struct Batches {
    pub flows: Builder,
    pub nat_events: Builder,
    pub discards: Builder,
    pub interface_counters: Builder,
    pub options: Builder,
    pub exporter_stats: Builder,
    pub exporter_events: Builder,
}

impl Batches {
    pub fn new() -> Batches {
        Batches {
            flows: Builder::new(Table::Flows),
            nat_events: Builder::new(Table::NatEvents),
            discards: Builder::new(Table::Discards),
            interface_counters: Builder::new(Table::InterfaceCounters),
            options: Builder::new(Table::Options),
            exporter_stats: Builder::new(Table::ExporterStats),
            exporter_events: Builder::new(Table::ExporterEvents),
        }
    }

    /// All of them, in the order of [`Table::ALL`].
    pub fn all_mut(&mut self) -> [&mut Builder; 7] {
        [
            &mut self.flows,
            &mut self.nat_events,
            &mut self.discards,
            &mut self.interface_counters,
            &mut self.options,
            &mut self.exporter_stats,
            &mut self.exporter_events,
        ]
    }
}

impl Default for Batches {
    fn default() -> Self {
        Batches::new()
    }
}
