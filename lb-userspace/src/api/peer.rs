//! Who is at the other end of the control socket.

use std::{
    fmt, io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use tokio::net::UnixStream;

/// A client of the control socket, as the kernel knows it from when it connected (`unix(7)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    user: u32,
    groups: Vec<u32>,
    process: i32,
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    ///
    /// It refuses.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let mut groups = supplementary_groups(stream)?;
        groups.push(credentials.gid());
        Ok(Self { user: credentials.uid(), groups, process: credentials.pid().unwrap_or(0) })
    }

    /// Demands that it may change what the controller does: it is root's, or of the user or group whose the socket is,
    /// whoever else may connect to it.
    ///
    /// # Errors
    ///
    /// It isn't; in words.
    pub(super) fn demand_may_change(&self, socket: &Path) -> Result<(), String> {
        let owner = socket.metadata().map_err(|error| format!("{}: {error}", socket.display()))?;
        let (user, group) = (owner.uid(), owner.gid());
        if self.user == 0 || self.user == user || self.groups.contains(&group) {
            return Ok(());
        }
        let others = match (user, group) {
            (0, 0) => String::new(),
            (0, group) => format!(" and group {group}, whose {} is", socket.display()),
            (user, group) => {
                format!(", user {user} and group {group}, whose {} is", socket.display())
            }
        };
        Err(format!("{self} may look, but not change anything: that is for root{others}"))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "user {} (process {})", self.user, self.process)
    }
}

/// The groups that it is in beside its own (`SO_PEERGROUPS`).
fn supplementary_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes to the vector's elements, and the length itself.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // There are more of them.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
