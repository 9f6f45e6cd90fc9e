//! The reader against files built here byte by byte, files that Wireshark's tools wrote, and damaged ones.

use std::io::{self, Read};
use std::process::Command;

use super::*;

type Owned = (u64, i64, String, u16, String, u16, Vec<u8>);

fn owned(datagram: Datagram<'_>) -> Owned {
    let Datagram { frame, time_us, src, src_port, dst, dst_port, payload, .. } = datagram;
    (frame, time_us, src.to_string(), src_port, dst.to_string(), dst_port, payload.to_vec())
}

/// Everything that can be read, the error if there is one, and the counts.
fn read(file: &[u8]) -> (Vec<Owned>, Option<CaptureError>, Stats) {
    read_from(file)
}

fn read_from(file: impl Read + Send) -> (Vec<Owned>, Option<CaptureError>, Stats) {
    let mut reader = match Reader::new(file) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error), Stats::default()),
    };
    let mut all = Vec::new();
    let error = loop {
        match reader.next() {
            Ok(Some(datagram)) => all.push(owned(datagram)),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(matches!(reader.next(), Ok(None)), "nothing comes after the end");
    (all, error, reader.stats())
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0x11, 0x22, 0x08, 0x07];
    udp.extend_from_slice(&(payload.len() as u16 + 8).to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(payload);
    udp
}

/// `flags` is the fragment word.
fn ipv4(protocol: u8, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&(body.len() as u16 + 20).to_be_bytes());
    ip.extend_from_slice(&[0x12, 0x34]);
    ip.extend_from_slice(&flags.to_be_bytes());
    ip.extend_from_slice(&[64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    ip.extend_from_slice(body);
    ip
}

fn ipv6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0];
    ip.extend_from_slice(&(body.len() as u16).to_be_bytes());
    ip.extend_from_slice(&[next, 64]);
    for last in [1, 2] {
        ip.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    ip.extend_from_slice(body);
    ip
}

fn ethernet(tags: &[u8], ether_type: u16, body: &[u8]) -> Vec<u8> {
    [&[0; 12], tags, &ether_type.to_be_bytes(), body].concat()
}

fn pcap(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    pcap_as(0xa1b2_c3d4, u32::to_le_bytes, u16::to_le_bytes, link, frames)
}

fn pcap_as(
    magic: u32,
    long: fn(u32) -> [u8; 4],
    short: fn(u16) -> [u8; 2],
    link: u32,
    frames: &[Vec<u8>],
) -> Vec<u8> {
    let mut file = long(magic).to_vec();
    file.extend([short(2), short(4)].concat());
    file.extend([long(0), long(0), long(65_535), long(link)].concat());
    for (index, frame) in frames.iter().enumerate() {
        let len = frame.len() as u32;
        file.extend([long(1_700_000_000 + index as u32), long(123_456), long(len), long(len)].concat());
        file.extend_from_slice(frame);
    }
    file
}

fn block(kind: u32, body: &[u8], long: fn(u32) -> [u8; 4]) -> Vec<u8> {
    let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
    let len = (12 + body.len() + padding.len()) as u32;
    [&long(kind)[..], &long(len), body, &padding, &long(len)].concat()
}

#[test]
fn every_link_type_gives_the_datagram() {
    let ip = ipv4(17, 0x4000, &udp(b"hello"));
    let sll = [&[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0][..], &ip].concat();
    let sll2 = [&[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..], &ip].concat();
    let labels = [&[0, 0x01, 0x00, 64, 0, 0x02, 0x01, 64][..], &ip].concat();
    for (link, frame) in [
        (1, ethernet(&[], 0x0800, &ip)),
        (1, ethernet(&[0x81, 0, 0, 5], 0x0800, &ip)),
        (1, ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], 0x0800, &ip)),
        (1, ethernet(&[], 0x8847, &labels)),
        // an Ethernet frame is at least 60 bytes: padding is no payload
        (1, [ethernet(&[], 0x0800, &ip), vec![0; 20]].concat()),
        (0, [&[2, 0, 0, 0][..], &ip].concat()),
        (108, [&[0, 0, 0, 2][..], &ip].concat()),
        (101, ip.clone()),
        (12, ip.clone()),
        (228, ip.clone()),
        (113, sll),
        (276, sll2),
        // with the length of the FCS in the upper bits of the link type
        (0x2400_0001, ethernet(&[], 0x0800, &ip)),
    ] {
        let (all, error, stats) = read(&pcap(link, std::slice::from_ref(&frame)));
        assert!(error.is_none(), "{link}: {error:?}");
        let want = (
            1,
            1_700_000_000_123_456,
            "192.0.2.1".into(),
            0x1122,
            "192.0.2.2".into(),
            2055,
            b"hello".to_vec(),
        );
        assert_eq!(all, [want], "link type {link}");
        assert_eq!(stats, Stats { frames: 1, datagrams: 1, ..Stats::default() });
        // cut anywhere: never a panic, and a cut payload is flagged
        for len in 0..frame.len() {
            let (all, error, stats) = read(&pcap(link, &[frame[..len].to_vec()]));
            assert!(error.is_none(), "{error:?}");
            assert_eq!(stats.datagrams + stats.malformed + stats.not_udp, 1, "link type {link}, {len} bytes");
            if let Some(datagram) = all.first() {
                assert_eq!(stats.cut == 1, datagram.6 != b"hello");
            }
        }
    }
    assert!(matches!(read(&pcap(105, &[])).1, Some(CaptureError::LinkType(105))));
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let udp = udp(b"six");
    let plain = ipv6(17, &udp);
    let hop_by_hop = ipv6(0, &[&[60, 0, 1, 4, 0, 0, 0, 0][..], &[17, 1, 1, 12], &[0; 12], &udp].concat());
    let authenticated = ipv6(51, &[&[17, 4, 0, 0][..], &[0; 20], &udp].concat());
    let atomic = ipv6(44, &[&[17, 0, 0, 0, 0, 0, 0, 9][..], &udp].concat());
    for packet in [plain, hop_by_hop, authenticated, atomic] {
        let (all, error, _) = read(&pcap(101, &[packet]));
        assert!(error.is_none());
        assert_eq!((all[0].2.as_str(), all[0].6.as_slice()), ("2001:db8::1", &b"six"[..]));
    }
    let endless = ipv6(0, &[0; 400]);
    assert_eq!(read(&pcap(101, &[endless])).2.malformed, 1);
}

#[test]
fn fragments_come_together_in_both_families() {
    let payload: Vec<u8> = (0..3_000_u32).map(|n| n as u8).collect();
    let whole = udp(&payload);
    let v4 = |from: usize, to: usize| {
        let more = if to < whole.len() { 0x2000 } else { 0 };
        ethernet(&[], 0x0800, &ipv4(17, more | (from / 8) as u16, &whole[from..to]))
    };
    let v6 = |from: usize, to: usize| {
        let word = (from as u16 | u16::from(to < whole.len())).to_be_bytes();
        let header = [17, 0, word[0], word[1], 0, 0, 0, 7];
        ethernet(&[], 0x86dd, &ipv6(44, &[&header[..], &whole[from..to]].concat()))
    };
    let end = whole.len();
    let frames = [v4(1480, 2960), v6(0, 1448), v4(2960, end), v6(2896, end), v4(0, 1480), v6(1448, 2896)];
    let (all, error, stats) = read(&pcap(1, &frames));
    assert!(error.is_none());
    assert_eq!(all.iter().map(|datagram| datagram.0).collect::<Vec<_>>(), [5, 6]);
    assert!(all.iter().all(|datagram| datagram.6 == payload && datagram.5 == 2055));
    assert_eq!((stats.frames, stats.datagrams, stats.fragments_lost), (6, 2, 0));
    let (all, _, stats) = read(&pcap(1, &frames[..3]));
    assert_eq!((all.len(), stats.fragments_lost), (0, 3));
}

#[test]
fn byte_orders_and_clocks() {
    let frame = vec![ethernet(&[], 0x0800, &ipv4(17, 0, &udp(b"x")))];
    let times = |file: &[u8]| {
        let (all, error, _) = read(file);
        assert!(error.is_none(), "{error:?}");
        all.iter().map(|datagram| datagram.1).collect::<Vec<_>>()
    };
    let (le, be) = (u32::to_le_bytes as fn(u32) -> [u8; 4], u32::to_be_bytes as fn(u32) -> [u8; 4]);
    assert_eq!(times(&pcap_as(0xa1b2_c3d4, be, u16::to_be_bytes, 1, &frame)), [1_700_000_000_123_456]);
    assert_eq!(times(&pcap_as(0xa1b2_3c4d, le, u16::to_le_bytes, 1, &frame)), [1_700_000_000_000_123]);
    assert_eq!(times(&pcap_as(0xa1b2_3c4d, be, u16::to_be_bytes, 1, &frame)), [1_700_000_000_000_123]);
    for (long, short) in
        [(le, u16::to_le_bytes as fn(u16) -> [u8; 2]), (be, u16::to_be_bytes as fn(u16) -> [u8; 2])]
    {
        let section =
            block(0x0a0d_0d0a, &[&long(0x1a2b_3c4d)[..], &short(1), &short(0), &[0xff; 8]].concat(), long);
        // three clocks: µs by default, ns, and 2^-10 s with an offset of 5 s
        let interface =
            |options: &[u8]| block(1, &[&short(1)[..], &short(0), &long(0), options].concat(), long);
        let end = [short(0), short(0)].concat();
        let resolution = |value: u8| [&short(9)[..], &short(1), &[value, 0, 0, 0]].concat();
        let offset: Vec<u8> = match long(1)[0] {
            1 => 5_i64.to_le_bytes().to_vec(),
            _ => 5_i64.to_be_bytes().to_vec(),
        };
        let offset = [&short(14)[..], &short(8), &offset].concat();
        let packet = |interface: u32, ticks: u64| {
            let len = frame[0].len() as u32;
            let head = [interface, (ticks >> 32) as u32, ticks as u32, len, len];
            let head: Vec<u8> = head.into_iter().flat_map(long).collect();
            block(6, &[&head[..], &frame[0]].concat(), long)
        };
        let file = [
            section.clone(),
            interface(&[]),
            interface(&[resolution(9), end.clone()].concat()),
            interface(&[resolution(0x8a), offset, end].concat()),
            block(5, &[0; 12], long),
            packet(0, 1_700_000_000_123_456),
            packet(1, 1_700_000_000_123_456_789),
            packet(2, 1_700_000_000 * 1_024 + 512),
            section,
            interface(&[]),
            packet(0, 7),
        ]
        .concat();
        let want = [1_700_000_000_123_456, 1_700_000_000_123_456, 1_700_000_005_500_000, 7];
        assert_eq!(times(&file), want);
        let undescribed = [file, packet(1, 7)].concat();
        let error = read(&undescribed).1.unwrap().to_string();
        assert_eq!(
            error,
            "the capture is damaged at frame 5: it came in on interface 1, which is not described"
        );
    }
}

/// Gives one byte a call, as a slow pipe may.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.len().min(buffer.len()).min(1);
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

#[test]
fn a_cut_file_yields_what_is_there_and_says_where() {
    let frames: Vec<Vec<u8>> =
        (0..3_u8).map(|n| ethernet(&[], 0x0800, &ipv4(17, 0, &udp(&[n; 20])))).collect();
    let file = pcap(1, &frames);
    assert_eq!(read_from(Trickle(&file)).0, read(&file).0);
    let frame_len = 16 + frames[0].len();
    for len in 0..file.len() {
        let (all, error, _) = read(&file[..len]);
        let whole = len.saturating_sub(24) / frame_len;
        assert_eq!(all.len(), whole, "{len} bytes");
        match error {
            None => assert_eq!((len.wrapping_sub(24)) % frame_len, 0, "{len} bytes"),
            Some(CaptureError::Truncated { frame, bytes }) if len >= 24 => {
                assert_eq!((frame, bytes), (whole as u64 + 1, (len - 24) % frame_len));
            }
            Some(CaptureError::Empty | CaptureError::NotACapture(_) | CaptureError::Truncated { .. }) => {
                assert!(len < 24, "{len} bytes: {error:?}");
            }
            Some(error) => panic!("{len} bytes: {error}"),
        }
    }
    let text = read(b"<html>no capture</html>....").1.unwrap().to_string();
    assert_eq!(text, "this is no pcap or pcapng file: it begins with 3c 68 74 6d");
    let mut huge = file[..24 + 16].to_vec();
    huge[24 + 8..24 + 12].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    assert!(matches!(
        read(&huge).1,
        Some(CaptureError::Truncated { frame: 1, .. } | CaptureError::Damaged { frame: 1, .. })
    ));
    let mut huge_and_long = huge.clone();
    huge_and_long.resize(40 << 20, 0);
    assert!(matches!(read(&huge_and_long).1, Some(CaptureError::Damaged { frame: 1, .. })));
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[test]
fn a_read_error_is_passed_on() {
    let file = pcap(1, &[ethernet(&[], 0x0800, &ipv4(17, 0, &udp(b"x")))]);
    let (all, error, _) = read_from(file.as_slice().chain(Broken));
    assert_eq!(all.len(), 1);
    assert_eq!(error.unwrap().to_string(), "reading the capture at frame 2: the disk is gone");
}

#[test]
fn damaged_files_never_panic() {
    let frames: Vec<Vec<u8>> =
        (0..4_u8).map(|n| ethernet(&[], 0x0800, &ipv4(17, 0, &udp(&[n; 9])))).collect();
    let long: fn(u32) -> [u8; 4] = u32::to_le_bytes;
    let mut ng = block(0x0a0d_0d0a, &[&long(0x1a2b_3c4d)[..], &[1, 0, 0, 0], &[0xff; 8]].concat(), long);
    ng.extend(block(1, &[&[1, 0, 0, 0][..], &long(0), &[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]].concat(), long));
    for frame in &frames {
        let len = long(frame.len() as u32);
        ng.extend(block(6, &[&long(0)[..], &long(1), &long(2), &len, &len, frame].concat(), long));
        ng.extend(block(3, &[&len[..], frame].concat(), long));
    }
    assert_eq!(read(&ng).0.len(), 8);
    for file in [pcap(1, &frames), ng] {
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = file.clone();
                damaged[at] = value;
                let (all, _, stats) = read(&damaged);
                assert!(all.len() <= 8 && stats.frames <= 8);
                read(&damaged[..at]);
            }
        }
    }
}

#[test]
fn a_block_shorter_than_its_own_head_is_damage_whatever_its_kind() {
    for long in [u32::to_le_bytes, u32::to_be_bytes] {
        let section = block(0x0a0d_0d0a, &[&long(0x1a2b_3c4d)[..], &[0; 4], &[0xff; 8]].concat(), long);
        for kind in [0, 1, 3, 4, 5, 6, 9, 10, 0x8000_0001, 0x0a0d_0d0a] {
            for len in 0..12 {
                let file = [&section[..], &long(kind), &long(len), &[0; 24]].concat();
                let (all, error, _) = read(&file);
                assert!(all.is_empty());
                assert!(
                    matches!(error, Some(CaptureError::Damaged { frame: 1, .. })),
                    "kind {kind:#x} of {len} bytes: {error:?}"
                );
            }
        }
    }
}

/// The eight octets of a section header that have come do not tell its byte order yet.
#[test]
fn sections_of_both_byte_orders_are_read_from_a_pipe_that_dribbles() {
    let mut file = Vec::new();
    for long in [u32::to_le_bytes, u32::to_be_bytes, u32::to_le_bytes] {
        let short =
            |value: u16| if long(1) == [1, 0, 0, 0] { value.to_le_bytes() } else { value.to_be_bytes() };
        let version = [short(1), short(0)].concat();
        file.extend(block(0x0a0d_0d0a, &[&long(0x1a2b_3c4d)[..], &version, &[0xff; 8]].concat(), long));
        file.extend(block(1, &[&short(1)[..], &[0, 0], &long(0)].concat(), long));
        let frame = ethernet(&[], 0x0800, &ipv4(17, 0, &udp(b"datagram")));
        let length = u32::try_from(frame.len()).unwrap();
        let head = [long(0), long(0), long(1), long(length), long(length)].concat();
        file.extend(block(6, &[head, frame].concat(), long));
    }
    let (whole, dribbled) = (read(&file), read_from(Trickle(&file)));
    assert!(whole.1.is_none() && dribbled.1.is_none(), "{:?} {:?}", whole.1, dribbled.1);
    assert_eq!((whole.0.len(), &whole.0), (3, &dribbled.0));
}

/// draft-ietf-opsawg-pcapng §3.1.
#[test]
fn a_block_that_is_not_padded_is_damage() {
    let long = u32::to_le_bytes;
    let section = block(0x0a0d_0d0a, &[&long(0x1a2b_3c4d)[..], &[1, 0, 0, 0], &[0xff; 8]].concat(), long);
    let file = [&section[..], &long(10), &long(35), &[0; 64]].concat();
    assert!(matches!(read(&file).1, Some(CaptureError::Damaged { frame: 1, .. })));
}

fn have(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

#[test]
fn what_is_written_is_read_back_and_wireshark_agrees() {
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file).unwrap();
    let v4 = |last| (Address::v4([192, 0, 2, last]), 40_000);
    let v6: Address = "2001:db8::7".parse().unwrap();
    writer.write(1_700_000_000_000_001, v4(1), (v4(9).0, 2055), b"odd").unwrap();
    writer.write(1_700_000_001_999_999, (v6, 1), (v6, 2), &[0xab; 1_400]).unwrap();
    writer.write(1_700_000_002_000_000, v4(2), (v4(9).0, 6343), &[]).unwrap();
    assert!(writer.write(0, v4(2), (v6, 1), b"x").is_err());
    assert!(writer.write(0, v4(2), v4(3), &[0; 65_530]).is_err());
    writer.finish().unwrap();
    let (all, error, _) = read(&file);
    assert!(error.is_none());
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].1, 1_700_000_000_000_001);
    assert_eq!((all[1].2.as_str(), all[1].6.len()), ("2001:db8::7", 1_400));
    if !have("tshark") || !have("editcap") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("written.pcap");
    std::fs::write(&path, &file).unwrap();
    let output = Command::new("tshark")
        .args(["-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-T", "fields", "-e"])
        .args(["udp.checksum.status", "-e", "ip.checksum.status", "-e", "_ws.malformed", "-r"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\t1\t\n1\t\t\n1\t1\t\n");
    // every format that editcap writes and we say to read
    for format in ["pcap", "nsecpcap", "pcapng", "modpcap"] {
        let to = folder.path().join(format);
        assert!(Command::new("editcap").args(["-F", format]).args([&path, &to]).status().unwrap().success());
        let (again, error, _) = read(&std::fs::read(&to).unwrap());
        assert!(error.is_none(), "{format}: {error:?}");
        assert_eq!(again, all, "{format}");
    }
}
