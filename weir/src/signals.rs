//! When to stop: SIGTERM, SIGINT, or the end of the supervisor.

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Completes at SIGTERM or SIGINT, and in a supervised child when its stdin ends. A child ignores SIGINT: Ctrl-C goes
/// to the whole process group, and the supervisor stops its children in order.
pub(crate) async fn shutdown() {
    let supervised = std::env::var_os(crate::supervisor::SUPERVISED).is_some();
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals: stop with SIGKILL");
        return std::future::pending().await;
    };
    let stdin_ends = async {
        if !supervised {
            std::future::pending::<()>().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut bytes = [0; 64];
        while !matches!(stdin.read(&mut bytes).await, Ok(0) | Err(_)) {}
    };
    tokio::pin!(stdin_ends);
    loop {
        tokio::select! {
            _ = terminate.recv() => return,
            _ = interrupt.recv() => if !supervised { return },
            () = &mut stdin_ends => return,
        }
    }
}

/// A token that is cancelled when this process is asked to stop.
pub(crate) fn stop_token() -> CancellationToken {
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        shutdown().await;
        asked.cancel();
    });
    stop
}
