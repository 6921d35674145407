//! Installing what is lacking, saying what.

use std::{env, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    build::{root, succeed},
    privilege,
};

/// A program and the Debian package that has it.
type Tool = (&'static str, &'static str);

/// What the lab needs.
pub(crate) const LAB: &[Tool] =
    &[("ip", "iproute2"), ("ethtool", "ethtool"), ("sysctl", "procps"), ("mount", "mount")];

/// What the tests need beside that.
pub(crate) const TESTS: &[Tool] = &[
    ("buildah", "buildah"),
    ("curl", "curl"),
    ("faketime", "faketime"),
    ("haproxy", "haproxy"),
    ("javac", "default-jdk-headless"),
    ("/usr/share/java/jetty9-servlet.jar", "libjetty9-java"),
    ("mmdebstrap", "mmdebstrap"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("ping", "iputils-ping"),
    ("podman", "podman"),
    ("promtool", "prometheus"),
    ("runc", "runc"),
    ("strace", "strace"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("wrk", "wrk"),
];

/// What measuring needs beside that.
pub(crate) const BENCH: &[Tool] = &[
    ("taskset", "util-linux"),
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
];

/// What a virtual machine needs beside that.
pub(crate) const GUEST: &[Tool] = &[
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("ldd", "libc-bin"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("strip", "binutils"),
];

/// What making packages needs.
pub(crate) const DIST: &[Tool] =
    &[("dpkg-deb", "dpkg"), ("gzip", "gzip"), (STATIC_COMPILER, "musl-tools")];
/// Compiles C for binaries without libraries: the cryptography of TLS has some.
pub(crate) const STATIC_COMPILER: &str = "musl-gcc";

/// What making container images needs.
pub(crate) const IMAGE: &[Tool] = &[("buildah", "buildah")];

/// Installs the standard library for another target, unless it is there.
pub(crate) fn target(target: &str) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(root()).args(["--print", "target-libdir", "--target", target]);
    let output = rustc.output()?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && Path::new(&directory).is_dir() {
        return Ok(());
    }
    println!("Installing the Rust standard library for {target}.");
    succeed(Command::new("rustup").current_dir(root()).args(["target", "add", target]))
}

/// Installs the toolchain that `rust-toolchain.toml` names, with its components, unless it is there.
pub(crate) fn toolchain() -> Result<()> {
    let has_rustup = Command::new("rustup").arg("--version").output().is_ok();
    if !has_rustup {
        // A toolchain from elsewhere: the build script says what it lacks.
        return Ok(());
    }
    let output = Command::new("rustc").current_dir(root()).args(["--print", "sysroot"]).output()?;
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let core = "lib/rustlib/src/rust/library/core/Cargo.toml";
    if output.status.success() && Path::new(&sysroot).join(core).exists() {
        return Ok(());
    }
    println!("Installing the Rust toolchain of rust-toolchain.toml, with rust-src.");
    let mut rustup = Command::new("rustup");
    succeed(rustup.current_dir(root()).args(["toolchain", "install", "--no-self-update"]))
}

/// Installs the packages of those programs that aren't there.
pub(crate) fn tools(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_installed("apt-get") {
        bail!("please install these, by your distribution's names for them: {}", missing.join(" "));
    }
    println!("Installing with apt-get: {}", missing.join(" "));
    let mut update = privilege::command("apt-get");
    succeed(update.args(["update", "-qq"]))?;
    let mut install = privilege::command("env");
    install.arg("DEBIAN_FRONTEND=noninteractive").args([
        "apt-get",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
    ]);
    succeed(install.args(missing))
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(system).any(|directory| directory.join(program).is_file())
}
