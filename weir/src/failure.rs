//! How a command ends: 0, 1 (failed) or 2 (usage or configuration).

use std::process::ExitCode;

use crate::tools::ToolError;

/// A command that did not do what it was asked; the text is all that is printed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// Exit status 1.
    pub(crate) fn failed(message: String) -> Failure {
        Failure { message, code: 1 }
    }

    /// Exit status 2: what was typed or configured cannot be.
    pub(crate) fn usage(message: String) -> Failure {
        Failure { message, code: 2 }
    }

    /// Output that cannot be written.
    pub(crate) fn output(error: std::io::Error) -> Failure {
        Failure::failed(format!("cannot write the output: {error}"))
    }

    /// Prints the message on stderr; returns the status. Output that nobody reads any more is no failure.
    pub(crate) fn report(&self) -> ExitCode {
        if self.code != 0 {
            eprintln!("weir: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Failure::usage(error.to_string())
    }
}

impl From<ToolError> for Failure {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Usage(message) => Failure::usage(message),
            ToolError::Failed(message) => Failure::failed(message),
            ToolError::OutputClosed => Failure { message: String::new(), code: 0 },
        }
    }
}
