//! The benchmark, as far as it isn't about numbers.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

#[test]
fn an_interrupted_benchmark_leaves_nothing_behind() -> Result<()> {
    let (reports, temporary) = (TempDir::new()?, TempDir::new()?);
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"))
        .env("TMPDIR", temporary.path())
        .args(["rate", "--only", "XDP redirect", "--directory"])
        .arg(reports.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let prefix = format!("lbb{}-", bench.id());
    let namespaces = || -> Result<usize> {
        let names = fs::read_dir("/run/netns")?.collect::<Result<Vec<_>, _>>()?;
        let names = names.iter().filter_map(|name| name.file_name().into_string().ok());
        Ok(names.filter(|name| name.starts_with(&prefix)).count())
    };
    let mut lines = BufReader::new(bench.stderr.take().context("its messages")?).lines();
    let first = lines.next().context("it measures something")??;
    ensure!(first.starts_with("round 1 of"), "{first}");
    ensure!(namespaces()? == 3, "{} namespaces", namespaces()?);
    kill(Pid::from_raw(bench.id().cast_signed()), Signal::SIGINT)?;
    let said = lines.collect::<Result<Vec<_>, _>>()?.join("\n");
    let status = bench.wait()?;
    ensure!(status.code() == Some(1), "{status}: {said}");
    ensure!(said.contains("Error: interrupted"), "{said}");
    ensure!(namespaces()? == 0, "{} namespaces are left", namespaces()?);
    for directory in [reports, temporary] {
        let left = fs::read_dir(directory.path())?.count();
        ensure!(left == 0, "{left} files are left in {}", directory.path().display());
    }
    Ok(())
}
