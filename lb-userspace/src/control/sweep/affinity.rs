//! Clients that keep their backend: as long as they have a connection, and for a while after the last.

use std::collections::{BTreeSet, HashMap};

use lb_common::{
    abi::{Client, ClientKey, Direction, Flow, FlowKey, FlowState, Tick},
    wire::Address,
};

use super::Orders;
use crate::dataplane::{DataplaneError, FamilyMaps};

/// What is known of the clients of a family.
pub(super) struct Clients<'a, A> {
    orders: &'a Orders,
    now: Tick,
    /// Ticks until it is looked again, at the most.
    pause: u32,
    known: HashMap<ClientKey<A>, Client>,
    /// Those that have a connection.
    connected: HashMap<ClientKey<A>, Client>,
    is_used: bool,
}

impl<'a, A: Address> Clients<'a, A> {
    /// Reads them.
    pub(super) fn read(
        maps: &FamilyMaps<A>,
        orders: &'a Orders,
        now: Tick,
        pause: u32,
    ) -> Result<Self, DataplaneError> {
        let mut known = HashMap::new();
        maps.for_each_client(|key, client| {
            known.insert(*key, *client);
        })?;
        let is_used = orders.services.values().any(|service| service.affinity > 0);
        Ok(Self { orders, now, pause, known, connected: HashMap::new(), is_used })
    }

    /// Takes in an established flow.
    pub(super) fn see(&mut self, key: &FlowKey<A>, flow: &Flow<A>) {
        if !self.is_used
            || flow.direction != Direction::ToBackend as u8
            || flow.state == FlowState::CLOSED
            || self.affinity(flow.service) == 0
        {
            return;
        }
        let key = ClientKey { service: flow.service, address: key.source };
        let known = self.known.get(&key).copied();
        // An eighth of the time may be missing at the end, but no more, and it must not be over before it is
        // looked again.
        let affinity = u64::from(self.affinity(key.service));
        let is_stale = known.is_none_or(|client| {
            let age = crate::dataplane::seconds(self.now.since(client.last_seen));
            age * 8 >= affinity || crate::dataplane::seconds(self.pause) * 2 + age >= affinity
        });
        if is_stale {
            let backend = known.map_or(flow.backend, |client| client.backend);
            let ahead =
                if crate::dataplane::seconds(self.pause) * 4 >= affinity { self.pause } else { 0 };
            let last_seen = self.now.after(ahead);
            self.connected.insert(key, Client { backend, last_seen });
        }
    }

    /// Writes what has changed, and adds the backends that clients keep to `in_use`.
    pub(super) fn write(
        self,
        maps: &mut FamilyMaps<A>,
        in_use: &mut BTreeSet<u32>,
    ) -> Result<(), DataplaneError> {
        for (key, client) in &self.known {
            if self.connected.contains_key(key) {
                continue;
            }
            let is_active = self
                .orders
                .backends
                .get(&client.backend)
                .is_some_and(|backend| backend.is_active && backend.service == key.service);
            let age = crate::dataplane::seconds(self.now.since(client.last_seen));
            if is_active && age <= u64::from(self.affinity(key.service)) {
                in_use.insert(client.backend);
            } else {
                // It may have connected a moment ago: then the ring leads it from now on.
                let _: Result<(), aya::maps::MapError> = maps.clients.remove(key);
            }
        }
        for (key, client) in &self.connected {
            in_use.insert(client.backend);
            let before = self.known.get(key).map(|known| known.backend);
            if maps.clients.get(key, 0).ok().map(|now| now.backend) != before {
                // It has connected a moment ago, and may have another backend.
                continue;
            }
            maps.clients
                .insert(key, client, 0)
                .map_err(DataplaneError::map(lb_common::abi::maps::CLIENTS))?;
        }
        Ok(())
    }

    /// Seconds; 0: the service has none.
    fn affinity(&self, service: u32) -> u32 {
        self.orders.services.get(&service).map_or(0, |service| service.affinity)
    }
}
