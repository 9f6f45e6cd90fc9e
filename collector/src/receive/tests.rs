use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::socket::{
    Datagram, MAX_DATAGRAM, Memory, RING_SLOTS, Ring, Socket, SocketOptions, Steer, bind_all, bind_group,
    send_many,
};

fn options(receive_buffer_bytes: usize, steer: Steer) -> SocketOptions {
    SocketOptions { receive_buffer_bytes, steer, only_v6: false }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn one(listen: &str, buffer: usize) -> Socket {
    bind_group(address(listen), 1, &options(buffer, Steer::Exporter)).unwrap().remove(0)
}

/// All that is queued.
fn read_all(socket: &Socket, ring: &mut Ring) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while ring.receive(socket).unwrap() > 0 {
        all.extend(ring.datagrams().map(|datagram| datagram.bytes.to_vec()));
    }
    all
}

#[test]
fn a_pause_is_as_long_as_the_smallest_buffer_has_room_for() {
    let pause = |buffers: &[usize]| super::pause(buffers.iter().copied());
    assert_eq!(pause(&[212_992]), None);
    assert_eq!(pause(&[]), None);
    assert_eq!(pause(&[64 << 20, (4 << 20) + 4_096]).map(|pause| pause.as_millis()), Some(2));
    assert_eq!(pause(&[64 << 20, 32 << 20]), Some(Duration::from_millis(8)));
}

#[test]
fn datagrams_come_whole_in_order_with_sender_and_time() {
    let socket = one("127.0.0.1:0", 8 << 20);
    let sender = UdpSocket::bind("127.0.0.5:0").unwrap();
    let sizes: Vec<usize> = (0..70).map(|n| n * 13).chain([1_472, 9_000, 65_507, 0, 1]).collect();
    let before = super::now_us();
    for (n, size) in sizes.iter().enumerate() {
        sender.send_to(&vec![u8::try_from(n).unwrap(); *size], socket.local_addr()).unwrap();
    }
    let after = super::now_us();
    std::thread::sleep(Duration::from_millis(20));
    let mut ring = Ring::new().unwrap();
    let mut next = 0;
    let mut last = before - 1_000;
    loop {
        let count = ring.receive(&socket).unwrap();
        assert!(count <= RING_SLOTS);
        for datagram in ring.datagrams() {
            assert_eq!(datagram.bytes, vec![u8::try_from(next).unwrap(); sizes[next]]);
            assert_eq!(datagram.sender.to_string(), "127.0.0.5");
            assert_eq!(datagram.sender_port, sender.local_addr().unwrap().port());
            assert!(!datagram.truncated);
            // The kernel's time of arrival, not ours of reading.
            let received = datagram.received_us.unwrap();
            assert!(received >= last && received <= after + 1_000, "{last} {received} {after}");
            last = received;
            next += 1;
        }
        if count == 0 {
            break;
        }
    }
    assert_eq!(next, sizes.len());
    assert!(sizes.iter().all(|size| *size <= MAX_DATAGRAM));
}

#[test]
fn many_datagrams_go_out_by_one_call() {
    let socket = one("127.0.0.1:0", 8 << 20);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    sender.connect(socket.local_addr()).unwrap();
    let datagrams: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; usize::from(n) * 20]).collect();
    assert_eq!(send_many(&sender, &datagrams).unwrap(), RING_SLOTS);
    assert_eq!(send_many(&sender, &datagrams[RING_SLOTS..]).unwrap(), 40 - RING_SLOTS);
    assert_eq!(send_many(&sender, &datagrams[..0]).unwrap(), 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(read_all(&socket, &mut Ring::new().unwrap()), datagrams);
    // longer than a datagram can be: nothing is sent
    assert!(send_many(&sender, &[vec![0; 70_000]]).is_err());
}

#[test]
fn an_ipv4_peer_of_a_dual_stack_socket_is_an_ipv4_address() {
    let sockets = bind_all(&[address("[::]:0")], 1, 1 << 20, Steer::Exporter).unwrap();
    let port = sockets[0].local_addr().port();
    let v4 = UdpSocket::bind("127.0.0.9:0").unwrap();
    v4.send_to(b"4", ("127.0.0.1", port)).unwrap();
    let v6 = UdpSocket::bind("[::1]:0").unwrap();
    v6.send_to(b"6", ("::1", port)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let mut ring = Ring::new().unwrap();
    assert_eq!(ring.receive(&sockets[0]).unwrap(), 2);
    let senders: Vec<String> = ring.datagrams().map(|datagram| datagram.sender.to_string()).collect();
    assert_eq!(senders, ["127.0.0.9", "::1"]);
}

#[test]
fn both_wildcards_can_be_listed_with_one_port() {
    let port = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let list =
        [SocketAddr::new("0.0.0.0".parse().unwrap(), port), SocketAddr::new("::".parse().unwrap(), port)];
    assert_eq!(bind_all(&list, 2, 1 << 20, Steer::Exporter).unwrap().len(), 4);
}

#[test]
fn a_port_that_another_program_has_is_refused_even_with_reuseport() {
    let first = bind_group(address("127.0.0.1:0"), 2, &options(1 << 20, Steer::Exporter)).unwrap();
    let error = bind_group(first[0].local_addr(), 2, &options(1 << 20, Steer::Exporter)).unwrap_err();
    assert!(error.to_string().contains("another program receives there"), "{error}");
    drop(first);
}

#[test]
fn the_buffer_is_what_was_asked_for_or_what_is_said() {
    let socket = one("127.0.0.1:0", 1 << 20);
    assert_eq!(socket.buffer_granted(), 1 << 20);
    assert_eq!(socket.mem_info().unwrap().limit_bytes, 2 << 20);
    // Whether this one is granted depends on privilege and sysctl; what is reported is the kernel's limit anyway.
    let socket = one("127.0.0.1:0", 512 << 20);
    assert_eq!(socket.buffer_granted() * 2, socket.mem_info().unwrap().limit_bytes as usize);
}

/// Rule 23: what the kernel dropped is a count of its own, beside what the sequence numbers tell and the queues.
#[test]
fn rule_23_drops_are_sent_less_received_exactly_also_when_the_sender_falls_silent() {
    for size in [100, 1_400] {
        let socket = one("127.0.0.1:0", 64 << 10);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut ring = Ring::new().unwrap();
        let (mut sent, mut received) = (0_u64, 0);
        for burst in [3_000, 1, 2_000] {
            for _ in 0..burst {
                sender.send_to(&vec![0; size], socket.local_addr()).unwrap();
                sent += 1;
            }
            // Nothing more is sent. The drops are known before anything is read.
            std::thread::sleep(Duration::from_millis(50));
            let (drops, info) = socket.drops().unwrap();
            assert!(info.queued_bytes > 0);
            received += read_all(&socket, &mut ring).len() as u64;
            assert_eq!(drops, sent - received, "{size}");
            let (drops, info) = socket.drops().unwrap();
            assert_eq!((drops, info.queued_bytes), (sent - received, 0), "{size}");
        }
        assert!(received < sent / 2, "the burst should not fit: {received} of {sent}");
    }
}

#[test]
fn what_a_dead_process_had_taken_from_the_kernel_is_found() {
    let memory = Memory::create(c"ring", Ring::BYTES).unwrap();
    let ring = || Ring::open(Memory::map(memory.as_fd(), 0).unwrap()).unwrap();
    assert_eq!(ring().left_over(), None, "new memory");
    let socket = one("127.0.0.1:0", 1 << 20);
    let sender = UdpSocket::bind("127.0.0.7:0").unwrap();
    let mut first = ring();
    first.begin_batch(8, 2055);
    assert_eq!(ring().left_over(), Some((8, 2055, 0)), "before the call");
    let datagrams: Vec<Vec<u8>> = (1..=5_u8).map(|n| vec![n; usize::from(n) * 300]).collect();
    for datagram in &datagrams {
        sender.send_to(datagram, socket.local_addr()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(first.receive(&socket).unwrap(), 5);
    // The process that has the ring dies here; another one finds its memory.
    let mut second = ring();
    assert_eq!(second.left_over(), Some((8, 2055, 5)));
    let found: Vec<_> = second.datagrams().collect();
    let bytes: Vec<_> = found.iter().map(|datagram| datagram.bytes.to_vec()).collect();
    assert_eq!(bytes, datagrams);
    let is_whole = |datagram: &&Datagram<'_>| {
        datagram.sender.to_string() == "127.0.0.7" && datagram.received_us.is_some() && !datagram.truncated
    };
    assert!(found.iter().all(|datagram| is_whole(&datagram)), "{found:?}");
    first.end_batch();
    assert_eq!(ring().left_over(), None);
}

/// Who got the datagrams of each source: source → shards.
fn spread(listen: &str, sources: &[String], steer: Steer) -> HashMap<String, Vec<usize>> {
    let sockets = bind_group(address(listen), 4, &options(4 << 20, steer)).unwrap();
    let port = sockets[0].local_addr().port();
    assert!(sockets.iter().all(|socket| socket.local_addr().port() == port));
    for source in sources {
        let to = if source.contains(':') { ("::1", port) } else { ("127.0.0.1", port) };
        for _ in 0..16 {
            // A source port of its own each time.
            UdpSocket::bind((source.as_str(), 0)).unwrap().send_to(b"x", to).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    let mut ring = Ring::new().unwrap();
    let mut found: HashMap<String, Vec<usize>> = HashMap::new();
    for (shard, socket) in sockets.iter().enumerate() {
        while ring.receive(socket).unwrap() > 0 {
            for datagram in ring.datagrams() {
                found.entry(datagram.sender.to_string()).or_default().push(shard);
            }
        }
    }
    assert_eq!(found.values().map(Vec::len).sum::<usize>(), sources.len() * 16);
    found
}

#[test]
fn an_exporter_always_meets_one_shard_whatever_its_ports() {
    let mut sources: Vec<String> = (1..=64).map(|n| format!("127.0.3.{n}")).collect();
    sources.push("::1".into());
    let found = spread("[::]:0", &sources, Steer::Exporter);
    let mut load = [0; 4];
    for (source, shards) in &found {
        assert!(shards.iter().all(|shard| *shard == shards[0]), "{source} met {shards:?}");
        load[shards[0]] += 1;
    }
    assert!(load.iter().all(|exporters| *exporters >= 6), "65 exporters are spread badly: {load:?}");
    // The program is the same on an IPv4 socket.
    let sources: Vec<String> = (1..=16).map(|n| format!("127.0.4.{n}")).collect();
    for (source, shards) in spread("0.0.0.0:0", &sources, Steer::Exporter) {
        assert!(shards.iter().all(|shard| *shard == shards[0]), "{source} met {shards:?}");
    }
}

#[test]
fn steering_by_flow_spreads_one_exporter() {
    let found = spread("127.0.0.1:0", &["127.0.5.1".into(), "127.0.5.2".into()], Steer::Flow);
    for shards in found.values() {
        assert!((0..4).filter(|shard| shards.contains(shard)).count() >= 2, "{shards:?}");
    }
}

#[test]
fn what_is_no_bound_udp_socket_is_refused() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(Socket::from_fd(tcp.into()).is_err());
    let unbound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    assert!(Socket::from_fd(unbound.into()).is_err());
    let (unix, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(Socket::from_fd(unix.into()).is_err());
    assert!(Socket::from_inherited(1).is_err());
    assert!(Socket::from_inherited(1_000_000).is_err());
}

const CHILD: &str = "WEIR_TEST_CHILD_FD";

/// Not a test by itself: what [`a_socket_outlives_the_process_that_reads_it`] runs as another process.
#[test]
fn child_that_reads() {
    let Ok(fd) = std::env::var(CHILD) else { return };
    let socket = Socket::from_inherited(fd.parse().unwrap()).unwrap();
    let mut ring = Ring::new().unwrap();
    let count = ring.receive(&socket).unwrap();
    eprintln!("received {count} dropped {}", socket.drops().unwrap().0);
    // Until it is killed.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_socket_outlives_the_process_that_reads_it() {
    let socket = one("127.0.0.1:0", 1 << 20);
    socket.set_inheritable(true).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |count: usize| {
        for _ in 0..count {
            sender.send_to(&[0; 200], socket.local_addr()).unwrap();
        }
    };
    // Reads one ring full, and is killed in the middle of its life.
    let child = || {
        let started = Instant::now();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "receive::tests::child_that_reads", "--nocapture"])
            .env(CHILD, socket.as_raw_fd().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| line.contains("received")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(started.elapsed() < Duration::from_secs(30));
        let words: Vec<&str> = line.split(' ').collect();
        let at = words.iter().position(|word| *word == "received").unwrap();
        (words[at + 1].parse::<usize>().unwrap(), words[at + 3].parse::<u64>().unwrap())
    };
    send(100);
    assert_eq!(child(), (RING_SLOTS, 0));
    send(50);
    assert_eq!(child(), (RING_SLOTS, 0));
    let rest = read_all(&socket, &mut Ring::new().unwrap()).len();
    assert_eq!(rest, 150 - 2 * RING_SLOTS);
}
