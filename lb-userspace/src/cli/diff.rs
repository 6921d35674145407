//! `lb diff`.

use std::path::Path;

use clap::Args;

use super::{
    Outcome, Place,
    output::{self, Failure},
};
use crate::{
    api::{self, Request, Response},
    config::{self, Config},
};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn diff(place: &Place, arguments: &DiffArgs) -> Outcome {
    let new = Config::read(&place.file())?;
    let Response::Config(text) = api::call(&place.socket()?, &Request::Config)? else {
        return Err(Failure::failed("the controller gave another answer"));
    };
    // Another version may have read it.
    let old = Config::parse(Path::new("the configuration in force"), &text)?;
    let differences = config::diff(&old, &new);
    if arguments.json {
        return output::print_json(&differences);
    }
    let lines: Vec<String> =
        differences.iter().map(|difference| format!("{difference}\n")).collect();
    output::print(if lines.is_empty() { "nothing would change\n" } else { "" });
    output::print(&lines.concat());
    Ok(())
}
