//! `cargo xtask build`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::install;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Build without optimisation, into target/debug
    #[arg(long)]
    pub(crate) debug: bool,
}

/// Builds `lb`, and returns where it is.
pub(crate) fn build(debug: bool) -> Result<PathBuf> {
    install::toolchain()?;
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "lb-userspace", "--bin", "lb"]);
    if !debug {
        command.arg("--release");
    }
    succeed(&mut command)?;
    Ok(target_directory().join(if debug { "debug" } else { "release" }).join("lb"))
}

/// Cargo, at the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs a command to its end, with its output shown.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("starting {program}"))?;
    let arguments: Vec<_> = command.get_args().map(|text| text.to_string_lossy()).collect();
    ensure!(status.success(), "{program} {}: {status}", arguments.join(" "));
    Ok(())
}
