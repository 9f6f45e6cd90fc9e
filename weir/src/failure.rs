//! How a command ends: 0, 1 (failed) or 2 (usage or configuration).

use std::process::ExitCode;

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

    /// Prints the message on stderr; returns the status.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("weir: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Failure::usage(error.to_string())
    }
}
