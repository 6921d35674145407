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
mod places;
mod tables;

use core::hint;

use aya_ebpf::{bindings::xdp_action, macros::xdp, maps::PerCpuArray, programs::XdpContext};
use lb_common::{
    datapath::{
        self, Action, Back, Decision, ErrorScratch, Family, Packet, Reason, Scratch, Verdict,
    },
    wire::{Ipv4Address, Ipv6Address, VlanTags},
};

use crate::{frame::Frame, tables::MapTables};

/// Entry point: decides what becomes of a frame, or hands it to another stage's program.
#[xdp]
#[inline(always)]
pub fn lb(context: XdpContext) -> u32 {
    let frame = &mut Frame::new(&context, VlanTags::NONE);
    let decision = match datapath::sort(frame) {
        Ok(()) => datapath::express::<Ipv4Address, _, _>(frame, &MapTables),
        Err(decision) => decision,
    };
    finish(&context, decision)
}

/// Declares the program of a stage, which works on a frame and on what the program that called it
/// left.
macro_rules! stages {
    ($($name:ident: $stage:ident |$frame:ident, $note:pat_param| $process:expr;)*) => {$(
        #[doc = concat!("The program of [`datapath::Stage::", stringify!($stage), "`].")]
        #[xdp]
        #[inline(always)]
        pub fn $name(context: XdpContext) -> u32 {
            let Some(note) = scratch(&maps::NOTE) else { return finish(&context, INCOMPLETE) };
            let $frame = &mut Frame::new(&context, note.tags);
            let $note = note;
            finish(&context, $process)
        }
    )*};
}

stages! {
    lb_ipv6: Ipv6 |frame, _| datapath::express::<Ipv6Address, _, _>(frame, &MapTables);
    lb_icmp: Icmp |frame, _| {
        let process = |scratch| datapath::process_icmp(frame, &MapTables, scratch);
        scratch(&maps::SCRATCH).map_or(INCOMPLETE, process)
    };
    lb_icmpv6: Icmpv6 |frame, _| {
        let process = |scratch| datapath::process_icmp(frame, &MapTables, scratch);
        scratch(&maps::SCRATCH_IPV6).map_or(INCOMPLETE, process)
    };
    lb_too_big: TooBig |frame, note| datapath::answer_too_big::<Ipv4Address, _>(frame, note);
    lb_too_big_ipv6: TooBigIpv6 |frame, note| {
        datapath::answer_too_big::<Ipv6Address, _>(frame, note)
    };
    lb_tagged: Tagged |frame, _| datapath::process_tagged(frame);
    lb_ipv4: Ipv4 |frame, _| datapath::express::<Ipv4Address, _, _>(frame, &MapTables);
    lb_look_up: LookUp |frame, _| match segment(frame, &maps::SCRATCH) {
        Ok(scratch) => datapath::decide(frame, &MapTables, scratch),
        Err(decision) => decision,
    };
    lb_look_up_ipv6: LookUpIpv6 |frame, _| match segment(frame, &maps::SCRATCH_IPV6) {
        Ok(scratch) => datapath::decide(frame, &MapTables, scratch),
        Err(decision) => decision,
    };
    lb_options: Options |frame, note| datapath::look_at_options(frame, note);
    lb_fragment: Fragment |frame, _| {
        let process = |scratch: &mut ErrorScratch<_>| {
            datapath::process_fragment(frame, &MapTables, &mut scratch.basic)
        };
        scratch(&maps::SCRATCH).map_or(INCOMPLETE, process)
    };
    lb_fragment_ipv6: FragmentIpv6 |frame, _| {
        let process = |scratch: &mut ErrorScratch<_>| {
            datapath::process_fragment(frame, &MapTables, &mut scratch.basic)
        };
        scratch(&maps::SCRATCH_IPV6).map_or(INCOMPLETE, process)
    };
    lb_open: Open |frame, note| match segment(frame, &maps::SCRATCH) {
        Ok(scratch) => datapath::open(frame, &MapTables, scratch, note),
        Err(decision) => decision,
    };
    lb_open_ipv6: OpenIpv6 |frame, note| match segment(frame, &maps::SCRATCH_IPV6) {
        Ok(scratch) => datapath::open(frame, &MapTables, scratch, note),
        Err(decision) => decision,
    };
    lb_trouble: Trouble |frame, _| match segment(frame, &maps::SCRATCH) {
        Ok(scratch) => datapath::handle_trouble(frame, &MapTables, scratch),
        Err(decision) => decision,
    };
    lb_trouble_ipv6: TroubleIpv6 |frame, _| match segment(frame, &maps::SCRATCH_IPV6) {
        Ok(scratch) => datapath::handle_trouble(frame, &MapTables, scratch),
        Err(decision) => decision,
    };
    lb_record: Record |frame, note| {
        let record = |scratch: &mut ErrorScratch<_>| {
            datapath::record(frame, &MapTables, &mut scratch.basic, note)
        };
        scratch(&maps::SCRATCH).map_or(INCOMPLETE, record)
    };
    lb_record_ipv6: RecordIpv6 |frame, note| {
        let record = |scratch: &mut ErrorScratch<_>| {
            datapath::record(frame, &MapTables, &mut scratch.basic, note)
        };
        scratch(&maps::SCRATCH_IPV6).map_or(INCOMPLETE, record)
    };
    lb_finish: Finish |frame, note| Decision::Made(datapath::finish(frame, note));
}

/// Reads the headers of a frame into memory.
#[inline(always)]
fn segment<A: Family>(
    frame: &mut Frame<'_>,
    map: &'static PerCpuArray<ErrorScratch<A>>,
) -> Result<&'static mut Scratch<A>, Decision> {
    let scratch = &mut scratch(map).ok_or(INCOMPLETE)?.basic;
    datapath::read(frame, scratch)?;
    // What was read is read anew from memory, where the verifier knows nothing of it: else it would go on
    // with one path for each row of extension headers.
    Ok(hint::black_box(scratch))
}

const INCOMPLETE: Decision = Decision::Made(Verdict::refusing(Reason::TablesIncomplete));

/// This CPU's value of a map that a program asks for once.
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the value isn't part of the map's declaration")]
fn scratch<T>(map: &'static PerCpuArray<T>) -> Option<&'static mut T> {
    // SAFETY: the map's value is valid, and this CPU's alone while the program runs, which asks for
    // it once.
    map.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Counts the reason and acts on the verdict, or calls the program of the stage that the frame is
/// left to.
#[inline(always)]
fn finish(context: &XdpContext, decision: Decision) -> u32 {
    let verdict = match decision {
        Decision::Made(verdict) => verdict,
        Decision::Left(stage) => {
            // SAFETY: nothing here has to be dropped.
            unsafe { maps::STAGES.tail_call(context, stage as u32) };
            // Only a program that isn't there is not called.
            Verdict::refusing(Reason::TablesIncomplete)
        }
    };
    let ingress = Frame::new(context, VlanTags::NONE).ingress();
    let (action, reason) = act(verdict, ingress);
    count_reason(reason);
    action
}

/// The kernel's action for a verdict, and the reason to count.
#[inline(always)]
fn act(verdict: Verdict, ingress: u32) -> (u32, Reason) {
    match verdict.reason.action() {
        Action::Pass => (xdp_action::XDP_PASS, verdict.reason),
        Action::Drop => (xdp_action::XDP_DROP, verdict.reason),
        Action::Transmit if verdict.egress == ingress && !is_redirected(verdict.back) => {
            (xdp_action::XDP_TX, verdict.reason)
        }
        Action::Transmit => match maps::EGRESS.redirect(verdict.egress, 0) {
            Ok(action) => (action, verdict.reason),
            Err(_) => (xdp_action::XDP_DROP, Reason::NoEgress),
        },
    }
}

/// Counts a packet under its reason, on this CPU.
#[inline(always)]
fn count_reason(reason: Reason) {
    if let Some(count) = maps::REASON_COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the map's value is valid, and this CPU's alone while the program runs.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
fn is_redirected(back: Back) -> bool {
    let back = match back {
        Back::AsSet => maps::SETTINGS.get(0).map_or(Back::Transmitted, Back::of),
        Back::Transmitted | Back::Redirected => back,
    };
    back == Back::Redirected
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // A reachable panic doesn't pass the verifier.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
