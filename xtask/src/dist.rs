//! `cargo xtask dist`: what is shipped.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    build::{cargo, root, succeed, target_directory},
    install,
};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Build without optimisation
    #[arg(long)]
    debug: bool,
    /// Make no container image
    #[arg(long)]
    no_image: bool,
}

/// Makes the static binary, the Debian package and the container image, in `target/dist`.
pub(crate) fn dist(arguments: &Arguments) -> Result<()> {
    install::toolchain()?;
    install::tools(install::DIST)?;
    let directory = target_directory().join("dist");
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let binary = directory.join("lb");
    fs::copy(static_binary(arguments.debug)?, &binary)?;
    let package = package(&directory, &binary)?;
    println!("{}", binary.display());
    println!("{}", package.display());
    if !arguments.no_image {
        install::tools(install::IMAGE)?;
        println!("{}", image(&directory)?.display());
    }
    Ok(())
}

/// Builds `lb` without any library that it would have to find.
fn static_binary(debug: bool) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    install::target(&target)?;
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "lb-userspace", "--bin", "lb"]);
    command.args(["--target", &target]);
    command.env(format!("CC_{}", target.replace('-', "_")), install::STATIC_COMPILER);
    if !debug {
        command.arg("--release");
    }
    succeed(&mut command)?;
    let profile = if debug { "debug" } else { "release" };
    Ok(target_directory().join(target).join(profile).join("lb"))
}

/// Makes the Debian package. Returns where it is.
fn package(directory: &Path, binary: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let tree = directory.join("tree");
    let own = root().join("xtask/packaging");
    let place = |from: &Path, to: &str, mode: u32| -> Result<()> {
        write(&tree.join(to), &fs::read(from).with_context(|| from.display().to_string())?, mode)
    };
    place(binary, "usr/bin/lb", 0o755)?;
    place(&own.join("lb.service"), "usr/lib/systemd/system/lb.service", 0o644)?;
    place(&own.join("lb.toml"), "usr/share/doc/lb/examples/lb.toml", 0o644)?;
    place(&root().join("README.md"), "usr/share/doc/lb/README.md", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        place(&own.join(script), &format!("DEBIAN/{script}"), 0o755)?;
    }
    let copyright = "lb is under the MIT licence or the Apache License 2.0, at your option.\n";
    write(&tree.join("usr/share/doc/lb/copyright"), copyright.as_bytes(), 0o644)?;
    let changelog = compressed(&fs::read(root().join("CHANGELOG.md"))?)?;
    write(&tree.join("usr/share/doc/lb/changelog.gz"), &changelog, 0o644)?;
    for (shell, to) in [
        ("bash", "usr/share/bash-completion/completions/lb"),
        ("zsh", "usr/share/zsh/vendor-completions/_lb"),
        ("fish", "usr/share/fish/vendor_completions.d/lb.fish"),
    ] {
        let text = output(Command::new(binary).args(["completions", shell]))?;
        write(&tree.join(to), text.as_bytes(), 0o644)?;
    }
    let pages = directory.join("man");
    fs::create_dir_all(&pages)?;
    succeed(Command::new(binary).arg("man").arg("--directory").arg(&pages))?;
    for page in fs::read_dir(&pages)? {
        let page = page?;
        let name = page.file_name().into_string().ok().context("a page's name")?;
        let to = tree.join(format!("usr/share/man/man1/{name}.gz"));
        write(&to, &compressed(&fs::read(page.path())?)?, 0o644)?;
    }
    fs::remove_dir_all(&pages)?;
    let control = format!(
        "Package: lb\nVersion: {version}\nArchitecture: {architecture}\nSection: net\nPriority: optional\n\
         Depends: passwd\nMaintainer: The lb project\nDescription: {}\n {}\n",
        "layer-4 load balancer in XDP",
        "Forwards TCP and UDP services by consistent hash at the network interface, checks the\n \
         servers behind them, and leaves open connections alone whatever happens."
    );
    write(&tree.join("DEBIAN/control"), control.as_bytes(), 0o644)?;
    let package = directory.join(format!("lb_{version}_{architecture}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&package);
    succeed(build.stdout(Stdio::null()))?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// Builds the container image, and puts it into an archive. Returns where that is.
fn image(directory: &Path) -> Result<PathBuf> {
    let tag = format!("localhost/lb:{}", env!("CARGO_PKG_VERSION"));
    let file = root().join("xtask/packaging/Containerfile");
    let mut build = Command::new("buildah");
    build.args(["--storage-driver", "vfs", "bud", "--isolation", "chroot", "--quiet"]);
    build.args(["--tag", &tag, "--file"]).arg(file).arg(directory);
    succeed(build.stdout(Stdio::null()))?;
    let archive = directory.join("lb.oci.tar");
    let mut push = Command::new("buildah");
    push.args(["--storage-driver", "vfs", "push", "--quiet", &tag]);
    push.arg(format!("oci-archive:{}:{tag}", archive.display()));
    succeed(&mut push)?;
    Ok(archive)
}

fn write(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().context("a directory")?;
    fs::create_dir_all(directory)?;
    let mut at = directory;
    // Whoever installs the package may read what is in it, whatever the umask here is.
    while at.ends_with("tree") || at.ancestors().any(|above| above.ends_with("tree")) {
        fs::set_permissions(at, fs::Permissions::from_mode(0o755))?;
        at = at.parent().context("a directory")?;
    }
    File::create(path)?.write_all(contents)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let result = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(result.status.success(), "{command:?}: {}", String::from_utf8_lossy(&result.stderr));
    Ok(String::from_utf8(result.stdout)?)
}

/// What gzip makes of it, without a time.
fn compressed(contents: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip")
        .args(["-9", "-n", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("gzip")?;
    gzip.stdin.take().context("its input")?.write_all(contents)?;
    let result = gzip.wait_with_output()?;
    ensure!(result.status.success(), "gzip: {}", result.status);
    Ok(result.stdout)
}
