//! `cargo xtask run`.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use clap::Args;
use ipnet::Ipv4Net;

use crate::{build, install, lab, privilege};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The lab's addresses, a network of 24 bits
    #[arg(long, default_value_t = lab::DEFAULT_SUBNET)]
    subnet: Ipv4Net,
    /// Arguments of `lb run`; without any, the lab is started
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let lb = build::build(false)?;
    if !arguments.arguments.is_empty() {
        let lb = lb.to_str().context("the path of lb isn't UTF-8")?;
        let error = privilege::command(lb).arg("run").args(&arguments.arguments).exec();
        return Err(error).context("lb run");
    }
    install::tools(install::LAB)?;
    let serve = ["lab", "serve", "--subnet", &arguments.subnet.to_string()].map(str::to_owned);
    privilege::require(&serve)?;
    lab::serve(arguments.subnet)
}
