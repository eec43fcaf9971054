//! FUSE's side of the hidden superblock: one call into `hidden` or `reads` per operation.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    Request,
};

use crate::blocks::{Blocks, contained};

use super::hidden::{Hidden, Kind};

/// How long the kernel may keep names and attributes: neither ever changes.
const TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Largest request, in bytes.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Read-ahead requests that the kernel may have in flight.
const BACKGROUND_MAX: u16 = 128;

/// A hidden superblock's content as fuser wants it.
pub(super) struct Adapter<B>(pub(super) Arc<Hidden<B>>);

fn attributes(number: u64, kind: Kind) -> FileAttr {
    let (size, kind, perm, nlink) = match kind {
        Kind::Directory => (0, FileType::Directory, 0o500, 2),
        Kind::File(size) => (size, FileType::RegularFile, 0o400, 1),
    };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl<B: Blocks> Filesystem for Adapter<B> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_EXPLICIT_INVAL_DATA] {
            // One by one: a set with one bit that the kernel lacks would be refused as a whole.
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel lacks {flag:?}");
            }
        }
        // The nearest value that the kernel can is as good.
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.0.lookup(parent.0, name.as_bytes()) {
            Some((number, kind)) => reply.entry(&TTL, &attributes(number, kind), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.kind(ino.0) {
            Some(kind) => reply.attr(&TTL, &attributes(ino.0, kind)),
            None => reply.error(Errno::ESTALE),
        }
    }

    // Opens are counted, and with them closes told: they say when a mount is gone.
    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.0.open(ino.0) {
            let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
            reply.opened(FileHandle(0), flags);
        } else {
            reply.error(Errno::ESTALE);
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        contained("release", || self.0.close(ino.0));
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        contained("read", || {
            let from = (ino.0, request.pid());
            self.0.read(from, offset, u64::from(size), move |bytes| match bytes {
                Ok(bytes) => reply.data(bytes),
                Err(failure) => reply.error(Errno::from_i32(failure.errno().raw_os_error())),
            });
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // "Never ask again": there is nothing to flush.
        reply.error(Errno::ENOSYS);
    }
}
