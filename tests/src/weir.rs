//! A running weir: started on a data directory of its own and free ports, asked through its doors, stopped or killed,
//! and started again on the same data and addresses.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::command::{self, Ended};
use crate::metrics::Metrics;
use crate::wait::{LONG, until};
use crate::{csv, http};

/// The binary under test: `WEIR_BIN`, else the one that was built beside this test, else in the target directories.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("WEIR_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "WEIR_BIN names {}, which is no file", path.display());
        return path;
    }
    let mut folders = Vec::new();
    // target/PROFILE/deps/e2e-HASH → target/PROFILE
    if let Ok(test) = std::env::current_exe()
        && let Some(profile) = test.parent().and_then(Path::parent)
    {
        folders.push(profile.to_owned());
        folders.extend(profile.parent().map(|target| target.join("release")));
    }
    folders.extend(std::env::var_os("CARGO_TARGET_DIR").map(|target| PathBuf::from(target).join("release")));
    folders.push(crate::repository().join("target/release"));
    let found = folders.iter().map(|folder| folder.join("weir")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no weir binary in {folders:?}: run `cargo build --release -p weir`, or name one by WEIR_BIN")
    })
}

/// Where a weir listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub udp: Vec<SocketAddr>,
    pub http: SocketAddr,
    pub postgres: SocketAddr,
}

impl Addresses {
    /// Reads `ready udp=A,B http=C postgres=D`; a role that runs alone has not all of them.
    fn parse(line: &str) -> Option<Addresses> {
        let rest = line.strip_prefix("ready ")?;
        let of = |key: &str| {
            rest.split_whitespace()
                .find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
        };
        let none = || "0.0.0.0:0".to_owned();
        let udp = of("udp").unwrap_or_default();
        let udp = udp.split(',').filter(|address| !address.is_empty());
        let udp = udp.map(str::parse).collect::<Result<_, _>>().ok()?;
        let http = of("http").unwrap_or_else(none).parse().ok()?;
        Some(Addresses { udp, http, postgres: of("postgres").unwrap_or_else(none).parse().ok()? })
    }
}

/// What a weir is started with. Holds the data directory, so a second start goes on where the first ended.
#[derive(Debug)]
pub struct Setup {
    folder: tempfile::TempDir,
    /// The data directory, where it is not in `folder`.
    data: Option<PathBuf>,
    config: String,
    variables: Vec<(String, String)>,
    addresses: Mutex<Option<Addresses>>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup::new()
    }
}

impl Setup {
    pub fn new() -> Setup {
        let folder = tempfile::Builder::new().prefix("weir-e2e-").tempdir().unwrap();
        Setup {
            folder,
            data: None,
            config: String::new(),
            variables: Vec::new(),
            addresses: Mutex::new(None),
        }
    }

    /// With this configuration (TOML).
    pub fn config(mut self, toml: &str) -> Setup {
        self.config = toml.to_owned();
        self
    }

    /// With this variable in its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Setup {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With its data there.
    pub fn data_in(mut self, folder: &Path) -> Setup {
        self.data = Some(folder.to_owned());
        self
    }

    /// A folder for files of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration file of the last start.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("weir.toml")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// Starts `weir run` and waits for its `ready` line: on free ports the first time, then on the same.
    #[track_caller]
    pub fn start(&self) -> Weir {
        self.start_role("run")
    }

    /// The same for `weir collect` or `weir aggregate` alone.
    #[track_caller]
    pub fn start_role(&self, role: &str) -> Weir {
        let config = self.config_file();
        std::fs::write(&config, &self.config).unwrap();
        let any = || "127.0.0.1:0".parse::<SocketAddr>().unwrap();
        let wanted = self.addresses.lock().unwrap().clone();
        let wanted =
            wanted.unwrap_or_else(|| Addresses { udp: vec![any(), any()], http: any(), postgres: any() });
        let mut command = Command::new(binary());
        command.arg(role).arg("--config").arg(&config).arg("--data-dir").arg(self.data_dir());
        for udp in wanted.udp.iter().filter(|_| role != "aggregate") {
            command.arg("--listen").arg(udp.to_string());
        }
        command.arg("--http").arg(wanted.http.to_string());
        if role != "collect" {
            command.arg("--postgres").arg(wanted.postgres.to_string());
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut text = sink.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
            }
        });
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut weir = Weir { child, log, addresses: wanted };
        match receiver.recv_timeout(LONG) {
            Ok(line) => {
                let addresses = Addresses::parse(&line);
                weir.addresses = addresses.unwrap_or_else(|| panic!("no `ready` line, but {line:?}"));
            }
            Err(_) => panic!("weir printed no `ready` line in {LONG:?}:\n{}", weir.log()),
        }
        *self.addresses.lock().unwrap() = Some(weir.addresses.clone());
        weir
    }
}

/// A `weir run`.
#[derive(Debug)]
pub struct Weir {
    child: Child,
    log: Arc<Mutex<String>>,
    pub addresses: Addresses,
}

impl Weir {
    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process of a role (`collect`, `aggregate`); None while it is not there.
    pub fn role(&self, role: &str) -> Option<u32> {
        let pid = self.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        // The supervisor's threads may have started it: look through all of them.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let of_threads =
            threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let all = of_threads.fold(children, |all, more| all + " " + &more);
        all.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
        })
    }

    /// Waits for the process of a role that is not `but`.
    #[track_caller]
    pub fn wait_for_role(&self, role: &str, but: Option<u32>) -> u32 {
        until(LONG, &format!("a process of the role {role}"), || {
            self.role(role).filter(|pid| Some(*pid) != but).ok_or_else(|| "not there".to_owned())
        })
    }

    /// Kills a role with SIGKILL and gives its pid.
    #[track_caller]
    pub fn kill_role(&self, role: &str) -> u32 {
        let pid = self.wait_for_role(role, None);
        command::signal(pid, "KILL");
        pid
    }

    /// SIGTERM, and its exit status.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        command::signal(self.pid(), "TERM");
        let ended = command::wait(&mut self.child, Duration::from_secs(120));
        ended.unwrap_or_else(|| panic!("weir did not stop:\n{}", self.log()))
    }

    /// `kill -9` of the supervisor; returns when its children have gone too.
    #[track_caller]
    pub fn kill(mut self) {
        let children: Vec<u32> = ["collect", "aggregate"].iter().filter_map(|role| self.role(role)).collect();
        command::signal(self.pid(), "KILL");
        let _ = self.child.wait();
        for pid in children {
            until(LONG, "the children of a killed supervisor to end", || {
                if alive(pid) { Err(format!("{pid} lives")) } else { Ok(()) }
            });
        }
    }

    /// Sends a datagram to the first UDP address.
    pub fn send(&self, datagram: &[u8]) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(datagram, self.addresses.udp[0]).unwrap();
    }

    /// Asks in SQL over HTTP; the rows as text, without the header.
    pub fn try_sql(&self, query: &str) -> Result<Vec<Vec<String>>, String> {
        let answer = self.try_ask(query, "text/csv")?;
        if answer.status != 200 {
            return Err(format!("{} {}", answer.status, answer.text()));
        }
        Ok(csv::parse(&answer.text()).split_off(1))
    }

    fn try_ask(&self, query: &str, accept: &str) -> Result<http::Answer, String> {
        let body = serde_json::json!({ "query": query }).to_string();
        let headers = [("Content-Type", "application/json"), ("Accept", accept)];
        http::request(self.addresses.http, "POST", "/api/v1/sql", &headers, body.as_bytes())
            .map_err(|error| error.to_string())
    }

    /// The answer to a query in a format, whatever its status.
    #[track_caller]
    pub fn ask(&self, query: &str, accept: &str) -> http::Answer {
        self.try_ask(query, accept).unwrap_or_else(|error| panic!("{query}: {error}\n{}", self.log()))
    }

    #[track_caller]
    pub fn sql(&self, query: &str) -> Vec<Vec<String>> {
        self.try_sql(query).unwrap_or_else(|error| panic!("{query}: {error}\n{}", self.log()))
    }

    /// The numbers of a query that answers one row; an absent sum is 0.
    #[track_caller]
    pub fn numbers(&self, query: &str) -> Vec<u64> {
        let rows = self.sql(query);
        assert_eq!(rows.len(), 1, "{query}: {rows:?}");
        rows[0]
            .iter()
            .map(|text| number(text).unwrap_or_else(|| panic!("{query}: {text:?} is no number")))
            .collect()
    }

    /// Waits until a query that answers one row of numbers answers `wanted`.
    #[track_caller]
    pub fn until_numbers(&self, query: &str, wanted: &[u64]) {
        until(LONG, query, || {
            let rows = self.try_sql(query)?;
            let got: Option<Vec<u64>> =
                rows.first().and_then(|row| row.iter().map(|text| number(text)).collect());
            if got.as_deref() == Some(wanted) {
                Ok(())
            } else {
                Err(format!("{got:?}, wanted {wanted:?}\n{}", self.log()))
            }
        });
    }

    /// Runs `weir sql` against it.
    #[track_caller]
    pub fn weir_sql(&self, arguments: &[&str]) -> Ended {
        let url = format!("http://{}", self.addresses.http);
        let mut command = Command::new(binary());
        command.arg("sql").arg("--url").arg(url).args(arguments);
        command::run(&mut command, LONG)
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        let accept = [("Accept", "application/openmetrics-text; version=1.0.0")];
        let answer = http::request(self.addresses.http, "GET", "/metrics", &accept, b"").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        Metrics::parse(&answer.text())
    }

    /// `/readyz`: ready, and what it says.
    pub fn ready(&self) -> (bool, String) {
        match http::get(self.addresses.http, "/readyz") {
            Ok(answer) => (answer.status == 200, answer.text()),
            Err(error) => (false, error.to_string()),
        }
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        let children: Vec<u32> = ["collect", "aggregate"].iter().filter_map(|role| self.role(role)).collect();
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in children.into_iter().filter(|pid| alive(*pid)) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("weir's last lines:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// True while the process exists and is no zombie.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// A whole number in an answer; sums of doubles print as `12.0`, an absent sum as nothing.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() {
        return Some(0);
    }
    text.parse().ok().or_else(|| {
        let float: f64 = text.parse().ok()?;
        (float >= 0.0 && float.fract() == 0.0 && float < 9e15).then_some(float as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line() {
        let line = "ready udp=127.0.0.1:40001,127.0.0.1:40002 http=127.0.0.1:40003 postgres=127.0.0.1:40004";
        let addresses = Addresses::parse(line).unwrap();
        assert_eq!(addresses.udp.len(), 2);
        assert_eq!(addresses.postgres.port(), 40004);
        assert!(Addresses::parse("ready udp=x http=127.0.0.1:1 postgres=127.0.0.1:2").is_none());
        assert_eq!(Addresses::parse("ready http=127.0.0.1:1 postgres=127.0.0.1:2").unwrap().udp, []);
        assert!(Addresses::parse("starting").is_none());
    }

    #[test]
    fn numbers_in_answers() {
        assert_eq!(number("12"), Some(12));
        assert_eq!(number("12.0"), Some(12));
        assert_eq!(number(""), Some(0));
        assert_eq!(number("12.5"), None);
        assert_eq!(number("x"), None);
    }
}
