//! The XDP program of lb: adapters from kernel context and maps to the packet logic in
//! [`lb_common::datapath`], which decides everything.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "an atomic addition that returns the old value")]
#![expect(
    clippy::needless_pass_by_value,
    missing_docs,
    unreachable_pub,
    reason = "the signature that #[xdp] wants, and what it makes of it"
)]

mod frame;
mod maps;
mod tables;

use core::hint;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use bytemuck::Zeroable;
use lb_common::{
    datapath::{self, Action, Decision, Packet, Reason, Scratch, Verdict},
    wire::{Ipv4Address, Ipv6Address},
};

use crate::{frame::Frame, tables::MapTables};

/// Entry point: decides what becomes of a frame, or hands it to another stage's program.
#[xdp]
#[inline(always)]
pub fn lb(context: XdpContext) -> u32 {
    let decision = datapath::process(&mut Frame::new(&context), &MapTables);
    finish(&context, decision)
}

/// The program of [`datapath::Stage::Ipv6`].
#[xdp]
#[inline(always)]
pub fn lb_ipv6(context: XdpContext) -> u32 {
    let decision = process_ipv6(&mut Frame::new(&context)).unwrap_or_else(|decision| decision);
    finish(&context, decision)
}

#[inline(always)]
fn process_ipv6(frame: &mut Frame<'_>) -> Result<Decision, Decision> {
    let scratch = scratch_ipv6().ok_or(INCOMPLETE)?;
    datapath::read(frame, scratch)?;
    // What was read is read anew from memory, where the verifier knows nothing of it: else it would
    // go on with one path for each row of extension headers.
    Ok(datapath::decide(frame, &MapTables, hint::black_box(scratch)))
}

/// The program of [`datapath::Stage::Icmp`].
#[xdp]
#[inline(always)]
pub fn lb_icmp(context: XdpContext) -> u32 {
    let mut scratch = Scratch::<Ipv4Address>::zeroed();
    let verdict = datapath::process_icmp(&mut Frame::new(&context), &MapTables, &mut scratch);
    finish(&context, Decision::Made(verdict))
}

/// The program of [`datapath::Stage::Icmpv6`].
#[xdp]
#[inline(always)]
pub fn lb_icmpv6(context: XdpContext) -> u32 {
    let frame = &mut Frame::new(&context);
    let process = |scratch| Decision::Made(datapath::process_icmp(frame, &MapTables, scratch));
    finish(&context, scratch_ipv6().map_or(INCOMPLETE, process))
}

/// The program of [`datapath::Stage::TooBig`].
#[xdp]
#[inline(always)]
pub fn lb_too_big(context: XdpContext) -> u32 {
    let verdict = datapath::answer_too_big::<Ipv4Address, _>(&mut Frame::new(&context), note());
    finish(&context, Decision::Made(verdict))
}

/// The program of [`datapath::Stage::TooBigIpv6`].
#[xdp]
#[inline(always)]
pub fn lb_too_big_ipv6(context: XdpContext) -> u32 {
    let verdict = datapath::answer_too_big::<Ipv6Address, _>(&mut Frame::new(&context), note());
    finish(&context, Decision::Made(verdict))
}

const INCOMPLETE: Decision = Decision::Made(Verdict::refusing(Reason::TablesIncomplete));

#[inline(always)]
fn scratch_ipv6<'a>() -> Option<&'a mut Scratch<Ipv6Address>> {
    // SAFETY: the map's value is valid, and this CPU's alone while the program runs, which asks for
    // it once.
    maps::SCRATCH_IPV6.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// What the program that called this one left.
#[inline(always)]
fn note() -> u32 {
    maps::NOTE.get(0).copied().unwrap_or(0)
}

/// Counts the reason and acts on the verdict, or calls the program of the stage that the frame is
/// left to.
#[inline(always)]
fn finish(context: &XdpContext, decision: Decision) -> u32 {
    let verdict = match decision {
        Decision::Made(verdict) => verdict,
        Decision::Left { stage, note } => {
            if let Some(place) = maps::NOTE.get_ptr_mut(0) {
                // SAFETY: the map's value is valid, and this CPU's alone while the program runs.
                unsafe { *place = note };
            }
            // SAFETY: nothing here has to be dropped.
            unsafe { maps::STAGES.tail_call(context, stage as u32) };
            // Only a program that isn't there is not called.
            Verdict::refusing(Reason::TablesIncomplete)
        }
    };
    let (action, reason) = act(verdict, Frame::new(context).ingress());
    tables::count_reason(reason);
    action
}

/// The kernel's action for a verdict, and the reason to count.
#[inline(always)]
fn act(verdict: Verdict, ingress: u32) -> (u32, Reason) {
    match verdict.reason.action() {
        Action::Pass => (xdp_action::XDP_PASS, verdict.reason),
        Action::Drop => (xdp_action::XDP_DROP, verdict.reason),
        Action::Transmit if verdict.egress == ingress && !redirects_always() => {
            (xdp_action::XDP_TX, verdict.reason)
        }
        Action::Transmit => match maps::EGRESS.redirect(verdict.egress, 0) {
            Ok(action) => (action, verdict.reason),
            Err(_) => (xdp_action::XDP_DROP, Reason::NoEgress),
        },
    }
}

#[inline(always)]
fn redirects_always() -> bool {
    maps::SETTINGS.get(0).is_some_and(|settings| settings.redirect_always != 0)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // A reachable panic doesn't pass the verifier.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
