//! `cargo xtask soak`.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::{
    build::{cargo, succeed},
    install, privilege,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// For how long at least
    #[arg(long, default_value_t = 1)]
    minutes: u64,
}

/// Seconds that mutated input is fed in one round, to each that takes some.
const MUTATIONS: u64 = 600;
/// Random packets of one round.
const PACKETS: u64 = 10_000_000;

pub(crate) fn soak(arguments: &Arguments) -> Result<()> {
    install::toolchain()?;
    let end = Instant::now() + Duration::from_secs(arguments.minutes * 60);
    loop {
        let mut command = cargo();
        command.args(["test", "--locked", "--release", "--package", "lb-tests"]);
        command.args(["--test", "random_packets", "--test", "mutations", "--", "--nocapture"]);
        command.env("LB_RANDOM_PACKETS", PACKETS.to_string());
        command.env("LB_MUTATION_SECONDS", (arguments.minutes * 60).min(MUTATIONS).to_string());
        privilege::run_as_root(&mut command);
        succeed(&mut command)?;
        if Instant::now() >= end {
            return Ok(());
        }
    }
}
