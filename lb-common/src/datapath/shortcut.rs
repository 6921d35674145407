//! By direct return: the way past the table of flows.
//!
//! Nearly every flow is at the backend that its ring's slot leads to. Where a slot is settled, all of them are: then its
//! packets go there without a look at the table, which only has to know them for the day that the slot leads elsewhere.
//! So a flow is looked up once in a while, when no trace of it is found (see [`super::traces`]): that records it, if it
//! wasn't, and says that it lives. What begins or ends a flow is looked up in any case.

use bytemuck::Zeroable;

use super::{
    Family, FamilyTables, choice, opening,
    parse::Segment,
    traces::{Trace, erase},
};
use crate::{
    abi::{Backend, Direction, Flow, FlowKey, FlowState, Forwarding, Moment, Service, Settings},
    wire::{Ipv4Header, TcpFlags},
};

/// Where a packet goes without a look at the table of flows.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
pub(super) struct Shortcut {
    trace: Trace,
    backend: u32,
    service: u32,
    forwarding: Forwarding,
    reserved: u32,
}

impl Shortcut {
    /// Becomes that of a segment to a port of [`crate::abi::PortSet::Direct`], and returns the backend that it leads to. `None`:
    /// there is none, and what this becomes is of no interest.
    #[inline(always)]
    pub(super) fn find<'t, A: Family, T: FamilyTables<A>>(
        &mut self,
        tables: &'t T,
        segment: &Segment<A>,
        settings: &Settings,
        now: Moment,
    ) -> Option<&'t Backend> {
        let key = &segment.key;
        // What names no ports comes behind the first fragment, and finds its way by the flow's entry.
        if segment.flags.has(TcpFlags::SYN) || segment.part.is_fragment {
            return None;
        }
        if !tables.is_station(&segment.station()) {
            return None;
        }
        let service = opening::service(tables, key)?;
        if !service.is_led_by_ring() || service.ring.size() == 0 {
            return None;
        }
        // Without a connection, the backend takes whatever comes.
        if service.access != 0 && segment.is_udp() {
            return None;
        }
        let hash = choice::hash_of(key, &service, settings);
        let slot = tables.ring_slot(service.ring.slot(hash))?;
        if !slot.is_settled() {
            return None;
        }
        let backend = tables.backend(slot.number())?;
        if backend.forwarding.sees_replies() {
            return None;
        }
        self.trace = Trace::new(key, settings, now);
        self.service = service.index;
        self.forwarding = backend.forwarding;
        self.backend = slot.number();
        Some(backend)
    }

    /// Whether it may be taken by a segment that is one of many. Then `flow` becomes what is needed to forward its packets.
    #[inline(always)]
    pub(super) fn take<A: Family, T: FamilyTables<A>>(
        &self,
        tables: &T,
        segment: &Segment<A>,
        flow: &mut Flow<A>,
    ) -> bool {
        if !tables.traces(self.trace.place).have(self.trace) {
            return false;
        }
        flow.source = segment.key.source;
        flow.destination = segment.key.destination;
        flow.network_delta = Ipv4Header::TIME_TO_LIVE_DELTA;
        flow.backend = self.backend;
        flow.service = self.service;
        flow.direction = Direction::ToBackend as u8;
        flow.forwarding = self.forwarding;
        true
    }

    /// Leaves the trace of a flow that was looked up, if it is where its slot leads; or takes it away, if the segment may end
    /// it.
    #[inline(always)]
    pub(super) fn leave_trace<A: Family, T: FamilyTables<A>>(
        &self,
        tables: &T,
        segment: &Segment<A>,
        flow: &Flow<A>,
    ) {
        if !segment.is_usual() {
            erase(tables, self.trace);
        } else if flow.state == FlowState::ESTABLISHED
            && flow.direction == Direction::ToBackend as u8
            && flow.backend == self.backend
            && flow.service == self.service
            && flow.forwarding == self.forwarding
        {
            let traces = tables.traces(self.trace.place);
            tables.set_traces(self.trace.place, traces.with(self.trace));
        }
    }
}

/// Sees to it that the packets of a flow that begins at `backend` are looked up, by direct return: the next one in any case,
/// since it may be the only one for long, and all of them where its slot leads elsewhere.
#[inline(always)]
pub(super) fn begin<A: Family, T: FamilyTables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &Service,
    settings: &Settings,
    backend: u32,
) {
    if !service.is_led_by_ring() || service.ring.size() == 0 {
        return;
    }
    let place = choice::slot_of(key, service, settings);
    if tables.ring_slot(place).is_some_and(|slot| slot.number() != backend) {
        tables.unsettle(place);
    }
    erase(tables, Trace::new(key, settings, tables.now()));
}
