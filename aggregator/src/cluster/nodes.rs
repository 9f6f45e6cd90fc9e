//! Who the nodes are: each signs up in the store that all share, and is asked whether it is there.
//!
//! `_nodes/ADDRESS.json` names a node. What is written there is where to ask and nothing more: a node gets work while it
//! answers, with the same version. One that is stopped takes its name away; what a killed one leaves is taken away by
//! others after a day.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Result;
use datafusion_distributed::{ChannelResolver, GetWorkerInfoRequest, WorkerResolver};
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use parking_lot::RwLock;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::worker::Channels;
use super::{ANSWER, VERSION, url_of};

const FOLDER: &str = "_nodes";
/// Nodes are asked so often.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// The store is read so often.
const LIST_EVERY: Duration = Duration::from_secs(10);
/// A node writes its name so often: the store may have been emptied meanwhile.
const SIGN_EVERY: Duration = Duration::from_secs(300);
/// What was not written anew for so long is of nobody.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// More nodes than that are not looked at.
const NODES_MAX: usize = 256;

/// What stands in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Signed {
    address: SocketAddr,
    version: String,
}

/// The nodes as this one knows them.
pub(super) struct Nodes {
    own: Url,
    objects: Arc<dyn ObjectStore>,
    channels: Channels,
    /// Those that answer, this one first.
    here: RwLock<Vec<Url>>,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let here: Vec<_> = self.here.read().iter().map(Url::to_string).collect();
        f.debug_struct("Nodes").field("here", &here).finish_non_exhaustive()
    }
}

fn place(address: SocketAddr) -> Path {
    let name: String = address
        .to_string()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
        .collect();
    Path::from(format!("{FOLDER}/{name}.json"))
}

impl Nodes {
    pub(super) fn new(own: Url, objects: Arc<dyn ObjectStore>, channels: Channels) -> Nodes {
        Nodes { here: RwLock::new(vec![own.clone()]), own, objects, channels }
    }

    pub(super) fn own(&self) -> &Url {
        &self.own
    }

    pub(super) fn here(&self) -> Vec<Url> {
        self.here.read().clone()
    }

    /// Only this node, until the others have answered again.
    pub(super) fn doubt(&self) {
        self.here.write().truncate(1);
    }

    /// Signs up, asks the others, and signs off at `stop`.
    pub(super) async fn keep(self: Arc<Self>, address: SocketAddr, count: Gauge, stop: CancellationToken) {
        let (mut listed, mut signed): (Option<Instant>, Option<Instant>) = (None, None);
        let mut known = Vec::new();
        let is_due = |at: Option<Instant>, every| at.is_none_or(|at| at.elapsed() >= every);
        while !stop.is_cancelled() {
            let round = async {
                if is_due(signed, SIGN_EVERY) {
                    match self.sign(address).await {
                        Ok(()) => signed = Some(Instant::now()),
                        Err(error) => {
                            tracing::warn!(%error, "this node cannot sign up in the store; trying again")
                        }
                    }
                }
                if is_due(listed, LIST_EVERY) {
                    match self.list(address).await {
                        Ok(found) => (known, listed) = (found, Some(Instant::now())),
                        Err(error) => tracing::warn!(%error, "the other nodes cannot be read from the store"),
                    }
                }
                let asked = join_all(known.iter().map(|url| self.is_there(url))).await;
                let others = known.iter().zip(asked).filter(|(_, there)| *there).map(|(url, _)| url.clone());
                let here: Vec<Url> = std::iter::once(self.own.clone()).chain(others).collect();
                count.set(i64::try_from(here.len()).unwrap_or(i64::MAX));
                *self.here.write() = here;
                tokio::time::sleep(ASK_EVERY).await;
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = round => {}
            }
        }
        if let Err(error) = self.objects.delete(&place(address)).await {
            tracing::debug!(%error, "this node could not sign off");
        }
    }

    async fn sign(&self, address: SocketAddr) -> Result<(), object_store::Error> {
        let signed = Signed { address, version: VERSION.to_owned() };
        let text = serde_json::to_vec(&signed).expect("an address and a text are JSON");
        self.objects.put(&place(address), PutPayload::from(text)).await.map(|_| ())
    }

    /// The others that have signed up.
    async fn list(&self, own: SocketAddr) -> Result<Vec<Url>, object_store::Error> {
        let mut found = Vec::new();
        let mut entries = self.objects.list(Some(&Path::from(FOLDER)));
        while let Some(entry) = entries.try_next().await? {
            if entry.location == place(own) {
                continue;
            }
            let age = chrono::Utc::now().signed_duration_since(entry.last_modified);
            if age.to_std().is_ok_and(|age| age > FORGOTTEN_AFTER) {
                // somebody else may have been quicker
                let _ = self.objects.delete(&entry.location).await;
                continue;
            }
            let signed: Option<Signed> = match self.objects.get(&entry.location).await {
                Ok(result) => serde_json::from_slice(&result.bytes().await?).ok(),
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => return Err(error),
            };
            if let Some(signed) = signed.filter(|signed| signed.version == VERSION)
                && let Ok(url) = url_of(signed.address)
                && url != self.own
            {
                found.push(url);
            }
            if found.len() == NODES_MAX {
                break;
            }
        }
        Ok(found)
    }

    async fn is_there(&self, url: &Url) -> bool {
        let asked = async {
            let mut channel = self.channels.get_worker_client_for_url(url).await?;
            channel.get_worker_info(GetWorkerInfoRequest {}).await
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(info)) => info.version == VERSION,
            Ok(Err(error)) => {
                tracing::debug!(%url, %error, "a node does not answer");
                false
            }
            Err(_) => false,
        }
    }
}

/// The nodes for the planner.
pub(super) struct Known(pub(super) Arc<Nodes>);

impl WorkerResolver for Known {
    fn get_urls(&self) -> Result<Vec<Url>> {
        Ok(self.0.here())
    }
}
