//! What a segment's options say (RFC 9293, section 3.1): how long segments may be is lowered, and
//! timestamps are shifted.
//!
//! By full NAT, many clients reach a backend from one address. A backend that remembers a closed
//! connection (`TIME_WAIT`) takes another from the same address and port only if its timestamps are ahead
//! (RFC 6191; RFC 7323, section 5.2). So all connections begin by one clock, ours, and each goes on by its
//! client's: what its first segment says is how far they are apart.

use core::hint;

use super::{
    Edits, Packet,
    parse::{Segment, bounded},
};
use crate::{
    abi::{Direction, Flow, Moment},
    datapath::Family,
    wire::{Checksum, ChecksumDelta, TcpFlags, TcpHeader},
};

/// Kinds of options.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT: u8 = 2;
const TIMESTAMPS: u8 = 8;
/// Bytes that options take with kind and length, which are two.
const MAXIMUM_SEGMENT_LENGTH: u8 = 4;
const TIMESTAMPS_LENGTH: u8 = 10;
const KIND_AND_LENGTH: usize = 2;
const TIMESTAMPS_DATA: usize = TIMESTAMPS_LENGTH as usize - KIND_AND_LENGTH;
/// Offset of the echo in the timestamps' data, in bytes.
const ECHO: u16 = 4;
/// How most segments' options begin: two that mean nothing, for alignment, and then the timestamps (RFC
/// 7323, appendix A).
const USUAL: [u8; 4] = [NO_OPERATION, NO_OPERATION, TIMESTAMPS, TIMESTAMPS_LENGTH];
/// No offset is larger: see [`bounded`], which is for even ones.
const MOST: u16 = 0x3fff;
/// Most options that there can be, of a byte each.
const MOST_OPTIONS: usize = 40;

/// Shifts the timestamps of a segment whose options begin as usual. `None`: they don't, and the timestamps
/// have to be looked for, as `edits` then says.
#[inline(always)]
pub(super) fn shift_usual<A: Family, P: Packet>(
    packet: &mut P,
    segment: &Segment<A>,
    flow: &Flow<A>,
    edits: &mut Edits,
) -> Option<ChecksumDelta> {
    let shift = flow.timestamp_shift();
    if shift == 0 || segment.options_length == 0 {
        return Some(ChecksumDelta::ZERO);
    }
    let (shift, field) = match Direction::from_u8(flow.direction) {
        Direction::ToBackend => (shift, 0),
        // The echo means something only where something is acknowledged.
        Direction::ToClient if !segment.flags.has(TcpFlags::ACK) => {
            return Some(ChecksumDelta::ZERO);
        }
        Direction::ToClient => (shift.wrapping_neg(), ECHO),
    };
    let place = segment.transport_offset() + TcpHeader::MINIMUM_LENGTH;
    let usual: [u16; 2] = packet.read(place)?;
    let has_room = segment.options_length as usize >= USUAL.len() + TIMESTAMPS_DATA;
    if has_room && bytemuck::cast::<_, [u8; 4]>(usual) == USUAL {
        return add(packet, place + USUAL.len() + field as usize, shift);
    }
    edits.shift = shift;
    edits.field = field;
    None
}

/// What the timestamps of a SYN are shifted by, to say what our clock does.
#[inline(always)]
pub(super) fn begin<P: Packet>(packet: &P, edits: &Edits, now: Moment) -> u32 {
    let said: Option<[u8; 4]> = match edits.timestamp_place & MOST {
        0 => None,
        place => packet.read(place as usize),
    };
    said.map_or(0, |said| now.stamp().number().wrapping_sub(u32::from_be_bytes(said)))
}

/// Sets the places of what may be to be changed, where the segment has it, and says that it was looked for.
#[inline(always)]
pub(super) fn find<P: Packet>(packet: &P, edits: &mut Edits) {
    walk(packet, edits);
    edits.looked = 1;
}

#[inline(always)]
fn walk<P: Packet>(packet: &P, edits: &mut Edits) -> Option<()> {
    let transport = bounded(edits.transport_offset);
    let header: TcpHeader = packet.read(transport)?;
    let length = header.length();
    let mut edits = edits;
    edits.walked = TcpHeader::MINIMUM_LENGTH as u16;
    for _ in 0..MOST_OPTIONS {
        // The position goes through memory, of which the verifier knows nothing: else it would go on with
        // one path for each row of options.
        edits = hint::black_box(edits);
        let at = (edits.walked & MOST) as usize;
        if at + KIND_AND_LENGTH > length {
            return None;
        }
        let [kind, option_length]: [u8; 2] = packet.read(transport + at)?;
        if kind != NO_OPERATION && at + option_length as usize > length {
            return None;
        }
        let data = (transport + at + KIND_AND_LENGTH) as u16;
        edits.walked += match kind {
            END => return None,
            NO_OPERATION => 1,
            _ if option_length < 2 => return None,
            _ => {
                if kind == MAXIMUM_SEGMENT
                    && option_length == MAXIMUM_SEGMENT_LENGTH
                    && edits.segment_place == 0
                {
                    edits.segment_place = data;
                }
                if kind == TIMESTAMPS
                    && option_length == TIMESTAMPS_LENGTH
                    && edits.timestamp_place == 0
                {
                    edits.timestamp_place = data + (edits.field & ECHO);
                }
                u16::from(option_length)
            }
        };
    }
    None
}

/// Changes what was found. A segment that doesn't say how long others may be means 536 bytes over IPv4 and
/// 1220 over IPv6 (RFC 9293, section 3.7.1), and stays.
#[inline(always)]
pub(super) fn change<P: Packet>(packet: &mut P, edits: &Edits) -> Option<()> {
    let mut delta = ChecksumDelta::ZERO;
    let place = (edits.segment_place & MOST) as usize;
    if place != 0 && edits.maximum_segment != 0 {
        let old: [u8; 2] = packet.read(place)?;
        if u16::from_be_bytes(old) > edits.maximum_segment {
            let new = edits.maximum_segment.to_be_bytes();
            packet.write(place, new)?;
            delta = words(place, old, new);
        }
    }
    let place = (edits.timestamp_place & MOST) as usize;
    if place != 0 && edits.shift != 0 {
        delta = delta.and(add(packet, place, edits.shift)?);
    }
    let place = bounded(edits.transport_offset) + TcpHeader::CHECKSUM_OFFSET;
    let checksum: Checksum = packet.read(place)?;
    packet.write(place, checksum.updated(delta))
}

/// Adds to a timestamp. Returns what that does to the segment's checksum.
#[inline(always)]
fn add<P: Packet>(packet: &mut P, place: usize, shift: u32) -> Option<ChecksumDelta> {
    let old: [u8; 4] = packet.read(place)?;
    let new = u32::from_be_bytes(old).wrapping_add(shift).to_be_bytes();
    packet.write(place, new)?;
    let halves = |bytes: [u8; 4]| ([bytes[0], bytes[1]], [bytes[2], bytes[3]]);
    let ((old_high, old_low), (new_high, new_low)) = (halves(old), halves(new));
    Some(words(place, old_high, new_high).and(words(place, old_low, new_low)))
}

/// What changing two bytes at `place` does to the checksum. Where they lie across two words, each byte
/// counts as the other one (RFC 1071, section 2); headers begin at even offsets.
#[inline(always)]
fn words(place: usize, old: [u8; 2], new: [u8; 2]) -> ChecksumDelta {
    let [old, new] = [old, new].map(u16::from_ne_bytes);
    if place.is_multiple_of(2) {
        ChecksumDelta::of_u16(old, new)
    } else {
        ChecksumDelta::of_u16(old.swap_bytes(), new.swap_bytes())
    }
}
