//! The table `completeness`: up to which time each partition of the log is in SQL.
//!
//! Rollups are additive, so nothing waits for a watermark; who wants to know whether a window still grows asks here. A
//! partition that is idle is complete until the log was last looked at, one that is behind until the newest row taken.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;

use crate::store::{Store, StoreInfo};

/// Its name in SQL.
pub(crate) const NAME: &str = "completeness";

/// The provider: every scan says how things are then.
#[derive(Debug)]
pub(crate) struct Completeness {
    store: Arc<Store>,
    schema: SchemaRef,
}

impl Completeness {
    pub(crate) fn new(store: Arc<Store>) -> Completeness {
        let number = |name: &str| Field::new(name, DataType::Int64, true);
        let time = |name: &str| {
            Field::new(name, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true)
        };
        let schema = Schema::new(vec![
            number("log_partition"),
            number("committed_offset"),
            number("seen_offset"),
            number("end_offset"),
            Field::new("caught_up", DataType::Boolean, true),
            time("newest_received_at"),
            time("complete_until"),
        ]);
        Completeness { store, schema: Arc::new(schema) }
    }

    fn batch(&self, info: &StoreInfo) -> Result<RecordBatch> {
        let mut partitions: Vec<u32> = info.seen.keys().chain(info.end.keys()).copied().collect();
        partitions.sort_unstable();
        partitions.dedup();
        let all = || partitions.iter();
        let offset = |offset: Option<&u64>| offset.map(|offset| i64::try_from(*offset).unwrap_or(i64::MAX));
        let time = |times: Vec<Option<i64>>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
        };
        let seen = |partition: &u32| info.seen.get(partition).copied().unwrap_or(0);
        let caught_up = |partition: &u32| info.end.get(partition).is_none_or(|end| seen(partition) >= *end);
        let newest = |partition: &u32| info.newest.get(partition).copied();
        let complete = |partition: &u32| {
            if caught_up(partition) { info.looked_at } else { newest(partition) }
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(all().map(|partition| i64::from(*partition)))),
            Arc::new(Int64Array::from_iter(all().map(|partition| offset(info.committed.get(partition))))),
            Arc::new(Int64Array::from_iter(all().map(|partition| offset(info.seen.get(partition))))),
            Arc::new(Int64Array::from_iter(all().map(|partition| offset(info.end.get(partition))))),
            Arc::new(BooleanArray::from_iter(all().map(|partition| Some(caught_up(partition))))),
            time(all().map(newest).collect()),
            time(all().map(complete).collect()),
        ];
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

#[async_trait]
impl TableProvider for Completeness {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let batch = self.batch(&self.store.info())?;
        let plan = MemorySourceConfig::try_new_exec(&[vec![batch]], self.schema(), projection.cloned())?;
        Ok(plan)
    }
}
