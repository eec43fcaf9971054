//! What of the directory is known to be content of the log, and where in the log that lies.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use distd_core::manifest::{Extent, Extents, File};
use distd_core::node::Seeds;
use distd_core::unit::BlockRange;

use super::GetError;
use super::shelf::Shelf;
use super::survey::{Digest, FileNumber, Found, Survey};

/// Extents that are remembered of other content under files' paths, 16 bytes each.
const NEAR_EXTENTS_MAX: usize = 1 << 20;

/// What is known of the directory's files.
pub(super) struct Known {
    /// Where they lie.
    pub(super) shelf: Arc<Shelf>,
    /// Their blocks.
    pub(super) seeds: Arc<Seeds>,
    /// Content that a release has.
    digests: HashSet<Digest>,
    /// Files of which there are seeds.
    pub(super) used: BTreeSet<FileNumber>,
    /// Files under whose path a release has other content, and where that lies.
    near: Vec<(FileNumber, Extents)>,
    near_extents: usize,
}

impl Known {
    pub(super) fn new(shelf: Shelf) -> Self {
        let shelf = Arc::new(shelf);
        let seeds = Arc::new(Seeds::new(Arc::clone(&shelf) as _));
        let (digests, used) = (HashSet::new(), BTreeSet::new());
        Self { shelf, seeds, digests, used, near: Vec::new(), near_extents: 0 }
    }

    /// Takes note of what a release has under a path.
    pub(super) fn take(
        &mut self,
        survey: &Survey,
        path: &[u8],
        file: &File,
        extents: impl FnOnce() -> Result<Extents, GetError>,
    ) -> Result<(), GetError> {
        if file.size == 0 {
            return Ok(());
        }
        if let Some(number) = survey.with(&file.blake3) {
            self.digests.insert(file.blake3);
            let mut at = 0;
            for extent in extents()?.iter() {
                if let Extent::Data(blocks) = extent {
                    self.add(blocks, number, at);
                }
                at += extent.blocks();
            }
        } else if let Some(number) = survey.number_of(path)
            && self.near_extents < NEAR_EXTENTS_MAX
        {
            let extents = extents()?;
            self.near_extents += extents.len();
            self.near.push((number, extents));
        }
        Ok(())
    }

    /// Takes note of blocks that a file has from its block `at` on.
    pub(super) fn add(&mut self, blocks: BlockRange, number: FileNumber, at: u64) {
        if self.seeds.add(blocks, number, at) {
            self.used.insert(number);
        }
    }

    /// Whether all of a file is known.
    pub(super) fn explains(&self, found: &Found) -> bool {
        found.size() == 0 || found.digest.is_some_and(|digest| self.digests.contains(&digest))
    }

    /// The files that no release has.
    pub(super) fn unexplained<'a>(
        &'a self,
        survey: &'a Survey,
    ) -> impl Iterator<Item = (FileNumber, &'a Found)> {
        survey.files().filter(|(_, found)| !self.explains(found))
    }

    /// Where releases have other content under the paths of such files.
    pub(super) fn near<'a>(
        &'a self,
        survey: &'a Survey,
    ) -> impl Iterator<Item = (FileNumber, BlockRange)> {
        let near = self
            .near
            .iter()
            .filter(|(number, _)| survey.at(*number).is_some_and(|found| !self.explains(found)));
        near.flat_map(|(number, extents)| extents.data().map(|blocks| (*number, blocks)))
    }
}
