//! `cargo xtask`: builds, runs and tests lb.

mod bench;
mod build;
mod ci;
mod dist;
mod install;
mod lab;
mod privilege;
mod run;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and tests lb.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build everything and serve: the lab, or with arguments `lb run` on this host's interfaces
    Run(run::Arguments),
    /// Run every test there is
    Test(test::Arguments),
    /// Build `lb`
    Build(build::Arguments),
    /// Start, stop or look at the lab: a balancer and three backends in network namespaces
    Lab(lab::Arguments),
    /// Run the long forms of the random tests
    Soak(soak::Arguments),
    /// Measure: tables here, JSON and charts in a directory
    Bench(bench::Arguments),
    /// Make what is shipped: a static binary, a Debian package, a container image
    Dist(dist::Arguments),
    /// Check format and lints, then run every test
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Test(arguments) => test::test(&arguments),
        Command::Build(arguments) => build::build(arguments.debug).map(drop),
        Command::Lab(arguments) => lab::lab(arguments),
        Command::Soak(arguments) => soak::soak(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Dist(arguments) => dist::dist(&arguments),
        Command::Ci => ci::ci(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
