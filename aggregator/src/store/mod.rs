//! The store: one Delta table each for the tables of the log and for the rollups, and the hot rows in front of them.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use object_store::ObjectStore;

use crate::source::Positions;

/// Under which URL the store's files are registered with DataFusion.
pub const OBJECT_STORE_URL: &str = "weir-store://files/";

/// The store as it is now.
#[derive(Debug, Clone, Default)]
pub struct StoreInfo {
    /// One past the last offset that every table contains.
    pub committed: Positions,
    /// One past the last offset that queries see.
    pub seen: Positions,
    /// One past the newest offset of the log as last known.
    pub end: Positions,
    /// Tables by name: the raw ones and the rollups.
    pub tables: Vec<TableInfo>,
    /// Why the store cannot commit now; None where all is well.
    pub problem: Option<String>,
    /// Seconds since the source was last read to its end (None before the first time).
    pub lag_seconds: Option<f64>,
}

/// A table of the store.
#[derive(Debug, Clone, Default)]
pub struct TableInfo {
    pub name: &'static str,
    pub version: u64,
    pub files: u64,
    pub bytes: u64,
    pub committed_rows: u64,
    pub hot_rows: u64,
    pub hot_bytes: u64,
}

/// All tables.
#[derive(Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
}

impl Store {
    pub(crate) fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.objects)
    }

    pub(crate) fn providers(&self) -> Vec<(String, Arc<dyn TableProvider>)> {
        Vec::new()
    }

    pub(crate) fn info(&self) -> StoreInfo {
        StoreInfo::default()
    }
}
