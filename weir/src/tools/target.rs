//! Where datagrams are sent to, and the sockets they are sent from.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use weir_collector::receive::socket::send_many;

use super::ToolError;

/// The kernel gives what `net.core.wmem_max` allows.
const SEND_BUFFER_BYTES: usize = 4 << 20;
/// Beyond this many exporters, sockets are shared.
const MAX_SOCKETS: u64 = 4_096;
/// How often a datagram is offered to a kernel that does not take it.
const MAX_TRIES: u32 = 1_000;

/// An address with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) ip: IpAddr,
    /// None: the usual port of each protocol.
    pub(crate) port: Option<u16>,
}

impl Target {
    pub(super) fn is_ipv4_loopback(&self) -> bool {
        matches!(self.ip, IpAddr::V4(ip) if ip.is_loopback())
    }

    pub(super) fn addr(&self, usual_port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(usual_port))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

/// For clap: `ADDR`, `ADDR:PORT`, `[v6]:PORT` or a name for the address.
pub(super) fn parse_target(text: &str) -> Result<Target, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Target { ip, port: None });
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(Target { ip: addr.ip(), port: Some(addr.port()) });
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => {
            let port = port.parse::<u16>().map_err(|_| format!("`{port}` is no port (0 to 65535)"))?;
            (name, Some(port))
        }
        None => (text, None),
    };
    let mut addresses = (name, port.unwrap_or(0))
        .to_socket_addrs()
        .map_err(|error| format!("cannot resolve `{name}`: {error}"))?;
    let first = addresses.next().ok_or_else(|| format!("`{name}` has no address"))?;
    Ok(Target { ip: first.ip(), port })
}

/// One socket for each (address, source, destination), opened when first used.
#[derive(Debug, Default)]
pub(super) struct Senders {
    sockets: HashMap<(Option<Ipv4Addr>, u64, SocketAddr), UdpSocket>,
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    /// Datagrams that the kernel did not take.
    pub(super) failed: u64,
    /// Times that the target's host said that nobody listens.
    pub(super) refused: u64,
}

impl Senders {
    /// Sends from the socket of `source` (any number); `bind` is its address, where it is to have one of its own.
    pub(super) fn send(
        &mut self,
        source: u64,
        bind: Option<Ipv4Addr>,
        to: SocketAddr,
        payload: &[u8],
    ) -> Result<(), ToolError> {
        self.send_all(source, bind, to, &[payload])
    }

    /// Sends several datagrams from that socket, in their order, by as few system calls as possible.
    pub(super) fn send_all(
        &mut self,
        source: u64,
        bind: Option<Ipv4Addr>,
        to: SocketAddr,
        mut payloads: &[impl AsRef<[u8]>],
    ) -> Result<(), ToolError> {
        let key = (bind, source % MAX_SOCKETS, to);
        let socket = match self.sockets.entry(key) {
            std::collections::hash_map::Entry::Occupied(socket) => socket.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(open(bind, to).map_err(|error| {
                    let from = bind.map(|ip| format!(" from {ip}")).unwrap_or_default();
                    let hint = match error.raw_os_error() {
                        Some(libc::EMFILE) => " (raise `ulimit -n`, or ask for fewer exporters)",
                        _ => "",
                    };
                    ToolError::Failed(format!("cannot send to {to}{from}: {error}{hint}"))
                })?)
            }
        };
        let mut tries = 0;
        while !payloads.is_empty() && tries < MAX_TRIES {
            tries += 1;
            match send_many(socket, payloads) {
                Ok(taken) => {
                    let (sent, rest) = payloads.split_at(taken);
                    self.sent += taken as u64;
                    self.sent_bytes += sent.iter().map(|payload| payload.as_ref().len() as u64).sum::<u64>();
                    payloads = rest;
                    tries = 0;
                }
                // what a datagram sent before has brought back: this one was not sent yet
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.refused += 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                    thread::sleep(Duration::from_micros(100));
                }
                Err(error) => return Err(ToolError::Failed(format!("sending to {to}: {error}"))),
            }
        }
        self.failed += payloads.len() as u64;
        Ok(())
    }

    /// What to tell about the trouble there was.
    pub(super) fn complaint(&self) -> Option<String> {
        match (self.failed, self.refused) {
            (0, 0) => None,
            (0, refused) => Some(format!("nobody listens there: {refused} datagrams or more were refused")),
            (failed, _) => Some(format!("{failed} datagrams could not be sent")),
        }
    }
}

fn open(bind: Option<Ipv4Addr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    // less than asked for is no reason to stop
    let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    if let Some(ip) = bind {
        socket.bind(&SocketAddr::from((ip, 0)).into())?;
    }
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_with_and_without_ports() {
        let port = |text: &str| parse_target(text).map(|target| (target.ip.to_string(), target.port));
        assert_eq!(port("127.0.0.1:2055"), Ok(("127.0.0.1".into(), Some(2055))));
        assert_eq!(port("192.0.2.7"), Ok(("192.0.2.7".into(), None)));
        assert_eq!(port("[::1]:6343"), Ok(("::1".into(), Some(6343))));
        assert_eq!(port("::1"), Ok(("::1".into(), None)));
        assert!(port("localhost:2055").is_ok_and(|(_, port)| port == Some(2055)));
        assert_eq!(port("127.0.0.1:99999"), Err("`99999` is no port (0 to 65535)".into()));
    }

    #[test]
    fn every_source_has_a_socket_of_its_own() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let mut senders = Senders::default();
        let mut seen = std::collections::HashSet::new();
        for source in 0..3_u8 {
            senders.send(u64::from(source), None, to, b"x").unwrap();
            senders.send(u64::from(source), Some(Ipv4Addr::new(127, 1, 0, source + 1)), to, b"y").unwrap();
            for _ in 0..2 {
                seen.insert(receiver.recv_from(&mut [0; 8]).unwrap().1);
            }
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }
}
