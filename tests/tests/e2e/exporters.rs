//! Real exporters read a capture whose contents are known and export it to a running weir: what SQL says equals what
//! they say, and what the capture holds.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use weir_tests::command::{program, run};
use weir_tests::ledger::assert_lossless;
use weir_tests::packets::{Truth, write_capture};
use weir_tests::wait::LONG;
use weir_tests::weir::{Setup, Weir};

const PACKETS: u64 = 3_000;

/// softflowd's last words: records exported, and octets and packets by protocol.
#[derive(Debug, PartialEq, Eq)]
struct Statistics {
    records: u64,
    protocols: Vec<(u8, u64, u64)>,
}

impl Statistics {
    /// Reads `Flows exported: 540 (540 records) in …` and `tcp (6):  OCTETS  PACKETS …`.
    fn parse(text: &str) -> Option<Statistics> {
        let records = text
            .lines()
            .find_map(|line| line.split_once("Flows exported:")?.1.split_once('(')?.1.split_once(' '));
        let protocols = text.lines().filter_map(|line| {
            let (name, rest) = line.split_once("):")?;
            let protocol = name.rsplit_once('(')?.1.parse().ok()?;
            let mut numbers = rest.split_whitespace();
            let (octets, packets) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
            Some((protocol, packets, octets))
        });
        let mut protocols: Vec<_> = protocols.collect();
        protocols.sort_unstable();
        Some(Statistics { records: records?.0.parse().ok()?, protocols })
    }
}

/// Lets softflowd export `capture` in a version of the protocol (5, 9, 10) and returns what it says that it sent.
fn softflowd(setup: &Setup, weir: &Weir, capture: &std::path::Path, version: u8) -> Statistics {
    let mut command = Command::new(program("softflowd"));
    command.arg("-r").arg(capture).args([
        "-d",
        "-v",
        &version.to_string(),
        "-n",
        &weir.addresses.udp[0].to_string(),
    ]);
    // No control socket: at the end of a capture softflowd 1.1.0 may wait for a connection to it for ever.
    command.arg("-p").arg(setup.folder().join("softflowd.pid")).args(["-c", "none"]);
    let ended = run(&mut command, LONG);
    let said = ended.stderr.clone() + &ended.ok();
    Statistics::parse(&said).unwrap_or_else(|| panic!("softflowd gave no statistics:\n{said}"))
}

fn assert_softflowd(version: u8, proto_ver: &str, ipv6: bool) {
    let setup = Setup::new();
    let weir = setup.start();
    let capture = setup.folder().join("traffic.pcap");
    let truth = write_capture(&capture, PACKETS, ipv6).unwrap();
    let said = softflowd(&setup, &weir, &capture, version);
    let in_capture: Vec<_> = truth
        .protocols
        .iter()
        .map(|(protocol, volume)| (*protocol, volume.packets, volume.ip_bytes))
        .collect();
    assert_eq!(said.protocols, in_capture, "the exporter saw the whole capture");

    weir.until_numbers(
        "select count(*), sum(packets), sum(bytes) from flows",
        &[said.records, truth.packets(), truth.ip_bytes()],
    );
    let rows = weir.sql("select ip_protocol, sum(packets), sum(bytes) from flows group by 1 order by 1");
    let in_sql: Vec<(u8, u64, u64)> = rows
        .iter()
        .map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap(), row[2].parse().unwrap()))
        .collect();
    assert_eq!(in_sql, in_capture);
    assert_eq!(weir.sql("select distinct proto_ver, exporter_addr from flows"), [[proto_ver, "127.0.0.1"]]);
    assert_addresses(&weir, ipv6);
    // The packets were made just now, each flow inside the capture's three seconds.
    let times = "select count(*) from flows where start_time > end_time or end_time > received_at + interval '1 second' \
                 or start_time < received_at - interval '10 minutes' or start_time is null";
    assert_eq!(weir.numbers(times), [0]);
    assert_rollups(&weir);
    let ledger = assert_lossless(&weir);
    assert_eq!(ledger.flows_decoded, said.records);
    assert!(weir.stop().success());
}

/// Every address of the capture, and no other, with the conversations' classes.
fn assert_addresses(weir: &Weir, ipv6: bool) {
    let inside = "cidr_contains('10.1.0.0/16', src_addr) and cidr_contains('198.51.100.0/24', dst_addr)";
    let outside = "cidr_contains('198.51.100.0/24', src_addr) and cidr_contains('10.1.0.0/16', dst_addr)";
    let six = "cidr_contains('2001:db8::/32', src_addr) and cidr_contains('2001:db8::/32', dst_addr)";
    let others = format!("select count(*) from flows where not ({inside} or {outside} or {six})");
    assert_eq!(weir.numbers(&others), [0]);
    let sixes = weir.numbers(&format!("select count(*) from flows where {six}"))[0];
    assert_eq!(sixes > 0, ipv6, "{sixes} IPv6 rows");
    let classes = weir.sql("select distinct dscp from flows order by 1");
    assert_eq!(classes, [["0"], ["10"], ["24"], ["46"]]);
}

/// The rollups say the same as the rows.
fn assert_rollups(weir: &Weir) {
    let rows = weir.numbers("select count(*), sum(bytes), sum(packets) from flows");
    weir.until_numbers("select sum(flows), sum(bytes), sum(packets) from flows_1m", &rows);
    weir.until_numbers(
        "select sum(flows), sum(bytes), sum(packets) from qos_1m where direction = 'in'",
        &rows,
    );
    let dimensions = weir
        .sql("select dimension, sum(flows), sum(bytes), sum(packets) from top_talkers group by 1 order by 1");
    assert!(!dimensions.is_empty());
    let source = dimensions
        .iter()
        .find(|row| row[0] == "src_addr")
        .unwrap_or_else(|| panic!("no dimension src_addr: {dimensions:?}"));
    assert_eq!(source[1..].iter().map(|text| text.parse().unwrap()).collect::<Vec<u64>>(), rows);
}

#[test]
fn softflowd_netflow5() {
    assert_softflowd(5, "netflow5", false);
}

#[test]
fn softflowd_netflow9() {
    assert_softflowd(9, "netflow9", true);
}

#[test]
fn softflowd_ipfix() {
    assert_softflowd(10, "ipfix", true);
}

/// pmacct keeps no statistics of what its probe sent: a relay counts the samples on the way, by nothing but their
/// lengths.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Relayed {
    datagrams: u64,
    /// The highest sequence number; the first is 1.
    sequence: u64,
    samples: u64,
    frame_bytes: u64,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()))
}

impl Relayed {
    /// Adds an sFlow datagram of an IPv4 agent: flow samples (format 1) and their raw headers (format 1).
    fn add(&mut self, datagram: &[u8]) {
        assert_eq!((word(datagram, 0), word(datagram, 4)), (5, 1), "sFlow v5 of an IPv4 agent");
        self.datagrams += 1;
        self.sequence = self.sequence.max(word(datagram, 16));
        let mut at = 28;
        for _ in 0..word(datagram, 24) {
            let (format, length) = (word(datagram, at), word(datagram, at + 4) as usize);
            let sample = &datagram[at + 8..at + 8 + length];
            if format == 1 {
                self.samples += 1;
                let mut record = 32;
                for _ in 0..word(sample, 28) {
                    if word(sample, record) == 1 {
                        self.frame_bytes += word(sample, record + 12);
                    }
                    record += 8 + word(sample, record + 4) as usize;
                }
            }
            at += 8 + length;
        }
    }
}

/// Passes datagrams on to `to` until told to stop, and counts them.
fn relay(to: SocketAddr, stop: Arc<AtomicBool>) -> (SocketAddr, std::thread::JoinHandle<Relayed>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let address = socket.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut relayed = Relayed::default();
        let mut buffer = vec![0; 65_536];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    relayed.add(&buffer[..length]);
                    socket.send_to(&buffer[..length], to).unwrap();
                }
                // Silent, and no more to come.
                Err(_) if stop.load(Ordering::Relaxed) => return relayed,
                Err(_) => {}
            }
        }
    });
    (address, thread)
}

#[test]
fn sfprobe_sflow() {
    let setup = Setup::new();
    let weir = setup.start();
    let capture = setup.folder().join("traffic.pcap");
    let truth: Truth = write_capture(&capture, PACKETS, true).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (address, relayed) = relay(weir.addresses.udp[1], Arc::clone(&stop));
    let config = setup.folder().join("pmacctd.conf");
    let settings = format!(
        "daemonize: false\npcap_savefile: {}\nplugins: sfprobe[s]\nsfprobe_receiver[s]: {address}\n\
         sfprobe_agentip[s]: 192.0.2.7\nsampling_rate[s]: 1\nplugin_buffer_size: 102400\nplugin_pipe_size: 10240000\n",
        capture.display()
    );
    std::fs::write(&config, settings).unwrap();
    run(Command::new(program("pmacctd")).arg("-f").arg(&config), LONG).ok();
    stop.store(true, Ordering::Relaxed);
    let sent = relayed.join().unwrap();
    // The probe reads the capture and sends as fast as it can: on a busy machine its own queue overflows, and what the
    // relay's socket had no room for is missing in the sequence. It counts four bytes of checksum a frame.
    let lost = sent.sequence - sent.datagrams;
    assert!(sent.samples > 100 && sent.samples <= truth.packets(), "{sent:?} of {} packets", truth.packets());
    assert!(sent.frame_bytes <= truth.frame_bytes + 4 * truth.packets(), "{sent:?}");

    weir.until_numbers(
        "select count(*), sum(packets), sum(bytes) from flows",
        &[sent.samples, sent.samples, sent.frame_bytes],
    );
    assert_eq!(
        weir.sql("select distinct proto_ver, exporter_addr, sender_addr, sampling_rate from flows"),
        [["sflow5", "192.0.2.7", "127.0.0.1", "1.0"]]
    );
    weir.until_numbers("select sum(sequence_lost) from exporters", &[lost]);
    // Frame length = 14 bytes Ethernet + IP + 4 bytes checksum, row by row.
    let odd = "select count(*) from flows where bytes <> ip_bytes + 18 or ip_bytes is null";
    assert_eq!(weir.numbers(odd), [0]);
    assert_addresses(&weir, true);
    assert_rollups(&weir);
    assert_lossless(&weir);
    assert!(weir.stop().success());
}
