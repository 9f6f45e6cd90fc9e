//! Rollups computed once for all the tables that are made of them.

use std::sync::Arc;

use arrow::array::RecordBatch;
use tokio::sync::Mutex;

use super::{AggregateConfig, Rollup};
use crate::store::{HotBatch, StoreError};

/// Computed pieces beyond which a query computes everything anew, in one.
const MAX_PIECES: usize = 16;

/// The place of what was computed for commits, after those of the families.
const ALL: usize = 2;

/// Who asks: commits and queries look at different rows at about the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Commit,
    Query,
}

/// What was computed last, of which batches.
#[derive(Debug, Default)]
struct Computed {
    of: Vec<(u32, u64)>,
    /// The rollups, of successive batches.
    pieces: Vec<Vec<RecordBatch>>,
}

/// The rollups of hot rows.
#[derive(Debug)]
pub(crate) struct Aggregates {
    config: Arc<AggregateConfig>,
    /// Of each family for queries, which often want one only, and of all for commits.
    computed: [Mutex<Computed>; 3],
}

impl Aggregates {
    pub(crate) fn new(config: AggregateConfig) -> Aggregates {
        Aggregates { config: Arc::new(config), computed: Default::default() }
    }

    pub(crate) fn config(&self) -> &Arc<AggregateConfig> {
        &self.config
    }

    /// The partial rows of `hot`. The tables of one commit ask for the same and wait for the first; a query finds what
    /// the one before it computed, and adds what has come since.
    pub(crate) async fn parts(
        &self,
        rollup: Rollup,
        hot: &[Arc<HotBatch>],
        asker: Asker,
    ) -> Result<Vec<RecordBatch>, StoreError> {
        let family = rollup.family();
        let (place, rollups) = match asker {
            Asker::Query => (family as usize, family.rollups().collect()),
            Asker::Commit => (ALL, Rollup::ALL.to_vec()),
        };
        let of: Vec<(u32, u64)> = hot.iter().map(|hot| (hot.partition, hot.offset)).collect();
        let mut computed = self.computed[place].lock().await;
        if computed.of != of {
            let known = computed.of.len();
            let goes_on = asker == Asker::Query
                && known > 0
                && known < of.len()
                && computed.of == of[..known]
                && computed.pieces.len() < MAX_PIECES;
            if !goes_on {
                *computed = Computed::default();
            }
            let fresh: Vec<RecordBatch> =
                hot[computed.of.len()..].iter().map(|hot| hot.batch.clone()).collect();
            let config = Arc::clone(&self.config);
            let compute = move || match asker {
                Asker::Query => family.compute(&fresh, &config),
                Asker::Commit => super::compute(&fresh, &config),
            };
            let piece = tokio::task::spawn_blocking(compute).await;
            let piece = piece.map_err(|error| StoreError::Corrupt(format!("a rollup died: {error}")))??;
            computed.pieces.push(piece);
            computed.of = of;
        }
        let place = rollups.iter().position(|other| *other == rollup).unwrap_or(0);
        Ok(computed.pieces.iter().filter_map(|piece| piece.get(place).cloned()).collect())
    }
}
