//! VLAN tags: taken off what comes in, and put on what goes out.

use super::{Action, Decision, Note, Packet, Reason, Stage, Verdict};
use crate::wire::{EtherType, MacAddress, VlanTag, VlanTags};

/// Offset of the first tag, or of the EtherType, in a frame, in bytes.
const PLACE: usize = 12;
/// Bytes of one tag, and of two.
const ONE: usize = VlanTag::LENGTH;
const TWO: usize = 2 * VlanTag::LENGTH;

/// Takes the tags off a frame that has one or two, and leaves it to the family's part.
#[inline(always)]
pub(super) fn take_off<P: Packet>(packet: &mut P) -> Result<Decision, Reason> {
    let mut tags = VlanTags([packet.read(PLACE).ok_or(Reason::ShortFrame)?, VlanTag::NONE]);
    let mut ether_type: EtherType = packet.read(PLACE + ONE).ok_or(Reason::ShortFrame)?;
    if ether_type.is_vlan() {
        tags.0[1] = packet.read(PLACE + ONE).ok_or(Reason::ShortFrame)?;
        ether_type = packet.read(PLACE + TWO).ok_or(Reason::ShortFrame)?;
    }
    let stage = match ether_type {
        EtherType::IPV4 => Stage::Ipv4,
        EtherType::IPV6 => Stage::Ipv6,
        _ if ether_type.is_vlan() => return Err(Reason::VlanTagged),
        _ => return Err(Reason::NotIp),
    };
    let done = if tags.0[1].is_none() { cut::<P, ONE>(packet) } else { cut::<P, TWO>(packet) };
    done.ok_or(Reason::ShortFrame)?;
    packet.leave(Note::new(tags));
    Ok(Decision::Left(stage))
}

/// Takes `BYTES` bytes out from behind the hardware addresses.
#[inline(always)]
fn cut<P: Packet, const BYTES: usize>(packet: &mut P) -> Option<()> {
    let addresses: [MacAddress; 2] = packet.read(0)?;
    packet.write(BYTES, addresses)?;
    packet.shrink::<BYTES>()
}

/// Puts tags on a frame: those that it came with where it goes no further, else those of where it
/// goes.
#[inline(always)]
pub(super) fn put_on<P: Packet>(packet: &mut P, verdict: &Verdict) -> Option<()> {
    let tags = match verdict.reason.action() {
        Action::Transmit => verdict.vlans.tags(packet.tags()),
        Action::Pass | Action::Drop => packet.tags(),
    };
    let [outer, inner] = tags.0;
    if outer.is_none() {
        return Some(());
    }
    if inner.is_none() {
        make_room::<P, ONE>(packet)?;
    } else {
        make_room::<P, TWO>(packet)?;
        packet.write(PLACE + ONE, inner)?;
    }
    packet.write(PLACE, outer)
}

/// Puts `BYTES` bytes behind the hardware addresses.
#[inline(always)]
fn make_room<P: Packet, const BYTES: usize>(packet: &mut P) -> Option<()> {
    packet.grow::<BYTES>()?;
    let addresses: [MacAddress; 2] = packet.read(BYTES)?;
    packet.write(0, addresses)
}
