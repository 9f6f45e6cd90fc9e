//! A query on all nodes: who they are, how a plan is spread over them, and how a node works for another.
//!
//! ```text
//! engine → plan: is there enough to read? → stages, a task for each node → worker (own, others') → rows
//!                                              ↑
//!                            nodes: who has signed up in the store, and answers
//! ```
//!
//! The work is that of `datafusion-distributed`: a physical plan is cut into stages, whose tasks exchange Arrow batches over
//! gRPC. Ours is what is particular: nodes find each other in the store that they share ([`nodes`]); the rows that are in
//! memory only stay on the node that was asked, so that an answer is of one snapshot ([`plan`]); a node that works for
//! another takes plans that read the store's tables, and nothing else ([`worker`]). A plan that cannot be spread, or whose
//! nodes fail before the first row went out, runs on the node that was asked.
//!
//! `docs/decisions/cluster.md` says why.

mod nodes;
mod plan;
#[cfg(test)]
mod tests;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::context::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion_distributed::Worker;
use object_store::ObjectStore;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use url::Url;

use nodes::Nodes;
use worker::Channels;

pub(crate) use plan::Spread;

/// What two nodes must have in common: plans are written for one version.
const VERSION: &str = concat!("weir ", env!("CARGO_PKG_VERSION"));

/// How queries use other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// Where other nodes reach `listen.cluster`, where it is another address than that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// The nodes know each other by it. Needed where they are not all on one machine.
    pub secret: String,
    /// So much of files to read is worth a node: a query that reads less runs on the node that is asked.
    pub node_bytes: usize,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig { advertise: None, secret: String::new(), node_bytes: 32 << 20 }
    }
}

impl ClusterConfig {
    /// What is wrong with it, by key, where the door is at `listen`.
    pub fn problems(&self, listen: Option<SocketAddr>) -> Vec<String> {
        let mut problems = Vec::new();
        if self.node_bytes == 0 {
            problems.push("node_bytes: at least 1".to_owned());
        }
        if !self.secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            problems.push("secret: ASCII letters, digits and signs only".to_owned());
        }
        let Some(listen) = listen else { return problems };
        let reached = self.advertise.unwrap_or(listen);
        if reached.ip().is_unspecified() {
            problems.push(format!(
                "advertise: listen.cluster is {listen}, which is not an address that others can connect to: give one"
            ));
        }
        if !(reached.ip().is_loopback() && listen.ip().is_loopback()) && self.secret.len() < 16 {
            problems.push(
                "secret: listen.cluster is not on loopback: give a secret of at least 16 characters, the same on all nodes"
                    .to_owned(),
            );
        }
        problems
    }
}

/// What queries on several nodes are counted by.
#[derive(Debug, Default)]
pub(crate) struct ClusterMetrics {
    nodes: Gauge,
    spread: Counter,
    fell_back: Counter,
    refused: Counter,
}

impl ClusterMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "weir_cluster_nodes",
            "Nodes that answer, this one included; 0 where `listen.cluster` is not set",
            self.nodes.clone(),
        );
        registry.register(
            "weir_cluster_queries",
            "Queries of this node that ran on several",
            self.spread.clone(),
        );
        registry.register(
            "weir_cluster_fallbacks",
            "Queries that failed on several nodes before their first row, and ran on this one alone",
            self.fell_back.clone(),
        );
        registry.register(
            "weir_cluster_refused",
            "Requests of other nodes that were refused: a wrong secret, or a plan that does more than read",
            self.refused.clone(),
        );
    }
}

/// A node among others.
pub(crate) struct Cluster {
    config: ClusterConfig,
    nodes: Arc<Nodes>,
    channels: Channels,
    worker: Worker,
    /// All rules but the one that puts an operator into a plan which only this process can run.
    rules: Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>,
    metrics: Arc<ClusterMetrics>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

/// What a cluster needs of the engine.
pub(crate) struct Home {
    pub(crate) base: SessionState,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) listener: TcpListener,
    pub(crate) objects: Arc<dyn ObjectStore>,
}

impl Cluster {
    /// Opens the door to the other nodes and signs up in the store, until `stop`.
    pub(crate) fn start(
        config: ClusterConfig,
        home: Home,
        metrics: Arc<ClusterMetrics>,
        stop: CancellationToken,
    ) -> Result<Arc<Cluster>> {
        let Home { base, runtime, listener, objects } = home;
        let address = match config.advertise {
            Some(address) => address,
            None => listener.local_addr()?,
        };
        let own = url_of(address)?;
        let channels = Channels::new(&config.secret)?;
        let nodes = Arc::new(Nodes::new(own, objects, channels.clone()));
        let is_ours = |rule: &&Arc<dyn PhysicalOptimizerRule + Send + Sync>| rule.name() != "packed_grouping";
        let rules = base.physical_optimizers().iter().filter(is_ours).cloned().collect();
        let worker = worker::worker(&base, &channels, Arc::clone(&metrics));
        runtime.spawn(worker::serve(
            worker.clone(),
            listener,
            config.secret.clone(),
            Arc::clone(&metrics),
            stop.clone(),
        ));
        runtime.spawn(Arc::clone(&nodes).keep(address, metrics.nodes.clone(), stop));
        Ok(Arc::new(Cluster { config, nodes, channels, worker, rules, metrics }))
    }

    /// A query fell back to this node.
    pub(crate) fn fell_back(&self, error: &DataFusionError) {
        tracing::warn!(%error, "a query failed on several nodes: it runs on this one");
        self.metrics.fell_back.inc();
        // whoever is gone is asked again before it is given work
        self.nodes.doubt();
    }
}

fn url_of(address: SocketAddr) -> Result<Url> {
    Url::parse(&format!("http://{address}")).map_err(|error| DataFusionError::External(Box::new(error)))
}

/// The URL under which queries find the store's files.
fn files() -> ObjectStoreUrl {
    ObjectStoreUrl::parse(crate::store::OBJECT_STORE_URL).expect("a constant URL")
}

/// How long a node may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(1);
