//! The engine behind every door: one DataFusion configuration, one memory budget, one gate, and threads of its own.
//!
//! Queries are planned and run on a runtime of their own, whose threads have large stacks (plans recurse) and which
//! cannot starve the ingest. A query holds a place among [`SqlConfig::concurrent_queries`] until its answer has been
//! read to the end or dropped; dropping [`Rows`] stops it.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, TableProvider};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::datasource::ViewTable;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use datafusion::optimizer::Analyzer;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::setup_pg_catalog;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use futures::{FutureExt, StreamExt};
use object_store::ObjectStore;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::address::{AddressPlanner, AddressRule, AddressTypes, Family};
use super::error::{ErrorKind, QueryError};
use super::functions::{self, PercentilePlanner};
use super::gate::{self, Command, Limits, Request};
use super::metrics::{Recorder, SqlMetrics};
use super::packed::PackedGrouping;
use super::questions;
use super::run::{Driver, Rows};
use super::schema::{CATALOG, PgCatalog, Public, SCHEMA};
use super::settings::Settings;
use crate::cluster::{Cluster, ClusterConfig, ClusterMetrics, Home};
use crate::countries::Countries;

/// Stack of a query thread: mapped, not used, until a plan needs it.
const STACK_BYTES: usize = 64 << 20;
/// Prepared statements of one session.
const PREPARED_MAX: usize = 256;

/// How queries are bounded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqlConfig {
    /// Memory of all queries together.
    pub memory_bytes: usize,
    /// Disk that all queries together may spill to, under the data directory; 0 spills nothing.
    pub spill_bytes: u64,
    /// Queries that run at once; the others wait.
    pub concurrent_queries: usize,
    /// Queries that may wait.
    pub queued_queries: usize,
    /// How long a query waits for its turn.
    pub queue_timeout_ms: u64,
    /// How long a query may take, its answer included. Sessions may lower it (`SET statement_timeout`).
    pub statement_timeout_ms: u64,
    /// Threads for queries; 0 is one a core.
    pub threads: usize,
    /// The longest statement.
    pub query_bytes: usize,
}

impl Default for SqlConfig {
    fn default() -> Self {
        SqlConfig {
            memory_bytes: 512 << 20,
            spill_bytes: 2 << 30,
            concurrent_queries: 8,
            queued_queries: 64,
            queue_timeout_ms: 10_000,
            statement_timeout_ms: 60_000,
            threads: 0,
            query_bytes: 256 << 10,
        }
    }
}

impl SqlConfig {
    /// What is wrong with it, by key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |wrong: bool, text: &str| {
            if wrong {
                problems.push(text.to_owned());
            }
        };
        check(self.memory_bytes < 16 << 20, "memory_bytes: at least 16777216");
        check(self.concurrent_queries == 0, "concurrent_queries: at least 1");
        check(self.statement_timeout_ms == 0, "statement_timeout_ms: at least 1");
        check(self.query_bytes < 1_024, "query_bytes: at least 1024");
        problems
    }
}

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("cannot start the query threads: {0}")]
    Threads(std::io::Error),
    #[error("cannot make the spill directory {0}: {1}")]
    Spill(String, std::io::Error),
    #[error("cannot set up SQL: {0}")]
    Setup(#[from] DataFusionError),
    #[error("cannot plan the view {0}: {1}")]
    View(String, DataFusionError),
}

/// The door a query came through, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    Http,
    Postgres,
}

impl Door {
    pub const fn name(self) -> &'static str {
        match self {
            Door::Http => "http",
            Door::Postgres => "postgres",
        }
    }
}

/// One DataFusion configuration for all doors.
pub struct Engine {
    base: SessionState,
    public: Arc<Public>,
    catalog_parser: PostgresCompatibilityParser,
    limits: Limits,
    config: SqlConfig,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    metrics: Arc<SqlMetrics>,
    /// The other nodes, where there are any.
    cluster: OnceLock<Arc<Cluster>>,
    /// Taken at drop: a runtime must not be dropped inside another.
    runtime: Option<tokio::runtime::Runtime>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    /// An engine over `tables`, with `views` planned in order; `countries` is what `country()` asks. Spills go to `spill`,
    /// which is emptied.
    pub async fn new(
        config: SqlConfig,
        tables: Vec<(String, Arc<dyn TableProvider>)>,
        views: &[(&str, &str)],
        countries: Countries,
        spill: Option<&Path>,
        metrics: Arc<SqlMetrics>,
    ) -> Result<Arc<Engine>, EngineError> {
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            threads => threads,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("weir-sql")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(EngineError::Threads)?;
        let environment = environment(&config, spill)?;
        let public = Arc::new(Public::default());
        let base = session_state(threads, environment, &countries, &public)?;
        for (name, table) in tables {
            public.add(&name, table);
        }
        for &(name, sql) in views {
            let failed = |error| EngineError::View(name.to_owned(), error);
            let plan = base.create_logical_plan(sql).await.map_err(failed)?;
            let plan =
                base.analyzer().execute_and_check(plan, base.config_options(), |_, _| {}).map_err(failed)?;
            public.add(name, Arc::new(ViewTable::new(plan, Some(sql.to_owned()))));
        }
        let limits = Limits { query_bytes: config.query_bytes, ..Limits::default() };
        Ok(Arc::new(Engine {
            base,
            public,
            catalog_parser: PostgresCompatibilityParser::new(),
            limits,
            places: Arc::new(Semaphore::new(config.concurrent_queries.max(1))),
            waiting: AtomicUsize::new(0),
            metrics,
            config,
            cluster: OnceLock::new(),
            runtime: Some(runtime),
        }))
    }

    /// Becomes a node among others, until `stop`: queries that read much run on all of them.
    pub(crate) fn join(
        &self,
        config: ClusterConfig,
        listener: TcpListener,
        objects: Arc<dyn ObjectStore>,
        metrics: Arc<ClusterMetrics>,
        stop: CancellationToken,
    ) -> Result<(), EngineError> {
        let Some(runtime) = &self.runtime else { return Ok(()) };
        let home = Home { base: self.base.clone(), runtime: runtime.handle().clone(), listener, objects };
        let cluster = Cluster::start(config, home, metrics, stop)?;
        self.cluster.get_or_init(|| cluster);
        Ok(())
    }

    /// A session: the settings and prepared statements of one connection, or of one request.
    pub fn session(self: &Arc<Self>, door: Door) -> Session {
        let timeout = Duration::from_millis(self.config.statement_timeout_ms);
        Session {
            engine: Arc::clone(self),
            door,
            settings: Mutex::new(Settings::new(timeout)),
            prepared: Mutex::new(HashMap::new()),
        }
    }

    /// The tables that are listed, with their columns.
    pub fn tables(&self) -> Vec<(String, SchemaRef)> {
        self.public.listed()
    }

    /// Where the store makes its files readable for queries.
    pub fn runtime_env(&self) -> &Arc<RuntimeEnv> {
        self.base.runtime_env()
    }

    /// A state for one query: its own copy, its own `now()`.
    fn state(&self) -> SessionState {
        let mut state = self.base.clone();
        state.mark_start_execution();
        state
    }

    /// A place among the running queries.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, QueryError> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        let busy = |why: String| QueryError::new(ErrorKind::Busy, why);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.config.queued_queries {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(busy(format!(
                "{} queries run and {} wait: try later",
                self.config.concurrent_queries, self.config.queued_queries
            )));
        }
        let waiting = Waiting::new(self);
        let timeout = Duration::from_millis(self.config.queue_timeout_ms);
        let place = tokio::time::timeout(timeout, Arc::clone(&self.places).acquire_owned()).await;
        drop(waiting);
        match place {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(QueryError::new(ErrorKind::NotReady, "the server stops")),
            Err(_) => Err(busy(format!(
                "no turn within {} ms: {} queries run",
                self.config.queue_timeout_ms, self.config.concurrent_queries
            ))),
        }
    }

    fn failed(&self, error: &DataFusionError, sql: &str) -> QueryError {
        let names = self.public.names();
        QueryError::from_datafusion(error, sql).suggest(names.iter().map(String::as_str))
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(future);
        }
    }

    /// Runs `plan` on the query threads; its error or value comes back, a panic is an error.
    async fn plan<T, F>(self: &Arc<Self>, timeout: Duration, plan: F) -> Result<T, QueryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, QueryError>> + Send + 'static,
    {
        let place = self.admit().await?;
        let (reply, answer) = oneshot::channel();
        self.spawn(async move {
            let _place = place;
            let _ = reply.send(guarded(plan).await);
        });
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(QueryError::new(ErrorKind::NotReady, "the server stops")),
            Err(_) => Err(timed_out(timeout)),
        }
    }
}

struct Waiting<'a>(&'a Engine);

impl<'a> Waiting<'a> {
    fn new(engine: &'a Engine) -> Self {
        engine.metrics.queued.inc();
        Waiting(engine)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.queued.dec();
    }
}

pub(super) async fn guarded<T>(future: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
    match std::panic::AssertUnwindSafe(future).catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err(QueryError::new(
            ErrorKind::Internal,
            "internal error: the query panicked; the server's log has more",
        )),
    }
}

pub(super) fn timed_out(timeout: Duration) -> QueryError {
    QueryError::new(
        ErrorKind::Timeout,
        format!("canceled: the statement took longer than {} ms (statement_timeout)", timeout.as_millis()),
    )
}

pub(super) fn canceled() -> QueryError {
    QueryError::new(ErrorKind::Canceled, "canceled on request")
}

fn environment(config: &SqlConfig, spill: Option<&Path>) -> Result<Arc<RuntimeEnv>, EngineError> {
    let mode = match spill {
        Some(path) if config.spill_bytes > 0 => {
            let failed = |error| EngineError::Spill(path.display().to_string(), error);
            // what a killed process left there is of no use
            match std::fs::remove_dir_all(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => std::fs::create_dir_all(path).map_err(failed)?,
            }
            DiskManagerMode::Directories(vec![path.to_owned()])
        }
        _ => DiskManagerMode::Disabled,
    };
    let disk =
        DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(config.spill_bytes.max(1));
    let consumers = std::num::NonZeroUsize::new(3).expect("three is not zero");
    let pool = TrackConsumersPool::new(FairSpillPool::new(config.memory_bytes), consumers);
    let environment =
        RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).with_disk_manager_builder(disk).build()?;
    // the default registry knows the local file system; queries see our store and nothing else
    let files = url::Url::parse("file:///").expect("a constant URL");
    environment.deregister_object_store(&files)?;
    Ok(Arc::new(environment))
}

fn session_state(
    threads: usize,
    environment: Arc<RuntimeEnv>,
    countries: &Countries,
    public: &Arc<Public>,
) -> Result<SessionState, DataFusionError> {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(threads);
    let options = config.options_mut();
    options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
    options.sql_parser.collect_spans = true;
    options.execution.enable_recursive_ctes = false;
    options.execution.time_zone = Some("UTC".to_owned());
    options.execution.parquet.pushdown_filters = true;

    let mut builder = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(environment)
        .with_default_features()
        .with_analyzer_rules(analyzer_rules())
        .with_physical_optimizer_rule(Arc::new(PackedGrouping::default()))
        .with_type_planner(Arc::new(AddressTypes));
    let scalars = builder.scalar_functions().get_or_insert_default();
    scalars.retain(|function| function.name() != "now");
    functions::bound_scalars(scalars);
    functions::truncate_in_utc(scalars);
    scalars.push(Arc::new(ScalarUDF::new_from_impl(functions::Now::default())));
    scalars.extend(functions::all(countries));
    builder.aggregate_functions().get_or_insert_default().extend(functions::aggregates());
    let planners = builder.expr_planners().get_or_insert_default();
    planners.insert(0, Arc::new(AddressPlanner));
    planners.insert(1, Arc::new(PercentilePlanner));

    let context = SessionContext::new_with_state(builder.build());
    let catalog = Arc::new(MemoryCatalogProvider::new());
    catalog.register_schema(SCHEMA, Arc::clone(public) as _)?;
    context.register_catalog(CATALOG, Arc::clone(&catalog) as _);
    setup_pg_catalog(&context, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
    catalog.register_schema(
        "pg_catalog",
        Arc::new(PgCatalog::new(Arc::clone(context.state().catalog_list()))?),
    )?;
    // in the place of the catalogue's own, which know neither `inet` nor our user
    for function in functions::of_catalog() {
        context.register_udf(function);
    }
    for name in ["generate_series", "range"] {
        let found =
            context.state().table_functions().get(name).map(|function| Arc::clone(function.function()));
        if let Some(function) = found {
            context.register_udtf(name, functions::bound_series(function));
        }
    }
    for question in questions::QUESTIONS {
        context.register_udtf(question.name, Arc::new(questions::Asked(question)));
    }
    // the catalogue's set-up put its own in their place
    Ok(SessionStateBuilder::new_from_existing(context.state())
        .with_type_planner(Arc::new(AddressTypes))
        .build())
}

/// Addresses before type coercion, for what people write, and after it, for the casts that it adds.
fn analyzer_rules() -> Vec<Arc<dyn datafusion::optimizer::AnalyzerRule + Send + Sync>> {
    let mut rules = Analyzer::new().rules;
    rules.insert(0, Arc::new(AddressRule));
    rules.push(Arc::new(AddressRule));
    rules
}

/// What came of a statement.
#[derive(Debug)]
pub enum Answer {
    Rows(Rows),
    /// Something about the session was done; the tag is PostgreSQL's.
    Done(Done),
}

/// A statement about the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Begin,
    Commit,
    Rollback,
    Other(&'static str),
    /// There was no statement.
    Nothing,
}

/// A statement that was planned and waits for its parameters.
#[derive(Debug)]
pub struct Prepared {
    sql: String,
    kind: PreparedKind,
}

#[derive(Debug)]
enum PreparedKind {
    Plan { plan: LogicalPlan, schema: SchemaRef, parameters: Vec<Option<DataType>> },
    Command(Command),
    Empty,
}

impl Prepared {
    /// The types of `$1`, `$2`, …; None where any serves.
    pub fn parameters(&self) -> &[Option<DataType>] {
        match &self.kind {
            PreparedKind::Plan { parameters, .. } => parameters,
            _ => &[],
        }
    }

    /// The columns of the answer; None where there are none.
    pub fn schema(&self) -> Option<SchemaRef> {
        match &self.kind {
            PreparedKind::Plan { schema, .. } => Some(Arc::clone(schema)),
            PreparedKind::Command(Command::Show(name)) => Some(setting_schema(name)),
            _ => None,
        }
    }
}

/// The settings and prepared statements of one connection.
#[derive(Debug)]
pub struct Session {
    engine: Arc<Engine>,
    door: Door,
    settings: Mutex<Settings>,
    prepared: Mutex<HashMap<String, Arc<Prepared>>>,
}

impl Session {
    /// Runs one statement.
    pub async fn execute(&self, sql: &str, cancel: &CancellationToken) -> Result<Answer, QueryError> {
        let recorder = Recorder::new(Arc::clone(&self.engine.metrics), self.door);
        match self.execute_recorded(sql, cancel, recorder.share()).await {
            Ok(answer) => {
                if matches!(answer, Answer::Done(_)) {
                    recorder.finish("ok");
                }
                Ok(answer)
            }
            Err(error) => {
                recorder.finish(error.kind.name());
                Err(error)
            }
        }
    }

    async fn execute_recorded(
        &self,
        sql: &str,
        cancel: &CancellationToken,
        recorder: Recorder,
    ) -> Result<Answer, QueryError> {
        match self.check(sql)? {
            Request::Empty => Ok(Answer::Done(Done::Nothing)),
            Request::Session(command) => Box::pin(self.command(command, cancel, recorder)).await,
            Request::Query(statement) => {
                let (engine, state, sql) = (Arc::clone(&self.engine), self.engine.state(), sql.to_owned());
                let plan = async move {
                    let failed = |error: DataFusionError| engine.failed(&error, &sql);
                    let plan = state.statement_to_plan(*statement).await.map_err(failed)?;
                    gate::verify(&plan)?;
                    if !plan.get_parameter_names().map_err(failed)?.is_empty() {
                        return Err(QueryError::new(
                            ErrorKind::Plan,
                            "the statement has parameters ($1): PREPARE it, and EXECUTE it with values",
                        ));
                    }
                    Ok((state, plan, sql))
                };
                self.run(plan, cancel, recorder).await.map(Answer::Rows)
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn settings_for_test(&self, name: &str, value: &str) {
        let mut settings = Settings::new(Duration::from_secs(60));
        settings.set(name, value).expect("a setting");
        *self.settings.lock() = settings;
    }

    fn check(&self, sql: &str) -> Result<Request, QueryError> {
        gate::check(sql, &self.engine.limits, &self.engine.catalog_parser)
    }

    /// Plans a statement for later; its parameters are typed by their use.
    pub async fn prepare(&self, sql: &str) -> Result<Arc<Prepared>, QueryError> {
        let kind = match self.check(sql)? {
            Request::Empty => PreparedKind::Empty,
            Request::Session(command) => PreparedKind::Command(command),
            Request::Query(statement) => {
                let (engine, state, sql) = (Arc::clone(&self.engine), self.engine.state(), sql.to_owned());
                let timeout = self.settings.lock().statement_timeout();
                let plan = async move {
                    let failed = |error: DataFusionError| engine.failed(&error, &sql);
                    let plan = state.statement_to_plan(*statement).await.map_err(failed)?;
                    gate::verify(&plan)?;
                    let parameters = parameters(&plan).map_err(failed)?;
                    let schema = match state.analyzer().execute_and_check(
                        plan.clone(),
                        state.config_options(),
                        |_, _| {},
                    ) {
                        Ok(analyzed) => Arc::clone(analyzed.schema().inner()),
                        Err(error) if parameters.is_empty() => return Err(failed(error)),
                        // with its parameters' types it may be planned
                        Err(_) => Arc::clone(plan.schema().inner()),
                    };
                    Ok(PreparedKind::Plan { plan, schema, parameters })
                };
                self.engine.plan(timeout, plan).await?
            }
        };
        Ok(Arc::new(Prepared { sql: sql.to_owned(), kind }))
    }

    /// Runs a prepared statement with its parameters.
    pub async fn execute_prepared(
        &self,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
        cancel: &CancellationToken,
    ) -> Result<Answer, QueryError> {
        let recorder = Recorder::new(Arc::clone(&self.engine.metrics), self.door);
        let result = self.execute_plan(prepared, parameters, cancel, recorder.share()).await;
        match &result {
            Ok(Answer::Done(_)) => recorder.finish("ok"),
            Ok(Answer::Rows(_)) => {}
            Err(error) => recorder.finish(error.kind.name()),
        }
        result
    }

    async fn execute_plan(
        &self,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
        cancel: &CancellationToken,
        recorder: Recorder,
    ) -> Result<Answer, QueryError> {
        match &prepared.kind {
            PreparedKind::Empty => Ok(Answer::Done(Done::Nothing)),
            PreparedKind::Command(command) => Box::pin(self.command(command.clone(), cancel, recorder)).await,
            PreparedKind::Plan { plan, parameters: types, .. } => {
                if parameters.len() != types.len() {
                    return Err(QueryError::new(
                        ErrorKind::Prepared,
                        format!(
                            "the statement has {} parameters; {} were given",
                            types.len(),
                            parameters.len()
                        ),
                    ));
                }
                let (state, plan, sql) = (self.engine.state(), plan.clone(), prepared.sql.clone());
                let plan = async move {
                    let plan = plan
                        .with_param_values(parameters)
                        .map_err(|error| QueryError::from_datafusion(&error, &sql))?;
                    Ok((state, plan, sql))
                };
                self.run(plan, cancel, recorder).await.map(Answer::Rows)
            }
        }
    }

    async fn command(
        &self,
        command: Command,
        cancel: &CancellationToken,
        recorder: Recorder,
    ) -> Result<Answer, QueryError> {
        let done = match command {
            Command::Begin => Done::Begin,
            Command::Commit => Done::Commit,
            Command::Rollback => Done::Rollback,
            Command::Ignored(tag) => Done::Other(tag),
            Command::Discard => {
                self.settings.lock().reset(None);
                self.prepared.lock().clear();
                Done::Other("DISCARD ALL")
            }
            Command::Set { name, value } => {
                self.settings.lock().set(&name, &value)?;
                Done::Other("SET")
            }
            Command::Reset(name) => {
                self.settings.lock().reset(name.as_deref());
                Done::Other("RESET")
            }
            Command::Show(name) => {
                let value = self.settings.lock().get(&name).unwrap_or_default();
                recorder.finish("ok");
                return Rows::of_text(setting_schema(&name), value).map(Answer::Rows);
            }
            Command::Prepare { name, sql } => {
                let prepared = self.prepare(&sql).await?;
                if !matches!(prepared.kind, PreparedKind::Plan { .. }) {
                    return Err(QueryError::new(ErrorKind::Prepared, "PREPARE takes a query"));
                }
                self.keep(&name, prepared)?;
                Done::Other("PREPARE")
            }
            Command::Deallocate(name) => {
                let mut kept = self.prepared.lock();
                match name {
                    None => kept.clear(),
                    Some(name) => drop(kept.remove(&name).ok_or_else(|| unknown_prepared(&name))?),
                }
                Done::Other("DEALLOCATE")
            }
            Command::Execute { name, arguments } => {
                let prepared =
                    self.prepared.lock().get(&name).cloned().ok_or_else(|| unknown_prepared(&name))?;
                let values = match arguments {
                    Some(arguments) => self.values(&arguments, prepared.parameters(), cancel).await?,
                    None => Vec::new(),
                };
                return self.execute_plan(&prepared, values, cancel, recorder).await;
            }
        };
        Ok(Answer::Done(done))
    }

    fn keep(&self, name: &str, prepared: Arc<Prepared>) -> Result<(), QueryError> {
        let mut kept = self.prepared.lock();
        if kept.len() >= PREPARED_MAX {
            return Err(QueryError::new(
                ErrorKind::Prepared,
                format!("a session keeps {PREPARED_MAX} prepared statements: DEALLOCATE some"),
            ));
        }
        if kept.contains_key(name) {
            return Err(QueryError::new(
                ErrorKind::Prepared,
                format!("prepared statement \"{name}\" exists already"),
            ));
        }
        kept.insert(name.to_owned(), prepared);
        Ok(())
    }

    /// The values of `EXECUTE name (…)`, computed as SQL would.
    async fn values(
        &self,
        arguments: &str,
        types: &[Option<DataType>],
        cancel: &CancellationToken,
    ) -> Result<Vec<ScalarValue>, QueryError> {
        let recorder = Recorder::silent(Arc::clone(&self.engine.metrics), self.door);
        let sql = format!("SELECT {arguments}");
        let Answer::Rows(mut rows) = Box::pin(self.execute_recorded(&sql, cancel, recorder)).await? else {
            return Ok(Vec::new());
        };
        let batch = rows.next().await.transpose()?;
        let Some(batch) = batch.filter(|batch| batch.num_rows() == 1) else {
            return Err(QueryError::new(ErrorKind::Prepared, "EXECUTE takes one value for each parameter"));
        };
        let failed = |error: DataFusionError| QueryError::from_datafusion(&error, arguments);
        let value = |(at, column): (usize, &ArrayRef)| {
            let value = ScalarValue::try_from_array(column, 0).map_err(failed)?;
            typed(value, types.get(at).and_then(Option::as_ref)).map_err(failed)
        };
        batch.columns().iter().enumerate().map(value).collect()
    }

    /// Plans and starts a query; its rows come as they are made.
    async fn run<F>(
        &self,
        plan: F,
        cancel: &CancellationToken,
        recorder: Recorder,
    ) -> Result<Rows, QueryError>
    where
        F: Future<Output = Result<(SessionState, LogicalPlan, String), QueryError>> + Send + 'static,
    {
        let timeout = self.settings.lock().statement_timeout();
        let deadline = Instant::now() + timeout;
        let place = tokio::select! {
            place = self.engine.admit() => place?,
            () = cancel.cancelled() => return Err(canceled()),
        };
        let stop = cancel.child_token();
        let (header, schema) = oneshot::channel();
        let (rows, receiver) = mpsc::channel(2);
        let cluster = self.engine.cluster.get().cloned();
        let driver = Driver { rows, stop: stop.clone(), deadline, timeout, recorder, cluster };
        self.engine.spawn(async move {
            let _place = place;
            driver.drive(plan, header).await;
        });
        let guard = stop.clone().drop_guard();
        // planning does not yield: whoever waits is let go in time all the same
        let schema = tokio::select! {
            schema = schema => schema,
            () = tokio::time::sleep_until(deadline) => return Err(timed_out(timeout)),
            () = cancel.cancelled() => return Err(canceled()),
        };
        match schema {
            Ok(Ok(schema)) => {
                let cancel = cancel.clone();
                let end = async move {
                    tokio::select! {
                        () = cancel.cancelled() => canceled(),
                        // the driver says so itself, if it can
                        () = tokio::time::sleep_until(deadline + Duration::from_millis(500)) => timed_out(timeout),
                    }
                };
                Ok(Rows { schema, receiver, ended: false, end: Box::pin(end), _stop: Some(guard) })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(QueryError::new(ErrorKind::NotReady, "the server stops")),
        }
    }
}

fn unknown_prepared(name: &str) -> QueryError {
    QueryError::new(ErrorKind::Prepared, format!("no prepared statement \"{name}\""))
}

fn setting_schema(name: &str) -> SchemaRef {
    use datafusion::arrow::datatypes::{Field, Schema};
    Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8, false)]))
}

/// The types of a plan's parameters in the order of their numbers.
fn parameters(plan: &LogicalPlan) -> Result<Vec<Option<DataType>>, DataFusionError> {
    let found = plan.get_parameter_types()?;
    let numbered: HashMap<usize, Option<DataType>> = found
        .into_iter()
        .filter_map(|(name, data_type)| Some((name.strip_prefix('$')?.parse().ok()?, data_type)))
        .collect();
    let count = numbered.keys().copied().max().unwrap_or(0).min(u16::MAX.into());
    Ok((1..=count).map(|number| numbered.get(&number).cloned().flatten()).collect())
}

/// `value` as a parameter's type.
pub(crate) fn typed(
    value: ScalarValue,
    data_type: Option<&DataType>,
) -> Result<ScalarValue, DataFusionError> {
    let Some(data_type) = data_type else { return Ok(value) };
    if value.data_type() == *data_type {
        return Ok(value);
    }
    match (Family::of(data_type), value.try_as_str()) {
        (Some(family), Some(text)) => family.scalar(text),
        (Some(_), None) if value.is_null() => ScalarValue::try_from(data_type),
        _ => value.cast_to(data_type),
    }
}
