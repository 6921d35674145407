//! What becomes of traffic while the controller is reloaded, killed, and replaced by another version: nothing.
//!
//! `LB_RELOADS`, `LB_KILLS` and `LB_UPGRADES` set how often that happens (default: 50, 6 and 4).

use std::{path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_tests::{bed::Bed, setting, under_traffic, variant};
use nix::sys::signal::Signal;
use serde_json::Value;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// The identity of the program that is attached, to the kernel: its number, and the hash of its instructions.
fn program(bed: &Bed) -> Result<(u64, String)> {
    let links: Value = serde_json::from_str(&bed.balancer.ip(&["-j", "link", "show", "eth0"])?)?;
    let program = &links[0]["xdp"]["prog"];
    let id = program["id"].as_u64().context("no program is attached")?;
    Ok((id, program["tag"].as_str().context("a tag")?.to_owned()))
}

#[test]
fn reloads_cost_nothing() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 3)?;
    let reloads: u32 = setting("LB_RELOADS", 50);
    under_traffic(&mut bed, |bed| {
        for number in 0..reloads {
            // A service that comes and goes, and weights.
            let more = format!(
                "weight = {}\n[[service]]\nname = \"other\"\nbind = [\"10.91.0.100:{}\"]\n\
                 [[service.backend]]\nname = \"a\"\naddress = \"10.91.0.101:8080\"\n",
                1 + number % 3,
                9000 + number % 5
            );
            bed.write_config(&more)?;
            let said = bed.lb_ok(&["reload"])?;
            ensure!(said.contains("reloaded") && said.contains("service other"), "{said}");
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_controller_that_is_killed_at_any_moment_costs_nothing() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 3)?;
    let kills: u32 = setting("LB_KILLS", 6);
    let before = bed.json(&["list", "rings", "--json"])?;
    under_traffic(&mut bed, |bed| {
        for _ in 0..kills {
            thread::sleep(Duration::from_millis(fastrand::u64(0..300)));
            bed.stop_controller(Signal::SIGKILL)?;
            bed.start_controller(&[])?;
        }
        bed.wait_for_up(3)
    })?;
    let after = bed.json(&["list", "rings", "--json"])?;
    ensure!(before == after, "{before} {after}");
    Ok(())
}

#[test]
fn another_version_takes_over_with_its_own_program() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 3)?;
    let other = bed.config().with_file_name("lb-other");
    variant::write(Path::new(LB), &other)?;
    let versions = [&other, Path::new(LB)].map(|path| path.display().to_string());
    let upgrades: usize = setting("LB_UPGRADES", 4);
    let first = program(&bed)?;
    under_traffic(&mut bed, |bed| {
        let mut before = first;
        for number in 0..upgrades {
            bed.set_lb(&versions[number % 2]);
            let signal = if number % 4 < 2 { Signal::SIGTERM } else { Signal::SIGKILL };
            bed.stop_controller(signal)?;
            bed.start_controller(&[])?;
            let now = program(bed)?;
            ensure!(now.1 != before.1, "the program is the same: {now:?}");
            before = now;
        }
        Ok(())
    })?;
    let counted = bed.json(&["list", "services", "--json"])?[0]["new_flows"].as_u64();
    ensure!(counted > Some(100), "counters went on: {counted:?}");
    let stages = std::fs::read_dir(bed.pins().join(format!("v{}", lb_common::abi::VERSION)))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("stages_"))
        .count();
    ensure!(stages == 1, "{stages} sets of stages are pinned");
    Ok(())
}
