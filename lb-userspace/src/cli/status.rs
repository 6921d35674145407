//! `lb status`.

use std::time::Duration;

use clap::Args;

use super::{
    Outcome, Place,
    list::{print_backends, print_services},
    output::{Failure, print, print_json},
};
use crate::{
    api::{self, ABSENT, ClientError, ControllerStatus, Request, Response},
    dataplane::{DataplaneError, Maps},
    observe::Status,
};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn status(place: &Place, arguments: &StatusArgs) -> Outcome {
    let pins = place.pins()?;
    let opened = Maps::open(&pins);
    let mut absence = "not running; the data plane goes on without checks";
    let controller = match api::call(&place.socket()?, &Request::Status) {
        Ok(Response::Status(status)) => Some(status),
        Ok(_) | Err(ClientError::NotRunning(_)) => None,
        Err(ClientError::Silent(_)) => {
            absence = "doesn't answer; the data plane goes on, perhaps without checks";
            None
        }
        Err(error) => return Err(error.into()),
    };
    let maps = match (opened, &controller) {
        (Ok(maps), _) => maps,
        (Err(error), Some(controller)) => {
            if !arguments.json {
                print(&about(controller));
            }
            return Err(match error {
                DataplaneError::NotLoaded(path) => Failure::failed(format!(
                    "the pins at {} are gone: forwarding goes on as long as that controller runs; restart it to begin afresh",
                    path.display()
                )),
                other => other.into(),
            });
        }
        (Err(error), None) => return Err(error.into()),
    };
    if controller.is_none() && !pins.are_attached() {
        absence = "not running, and no program is attached: nothing is forwarded";
    }
    let status = Status::read(&maps, controller)?;
    if arguments.json {
        return print_json(&status);
    }

    let mut text = match &status.controller {
        Some(controller) => about(controller),
        None => {
            let interfaces =
                pins.links().into_iter().map(|link| format!("interface   {}\n", link.name));
            format!("controller  {absence}\n{}", interfaces.collect::<String>())
        }
    };
    text += &format!("flows       {}\n\n", status.flows);
    print(&text);
    print_services(&status.services);
    print("\n");
    print_backends(&status.backends);
    Ok(())
}

/// What a controller says of itself.
fn about(controller: &ControllerStatus) -> String {
    let mut text = format!(
        "controller  running, process {}, version {}, up {}, {}\n",
        controller.pid,
        controller.version,
        humantime::format_duration(Duration::from_secs(controller.uptime_s)),
        controller.config,
    );
    for interface in &controller.interfaces {
        text += &format!("interface   {}, {}", interface.name, interface.mode);
        if interface.mode != ABSENT {
            text += " mode";
        }
        if let Some(cause) = &interface.cause {
            text += &format!(": {cause}");
        }
        text.push('\n');
    }
    text
}
