//! How long datagrams may be on the way to backends that are reached by an outer header, as routers
//! on that way say: their ICMP errors about what the program sends reach this host, whose kernel
//! knows of no such datagrams.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::io::unix::AsyncFd;

/// What a router said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathMtu {
    /// The address of ours that the datagram came from.
    pub(super) source: IpAddr,
    /// The backend that it was for.
    pub(super) destination: IpAddr,
    /// The longest datagram that the router takes, outer header included, in bytes.
    pub(super) mtu: u16,
}

/// Calls `heard` with what routers say, until that returns false.
///
/// # Errors
///
/// The kernel refuses the socket.
pub(super) async fn watch(is_ipv4: bool, heard: impl Fn(PathMtu) -> bool) -> io::Result<()> {
    // SAFETY: the file owns its descriptor, and is neither closed nor replaced before it is dropped.
    let socket = unsafe { AsyncFd::register(File::from(open(is_ipv4)?)) }?;
    let parse = if is_ipv4 { parse_ipv4 } else { parse_ipv6 };
    let mut buffer = [0; 2048];
    loop {
        let mut ready = socket.readable().await?;
        let Ok(result) = ready.try_io(|socket| socket.get_ref().read(&mut buffer)) else {
            continue;
        };
        if let Some(path_mtu) = parse(&buffer[..result?])
            && !heard(path_mtu)
        {
            return Ok(());
        }
    }
}

/// A raw socket that gets the one kind of message that matters.
fn open(is_ipv4: bool) -> io::Result<OwnedFd> {
    let (family, protocol) = if is_ipv4 {
        (AddressFamily::Inet, SockProtocol::Icmp)
    } else {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Raw, flags, protocol)?;
    // A set bit keeps a type away (linux/icmp.h, linux/icmpv6.h).
    if is_ipv4 {
        const SOL_RAW: libc::c_int = 255;
        const ICMP_FILTER: libc::c_int = 1;
        set_option(&socket, SOL_RAW, ICMP_FILTER, &!(1u32 << DESTINATION_UNREACHABLE))?;
    } else {
        const ICMPV6_FILTER: libc::c_int = 1;
        let mut filter = [u32::MAX; 8];
        filter[0] = !(1 << PACKET_TOO_BIG);
        set_option(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
    }
    Ok(socket)
}

fn set_option<T>(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the value is a plain one that outlives the call, with its own length.
    let result = unsafe {
        libc::setsockopt(fd, level, name, (&raw const *value).cast(), size_of::<T>() as u32)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const PACKET_TOO_BIG: u8 = 2;
const IP_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const UDP: u8 = 17;
const GUE_PORT: [u8; 2] = 6080u16.to_be_bytes();

/// Less than this isn't believed: hosts must take as much (RFC 791).
const LEAST_IPV4: u16 = 576;
/// Of IPv6, no link has less (RFC 8200, section 5).
const LEAST_IPV6: u16 = 1280;

/// Reads a datagram with an ICMP message.
fn parse_ipv4(datagram: &[u8]) -> Option<PathMtu> {
    let header = usize::from(datagram.first()? & 0xf) * 4;
    let message = datagram.get(header..)?;
    let [kind, code, _, _, _, _, high, low] = *message.first_chunk()?;
    if (kind, code) != (DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED) {
        return None;
    }
    let quoted = &message[8..];
    let header = usize::from(quoted.first()? & 0xf) * 4;
    if !is_tunnel(*quoted.get(9)?, quoted.get(header..)?) {
        return None;
    }
    let source: [u8; 4] = quoted.get(12..16)?.try_into().ok()?;
    let destination: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
    Some(PathMtu {
        source: source.into(),
        destination: destination.into(),
        mtu: u16::from_be_bytes([high, low]).max(LEAST_IPV4),
    })
}

/// Reads a message of ICMP for IPv6.
fn parse_ipv6(message: &[u8]) -> Option<PathMtu> {
    let [kind, _, _, _, mtu @ ..] = *message.first_chunk::<8>()?;
    if kind != PACKET_TOO_BIG {
        return None;
    }
    let quoted = &message[8..];
    if !is_tunnel(*quoted.get(6)?, quoted.get(40..)?) {
        return None;
    }
    let source: [u8; 16] = quoted.get(8..24)?.try_into().ok()?;
    let destination: [u8; 16] = quoted.get(24..40)?.try_into().ok()?;
    let mtu = u16::try_from(u32::from_be_bytes(mtu)).unwrap_or(u16::MAX);
    Some(PathMtu {
        source: source.into(),
        destination: destination.into(),
        mtu: mtu.max(LEAST_IPV6),
    })
}

/// Whether that is what the program puts around datagrams.
fn is_tunnel(protocol: u8, payload: &[u8]) -> bool {
    match protocol {
        IP_IN_IP | IPV6_IN_IP => true,
        UDP => payload.get(2..4) == Some(&GUE_PORT),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted_ipv4(protocol: u8) -> Vec<u8> {
        let mut quoted = vec![0x45, 0, 5, 220, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        quoted.extend([192, 0, 2, 10, 192, 0, 2, 101]);
        quoted.extend([0xc0, 0x00, 0x17, 0xc0, 0, 0, 0, 0]);
        quoted
    }

    fn ipv4(protocol: u8, mtu: u16) -> Vec<u8> {
        let mut datagram = vec![0x45; 20];
        datagram.extend([3, 4, 0, 0, 0, 0]);
        datagram.extend(mtu.to_be_bytes());
        datagram.extend(quoted_ipv4(protocol));
        datagram
    }

    #[test]
    fn a_router_is_believed_within_bounds_about_tunnels_alone() {
        let said = PathMtu {
            source: [192, 0, 2, 10].into(),
            destination: [192, 0, 2, 101].into(),
            mtu: 1400,
        };
        for protocol in [IP_IN_IP, IPV6_IN_IP, UDP] {
            assert_eq!(parse_ipv4(&ipv4(protocol, 1400)), Some(said));
            let least = PathMtu { mtu: LEAST_IPV4, ..said };
            assert_eq!(parse_ipv4(&ipv4(protocol, 0)), Some(least));
        }
        assert_eq!(parse_ipv4(&ipv4(6, 1400)), None);
        let mut other_port = ipv4(UDP, 1400);
        other_port[20 + 8 + 20 + 3] = 53;
        assert_eq!(parse_ipv4(&other_port), None);
        let whole = ipv4(UDP, 1400);
        for length in 0..20 + 8 + 20 + 4 {
            assert_eq!(parse_ipv4(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn the_same_of_ipv6() {
        let mut message = vec![2, 0, 0, 0, 0, 0, 5, 120];
        message.extend([0x60, 0, 0, 0, 5, 180, IPV6_IN_IP, 64]);
        message.extend([0x20; 16]);
        message.extend([0x30; 16]);
        let said = PathMtu { source: [0x20; 16].into(), destination: [0x30; 16].into(), mtu: 1400 };
        assert_eq!(parse_ipv6(&message), Some(said));
        for length in 0..message.len() {
            assert_eq!(parse_ipv6(&message[..length]), None, "{length}");
        }
        message[4] = 1;
        assert_eq!(parse_ipv6(&message), Some(PathMtu { mtu: u16::MAX, ..said }));
        message[4..8].fill(0);
        assert_eq!(parse_ipv6(&message), Some(PathMtu { mtu: LEAST_IPV6, ..said }));
    }
}
