//! `weir reload` and SIGHUP under load: the roles that a change concerns are started anew on the same sockets, no flow is
//! lost, and what cannot be is refused while the old configuration stays.

use std::process::Command;
use std::time::Duration;

use weir_tests::command::{Ended, run, signal};
use weir_tests::generate::Load;
use weir_tests::ledger::at_rest;
use weir_tests::wait::LONG;
use weir_tests::weir::{Setup, binary};

fn write(setup: &Setup, toml: &str) {
    std::fs::write(setup.folder().join("weir.toml"), toml).unwrap();
}

/// Every exporter has this sampling rate.
fn overridden(rate: u32, more: &str) -> String {
    format!("[[decode.exporters]]\naddress = \"0.0.0.0/0\"\nsampling_rate = {rate}\n\n{more}")
}

fn reload(setup: &Setup) -> Ended {
    run(Command::new(binary()).arg("reload").arg("--data-dir").arg(setup.data_dir()), LONG)
}

#[test]
fn a_reload_under_load_loses_nothing() {
    let setup = Setup::new();
    let weir = setup.start();
    let (collect, aggregate) = (weir.wait_for_role("collect", None), weir.wait_for_role("aggregate", None));
    let sent = std::thread::scope(|scope| {
        let load = scope.spawn(|| Load::new(60_000).rate(10_000).exporters(4).run(&weir));
        std::thread::sleep(Duration::from_secs(1));
        // Nothing has changed, nothing is started anew.
        assert_eq!(reload(&setup).ok().trim(), "nothing has changed");
        write(&setup, &overridden(7, ""));
        assert_eq!(reload(&setup).ok().trim(), "reloads collect");
        let second = weir.wait_for_role("collect", Some(collect));
        std::thread::sleep(Duration::from_secs(1));
        write(&setup, &overridden(9, "[sql]\nconcurrent_queries = 3\n"));
        signal(weir.pid(), "HUP");
        weir.wait_for_role("collect", Some(second));
        weir.wait_for_role("aggregate", Some(aggregate));
        load.join().unwrap()
    });
    at_rest(&weir, sent);
    let mut flows = sent.rows;
    // The last configuration is in force.
    let rates = weir.sql("select distinct sampling_rate from flows where sampling_source = 'override'");
    assert!(rates.contains(&vec!["9.0".to_owned()]), "{rates:?}");

    let (collect, aggregate) = (weir.wait_for_role("collect", None), weir.wait_for_role("aggregate", None));
    for (toml, wanted) in [
        ("[decode]\ndefault_samplingrate = 9\n", "default_sampling_rate"),
        (
            "[listen]\nudp = [\"127.0.0.1:1\"]\nhttp = \"127.0.0.1:2\"\ninsecure = true\n",
            "listen can change only by a restart",
        ),
    ] {
        write(&setup, toml);
        let refused = reload(&setup);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(refused.stderr.contains(wanted), "{refused:?}");
    }
    assert_eq!((weir.role("collect"), weir.role("aggregate")), (Some(collect), Some(aggregate)));
    // A role that dies comes again with what weir runs with, whatever has become of the file.
    for broken in ["[decode\n", ""] {
        write(&setup, broken);
        if broken.is_empty() {
            std::fs::remove_file(setup.folder().join("weir.toml")).unwrap();
        }
        for role in ["collect", "aggregate"] {
            let killed = weir.kill_role(role);
            weir.wait_for_role(role, Some(killed));
        }
        let more = Load::new(500).exporters(4).run(&weir);
        flows += more.rows;
        weir.until_numbers("select count(*) from flows", &[flows]);
    }
    let rates =
        weir.sql("select distinct sampling_rate from flows where received_at > now() - interval '1 minute'");
    assert!(rates.contains(&vec!["9.0".to_owned()]), "{rates:?}");
    assert!(weir.stop().success());

    let nobody = reload(&setup);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        nobody.stderr.contains("no weir answers at") && nobody.stderr.contains("--data-dir"),
        "{nobody:?}"
    );
}
