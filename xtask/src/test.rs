//! `cargo xtask test`.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{build::cargo, install, privilege};

#[derive(Args, Default)]
pub(crate) struct Arguments {
    /// Arguments of `cargo test`, such as the name of a test
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn test(arguments: &Arguments) -> Result<()> {
    install::toolchain()?;
    install::tools(install::LAB)?;
    install::tools(install::TESTS)?;
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]);
    privilege::run_as_root(&mut command);
    let (ran, status) = counted(command.args(&arguments.arguments))?;
    println!("{} tests ran: {} passed, {} failed", ran.passed + ran.failed, ran.passed, ran.failed);
    ensure!(status.success(), "the tests failed: cargo test: {status}");
    ensure!(ran.passed + ran.failed > 0, "no test ran");
    Ok(())
}

/// How many tests ran.
#[derive(Default)]
struct Ran {
    passed: u64,
    failed: u64,
}

/// Runs cargo test with its output shown, and adds up its summaries.
fn counted(command: &mut Command) -> Result<(Ran, ExitStatus)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let output = child.stdout.take().context("its output")?;
    let mut ran = Ran::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let mut shown = std::io::stdout().lock();
        shown.write_all(&line)?;
        shown.write_all(b"\n")?;
        if let Some(summary) = line.strip_prefix(b"test result: ") {
            let summary = String::from_utf8_lossy(summary);
            ran.passed += number_before(&summary, " passed")?;
            ran.failed += number_before(&summary, " failed")?;
        }
    }
    Ok((ran, child.wait()?))
}

fn number_before(text: &str, word: &str) -> Result<u64> {
    let Some(number) = text.split_once(word).and_then(|(before, _)| before.rsplit(' ').next())
    else {
        bail!("a summary without{word}: {text}");
    };
    number.parse().with_context(|| format!("a summary without a number: {text}"))
}
