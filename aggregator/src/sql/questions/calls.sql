SELECT kind, exporter_addr, src_addr, dst_addr, app_name, class, flows, packets, loss_ratio, jitter_us, rtt_us,
       CASE WHEN kind = 'voice' THEN r END AS r_factor,
       CASE WHEN kind <> 'voice' THEN NULL WHEN r <= 0 THEN 1.0 WHEN r >= 100 THEN 4.5
            ELSE 1 + 0.035 * r + r * (r - 60) * (100 - r) * 0.000007 END AS mos,
       first_packet, last_packet
FROM (
  SELECT *, 93.2 - 0.024 * delay_ms - CASE WHEN delay_ms > 177.3 THEN 0.11 * (delay_ms - 177.3) ELSE 0 END
         - 95 * loss_ratio * 100 / (loss_ratio * 100 + 25.1) AS r
  FROM (
    SELECT *, coalesce(rtt_us, 0) / 2000 + jitter_us * 2 / 1000 AS delay_ms
    FROM (
      SELECT media(dscp, ip_protocol, src_port, dst_port, app_name) AS kind, exporter_addr, src_addr, dst_addr, app_name,
             dscp_name(dscp) AS class, count(*) AS flows, sum(packets) AS packets,
             CAST(sum(lost_packets) AS DOUBLE) / nullif(sum(packets) + sum(lost_packets), 0) AS loss_ratio,
             avg(jitter_us) AS jitter_us, avg(rtt_us) AS rtt_us, min(start_time) AS first_packet, max(end_time) AS last_packet
      FROM flows
      WHERE received_at > now() - {since} AND jitter_us IS NOT NULL AND lost_packets IS NOT NULL
      GROUP BY 1, exporter_addr, src_addr, dst_addr, app_name, 6
    )
    WHERE kind IS NOT NULL
  )
)
