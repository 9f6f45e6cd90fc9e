//! How a running weir is told to reload: `weir reload` speaks to a socket in the data directory, so that it learns what
//! came of it; SIGHUP does the same without an answer.
//!
//! A line is sent (`reload`), a line is answered: `ok …` or `error …`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::cli::ReloadArgs;
use crate::failure::Failure;

/// How long a client may take to send its line, and a reload to be answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// A wish to reload. The answer goes to whoever asked, where somebody listens.
pub(crate) type Wish = oneshot::Sender<Result<String, String>>;

fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("weir.control")
}

/// Hears wishes from the socket and from SIGHUP until the program ends. Without the socket SIGHUP remains.
pub(crate) fn listen(data_dir: &Path) -> mpsc::Receiver<Wish> {
    let (wishes, heard) = mpsc::channel(4);
    match signal(SignalKind::hangup()) {
        Ok(mut hangup) => {
            let wishes = wishes.clone();
            tokio::spawn(async move {
                while hangup.recv().await.is_some() {
                    let (answer, told) = oneshot::channel();
                    if wishes.send(answer).await.is_err() {
                        return;
                    }
                    // what came of it stands in the log
                    let _ = told.await;
                }
            });
        }
        Err(error) => tracing::warn!("cannot listen for SIGHUP: {error}"),
    }
    let path = socket_path(data_dir);
    match bind(&path) {
        Ok(listener) => {
            tokio::spawn(async move {
                loop {
                    match listener.accept().await {
                        // one after the other: reloads do not overlap
                        Ok((stream, _)) => {
                            if let Err(error) = serve(stream, &wishes).await {
                                tracing::debug!("control socket: {error}");
                            }
                        }
                        Err(error) => {
                            tracing::warn!("control socket: {error}");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
            });
        }
        Err(error) => tracing::warn!("cannot listen on {}: {error}; use SIGHUP", path.display()),
    }
    heard
}

/// A socket of a weir that has died is in the way; that none lives is known from the ports that we have bound.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(stream: UnixStream, wishes: &mpsc::Sender<Wish>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(64));
    tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await??;
    let answer = match line.trim() {
        "reload" => {
            let (answer, told) = oneshot::channel();
            if wishes.send(answer).await.is_err() {
                return Ok(());
            }
            told.await.unwrap_or_else(|_| Err("weir is stopping".to_owned()))
        }
        _ => Err("the only command is `reload`".to_owned()),
    };
    let line = match answer {
        Ok(text) => format!("ok {text}\n"),
        Err(text) => format!("error {text}\n"),
    };
    tokio::time::timeout(PATIENCE, write.write_all(line.as_bytes())).await?
}

/// `weir reload`: asks the weir of a data directory to read its configuration again.
pub(crate) async fn reload(args: ReloadArgs) -> Result<(), Failure> {
    let path = socket_path(&args.data_dir);
    let gone = |error: io::Error| {
        Failure::failed(format!(
            "no weir answers at {}: {error}; is `weir run` up, and is --data-dir its data directory?",
            path.display()
        ))
    };
    let mut stream = UnixStream::connect(&path).await.map_err(gone)?;
    stream.write_all(b"reload\n").await.map_err(gone)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(gone)?;
    match answer.trim().split_once(' ') {
        Some(("ok", text)) => {
            use std::io::Write;
            writeln!(std::io::stdout(), "{text}").map_err(Failure::output)
        }
        Some(("error", text)) => Err(Failure::failed(format!("not reloaded: {text}"))),
        _ => Err(Failure::failed(format!("the weir at {} gave no answer", path.display()))),
    }
}
