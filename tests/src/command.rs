//! Other programs: exporters, clients, judges. Each runs with a deadline; one that is missing fails the test and says
//! which package brings it.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Programs and the Debian packages that bring them.
const PACKAGES: &[(&str, &str)] = &[
    ("softflowd", "softflowd"),
    ("pmacctd", "pmacct"),
    ("ovs-appctl", "openvswitch-switch"),
    ("ovs-vsctl", "openvswitch-switch"),
    ("ovs-vswitchd", "openvswitch-switch"),
    ("ovsdb-server", "openvswitch-switch"),
    ("ovsdb-tool", "openvswitch-switch"),
    ("psql", "postgresql-client"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("java", "default-jre-headless"),
    ("systemd-analyze", "systemd"),
];

/// Where `tests/run` puts the tools that Debian does not have.
fn tools() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"))).unwrap_or_default();
    cache.join("weir-tools")
}

/// The Python that has `tests/readers/requirements.txt`; panics with the remedy where it is not there.
#[track_caller]
pub fn readers_python() -> PathBuf {
    let tools = tools().join("venv");
    assert!(
        tools.join("readers.txt").is_file(),
        "{} has not what tests/readers/requirements.txt names: run tests/run, or pip install -r there",
        tools.display()
    );
    tools.join("bin/python")
}

/// The Python of `benches/queries`, with DuckDB and delta-rs; panics with the remedy where it is not there.
#[track_caller]
pub fn queries_python() -> PathBuf {
    let python = tools().join("query/bin/python");
    assert!(
        python.is_file(),
        "no {}: `benches/queries --install` makes it, as tests/run does",
        python.display()
    );
    python
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Panics with what it printed where it failed; else gives its stdout.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

/// The program's path; panics with the package's name where it is not installed.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(standard)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    let package = PACKAGES.iter().find(|(known, _)| *known == name).map_or(name, |(_, package)| package);
    found.unwrap_or_else(|| panic!("`{name}` is not installed: apt-get install {package} (tests/run does)"))
}

/// Runs a program to its end; kills it and panics after `limit`.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Ended {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
    let stdout = drain(child.stdout.take().expect("stdout is piped"));
    let stderr = drain(child.stderr.take().expect("stderr is piped"));
    let status = wait(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
    }
    let join =
        |handle: std::thread::JoinHandle<String>| handle.join().expect("reading a pipe does not panic");
    let (stdout, stderr) = (join(stdout), join(stderr));
    let status = status
        .unwrap_or_else(|| panic!("{shown} ran longer than {limit:?}\nstdout: {stdout}\nstderr: {stderr}"));
    Ended { status, stdout, stderr }
}

/// Runs a program by its name and arguments, at most a minute.
#[track_caller]
pub fn run_program<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> Ended {
    run(Command::new(program(name)).args(arguments), Duration::from_secs(60))
}

/// Waits for a child; None when it runs on after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if started.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A program that runs beside the test, its output in a file; killed when the test ends.
#[derive(Debug)]
pub struct Background {
    child: Child,
    output: PathBuf,
}

impl Background {
    #[track_caller]
    pub fn start(command: &mut Command, output: &Path) -> Background {
        let shown = format!("{command:?}");
        let file = std::fs::File::create(output).unwrap();
        let both = file.try_clone().unwrap();
        command.stdin(Stdio::null()).stdout(file).stderr(both);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        Background { child, output: output.to_owned() }
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> ExitStatus {
        let ended = wait(&mut self.child, limit);
        ended.unwrap_or_else(|| panic!("still runs after {limit:?}:\n{}", self.output()))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal (`TERM`, `KILL`, `STOP`, `CONT`) to a process.
pub fn signal(pid: u32, name: &str) {
    let ended = run(Command::new("kill").args([format!("-{name}"), pid.to_string()]), Duration::from_secs(5));
    assert!(ended.status.success(), "kill -{name} {pid}: {}", ended.stderr);
}
