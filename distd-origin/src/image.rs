//! A release's EROFS metadata image: of which tree, and where in the log.
//!
//! The image names the places of the files' blocks in the log, so it is made when they are placed. It is a
//! function of the release's root (its attributes, and nodes that hold the rest), by which one that the
//! log holds already is found again.

use std::borrow::Cow;
use std::convert::Infallible;

use distd_core::limits::{DELTA_FRAME_LAYER, IMAGE_BLOCKS_MAX, IMAGE_DEVICES_MAX};
use distd_core::manifest::{self, DirectoryNode, Extents, HardLink, Release, Timestamp};
use distd_core::unit::{Bin, BlockIndex, BlockRange, ByteRange};
use distd_erofs::{Attributes, Content, Entry, Extent, File, Inode, Kind, Link, Xattr};

use crate::metadata::Tree;
use crate::scan::{DirectoryIndex, ScannedEntry, ScannedKind};

/// Where the log begins in the address space of every image: behind the longest.
pub(crate) const DEVICE_BLOCK: u64 = IMAGE_BLOCKS_MAX;
/// The files' content, as metadata images see it.
pub(crate) const LOG: Content = Content::Devices { device_block: DEVICE_BLOCK };
const _: () = assert!(IMAGE_DEVICES_MAX == distd_erofs::DEVICES_MAX);
/// How images are laid out: another number wherever the same tree becomes other bytes.
const LAYOUT: &[u8] = b"distd EROFS image 1";

/// The key by which the index knows the image of the tree with this root.
pub(crate) fn key(root: &manifest::Entry) -> Option<[u8; 32]> {
    let root = DirectoryNode::new(vec![root.clone()]).ok()?.encode();
    Some(*blake3::Hasher::new().update(LAYOUT).update(&root).finalize().as_bytes())
}

/// The key of a release's image.
pub(crate) fn key_of(release: &Release) -> Option<[u8; 32]> {
    key(&release.root)
}

/// The bytes of an image's blocks.
pub(crate) const fn bytes_of(blocks: BlockRange) -> ByteRange {
    ByteRange { offset: blocks.byte_offset(), len: blocks.byte_len() }
}

/// The first block from `block` on at which an image may begin or other content behind one: no frame
/// holds both, so that who does not need the image does not fetch any of it.
pub(crate) const fn boundary(block: BlockIndex) -> BlockIndex {
    let blocks = Bin::new(DELTA_FRAME_LAYER, 0).byte_len() / distd_core::limits::BLOCK_BYTES;
    BlockIndex(block.0.next_multiple_of(blocks))
}

impl distd_erofs::Tree for Tree<'_> {
    type Directory = DirectoryIndex;
    type Error = Infallible;

    fn root(&self) -> Inode<'_, DirectoryIndex> {
        self.inode(&self.scan.root)
    }

    fn entries(
        &self,
        directory: &DirectoryIndex,
    ) -> Result<Vec<Entry<'_, DirectoryIndex>>, Infallible> {
        let entries = self.scan.directory(*directory).entries.iter();
        let entry = |entry: &'_ ScannedEntry| Entry {
            name: Cow::Owned(entry.name.as_bytes().to_vec()),
            inode: self.inode(entry),
        };
        Ok(entries.map(entry).collect())
    }
}

impl Tree<'_> {
    fn inode(&self, entry: &ScannedEntry) -> Inode<'_, DirectoryIndex> {
        let kind = match &entry.kind {
            ScannedKind::File(file) => Kind::File(File {
                size: entry.attributes.size,
                extents: extents(&self.contents[file.0 as usize].extents),
            }),
            ScannedKind::Directory(directory) => Kind::Directory(*directory),
            ScannedKind::Symlink(target) => Kind::Symlink(Cow::Owned(target.to_vec())),
            ScannedKind::CharDevice(device) => {
                Kind::CharDevice { major: device.major, minor: device.minor }
            }
            ScannedKind::BlockDevice(device) => {
                Kind::BlockDevice { major: device.major, minor: device.minor }
            }
            ScannedKind::Fifo => Kind::Fifo,
            ScannedKind::Socket => Kind::Socket,
        };
        let scanned = &entry.attributes;
        let attributes = attributes(scanned.mode, (scanned.uid, scanned.gid), scanned.mtime);
        Inode { attributes, xattrs: xattrs(&entry.xattrs), link: link(entry.link), kind }
    }
}

/// Owner, permissions and time.
pub(crate) const fn attributes(mode: u16, (uid, gid): (u32, u32), mtime: Timestamp) -> Attributes {
    let Timestamp { seconds, nanoseconds } = mtime;
    Attributes { mode, uid, gid, mtime_s: seconds, mtime_ns: nanoseconds }
}

/// Extended attributes.
pub(crate) fn xattrs(xattrs: &[manifest::Xattr]) -> Vec<Xattr<'static>> {
    let owned = |bytes: &Vec<u8>| Cow::Owned(bytes.clone());
    xattrs.iter().map(|x| Xattr { name: owned(&x.name), value: owned(&x.value) }).collect()
}

/// Several names.
pub(crate) fn link(link: Option<HardLink>) -> Option<Link> {
    link.map(|HardLink { id, count }| Link { id, count })
}

/// Where a file's blocks lie in the log.
fn extents(extents: &Extents) -> Vec<Extent> {
    let extent = |extent| match extent {
        manifest::Extent::Data(run) => Extent::Data { start: run.start.0, count: run.count },
        manifest::Extent::Hole(count) => Extent::Hole(count),
    };
    extents.iter().map(extent).collect()
}
