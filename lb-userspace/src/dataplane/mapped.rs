//! The memory of a map, mapped into this process.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{self, AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::DataplaneError;

/// What such memory is made of.
pub(super) trait Word {}
impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

/// A map's memory as a row of words, shared with the kernel and its programs.
pub(super) struct Mapped<W: Word> {
    start: NonNull<W>,
    count: usize,
    length: NonZeroUsize,
    /// Keeps the map open.
    _map: MapData,
}

// SAFETY: the memory is shared with the kernel anyway, and only accessed atomically.
unsafe impl<W: Word> Send for Mapped<W> {}
// SAFETY: as above.
unsafe impl<W: Word> Sync for Mapped<W> {}

impl<W: Word> Mapped<W> {
    /// Maps the memory of a map whose elements have so many bytes, a multiple of eight.
    ///
    /// # Errors
    ///
    /// The map's elements have another size, or the kernel refuses.
    pub(super) fn new(
        map: MapData,
        name: &'static str,
        element: usize,
    ) -> Result<Self, DataplaneError> {
        let info = map.info().map_err(DataplaneError::map(name))?;
        let wrong = |why: &str| {
            DataplaneError::system(name)(io::Error::new(io::ErrorKind::InvalidData, why))
        };
        if info.value_size() as usize != element {
            return Err(wrong("elements of another size"));
        }
        let length = info.max_entries() as usize * element;
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
        let start = start
            .map_err(io::Error::from)
            .map_err(DataplaneError::system(format!("mapping {name}")))?;
        let count = length.get() / size_of::<W>();
        Ok(Self { start: start.cast(), count, length, _map: map })
    }

    /// All of it.
    pub(super) const fn words(&self) -> &[W] {
        // SAFETY: the mapping is `count` words long, page-aligned, and lives as long as self; any bits
        // are a word.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<W: Word> Drop for Mapped<W> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing refers to it any longer.
        let unmapped = unsafe { munmap(self.start.cast(), self.length.get()) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "unmapping a map");
        }
    }
}

impl Mapped<AtomicU64> {
    /// Makes all of it zeros.
    pub(super) fn clear(&self) {
        // What was changed before this is there for all before anything is looked at.
        atomic::fence(Ordering::SeqCst);
        for word in self.words() {
            // Hardly any is in use.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::SeqCst);
            }
        }
    }
}
