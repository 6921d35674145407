//! Waking clients: one that says nothing doesn't hear either that its backend is gone.
//!
//! A segment whose sequence number is far from what the client expects makes it say where the connection
//! stands (RFC 9293, section 3.10.7.4), and the XDP program turns that answer into a reset with the right
//! number.

use std::collections::HashMap;

use lb_common::{
    abi::{Fate, Flow, FlowKey},
    wire::{Address, Inherited, NetworkHeader, Outer, PROTOCOL_TCP, TcpFlags, TcpHeader, VlanTags},
};

use super::Orders;
use crate::netlink::FrameSender;

/// How often a client is woken. One that hasn't answered by then is gone.
const TIMES: u32 = 20;

/// One in so many times, those are woken as well who were reset before.
const AGAIN: u32 = 4;

/// Wakes the clients of backends that are down.
#[derive(Default)]
pub(super) struct Waker {
    sender: Option<FrameSender>,
    /// How often those of a backend were woken.
    times: HashMap<u32, u32>,
}

impl Waker {
    /// Begins to wake once more.
    pub(super) fn begin(&mut self, orders: &Orders) {
        let is_reset = |index: &u32| {
            orders.backends.get(index).is_some_and(|backend| backend.fate == Fate::Reset)
        };
        self.times.retain(|index, _| is_reset(index));
        for index in orders.backends.keys().filter(|index| is_reset(index)) {
            *self.times.entry(*index).or_default() += 1;
        }
        if self.times.is_empty() {
            return;
        }
        if self.sender.is_none() {
            match FrameSender::new() {
                Ok(sender) => self.sender = Some(sender),
                Err(error) => {
                    tracing::warn!(%error, "silent clients of backends that are down can't be woken");
                }
            }
        }
    }

    /// Whether it is time to wake those once more who were reset before, which may not have come there.
    pub(super) fn wakes_again(&self, backend: u32) -> bool {
        self.times.get(&backend).is_some_and(|times| times.is_multiple_of(AGAIN))
    }

    /// Wakes the client of a flow. Returns whether there is any use in it.
    pub(super) fn wake<A: Address>(&mut self, key: &FlowKey<A>, flow: &Flow<A>) -> bool {
        if self.times.get(&flow.backend).is_none_or(|times| *times > TIMES) {
            return false;
        }
        if let Some(sender) = &self.sender {
            let frame = probe(key, flow, fastrand::u32(..));
            if let Err(error) = sender.send(flow.link.interface, &frame) {
                tracing::debug!(%error, "waking a client");
            }
        }
        true
    }
}

/// A segment from the service to the client with that sequence number, and nothing in it.
fn probe<A: Address>(key: &FlowKey<A>, flow: &Flow<A>, sequence: u32) -> Vec<u8> {
    let length = TcpHeader::MINIMUM_LENGTH as u16;
    let outer = Outer {
        inherited: Inherited::NONE,
        payload_length: length,
        protocol: PROTOCOL_TCP,
        source: &key.destination.words(),
        destination: &key.source.words(),
        flow: 0,
    };
    let sum = A::pseudo_header_sum(key.destination, key.source, PROTOCOL_TCP, length);
    let ports = (key.destination_port, key.source_port);
    let tcp = TcpHeader::bare(ports, (sequence, 0), TcpFlags::ACK, sum);
    let link = flow.link;
    let mut frame = [link.station.bytes(), link.own.bytes()].concat();
    for tag in link.vlans.tags(VlanTags::NONE).0.iter().take_while(|tag| !tag.is_none()) {
        frame.extend(bytemuck::bytes_of(tag));
    }
    frame.extend(bytemuck::bytes_of(&A::Header::ETHER_TYPE));
    frame.extend(bytemuck::bytes_of(&A::Header::around(&outer)));
    frame.extend(bytemuck::bytes_of(&tcp));
    frame
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::{
        abi::Link,
        wire::{Ipv4Address, MacAddress, NetworkU16, Vlan, Vlans},
    };

    use super::*;

    #[test]
    fn a_probe_comes_from_the_service_to_the_client_by_its_link() {
        let key = FlowKey {
            source: Ipv4Address::from(Ipv4Addr::new(198, 51, 100, 7)),
            destination: Ipv4Address::from(Ipv4Addr::new(192, 0, 2, 1)),
            source_port: NetworkU16::new(40_000),
            destination_port: NetworkU16::new(8080),
            protocol: 6,
        };
        let mut flow: Flow<Ipv4Address> = bytemuck::Zeroable::zeroed();
        flow.link = Link {
            interface: 1,
            station: MacAddress::new([2, 0, 0, 0, 0, 1]),
            own: MacAddress::new([2, 0, 0, 0, 0, 2]),
            vlans: Vlans([Vlan::new(100, false), Vlan::NONE]),
        };
        let frame = probe(&key, &flow, 0x0102_0304);
        assert_eq!(frame[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        assert_eq!(frame[12..18], [0x81, 0, 0, 100, 8, 0]);
        let (ip, tcp) = frame[18..].split_at(20);
        assert_eq!(ip[12..20], [192, 0, 2, 1, 198, 51, 100, 7]);
        assert_eq!(tcp[..8], [0x1f, 0x90, 0x9c, 0x40, 1, 2, 3, 4]);
        assert_eq!((tcp[12], tcp[13], tcp.len()), (0x50, 0x10, 20));
        // The pseudo-header: addresses, protocol and length.
        let words = ip[12..].chunks(2).chain(tcp.chunks(2));
        let sum: u32 = words.map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = sum + 6 + 20;
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
