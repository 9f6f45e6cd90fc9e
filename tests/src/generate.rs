//! `weir generate` and `weir replay`: synthetic flows with exact totals, sent or written to a capture.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::command::{Ended, run};
use crate::wait::{LONG, until};
use crate::weir::{Weir, binary};

/// What was sent of a protocol, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub datagrams: u64,
    pub rows: u64,
    pub bytes: u64,
    pub packets: u64,
    pub est_bytes: u64,
    pub options_records: u64,
    pub counter_samples: u64,
    pub nat_events: u64,
    pub discards: u64,
}

impl Sent {
    fn read(json: &serde_json::Value) -> Sent {
        let of = |key: &str| json[key].as_u64().unwrap_or_else(|| panic!("no {key} in {json}"));
        Sent {
            datagrams: of("datagrams"),
            rows: of("rows"),
            bytes: of("bytes"),
            packets: of("packets"),
            est_bytes: of("est_bytes"),
            options_records: of("options_records"),
            counter_samples: of("counter_samples"),
            nat_events: of("nat_events"),
            discards: of("discards"),
        }
    }
}

/// What to generate.
#[derive(Debug, Clone)]
pub struct Load {
    flows: u64,
    rate: u64,
    seed: u64,
    exporters: u32,
    extras: bool,
}

impl Load {
    /// So many flows in all four protocols, at 20,000 flows/s.
    pub fn new(flows: u64) -> Load {
        Load { flows, rate: 20_000, seed: 1, exporters: 4, extras: false }
    }

    pub fn rate(self, rate: u64) -> Load {
        Load { rate, ..self }
    }

    pub fn seed(self, seed: u64) -> Load {
        Load { seed, ..self }
    }

    pub fn exporters(self, exporters: u32) -> Load {
        Load { exporters, ..self }
    }

    /// Also what only some exporters send: calls, NAT events, dropped packets.
    pub fn extras(self) -> Load {
        Load { extras: true, ..self }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.args([
            "generate",
            "--json",
            "--flows",
            &self.flows.to_string(),
            "--rate",
            &self.rate.to_string(),
        ]);
        command.args(["--seed", &self.seed.to_string(), "--exporters", &self.exporters.to_string()]);
        if self.extras {
            command.arg("--extras");
        }
        command
    }

    /// Sends it to the first UDP address.
    #[track_caller]
    pub fn run(&self, weir: &Weir) -> Sent {
        self.by_protocol(weir).1
    }

    /// Sends it; what was sent by protocol, and in all.
    #[track_caller]
    pub fn by_protocol(&self, weir: &Weir) -> (Vec<(String, Sent)>, Sent) {
        let mut command = self.command();
        command.args(["--to", &weir.addresses.udp[0].to_string()]);
        report(run(&mut command, self.limit()))
    }

    /// Writes it to a capture.
    #[track_caller]
    pub fn capture(&self, path: &Path) -> Sent {
        let mut command = self.command();
        command.arg("--pcap").arg(path);
        report(run(&mut command, self.limit())).1
    }

    fn limit(&self) -> Duration {
        LONG + Duration::from_secs(3 * self.flows / self.rate.max(1))
    }
}

#[track_caller]
fn report(ended: Ended) -> (Vec<(String, Sent)>, Sent) {
    let text = ended.ok();
    let json: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(json["not_sent"].as_u64(), Some(0), "the kernel took all: {text}");
    let protocols = json["protocols"].as_object().unwrap_or_else(|| panic!("no protocols: {text}"));
    (
        protocols.iter().map(|(name, sent)| (name.clone(), Sent::read(sent))).collect(),
        Sent::read(&json["total"]),
    )
}

/// Sends a capture's datagrams, so many a second.
#[track_caller]
pub fn replay(weir: &Weir, capture: &Path, rate: u32) {
    let mut command = Command::new(binary());
    command.arg("replay").arg(capture).args(["--quiet", "--spread-sources", "--rate", &rate.to_string()]);
    run(command.args(["--to", &weir.addresses.udp[0].to_string()]), LONG).ok();
}

/// Waits until the tables hold what was sent, protocol by protocol, and not one row more.
#[track_caller]
pub fn until_stored(weir: &Weir, protocols: &[(String, Sent)]) {
    let mut wanted: Vec<Vec<String>> = protocols
        .iter()
        .map(|(name, sent)| {
            vec![name.clone(), sent.rows.to_string(), sent.bytes.to_string(), sent.packets.to_string()]
        })
        .collect();
    wanted.sort();
    let query = "select proto_ver, count(*), sum(bytes), sum(packets) from flows group by 1 order by 1";
    until(2 * LONG, "every flow in SQL", || {
        let rows = weir.try_sql(query)?;
        if rows == wanted { Ok(()) } else { Err(format!("{rows:?}, wanted {wanted:?}\n{}", weir.log())) }
    });
    // Sums of doubles over exact whole numbers are exact below 2^53.
    let all = protocols.iter().fold(Sent::default(), |sum, (_, sent)| Sent {
        est_bytes: sum.est_bytes + sent.est_bytes,
        options_records: sum.options_records + sent.options_records,
        counter_samples: sum.counter_samples + sent.counter_samples,
        ..sum
    });
    weir.until_numbers("select sum(est_bytes) from flows", &[all.est_bytes]);
    weir.until_numbers("select count(*) from options", &[all.options_records]);
    weir.until_numbers("select count(*) from interface_counters", &[all.counter_samples]);
}
