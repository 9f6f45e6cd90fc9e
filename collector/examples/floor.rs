//! What no collector can go below on this machine: datagrams are taken from the kernel as a shard takes them
//! (`recvmmsg` into the same ring, kernel timestamps, the longest pause), and nothing is done with them, or they are
//! appended to a file as they are. Prints the CPU time of the receiving thread a datagram and a flow row.
//!
//! `cargo run --release -p weir-collector --example floor -- PROTOCOL DATAGRAMS_PER_SECOND SECONDS [append]` (PROTOCOL:
//! netflow5, netflow9, ipfix or sflow5)
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::{IoSlice, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use weir_collector::generate::{Generator, GeneratorConfig, Protocol};
use weir_collector::receive::socket::{RING_SLOTS, Ring, Socket, SocketOptions, Steer, bind_group, wait};

const BUFFER_BYTES: usize = 16 << 20;
const PAUSE: Duration = Duration::from_millis(8);

fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Sends at this rate; answers how many rows were in how many datagrams.
fn send(protocol: Protocol, port: u16, rate: u64, time: Duration) -> (u64, u64) {
    let config = GeneratorConfig { protocols: vec![protocol], flows: u64::MAX, ..GeneratorConfig::default() };
    let (mut generator, mut buffer) = (Generator::new(&config), Vec::new());
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (start, mut sent, mut rows) = (Instant::now(), 0, 0);
    while start.elapsed() < time {
        if sent >= (start.elapsed().as_secs_f64() * rate as f64) as u64 {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        for _ in 0..16 {
            let info = generator.next(i64::try_from(sent).unwrap(), &mut buffer).unwrap();
            sender.send_to(&buffer, ("127.0.0.1", port)).unwrap();
            sent += 1;
            rows += u64::from(info.rows);
        }
    }
    (sent, rows)
}

/// Answers how many datagrams came, and the CPU time that they took, ns.
fn receive(socket: &Socket, mut file: Option<File>) -> (u64, u64) {
    let (mut ring, mut ready) = (Ring::new().unwrap(), Vec::new());
    let (mut received, before) = (0, cpu_ns());
    loop {
        wait(std::slice::from_ref(socket), Duration::from_secs(2), &mut ready).unwrap();
        if ready.iter().all(|ready| !ready) {
            return (received, cpu_ns() - before);
        }
        loop {
            let count = ring.receive(socket).unwrap();
            received += count as u64;
            if let Some(file) = &mut file {
                let datagrams: Vec<IoSlice<'_>> =
                    ring.datagrams().map(|datagram| IoSlice::new(datagram.bytes)).collect();
                let bytes: usize = datagrams.iter().map(|datagram| datagram.len()).sum();
                assert_eq!(file.write_vectored(&datagrams).unwrap(), bytes);
            }
            if count < RING_SLOTS {
                break;
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, rate, seconds, ..] = arguments.as_slice() else { panic!("PROTOCOL RATE SECONDS [append]") };
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name).unwrap();
    let (rate, seconds) = (rate.parse().unwrap(), seconds.parse().unwrap());
    let options =
        SocketOptions { receive_buffer_bytes: BUFFER_BYTES, steer: Steer::Exporter, only_v6: false };
    let socket = bind_group("127.0.0.1:0".parse().unwrap(), 1, &options).unwrap().remove(0);
    let port = socket.local_addr().port();
    let directory = tempfile::tempdir_in(".").unwrap();
    let append = arguments.get(3).is_some();
    let file = append.then(|| File::create(directory.path().join("datagrams")).unwrap());
    let receiver = std::thread::spawn(move || receive(&socket, file));
    let (sent, rows) = send(protocol, port, rate, Duration::from_secs(seconds));
    let (received, ns) = receiver.join().unwrap();
    println!(
        "{name}: {sent} datagrams sent, {received} received, {}: {} ns of CPU a datagram, {} a flow",
        if append { "appended to a file" } else { "nothing done with them" },
        ns / received.max(1),
        ns * sent / received.max(1) / rows.max(1),
    );
}
