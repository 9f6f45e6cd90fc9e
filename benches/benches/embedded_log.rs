//! Appending to the embedded log under each fsync policy, and reading its frames back: MB/s and CPU time a batch.
//!
//! `cargo bench -p weir-benches --bench embedded_log [-- DIRECTORY]`; the directory's disk is what is measured.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints a table")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use weir_collector::sink::embedded::{EmbeddedConfig, EmbeddedSink, Fsync};
use weir_collector::sink::{Message, Sink};
use weir_schemas::segment::{Scanner, Step, segment_first};
use weir_schemas::tables::SCHEMA_VERSION;
use weir_schemas::{Envelope, Table};

/// CPU time of this thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

fn message(number: u64, body: &Bytes) -> Message {
    let envelope = Envelope {
        schema_version: SCHEMA_VERSION,
        table: Table::Flows,
        collector: "bench".to_owned(),
        boot: 1,
        batch_seq: number,
        rows: 8192,
        min_time_us: 1_700_000_000_000_000,
        max_time_us: 1_700_000_001_000_000,
        covered: None,
        origin: None,
    };
    Message { envelope, body: body.clone().into(), key: 0, low: None }
}

struct Measured {
    wall: Duration,
    cpu: Duration,
    fsyncs: u64,
    fsync_us: u64,
}

fn append(fsync: Fsync, body: &Bytes, count: u64, directory: &Path) -> Measured {
    let config = EmbeddedConfig { fsync, ..EmbeddedConfig::default() };
    let mut sink = EmbeddedSink::open(directory, config).unwrap();
    let (begun, cpu_before) = (Instant::now(), cpu());
    let mut acknowledged = 0;
    for number in 0..count {
        sink.append(&message(number, body)).unwrap();
        acknowledged += sink.poll(Duration::ZERO).messages;
    }
    acknowledged += sink.flush(Duration::from_secs(60)).messages;
    assert_eq!(acknowledged, count);
    let stats = sink.stats();
    Measured {
        wall: begun.elapsed(),
        cpu: cpu() - cpu_before,
        fsyncs: stats.fsyncs,
        fsync_us: stats.fsync_us,
    }
}

/// Reads all frames, verifying their checksums.
fn read(directory: &Path) -> (u64, Measured) {
    let (begun, cpu_before, mut frames) = (Instant::now(), cpu(), 0);
    for entry in std::fs::read_dir(directory.join("0")).unwrap() {
        let entry = entry.unwrap();
        if segment_first(entry.file_name().to_str().unwrap()).is_none() {
            continue;
        }
        let (file, limit) = (std::fs::File::open(entry.path()).unwrap(), entry.metadata().unwrap().len());
        let mut scanner = Scanner::default();
        while let Step::Frame(_) = scanner.step(&file, limit).unwrap() {
            frames += 1;
        }
    }
    (frames, Measured { wall: begun.elapsed(), cpu: cpu() - cpu_before, fsyncs: 0, fsync_us: 0 })
}

fn print(what: &str, bytes: usize, count: u64, measured: &Measured) {
    let megabytes = bytes as f64 * count as f64 / 1e6;
    println!(
        "| {what} | {} | {:.0} | {:.0} | {} | {:.1} |",
        bytes / 1000,
        megabytes / measured.wall.as_secs_f64(),
        measured.cpu.as_secs_f64() * 1e6 / count as f64,
        measured.fsyncs,
        measured.fsync_us as f64 / 1e3 / measured.fsyncs.max(1) as f64,
    );
}

fn main() {
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let parent = given.map_or_else(std::env::temp_dir, PathBuf::from);
    println!("| fsync | body kB | MB/s | CPU µs/batch | fsyncs | ms each |\n|---|---|---|---|---|---|");
    for (bytes, count) in [(50_000, 2_000), (350_000, 1_000)] {
        let mut seed = 1_u64;
        let random = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.to_be_bytes()[0]
        });
        let body: Bytes = random.take(bytes).collect::<Vec<_>>().into();
        for fsync in [Fsync::Batch, Fsync::Interval, Fsync::Never] {
            let directory = parent.join(format!("weir-bench-log-{}", std::process::id()));
            let measured = append(fsync, &body, count, &directory);
            print(&format!("{fsync:?}").to_lowercase(), bytes, count, &measured);
            if fsync == Fsync::Never {
                let (frames, measured) = read(&directory);
                assert_eq!(frames, count);
                print("(read back)", bytes, count, &measured);
            }
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }
}
