//! The release's side: what it has, and what of it is to be fetched.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use distd_core::limits::TREE_DEPTH_MAX;
use distd_core::manifest::{DirectoryNode, Entry, EntryKind, Release};
use distd_core::node::Swarm;
use distd_core::unit::{BlockRange, ByteRange};

use super::GetError;
use super::content;
use super::survey::{Digest, Survey};

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
    /// Content that lies elsewhere in the directory.
    pub(super) reused: Vec<Digest>,
    /// Bytes to be written.
    pub(super) bytes: u64,
}

impl Tree<'_> {
    pub(super) fn directory(
        &self,
        range: ByteRange,
        path: &[u8],
    ) -> Result<DirectoryNode, GetError> {
        let deadline = Instant::now() + self.timeout;
        let metadata = |source| GetError::Metadata { path: path.to_vec(), source };
        let bytes = crate::blocks::read_bytes(self.swarm, range, deadline).map_err(metadata)?;
        DirectoryNode::decode(&bytes)
            .map_err(|source| GetError::Damaged { path: path.to_vec(), source })
    }

    /// Calls `take` with every entry and its path, in the order of writing.
    fn visit(
        &self,
        release: &Release,
        mut take: impl FnMut(&[u8], &Entry) -> Result<(), GetError>,
    ) -> Result<(), GetError> {
        let mut stack = vec![(Vec::new(), release.root_directory().node, 0)];
        while let Some((path, node, depth)) = stack.pop() {
            if depth > TREE_DEPTH_MAX {
                return Err(GetError::Depth);
            }
            let mut below = Vec::new();
            for entry in self.directory(node, &path)?.entries() {
                let path = joined(&path, entry.name.as_bytes());
                take(&path, entry)?;
                if let EntryKind::Directory(directory) = &entry.kind {
                    below.push((path, directory.node, depth + 1));
                }
            }
            stack.extend(below.into_iter().rev());
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

    pub(super) fn plan(&self, release: &Release, survey: &Survey) -> Result<Plan, GetError> {
        let (mut plan, mut links) = (Plan::default(), HashSet::new());
        self.visit(release, |path, entry| {
            let EntryKind::File(file) = &entry.kind else { return Ok(()) };
            let again = entry.link.is_some_and(|link| !links.insert(link.id));
            if again || survey.digest_then(path) == Some(file.blake3) {
                return Ok(());
            }
            plan.bytes += file.size;
            if survey.place_of(&file.blake3).is_some() {
                plan.reused.push(file.blake3);
                return Ok(());
            }
            let ranges = content::ranges(self.swarm, file, path, self.timeout)?;
            let held = |range: &BlockRange| self.swarm.held_blocks(*range) == range.count;
            plan.missing.extend(ranges.into_iter().filter(|range| !held(range)));
            Ok(())
        })?;
        Ok(plan)
    }
}

pub(super) fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
