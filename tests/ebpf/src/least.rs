//! The least that programs can do which do a part of what lb does: whatever of lb takes longer, takes longer for more.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, xdp_action},
    macros::{map, xdp},
    maps::{Array, HashMap, LruHashMap, PerCpuArray},
    programs::XdpContext,
};

use crate::{place, run::WORDS};

/// Words that are looked at, one for each flow (4 MB).
#[map]
static LOOKED_AT: Array<u64> = Array::with_max_entries(LOOKED_AT_WORDS, 0);

const LOOKED_AT_WORDS: u32 = 1 << 19;

/// Looks at one word that belongs to the frame's flow, and sends the frame back: the least that a program does which knows
/// anything of flows.
#[xdp]
pub fn look(context: XdpContext) -> u32 {
    let Some(frame) = read(&context) else { return xdp_action::XDP_DROP };
    let word = LOOKED_AT.get_ptr(hash_of(frame) % LOOKED_AT_WORDS);
    // SAFETY: the map's value is valid and aligned.
    match word.map(|word| unsafe { word.read_volatile() }) {
        Some(0) => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// Flows, as many and as large as the half-open ones over IPv4 that lb has room for by default.
#[map]
static RECORDED: LruHashMap<[u64; 2], [u64; 8]> = LruHashMap::with_max_entries(262_144, 0);

/// Records the frame's flow, which is a new one, in a table that would forget others for it, and sends the frame back: the least that
/// a program does which knows flows.
#[xdp]
pub fn record(context: XdpContext) -> u32 {
    let Some(frame) = read(&context) else { return xdp_action::XDP_DROP };
    let [_, _, flow @ ..] = frame;
    match RECORDED.insert([frame[3], frame[4]], flow, BPF_NOEXIST.into()) {
        Ok(()) => xdp_action::XDP_TX,
        Err(_) => xdp_action::XDP_DROP,
    }
}

/// The services of [`balance`]: by address and port, as they stand in a frame.
#[map]
static BALANCED: HashMap<[u32; 2], u32> = HashMap::with_max_entries(16, 0);

/// Slots of its ring, of 16 numbers of backends each.
#[map]
static SLOTS: Array<[u32; 16]> = Array::with_max_entries(SLOTS_IN_ALL / 16 + 1, 0);

const SLOTS_IN_ALL: u32 = 65_537;

/// Its backends: the hardware addresses that frames to them begin with.
#[map]
static STATIONS: Array<[u16; 6]> = Array::with_max_entries(32, 0);

/// Its counters: packets and bytes.
#[map]
static TRAFFIC: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(32, 0);

/// Finds the backend of a TCP segment over IPv4 by its service's ring, counts it, and sends it there with other hardware addresses
/// and one hop less: the least that a program does which balances. It knows no flows, takes whatever it gets for intact, and has
/// one way of forwarding.
#[xdp]
pub fn balance(context: XdpContext) -> u32 {
    balanced(&context).unwrap_or(xdp_action::XDP_DROP)
}

/// EtherType, version and length, and protocol in the words of a frame.
const MASKS: [u64; 2] = [0x00ff_ffff_0000_0000, 0xff00_0000_0000_0000];
const ARE: [u64; 2] = [0x0045_0008_0000_0000 & MASKS[0], 0x0600_0000_0000_0000];

#[inline(always)]
fn balanced(context: &XdpContext) -> Option<u32> {
    let frame = read(context)?;
    let hops = frame[2] >> 48 & 0xff;
    if frame[1] & MASKS[0] != ARE[0] || frame[2] & MASKS[1] != ARE[1] || hops <= 1 {
        return None;
    }
    let address = (frame[3] >> 48 | frame[4] << 16) as u32;
    let port = (frame[4] >> 32) as u32 & 0xffff;
    // SAFETY: nobody changes it while frames pass.
    let offset = *unsafe { BALANCED.get([address, port]) }?;
    let slot = offset + ((u64::from(hash_of(frame)) * u64::from(SLOTS_IN_ALL)) >> 32) as u32;
    let backend = SLOTS.get(slot / 16)?[slot as usize % 16];
    let stations = STATIONS.get(backend)?;
    let traffic = TRAFFIC.get_ptr_mut(backend)?;
    // SAFETY: the map's value is valid, and this processor's alone.
    let [packets, bytes] = unsafe { &mut *traffic };
    *packets += 1;
    *bytes += u64::from(u16::from_be(frame[2] as u16));
    let start = place::<[u16; 13]>(context)?;
    // SAFETY: it lies within the frame.
    let start = unsafe { &mut *start };
    start[..6].copy_from_slice(stations);
    start[11] -= 1;
    // One less in a word is one more in the checksum (RFC 1624).
    let checksum = u32::from(start[12]) + 1;
    start[12] = (checksum + (checksum >> 16)) as u16;
    Some(xdp_action::XDP_TX)
}

/// The frame's beginning.
#[inline(always)]
fn read(context: &XdpContext) -> Option<[u64; WORDS]> {
    // SAFETY: it lies within the frame, whose beginning is a multiple of eight in a test run.
    place::<[u64; WORDS]>(context).map(|place| unsafe { *place })
}

/// A hash of whatever frames of either family differ by.
#[inline(always)]
const fn hash_of(frame: [u64; WORDS]) -> u32 {
    let flow = (frame[3] ^ frame[4] ^ frame[6]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((flow ^ (flow >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}
