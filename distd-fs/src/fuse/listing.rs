//! Directory listings as the kernel takes them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{FileAttr, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use crate::blocks::Blocks;
use crate::fs::{Fs, Listing};

use super::{absent, file_attr, file_type};

/// Bits of a listing's offset that count entries; the release that it is of is in those above, so that
/// a listing which began before a switch goes on in its own.
const ENTRY_BITS: u32 = 32;

/// What `d_ino` shows where an entry has no inode number yet (libfuse's FUSE_UNKNOWN_INO).
const UNKNOWN_NUMBER: u64 = 0xffff_ffff;

/// Where a listing goes on: the release that it began in (nothing at its beginning), and the number of
/// entries that the caller has.
pub(super) fn place(offset: u64) -> (Option<u32>, u64) {
    let generation = (offset > 0).then_some((offset >> ENTRY_BITS) as u32);
    (generation, offset & ((1 << ENTRY_BITS) - 1))
}

/// The offset after `entries` entries of a listing.
fn offset_after(listing: &Listing, entries: u64) -> u64 {
    (u64::from(listing.generation()) << ENTRY_BITS) | entries
}

/// Fills a directory reply with plain entries from the `first` on.
pub(super) fn fill(reply: &mut ReplyDirectory, listing: &Listing, first: u64) {
    let (own, parent) = (listing.inode.number, listing.inode.parent);
    for (at, number, name) in [(0, own, "."), (1, parent, "..")] {
        let next = offset_after(listing, at + 1);
        if first <= at && reply.add(INodeNo(number), next, FileType::Directory, name) {
            return;
        }
    }
    for (index, name, kind) in listing.entries(first.saturating_sub(2) as usize) {
        let (number, next) = (INodeNo(UNKNOWN_NUMBER), offset_after(listing, index as u64 + 3));
        if reply.add(number, next, file_type(kind), OsStr::from_bytes(name)) {
            return;
        }
    }
}

/// Fills a directory reply with entries and attributes that hold for `ttl`; an entry that no longer fits takes its
/// lookup back.
pub(super) fn fill_plus<B: Blocks>(
    fs: &Arc<Fs<B>>,
    reply: &mut ReplyDirectoryPlus,
    listing: &Listing,
    first: u64,
    ttl: Duration,
) {
    let dot = |number| FileAttr { ino: INodeNo(number), kind: FileType::Directory, ..absent() };
    let mut add = |number: u64, at: u64, name: &OsStr, ttl: &Duration, attr: &FileAttr| {
        reply.add(INodeNo(number), offset_after(listing, at), name, ttl, attr, Generation(0))
    };
    let (own, parent) = (listing.inode.number, listing.inode.parent);
    for (at, number, name) in [(0, own, "."), (1, parent, "..")] {
        // The kernel takes no attributes from these two.
        if first <= at && add(number, at + 1, OsStr::new(name), &Duration::ZERO, &dot(number)) {
            return;
        }
    }
    for (index, name, _) in listing.entries(first.saturating_sub(2) as usize) {
        // An entry without a number would not do: the C library takes it for a deleted one.
        let Some((attributes, lasts)) = fs.enter(listing, index) else { continue };
        let ttl = if lasts { ttl } else { Duration::ZERO };
        let (name, next) = (OsStr::from_bytes(name), index as u64 + 3);
        if add(attributes.number, next, name, &ttl, &file_attr(&attributes)) {
            fs.forget(attributes.number, 1);
            return;
        }
    }
}
