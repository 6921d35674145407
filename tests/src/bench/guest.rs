//! A machine of its own for the balancer: a guest under QEMU, with network interfaces (virtio-net) that hand its program
//! the frames as they came, with no socket buffer made of them before, as a NIC's driver does.
//!
//! Its kernel is Debian's for virtual machines; its file system, in memory, holds a few programs and what they need. QEMU
//! executes its instructions in software, which is slow, but needs no hardware for it.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use xtask::netns::{Namespace, run};

use super::processors::time_taken;
use crate::wait::wait_until;

/// Its processors.
const PROCESSORS: usize = 2;
/// Queues of each of its interfaces: as many again as it has processors, by which an XDP program sends.
const QUEUES: usize = 2 * PROCESSORS;
/// Frames that wait for the guest, at most, in each queue.
const WAITING: &str = "40000";
/// Programs that a balancer needs, beside those of busybox.
const PROGRAMS: [&str; 4] = ["ip", "ethtool", "ping", "nft"];
/// Modules of the kernel.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_net", "veth", "nf_tables", "nft_chain_nat", "nft_masq", "nft_nat"];
/// Offloads that would leave frames unfinished.
const OFFLOADS: &str = "csum gso guest_csum guest_tso4 guest_tso6 guest_ecn guest_ufo host_tso4 host_tso6 host_ecn host_ufo";
/// How long it may take to start, or to do one thing.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the kernel starts first: it does what comes by the second serial line.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin NO_COLOR=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs run /run
for module in $(cat /modules/order); do insmod /modules/$module; done
stty -F /dev/ttyS1 raw -echo
echo ready > /dev/ttyS1
exec sh < /dev/ttyS1 2>&1 | cat > /dev/ttyS1
";

/// The machine, which ends with its guard.
pub(super) struct Guest {
    process: Child,
    line: RefCell<BufReader<UnixStream>>,
    console: PathBuf,
}

/// The end of one of its cables: whose it is, and the interface's name and address there.
pub(super) struct Cable<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) interface: &'a str,
    pub(super) address: &'a str,
}

impl Guest {
    /// Starts one with these programs beside those that every balancer needs, at the same places as here, and a cable to
    /// each of two namespaces. Its own interfaces are called lb0 and lb1. QEMU runs in a namespace of its own.
    ///
    /// # Errors
    ///
    /// The kernel can't be fetched, or the machine doesn't start.
    pub(super) fn start(
        namespace: &Namespace,
        directory: &Path,
        programs: &[&str],
        cables: &[Cable<'_>; 2],
    ) -> Result<Self> {
        ensure!(cfg!(target_arch = "x86_64"), "the guest's kernel is one for x86-64");
        let kernel = fetch_kernel(directory)?;
        let files = pack(directory, &kernel, programs)?;
        let socket = directory.join("guest.sock");
        let console = directory.join("guest.log");
        let mut qemu = namespace.command("qemu-system-x86_64");
        qemu.args("-accel tcg,thread=multi -cpu max -m 2048 -nodefaults -display none".split(' '));
        // Its processors are threads that are called so.
        qemu.args(["-name", "guest,debug-threads=on"]);
        qemu.args(["-no-reboot", "-smp", &PROCESSORS.to_string()]);
        qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&files);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.arg("-serial").arg(format!("unix:{},server=on,wait=off", socket.display()));
        for number in 0..cables.len() {
            let tap = format!("tap{number}");
            namespace.ip(&["tuntap", "add", "mode", "tap", "multi_queue", "name", &tap])?;
            let vectors = 2 * QUEUES + 2;
            let off: String =
                OFFLOADS.split(' ').map(|offload| format!(",{offload}=off")).collect();
            qemu.arg("-netdev")
                .arg(format!("tap,id={tap},ifname={tap},script=no,downscript=no,queues={QUEUES}"));
            let address = format!("mac=02:00:00:00:00:1{number}");
            let device = format!("virtio-net-pci,netdev={tap},mq=on,vectors={vectors}");
            qemu.arg("-device").arg(format!("{device},{address}{off}"));
        }
        let errors = directory.join("qemu.log");
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        let mut process = qemu.spawn().context("qemu-system-x86_64")?;
        let line = connect(&socket, &mut process).with_context(|| {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            said.trim().to_owned()
        });
        let guest = match line {
            Ok(line) => Self { process, line: RefCell::new(BufReader::new(line)), console },
            Err(error) => {
                end(&mut process);
                return Err(error);
            }
        };
        guest.wait_for("ready")?;
        for (number, cable) in cables.iter().enumerate() {
            guest.connect(namespace, number, cable)?;
        }
        Ok(guest)
    }

    /// Takes a cable's end to where it belongs, and the guest's end into use.
    fn connect(&self, namespace: &Namespace, number: usize, cable: &Cable<'_>) -> Result<()> {
        let Cable { namespace: to, interface, address } = cable;
        // QEMU opened it where it was made.
        namespace.ip(&["link", "set", &format!("tap{number}"), "netns", to.name()])?;
        to.ip(&["link", "set", &format!("tap{number}"), "name", interface])?;
        to.ip(&["address", "add", address, "dev", interface])?;
        to.ip(&["link", "set", interface, "up", "txqueuelen", WAITING])?;
        let own = format!("lb{number}");
        self.run("ip", &["link", "set", &format!("eth{number}"), "name", &own])?;
        self.run("ip", &["link", "set", &own, "up"])?;
        self.run("ethtool", &["-L", &own, "combined", &PROCESSORS.to_string()])?;
        for queue in 0..QUEUES {
            // Each processor looks after the frames of queues of its own.
            let script = format!(
                "grep 'virtio{number}-input.{queue}$' /proc/interrupts | cut -d: -f1 | tr -d ' '"
            );
            let interrupt = self.run("sh", &["-c", &script])?;
            let processor = queue % PROCESSORS;
            let file = format!("/proc/irq/{}/smp_affinity_list", interrupt.trim());
            self.run("sh", &["-c", &format!("echo {processor} > {file}")])?;
        }
        Ok(())
    }

    /// Runs a program in it to its end, and returns what it printed.
    ///
    /// # Errors
    ///
    /// It fails, then with what it printed; or the machine has ended.
    pub(super) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let command = shell_words(program, arguments);
        let (text, status) = self.say(&format!("{command} </dev/null"))?;
        ensure!(status == "0", "in the guest: {command}: status {status}: {}", text.trim());
        Ok(text)
    }

    /// Starts a program in it, which says on the console what it says, and returns its process.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub(super) fn spawn(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let command = shell_words(program, arguments);
        let (text, _) = self.say(&format!("{command} </dev/null >/dev/console 2>&1 & echo $!"))?;
        Ok(text.trim().to_owned())
    }

    /// Ends a process that was started in it.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub(super) fn kill(&self, process: &str) -> Result<()> {
        self.say(&format!("kill -9 {process}; wait {process}")).map(drop)
    }

    /// Writes a file in it, with the directory that it is in.
    ///
    /// # Errors
    ///
    /// It can't be written, or the machine has ended.
    pub(super) fn write(&self, file: &Path, text: &str) -> Result<()> {
        let directory = file.parent().and_then(Path::to_str).context("a directory")?;
        let file = file.to_str().context("UTF-8")?;
        self.run("mkdir", &["-p", directory])?;
        let script = format!("printf %s {} > {}", shell_word(text), shell_word(file));
        self.run("sh", &["-c", &script]).map(drop)
    }

    /// Has its shell do something, and returns what was printed and the status.
    fn say(&self, command: &str) -> Result<(String, String)> {
        const END: &str = "done by the guest: ";
        let request = format!("{command}\nprintf '\\n%s%s\\n' '{END}' $?\n");
        self.line.borrow_mut().get_mut().write_all(request.as_bytes())?;
        let mut text = self.wait_for(END)?;
        let status = text.pop().unwrap_or_default();
        let status = status.strip_prefix(END).unwrap_or(&status).trim().to_owned();
        Ok((text.join(""), status))
    }

    /// Time that its processors have been at work, in nanoseconds: what devices take, QEMU takes elsewhere.
    ///
    /// # Errors
    ///
    /// The machine has ended.
    pub(super) fn processor_time(&self) -> Result<u64> {
        let (mut sum, mut processors) = (0, 0);
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))?.flatten() {
            // Others come and go.
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.starts_with("CPU ") {
                sum += time_taken(&task.path())?;
                processors += 1;
            }
        }
        ensure!(processors == PROCESSORS, "{processors} threads of processors");
        Ok(sum)
    }

    /// The last that was said on its console.
    pub(super) fn last_words(&self) -> String {
        const LINES: usize = 20;
        let said = fs::read_to_string(&self.console).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        format!("its console:\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
    }

    /// Reads lines until one begins so, which is the last of what is returned.
    fn wait_for(&self, beginning: &str) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.line.borrow_mut().read_line(&mut line);
            if !matches!(read, Ok(length) if length > 0) {
                bail!("the guest doesn't answer: {read:?}; {}", self.last_words());
            }
            let is_last = line.starts_with(beginning);
            lines.push(line);
            if is_last {
                return Ok(lines);
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    // It may have ended already.
    let _: std::io::Result<()> = process.kill();
    let _: std::io::Result<std::process::ExitStatus> = process.wait();
}

/// Connects to the machine's second serial line.
fn connect(socket: &Path, process: &mut Child) -> Result<UnixStream> {
    let mut line = None;
    wait_until("QEMU listens", || {
        ensure!(process.try_wait()?.is_none(), "QEMU has ended");
        line = UnixStream::connect(socket).ok();
        Ok(line.is_some())
    })?;
    let line = line.context("a connection")?;
    line.set_read_timeout(Some(PATIENCE))?;
    Ok(line)
}

/// A kernel of Debian's.
struct Kernel {
    version: String,
    image: PathBuf,
    /// What its package holds.
    root: PathBuf,
}

/// Fetches Debian's newest kernel for virtual machines, without installing it.
fn fetch_kernel(directory: &Path) -> Result<Kernel> {
    const NEWEST: &str = "linux-image-cloud-amd64";
    run("apt-get", &["update", "-qq"])?;
    let depends = run("env", &["LC_ALL=C", "apt-cache", "depends", NEWEST])?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.with_context(|| format!("{NEWEST}: Debian's archive has it"))?;
    let version = package.strip_prefix("linux-image-").context("a kernel")?.to_owned();
    let mut fetch = Command::new("apt-get");
    let fetch = fetch.current_dir(directory).args(["download", "-qq", package]).output()?;
    let said = String::from_utf8_lossy(&fetch.stderr);
    ensure!(fetch.status.success(), "apt-get download {package}: {}", said.trim());
    let files = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let mut packages = files.filter(|file| file.extension().is_some_and(|end| end == "deb"));
    let file = packages.next().context("a package")?;
    let root = directory.join("kernel");
    run("dpkg", &["-x", text(&file)?, text(&root)?])?;
    run("depmod", &["-b", text(&root)?, &version])?;
    let image = root.join("boot").join(format!("vmlinuz-{version}"));
    Ok(Kernel { version, image, root })
}

/// Makes the machine's file system, and returns the file that has it.
fn pack(directory: &Path, kernel: &Kernel, programs: &[&str]) -> Result<PathBuf> {
    let root = directory.join("guest");
    for name in ["bin", "proc", "sys", "dev", "tmp", "run", "modules"] {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = find("busybox")?;
    install(&root, &busybox, Path::new("bin/busybox"))?;
    for name in PROGRAMS {
        install(&root, &find(name)?, &Path::new("bin").join(name))?;
    }
    for program in programs {
        let place = program.strip_prefix('/').context("an absolute path")?;
        install(&root, Path::new(program), Path::new(place))?;
    }
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let which = ["-d", text(&kernel.root)?, "-S", &kernel.version, "--show-depends", module];
        for line in run("modprobe", &which)?.lines() {
            let mut words = line.split_whitespace();
            let (Some("insmod"), Some(file)) = (words.next(), words.next()) else { continue };
            let name = Path::new(file).file_name().and_then(|name| name.to_str());
            let name = name.context("a module's name")?.to_owned();
            if !order.contains(&name) {
                fs::copy(file, root.join("modules").join(&name))?;
                order.push(name);
            }
        }
    }
    fs::write(root.join("modules/order"), order.join("\n"))?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    run("chmod", &["755", text(&init)?])?;
    let packed = directory.join("guest.cpio");
    let script = format!(
        "cd {} && find . | cpio --quiet -o -H newc > {}",
        shell_word(text(&root)?),
        shell_word(text(&packed)?)
    );
    run("sh", &["-c", &script])?;
    Ok(packed)
}

/// Puts a program into the file system, with the libraries that it needs and without what only debuggers do.
fn install(root: &Path, program: &Path, place: &Path) -> Result<()> {
    let copy = root.join(place);
    fs::create_dir_all(copy.parent().context("a directory")?)?;
    run("strip", &["-o", text(&copy)?, text(program)?])?;
    // It fails for programs without any.
    let libraries = run("ldd", &[text(program)?]).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(&library[1..]);
        if !copy.exists() {
            fs::create_dir_all(copy.parent().context("a directory")?)?;
            fs::copy(library, copy)?;
        }
    }
    Ok(())
}

/// Where a program of the system's is.
fn find(name: &str) -> Result<PathBuf> {
    let directories = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
    let mut places = directories.into_iter().map(|directory| directory.join(name));
    places.find(|place| place.exists()).with_context(|| format!("{name} isn't installed"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} isn't UTF-8", path.display()))
}

fn shell_words(program: &str, arguments: &[&str]) -> String {
    // Its shell would take busybox's own before the system's.
    let full = format!("/bin/{program}");
    let program = if PROGRAMS.contains(&program) { &full } else { program };
    let words = [program].into_iter().chain(arguments.iter().copied()).map(shell_word);
    words.collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it for what it is.
fn shell_word(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
