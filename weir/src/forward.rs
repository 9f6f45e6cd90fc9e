//! From the spool to Kafka: a thread of `weir collect` where the log is Kafka.
//!
//! It reads the spool as an aggregator reads the embedded log, and gives each message its origin before it is sent. How
//! far the brokers have acknowledged everything is written beside the spool; after a crash the thread goes on there, and
//! what was sent beyond comes again under the same origin.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use weir_aggregator::source::embedded::{EmbeddedSource, committed, ends};
use weir_aggregator::source::{LogMessage, Payload, Positions, Source, SourceError};
use weir_collector::sink::kafka::{KafkaSink, KafkaSinkConfig};
use weir_collector::sink::spool::{self, Forwarding};
use weir_collector::sink::{Acknowledged, Message, Sink, SinkError};
use weir_schemas::envelope::Origin;
use weir_schemas::segment::COMMITTED_FILE;

use crate::failure::Failure;

/// How much is read from the spool at once.
const READ_BYTES: usize = 8 << 20;
/// How often the position is written down.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// How long one look for what the brokers say takes while they take nothing.
const LOOK: Duration = Duration::from_millis(50);
/// Pause before the spool is read again after an error.
const RETRY: Duration = Duration::from_secs(1);
/// Brokers that acknowledge nothing for so long are called slow.
const SLOW: Duration = Duration::from_secs(1);
/// How often it is logged that the brokers take nothing.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// At the end: for how long the brokers may take nothing. What is left lies in the spool.
const STOP_BLOCKED: Duration = Duration::from_secs(3);

/// The thread, as who started it sees it.
#[derive(Debug)]
pub(crate) struct Forwarder {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
    /// Comes when the thread ends by itself, and with why.
    pub(crate) failed: oneshot::Receiver<String>,
}

impl Forwarder {
    /// Checks the configuration and starts to forward the spool in `directory`; the brokers need not be there.
    pub(crate) fn start(
        directory: &Path,
        kafka: KafkaSinkConfig,
        told: Arc<Forwarding>,
        stop_limit: Duration,
    ) -> Result<Forwarder, Failure> {
        let in_spool = |error: std::io::Error| {
            Failure::failed(format!("cannot use the spool in {}: {error}", directory.display()))
        };
        let number = spool::number(directory).map_err(in_spool)?;
        let noted = spool::spread(directory).map_err(in_spool)?;
        let begun = committed(directory).map_err(in_spool)?;
        let mut sink = KafkaSink::open(kafka).map_err(|error| Failure::failed(error.to_string()))?;
        sink.spread_over(noted);
        let stop = Arc::new(AtomicBool::new(false));
        let (failed, has_failed) = oneshot::channel();
        let run = Run {
            directory: directory.to_owned(),
            spool: number,
            source: EmbeddedSource::open(directory, begun.clone()),
            sink,
            told,
            spread: noted,
            next: begun.clone(),
            committed: begun,
            committed_at: Instant::now(),
            held: VecDeque::new(),
            busy: String::new(),
            blocked: None,
            warned: None,
            read_at: Instant::now(),
        };
        let (stopping, runtime) = (Arc::clone(&stop), Handle::current());
        let thread = std::thread::Builder::new().name("forward".to_owned()).spawn(move || {
            if let Err(error) = run.run(&runtime, &stopping, stop_limit) {
                // nobody waits any more where the collector is stopping
                failed.send(error).ok();
            }
        });
        let thread = thread.map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?;
        Ok(Forwarder { stop, thread, failed: has_failed })
    }

    /// Lets it send what is in the spool, as long as the brokers take it, and waits for its end.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Ok(Err(_)) = tokio::task::spawn_blocking(move || self.thread.join()).await {
            tracing::error!("the thread that forwards the spool has panicked");
        }
    }
}

struct Run {
    directory: PathBuf,
    /// The number of the spool.
    spool: u64,
    source: EmbeddedSource,
    sink: KafkaSink,
    told: Arc<Forwarding>,
    /// Over how many partitions messages are spread; None until the topic was seen for the first time.
    spread: Option<u32>,
    /// One past the last offset read.
    next: Positions,
    /// Everything before is in Kafka, or given up and counted.
    committed: Positions,
    committed_at: Instant,
    /// Read and not yet taken by the sink.
    held: VecDeque<Message>,
    /// Why the sink takes nothing; empty while it does.
    busy: String,
    /// Since when the brokers have acknowledged nothing, although something waits.
    blocked: Option<Instant>,
    warned: Option<Instant>,
    /// When the spool is read again.
    read_at: Instant,
}

impl Run {
    fn run(mut self, runtime: &Handle, stop: &AtomicBool, stop_limit: Duration) -> Result<(), String> {
        let mut deadline = None;
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            let read = if self.held.is_empty() { self.read(runtime)? } else { 0 };
            self.offer();
            let waits = !self.held.is_empty() || (stopping && self.sink.in_flight() > 0);
            let acknowledged = self.sink.poll(if waits { LOOK } else { Duration::ZERO });
            let refused = self.sink.refused();
            self.told.tell(|told| {
                told.acknowledged += acknowledged;
                told.refused += refused;
            });
            self.note_progress(acknowledged.messages + refused.messages > 0);
            let all_there = read == 0 && self.held.is_empty() && self.sink.in_flight() == 0;
            if self.committed_at.elapsed() >= COMMIT_EVERY || all_there {
                self.commit(runtime);
            }
            if all_there {
                self.spread_anew();
            }
            if stopping {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + stop_limit);
                let given_up = self.blocked.is_some_and(|since| since.elapsed() >= STOP_BLOCKED);
                if all_there || given_up || Instant::now() >= deadline {
                    if !all_there {
                        self.commit(runtime);
                    }
                    let waiting = self.told.get().waiting;
                    if waiting > 0 {
                        tracing::warn!(
                            messages = waiting,
                            spool = %self.directory.display(),
                            "stopped while the brokers do not have everything: the next start sends the rest"
                        );
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Takes what comes next in the spool; says how many messages.
    fn read(&mut self, runtime: &Handle) -> Result<usize, String> {
        let pause = self.read_at.saturating_duration_since(Instant::now());
        if !pause.is_zero() {
            std::thread::sleep(pause.min(LOOK));
            return Ok(0);
        }
        let messages = match runtime.block_on(self.source.poll(READ_BYTES)) {
            Ok(messages) => messages,
            Err(SourceError::Unavailable(error)) => {
                tracing::warn!(%error, "the spool cannot be read; trying again");
                self.read_at = Instant::now() + RETRY;
                return Ok(0);
            }
            Err(error @ (SourceError::Fatal(_) | SourceError::Moved)) => return Err(error.to_string()),
        };
        let read = messages.len();
        for LogMessage { partition, offset, payload } in messages {
            match payload {
                Payload::Batch { mut envelope, body } => {
                    envelope.origin = Some(Origin { spool: self.spool, partition, offset });
                    let key = self.spool.wrapping_add(u64::from(partition));
                    self.held.push_back(Message { envelope, body: body.into(), key, low: None });
                }
                Payload::Gap { from } => {
                    let lost = (offset + 1).saturating_sub(from);
                    tracing::error!(partition, from, to = offset, "messages are gone from the spool");
                    self.told.tell(|told| told.lost_messages += lost);
                }
                Payload::Foreign { reason, .. } => {
                    tracing::error!(partition, offset, reason, "damage in the spool passed over");
                    self.told.tell(|told| told.damaged += 1);
                }
            }
            self.next.insert(partition, offset + 1);
        }
        Ok(read)
    }

    /// Hands the sink what it takes.
    fn offer(&mut self) {
        if self.spread.is_none() {
            self.spread_anew();
        }
        let mut busy =
            self.spread.is_none().then(|| format!("the topic is not known yet. {}", self.sink.error()));
        while let (Some(message), None) = (self.held.front(), &busy) {
            match self.sink.append(message) {
                Ok(()) => {
                    self.held.pop_front();
                }
                Err(SinkError::Busy(why)) => busy = Some(why),
                Err(SinkError::Refused(why)) => {
                    let rows = message.envelope.rows;
                    tracing::error!(
                        table = message.envelope.table.name(),
                        rows,
                        "a message is dropped: {why}"
                    );
                    let refused = Acknowledged::of(message);
                    self.held.pop_front();
                    self.told.tell(|told| told.refused += refused);
                }
            }
        }
        self.busy = busy.unwrap_or_default();
    }

    /// Nothing was acknowledged although something waits: the brokers are away, or slow.
    fn note_progress(&mut self, settled: bool) {
        if settled || (self.held.is_empty() && self.sink.in_flight() == 0) {
            if let Some(since) = self.blocked.take() {
                if self.warned.take().is_some() {
                    tracing::info!(after_s = since.elapsed().as_secs(), "the brokers take messages again");
                }
                self.told.tell(|told| told.blocked = None);
            }
            return;
        }
        let since = *self.blocked.get_or_insert_with(Instant::now);
        if since.elapsed() < SLOW {
            return;
        }
        let why = if self.busy.is_empty() { self.sink.error() } else { self.busy.clone() };
        if self.warned.is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
            self.warned = Some(Instant::now());
            let waiting = self.told.get().waiting;
            tracing::warn!(
                messages = waiting,
                "the brokers acknowledge nothing now, the spool keeps it: {why}"
            );
        }
        self.told.tell(|told| told.blocked = Some((why, since)));
    }

    /// Spreads messages over as many partitions as the topic has, where it has another number than before. Only called
    /// where nothing that was sent may have to be sent again.
    fn spread_anew(&mut self) {
        let partitions = self.sink.stats().partitions;
        if partitions == 0 || self.spread == Some(partitions) {
            if self.spread.is_none() {
                // looks at the topic
                self.sink.poll(Duration::ZERO);
            }
            return;
        }
        let noted = self.sync_committed().and_then(|()| spool::note_spread(&self.directory, partitions));
        match noted {
            Ok(()) => {
                if let Some(before) = self.spread {
                    tracing::info!(
                        before,
                        partitions,
                        "messages are spread over another number of partitions"
                    );
                }
                self.spread = Some(partitions);
                self.sink.spread_over(self.spread);
            }
            Err(error) => {
                tracing::warn!(%error, spool = %self.directory.display(), "cannot write down the topic's partitions");
                std::thread::sleep(LOOK);
            }
        }
    }

    fn sync_committed(&self) -> std::io::Result<()> {
        for partition in self.committed.keys() {
            let path = self.directory.join(partition.to_string()).join(COMMITTED_FILE);
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    /// Writes down up to where Kafka has everything, and tells how things are.
    fn commit(&mut self, runtime: &Handle) {
        self.committed_at = Instant::now();
        let mut upto = self.next.clone();
        let (mut oldest_us, mut unacknowledged) = (None, 0);
        let held = self.held.iter().map(|message| &message.envelope);
        for envelope in self.sink.unacknowledged().inspect(|_| unacknowledged += 1).chain(held) {
            let Some(origin) = envelope.origin else { continue };
            let position = upto.entry(origin.partition).or_insert(origin.offset);
            *position = (*position).min(origin.offset);
            oldest_us =
                Some(oldest_us.map_or(envelope.min_time_us, |known: i64| known.min(envelope.min_time_us)));
        }
        if let Err(error) = runtime.block_on(self.source.committed(&upto)) {
            tracing::warn!(%error, "the spool cannot be told how far Kafka is");
        }
        // the source knows the end of what it has read last, which may be long ago while the brokers are away
        let ends = ends(&self.directory).unwrap_or_else(|_| self.source.end());
        let waiting =
            |(partition, end): (&u32, &u64)| end - upto.get(partition).copied().unwrap_or(0).min(*end);
        let waiting = ends.iter().filter(|(partition, _)| upto.contains_key(*partition)).map(waiting).sum();
        let stats = self.sink.stats();
        self.committed = upto;
        self.told.tell(|told| {
            told.unacknowledged_messages = unacknowledged;
            told.waiting = waiting;
            told.oldest_us = oldest_us;
            told.rebuilt = stats.rebuilt;
            told.sent_again = stats.sent_again;
        });
    }
}
