//! What a SYN says of how long segments may be (RFC 9293, section 3.7.1) is lowered.

use core::hint;

use super::{Clamp, Packet, parse::bounded};
use crate::wire::{Checksum, ChecksumDelta, TcpHeader};

/// Kinds of TCP options (RFC 9293, section 3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT: u8 = 2;
/// No offset is larger: see [`bounded`], which is for even ones.
const MOST: u16 = 0x3fff;
/// Bytes that the option takes.
const LENGTH: usize = 4;
/// Most options that there can be, of a byte each.
const MOST_OPTIONS: usize = 40;

/// Lowers what the segment says at [`Clamp::place`], where that is set.
#[inline(always)]
pub(super) fn lower<P: Packet>(packet: &mut P, clamp: Clamp) -> Option<()> {
    if clamp.place == 0 {
        return Some(());
    }
    let (transport, place) = (bounded(clamp.transport_offset), (clamp.place & MOST) as usize);
    let old: [u8; 2] = packet.read(place)?;
    let new = clamp.maximum_segment.to_be_bytes();
    packet.write(place, new)?;
    let [old, new] = [old, new].map(u16::from_ne_bytes);
    // Where it lies across two words, each byte counts as the other one (RFC 1071, section 2).
    let delta = if place % 2 == 0 {
        ChecksumDelta::of_u16(old, new)
    } else {
        ChecksumDelta::of_u16(old.swap_bytes(), new.swap_bytes())
    };
    let checksum: Checksum = packet.read(transport + TcpHeader::CHECKSUM_OFFSET)?;
    packet.write(transport + TcpHeader::CHECKSUM_OFFSET, checksum.updated(delta))
}

/// Sets [`Clamp::place`] where the segment says more than it may, and to zero elsewhere. One that says
/// nothing means 536 bytes over IPv4 and 1220 over IPv6 (RFC 9293, section 3.7.1), and stays.
#[inline(always)]
pub(super) fn find<P: Packet>(packet: &P, clamp: &mut Clamp) {
    let value = find_option(packet, clamp);
    let said = value.and_then(|place| Some((place, u16::from_be_bytes(packet.read(place)?))));
    clamp.place = match said {
        Some((place, said)) if said > clamp.maximum_segment => place as u16,
        _ => 0,
    };
}

/// Offset of the option's value in the frame, in bytes.
#[inline(always)]
fn find_option<P: Packet>(packet: &P, clamp: &mut Clamp) -> Option<usize> {
    let transport = bounded(clamp.transport_offset);
    let header: TcpHeader = packet.read(transport)?;
    let length = header.length();
    let mut clamp = clamp;
    clamp.place = TcpHeader::MINIMUM_LENGTH as u16;
    for _ in 0..MOST_OPTIONS {
        // The position goes through memory, of which the verifier knows nothing: else it would go on with
        // one path for each row of options.
        clamp = hint::black_box(clamp);
        let at = (clamp.place & MOST) as usize;
        if at + LENGTH > length {
            return None;
        }
        let [kind, option_length]: [u8; 2] = packet.read(transport + at)?;
        clamp.place += match kind {
            END => return None,
            NO_OPERATION => 1,
            MAXIMUM_SEGMENT if option_length as usize == LENGTH => return Some(transport + at + 2),
            _ if option_length < 2 => return None,
            _ => u16::from(option_length),
        };
    }
    None
}
