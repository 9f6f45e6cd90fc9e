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
        "SELECT window_start, exporter_addr, in_if, out_if, ip_protocol, dscp, \
         sum(flows) AS flows, sum(bytes) AS bytes, sum(packets) AS packets, \
         sum(est_bytes) AS est_bytes, sum(est_packets) AS est_packets, \
         sum(unknown_sampling_flows) AS unknown_sampling_flows \
         FROM flows_1m_parts \
         GROUP BY window_start, exporter_addr, in_if, out_if, ip_protocol, dscp",
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
         sum(template_collisions) AS template_collisions, sum(withdrawals_ignored) AS withdrawals_ignored, \
         sum(sequence_expected) AS sequence_expected, \
         sum(sequence_expected) - sum(sequence_lost) + coalesce(sum(sequence_recovered), 0) AS sequence_received, \
         sum(sequence_lost) - coalesce(sum(sequence_recovered), 0) AS sequence_lost, \
         sum(sequence_reordered) AS sequence_reordered, sum(sequence_resets) AS sequence_resets, \
         sum(sequence_uncertain) AS sequence_uncertain, sum(agent_drops) AS agent_drops, \
         sum(samples_expected) AS samples_expected, \
         sum(samples_lost) - coalesce(sum(samples_recovered), 0) AS samples_lost, sum(records_skipped) AS records_skipped, \
         CASE WHEN sum(sequence_expected) > 0 \
           THEN CAST(sum(sequence_lost) - coalesce(sum(sequence_recovered), 0) AS DOUBLE) / sum(sequence_expected) \
         END AS loss_ratio, \
         last_value(clock_skew_us ORDER BY received_at) AS clock_skew_us, \
         last_value(sampling_rate ORDER BY received_at) AS sampling_rate \
         FROM exporter_stats \
         GROUP BY exporter_addr, sender_addr, observation_domain, proto_ver",
    ),
    (
        "interfaces",
        "SELECT exporter_addr, if_index, \
         last_value(if_name ORDER BY received_at) AS if_name, \
         last_value(if_description ORDER BY received_at) AS if_description, max(received_at) AS last_seen \
         FROM ( \
           SELECT received_at, exporter_addr, TRY_CAST(coalesce(scope['ingressInterface'], scope['interface'], \
             scope['egressInterface'], fields['ingressInterface'], fields['egressInterface']) AS BIGINT) AS if_index, \
             fields['interfaceName'] AS if_name, fields['interfaceDescription'] AS if_description FROM options \
           UNION ALL \
           SELECT received_at, exporter_addr, if_index, extra['port_name'] AS if_name, \
             CAST(NULL AS VARCHAR) AS if_description FROM interface_counters \
         ) WHERE if_index IS NOT NULL AND (if_name IS NOT NULL OR if_description IS NOT NULL) \
         GROUP BY exporter_addr, if_index",
    ),
    (
        "vrfs",
        "SELECT exporter_addr, vrf_id, last_value(vrf_name ORDER BY received_at) AS vrf_name, \
         max(received_at) AS last_seen \
         FROM ( \
           SELECT received_at, exporter_addr, TRY_CAST(coalesce(scope['ingressVRFID'], scope['egressVRFID'], \
             fields['ingressVRFID'], fields['egressVRFID']) AS BIGINT) AS vrf_id, \
             coalesce(fields['VRFname'], scope['VRFname']) AS vrf_name FROM options \
         ) WHERE vrf_id IS NOT NULL AND vrf_name IS NOT NULL \
         GROUP BY exporter_addr, vrf_id",
    ),
    (
        "applications",
        "SELECT exporter_addr, app_id, last_value(app_name ORDER BY received_at) AS app_name, \
         last_value(app_description ORDER BY received_at) AS app_description, \
         last_value(app_category ORDER BY received_at) AS app_category, max(received_at) AS last_seen \
         FROM ( \
           SELECT received_at, exporter_addr, coalesce(scope['applicationId'], fields['applicationId']) AS app_id, \
             fields['applicationName'] AS app_name, fields['applicationDescription'] AS app_description, \
             fields['applicationCategoryName'] AS app_category FROM options \
         ) WHERE app_id IS NOT NULL AND app_name IS NOT NULL \
         GROUP BY exporter_addr, app_id",
    ),
];
