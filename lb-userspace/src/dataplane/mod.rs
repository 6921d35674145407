//! The loaded program and its pinned maps: everything that talks to the kernel's BPF side.

mod attach;
mod batch;
mod clock;
mod detour;
mod link;
mod load;
mod mapped;
mod maps;
mod pins;
mod rings;
mod traces;

pub use aya::programs::xdp::XdpLink;

pub use attach::{Attached, Mode, ModeChoice, attach, attach_until_dropped, detach};
pub use clock::{beat_shift, now, seconds};
pub use detour::{Detour, Detours, Route};
pub use load::{Capacity, Loaded, OBJECT, load};
pub use maps::{FamilyMaps, Maps, nat_source_words};
pub use pins::Pins;
pub use rings::{PortMemory, PortSets, RingMemory};
pub use traces::{Shortcuts, TraceMemory};

/// Why something with the program or its maps went wrong.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The program or a map can't be made.
    #[error("the kernel refuses the XDP program: {0}")]
    Load(String),
    /// The pinned maps aren't there.
    #[error("no data plane at {0}: nothing is pinned there; start one with `lb run`")]
    NotLoaded(std::path::PathBuf),
    /// No BPF file system where the pins are to be.
    #[error(
        "{0} is not on a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`, or set \
         pin_path (`ip netns exec` hides the mount, `nsenter --net=FILE` doesn't)"
    )]
    NoBpfFileSystem(std::path::PathBuf),
    /// The pins are of another version.
    #[error(
        "the pins at {path} are of layout {found}, and this lb needs {wanted}; `lb detach` removes \
         them, and ends the connections that go through them"
    )]
    OtherLayout {
        /// Where.
        path: std::path::PathBuf,
        /// The version found.
        found: String,
        /// The version needed.
        wanted: String,
    },
    /// The user may not.
    #[error(
        "{what}: permission denied; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Permission {
        /// What was tried.
        what: String,
    },
    /// A map's pin is gone.
    #[error("the pin of map {0} is gone; restart the controller, which makes the map anew")]
    PinGone(&'static str),
    /// Something else is in a map's place.
    #[error("{path}: no map is pinned there; remove what is, and restart the controller")]
    NoMap {
        /// The pin.
        path: std::path::PathBuf,
    },
    /// A map couldn't be read or written.
    #[error("map {name}: {}", with_causes(source))]
    Map {
        /// The map's name.
        name: &'static str,
        /// Why.
        #[source]
        source: aya::maps::MapError,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The program can't be attached.
    #[error("{interface}: {why}")]
    Attach {
        /// The interface's name.
        interface: String,
        /// Why.
        why: String,
    },
}

/// An error and what led to it: libraries tell each by itself.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl DataplaneError {
    pub(crate) fn map(name: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { name, source }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
