WITH samples AS (
  SELECT date_bin(INTERVAL '5 minutes', window_start) AS at, exporter_addr, if_index, direction,
         sum(est_bytes) * 8 / 300 AS bits_per_s
  FROM qos_1m WHERE window_start > now() - {since} AND if_index IS NOT NULL
  GROUP BY 1, 2, 3, 4
),
spans AS (
  SELECT exporter_addr, CAST((extract(epoch FROM max(at)) - extract(epoch FROM min(at))) / 300 AS BIGINT) + 1 AS slots
  FROM samples GROUP BY exporter_addr
),
ranked AS (
  SELECT s.exporter_addr, s.if_index, s.direction, s.bits_per_s, p.slots,
         row_number() OVER (PARTITION BY s.exporter_addr, s.if_index, s.direction ORDER BY s.bits_per_s DESC) AS place
  FROM samples s JOIN spans p ON s.exporter_addr = p.exporter_addr
),
sums AS (
  SELECT exporter_addr, if_index, direction, max(slots) AS samples, sum(bits_per_s) / max(slots) AS mean_bits_per_s,
         coalesce(max(bits_per_s) FILTER (WHERE place = slots / 20 + 1), 0.0) AS p95_bits_per_s,
         max(bits_per_s) AS peak_bits_per_s
  FROM ranked GROUP BY exporter_addr, if_index, direction
),
hours AS (
  SELECT exporter_addr, if_index, direction, first_value(hour ORDER BY bits DESC, hour) AS busy_hour
  FROM (
    SELECT exporter_addr, if_index, direction, CAST(date_part('hour', at) AS INT) AS hour, sum(bits_per_s) AS bits
    FROM samples GROUP BY 1, 2, 3, 4
  )
  GROUP BY exporter_addr, if_index, direction
),
days AS (
  SELECT exporter_addr, if_index, direction,
         floor(extract(epoch FROM at) / 86400) AS day,
         percentile_cont(0.95) WITHIN GROUP (ORDER BY bits_per_s) AS level
  FROM samples GROUP BY 1, 2, 3, 4
),
trends AS (
  SELECT exporter_addr, if_index, direction, count(*) AS days, trend_slope(level, day) AS slope,
         trend_low(level, day) AS low, trend_high(level, day) AS high, trend_level(level, day) AS level
  FROM days GROUP BY exporter_addr, if_index, direction
),
speeds AS (
  SELECT exporter_addr, if_index, last_value(if_speed ORDER BY received_at) AS if_speed
  FROM interface_counters WHERE received_at > now() - INTERVAL '7 days' GROUP BY exporter_addr, if_index
),
facts AS (
  SELECT s.exporter_addr, s.if_index, s.direction, v.if_speed, s.samples, s.mean_bits_per_s, s.p95_bits_per_s,
         s.peak_bits_per_s, s.p95_bits_per_s / nullif(v.if_speed, 0) AS p95_utilisation, h.busy_hour, t.days,
         CASE WHEN t.days >= 7 THEN t.slope END AS growth_a_day,
         CASE WHEN t.days >= 7 THEN t.low END AS growth_low,
         CASE WHEN t.days >= 7 THEN t.high END AS growth_high,
         CASE WHEN t.days >= 7 AND t.slope > 0 AND v.if_speed > 0
           THEN greatest((0.8 * v.if_speed - t.level) / t.slope, 0.0) END AS days_left
  FROM sums s
  JOIN hours h ON s.exporter_addr = h.exporter_addr AND s.if_index = h.if_index AND s.direction = h.direction
  JOIN trends t ON s.exporter_addr = t.exporter_addr AND s.if_index = t.if_index AND s.direction = t.direction
  LEFT JOIN speeds v ON s.exporter_addr = v.exporter_addr AND s.if_index = v.if_index
)
SELECT exporter_addr, if_index, direction, if_speed, samples, mean_bits_per_s, p95_bits_per_s, peak_bits_per_s,
       p95_utilisation, busy_hour, days, growth_a_day, growth_low, growth_high,
       CASE WHEN days_left < 3650 THEN to_timestamp_micros(CAST(
         (extract(epoch FROM now()) + days_left * 86400) * 1000000 AS BIGINT)) END AS reaches_80_percent
FROM facts
ORDER BY p95_utilisation DESC NULLS LAST, p95_bits_per_s DESC
