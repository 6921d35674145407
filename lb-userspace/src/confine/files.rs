//! Which files may be touched: by Landlock, in Linux since 5.13 (commit 265885daf3e5).

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};

use super::ConfineError;

/// What is read while running: the system's configuration (names of hosts and users, certificates), libraries that the
/// C library loads late, and what the kernel says of itself and of this process.
const READ: [&str; 8] =
    ["/dev", "/etc", "/lib", "/lib64", "/proc", "/sys", "/usr/lib", "/usr/share"];
/// What is written that is no directory of the controller's own.
const WRITTEN: [&str; 1] = ["/dev/null"];

/// The newest interface that is made use of.
const NEWEST: ABI = ABI::V5;

/// Denies access to all other files.
pub(super) fn confine(
    writable: &[PathBuf],
    emptied: &[PathBuf],
    readable: &[PathBuf],
) -> Result<(), ConfineError> {
    restrict(writable, emptied, readable)
        .map_err(|source| ConfineError::System { what: "Landlock".to_owned(), source })
}

fn restrict(writable: &[PathBuf], emptied: &[PathBuf], readable: &[PathBuf]) -> io::Result<()> {
    let read = AccessFs::from_read(NEWEST) & !AccessFs::Execute;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let readable = readable.iter().map(PathBuf::as_path).chain(READ.map(Path::new));
    let writable = writable.iter().map(PathBuf::as_path).chain(WRITTEN.map(Path::new));
    let rules = readable
        .map(|path| (path, read))
        .chain(emptied.iter().map(|path| (path.as_path(), AccessFs::RemoveDir.into())))
        .chain(writable.map(|path| (path, AccessFs::from_all(NEWEST) & !AccessFs::Execute)));
    for (path, access) in rules {
        let file = match PathFd::new(path) {
            Ok(file) => file,
            Err(PathFdError::OpenCall { source, .. }) if source.kind() == ErrorKind::NotFound => {
                // What isn't there can't be allowed, and needn't.
                continue;
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        ruleset = ruleset.add_rule(PathBeneath::new(file, access)).map_err(io::Error::other)?;
    }
    let status = ruleset.restrict_self().map_err(io::Error::other)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::info!("this kernel has no Landlock: access to files isn't restricted further");
    }
    Ok(())
}
