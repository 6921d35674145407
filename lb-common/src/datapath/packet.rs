//! A frame, as the packet logic sees it.

use bytemuck::Pod;

use super::Note;
use crate::wire::VlanTags;

/// A frame, from its Ethernet header on. Every access is checked against the frame's end.
pub trait Packet {
    /// The value at `offset` bytes, or `None` where it would end beyond the frame. `T` has an alignment of at most four; if it has
    /// any, `offset` is even.
    fn read<T: Pod>(&self, offset: usize) -> Option<T>;

    /// Writes the value at `offset` bytes; `None`, with the frame unchanged, where it would end
    /// beyond the frame. The same holds of `T` and `offset` as in [`Self::read`].
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()>;

    /// Writes two values, each at its offset, of which the second ends last; `None`, with the frame unchanged, where that is beyond the
    /// frame. The same holds of both as in [`Self::write`].
    fn write_both<T: Pod, U: Pod>(&mut self, first: (usize, T), second: (usize, U)) -> Option<()> {
        self.write(second.0, second.1)?;
        self.write(first.0, first.1)
    }

    /// Makes room for `BYTES` bytes, an even number, before the frame: offsets count from the new
    /// start, and the new bytes have any value. `None`, with the frame unchanged, where there is no
    /// room.
    fn grow<const BYTES: usize>(&mut self) -> Option<()>;

    /// Cuts off the first `BYTES` bytes, an even number: offsets count from the new start. `None`, with
    /// the frame unchanged, where there are fewer.
    fn shrink<const BYTES: usize>(&mut self) -> Option<()>;

    /// Cuts off what is beyond the first `length` bytes. `None`, with the frame unchanged, where it
    /// isn't that long.
    fn truncate(&mut self, length: usize) -> Option<()>;

    /// Length of the frame in bytes, without its check sequence.
    fn length(&self) -> usize;

    /// Index of the interface that it came in on.
    fn ingress(&self) -> u32;

    /// The VLAN tags that it came with, and that were taken off since.
    fn tags(&self) -> VlanTags;

    /// Leaves a note for the part that the frame is left to.
    fn leave(&mut self, note: Note);

    /// Leaves a note of which nothing is of interest but the tags.
    fn leave_tags(&mut self, tags: VlanTags);
}
