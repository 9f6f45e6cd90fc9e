//! The repository itself: what is written down agrees with what there is.

use std::path::PathBuf;
use std::process::Command;

use weir_tests::command::run_program;
use weir_tests::{repository, wait::LONG};

/// The files that git knows, as paths from the root.
fn files() -> Vec<String> {
    let root = repository();
    let ended = run_program("git", ["-C".as_ref(), root.as_os_str(), "ls-files".as_ref()]);
    let files: Vec<String> =
        ended.ok().lines().map(str::to_owned).filter(|file| root.join(file).is_file()).collect();
    assert!(files.len() > 50, "git lists {} files", files.len());
    files
}

fn read(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).unwrap_or_default()
}

#[test]
fn no_file_is_over_a_thousand_lines() {
    let code = |file: &&String| {
        let kind = PathBuf::from(file).extension().map(|kind| kind.to_string_lossy().into_owned());
        matches!(kind.as_deref(), Some("rs" | "md" | "toml" | "sh" | "py" | "yml" | "yaml" | "ts" | "slt"))
            || kind.is_none()
    };
    let long: Vec<_> = files()
        .iter()
        .filter(code)
        .map(|file| (read(file).lines().count(), file.clone()))
        .filter(|(lines, _)| *lines > 1_000)
        .collect();
    assert!(long.is_empty(), "{long:?}");
    let readme = read("README.md").lines().count();
    assert!(readme <= 150, "README.md has {readme} lines");
}

/// One Arrow and one DataFusion: two would not understand each other's batches.
#[test]
fn one_arrow_and_one_datafusion() {
    let lock = read("Cargo.lock");
    for name in ["arrow", "arrow-array", "arrow-schema", "parquet", "datafusion", "object_store"] {
        let versions = lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
        assert_eq!(versions, 1, "{name}");
    }
}

/// The licences that Apache-2.0 software may be built with; `deny.toml` says the same to cargo-deny.
#[test]
fn licences_are_compatible() {
    let mut command = Command::new("cargo");
    // Nothing was downloaded of what only other platforms need.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    command.args([
        "metadata",
        "--format-version",
        "1",
        "--offline",
        "--locked",
        "--filter-platform",
        &platform,
    ]);
    command.current_dir(repository());
    let ended = weir_tests::command::run(&mut command, LONG);
    let metadata: serde_json::Value = serde_json::from_str(&ended.ok()).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let copyleft: Vec<_> = packages
        .iter()
        .filter_map(|package| {
            Some((package["name"].as_str()?, package["license"].as_str().unwrap_or("none")))
        })
        .filter(|(_, licence)| {
            // One of several that may be chosen is enough.
            licence
                .split(" OR ")
                .all(|choice| choice.contains("GPL") || choice.contains("SSPL") || choice.contains("BUSL"))
        })
        .collect();
    assert!(copyleft.is_empty(), "{copyleft:?}");
}

/// Links between the repository's own documents lead somewhere.
#[test]
fn links_in_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for file in files().iter().filter(|file| file.ends_with(".md")) {
        let folder = PathBuf::from(file).parent().map(PathBuf::from).unwrap_or_default();
        for link in read(file)
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')').map(|(link, _)| link.to_owned()))
        {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !repository().join(&folder).join(path).exists() {
                broken.push(format!("{file}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
