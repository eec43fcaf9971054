//! Extended attributes of an entry, symlinks included.

use std::os::fd::{AsRawFd, BorrowedFd};

use distd_core::limits::XATTR_BYTES_MAX;
use distd_core::manifest::Xattr;
use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

use super::{ScanError, TreePath};

/// XATTR_LIST_MAX and XATTR_SIZE_MAX of the VFS.
const LIST_BYTES: usize = 1 << 16;
const TRIES: usize = 8;

/// Reads the extended attributes of entries; holds the buffers between calls.
pub(super) struct XattrReader {
    list: Vec<u8>,
    value: Vec<u8>,
}

impl XattrReader {
    pub(super) fn new() -> Self {
        Self { list: vec![0; LIST_BYTES], value: vec![0; LIST_BYTES] }
    }

    /// The attributes of `name` in the open directory (of the directory itself where `name` is
    /// empty), sorted. `path` is for errors.
    pub(super) fn read(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &TreePath,
    ) -> Result<Vec<Xattr>, ScanError> {
        // The link in /proc leads to the very directory that is open, whatever became of its path;
        // the l* calls do not follow a symlink as the last component.
        let mut at = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        at.extend(if name.is_empty() { b"." } else { name });
        for _ in 0..TRIES {
            match self.read_once(&at, path) {
                // An attribute went or grew between the list and its value.
                Err(Errno::NODATA | Errno::RANGE) => {}
                Err(Errno::NOENT) => return Err(ScanError::Changed { path: path.clone() }),
                Err(errno) => {
                    return Err(ScanError::io("read the extended attributes of", path, errno));
                }
                Ok(read) => return read,
            }
        }
        Err(ScanError::Changed { path: path.clone() })
    }

    fn read_once(
        &mut self,
        at: &[u8],
        path: &TreePath,
    ) -> Result<Result<Vec<Xattr>, ScanError>, Errno> {
        let len = match llistxattr(at, &mut self.list) {
            Ok(len) => len,
            Err(Errno::NOTSUP) => 0,
            Err(errno) => return Err(errno),
        };
        let names = self.list[..len].split(|b| *b == 0).filter(|name| is_kept(name));
        let (mut xattrs, mut found) = (Vec::new(), 0);
        for name in names {
            let len = lgetxattr(at, name, &mut self.value)?;
            found += name.len() + len;
            xattrs.push(Xattr { name: name.to_vec(), value: self.value[..len].to_vec() });
        }
        if found > XATTR_BYTES_MAX {
            return Ok(Err(ScanError::Xattrs { path: path.clone(), found }));
        }
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Ok(xattrs))
    }
}

/// Which attributes belong to a release: all that a file system keeps, of `system.` only the ACLs
/// (others there describe the file system), and not those that a distd mount makes up.
fn is_kept(name: &[u8]) -> bool {
    !name.is_empty()
        && !name.starts_with(b"user.distd.")
        && (!name.starts_with(b"system.") || name.starts_with(b"system.posix_acl_"))
}
