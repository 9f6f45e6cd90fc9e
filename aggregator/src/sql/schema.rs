//! The two schemas that sessions see: `public` (our tables and views) and `pg_catalog` (what PostgreSQL clients ask to
//! describe them).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int16Array, Int32Array, RecordBatch, StringArray, new_null_array,
};
use datafusion::arrow::datatypes::{DataType, Int32Type, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::common::Result;
use datafusion::datasource::TableType;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::{PgCatalogSchemaProvider, PgCatalogStaticTables, PgCatalogTable};
use futures::TryStreamExt;
use parking_lot::RwLock;
use pgwire::api::Type;

use crate::serve::values::pg_type;

/// The catalogue's and the database's name.
pub const CATALOG: &str = "weir";
/// The schema of our tables.
pub const SCHEMA: &str = "public";

/// Our tables. The parts that views are made of can be asked for by name, but are not listed.
#[derive(Debug, Default)]
pub(crate) struct Public {
    tables: RwLock<BTreeMap<String, Arc<dyn TableProvider>>>,
}

impl Public {
    pub(crate) fn add(&self, name: &str, table: Arc<dyn TableProvider>) {
        self.tables.write().insert(name.to_owned(), table);
    }

    /// The names of the listed tables.
    pub(crate) fn names(&self) -> Vec<String> {
        self.table_names()
    }

    /// The listed tables with their columns.
    pub(crate) fn listed(&self) -> Vec<(String, SchemaRef)> {
        let tables = self.tables.read();
        tables
            .iter()
            .filter(|(name, _)| is_listed(name))
            .map(|(name, table)| (name.clone(), table.schema()))
            .collect()
    }
}

fn is_listed(name: &str) -> bool {
    !name.ends_with("_raw") && !name.ends_with("_parts")
}

#[async_trait]
impl SchemaProvider for Public {
    fn table_names(&self) -> Vec<String> {
        self.tables.read().keys().filter(|name| is_listed(name)).cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.tables.read().get(name).cloned())
    }

    /// Views are tables to whoever asks: `\dt` lists them.
    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.read().contains_key(name)
    }
}

type Inner = PgCatalogSchemaProvider<Arc<dyn CatalogProviderList>, EmptyContextProvider>;

/// PostgreSQL's catalogue by `datafusion-pg-catalog`, but for `pg_attribute`: there an address is `inet` and a list is
/// an array, as on the wire.
#[derive(Debug)]
pub(crate) struct PgCatalog {
    inner: Arc<Inner>,
    catalogs: Arc<dyn CatalogProviderList>,
}

impl PgCatalog {
    pub(crate) fn new(catalogs: Arc<dyn CatalogProviderList>) -> Result<Self> {
        let tables = Arc::new(PgCatalogStaticTables::try_new()?);
        let inner = PgCatalogSchemaProvider::try_new(Arc::clone(&catalogs), tables, EmptyContextProvider)?;
        Ok(PgCatalog { inner: Arc::new(inner), catalogs })
    }
}

#[async_trait]
impl SchemaProvider for PgCatalog {
    fn table_names(&self) -> Vec<String> {
        self.inner.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if !name.eq_ignore_ascii_case("pg_attribute") {
            return self.inner.table(name).await;
        }
        let Some(attributes) = self.inner.build_table_by_name(name)? else { return Ok(None) };
        let columns = Columns {
            schema: attributes.schema(),
            inner: Arc::clone(&self.inner),
            catalogs: Arc::clone(&self.catalogs),
        };
        Ok(Some(Arc::new(StreamingTable::try_new(columns.schema.clone(), vec![Arc::new(columns)])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.inner.table_exist(name)
    }
}

/// `pg_attribute`: one row a column of every relation of `pg_class`.
#[derive(Debug, Clone)]
struct Columns {
    schema: SchemaRef,
    inner: Arc<Inner>,
    catalogs: Arc<dyn CatalogProviderList>,
}

impl PartitionStream for Columns {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let this = self.clone();
        Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            futures::stream::once(async move { this.rows(context).await }),
        ))
    }
}

impl Columns {
    async fn catalog_table(&self, name: &str, context: &Arc<TaskContext>) -> Result<Vec<RecordBatch>> {
        match self.inner.build_table_by_name(name)? {
            Some(PgCatalogTable::Dynamic(table)) => table.execute(Arc::clone(context)).try_collect().await,
            _ => Ok(Vec::new()),
        }
    }

    async fn rows(&self, context: Arc<TaskContext>) -> Result<RecordBatch> {
        let mut namespaces = BTreeMap::new();
        for batch in self.catalog_table("pg_namespace", &context).await? {
            for (oid, name) in oids_and_names(&batch, "nspname") {
                namespaces.insert(oid, name);
            }
        }
        let mut attributes = Attributes::default();
        for batch in self.catalog_table("pg_class", &context).await? {
            let schemas = int_column(&batch, "relnamespace");
            for (row, (oid, relation)) in oids_and_names(&batch, "relname").into_iter().enumerate() {
                let Some(schema) = schemas.get(row).and_then(|oid| namespaces.get(oid)) else { continue };
                let provider = self.catalogs.catalog(CATALOG).and_then(|catalog| catalog.schema(schema));
                let table = match provider {
                    Some(provider) => provider.table(&relation).await?,
                    None => None,
                };
                if let Some(table) = table {
                    attributes.add(oid, &table.schema());
                }
            }
        }
        attributes.into_batch(&self.schema)
    }
}

fn int_column(batch: &RecordBatch, name: &str) -> Vec<i32> {
    match batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int32Type>()) {
        Some(column) => column.values().to_vec(),
        None => Vec::new(),
    }
}

fn oids_and_names(batch: &RecordBatch, name: &str) -> Vec<(i32, String)> {
    let names = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    let Some(names) = names else { return Vec::new() };
    int_column(batch, "oid")
        .into_iter()
        .zip(names.iter().map(|name| name.unwrap_or_default().to_owned()))
        .collect()
}

#[derive(Default)]
struct Attributes {
    relations: Vec<i32>,
    names: Vec<String>,
    numbers: Vec<i16>,
    types: Vec<i32>,
    lengths: Vec<i16>,
    not_null: Vec<bool>,
}

impl Attributes {
    fn add(&mut self, relation: i32, schema: &SchemaRef) {
        for (number, field) in (1_i16..).zip(schema.fields()) {
            let kind = pg_type(field);
            self.relations.push(relation);
            self.names.push(field.name().clone());
            self.numbers.push(number);
            self.types.push(kind.oid().cast_signed());
            self.lengths.push(match kind {
                Type::BOOL | Type::CHAR => 1,
                Type::INT2 => 2,
                Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID => 4,
                Type::INT8 | Type::FLOAT8 | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME => 8,
                Type::MACADDR => 6,
                _ => -1,
            });
            self.not_null.push(!field.is_nullable());
        }
    }

    /// In the columns of PostgreSQL's `pg_attribute`; what is not known here has the value that "nothing" has there.
    fn into_batch(self, schema: &SchemaRef) -> Result<RecordBatch> {
        let rows = self.relations.len();
        let int = |value: i32| -> ArrayRef { Arc::new(Int32Array::from(vec![value; rows])) };
        let bool = |value: bool| -> ArrayRef { Arc::new(BooleanArray::from(vec![value; rows])) };
        let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; rows])) };
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            columns.push(match field.name().as_str() {
                "attrelid" => Arc::new(Int32Array::from(self.relations.clone())),
                "attname" => Arc::new(StringArray::from(self.names.clone())),
                "atttypid" => Arc::new(Int32Array::from(self.types.clone())),
                "attlen" => Arc::new(Int16Array::from(self.lengths.clone())),
                "attnum" => Arc::new(Int16Array::from(self.numbers.clone())),
                "attnotnull" => Arc::new(BooleanArray::from(self.not_null.clone())),
                "attislocal" => bool(true),
                "attstattarget" | "attcacheoff" | "atttypmod" => int(-1),
                "attalign" => text("i"),
                "attstorage" => text("p"),
                _ => match field.data_type() {
                    DataType::Boolean => bool(false),
                    DataType::Int32 => int(0),
                    DataType::Utf8 if !field.is_nullable() => text(""),
                    other => new_null_array(other, rows),
                },
            });
        }
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}
