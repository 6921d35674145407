//! `lb completions` and `lb man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{
    Cli, Outcome,
    output::{self, Failure},
};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write the pages of `lb` and of each of its commands into this directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(arguments: &CompletionsArgs) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "lb", &mut text);
    output::print(&String::from_utf8_lossy(&text));
    Ok(())
}

pub(super) fn man(arguments: &ManArgs) -> Outcome {
    if let Some(directory) = &arguments.directory {
        return clap_mangen::generate_to(Cli::command(), directory)
            .map_err(|error| Failure::failed(format!("{}: {error}", directory.display())));
    }
    let mut text = Vec::new();
    Man::new(Cli::command()).render(&mut text).map_err(Failure::failed)?;
    output::print(&String::from_utf8_lossy(&text));
    Ok(())
}
