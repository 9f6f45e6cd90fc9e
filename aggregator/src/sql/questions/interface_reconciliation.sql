WITH counters AS (
  SELECT exporter_addr, if_index, direction, sum(seconds) AS seconds, sum(octets) AS octets
  FROM (
    SELECT exporter_addr, if_index, 'in' AS direction, seconds, in_octets AS octets
    FROM interface_rates WHERE received_at > now() - {since}
    UNION ALL
    SELECT exporter_addr, if_index, 'out' AS direction, seconds, out_octets AS octets
    FROM interface_rates WHERE received_at > now() - {since}
  )
  WHERE octets IS NOT NULL
  GROUP BY exporter_addr, if_index, direction
),
told AS (
  SELECT exporter_addr, if_index, direction, sum(est_bytes) AS est_bytes, sum(flows) AS flows,
         sum(unknown_sampling_flows) AS unknown
  FROM qos_1m WHERE window_start > now() - {since}
  GROUP BY exporter_addr, if_index, direction
),
lost AS (
  SELECT exporter_addr,
         CAST(sum(coalesce(sequence_lost, 0) - coalesce(sequence_recovered, 0)) AS DOUBLE)
           / nullif(sum(sequence_expected), 0) AS loss_ratio
  FROM exporter_stats WHERE received_at > now() - {since}
  GROUP BY exporter_addr
),
both_sides AS (
  SELECT c.exporter_addr, c.if_index, c.direction, rate(c.octets, c.seconds) AS counter_bits_per_s,
         rate(coalesce(t.est_bytes, 0), c.seconds) AS flow_bits_per_s,
         coalesce(t.est_bytes, 0) / nullif(CAST(c.octets AS DOUBLE), 0) AS ratio,
         CAST(t.unknown AS DOUBLE) / nullif(t.flows, 0) AS unknown_sampling,
         coalesce(l.loss_ratio, 0) AS loss_ratio, coalesce(t.flows, 0) AS flows,
         max(coalesce(t.flows, 0)) OVER (PARTITION BY c.exporter_addr, c.direction) AS flows_of_direction,
         max(coalesce(t.flows, 0)) OVER (PARTITION BY c.exporter_addr) AS flows_of_exporter
  FROM counters c
  LEFT JOIN told t ON c.exporter_addr = t.exporter_addr AND c.if_index = t.if_index AND c.direction = t.direction
  LEFT JOIN lost l ON c.exporter_addr = l.exporter_addr
)
SELECT exporter_addr, if_index, direction, counter_bits_per_s, flow_bits_per_s, ratio, unknown_sampling, loss_ratio,
  CASE
    WHEN ratio IS NULL AND flows = 0 THEN 'idle'
    WHEN flows_of_exporter = 0 THEN 'no flows from this exporter'
    WHEN flows = 0 AND flows_of_direction = 0 THEN 'only the other direction is exported'
    WHEN flows = 0 THEN 'no flows of this interface'
    WHEN ratio BETWEEN 0.9 AND 1.1 THEN 'agree'
    WHEN unknown_sampling > 0.5 AND ratio < 0.9 THEN 'sampling unknown'
    WHEN ratio < 0.9 AND loss_ratio > 0.02 AND ratio BETWEEN 0.9 - loss_ratio AND 1.1 - loss_ratio THEN 'loss'
    WHEN ratio BETWEEN 1.8 AND 2.2 THEN 'exported twice'
    WHEN ratio < 0.9 THEN 'flows are missing, or the sampling rate is too low'
    ELSE 'flows of other interfaces, or the sampling rate is too high'
  END AS likely_cause
FROM both_sides
ORDER BY exporter_addr, if_index, direction
