//! What SQL sees: the physical tables (committed files + hot rows) and the views over them.
//!
//! The session (`sql`) registers [`Catalog::tables`] under their names, [`Catalog::register`] on its runtime, and then
//! plans [`views`] over them, in order.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::execution::runtime_env::RuntimeEnv;
use url::Url;

use crate::store::{Store, StoreInfo};

/// The tables of a store, for a DataFusion session. Cheap to clone; every query sees the newest snapshot by itself.
#[derive(Debug, Clone)]
pub struct Catalog {
    store: Arc<Store>,
}

impl Catalog {
    pub fn new(store: Arc<Store>) -> Catalog {
        Catalog { store }
    }

    /// The physical tables by SQL name. A provider takes one consistent snapshot at each scan.
    pub fn tables(&self) -> Vec<(String, Arc<dyn TableProvider>)> {
        self.store.providers()
    }

    /// Makes the store's files readable by the queries of `runtime`.
    pub fn register(&self, runtime: &RuntimeEnv) {
        let url = Url::parse(crate::store::OBJECT_STORE_URL).expect("a constant URL");
        runtime.register_object_store(&url, self.store.objects());
    }

    /// The state of the store, for metrics and `/readyz`.
    pub fn snapshot_info(&self) -> StoreInfo {
        self.store.info()
    }
}

/// The views as (name, SELECT), to be registered in this order after the tables.
pub fn views() -> &'static [(&'static str, &'static str)] {
    VIEWS
}

/// What the three tables of flow columns have in common.
macro_rules! flow_view {
    ($table:literal) => {
        concat!(
            "SELECT *, CAST(tos >> 2 AS SMALLINT) AS dscp, CAST(tos & 3 AS SMALLINT) AS ecn, ",
            "CAST(post_tos >> 2 AS SMALLINT) AS post_dscp, ",
            "CAST(bytes AS DOUBLE) * coalesce(sampling_rate, 1.0) AS est_bytes, ",
            "CAST(packets AS DOUBLE) * coalesce(sampling_rate, 1.0) AS est_packets, ",
            "(CAST(end_time AS BIGINT) - CAST(start_time AS BIGINT)) / 1000 AS duration_ms FROM ",
            $table
        )
    };
}

const VIEWS: &[(&str, &str)] = &[
    ("flows", flow_view!("flows_raw")),
    ("nat_events", flow_view!("nat_events_raw")),
    ("discards", flow_view!("discards_raw")),
    (
        "flows_1m",
        "SELECT window_start, exporter_addr, in_if, out_if, ip_protocol, dscp, src_as, dst_as, \
         sum(flows) AS flows, sum(bytes) AS bytes, sum(packets) AS packets, \
         sum(est_bytes) AS est_bytes, sum(est_packets) AS est_packets, \
         sum(unknown_sampling_flows) AS unknown_sampling_flows \
         FROM flows_1m_parts \
         GROUP BY window_start, exporter_addr, in_if, out_if, ip_protocol, dscp, src_as, dst_as",
    ),
    (
        "top_talkers",
        "SELECT window_start, dimension, other, addr, peer_addr, ip_protocol, port, asn, \
         sum(flows) AS flows, sum(bytes) AS bytes, sum(packets) AS packets, \
         sum(est_bytes) AS est_bytes, sum(est_packets) AS est_packets, \
         sum(unknown_sampling_flows) AS unknown_sampling_flows \
         FROM top_talkers_parts \
         GROUP BY window_start, dimension, other, addr, peer_addr, ip_protocol, port, asn",
    ),
    (
        "qos_1m",
        "SELECT window_start, exporter_addr, direction, if_index, dscp, class, \
         sum(flows) AS flows, sum(bytes) AS bytes, sum(packets) AS packets, \
         sum(est_bytes) AS est_bytes, sum(est_packets) AS est_packets, \
         sum(unknown_sampling_flows) AS unknown_sampling_flows, \
         CASE WHEN sum(packets) > 0 THEN CAST(sum(bytes) AS DOUBLE) / sum(packets) END AS avg_packet_bytes \
         FROM qos_1m_parts \
         GROUP BY window_start, exporter_addr, direction, if_index, dscp, class",
    ),
    (
        "exporters",
        "SELECT exporter_addr, sender_addr, observation_domain, proto_ver, \
         min(received_at) AS first_seen, max(received_at) AS last_seen, \
         sum(datagrams) AS datagrams, sum(datagram_bytes) AS datagram_bytes, sum(flows) AS flows, \
         sum(options_records) AS options_records, sum(counter_samples) AS counter_samples, \
         sum(templates) AS templates, sum(template_misses) AS template_misses, \
         sum(sets_replayed) AS sets_replayed, sum(sets_expired) AS sets_expired, sum(rejected) AS rejected, \
         sum(sequence_expected) AS sequence_expected, sum(sequence_lost) AS sequence_lost, \
         sum(sequence_reordered) AS sequence_reordered, sum(sequence_resets) AS sequence_resets, \
         sum(sequence_uncertain) AS sequence_uncertain, sum(agent_drops) AS agent_drops, \
         CASE WHEN sum(sequence_expected) > 0 \
           THEN CAST(sum(sequence_lost) AS DOUBLE) / sum(sequence_expected) END AS loss_ratio, \
         last_value(clock_skew_us ORDER BY received_at) AS clock_skew_us, \
         last_value(sampling_rate ORDER BY received_at) AS sampling_rate \
         FROM exporter_stats \
         GROUP BY exporter_addr, sender_addr, observation_domain, proto_ver",
    ),
];
