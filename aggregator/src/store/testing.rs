//! What the tests of the store share: flows with known sums, a log in memory, an object store that dies, and SQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use arrow::array::{
    ArrayRef, AsArray, FixedSizeBinaryArray, Float64Array, RecordBatch, TimestampMicrosecondArray,
    UInt8Array, UInt16Array, UInt32Array, UInt64Array,
};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use weir_schemas::envelope::{Compression, Origin, encode_body};
use weir_schemas::{Envelope, Table};

use super::{Store, StoreConfig};
use crate::catalog::{Catalog, views};
use crate::ingest::OpenSource;
use crate::source::{LogMessage, Payload, Positions, Source, SourceError};

/// 2026-11-23 00:00 UTC.
pub(crate) const DAY: i64 = 1_795_392_000_000_000;

/// Random numbers that a seed repeats.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

pub(crate) fn address(last: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[10..12].fill(0xff);
    bytes[12] = 10;
    bytes[14..].copy_from_slice(&u16::try_from(last).unwrap().to_be_bytes());
    bytes
}

/// `rows` flows whose `fragment_id` counts from `first`; some batches lack some columns.
pub(crate) fn flows(random: &mut Random, first: u32, rows: usize) -> RecordBatch {
    let (tos, rates, systems) = (random.below(2) == 0, random.below(2) == 0, random.below(2) == 0);
    flows_with(random, first, rows, [tos, rates, systems])
}

/// The same with every column in every batch.
pub(crate) fn wide_flows(random: &mut Random, first: u32, rows: usize) -> RecordBatch {
    flows_with(random, first, rows, [true; 3])
}

fn flows_with(random: &mut Random, first: u32, rows: usize, has: [bool; 3]) -> RecordBatch {
    let times =
        |values: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef;
    let addresses = |values: Vec<[u8; 16]>| {
        Arc::new(FixedSizeBinaryArray::try_from_iter(values.into_iter()).unwrap()) as ArrayRef
    };
    let mut many = |bound: u64| -> Vec<u64> { (0..rows).map(|_| random.below(bound)).collect() };
    let ends: Vec<i64> = many(3_600_000_000).into_iter().map(|at| DAY + 43_200_000_000 + at as i64).collect();
    let durations = many(300_000_000);
    let starts = ends.iter().zip(&durations).map(|(end, duration)| end - *duration as i64).collect();
    let received = ends.iter().map(|end| end + 1_000_000).collect();
    let id: Vec<u32> = (first..).take(rows).collect();
    let interface = |value: u64| (value > 0).then_some(value as u32);
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("received_at", times(received)),
        ("start_time", times(starts)),
        ("end_time", times(ends)),
        ("exporter_addr", addresses(many(4).into_iter().map(address).collect())),
        ("src_addr", addresses(many(3000).into_iter().map(address).collect())),
        ("dst_addr", addresses(many(50).into_iter().map(address).collect())),
        ("dst_port", Arc::new(UInt16Array::from_iter_values(many(500).into_iter().map(|port| port as u16)))),
        (
            "ip_protocol",
            Arc::new(UInt8Array::from_iter_values(many(3).into_iter().map(|value| value as u8 * 5 + 1))),
        ),
        ("fragment_id", Arc::new(UInt32Array::from(id))),
        ("bytes", Arc::new(UInt64Array::from(many(100_000)))),
        ("packets", Arc::new(UInt64Array::from(many(100)))),
        ("in_if", Arc::new(UInt32Array::from_iter(many(5).into_iter().map(interface)))),
    ];
    if has[0] {
        let tos = (0..rows).map(|_| random.below(64) as u8 * 4);
        columns.push(("tos", Arc::new(UInt8Array::from_iter_values(tos))));
    }
    if has[1] {
        let rates = (0..rows).map(|_| [None, Some(1.0), Some(100.0)][random.below(3) as usize]);
        columns.push(("sampling_rate", Arc::new(Float64Array::from_iter(rates))));
    }
    if has[2] {
        let systems = (0..rows).map(|_| [None, Some(64_500), Some(u32::MAX)][random.below(3) as usize]);
        columns.push(("src_as", Arc::new(UInt32Array::from_iter(systems))));
        columns.push((
            "dst_as",
            Arc::new(UInt32Array::from_iter_values((0..rows).map(|_| random.below(3) as u32))),
        ));
    }
    RecordBatch::try_from_iter(columns).unwrap()
}

pub(crate) fn message(partition: u32, offset: u64, table: Table, batch: &RecordBatch) -> LogMessage {
    let envelope = Envelope::of(batch, table, "test", 1, offset);
    let body = Bytes::from(encode_body(batch, Compression::Lz4).unwrap());
    LogMessage { partition, offset, payload: Payload::Batch { envelope, body } }
}

/// A log in memory: messages by partition, offsets with holes.
#[derive(Debug, Clone, Default)]
pub(crate) struct TestLog {
    pub(crate) messages: Arc<Vec<LogMessage>>,
    pub(crate) rows: u64,
    pub(crate) bytes: i64,
    pub(crate) batches: Vec<RecordBatch>,
}

impl TestLog {
    /// `count` batches of flows over two partitions, and other tables now and then.
    pub(crate) fn random(seed: u64, count: usize) -> TestLog {
        let mut random = Random(seed);
        let mut log = TestLog::default();
        let mut messages = Vec::new();
        let mut offsets = [3_u64, 1000];
        for _ in 0..count {
            let partition = random.below(2) as usize;
            let rows = 1 + random.below(40) as usize;
            let batch = flows(&mut random, log.rows as u32, rows);
            let table = if random.below(6) == 0 { Table::NatEvents } else { Table::Flows };
            messages.push(message(partition as u32, offsets[partition], table, &batch));
            offsets[partition] += 1 + random.below(3);
            if table == Table::Flows {
                log.rows += rows as u64;
                let bytes =
                    batch.column_by_name("bytes").unwrap().as_primitive::<arrow::datatypes::UInt64Type>();
                log.bytes += bytes.values().iter().sum::<u64>() as i64;
                log.batches.push(batch);
            }
        }
        log.messages = Arc::new(messages);
        log
    }

    /// The same by way of spools, two to a partition, whose collectors lost the answers of the brokers now and then and
    /// sent the last messages again.
    pub(crate) fn sent_again(&self, random: &mut Random) -> TestLog {
        let (mut sent, mut next) = (Vec::new(), [3_u64, 1000]);
        let (mut spooled, mut recent) = ([[17_u64; 2]; 2], [const { Vec::<LogMessage>::new() }; 2]);
        for message in self.messages.iter() {
            let (mut message, partition) = (message.clone(), message.partition as usize);
            let mut put = |mut message: LogMessage| {
                message.offset = next[partition];
                next[partition] += 1 + random.below(3);
                sent.push(message);
                random.below(5)
            };
            let spool = usize::from(message.offset % 2 == 0);
            let offset = spooled[partition][spool];
            spooled[partition][spool] += 1 + message.offset % 3;
            if let Payload::Batch { envelope, .. } = &mut message.payload {
                envelope.origin = Some(Origin { spool: 0xbeef, partition: spool as u32, offset });
            }
            recent[partition].push(message.clone());
            if put(message) == 0 {
                let again = recent[partition].len().saturating_sub(4);
                recent[partition][again..].iter().for_each(|message| {
                    put(message.clone());
                });
            }
        }
        TestLog { messages: Arc::new(sent), ..self.clone() }
    }

    /// Opens it one message a poll, each after `pause`.
    pub(crate) fn opener(&self, pause: Duration) -> OpenSource {
        let log = self.clone();
        Box::new(move |positions| {
            let wanted = |message: &&LogMessage| {
                positions.get(&message.partition).is_none_or(|position| message.offset >= *position)
            };
            let rest: Vec<LogMessage> = log.messages.iter().filter(wanted).cloned().collect();
            Ok(Box::new(TestSource { rest: rest.into(), end: log.end(), pause }))
        })
    }

    pub(crate) fn end(&self) -> Positions {
        self.messages.iter().map(|message| (message.partition, message.offset + 1)).collect()
    }
}

struct TestSource {
    rest: std::collections::VecDeque<LogMessage>,
    end: Positions,
    pause: Duration,
}

#[async_trait]
impl Source for TestSource {
    async fn poll(&mut self, _: usize) -> std::result::Result<Vec<LogMessage>, SourceError> {
        tokio::time::sleep(self.pause).await;
        Ok(self.rest.pop_front().into_iter().collect())
    }

    async fn committed(&mut self, _: &Positions) -> std::result::Result<(), SourceError> {
        Ok(())
    }

    fn end(&self) -> Positions {
        self.end.clone()
    }
}

/// An object store that dies at its n-th write, before or after it takes effect, and answers nothing from then on.
#[derive(Debug)]
pub(crate) struct Mortal {
    inner: Arc<dyn ObjectStore>,
    writes_left: AtomicI64,
    after: bool,
    pub(crate) dead: AtomicBool,
}

impl Mortal {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, writes: i64, after: bool) -> Arc<Mortal> {
        Arc::new(Mortal { inner, writes_left: AtomicI64::new(writes), after, dead: AtomicBool::new(false) })
    }

    /// Ends the failure.
    pub(crate) fn revive(&self) {
        self.writes_left.store(i64::MAX, Ordering::SeqCst);
        self.dead.store(false, Ordering::SeqCst);
    }

    fn alive(&self) -> Result<()> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(object_store::Error::Generic { store: "mortal", source: "the power is off".into() });
        }
        Ok(())
    }
}

impl std::fmt::Display for Mortal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mortal({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.alive()?;
        tokio::task::yield_now().await;
        let last = self.writes_left.fetch_sub(1, Ordering::SeqCst) <= 1;
        if last && !self.after {
            self.dead.store(true, Ordering::SeqCst);
        }
        self.alive()?;
        let result = self.inner.put_opts(location, payload, options).await;
        if last {
            self.dead.store(true, Ordering::SeqCst);
        }
        self.alive()?;
        result
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(object_store::Error::NotImplemented {
            operation: "multipart".into(),
            implementer: "mortal".into(),
        })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

pub(crate) fn config() -> StoreConfig {
    StoreConfig { commit_interval_ms: 10, compact_min_files: 2, ..StoreConfig::default() }
}

pub(crate) async fn open(
    objects: Arc<dyn ObjectStore>,
) -> std::result::Result<Arc<Store>, super::StoreError> {
    let quarantine = std::env::temp_dir().join(format!("weir-quarantine-{}", uuid::Uuid::new_v4()));
    Store::with_objects((config(), Default::default()), objects, None, quarantine, "test").await
}

/// A session over the store's tables and views.
pub(crate) async fn session(store: &Arc<Store>) -> SessionContext {
    session_with(store, SessionConfig::new()).await
}

pub(crate) async fn session_with(store: &Arc<Store>, config: SessionConfig) -> SessionContext {
    let catalog = Catalog::new(Arc::clone(store));
    let context = SessionContext::new_with_config(config);
    catalog.register(&context.runtime_env());
    // views use them
    for function in crate::sql::functions::aggregates() {
        context.register_udaf(AggregateUDF::clone(&function));
    }
    for function in crate::sql::functions::all(&Default::default()) {
        context.register_udf(ScalarUDF::clone(&function));
    }
    for (name, table) in catalog.tables() {
        context.register_table(name, table).unwrap();
    }
    for (name, sql) in views() {
        context.sql(&format!("CREATE VIEW {name} AS {sql}")).await.unwrap();
    }
    context
}

pub(crate) async fn rows(context: &SessionContext, sql: &str) -> Vec<RecordBatch> {
    context.sql(sql).await.unwrap().collect().await.unwrap()
}

/// The numbers of a query with one row.
pub(crate) async fn numbers(context: &SessionContext, sql: &str) -> Vec<i64> {
    let batches = rows(context, sql).await;
    let batch = batches.iter().find(|batch| batch.num_rows() == 1).unwrap();
    let cast = |column: &ArrayRef| arrow::compute::cast(column, &arrow::datatypes::DataType::Int64).unwrap();
    batch.columns().iter().map(|column| cast(column).as_primitive::<Int64Type>().value(0)).collect()
}
