//! The one binary: the command line, the configuration, and the wiring of the roles.
//!
//! `weir run` is a supervisor ([`supervisor`]) that holds the sockets and keeps two children of this same binary alive:
//! `weir collect` (UDP to log) and `weir aggregate` (log to tables and SQL). Everything else is a tool that ends.

mod cli;
mod client;
mod config;
mod control;
mod demo;
mod failure;
mod forward;
mod relay;
mod roles;
mod signals;
mod supervisor;
mod tools;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{CheckArgs, Cli, Command};
use crate::config::{Config, LogFormat};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let log = cli.log;
    match cli.command {
        Command::Run(mut args) => {
            let config = Config::for_role(&args)?;
            args.log.clone_from(&log);
            start_logging(log.as_deref(), &config, "")?;
            block_on(roles::run(args, config, signals::shutdown(), |_| {}))
        }
        Command::Collect(args) => {
            let config = Config::for_role(&args)?;
            let http = args.http;
            start_logging(log.as_deref(), &config, "collect")?;
            block_on(roles::collect(config, http))
        }
        Command::Aggregate(args) => {
            let config = Config::for_role(&args)?;
            start_logging(log.as_deref(), &config, "aggregate")?;
            block_on(roles::aggregate(config, false))
        }
        Command::Query(args) => {
            let config = Config::for_role(&args)?;
            start_logging(log.as_deref(), &config, "query")?;
            block_on(roles::aggregate(config, true))
        }
        Command::Relay(args) => {
            let config = Config::load(args.config.as_deref())?;
            config.validate()?;
            start_logging(log.as_deref(), &config, "relay")?;
            block_on(relay::run(args, config))
        }
        Command::Demo(args) => {
            let config = demo::config(&args)?;
            let log = log.unwrap_or_else(|| "warn".to_owned());
            start_logging(Some(&log), &config, "")?;
            block_on(demo::run(args, config, log))
        }
        Command::Sql(args) => block_on(client::sql(args)),
        Command::Status(args) => block_on(client::status(args)),
        Command::Reload(args) => block_on(control::reload(args)),
        Command::Decode(args) => Ok(tools::decode::run(&args)?),
        Command::Replay(args) => Ok(tools::replay::run(&args)?),
        Command::Generate(args) => Ok(tools::generate::run(&args)?),
        Command::Check(args) => check(args),
    }
}

fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Planning recurses with the depth of a query; the gate bounds it, this stack bears it.
        .thread_stack_size(8 << 20)
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(future);
    // A child that was asked to stop by a signal still reads its stdin, which does not end: nobody waits for that.
    runtime.shutdown_background();
    result
}

/// Logs go to stderr: text, or JSON where configured. `--log` and `WEIR_LOG` come before the configuration.
fn start_logging(typed: Option<&str>, config: &Config, role: &'static str) -> Result<(), Failure> {
    let level = typed.unwrap_or(&config.logging.level);
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Failure::usage(format!("log level `{level}`: {error}; try info or info,weir_collector=debug"))
    })?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.logging.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    if !role.is_empty() {
        tracing::debug!(role, version = env!("CARGO_PKG_VERSION"), "starts");
    }
    Ok(())
}

/// `weir check`: refuses what cannot be, says what the rest means.
fn check(args: CheckArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref())?;
    config.validate()?;
    let mut out = std::io::stdout().lock();
    if args.print {
        let text = toml::to_string_pretty(&config)
            .map_err(|error| Failure::failed(format!("cannot print the configuration: {error}")))?;
        return out.write_all(text.as_bytes()).map_err(Failure::output);
    }
    for line in config.explain() {
        writeln!(out, "{line}").map_err(Failure::output)?;
    }
    writeln!(out, "the configuration is valid").map_err(Failure::output)
}
