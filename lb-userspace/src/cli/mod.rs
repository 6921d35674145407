//! The command line.

mod control;
mod diff;
mod documentation;
mod events;
mod list;
mod output;
mod place;
mod run;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use output::Failure;
pub(crate) use output::short;

/// A layer-4 load balancer that forwards packets in an XDP program.
#[derive(Debug, Parser)]
#[command(name = "lb", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration, the controller and the data plane are.
#[derive(Clone, Debug, Args)]
struct Place {
    /// Configuration file [default: /etc/lb/lb.toml]
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Control socket [default: what the configuration says, or /run/lb/lb.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Directory of pinned maps [default: what the configuration says, or /sys/fs/bpf/lb]
    #[arg(long, global = true, value_name = "PATH")]
    pin_path: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller: load the program, attach it, check backends, keep the maps true
    Run(run::RunArgs),
    /// Validate the configuration
    Check(run::CheckArgs),
    /// Show what is in the pinned maps, whether a controller runs or not
    List(list::ListArgs),
    /// Show controller, interfaces, services and backends on one screen
    Status(status::StatusArgs),
    /// Show what happened lately: backends up and down, commands, troubles
    Events(events::EventsArgs),
    /// Give a backend no new flows; those it has go on
    Drain(control::DrainArgs),
    /// Take a backend out of service: no new flows, no checks
    Maint(control::TargetArgs),
    /// Undo drain, maint and weight
    Ready(control::TargetArgs),
    /// Set a backend's weight, until `ready`
    Weight(control::WeightArgs),
    /// Show what a reload of the configuration file would change
    Diff(diff::DiffArgs),
    /// Apply the configuration file again
    Reload,
    /// Remove the program from all interfaces, with its maps: forwarding ends
    Detach,
    /// Print the completions of a shell
    Completions(documentation::CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(documentation::ManArgs),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let place = &cli.place;
    let result = match cli.command {
        Command::Run(arguments) => run::run(place, arguments),
        Command::Check(arguments) => run::check(place, &arguments),
        Command::List(arguments) => list::list(place, &arguments),
        Command::Status(arguments) => status::status(place, &arguments),
        Command::Events(arguments) => events::events(place, &arguments),
        Command::Drain(arguments) => control::drain(place, &arguments),
        Command::Maint(arguments) => control::maint(place, &arguments),
        Command::Ready(arguments) => control::ready(place, &arguments),
        Command::Weight(arguments) => control::weight(place, &arguments),
        Command::Diff(arguments) => diff::diff(place, &arguments),
        Command::Reload => control::reload(place),
        Command::Detach => control::detach(place),
        Command::Completions(arguments) => documentation::completions(&arguments),
        Command::Man(arguments) => documentation::man(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

type Outcome = Result<(), Failure>;
