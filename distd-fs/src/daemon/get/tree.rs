//! The release's side: what it has, and what of it is to be fetched.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::limits::TREE_DEPTH_MAX;
use distd_core::manifest::{DirectoryNode, Entry, EntryKind, Release};
use distd_core::node::Swarm;
use distd_core::unit::{BlockRange, ByteRange};

use super::GetError;
use super::content;
use super::known::Known;
use super::survey::{FileNumber, Survey};

/// The release's tree.
#[derive(Clone, Copy)]
pub(super) struct Tree<'a> {
    pub(super) swarm: &'a Swarm,
    pub(super) timeout: Duration,
}

/// What is to be done.
#[derive(Default)]
pub(super) struct Plan {
    /// Blocks that are not local, in the order of writing.
    pub(super) missing: Vec<BlockRange>,
    /// Files with content that is wanted elsewhere, each with the blocks to be fetched if it cannot be read.
    pub(super) reused: Vec<(FileNumber, Vec<BlockRange>)>,
    /// Files that stay what and where they are.
    pub(super) staying: HashSet<FileNumber>,
    /// Files in whose place something else is wanted.
    pub(super) replaced: HashSet<FileNumber>,
    /// The release's directories.
    pub(super) nodes: HashSet<ByteRange>,
    /// Bytes to be written.
    pub(super) bytes: u64,
}

impl Tree<'_> {
    pub(super) fn directory(
        &self,
        range: ByteRange,
        path: &[u8],
    ) -> Result<DirectoryNode, GetError> {
        DirectoryNode::decode(&self.read(range, path)?)
            .map_err(|source| GetError::Damaged { path: path.to_vec(), source })
    }

    /// Reads metadata.
    pub(super) fn read(&self, range: ByteRange, path: &[u8]) -> Result<Bytes, GetError> {
        let deadline = Instant::now() + self.timeout;
        let metadata = |source| GetError::Metadata { path: path.to_vec(), source };
        crate::blocks::read_bytes(self.swarm, range, deadline).map_err(metadata)
    }

    /// Calls `take` with every entry and its path, in the order of writing.
    fn visit(
        &self,
        release: &Release,
        mut take: impl FnMut(&[u8], &Entry) -> Result<(), GetError>,
    ) -> Result<(), GetError> {
        // Directories that are open, each with where it goes on: what is below an entry comes before the next.
        let root = self.directory(release.root_directory().node, b"")?;
        let mut stack = vec![(Vec::new(), root, 0)];
        while let Some((path, node, next)) = stack.last_mut() {
            let Some(entry) = node.entries().get(*next) else {
                stack.pop();
                continue;
            };
            *next += 1;
            let path = joined(path, entry.name.as_bytes());
            take(&path, entry)?;
            if let EntryKind::Directory(directory) = &entry.kind {
                let below = self.directory(directory.node, &path)?;
                if stack.len() > TREE_DEPTH_MAX {
                    return Err(GetError::Depth);
                }
                stack.push((path, below, 0));
            }
        }
        Ok(())
    }

    /// The lengths of the release's files.
    pub(super) fn sizes(&self, release: &Release) -> Result<HashSet<u64>, GetError> {
        let mut sizes = HashSet::new();
        self.visit(release, |_, entry| {
            if let EntryKind::File(file) = &entry.kind {
                sizes.insert(file.size);
            }
            Ok(())
        })?;
        Ok(sizes)
    }

    /// What is to be done, and what of the directory the release has.
    pub(super) fn plan(
        &self,
        release: &Release,
        survey: &Survey,
        known: &mut Known,
    ) -> Result<Plan, GetError> {
        let (mut plan, mut links) = (Plan::default(), HashSet::new());
        plan.nodes.insert(release.root_directory().node);
        self.visit(release, |path, entry| {
            let here = survey.number_of(path);
            plan.replaced.extend(here);
            let file = match &entry.kind {
                EntryKind::File(file) => file,
                EntryKind::Directory(directory) => {
                    plan.nodes.insert(directory.node);
                    return Ok(());
                }
                _ => return Ok(()),
            };
            let extents = || content::extents(self.swarm, file, path, self.timeout);
            known.take(survey, path, file, extents)?;
            let digest = here.and_then(|number| survey.at(number)?.digest);
            if let Some(number) = here.filter(|_| digest == Some(file.blake3)) {
                // Another name of an inode, too: to put it aside would give the inode one more name.
                plan.replaced.remove(&number);
                plan.staying.insert(number);
                links.extend(entry.link.map(|link| link.id));
                return Ok(());
            }
            if entry.link.is_some_and(|link| !links.insert(link.id)) {
                return Ok(());
            }
            plan.bytes += file.size;
            let held = |range: &BlockRange| self.swarm.held_blocks(*range) == range.count;
            let extents = extents()?;
            let missing = extents.data().filter(|range| !held(range));
            match survey.with(&file.blake3) {
                Some(number) => plan.reused.push((number, missing.collect())),
                None => plan.missing.extend(missing),
            }
            Ok(())
        })?;
        Ok(plan)
    }
}

pub(super) fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
