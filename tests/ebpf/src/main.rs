//! XDP programs that lb is measured with.
//!
//! `repeat_ipv4` and `repeat_ipv6` run the program in `TARGET` on a frame that they have made anew before: for its
//! next run, the kernel hands over the frame as the last one left it. The others are what lb is compared with.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "an addition that is atomic")]
#![expect(
    clippy::needless_pass_by_value,
    missing_docs,
    unreachable_pub,
    reason = "the signature that #[xdp] wants, and what it makes of it"
)]

mod least;
mod run;

use core::{hint, intrinsics};

use aya_ebpf::{
    EbpfContext,
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_xdp_adjust_head,
    macros::{map, xdp},
    maps::{Array, DevMap, HashMap, PerCpuArray, ProgramArray},
    programs::XdpContext,
};

use crate::run::{MARK, OWN_IPV4, OWN_IPV6, Run, SENT_WORDS, SHARED, Variation, WORDS};

#[map]
static RUN: Array<Run> = Array::with_max_entries(1, 0);

#[map]
static VARIATIONS: Array<Variation> = Array::with_max_entries(1, 0);

#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The next flow's frame, to the program that is measured.
#[xdp]
pub fn repeat_ipv4(context: XdpContext) -> u32 {
    let write = |frame: &mut [u64; WORDS], variation: Variation| {
        for (word, own) in OWN_IPV4.into_iter().zip(variation) {
            frame[word] = own;
        }
    };
    match prepare(&context, write) {
        Some(()) => call(context.as_ptr().cast()),
        None => xdp_action::XDP_ABORTED,
    }
}

/// The same over IPv6.
#[xdp]
pub fn repeat_ipv6(context: XdpContext) -> u32 {
    let write = |frame: &mut [u64; WORDS], [own, shared]: Variation| {
        let (word, [low, high]) = OWN_IPV6;
        frame[word] = own;
        frame[low] |= shared << SHARED;
        frame[high] |= shared >> (u64::BITS - SHARED);
    };
    match prepare(&context, write) {
        Some(()) => call(context.as_ptr().cast()),
        None => xdp_action::XDP_ABORTED,
    }
}

/// Calls the program that is measured, which returns to whoever called this: the part of a program that is a
/// function of its own is what a tail call replaces.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn call(context: *mut xdp_md) -> u32 {
    // SAFETY: nothing here has to be dropped.
    unsafe { TARGET.tail_call(&XdpContext::new(context), 0) };
    // What the other program returns is returned here, of which the compiler doesn't know.
    hint::black_box(xdp_action::XDP_ABORTED)
}

/// Puts the frame's beginning back to where it was, and writes the next flow's headers there.
#[inline(always)]
fn prepare(context: &XdpContext, write: impl Fn(&mut [u64; WORDS], Variation)) -> Option<()> {
    let run = RUN.get_ptr_mut(0)?;
    // SAFETY: the map's value is valid, and nothing else uses it while a run goes on.
    let run = unsafe { &mut *run };
    let grown = length(context) as i32 - run.length as i32;
    if grown != 0 {
        // SAFETY: the context is the kernel's; the frame's bounds are read anew below.
        unsafe { bpf_xdp_adjust_head(context.ctx, grown) };
    }
    let variation = VARIATIONS.get(run.next)?;
    run.next = if run.next + 1 >= run.flows { 0 } else { run.next + 1 };
    let place = place::<[u64; WORDS]>(context)?;
    // SAFETY: it lies within the frame, whose beginning is a multiple of eight in a test run.
    unsafe {
        (*place) = run.template;
        write(&mut *place, *variation);
        // What a processor has just written it can read in other pieces only once that is in its cache, where a network card's frames
        // are from the beginning: here it waits for that.
        intrinsics::atomic_xadd::<u64, u64, { intrinsics::AtomicOrdering::SeqCst }>(
            &raw mut run.written,
            1,
        );
    }
    Some(())
}

/// How long the frame is, as a number with which the compiler doesn't calculate further by halves of pointers.
#[inline(always)]
fn length(context: &XdpContext) -> usize {
    hint::black_box(context.data_end() - context.data())
}

/// Where a `T` at the beginning of the frame lies, if it is long enough.
#[inline(always)]
fn place<T>(context: &XdpContext) -> Option<*mut T> {
    let start = context.data();
    (start + size_of::<T>() <= context.data_end()).then_some(start as *mut T)
}

/// Sends every frame back: what a run costs without a program.
#[xdp]
pub fn nothing(_context: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Ethernet and IPv4 headers, in 16-bit words.
const OUTER: usize = 17;

/// Puts an outer IPv4 header (RFC 2003) before whatever comes, without a look at it but for its length: the least
/// that forwarding by `ipip` can cost.
#[xdp]
pub fn encapsulate(context: XdpContext) -> u32 {
    const ADDED: i32 = 20;
    let length = length(&context) as u16 + ADDED as u16 - 14;
    // SAFETY: the context is the kernel's; the frame's bounds are read anew below.
    if unsafe { bpf_xdp_adjust_head(context.ctx, -ADDED) } != 0 {
        return xdp_action::XDP_DROP;
    }
    let Some(place) = place::<[u16; OUTER]>(&context) else { return xdp_action::XDP_DROP };
    let mut sum = HEADER_SUM + u32::from(length);
    sum = (sum & 0xffff) + (sum >> 16);
    let mut header = HEADER;
    header[8] = length.to_be();
    header[12] = (!((sum + (sum >> 16)) as u16)).to_be();
    // SAFETY: it lies within the frame.
    unsafe { *place = header };
    xdp_action::XDP_TX
}

/// The outer header but for length and checksum: from 10.77.0.10 to 10.77.0.107, as network order has it.
const HEADER: [u16; OUTER] = [
    0x0002, 0x0000, 0x0701, 0x0002, 0x0000, 0x1000, 0x0008, 0x0045, 0, 0, 0x0040, 0x0440, 0,
    0x4d0a, 0x0a00, 0x4d0a, 0x6b00,
];

/// The sum of the words of its IPv4 part.
const HEADER_SUM: u32 = {
    let mut sum = 0;
    let mut word = 7;
    while word < OUTER {
        sum += HEADER[word].swap_bytes() as u32;
        word += 1;
    }
    sum
};

/// Where frames that came in by an interface go: the next station's hardware address and the other interface's own.
#[map]
static ROUTES: HashMap<u32, [u64; 2]> = HashMap::with_max_entries(16, 0);

/// By an interface's index, the other one.
#[map]
static OTHERS: DevMap = DevMap::with_max_entries(1 << 16, 0);

/// Sends IPv4 on by the other interface, with nothing changed but hardware addresses: the least that a program which
/// forwards can do.
#[xdp]
pub fn redirect(context: XdpContext) -> u32 {
    const IPV4: u16 = 0x0008;
    let Some(place) = place::<[u16; 7]>(&context) else { return xdp_action::XDP_PASS };
    // SAFETY: it lies within the frame.
    if unsafe { (*place)[6] } != IPV4 {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the kernel's context is valid while the program runs.
    let ingress = unsafe { (*context.ctx).ingress_ifindex };
    // SAFETY: nobody changes it while frames pass.
    let Some([station, own]) = (unsafe { ROUTES.get(ingress) }) else {
        return xdp_action::XDP_PASS;
    };
    let (station, own) = (*station, *own);
    let header = [
        station as u16,
        (station >> 16) as u16,
        (station >> 32) as u16,
        own as u16,
        (own >> 16) as u16,
        (own >> 32) as u16,
        IPV4,
    ];
    // SAFETY: as above.
    unsafe { *place = header };
    OTHERS.redirect(ingress, 0).unwrap_or(xdp_action::XDP_DROP)
}

/// The frame that is sent again and again, but for its padding.
#[map]
static SENT: Array<[u64; SENT_WORDS]> = Array::with_max_entries(1, 0);

/// The interface that it is sent by.
#[map]
static SENT_BY: DevMap = DevMap::with_max_entries(1, 0);

/// How many have arrived.
#[map]
static COUNTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Sends a frame, which is written anew: it comes back as whoever had it last has left it.
#[xdp]
pub fn generate(context: XdpContext) -> u32 {
    let (Some(place), Some(sent)) = (place::<[u64; SENT_WORDS]>(&context), SENT.get(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: it lies within the frame, whose beginning is a multiple of eight in a test run.
    unsafe { *place = *sent };
    SENT_BY.redirect(0, 0).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Counts the frames of [`generate`], and ends them. Others pass.
#[xdp]
pub fn count(context: XdpContext) -> u32 {
    if is_counted(&context) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

/// Whether a frame is one of [`generate`]'s: then it is counted.
#[inline(always)]
fn is_counted(context: &XdpContext) -> bool {
    let Some(place) = place::<[u8; 16]>(context) else { return false };
    // SAFETY: it lies within the frame.
    let (ether_type, service) = unsafe { ([(*place)[12], (*place)[13]], (*place)[15]) };
    if ether_type != [0x08, 0x00] || service != MARK {
        return false;
    }
    if let Some(counted) = COUNTED.get_ptr_mut(0) {
        // SAFETY: the map's value is valid, and no other program has this processor.
        unsafe { *counted += 1 };
    }
    true
}

/// Takes an outer IPv4 header (RFC 2003) off what has one, and counts the frames of [`generate`].
#[xdp]
pub fn decapsulate(context: XdpContext) -> u32 {
    const ADDED: i32 = 20;
    if is_counted(&context) {
        return xdp_action::XDP_DROP;
    }
    let Some(place) = place::<[u16; OUTER]>(&context) else { return xdp_action::XDP_PASS };
    // SAFETY: it lies within the frame.
    let header = unsafe { *place };
    // IPv4 without options that carries IPv4.
    if header[6] != 0x0008 || header[7] & 0xff != 0x45 || header[11] >> 8 != 4 {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the context is the kernel's; the frame's bounds are read anew below.
    if unsafe { bpf_xdp_adjust_head(context.ctx, ADDED) } != 0 {
        return xdp_action::XDP_DROP;
    }
    let Some(inner) = self::place::<[u16; 7]>(&context) else { return xdp_action::XDP_DROP };
    let [one, two, three, four, five, six, seven, ..] = header;
    // SAFETY: as above.
    unsafe { *inner = [one, two, three, four, five, six, seven] };
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // A reachable panic doesn't pass the verifier.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
