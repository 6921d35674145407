//! Whether this host can run the program at all, found out before anything is touched.

use std::fs;

use crate::config::Config;

/// Oldest kernel: atomic additions that fetch came with 5.12 (commit 5ca419f2864a).
const OLDEST_KERNEL: (u32, u32) = (5, 12);

/// Why this host can't run the program.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PreflightError {
    /// The kernel is too old.
    #[error("Linux {found} is too old: {}.{} or later is needed", OLDEST_KERNEL.0, OLDEST_KERNEL.1)]
    OldKernel {
        /// Its release.
        found: String,
    },
    /// The process lacks capabilities.
    #[error("not permitted: run as root, or with {}", .0.join(", "))]
    Capabilities(Vec<&'static str>),
    /// The kernel gives out ports that full NAT sends from.
    #[error(
        "nat.ports {first}-{last} overlaps net.ipv4.ip_local_port_range {local_first}-{local_last}, \
         from which this host's own connections are; keep them apart"
    )]
    PortsOverlap {
        /// First port of full NAT.
        first: u16,
        /// Last port of full NAT.
        last: u16,
        /// First local port.
        local_first: u16,
        /// Last local port.
        local_last: u16,
    },
}

/// Demands what the program needs of this host.
///
/// # Errors
///
/// Something is missing.
pub(super) fn check(config: &Config) -> Result<(), PreflightError> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    check_kernel(release.trim())?;
    check_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default())?;
    check_ports(config)
}

/// Demands that the ports of full NAT aren't those of this host's own connections.
///
/// # Errors
///
/// They are.
pub(super) fn check_ports(config: &Config) -> Result<(), PreflightError> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    compare_ports(config.nat_ports, &range)
}

fn check_kernel(release: &str) -> Result<(), PreflightError> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    match (number(), number()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => {
            Err(PreflightError::OldKernel { found: release.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Numbers of capabilities (linux/capability.h), and others that include them.
const NEEDED: [(&str, u32, Option<u32>); 3] =
    [("CAP_NET_ADMIN", 12, None), ("CAP_BPF", 39, Some(21)), ("CAP_PERFMON", 38, Some(21))];

fn check_capabilities(status: &str) -> Result<(), PreflightError> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Without /proc, the kernel itself will tell.
    let Some(effective) = effective else { return Ok(()) };
    let has = |number: u32| effective & (1 << number) != 0;
    let missing = NEEDED
        .iter()
        .filter(|(_, number, or)| !has(*number) && !or.is_some_and(has))
        .map(|(name, ..)| *name)
        .collect::<Vec<_>>();
    if missing.is_empty() { Ok(()) } else { Err(PreflightError::Capabilities(missing)) }
}

fn compare_ports((first, last): (u16, u16), local: &str) -> Result<(), PreflightError> {
    let mut numbers = local.split_whitespace().filter_map(|text| text.parse::<u16>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(local_first), Some(local_last)) if first <= local_last && local_first <= last => {
            Err(PreflightError::PortsOverlap { first, last, local_first, local_last })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart() {
        for old in ["4.19.0", "5.10.0-30-amd64", "5.11.22"] {
            assert!(check_kernel(old).is_err(), "{old}");
        }
        for new in ["5.12.0", "5.15.0-100-generic", "6.1.0-13-amd64", "10.0", "strange"] {
            assert!(check_kernel(new).is_ok(), "{new}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let status = |mask: u64| format!("Name:\tlb\nCapEff:\t{mask:016x}\n");
        assert_eq!(check_capabilities(&status(1 << 12 | 1 << 21)), Ok(()));
        assert_eq!(check_capabilities(&status(1 << 12 | 1 << 38 | 1 << 39)), Ok(()));
        assert_eq!(
            check_capabilities(&status(1 << 39)),
            Err(PreflightError::Capabilities(vec!["CAP_NET_ADMIN", "CAP_PERFMON"]))
        );
    }

    #[test]
    fn overlapping_ports_are_refused() {
        assert_eq!(compare_ports((1024, 32_767), "32768\t60999\n"), Ok(()));
        assert!(compare_ports((1024, 32_768), "32768\t60999\n").is_err());
        assert!(compare_ports((50_000, 50_001), "32768\t60999\n").is_err());
        assert_eq!(compare_ports((61_000, 65_535), "32768\t60999\n"), Ok(()));
    }
}
