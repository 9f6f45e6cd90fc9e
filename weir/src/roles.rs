//! The roles: how `run`, `collect` and `aggregate` are put together from the configuration.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use weir_aggregator::aggregate::Aggregator;
use weir_collector::collect::Collector;
use weir_collector::receive::socket::{Socket, bind_all};

use crate::cli::RoleArgs;
use crate::config::Config;
use crate::failure::Failure;
use crate::supervisor::{self, Inherited, Role};

/// The addresses that a weir has bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    pub(crate) udp: Vec<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) postgres: Option<SocketAddr>,
}
