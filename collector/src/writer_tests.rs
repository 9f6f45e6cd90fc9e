use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, FixedSizeBinaryArray, TimestampMicrosecondArray, UInt64Array};
use arrow::datatypes::UInt64Type;
use parking_lot::Mutex;
use proptest::prelude::*;
use weir_schemas::Table;
use weir_schemas::envelope::decode_body;

use super::*;
use crate::batch::CloseCause;
use crate::testing::{Memory, MemorySink};

/// A batch whose rows are numbered from `first`; `noise` makes rows that do not compress.
fn closed(first: u64, rows: u64, noise: bool) -> Closed {
    let times: Vec<i64> = (0..rows).map(|row| 1_000_000 + i64::try_from(row).unwrap()).collect();
    let numbers: Vec<u64> = (first..first + rows).collect();
    let mut seed = first + 1;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if noise {
            (u128::from(seed) << 64 | u128::from(seed.rotate_left(32))).to_be_bytes()
        } else {
            [7; 16]
        }
    };
    let addresses: Vec<[u8; 16]> = (0..rows).map(|_| random()).collect();
    let batch = RecordBatch::try_from_iter([
        ("received_at", Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) as ArrayRef),
        ("src_addr", Arc::new(FixedSizeBinaryArray::try_from_iter(addresses.iter()).unwrap())),
        ("bytes", Arc::new(UInt64Array::from(numbers))),
    ])
    .unwrap();
    let bytes = usize::try_from(rows * 32).unwrap();
    Closed { table: Table::Flows, batch, cause: CloseCause::Rows, shard: 5, bytes, part: None }
}

fn numbers(messages: &[Message]) -> Vec<u64> {
    let rows = |message: &Message| {
        let batch = decode_body(&message.envelope, &message.body).unwrap();
        let column = batch.column_by_name("bytes").unwrap().clone();
        column.as_primitive::<UInt64Type>().values().to_vec()
    };
    messages.iter().flat_map(rows).collect()
}

fn writer(
    queue_bytes: usize,
    backlog_bytes: usize,
    max_bytes: usize,
) -> (Writer, Arc<Queue>, Arc<Mutex<Memory>>) {
    let sink = MemorySink::default();
    let memory = Arc::clone(&sink.0);
    let queue = Arc::new(Queue::new(queue_bytes));
    let batch = BatchConfig { max_bytes, ..BatchConfig::default() };
    let config = WriterConfig { queue_bytes, backlog_bytes, flush_timeout_ms: 50 };
    let identity = Identity { collector: "c1".into(), boot: 9 };
    let ratios = Arc::new(SizeRatios::default());
    let writer = Writer::new(Box::new(sink), Arc::clone(&queue), ratios, identity, &batch, &config);
    (writer, queue, memory)
}

fn assert_balanced(counters: &WriterCounters) {
    let dropped: u64 = counters.dropped_rows.iter().sum();
    assert_eq!(
        counters.closed_rows,
        counters.acknowledged_rows + dropped + counters.rows_in_flight(),
        "{counters:?}"
    );
}

#[test]
fn batches_become_messages_in_order_with_their_envelopes() {
    let (writer, queue, memory) = writer(1 << 20, 1 << 20, 900_000);
    let thread = std::thread::spawn(move || writer.run());
    for batch in 0..10 {
        queue.push(closed(batch * 100, 100, false));
    }
    queue.close();
    assert_eq!(thread.join().unwrap(), 0);
    let memory = memory.lock();
    assert_eq!(numbers(&memory.appended), (0..1_000).collect::<Vec<_>>());
    for (sequence, message) in (0..).zip(&memory.appended) {
        let envelope = &message.envelope;
        assert_eq!((envelope.batch_seq, envelope.boot, envelope.collector.as_str()), (sequence, 9, "c1"));
        assert_eq!((envelope.min_time_us, envelope.max_time_us, message.key), (1_000_000, 1_000_099, 5));
    }
    let counters = queue.counters();
    assert_eq!((counters.acknowledged_rows, counters.acknowledged_messages), (1_000, 10));
    assert_eq!(counters.rows_in_flight(), 0);
    assert_balanced(&counters);
}

#[test]
fn what_is_too_large_for_a_message_is_split_in_order() {
    let (mut writer, queue, memory) = writer(1 << 20, 1 << 20, 20_000);
    queue.push(closed(0, 5_000, true));
    assert!(writer.step(Duration::ZERO));
    let memory = memory.lock();
    assert!(memory.appended.len() > 4);
    assert!(memory.appended.iter().all(|message| message.body.len() <= 20_000));
    assert_eq!(numbers(&memory.appended), (0..5_000).collect::<Vec<_>>());
    assert_eq!(queue.counters().split_batches, 1);
    assert_balanced(&queue.counters());
    // The next one is closed earlier.
    assert!(writer.ratios.raw_limit(Table::Flows, 20_000) < 20_000 * 850 / 350);
}

#[test]
fn a_log_that_is_full_costs_nothing_until_the_backlog_is_and_recovers_by_itself() {
    let (writer, queue, memory) = writer(1 << 20, 20_000, 900_000);
    memory.lock().busy = true;
    let thread = std::thread::spawn(move || writer.run());
    // About 10 kB each, noise: the second fits the backlog, of four the oldest two go.
    for batch in 0..4 {
        queue.push(closed(batch * 500, 500, true));
    }
    let wait = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", queue.counters());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&|| queue.counters().queued_rows == 0 && queue.counters().encoding_rows == 0);
    wait(&|| queue.counters().backlog_bytes <= 20_000);
    let counters = queue.counters();
    assert!(queue.blocked().unwrap().0.contains("told so"));
    let dropped = counters.dropped_rows[DropReason::BacklogFull as usize];
    assert!(dropped >= 500 && dropped % 500 == 0, "{counters:?}");
    assert_balanced(&counters);
    memory.lock().busy = false;
    wait(&|| queue.counters().rows_in_flight() == 0);
    assert_eq!(queue.blocked(), None);
    queue.close();
    thread.join().unwrap();
    // The oldest went, the rest is there in order.
    assert_eq!(numbers(&memory.lock().appended), (dropped..2_000).collect::<Vec<_>>());
    assert_balanced(&queue.counters());
}

/// Rule 23: what a full queue costs is a count of its own.
#[test]
fn pushing_never_waits_and_drops_the_oldest() {
    let queue = Queue::new(100 * 32 * 3);
    for batch in 0..10 {
        queue.push(closed(batch * 100, 100, false));
    }
    let counters = queue.counters();
    assert_eq!((counters.queued_batches, counters.queued_rows), (3, 300));
    assert_eq!(counters.dropped_rows[DropReason::QueueFull as usize], 700);
    assert_balanced(&counters);
    let Popped::Batch(oldest) = queue.pop(Duration::ZERO) else { panic!("the queue is not empty") };
    assert_eq!(oldest.batch.column(2).as_primitive::<UInt64Type>().value(0), 700);
    assert_balanced(&queue.counters());
}

#[test]
fn what_the_log_does_not_acknowledge_by_the_deadline_is_reported() {
    let (writer, queue, memory) = writer(1 << 20, 1 << 20, 900_000);
    memory.lock().holds_back = true;
    queue.push(closed(0, 100, false));
    queue.close();
    assert_eq!(writer.run(), 100);
    let counters = queue.counters();
    assert_eq!(counters.dropped_rows[DropReason::Shutdown as usize], 100);
    assert_balanced(&counters);
}

/// Kafka takes a message in hand and its broker refuses it later: dropped and counted, no longer in flight.
#[test]
fn what_the_log_refuses_later_is_dropped_and_counted() {
    let (mut writer, queue, memory) = writer(1 << 20, 1 << 20, 900_000);
    memory.lock().refuse_later_above = Some(50);
    memory.lock().holds_back = true;
    queue.push(closed(0, 100, false));
    queue.push(closed(100, 40, false));
    assert!(writer.step(Duration::ZERO) && writer.step(Duration::ZERO));
    assert_eq!(queue.counters().unacknowledged_rows, 140);
    memory.lock().holds_back = false;
    queue.close();
    assert_eq!(writer.run(), 0);
    let counters = queue.counters();
    assert_eq!(counters.dropped_rows[DropReason::Refused as usize], 100);
    assert_eq!((counters.acknowledged_rows, counters.rows_in_flight()), (40, 0));
    assert_eq!(counters.unacknowledged_messages, 0);
    assert_balanced(&counters);
}

#[derive(Debug, Clone)]
enum Step {
    Push(u64),
    Write,
    Busy(bool),
    HoldBack(bool),
    RefuseAbove(Option<u32>),
    RefuseLaterAbove(Option<u32>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u64..400).prop_map(Step::Push),
        4 => Just(Step::Write),
        1 => any::<bool>().prop_map(Step::Busy),
        1 => any::<bool>().prop_map(Step::HoldBack),
        1 => proptest::option::of(10_u32..400).prop_map(Step::RefuseAbove),
        1 => proptest::option::of(10_u32..400).prop_map(Step::RefuseLaterAbove),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the log does and whenever: no row is lost unseen, none is there twice, order holds.
    #[test]
    fn the_ledger_balances_after_every_step(steps in steps()) {
        let (mut writer, queue, memory) = writer(20_000, 12_000, 6_000);
        let mut next = 0;
        for step in steps {
            match step {
                Step::Push(rows) => {
                    queue.push(closed(next, rows, true));
                    next += rows;
                }
                Step::Write => assert!(writer.step(Duration::ZERO)),
                Step::Busy(busy) => memory.lock().busy = busy,
                Step::HoldBack(holds_back) => memory.lock().holds_back = holds_back,
                Step::RefuseAbove(rows) => memory.lock().refuse_above = rows,
                Step::RefuseLaterAbove(rows) => memory.lock().refuse_later_above = rows,
            }
            assert_balanced(&queue.counters());
        }
        queue.close();
        while writer.step(Duration::ZERO) {
            assert_balanced(&queue.counters());
        }
        let lost = writer.finish();
        let counters = queue.counters();
        assert_balanced(&counters);
        prop_assert_eq!(counters.rows_in_flight(), 0);
        prop_assert_eq!(counters.closed_rows, next);
        prop_assert_eq!(counters.dropped_rows[DropReason::Shutdown as usize], lost);
        let memory = memory.lock();
        let acknowledged = &memory.appended[..memory.acknowledged];
        let rows: u64 = acknowledged.iter().map(|message| u64::from(message.envelope.rows)).sum();
        prop_assert_eq!(rows, counters.acknowledged_rows);
        let numbers = numbers(&memory.appended);
        prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(memory.appended.iter().all(|message| message.body.len() <= 6_000));
    }
}
