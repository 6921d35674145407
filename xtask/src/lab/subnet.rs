//! The lab's addresses.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use xtask::netns;

use super::place::HOST_INTERFACE;

/// The addresses if none are named.
pub(crate) const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 24);

/// What to suggest where they are in use: of each private range one, and one that is for tests of
/// network devices (RFC 2544).
const ALTERNATIVES: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 78, 0, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 77, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 77, 0), 24),
    Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 77, 0), 24),
];

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
    let used = used()?;
    let user_of = |subnet: Ipv4Net| {
        used.iter()
            .find(|(network, _)| network.contains(&subnet) || subnet.contains(network))
            .cloned()
    };
    let Some((network, device)) = user_of(subnet) else { return Ok(()) };
    let other = ALTERNATIVES.iter().find(|subnet| user_of(**subnet).is_none());
    bail!(
        "{subnet} is in use on this host (route to {network} by {device}); choose other addresses \
         with --subnet, such as --subnet {}",
        other.map_or_else(|| "one that is free".to_owned(), ToString::to_string)
    );
}

/// The networks that this host has routes to, and by which interfaces.
fn used() -> Result<Vec<(Ipv4Net, String)>> {
    let text = netns::run("ip", &["-json", "-4", "route", "show", "table", "all"])?;
    let routes: serde_json::Value = serde_json::from_str(&text).context("ip route")?;
    let mut used = Vec::new();
    for route in routes.as_array().into_iter().flatten() {
        let device = route["dev"].as_str().unwrap_or("?");
        let Some(destination) = route["dst"].as_str() else { continue };
        let network: Option<Ipv4Net> =
            destination.parse().ok().or_else(|| destination.parse().ok().map(Ipv4Addr::into));
        if let Some(network) = network
            && device != HOST_INTERFACE
        {
            used.push((network, device.to_owned()));
        }
    }
    Ok(used)
}
