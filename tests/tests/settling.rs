//! By direct return, slots of rings are unsettled for as long as flows may be elsewhere than they lead, whatever happens to
//! the controller meanwhile.

use std::{collections::BTreeSet, fs, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{CHECK_SERVICE, FlowKey, Ring, ServiceKey},
    datapath::Table,
    wire::{Ipv4Address, NetworkU16, PROTOCOL_TCP},
};
use lb_tests::{
    client::Connection,
    kernel::Kernel,
    modes::{IPV4, Modes, Programs, VIP},
    wait::wait_within,
    world::World,
};
use lb_userspace::dataplane::{Maps, Pins};
use nix::sys::signal::Signal;

const PROGRAMS: Programs = Programs {
    lb: env!("CARGO_BIN_EXE_lb-under-test"),
    decapsulator: env!("CARGO_BIN_EXE_decapsulator"),
    responder: env!("CARGO_BIN_EXE_responder"),
};

/// By `dsr`.
const SERVICE: &str = "dsr-ipv4-in-ipv4-tcp";
const PORT: u16 = 8082;
/// What the parts of a configuration begin with.
const HEADER: &str = "[[service]]\n";
/// Slots settle once three looks through all flows have found nothing, one every five seconds.
const SETTLED: Duration = Duration::from_secs(60);

struct Watched {
    modes: Modes,
    maps: Maps,
}

impl Watched {
    fn ring(&self) -> Result<Ring> {
        let IpAddr::V4(address) = IPV4.address(VIP).parse()? else { unreachable!("it's IPv4") };
        let key = ServiceKey {
            address: Ipv4Address::from(address),
            port: NetworkU16::new(PORT),
            protocol: PROTOCOL_TCP.into(),
        };
        Ok(self.maps.ipv4.services.get(&key, 0).context("no such service")?.ring)
    }

    /// The ring's slots that are unsettled, by their numbers within it.
    fn unsettled(&self) -> Result<BTreeSet<u32>> {
        let ring = self.ring()?;
        let is_unsettled =
            |number: &u32| !self.maps.rings.slot(ring.offset() + number).is_settled();
        Ok((0..ring.size()).filter(is_unsettled).collect())
    }

    /// Waits until no more slots are unsettled than that.
    fn wait_for_most(&self, most: usize) -> Result<()> {
        wait_within(SETTLED, "slots settle", || {
            Ok(self.ring()?.size() > 0 && self.unsettled()?.len() <= most)
        })
    }

    /// Reloads a configuration in which `change` has changed the part of the service; `None`: it has none.
    fn reload(&self, change: impl Fn(&str) -> Option<String>) -> Result<()> {
        let text = fs::read_to_string(self.modes.bed.config())?;
        let parts = text.split(HEADER).map(|part| match part.contains(SERVICE) {
            true => change(part),
            false => Some(part.to_owned()),
        });
        let parts: Vec<String> = parts.flatten().collect();
        fs::write(self.modes.bed.config(), parts.join(HEADER))?;
        self.modes.bed.lb_ok(&["reload"])?;
        Ok(())
    }

    /// The connections of the service that are in the table.
    fn flows(&self) -> Result<Vec<FlowKey<Ipv4Address>>> {
        let mut keys = Vec::new();
        self.maps.ipv4.for_each(Table::Established, |key, flow| {
            // Checks have entries there as well.
            if key.destination_port.get() == PORT && flow.service != CHECK_SERVICE {
                keys.push(*key);
            }
        })?;
        Ok(keys)
    }

    /// Forgets them.
    fn forget_flows(&mut self) -> Result<()> {
        let keys = self.flows()?;
        ensure!(!keys.is_empty(), "no flow is known");
        for key in keys {
            self.maps.ipv4.flows_mut(Table::Established).remove(&key)?;
        }
        Ok(())
    }
}

fn ask_all(held: &mut [Connection]) -> Result<()> {
    held.iter_mut().try_for_each(|connection| connection.request().map(drop))
}

#[test]
fn what_is_known_of_slots_goes_from_ring_to_ring() -> Result<()> {
    const SIZE: u32 = 50;
    let kernel = Kernel::new(&World::default())?;
    let rings = kernel.rings();
    let ring = |number: u32| Ring::new(100 * number, SIZE, number);
    let [first, second, third] = [1, 2, 3].map(ring);
    let unsettled = |ring: Ring| -> Vec<u32> {
        let is_unsettled = |number: &u32| !rings.slot(ring.offset() + number).is_settled();
        (0..SIZE).filter(is_unsettled).collect()
    };
    let settle = |ring: Ring, strays: &[u32]| {
        rings.settle(ring, &strays.iter().map(|number| ring.offset() + number).collect());
    };
    let mut backends = vec![1; SIZE as usize];
    rings.write_after(Ring::new(0, SIZE + 1, 0), first, &backends);
    ensure!(unsettled(first).len() == SIZE as usize, "nothing is known of another size");
    for _ in 0..3 {
        ensure!(unsettled(first).len() == SIZE as usize);
        settle(first, &[5]);
    }
    ensure!(unsettled(first) == [5], "a flow of its slot is elsewhere");

    // One slot leads elsewhere, and another one has a stray before the new ring is in force.
    backends[3] = 2;
    rings.write_after(first, second, &backends);
    ensure!(unsettled(second) == [3, 5]);
    rings.unsettle_slot(first.offset() + 7);
    rings.unsettle_after(first, second);
    ensure!(unsettled(second) == [3, 5, 7]);
    ensure!(rings.read(second.offset(), SIZE) == backends);

    // Two of three looks count also for the ring after it, and for one that was bound later.
    for _ in 0..2 {
        settle(second, &[5]);
    }
    rings.write_after(second, third, &backends);
    rings.unsettle_after(second, third);
    ensure!(unsettled(third) == [3, 5, 7]);
    settle(third, &[5]);
    ensure!(unsettled(third) == [5], "{:?}", unsettled(third));
    // What was bound to the first ring until now may have flows elsewhere.
    rings.unsettle_after(first, third);
    ensure!(unsettled(third) == [3, 5, 7], "{:?}", unsettled(third));
    // All begin anew, also those that were about to settle.
    settle(third, &[]);
    rings.unsettle(third);
    for _ in 0..2 {
        settle(third, &[]);
    }
    ensure!(unsettled(third).len() == SIZE as usize);
    settle(third, &[]);
    ensure!(unsettled(third).is_empty());
    Ok(())
}

#[test]
fn slots_are_unsettled_for_as_long_as_flows_are_elsewhere() -> Result<()> {
    let modes = Modes::new(PROGRAMS, "native")?;
    let maps = Maps::open(&Pins::new(modes.bed.pins()))?;
    let mut watched = Watched { modes, maps };
    let vip = IPV4.socket(VIP, PORT);
    let open = |_| Connection::open(&watched.modes.bed.client, &vip);
    let mut held = (0..16).map(open).collect::<Result<Vec<_>>>()?;
    ask_all(&mut held)?;

    // A new ring knows of nothing before it.
    watched.wait_for_most(0)?;
    // Then packets need no entry, unless traces of their flows were just forgotten.
    wait_within(SETTLED, "packets take the shortcut", || {
        ask_all(&mut held[..1])?;
        watched.forget_flows()?;
        let before = watched.modes.bed.reason("adopted")?;
        ask_all(&mut held[..1])?;
        let adopted = watched.modes.bed.reason("adopted")? - before;
        // Once traces have been forgotten, all of them are known again.
        wait_within(SETTLED, "flows are adopted", || {
            ask_all(&mut held)?;
            Ok(watched.flows()?.len() == held.len())
        })?;
        Ok(adopted == 0)
    })?;

    // Another backend takes over slots of connections that stay where they are.
    let second = "[[service.backend]]\nname = \"other\"\naddress = \"10.91.0.103:8082\"\n";
    watched.reload(|service| {
        Some(service.replace("interval = \"200ms\"", "type = \"none\"") + second)
    })?;
    wait_within(SETTLED, "thousands of slots change", || Ok(watched.unsettled()?.len() > 1000))?;
    ask_all(&mut held)?;
    watched.wait_for_most(held.len())?;
    let unsettled = watched.unsettled()?;
    ensure!(!unsettled.is_empty(), "no connection's slot leads elsewhere");
    ask_all(&mut held)?;

    // Another controller finds them so.
    watched.modes.bed.stop_controller(Signal::SIGKILL)?;
    watched.modes.bed.start_controller(&[])?;
    ensure!(watched.unsettled()? == unsettled, "{:?} {unsettled:?}", watched.unsettled()?);
    ask_all(&mut held)?;

    // What was known of the slots goes with the service.
    let text = fs::read_to_string(watched.modes.bed.config())?;
    watched.reload(|_| None)?;
    ask_all(&mut held)?;
    fs::write(watched.modes.bed.config(), text)?;
    watched.modes.bed.lb_ok(&["reload"])?;
    let (unsettled, ring) = (watched.unsettled()?, watched.ring()?);
    ensure!(unsettled.len() == ring.size() as usize, "{ring:?}: {}", unsettled.len());
    ask_all(&mut held)
}
