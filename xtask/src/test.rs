//! `cargo xtask test`.

use anyhow::Result;
use clap::Args;

use crate::{
    build::{cargo, succeed},
    install, privilege,
};

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
    command.args(["test", "--locked", "--workspace", "--exclude", "lb-ebpf", "--no-fail-fast"]);
    if !privilege::is_root() {
        println!("The tests make network namespaces and load programs: they run through sudo.");
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
        command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
    }
    succeed(command.args(&arguments.arguments))
}
