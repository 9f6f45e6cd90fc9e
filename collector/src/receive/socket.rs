//! The UDP sockets: the one module of weir with `unsafe` code.
//!
//! A listen address is served by a *group* of sockets, one a shard, all bound to it with `SO_REUSEPORT`
//! ([`bind_group`]). A classic BPF program steers by source address, so that one exporter always meets one shard. The
//! group has its size for life: to add or close a member would move exporters from shard to shard.
//!
//! The sockets may be bound by another process (the supervisor) and inherited: [`Socket::from_fd`] takes any UDP socket
//! that is bound already, [`Socket::set_inheritable`] lets it live through `exec`. What the kernel has queued, and what
//! it has counted as dropped, belongs to the socket, and so outlives the process that reads it.
//!
//! Drops are read with `SO_MEMINFO`, whenever they are asked for. It is the counter that `SO_RXQ_OVFL` attaches to
//! datagrams; but that one tells of a drop only with the next datagram to be queued, never if the sender falls silent.
//!
//! Linux only. Every `unsafe` block is one system call on buffers that this module owns, with what makes it sound
//! beside it.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::{self, size_of};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use libc::{c_int, c_uint, c_void, socklen_t};
use parking_lot::Mutex;
use weir_schemas::Address;

/// The largest UDP payload there is; no datagram is ever cut.
pub const MAX_DATAGRAM: usize = 65_535;

/// How many datagrams one system call takes at most.
pub const RING_SLOTS: usize = 32;

/// Distance of the slots. Not a multiple of 4,096: the beginnings of the datagrams then share no cache sets.
const SLOT_STRIDE: usize = MAX_DATAGRAM + 1 + 1_536;

/// A 16-byte timestamp takes 32 bytes as a control message; room for another kind that may come with it.
const CONTROL_LEN: usize = 64;

/// `sockaddr_in6`; `sockaddr_in` is shorter.
const NAME_LEN: usize = 28;

/// How the kernel chooses the shard that gets a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Steer {
    /// By source address: all that an exporter sends meets one shard, whatever its ports.
    #[default]
    Exporter,
    /// By source address and port (the kernel's own hash): one very busy exporter that sends from many ports is
    /// spread over all shards.
    Flow,
}

/// What [`bind_group`] asks the kernel for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_RCVBUF`; what the kernel grants is [`Socket::buffer_granted`].
    pub receive_buffer_bytes: usize,
    pub steer: Steer,
    /// On an IPv6 address: refuse IPv4 (needed where the same port is bound on `0.0.0.0` too).
    pub only_v6: bool,
}

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} for UDP {address}: {source}{hint}")]
pub struct SocketError {
    what: &'static str,
    address: String,
    hint: &'static str,
    pub source: io::Error,
}

impl SocketError {
    fn new(what: &'static str, address: impl ToString, source: io::Error) -> SocketError {
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => {
                " (another program receives there: stop it, or listen on another port)"
            }
            io::ErrorKind::AddrNotAvailable => " (no interface of this machine has that address)",
            io::ErrorKind::PermissionDenied => " (ports below 1024 need CAP_NET_BIND_SERVICE)",
            _ => "",
        };
        SocketError { what, address: address.to_string(), hint, source }
    }
}

/// What the kernel says about a socket's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemInfo {
    /// Bytes that datagrams occupy in the receive buffer, with the kernel's own overhead.
    pub queued_bytes: u32,
    /// Limit of `queued_bytes`.
    pub limit_bytes: u32,
    /// Datagrams dropped since the socket was made (modulo 2³²).
    pub drops: u32,
}

/// A bound UDP socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    local: SocketAddr,
    granted: usize,
    /// The kernel's counter as last read, and the sum of all of its steps.
    drops: Mutex<(u32, u64)>,
}

/// Binds one socket a shard to `address`. Port 0 takes a free port, the same for all of them.
///
/// The first is bound without `SO_REUSEPORT`: it fails where any other program has the port, which another weir of the
/// same user would else share with us, each getting half of the exporters.
pub fn bind_group(
    address: SocketAddr,
    shards: usize,
    options: &SocketOptions,
) -> Result<Vec<Socket>, SocketError> {
    let fail = |what| move |source| SocketError::new(what, address, source);
    let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let open = || -> Result<socket2::Socket, SocketError> {
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))
            .map_err(fail("open a socket"))?;
        if address.is_ipv6() {
            socket.set_only_v6(options.only_v6).map_err(fail("set IPV6_V6ONLY"))?;
        }
        Ok(socket)
    };
    let first = open()?;
    first.bind(&address.into()).map_err(fail("bind a socket"))?;
    let bound = first.local_addr().map_err(fail("read the address"))?;
    let mut sockets = vec![first];
    if shards > 1 {
        sockets[0].set_reuse_port(true).map_err(fail("set SO_REUSEPORT"))?;
        for _ in 1..shards {
            let next = open()?;
            next.set_reuse_port(true).map_err(fail("set SO_REUSEPORT"))?;
            next.bind(&bound).map_err(fail("bind a further socket"))?;
            sockets.push(next);
        }
        if options.steer == Steer::Exporter {
            attach_steering(sockets[0].as_fd(), shards).map_err(fail("attach the steering program"))?;
        }
    }
    let sockets = sockets.into_iter().map(|socket| {
        let fd = OwnedFd::from(socket);
        ask_for_buffer(fd.as_fd(), options.receive_buffer_bytes).map_err(fail("set SO_RCVBUF"))?;
        Socket::from_fd(fd)
    });
    sockets.collect()
}

impl Socket {
    /// Takes a socket that is bound already (by [`bind_group`], by a supervisor, by systemd).
    pub fn from_fd(fd: OwnedFd) -> Result<Socket, SocketError> {
        let name = format!("descriptor {}", fd.as_raw_fd());
        let socket = socket2::SockRef::from(&fd);
        let fail = |what| {
            let name = name.clone();
            move |source| SocketError::new(what, name, source)
        };
        let refuse = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        if socket.r#type().map_err(fail("read the type"))? != socket2::Type::DGRAM {
            return Err(fail("take over a socket")(refuse("it is no datagram socket")));
        }
        let local = socket.local_addr().map_err(fail("read the address"))?;
        let local =
            local.as_socket().ok_or_else(|| fail("take over a socket")(refuse("it is no IP socket")))?;
        if local.port() == 0 {
            return Err(fail("take over a socket")(refuse("it is not bound")));
        }
        // The kernel doubles what it is asked for, and reports the double.
        let granted = socket.recv_buffer_size().map_err(fail("read SO_RCVBUF"))? / 2;
        set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1_i32)
            .map_err(fail("set SO_TIMESTAMPNS"))?;
        Ok(Socket { fd, local, granted, drops: Mutex::new((0, 0)) })
    }

    /// [`take_inherited`], for a socket.
    pub fn from_inherited(number: RawFd) -> Result<Socket, SocketError> {
        let refused = |source| SocketError::new("take over", format!("descriptor {number}"), source);
        Socket::from_fd(take_inherited(number).map_err(refused)?)
    }

    /// Another descriptor of the same socket: to hold it while someone else reads.
    pub fn try_clone(&self) -> Result<Socket, SocketError> {
        let fd = self.fd.try_clone();
        Socket::from_fd(fd.map_err(|source| SocketError::new("duplicate", self.local, source))?)
    }

    /// Whether a program that this process executes gets the socket too (it does not by default).
    pub fn set_inheritable(&self, inheritable: bool) -> Result<(), SocketError> {
        socket2::SockRef::from(&self.fd)
            .set_cloexec(!inheritable)
            .map_err(|source| SocketError::new("set the close-on-exec flag", self.local, source))
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The receive buffer that the kernel granted, in the unit that `SO_RCVBUF` is asked in.
    pub fn buffer_granted(&self) -> usize {
        self.granted
    }

    pub fn mem_info(&self) -> io::Result<MemInfo> {
        let mut values = [0_u32; 16];
        let mut len = socklen_t::try_from(size_of_val(&values)).unwrap_or(0);
        // SAFETY: the kernel writes at most `len` bytes, the size of `values`, and any bytes are valid u32s.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast::<c_void>(),
                &mut len,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let value = |index: c_int| values[usize::try_from(index).unwrap_or(0)];
        Ok(MemInfo {
            queued_bytes: value(libc::SK_MEMINFO_RMEM_ALLOC),
            limit_bytes: value(libc::SK_MEMINFO_RCVBUF),
            drops: value(libc::SK_MEMINFO_DROPS),
        })
    }

    /// Datagrams that the kernel dropped at this socket since it was made, with the memory's state. The kernel's
    /// counter has 32 bits: it is followed past its end as long as this is called now and then.
    pub fn drops(&self) -> io::Result<(u64, MemInfo)> {
        let mut last = self.drops.lock();
        let info = self.mem_info()?;
        last.1 += u64::from(info.drops.wrapping_sub(last.0));
        last.0 = info.drops;
        Ok((last.1, info))
    }
}

/// Takes over the descriptor of that number, which the process was started with: a socket, a listener. Children of this
/// process will not have it. To be called once for a number, before the process opens anything that could have it.
///
/// # Errors
/// Where the number is no open descriptor, or one of the three standard streams.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_GETFD only reads a flag; a number that is not open gives EBADF.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller passes a number that was handed to this process for this purpose, once: nothing
    // else in the process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    socket2::SockRef::from(&fd).set_cloexec(true)?;
    Ok(fd)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> OwnedFd {
        socket.fd
    }
}

/// Sends datagrams from a connected socket by one system call, at most [`RING_SLOTS`] of them; returns how many of them,
/// from the first on, the kernel took. For load generators: weir itself sends nothing.
///
/// # Errors
/// Where the kernel did not take the first.
pub fn send_many(socket: &impl AsFd, datagrams: &[impl AsRef<[u8]>]) -> io::Result<usize> {
    // SAFETY: both are plain C structures for which all zeroes is a value (null pointers, lengths of 0).
    let (mut vectors, mut headers): ([libc::iovec; RING_SLOTS], [libc::mmsghdr; RING_SLOTS]) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut count = 0;
    for ((header, vector), datagram) in headers.iter_mut().zip(&mut vectors).zip(datagrams) {
        let bytes = datagram.as_ref();
        vector.iov_base = bytes.as_ptr().cast_mut().cast::<c_void>();
        vector.iov_len = bytes.len();
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` headers each point at a vector of one element, which points at a slice that `datagrams`
    // borrows; the kernel only reads it, and keeps no pointer. There is neither name nor control buffer.
    let sent = unsafe { libc::sendmmsg(socket.as_fd().as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn set_option<T>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let len = socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: `value` is a live reference to `len` bytes, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast::<c_void>(), len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `SO_RCVBUFFORCE` goes beyond `net.core.rmem_max`, but needs CAP_NET_ADMIN; `SO_RCVBUF` is cut to it in silence.
fn ask_for_buffer(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX / 2).min(c_int::MAX / 2);
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes))
}

/// The program: hash of the source address, modulo the number of sockets. It runs on every datagram of the group, with
/// IPv4 and (also on the same, dual-stack, socket) IPv6.
fn steering_program(shards: u32) -> Vec<libc::sock_filter> {
    const LD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const ALU: u32 = libc::BPF_ALU;
    let op =
        |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: 0, k };
    // The program sees the datagram from its UDP payload on; what is before is at offsets from SKF_NET_OFF.
    let net = |offset: i32| (libc::SKF_NET_OFF + offset).cast_unsigned();
    let constant = libc::BPF_K;
    let mut program = vec![
        op(LD_BYTE, net(0)),
        op(ALU | libc::BPF_RSH | constant, 4),
        // IPv4: on to its address; else over it.
        libc::sock_filter { jt: 0, jf: 2, ..op(libc::BPF_JMP | libc::BPF_JEQ | constant, 4) },
        op(LD_WORD, net(12)),
        op(libc::BPF_JMP | libc::BPF_JA, 10),
        op(LD_WORD, net(8)),
    ];
    for offset in [12, 16, 20] {
        // A = (A * odd) ^ word, by way of X; ten instructions with the load above.
        program.push(op(ALU | libc::BPF_MUL | constant, 0x9e37_79b1));
        program.push(op(libc::BPF_MISC | libc::BPF_TAX, 0));
        program.push(op(LD_WORD, net(offset)));
        program.push(op(ALU | libc::BPF_XOR | libc::BPF_X, 0));
    }
    let v6_tail = program.len() - 6;
    program[4].k = u32::try_from(v6_tail + 1).unwrap_or(0);
    // A finaliser: every bit of the address reaches the low bits that the modulus takes.
    for (shift, factor) in [(16, Some(0x7feb_352d)), (15, Some(0x846c_a68b)), (16, None)] {
        program.push(op(libc::BPF_MISC | libc::BPF_TAX, 0));
        program.push(op(ALU | libc::BPF_RSH | constant, shift));
        program.push(op(ALU | libc::BPF_XOR | libc::BPF_X, 0));
        if let Some(factor) = factor {
            program.push(op(ALU | libc::BPF_MUL | constant, factor));
        }
    }
    program.push(op(ALU | libc::BPF_MOD | constant, shards.max(1)));
    program.push(op(libc::BPF_RET | libc::BPF_A, 0));
    program
}

fn attach_steering(fd: BorrowedFd<'_>, shards: usize) -> io::Result<()> {
    let mut program = steering_program(u32::try_from(shards).unwrap_or(1));
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        // Points into `program`, which outlives the call below: shadowing does not drop it.
        filter: program.as_mut_ptr(),
    };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Waits until one of `sockets` has something, up to `timeout`; sets `ready` for each that has.
pub fn wait(sockets: &[impl AsRawFd], timeout: Duration, ready: &mut Vec<bool>) -> io::Result<()> {
    let entry =
        |socket: &_| libc::pollfd { fd: AsRawFd::as_raw_fd(socket), events: libc::POLLIN, revents: 0 };
    let mut entries: Vec<libc::pollfd> = sockets.iter().map(entry).collect();
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let count = libc::nfds_t::try_from(entries.len()).unwrap_or(0);
    // SAFETY: `entries` is an exclusively borrowed array of `count` pollfds, `timeout` lives through the call, and no
    // signal mask is given.
    let result = unsafe { libc::ppoll(entries.as_mut_ptr(), count, &timeout, std::ptr::null()) };
    ready.clear();
    if result < 0 {
        let error = io::Error::last_os_error();
        ready.resize(sockets.len(), false);
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    ready.extend(entries.iter().map(|entry| entry.revents != 0));
    Ok(())
}

/// A datagram in the ring.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    pub bytes: &'a [u8],
    pub sender: Address,
    pub sender_port: u16,
    /// When the kernel received it, µs since 1970 UTC; None where it did not say.
    pub received_us: Option<i64>,
    /// It was longer than what is here (which no UDP datagram can be; jumbograms aside).
    pub truncated: bool,
}

/// Where the parts of a [`Ring`] lie in its memory.
const AT_BATCH: usize = 0;
const AT_PORT: usize = 8;
const AT_HEADERS: usize = 64;
const AT_VECTORS: usize = AT_HEADERS + RING_SLOTS * size_of::<libc::mmsghdr>();
const AT_NAMES: usize = AT_VECTORS + RING_SLOTS * size_of::<libc::iovec>();
const AT_CONTROLS: usize = (AT_NAMES + RING_SLOTS * NAME_LEN).next_multiple_of(16);
const AT_PAYLOADS: usize = AT_CONTROLS + RING_SLOTS * CONTROL_LEN;
/// In the place of a length: the kernel has not filled the slot.
const UNFILLED: c_uint = c_uint::MAX;

/// The buffers that [`Ring::receive`] fills, kept from call to call. 2 MiB are reserved; the memory that counts is what
/// the datagrams have touched, mostly one or two pages a slot.
///
/// It may lie in memory that outlives the process. The kernel says slot by slot what it has filled, so that whoever finds
/// the memory after a crash, in the middle of a call even, knows what was taken from the kernel: [`Ring::left_over`].
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    filled: usize,
}

impl Ring {
    /// Bytes that a ring takes at the beginning of its memory, a multiple of 4,096.
    pub const BYTES: usize = (AT_PAYLOADS + SLOT_STRIDE * RING_SLOTS).next_multiple_of(4_096);

    /// In memory of its own.
    pub fn new() -> io::Result<Ring> {
        let memory = Memory::create(c"weir-ring", Ring::BYTES)?;
        let mut ring = Ring::open(Memory::map(memory.as_fd(), 0)?)?;
        ring.end_batch();
        Ok(ring)
    }

    /// In this memory, as it was left.
    pub fn open(memory: Memory) -> io::Result<Ring> {
        if memory.bytes().len() < Ring::BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Ring { memory, filled: 0 })
    }

    /// What is received next is a batch that whoever finds it knows by this number (not 0) and port.
    pub(crate) fn begin_batch(&mut self, number: u64, port: u16) {
        for slot in 0..RING_SLOTS {
            let at = AT_HEADERS + slot * size_of::<libc::mmsghdr>() + mem::offset_of!(libc::mmsghdr, msg_len);
            self.memory.bytes_mut()[at..at + 4].copy_from_slice(&UNFILLED.to_ne_bytes());
        }
        self.memory.bytes_mut()[AT_PORT..AT_PORT + 2].copy_from_slice(&port.to_ne_bytes());
        self.store_batch(number);
    }

    /// The batch is in other hands.
    pub(crate) fn end_batch(&mut self) {
        self.store_batch(0);
    }

    fn store_batch(&mut self, number: u64) {
        // in this order, whenever the process is killed
        compiler_fence(Ordering::SeqCst);
        self.memory.bytes_mut()[AT_BATCH..AT_BATCH + 8].copy_from_slice(&number.to_ne_bytes());
        compiler_fence(Ordering::SeqCst);
    }

    /// The batch that a process was receiving, or had in hand, when it died: its number, its port, and how many
    /// datagrams there are for [`Ring::datagrams`].
    pub(crate) fn left_over(&mut self) -> Option<(u64, u16, usize)> {
        let bytes = self.memory.bytes();
        let number = u64::from_ne_bytes(*bytes[AT_BATCH..].first_chunk()?);
        let port = u16::from_ne_bytes(*bytes[AT_PORT..].first_chunk()?);
        if number == 0 {
            return None;
        }
        self.filled = (0..RING_SLOTS).take_while(|slot| self.header(*slot).msg_len != UNFILLED).count();
        Some((number, port, self.filled))
    }

    fn header(&self, slot: usize) -> libc::mmsghdr {
        let at = AT_HEADERS + slot * size_of::<libc::mmsghdr>();
        let bytes = &self.memory.bytes()[at..at + size_of::<libc::mmsghdr>()];
        // SAFETY: the slice has the size of the structure, for which any bytes are a value: its pointers are only
        // compared with nothing and never followed.
        unsafe { bytes.as_ptr().cast::<libc::mmsghdr>().read_unaligned() }
    }

    /// Takes what the socket has, up to [`RING_SLOTS`] datagrams, without waiting; returns how many.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        self.filled = 0;
        let base = self.memory.bytes_mut().as_mut_ptr();
        // SAFETY: all offsets are within the memory, which has at least `Ring::BYTES` bytes (`open`), begins at a page,
        // and is exclusively borrowed; the structures are at multiples of their alignment, 8.
        let (headers, vectors) = unsafe {
            (base.add(AT_HEADERS).cast::<libc::mmsghdr>(), base.add(AT_VECTORS).cast::<libc::iovec>())
        };
        for slot in 0..RING_SLOTS {
            // SAFETY: as above, for the parts of each slot: they do not overlap.
            unsafe {
                let vector = vectors.add(slot);
                vector.write(libc::iovec {
                    iov_base: base.add(AT_PAYLOADS + slot * SLOT_STRIDE).cast::<c_void>(),
                    iov_len: MAX_DATAGRAM,
                });
                let mut header: libc::mmsghdr = mem::zeroed();
                header.msg_len = UNFILLED;
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_name = base.add(AT_NAMES + slot * NAME_LEN).cast::<c_void>();
                header.msg_hdr.msg_namelen = socklen_t::try_from(NAME_LEN).unwrap_or(0);
                header.msg_hdr.msg_control = base.add(AT_CONTROLS + slot * CONTROL_LEN).cast::<c_void>();
                header.msg_hdr.msg_controllen = CONTROL_LEN as _;
                headers.add(slot).write(header);
            }
        }
        let count = c_uint::try_from(RING_SLOTS).unwrap_or(0);
        // SAFETY: there are `count` headers. Each points at a vector of one element, a name and a control buffer, all of
        // the lengths given, disjoint from each other, in memory that `self` owns and that is exclusively borrowed until
        // the call returns; the kernel keeps no pointer. No timeout is given.
        let received = unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                headers,
                count,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        self.filled = received.min(RING_SLOTS);
        Ok(self.filled)
    }

    /// The datagrams of the last [`Ring::receive`], in the order in which they arrived.
    pub fn datagrams(&self) -> impl Iterator<Item = Datagram<'_>> {
        let bytes = self.memory.bytes();
        (0..self.filled).map(move |slot| {
            let header = self.header(slot);
            let part = |at: usize, len: usize| &bytes[at..at + len];
            let len = usize::try_from(header.msg_len).unwrap_or(0).min(MAX_DATAGRAM);
            // 64 bits wide with glibc, 32 with musl
            #[allow(clippy::useless_conversion)]
            let control_len = usize::try_from(header.msg_hdr.msg_controllen).unwrap_or(0).min(CONTROL_LEN);
            let (sender, sender_port) = parse_name(part(AT_NAMES + slot * NAME_LEN, NAME_LEN));
            Datagram {
                bytes: part(AT_PAYLOADS + slot * SLOT_STRIDE, len),
                sender,
                sender_port,
                received_us: parse_timestamp(part(AT_CONTROLS + slot * CONTROL_LEN, control_len)),
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            }
        })
    }
}

/// Memory without a name in any file system, that lives as long as somebody holds a descriptor of it: what one process
/// stored in it, the next one finds.
pub struct Memory {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is plain memory, and `Memory` owns this mapping of it.
unsafe impl Send for Memory {}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Memory {
    /// Makes such memory, all zero; it takes room only where it is written. `name` is seen in `/proc/PID/maps`.
    pub fn create(name: &std::ffi::CStr, bytes: usize) -> io::Result<OwnedFd> {
        // SAFETY: `name` is a string that ends in a zero, which the kernel copies.
        let number = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for this process, nothing else owns it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(number) });
        file.set_len(bytes as u64)?;
        Ok(file.into())
    }

    /// The memory that a descriptor stands for, from `from` (a multiple of 4,096) on. One process at a time may have it:
    /// the supervisor, which only holds the descriptor, starts a collector when the last one has ended.
    pub fn map(fd: BorrowedFd<'_>, from: usize) -> io::Result<Memory> {
        let file = File::from(fd.try_clone_to_owned()?);
        let all = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let bytes = all.checked_sub(from).filter(|bytes| *bytes > 0).ok_or(io::ErrorKind::UnexpectedEof)?;
        let offset = libc::off_t::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Memory { address, bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` bytes are mapped there while `self` lives; any value is a valid byte. Who else has the
        // descriptor does not write: see `map`.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the address and length of the mapping that `map` made, used no more after this.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

/// `sockaddr_in` and `sockaddr_in6`: family in the machine's order, port in the network's.
fn parse_name(name: &[u8]) -> (Address, u16) {
    let family = i32::from(u16::from_ne_bytes([name[0], name[1]]));
    let port = u16::from_be_bytes([name[2], name[3]]);
    let address = if family == libc::AF_INET {
        Address::v4([name[4], name[5], name[6], name[7]])
    } else {
        // An IPv4 peer of a dual-stack socket comes as ::ffff:a.b.c.d, which is our form of IPv4.
        let mut octets = [0; 16];
        octets.copy_from_slice(&name[8..24]);
        Address::v6(octets)
    };
    (address, port)
}

/// The time in the control messages, each a `cmsghdr` (length, level, type) and its data, aligned as `usize`.
fn parse_timestamp(mut control: &[u8]) -> Option<i64> {
    const WORD: usize = size_of::<usize>();
    const HEADER: usize = WORD + 8;
    while control.len() >= HEADER {
        let int = |at: usize| {
            control.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(c_int::from_ne_bytes)
        };
        let word = |at: usize| {
            control.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(i64::from_ne_bytes)
        };
        // The length is a `size_t` (musl: 32 bits and padding, the same on little-endian machines).
        let len = usize::from_ne_bytes(control.get(..WORD)?.try_into().ok()?);
        if len < HEADER {
            return None;
        }
        if int(WORD)? == libc::SOL_SOCKET && int(WORD + 4)? == libc::SCM_TIMESTAMPNS && len >= HEADER + 16 {
            let (seconds, nanoseconds) = (word(HEADER)?, word(HEADER + 8)?);
            return seconds.checked_mul(1_000_000)?.checked_add(nanoseconds / 1_000);
        }
        control = control.get(len.next_multiple_of(WORD)..)?;
    }
    None
}

/// True where the machine has no IPv6: a wildcard listener then falls back to `0.0.0.0`.
pub(crate) fn is_without_ipv6(error: &SocketError) -> bool {
    matches!(error.source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Binds groups for all of `addresses` (see [`bind_group`]). `[::]` takes IPv4 too, unless the list has `0.0.0.0` with
/// the same port; on a machine without IPv6 it becomes `0.0.0.0`.
pub fn bind_all(
    addresses: &[SocketAddr],
    shards: usize,
    receive_buffer_bytes: usize,
    steer: Steer,
) -> Result<Vec<Socket>, SocketError> {
    let mut sockets = Vec::with_capacity(addresses.len() * shards);
    for address in addresses {
        let any_v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
        let is_any_v6 = address.is_ipv6() && address.ip().is_unspecified();
        let only_v6 = !is_any_v6 || (address.port() != 0 && addresses.contains(&any_v4));
        let options = SocketOptions { receive_buffer_bytes, steer, only_v6 };
        let group = match bind_group(*address, shards, &options) {
            Err(error) if is_any_v6 && !only_v6 && is_without_ipv6(&error) => {
                bind_group(any_v4, shards, &options)?
            }
            result => result?,
        };
        sockets.extend(group);
    }
    Ok(sockets)
}
