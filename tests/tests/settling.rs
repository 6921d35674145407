//! By direct return, slots of rings are unsettled for as long as flows may be elsewhere than they lead, whatever happens to
//! the controller meanwhile.

use std::{collections::BTreeSet, fs, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{FlowKey, Ring, ServiceKey},
    datapath::Table,
    wire::{Ipv4Address, NetworkU16, PROTOCOL_TCP},
};
use lb_tests::{
    client::Connection,
    modes::{IPV4, Modes, Programs, VIP},
    wait::wait_within,
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
        self.maps.ipv4.for_each(Table::Established, |key, _| {
            if key.destination_port.get() == PORT {
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
