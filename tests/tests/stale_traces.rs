//! Traces that may no longer say what is so are erased by the controller, all of a kind at once.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use bytemuck::Zeroable as _;
use lb_common::{
    abi::{Direction, Flow, FlowKey, FlowState, Forwarding, maps},
    datapath::{NatTraceSet, ReplySet, TRACE_SETS, Table, TraceSet, reply_sets},
    wire::{Ipv4Address, Ipv6Address, NetworkU16, PROTOCOL_TCP},
};
use lb_tests::{
    bed::Bed,
    wait::{wait_until, wait_within},
};
use lb_userspace::dataplane::{Maps, Pins, now};
use nix::sys::signal::Signal;

const LB: &str = env!("CARGO_BIN_EXE_lb-under-test");

/// What no flow leaves, in a set that few flows don't use.
const PLANTED: u64 = 1 << 40;
const PLACE: u32 = TRACE_SETS - 1;

struct Traces {
    direct: Array<MapData, TraceSet>,
    nat: Array<MapData, NatTraceSet>,
    replies: Array<MapData, [u64; size_of::<ReplySet<Ipv4Address>>() / 8]>,
    replies_ipv6: Array<MapData, [u64; size_of::<ReplySet<Ipv6Address>>() / 8]>,
}

impl Traces {
    fn open(bed: &Bed) -> Result<Self> {
        let pins = Pins::new(bed.pins());
        let map = |name: &str| -> Result<Map> {
            let data = MapData::from_pin(pins.map(name)).with_context(|| name.to_owned())?;
            Ok(Map::Array(data))
        };
        Ok(Self {
            direct: Array::try_from(map(maps::TRACES)?)?,
            nat: Array::try_from(map(maps::NAT_TRACES)?)?,
            replies: Array::try_from(map(maps::REPLY_TRACES)?)?,
            replies_ipv6: Array::try_from(map(maps::REPLY_TRACES_IPV6)?)?,
        })
    }

    /// Leaves something that isn't true.
    fn plant(&mut self) -> Result<()> {
        self.direct.set(PLACE, [PLANTED; 4], 0)?;
        self.nat.set(PLACE, [[PLANTED; 4]; 2], 0)?;
        self.replies.set(reply_sets::<Ipv4Address>() - 1, [PLANTED; 8], 0)?;
        Ok(self.replies_ipv6.set(reply_sets::<Ipv6Address>() - 1, [PLANTED; 14], 0)?)
    }

    /// Whether it is still there: by direct return, of requests whose replies pass through us, and of those over IPv4 and IPv6.
    fn are_left(&self) -> Result<[bool; 4]> {
        let replies = self.replies.get(&(reply_sets::<Ipv4Address>() - 1), 0)?;
        let replies_ipv6 = self.replies_ipv6.get(&(reply_sets::<Ipv6Address>() - 1), 0)?;
        Ok([
            self.direct.get(&PLACE, 0)? != [0; 4],
            self.nat.get(&PLACE, 0)? != [[0; 4]; 2],
            replies != [0; 8],
            replies_ipv6 != [0; 14],
        ])
    }
}

#[test]
fn a_controller_that_starts_erases_all() -> Result<()> {
    let mut bed = Bed::new(LB, "native", 1)?;
    let mut traces = Traces::open(&bed)?;
    traces.plant()?;
    ensure!(traces.are_left()? == [true; 4]);
    bed.stop_controller(Signal::SIGKILL)?;
    bed.start_controller(&[])?;
    ensure!(traces.are_left()? == [false; 4], "{:?}", traces.are_left()?);
    Ok(())
}

#[test]
fn when_a_hardware_address_goes_those_that_depend_on_it_are_erased() -> Result<()> {
    let bed = Bed::new(LB, "native", 1)?;
    let mut traces = Traces::open(&bed)?;
    let maps = Maps::open(&Pins::new(bed.pins()))?;
    let count = || maps.local_macs.keys().count();
    let before = count();
    // As Keepalived has them.
    let link =
        ["link", "add", "link", "eth0", "name", "vrrp0", "type", "macvlan", "mode", "private"];
    bed.balancer.ip(&link)?;
    bed.balancer.ip(&["link", "set", "vrrp0", "up"])?;
    wait_until("its address is ours", || Ok(count() == before + 1))?;
    traces.plant()?;
    bed.balancer.ip(&["link", "del", "vrrp0"])?;
    wait_until("traces are erased", || Ok(traces.are_left()? == [false, true, false, false]))
}

#[test]
fn when_they_lie_elsewhere_those_that_do_are_erased() -> Result<()> {
    /// More than the fewest sets are for.
    const FLOWS: u16 = 5000;
    /// The tables of flows are looked through every five seconds.
    const PATIENCE: Duration = Duration::from_secs(60);
    let bed = Bed::new(LB, "native", 1)?;
    let mut traces = Traces::open(&bed)?;
    let mut maps = Maps::open(&Pins::new(bed.pins()))?;
    let masks = |maps: &Maps| -> Result<[u32; 2]> {
        let settings = maps.settings.get(&0, 0)?;
        Ok([settings.trace_mask, settings.nat_trace_mask])
    };
    for (kind, forwarding) in [Forwarding::Dsr, Forwarding::FullNat].into_iter().enumerate() {
        traces.plant()?;
        let before = masks(&maps)?;
        for port in 1..=FLOWS {
            let key = FlowKey {
                source: Ipv4Address::from(Ipv4Addr::new(192, 0, 2, 1)),
                destination: Ipv4Address::from(Ipv4Addr::new(192, 0, 2, 2 + kind as u8)),
                source_port: NetworkU16::new(port),
                destination_port: NetworkU16::new(9),
                protocol: PROTOCOL_TCP.into(),
            };
            let mut flow: Flow<Ipv4Address> = Flow::zeroed();
            (flow.opened, flow.last_seen) = (now(), now());
            (flow.backend, flow.state) = (1, FlowState::ESTABLISHED);
            (flow.direction, flow.forwarding) = (Direction::ToBackend as u8, forwarding);
            maps.ipv4.flows_mut(Table::Established).insert(key, flow, 0)?;
        }
        wait_within(PATIENCE, "there are more sets", || Ok(masks(&maps)?[kind] > before[kind]))?;
        ensure!(masks(&maps)?[1 - kind] == before[1 - kind], "{:?}", masks(&maps)?);
        let is_nat = kind == 1;
        let left = [is_nat, !is_nat, !is_nat, !is_nat];
        wait_until("those are erased, and no others", || Ok(traces.are_left()? == left))?;
    }
    Ok(())
}
