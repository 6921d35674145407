//! A received frame as the packet logic sees it.

use core::{arch::asm, hint, mem::MaybeUninit};

use aya_ebpf::{
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use bytemuck::Pod;
use lb_common::{
    datapath::{Note, Packet},
    wire::VlanTags,
};

use crate::maps;

/// A received frame.
pub(crate) struct Frame<'context> {
    context: &'context XdpContext,
    tags: VlanTags,
}

impl<'context> Frame<'context> {
    /// Wraps the context that the kernel hands to the program, of a frame that had those tags.
    #[inline(always)]
    pub(crate) fn new(context: &'context XdpContext, tags: VlanTags) -> Self {
        Self { context, tags }
    }

    /// Where a `T` at `offset` lies, if it ends within the frame.
    #[inline(always)]
    fn place<T>(&self, offset: usize) -> Option<*mut T> {
        // Else the compiler may copy the 32 bits that they are in the context, and not the pointers that
        // the verifier takes them for.
        let start = opaque(self.context.data()) + offset;
        let end = opaque(self.context.data_end());
        (start + size_of::<T>() <= end).then_some(start as *mut T)
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

macro_rules! by_words {
    ($($offset:literal)+) => {
        const MOST_BYTES: usize = [$($offset),+].len() * 4;

        /// Copies a `T` from a frame, which it lies in.
        #[inline(always)]
        unsafe fn load<T: Pod>(from: *const T) -> T {
            const { assert!(size_of::<T>() <= MOST_BYTES) };
            let mut value = MaybeUninit::<T>::uninit();
            let to = value.as_mut_ptr();
            $(if size_of::<T>() >= $offset + 4 {
                let word: u64;
                // SAFETY: both have so many bytes; the verifier takes words of a frame wherever they are.
                unsafe {
                    asm!(
                        concat!("{0} = *(u32 *)({1} + ", $offset, ")"),
                        out(reg) word,
                        in(reg) from,
                        options(pure, readonly, nostack)
                    );
                    // So that it needn't be made one of 32 bits.
                    hint::assert_unchecked(word <= u64::from(u32::MAX));
                    to.byte_add($offset).cast::<u32>().write(word as u32);
                }
            })+
            // SAFETY: all bytes of it are written.
            unsafe { value.assume_init() }
        }

        /// Copies a `T` into a frame, where it has a place.
        #[inline(always)]
        unsafe fn store<T: Pod>(value: T, to: *mut T) {
            const { assert!(size_of::<T>() <= MOST_BYTES) };
            let from = &raw const value;
            $(if size_of::<T>() >= $offset + 4 {
                // SAFETY: as in `load`.
                unsafe {
                    let word = u64::from(from.byte_add($offset).cast::<u32>().read());
                    asm!(
                        concat!("*(u32 *)({0} + ", $offset, ") = {1}"),
                        in(reg) to,
                        in(reg) word,
                        options(nostack)
                    );
                }
            })+
        }
    };
}

// Words of a frame aren't aligned, and the compiler would copy them by halves or bytes.
by_words!(0 4 8 12 16 20 24 28 32 36);

/// Puts a `T` where it has a place in a frame.
#[inline(always)]
unsafe fn put<T: Pod>(value: T, to: *mut T) {
    const { assert!(align_of::<T>() <= 4) };
    // SAFETY: as in `load`.
    unsafe { if align_of::<T>() == 4 { store(value, to) } else { to.write(value) } }
}

impl Packet for Frame<'_> {
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        const { assert!(align_of::<T>() <= 4) };
        let place = self.place::<T>(offset)?;
        // SAFETY: it ends within the frame; frames start at even addresses, and by the trait's contract `T` may lie at the offset.
        Some(unsafe { if align_of::<T>() == 4 { load(place) } else { place.read() } })
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let place = self.place::<T>(offset)?;
        // SAFETY: as in `read`; nothing else accesses the frame while the program runs.
        unsafe { put(value, place) };
        Some(())
    }

    #[inline(always)]
    fn write_both<T: Pod, U: Pod>(
        &mut self,
        (first, one): (usize, T),
        (second, other): (usize, U),
    ) -> Option<()> {
        let place = self.place::<U>(second)?;
        // SAFETY: as in `write`; the first one ends before the second one does.
        unsafe {
            put(one, place.byte_sub(second - first).cast());
            put(other, place);
        }
        Some(())
    }

    #[inline(always)]
    fn grow<const BYTES: usize>(&mut self) -> Option<()> {
        // SAFETY: the context is the kernel's; every access reads the frame's bounds anew.
        let result = unsafe { bpf_xdp_adjust_head(self.context.ctx, -(BYTES as i32)) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn shrink<const BYTES: usize>(&mut self) -> Option<()> {
        // SAFETY: as in `grow`.
        let result = unsafe { bpf_xdp_adjust_head(self.context.ctx, BYTES as i32) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn truncate(&mut self, length: usize) -> Option<()> {
        let cut = self.length().checked_sub(length)?;
        // SAFETY: as in `grow`.
        let result = unsafe { bpf_xdp_adjust_tail(self.context.ctx, -(cut as i32)) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn length(&self) -> usize {
        opaque(self.context.data_end() - self.context.data())
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        // SAFETY: the kernel's context is valid while the program runs.
        unsafe { (*self.context.ctx).ingress_ifindex }
    }

    #[inline(always)]
    fn tags(&self) -> VlanTags {
        self.tags
    }

    #[inline(always)]
    fn leave(&mut self, note: Note) {
        if let Some(place) = maps::NOTE.get_ptr_mut(0) {
            // SAFETY: the map's value is valid, and this CPU's alone while the program runs.
            unsafe { *place = note };
        }
    }

    #[inline(always)]
    fn leave_tags(&mut self, tags: VlanTags) {
        if let Some(place) = maps::NOTE.get_ptr_mut(0) {
            // SAFETY: as in `leave`.
            unsafe { (*place).tags = tags };
        }
    }
}
