//! The packet's journey, in its order:
//!
//! 1. [`parse`]: is it a TCP segment that could be ours?
//! 2. [`established`]: does it belong to a flow? Then it's rewritten and sent on.
//! 3. [`handshake`]: does it belong to a half-open handshake, and does it complete one?
//! 4. [`opening`]: does it open a connection to a service? Then a backend is picked from the ring,
//!    [`nat`] finds a source port, and the flow is recorded.
//! 5. [`rewrite`]: addresses, ports, checksums, time to live.
//!
//! Whatever happens, it has one [`Reason`]; what becomes of the frame follows from that alone.
//!
//! The code knows no platform: frames come in through [`Packet`], tables and time through
//! [`Tables`].

mod established;
mod handshake;
mod hash;
mod nat;
mod opening;
mod packet;
mod parse;
mod rewrite;
mod tables;
mod verdict;

pub use nat::NAT_TRIES;
pub use packet::Packet;
pub use tables::{InsertError, Table, Tables};
pub use verdict::{Action, Kind, Reason, Verdict};

use crate::{
    abi::{Direction, FlowState},
    wire::{EthernetHeader, Ipv4Address},
};

/// Decides what becomes of a frame, and rewrites it where it is to be sent on.
///
/// A frame whose reason's action isn't [`Action::Transmit`] is left as it was.
#[inline(always)]
pub fn process<P: Packet, T: Tables<Ipv4Address>>(packet: &mut P, tables: &T) -> Verdict {
    match forward(packet, tables) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict { reason, egress: 0 },
    }
}

#[inline(always)]
fn forward<P: Packet, T: Tables<Ipv4Address>>(
    packet: &mut P,
    tables: &T,
) -> Result<Verdict, Reason> {
    let segment = parse::segment(packet)?;

    if let Some(entry) = tables.find(Table::Established, &segment.key) {
        let flow = entry.read();
        // A client uses its port again. The backend judges whether the old connection is over, but
        // one that takes no new connections gets none in this way either.
        let moves = segment.flags.opens()
            && flow.direction == Direction::ToBackend as u8
            && flow.state == FlowState::CLOSED
            && !opening::would_pick(tables, &segment, flow.backend);
        if !moves {
            return established::forward(packet, tables, &segment, entry, &flow);
        }
        tables.remove(Table::Established, &flow.peer_key(segment.key.protocol));
        tables.remove(Table::Established, &segment.key);
    }

    let service = opening::service(tables, &segment);
    if service.is_none() {
        // Most of what isn't ours ends here, without a look at half-open handshakes.
        let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
        if !nat::is_ours(&settings, segment.key.destination_port) {
            return Err(Reason::NoService);
        }
    }
    if let Some(handshake) = handshake::find(tables, &segment) {
        return handshake::forward(packet, tables, &segment, handshake);
    }
    let service = service.ok_or(Reason::NoService)?;
    opening::forward(packet, tables, &segment, &service)
}

/// Offset of the network header in a frame without VLAN tags, in bytes.
const NETWORK_OFFSET: usize = EthernetHeader::LENGTH;
