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

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::datapath::{self, Action, Packet, Reason, Verdict};

use crate::{frame::Frame, tables::MapTables};

/// Entry point: decides what becomes of a frame, counts the reason and acts on it.
#[xdp]
#[inline(always)]
pub fn lb(context: XdpContext) -> u32 {
    let mut frame = Frame::new(&context);
    let verdict = datapath::process(&mut frame, &MapTables);
    let (action, reason) = act(verdict, frame.ingress());
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
