//! Counter samples of hosts and queues, from the datagram to SQL.

use weir_tests::ledger::assert_lossless;
use weir_tests::weir::Setup;

/// What XDR makes of words and of octets (RFC 4506 §4.9, §4.11).
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = words(&[text.len() as u32]);
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn record(format: u32, content: &[u8]) -> Vec<u8> {
    [&words(&[format, content.len() as u32]), content].concat()
}

/// A counter sample of the data source.
fn sample(source: u32, records: &[Vec<u8>]) -> Vec<u8> {
    let content = [words(&[1, source, records.len() as u32]), records.concat()].concat();
    record(2, &content)
}

/// sFlow v5 of the agent 192.0.2.7, sub-agent 3.
fn datagram(samples: &[Vec<u8>]) -> Vec<u8> {
    [words(&[5, 1, 0xc000_0207, 3, 1, 60_000, samples.len() as u32]), samples.concat()].concat()
}

#[test]
fn hosts_and_queues_are_rows() {
    let setup = Setup::new();
    let weir = setup.start();
    let description = [text("edge-7"), vec![0x11; 16], words(&[3, 2]), text("6.1.0")].concat();
    let half = 0.5_f32.to_bits();
    let cpu = words(&[half, half, half, 2, 150, 8, 2_400, 86_400, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    let memory = words(&[8, 0, 4, 0, u32::MAX, u32::MAX, 0, 1, 0, 2, 0, 3, 0, 4, 5, 6, 7, 8]);
    // structure 1003: a queue, its segments, lengths, and what it dropped
    let queue = |index: u32, dropped: u32| {
        record(1003, &words(&[index, 208, 512, 1, 2, 3, 4, 5, 6, 7, 8, 9, dropped]))
    };
    weir.send(&datagram(&[
        sample(2 << 24 | 1, &[record(2000, &description), record(2003, &cpu), record(2004, &memory)]),
        sample(17, &[queue(0, 0), queue(1, 42)]),
    ]));

    weir.until_numbers("select count(*) from host_counters", &[1]);
    weir.until_numbers("select count(*) from queue_counters", &[2]);
    let host = weir.sql(
        "select host_name, os_release, source_class, source_index, load_one, cpu_count, memory_total_bytes, \
         memory_shared_bytes, exporter_addr from host_counters",
    );
    // all ones say that the host does not know
    let wanted = ["edge-7", "6.1.0", "2", "1", "0.5", "8", "34359738368", "", "192.0.2.7"];
    assert_eq!(host, [wanted.map(str::to_owned)]);
    let queues =
        weir.sql("select if_index, queue_index, dropped_packets from queue_counters order by queue_index");
    assert_eq!(queues, [["17", "0", "0"], ["17", "1", "42"]].map(|row| row.map(str::to_owned)));
    assert_lossless(&weir);
    assert!(weir.stop().success());
}
