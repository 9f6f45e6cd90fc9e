//! The role `aggregate`: from the log through the store to the servers, put together by hand.
//!
//! ```text
//! source → ingest → store ← maintenance
//!                     ↑
//!          PostgreSQL, HTTP → engine
//! ```
//!
//! The servers start first and say "not ready" until the store is open. At the end the ingest stops first, after it has
//! taken and committed what the log still holds; then maintenance; the servers, which answer until then, stop last.
//!
//! Memory, with the defaults: hot rows 256 MiB, queries 512 MiB, and about 150 MiB for the rest; the rollups of a commit in
//! which every host is new take up to 300 MiB more for a moment (`docs/decisions/rollups.md`).

use std::fmt::Display;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, views};
pub use crate::cluster::ClusterConfig;
use crate::cluster::ClusterMetrics;
use crate::follow::follow_all;
use crate::ingest::{Ingest, IngestError, OpenSource};
use crate::rollup::AggregateConfig;
pub use crate::serve::{HttpConfig, PostgresConfig};
use crate::serve::{Shared, http, may_listen, pg};
use crate::sql::{Engine, EngineError, SqlConfig, SqlMetrics};
use crate::store::{Maintenance, Store, StoreConfig, StoreError, StoreInfo};
use crate::traffic::Traffic;
use crate::views::INTERFACE_VIEWS;

/// How often the tables are looked at for what other aggregators have committed.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// A try to open the store follows the last after this time.
const RETRY: Duration = Duration::from_secs(2);
/// How long queries wait at the start for the log to be read to its end.
const CATCH_UP: Duration = Duration::from_secs(60);
/// The servers have this long to end what they answer.
const SERVERS_STOP: Duration = Duration::from_secs(5);

/// What the role is configured with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AggregatorConfig {
    pub store: StoreConfig,
    pub aggregate: AggregateConfig,
    pub sql: SqlConfig,
    pub http: HttpConfig,
    pub postgres: PostgresConfig,
    pub cluster: ClusterConfig,
    /// Allows the listeners to be other than loopback, although there is no TLS.
    pub insecure_listen: bool,
}

impl AggregatorConfig {
    /// What is wrong with it, by key.
    pub fn problems(&self) -> Vec<String> {
        let store = self.store.problems().into_iter().map(|problem| format!("store.{problem}"));
        let sql = self.sql.problems().into_iter().map(|problem| format!("sql.{problem}"));
        let aggregate = self.aggregate.problems().into_iter().map(|problem| format!("aggregate.{problem}"));
        store.chain(aggregate).chain(sql).collect()
    }
}

/// How the log is read.
pub enum LogAccess {
    /// All of it is stored here.
    All(OpenSource),
    /// Aggregators share it, all on one store: the first opens what this one stores, the second what the others do.
    Shared(OpenSource, OpenSource),
    /// Nothing is stored here: others do that, and queries show what they have not stored yet.
    Query(OpenSource),
}

impl std::fmt::Debug for LogAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LogAccess::All(_) => "All",
            LogAccess::Shared(..) => "Shared",
            LogAccess::Query(_) => "Query",
        })
    }
}

/// What the role is given.
pub struct AggregatorDeps {
    pub data_dir: PathBuf,
    /// Names the log whose offsets the store carries.
    pub log_id: String,
    pub log: LogAccess,
    pub http: TcpListener,
    pub postgres: TcpListener,
    /// For other nodes; None where queries run on this one alone.
    pub cluster: Option<TcpListener>,
    /// Whether a collector runs on this machine: then weir is not ready without it.
    pub collector_expected: bool,
}

impl std::fmt::Debug for AggregatorDeps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AggregatorDeps").field("log_id", &self.log_id).finish_non_exhaustive()
    }
}

/// Why the role cannot start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AggregatorError {
    /// Correct the configuration.
    #[error("{0}")]
    Config(String),
    #[error("cannot use a listener: {0}")]
    Listener(std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Ingest(#[from] IngestError),
}

/// The role, put together and not started.
#[derive(Debug)]
pub struct Aggregator {
    config: AggregatorConfig,
    deps: AggregatorDeps,
}

impl Aggregator {
    /// Checks everything that can be checked before anything starts.
    pub fn new(config: AggregatorConfig, deps: AggregatorDeps) -> Result<Aggregator, AggregatorError> {
        let mut problems = config.problems();
        let doors = [("http", &deps.http), ("postgres", &deps.postgres)];
        for (door, listener) in doors.into_iter().chain(deps.cluster.iter().map(|door| ("cluster", door))) {
            let address = listener.local_addr().map_err(AggregatorError::Listener)?;
            problems.extend(may_listen(door, address, config.insecure_listen).err());
        }
        let listen = deps.cluster.as_ref().and_then(|door| door.local_addr().ok());
        problems
            .extend(config.cluster.problems(listen).into_iter().map(|problem| format!("cluster.{problem}")));
        if problems.is_empty() {
            Ok(Aggregator { config, deps })
        } else {
            Err(AggregatorError::Config(problems.join("; ")))
        }
    }

    /// Runs until `shutdown`, then stops in order. `on_open` is called when the store is open and queries are answered.
    pub async fn run(
        self,
        shutdown: CancellationToken,
        on_open: impl FnOnce(),
    ) -> Result<(), AggregatorError> {
        let Aggregator { config, deps } = self;
        let mut registry = Registry::default();
        let sql_metrics = Arc::new(SqlMetrics::default());
        sql_metrics.register(&mut registry);
        let socket = deps.data_dir.join("run").join("collect.sock");
        let shared = Shared::new(registry, Some(socket), deps.collector_expected);

        let servers = CancellationToken::new();
        let _servers_at_any_end = servers.clone().drop_guard();
        let http = to_tokio(deps.http)?;
        let postgres = to_tokio(deps.postgres)?;
        let http = tokio::spawn(http::serve(http, config.http.clone(), Arc::clone(&shared), servers.clone()));
        let postgres =
            tokio::spawn(pg::serve(postgres, config.postgres.clone(), Arc::clone(&shared), servers.clone()));

        let countries = config.aggregate.countries.clone();
        let load = countries.clone();
        let wrong = |error: &dyn Display| AggregatorError::Config(format!("aggregate.countries: {error}"));
        let loaded = tokio::task::spawn_blocking(move || load.load()).await;
        loaded.map_err(|error| wrong(&error))?.map_err(|error| wrong(&error))?;
        tokio::spawn(countries.clone().follow(servers.clone()));
        let store = tokio::select! {
            store = open_store(&config, &deps.data_dir, &deps.log_id) => store?,
            () = shutdown.cancelled() => return Ok(()),
        };
        shared.register(|registry| store.metrics().register(registry));
        let catalog = Catalog::new(Arc::clone(&store));
        let spill = deps.data_dir.join("tmp").join("sql");
        let views = [views(), &INTERFACE_VIEWS].concat();
        let mut tables = catalog.tables();
        if let Some(traffic) = Traffic::over(&tables) {
            tables.push(("traffic".to_owned(), Arc::new(traffic)));
        }
        let engine =
            Engine::new(config.sql.clone(), tables, &views, countries, Some(&spill), sql_metrics).await?;
        catalog.register(engine.runtime_env());
        let metrics = Arc::new(ClusterMetrics::default());
        shared.register(|registry| metrics.register(registry));
        if let Some(listener) = deps.cluster {
            let config = config.cluster.clone();
            engine.join(config, listener, store.objects(), Arc::clone(&metrics), servers.child_token())?;
        }
        let (of_problem, of_metrics) = (Arc::clone(&store), Arc::clone(&store));
        shared.watch(
            Box::new(move || problem(&of_problem.info())),
            Box::new(move || of_metrics.metrics().update(&of_metrics.info())),
        );

        let maintenance = CancellationToken::new();
        let stores = !matches!(deps.log, LogAccess::Query(_));
        if !matches!(deps.log, LogAccess::All(_)) {
            tokio::spawn(refresh(Arc::clone(&store), servers.clone()));
        }
        let maintain = {
            let (store, stop) = (Arc::clone(&store), maintenance.clone());
            tokio::spawn(async move {
                if stores {
                    Maintenance::new(store).run(stop).await;
                }
            })
        };
        let of_log = Arc::clone(&store);
        let ingest = async move {
            match deps.log {
                LogAccess::All(open) => Ingest::new(of_log, open).run(shutdown).await,
                LogAccess::Shared(open, others) => {
                    Ingest::new(of_log, open).beside(Some(others)).run(shutdown).await
                }
                LogAccess::Query(open) => follow_all(of_log, open, shutdown).await,
            }
        };
        let mut ingest = std::pin::pin!(ingest);
        // What SQL showed before a restart it shows after it: the rows that were in memory only are read again first.
        let ended = tokio::select! {
            ended = &mut ingest => Some(ended),
            () = caught_up(&store) => None,
        };
        let ingested = match ended {
            Some(ended) => ended,
            None => {
                shared.open(engine);
                on_open();
                ingest.await
            }
        };
        maintenance.cancel();
        let _ = maintain.await;
        shared.close();
        servers.cancel();
        let _ = tokio::time::timeout(SERVERS_STOP, async { (http.await, postgres.await) }).await;
        Ok(ingested?)
    }
}

/// Opens the store; while its files cannot be read, again and again.
async fn open_store(
    config: &AggregatorConfig,
    data_dir: &std::path::Path,
    log_id: &str,
) -> Result<Arc<Store>, StoreError> {
    loop {
        let opened = Store::open(config.store.clone(), config.aggregate.clone(), data_dir, log_id).await;
        match opened {
            Err(StoreError::Objects(error)) => {
                tracing::warn!(%error, "the store cannot be opened; trying again");
                tokio::time::sleep(RETRY).await;
            }
            other => return other,
        }
    }
}

/// Looks for what other aggregators have committed.
async fn refresh(store: Arc<Store>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = store.refresh().await {
            tracing::warn!(%error, "what other aggregators have committed cannot be read; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(REFRESH_EVERY) => {}
        }
    }
}

/// Until the log was read to its end once; where that takes long, for [`CATCH_UP`].
async fn caught_up(store: &Store) {
    let started = Instant::now();
    while store.info().lag_seconds.is_none() {
        if started.elapsed() > CATCH_UP {
            tracing::warn!(
                "the log is not read to its end yet: queries are answered without its newest rows"
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Why the store is not ready, where it is not.
fn problem(info: &StoreInfo) -> Option<String> {
    if let Some(problem) = &info.problem {
        return Some(problem.clone());
    }
    info.lag_seconds.is_none().then(|| "the log has not been read to its end yet".to_owned())
}

fn to_tokio(listener: TcpListener) -> Result<tokio::net::TcpListener, AggregatorError> {
    listener.set_nonblocking(true).map_err(AggregatorError::Listener)?;
    tokio::net::TcpListener::from_std(listener).map_err(AggregatorError::Listener)
}
