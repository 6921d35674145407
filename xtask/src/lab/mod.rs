//! `cargo xtask lab`: a balancer and three backends in network namespaces, with this host as the
//! client.

mod place;
mod serve;
mod subnet;
mod topology;

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Args, Subcommand};
use ipnet::Ipv4Net;
use xtask::web;

pub(crate) use serve::serve;
pub(crate) use subnet::DEFAULT_SUBNET;

use crate::{build, install, privilege};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start it; no error if it is up
    Up(SubnetArguments),
    /// Stop it, and remove every trace, also after a crash
    Down,
    /// Say what is there
    Status,
    /// Kill the process of a backend or of the controller
    Kill(ProcessArguments),
    /// Start it again
    Start(ProcessArguments),
    /// Start it anew, show the controller's log, and stop it at Ctrl-C
    Serve(SubnetArguments),
    /// Be one of the backends
    #[command(hide = true)]
    Backend {
        /// Its name
        name: String,
        /// Where it listens
        address: SocketAddr,
    },
}

#[derive(Args)]
struct SubnetArguments {
    /// The lab's addresses, a network of 24 bits
    #[arg(long, default_value_t = DEFAULT_SUBNET)]
    subnet: Ipv4Net,
}

#[derive(Args)]
struct ProcessArguments {
    /// mgmt01, mgmt02, mgmt03 or lb
    name: String,
}

pub(crate) fn lab(arguments: Arguments) -> Result<()> {
    if let Command::Backend { name, address } = arguments.command {
        return web::serve(address, &name);
    }
    if matches!(arguments.command, Command::Up(_)) {
        build::build(false)?;
        install::tools(install::LAB)?;
    }
    let own: Vec<String> = std::env::args().skip(1).collect();
    privilege::require(&own)?;
    match arguments.command {
        Command::Up(arguments) => {
            subnet::check_size(arguments.subnet)?;
            if topology::is_up() {
                println!("The lab is up already.");
            } else {
                topology::down()?;
                topology::up(arguments.subnet)?;
            }
            serve::print_what_to_try(&topology::subnet()?);
            Ok(())
        }
        Command::Down => topology::down(),
        Command::Status => topology::print_status(),
        Command::Kill(arguments) => topology::kill(&arguments.name),
        Command::Start(arguments) => topology::start(&arguments.name),
        Command::Serve(arguments) => serve(arguments.subnet),
        Command::Backend { .. } => Ok(()),
    }
}
