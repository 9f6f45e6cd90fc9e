//! A real S3 server for a test: versitygw over a folder, killed and started again with its data.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::command;
use crate::wait::{LONG, until};

const USER: &str = "weir";
const SECRET: &str = "not-a-secret";

/// A server with one bucket, killed at the end.
#[derive(Debug)]
pub struct S3 {
    folder: tempfile::TempDir,
    address: SocketAddr,
    child: Child,
}

impl S3 {
    /// `WEIR_S3_SERVER`, else what `tests/run` has installed.
    #[track_caller]
    fn binary() -> PathBuf {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let path = std::env::var_os("WEIR_S3_SERVER").map_or(home.join("go/bin/versitygw"), PathBuf::from);
        assert!(
            path.is_file(),
            "no S3 server at {}: go install github.com/versity/versitygw/cmd/versitygw@v1.8.0 (tests/run does), or \
             name one by WEIR_S3_SERVER",
            path.display()
        );
        path
    }

    #[track_caller]
    pub fn start() -> S3 {
        let folder = tempfile::Builder::new().prefix("weir-s3-").tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("data/bucket")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = S3::serve(&folder.path().join("data"), address);
        S3 { folder, address, child }
    }

    #[track_caller]
    fn serve(data: &std::path::Path, address: SocketAddr) -> Child {
        let mut command = Command::new(S3::binary());
        command
            .env("ROOT_ACCESS_KEY", USER)
            .env("ROOT_SECRET_KEY", SECRET)
            .arg("--port")
            .arg(address.to_string());
        command.arg("--quiet").arg("posix").arg(data).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the S3 server can be started");
        until(LONG, "the S3 server", || TcpStream::connect(address).map_err(|error| error.to_string()));
        child
    }

    /// A configuration of weir that keeps its tables there.
    pub fn config(&self) -> String {
        format!(
            "[store]\nurl = \"s3://bucket/weir\"\ncommit_interval_ms = 500\n[store.options]\n\
             aws_endpoint = \"http://{}\"\naws_allow_http = \"true\"\naws_region = \"us-east-1\"\n\
             aws_access_key_id = \"{USER}\"\naws_secret_access_key = \"{SECRET}\"\n",
            self.address
        )
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, name: &str) {
        command::signal(self.child.id(), name);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    #[track_caller]
    pub fn start_again(&mut self) {
        self.child = S3::serve(&self.folder.path().join("data"), self.address);
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.kill();
    }
}
