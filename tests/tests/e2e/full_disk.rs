//! A full disk: weir says that it is not ready and why, keeps what comes in memory, and goes on by itself when there is
//! room again.

use std::path::{Path, PathBuf};
use std::process::Command;

use weir_tests::command::run;
use weir_tests::ledger::{Ledger, assert_settled};
use weir_tests::netflow5::{Flow, datagram};
use weir_tests::wait::{LONG, until};
use weir_tests::weir::Setup;

/// A small file system of its own, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> SmallDisk {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=48m", "weir-e2e"]).arg(folder.path());
        let ended = run(&mut mount, LONG);
        assert!(
            ended.status.success(),
            "cannot mount a small disk: {}; run as root, or set WEIR_SKIP_ROOT=1 to leave this test out",
            ended.stderr
        );
        SmallDisk(folder)
    }

    /// Writes a file until nothing more goes in.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for block in [vec![0_u8; 1 << 20], vec![0; 4096], vec![0; 1]] {
            while std::io::Write::write_all(&mut file, &block).is_ok() {}
        }
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_told_and_survived() {
    if std::env::var_os("WEIR_SKIP_ROOT").is_some() {
        eprintln!("left out: WEIR_SKIP_ROOT is set, and mounting needs root");
        return;
    }
    let disk = SmallDisk::mount();
    let setup = Setup::new().data_in(&disk.path().join("data"));
    let weir = setup.start();
    let mut sequence = 0;
    let mut send = |count: u32| {
        for _ in 0..count {
            let flows: Vec<Flow> = (0..30).map(|n| Flow::new([10, 1, 1, n], 1_000 + u32::from(n))).collect();
            weir.send(&datagram(sequence, &flows));
            sequence += 30;
        }
    };
    send(10);
    weir.until_numbers("select count(*) from flows", &[300]);
    assert!(weir.ready().0, "{:?}", weir.ready());

    let filler = disk.fill();
    let reason = until(LONG, "weir to say that it is not ready", || {
        // The disk is only noticed where something is to be written.
        send(5);
        match weir.ready() {
            (false, reason) => Ok(reason),
            (true, said) => Err(said),
        }
    });
    assert!(reason.to_lowercase().contains("space") || reason.to_lowercase().contains("disk"), "{reason}");
    // It still answers, and holds what it cannot write.
    assert!(weir.numbers("select count(*) from flows")[0] >= 300);
    let held = Ledger::read(&weir.metrics()).unwrap();
    assert_eq!((held.rows_dropped, held.kernel_drops), (0, 0), "{held}");

    std::fs::remove_file(filler).unwrap();
    until(LONG, "weir to be ready again", || {
        let (ready, said) = weir.ready();
        if ready { Ok(()) } else { Err(said) }
    });
    send(10);
    weir.until_numbers("select count(*) from flows", &[u64::from(sequence)]);
    let ledger = assert_settled(&weir);
    assert_eq!((ledger.rows_dropped, ledger.flows_decoded), (0, u64::from(sequence)), "{ledger}");
    assert!(weir.stop().success());
    let again = setup.start();
    again.until_numbers("select count(*) from flows", &[u64::from(sequence)]);
}
