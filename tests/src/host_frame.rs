//! A frame in memory, as the packet logic sees it.

use bytemuck::{Pod, Zeroable as _};
use lb_common::{
    datapath::{Note, Packet},
    wire::VlanTags,
};

use crate::world::INGRESS;

/// A frame that the packet logic works on.
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) tags: VlanTags,
    /// What one part has left to the next.
    pub(crate) note: Note,
}

impl Frame {
    /// As it came in.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), tags: VlanTags::NONE, note: Note::zeroed() }
    }
}

impl Packet for Frame {
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let bytes = self.bytes.get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }

    fn write<T: Pod>(&mut self, offset: usize, value: T) -> Option<()> {
        let end = offset.checked_add(size_of::<T>())?;
        self.bytes.get_mut(offset..end)?.copy_from_slice(bytemuck::bytes_of(&value));
        Some(())
    }

    fn grow<const BYTES: usize>(&mut self) -> Option<()> {
        self.bytes.splice(0..0, [0; BYTES]);
        Some(())
    }

    fn shrink<const BYTES: usize>(&mut self) -> Option<()> {
        self.bytes.len().checked_sub(BYTES)?;
        self.bytes.drain(..BYTES);
        Some(())
    }

    fn truncate(&mut self, length: usize) -> Option<()> {
        self.bytes.len().checked_sub(length)?;
        self.bytes.truncate(length);
        Some(())
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn ingress(&self) -> u32 {
        INGRESS
    }

    fn tags(&self) -> VlanTags {
        self.tags
    }

    fn leave(&mut self, note: Note) {
        self.note = note;
    }

    fn leave_tags(&mut self, tags: VlanTags) {
        self.note.tags = tags;
    }
}
