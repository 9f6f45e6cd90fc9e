//! What is malformed, hostile or wrong: counted by reason or refused with a reason, and nothing else disturbed.

use std::process::Command;
use std::time::Duration;

use weir_tests::command::run;
use weir_tests::ledger::assert_settled;
use weir_tests::netflow5::{Flow, datagram};
use weir_tests::wait::{LONG, until};
use weir_tests::weir::{Setup, Weir, binary};

/// Datagrams rejected as a whole, by reason.
fn rejected(weir: &Weir, reason: &str) -> f64 {
    weir.metrics().sum("weir_collector_rejected_datagrams_total", &[("reason", reason)]).unwrap_or(0.0)
}

fn until_rejected(weir: &Weir, reason: &str, wanted: f64) {
    until(LONG, &format!("{wanted} datagrams rejected as {reason}"), || {
        let got = rejected(weir, reason);
        if got == wanted { Ok(()) } else { Err(format!("{got}\n{}", weir.log())) }
    });
}

#[test]
fn bad_datagrams_are_counted_by_reason() {
    let setup = Setup::new();
    let weir = setup.start();
    let good = datagram(0, &[Flow::new([10, 0, 0, 1], 100), Flow::new([10, 0, 0, 2], 200)]);
    weir.send(&good);
    // Nothing, and less than a header of every version.
    for bytes in [&b""[..], &[0], &[0, 5], &good[..23], &[0, 9, 0, 1], &[0, 10, 0, 16], &[0, 0, 0, 5, 0, 0]] {
        weir.send(bytes);
    }
    until_rejected(&weir, "too_short", 7.0);
    for version in [0_u16, 2, 6, 11, 0x1603, 0x4745, 0xffff] {
        weir.send(&[&version.to_be_bytes()[..], &[0x41; 60]].concat());
    }
    until_rejected(&weir, "unknown_version", 7.0);
    weir.send(&[&[0, 8][..], &[0; 60]].concat());
    until_rejected(&weir, "netflow8", 1.0);
    // IPFIX that says it is longer than it is.
    weir.send(&[&[0, 10, 0x40, 0][..], &[0; 40]].concat());
    until_rejected(&weir, "bad_length", 1.0);
    weir.send(&datagram(2, &[Flow::new([10, 0, 0, 3], 300)]));
    weir.until_numbers("select count(*), sum(bytes) from flows", &[3, 600]);
    let ledger = assert_settled(&weir);
    assert_eq!((ledger.datagrams_received, ledger.datagrams_rejected), (18, 16));
    assert_eq!(ledger.rows_dropped, 0);
    assert!(weir.stop().success());
}

/// A good datagram cut at every byte and with every byte flipped, and noise: nothing stops, and what comes after is
/// decoded.
#[test]
fn cut_flipped_and_random_datagrams_stop_nothing() {
    let setup = Setup::new();
    let weir = setup.start();
    let collector = weir.wait_for_role("collect", None);
    let good = datagram(0, &[Flow::new([10, 9, 9, 1], 100), Flow::new([10, 9, 9, 2], 200)]);
    let mut sent = 0;
    for length in 0..good.len() {
        weir.send(&good[..length]);
        sent += 1;
    }
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 0xff;
        weir.send(&flipped);
        sent += 1;
    }
    // xorshift, seeded: the same noise each time, behind the first bytes of every protocol.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..2_000_usize {
        let mut noise = Vec::new();
        while noise.len() < 40 + number % 1_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            noise.extend(state.to_be_bytes());
        }
        let version =
            [&[0_u8, 5][..], &[0, 9], &[0, 10], &[0, 0, 0, 5, 0, 0, 0, 1], &[0, 7], &[0, 1]][number % 6];
        noise[..version.len()].copy_from_slice(version);
        weir.send(&noise);
        sent += 1;
        // The socket's buffer may be the kernel's small default.
        if number % 50 == 49 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let marker = [203, 0, 113, 77];
    weir.send(&datagram(1_000_000, &[Flow::new(marker, 77)]));
    weir.until_numbers("select count(*), sum(bytes) from flows where src_addr = '203.0.113.77'", &[1, 77]);
    let ledger = assert_settled(&weir);
    assert_eq!(ledger.datagrams_received + ledger.kernel_drops, sent + 1, "{ledger}");
    assert_eq!(weir.role("collect"), Some(collector), "the collector lived through it");
    assert_eq!(rejected(&weir, "decoder_panic"), 0.0);
    assert!(weir.stop().success());
}

/// Refused with status 2, and a message that names the place, the key and the nearest key.
#[test]
fn bad_configurations_are_refused_with_place_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.toml");
    let shown = path.display().to_string();
    let check = |command: &str, text: &str, env: &[(&str, &str)]| {
        std::fs::write(&path, text).unwrap();
        let mut weir = Command::new(binary());
        weir.arg(command).arg("--config").arg(&path).envs(env.iter().copied());
        if command != "check" {
            weir.arg("--data-dir").arg(folder.path().join("data"));
        }
        run(&mut weir, LONG)
    };
    let line = |number: u32| format!("{shown}:{number}:");
    for (text, env, wanted) in [
        (
            "# a comment\n[store]\ncommit_interval = 3\n",
            &[][..],
            vec![line(3), "commit_interval".into(), "`commit_interval_ms`".into()],
        ),
        ("[stor]\n", &[], vec![line(1), "stor".into(), "`store`".into()]),
        ("[store]\ncommit_interval_ms = \"soon\"\n", &[], vec![line(2), "commit_interval_ms".into()]),
        ("[store\n", &[], vec![line(1)]),
        ("[store]\nzstd_level = 99\n", &[], vec!["zstd_level".into(), "22".into()]),
        (
            "",
            &[("WEIR_STORE__COMMIT_INTERVAL", "5")],
            vec!["WEIR_STORE__COMMIT_INTERVAL".into(), "`commit_interval_ms`".into()],
        ),
    ] {
        for command in ["check", "run"] {
            let ended = check(command, text, env);
            let said = &ended.stderr;
            assert_eq!(ended.status.code(), Some(2), "{command} {text:?} {env:?}: {said}");
            for part in &wanted {
                assert!(said.contains(part.as_str()), "{command} {text:?} {env:?}: {said:?} lacks {part:?}");
            }
        }
    }
    assert_eq!(check("check", "[store]\ncommit_interval_ms = 2000\n", &[]).status.code(), Some(0));
    let missing = run(Command::new(binary()).args(["run", "--config", "/nonexistent/weir.toml"]), LONG);
    assert_eq!(missing.status.code(), Some(2), "{}", missing.stderr);
    assert!(missing.stderr.contains("/nonexistent/weir.toml"), "{}", missing.stderr);
    for arguments in [&["run", "--listen", "nowhere"][..], &["rum"], &["sql"], &["run", "--no-such-flag"]] {
        assert_eq!(run(Command::new(binary()).args(arguments), LONG).status.code(), Some(2), "{arguments:?}");
    }
}

/// An address that is taken: status 1, and who could have it.
#[test]
fn a_taken_address_is_named() {
    let setup = Setup::new();
    let weir = setup.start();
    let other = tempfile::tempdir().unwrap();
    let http = weir.addresses.http.to_string();
    let mut command = Command::new(binary());
    command.args(["run", "--listen", "127.0.0.1:0", "--postgres", "127.0.0.1:0", "--http", &http]);
    let ended = run(command.arg("--data-dir").arg(other.path()), LONG);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains(&http), "{}", ended.stderr);
    assert_settled(&weir);
}
