//! The collector's own small HTTP server: `/metrics`, `/healthz`, `/readyz`, on a Unix socket in the data directory (the
//! aggregator reads it and merges the metrics into its own) and, where asked for, on a TCP listener.
//!
//! HTTP/1.1, GET and HEAD, one request a connection, bounded in size, time and number. Nothing that is sent is read but
//! the request line.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::metrics::CollectorMetrics;

const MAX_REQUEST: usize = 8_192;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 64;
/// A shard that has not been round its loop for this long hangs.
const SHARD_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the collector is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Starting,
    Running,
    Stopping,
}

/// What the server answers from.
#[derive(Debug, Clone)]
pub struct Admin {
    metrics: CollectorMetrics,
    phase: Arc<AtomicU8>,
    connections: Arc<Semaphore>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

impl Answer {
    fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

impl Admin {
    pub fn new(metrics: CollectorMetrics) -> Admin {
        Admin {
            metrics,
            phase: Arc::new(AtomicU8::new(Phase::Starting as u8)),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub fn metrics(&self) -> &CollectorMetrics {
        &self.metrics
    }

    /// Why the collector should get no datagrams now; None where it is ready.
    pub fn not_ready(&self) -> Option<String> {
        match self.phase.load(Ordering::Acquire) {
            0 => return Some("starting".into()),
            1 => {}
            _ => return Some("stopping".into()),
        }
        let sources = self.metrics.sources();
        for (index, shard) in sources.shards.iter().enumerate() {
            let silent = shard.published().at.elapsed();
            if silent > SHARD_TIMEOUT {
                return Some(format!("shard {index} has been stuck for {} s", silent.as_secs()));
            }
        }
        let (why, since) = sources.queue.blocked()?;
        Some(format!("the log has taken nothing for {} s: {why}", since.elapsed().as_secs()))
    }

    /// The answer to `GET path`.
    pub fn answer(&self, path: &str) -> Answer {
        match path {
            "/metrics" => Answer {
                status: 200,
                content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                body: self.metrics.render(),
            },
            "/healthz" => Answer::text(200, "ok\n"),
            "/readyz" => match self.not_ready() {
                None => Answer::text(200, "ready\n"),
                Some(why) => Answer::text(503, format!("not ready: {why}\n")),
            },
            _ => Answer::text(404, "there is /metrics, /healthz and /readyz\n"),
        }
    }

    /// Serves on a Unix socket until dropped. An abandoned socket file is replaced, one that answers is not.
    pub async fn bind_unix(&self, path: &Path) -> io::Result<UnixServer> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "a file that is no socket is there",
                ));
            }
            if UnixStream::connect(path).await.is_ok() {
                let text = "another collector runs on this data directory";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        Ok(UnixServer { admin: self.clone(), listener, path: path.to_owned() })
    }

    /// Serves on a TCP listener until dropped.
    pub async fn serve_tcp(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.spawn(stream),
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    fn spawn(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        // Too many at once: the connection is closed, which any scraper takes as "try later".
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else { return };
        let admin = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = admin.serve_one(stream).await {
                tracing::debug!(%error, "an admin connection failed");
            }
        });
    }

    async fn serve_one(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let request = tokio::time::timeout(REQUEST_TIMEOUT, read_request(&mut stream)).await??;
        let Some(request) = request else { return Ok(()) };
        let mut words = request.lines().next().unwrap_or_default().split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let answer = match method {
            "GET" | "HEAD" => self.answer(path),
            _ => Answer::text(405, "GET or HEAD\n"),
        };
        let reason = match answer.status {
            200 => "OK",
            404 => "Not Found",
            405 => "Method Not Allowed",
            _ => "Service Unavailable",
        };
        let mut response = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            answer.status,
            answer.content_type,
            answer.body.len()
        );
        if method != "HEAD" {
            response.push_str(&answer.body);
        }
        tokio::time::timeout(RESPONSE_TIMEOUT, async {
            stream.write_all(response.as_bytes()).await?;
            stream.shutdown().await
        })
        .await?
    }
}

async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "cannot accept an admin connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// The head of a request, as text; None where the peer went away.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<String>> {
    let mut head = Vec::with_capacity(512);
    let mut buffer = [0; 1_024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(None);
        }
        head.extend_from_slice(&buffer[..count]);
        if head.windows(4).any(|window| window == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n") {
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if head.len() > MAX_REQUEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too long"));
        }
    }
}

/// The server on the Unix socket; the file goes with it.
#[derive(Debug)]
pub struct UnixServer {
    admin: Admin,
    listener: UnixListener,
    path: PathBuf,
}

impl UnixServer {
    /// Serves until dropped.
    pub async fn serve(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => self.admin.spawn(stream),
                Err(error) => accept_failed(&error).await,
            }
        }
    }
}

impl Drop for UnixServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
