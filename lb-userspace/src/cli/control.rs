//! Commands that change something.

use std::{
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    Outcome, Place,
    output::{self, Failure},
};
use crate::{
    api::{self, Operation, Request, Response},
    control,
    observe::Overview,
};

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
pub(super) struct DrainArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Return when its last flow has ended, and say how many are left
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this, such as 30s or 5m
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
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

pub(super) fn drain(place: &Place, arguments: &DrainArgs) -> Outcome {
    let target = &arguments.target.target;
    operate(place, target, Operation::Drain)?;
    if arguments.wait { wait(place, target, arguments.timeout) } else { Ok(()) }
}

/// Waits for the end of a backend's last flow, and says how many are left whenever that changes.
fn wait(place: &Place, target: &Target, timeout: Option<Duration>) -> Outcome {
    let start = Instant::now();
    let mut shown = None;
    loop {
        let (_, maps) = place.maps()?;
        let overview = Overview::read(&maps)?;
        let left = overview.flows_of(&target.service, &target.backend);
        if shown != Some(left) {
            output::print(&format!("flows left: {left}\n"));
            shown = Some(left);
        }
        if left == 0 {
            return Ok(());
        }
        if !overview.is_drained(&target.service, &target.backend) {
            return Err(Failure::failed(format!(
                "it takes new connections again, as somebody said meanwhile; flows left: {left}"
            )));
        }
        let rest = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        if rest.is_some_and(|rest| rest.is_zero()) {
            return Err(Failure::failed(format!(
                "flows left after {}: {left}; the backend goes on draining",
                humantime::format_duration(timeout.unwrap_or_default())
            )));
        }
        // The kernel tells nobody of changes in a map.
        thread::sleep(rest.map_or(LOOK_INTERVAL, |rest| rest.min(LOOK_INTERVAL)));
    }
}

/// Time between two looks at the flows of a draining backend.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

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
    // Of other layouts only, there is nothing to lock.
    let _lock = pins.directory().exists().then(|| control::lock(&pins)).transpose()?;
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
        Response::Status(_) | Response::Config(_) | Response::Event(_) => {
            Err(Failure::failed("the controller gave another answer"))
        }
    }
}
