//! The collect role: the parts of the collector wired together, started and stopped in order.
//!
//! Started from the back (writer, then shards), stopped from the front: the shards read what the kernel had when the
//! signal came, close their batches and end; then the writer takes the queue to its end and waits for the log; then the
//! decoders' state is saved. So all that was received before the signal is in the log when [`Collector::run`] returns.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::admin::{Admin, Phase};
use crate::batch::{BatchConfig, Batcher, SizeRatios};
use crate::decode::{DecodeConfig, Decoder, SharedState};
use crate::metrics::{CollectorMetrics, ExporterTable, Ledger, ShardStats, Sources};
use crate::receive::journal::Journal;
use crate::receive::quarantine::Quarantine;
use crate::receive::socket::{self, Memory, Ring, Socket, SocketError, Steer};
use crate::receive::{KeptJournal, Shard, ShardParts, StopSignal};
use crate::sink::spool::Forwarding;
use crate::sink::{JournalMark, Sink};
use crate::state::StateFile;
use crate::writer::{Identity, Queue, Writer, WriterConfig};

/// Where datagrams are received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// UDP addresses; each takes any of the protocols. `[::]` takes IPv4 too.
    pub udp: Vec<SocketAddr>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        let any = |port| SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port);
        ListenConfig { udp: vec![any(2055), any(4739), any(6343)] }
    }
}

/// How datagrams are received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReceiveConfig {
    /// Receive threads, each with a socket of its own on every address; 0: one for every two cores, 1 to 16.
    pub shards: usize,
    /// Receive buffer of each socket. The kernel gives less where `net.core.rmem_max` is less.
    pub buffer_bytes: usize,
    /// `exporter`: an exporter always meets one shard. `flow`: source ports are spread over all of them.
    pub steer: Steer,
    /// Memory of each shard for the datagrams whose rows are not in the log yet: `weir run` holds it, so that a crash of
    /// the collector loses none of them. 0: none.
    pub journal_bytes: usize,
}

impl Default for ReceiveConfig {
    fn default() -> Self {
        ReceiveConfig { shards: 0, buffer_bytes: 32 << 20, steer: Steer::Exporter, journal_bytes: 32 << 20 }
    }
}

impl ReceiveConfig {
    /// Memory for the journal of one shard, to be held by whoever starts collectors and handed to each of them.
    pub fn journal_memory(&self) -> io::Result<OwnedFd> {
        Memory::create(c"weir-journal", Ring::BYTES + self.journal_bytes)
    }

    /// The number of shards, chosen where it is 0.
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)).min(16),
            shards => shards,
        }
    }
}

/// What the collector tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Exporters that have `weir_exporter_*` series of their own; the rest shares `exporter="other"`.
    pub max_exporter_labels: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        MetricsConfig { max_exporter_labels: 200 }
    }
}

/// The configuration of the collect role.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectorConfig {
    /// Name of this collector in the log; the machine's where absent.
    pub name: Option<String>,
    pub listen: ListenConfig,
    pub receive: ReceiveConfig,
    pub decode: DecodeConfig,
    pub batch: BatchConfig,
    pub writer: WriterConfig,
    pub metrics: MetricsConfig,
}

impl CollectorConfig {
    /// What is wrong, in words, each with its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut section = |name: &str, found: Vec<String>| {
            problems.extend(found.into_iter().map(|problem| format!("{name}.{problem}")));
        };
        section("decode", self.decode.problems());
        section("batch", self.batch.problems());
        section("writer", self.writer.problems());
        if self.listen.udp.is_empty() {
            section("listen", vec!["udp: at least one address is needed".into()]);
        }
        let addresses = &self.listen.udp;
        for (index, address) in addresses.iter().enumerate() {
            if address.port() != 0 && addresses[..index].contains(address) {
                section("listen", vec![format!("udp: {address} is there twice")]);
            }
        }
        if self.receive.shards > 256 {
            section("receive", vec!["shards: must be at most 256".into()]);
        }
        if self.receive.journal_bytes != 0 && self.receive.journal_bytes < Journal::LEAST_BYTES {
            section(
                "receive",
                vec![format!("journal_bytes: must be 0 or at least {}", Journal::LEAST_BYTES)],
            );
        }
        if self.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > 255) {
            problems.push("name: must have 1 to 255 bytes".into());
        }
        problems
    }

    /// Binds the sockets of all listen addresses: what [`Collector::new`] wants, and what a supervisor holds for it.
    pub fn bind(&self) -> Result<Vec<Socket>, SocketError> {
        let ReceiveConfig { buffer_bytes, steer, .. } = self.receive;
        socket::bind_all(&self.listen.udp, self.receive.shard_count(), buffer_bytes, steer)
    }
}

/// What the collector is given.
pub struct CollectorDeps {
    /// `state/`, `run/` and `quarantine/` are in it.
    pub data_dir: PathBuf,
    /// From [`CollectorConfig::bind`], in this process or in the one that started it.
    pub sockets: Vec<Socket>,
    pub sink: Box<dyn Sink>,
    /// Of each shard, where whoever started this process holds it: the memory of its journal, from
    /// [`ReceiveConfig::journal_memory`].
    pub journals: Vec<OwnedFd>,
    /// What tells of the way from the spool to Kafka, where the sink is one.
    pub forwarding: Option<Arc<Forwarding>>,
}

impl std::fmt::Debug for CollectorDeps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CollectorDeps")
            .field("data_dir", &self.data_dir)
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

/// Why the collector does not run.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The operator has to change the configuration.
    #[error("the configuration is not usable: {}", .0.join("; "))]
    Config(Vec<String>),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot {what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    /// A mistake in weir: only a new start helps.
    #[error("the thread `{0}` ended by itself")]
    Thread(String),
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    pub ledger: Ledger,
    /// Datagrams that the kernel dropped.
    pub kernel_drops: u64,
}

/// The collect role, ready to run.
pub struct Collector {
    shards: Vec<Shard>,
    writer: Writer,
    queue: Arc<Queue>,
    stop: Arc<StopSignal>,
    shared: Arc<SharedState>,
    decode: Arc<DecodeConfig>,
    admin: Admin,
    data_dir: PathBuf,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collector").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}

impl Collector {
    /// Checks and puts together; starts nothing.
    pub fn new(config: &CollectorConfig, deps: CollectorDeps) -> Result<Collector, CollectorError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(CollectorError::Config(problems));
        }
        let CollectorDeps { data_dir, sockets, mut sink, journals, forwarding } = deps;
        let journals = open_journals(journals, sink.as_mut())?;
        let lows = journals.iter().map(|(_, kept)| Arc::clone(&kept.low)).collect();
        let mut journals = journals.into_iter();
        warn_of_small_buffers(&sockets, config.receive.buffer_bytes);
        let boot = uuid::Uuid::new_v4().as_u64_pair().0;
        let identity = Identity { collector: config.name.clone().unwrap_or_else(machine_name), boot };
        let queue = Arc::new(Queue::new(config.writer.queue_bytes));
        let ratios = Arc::new(SizeRatios::new(config.batch.compression.resolve(sink.compression())));
        let batch = config.batch.for_messages_of(sink.message_bytes());
        let exporters = Arc::new(ExporterTable::new(config.metrics.max_exporter_labels));
        let stop = Arc::new(StopSignal::default());
        let failed = |error| CollectorError::Config(vec![format!("decode.elements: {error}")]);
        let shared = Arc::new(SharedState::of(&config.decode).map_err(failed)?);
        let quarantine = Arc::new(Quarantine::new(data_dir.join("quarantine")));
        let decode = Arc::new(config.decode.clone());
        let mut stats = Vec::new();
        let shards = by_shard(sockets).into_iter().zip(0..).map(|(sockets, index)| {
            let (ring, journal) = match journals.next() {
                Some((ring, kept)) => (ring, Some(kept)),
                None => (Ring::new().map_err(no_memory)?, None),
            };
            let shard_stats = Arc::new(ShardStats::new(sockets.clone(), Arc::clone(&exporters)));
            stats.push(Arc::clone(&shard_stats));
            let parts = ShardParts {
                index,
                sockets,
                decoder: Decoder::new(Arc::clone(&decode), Arc::clone(&shared)),
                batcher: Batcher::new(&batch, index),
                ratios: Arc::clone(&ratios),
                queue: Arc::clone(&queue),
                quarantine: Arc::clone(&quarantine),
                stats: shard_stats,
                stop: Arc::clone(&stop),
                journal,
            };
            Ok(Shard::new(ring, parts))
        });
        let shards: Vec<Shard> = shards.collect::<Result<_, CollectorError>>()?;
        if shards.is_empty() {
            return Err(CollectorError::Config(vec!["listen.udp: no socket was handed over".into()]));
        }
        let metrics = CollectorMetrics::new(Sources {
            shards: stats,
            exporters,
            queue: Arc::clone(&queue),
            identity: identity.clone(),
            buffer_asked: config.receive.buffer_bytes,
            forwarding,
        });
        let mut writer = Writer::new(sink, Arc::clone(&queue), ratios, identity, &batch, &config.writer);
        writer.tell(lows);
        let admin = Admin::new(metrics);
        Ok(Collector { shards, writer, queue, stop, shared, decode, admin, data_dir })
    }

    /// What answers `/metrics`, `/healthz` and `/readyz`; serve it on TCP with [`Admin::serve_tcp`].
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    pub fn metrics(&self) -> &CollectorMetrics {
        self.admin.metrics()
    }

    /// Where the admin server of a collector on `data_dir` listens.
    pub fn admin_socket(data_dir: &Path) -> PathBuf {
        data_dir.join("run").join("collect.sock")
    }

    /// Receives until `shutdown`, then takes all that was received to the log.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Summary, CollectorError> {
        let Collector { shards, writer, queue, stop, shared, decode, admin, data_dir } = self;
        let path = Self::admin_socket(&data_dir);
        let server = admin.bind_unix(&path).await;
        let server = server.map_err(|source| CollectorError::File { what: "listen on", path, source })?;
        let server = tokio::spawn(server.serve());
        let state = Arc::new(Mutex::new(restore(&data_dir, &shared, &decode)?));
        let writer = start("writer".into(), move || writer.run())?;
        let names = (0..).map(|index| format!("shard-{index}"));
        let shards: Vec<JoinHandle<Option<Journal>>> = names
            .zip(shards)
            .map(|(name, shard)| start(name, move || shard.run()))
            .collect::<Result<_, _>>()?;
        admin.set_phase(Phase::Running);

        let watched = watch(&shards, &writer, admin.metrics(), &shared, &state);
        let ended = tokio::select! {
            () = shutdown => None,
            name = watched => Some(name),
        };
        admin.set_phase(Phase::Stopping);
        stop.stop();
        let mut failed = ended;
        let join = tokio::task::spawn_blocking(move || {
            let mut journals = Vec::new();
            for (index, shard) in shards.into_iter().enumerate() {
                match shard.join() {
                    Ok(journal) => journals.extend(journal),
                    Err(_) => {
                        failed.get_or_insert(format!("shard-{index}"));
                    }
                }
            }
            queue.close();
            if writer.join().is_err() {
                failed.get_or_insert("writer".into());
            }
            if failed.is_none() {
                // The log has everything, or what it lacks is counted.
                journals.iter_mut().for_each(Journal::restart);
            }
            save(&state, &shared);
            failed
        });
        let failed = join.await.unwrap_or_else(|error| Some(error.to_string()));
        server.abort();
        let _ = server.await;
        let summary =
            Summary { ledger: admin.metrics().ledger(), kernel_drops: admin.metrics().kernel_drops() };
        match failed {
            Some(name) => Err(CollectorError::Thread(name)),
            None => Ok(summary),
        }
    }
}

fn no_memory(source: io::Error) -> CollectorError {
    CollectorError::File { what: "map the memory of", path: "the journal".into(), source }
}

/// The rings and journals in these memories, where the log can tell how far it is in them.
fn open_journals(
    memories: Vec<OwnedFd>,
    sink: &mut dyn Sink,
) -> Result<Vec<(Ring, KeptJournal)>, CollectorError> {
    let open = |(shard, fd): (u64, OwnedFd)| {
        let ring = Ring::open(Memory::map(fd.as_fd(), 0)?)?;
        Ok((ring, Journal::open(Memory::map(fd.as_fd(), Ring::BYTES)?, shard)))
    };
    let opened: io::Result<Vec<(Ring, Journal)>> = (0..).zip(memories).map(open).collect();
    let opened = opened.map_err(no_memory)?;
    let mark = |(_, journal): &(Ring, Journal)| JournalMark {
        journal: journal.id(),
        shard: journal.shard(),
        low: journal.low(),
        since_us: journal.since_us(),
    };
    let marks: Vec<JournalMark> = opened.iter().map(mark).collect();
    let Some(in_log) = sink.in_log(&marks) else { return Ok(Vec::new()) };
    let kept = opened.into_iter().zip(in_log);
    Ok(kept
        .map(|((ring, journal), in_log)| (ring, KeptJournal { journal, in_log, low: Arc::default() }))
        .collect())
}

fn start<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, CollectorError> {
    let builder = std::thread::Builder::new().name(name.clone());
    builder.spawn(run).map_err(|source| CollectorError::File {
        what: "start the thread",
        path: name.into(),
        source,
    })
}

/// What an earlier run has learned.
fn restore(
    data_dir: &Path,
    shared: &SharedState,
    config: &DecodeConfig,
) -> Result<StateFile, CollectorError> {
    let mut state = StateFile::new(data_dir);
    let templates = state.restore(shared, config).map_err(|source| CollectorError::File {
        what: "read the saved templates in",
        path: state.path().to_owned(),
        source,
    })?;
    if templates > 0 {
        tracing::info!(templates, "took over what the last run had learned");
    }
    Ok(state)
}

/// Saves what was learned since the last time. That it cannot be saved stops nothing: it is tried again.
fn save(state: &Mutex<StateFile>, shared: &SharedState) {
    let mut state = state.lock();
    if let Err(error) = state.save(shared) {
        tracing::warn!(%error, file = %state.path().display(), "cannot save the templates");
    }
}

/// Once a second: are all threads there, has the kernel dropped anything, are there templates to save? Returns the name
/// of a thread that has ended.
async fn watch(
    shards: &[JoinHandle<Option<Journal>>],
    writer: &JoinHandle<u64>,
    metrics: &CollectorMetrics,
    shared: &Arc<SharedState>,
    state: &Arc<Mutex<StateFile>>,
) -> String {
    let mut drops = metrics.kernel_drops();
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Some(index) = shards.iter().position(JoinHandle::is_finished) {
            return format!("shard-{index}");
        }
        if writer.is_finished() {
            return "writer".into();
        }
        let now = metrics.kernel_drops();
        if now > drops {
            tracing::warn!(
                datagrams = now - drops,
                total = now,
                "the kernel dropped datagrams: the receive buffer was full (receive.buffer_bytes, receive.shards)"
            );
        }
        drops = now;
        let (state, shared) = (Arc::clone(state), Arc::clone(shared));
        if tokio::task::spawn_blocking(move || save(&state, &shared)).await.is_err() {
            tracing::error!("saving the templates panicked");
        }
    }
}

/// The sockets of each shard: of every address the first goes to shard 0, the second to shard 1, and so on.
fn by_shard(sockets: Vec<Socket>) -> Vec<Vec<Arc<Socket>>> {
    let mut seen: Vec<(SocketAddr, usize)> = Vec::new();
    let mut shards: Vec<Vec<Arc<Socket>>> = Vec::new();
    for socket in sockets {
        let address = socket.local_addr();
        let shard = match seen.iter_mut().find(|(known, _)| *known == address) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                seen.push((address, 0));
                0
            }
        };
        if shard == shards.len() {
            shards.push(Vec::new());
        }
        shards[shard].push(Arc::new(socket));
    }
    shards
}

fn warn_of_small_buffers(sockets: &[Socket], asked: usize) {
    let Some(granted) = sockets.iter().map(Socket::buffer_granted).min() else { return };
    if granted < asked {
        tracing::warn!(
            asked,
            granted,
            "the kernel gave a smaller receive buffer than asked for: bursts may be dropped. \
             Raise it with `sysctl -w net.core.rmem_max={asked}`, or grant CAP_NET_ADMIN"
        );
    }
}

/// The machine's name, as the kernel knows it.
fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Some(name.trim()).filter(|name| !name.is_empty()).unwrap_or("localhost").to_owned()
}

#[cfg(test)]
#[path = "crash_tests.rs"]
mod crash_tests;
#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
