//! Cumulative totals (rule 37): an exporter that reports the same flow again and again with counters since its start
//! (IE 85, 86) would be counted many times over. Where the operator says so (`difference_totals`), a record's totals are
//! replaced by what has come since the last record of the same flow.
//!
//! The flow is told by its keys and its start. What is remembered is bounded: a flow that was not heard of while many
//! others were counts from its start again.

use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::HashMap;
use weir_schemas::elements::IANA;
use weir_schemas::tables::FlowColumn;

use super::compile::Span;
use super::records::Records;
use super::run::SetContext;
use crate::columns::Builder;

/// Flows remembered of all exporters of a shard, and as many that were seen before those.
const MAX_FLOWS: usize = 65_536;

/// What a template has to do with totals.
#[derive(Debug, Clone, Default)]
pub(crate) struct TotalsPlan {
    /// `bytes` is IE 85, `packets` is IE 86.
    pub(crate) bytes: bool,
    pub(crate) packets: bool,
    /// The fields that tell the flow.
    pub(crate) keys: Vec<Span>,
}

/// True for the elements that tell one flow from another, its start among them.
pub(crate) fn is_key(enterprise: u32, id: u16) -> bool {
    enterprise == IANA
        && matches!(
            id,
            4 | 5 | 7 | 8 | 10..=12 | 14 | 22 | 27 | 28 | 31 | 56 | 58 | 61 | 80 | 148 | 150 | 152 | 154
                | 156 | 180..=183 | 234 | 243
        )
}

/// The totals of the flows that were seen last.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    hasher: foldhash::fast::RandomState,
    now: HashMap<u64, (u64, u64), foldhash::fast::RandomState>,
    before: HashMap<u64, (u64, u64), foldhash::fast::RandomState>,
}

impl Totals {
    /// Replaces the totals of the records that were appended last.
    pub(crate) fn difference<R: Records>(
        &mut self,
        plan: &TotalsPlan,
        records: &R,
        context: &SetContext<'_>,
        reverse: bool,
        out: &mut Builder,
    ) {
        let n = records.count();
        for row in 0..n {
            let mut hasher = self.hasher.build_hasher();
            (context.sender.0, context.domain, reverse).hash(&mut hasher);
            for span in &plan.keys {
                hasher.write(records.bytes(row, *span));
            }
            let key = hasher.finish();
            let mut take = |wanted: bool, column: FlowColumn, before: u64| {
                if !wanted {
                    return 0;
                }
                let values = &mut out.u64s(column.index()).values;
                let at = values.len().checked_sub(n - row);
                let Some(value) = at.and_then(|at| values.get_mut(at)) else { return 0 };
                let total = *value;
                // a counter that went back began anew
                *value = total.checked_sub(before).unwrap_or(total);
                total
            };
            let last = self.now.get(&key).or_else(|| self.before.get(&key)).copied().unwrap_or_default();
            let bytes = take(plan.bytes, FlowColumn::Bytes, last.0);
            let packets = take(plan.packets, FlowColumn::Packets, last.1);
            if self.now.len() >= MAX_FLOWS && !self.now.contains_key(&key) {
                self.before = std::mem::take(&mut self.now);
            }
            self.now.insert(key, (bytes, packets));
        }
    }
}
