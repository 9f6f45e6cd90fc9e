//! Open vSwitch as an exporter, by all three protocols at once: a switch in user space whose ports are fed with packets that
//! are known. It describes its IPFIX records by some two hundred templates at once, and then not again for ten minutes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use weir_tests::command::{Background, program, run};
use weir_tests::ledger::assert_lossless;
use weir_tests::wait::until;
use weir_tests::weir::{Setup, Weir};

const LIMIT: Duration = Duration::from_secs(30);
/// Octets of a frame.
const LENGTH: u64 = 200;

/// A switch of its own: database, daemon, and a bridge with the ports 1 and 2.
struct Switch {
    folder: PathBuf,
    daemon: Background,
    _database: Background,
}

impl Switch {
    fn start(folder: &Path) -> Switch {
        let folder = folder.join("switch");
        std::fs::create_dir(&folder).unwrap();
        let database = folder.join("conf.db");
        run(
            Command::new(program("ovsdb-tool"))
                .arg("create")
                .arg(&database)
                .arg("/usr/share/openvswitch/vswitch.ovsschema"),
            LIMIT,
        )
        .ok();
        let socket = format!("unix:{}", folder.join("db.sock").display());
        let in_folder = |name: &str| {
            let mut command = Command::new(program(name));
            for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
                command.env(variable, &folder);
            }
            command.arg("--no-chdir").arg(format!("--pidfile={}", folder.join(name).display()));
            command
        };
        let mut server = in_folder("ovsdb-server");
        server.arg(&database).arg(format!("--remote=p{socket}"));
        let server = Background::start(&mut server, &folder.join("ovsdb-server.log"));
        until(LIMIT, "the database's socket", || match folder.join("db.sock").exists() {
            true => Ok(()),
            false => Err(server.output()),
        });
        let mut daemon = in_folder("ovs-vswitchd");
        daemon.arg(&socket).args(["--enable-dummy", "--disable-system"]);
        let daemon = Background::start(&mut daemon, &folder.join("ovs-vswitchd.log"));
        let switch = Switch { folder, daemon, _database: server };
        switch.vsctl("--no-wait init");
        switch.vsctl(
            "add-br br0 -- set bridge br0 datapath_type=dummy fail-mode=standalone \
             -- add-port br0 p1 -- set interface p1 type=dummy ofport_request=1 \
             -- add-port br0 p2 -- set interface p2 type=dummy ofport_request=2",
        );
        switch
    }

    fn vsctl(&self, arguments: &str) -> String {
        let socket = format!("--db=unix:{}", self.folder.join("db.sock").display());
        let mut command = Command::new(program("ovs-vsctl"));
        command.args([socket.as_str(), "--timeout=25"]).args(arguments.split_whitespace());
        run(&mut command, LIMIT).ok()
    }

    /// Frames that come in at each port, of class EF, to a host behind the other.
    fn receive(&self, frames: usize) {
        let control = self.folder.join(format!("ovs-vswitchd.{}.ctl", self.daemon.pid()));
        for (port, other) in [(1, 2), (2, 1)] {
            let flow = format!(
                "in_port({port}),eth(src=50:54:00:00:00:0{port},dst=50:54:00:00:00:0{other}),eth_type(0x0800),\
                 ipv4(src=10.0.0.{port},dst=10.0.0.{other},proto=6,tos=184,ttl=64,frag=no),\
                 tcp(src=100{port},dst=443),tcp_flags(ack)"
            );
            let mut command = Command::new(program("ovs-appctl"));
            command.arg("-t").arg(&control).args(["netdev-dummy/receive", &format!("p{port}")]);
            for _ in 0..frames {
                command.args([flow.as_str(), "--len", &LENGTH.to_string()]);
            }
            run(&mut command, LIMIT).ok();
        }
    }

    /// Sends all three protocols to `to`: every packet is sampled.
    fn export(&self, to: &Weir) {
        let target = format!("\"{}\"", to.addresses.udp[0]);
        self.vsctl(&format!(
            "-- set Bridge br0 netflow=@n -- --id=@n create NetFlow targets={target} active-timeout=1 \
             -- set Bridge br0 sflow=@s -- --id=@s create sFlow agent=lo targets={target} sampling=1 polling=1 header=128 \
             -- set Bridge br0 ipfix=@i -- --id=@i create IPFIX targets={target} sampling=1 obs_domain_id=7 \
                obs_point_id=1 cache_active_timeout=1",
        ));
    }
}

#[test]
fn three_protocols_of_one_switch_agree() {
    let setup = Setup::new();
    let weir = setup.start();
    let switch = Switch::start(setup.folder());
    switch.export(&weir);
    let frames = 40;
    switch.receive(frames);
    let frames = frames as u64;
    let of = |protocol: &str, source: u64, and: &str| {
        format!(
            "select sum(packets), sum(bytes) from flows where proto_ver = '{protocol}' and src_addr = '10.0.0.{source}' \
             and dscp = 46 and ip_protocol = 6 and dst_port = 443 {and}"
        )
    };
    for source in [1, 2] {
        weir.until_numbers(&of("netflow5", source, ""), &[frames, LENGTH * frames]);
        // as it is on the wire, with the checksum of the frame
        weir.until_numbers(&of("sflow5", source, ""), &[frames, (LENGTH + 4) * frames]);
        // each frame where it comes in, and again where it goes out; without its Ethernet header
        weir.until_numbers(&of("ipfix", source, "and direction = 0"), &[frames, (LENGTH - 14) * frames]);
    }
    let templates = "select count(*) from exporters where template_misses > 0 or rejected > 0";
    assert_eq!(weir.numbers(templates), [0]);
    // what the switch says of itself, by sFlow
    weir.until_numbers("select least(count(*), 1) from host_counters", &[1]);
    assert_lossless(&weir);
    assert!(weir.stop().success());
}
