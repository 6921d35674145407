//! Which files may be touched: by Landlock, in Linux since 5.13 (commit 265885daf3e5).

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus,
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
pub(super) fn confine(writable: &[PathBuf], readable: &[PathBuf]) -> Result<(), ConfineError> {
    restrict(writable, readable).map_err(|error| ConfineError::System {
        what: "Landlock".to_owned(),
        source: std::io::Error::other(error),
    })
}

fn restrict(writable: &[PathBuf], readable: &[PathBuf]) -> Result<(), RulesetError> {
    let read = AccessFs::from_read(NEWEST) & !AccessFs::Execute;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .create()?;
    let readable = readable.iter().map(PathBuf::as_path).chain(READ.map(Path::new));
    let writable = writable.iter().map(PathBuf::as_path).chain(WRITTEN.map(Path::new));
    // With a directory of its own, the controller may remove it.
    let parents: Vec<PathBuf> =
        writable.clone().filter_map(|path| path.parent().map(Path::to_path_buf)).collect();
    let rules = readable
        .map(|path| (path, read))
        .chain(parents.iter().map(|path| (path.as_path(), AccessFs::RemoveDir.into())))
        .chain(writable.map(|path| (path, AccessFs::from_all(NEWEST) & !AccessFs::Execute)));
    for (path, access) in rules {
        // What isn't there can't be allowed, and needn't.
        let Ok(file) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
    }
    let status = ruleset.restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::info!("this kernel has no Landlock: access to files isn't restricted further");
    }
    Ok(())
}
