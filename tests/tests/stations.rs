//! Where a running balancer's own hardware addresses stand: there is a place for each, but some may belong to the same one.

use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{LocalMac, STATIONS, Station},
    wire::{MacAddress, Vlans},
};
use lb_tests::{bed::Bed, wait::wait_until};
use lb_userspace::dataplane::{Maps, Pins};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// Names of interfaces that are on top of the first one, as Keepalived has them.
const UPPER: [&str; 2] = ["vrrp0", "vrrp1"];
const FIRST_MTU: u32 = 1500;

fn open(bed: &Bed) -> Result<Maps> {
    Ok(Maps::open(&Pins::new(bed.pins()))?)
}

/// Our own hardware addresses, and where datagrams may be how long.
fn ours(maps: &Maps) -> Result<Vec<(LocalMac, u32)>> {
    maps.local_macs.iter().map(|entry| Ok(entry?)).collect()
}

fn station(maps: &Maps, place: u32) -> Result<Station> {
    Ok(maps.stations.get(&place, 0)?)
}

/// One of the interface's, by its last byte.
fn numbered(interface: u32, last: u8) -> LocalMac {
    let address = MacAddress::new([2, 0, 0, 0x5e, 0, last]);
    LocalMac { interface, address, reserved: 0, vlans: Vlans::NONE }
}

/// Two hardware addresses at one place, which isn't the one of `other`.
fn at_one_place(interface: u32, other: u32) -> Result<[LocalMac; 2]> {
    const LAST: RangeInclusive<u8> = 1..=u8::MAX;
    for first in LAST.map(|last| numbered(interface, last)) {
        let mut others = LAST.map(|last| numbered(interface, last));
        let second = others.find(|it| *it != first && it.place() == first.place());
        if let Some(second) = second.filter(|second| second.place() != other) {
            return Ok([first, second]);
        }
    }
    anyhow::bail!("no two at one place")
}

#[test]
fn of_two_at_one_place_the_one_that_stays_has_it() -> Result<()> {
    for is_first in [true, false] {
        let bed = Bed::new(LB, "native", 1)?;
        let maps = open(&bed)?;
        let (own, _) = *ours(&maps)?.first().context("one of ours")?;
        let both = at_one_place(own.interface, own.place())?;
        let place = both[0].place();
        for (name, mac) in UPPER.into_iter().zip(both) {
            let address = mac.address.to_string();
            let link = ["link", "add", "link", "eth0", "name", name, "address", &address];
            bed.balancer.ip(&[&link[..], &["type", "macvlan", "mode", "private"]].concat())?;
            bed.balancer.ip(&["link", "set", name, "up"])?;
            wait_until("it is ours", || Ok(ours(&maps)?.contains(&(mac, FIRST_MTU))))?;
        }
        let number =
            both.iter().position(|mac| station(&maps, place).is_ok_and(|it| it.mac == *mac));
        ensure!(number == Some(0), "{number:?} has the place of the first");
        let (goes, stays) = if is_first { (0, 1) } else { (1, 0) };
        // Of one that hasn't the place, and of the one that has it, something else is found out.
        bed.balancer.ip(&["link", "set", UPPER[stays], "mtu", "1400"])?;
        wait_until("it is noted", || Ok(ours(&maps)?.contains(&(both[stays], 1400))))?;
        bed.balancer.ip(&["link", "del", UPPER[goes]])?;
        let is_gone = || Ok(ours(&maps)?.iter().all(|(mac, _)| *mac != both[goes]));
        wait_until("it isn't ours any longer", is_gone)?;
        let wanted = (both[stays], 1400);
        wait_until("the other one has the place", || {
            let there = station(&maps, place)?;
            Ok((there.mac, there.maximum_datagram) == wanted)
        })?;
        bed.balancer.ip(&["link", "del", UPPER[stays]])?;
        wait_until("nobody has it", || Ok(station(&maps, place)?.mac == LocalMac::default()))?;
    }
    Ok(())
}

#[test]
fn a_controller_that_starts_puts_everyone_in_place() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    let mut maps = open(&bed)?;
    let (own, longest) = *ours(&maps)?.first().context("one of ours")?;
    bed.stop_controller(Signal::SIGKILL)?;
    // What an earlier one left, when it died between two steps.
    let [stale, _] = at_one_place(own.interface, own.place())?;
    for place in [own.place(), stale.place()] {
        let station = Station { mac: stale, maximum_datagram: 9000, ..Station::default() };
        maps.stations.set(place, station, 0)?;
    }
    bed.start_controller(&[])?;
    for place in 0..STATIONS {
        let there = station(&maps, place)?;
        let wanted = if place == own.place() { (own, longest) } else { (LocalMac::default(), 0) };
        ensure!((there.mac, there.maximum_datagram) == wanted, "{place}");
    }
    bed.request().map(drop)
}
