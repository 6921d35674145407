//! Measures lb: what `cargo xtask bench` runs.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use lb_tests::bench::{apart, control, network, packets, rate};

#[derive(Parser)]
struct Arguments {
    /// Where JSON and charts go
    #[arg(long)]
    directory: PathBuf,
    /// Only what has this in its name
    #[arg(long, default_value = "")]
    only: String,
    /// What is measured
    parts: Vec<Part>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// What the program takes for one packet
    Packets,
    /// Frames a second through lb and through others
    Rate,
    /// Requests through lb and through others
    Network,
    /// Rings, reloads, checks, lists, memory
    Control,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    for part in &arguments.parts {
        let report = match part {
            Part::Packets => apart(|| packets::Bench::new()?.report(&arguments.only))?,
            Part::Control => control::report(&own_lb()?, &arguments.only)?,
            Part::Rate => rate::report(&own_lb()?, &arguments.only)?,
            Part::Network => network::report(&own_lb()?, &arguments.only)?,
        };
        report.publish(&arguments.directory)?;
    }
    Ok(())
}

/// The program under test, which is built beside this one.
fn own_lb() -> Result<String> {
    let path = std::env::current_exe()?.with_file_name("lb-under-test");
    ensure!(path.exists(), "{} isn't there: `cargo xtask bench` builds it", path.display());
    Ok(path.to_str().context("UTF-8")?.to_owned())
}
