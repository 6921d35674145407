//! Changing owners and modes of everything in a directory that others may write to: no link is followed, also if it is put
//! there meanwhile.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::{
    dir::Dir,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat},
    unistd::{Gid, Uid, fchownat},
};

/// Something in a directory.
pub(super) struct File<'a> {
    directory: BorrowedFd<'a>,
    name: &'a CStr,
    /// What it is, and whose.
    pub(super) status: FileStat,
}

impl File<'_> {
    /// Whether it is a directory.
    pub(super) fn is_directory(&self) -> bool {
        self.is(SFlag::S_IFDIR)
    }

    fn is(&self, kind: SFlag) -> bool {
        SFlag::from_bits_truncate(self.status.st_mode) & SFlag::S_IFMT == kind
    }

    /// Gives it to others.
    pub(super) fn chown(&self, user: Option<Uid>, group: Option<Gid>) -> io::Result<()> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(self.directory, self.name, user, group, flags)?)
    }

    /// Sets its mode.
    pub(super) fn chmod(&self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        Ok(fchmodat(self.directory, self.name, mode, FchmodatFlags::NoFollowSymlink)?)
    }
}

/// Does something with everything in a directory but links, and then with itself.
pub(super) fn for_each(
    path: &Path,
    work: &mut impl FnMut(&File<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    visit(AT_FDCWD, &name, work)
}

fn visit(
    directory: BorrowedFd<'_>,
    name: &CStr,
    work: &mut impl FnMut(&File<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let status = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let file = File { directory, name, status };
    if file.is(SFlag::S_IFLNK) {
        return Ok(());
    }
    if file.is_directory() {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened: OwnedFd = openat(directory, name, flags, Mode::empty())?;
        let mut entries = Dir::from_fd(opened.try_clone()?)?;
        for entry in entries.iter() {
            let entry = entry?;
            if ![c".", c".."].contains(&entry.file_name()) {
                visit(opened.as_fd(), entry.file_name(), work)?;
            }
        }
    }
    work(&file)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    #[test]
    fn no_link_is_followed() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let (shared, secret) = (directory.path().join("shared"), directory.path().join("secret"));
        fs::create_dir_all(shared.join("deep"))?;
        fs::create_dir(&secret)?;
        let files = [shared.join("deep/file"), secret.join("file")];
        for file in &files {
            fs::write(file, "")?;
            fs::set_permissions(file, Permissions::from_mode(0o600))?;
        }
        symlink(&files[1], shared.join("link"))?;
        symlink(&secret, shared.join("deep/directory"))?;
        let mut seen = 0;
        for_each(&shared, &mut |file| {
            seen += 1;
            file.chmod(if file.is_directory() { 0o770 } else { 0o660 })
        })?;
        let modes =
            files.map(|file| fs::metadata(file).map(|status| status.permissions().mode() & 0o777));
        assert_eq!(seen, 3);
        assert_eq!(modes.map(Result::ok), [Some(0o660), Some(0o600)]);
        Ok(())
    }
}
