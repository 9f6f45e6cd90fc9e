//! The supervisor (`weir run`): opens the sockets, holds them, and keeps `collect` and `aggregate` alive as children of
//! the same binary. A child that dies is started again on the same sockets, so what was queued in them is not lost.
//!
//! A child knows its descriptors from [`INHERIT`], tells its readiness by a line on stdout, and stops when its stdin
//! ends: a supervisor that is killed leaves no orphans.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use crate::control::Wish;

/// Cores that share a heap of a child's malloc.
const CORES_A_HEAP: usize = 2;
/// What is free at the end of a heap goes back to the kernel where it is more.
const FREE_BYTES: usize = 256 << 20;
/// What is larger is taken from the kernel by itself, and goes back when it is freed: the most that glibc allows.
const LARGE_BYTES: usize = 32 << 20;

/// Names the inherited descriptors of a child: `udp=3@[::]:2055;http=5`.
pub(crate) const INHERIT: &str = "WEIR_INHERIT";
/// Set in a child: it watches its stdin for the supervisor's end.
pub(crate) const SUPERVISED: &str = "WEIR_SUPERVISED";
/// Held while a child is started.
static SPAWN: std::sync::Mutex<()> = std::sync::Mutex::new(());
/// How long a child may take to stop before it is killed: the collector flushes its log, the aggregator commits.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// A child that lived at least this long is restarted at once.
const STABLE: Duration = Duration::from_secs(10);
/// Pause before a child is started again: the first, which doubles while it does not live long.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// What a child inherits: a role for the descriptor, and the descriptor.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) role: String,
    pub(crate) fd: OwnedFd,
}

/// A child to keep alive.
#[derive(Debug)]
pub(crate) struct Role {
    /// The subcommand, also its name in the logs.
    pub(crate) name: &'static str,
    pub(crate) arguments: Vec<String>,
    pub(crate) sockets: Vec<Inherited>,
    /// The longest pause before it is started again.
    pub(crate) longest_pause: Duration,
}

/// The inherited descriptors of this process by role, in order; empty where it was started by hand.
pub(crate) fn inherited() -> BTreeMap<String, Vec<i32>> {
    let mut found: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for part in std::env::var(INHERIT).unwrap_or_default().split(';') {
        if let Some((role, fd)) = part.rsplit_once('=')
            && let Ok(fd) = fd.parse()
        {
            found.entry(role.to_owned()).or_default().push(fd);
        }
    }
    found
}

/// A child that runs.
struct Running {
    child: Child,
    /// Held open while the supervisor lives; its end tells the child to stop.
    stdin: Option<tokio::process::ChildStdin>,
    since: Instant,
}

/// How malloc keeps memory. glibc makes up to eight heaps a core, and what is free in one of them is of no use to the
/// threads of another; and what a commit or a query frees, the next one takes again, at 1.5 to 9 µs a page that the
/// kernel has to give. Few heaps that keep what they have take less memory, and less time (docs/performance.md).
fn malloc() -> [(&'static str, String); 3] {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    [
        ("MALLOC_ARENA_MAX", cores.div_ceil(CORES_A_HEAP).to_string()),
        ("MALLOC_TRIM_THRESHOLD_", FREE_BYTES.to_string()),
        ("MALLOC_MMAP_THRESHOLD_", LARGE_BYTES.to_string()),
    ]
}

fn start(binary: &PathBuf, role: &Role, ready: mpsc::Sender<(&'static str, String)>) -> io::Result<Running> {
    let name = |inherited: &Inherited| format!("{}={}", inherited.role, inherited.fd.as_raw_fd());
    let names: Vec<_> = role.sockets.iter().map(name).collect();
    let mut command = Command::new(binary);
    command
        .arg(role.name)
        .args(&role.arguments)
        .env(INHERIT, names.join(";"))
        .env(SUPERVISED, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command.envs(malloc().into_iter().filter(|(name, _)| std::env::var_os(name).is_none()));
    // A descriptor is inherited while its close-on-exec flag is off: only for this child, so one child at a time.
    let one_at_a_time = SPAWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let set_inheritable = |inheritable: bool| {
        role.sockets.iter().try_for_each(|inherited| SockRef::from(&inherited.fd).set_cloexec(!inheritable))
    };
    let spawned = set_inheritable(true).and_then(|()| command.spawn());
    set_inheritable(false)?;
    drop(one_at_a_time);
    let mut child = spawned?;
    let stdin = child.stdin.take();
    if let Some(stdout) = child.stdout.take() {
        let name = role.name;
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(rest) = line.strip_prefix("ready") {
                    // The receiver is gone only when the supervisor stops.
                    let _ = ready.send((name, rest.trim().to_owned())).await;
                }
            }
        });
    }
    tracing::info!(role = role.name, pid = child.id(), "started");
    Ok(Running { child, stdin, since: Instant::now() })
}

/// Asks the child to stop by ending its stdin, and waits; kills it after [`STOP_LIMIT`].
async fn stop(name: &str, mut running: Running) -> io::Result<ExitStatus> {
    drop(running.stdin.take());
    match tokio::time::timeout(STOP_LIMIT, running.child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            tracing::error!(role = name, "did not stop in {STOP_LIMIT:?}: killed");
            running.child.kill().await?;
            running.child.wait().await
        }
    }
}

/// What a role is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// To run; with a new number, to be stopped in order and started again.
    Generation(u32),
    Stop,
}

/// Keeps one role alive until it is told to stop, and starts it anew when it is told to.
async fn keep(
    binary: PathBuf,
    role: Role,
    ready: mpsc::Sender<(&'static str, String)>,
    mut wanted: watch::Receiver<Wanted>,
) -> io::Result<()> {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let generation = match *wanted.borrow_and_update() {
            Wanted::Generation(generation) => generation,
            Wanted::Stop => return Ok(()),
        };
        let mut running = start(&binary, &role, ready.clone())?;
        let ended = tokio::select! {
            status = running.child.wait() => Some(status?),
            // the sender lives as long as this task
            _ = wanted.wait_for(|wanted| *wanted != Wanted::Generation(generation)) => None,
        };
        let Some(status) = ended else {
            // the next child finds in the sockets what came meanwhile
            let status = stop(role.name, running).await?;
            tracing::info!(role = role.name, %status, "stopped");
            continue;
        };
        // 2 is usage or configuration: another start would end the same way.
        if status.code() == Some(2) {
            return Err(io::Error::other(format!("{} refused its configuration", role.name)));
        }
        let lived = running.since.elapsed();
        backoff = if lived >= STABLE { FIRST_BACKOFF } else { (backoff * 2).min(role.longest_pause) };
        tracing::error!(role = role.name, %status, lived_s = lived.as_secs(), "ended; starts again in {backoff:?}");
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            _ = wanted.changed() => {}
        }
    }
}

/// Runs the roles until `stop`, then stops them in their order, each to its end before the next: first the collector,
/// which flushes to the log, then the aggregator, which takes the log to its end.
///
/// At each of the `wishes` the roles that `reload` names are stopped in order and started again, on the same sockets.
/// `on_ready` is called once with what the roles print after `ready`, in the order of the roles.
pub(crate) async fn supervise(
    roles: Vec<Role>,
    stop: impl Future<Output = ()> + Send,
    mut wishes: mpsc::Receiver<Wish>,
    mut reload: impl FnMut() -> Result<Vec<&'static str>, String> + Send,
    on_ready: impl FnOnce(Vec<String>) + Send,
) -> io::Result<()> {
    let binary = std::env::current_exe()?;
    let names: Vec<&'static str> = roles.iter().map(|role| role.name).collect();
    let (ready_sender, mut ready) = mpsc::channel(16);
    let mut kept = Vec::new();
    for role in roles {
        let (sender, receiver) = watch::channel(Wanted::Generation(0));
        kept.push((sender, tokio::spawn(keep(binary.clone(), role, ready_sender.clone(), receiver))));
    }
    let mut told: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut on_ready = Some(on_ready);
    let mut stop = std::pin::pin!(stop);
    let mut generation = 0;
    loop {
        let any_ended = async {
            loop {
                if kept.iter().any(|(_, task)| task.is_finished()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            () = &mut stop => break,
            () = any_ended => break,
            Some((name, line)) = ready.recv() => {
                told.insert(name, line);
                if told.len() == names.len() && let Some(on_ready) = on_ready.take() {
                    on_ready(names.iter().map(|name| told[name].clone()).collect());
                }
            }
            Some(answer) = wishes.recv() => {
                let outcome = reload();
                generation += 1;
                for changed in outcome.iter().flatten() {
                    let at = names.iter().position(|name| name == changed);
                    if let Some((wanted, _)) = at.and_then(|at| kept.get(at)) {
                        wanted.send_replace(Wanted::Generation(generation));
                    }
                }
                let told = match outcome.as_deref() {
                    Ok([]) => Ok("nothing has changed".to_owned()),
                    Ok(roles) => Ok(format!("reloads {}", roles.join(", "))),
                    Err(why) => Err(why.clone()),
                };
                match &told {
                    Ok(what) => tracing::info!("configuration read again: {what}"),
                    Err(why) => tracing::error!("configuration not reloaded, the old one stays: {why}"),
                }
                // whoever asked may have gone
                let _ = answer.send(told);
            }
        }
    }
    let mut result = Ok(());
    for (wanted, task) in kept {
        wanted.send_replace(Wanted::Stop);
        if let Err(error) = task.await.map_err(io::Error::other).and_then(|ended| ended)
            && result.is_ok()
        {
            result = Err(error);
        }
    }
    result
}
