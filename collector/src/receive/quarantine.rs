//! Datagrams that made a decoder panic, kept as capture files that `weir decode` reads: the material for a bug report.
//! The directory is bounded; once it is full, panics are only counted.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use weir_schemas::Address;

use crate::decode::DatagramMeta;

/// Files that are kept.
const MAX_FILES: usize = 64;

/// The directory. It is made when the first datagram comes.
#[derive(Debug)]
pub struct Quarantine {
    directory: PathBuf,
    /// Files in it; None until looked at.
    files: Mutex<Option<usize>>,
}

impl Quarantine {
    pub fn new(directory: PathBuf) -> Quarantine {
        Quarantine { directory, files: Mutex::new(None) }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps a datagram; false where the directory is full.
    pub fn keep(&self, datagram: &[u8], meta: &DatagramMeta) -> io::Result<bool> {
        let mut files = self.files.lock();
        let count = match *files {
            Some(count) => count,
            None => {
                fs::create_dir_all(&self.directory)?;
                fs::read_dir(&self.directory)?.count()
            }
        };
        *files = Some(count);
        if count >= MAX_FILES {
            return Ok(false);
        }
        let path = self.directory.join(format!("panic-{}-{count}.pcap", meta.received_us));
        let mut file = fs::File::create_new(path)?;
        file.write_all(&capture(datagram, meta))?;
        *files = Some(count + 1);
        Ok(true)
    }
}

/// A pcap file of one packet, link type "raw IP". Addresses and ports are the sender's and the local port's; the local
/// address is not known here and stays unspecified, and so do the checksums.
fn capture(datagram: &[u8], meta: &DatagramMeta) -> Vec<u8> {
    const LINKTYPE_RAW: u32 = 101;
    let udp_len = u16::try_from(datagram.len() + 8).unwrap_or(u16::MAX);
    let mut packet = Vec::with_capacity(datagram.len() + 48);
    match meta.sender.as_v4() {
        Some(sender) => {
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&udp_len.saturating_add(20).to_be_bytes());
            packet.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
            packet.extend_from_slice(&sender);
            packet.extend_from_slice(&[0; 4]);
        }
        None => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&udp_len.to_be_bytes());
            packet.extend_from_slice(&[17, 64]);
            packet.extend_from_slice(&meta.sender.0);
            packet.extend_from_slice(&Address::UNSPECIFIED.0);
        }
    }
    packet.extend_from_slice(&meta.sender_port.to_be_bytes());
    packet.extend_from_slice(&meta.local_port.to_be_bytes());
    packet.extend_from_slice(&udp_len.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(datagram);

    let mut file = Vec::with_capacity(packet.len() + 40);
    file.extend_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
    file.extend_from_slice(&2_u16.to_le_bytes());
    file.extend_from_slice(&4_u16.to_le_bytes());
    file.extend_from_slice(&[0; 8]);
    file.extend_from_slice(&u32::MAX.to_le_bytes());
    file.extend_from_slice(&LINKTYPE_RAW.to_le_bytes());
    let (seconds, micros) = (meta.received_us.div_euclid(1_000_000), meta.received_us.rem_euclid(1_000_000));
    let len = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    for word in [u32::try_from(seconds).unwrap_or(0), u32::try_from(micros).unwrap_or(0), len, len] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&packet);
    file
}

#[cfg(test)]
mod tests {
    use pcap_parser::traits::PcapReaderIterator;
    use pcap_parser::{LegacyPcapReader, PcapBlockOwned};

    use super::*;

    fn meta(sender: &str) -> DatagramMeta {
        DatagramMeta {
            sender: sender.parse().unwrap(),
            sender_port: 4242,
            local_port: 2055,
            received_us: 1_700_000_000_250_000,
        }
    }

    #[test]
    fn what_is_kept_is_a_capture_of_the_datagram() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(directory.path().join("quarantine"));
        for (n, (sender, header)) in [("192.0.2.7", 28), ("2001:db8::7", 48)].into_iter().enumerate() {
            assert!(quarantine.keep(b"a poisonous datagram", &meta(sender)).unwrap());
            let name = format!("panic-1700000000250000-{n}.pcap");
            let file = fs::File::open(quarantine.directory().join(name)).unwrap();
            let mut reader = LegacyPcapReader::new(65_536, file).unwrap();
            let (offset, block) = reader.next().unwrap();
            assert!(matches!(block, PcapBlockOwned::LegacyHeader(header) if header.network.0 == 101));
            reader.consume(offset);
            let (_, block) = reader.next().unwrap();
            let PcapBlockOwned::Legacy(packet) = block else { panic!("no packet") };
            assert_eq!((packet.ts_sec, packet.ts_usec), (1_700_000_000, 250_000));
            assert_eq!(&packet.data[header..], b"a poisonous datagram");
            assert_eq!(packet.data[header - 8..header - 4], [0x10, 0x92, 0x08, 0x07]);
        }
    }

    #[test]
    fn a_full_directory_takes_no_more_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(directory.path().to_owned());
        let kept = (0..100).filter(|_| quarantine.keep(b"x", &meta("192.0.2.7")).unwrap()).count();
        assert_eq!(kept, MAX_FILES);
        let quarantine = Quarantine::new(directory.path().to_owned());
        assert!(!quarantine.keep(b"x", &meta("192.0.2.7")).unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), MAX_FILES);
    }
}
