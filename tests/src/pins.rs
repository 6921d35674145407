//! Where tests pin maps.

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};

/// A directory for pins that no other test uses, on a BPF file system, which is mounted if need be.
///
/// # Errors
///
/// It can't be mounted.
pub fn pin_directory() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static MOUNT: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let guard = MOUNT.lock();
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    if !mounts.lines().any(|line| line.contains(" /sys/fs/bpf bpf ")) {
        let status = Command::new("mount")
            .args(["-t", "bpf", "bpf", "/sys/fs/bpf"])
            .status()
            .context("mount")?;
        ensure!(status.success(), "mounting a BPF file system on /sys/fs/bpf failed: run as root");
    }
    drop(guard);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(PathBuf::from(format!("/sys/fs/bpf/lb-test-{}-{number}", std::process::id())))
}
