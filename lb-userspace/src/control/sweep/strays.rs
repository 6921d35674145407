//! Settles slots of rings again: by direct return, packets take a shortcut where all flows of a slot are where it leads.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lb_common::{
    abi::{
        CHECK_SERVICE, Direction, Flow, FlowKey, FlowState, Forwarding, Ring, Service, ServiceKey,
        Settings, Tick, maps,
    },
    datapath,
    wire::{Address, Ipv4Address, Ipv6Address},
};

use super::{Orders, expiry::UNNOTED};
use crate::dataplane::{self, DataplaneError, FamilyMaps, Maps, RingMemory};

/// What a round finds of flows that are elsewhere than their slots lead.
pub(super) struct Strays {
    settings: Settings,
    now: Tick,
    /// How backends by direct return forward.
    forwarding: HashMap<u32, Forwarding>,
    /// Their services' rings, by where they lie.
    rings: BTreeMap<u32, Ring>,
    /// Slots that lead elsewhere than to where all their flows are.
    slots: HashSet<u32>,
    /// Established flows of services that these rings lead.
    flows: u32,
}

/// Services of a family whose backends answer clients directly.
pub(super) type Led<A> = HashMap<ServiceKey<A>, Service>;

impl Strays {
    /// Begins a round at `now`. Returns also whose flows are to be seen, of both families, read at once: a ring that is
    /// replaced meanwhile isn't settled by what was seen of the other one.
    pub(super) fn begin(
        maps: &Maps,
        orders: &Orders,
        now: Tick,
    ) -> Result<(Self, Led<Ipv4Address>, Led<Ipv6Address>), DataplaneError> {
        let direct = orders.backends.iter().filter(|(_, known)| !known.forwarding.sees_replies());
        let services: BTreeSet<u32> = direct.clone().map(|(_, known)| known.service).collect();
        let mut strays = Self {
            settings: maps.settings.get(&0, 0).map_err(DataplaneError::map(maps::SETTINGS))?,
            now,
            forwarding: direct.map(|(index, known)| (*index, known.forwarding)).collect(),
            rings: BTreeMap::new(),
            slots: HashSet::new(),
            flows: 0,
        };
        let ipv4 = strays.led(&maps.ipv4, &services)?;
        let ipv6 = strays.led(&maps.ipv6, &services)?;
        Ok((strays, ipv4, ipv6))
    }

    fn led<A: Address>(
        &mut self,
        maps: &FamilyMaps<A>,
        indices: &BTreeSet<u32>,
    ) -> Result<Led<A>, DataplaneError> {
        let mut led = Led::new();
        if indices.is_empty() {
            return Ok(led);
        }
        for entry in &maps.services {
            let (key, service) = entry.map_err(DataplaneError::map(maps::SERVICES))?;
            let is_led = service.is_led_by_ring() && service.ring.size() > 0;
            if is_led && indices.contains(&service.index) {
                self.rings.insert(service.ring.offset(), service.ring);
                led.insert(key, service);
            }
        }
        Ok(led)
    }

    /// Sees an entry, and unsettles its slot at once where that leads elsewhere: also a reply's, where a service has the
    /// address and port of one.
    pub(super) fn see<A: Address>(
        &mut self,
        rings: &RingMemory,
        led: &Led<A>,
        key: &FlowKey<A>,
        flow: &Flow<A>,
    ) {
        if led.is_empty() || flow.service == CHECK_SERVICE {
            return;
        }
        let service = ServiceKey {
            address: key.destination,
            port: key.destination_port,
            protocol: key.protocol as u16,
        };
        let Some(service) = led.get(&service) else { return };
        let is_to_backend = flow.direction == Direction::ToBackend as u8;
        self.flows += u32::from(is_to_backend && !flow.state.is_half_open());
        let slot = datapath::slot_of(key, service, &self.settings);
        let is_there = is_to_backend
            && rings.slot(slot).number() == flow.backend
            && self.forwarding.get(&flow.backend) == Some(&flow.forwarding);
        if !is_there && !self.is_past(flow) {
            self.slots.insert(slot);
            rings.unsettle_slot(slot);
        }
    }

    /// Whether a flow has ended, and nothing has come of it since.
    fn is_past<A: Address>(&self, flow: &Flow<A>) -> bool {
        let idle = dataplane::seconds(self.now.since(flow.last_seen));
        [FlowState::CLOSING, FlowState::CLOSED].contains(&flow.state) && idle > u64::from(UNNOTED)
    }

    /// Ends the round, and returns how many flows there are that may take the shortcut.
    pub(super) fn end(self, rings: &RingMemory) -> u32 {
        for ring in self.rings.values() {
            rings.settle(*ring, &self.slots);
        }
        self.flows
    }
}
