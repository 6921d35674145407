//! Attaching the program to interfaces, so that it stays there without us.

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    xdp::XdpLink,
};

use super::{DataplaneError, Pins, link, pins::LinkPin};

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the network stack, for any driver.
    Generic,
}

impl Mode {
    /// The word for it in the CLI and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn flags(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// Which mode is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ModeChoice {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// Native or not at all.
    Native,
    /// Generic.
    Generic,
}

/// What attaching came to.
#[derive(Debug)]
pub struct Attached {
    /// A link that was made, to be held: its pin goes when somebody unmounts the BPF file system, and with the last that
    /// holds it the program.
    pub link: Option<PinnedLink>,
    /// The mode in force.
    pub mode: Mode,
    /// Whether a link that was there was taken over.
    pub adopted: bool,
    /// Why it isn't native, though that was tried.
    pub fallback_cause: Option<String>,
}

/// Attaches the program to an interface and pins the link. A pinned link is taken over: its program
/// is replaced at once, without a gap. `current` is the mode of what is attached to the interface
/// now, if anything.
///
/// # Errors
///
/// The interface takes no program in the mode that is wanted, or has another one.
pub fn attach(
    program: &mut Xdp,
    pins: &Pins,
    interface: (u32, &str),
    choice: ModeChoice,
    current: Option<Mode>,
) -> Result<Attached, DataplaneError> {
    let (index, name) = interface;
    if let Some(mode) = current
        && (choice == ModeChoice::Auto || choice.mode() == Some(mode))
    {
        for pin in pins.links().iter().filter(|pin| pin.index == index) {
            match adopt(program, pin) {
                Ok(()) => {
                    return Ok(Attached { link: None, mode, adopted: true, fallback_cause: None });
                }
                Err(error) => tracing::warn!(
                    interface = name,
                    %error,
                    "the link can't be taken over: the program is detached and attached again, with a gap between"
                ),
            }
        }
    }
    detach(pins, |attached| attached == index)?;
    let failed = |error: &ProgramError, mode| DataplaneError::Attach {
        interface: name.to_owned(),
        why: cause(error, name, mode),
    };
    let mut attach = |mode| attach_new(program, pins, interface, mode);
    let (link, mode, fallback_cause) = match choice.mode() {
        Some(mode) => (attach(mode).map_err(|error| failed(&error, mode))?, mode, None),
        None => match attach(Mode::Native) {
            Ok(link) => (link, Mode::Native, None),
            Err(native) => {
                let link = attach(Mode::Generic).map_err(|error| failed(&error, Mode::Generic))?;
                (link, Mode::Generic, Some(cause(&native, name, Mode::Native)))
            }
        },
    };
    Ok(Attached { link: Some(link), mode, adopted: false, fallback_cause })
}

/// Attaches the program to an interface, in generic mode, until what is returned is dropped.
///
/// # Errors
///
/// The kernel refuses.
pub fn attach_until_dropped(program: &mut Xdp, index: u32) -> Result<XdpLink, DataplaneError> {
    let attached = program.attach_to_if_index(index, Mode::Generic.flags());
    attached.and_then(|id| program.take_link(id)).map_err(|error| DataplaneError::Attach {
        interface: format!("interface {index}, for checks"),
        why: cause(&error, "INTERFACE", Mode::Generic),
    })
}

/// Detaches the program from the interfaces whose index is meant. Returns the names of those.
///
/// # Errors
///
/// A pin can't be removed.
pub fn detach(pins: &Pins, is_meant: impl Fn(u32) -> bool) -> Result<Vec<String>, DataplaneError> {
    let mut detached = Vec::new();
    for pin in pins.links() {
        if is_meant(pin.index) {
            link::remove(&pin.path)
                .map_err(DataplaneError::system(pin.path.display().to_string()))?;
            detached.push(pin.name);
        }
    }
    Ok(detached)
}

impl ModeChoice {
    const fn mode(self) -> Option<Mode> {
        match self {
            Self::Auto => None,
            Self::Native => Some(Mode::Native),
            Self::Generic => Some(Mode::Generic),
        }
    }
}

/// Puts the program behind the pinned link.
///
/// # Errors
///
/// It is no link, or its interface is gone, or somebody has detached it.
fn adopt(program: &mut Xdp, pin: &LinkPin) -> Result<(), ProgramError> {
    let link = FdLink::from(PinnedLink::from_pin(&pin.path).map_err(broken)?);
    // The program holds the link from now on, beside the pin.
    program.attach_to_link(XdpLink::try_from(link).map_err(broken)?).map(drop)
}

fn broken(error: LinkError) -> ProgramError {
    ProgramError::IOError(std::io::Error::other(error))
}

fn attach_new(
    program: &mut Xdp,
    pins: &Pins,
    (index, name): (u32, &str),
    mode: Mode,
) -> Result<PinnedLink, ProgramError> {
    let id = program.attach_to_if_index(index, mode.flags())?;
    let link: FdLink = program.take_link(id)?.try_into().map_err(broken)?;
    link.pin(pins.new_link(index, name))
        .map_err(|error| ProgramError::IOError(std::io::Error::other(error)))
}

/// Why the kernel refused, and what to change, in an operator's words.
fn cause(error: &ProgramError, interface: &str, mode: Mode) -> String {
    let advice = || {
        format!(
            "check the MTU of {interface} (about 3500 at most), LRO (`ethtool -K {interface} lro off \
             rx-gro-hw off`) and number of queues (`ethtool -L {interface}`)"
        )
    };
    let io_error = match error {
        ProgramError::SyscallError(error) => &error.io_error,
        ProgramError::IOError(error) => error,
        // Also what a driver itself says, by netlink.
        error if mode == Mode::Native => return format!("{error}; {}", advice()),
        error => return error.to_string(),
    };
    match io_error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => format!(
            "another XDP program is attached; see `ip link show {interface}`, and remove it with its \
             own tool (another lb's, of other pins: `lb detach --pin-path PATH`) or `ip link set dev \
             {interface} xdp off`"
        ),
        Some(libc::EPERM | libc::EACCES) => {
            "permission denied; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
                .to_owned()
        }
        Some(libc::EOPNOTSUPP | NOT_SUPPORTED) if mode == Mode::Native => format!(
            "the driver has no native XDP, or not while it merges segments: try `ethtool -K \
             {interface} lro off rx-gro-hw off`"
        ),
        Some(libc::ERANGE) if mode == Mode::Native => format!(
            "native XDP takes no MTU as large as it is here (on a veth, at its other end): about 3500 \
             is the most, `ip link set {interface} mtu 3498`"
        ),
        Some(libc::ENOSPC | libc::ENOMEM) if mode == Mode::Native => format!(
            "native XDP wants more queues: `ethtool -L {interface}` sets them (on a veth, as many to \
             receive as its other end has to send)"
        ),
        Some(libc::EINVAL) if mode == Mode::Native => format!(
            "the driver refuses native XDP as the interface is set up: {}; see also `dmesg`",
            advice()
        ),
        _ => io_error.to_string(),
    }
}

/// `ENOTSUPP` of the kernel's linux/errno.h, which some drivers let out.
const NOT_SUPPORTED: i32 = 524;
