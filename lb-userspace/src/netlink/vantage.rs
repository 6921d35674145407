//! A network namespace of our own, connected to this host by a cable: from there, a service's addresses
//! are another host's, though this one may have them.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    thread::{self, JoinHandle},
};

use futures_util::TryStreamExt;
use lb_common::wire::MacAddress;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
    packet_route::{link::LinkMessage, route::RouteScope},
};
use tokio::{
    net::TcpSocket,
    sync::{mpsc, oneshot},
};

use super::{offloads, read};
use crate::confine::confine;

/// A place to look at services from. It goes when this does, or the process.
#[derive(Debug)]
pub struct Vantage {
    /// Until it is dropped.
    work: Option<(mpsc::UnboundedSender<Request>, JoinHandle<()>)>,
    /// Index of the interface by which what is sent there reaches this host.
    pub interface: u32,
    /// Hardware address of the other end of the cable, which is also what frames from there are sent
    /// to.
    pub station: MacAddress,
}

/// Asks for a socket bound to that address.
type Request = (IpAddr, oneshot::Sender<io::Result<TcpSocket>>);

/// Name of the cable's end within.
const INNER: &str = "eth0";

impl Vantage {
    /// Makes one, which takes `CAP_SYS_ADMIN`; its thread gives that up once it is done. Blocks for as long as that
    /// takes, some milliseconds.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn new() -> io::Result<Self> {
        let (requests, incoming) = mpsc::unbounded_channel();
        let (sender, ready) = std::sync::mpsc::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            let result = runtime.and_then(|runtime| {
                runtime.block_on(async {
                    let (inside, cable) = set_up().await?;
                    confine(&[], &[], &[]).map_err(io::Error::other)?;
                    // Whoever waits for this is there until it comes.
                    let _: Result<(), _> = sender.send(Ok(cable.outer));
                    serve(&inside, cable.inner, incoming).await;
                    Ok(())
                })
            });
            if let Err(error) = result {
                let _: Result<(), _> = sender.send(Err(error));
            }
        };
        let thread = thread::Builder::new().name("vantage".to_owned()).spawn(work)?;
        let (interface, station) =
            ready.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")))?;
        Ok(Self { work: Some((requests, thread)), interface, station })
    }

    /// A socket there, bound to a port of an address that it then has.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub async fn socket(&self, address: IpAddr) -> io::Result<TcpSocket> {
        let (sender, socket) = oneshot::channel();
        let gone = || io::Error::other("the namespace for checks is gone");
        let (requests, _) = self.work.as_ref().ok_or_else(gone)?;
        requests.send((address, sender)).map_err(|_| gone())?;
        socket.await.map_err(|_| gone())?
    }
}

impl Drop for Vantage {
    fn drop(&mut self) {
        if let Some((requests, thread)) = self.work.take() {
            drop(requests);
            // The interface is gone when this returns, as far as it can be.
            let _: thread::Result<()> = thread.join();
        }
    }
}

struct Cable {
    /// Index of the outer end, and the hardware address of the inner one.
    outer: (u32, MacAddress),
    /// Index of the inner end.
    inner: u32,
}

/// Moves this thread to a new namespace and lays a cable from there.
async fn set_up() -> io::Result<(Handle, Cable)> {
    let (connection, host, _) = new_connection()?;
    tokio::spawn(connection);
    let host_namespace = File::open("/proc/thread-self/ns/net")?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let (connection, inside, _) = new_connection()?;
    tokio::spawn(connection);

    let outer = format!("lbc{:08x}", fastrand::u32(..));
    let failed = |error: rtnetlink::Error| io::Error::other(error.to_string());
    let cable = LinkVeth::new(&outer, INNER).build();
    inside.link().add(cable).execute().await.map_err(failed)?;
    offloads::disable_for_xdp(INNER)?;
    let away = LinkUnspec::new_with_name(&outer).setns_by_fd(host_namespace.as_raw_fd()).build();
    inside.link().set(away).execute().await.map_err(failed)?;
    let up = LinkUnspec::new_with_name(&outer).up().build();
    host.link().set(up).execute().await.map_err(failed)?;
    // Nothing is asked for there: whatever is sent goes through the cable.
    let up = LinkUnspec::new_with_name(INNER).arp(false).up().build();
    inside.link().set(up).execute().await.map_err(failed)?;

    let outer = find(&host, &outer).await.map_err(failed)?.header.index;
    let inner = find(&inside, INNER).await.map_err(failed)?;
    let station = read::link(&inner).mac;
    let inner = inner.header.index;
    let everywhere = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(inner)
        .scope(RouteScope::Link)
        .build();
    inside.route().add(everywhere).execute().await.map_err(failed)?;
    let everywhere = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(inner).build();
    if let Err(error) = inside.route().add(everywhere).execute().await {
        tracing::debug!(%error, "no route of IPv6, which this kernel may not have");
    }
    Ok((inside, Cable { outer: (outer, station), inner }))
}

async fn find(handle: &Handle, name: &str) -> Result<LinkMessage, rtnetlink::Error> {
    let mut found = std::pin::pin!(handle.link().get().match_name(name).execute());
    found.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)
}

/// Makes sockets in this thread's namespace until nobody can ask any longer.
async fn serve(inside: &Handle, inner: u32, mut incoming: mpsc::UnboundedReceiver<Request>) {
    let mut addresses = Vec::new();
    while let Some((address, answer)) = incoming.recv().await {
        if !addresses.contains(&address) {
            let length = if address.is_ipv4() { 32 } else { 128 };
            if let Err(error) = inside.address().add(inner, address, length).execute().await {
                // Whoever asked needn't wait any longer.
                let _: Result<(), _> = answer.send(Err(io::Error::other(error.to_string())));
                continue;
            }
            addresses.push(address);
        }
        let _: Result<(), _> = answer.send(bound(address));
    }
    // Both ends; at the latest, they go with the namespace.
    if let Err(error) = inside.link().del(inner).execute().await {
        tracing::debug!(%error, "removing the interface for checks");
    }
}

fn bound(address: IpAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(address, 0))?;
    Ok(socket)
}
