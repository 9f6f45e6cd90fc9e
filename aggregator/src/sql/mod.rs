//! SQL: the DataFusion session that every door shares.
//!
//! A text comes in through [`Session::execute`] (or [`Session::prepare`] and [`Session::execute_prepared`]), passes the
//! [`gate`], is planned with our [`functions`] and [`address`] rules over the store's tables, and its [`Rows`] stream
//! out. `serve` puts the doors in front of it.

pub mod address;
mod engine;
mod error;
pub mod functions;
pub mod gate;
mod guard;
mod metrics;
mod packed;
pub(crate) mod questions;
mod run;
mod schema;
pub mod settings;

pub(crate) use engine::typed;
pub use engine::{Answer, Done, Door, Engine, EngineError, Prepared, Session, SqlConfig};
pub use error::{ErrorKind, QueryError};
pub(crate) use guard::Limit;
pub use metrics::SqlMetrics;
pub(crate) use packed::PackedGrouping;
pub use run::Rows;
pub use schema::{CATALOG, SCHEMA};

#[cfg(test)]
pub(crate) mod tests;
