//! A table of the store as DataFusion reads it: its committed files and its hot rows, of one snapshot.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray, UInt64Array};
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, DFSchema, DataFusionError, Result, ScalarValue, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use crate::hot;
use crate::rollup::Asker;
use crate::store::{Content, DataFile, OBJECT_STORE_URL, Snapshot, StoreTable};

/// Read this much of a file's end at first: the footer of a data file fits.
const FOOTER_BYTES: usize = 64 << 10;

/// The provider of one table.
#[derive(Debug)]
pub(crate) struct StoreProvider {
    table: Arc<StoreTable>,
}

impl StoreProvider {
    pub(crate) fn new(table: Arc<StoreTable>) -> StoreProvider {
        StoreProvider { table }
    }

    fn full_schema(&self) -> &SchemaRef {
        &self.table.spec.schema
    }

    /// The filters as one physical predicate over the whole schema.
    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(None) };
        let schema = DFSchema::try_from(Schema::clone(self.full_schema()))?;
        state.create_physical_expr(filter, &schema).map(Some)
    }

    fn scan_files(
        &self,
        state: &dyn Session,
        files: &[Arc<DataFile>],
        projection: Option<&Vec<usize>>,
        predicate: Option<&Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.full_schema();
        let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
        let readers = CachedParquetFileReaderFactory::new(Arc::clone(&self.table.objects), cache);
        let mut source = ParquetSource::new(Arc::clone(schema))
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_metadata_size_hint(FOOTER_BYTES)
            .with_parquet_file_reader_factory(Arc::new(readers));
        if let Some(predicate) = predicate {
            source = source.with_predicate(Arc::clone(predicate));
        }
        let mut total = Statistics::new_unknown(schema);
        total.num_rows = Precision::Exact(files.iter().map(|file| rows(file)).sum());
        total.total_byte_size = Precision::Inexact(
            files.iter().map(|file| usize::try_from(file.size).unwrap_or(usize::MAX)).sum(),
        );
        let groups = file_groups(self.table.spec.name, schema, files, state.config().target_partitions());
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(OBJECT_STORE_URL)?, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(total)
            .with_limit(limit)
            .with_projection_indices(projection.cloned())?
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    async fn scan_hot(
        &self,
        snapshot: &Arc<Snapshot>,
        projection: Option<&Vec<usize>>,
        partitions: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(projection) => Arc::new(self.full_schema().project(projection)?),
            None => Arc::clone(self.full_schema()),
        };
        let batches = match self.table.spec.content {
            Content::Raw(_) | Content::Gaps => snapshot.hot.iter().map(|hot| hot.batch.clone()).collect(),
            Content::Rollup(rollup) => {
                let parts = self.table.aggregates.parts(rollup, &snapshot.hot, Asker::Query).await;
                parts.map_err(|error| DataFusionError::External(Box::new(error)))?
            }
        };
        let mut spread: Vec<Vec<RecordBatch>> = vec![Vec::new(); partitions.clamp(1, batches.len().max(1))];
        let width = spread.len();
        for (index, batch) in batches.iter().enumerate() {
            spread[index % width].push(hot::align(batch, &schema)?);
        }
        let source = MemorySourceConfig::try_new(&spread, schema, None)?;
        Ok(DataSourceExec::from_data_source(source))
    }
}

fn rows(file: &DataFile) -> usize {
    usize::try_from(file.rows).unwrap_or(usize::MAX)
}

/// The files in about equal groups, each with what is known about it.
fn file_groups(table: &str, schema: &SchemaRef, files: &[Arc<DataFile>], groups: usize) -> Vec<FileGroup> {
    let mut result: Vec<Vec<PartitionedFile>> = vec![Vec::new(); groups.clamp(1, files.len().max(1))];
    let mut sizes = vec![0_u64; result.len()];
    let mut by_size: Vec<_> = files.iter().collect();
    by_size.sort_by_key(|file| std::cmp::Reverse(file.size));
    for file in by_size {
        let least = (0..sizes.len()).min_by_key(|index| sizes[*index]).unwrap_or(0);
        sizes[least] += file.size;
        let mut statistics = Statistics::new_unknown(schema);
        statistics.num_rows = Precision::Exact(rows(file));
        for (name, low, high) in &file.ranges {
            let Ok(index) = schema.index_of(name) else { continue };
            let time = |value: i64| ScalarValue::TimestampMicrosecond(Some(value), Some("UTC".into()));
            statistics.column_statistics[index].min_value = Precision::Exact(time(*low));
            statistics.column_statistics[index].max_value = Precision::Exact(time(*high));
        }
        let path = format!("{table}/{}", file.path);
        result[least].push(PartitionedFile::new(path, file.size).with_statistics(Arc::new(statistics)));
    }
    result.into_iter().map(FileGroup::new).collect()
}

/// What the Delta log knows about the files.
struct FileStatistics<'a>(&'a [Arc<DataFile>]);

impl FileStatistics<'_> {
    fn times(&self, column: &Column, pick: fn((i64, i64)) -> i64) -> Option<ArrayRef> {
        let values = self.0.iter().map(|file| file.range(column.name()).map(pick));
        let values: Vec<Option<i64>> = values.collect();
        let known = values.iter().any(Option::is_some);
        known.then(|| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef)
    }
}

impl PruningStatistics for FileStatistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |range| range.0)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.times(column, |range| range.1)
    }

    fn num_containers(&self) -> usize {
        self.0.len()
    }

    fn null_counts(&self, _: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(self.0.iter().map(|file| file.rows))))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// The files that may have a row for which the predicate holds.
fn prune(
    schema: &SchemaRef,
    files: &[Arc<DataFile>],
    predicate: Option<&Arc<dyn PhysicalExpr>>,
) -> Vec<Arc<DataFile>> {
    let keep = predicate.and_then(|predicate| {
        let builder = PruningPredicateBuilder::new().with_file_schema(Arc::clone(schema));
        // what cannot be used for pruning prunes nothing
        builder.try_build(Arc::clone(predicate)).ok()?.prune(&FileStatistics(files)).ok()
    });
    match keep {
        Some(keep) => {
            let kept = files.iter().zip(keep).filter(|(_, keep)| *keep);
            kept.map(|(file, _)| Arc::clone(file)).collect()
        }
        None => files.to_vec(),
    }
}

#[async_trait]
impl TableProvider for StoreProvider {
    fn schema(&self) -> SchemaRef {
        Arc::clone(self.full_schema())
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // they prune files, row groups and pages; what is left is filtered above
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let snapshot = self.table.snapshot();
        let predicate = self.predicate(state, filters)?;
        let files = prune(self.full_schema(), &snapshot.files, predicate.as_ref());
        // a limit must not cut off rows that a filter above would have kept
        let limit = if filters.is_empty() { limit } else { None };
        let partitions = state.config().target_partitions();
        let mut inputs = Vec::new();
        if !files.is_empty() {
            inputs.push(self.scan_files(state, &files, projection, predicate.as_ref(), limit)?);
        }
        if !snapshot.hot.is_empty() || inputs.is_empty() {
            inputs.push(self.scan_hot(&snapshot, projection, partitions).await?);
        }
        match inputs.len() {
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }
}
