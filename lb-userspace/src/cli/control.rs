//! Commands that change something.

use clap::Args;

use super::{
    Outcome, Place,
    output::{self, Failure},
};
use crate::api::{self, Operation, Request, Response};

/// `SERVICE/BACKEND`.
#[derive(Clone, Debug)]
struct Target {
    service: String,
    backend: String,
}

#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// Which backend of which service
    #[arg(value_name = "SERVICE/BACKEND", value_parser = target)]
    target: Target,
}

#[derive(Debug, Args)]
pub(super) struct WeightArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Its share of new flows, relative to the others'; 0 drains
    #[arg(value_parser = clap::value_parser!(u16).range(0..=256))]
    weight: u16,
}

fn target(text: &str) -> Result<Target, String> {
    match text.split_once('/') {
        Some((service, backend)) if !service.is_empty() && !backend.is_empty() => {
            Ok(Target { service: service.to_owned(), backend: backend.to_owned() })
        }
        _ => Err("write SERVICE/BACKEND, as in cloudstack-ui/mgmt01".to_owned()),
    }
}

pub(super) fn drain(place: &Place, arguments: &TargetArgs) -> Outcome {
    operate(place, &arguments.target, Operation::Drain)
}

pub(super) fn maint(place: &Place, arguments: &TargetArgs) -> Outcome {
    operate(place, &arguments.target, Operation::Maint)
}

pub(super) fn ready(place: &Place, arguments: &TargetArgs) -> Outcome {
    operate(place, &arguments.target, Operation::Ready)
}

pub(super) fn weight(place: &Place, arguments: &WeightArgs) -> Outcome {
    operate(place, &arguments.target.target, Operation::Weight(arguments.weight))
}

pub(super) fn reload(place: &Place) -> Outcome {
    call(place, &Request::Reload)
}

/// Removes program and maps, unless a controller runs: it would miss them.
pub(super) fn detach(place: &Place) -> Outcome {
    let pins = place.pins()?;
    if let Ok(Response::Status(status)) = api::call(&place.socket()?, &Request::Status) {
        return Err(Failure::failed(format!(
            "a controller runs, as process {}; stop it first, or run it with --detach-on-exit",
            status.pid
        )));
    }
    match pins.remove()? {
        0 => Err(pins.absence().into()),
        _ => {
            output::print("detached: nothing is forwarded any longer\n");
            Ok(())
        }
    }
}

fn operate(place: &Place, target: &Target, operation: Operation) -> Outcome {
    let Target { service, backend } = target.clone();
    call(place, &Request::Operate { service, backend, operation })
}

fn call(place: &Place, request: &Request) -> Outcome {
    match api::call(&place.socket()?, request)? {
        Response::Done(text) => {
            output::print(&format!("{text}\n"));
            Ok(())
        }
        Response::Failed(why) => Err(Failure::failed(why)),
        Response::Refused(why) => Err(Failure::usage(why)),
        Response::Invalid(problems) => {
            Err(Failure::problems(problems, "the configuration can't be used; nothing was changed"))
        }
        Response::Status(_) => Err(Failure::failed("the controller gave another answer")),
    }
}
