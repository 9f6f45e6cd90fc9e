//! `weir demo`: what the README begins with. It runs, and every command that it prints works as printed.

use std::process::Command;

use weir_tests::command::{Background, program, run, signal};
use weir_tests::wait::{LONG, until};
use weir_tests::weir::binary;

#[test]
fn the_demo_runs_and_what_it_prints_works() {
    program("psql");
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.args(["demo", "--http", "127.0.0.1:0", "--postgres", "127.0.0.1:0", "--data-dir"]);
    command.arg(folder.path().join("data"));
    let demo = Background::start(&mut command, &folder.path().join("output"));
    let commands = until(LONG, "the demo to say what to try", || {
        let output = demo.output();
        let commands: Vec<String> = output
            .lines()
            .map(str::trim)
            .filter(|line| ["psql ", "weir ", "curl "].iter().any(|program| line.starts_with(program)))
            .map(str::to_owned)
            .collect();
        if commands.len() >= 4 { Ok(commands) } else { Err(output) }
    });
    // `weir` is the binary under test.
    let path =
        format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    for command in &commands {
        until(LONG, command, || {
            let ended = run(Command::new("sh").args(["-c", command]).env("PATH", &path), LONG);
            let rows =
                ended.stdout.lines().filter(|line| line.contains(|c: char| c.is_ascii_digit())).count();
            if ended.status.success() && rows >= 3 {
                Ok(())
            } else {
                Err(format!("{ended:?}\n{}", demo.output()))
            }
        });
    }
    signal(demo.pid(), "INT");
    let output = folder.path().join("output");
    let status = demo.finish(LONG);
    assert!(status.success(), "{status}: {}", std::fs::read_to_string(output).unwrap_or_default());
}
