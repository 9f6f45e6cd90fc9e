//! The metrics by name. Each is written from the sources when it is asked for.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use weir_schemas::Table;

use super::exporters::Series;
use super::{Published, Sources};
use crate::batch::CloseCause;
use crate::decode::{Counters, RejectReason};
use crate::sink::LogStats;
use crate::sink::spool::Forwarded;
use crate::writer::{DropReason, Sizes, WriterCounters};

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out { encoder };
        let shards: Vec<Published> = self.shards.iter().map(|shard| shard.published()).collect();
        let writer = self.queue.counters();
        self.info(&mut out)?;
        self.receive(&mut out, &shards)?;
        self.sockets(&mut out)?;
        decode(&mut out, &shards)?;
        self.exporters(&mut out)?;
        self.log(&mut out, &writer)?;
        if let Some(stats) = &writer.log {
            log_on_disk(&mut out, stats)?;
        }
        // zeros where there is no spool: alerts speak of it
        let forwarded = self.forwarding.as_ref().map(|forwarding| forwarding.get()).unwrap_or_default();
        spool(&mut out, &forwarded)?;
        ledger(&mut out, &shards, &writer)
    }
}

type Labels<const N: usize> = [(&'static str, String); N];

fn label(name: &'static str, value: impl ToString) -> Labels<1> {
    [(name, value.to_string())]
}

/// Short forms for what is written.
struct Out<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Out<'_> {
    fn family<L: EncodeLabelSet, V>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        series: impl IntoIterator<Item = (L, V)>,
        mut write: impl FnMut(&mut MetricEncoder<'_>, V) -> fmt::Result,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.encoder.encode_descriptor(name, help, None, kind)?;
        series.try_for_each(|(labels, value)| write(&mut encoder.encode_family(&labels)?, value))
    }

    /// A counter with labels; `_total` is added to its name.
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        self.family((name, help, MetricType::Counter), series, |encoder, value| {
            encoder.encode_counter::<NoLabelSet, u64, u64>(&value, None)
        })
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        self.family((name, help, MetricType::Gauge), series, |encoder, value| encoder.encode_gauge(&value))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn histogram(&mut self, name: &str, help: &str, sizes: &Sizes) -> fmt::Result {
        let buckets: Vec<(f64, u64)> = sizes.buckets().collect();
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sizes.sum() as f64, sizes.count(), &buckets, None)
    }
}

impl Sources {
    fn info(&self, out: &mut Out<'_>) -> fmt::Result {
        let labels = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("collector", self.identity.collector.clone()),
            ("boot", format!("{:016x}", self.identity.boot)),
        ];
        out.gauges("weir_collector_build", "Always 1; says what runs.", [(labels, 1.0)])?;
        out.gauge("weir_collector_shards", "Receive threads.", self.shards.len() as u64)
    }

    fn receive(&self, out: &mut Out<'_>, shards: &[Published]) -> fmt::Result {
        let mut ports: std::collections::BTreeMap<u16, (u64, u64)> = Default::default();
        for (shard, published) in self.shards.iter().zip(shards) {
            for (socket, (datagrams, bytes)) in shard.sockets().iter().zip(&published.counts.received) {
                let total = ports.entry(socket.local_addr().port()).or_default();
                total.0 += datagrams;
                total.1 += bytes;
            }
        }
        let by_port = |pick: fn(&(u64, u64)) -> u64| {
            ports.iter().map(move |(port, total)| (label("port", port), pick(total)))
        };
        out.counters(
            "weir_collector_datagrams",
            "Datagrams taken from the kernel, by the port they came to.",
            by_port(|t| t.0),
        )?;
        out.counters(
            "weir_collector_datagram_bytes",
            "Payload of the datagrams taken from the kernel.",
            by_port(|t| t.1),
        )?;
        let by_shard = |pick: fn(&Published) -> u64| {
            shards.iter().enumerate().map(move |(shard, published)| (label("shard", shard), pick(published)))
        };
        out.counters(
            "weir_collector_receive_calls",
            "System calls that read datagrams.",
            by_shard(|p| p.counts.calls),
        )?;
        out.counters(
            "weir_collector_receive_full_calls",
            "Of those, the ones that gave as many datagrams as one call can: the shard is behind.",
            by_shard(|p| p.counts.full_calls),
        )?;
        out.counters(
            "weir_collector_receive_errors",
            "System calls on sockets that failed.",
            by_shard(|p| p.counts.errors),
        )?;
        out.counters(
            "weir_collector_replayed_datagrams",
            "Datagrams that an earlier collector had in hand when it died, decoded again.",
            by_shard(|p| p.counts.replayed),
        )?;
        out.counters(
            "weir_collector_died_datagrams",
            "Datagrams that died with an earlier collector: its journal was too small to hold them.",
            by_shard(|p| p.counts.died),
        )
    }

    fn sockets(&self, out: &mut Out<'_>) -> fmt::Result {
        let sockets = self.shards.iter().enumerate().flat_map(|(shard, stats)| {
            stats.sockets().iter().filter_map(move |socket| {
                let labels = [("port", socket.local_addr().port().to_string()), ("shard", shard.to_string())];
                let (drops, info) = socket.drops().ok()?;
                Some((labels, drops, info, socket.buffer_granted()))
            })
        });
        let sockets: Vec<_> = sockets.collect();
        out.counters(
            "weir_collector_kernel_drops",
            "Datagrams that the kernel dropped because the socket's buffer was full, since the socket was made.",
            sockets.iter().map(|(labels, drops, _, _)| (labels.clone(), *drops)),
        )?;
        out.gauges(
            "weir_collector_socket_queued_bytes",
            "Bytes that waiting datagrams occupy in the kernel, with its overhead.",
            sockets.iter().map(|(labels, _, info, _)| (labels.clone(), f64::from(info.queued_bytes))),
        )?;
        out.gauges(
            "weir_collector_socket_limit_bytes",
            "Queued bytes at which the kernel drops: twice the buffer granted.",
            sockets.iter().map(|(labels, _, info, _)| (labels.clone(), f64::from(info.limit_bytes))),
        )?;
        out.gauges(
            "weir_collector_socket_buffer_bytes",
            "Receive buffer that the kernel granted.",
            sockets.iter().map(|(labels, _, _, granted)| (labels.clone(), *granted as f64)),
        )?;
        out.gauge(
            "weir_collector_socket_buffer_asked_bytes",
            "Receive buffer that the configuration asks for.",
            self.buffer_asked as u64,
        )
    }

    fn exporters(&self, out: &mut Out<'_>) -> fmt::Result {
        let tables = self.exporters.tables.lock();
        out.counters(
            "weir_collector_flows",
            "Flow rows decoded, by protocol.",
            tables.flows.iter().map(|(protocol, flows)| (label("protocol", protocol.label()), *flows)),
        )?;
        let known = tables.known.values().fold((0, 0), |sum, known| (sum.0 + known.0, sum.1 + known.1));
        out.gauges(
            "weir_collector_exporters",
            "Exporters (address, domain and protocol) known: established, or new and on probation.",
            [(label("state", "established"), known.0 as f64), (label("state", "probation"), known.1 as f64)],
        )?;
        let sum = |pick: fn(&Counters) -> u64| {
            tables.series.values().fold(0_u64, |sum, series| sum.wrapping_add(pick(&series.counters)))
        };
        let misses = sum(|c| c.template_misses);
        out.counter("weir_collector_template_misses", "Data sets that came before their template.", misses)?;
        let given_up = sum(|c| c.sets_replayed) + sum(|c| c.sets_expired);
        out.gauge(
            "weir_collector_pending_sets",
            "Data sets that wait for their template.",
            misses.saturating_sub(given_up),
        )?;
        let by_exporter = |pick: fn(&Counters) -> u64| {
            tables
                .series
                .iter()
                .map(move |(exporter, series)| (exporter_label(exporter), pick(&series.counters)))
        };
        for (name, help, pick) in EXPORTER_COUNTERS {
            out.counters(name, help, by_exporter(*pick))?;
        }
        out.gauges(
            "weir_exporter_sequence_lost",
            "Units (records or datagrams, as the protocol counts) that were lost before they got here. Goes down where \
             one that was missing comes late.",
            by_exporter(|c| c.sequence_lost).map(|(labels, lost)| (labels, lost.cast_signed() as f64)),
        )?;
        out.gauges(
            "weir_exporter_samples_lost",
            "sFlow samples that are missing by their data source's numbers, with the datagram or in the agent. Goes down \
             where one comes late.",
            by_exporter(|c| c.samples_lost).map(|(labels, lost)| (labels, lost.cast_signed() as f64)),
        )?;
        let known = |pick: fn(&Series) -> Option<f64>| {
            tables.series.iter().filter_map(move |(exporter, series)| {
                exporter.is_some().then_some((exporter_label(exporter), pick(series)?))
            })
        };
        out.gauges(
            "weir_exporter_last_datagram_timestamp_seconds",
            "When the last datagram came, seconds since 1970.",
            known(|series| Some(series.last_seen_us as f64 / 1e6)),
        )?;
        out.gauges(
            "weir_exporter_clock_skew_seconds",
            "Receive time less export time of the last datagram.",
            known(|series| series.clock_skew_us.map(|skew| skew / 1e6)),
        )?;
        out.gauges(
            "weir_exporter_sampling_rate",
            "Sampling rate (1 in N) last seen.",
            known(|series| series.sampling_rate),
        )
    }

    fn log(&self, out: &mut Out<'_>, writer: &WriterCounters) -> fmt::Result {
        out.counters(
            "weir_collector_batches_closed",
            "Batches closed, by what made them due.",
            CloseCause::ALL
                .map(|cause| (label("cause", cause.label()), writer.closed_batches[cause.index()])),
        )?;
        out.histogram("weir_collector_batch_rows", "Rows of closed batches.", &writer.batch_rows)?;
        out.histogram("weir_log_message_bytes", "Size of encoded messages.", &writer.message_bytes)?;
        out.counter(
            "weir_collector_batch_bytes",
            "Memory of closed batches before they were encoded.",
            writer.closed_bytes,
        )?;
        out.counter(
            "weir_log_split_batches",
            "Batches that were too large for one message.",
            writer.split_batches,
        )?;
        out.counter(
            "weir_log_acknowledged_messages",
            "Messages that the log acknowledged.",
            writer.acknowledged_messages,
        )?;
        out.counter(
            "weir_log_acknowledged_rows",
            "Rows that the log acknowledged.",
            writer.acknowledged_rows,
        )?;
        out.counter(
            "weir_log_acknowledged_bytes",
            "Bytes that the log acknowledged.",
            writer.acknowledged_bytes,
        )?;
        out.gauge(
            "weir_log_unacknowledged_messages",
            "Messages handed to the log that it has not acknowledged yet.",
            writer.unacknowledged_messages,
        )?;
        out.gauge("weir_log_queue_bytes", "Closed batches that wait for the writer.", writer.queued_bytes)?;
        out.gauge(
            "weir_log_backlog_messages",
            "Messages that wait for the log to take them.",
            writer.backlog_messages,
        )?;
        out.gauge("weir_log_backlog_bytes", "Their size.", writer.backlog_bytes)?;
        out.counters(
            "weir_log_dropped_rows",
            "Rows that did not get to the log.",
            DropReason::ALL
                .map(|reason| (label("reason", reason.label()), writer.dropped_rows[reason as usize])),
        )?;
        out.counters(
            "weir_log_dropped_batches",
            "Batches or messages that did not get to the log.",
            DropReason::ALL
                .map(|reason| (label("reason", reason.label()), writer.dropped_batches[reason as usize])),
        )?;
        out.counter("weir_log_busy", "Times that the log did not take a message.", writer.busy)?;
        let blocked = self.queue.blocked().map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
        out.gauges(
            "weir_log_blocked_seconds",
            "For how long the log has taken nothing; 0 while it does.",
            [(NO_LABELS, blocked)],
        )
    }
}

/// The embedded log, or the spool before Kafka.
fn log_on_disk(out: &mut Out<'_>, stats: &LogStats) -> fmt::Result {
    out.gauge("weir_log_disk_bytes", "Size of the log's segments on the local disk.", stats.bytes)?;
    out.gauge("weir_log_disk_segments", "Their number.", stats.segments)?;
    out.counter("weir_log_fsyncs", "Times that the log was made durable.", stats.fsyncs)?;
    out.family(
        ("weir_log_fsync_seconds", "Time spent in that.", MetricType::Counter),
        [(NO_LABELS, stats.fsync_us as f64 / 1e6)],
        |encoder, value| encoder.encode_counter::<NoLabelSet, f64, u64>(&value, None),
    )?;
    out.counter("weir_log_disk_errors", "Writes and fsyncs of the log that failed.", stats.errors)?;
    out.counter(
        "weir_log_torn_bytes",
        "Bytes of messages that a crash left unfinished, cut when the log was opened.",
        stats.torn_bytes,
    )?;
    out.counter("weir_log_damaged", "Damaged places found when the log was opened.", stats.damaged)?;
    out.counter(
        "weir_log_deleted_segments",
        "Segments deleted because of their age or for want of room.",
        stats.deleted_segments,
    )?;
    out.counter(
        "weir_log_lost_messages",
        "Messages deleted for want of room that nobody had taken: their flows are lost.",
        stats.lost_offsets,
    )
}

/// From the spool to Kafka.
fn spool(out: &mut Out<'_>, forwarded: &Forwarded) -> fmt::Result {
    let Forwarded { acknowledged, refused, .. } = forwarded;
    out.counter(
        "weir_spool_forwarded_messages",
        "Messages that the brokers acknowledged.",
        acknowledged.messages,
    )?;
    out.counter("weir_spool_forwarded_rows", "Their rows.", acknowledged.rows)?;
    out.counter("weir_spool_forwarded_bytes", "Their bytes.", acknowledged.bytes)?;
    out.counter(
        "weir_spool_refused_messages",
        "Messages that the brokers refused for good.",
        refused.messages,
    )?;
    out.counter("weir_spool_refused_rows", "Their rows: they are lost.", refused.rows)?;
    out.gauge(
        "weir_spool_unacknowledged_messages",
        "Messages sent that the brokers have not acknowledged yet.",
        forwarded.unacknowledged_messages,
    )?;
    out.gauge(
        "weir_spool_waiting_messages",
        "Messages from the first one that the brokers have not acknowledged to the newest.",
        forwarded.waiting,
    )?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let age = forwarded.oldest_us.map_or(0.0, |oldest| (now - oldest as f64 / 1e6).max(0.0));
    out.gauges(
        "weir_spool_oldest_seconds",
        "Age of the oldest flow that the brokers have not acknowledged; 0 where there is none.",
        [(NO_LABELS, age)],
    )?;
    out.counter(
        "weir_spool_lost_messages",
        "Messages that were gone from the spool before they were sent.",
        forwarded.lost_messages,
    )?;
    out.counter("weir_spool_damaged", "Damaged places of the spool passed over.", forwarded.damaged)?;
    out.counter("weir_spool_producers_replaced", "Times that a new producer was made.", forwarded.rebuilt)?;
    out.counter(
        "weir_spool_sent_again_messages",
        "Messages sent again because a producer had not told what became of them; the aggregator counts them once.",
        forwarded.sent_again,
    )?;
    let blocked = forwarded.blocked.as_ref().map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
    out.gauges(
        "weir_spool_blocked_seconds",
        "For how long the brokers have acknowledged nothing although something waits; 0 while they do.",
        [(NO_LABELS, blocked)],
    )
}

const NO_LABELS: [(&str, &str); 0] = [];

fn exporter_label(exporter: &Option<weir_schemas::Address>) -> Labels<1> {
    [("exporter", exporter.map_or_else(|| "other".to_owned(), |address| address.to_string()))]
}

type ExporterCounter = (&'static str, &'static str, fn(&Counters) -> u64);

const EXPORTER_COUNTERS: &[ExporterCounter] = &[
    ("weir_exporter_datagrams", "Datagrams received from the exporter.", |c| c.datagrams),
    ("weir_exporter_datagram_bytes", "Their payload.", |c| c.datagram_bytes),
    ("weir_exporter_flows", "Flow rows decoded.", |c| c.flows),
    ("weir_exporter_options_records", "Options records decoded.", |c| c.options_records),
    ("weir_exporter_counters_received", "sFlow counter samples decoded.", |c| c.counter_samples),
    ("weir_exporter_templates", "Templates received, refreshes too.", |c| c.templates),
    ("weir_exporter_template_collisions", "Templates that replaced another one of the same id.", |c| {
        c.template_collisions
    }),
    ("weir_exporter_withdrawals_ignored", "Template withdrawals over UDP, not followed.", |c| {
        c.withdrawals_ignored
    }),
    ("weir_exporter_template_misses", "Data sets that came before their template.", |c| c.template_misses),
    ("weir_exporter_sets_replayed", "Of those, decoded when the template came.", |c| c.sets_replayed),
    ("weir_exporter_sets_expired", "Of those, given up.", |c| c.sets_expired),
    ("weir_exporter_rejected", "Datagrams or sets rejected as malformed.", |c| c.rejected),
    ("weir_exporter_sequence_expected", "Units that the exporter says it sent.", |c| c.sequence_expected),
    ("weir_exporter_sequence_reordered", "Units that came late or twice.", |c| c.sequence_reordered),
    ("weir_exporter_sequence_resets", "Restarts of the sequence.", |c| c.sequence_resets),
    (
        "weir_exporter_sequence_uncertain",
        "Intervals in which loss cannot be known, for want of templates.",
        |c| c.sequence_uncertain,
    ),
    ("weir_exporter_agent_drops", "sFlow samples that the agent dropped itself.", |c| c.agent_drops),
    ("weir_exporter_samples_expected", "sFlow samples by the numbers of their data sources.", |c| {
        c.samples_expected
    }),
    ("weir_exporter_records_skipped", "sFlow samples and records of unknown format.", |c| c.records_skipped),
];

fn rejected(shards: &[Published], pick: fn(&Published) -> &[u64]) -> Vec<(Labels<1>, u64)> {
    let total = |index: usize| shards.iter().map(|shard| pick(shard)[index]).sum::<u64>();
    RejectReason::ALL.iter().map(|reason| (label("reason", reason.as_str()), total(reason.index()))).collect()
}

/// Datagrams rejected as a whole, with what the shards reject before and around the decoder.
fn rejected_datagrams(shards: &[Published]) -> Vec<(Labels<1>, u64)> {
    let mut reasons = rejected(shards, |shard| &shard.decode.rejected);
    let panics = shards.iter().map(|shard| shard.counts.panics).sum::<u64>();
    if let Some((_, count)) = reasons.get_mut(RejectReason::DecoderPanic.index()) {
        *count += panics;
    }
    let truncated = shards.iter().map(|shard| shard.counts.truncated).sum::<u64>();
    reasons.push((label("reason", "longer_than_udp"), truncated));
    reasons
}

fn rows(shards: &[Published]) -> impl Iterator<Item = (Labels<1>, u64)> {
    Table::ALL.into_iter().map(|table| {
        let rows = shards.iter().map(|shard| shard.counts.rows[table as usize]).sum();
        (label("table", table.name()), rows)
    })
}

fn decode(out: &mut Out<'_>, shards: &[Published]) -> fmt::Result {
    out.counters("weir_collector_records", "Rows decoded, by table.", rows(shards))?;
    out.counters(
        "weir_collector_rejected_datagrams",
        "Datagrams rejected as a whole.",
        rejected_datagrams(shards),
    )?;
    out.counters(
        "weir_collector_rejected_sets",
        "Sets rejected in datagrams of which the rest was decoded.",
        rejected(shards, |shard| &shard.decode.sets_rejected),
    )
}

fn ledger(out: &mut Out<'_>, shards: &[Published], writer: &WriterCounters) -> fmt::Result {
    let received =
        shards.iter().flat_map(|shard| &shard.counts.received).map(|(datagrams, _)| datagrams).sum();
    out.counter("weir_ledger_datagrams_received", "Datagrams taken from the kernel.", received)?;
    let decoded = shards.iter().map(|shard| shard.decode.decoded).sum();
    out.counter("weir_ledger_datagrams_decoded", "Of those, decoded at least in part.", decoded)?;
    out.counters(
        "weir_ledger_datagrams_rejected",
        "Of those, rejected as a whole.",
        rejected_datagrams(shards),
    )?;
    out.counters("weir_ledger_rows_decoded", "Rows that the decoders made.", rows(shards))?;
    out.counter(
        "weir_ledger_rows_acknowledged",
        "Of those, acknowledged by the log.",
        writer.acknowledged_rows,
    )?;
    out.counters(
        "weir_ledger_rows_dropped",
        "Of those, given up.",
        DropReason::ALL.map(|reason| (label("reason", reason.label()), writer.dropped_rows[reason as usize])),
    )?;
    let appended: u64 = shards.iter().flat_map(|shard| shard.counts.rows).sum();
    let closed: u64 = shards.iter().flat_map(|shard| shard.counts.closed_rows).sum();
    out.gauge(
        "weir_ledger_rows_in_flight",
        "Of those, in open batches or on their way to the log.",
        appended - closed + writer.rows_in_flight(),
    )
}
