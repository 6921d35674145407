//! Measures lb: what `cargo xtask bench` runs.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use lb_tests::bench::{
    Programs, apart, control, interruption, network, packets, prepare, rate, virtio,
};

#[derive(Parser)]
struct Arguments {
    /// Where JSON and charts go [default: nowhere]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Only what has this in its name
    #[arg(long, default_value = "")]
    only: String,
    /// For the process that measures: the one that supervises it
    #[arg(long, hide = true)]
    supervised: Option<i32>,
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
    /// Frames a second through a virtual machine with network interfaces of several queues
    Guest,
}

fn main() -> ExitCode {
    match measure() {
        Ok(code) => code,
        Err(error) => {
            // Who has interrupted it doesn't look for where that was noticed.
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let Some(supervisor) = arguments.supervised else {
        let status = interruption::supervise("--supervised")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    };
    interruption::watch(supervisor)?;
    let directory = arguments.directory.as_deref();
    directory.map_or(Ok(()), prepare)?;
    let programs = Programs::beside_this_one()?;
    let mut found = false;
    for part in &arguments.parts {
        let report = match part {
            Part::Packets => apart(|| packets::Bench::new()?.report(&arguments.only))?,
            Part::Control => control::report(&programs.lb, &arguments.only)?,
            Part::Rate => rate::report(&programs, &arguments.only)?,
            Part::Network => network::report(&programs, &arguments.only)?,
            Part::Guest => virtio::report(&programs, &arguments.only)?,
        };
        interruption::demand_none()?;
        // What was published before is more than nothing.
        if !report.rows.is_empty() {
            found = true;
            report.publish(directory)?;
        }
    }
    ensure!(found, "nothing that is measured has {:?} in its name", arguments.only);
    Ok(ExitCode::SUCCESS)
}
