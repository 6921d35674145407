//! The memory that holds all rings.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::maps::MapData;
use lb_common::abi::{RING_CHUNK_SLOTS, RingChunk, maps};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::DataplaneError;

/// The map of all rings, mapped into this process. One word a slot: the backend's index.
pub struct RingMemory {
    start: NonNull<AtomicU32>,
    slots: u32,
    length: NonZeroUsize,
    /// Keeps the map open.
    _map: MapData,
}

// SAFETY: the memory is shared with the kernel anyway, and only accessed atomically.
unsafe impl Send for RingMemory {}
// SAFETY: as above.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    /// Maps the memory.
    ///
    /// # Errors
    ///
    /// The map's elements aren't [`RingChunk`]s, or the kernel refuses.
    pub fn new(map: MapData) -> Result<Self, DataplaneError> {
        let info = map.info().map_err(DataplaneError::map(maps::RINGS))?;
        let wrong = |why: &str| {
            DataplaneError::system(maps::RINGS)(io::Error::new(io::ErrorKind::InvalidData, why))
        };
        if info.value_size() as usize != size_of::<RingChunk>() {
            return Err(wrong("elements of another size"));
        }
        let length = info.max_entries() as usize * size_of::<RingChunk>();
        let length = NonZeroUsize::new(length).ok_or_else(|| wrong("no elements"))?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd().as_fd(),
                0,
            )
        };
        let start =
            start.map_err(io::Error::from).map_err(DataplaneError::system("mapping RINGS"))?;
        Ok(Self {
            start: start.cast(),
            slots: info.max_entries() * RING_CHUNK_SLOTS,
            length,
            _map: map,
        })
    }

    /// Number of slots.
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Writes backend indices from slot `offset` on.
    ///
    /// # Panics
    ///
    /// They don't all fit.
    pub fn write(&self, offset: u32, backends: &[u32]) {
        for (slot, backend) in self.range(offset, backends.len()).iter().zip(backends) {
            slot.store(*backend, Ordering::Relaxed);
        }
    }

    /// The backend indices in `count` slots from `offset` on; none where that isn't within the map.
    pub fn read(&self, offset: u32, count: u32) -> Vec<u32> {
        if u64::from(offset) + u64::from(count) > u64::from(self.slots) {
            return Vec::new();
        }
        let slots = self.range(offset, count as usize);
        slots.iter().map(|slot| slot.load(Ordering::Relaxed)).collect()
    }

    fn range(&self, offset: u32, count: usize) -> &[AtomicU32] {
        // SAFETY: the mapping is `slots` words long, page-aligned, and lives as long as self.
        let all = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.slots as usize) };
        &all[offset as usize..offset as usize + count]
    }
}

impl Drop for RingMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing refers to it any longer.
        let unmapped = unsafe { munmap(self.start.cast(), self.length.get()) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "unmapping the rings");
        }
    }
}
