//! Giving up what the controller doesn't need once it has started: another user's identity, capabilities, files
//! and system calls. All of it holds for the calling thread and those that it starts from then on.

mod files;
mod system_calls;
mod tree;

use std::{
    ffi::CString,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sys::prctl,
    unistd::{self, Gid, Uid, User},
};

/// What the controller keeps: maps and programs; interfaces, XDP and routes; pointer arithmetic in programs (before
/// Linux 6.12); packets of its own, with which silent clients are woken and routers are heard.
const KEPT: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_RAW,
];
/// What it takes to make a network namespace.
const NAMESPACES: Capability = Capability::CAP_SYS_ADMIN;

/// Why something can't be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The user isn't known.
    #[error("user = \"{0}\": there is no such user; `useradd --system {0}` makes one")]
    NoUser(String),
    /// The kernel refuses.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ConfineError {
    fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::System { what, source: source.into() }
    }
}

/// The user that the controller runs as from now on.
#[derive(Clone, Debug)]
pub struct Identity {
    name: String,
    user: Uid,
    group: Gid,
}

impl Identity {
    /// Looks it up.
    ///
    /// # Errors
    ///
    /// There is no such user.
    pub fn find(name: &str) -> Result<Self, ConfineError> {
        let found = User::from_name(name).map_err(ConfineError::system(format!("user {name}")))?;
        let user = found.ok_or_else(|| ConfineError::NoUser(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), user: user.uid, group: user.gid })
    }

    /// Lets the user's group write to a directory and to everything in it. They stay root's as well, who may lack the
    /// privileges to touch what is another's when the controller starts again.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn share(&self, path: &Path) -> Result<(), ConfineError> {
        tree::for_each(path, &mut |file| {
            if file.status.st_gid != self.group.as_raw() {
                file.chown(None, Some(self.group))?;
            }
            let mode = file.status.st_mode & 0o777;
            let shared = mode | if file.is_directory() { 0o770 } else { 0o660 };
            if shared == mode || file.status.st_uid == self.user.as_raw() {
                return Ok(());
            }
            file.chmod(shared)
        })
        .map_err(ConfineError::system(path.display().to_string()))
    }
}

/// Gives a directory and everything in it back to root alone, if this is root: it may have been another user's controller
/// that made them, or that they were shared with ([`Identity::share`]).
///
/// # Errors
///
/// The kernel refuses.
pub fn take_back(path: &Path) -> Result<(), ConfineError> {
    if !unistd::geteuid().is_root() {
        return Ok(());
    }
    let (root, its_group) = (Uid::from_raw(0), Gid::from_raw(0));
    let mut give = |file: &tree::File<'_>| {
        if file.status.st_uid == 0 && file.status.st_gid == 0 {
            return Ok(());
        }
        file.chown(Some(root), Some(its_group))?;
        file.chmod(file.status.st_mode & 0o755)
    };
    tree::for_each(path, &mut give).map_err(ConfineError::system(path.display().to_string()))
}

/// Becomes that user, if there is one and this is root, and gives up all capabilities but those that the controller
/// keeps, and that to make a network namespace, if it `makes_namespaces`.
///
/// # Errors
///
/// The kernel refuses.
pub fn become_user(
    identity: Option<&Identity>,
    makes_namespaces: bool,
) -> Result<(), ConfineError> {
    let identity = identity.filter(|_| unistd::geteuid().is_root());
    let kept = KEPT.into_iter().chain(makes_namespaces.then_some(NAMESPACES));
    let permitted = capabilities(CapSet::Permitted)?;
    let kept: CapsHashSet = kept.filter(|kept| permitted.contains(kept)).collect();
    // Whoever mayn't do this has a bounding set that is somebody else's business.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in capabilities(CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(refused("capabilities"))?;
        }
    }
    if let Some(Identity { name, user, group }) = identity {
        let c_name = CString::new(name.as_str()).map_err(ConfineError::system("user"))?;
        prctl::set_keepcaps(true)
            .and_then(|()| unistd::initgroups(&c_name, *group))
            .and_then(|()| unistd::setresgid(*group, *group, *group))
            .and_then(|()| unistd::setresuid(*user, *user, *user))
            .map_err(ConfineError::system(format!("becoming user {name}")))?;
    }
    keep(&kept)
}

/// Gives up what isn't needed once everything is set up: to make network namespaces, to get more privileges than
/// there are, to touch other files than those that are named, and system calls that the controller doesn't do.
///
/// `writable` are the directories that it writes to, `emptied` those that it may remove directories from, and
/// `readable` files and directories that it reads beside the usual ones.
///
/// # Errors
///
/// The kernel refuses. One that doesn't know Landlock refuses nothing.
pub fn confine(
    writable: &[PathBuf],
    emptied: &[PathBuf],
    readable: &[PathBuf],
) -> Result<(), ConfineError> {
    let mut kept = capabilities(CapSet::Permitted)?;
    kept.remove(&NAMESPACES);
    keep(&kept)?;
    prctl::set_no_new_privs().map_err(ConfineError::system("no_new_privs"))?;
    files::confine(writable, emptied, readable)?;
    system_calls::confine()
}

/// Keeps those capabilities and no others.
fn keep(kept: &CapsHashSet) -> Result<(), ConfineError> {
    let none = CapsHashSet::new();
    for (set, kept) in
        [(CapSet::Inheritable, &none), (CapSet::Effective, kept), (CapSet::Permitted, kept)]
    {
        caps::set(None, set, kept).map_err(refused("capabilities"))?;
    }
    match caps::clear(None, CapSet::Ambient) {
        Ok(()) => Ok(()),
        // Linux before 4.3 has none.
        Err(error) => Err(refused("ambient capabilities")(error)),
    }
}

fn capabilities(set: CapSet) -> Result<CapsHashSet, ConfineError> {
    caps::read(None, set).map_err(refused("capabilities"))
}

fn refused(what: &'static str) -> impl FnOnce(caps::errors::CapsError) -> ConfineError {
    move |error| ConfineError::System {
        what: what.to_owned(),
        source: io::Error::new(ErrorKind::PermissionDenied, error.to_string()),
    }
}
