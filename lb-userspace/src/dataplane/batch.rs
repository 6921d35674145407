//! Reading whole hash maps with few system calls.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use bytemuck::Pod;

/// Entries that one system call asks for.
const BATCH: usize = 4096;
/// `BPF_MAP_LOOKUP_BATCH`, in Linux since 5.6 (commit cb4d03ab499d).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` that the call takes.
#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `visit` with every entry of a hash map. Entries that come or go meanwhile may be missed.
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn for_each<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut keys = vec![K::zeroed(); BATCH];
    let mut values = vec![V::zeroed(); BATCH];
    let mut position = [0u32; 4];
    let mut next = [0u32; 4];
    let mut started = false;
    loop {
        let mut attributes = BatchAttributes {
            in_batch: if started { position.as_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map_fd: map.as_raw_fd().cast_unsigned(),
            ..BatchAttributes::default()
        };
        // SAFETY: the attributes point to buffers of `count` entries of the map's own sizes (the
        // typed handles have checked them), which outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<BatchAttributes>(),
            )
        };
        let error = (result < 0).then(io::Error::last_os_error);
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // A bucket holds more than there was room for; nothing of it was returned.
            Some(libc::ENOSPC) => {
                keys.resize(keys.len() * 2, K::zeroed());
                values.resize(values.len() * 2, V::zeroed());
                continue;
            }
            None | Some(libc::ENOENT) => {}
            Some(_) => return Err(error.unwrap_or_else(|| io::Error::other("no error"))),
        }
        let count = attributes.count as usize;
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(key, value);
        }
        if error.is_some() {
            return Ok(());
        }
        position = next;
        started = true;
    }
}
