//! `cargo xtask ci`.

use anyhow::Result;

use crate::{
    build::{cargo, succeed},
    install, test,
};

pub(crate) fn ci() -> Result<()> {
    install::toolchain()?;
    succeed(cargo().args(["fmt", "--all", "--check"]))?;
    let warnings = ["--", "--deny", "warnings"];
    let clippy = ["clippy", "--locked", "--all-targets"];
    succeed(cargo().args(clippy).args(warnings))?;
    // The XDP programs' crates only make sense for their own target.
    let mut clippy = cargo();
    clippy.env("RUSTC_BOOTSTRAP", "1").args(["clippy", "--locked"]);
    clippy.args(["--package", "lb-ebpf", "--package", "lb-tests-ebpf"]);
    clippy.args(["--release", "--target", "bpfel-unknown-none", "-Zbuild-std=core"]);
    succeed(clippy.args(warnings))?;
    test::test(&test::Arguments::default())
}
