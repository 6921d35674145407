//! Settings of an interface that break forwarding in XDP, told before anybody suffers from them.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::dataplane::Mode;

/// `struct ethtool_value` (linux/ethtool.h).
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `ETHTOOL_GGRO`.
const GET_GRO: u32 = 0x2b;
/// `ETHTOOL_STXCSUM`.
const SET_TX_CHECKSUM: u32 = 0x17;
/// `ETHTOOL_STSO`.
const SET_TSO: u32 = 0x1f;
/// `ETHTOOL_SGSO`.
const SET_GSO: u32 = 0x24;
/// `ETHTOOL_SGRO`.
const SET_GRO: u32 = 0x2c;
/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;
/// `ETH_FLAG_RXVLAN`.
const FLAG_VLAN: u32 = 1 << 8;

/// What is set up on an interface in a way that forwarding suffers from, with the command that
/// puts it right. `has_vlans` says whether VLANs are set up on it.
pub fn trouble(interface: &str, mode: Mode, has_vlans: bool) -> Vec<String> {
    let mut trouble = Vec::new();
    let is_on = |command, bits| get(interface, command).is_ok_and(|value| value & bits != 0);
    if is_on(GET_FLAGS, FLAG_LRO) {
        trouble.push(format!(
            "{interface} merges received segments (LRO), which can't be forwarded: \
             `ethtool -K {interface} lro off`"
        ));
    }
    if has_vlans && is_on(GET_FLAGS, FLAG_VLAN) {
        trouble.push(format!(
            "{interface} hides VLAN tags from the program, which then takes tagged frames for its \
             own: `ethtool -K {interface} rxvlan off`"
        ));
    }
    // In native mode the program sees frames before GRO does.
    if mode == Mode::Generic && is_on(GET_GRO, u32::MAX) {
        trouble.push(format!(
            "{interface} merges received segments (GRO) before a generic program sees them, and \
             those can't be forwarded: `ethtool -K {interface} gro off`"
        ));
    }
    trouble
}

/// Sets an end of a cable up so that a program at the other one sees whole segments with whole checksums,
/// and that it takes what that sends: one that polls does (`veth_xdp_xmit` in drivers/net/veth.c).
///
/// # Errors
///
/// The kernel refuses.
pub(super) fn disable_for_xdp(interface: &str) -> io::Result<()> {
    for (command, data) in [(SET_TX_CHECKSUM, 0), (SET_TSO, 0), (SET_GSO, 0), (SET_GRO, 1)] {
        ethtool(interface, &mut EthtoolValue { command, data })?;
    }
    Ok(())
}

fn get(interface: &str, command: u32) -> io::Result<u32> {
    let mut value = EthtoolValue { command, data: 0 };
    ethtool(interface, &mut value)?;
    Ok(value.data)
}

/// Does `SIOCETHTOOL` with a structure that begins with the command.
fn ethtool<T>(interface: &str, argument: &mut T) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: plain old data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(argument).cast();
    // SAFETY: the request and what it points to outlive the call, and the structure is as large as
    // the command's.
    let result = unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
