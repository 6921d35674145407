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
use lb_common::datapath::{self, Action, Decision, Packet, Reason, Verdict};

use crate::{frame::Frame, tables::MapTables};

/// Entry point: decides what becomes of a frame, or hands it to another stage's program.
#[xdp]
#[inline(always)]
pub fn lb(context: XdpContext) -> u32 {
    let mut frame = Frame::new(&context);
    match datapath::process(&mut frame, &MapTables) {
        Decision::Made(verdict) => finish(verdict, frame.ingress()),
        Decision::Left(stage) => {
            // SAFETY: nothing here has to be dropped.
            unsafe { maps::STAGES.tail_call(&context, stage as u32) };
            // Only a program that isn't there is not called.
            finish(Verdict::refusing(Reason::TablesIncomplete), frame.ingress())
        }
    }
}

/// The program of [`datapath::Stage::Ipv6`].
#[xdp]
#[inline(always)]
pub fn lb_ipv6(context: XdpContext) -> u32 {
    let mut frame = Frame::new(&context);
    let verdict = process_ipv6(&mut frame).unwrap_or_else(Verdict::refusing);
    finish(verdict, frame.ingress())
}

#[inline(always)]
fn process_ipv6(frame: &mut Frame<'_>) -> Result<Verdict, Reason> {
    let scratch = maps::SCRATCH_IPV6.get_ptr_mut(0).ok_or(Reason::TablesIncomplete)?;
    // SAFETY: the map's value is valid, and this CPU's alone while the program runs.
    let scratch = unsafe { &mut *scratch };
    datapath::read(frame, scratch)?;
    // What was read is read anew from memory, where the verifier knows nothing of it: else it would
    // go on with one path for each row of extension headers.
    Ok(datapath::decide(frame, &MapTables, hint::black_box(scratch)))
}

/// Counts the reason, and acts on the verdict.
#[inline(always)]
fn finish(verdict: Verdict, ingress: u32) -> u32 {
    let (action, reason) = act(verdict, ingress);
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
