//! ICMP errors about a flow: they reach the end whose datagram they are about, which finds in them
//! what it sent (RFC 792; RFC 4443, section 3; RFC 5508, section 4).

use bytemuck::Zeroable;

use super::{
    Family, FamilyTables, NETWORK_OFFSET, Packet, Reason, Scratch, Table, Verdict, established,
    network::Datagram,
    opening,
    parse::{self, bounded},
    tables::{find_anywhere, find_peer},
    transmit, trouble,
};
use crate::{
    abi::{Direction, Flow, FlowKey, FlowState, Settings},
    wire::{
        Checksum, ChecksumDelta, IcmpHeader, Ipv4Header, NetworkHeader, NetworkU16, PROTOCOL_TCP,
        PROTOCOL_UDP, TcpHeader, UdpHeader,
    },
};

/// Forwards an ICMP error about a flow.
#[inline(always)]
pub(super) fn forward<A: Family, P: Packet, T: FamilyTables<A>>(
    packet: &mut P,
    tables: &T,
    scratch: &mut ErrorScratch<A>,
) -> Result<Verdict, Reason> {
    let ErrorScratch { basic, quote } = scratch;
    let Scratch { segment, flow, reply_key: key, longest, .. } = basic;
    let datagram = A::datagram(packet, NETWORK_OFFSET)?;
    read_quote(packet, &datagram, quote)?;
    let quote = &*quote;
    *key = quote.answered_by();
    parse::headless(packet, &datagram, *key, segment)?;
    let segment = &*segment;
    match find_anywhere(tables, key) {
        Some(found) => *flow = found,
        None => opening::guess(tables, segment, flow).ok_or(Reason::OtherProtocol)?,
    }

    established::demand_own_station(tables, segment)?;
    let settings = tables.settings().ok_or(Reason::TablesIncomplete)?;
    segment.admit_datagram(packet, &settings)?;
    // An error goes to whom the quoted datagram came from (RFC 1122, section 3.2.2): any other isn't about what we sent.
    let header: A::Header = packet.read(NETWORK_OFFSET).ok_or(Reason::ShortFrame)?;
    if header.destination() != key.destination {
        return Err(Reason::OtherProtocol);
    }
    if quote.refuses != 0 && is_withheld(tables, &settings, key, flow) {
        return Err(Reason::RefusalWithheld);
    }
    let backend = transmit::backend(tables, segment, flow, longest)?;

    let changed = if flow.forwarding.sees_replies() {
        unquote(packet, quote, flow)?
    } else {
        ChecksumDelta::ZERO
    };
    // Whoever noticed it is hidden where those behind us are.
    // Read again: kept from above, it wouldn't fit on the stack.
    let header: A::Header = packet.read(NETWORK_OFFSET).ok_or(Reason::ShortFrame)?;
    let from = header.source();
    let is_hidden = flow.direction == Direction::ToClient as u8 || flow.forwarding.hides_client();
    if !is_hidden {
        flow.source = from;
    }
    let addresses = A::checksum_delta(from, flow.source)
        .and(A::checksum_delta(key.destination, flow.destination));
    let pseudo_header = if A::ICMP_COVERS_ADDRESSES { addresses } else { ChecksumDelta::ZERO };
    let place = segment.transport_offset() + IcmpHeader::CHECKSUM_OFFSET;
    let checksum: Checksum = packet.read(place).ok_or(Reason::OtherProtocol)?;
    packet.write(place, checksum.updated(changed.and(pseudo_header))).ok_or(Reason::ShortFrame)?;

    flow.network_delta = addresses.and(Ipv4Header::TIME_TO_LIVE_DELTA);
    transmit::send_headless(packet, tables, segment, flow, backend, Reason::IcmpError)
}

/// Whether a client isn't to hear that its SYN didn't reach the backend, since the next one goes elsewhere. `flow` is
/// what becomes of answers, and `key` theirs.
#[inline(always)]
fn is_withheld<A: Family, T: FamilyTables<A>>(
    tables: &T,
    settings: &Settings,
    key: &FlowKey<A>,
    flow: &Flow<A>,
) -> bool {
    if flow.direction != Direction::ToClient as u8 || !flow.state.is_half_open() {
        return false;
    }
    let peer = find_peer(tables, Table::Embryonic, key, flow);
    peer.filter(|peer| peer.read().state == FlowState::SYN)
        .is_some_and(|peer| trouble::withhold(tables, settings, key, flow, peer))
}

/// [`Scratch`] of the part for ICMP.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ErrorScratch<A: Family> {
    /// That of the parts for TCP and UDP.
    pub basic: Scratch<A>,
    quote: Quote<A>,
}

// SAFETY: every part of it may be all zeros.
unsafe impl<A: Family> Zeroable for ErrorScratch<A> {}

/// The beginning of the datagram that an error is about, as we had sent it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Quote<A: Family> {
    /// Offset of its network header in the frame, in bytes.
    start: u16,
    /// Offset of its transport header.
    transport: u16,
    header: A::Header,
    protocol: u8,
    /// 1: it is about a TCP segment that was refused, or whose receiver can't be reached.
    refuses: u8,
    /// Sender's and receiver's.
    ports: [NetworkU16; 2],
}

// SAFETY: numbers, and a header, which is plain data.
unsafe impl<A: Family> Zeroable for Quote<A> {}

/// Reads what an ICMP error is about; anything else that is ICMP isn't for us.
#[inline(always)]
fn read_quote<A: Family, P: Packet>(
    packet: &P,
    datagram: &Datagram<A>,
    quote: &mut Quote<A>,
) -> Result<(), Reason> {
    let message: IcmpHeader =
        packet.read(datagram.transport_offset).ok_or(Reason::OtherProtocol)?;
    if datagram.protocol != A::ICMP || datagram.part.is_fragment || !A::is_error(message.kind()) {
        return Err(Reason::OtherProtocol);
    }
    let start = datagram.transport_offset + IcmpHeader::LENGTH;
    let (header, protocol, transport) = A::quoted(packet, start).ok_or(Reason::OtherProtocol)?;
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return Err(Reason::OtherProtocol);
    }
    // As much as there must be of it (RFC 792), within the message.
    if transport + QUOTED_TRANSPORT > NETWORK_OFFSET + datagram.length {
        return Err(Reason::OtherProtocol);
    }
    // Written in place: another copy of it wouldn't fit on the stack.
    quote.start = start as u16;
    quote.transport = transport as u16;
    quote.header = header;
    quote.protocol = protocol;
    let is_refusal = A::is_unreachable(message.kind(), message.code()) && protocol == PROTOCOL_TCP;
    quote.refuses = is_refusal.into();
    quote.ports = packet.read(transport).ok_or(Reason::OtherProtocol)?;
    Ok(())
}

/// Bytes that a message quotes of a transport header at least.
const QUOTED_TRANSPORT: usize = 8;

impl<A: Family> Quote<A> {
    #[inline(always)]
    const fn start(&self) -> usize {
        bounded(self.start)
    }

    #[inline(always)]
    const fn transport(&self) -> usize {
        bounded(self.transport)
    }

    /// The key of the flow's direction that the quoted datagram's receiver would answer in.
    #[inline(always)]
    fn answered_by(&self) -> FlowKey<A> {
        let [source_port, destination_port] = self.ports;
        FlowKey {
            source: self.header.destination(),
            destination: self.header.source(),
            source_port: destination_port,
            destination_port: source_port,
            protocol: u32::from(self.protocol),
        }
    }
}

/// Makes of a quoted datagram the one that its sender had sent: `flow` is what becomes of the answers
/// to it. Returns what that does to the message's checksum.
#[inline(always)]
fn unquote<A: Family, P: Packet>(
    packet: &mut P,
    quote: &Quote<A>,
    flow: &Flow<A>,
) -> Result<ChecksumDelta, Reason> {
    let addresses = A::checksum_delta(quote.header.source(), flow.destination)
        .and(A::checksum_delta(quote.header.destination(), flow.source));
    let [source_port, destination_port] = quote.ports;
    let ports = ChecksumDelta::of_u16(source_port.raw(), flow.destination_port.raw())
        .and(ChecksumDelta::of_u16(destination_port.raw(), flow.source_port.raw()));

    let head = quote.header.head();
    let route = A::Header::changed(head, flow.destination, flow.source, 0, addresses);
    packet.write(quote.start() + A::Header::ROUTE_OFFSET, route).ok_or(Reason::ShortFrame)?;
    packet
        .write(quote.transport(), [flow.destination_port, flow.source_port])
        .ok_or(Reason::ShortFrame)?;
    // The checksum in IPv4's header makes up for the addresses.
    let mut changed = if A::HEADER_HAS_CHECKSUM { ports } else { addresses.and(ports) };

    let is_udp = quote.protocol == PROTOCOL_UDP;
    let offset = if is_udp { UdpHeader::CHECKSUM_OFFSET } else { TcpHeader::CHECKSUM_OFFSET };
    let place = quote.transport() + offset;
    // Of TCP's header, no more than the ports and the sequence number need be there.
    if let Some(old) = packet.read::<Checksum>(place) {
        let delta = addresses.and(ports);
        let new = if is_udp { old.updated_udp(delta) } else { old.updated(delta) };
        packet.write(place, new).ok_or(Reason::ShortFrame)?;
        changed = changed.and(ChecksumDelta::of_u16(old.raw(), new.raw()));
    }
    Ok(changed)
}
