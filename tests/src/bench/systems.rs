//! What stands between the client and the backend.

use std::{fs, io, str::FromStr};

use anyhow::{Context, Result};
use aya::{
    Ebpf, include_bytes_aligned,
    maps::{DevMap, HashMap},
    programs::{Xdp, XdpMode},
};

use super::{
    Programs,
    bed::{BACKEND, Bed, PATIENCE, Process, VIP, hardware_address_in, hardware_address_of},
};
use crate::{
    client::within,
    pins::pin_directory,
    wait::{wait_until, wait_within},
};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    /// The kernel forwards, to the backend's own address.
    Routing,
    /// The least that a program can do: frames are redirected to the other interface.
    Redirect,
    /// lb, by this forwarding.
    Lb(&'static str),
    /// nftables: DNAT and masquerading.
    Nftables,
    /// HAProxy, in this mode.
    Haproxy(&'static str),
    /// nginx, by its module of this name.
    Nginx(&'static str),
}

impl System {
    pub(super) const ALL: [Self; 11] = [
        Self::Routing,
        Self::Redirect,
        Self::Lb("full-nat"),
        Self::Lb("nat"),
        Self::Lb("dsr"),
        Self::Lb("ipip"),
        Self::Nftables,
        Self::Haproxy("tcp"),
        Self::Haproxy("http"),
        Self::Nginx("stream"),
        Self::Nginx("http"),
    ];

    /// What it is called.
    pub(super) fn name(self) -> String {
        match self {
            Self::Routing => "plain routing".to_owned(),
            Self::Redirect => "XDP redirect".to_owned(),
            Self::Lb(forwarding) => format!("lb {forwarding}"),
            Self::Nftables => "nftables DNAT".to_owned(),
            Self::Haproxy(mode) => format!("HAProxy {mode}"),
            Self::Nginx(module) => format!("nginx {module}"),
        }
    }

    /// Where clients send requests.
    pub(super) const fn address(self) -> &'static str {
        match self {
            Self::Routing | Self::Redirect => BACKEND,
            _ => VIP,
        }
    }

    /// Puts it there until the result is dropped.
    pub(super) fn set_up(self, bed: &Bed, programs: &Programs) -> Result<Running> {
        let mut running = Running { process: None, decapsulator: None, undo: Vec::new() };
        match self {
            Self::Routing => {}
            Self::Redirect => running.process = Some(redirector(bed, &programs.redirector)?),
            Self::Lb(forwarding) => running.lb(bed, &programs.lb, forwarding)?,
            Self::Nftables => running.nftables(bed)?,
            Self::Haproxy(mode) => running.process = Some(haproxy(bed, mode)?),
            Self::Nginx(module) => running.process = Some(nginx(bed, module)?),
        }
        match bed.wait_for(&format!("http://{}/client/", self.address())) {
            Ok(()) => Ok(running),
            Err(error) => {
                running.remove(bed)?;
                Err(error)
            }
        }
    }
}

/// What has to go before the next one comes.
pub(super) struct Running {
    process: Option<Process>,
    /// The program before the backend, which is attached as long as it is loaded.
    pub(super) decapsulator: Option<Ebpf>,
    undo: Vec<Undo>,
}

type Undo = Box<dyn FnOnce(&Bed) -> Result<()>>;

impl Running {
    /// Removes it.
    pub(super) fn remove(mut self, bed: &Bed) -> Result<()> {
        self.process = None;
        bed.end_processes();
        self.undo.drain(..).rev().try_for_each(|undo| undo(bed))
    }

    fn lb(&mut self, bed: &Bed, lb: &str, forwarding: &'static str) -> Result<()> {
        let pins = pin_directory()?;
        let socket = bed.file("lb.sock");
        let config = bed.file("lb.toml");
        let text = format!(
            "interfaces = [\"lb0\", \"lb1\"]\nxdp_mode = \"native\"\nadmin = \"\"\nsocket = \"{}\"\npin_path = \"{}\"\n\
             [[service]]\nname = \"ui\"\nbind = [\"{VIP}\"]\nforwarding = \"{forwarding}\"\n\
             [[service.backend]]\nname = \"backend\"\naddress = \"{BACKEND}\"\n",
            socket.display(),
            pins.display()
        );
        bed.write_at_balancer(&config, &text)?;
        let config = config.to_str().context("UTF-8")?.to_owned();
        if ["dsr", "ipip"].contains(&forwarding) {
            bed.return_directly(true)?;
            self.undo.push(Box::new(|bed| bed.return_directly(false)));
        }
        if forwarding == "ipip" {
            self.decapsulator = Some(attach_at_backend(bed, "decapsulate")?);
        }
        self.process = Some(bed.start(lb, &["run", "-c", &config])?);
        let lb = lb.to_owned();
        self.undo
            .push(Box::new(move |bed| bed.at_balancer(&lb, &["detach", "-c", &config]).map(drop)));
        Ok(())
    }

    fn nftables(&mut self, bed: &Bed) -> Result<()> {
        let (backend, _) = BACKEND.split_once(':').context("a port")?;
        let (vip, port) = VIP.split_once(':').context("a port")?;
        let rules = format!(
            "table ip nat {{ chain pre {{ type nat hook prerouting priority -100; ip daddr {vip} tcp dport {port} dnat to \
             {backend}; }}; chain post {{ type nat hook postrouting priority 100; ip daddr {backend} masquerade; }}; }}"
        );
        bed.at_balancer("nft", &[&rules])?;
        self.undo.push(Box::new(|bed| bed.at_balancer("nft", &["delete table ip nat"]).map(drop)));
        Ok(())
    }
}

/// Has frames redirected from each of the balancer's interfaces to the other one.
fn redirector(bed: &Bed, program: &str) -> Result<Process> {
    let side = |interface: &str, neighbour: &str| -> Result<String> {
        wait_until("a neighbour is known", || {
            Ok(bed.at_balancer("ping", &["-c1", "-W1", neighbour]).is_ok())
        })?;
        let text = bed.at_balancer("ip", &["neigh", "show", neighbour, "dev", interface])?;
        let station = text.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
        let station = station.context("a hardware address")?;
        let link = bed.at_balancer("ip", &["-o", "link", "show", interface])?;
        Ok(format!("{interface},{},{station}", hardware_address_in(&link)?))
    };
    let (one, other) = (side("lb0", "10.92.0.1")?, side("lb1", "10.93.0.101")?);
    let process = bed.start(program, &[&one, &other])?;
    for interface in ["lb0", "lb1"] {
        wait_within(PATIENCE, "the program is attached", || {
            let link = bed.at_balancer("ip", &["-o", "link", "show", interface])?;
            Ok(link.contains("xdp"))
        })?;
    }
    Ok(process)
}

/// An interface between which and another one frames are redirected, as a program is told of it.
#[derive(Clone, Debug)]
pub struct Side {
    name: String,
    own: u64,
    station: u64,
}

impl FromStr for Side {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let mut next = || parts.next().context("name,own,station");
        let name = next()?.to_owned();
        let mut address = || -> Result<u64> { Ok(number(hardware_address_of(next()?)?)) };
        Ok(Self { name, own: address()?, station: address()? })
    }
}

/// Redirects frames from each of two interfaces of this thread's namespace to the other one, as long as the result is kept.
///
/// # Errors
///
/// There is no such interface, or the kernel refuses.
pub fn redirect(one: &Side, other: &Side) -> Result<Ebpf> {
    let mut ebpf = attach("redirect", &[&one.name, &other.name])?;
    for (from, to) in [(one, other), (other, one)] {
        let [from, egress] = [from, to].map(|side| nix::net::if_::if_nametoindex(&*side.name));
        let mut routes: HashMap<_, u32, [u64; 2]> =
            HashMap::try_from(ebpf.map_mut("ROUTES").context("ROUTES")?)?;
        routes.insert(from?, [to.station, to.own], 0)?;
        let mut others: DevMap<_> = DevMap::try_from(ebpf.map_mut("OTHERS").context("OTHERS")?)?;
        others.set(from?, egress?, None, 0)?;
    }
    Ok(ebpf)
}

/// A hardware address as a number whose low bytes come first on the wire.
fn number([one, two, three, four, five, six]: [u8; 6]) -> u64 {
    u64::from_le_bytes([one, two, three, four, five, six, 0, 0])
}

/// Attaches one of our programs to the backend's interface, as long as the result is kept.
pub(super) fn attach_at_backend(bed: &Bed, name: &'static str) -> Result<Ebpf> {
    within(&bed.backend, move || attach(name, &["backend0"]).map_err(io::Error::other))
}

/// Attaches one of our programs to interfaces of this thread's namespace, as long as the result is kept.
fn attach(name: &str, interfaces: &[&str]) -> Result<Ebpf> {
    static OBJECT: &[u8] = include_bytes_aligned!(env!("LB_TESTS_EBPF_OBJECT"));
    let mut ebpf = Ebpf::load(OBJECT)?;
    let program: &mut Xdp = ebpf.program_mut(name).context("the program")?.try_into()?;
    program.load()?;
    for interface in interfaces {
        program.attach(interface, XdpMode::Driver)?;
    }
    Ok(ebpf)
}

fn haproxy(bed: &Bed, mode: &str) -> Result<Process> {
    let file = bed.file("haproxy.cfg");
    let text = format!(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode {mode}\n timeout connect 5s\n timeout client 50s\n timeout \
         server 50s\nlisten ui\n bind {VIP}\n server backend {BACKEND}\n"
    );
    fs::write(&file, text)?;
    bed.start("haproxy", &["-db", "-f", file.to_str().context("UTF-8")?])
}

fn nginx(bed: &Bed, module: &str) -> Result<Process> {
    let home = bed.directory().display();
    let file = bed.file("nginx.conf");
    let proxy = if module == "stream" {
        format!("stream {{ server {{ listen {VIP}; proxy_pass {BACKEND}; }} }}")
    } else {
        format!(
            "http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {home}/1; proxy_temp_path \
             {home}/2; fastcgi_temp_path {home}/3; uwsgi_temp_path {home}/4; scgi_temp_path {home}/5; upstream b {{ \
             server {BACKEND}; keepalive 64; keepalive_requests 100000000; }} server {{ listen {VIP}; location / {{ \
             proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}"
        )
    };
    let load = if module == "stream" { "load_module modules/ngx_stream_module.so;\n" } else { "" };
    let text = format!(
        "{load}daemon off;\nuser root;\nworker_processes 1;\npid {home}/balancer.pid;\nerror_log {home}/balancer.log;\n\
         events {{ worker_connections 4096; }}\n{proxy}\n"
    );
    fs::write(&file, text)?;
    bed.start("nginx", &["-c", file.to_str().context("UTF-8")?])
}
