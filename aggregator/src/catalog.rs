//! What SQL sees: the physical tables (committed files + hot rows) and the views over them.
//!
//! The session (`sql`) registers [`Catalog::tables`] under their names, [`Catalog::register`] on its runtime, and then
//! plans [`views`] over them, in order.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::execution::runtime_env::RuntimeEnv;
use url::Url;

use crate::completeness::{self, Completeness};
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
        let completeness: Arc<dyn TableProvider> = Arc::new(Completeness::new(Arc::clone(&self.store)));
        let mut tables = self.store.providers();
        tables.push((completeness::NAME.to_owned(), completeness));
        tables
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

/// The measures of every rollup.
macro_rules! sums {
    () => {
        "sum(flows) AS flows, sum(bytes) AS bytes, sum(packets) AS packets, \
         sum(est_bytes) AS est_bytes, sum(est_packets) AS est_packets, \
         sum(unknown_sampling_flows) AS unknown_sampling_flows, \
         sqrt(sum(est_bytes_variance)) AS est_bytes_error"
    };
}

macro_rules! flows_view {
    ($parts:literal) => {
        concat!(
            "SELECT window_start, exporter_addr, in_if, out_if, ip_protocol, dscp, src_as, dst_as, ",
            sums!(),
            " FROM ",
            $parts,
            " GROUP BY window_start, exporter_addr, in_if, out_if, ip_protocol, dscp, src_as, dst_as"
        )
    };
}

/// What tells the keys of top talkers apart.
macro_rules! talker {
    () => {
        "dimension, other, addr, peer_addr, prefix_len, ip_protocol, port, peer_port, asn, peer_asn, \
         exporter_addr, if_index, peer_if_index, vrf, peer_vrf, dscp, app, country, peer_country"
    };
}

/// The same of keys alone.
macro_rules! talker_key {
    () => {
        "dimension, addr, peer_addr, prefix_len, ip_protocol, port, peer_port, asn, peer_asn, \
         exporter_addr, if_index, peer_if_index, vrf, peer_vrf, dscp, app, country, peer_country"
    };
}

/// Ranks, shares and bounds are windows over the sums: a query that does not name them does not compute them.
macro_rules! talkers_view {
    ($parts:literal) => {
        concat!(
            "SELECT window_start, ",
            talker!(),
            ", ",
            sums!(),
            ", CASE WHEN sum(sum(est_bytes)) OVER (PARTITION BY window_start, dimension) > 0 \
               THEN sum(est_bytes) / sum(sum(est_bytes)) OVER (PARTITION BY window_start, dimension) END AS share, \
             CASE WHEN NOT other THEN \
               CAST(rank() OVER (PARTITION BY window_start, dimension, other ORDER BY sum(est_bytes) DESC) AS BIGINT) END AS rank, \
             CASE WHEN NOT other THEN \
               sum(CASE WHEN other THEN sum(bound) ELSE 0.0 END) OVER (PARTITION BY window_start, dimension) \
               - sum(bound) END AS error_bound \
             FROM ",
            $parts,
            " GROUP BY window_start, ",
            talker!()
        )
    };
}

/// How many different values keys have. The sketches of the parts are put together once, and read above.
macro_rules! distinct_view {
    ($parts:literal) => {
        concat!(
            "SELECT window_start, ",
            talker!(),
            ", flows, hll_estimate(sketch) AS distinct_count, hll_error(sketch) AS relative_error, \
             CASE WHEN NOT other THEN sum(CASE WHEN other THEN bound ELSE 0.0 END) \
               OVER (PARTITION BY window_start, dimension) - bound END AS error_bound, \
             CASE WHEN NOT other THEN CAST(rank() OVER (PARTITION BY window_start, dimension, other \
               ORDER BY hll_estimate(sketch) DESC) AS BIGINT) END AS rank, sketch \
             FROM (SELECT window_start, ",
            talker!(),
            ", sum(flows) AS flows, hll_merge(sketch) AS sketch, sum(bound) AS bound FROM ",
            $parts,
            " GROUP BY window_start, ",
            talker!(),
            ")"
        )
    };
}

/// A window beside the one before: each part counts in its own window, and as the one before in the next.
macro_rules! changes_view {
    ($parts:literal) => {
        concat!(
            "SELECT *, previous_rank - rank AS rank_change, previous_est_bytes = 0 AND est_bytes > 0 AS is_new FROM ( \
             SELECT window_start, ",
            talker!(),
            ", est_bytes, previous_est_bytes, est_bytes - previous_est_bytes AS est_bytes_change, \
             CASE WHEN est_bytes > 0 THEN \
               CAST(rank() OVER (PARTITION BY window_start, dimension ORDER BY est_bytes DESC) AS BIGINT) END AS rank, \
             CASE WHEN previous_est_bytes > 0 THEN \
               CAST(rank() OVER (PARTITION BY window_start, dimension ORDER BY previous_est_bytes DESC) AS BIGINT) END AS previous_rank \
             FROM (SELECT window_start, ",
            talker!(),
            ", sum(now) AS est_bytes, sum(before) AS previous_est_bytes FROM ( \
             SELECT window_start, ",
            talker!(),
            ", est_bytes AS now, 0.0 AS before FROM ",
            $parts,
            " WHERE NOT other UNION ALL SELECT window_end AS window_start, ",
            talker!(),
            ", 0.0 AS now, est_bytes AS before FROM ",
            $parts,
            " WHERE NOT other) GROUP BY window_start, ",
            talker!(),
            "))"
        )
    };
}

/// When keys were seen first: by the hour as far as hours are kept, else by the day.
const TALKERS_SEEN: &str = concat!(
    "SELECT ",
    talker_key!(),
    ", CASE WHEN first_day IS NULL OR first_hour < first_day + INTERVAL '1 day' THEN first_hour ELSE first_day END \
     AS first_seen, last_seen, est_bytes FROM (SELECT ",
    talker_key!(),
    ", min(window_start) FILTER (WHERE is_day) AS first_day, min(window_start) FILTER (WHERE NOT is_day) AS first_hour, \
     coalesce(max(window_end) FILTER (WHERE NOT is_day), \
     max(window_end)) AS last_seen, sum(est_bytes) FILTER (WHERE is_day) AS est_bytes FROM (SELECT ",
    talker_key!(),
    ", window_start, window_end, est_bytes, true AS is_day FROM top_talkers_1d_parts WHERE NOT other UNION ALL SELECT ",
    talker_key!(),
    ", window_start, window_end, est_bytes, false AS is_day FROM top_talkers_1h_parts WHERE NOT other) GROUP BY ",
    talker_key!(),
    ")"
);

/// Classes of service with rates over a window of `$seconds`.
macro_rules! qos_view {
    ($parts:literal, $seconds:literal) => {
        concat!(
            "SELECT window_start, exporter_addr, direction, if_index, dscp, class, ",
            sums!(),
            ", CASE WHEN sum(packets) > 0 THEN CAST(sum(bytes) AS DOUBLE) / sum(packets) END AS avg_packet_bytes, \
             sum(est_bytes) * 8 / ",
            $seconds,
            " AS bits_per_s, sum(est_packets) / ",
            $seconds,
            " AS packets_per_s, \
             CASE WHEN sum(sum(est_bytes)) OVER (PARTITION BY window_start, exporter_addr, direction, if_index) > 0 \
               THEN sum(est_bytes) / sum(sum(est_bytes)) \
                 OVER (PARTITION BY window_start, exporter_addr, direction, if_index) END AS share, \
             sum(packets_to_64) AS packets_to_64, sum(packets_to_128) AS packets_to_128, \
             sum(packets_to_256) AS packets_to_256, sum(packets_to_512) AS packets_to_512, \
             sum(packets_to_1024) AS packets_to_1024, sum(packets_to_1518) AS packets_to_1518, \
             sum(packets_larger) AS packets_larger, \
             sum(ect_packets) AS ect_packets, sum(ce_packets) AS ce_packets, \
             CASE WHEN sum(packets) > 0 THEN CAST(sum(ce_packets) AS DOUBLE) / sum(packets) END AS ce_share, \
             sum(not_forwarded_bytes) AS not_forwarded_bytes, sum(not_forwarded_packets) AS not_forwarded_packets, \
             sum(dropped_bytes) AS dropped_bytes, sum(dropped_packets) AS dropped_packets, \
             sum(lost_packets) AS lost_packets, sum(loss_measured_packets) AS loss_measured_packets, \
             CASE WHEN sum(loss_measured_packets) > 0 \
               THEN CAST(sum(lost_packets) AS DOUBLE) / sum(loss_measured_packets) END AS loss_ratio, \
             sum(retransmits) AS retransmits, \
             sum(rtt_flows) AS rtt_flows, \
             CASE WHEN sum(rtt_flows) > 0 THEN CAST(sum(rtt_us) AS DOUBLE) / sum(rtt_flows) END AS avg_rtt_us, \
             sum(rtt_to_1ms) AS rtt_to_1ms, sum(rtt_to_2ms) AS rtt_to_2ms, sum(rtt_to_5ms) AS rtt_to_5ms, \
             sum(rtt_to_10ms) AS rtt_to_10ms, sum(rtt_to_20ms) AS rtt_to_20ms, sum(rtt_to_50ms) AS rtt_to_50ms, \
             sum(rtt_to_100ms) AS rtt_to_100ms, sum(rtt_to_200ms) AS rtt_to_200ms, sum(rtt_larger) AS rtt_larger, \
             sum(jitter_flows) AS jitter_flows, \
             CASE WHEN sum(jitter_flows) > 0 THEN CAST(sum(jitter_us) AS DOUBLE) / sum(jitter_flows) END AS avg_jitter_us, \
             sum(jitter_to_1ms) AS jitter_to_1ms, sum(jitter_to_2ms) AS jitter_to_2ms, \
             sum(jitter_to_5ms) AS jitter_to_5ms, sum(jitter_to_10ms) AS jitter_to_10ms, \
             sum(jitter_to_20ms) AS jitter_to_20ms, sum(jitter_to_50ms) AS jitter_to_50ms, \
             sum(jitter_to_100ms) AS jitter_to_100ms, sum(jitter_larger) AS jitter_larger \
             FROM ",
            $parts,
            " GROUP BY window_start, exporter_addr, direction, if_index, dscp, class"
        )
    };
}

/// Mean, peak and 95th percentile over the 360 windows of ten seconds of an hour. A window without a row is a window
/// without traffic: the 95th percentile of 360 is the 19th largest.
const QOS_RATES: &str = "SELECT window_start, exporter_addr, direction, if_index, dscp, class, \
     sum(rate) / 360 AS avg_bits_per_s, max(rate) AS peak_bits_per_s, \
     coalesce(nth_value(rate, 19 ORDER BY rate DESC), 0.0) AS p95_bits_per_s \
     FROM (SELECT date_trunc('hour', bin_start) AS window_start, exporter_addr, direction, if_index, dscp, \
       class, rate FROM (SELECT window_start AS bin_start, exporter_addr, direction, if_index, dscp, class, \
         sum(est_bytes) * 8 / 10 AS rate FROM qos_10s_parts \
         GROUP BY window_start, exporter_addr, direction, if_index, dscp, class)) \
     GROUP BY window_start, exporter_addr, direction, if_index, dscp, class";

/// The E-model (ITU-T G.107) for G.711 with concealment of losses (Bpl 25.1, G.113): delay is half of the round trip and
/// a buffer of twice the jitter.
macro_rules! voice_view {
    ($qos:literal) => {
        concat!(
            "SELECT window_start, exporter_addr, direction, if_index, dscp, class, flows, loss_ratio, avg_jitter_us, \
             avg_rtt_us, r_factor, CASE WHEN r_factor <= 0 THEN 1.0 WHEN r_factor >= 100 THEN 4.5 \
               ELSE 1 + 0.035 * r_factor + r_factor * (r_factor - 60) * (100 - r_factor) * 0.000007 END AS mos \
             FROM (SELECT *, 93.2 - 0.024 * delay_ms - CASE WHEN delay_ms > 177.3 \
               THEN 0.11 * (delay_ms - 177.3) ELSE 0 END \
               - 95 * loss_ratio * 100 / (loss_ratio * 100 + 25.1) AS r_factor \
             FROM (SELECT *, avg_rtt_us / 2000 + avg_jitter_us * 2 / 1000 AS delay_ms FROM ",
            $qos,
            " WHERE loss_ratio IS NOT NULL AND avg_jitter_us IS NOT NULL AND avg_rtt_us IS NOT NULL))"
        )
    };
}

/// What is known about the trust that an exporter's rows deserve, window by window.
macro_rules! trust_view {
    ($parts:literal, $window:literal) => {
        concat!(
            "SELECT window_start, exporter_addr, sum(flows) AS flows, sum(est_bytes) AS est_bytes, \
             sqrt(sum(est_bytes_variance)) AS est_bytes_error, \
             CASE WHEN sum(est_bytes) > 0 THEN sqrt(sum(est_bytes_variance)) / sum(est_bytes) END AS error_ratio, \
             CASE WHEN sum(flows) > 0 THEN CAST(sum(unknown) AS DOUBLE) / sum(flows) END AS unknown_sampling_ratio, \
             CASE WHEN sum(expected) > 0 THEN CAST(sum(lost) AS DOUBLE) / sum(expected) END AS loss_ratio, \
             CASE WHEN sum(datagrams) > 0 THEN sum(kernel_drops) / (sum(datagrams) + sum(kernel_drops)) END \
               AS kernel_drop_ratio, \
             CASE WHEN sum(decoded) > 0 THEN sum(rows_dropped) / sum(decoded) END AS row_drop_ratio, \
             sum(agent_drops) AS agent_drops, sum(sets_expired) AS sets_expired, sum(rejected) AS rejected \
             FROM (SELECT window_start, exporter_addr, flows, est_bytes, est_bytes_variance, \
               unknown_sampling_flows AS unknown, CAST(NULL AS BIGINT) AS expected, CAST(NULL AS BIGINT) AS lost, \
               CAST(NULL AS BIGINT) AS agent_drops, CAST(NULL AS BIGINT) AS sets_expired, \
               CAST(NULL AS BIGINT) AS rejected, CAST(NULL AS BIGINT) AS datagrams, \
               CAST(NULL AS DOUBLE) AS kernel_drops, CAST(NULL AS BIGINT) AS decoded, \
               CAST(NULL AS DOUBLE) AS rows_dropped FROM ",
            $parts,
            " UNION ALL SELECT date_bin(INTERVAL '",
            $window,
            "', received_at) AS window_start, exporter_addr, CAST(NULL AS BIGINT), CAST(NULL AS DOUBLE), \
               CAST(NULL AS DOUBLE), CAST(NULL AS BIGINT), sequence_expected, \
               sequence_lost - coalesce(sequence_recovered, 0), agent_drops, sets_expired, rejected, \
               datagrams, kernel_drops, flows AS decoded, rows_dropped FROM exporter_stats) GROUP BY window_start, exporter_addr"
        )
    };
}

const VIEWS: &[(&str, &str)] = &[
    ("flows", flow_view!("flows_raw")),
    ("nat_events", flow_view!("nat_events_raw")),
    ("discards", flow_view!("discards_raw")),
    ("flows_1m", flows_view!("flows_1m_parts")),
    ("flows_1h", flows_view!("flows_1h_parts")),
    ("flows_1d", flows_view!("flows_1d_parts")),
    ("top_talkers", talkers_view!("top_talkers_parts")),
    ("top_talkers_1h", talkers_view!("top_talkers_1h_parts")),
    ("top_talkers_1d", talkers_view!("top_talkers_1d_parts")),
    ("talker_changes", changes_view!("top_talkers_parts")),
    ("talker_changes_1h", changes_view!("top_talkers_1h_parts")),
    ("talker_changes_1d", changes_view!("top_talkers_1d_parts")),
    ("talkers_seen", TALKERS_SEEN),
    ("distinct_1m", distinct_view!("distinct_1m_parts")),
    ("distinct_1h", distinct_view!("distinct_1h_parts")),
    ("qos_10s", qos_view!("qos_10s_parts", "10")),
    ("qos_1m", qos_view!("qos_1m_parts", "60")),
    ("qos_1h", qos_view!("qos_1h_parts", "3600")),
    ("qos_1d", qos_view!("qos_1d_parts", "86400")),
    ("qos_rates_1h", QOS_RATES),
    ("voice_quality_1m", voice_view!("qos_1m")),
    ("voice_quality_1h", voice_view!("qos_1h")),
    (
        "remarking_1h",
        concat!(
            "SELECT window_start, exporter_addr, in_if, out_if, dscp, post_dscp, ",
            sums!(),
            " FROM remarking_1h_parts GROUP BY window_start, exporter_addr, in_if, out_if, dscp, post_dscp"
        ),
    ),
    ("trust_1m", trust_view!("flows_1m_parts", "1 minute")),
    ("trust_1h", trust_view!("flows_1h_parts", "1 hour")),
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
         sum(kernel_drops) AS kernel_drops, sum(rows_dropped) AS rows_dropped, \
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
