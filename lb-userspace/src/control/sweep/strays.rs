//! Settles slots of rings again: by direct return, packets take a shortcut where all flows of a slot are where it leads.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lb_common::{
    abi::{
        CHECK_SERVICE, Direction, Flow, FlowKey, Forwarding, Ring, Service, ServiceKey, Settings,
        maps,
    },
    datapath,
    wire::Address,
};

use super::Orders;
use crate::dataplane::{DataplaneError, FamilyMaps, Maps, RingMemory};

/// What a round finds of flows by direct return.
pub(super) struct Strays {
    settings: Settings,
    /// Rings that were looked at, by where they lie.
    rings: BTreeMap<u32, Ring>,
    /// Slots of flows that are elsewhere than these lead.
    slots: HashSet<u32>,
}

/// Services of a family that have backends by direct return, and these with how they forward.
pub(super) struct Led<A> {
    services: HashMap<ServiceKey<A>, Service>,
    forwarding: HashMap<u32, Forwarding>,
}

impl Strays {
    /// Begins a round.
    pub(super) fn begin(maps: &Maps) -> Result<Self, DataplaneError> {
        Ok(Self {
            settings: maps.settings.get(&0, 0).map_err(DataplaneError::map(maps::SETTINGS))?,
            rings: BTreeMap::new(),
            slots: HashSet::new(),
        })
    }

    /// Services whose flows are to be seen.
    pub(super) fn services<A: Address>(
        &mut self,
        maps: &FamilyMaps<A>,
        orders: &Orders,
    ) -> Result<Led<A>, DataplaneError> {
        let direct = orders.backends.iter().filter(|(_, known)| !known.forwarding.sees_replies());
        let forwarding = direct.clone().map(|(index, known)| (*index, known.forwarding)).collect();
        let indices: BTreeSet<u32> = direct.map(|(_, known)| known.service).collect();
        let mut services = HashMap::new();
        if !indices.is_empty() {
            for entry in &maps.services {
                let (key, service) = entry.map_err(DataplaneError::map(maps::SERVICES))?;
                if indices.contains(&service.index)
                    && service.is_led_by_ring()
                    && service.ring.size() > 0
                {
                    self.rings.insert(service.ring.offset(), service.ring);
                    services.insert(key, service);
                }
            }
        }
        Ok(Led { services, forwarding })
    }

    /// Sees an entry, and unsettles its slot at once where it leads elsewhere.
    pub(super) fn see<A: Address>(
        &mut self,
        rings: &RingMemory,
        led: &Led<A>,
        key: &FlowKey<A>,
        flow: &Flow<A>,
    ) {
        if led.services.is_empty()
            || flow.direction != Direction::ToBackend as u8
            || flow.service == CHECK_SERVICE
        {
            return;
        }
        let service = ServiceKey {
            address: key.destination,
            port: key.destination_port,
            protocol: key.protocol as u16,
        };
        let Some(service) = led.services.get(&service) else { return };
        let slot = datapath::slot_of(key, service, &self.settings);
        let is_there = rings.slot(slot).number() == flow.backend
            && led.forwarding.get(&flow.backend) == Some(&flow.forwarding);
        if !is_there {
            self.slots.insert(slot);
            rings.unsettle_slot(slot);
        }
    }

    /// Ends the round.
    pub(super) fn end(self, rings: &RingMemory) {
        for ring in self.rings.values() {
            rings.settle(*ring, &self.slots);
        }
    }
}
