//! A datagram is too long for the way to its backend: its sender is told how long it may be (RFC
//! 1191; RFC 4443, section 3.2).

use super::{Family, NETWORK_OFFSET, Packet, Reason, Verdict};
use crate::wire::{EthernetHeader, IcmpHeader, Inherited, NetworkHeader, Outer};

/// Turns the frame into the message that its datagram may be `longest` bytes long.
#[inline(always)]
pub(super) fn too_big<A: Family, P: Packet>(
    packet: &mut P,
    longest: u16,
) -> Result<Verdict, Reason> {
    let ethernet: EthernetHeader = packet.read(0).ok_or(Reason::ShortFrame)?;
    let datagram = A::datagram(packet, NETWORK_OFFSET)?;
    // The last ones of it, fewer than make a step, needn't be there.
    let steps = datagram.length.min(A::LONGEST_QUOTE) / STEP;
    let mut sum = 0;
    for step in 0..A::LONGEST_QUOTE / STEP {
        if step >= steps {
            break;
        }
        let words: [u16; STEP / 2] =
            packet.read(NETWORK_OFFSET + step * STEP).ok_or(Reason::ShortFrame)?;
        for word in words {
            sum += u32::from(word);
        }
    }
    let quoted = steps * STEP;
    let payload_length = (IcmpHeader::LENGTH + quoted) as u16;
    let (client, service) = (datagram.header.source(), datagram.header.destination());
    if A::ICMP_COVERS_ADDRESSES {
        sum += A::pseudo_header_sum(client, service, A::ICMP, payload_length);
    }

    packet.truncate(NETWORK_OFFSET + quoted).ok_or(Reason::NoHeadroom)?;
    A::grow_for_message(packet).ok_or(Reason::NoHeadroom)?;
    let message = A::too_big_message(longest).with_checksum(sum);
    let place = NETWORK_OFFSET + A::Header::LENGTH;
    packet.write(place, message).ok_or(Reason::NoHeadroom)?;
    send_back(
        packet,
        &ethernet,
        (service, client),
        A::ICMP,
        payload_length,
        Reason::NeedsFragmentation,
    )
}

/// Puts the headers before an answer to a frame that had the Ethernet header `ethernet`: so many bytes of that
/// protocol, from one address to another. It leaves where the frame came in.
#[inline(always)]
pub(super) fn send_back<A: Family, P: Packet>(
    packet: &mut P,
    ethernet: &EthernetHeader,
    (source, destination): (A, A),
    protocol: u8,
    payload_length: u16,
    reason: Reason,
) -> Result<Verdict, Reason> {
    let header = A::Header::around(&Outer {
        inherited: Inherited::NONE,
        payload_length,
        protocol,
        source: &source.words(),
        destination: &destination.words(),
        flow: 0,
    });
    packet.write(NETWORK_OFFSET, header).ok_or(Reason::NoHeadroom)?;
    let ethernet = EthernetHeader {
        destination: ethernet.source,
        source: ethernet.destination,
        ether_type: A::Header::ETHER_TYPE,
    };
    packet.write(0, ethernet).ok_or(Reason::NoHeadroom)?;
    Ok(Verdict {
        egress: packet.ingress(),
        vlans: packet.tags().vlans(),
        ..Verdict::refusing(reason)
    })
}

/// Bytes that are added up at a time.
const STEP: usize = 8;
