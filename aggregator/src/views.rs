//! Views of interfaces: rates by their counters, and by the flows.

/// What a counter rose by since the sample before; NULL after a restart. A counter of 32 bits may have wrapped.
macro_rules! rise {
    ($counter:literal) => {
        concat!(
            "CASE WHEN restarted THEN NULL ",
            "WHEN ",
            $counter,
            " >= lag(",
            $counter,
            ") OVER w THEN ",
            $counter,
            " - lag(",
            $counter,
            ") OVER w ",
            "WHEN ",
            $counter,
            " < 2147483648 AND lag(",
            $counter,
            ") OVER w BETWEEN 2147483648 AND 4294967295 ",
            "THEN ",
            $counter,
            " + 4294967296 - lag(",
            $counter,
            ") OVER w END AS ",
            $counter
        )
    };
}

/// To be registered after those of the catalogue.
pub(crate) const INTERFACE_VIEWS: [(&str, &str); 3] = [
    (
        "interface_rates",
        concat!(
            "SELECT received_at, exporter_addr, if_index, if_speed, seconds, ",
            "rate(in_octets, seconds) AS in_bits_per_s, rate(out_octets, seconds) AS out_bits_per_s, ",
            "rate(in_octets, seconds) / nullif(if_speed, 0) AS in_utilisation, ",
            "rate(out_octets, seconds) / nullif(if_speed, 0) AS out_utilisation, ",
            "in_octets, out_octets, in_discards, out_discards, in_errors, out_errors, restarted FROM (",
            "SELECT received_at, exporter_addr, if_index, if_speed, restarted, ",
            "(CAST(received_at AS BIGINT) - CAST(lag(received_at) OVER w AS BIGINT)) / 1000000.0 AS seconds, ",
            rise!("in_octets"),
            ", ",
            rise!("out_octets"),
            ", ",
            rise!("in_discards"),
            ", ",
            rise!("out_discards"),
            ", ",
            rise!("in_errors"),
            ", ",
            rise!("out_errors"),
            " FROM (SELECT *, coalesce(uptime_ms < lag(uptime_ms) OVER v, false) AS restarted FROM interface_counters ",
            "WINDOW v AS (PARTITION BY exporter_addr, observation_domain, if_index ORDER BY received_at)) ",
            "WINDOW w AS (PARTITION BY exporter_addr, observation_domain, if_index ORDER BY received_at)) ",
            "WHERE seconds > 0"
        ),
    ),
    (
        "interface_traffic",
        "SELECT q.window_start, q.exporter_addr, q.if_index, q.direction, s.if_speed, q.bits_per_s, \
         q.bits_per_s / nullif(s.if_speed, 0) AS utilisation, q.bytes, q.packets, q.est_bytes, q.est_packets, q.flows, \
         q.unknown_sampling_flows \
         FROM (SELECT window_start, exporter_addr, if_index, direction, rate(sum(est_bytes), 60) AS bits_per_s, \
           sum(bytes) AS bytes, sum(packets) AS packets, sum(est_bytes) AS est_bytes, sum(est_packets) AS est_packets, \
           sum(flows) AS flows, sum(unknown_sampling_flows) AS unknown_sampling_flows \
           FROM qos_1m GROUP BY window_start, exporter_addr, if_index, direction) q \
         LEFT JOIN (SELECT exporter_addr, if_index, last_value(if_speed ORDER BY received_at) AS if_speed \
           FROM interface_counters WHERE received_at > now() - INTERVAL '7 days' \
           GROUP BY exporter_addr, if_index) s \
         ON q.exporter_addr = s.exporter_addr AND q.if_index = s.if_index",
    ),
    (
        "class_traffic",
        "SELECT q.window_start, q.exporter_addr, q.if_index, q.direction, q.dscp, q.class, s.if_speed, q.bits_per_s, \
         q.bits_per_s / nullif(s.if_speed, 0) AS utilisation, q.bytes, q.packets, q.est_bytes, q.est_packets, q.flows, \
         q.unknown_sampling_flows FROM qos_1m q \
         LEFT JOIN (SELECT exporter_addr, if_index, last_value(if_speed ORDER BY received_at) AS if_speed \
           FROM interface_counters WHERE received_at > now() - INTERVAL '7 days' \
           GROUP BY exporter_addr, if_index) s \
         ON q.exporter_addr = s.exporter_addr AND q.if_index = s.if_index",
    ),
];
