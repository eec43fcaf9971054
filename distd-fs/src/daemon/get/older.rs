//! Other releases that the directory's files may be of.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use distd_core::limits::TREE_DEPTH_MAX;
use distd_core::manifest::{Catalog, EntryKind, Release};
use distd_core::unit::{BlockRange, ByteRange};

use super::GetError;
use super::content::extents;
use super::known::Known;
use super::place::Place;
use super::survey::Survey;
use super::tree::{Tree, joined};
use crate::daemon::jobs::Progress;
use crate::daemon::prefetch::bring;
use crate::fs::merged;
use crate::target::fetch_release;

/// Releases that are looked at.
const OLDER_MAX: usize = 8;

/// Releases, the likeliest first: those before the wanted one on its track, the newest of them first, then
/// all others, the newest first.
pub(super) struct Older<'a> {
    tree: Tree<'a>,
    /// Whether each is one before the wanted one.
    records: VecDeque<(bool, ByteRange)>,
}

impl<'a> Older<'a> {
    /// Those that the newest head lists.
    pub(super) fn list(tree: Tree<'a>, wanted: &Release) -> Result<Self, GetError> {
        let head = tree.swarm.head_news().trusted.map(|trusted| trusted.placed.head.catalog);
        let catalog = match head {
            Some(range) => Catalog::decode(&tree.read(range, b"")?)
                .map_err(|source| GetError::Damaged { path: Vec::new(), source })?,
            None => Catalog::default(),
        };
        let is_wanted = |track: &str, version: &str| {
            (track, version) == (wanted.track.as_str(), wanted.version.as_str())
        };
        let at = catalog.items.iter().position(|item| is_wanted(&item.track, &item.version));
        let mut items: Vec<_> = catalog.items.into_iter().enumerate().collect();
        items.retain(|(i, item)| Some(*i) != at && !item.is_pruned());
        let is_before = |i: usize, track: &str| track == wanted.track && Some(i) < at;
        items.sort_by_key(|(i, item)| (!is_before(*i, &item.track), std::cmp::Reverse(*i)));
        let records = items.into_iter().take(OLDER_MAX);
        let records = records.map(|(i, item)| (is_before(i, &item.track), item.release)).collect();
        Ok(Self { tree, records })
    }

    /// Whether the next one was there before the wanted one, so that the wanted one's metadata may be had
    /// as what differs from it.
    pub(super) fn is_before(&self) -> bool {
        self.records.front().is_some_and(|(before, _)| *before)
    }

    /// The next release; nothing where there is none, or its record cannot be had.
    pub(super) fn next(&mut self) -> Option<Release> {
        let (_, record) = self.records.pop_front()?;
        let release = fetch_release(self.tree.swarm, record, Instant::now() + self.tree.timeout);
        release.inspect_err(|error| tracing::debug!(%error, "a release is left out")).ok()
    }
}

/// What a look at a release works with.
pub(super) struct Look<'a> {
    pub(super) tree: Tree<'a>,
    pub(super) root: &'a Place,
    pub(super) progress: &'a Progress,
    /// Directories that were looked at in other releases.
    pub(super) seen: HashSet<ByteRange>,
}

impl Look<'_> {
    /// Finds out which of the directory's files a release has. Not `whole`: only in directories below which
    /// there are such that are not known.
    pub(super) fn at(
        &mut self,
        release: &Release,
        whole: bool,
        survey: &mut Survey,
        known: &mut Known,
    ) -> Result<(), GetError> {
        let may_help = |survey: &Survey, known: &Known, path: &[u8]| {
            whole || survey.below(path).iter().any(|found| !known.explains(found))
        };
        let mut level = vec![(Vec::new(), release.root_directory().node)];
        let (mut nodes, mut sizes) = (Vec::new(), HashSet::new());
        for _ in 0..=TREE_DEPTH_MAX {
            level.retain(|(path, node)| may_help(survey, known, path) && self.seen.insert(*node));
            if level.is_empty() {
                break;
            }
            let blocks = level.iter().map(|(_, node)| node.blocks()).collect();
            self.bring(blocks)?;
            let mut below = Vec::new();
            for (path, node) in level {
                for entry in self.tree.directory(node, &path)?.entries() {
                    match &entry.kind {
                        EntryKind::File(file) => drop(sizes.insert(file.size)),
                        EntryKind::Directory(directory) => {
                            below.push((joined(&path, entry.name.as_bytes()), directory.node));
                        }
                        _ => {}
                    }
                }
                nodes.push((path, node));
            }
            level = below;
        }
        survey.read(self.root, &sizes, self.progress);
        for (path, node) in nodes {
            for entry in self.tree.directory(node, &path)?.entries() {
                let EntryKind::File(file) = &entry.kind else { continue };
                let path = joined(&path, entry.name.as_bytes());
                let extents = || extents(self.tree.swarm, file, &path, self.tree.timeout);
                known.take(survey, &path, file, extents)?;
            }
            if self.progress.is_stopped() {
                return Err(GetError::Stopped);
            }
        }
        Ok(())
    }

    fn bring(&self, blocks: Vec<BlockRange>) -> Result<(), GetError> {
        Ok(bring(self.tree.swarm, &merged(blocks), "metadata of other releases", self.progress)?)
    }
}
