//! Both builds of the packet logic side by side.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_common::{
    abi::{Backend, Moment, Station},
    datapath::{Action, Reason, Table},
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    frame::flags,
    host::{Host, Outcome},
    icmp::Message,
    kernel::{Kernel, LONGEST_FRAME, SHORTEST_FRAME},
    seen::{self, ChecksumState, Seen},
    world::{self, World},
};

/// Both builds, over tables that were filled alike.
pub struct Pair {
    /// The build for the host.
    pub host: Host,
    /// The loaded program.
    pub kernel: Kernel,
    packets: u64,
}

impl Pair {
    /// Both, filled with what `world` says.
    ///
    /// # Errors
    ///
    /// The program can't be loaded.
    pub fn new(world: &World) -> Result<Self> {
        Ok(Self { host: Host::new(world), kernel: Kernel::new(world)?, packets: 0 })
    }

    /// Forgets all flows and counts.
    ///
    /// # Errors
    ///
    /// The kernel's maps can't be changed.
    pub fn reset(&mut self) -> Result<()> {
        // Traces of flows are elsewhere then.
        self.host.world.settings.secret += 1;
        self.host = Host::new(&self.host.world);
        self.packets = 0;
        self.kernel.reset(&self.host.world)
    }

    /// Runs a frame through both and demands the same action, reason and bytes, and that a frame
    /// which goes on to the host is as it was. Frames that the kernel can't run go through the host's
    /// build only.
    ///
    /// # Errors
    ///
    /// They differ.
    pub fn run(&mut self, frame: &[u8]) -> Result<Outcome> {
        if !(SHORTEST_FRAME..=LONGEST_FRAME).contains(&frame.len()) {
            return Ok(self.host.run(frame));
        }
        let before = moment()?;
        let kernel = self.kernel.run(frame)?;
        let after = moment()?;
        self.packets += 1;
        self.host.set_now(before);
        // The kernel's clock may have ticked in between: then the frame was seen before that, or after.
        let spare = (before != after).then(|| self.host.clone());
        let mut host = self.host.run(frame);
        if let Some(spare) = spare
            && !alike(&host, &kernel)
        {
            self.host = spare;
            self.host.set_now(after);
            host = self.host.run(frame);
        }
        let differ = || format!("host: {host:02x?}\nkernel: {kernel:02x?}\nframe: {frame:02x?}");
        ensure!(alike(&host, &kernel), differ());
        self.kernel.confirm(host.reason).with_context(differ)?;
        if host.action == Action::Pass {
            ensure!(host.frame == frame, "{:?} changed the frame {frame:02x?}", host.reason);
        }
        Ok(host)
    }

    /// The same, and demands a reason.
    ///
    /// # Errors
    ///
    /// They differ, or the reason is another.
    pub fn expect(&mut self, what: &str, frame: &[u8], reason: Reason) -> Result<Outcome> {
        let outcome = self.run(frame).with_context(|| what.to_owned())?;
        ensure!(outcome.reason == reason, "{what}: {:?}, wanted {reason:?}", outcome.reason);
        check_transmitted(&self.host.world, frame, &outcome).with_context(|| what.to_owned())?;
        Ok(outcome)
    }

    /// Changes what is known of a backend, in both.
    ///
    /// # Errors
    ///
    /// The kernel's map can't be changed.
    pub fn change_backend(&mut self, index: u32, change: impl FnOnce(&mut Backend)) -> Result<()> {
        let backend = &mut self.host.world.backends[index as usize - 1];
        change(backend);
        self.kernel.write_backend(index, backend)
    }

    /// Sets which of our hardware addresses stands at a place, in both.
    ///
    /// # Errors
    ///
    /// The kernel's map can't be changed.
    pub fn set_station(&mut self, place: u32, station: Station) -> Result<()> {
        self.host.stations[place as usize] = station;
        self.kernel.set_station(place, station)
    }

    /// Gives a backend's slots in all rings to another one: the one takes no new flows, and the other does.
    ///
    /// # Errors
    ///
    /// The kernel's maps can't be changed.
    pub fn hand_slots(&mut self, from: u32, to: u32) -> Result<()> {
        self.change_backend(from, |backend| backend.takes_new_flows = 0)?;
        self.change_backend(to, |backend| backend.takes_new_flows = 1)?;
        let world = &mut self.host.world;
        for slot in world.slots_mut().filter(|slot| **slot == from) {
            *slot = to;
        }
        self.kernel.write_rings(&world.ring);
        Ok(())
    }

    /// Makes established flows older by so many ticks, in both.
    ///
    /// # Errors
    ///
    /// The kernel's maps can't be changed.
    pub fn age_flows(&mut self, ticks: u32) -> Result<()> {
        self.host.age_flows(ticks);
        self.kernel.age_flows(ticks)
    }

    /// Removes the entries of all flows in both, as nobody does who knows of their traces.
    ///
    /// # Errors
    ///
    /// The kernel's maps can't be changed.
    pub fn remove_entries(&mut self) -> Result<()> {
        self.host.remove_entries();
        self.kernel.remove_entries()
    }

    /// Does something until no tick has ended meanwhile, with which traces of flows may cease to hold.
    ///
    /// # Errors
    ///
    /// It fails, within a tick.
    pub fn within_one_tick(&mut self, action: impl Fn(&mut Self) -> Result<()>) -> Result<()> {
        loop {
            self.reset()?;
            let start = lb_userspace::dataplane::now();
            let result = action(self);
            if lb_userspace::dataplane::now() == start {
                return result;
            }
        }
    }

    /// Demands that both have the same flows, but for times, and that every packet was counted
    /// once.
    ///
    /// # Errors
    ///
    /// They differ.
    pub fn compare_tables(&self) -> Result<()> {
        for table in [Table::Established, Table::Embryonic] {
            let host = self.host.flows(table);
            let kernel = self.kernel.flows(table)?;
            ensure!(host.len() == kernel.len(), "{table:?}: {} {}", host.len(), kernel.len());
            for (key, flow) in &host {
                let other = kernel.get(key).with_context(|| format!("{table:?} lacks {key:?}"))?;
                ensure!(flow == other, "{key:?}: {flow:?} {other:?}");
            }
        }
        let counted = self.kernel.packets()?;
        ensure!(counted == self.packets, "{counted} counted of {}", self.packets);
        let [services, backends] = &*self.host.counters.borrow();
        for (index, counters) in services {
            ensure!(self.kernel.service_counters(*index)? == *counters, "service {index}");
        }
        for (index, counters) in backends {
            ensure!(self.kernel.backend_counters(*index)? == *counters, "backend {index}");
        }
        let [services, backends] = &*self.host.loads.borrow();
        for (index, load) in services {
            ensure!(self.kernel.service_load(*index)? == *load, "load of service {index}");
        }
        for (index, load) in backends {
            let kernel = self.kernel.load(*index)?;
            let flows = self.host.flows_under_way(*index);
            ensure!(
                kernel == *load && *load == flows,
                "load of backend {index}: {kernel}, {load}, {flows}"
            );
        }
        Ok(())
    }
}

/// The moment that the program's clock shows (`CLOCK_MONOTONIC_COARSE`).
fn moment() -> Result<Moment> {
    let time = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?);
    Ok(Moment::from_nanoseconds(u64::try_from(time.as_nanos())?))
}

/// Whether both did the same, for whatever reason.
fn alike(one: &Outcome, other: &Outcome) -> bool {
    one.action == other.action && one.redirected == other.redirected && one.frame == other.frame
}

/// Demands of a frame what holds of every one that is transmitted for the same reason, where both have
/// the tables of `world`.
///
/// # Errors
///
/// Something doesn't hold.
pub fn check_transmitted(world: &World, before: &[u8], outcome: &Outcome) -> Result<()> {
    if outcome.action != Action::Transmit {
        return Ok(());
    }
    let (tags_before, before) = seen::untag(before);
    let (tags, after) = seen::untag(&outcome.frame);
    let to = |backend: &&Backend| backend.next_hop.station.bytes() == after[..6];
    let backend = world.backends.iter().find(to);
    let vlans: Vec<_> = tags.iter().map(|(kind, control)| (*kind, control & 0xfff)).collect();
    match backend {
        _ if RESETS.contains(&outcome.reason) => {
            // That a frame may be dropped is its own affair.
            let kept: Vec<_> =
                tags_before.iter().map(|(kind, control)| (*kind, control & 0xefff)).collect();
            ensure!(tags == kept, "tags of a reset: {tags:04x?}");
        }
        Some(backend) => {
            ensure!(world::vlans(&vlans) == backend.next_hop.vlans, "tags: {tags:04x?}");
        }
        None => {
            let known = [&[][..], &world::TAGS, &world::DOUBLE_TAGS].contains(&&vlans[..]);
            ensure!(known, "tags to a client: {tags:04x?}");
        }
    }
    let priority = tags_before.first().map_or(0, |(_, control)| control & 0xe000);
    ensure!(tags.iter().all(|(_, control)| control & 0xf000 == priority), "priority: {tags:04x?}");
    let after = take_off_outer(&before, &after, backend)?;
    match outcome.reason {
        Reason::IcmpError => check_message(&before, &after),
        Reason::NeedsFragmentation => check_answer(&before, &after),
        reason if RESETS.contains(&reason) => check_reset(&before, &after),
        Reason::Fragment => check_fragment(&before, &after),
        _ => {
            let source = Seen::new(&before).source;
            let from =
                |backend: &&Backend| (backend.socket_address().ip(), backend.port.get()) == source;
            let end = backend.or_else(|| world.backends.iter().find(from));
            check_forwarded(&before, &after, end.map_or(0, |backend| backend.maximum_segment))
        }
    }
}

/// What a client is told by a reset.
const RESETS: [Reason; 2] = [Reason::BackendDown, Reason::FlowTableFull];

/// Demands of an ICMP message that was sent on that its checksum is as right as it was, and that it
/// says the same.
fn check_message(before: &[u8], after: &[u8]) -> Result<()> {
    // A message whose checksum is wrong, or that has options before it, isn't looked at.
    let Ok(before) = Message::read(before) else { return Ok(()) };
    let after = Message::read(after)?;
    ensure!(after.time_to_live + 1 == before.time_to_live, "time to live: {after:?}");
    let said = |message: &Message| (message.kind, message.code, message.rest, message.quoted.len());
    ensure!(said(&after) == said(&before), "{before:?} {after:?}");
    Ok(())
}

/// Demands of a fragment other than the first that no more than its way was changed.
fn check_fragment(before: &[u8], after: &[u8]) -> Result<()> {
    let (mut before, mut after) = (before[14..].to_vec(), after[14..].to_vec());
    let (hops, route) = if before[0] >> 4 == 4 { (8, 8..20) } else { (7, 7..40) };
    ensure!(after[hops] + 1 == before[hops], "time to live: {after:02x?}");
    ensure!(seen::ip_checksum_is_right(&after), "IP checksum: {after:02x?}");
    for bytes in [&mut before, &mut after] {
        bytes[route.clone()].fill(0);
    }
    // The protocol lies among what was put to zero, but for what follows.
    ensure!(before == after, "something else was changed: {before:02x?} {after:02x?}");
    Ok(())
}

/// Demands of the answer to a frame that was too long that it is right, and quotes it.
fn check_answer(before: &[u8], after: &[u8]) -> Result<()> {
    let message = Message::read(after)?;
    ensure!(before[14..].starts_with(&message.quoted), "{message:?}");
    let before = Seen::new(before);
    ensure!(message.destination == before.source.0, "{message:?}");
    ensure!(message.source == before.destination.0, "{message:?}");
    ensure!(message.destination_mac == before.source_mac, "{message:?}");
    Ok(())
}

/// Demands of the reset that answers a segment that its sender takes it for one.
fn check_reset(before: &[u8], after: &[u8]) -> Result<()> {
    let (seen, reset) = (Seen::new(before), Seen::new(after));
    ensure!(reset.source == seen.destination && reset.destination == seen.source, "{reset:?}");
    ensure!(reset.destination_mac == seen.source_mac, "{reset:?}");
    ensure!(reset.source_mac == seen.destination_mac, "{reset:?}");
    ensure!(reset.ip_checksum_is_right && reset.time_to_live == 64, "{reset:?}");
    ensure!(reset.transport_checksum == ChecksumState::Right, "{reset:?}");
    let (asked, answer) = (seen::tcp(before), seen::tcp(after));
    ensure!(answer[4..8] == asked[8..12], "sequence: {asked:02x?} {answer:02x?}");
    ensure!(answer[12..14] == [0x50, flags::RST] && answer.len() == 20, "{answer:02x?}");
    Ok(())
}

/// Demands of a forwarded frame what holds of every one, whatever its flow: one hop less, checksums
/// as right or wrong as they were, and nothing else changed than what translation changes, and what
/// SYNs say where that is to be at most `maximum_segment` bytes, unless that is zero.
fn check_forwarded(before: &[u8], after: &[u8], maximum_segment: u16) -> Result<()> {
    let clamped =
        if maximum_segment == 0 { before.to_vec() } else { seen::clamped(before, maximum_segment) };
    let (said, rest) = seen::without_timestamps(&clamped);
    let (says, after_rest) = seen::without_timestamps(after);
    if let (Some(said), Some(says)) = (said, says) {
        // One of them belongs to a clock that isn't changed.
        ensure!(said[0] == says[0] || said[1] == says[1], "timestamps: {said:?} {says:?}");
    }
    let (rest, after_rest) = (Seen::new(&rest).rest, Seen::new(&after_rest).rest);
    let (before, after) = (Seen::new(before), Seen::new(after));
    ensure!(after.time_to_live + 1 == before.time_to_live, "time to live: {after:?}");
    ensure!(after.ip_checksum_is_right, "IP checksum: {after:?}");
    ensure!(
        after.transport_checksum == before.transport_checksum,
        "transport checksum: {before:?} {after:?}"
    );
    ensure!(after_rest == rest, "something else was changed: {before:?} {after:?}");
    Ok(())
}

/// Demands that a frame to an encapsulating backend has an outer header that is right and takes over what
/// it must of the one within. Returns the frame without it.
fn take_off_outer(before: &[u8], after: &[u8], backend: Option<&Backend>) -> Result<Vec<u8>> {
    if !backend.is_some_and(|backend| backend.forwarding.encapsulates()) {
        return Ok(after.to_vec());
    }
    let (outer, inner) = seen::decapsulate(after)?;
    let outer = outer.context("no outer header")?;
    let is_ipv4 = before[14] >> 4 == 4;
    let service = if is_ipv4 { before[15] } else { (before[14] << 4) | (before[15] >> 4) };
    ensure!(outer.service == service, "{outer:?}");
    ensure!(outer.time_to_live == 64, "{outer:?}");
    let is_whole = !is_ipv4 || before[20] & 0x40 != 0;
    ensure!(outer.is_whole == (is_whole || outer.source.is_ipv6()), "{outer:?}");
    if let Some(identification) = outer.identification {
        let wanted = if is_ipv4 { [before[18], before[19]] } else { [0, 0] };
        ensure!(identification == wanted, "{outer:?}");
    }
    Ok(inner)
}
