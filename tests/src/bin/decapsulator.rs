//! Takes datagrams out of outer headers, as a backend of forwarding "ipip" or "gue" does where its
//! kernel has no module for that: what comes by IP in IP (RFC 2003) or in Generic UDP Encapsulation
//! (variant 1, port 6080) enters the host anew by the interface `decap`.
//!
//! Says `ready` when it is, and runs until it is ended.

use std::{
    fs::File,
    io::{Error, Read, Result, Write},
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    thread,
};

const INTERFACE: &str = "decap";
const GUE_PORT: u16 = 6080;
const LONGEST_DATAGRAM: usize = 65_535;

fn main() -> Result<()> {
    let tunnel = open_tunnel()?;
    succeed("ip", &["link", "set", INTERFACE, "up"])?;
    for scope in ["all", INTERFACE] {
        // Clients' addresses lie behind another interface.
        succeed("sysctl", &["-qw", &format!("net.ipv4.conf.{scope}.rp_filter=0")])?;
    }

    let ip_in_ip = raw_socket(libc::AF_INET, libc::IPPROTO_IPIP)?;
    let gue = UdpSocket::bind(("0.0.0.0", GUE_PORT))?;
    let tunnel_of_gue = tunnel.try_clone()?;
    println!("ready");
    thread::spawn(move || {
        let receive = |buffer: &mut [u8]| Ok(0..gue.recv(buffer)?);
        pump(receive, tunnel_of_gue)
    });
    let mut ip_in_ip = File::from(ip_in_ip);
    let receive = |buffer: &mut [u8]| {
        let length = ip_in_ip.read(buffer)?;
        // A raw socket hands over the outer header, too.
        Ok(usize::from(buffer[0] & 0x0f) * 4..length)
    };
    pump(receive, tunnel)
}

/// Hands what is received to the tunnel's interface.
fn pump(
    mut receive: impl FnMut(&mut [u8]) -> Result<std::ops::Range<usize>>,
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
