//! The aggregator: from the log to exactly-once tables and SQL.
//!
//! Data flows one way: [`source`] (log → messages) → [`ingest`] → [`store`] (Parquet in Delta Lake, hot rows) →
//! [`catalog`] (what SQL sees) → [`sql`] (DataFusion) → [`serve`] (PostgreSQL wire, HTTP). [`aggregate`] puts it together.

pub mod aggregate;
pub mod catalog;
mod cluster;
mod completeness;
mod countries;
mod follow;
mod hot;
pub mod ingest;
mod intake;
mod provider;
pub mod rollup;
pub mod serve;
mod sketch;
pub mod source;
pub mod sql;
pub mod store;
mod traffic;
mod views;
