//! The offline tools: `decode`, `replay` and `generate`. Each has its clap `Args` and `run(&Args)`.

pub(crate) mod decode;
pub(crate) mod encode;
pub(crate) mod generate;
pub(crate) mod replay;

mod input;
mod pace;
mod protobuf;
mod rows;
mod target;

use std::io;

/// Why a tool gave up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// What was asked for makes no sense: exit status 2.
    #[error("{0}")]
    Usage(String),
    /// It did not work: exit status 1.
    #[error("{0}")]
    Failed(String),
    /// Whoever reads the output has gone (`| head`): nothing to complain about.
    #[error("the output was closed")]
    OutputClosed,
}

impl ToolError {
    fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> ToolError {
        move |error| ToolError::Failed(format!("{what}: {error}"))
    }

    /// An error of writing the results.
    fn output(error: io::Error) -> ToolError {
        match error.kind() {
            io::ErrorKind::BrokenPipe => ToolError::OutputClosed,
            _ => ToolError::Failed(format!("writing the output: {error}")),
        }
    }
}
