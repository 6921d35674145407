//! The benchmark, as far as it isn't about numbers.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

/// Files in a directory whose names begin so.
fn count(directory: impl AsRef<Path>, prefix: &str) -> Result<usize> {
    let names = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    let names = names.iter().filter_map(|name| name.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(prefix)).count())
}

#[test]
fn an_interrupted_benchmark_leaves_nothing_behind() -> Result<()> {
    let (reports, temporary) = (TempDir::new()?, TempDir::new()?);
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"))
        .env("TMPDIR", temporary.path())
        .args(["rate", "--only", "lb dsr", "--directory"])
        .arg(reports.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut lines = BufReader::new(bench.stderr.take().context("its messages")?).lines();
    let first = lines.next().context("it measures something")??;
    ensure!(first.starts_with("round 1 of"), "{first}");
    let id = bench.id();
    // That which measures.
    let child = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let [namespaces, pins] = [("lbb", "/run/netns"), ("lb-test-", "/sys/fs/bpf")]
        .map(|(name, directory)| (directory, format!("{name}{}-", child.trim())));
    ensure!(count(namespaces.0, &namespaces.1)? == 3, "there are no {}", namespaces.1);
    // As a terminal does it.
    killpg(Pid::from_raw(id.cast_signed()), Signal::SIGINT)?;
    let said = lines.collect::<Result<Vec<_>, _>>()?.join("\n");
    let status = bench.wait()?;
    ensure!(status.code() == Some(1), "{status}: {said}");
    ensure!(said.contains("bench: interrupted"), "{said}");
    for (directory, prefix) in [namespaces, pins] {
        ensure!(count(directory, &prefix)? == 0, "{prefix}: left in {directory}");
    }
    for directory in [reports, temporary] {
        let left = count(directory.path(), "")?;
        ensure!(left == 0, "{left} files are left in {}", directory.path().display());
    }
    Ok(())
}

/// What a benchmark that measures nothing says.
fn refused(arguments: &[&str], directory: &Path) -> Result<String> {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = bench.args(arguments).arg("--directory").arg(directory).output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

#[test]
fn a_name_that_nothing_has_leaves_earlier_results_alone() -> Result<()> {
    let directory = TempDir::new()?;
    let file = directory.path().join("control.json");
    fs::write(&file, "earlier")?;
    let said = refused(&["control", "--only", "lb drs"], directory.path())?;
    ensure!(said.contains("nothing that is measured has \"lb drs\" in its name"), "{said}");
    ensure!(fs::read_to_string(&file)? == "earlier");
    Ok(())
}

#[test]
fn where_results_can_not_be_written_nothing_is_measured() -> Result<()> {
    let directory = TempDir::new()?;
    let file = directory.path().join("file");
    fs::write(&file, "")?;
    for place in [&file, Path::new("/proc/bench")] {
        let said = refused(&["rate", "--only", "lb dsr"], place)?;
        ensure!(said.contains("reports can't be written there"), "{said}");
        ensure!(!said.contains("round 1 of"), "{said}");
    }
    Ok(())
}
