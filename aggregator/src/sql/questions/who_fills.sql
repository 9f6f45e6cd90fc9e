SELECT direction, src_addr, dst_addr, dscp_name(dscp) AS class,
       port_name(least(src_port, dst_port), ip_protocol) AS service, protocol_name(ip_protocol) AS protocol,
       rate(sum(est_bytes), extract(epoch FROM {since})) AS bits_per_s,
       sum(est_bytes) / nullif(sum(sum(est_bytes)) OVER (PARTITION BY direction), 0) AS share,
       sum(bytes) AS bytes, count(*) AS flows, count(*) FILTER (WHERE sampling_rate IS NULL) AS unknown_sampling_flows,
       min(start_time) AS first_packet, max(end_time) AS last_packet
FROM (
  SELECT 'in' AS direction, src_addr, dst_addr, dscp, src_port, dst_port, ip_protocol, est_bytes, bytes, sampling_rate,
         start_time, end_time
  FROM flows WHERE exporter_addr = {exporter} AND in_if = {if_index} AND received_at > now() - {since}
  UNION ALL
  SELECT 'out' AS direction, src_addr, dst_addr, dscp, src_port, dst_port, ip_protocol, est_bytes, bytes, sampling_rate,
         start_time, end_time
  FROM flows WHERE exporter_addr = {exporter} AND out_if = {if_index} AND received_at > now() - {since}
)
GROUP BY direction, src_addr, dst_addr, dscp, least(src_port, dst_port), ip_protocol
ORDER BY bits_per_s DESC NULLS LAST
LIMIT 100
