//! A release as a mount shows it.

use distd_core::keys::OriginId;
use distd_core::manifest::{Entry, Release};
use distd_core::unit::ByteRange;

/// A release on show. Which one it is never changes; a mount that follows its track takes another
/// view as its root, and open files keep theirs.
#[derive(Debug)]
pub struct View {
    /// Counts the views of a mount, so that no inode number ever means two things.
    pub generation: u32,
    /// Whose release it is.
    pub origin: OriginId,
    /// Where its record lies in the log.
    pub record: ByteRange,
    /// The release.
    pub release: Release,
}

impl View {
    /// The root directory's entry.
    pub fn root(&self) -> &Entry {
        &self.release.root
    }
}
