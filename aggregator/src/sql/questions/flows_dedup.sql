WITH recent AS (SELECT * FROM flows WHERE received_at > now() - {since}),
told AS (
  SELECT src_addr, dst_addr, src_port, dst_port, ip_protocol, exporter_addr, coalesce(direction, 0) AS way, sum(est_bytes) AS est_bytes
  FROM recent GROUP BY 1, 2, 3, 4, 5, 6, 7
),
several AS (SELECT src_addr, dst_addr, src_port, dst_port, ip_protocol FROM told GROUP BY 1, 2, 3, 4, 5 HAVING count(*) > 1),
ranked AS (
  SELECT told.*, dense_rank() OVER (
    PARTITION BY told.src_addr, told.dst_addr, told.src_port, told.dst_port, told.ip_protocol
    ORDER BY told.est_bytes DESC, told.exporter_addr, told.way) AS place
  FROM told JOIN several
  ON (told.src_addr IS NOT DISTINCT FROM several.src_addr)
    AND (told.dst_addr IS NOT DISTINCT FROM several.dst_addr)
    AND (told.src_port IS NOT DISTINCT FROM several.src_port)
    AND (told.dst_port IS NOT DISTINCT FROM several.dst_port)
    AND (told.ip_protocol IS NOT DISTINCT FROM several.ip_protocol)
)
SELECT recent.* FROM recent WHERE NOT EXISTS (
  SELECT 1 FROM ranked
  WHERE ranked.place > 1
    AND (ranked.src_addr IS NOT DISTINCT FROM recent.src_addr)
    AND (ranked.dst_addr IS NOT DISTINCT FROM recent.dst_addr)
    AND (ranked.src_port IS NOT DISTINCT FROM recent.src_port)
    AND (ranked.dst_port IS NOT DISTINCT FROM recent.dst_port)
    AND (ranked.ip_protocol IS NOT DISTINCT FROM recent.ip_protocol)
    AND (ranked.exporter_addr IS NOT DISTINCT FROM recent.exporter_addr)
    AND (ranked.way IS NOT DISTINCT FROM coalesce(recent.direction, 0))
)
