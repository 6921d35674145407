//! Detaching what a pinned link attaches, at once.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `BPF_OBJ_GET`.
const BPF_OBJ_GET: libc::c_long = 7;
/// `BPF_LINK_DETACH`, in Linux since 5.9 (commit 73b11c2ab072).
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of `union bpf_attr` that `BPF_OBJ_GET` takes.
#[repr(C)]
#[derive(Default)]
struct GetAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part that `BPF_LINK_DETACH` takes.
#[repr(C)]
#[derive(Default)]
struct DetachAttributes {
    link_fd: u32,
    reserved: u32,
}

/// Detaches the program that the link pinned at `path` attaches, and removes the pin. That alone isn't
/// enough: the kernel lets go of a link some time after nobody holds it any longer
/// (`bpf_link_put_deferred`), and until then nothing else can be attached.
///
/// # Errors
///
/// The pin can't be removed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if let Err(error) = detach(path) {
        // Its interface may be gone; so does the pin.
        tracing::debug!(pin = %path.display(), %error, "detaching");
    }
    fs::remove_file(path)
}

fn detach(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = GetAttributes { path: path.as_ptr() as u64, ..GetAttributes::default() };
    // SAFETY: the path is a string of C that outlives the call.
    let fd = unsafe { call(BPF_OBJ_GET, attributes) }?;
    // SAFETY: the descriptor was just made, and is nobody else's.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let link_fd = link.as_raw_fd().cast_unsigned();
    // SAFETY: no pointer is in there.
    unsafe { call(BPF_LINK_DETACH, DetachAttributes { link_fd, reserved: 0 }) }.map(drop)
}

/// Does the system call `bpf`.
///
/// # Safety
///
/// The attributes are those of the command, and what they point to is valid.
unsafe fn call<T>(command: libc::c_long, mut attributes: T) -> io::Result<i32> {
    // SAFETY: by the contract, and the attributes are as long as is said.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
