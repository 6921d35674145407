//! A received frame as the packet logic sees it.

use core::arch::asm;

use aya_ebpf::{
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use bytemuck::Pod;
use lb_common::datapath::Packet;

/// A received frame.
pub(crate) struct Frame<'context>(&'context XdpContext);

impl<'context> Frame<'context> {
    /// Wraps the context that the kernel hands to the program.
    #[inline(always)]
    pub(crate) fn new(context: &'context XdpContext) -> Self {
        Self(context)
    }

    /// Where a `T` at `offset` lies, if it ends within the frame.
    #[inline(always)]
    fn place<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.0.data() + offset;
        (start + size_of::<T>() <= self.0.data_end()).then_some(start as *mut T)
    }
}

/// The same number, of which the compiler knows nothing. Otherwise it concludes from a comparison
/// with the frame's length that an access is within bounds and leaves out the check by pointers,
/// which is the only one that the verifier understands.
#[inline(always)]
fn opaque(mut number: usize) -> usize {
    // SAFETY: an assignment of a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

impl Packet for Frame<'_> {
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let place = self.place::<T>(offset)?;
        // SAFETY: it ends within the frame; frames start at even addresses, and by the trait's
        // contract the offset is even and `T` needs no more than that.
        Some(unsafe { place.read() })
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let place = self.place::<T>(offset)?;
        // SAFETY: as in `read`; nothing else accesses the frame while the program runs.
        unsafe { place.write(value) };
        Some(())
    }

    #[inline(always)]
    fn grow<const BYTES: usize>(&mut self) -> Option<()> {
        // SAFETY: the context is the kernel's; every access reads the frame's bounds anew.
        let result = unsafe { bpf_xdp_adjust_head(self.0.ctx, -(BYTES as i32)) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> Option<()> {
        let cut = self.length().checked_sub(length)?;
        // SAFETY: as in `grow`.
        let result = unsafe { bpf_xdp_adjust_tail(self.0.ctx, -(cut as i32)) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn length(&self) -> usize {
        opaque(self.0.data_end() - self.0.data())
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: the kernel's context is valid while the program runs.
        unsafe { (*self.0.ctx).ingress_ifindex }
    }
}
