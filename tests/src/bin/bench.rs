//! Measures lb: what `cargo xtask bench` runs.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lb_tests::bench::packets;

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
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    for part in &arguments.parts {
        let report = match part {
            Part::Packets => packets::Bench::new()?.report(&arguments.only)?,
        };
        report.publish(&arguments.directory)?;
    }
    Ok(())
}
