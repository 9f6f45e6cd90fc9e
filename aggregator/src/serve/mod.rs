//! The doors: the PostgreSQL wire and HTTP, in front of one [`Engine`].
//!
//! Both start before the store is open and answer "not ready" until it is. What a statement may do, how long and how
//! large, is the engine's business; here are protocols, formats and the bounds of connections.

pub mod http;
mod metrics;
pub mod pg;
pub(crate) mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

pub use metrics::ServeMetrics;

use crate::sql::{Engine, ErrorKind, QueryError};

/// `[http]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Requests that are answered at once; more are refused.
    pub requests: usize,
    /// Rows of one JSON answer; CSV and Arrow stream without this bound.
    pub json_rows: usize,
    /// Bytes of one JSON answer.
    pub json_bytes: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig { requests: 256, json_rows: 100_000, json_bytes: 16 << 20 }
    }
}

/// `[postgres]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresConfig {
    /// The user that may come in.
    pub user: String,
    /// The user's password (SCRAM-SHA-256). None lets the user in without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Connections at once.
    pub connections: usize,
    /// A connection that asks nothing for so long is closed.
    pub idle_timeout_s: u64,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        PostgresConfig { user: "weir".to_owned(), password: None, connections: 100, idle_timeout_s: 3_600 }
    }
}

/// A secret: never printed, never written back.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Secret(secret.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Says why weir is not ready; nothing where it is.
pub type Problem = Box<dyn Fn() -> Option<String> + Send + Sync>;
/// Brings gauges up to date before they are rendered.
pub type Refresh = Box<dyn Fn() + Send + Sync>;

/// What the doors share.
pub struct Shared {
    engine: RwLock<Option<Arc<Engine>>>,
    problem: RwLock<Option<Problem>>,
    refresh: RwLock<Option<Refresh>>,
    /// The collector's admin socket, and whether one is expected there.
    collector: Option<PathBuf>,
    collector_expected: bool,
    registry: RwLock<Registry>,
    metrics: ServeMetrics,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("ready", &self.engine.read().is_some()).finish_non_exhaustive()
    }
}

impl Shared {
    /// `registry` holds the aggregator's metrics already; those of the doors are added. `collector` is the admin socket
    /// whose metrics are shown with ours.
    pub fn new(mut registry: Registry, collector: Option<PathBuf>, collector_expected: bool) -> Arc<Shared> {
        let metrics = ServeMetrics::default();
        metrics.register(&mut registry);
        Arc::new(Shared {
            engine: RwLock::new(None),
            problem: RwLock::new(None),
            refresh: RwLock::new(None),
            collector,
            collector_expected,
            registry: RwLock::new(registry),
            metrics,
        })
    }

    /// Adds metrics of parts that start later.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.write());
    }

    /// From now on `problem` says why weir is not ready, and `refresh` is called before metrics are rendered.
    pub fn watch(&self, problem: Problem, refresh: Refresh) {
        *self.problem.write() = Some(problem);
        *self.refresh.write() = Some(refresh);
    }

    /// From now on queries are answered.
    pub fn open(&self, engine: Arc<Engine>) {
        *self.engine.write() = Some(engine);
    }

    /// From now on queries are refused.
    pub fn close(&self) {
        *self.engine.write() = None;
    }

    pub(crate) fn engine(&self) -> Result<Arc<Engine>, QueryError> {
        let engine = self.engine.read().clone();
        engine.ok_or_else(|| QueryError::new(ErrorKind::NotReady, format!("not ready: {}", self.closed())))
    }

    /// Why no queries are answered.
    fn closed(&self) -> String {
        let problem = self.problem.read().as_ref().and_then(|problem| problem());
        problem.unwrap_or_else(|| "the store is not open".to_owned())
    }
}

/// Whether a door may be opened there: on loopback, or where a flag says so by name.
pub fn may_listen(door: &str, address: SocketAddr, insecure: bool) -> Result<(), String> {
    if address.ip().is_loopback() || insecure {
        return Ok(());
    }
    Err(format!(
        "listen.{door}: {address} is not on loopback, and there is no TLS: listen on 127.0.0.1 behind a proxy, or set \
         listen.insecure = true"
    ))
}

#[cfg(test)]
mod tests;
