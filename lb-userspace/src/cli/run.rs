//! `lb run` and `lb check`.

use std::net::SocketAddr;

use clap::Args;

use super::{
    Outcome, Place,
    output::{self, Failure},
};
use crate::{
    config::Config,
    control::{self, Overrides},
    dataplane::ModeChoice,
};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Attach to this interface, instead of those in the configuration; may be repeated
    #[arg(long = "interface", value_name = "IF")]
    interfaces: Vec<String>,
    /// How the program is attached
    #[arg(long, value_enum)]
    xdp_mode: Option<ModeChoice>,
    /// Where the admin pages are served; an empty address: nowhere
    #[arg(long, value_name = "ADDRESS", value_parser = admin_address)]
    admin: Option<Admin>,
    /// Remove program and maps when the controller stops: forwarding ends with it
    #[arg(long)]
    detach_on_exit: bool,
}

#[derive(Clone, Copy, Debug)]
struct Admin(Option<SocketAddr>);

fn admin_address(text: &str) -> Result<Admin, String> {
    if text.is_empty() {
        return Ok(Admin(None));
    }
    text.parse().map(|address| Admin(Some(address))).map_err(|_| {
        "write an address and a port, as in 127.0.0.1:8404, or \"\" for none".to_owned()
    })
}

pub(super) fn run(place: &Place, arguments: RunArgs) -> Outcome {
    let overrides = Overrides {
        interfaces: arguments.interfaces,
        xdp_mode: arguments.xdp_mode,
        admin: arguments.admin.map(|Admin(address)| address),
        socket: place.socket.clone(),
        pin_path: place.pin_path.clone(),
    };
    let prepared = control::prepare(place.file(), overrides)?;
    // More would only stand in each other's way.
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(Failure::failed)?;
    Ok(runtime.block_on(control::run(prepared, arguments.detach_on_exit))?)
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Say nothing if it is valid
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn check(place: &Place, arguments: &CheckArgs) -> Outcome {
    let file = place.file();
    match Config::read(&file) {
        Ok(config) => {
            if !arguments.quiet {
                output::print(&format!("{}: valid, {}\n", file.display(), config.extent()));
            }
            Ok(())
        }
        Err(invalid) => Err(invalid.into()),
    }
}
