//! Frames out of a file or pipe, in bounded memory.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, LegacyPcapReader, PcapBlockOwned, PcapError, PcapNGReader};

use super::fragments::Reassembly;
use super::frame::{self, LinkType, Skip};
use super::{CaptureError, Datagram, MAX_BLOCK_BYTES, MAX_INTERFACES, Stats};
use weir_schemas::Address;

/// Grows for longer blocks. Small in tests, so that they see it refilled and grown.
const BUFFER_BYTES: usize = if cfg!(any(test, feature = "fuzzing")) { 1 << 10 } else { 256 << 10 };
/// The type of a pcapng block and its length, which stands at both ends.
const MIN_BLOCK_BYTES: usize = 12;
/// Microseconds a second.
const SECOND: i128 = 1_000_000;

/// The bytes of the capture. pcap-parser keeps no `io::Error` and takes what the first `read` brings for the whole
/// header, so this one keeps the error, and fills the header of the file even from a pipe that gives byte by byte.
struct Source<R> {
    inner: R,
    started: bool,
    error: Arc<OnceLock<io::Error>>,
}

impl<R: Read> Source<R> {
    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn read_start(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut have = 0;
        loop {
            let wanted = wanted_for_header(&buffer[..have]).min(buffer.len());
            if have >= wanted {
                return Ok(have);
            }
            match self.read_some(&mut buffer[have..])? {
                0 => return Ok(have),
                n => have += n,
            }
        }
    }
}

/// How many bytes the header of the file has: pcap 24, pcapng as its section header says.
fn wanted_for_header(start: &[u8]) -> usize {
    match start {
        &[0x0a, 0x0d, 0x0d, 0x0a, a, b, c, d, m0, _, _, m3, ..] => {
            let len = match (m0, m3) {
                (0x4d, 0x1a) => u32::from_le_bytes([a, b, c, d]),
                _ => u32::from_be_bytes([a, b, c, d]),
            };
            usize::try_from(len).unwrap_or(usize::MAX).clamp(28, MAX_BLOCK_BYTES)
        }
        _ => 24,
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = if self.started { self.read_some(buffer) } else { self.read_start(buffer) };
        self.started = true;
        result.inspect_err(|error| {
            let _ = self.error.set(io::Error::new(error.kind(), error.to_string()));
        })
    }
}

/// An interface of a pcapng section.
#[derive(Debug, Clone, Copy)]
struct Interface {
    link: Option<LinkType>,
    /// Ticks a second, and what to add, in seconds.
    resolution: u64,
    offset_s: i64,
}

impl Interface {
    fn time_us(&self, ticks: u64) -> i64 {
        let us = i128::from(ticks) * SECOND / i128::from(self.resolution.max(1))
            + i128::from(self.offset_s) * SECOND;
        i64::try_from(us).unwrap_or(i64::MAX)
    }
}

enum Format {
    Pcap { link: LinkType, nanoseconds: bool },
    PcapNg { big_endian: bool, interfaces: Vec<Interface> },
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Pcap { .. } => "pcap",
            Format::PcapNg { .. } => "pcapng",
        })
    }
}

/// Reads the UDP datagrams of a capture, in order.
pub struct Reader<'r> {
    blocks: Box<dyn PcapReaderIterator + Send + 'r>,
    read_error: Arc<OnceLock<io::Error>>,
    format: Format,
    reassembly: Reassembly,
    stats: Stats,
    bytes: u64,
    capacity: usize,
    /// The payload handed out last.
    payload: Vec<u8>,
    ended: bool,
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("format", &self.format)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// A datagram but for its payload, which is in [`Reader::payload`].
struct Head {
    time_us: i64,
    src: Address,
    src_port: u16,
    dst: Address,
    dst_port: u16,
    cut: bool,
}

/// What to do after a block was looked at.
enum Step {
    Found(Head),
    Nothing,
}

impl<'r> Reader<'r> {
    /// Opens a capture: reads its header and says what is wrong with it.
    pub fn new(reader: impl Read + Send + 'r) -> Result<Reader<'r>, CaptureError> {
        let read_error = Arc::new(OnceLock::new());
        let mut source = Source { inner: reader, started: false, error: Arc::clone(&read_error) };
        // the header is read here, so that a wrong file can be told from a short one
        let mut head = vec![0; BUFFER_BYTES];
        let n = source.read(&mut head).map_err(|error| CaptureError::Io { frame: 0, error })?;
        head.truncate(n);
        let magic: [u8; 4] = match head.get(..4) {
            None if head.is_empty() => return Err(CaptureError::Empty),
            None => return Err(CaptureError::NotACapture(hex(&head))),
            Some(magic) => [magic[0], magic[1], magic[2], magic[3]],
        };
        let is_ng = magic == [0x0a, 0x0d, 0x0d, 0x0a];
        let known = [0xa1b2_c3d4_u32, 0xa1b2_3c4d, 0xa1b2_cd34, 0xd4c3_b2a1, 0x4d3c_b2a1];
        if !is_ng && !known.contains(&u32::from_le_bytes(magic)) {
            return Err(CaptureError::NotACapture(hex(&magic)));
        }
        if n < wanted_for_header(&head).min(BUFFER_BYTES) {
            return Err(CaptureError::Truncated { frame: 0, bytes: n });
        }
        let source = io::Cursor::new(head).chain(source);
        let damaged = |error: PcapError<&[u8]>| CaptureError::Damaged { frame: 0, what: describe(&error) };
        let mut reader = Reader {
            blocks: if is_ng {
                Box::new(PcapNGReader::new(BUFFER_BYTES, source).map_err(damaged)?)
            } else {
                Box::new(LegacyPcapReader::new(BUFFER_BYTES, source).map_err(damaged)?)
            },
            read_error,
            format: Format::PcapNg { big_endian: false, interfaces: Vec::new() },
            reassembly: Reassembly::default(),
            stats: Stats::default(),
            bytes: 0,
            capacity: BUFFER_BYTES,
            payload: Vec::new(),
            ended: false,
        };
        reader.read_header()?;
        Ok(reader)
    }

    /// The classic header is a block to pcap-parser; a file of one link type is refused here and not at each frame.
    fn read_header(&mut self) -> Result<(), CaptureError> {
        let (size, format) = match self.blocks.next() {
            Ok((size, PcapBlockOwned::LegacyHeader(header))) => {
                // the upper half tells the length of the FCS
                let number = header.network.0 & 0xffff;
                let link = LinkType::from_number(number).ok_or(CaptureError::LinkType(number))?;
                (size, Format::Pcap { link, nanoseconds: header.is_nanosecond_precision() })
            }
            _ => return Ok(()),
        };
        self.format = format;
        self.blocks.consume(size);
        self.bytes += size as u64;
        Ok(())
    }

    /// What was in the file up to now.
    pub fn stats(&self) -> Stats {
        Stats { fragments_lost: self.reassembly.lost, ..self.stats }
    }

    /// Bytes of the file read up to now.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next UDP datagram, or None at the end. After an error there is nothing more.
    #[expect(clippy::should_implement_trait, reason = "the datagram borrows from the reader")]
    pub fn next(&mut self) -> Result<Option<Datagram<'_>>, CaptureError> {
        let head = loop {
            if self.ended {
                return Ok(None);
            }
            match self.step() {
                Ok(Some(Step::Found(head))) => break head,
                Ok(Some(Step::Nothing)) => {}
                Ok(None) => {
                    self.ended = true;
                    self.reassembly.finish();
                }
                Err(error) => {
                    self.ended = true;
                    self.reassembly.finish();
                    return Err(error);
                }
            }
        };
        self.stats.datagrams += 1;
        self.stats.cut += u64::from(head.cut);
        let Head { time_us, src, src_port, dst, dst_port, cut } = head;
        let payload = self.payload.as_slice();
        Ok(Some(Datagram { frame: self.stats.frames, time_us, src, src_port, dst, dst_port, payload, cut }))
    }

    /// Looks at one block. None at the end of the file.
    fn step(&mut self) -> Result<Option<Step>, CaptureError> {
        let frame = self.stats.frames + 1;
        self.refuse_odd_length(frame)?;
        let (size, step) = match self.blocks.next() {
            Ok((size, block)) => {
                let packet = match &mut self.format {
                    Format::Pcap { link, nanoseconds } => legacy_packet(&block, *link, *nanoseconds),
                    Format::PcapNg { big_endian, interfaces } => ng_packet(&block, big_endian, interfaces)
                        .map_err(|what| CaptureError::Damaged { frame, what })?,
                };
                let step = match packet {
                    None => Step::Nothing,
                    Some(packet) => {
                        self.stats.frames += 1;
                        take(packet, &mut self.reassembly, &mut self.stats, &mut self.payload)
                    }
                };
                (size, step)
            }
            Err(PcapError::Eof) => return Ok(None),
            Err(error) => {
                let error = match error {
                    PcapError::Incomplete(_) => None,
                    other => Some(other.to_owned_vec()),
                };
                return self.trouble(frame, error).map(|()| Some(Step::Nothing));
            }
        };
        self.blocks.consume(size);
        self.bytes += size as u64;
        Ok(Some(step))
    }

    /// A pcapng block has at least its type and its length twice, 12 bytes, and is padded to a multiple of four
    /// (draft-ietf-opsawg-pcapng §3.1). pcap-parser 0.17 subtracts the twelve before it looks (process information
    /// blocks), and panics where overflow is checked; where a block that is not padded ends, it says now so and now so.
    fn refuse_odd_length(&self, frame: u64) -> Result<(), CaptureError> {
        let Format::PcapNg { big_endian, .. } = &self.format else { return Ok(()) };
        let what = match block_len(self.blocks.data(), *big_endian) {
            Some(len) if len < MIN_BLOCK_BYTES => contradiction(len),
            Some(len) if !len.is_multiple_of(4) => {
                format!("a block of {len} bytes, which is not a multiple of four")
            }
            _ => return Ok(()),
        };
        Err(CaptureError::Damaged { frame, what })
    }

    /// Reads on where the buffer holds no whole block, or says why that is no use. None stands for `Incomplete`.
    fn trouble(&mut self, frame: u64, error: Option<PcapError<&[u8]>>) -> Result<(), CaptureError> {
        let available = self.blocks.data().len();
        if let Format::PcapNg { big_endian, .. } = &self.format
            && let Some(len) = block_len(self.blocks.data(), *big_endian)
            && (len <= available || len > MAX_BLOCK_BYTES)
        {
            return Err(CaptureError::Damaged { frame, what: contradiction(len) });
        }
        match error {
            None => {}
            // it may be that the file ends here: grow only for what can be read
            Some(PcapError::BufferTooSmall) if available < self.capacity => {}
            Some(PcapError::BufferTooSmall) if self.capacity < MAX_BLOCK_BYTES => {
                self.capacity *= 2;
                self.blocks.grow(self.capacity);
            }
            Some(PcapError::UnexpectedEof) if available == 0 => {
                self.ended = true;
                self.reassembly.finish();
                return Ok(());
            }
            Some(PcapError::UnexpectedEof) => {
                return Err(CaptureError::Truncated { frame, bytes: available });
            }
            Some(PcapError::BufferTooSmall) => {
                let what = format!("it says to have more than {MAX_BLOCK_BYTES} bytes");
                return Err(CaptureError::Damaged { frame, what });
            }
            Some(other) => return Err(CaptureError::Damaged { frame, what: describe(&other) }),
        }
        let failed = self.blocks.refill().is_err();
        match (failed, self.read_error.get()) {
            (true, Some(error)) => {
                Err(CaptureError::Io { frame, error: io::Error::new(error.kind(), error.to_string()) })
            }
            (true, None) => Err(CaptureError::Io { frame, error: io::ErrorKind::Other.into() }),
            (false, _) => Ok(()),
        }
    }
}

/// A captured frame, whatever the file's format.
struct Packet<'a> {
    link: Option<LinkType>,
    time_us: i64,
    bytes: &'a [u8],
}

fn legacy_packet<'a>(block: &PcapBlockOwned<'a>, link: LinkType, nanoseconds: bool) -> Option<Packet<'a>> {
    let PcapBlockOwned::Legacy(block) = block else { return None };
    let fraction = i64::from(block.ts_usec) / if nanoseconds { 1_000 } else { 1 };
    let time_us = i64::from(block.ts_sec) * 1_000_000 + fraction;
    Some(Packet { link: Some(link), time_us, bytes: block.data })
}

fn ng_packet<'a>(
    block: &'a PcapBlockOwned<'_>,
    big_endian: &mut bool,
    interfaces: &mut Vec<Interface>,
) -> Result<Option<Packet<'a>>, String> {
    let PcapBlockOwned::NG(block) = block else { return Ok(None) };
    match block {
        Block::SectionHeader(section) => {
            *big_endian = section.big_endian();
            interfaces.clear();
        }
        Block::InterfaceDescription(description) => {
            if interfaces.len() >= MAX_INTERFACES {
                return Err(format!("more than {MAX_INTERFACES} interfaces in one section"));
            }
            // pcap-parser reads the offset as little-endian and knows no binary resolutions
            let offset = description.if_tsoffset;
            let power = u32::from(description.if_tsresol & 0x7f);
            let base: u64 = if description.if_tsresol & 0x80 == 0 { 10 } else { 2 };
            interfaces.push(Interface {
                link: LinkType::from_number(description.linktype.0),
                resolution: base.checked_pow(power).ok_or_else(|| {
                    format!("interface {} has a clock of {base}^-{power} s", interfaces.len())
                })?,
                offset_s: if *big_endian { offset.swap_bytes() } else { offset },
            });
        }
        Block::EnhancedPacket(packet) => {
            let interface = usize::try_from(packet.if_id).ok().and_then(|id| interfaces.get(id));
            let interface = interface
                .ok_or_else(|| format!("it came in on interface {}, which is not described", packet.if_id))?;
            let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            let time_us = interface.time_us(ticks);
            return Ok(Some(Packet { link: interface.link, time_us, bytes: packet.packet_data() }));
        }
        Block::SimplePacket(packet) => {
            let interface = interfaces.first().ok_or("it came in on interface 0, which is not described")?;
            // simple packets have no time
            return Ok(Some(Packet { link: interface.link, time_us: 0, bytes: packet.packet_data() }));
        }
        _ => {}
    }
    Ok(None)
}

/// The UDP datagram of a frame, its payload copied to `payload`.
fn take(packet: Packet<'_>, reassembly: &mut Reassembly, stats: &mut Stats, payload: &mut Vec<u8>) -> Step {
    let Some(link) = packet.link else {
        stats.other_link += 1;
        return Step::Nothing;
    };
    let found = frame::ip_payload(link, packet.bytes).and_then(|ip| {
        if !frame::is_udp(&ip) {
            return Err(Skip::NotUdp);
        }
        let whole;
        let udp = match ip.fragment {
            None => frame::udp(ip.bytes, ip.cut)?,
            Some(fragment) => match reassembly.add(&ip, fragment, packet.time_us) {
                None => return Ok(None),
                Some(bytes) => {
                    whole = bytes;
                    frame::udp(&whole, false)?
                }
            },
        };
        payload.clear();
        payload.extend_from_slice(udp.payload);
        Ok(Some(Head {
            time_us: packet.time_us,
            src: ip.src,
            src_port: udp.src_port,
            dst: ip.dst,
            dst_port: udp.dst_port,
            cut: udp.cut,
        }))
    });
    match found {
        Ok(Some(head)) => return Step::Found(head),
        Ok(None) => {}
        Err(Skip::NotUdp) => stats.not_udp += 1,
        Err(Skip::Malformed) => stats.malformed += 1,
    }
    Step::Nothing
}

/// The length that the pcapng block at the start of `data` claims.
fn block_len(data: &[u8], big_endian: bool) -> Option<usize> {
    // a section header may change the byte order: its own magic number counts, and has to be read first
    let big_endian = match data {
        [0x0a, 0x0d, 0x0d, 0x0a, rest @ ..] => *rest.get(4)? == 0x1a,
        _ => big_endian,
    };
    let &[a, b, c, d] = data.get(4..8)? else { return None };
    let len = if big_endian { u32::from_be_bytes([a, b, c, d]) } else { u32::from_le_bytes([a, b, c, d]) };
    usize::try_from(len).ok()
}

fn contradiction(len: usize) -> String {
    format!("a block of {len} bytes whose contents contradict its length")
}

fn describe(error: &PcapError<&[u8]>) -> String {
    match error {
        PcapError::NomError(_, kind) | PcapError::OwnedNomError(_, kind) => {
            format!("a block that is not as the format wants it ({kind:?})")
        }
        other => other.to_string().to_lowercase(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(" ")
}
