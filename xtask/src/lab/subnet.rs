//! The lab's addresses.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use xtask::netns;

use super::place::HOST_INTERFACE;

/// The addresses if none are named.
pub(crate) const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 24);

/// The address with a number in the subnet.
pub(super) fn address(subnet: Ipv4Net, number: u8) -> Ipv4Addr {
    let [a, b, c, _] = subnet.network().octets();
    Ipv4Addr::new(a, b, c, number)
}

/// Demands a network of 24 bits.
pub(super) fn check_size(subnet: Ipv4Net) -> Result<()> {
    ensure!(
        subnet.prefix_len() == 24,
        "--subnet {subnet}: the lab takes a network of 24 bits, such as 10.78.0.0/24"
    );
    Ok(())
}

/// Demands that nothing on this host uses the addresses yet.
pub(super) fn check_free(subnet: Ipv4Net) -> Result<()> {
    let text = netns::run("ip", &["-json", "-4", "route", "show", "table", "all"])?;
    let routes: serde_json::Value = serde_json::from_str(&text).context("ip route")?;
    for route in routes.as_array().into_iter().flatten() {
        let device = route["dev"].as_str().unwrap_or("?");
        let Some(destination) = route["dst"].as_str() else { continue };
        let network: Option<Ipv4Net> =
            destination.parse().ok().or_else(|| destination.parse().ok().map(Ipv4Addr::into));
        let Some(network) = network else { continue };
        let overlaps = network.contains(&subnet) || subnet.contains(&network);
        if overlaps && device != HOST_INTERFACE {
            bail!(
                "{subnet} is in use on this host (route to {network} by {device}); choose other \
                 addresses with --subnet, such as --subnet 10.78.0.0/24"
            );
        }
    }
    Ok(())
}
