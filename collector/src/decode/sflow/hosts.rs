//! Host and queue counters: which field of which structure goes to which column ("sFlow Host Structures", and the queue
//! counters of "sFlow Broadcom Switch ASIC Table Utilization" and its kin; numbers as on sflow.org).

use weir_schemas::Kind;
use weir_schemas::tables::HostColumn::{self, *};
use weir_schemas::tables::QueueColumn;

use super::records::Row;
use super::xdr::Xdr;
use crate::columns::Builder;

/// How a field reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    U32,
    U64,
    F32,
    /// Hundredths of a percent.
    Percent,
    Text,
    Uuid,
}

type Fields = &'static [(HostColumn, Wire)];

const DESCRIPTION: Fields = &[
    (HostName, Wire::Text),
    (HostUuid, Wire::Uuid),
    (MachineType, Wire::U32),
    (OsName, Wire::U32),
    (OsRelease, Wire::Text),
];
const CPU: Fields = &[
    (LoadOne, Wire::F32),
    (LoadFive, Wire::F32),
    (LoadFifteen, Wire::F32),
    (ProcessesRunning, Wire::U32),
    (ProcessesTotal, Wire::U32),
    (CpuCount, Wire::U32),
    (CpuSpeedMhz, Wire::U32),
    (HostUptimeSeconds, Wire::U32),
    (CpuUserMs, Wire::U32),
    (CpuNiceMs, Wire::U32),
    (CpuSystemMs, Wire::U32),
    (CpuIdleMs, Wire::U32),
    (CpuWaitMs, Wire::U32),
    (CpuInterruptMs, Wire::U32),
    (CpuSoftInterruptMs, Wire::U32),
    (Interrupts, Wire::U32),
    (ContextSwitches, Wire::U32),
    (CpuStealMs, Wire::U32),
    (CpuGuestMs, Wire::U32),
    (CpuGuestNiceMs, Wire::U32),
];
const MEMORY: Fields = &[
    (MemoryTotal, Wire::U64),
    (MemoryFree, Wire::U64),
    (MemoryShared, Wire::U64),
    (MemoryBuffers, Wire::U64),
    (MemoryCached, Wire::U64),
    (SwapTotal, Wire::U64),
    (SwapFree, Wire::U64),
    (PageIn, Wire::U32),
    (PageOut, Wire::U32),
    (SwapIn, Wire::U32),
    (SwapOut, Wire::U32),
];
const DISK: Fields = &[
    (DiskTotal, Wire::U64),
    (DiskFree, Wire::U64),
    (DiskMaxUsed, Wire::Percent),
    (DiskReads, Wire::U32),
    (DiskBytesRead, Wire::U64),
    (DiskReadMs, Wire::U32),
    (DiskWrites, Wire::U32),
    (DiskBytesWritten, Wire::U64),
    (DiskWriteMs, Wire::U32),
];
const NET: Fields = &[
    (NetBytesIn, Wire::U64),
    (NetPacketsIn, Wire::U32),
    (NetErrorsIn, Wire::U32),
    (NetDropsIn, Wire::U32),
    (NetBytesOut, Wire::U64),
    (NetPacketsOut, Wire::U32),
    (NetErrorsOut, Wire::U32),
    (NetDropsOut, Wire::U32),
];

/// The columns of a structure; None where it has none of its own.
pub(crate) fn columns(format: u32) -> Option<&'static [(HostColumn, Wire)]> {
    Some(match format {
        2000 => DESCRIPTION,
        2003 => CPU,
        2004 => MEMORY,
        2005 => DISK,
        2006 => NET,
        _ => return None,
    })
}

impl Row<'_> {
    /// A structure that has columns; `Some(None)` where it ends in the middle of a field.
    pub(super) fn host(&mut self, format: u32, mut xdr: Xdr<'_>) -> Option<Option<()>> {
        let fields = columns(format)?;
        for (column, wire) in fields {
            // older agents send a shorter structure
            if xdr.is_empty() {
                break;
            }
            if self.host_field(*column, *wire, &mut xdr).is_none() {
                return Some(None);
            }
        }
        Some(Some(()))
    }

    /// All ones are no value (rule 42).
    fn host_field(&mut self, column: HostColumn, wire: Wire, xdr: &mut Xdr<'_>) -> Option<()> {
        let (index, kind) = (column.index(), column.column().kind);
        match wire {
            Wire::U32 => match (xdr.u32()?, kind) {
                (u32::MAX, _) => {}
                (value, Kind::U32) => self.out.u32s(index).push(value),
                (value, _) => self.out.u64s(index).push(u64::from(value)),
            },
            Wire::U64 => match xdr.u64()? {
                u64::MAX => {}
                value => self.out.u64s(index).push(value),
            },
            Wire::Percent => match xdr.u32()? {
                u32::MAX => {}
                value => self.out.f64s(index).push(f64::from(value) / 100.0),
            },
            Wire::F32 => {
                // "-1.0 if unknown"
                let value = f32::from_bits(xdr.u32()?);
                if value >= 0.0 {
                    self.out.f64s(index).push(f64::from(value));
                }
            }
            Wire::Text => match xdr.opaque()? {
                [] => {}
                text => {
                    self.out.texts(index).push_lossy(text);
                }
            },
            Wire::Uuid => {
                let uuid: [u8; 16] = xdr.array()?;
                if uuid.iter().any(|byte| *byte != 0) {
                    let text = uuid_text(&uuid);
                    self.out.texts(index).push_lossy(&text);
                }
            }
        }
        Some(())
    }
}

/// The text of a UUID (RFC 9562 §4).
fn uuid_text(uuid: &[u8; 16]) -> Vec<u8> {
    let mut text = Vec::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push(b'-');
        }
        super::formats::hex(&mut text, std::slice::from_ref(byte));
    }
    text
}

/// The fields of a queue's counters, in the order of the wire.
pub(crate) const QUEUE_COLUMNS: [QueueColumn; 13] = {
    use QueueColumn::{
        DroppedPackets, Length0, Length1, Length2, Length4, Length8, Length32, Length128, Length1024,
        LengthMore, QueueIndex, SegmentBytes, Segments,
    };
    [
        QueueIndex,
        SegmentBytes,
        Segments,
        Length0,
        Length1,
        Length2,
        Length4,
        Length8,
        Length32,
        Length128,
        Length1024,
        LengthMore,
        DroppedPackets,
    ]
};

/// A queue's counters as a row; None where they end too early.
pub(super) fn queue(interface: Option<u32>, mut xdr: Xdr<'_>, out: &mut Builder) -> Option<()> {
    let mut xdr = Xdr(xdr.take(4 * QUEUE_COLUMNS.len())?);
    if let Some(interface) = interface {
        out.u32s(QueueColumn::IfIndex.index()).push(interface);
    }
    for column in QUEUE_COLUMNS {
        match (xdr.u32()?, column.column().kind) {
            (index, Kind::U32) => out.u32s(column.index()).push(index),
            (u32::MAX, _) => {}
            (value, _) => out.u64s(column.index()).push(u64::from(value)),
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_lengths_of_the_specification_and_their_columns() {
        for (format, want) in [(2003, 80), (2004, 72), (2005, 52), (2006, 40)] {
            let size = |wire: &Wire| if *wire == Wire::U64 { 8 } else { 4 };
            assert_eq!(columns(format).unwrap().iter().map(|(_, wire)| size(wire)).sum::<usize>(), want);
        }
        for (column, wire) in [2000, 2003, 2004, 2005, 2006].into_iter().filter_map(columns).flatten() {
            let kind = column.column().kind;
            let fits = match wire {
                Wire::U32 => matches!(kind, Kind::U32 | Kind::U64),
                Wire::U64 => kind == Kind::U64,
                Wire::F32 | Wire::Percent => kind == Kind::F64,
                Wire::Text | Wire::Uuid => kind == Kind::Text,
            };
            assert!(fits, "{}", column.column().name);
        }
        assert_eq!(uuid_text(&[0xab; 16]), b"abababab-abab-abab-abab-abababababab");
    }
}
