//! What a pinned link attaches: whether it still does, and detaching it at once.

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

/// `BPF_OBJ_GET_INFO_BY_FD`.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

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

/// The part that `BPF_OBJ_GET_INFO_BY_FD` takes.
#[repr(C)]
#[derive(Default)]
struct InfoAttributes {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` of an XDP link.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    /// 0: it is detached, or its interface is gone (`bpf_xdp_link_fill_link_info`).
    interface: u32,
}

/// Whether the link pinned at `path` attaches a program to an interface, in whatever network namespace.
///
/// # Errors
///
/// It is no link, or the kernel doesn't say.
pub(super) fn is_attached(path: &Path) -> io::Result<bool> {
    let link = open(path)?;
    let mut info = LinkInfo::default();
    let attributes = InfoAttributes {
        fd: link.as_raw_fd().cast_unsigned(),
        length: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the kernel writes so many bytes at most to what outlives the call.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, attributes) }?;
    Ok(info.interface != 0)
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

fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = GetAttributes { path: path.as_ptr() as u64, ..GetAttributes::default() };
    // SAFETY: the path is a string of C that outlives the call.
    let fd = unsafe { call(BPF_OBJ_GET, attributes) }?;
    // SAFETY: the descriptor was just made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn detach(path: &Path) -> io::Result<()> {
    let link = open(path)?;
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
