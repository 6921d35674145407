//! Takes datagrams out of outer headers, as a backend of forwarding "ipip" or "gue" does where its
//! kernel has no module for that: what comes by IP in IP (RFC 2003, RFC 2473, RFC 4213) or in Generic
//! UDP Encapsulation (variant 1, port 6080), over either family, enters the host anew by the
//! interface `decap`.
//!
//! Says `ready` when it is, and runs until it is ended.

use std::{
    fs::File,
    io::{Error, Read, Result, Write},
    net::UdpSocket,
    ops::Range,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    thread,
};

const INTERFACE: &str = "decap";
const GUE_PORT: u16 = 6080;
/// Of the kernel's linux/udp.h: take datagrams over IPv6 without a checksum, as tunnels may send
/// (RFC 6935).
const UDP_NO_CHECK6_RX: libc::c_int = 102;
const LONGEST_DATAGRAM: usize = 65_535;

/// Fills a buffer with what has come, and says where in it the inner datagram is.
type Receive = Box<dyn FnMut(&mut [u8]) -> Result<Range<usize>> + Send>;

fn main() -> Result<()> {
    let tunnel = open_tunnel()?;
    succeed("ip", &["link", "set", INTERFACE, "up"])?;
    for scope in ["all", INTERFACE] {
        // Clients' addresses lie behind another interface.
        succeed("sysctl", &["-qw", &format!("net.ipv4.conf.{scope}.rp_filter=0")])?;
    }

    let mut pumps = Vec::new();
    let mut start = |receive: Receive| {
        let tunnel = tunnel.try_clone()?;
        pumps.push(thread::spawn(move || pump(receive, tunnel)));
        Ok::<(), Error>(())
    };
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [libc::IPPROTO_IPIP, libc::IPPROTO_IPV6] {
            let mut socket = File::from(raw_socket(family, protocol)?);
            start(Box::new(move |buffer| {
                let length = socket.read(buffer)?;
                // A raw socket of IPv4 hands over the outer header, too.
                let is_ipv4 = family == libc::AF_INET;
                let header = if is_ipv4 { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
                Ok(header..length)
            }))?;
        }
    }
    let gue = UdpSocket::bind(("::", GUE_PORT))?;
    let allow: libc::c_int = 1;
    // SAFETY: the value is what the option wants, and outlives the call.
    let set = unsafe {
        libc::setsockopt(
            gue.as_raw_fd(),
            libc::SOL_UDP,
            UDP_NO_CHECK6_RX,
            (&raw const allow).cast(),
            size_of_val(&allow) as u32,
        )
    };
    if set != 0 {
        return Err(Error::last_os_error());
    }
    start(Box::new(move |buffer| Ok(0..gue.recv(buffer)?)))?;
    println!("ready");
    for pump in pumps {
        pump.join().map_err(|_| Error::other("a thread panicked"))??;
    }
    Ok(())
}

/// Hands what is received to the tunnel's interface.
fn pump(
    mut receive: impl FnMut(&mut [u8]) -> Result<Range<usize>>,
    mut tunnel: File,
) -> Result<()> {
    let mut buffer = vec![0; LONGEST_DATAGRAM];
    loop {
        let inner = receive(&mut buffer)?;
        // The kernel refuses what is no IP datagram; a real decapsulation drops it as well.
        let _: Result<()> = tunnel.write_all(&buffer[inner]);
    }
}

fn open_tunnel() -> Result<File> {
    let tunnel = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the request is what the call wants, and outlives it.
    match unsafe { libc::ioctl(tunnel.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(tunnel),
        _ => Err(Error::last_os_error()),
    }
}

fn raw_socket(family: i32, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) } {
        -1 => Err(Error::last_os_error()),
        // SAFETY: the descriptor is new, and nobody else's.
        socket => Ok(unsafe { OwnedFd::from_raw_fd(socket) }),
    }
}

fn succeed(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status()?;
    if status.success() {
        return Ok(());
    }
    Err(Error::other(format!("{program} {}: {status}", arguments.join(" "))))
}
