//! The FUSE adapter: one call into `fs` per operation, and types turned round. No decisions here.
//!
//! Reply objects travel with the continuations; one that is dropped unanswered (a panic, a node that
//! leaves) answers EIO by itself.

mod listing;
mod stale;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use distd_core::manifest::Timestamp;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::blocks::{Blocks, contained};
use crate::errno::Failure;
use crate::fs::{Attributes, Fs, Kind, Seek};
use crate::inode::ROOT;
use listing::{fill, fill_plus, place};

pub use stale::{forget_directories, forget_stale};

/// How long the kernel may keep attributes and names: content is immutable, so for ever in effect.
const TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the kernel may believe that the root has no entry of a name: the root is what a mount
/// that follows its track exchanges.
const ROOT_ABSENT_TTL: Duration = Duration::from_secs(1);
/// Largest request, in bytes.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Read-ahead requests that the kernel may have in flight.
const BACKGROUND_MAX: u16 = 128;

/// A file system as fuser wants it.
pub struct Adapter<B> {
    fs: Arc<Fs<B>>,
    /// Whether the kernel checks POSIX ACLs: only together with the modes.
    check_acls: bool,
    no_open: bool,
    no_opendir: bool,
}

impl<B: Blocks> Adapter<B> {
    /// Adapts `fs`; `check_acls` where the kernel is to check permissions.
    pub fn new(fs: Arc<Fs<B>>, check_acls: bool) -> Self {
        Self { fs, check_acls, no_open: false, no_opendir: false }
    }
}

fn errno(failure: Failure) -> Errno {
    Errno::from_i32(failure.errno().raw_os_error())
}

fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    // A second that the system cannot express is shown as the epoch.
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(u64::from(time.nanoseconds))))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

fn file_attr(attributes: &Attributes) -> FileAttr {
    let time = system_time(attributes.mtime);
    FileAttr {
        ino: INodeNo(attributes.number),
        size: attributes.size,
        blocks: attributes.sectors,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attributes.kind),
        perm: attributes.mode,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.device,
        blksize: 4096,
        flags: 0,
    }
}

/// An entry with inode number 0: "no such name", to be remembered by the kernel.
fn absent() -> FileAttr {
    file_attr(&Attributes {
        number: 0,
        kind: Kind::File,
        mode: 0,
        links: 0,
        uid: 0,
        gid: 0,
        device: 0,
        size: 0,
        sectors: 0,
        mtime: Timestamp::default(),
    })
}

/// Answers a query for a variable-length value as `getxattr(2)` wants it.
fn reply_value(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, Failure>) {
    match value {
        Err(failure) => reply.error(errno(failure)),
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(errno(Failure::TooSmall)),
        Ok(value) => reply.data(&value),
    }
}

impl<B: Blocks> Filesystem for Adapter<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let mut flags = vec![
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // Always, not as the kernel sees fit: plain entries have no inode numbers to show.
            InitFlags::FUSE_DO_READDIRPLUS,
        ];
        if self.check_acls {
            flags.push(InitFlags::FUSE_POSIX_ACL);
        }
        for flag in flags {
            // One by one: a set with one bit that the kernel lacks would be refused as a whole.
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel lacks {flag:?}");
            }
        }
        self.no_open = config.add_capabilities(InitFlags::FUSE_NO_OPEN_SUPPORT).is_ok();
        self.no_opendir = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        // The nearest value that the kernel can is as good.
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (ttl, absent_ttl) = match (self.fs.may_remember(), parent.0) {
            (false, _) => (Duration::ZERO, Duration::ZERO),
            (true, ROOT) => (TTL, ROOT_ABSENT_TTL),
            (true, _) => (TTL, TTL),
        };
        contained("lookup", || {
            self.fs.lookup(parent.0, name.as_bytes(), move |found| match found {
                Ok(Some(attributes)) => reply.entry(&ttl, &file_attr(&attributes), Generation(0)),
                Ok(None) => reply.entry(&absent_ttl, &absent(), Generation(0)),
                Err(failure) => reply.error(errno(failure)),
            });
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        contained("forget", || self.fs.forget(ino.0, nlookup));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let ttl = if self.fs.may_remember() { TTL } else { Duration::ZERO };
        contained("getattr", || {
            self.fs.attributes(ino.0, move |attributes| match attributes {
                Ok(attributes) => reply.attr(&ttl, &file_attr(&attributes)),
                Err(failure) => reply.error(errno(failure)),
            });
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        contained("readlink", || {
            self.fs.target(ino.0, move |target| match target {
                Ok(target) => reply.data(&target),
                Err(failure) => reply.error(errno(failure)),
            });
        });
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            // "Never ask again": opens then cost no request, and keep the page cache.
            reply.error(Errno::ENOSYS);
        } else {
            let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
            reply.opened(FileHandle(0), flags);
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
            reply.opened(FileHandle(0), flags);
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        contained("read", || {
            self.fs.read(ino.0, offset, u64::from(size), move |bytes| match bytes {
                Ok(bytes) => reply.data(&bytes),
                Err(failure) => reply.error(errno(failure)),
            });
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let (generation, first) = place(offset);
        contained("readdir", || {
            self.fs.list(ino.0, generation, move |listing| match listing {
                Ok(listing) => {
                    fill(&mut reply, &listing, first);
                    reply.ok();
                }
                Err(failure) => reply.error(errno(failure)),
            });
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fs = Arc::clone(&self.fs);
        let (generation, first) = place(offset);
        let ttl = if self.fs.may_remember() { TTL } else { Duration::ZERO };
        contained("readdirplus", || {
            self.fs.list(ino.0, generation, move |listing| match listing {
                Ok(listing) => {
                    fill_plus(&fs, &mut reply, &listing, first, ttl);
                    reply.ok();
                }
                Err(failure) => reply.error(errno(failure)),
            });
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        contained("getxattr", || {
            let then = move |value| reply_value(reply, size, value);
            self.fs.xattr(ino.0, name.as_bytes(), then);
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        contained("listxattr", || {
            let then = move |names| reply_value(reply, size, names);
            self.fs.xattr_names(ino.0, request.uid() == 0, then);
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let volume = self.fs.volume();
        reply.statfs(volume.blocks, 0, 0, volume.files, 0, 4096, 255, 4096);
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let seek = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            // The kernel answers the others by itself.
            _ => return reply.error(errno(Failure::Invalid)),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(errno(Failure::NoOffset));
        };
        contained("lseek", || {
            self.fs.seek(ino.0, offset, seek, move |found| match found {
                Ok(offset) => reply.offset(offset as i64),
                Err(failure) => reply.error(errno(failure)),
            });
        });
    }

    // The mount is read-only, so that the kernel refuses what follows before it comes here. Where it
    // does not (a remount by hand), the answer is the same.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(Failure::ReadOnly));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // "Never ask again": there is nothing to flush.
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // "Never ask again": the kernel checks by the modes where anything is to be checked.
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests;
