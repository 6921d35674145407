//! `cargo xtask bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

use crate::{
    build::{cargo, root, succeed},
    install, privilege,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// What to measure [default: everything]
    parts: Vec<Part>,
    /// Only what has this in its name
    #[arg(long)]
    only: Option<String>,
    /// Where JSON and charts go [default: bench/ of the project; with --only, nowhere]
    #[arg(long)]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What the program takes for one packet
    Packets,
    /// Frames a second through lb and through others
    Rate,
    /// Requests through lb and through others
    Network,
    /// Rings, reloads, checks, lists, memory
    Control,
    /// Frames a second through a virtual machine with network interfaces of several queues
    Guest,
}

pub(crate) fn bench(arguments: &Arguments) -> Result<()> {
    install::toolchain()?;
    install::tools(install::LAB)?;
    install::tools(install::TESTS)?;
    install::tools(install::BENCH)?;
    let all = Part::value_variants();
    let parts = if arguments.parts.is_empty() { all } else { &arguments.parts };
    if parts.contains(&Part::Guest) {
        install::tools(install::GUEST)?;
    }
    // What is measured are programs of their own.
    let mut build = cargo();
    build.args(["build", "--locked", "--release", "--package", "lb-tests"]);
    succeed(build.args(["--bin", "lb-under-test", "--bin", "redirector"]))?;
    let mut command = cargo();
    command.args(["run", "--locked", "--release", "--package", "lb-tests", "--bin", "bench", "--"]);
    // What is measured of everything isn't replaced by a part of it.
    let default = arguments.only.is_none().then(|| root().join("bench"));
    if let Some(directory) = arguments.directory.clone().or(default) {
        command.arg("--directory").arg(directory);
    }
    command.args(arguments.only.iter().flat_map(|only| ["--only", only]));
    for part in parts {
        command.args(part.to_possible_value().map(|value| value.get_name().to_owned()));
    }
    privilege::run_as_root(&mut command);
    outlive_interruptions()?;
    succeed(&mut command)
}

/// From here on Ctrl-C doesn't end this process: the one that it waits for gets it as well, and has something to remove.
fn outlive_interruptions() -> Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    // What hears it stays for as long as the process, and in no other.
    let _context = runtime.enter();
    drop(signal(SignalKind::interrupt())?);
    Ok(())
}
