//! A real Apache Kafka for a test: one broker of its own, killed and started again with its data.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{program, run};
use crate::repository;

/// A broker, killed at the end.
#[derive(Debug)]
pub struct Kafka {
    folder: tempfile::TempDir,
    pub bootstrap: String,
}

impl Kafka {
    fn script() -> PathBuf {
        repository().join("deploy/kafka/kafka")
    }

    #[track_caller]
    pub fn start() -> Kafka {
        program("java");
        let folder = tempfile::Builder::new().prefix("weir-kafka-").tempdir().unwrap();
        let bootstrap = Kafka::call("start", folder.path()).trim().to_owned();
        Kafka { folder, bootstrap }
    }

    #[track_caller]
    fn call(what: &str, folder: &Path) -> String {
        // The first start fetches the jars.
        run(Command::new(Kafka::script()).arg(what).arg(folder), Duration::from_secs(300)).ok()
    }

    /// A configuration of weir that uses it.
    pub fn config(&self) -> String {
        format!("[log]\nkind = \"kafka\"\n\n[log.kafka]\nbootstrap_servers = \"{}\"\n", self.bootstrap)
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill(&self) {
        Kafka::call("kill", self.folder.path());
    }

    /// Starts it on the same port with the same data.
    #[track_caller]
    pub fn start_again(&self) {
        assert_eq!(Kafka::call("start", self.folder.path()).trim(), self.bootstrap);
    }

    #[track_caller]
    pub fn crash(&self) {
        self.kill();
        self.start_again();
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = Command::new(Kafka::script()).arg("kill").arg(self.folder.path()).output();
    }
}
