//! Extended attributes: those of the release, and distd's own.
//!
//! `user.distd.*` answer `getxattr(2)` on every inode that has them but are not listed, so that
//! tools which copy or compare attributes (`rsync -X`, `cp -a`, `tar --xattrs`) see exactly the
//! attributes that were published.

use std::fmt::Write;
use std::sync::Arc;

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::EntryKind;
use distd_core::unit::BlockRange;

use crate::blocks::Blocks;
use crate::errno::Failure;
use crate::inode::Place;

use super::{ExtentMap, Found, Fs, Then};

const OWN: &[u8] = b"user.distd.";
/// Extents that `user.distd.uids` names; more end in `...` (a value is at most 64 KiB).
const UIDS_MAX: usize = 1000;

/// How much of something is in the local cache, in bytes of whole blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Local {
    /// Bytes that are local.
    pub local: u64,
    /// Bytes in all, holes left out.
    pub total: u64,
}

impl<B: Blocks> Fs<B> {
    /// The value of an extended attribute.
    pub fn xattr(self: &Arc<Self>, number: u64, name: &[u8], then: impl Then<Vec<u8>>) {
        // The kernel asks for these before writes and executions of every file; no entry may have
        // two attributes of one name, so that order does not matter.
        let (fs, name) = (Arc::clone(self), name.to_vec());
        self.find(number, move |found| {
            let found = match found {
                Ok(found) => found,
                Err(failure) => return then(Err(failure)),
            };
            let Some(own) = name.strip_prefix(OWN) else {
                let value = found.entry().xattrs.iter().find(|xattr| xattr.name == name);
                return then(value.map(|x| x.value.clone()).ok_or(Failure::NoAttribute));
            };
            let EntryKind::File(file) = &found.entry().kind else {
                return then(fs.own_xattr(&found, own, None));
            };
            // `uids` and `local` need the extents, which may have to be fetched.
            let (own_fs, own) = (Arc::clone(&fs), own.to_vec());
            let (inode, file) = (found.inode.clone(), file.clone());
            fs.extents(&inode, &file, move |map| {
                then(map.and_then(|map| own_fs.own_xattr(&found, &own, Some(&map))));
            });
        });
    }

    /// The names of an inode's extended attributes, each ended by a NUL. `privileged` callers see
    /// `trusted.*`, as on other file systems.
    pub fn xattr_names(self: &Arc<Self>, number: u64, privileged: bool, then: impl Then<Vec<u8>>) {
        self.find(number, move |found| {
            then(found.map(|found| {
                let mut names = Vec::new();
                for xattr in &found.entry().xattrs {
                    if privileged || !xattr.name.starts_with(b"trusted.") {
                        names.extend(&xattr.name);
                        names.push(0);
                    }
                }
                names
            }));
        });
    }

    fn own_xattr(
        &self,
        found: &Found,
        name: &[u8],
        map: Option<&ExtentMap>,
    ) -> Result<Vec<u8>, Failure> {
        let release = &found.inode.view.release;
        let is_root = found.inode.place == Place::Root;
        let text = match (name, &found.entry().kind) {
            (b"uids", EntryKind::File(_)) => uids(map.ok_or(Failure::Damaged)?.data()),
            (b"local", EntryKind::File(_)) => {
                shown(self.local(map.ok_or(Failure::Damaged)?.data()))
            }
            (b"release", _) => format!("{}@{}", release.track, release.version),
            (b"version", _) => release.version.clone(),
            (b"track", _) => release.track.clone(),
            (b"origin", _) => found.inode.view.origin.to_string(),
            (b"blake3", EntryKind::File(file)) => {
                file.blake3.iter().fold(String::new(), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                })
            }
            (b"uids", EntryKind::Directory(directory)) => {
                uids(std::iter::once(directory.node.blocks()))
            }
            (b"local", EntryKind::Directory(_)) if is_root => {
                shown(self.local(release.metadata.iter().copied()))
            }
            _ => return Err(Failure::NoAttribute),
        };
        Ok(text.into_bytes())
    }

    /// How much of some blocks is local.
    pub fn local(&self, ranges: impl Iterator<Item = BlockRange>) -> Local {
        ranges.fold(Local::default(), |sum, range| Local {
            local: sum.local + self.blocks.held_blocks(range) * BLOCK_BYTES,
            total: sum.total + range.byte_len(),
        })
    }
}

fn shown(local: Local) -> String {
    format!("{}/{}", local.local, local.total)
}

/// Blocks as ranges of block numbers, `first-last`, and each range's uids can be told from them: the
/// uid of block b is 8b + 3.
fn uids(ranges: impl Iterator<Item = BlockRange>) -> String {
    let mut text = String::new();
    for (index, range) in ranges.enumerate() {
        let separator = if index == 0 { "" } else { "," };
        if index == UIDS_MAX {
            text.push_str(",...");
            break;
        }
        let (first, last) = (range.start.bin().uid(), (range.end().0 - 1) * 8 + 3);
        let _ = write!(text, "{separator}{first}-{last}");
    }
    text
}
