//! What packets of ours may be sent to is known before anything is, and stays known.

use std::fs;

use anyhow::{Result, ensure};
use lb_common::abi::PortSet;
use lb_tests::{
    bed::{Bed, SERVICE},
    client::Connection,
};
use lb_userspace::dataplane::{Maps, Pins};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// Whether packets to those ports may be ours.
fn ours<const PORTS: usize>(maps: &Maps, ports: [u16; PORTS]) -> [bool; PORTS] {
    ports.map(|port| maps.port_sets.has(PortSet::Ours, port))
}

#[test]
fn connections_go_on_when_nothing_names_their_ports_any_longer() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    let maps = Maps::open(&Pins::new(bed.pins()))?;
    // Full NAT sends from 1024 to 32767.
    ensure!(
        ours(&maps, [22, 1023, 1024, 8080, 32_767, 32_768])
            == [false, false, true, true, true, false]
    );

    let ephemeral = 40_000;
    let elsewhere = SERVICE.replace(":8080", &format!(":{ephemeral}"));
    let nat = "[nat]\nports = \"61000-61999\"\n";
    let first = fs::read_to_string(bed.config())?;
    let (old, new) = (format!("bind = [\"{SERVICE}\"]"), format!("bind = [\"{elsewhere}\"]"));
    ensure!(first.contains(&old), "{first}");
    let second = first.replace(&old, &new).replace("[[service]]", &format!("{nat}[[service]]"));
    let mut held = vec![bed.open()?];
    for (text, bind) in [(&second, &*elsewhere), (&first, SERVICE)] {
        fs::write(bed.config(), text)?;
        bed.lb_ok(&["reload"])?;
        held.push(Connection::open(&bed.client, bind)?);
        held.iter_mut().try_for_each(|connection| connection.request().map(drop))?;
        ensure!(
            ours(&maps, [22, 8080, 61_000, 61_999, 62_000, ephemeral])
                == [false, true, true, true, false, true]
        );
    }
    // Nor does the next controller forget them, whose configuration doesn't name them.
    bed.stop_controller(Signal::SIGKILL)?;
    bed.start_controller(&[])?;
    held.iter_mut().try_for_each(|connection| connection.request().map(drop))?;
    ensure!(ours(&maps, [22, 8080, 61_000, ephemeral]) == [false, true, true, true]);

    // Where replies go to clients themselves, any port may be ours.
    fs::write(bed.config(), first.replace(&old, &format!("forwarding = \"nat\"\n{old}")))?;
    bed.lb_ok(&["reload"])?;
    ensure!(ours(&maps, [0, 22, u16::MAX]) == [true; 3]);
    Ok(())
}
