//! Builds crates of XDP programs for the BPF target.
//!
//! Such a program needs a core library built for that target (the toolchain's `rust-src`) and
//! bpf-linker; both are installed where they are missing. Stable Rust builds it, with unstable
//! options allowed for this one child process.

use std::{
    env,
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.10.4";

/// The last one lets small copies and fills be loads and stores in place: kept in order, for the
/// kernel's compilers to recognise, every fill and every copy by halfwords would become a call.
const RUSTFLAGS: [&str; 2] = ["-Ctarget-cpu=v3", "-Clink-arg=--disable-expand-memcpy-in-order"];

/// Builds a package of the workspace, which changes with these files and directories, and tells the crate whose
/// build script this is where the object file lies, in a variable. It may have flags of the compiler's of its own.
pub(crate) fn build(
    package: &str,
    sources: &[&str],
    flags: &[&str],
    variable: &str,
) -> Result<(), Box<dyn Error>> {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("no manifest dir")?);
    let workspace = manifest_dir.parent().ok_or("no workspace")?.to_path_buf();
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("no out dir")?);
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE-HASH/out, or in a directory of TARGET's that is named after the platform.
    let platform = env::var_os("TARGET").ok_or("no platform")?;
    let above = out_dir.ancestors().skip(4);
    let mut above = above.skip_while(|path| path.file_name() == Some(&platform));
    let target_dir = above.next().ok_or("OUT_DIR isn't where it is expected")?;

    for source in sources.iter().chain(&["Cargo.lock", "lb-userspace/build"]) {
        println!("cargo:rerun-if-changed={}", workspace.join(source).display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let tools = target_dir.join("tools");
    ensure_core_sources()?;
    ensure_linker(&tools)?;

    let bpf_dir = target_dir.join("bpf");
    let mut build = child("cargo");
    build
        .current_dir(&workspace)
        .args(["build", "--package", package, "--release", "--locked"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&bpf_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", with_tools(&tools)?)
        .env("CARGO_ENCODED_RUSTFLAGS", [&RUSTFLAGS, flags].concat().join("\x1f"));
    run(&mut build, "building the XDP programs")?;

    let object = bpf_dir.join("bpfel-unknown-none/release").join(package);
    println!("cargo:rustc-env={variable}={}", object.display());
    println!("cargo:rerun-if-changed={}", object.display());
    Ok(())
}

/// Adds the sources of the core library to the toolchain, unless they are there.
fn ensure_core_sources() -> Result<(), Box<dyn Error>> {
    let output = child("rustc").args(["--print", "sysroot"]).output()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    if sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        return Ok(());
    }
    println!("cargo:warning=adding rust-src to the toolchain");
    run(child("rustup").args(["component", "add", "rust-src"]), "adding rust-src")
}

/// Installs the linker under the target directory, unless it is there or on the path.
fn ensure_linker(tools: &Path) -> Result<(), Box<dyn Error>> {
    let found = child(LINKER).env("PATH", with_tools(tools)?).arg("--version").output();
    if found.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).trim_end().ends_with(LINKER_VERSION)
    }) {
        return Ok(());
    }
    println!("cargo:warning=installing {LINKER} {LINKER_VERSION} (once, about two minutes)");
    run(
        child("cargo")
            .args(["install", LINKER, "--version", LINKER_VERSION, "--locked", "--root"])
            .arg(tools),
        "installing the BPF linker",
    )
}

fn with_tools(tools: &Path) -> Result<OsString, Box<dyn Error>> {
    let path = env::var_os("PATH").unwrap_or_default();
    let entries = std::iter::once(tools.join("bin")).chain(env::split_paths(&path));
    Ok(env::join_paths(entries)?)
}

/// A command that doesn't inherit what cargo set up for this package.
fn child(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_") && text != "CARGO_HOME"
            || ["RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTDOC"].contains(&&*text)
        {
            command.env_remove(name);
        }
    }
    command
}

fn run(command: &mut Command, what: &str) -> Result<(), Box<dyn Error>> {
    let output = command.output().map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what} failed:\n{}", String::from_utf8_lossy(&output.stderr)).into())
}
