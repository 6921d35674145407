//! Sending whole frames.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Sends frames as they are, by any interface. The XDP program doesn't see them: it looks at what comes in.
pub struct FrameSender(OwnedFd);

impl FrameSender {
    /// Opens a socket for it, which receives nothing (packet(7)).
    ///
    /// # Errors
    ///
    /// The user may not: it takes `CAP_NET_RAW`.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self(socket(AddressFamily::Packet, SockType::Raw, flags, None)?))
    }

    /// Sends a frame by the interface of that index.
    ///
    /// # Errors
    ///
    /// There is none, it is down, or there is no room for more at the moment.
    pub fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the structure is plain data, for which zeros stand for nothing.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = interface.cast_signed();
        // SAFETY: pointers and lengths are those of a live buffer and a live structure.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
