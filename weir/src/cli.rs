//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::tools::generate::parse_duration;

/// Network flow collector and analytics: NetFlow, IPFIX and sFlow in, SQL out.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
pub(crate) struct Cli {
    /// How much to log: error, warn, info, debug, trace, or a filter such as `info,weir_collector=debug`.
    #[arg(long, global = true, value_name = "LEVEL", env = "WEIR_LOG")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Collect, store and answer queries: everything on this machine.
    Run(RoleArgs),
    /// Only receive and decode: datagrams to the log.
    Collect(RoleArgs),
    /// Only store and answer queries: the log to tables and SQL.
    Aggregate(RoleArgs),
    /// Only answer queries: over the tables that aggregators share, and what is in Kafka beyond them.
    Query(RoleArgs),
    /// Copy the topic to another one as JSON lines or Protocol Buffers, for consumers that do not read Arrow.
    Relay(crate::relay::RelayArgs),
    /// Ask a running weir in SQL.
    Sql(SqlArgs),
    /// Print the records of a capture file.
    Decode(crate::tools::decode::DecodeArgs),
    /// Send the datagrams of a capture file to a collector.
    Replay(crate::tools::replay::ReplayArgs),
    /// Send synthetic flows, seeded, and print their exact totals.
    Generate(crate::tools::generate::GenerateArgs),
    /// Run weir on generated flows and print what to try.
    Demo(DemoArgs),
    /// Check a configuration and say what it means.
    Check(CheckArgs),
    /// Say how a running weir is: ready, exporters, loss, lag.
    Status(StatusArgs),
    /// Let a running weir read its configuration again, without losing a datagram.
    Reload(ReloadArgs),
}

/// What `run`, `collect` and `aggregate` have in common.
#[derive(Debug, Clone, Args)]
pub(crate) struct RoleArgs {
    /// Configuration file (TOML). Without one the defaults hold.
    #[arg(long, value_name = "FILE", env = "WEIR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where the log, the tables and the state live.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// UDP address to receive on; repeat for more. Replaces the configured ones. Port 0 picks a free port.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) listen: Vec<SocketAddr>,
    /// Address of the HTTP server (SQL, metrics, health).
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Address of the PostgreSQL wire server.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) postgres: Option<SocketAddr>,
    /// `--log`, for the roles that `run` starts.
    #[arg(skip)]
    pub(crate) log: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// Where weir's HTTP server is.
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "WEIR_URL")]
    pub(crate) url: String,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// One SELECT, EXPLAIN or SHOW; `-` reads it from stdin.
    pub(crate) query: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Jsonl,
    Csv,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where the demo keeps its data.
    #[arg(long, value_name = "DIR", default_value = "./weir-demo")]
    pub(crate) data_dir: PathBuf,
    /// Flows a second to generate.
    #[arg(long, default_value_t = 2_000)]
    pub(crate) rate: u64,
    /// Stop after so long (`30`, `90s`, `1.5m`); without it run until Ctrl-C.
    #[arg(long, value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Address of the HTTP server (SQL, metrics, health).
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) http: SocketAddr,
    /// Address of the PostgreSQL wire server.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15432")]
    pub(crate) postgres: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "WEIR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Print the whole configuration that results, every key with its value.
    #[arg(long)]
    pub(crate) print: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Where weir's HTTP server is.
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "WEIR_URL")]
    pub(crate) url: String,
}

#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// The data directory of the weir that is meant.
    #[arg(long, value_name = "DIR", default_value = "./weir-data", env = "WEIR_DATA_DIR")]
    pub(crate) data_dir: PathBuf,
}
