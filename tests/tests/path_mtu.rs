//! Links that take less than what is around them: large files pass in every mode, since ICMP errors
//! reach the end that they are for.

use anyhow::{Context, Result, ensure};
use lb_tests::modes::{
    CLIENT, IPV4, IPV6, MODES, Mode, Modes, Programs, VIP, ready, server, use_ipv6,
};
use nix::sys::signal::Signal;
use xtask::netns::Namespace;

const PROGRAMS: Programs = Programs {
    lb: env!("CARGO_BIN_EXE_lb-under-test"),
    decapsulator: env!("CARGO_BIN_EXE_decapsulator"),
    responder: env!("CARGO_BIN_EXE_responder"),
};

const MEGABYTES: usize = 10;
/// The same number in both families' addresses, before and behind the narrow link.
const FAR: [&str; 2] = ["10.93.1.", "fd00:93:1::"];
const NARROW: [&str; 2] = ["10.93.2.", "fd00:93:2::"];

/// Connects two namespaces by a cable, the first with address 1 and the second with address 2.
fn cable(ends: [(&Namespace, &str); 2], prefixes: [&str; 2], mtu: &str) -> Result<()> {
    let [(first, name), (second, other)] = ends;
    let second_name = second.name();
    first.ip(&[
        "link",
        "add",
        name,
        "mtu",
        mtu,
        "type",
        "veth",
        "peer",
        "name",
        other,
        "mtu",
        mtu,
        "netns",
        second_name,
    ])?;
    for (last, (namespace, interface)) in (1..).zip(ends) {
        for (prefix, bits) in prefixes.into_iter().zip([24, 64]) {
            let address = format!("{prefix}{last}/{bits}");
            let nodad: &[&str] = if bits == 64 { &["nodad"] } else { &[] };
            namespace.ip(&[&["addr", "add", &address, "dev", interface], nodad].concat())?;
        }
        namespace.ip(&["link", "set", interface, "up"])?;
        // Every checksum is computed by its sender.
        let offloads = ["tx", "off", "tso", "off", "gso", "off", "gro", "off"];
        namespace.run("ethtool", &[&["-K", interface], &offloads[..]].concat())?;
    }
    Ok(())
}

fn forward(namespace: &Namespace) -> Result<()> {
    for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        namespace.run("sysctl", &["-qw", key])?;
    }
    Ok(())
}

/// Puts a client behind a router that has a narrow link to `near`: to the usual client, which is a router
/// then as well, or to the balancer itself.
fn far_client(modes: &Modes, near: &Namespace) -> Result<[Namespace; 2]> {
    let bed = &modes.bed;
    let name = |role: &str| bed.client.name().replace("client", role);
    let [far, router] = [Namespace::create(&name("far"))?, Namespace::create(&name("router"))?];
    use_ipv6(&far)?;
    use_ipv6(&router)?;
    cable([(&router, "eth0"), (&far, "eth0")], FAR, "1500")?;
    cable([(near, "eth1"), (&router, "eth1")], NARROW, "1400")?;
    forward(&router)?;
    // Of what a program sends, a receiver that polls takes all (`veth_xdp_xmit`).
    router.run("ethtool", &["-K", "eth1", "gro", "on"])?;
    let is_client = near.name() == bed.client.name();
    if is_client {
        forward(near)?;
    }
    for (family, (far_prefix, narrow)) in
        [&IPV4, &IPV6].into_iter().zip(FAR.into_iter().zip(NARROW))
    {
        let bits = family.bits;
        let network = format!("{far_prefix}0/{bits}");
        let version = if bits == 64 { "-6" } else { "-4" };
        let route = |namespace: &Namespace, to: &str, via: &str| {
            namespace.ip(&[version, "route", "add", to, "via", via]).map(drop)
        };
        route(&far, "default", &format!("{far_prefix}1"))?;
        route(&router, "default", &format!("{narrow}1"))?;
        route(near, &network, &format!("{narrow}2"))?;
        route(bed.backend_namespace("mgmt01")?, &network, &family.address(10))?;
        if is_client {
            let client = family.address(CLIENT);
            for host in
                [&bed.balancer, bed.backend_namespace("mgmt02")?, bed.backend_namespace("mgmt03")?]
            {
                route(host, &network, &client)?;
            }
        }
    }
    Ok([far, router])
}

#[test]
fn large_files_pass_a_narrow_link_before_the_client() -> Result<()> {
    for xdp_mode in ["native", "generic"] {
        let modes = Modes::new(PROGRAMS, xdp_mode)?;
        let [far, _router] = far_client(&modes, &modes.bed.client)?;
        let big = modes.make_big(MEGABYTES)?;
        for mode in &MODES {
            // In this order: what a client has learnt, it tells the backend in its next SYN.
            modes.download(&far, mode, &big).context(xdp_mode)?;
            modes.upload(&far, mode, &server(mode), &big).context(xdp_mode)?;
        }
        ensure!(modes.bed.reason("icmp_error")? > 0, "{xdp_mode}: routers kept quiet");
    }
    Ok(())
}

#[test]
fn large_files_pass_a_narrow_interface_of_the_balancer() -> Result<()> {
    for xdp_mode in ["native", "generic"] {
        let mut modes = Modes::new(PROGRAMS, xdp_mode)?;
        let [far, _router] = far_client(&modes, &modes.bed.balancer)?;
        modes.bed.stop_controller(Signal::SIGTERM)?;
        modes.bed.start_controller(&["--interface", "eth0", "--interface", "eth1"])?;
        let big = modes.make_big(MEGABYTES)?;
        for mode in MODES.iter().filter(|mode| mode.translates()) {
            // In this order: what a client has learnt, it tells the backend in its next SYN.
            modes.download(&far, mode, &big).context(xdp_mode)?;
            modes.upload(&far, mode, &server(mode), &big).context(xdp_mode)?;
        }
        ensure!(modes.bed.reason("needs_fragmentation")? > 0, "{xdp_mode}: nothing was too long");
    }
    Ok(())
}

/// Puts a backend behind two routers with a narrow link between them; one of the usual backends' hosts
/// is one of them. The far one takes outer headers off.
fn far_backend(modes: &mut Modes) -> Result<[Namespace; 2]> {
    let bed = &modes.bed;
    let name = |role: &str| bed.client.name().replace("client", role);
    let [far, router] = [Namespace::create(&name("far"))?, Namespace::create(&name("router"))?];
    let gate = bed.backend_namespace("mgmt02")?;
    use_ipv6(&far)?;
    use_ipv6(&router)?;
    cable([(&router, "eth0"), (&far, "eth0")], FAR, "1500")?;
    cable([(gate, "eth1"), (&router, "eth1")], NARROW, "1400")?;
    forward(&router)?;
    forward(gate)?;
    for (family, (far_prefix, narrow)) in
        [&IPV4, &IPV6].into_iter().zip(FAR.into_iter().zip(NARROW))
    {
        let bits = family.bits;
        let network = format!("{far_prefix}0/{bits}");
        let version = if bits == 64 { "-6" } else { "-4" };
        let ip = |namespace: &Namespace, arguments: &[&str]| {
            namespace.ip(&[&[version], arguments].concat()).map(drop)
        };
        let [client, balancer, vip] = [CLIENT, 10, VIP].map(|last| family.address(last));
        ip(&far, &["route", "add", "default", "via", &format!("{far_prefix}1")])?;
        ip(&router, &["route", "add", "default", "via", &format!("{narrow}1")])?;
        ip(gate, &["route", "add", &network, "via", &format!("{narrow}2")])?;
        ip(&bed.balancer, &["route", "add", &network, "via", &family.address(102)])?;
        // What the backend sends from its own address passes through the balancer.
        ip(gate, &["rule", "add", "from", &network, "to", &client, "lookup", "100"])?;
        ip(gate, &["route", "add", &client, "via", &balancer, "table", "100"])?;
        // The gate must pass on what comes from the VIP, which is not its own here.
        ip(
            gate,
            &["addr", "del", &format!("{vip}/{}", if bits == 64 { 128 } else { 32 }), "dev", "lo"],
        )?;
        ip(&far, &["addr", "add", &vip, "dev", "lo"])?;
    }
    far.run("ethtool", &["-K", "eth0", "gro", "off"])?;
    let listen =
        ["0.0.0.0:80", "[::]:80", "0.0.0.0:8087", "[::]:8087", "0.0.0.0:8088", "[::]:8088"];
    bed.start_nginx(&far, "far", &listen)?;
    let mut decapsulator = far.command(PROGRAMS.decapsulator);
    let helper = ready(&mut decapsulator)?;
    modes.helpers.push(helper);
    Ok([far, router])
}

#[test]
fn large_files_pass_a_narrow_link_before_the_backend() -> Result<()> {
    const FORWARDINGS: [(&str, [u16; 2]); 4] =
        [("full-nat", [91, 80]), ("nat", [92, 80]), ("ipip", [8087, 8087]), ("gue", [8088, 8088])];
    let far = |family: &str| if family == "ipv4" { "10.93.1.2" } else { "[fd00:93:1::2]" };
    let same = [[&IPV4, &IPV4], [&IPV6, &IPV6]];
    let services: Vec<Mode> = FORWARDINGS
        .into_iter()
        .flat_map(|(forwarding, ports)| {
            same.map(|families| Mode::new(forwarding, families, ports, 9, ""))
        })
        .collect();
    let mut text = String::new();
    for mode in &services {
        text += &format!(
            "[[service]]\nname = \"{}\"\nbind = [\"{}\"]\nforwarding = \"{}\"\n[service.check]\ninterval = \
             \"200ms\"\n[[service.backend]]\nname = \"far\"\naddress = \"{}:{}\"\n",
            mode.name(),
            mode.outside.socket(VIP, mode.port),
            mode.forwarding,
            far(mode.inside.name),
            mode.backend_port
        );
    }
    for xdp_mode in ["native", "generic"] {
        let mut modes = Modes::new(PROGRAMS, xdp_mode)?;
        let _namespaces = far_backend(&mut modes)?;
        modes.bed.write_config_of(&text)?;
        modes.bed.lb_ok(&["reload"])?;
        modes.wait_for_backends(services.len())?;
        let big = modes.make_big(MEGABYTES)?;
        for mode in &services {
            // In this order: what a backend has learnt, it tells the client in its next SYN-ACK.
            modes.upload(&modes.bed.client, mode, "far", &big).context(xdp_mode)?;
            modes.download(&modes.bed.client, mode, &big).context(xdp_mode)?;
        }
        ensure!(modes.bed.reason("icmp_error")? > 0, "{xdp_mode}: routers kept quiet");
    }
    Ok(())
}
