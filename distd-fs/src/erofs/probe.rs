//! Whether this kernel can be trusted with the erofs view.
//!
//! Some kernels turn a read that fails below a file-backed EROFS into zeros, and some have an EROFS without
//! ACLs, which would let others in than the release says. So a scratch log is mounted like a release, in no
//! place, with files as releases have them: one run, chunks, a single block. A part of each is there, and
//! reads of the rest fail. What its reader gets decides. A good verdict is kept until the machine starts anew.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::ReleaseImage;
use distd_core::unit::{BlockIndex, BlockRange};
use distd_erofs::{Attributes, Content, Entry, Extent, File, Inode, Kind, Plan, Tree, Xattr};
use rustix::fs::{Mode, OFlags, fgetxattr, openat};
use rustix::io::{Errno, pread};

use crate::blocks::{Blocks, Done, Purpose, Unavailable};

use super::attach::{self, AttachError, Flags, Order, Place, Refused, refused};
use super::hidden::Hidden;
use super::record;
use super::superblock::Superblock;
use super::view::Refusal;

/// Name of the good verdict in the runtime directory.
const VERDICT: &str = "erofs-trusted";
/// How long the scratch log's reads wait: there is nobody to wait for.
const TIMEOUT: Duration = Duration::from_secs(5);
const BLOCK: usize = BLOCK_BYTES as usize;
/// The scratch log: the image, blocks that can be read, blocks that cannot.
const DATA: u64 = 16;
const MISSING: u64 = 32;
const END: u64 = 64;
/// Where the log begins among the addresses of all devices.
const LOG_ADDRESS: u64 = 256;
/// What the good blocks are full of.
const FILL: u8 = 0xa5;
/// The files: name, runs of blocks. Of each the blocks below `MISSING` come first.
const FILES: [(&str, &[(u64, u64)]); 4] = [
    ("chunks", &[(DATA, 8), (40, 8)]),
    ("good", &[(DATA + 1, 1)]),
    ("missing", &[(MISSING + 1, 1)]),
    ("run", &[(DATA, 32)]),
];
/// An ACL as `getxattr(2)` gives it: version 2; owner and a user may read, nobody else anything.
const ACL_NAME: &str = "system.posix_acl_access";
const ACL: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 4, 0, 255, 255, 255, 255, //
    2, 0, 4, 0, 1, 0, 0, 0, //
    4, 0, 0, 0, 255, 255, 255, 255, //
    16, 0, 4, 0, 255, 255, 255, 255, //
    32, 0, 0, 0, 255, 255, 255, 255, //
];

/// Finds out, unless it is known.
pub(crate) fn verdict() -> Result<(), Refusal> {
    let known = record::runtime_directory().join(VERDICT);
    if known.exists() {
        return Ok(());
    }
    let begin = Instant::now();
    let scratch = Scratch { image: image() };
    let blocks = BlockRange::new(BlockIndex(0), scratch.image.len() as u64 / BLOCK_BYTES);
    let hidden = Hidden::new(Arc::new(scratch), TIMEOUT, "a scratch log".into());
    let mut hidden = hidden.map_err(Refusal::Superblock)?;
    hidden.journal = None;
    let superblock = Superblock::open(Arc::new(hidden)).map_err(Refusal::Superblock)?;
    let superblock = Arc::new(superblock);
    let image = ReleaseImage { blocks, device_block: LOG_ADDRESS, devices: 1 };
    let source = "distd-probe";
    let room = superblock.hidden.enter(source, &image)?;
    let flags = Flags { suid: false, dev: false, exec: false };
    let place = Place::Tried;
    let (name, source) = (room.name.clone(), source.to_owned());
    let order = Order { room: name, source, devices: image.devices, flags, place };
    let tried = attach::run(&superblock, &order, TIMEOUT);
    superblock.hidden.leave(&room);
    tried.map_err(|error| match error {
        AttachError::Refused(refused) => Refusal::Kernel(refused),
        error => Refusal::Attach(error),
    })?;
    tracing::debug!("the erofs view was probed in {} ms", begin.elapsed().as_millis());
    if let Err(error) = record::make_runtime_directory().and_then(|()| fs::write(&known, "")) {
        tracing::debug!(%error, "the next mount probes again");
    }
    Ok(())
}

/// The helper's side: reads the files of a scratch mount.
pub(super) fn examine(mount: BorrowedFd<'_>) -> Result<(), Refused> {
    for (name, runs) in FILES {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(mount, name, flags, Mode::empty());
        let file = file.map_err(refused("EROFS over FUSE does not work here"))?;
        let blocks: u64 = runs.iter().map(|(_, count)| count).sum();
        let held = runs.iter().map(|(start, count)| held(*start, *count)).sum();
        examine_file(file.as_fd(), held, blocks)?;
        let mut acl = [0; 2 * ACL.len()];
        let len = fgetxattr(&file, ACL_NAME, &mut acl[..]);
        let len = len.map_err(refused("this kernel's EROFS knows no ACLs"))?;
        if len != ACL.len() {
            return Err(refused("this kernel's EROFS shows other ACLs")(Errno::ILSEQ));
        }
    }
    Ok(())
}

/// Of a file of so many `blocks` the first ones can be read, and the others not.
fn examine_file(file: BorrowedFd<'_>, held: u64, blocks: u64) -> Result<(), Refused> {
    let wrong = refused("this kernel's EROFS shows zeros where a read fails");
    let mut buffer = vec![0; blocks as usize * BLOCK];
    // From the middle on, and from the beginning: as one request and by the kernel's read-ahead.
    for at in [held, held + 1, blocks - 1] {
        if (held..blocks).contains(&at)
            && pread(file, &mut buffer[..BLOCK], at * BLOCK_BYTES).is_ok()
        {
            return Err(wrong(Errno::ILSEQ));
        }
    }
    if held == 0 {
        return Ok(());
    }
    let count = pread(file, &mut buffer[..], 0);
    let count = count.map_err(refused("EROFS over FUSE cannot be read here"))?;
    let most = held as usize * BLOCK;
    let right = (1..=most).contains(&count) && buffer[..count].iter().all(|b| *b == FILL);
    if right { Ok(()) } else { Err(wrong(Errno::ILSEQ)) }
}

/// How many blocks of a run can be read.
fn held(start: u64, count: u64) -> u64 {
    (start + count).min(MISSING).saturating_sub(start)
}

/// The scratch log.
struct Scratch {
    image: Vec<u8>,
}

impl Blocks for Scratch {
    fn read_now(&self, blocks: BlockRange, out: &mut [u8]) -> Result<bool, Unavailable> {
        if self.held_blocks(blocks) < blocks.count {
            return Ok(false);
        }
        for (block, out) in blocks.iter().zip(out.chunks_mut(BLOCK)) {
            let at = block.0 as usize * BLOCK;
            match self.image.get(at..at + BLOCK) {
                Some(content) => out.copy_from_slice(content),
                None => out.fill(FILL),
            }
        }
        Ok(true)
    }

    fn read(&self, _: BlockRange, _: Purpose, _: Instant, done: Done) {
        done(Err::<Bytes, _>(Unavailable("as it should".into())));
    }

    fn prefetch(&self, _: Vec<BlockRange>, _: Purpose) {}

    fn held_blocks(&self, blocks: BlockRange) -> u64 {
        held(blocks.start.0, blocks.count)
    }

    fn fetched_bytes(&self) -> u64 {
        0
    }

    fn end(&self) -> BlockIndex {
        BlockIndex(END)
    }
}

/// The files as a tree.
struct Files;

impl Tree for Files {
    type Directory = ();
    type Error = Infallible;

    fn root(&self) -> Inode<'_, ()> {
        let attributes = Attributes { mode: 0o500, ..Attributes::default() };
        Inode { attributes, xattrs: Vec::new(), link: None, kind: Kind::Directory(()) }
    }

    fn entries(&self, (): &()) -> Result<Vec<Entry<'_, ()>>, Infallible> {
        let entry = |(name, runs): (&'static str, &[(u64, u64)])| {
            let data = |(start, count): &(u64, u64)| Extent::Data { start: *start, count: *count };
            let extents: Vec<Extent> = runs.iter().map(data).collect();
            let size = extents.iter().map(|extent| extent.blocks()).sum::<u64>() * BLOCK_BYTES;
            let (name, acl) = (name.as_bytes().into(), ACL_NAME.as_bytes().into());
            let acl = Xattr { name: acl, value: Cow::Borrowed(&ACL[..]) };
            let attributes = Attributes { mode: 0o440, ..Attributes::default() };
            let kind = Kind::File(File { size, extents });
            Entry { name, inode: Inode { attributes, xattrs: vec![acl], link: None, kind } }
        };
        Ok(FILES.into_iter().map(entry).collect())
    }
}

/// The image of the files, as of any release.
fn image() -> Vec<u8> {
    let content = Content::Devices { device_block: LOG_ADDRESS };
    let mut image = Vec::new();
    let plan = Plan::new(&Files, content, DATA)
        .unwrap_or_else(|_| unreachable!("a tree of constants, which the test below plans"));
    let Ok(()) = plan.write::<Infallible>(|blocks| {
        image.extend_from_slice(blocks);
        Ok(())
    });
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_image_has_files_of_all_layouts() {
        let bytes = image();
        assert!(bytes.len() as u64 <= DATA * BLOCK_BYTES);
        let image = distd_erofs::Image::open(&bytes[..]).expect("opens");
        let blocks = bytes.len() as u64 / BLOCK_BYTES;
        image.check_metadata(blocks, LOG_ADDRESS, 1).expect("as a release's");
        let mut layouts = Vec::new();
        image
            .walk::<distd_erofs::ReadError>(|path, inode| {
                layouts.push((String::from_utf8_lossy(path).into_owned(), inode.layout));
                Ok(())
            })
            .expect("walked");
        use distd_erofs::Layout::{Chunks, Plain};
        let run = Chunks { bits: 5, indexes: true };
        let expected = [
            ("chunks".to_owned(), Chunks { bits: 3, indexes: true }),
            ("good".to_owned(), Plain { block: (LOG_ADDRESS + DATA + 1) as u32 }),
            ("missing".to_owned(), Plain { block: (LOG_ADDRESS + MISSING + 1) as u32 }),
            ("run".to_owned(), run),
        ];
        assert_eq!(layouts, expected);
    }
}
