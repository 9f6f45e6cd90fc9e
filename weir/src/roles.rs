//! The roles: how `run`, `collect` and `aggregate` are put together from the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_aggregator::aggregate::{Aggregator, AggregatorDeps, AggregatorError, LogAccess};
use weir_aggregator::ingest::OpenSource;
use weir_aggregator::source::Source;
use weir_aggregator::source::embedded::EmbeddedSource;
use weir_aggregator::source::kafka::{KafkaLog, KafkaSourceConfig, Share};
use weir_collector::collect::{Collector, CollectorDeps, CollectorError};
use weir_collector::receive::socket::{Socket, SocketError, take_inherited};
use weir_collector::sink::Sink;
use weir_collector::sink::embedded::{EmbeddedError, EmbeddedSink};
use weir_collector::sink::spool::{Forwarding, SpoolSink};

use crate::cli::RoleArgs;
use crate::config::{Config, LogConfig, LogKind};
use crate::failure::Failure;
use crate::forward::Forwarder;
use crate::supervisor::{self, Inherited, Role};

/// How long a port or a lock may be held by a weir that is about to end (its supervisor was just killed).
const PREDECESSOR_ENDS: Duration = Duration::from_secs(15);

/// The addresses that a weir has bound. Prints as the rest of the `ready` line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    pub(crate) udp: Vec<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) postgres: Option<SocketAddr>,
    pub(crate) cluster: Option<SocketAddr>,
}

impl Addresses {
    /// Each once, in the order of the configuration: shards share an address.
    fn of_sockets(sockets: &[Socket]) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in sockets.iter().map(Socket::local_addr) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.udp.is_empty() {
            let list: Vec<_> = self.udp.iter().map(SocketAddr::to_string).collect();
            parts.push(format!("udp={}", list.join(",")));
        }
        parts.extend(self.http.map(|address| format!("http={address}")));
        parts.extend(self.postgres.map(|address| format!("postgres={address}")));
        parts.extend(self.cluster.map(|address| format!("cluster={address}")));
        f.write_str(&parts.join(" "))
    }
}

/// The one line on stdout that scripts wait for.
fn print_ready(addresses: &Addresses) {
    let mut out = std::io::stdout().lock();
    // Nobody may be reading; that is no reason to stop.
    let _ = writeln!(out, "ready {addresses}").and_then(|()| out.flush());
}

/// `weir run`: binds everything, then supervises until `stop`. `on_ready` is called once, when the whole is ready.
pub(crate) async fn run(
    args: RoleArgs,
    config: Config,
    stop: impl Future<Output = ()> + Send,
    on_ready: impl FnOnce(Addresses) + Send,
) -> Result<(), Failure> {
    std::fs::create_dir_all(&config.data_dir).map_err(|error| {
        Failure::failed(format!("cannot create the data directory {}: {error}", config.data_dir.display()))
    })?;
    let _one = only_one(&config.data_dir).await?;
    let sockets = bind_udp(&config).await?;
    let http = bind_tcp("listen.http", config.listen.http).await?;
    let postgres = bind_tcp("listen.postgres", config.listen.postgres).await?;
    let addresses = Addresses {
        udp: Addresses::of_sockets(&sockets),
        http: http.local_addr().ok(),
        postgres: postgres.local_addr().ok(),
        // the aggregator opens it: while there is none, other nodes shall not wait for it
        cluster: config.listen.cluster,
    };
    // The children have the same file and environment; what was typed is typed again for them.
    let mut arguments = Vec::new();
    if let Some(log) = &args.log {
        arguments.extend(["--log".to_owned(), log.clone()]);
    }
    if let Some(path) = &args.config {
        arguments.extend(["--config".to_owned(), path.display().to_string()]);
    }
    arguments.extend(["--data-dir".to_owned(), config.data_dir.display().to_string()]);
    let mut for_collect = arguments.clone();
    for address in &addresses.udp {
        for_collect.extend(["--listen".to_owned(), address.to_string()]);
    }
    let mut for_aggregate = arguments;
    for (flag, address) in [("--http", addresses.http), ("--postgres", addresses.postgres)] {
        for_aggregate.extend(address.into_iter().flat_map(|address| [flag.to_owned(), address.to_string()]));
    }
    let inherited = |role: &str, fd: OwnedFd| Inherited { role: role.to_owned(), fd };
    let cannot_keep = |error| Failure::failed(format!("cannot keep the configuration: {error}"));
    let kept = Kept::new(&config).map_err(cannot_keep)?;
    let of_config = || kept.for_role().map(|fd| inherited("config", fd)).map_err(cannot_keep);
    let journals = journals(&config).into_iter().map(|memory| inherited("journal", memory));
    let sockets = sockets.into_iter().map(|socket| inherited("udp", socket.into()));
    let roles = vec![
        Role {
            name: "collect",
            arguments: for_collect,
            sockets: sockets.chain(journals).chain([of_config()?]).collect(),
            // while there is none, the sockets' buffers fill
            longest_pause: Duration::from_millis(500),
        },
        Role {
            name: "aggregate",
            arguments: for_aggregate,
            sockets: vec![
                inherited("http", http.into()),
                inherited("postgres", postgres.into()),
                of_config()?,
            ],
            longest_pause: Duration::from_secs(10),
        },
    ];
    tracing::info!(%addresses, data_dir = %config.data_dir.display(), "starting");
    let wishes = crate::control::listen(&config.data_dir);
    let mut running = config;
    let reload = move || {
        let next = Config::for_role(&args).map_err(|error| error.to_string())?;
        let changed = changed_roles(&running, &next)?;
        kept.replace(&next).map_err(|error| format!("cannot keep the configuration: {error}"))?;
        running = next;
        Ok(changed)
    };
    let supervised = supervisor::supervise(roles, stop, wishes, reload, move |_| {
        print_ready(&addresses);
        on_ready(addresses);
    });
    supervised.await.map_err(|error| Failure::failed(error.to_string()))
}

/// The lock of the data directory, held for life: two weirs would take each other's log, journal and state.
async fn only_one(data_dir: &Path) -> Result<File, Failure> {
    let path = data_dir.join("weir.lock");
    let failed = |error: std::io::Error| Failure::failed(format!("cannot lock {}: {error}", path.display()));
    let mut options = File::options();
    let file = options.create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
    let lock = || match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            Err(std::io::Error::new(
                std::io::ErrorKind::WouldBlock,
                format!("the weir with process id {} runs on it", pid.trim()),
            ))
        }
        Err(TryLockError::Error(error)) => Err(error),
    };
    let locked = retry(lock, |error| error.kind() == std::io::ErrorKind::WouldBlock).await;
    locked.map_err(|error| {
        Failure::failed(format!("cannot use the data directory {}: {error}", data_dir.display()))
    })?;
    file.set_len(0)
        .and_then(|()| file.write_all_at(std::process::id().to_string().as_bytes(), 0))
        .map_err(failed)?;
    Ok(file)
}

/// The text of the configuration that was checked, in a file without a name: a role that is started again has the
/// configuration that weir runs with, whatever has become of the file meanwhile.
struct Kept(File);

impl Kept {
    fn new(config: &Config) -> std::io::Result<Kept> {
        let path = config.data_dir.join(format!(".checked-{}", std::process::id()));
        // one that was left behind by a weir of this number
        let _ = std::fs::remove_file(&path);
        let file = File::options().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        let kept = Kept(file);
        kept.replace(config)?;
        Ok(kept)
    }

    fn replace(&self, config: &Config) -> std::io::Result<()> {
        self.0.set_len(0)?;
        self.0.write_all_at(config.text.as_bytes(), 0)
    }

    fn for_role(&self) -> std::io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }
}

/// The roles that a new configuration changes something for. What the supervisor itself holds (the sockets, the data
/// directory) cannot change while it lives.
fn changed_roles(running: &Config, next: &Config) -> Result<Vec<&'static str>, String> {
    let fixed = [
        ("data_dir", running.data_dir != next.data_dir),
        ("listen", running.listen != next.listen),
        ("receive", running.receive != next.receive),
        ("log.kind", running.log.kind != next.log.kind),
    ];
    let fixed: Vec<_> = fixed.iter().filter(|(_, changed)| *changed).map(|(key, _)| *key).collect();
    if !fixed.is_empty() {
        return Err(format!("{} can change only by a restart of weir", fixed.join(", ")));
    }
    let both = running.logging != next.logging || running.log != next.log;
    let mut changed = Vec::new();
    if both || running.collector() != next.collector() {
        changed.push("collect");
    }
    if both || running.aggregator() != next.aggregator() {
        changed.push("aggregate");
    }
    Ok(changed)
}

/// Memory for the journal of each shard: the log can go on after a crash.
fn journals(config: &Config) -> Vec<OwnedFd> {
    let receive = &config.receive;
    if receive.journal_bytes == 0 {
        return Vec::new();
    }
    let made: Result<Vec<_>, _> = (0..receive.shard_count()).map(|_| receive.journal_memory()).collect();
    made.unwrap_or_else(|error| {
        tracing::warn!(%error, "no memory for the journal: a crash of the collector will lose what it has in hand");
        Vec::new()
    })
}

async fn bind_udp(config: &Config) -> Result<Vec<Socket>, Failure> {
    let collector = config.collector();
    let in_use = |error: &SocketError| error.source.kind() == std::io::ErrorKind::AddrInUse;
    let bound = retry(|| collector.bind(), in_use).await;
    bound.map_err(|error| Failure::failed(format!("{error}; is another weir or collector running?")))
}

async fn bind_tcp(key: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    let in_use = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    retry(|| TcpListener::bind(address), in_use)
        .await
        .map_err(|error| Failure::failed(format!("cannot listen on {address} ({key}): {error}")))
}

/// Tries again while the error may be a predecessor's that is about to end.
async fn retry<T, E: fmt::Display>(
    mut action: impl FnMut() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match action() {
            Err(error) if may_pass(&error) && started.elapsed() < PREDECESSOR_ENDS => {
                if !told {
                    tracing::warn!("{error}; trying for {PREDECESSOR_ENDS:?}");
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}

/// The descriptors that the supervisor handed over, taken once.
fn take(inherited: &BTreeMap<String, Vec<i32>>, role: &str) -> Result<Vec<OwnedFd>, Failure> {
    let numbers = inherited.get(role).map(Vec::as_slice).unwrap_or_default();
    let taken = numbers.iter().map(|number| {
        take_inherited(*number).map_err(|error| {
            Failure::failed(format!("cannot take over descriptor {number} ({role}): {error}"))
        })
    });
    taken.collect()
}

/// `weir collect`: UDP to log.
pub(crate) async fn collect(config: Config, http: Option<SocketAddr>) -> Result<(), Failure> {
    let inherited = supervisor::inherited();
    let sockets = match take(&inherited, "udp")? {
        fds if fds.is_empty() => bind_udp(&config).await?,
        fds => fds
            .into_iter()
            .map(Socket::from_fd)
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::failed(error.to_string()))?,
    };
    let Log { sink, forwarder, forwarding } = open_log(&config).await?;
    let mut addresses = Addresses { udp: Addresses::of_sockets(&sockets), ..Addresses::default() };
    let journals = take(&inherited, "journal")?;
    let deps = CollectorDeps { data_dir: config.data_dir.clone(), sockets, sink, journals, forwarding };
    let collector = Collector::new(&config.collector(), deps).map_err(collector_failure)?;
    if let Some(address) = http {
        let listener = bind_tcp("listen.http", address).await?;
        addresses.http = listener.local_addr().ok();
        let admin = collector.admin().clone();
        let listener = to_tokio(listener)?;
        tokio::spawn(async move { admin.serve_tcp(listener).await });
    }
    print_ready(&addresses);
    let (mut forwarder, mut failed) = (forwarder, None);
    let stopped = async {
        match &mut forwarder {
            Some(forwarder) => tokio::select! {
                () = crate::signals::shutdown() => {}
                Ok(error) = &mut forwarder.failed => failed = Some(error),
            },
            None => crate::signals::shutdown().await,
        }
    };
    let summary = collector.run(stopped).await.map_err(collector_failure)?;
    tracing::info!(kernel_drops = summary.kernel_drops, ledger = ?summary.ledger, "collector stopped");
    if let Some(forwarder) = forwarder {
        forwarder.stop().await;
    }
    failed.map_or(Ok(()), |error| Err(Failure::failed(error)))
}

fn collector_failure(error: CollectorError) -> Failure {
    match error {
        CollectorError::Config(_) => Failure::usage(error.to_string()),
        other => Failure::failed(other.to_string()),
    }
}

fn to_tokio(listener: TcpListener) -> Result<tokio::net::TcpListener, Failure> {
    listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(listener))
        .map_err(|error| Failure::failed(format!("cannot use the listener: {error}")))
}

/// Where the batches go.
struct Log {
    sink: Box<dyn Sink>,
    /// Takes them on to Kafka.
    forwarder: Option<Forwarder>,
    forwarding: Option<Arc<Forwarding>>,
}

async fn open_log(config: &Config) -> Result<Log, Failure> {
    let locked = |error: &EmbeddedError| matches!(error, EmbeddedError::Locked(_));
    let failed = |error: EmbeddedError| Failure::failed(error.to_string());
    match config.log.kind {
        LogKind::Embedded => {
            let directory = config.log.embedded.directory(&config.data_dir);
            let open = || EmbeddedSink::open(&directory, config.log.embedded.clone());
            let sink = retry(open, locked).await.map_err(failed)?;
            Ok(Log { sink: Box::new(sink), forwarder: None, forwarding: None })
        }
        LogKind::Kafka => {
            let LogConfig { spool, kafka, .. } = &config.log;
            let directory = spool.directory(&config.data_dir);
            let (shards, bytes) = (config.receive.shard_count(), kafka.max_message_bytes);
            let open = || SpoolSink::open(&directory, spool, shards, bytes);
            let sink = retry(open, locked).await.map_err(failed)?;
            let forwarding = Arc::new(Forwarding::default());
            let limit = Duration::from_millis(config.writer.flush_timeout_ms);
            let forwarder = Forwarder::start(&directory, kafka.clone(), Arc::clone(&forwarding), limit)?;
            Ok(Log { sink: Box::new(sink), forwarder: Some(forwarder), forwarding: Some(forwarding) })
        }
    }
}

/// `weir aggregate`: log to tables and SQL. With `query`, `weir query`: tables and the end of the log to SQL.
pub(crate) async fn aggregate(config: Config, query: bool) -> Result<(), Failure> {
    let inherited = supervisor::inherited();
    let supervised = !inherited.is_empty();
    let http = listener(take(&inherited, "http")?, "listen.http", config.listen.http).await?;
    let postgres = listener(take(&inherited, "postgres")?, "listen.postgres", config.listen.postgres).await?;
    let cluster = match config.listen.cluster {
        Some(address) => Some(bind_tcp("listen.cluster", address).await?),
        None => None,
    };
    let addresses = Addresses {
        udp: Vec::new(),
        http: http.local_addr().ok(),
        postgres: postgres.local_addr().ok(),
        cluster: cluster.as_ref().and_then(|listener| listener.local_addr().ok()),
    };
    let log = config.log.clone();
    let directory = log.embedded.directory(&config.data_dir);
    let access = match log.kind {
        LogKind::Embedded if query => {
            return Err(Failure::usage(
                "log.kind is embedded: its one aggregator answers queries; `weir query` is for log.kind = \"kafka\""
                    .to_owned(),
            ));
        }
        LogKind::Embedded => LogAccess::All(Box::new(move |positions| {
            let source: Box<dyn Source> = Box::new(EmbeddedSource::open(&directory, positions.clone()));
            Ok(source)
        })),
        LogKind::Kafka => {
            let topic = Arc::new(KafkaLog::new(KafkaSourceConfig {
                share: if query { Share::All } else { log.kafka_reader.share },
                ..log.kafka_source()
            }));
            let others = Arc::clone(&topic);
            let open: OpenSource = Box::new(move |positions| {
                let source: Box<dyn Source> = Box::new(topic.open(positions.clone())?);
                Ok(source)
            });
            match log.kafka_reader.share {
                _ if query => LogAccess::Query(open),
                Share::All => LogAccess::All(open),
                Share::Group => LogAccess::Shared(
                    open,
                    Box::new(move |positions| {
                        let source: Box<dyn Source> = Box::new(others.others(positions.clone())?);
                        Ok(source)
                    }),
                ),
            }
        }
    };
    let deps = AggregatorDeps {
        data_dir: config.data_dir.clone(),
        log_id: match config.log.kind {
            LogKind::Embedded => "embedded".to_owned(),
            LogKind::Kafka => format!("kafka/{}", config.log.kafka.topic),
        },
        log: access,
        http,
        postgres,
        cluster,
        collector_expected: supervised,
    };
    let aggregator = Aggregator::new(config.aggregator(), deps).map_err(aggregator_failure)?;
    aggregator
        .run(crate::signals::stop_token(), || print_ready(&addresses))
        .await
        .map_err(aggregator_failure)?;
    tracing::info!("aggregator stopped");
    Ok(())
}

fn aggregator_failure(error: AggregatorError) -> Failure {
    match error {
        AggregatorError::Config(_) => Failure::usage(error.to_string()),
        other => Failure::failed(other.to_string()),
    }
}

/// The inherited listener, or one that is bound here.
async fn listener(inherited: Vec<OwnedFd>, key: &str, address: SocketAddr) -> Result<TcpListener, Failure> {
    match inherited.into_iter().next() {
        Some(fd) => Ok(TcpListener::from(fd)),
        None => bind_tcp(key, address).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_restarts_the_roles_that_it_concerns() {
        let running = Config::default();
        assert_eq!(changed_roles(&running, &running), Ok(vec![]));
        let mut next = running.clone();
        next.decode.default_sampling_rate = Some(1_000.0);
        assert_eq!(changed_roles(&running, &next), Ok(vec!["collect"]));
        next.sql.statement_timeout_ms += 1;
        assert_eq!(changed_roles(&running, &next), Ok(vec!["collect", "aggregate"]));
        let mut next = running.clone();
        next.logging.level = "debug".to_owned();
        assert_eq!(changed_roles(&running, &next), Ok(vec!["collect", "aggregate"]));
        next.listen.udp.pop();
        next.receive.shards = 7;
        let refused = changed_roles(&running, &next).unwrap_err();
        assert!(refused.starts_with("listen, receive can change only"), "{refused}");
    }
}
