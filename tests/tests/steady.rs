//! By direct return, connections go on where they are, and need no entry in the table, whatever becomes of their service
//! and of the controller.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use lb_common::{
    abi::{CHECK_SERVICE, FlowKey},
    datapath::Table,
    wire::Ipv4Address,
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
/// Traces of flows are forgotten every 8.6 seconds, at another moment each.
const PATIENCE: Duration = Duration::from_secs(60);

struct Watched {
    modes: Modes,
    maps: Maps,
    held: Vec<Connection>,
}

impl Watched {
    fn ask_all(&mut self) -> Result<()> {
        self.held.iter_mut().try_for_each(|connection| connection.request().map(drop))
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

    /// Demands that the first connection's packets find their way without an entry, and that all connections go on.
    fn demand_no_entries(&mut self, when: &str) -> Result<()> {
        wait_within(PATIENCE, &format!("packets need no entry, {when}"), || {
            self.ask_all()?;
            let keys = self.flows()?;
            ensure!(keys.len() == self.held.len(), "{} flows are known, {when}", keys.len());
            for key in keys {
                self.maps.ipv4.flows_mut(Table::Established).remove(&key)?;
            }
            let before = self.modes.bed.reason("adopted")?;
            self.held[0].request()?;
            let adopted = self.modes.bed.reason("adopted")? - before;
            // Once traces have been forgotten, all of them are known again.
            wait_within(PATIENCE, "flows are adopted", || {
                self.ask_all()?;
                Ok(self.flows()?.len() == self.held.len())
            })?;
            Ok(adopted == 0)
        })
    }

    /// Reloads a configuration in which `change` has changed the part of the service; `None`: it has none.
    fn reload(&self, change: impl Fn(&str) -> Option<String>) -> Result<()> {
        let text = fs::read_to_string(self.modes.bed.config())?;
        let parts = text.split(HEADER).map(|part| match part.contains(SERVICE) {
            true => change(part),
            false => Some(part.to_owned()),
        });
        let changed = parts.flatten().collect::<Vec<String>>().join(HEADER);
        ensure!(changed != text, "nothing is changed");
        fs::write(self.modes.bed.config(), changed)?;
        self.modes.bed.lb_ok(&["reload"]).map(drop)
    }
}

#[test]
fn connections_stay_where_they_are_whatever_becomes_of_their_service() -> Result<()> {
    let modes = Modes::new(PROGRAMS, "native")?;
    let maps = Maps::open(&Pins::new(modes.bed.pins()))?;
    let vip = IPV4.socket(VIP, PORT);
    let held = (0..16).map(|_| Connection::open(&modes.bed.client, &vip));
    let held = held.collect::<Result<Vec<_>>>()?;
    let mut watched = Watched { modes, maps, held };
    watched.ask_all()?;
    watched.demand_no_entries("at first")?;

    // Another backend, which doesn't answer, takes over slots of connections, which stay where they are.
    let second = "[[service.backend]]\nname = \"other\"\naddress = \"10.91.0.103:8082\"\n";
    watched.reload(|service| {
        let unchecked = service.replace("interval = \"200ms\"", "type = \"none\"");
        (unchecked != *service).then(|| unchecked + second)
    })?;
    let backends = watched.modes.bed.json(&["list", "backends", "--json"])?;
    ensure!(backends.to_string().contains("\"other\""), "{backends}");
    for _ in 0..3 {
        watched.ask_all()?;
    }
    watched.modes.bed.stop_controller(Signal::SIGKILL)?;
    watched.ask_all()?;
    watched.modes.bed.start_controller(&[])?;
    for _ in 0..3 {
        watched.ask_all()?;
    }

    // They also outlive the service.
    let text = fs::read_to_string(watched.modes.bed.config())?;
    watched.reload(|_| None)?;
    watched.ask_all()?;
    fs::write(watched.modes.bed.config(), text)?;
    watched.modes.bed.lb_ok(&["reload"])?;
    watched.ask_all()
}
