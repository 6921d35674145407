//! The notes of flows that were looked up lately, to forget them between two tests.

use std::{io, num::NonZeroUsize, ptr::NonNull};

use anyhow::{Context, Result};
use aya::maps::MapData;
use lb_common::{
    abi::maps::RECENT,
    datapath::{RECENT_SETS, RECENT_WAYS},
};
use lb_userspace::dataplane::Pins;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const LENGTH: NonZeroUsize =
    NonZeroUsize::new(RECENT_SETS as usize * RECENT_WAYS * size_of::<u32>()).expect("some");

/// The map's memory.
pub(crate) struct RecentMemory(NonNull<u8>);

impl RecentMemory {
    /// Maps it into this process.
    pub(crate) fn new(pins: &Pins) -> Result<Self> {
        let map = MapData::from_pin(pins.map(RECENT))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, as long as the map is.
        let start = unsafe { mmap(None, LENGTH, access, MapFlags::MAP_SHARED, map.fd(), 0) };
        Ok(Self(start.map_err(io::Error::from).context(RECENT)?.cast()))
    }

    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        // SAFETY: the mapping is that long; no program runs while tests are between two packets.
        unsafe { self.0.write_bytes(0, LENGTH.get()) };
    }
}

impl Drop for RecentMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing refers to it any longer.
        let unmapped = unsafe { munmap(self.0.cast(), LENGTH.get()) };
        if let Err(error) = unmapped {
            eprintln!("unmapping {RECENT}: {error}");
        }
    }
}
