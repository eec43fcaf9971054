//! EROFS images: made of trees of files, and read again.
//!
//! The format is that of Linux (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h), with blocks
//! of 4 KiB. Two kinds of images are made: one without file content, which names blocks on other
//! devices (what distd publishes with each release), and one that holds everything. Both are written
//! from front to back, and depend on nothing but the tree.
//!
//! ```text
//! block 0      superblock, device table
//! block 1 on   root | directory's blocks | inodes of what is in it || next directory | ...
//! behind       inodes with maps of chunks
//! behind       extended attributes that several inodes share
//! ```
//!
//! Images that anybody made are read by [`Image`], bounded.
//!
//! No logs, no network, no clock: trees come in by [`Tree`], bytes go out in order.

mod chunks;
mod dirents;
mod format;
mod plan;
mod read;
mod tree;
mod write;
mod xattrs;

pub use plan::{Content, Plan, PlanError, Unfit};
pub use read::{DirEntry, Image, ImageInode, ImageSuper, Layout, Physical, ReadError, Source};
pub use tree::{Attributes, Entry, Extent, File, Inode, Kind, Link, Tree, Xattr};

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = format::BLOCK as u64;

/// Devices that an image can have.
pub const DEVICES_MAX: u16 = format::DEVICES_MAX as u16;
