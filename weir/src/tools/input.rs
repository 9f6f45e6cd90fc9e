//! The capture that a tool reads: a file or stdin, with a progress bar where somebody watches.

use std::fs::File;
use std::io::{self, IsTerminal, Read};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use weir_collector::pcap::{Datagram, Reader};

use super::ToolError;

/// Files below this are read before a bar could be read.
const LARGE_BYTES: u64 = 32 << 20;

/// An open capture.
pub(super) struct Input {
    pub(super) reader: Reader<'static>,
    bar: Option<ProgressBar>,
    name: String,
    seen: u64,
}

impl Input {
    /// Opens `path`; `-` is stdin.
    pub(super) fn open(path: &str) -> Result<Input, ToolError> {
        let (source, len): (Box<dyn Read + Send>, u64) = if path == "-" {
            if io::stdin().is_terminal() {
                return Err(ToolError::Usage(
                    "stdin is a terminal: pipe a capture in, as in `tcpdump -w - udp port 2055 | weir decode -`".into(),
                ));
            }
            (Box::new(io::stdin()), 0)
        } else {
            let file = File::open(path).map_err(ToolError::failed(format!("cannot open {path}")))?;
            let len = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
            (Box::new(file), len)
        };
        let name = if path == "-" { "stdin".to_owned() } else { path.to_owned() };
        let reader = Reader::new(source).map_err(|error| ToolError::Failed(format!("{name}: {error}")))?;
        Ok(Input { reader, bar: bar(len), name, seen: 0 })
    }

    /// The next datagram.
    pub(super) fn next(&mut self) -> Result<Option<Datagram<'_>>, ToolError> {
        self.seen += 1;
        if let Some(bar) = &self.bar
            && self.seen.is_multiple_of(1_024)
        {
            bar.set_position(self.reader.bytes());
        }
        self.reader.next().map_err(|error| ToolError::Failed(format!("{}: {error}", self.name)))
    }

    /// Calls `work` with each datagram that is of a flow protocol, to the end or the first error; counts the others.
    pub(super) fn each_flow(
        &mut self,
        port: Option<u16>,
        others: &mut u64,
        mut work: impl FnMut(&Datagram<'_>) -> Result<(), ToolError>,
    ) -> Result<(), ToolError> {
        while let Some(datagram) = self.next()? {
            if is_flow(&datagram, port) {
                work(&datagram)?;
            } else {
                *others += 1;
            }
        }
        Ok(())
    }

    /// Takes the bar off the screen.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar over bytes on stderr, where it is a terminal that the output does not scroll.
fn bar(len: u64) -> Option<ProgressBar> {
    let watched = io::stderr().is_terminal() && !io::stdout().is_terminal();
    (watched && len >= LARGE_BYTES).then(|| {
        let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr_with_hz(5));
        let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        bar.with_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        )
    })
}

/// The ports where flow protocols are usually sent to: what comes in there is decoded or counted as rejected.
const USUAL_PORTS: [u16; 6] = [2055, 2056, 4739, 6343, 9995, 9996];

/// True for what is sent to a usual port, or begins as a flow protocol does.
pub(super) fn is_flow(datagram: &Datagram<'_>, port: Option<u16>) -> bool {
    match port {
        Some(port) => datagram.dst_port == port,
        None => USUAL_PORTS.contains(&datagram.dst_port) || looks_like_flow(datagram.payload),
    }
}

/// By the header: version, lengths and counts that fit together.
fn looks_like_flow(payload: &[u8]) -> bool {
    let word = |at: usize| payload.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let len = payload.len();
    let fixed = |header: usize, record: usize| {
        word(2).is_some_and(|count| count > 0 && len == header + usize::from(count) * record)
    };
    match word(0) {
        Some(1) => fixed(16, 52),
        Some(5) => fixed(24, 48),
        Some(7) => fixed(24, 52),
        // Cisco's v8 has records of many lengths
        Some(8) => len > 28 && word(2).is_some_and(|count| count > 0 && usize::from(count) <= len / 28),
        Some(9) => {
            let set_id = word(20).is_some_and(|id| !(2..256).contains(&id));
            let set_len = word(22).is_some_and(|set| set >= 4 && usize::from(set) <= len - 20);
            word(2) == Some(0) || set_id && set_len
        }
        Some(10) => word(2).is_some_and(|total| total >= 16 && usize::from(total) == len),
        // sFlow's version has 32 bits; then the agent's address family
        Some(0) => word(2) == Some(5) && word(4) == Some(0) && matches!(word(6), Some(1 | 2)) && len >= 28,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use weir_collector::generate::{Generator, GeneratorConfig};

    use super::*;

    #[test]
    fn generated_datagrams_look_like_flow_and_others_do_not() {
        let config = GeneratorConfig { flows: 2_000, ..GeneratorConfig::default() };
        let mut generator = Generator::new(&config);
        let mut buffer = Vec::new();
        while generator.next(1_700_000_000_000_000, &mut buffer).is_some() {
            assert!(looks_like_flow(&buffer));
            assert!(!looks_like_flow(&buffer[..15]));
        }
        let dns = [0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'w', b'w', b'w', 0, 0, 1, 0, 1];
        let ntp = [&[0x23, 0, 6, 0xec][..], &[0; 44]].concat();
        let syslog = *b"<13>Nov 23 09:00:00 host program: text";
        for other in [&dns[..], &ntp, &syslog, &[], &[0, 5], &[0, 9, 0, 1]] {
            assert!(!looks_like_flow(other), "{other:?}");
        }
    }
}
