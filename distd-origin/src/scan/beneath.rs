//! Opening paths below a root, and nothing else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// Longest path given to the kernel at once; PATH_MAX is 4096.
const PATH_PIECE_BYTES_MAX: usize = 3072;
/// The kernel asks for another try when a rename somewhere raced the lookup (openat2(2)).
const TRIES: usize = 64;

/// The directory that is published, held open.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Opens the root directory; here symlinks are followed, the user named it.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty()).map(Self)
    }

    /// The root's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens a path below the root. No symlink is followed, no FIFO or device waited for.
    pub fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let through = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let (mut at, mut rest) = (None::<OwnedFd>, path);
        while rest.len() > PATH_PIECE_BYTES_MAX {
            let slash = rest[..PATH_PIECE_BYTES_MAX].iter().rposition(|b| *b == b'/');
            let (piece, after) = rest.split_at(slash.ok_or(Errno::NAMETOOLONG)?);
            at = Some(resolve(at.as_ref().map_or(self.fd(), AsFd::as_fd), piece, through)?);
            rest = &after[1..];
        }
        let rest = if rest.is_empty() { b"." } else { rest };
        resolve(at.as_ref().map_or(self.fd(), AsFd::as_fd), rest, flags)
    }
}

fn resolve(at: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..TRIES {
        match openat2(at, path, flags, Mode::empty(), beneath) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    openat2(at, path, flags, Mode::empty(), beneath)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_or_dotdot_never_leads_outside() {
        let dir = tempfile::tempdir().expect("a directory");
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("sub")).expect("made");
        std::fs::write(dir.path().join("secret"), "x").expect("made");
        std::fs::write(inside.join("sub/file"), "y").expect("made");
        std::os::unix::fs::symlink("/etc", inside.join("etc")).expect("made");
        std::os::unix::fs::symlink("sub", inside.join("alias")).expect("made");
        let root = Root::open(&inside).expect("there");
        assert!(root.open_beneath(b"sub/file", OFlags::RDONLY).is_ok());
        for path in [&b"../secret"[..], b"etc/passwd", b"alias/file", b"etc", b"/etc/passwd"] {
            assert!(root.open_beneath(path, OFlags::RDONLY).is_err(), "{}", path.escape_ascii());
        }
    }

    #[test]
    fn a_path_longer_than_path_max_opens() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = Root::open(dir.path()).expect("there");
        let mut path = Vec::new();
        for _ in 0..40 {
            let at = root.open_beneath(&path, OFlags::RDONLY | OFlags::DIRECTORY).expect("opens");
            let name = "n".repeat(200);
            rustix::fs::mkdirat(&at, &name, Mode::from(0o700)).expect("made");
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name.as_bytes());
        }
        assert!(path.len() > 4096);
        assert!(root.open_beneath(&path, OFlags::RDONLY | OFlags::DIRECTORY).is_ok());
    }
}
