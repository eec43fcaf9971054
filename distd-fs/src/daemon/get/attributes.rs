//! Modes, owners, times and extended attributes: comparing and setting them.

use std::collections::HashSet;

use distd_core::manifest::{Entry, EntryKind, Timestamp, Xattr};
use rustix::fs::{
    AtFlags, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, XattrFlags, chmodat, chownat, lgetxattr,
    llistxattr, lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::place::Place;

/// XATTR_LIST_MAX and XATTR_SIZE_MAX of the VFS.
const XATTR_BYTES: usize = 1 << 16;

/// Sets attributes as far as the caller's rights go.
pub(super) struct Attributes {
    /// Owners can be given away, and attributes of the `trusted` and `security` kinds be set.
    privileged: bool,
    list: Vec<u8>,
    value: Vec<u8>,
    /// Attributes that the file system or the caller's rights do not allow.
    pub(super) left_out: u64,
}

impl Attributes {
    pub(super) fn new() -> Self {
        let privileged = rustix::process::geteuid().is_root();
        let buffer = || vec![0; XATTR_BYTES];
        Self { privileged, list: buffer(), value: buffer(), left_out: 0 }
    }

    /// Whether the caller may make device nodes.
    pub(super) fn privileged(&self) -> bool {
        self.privileged
    }

    /// Whether what lies at a name has the entry's attributes already.
    pub(super) fn match_entry(
        &mut self,
        place: &Place,
        name: &[u8],
        stat: &Stat,
        entry: &Entry,
    ) -> Result<bool, Errno> {
        let is_link = matches!(entry.kind, EntryKind::Symlink(_));
        let mode = is_link || (stat.st_mode & 0o7777) as u16 == entry.mode;
        let owner = !self.privileged || (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid);
        let time = stat.st_mtime == entry.mtime.seconds
            && u32::try_from(stat.st_mtime_nsec) == Ok(entry.mtime.nanoseconds);
        if !(mode && owner && time) {
            return Ok(false);
        }
        let found = self.xattrs(&place.path_of(name))?;
        let wanted: HashSet<&Xattr> =
            entry.xattrs.iter().filter(|xattr| self.may_set(&xattr.name)).collect();
        Ok(found.iter().collect::<HashSet<_>>() == wanted)
    }

    /// Gives what lies at a name the entry's attributes. It must not be a symbolic link that somebody
    /// else put there.
    pub(super) fn set(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<(), Errno> {
        let is_link = matches!(entry.kind, EntryKind::Symlink(_));
        if self.privileged {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(place, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        self.set_xattrs(&place.path_of(name), entry)?;
        set_time(place, name, entry.mtime)?;
        if !is_link {
            // Last: a change of owner takes set-id bits away, an access ACL changes the group's bits, and
            // without rights of his own the owner could not do the rest.
            chmodat(place, name, Mode::from_raw_mode(u32::from(entry.mode)), AtFlags::empty())?;
        }
        Ok(())
    }

    fn set_xattrs(&mut self, path: &[u8], entry: &Entry) -> Result<(), Errno> {
        let found = self.xattrs(path)?;
        for xattr in &found {
            if !entry.xattrs.iter().any(|wanted| wanted.name == xattr.name) {
                match lremovexattr(path, &xattr.name[..]) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for wanted in &entry.xattrs {
            if found.contains(wanted) {
                continue;
            }
            if !self.may_set(&wanted.name) {
                self.left_out += 1;
                continue;
            }
            match lsetxattr(path, &wanted.name[..], &wanted.value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOTSUP | Errno::PERM) => self.left_out += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The attributes that are there, of those that this caller may set.
    fn xattrs(&mut self, path: &[u8]) -> Result<Vec<Xattr>, Errno> {
        let len = match llistxattr(path, &mut self.list) {
            Ok(len) => len,
            Err(Errno::NOTSUP) => 0,
            Err(error) => return Err(error),
        };
        let (list, mut found) = (self.list[..len].to_vec(), Vec::new());
        for name in list.split(|byte| *byte == 0) {
            if !self.may_set(name) {
                continue;
            }
            match lgetxattr(path, name, &mut self.value) {
                Ok(len) => {
                    found.push(Xattr { name: name.to_vec(), value: self.value[..len].to_vec() });
                }
                // It went meanwhile.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Attributes that are a release's affair: labels of a security module are the machine's own.
    fn may_set(&self, name: &[u8]) -> bool {
        let plain = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        let for_root = name.starts_with(b"trusted.") || name == b"security.capability";
        plain || (self.privileged && for_root)
    }
}

/// Sets the time of modification.
pub(super) fn set_time(place: &Place, name: &[u8], time: Timestamp) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) },
    };
    utimensat(place, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
