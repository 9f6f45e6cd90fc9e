//! The aggregator: from the log to exactly-once tables and SQL.
//!
//! Data flows one way: [`source`] (log → messages) → [`store`] (Parquet in Delta Lake, hot rows) → [`catalog`] (what SQL
//! sees) → `sql` (DataFusion) → `serve` (PostgreSQL wire, HTTP).

pub mod catalog;
pub mod source;
pub mod store;
