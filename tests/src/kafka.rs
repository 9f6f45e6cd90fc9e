//! A real Apache Kafka for a test: one broker of its own, killed and started again with its data.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::command::{Ended, program, run};
use crate::repository;

/// A broker, killed at the end.
#[derive(Debug)]
pub struct Kafka {
    folder: tempfile::TempDir,
    settings: String,
    pub bootstrap: String,
}

impl Kafka {
    fn script() -> PathBuf {
        repository().join("deploy/kafka/kafka")
    }

    #[track_caller]
    pub fn start() -> Kafka {
        Kafka::with("")
    }

    /// With these lines of `server.properties`, separated by `;`.
    #[track_caller]
    pub fn with(settings: &str) -> Kafka {
        program("java");
        let folder = tempfile::Builder::new().prefix("weir-kafka-").tempdir().unwrap();
        let mut kafka = Kafka { folder, settings: settings.to_owned(), bootstrap: String::new() };
        kafka.bootstrap = kafka.call("start").trim().to_owned();
        kafka
    }

    fn ask(&self, what: &str) -> Ended {
        let mut command = Command::new(Kafka::script());
        command.arg(what).arg(self.folder.path()).env("WEIR_KAFKA_SETTINGS", &self.settings);
        // The first start fetches the jars.
        run(&mut command, Duration::from_secs(300))
    }

    #[track_caller]
    fn call(&self, what: &str) -> String {
        self.ask(what).ok()
    }

    /// A configuration of weir that uses it.
    pub fn config(&self) -> String {
        format!("[log]\nkind = \"kafka\"\n\n[log.kafka]\nbootstrap_servers = \"{}\"\n", self.bootstrap)
    }

    /// `kill -9`.
    #[track_caller]
    pub fn kill(&self) {
        self.call("kill");
    }

    /// Starts it on the same port with the same data. One that does not get ready on a starved machine is killed once more.
    #[track_caller]
    pub fn start_again(&self) {
        for _ in 0..2 {
            let ended = self.ask("start");
            if ended.status.success() {
                assert_eq!(ended.stdout.trim(), self.bootstrap);
                return;
            }
            eprintln!("{}", ended.stderr);
            self.kill();
        }
        assert_eq!(self.call("start").trim(), self.bootstrap);
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
