//! What an origin has published: its newest head, the heads before, the catalog, the releases.

use distd_core::head::{Head, HeadError, PlacedHead};
use distd_core::limits::{BLOCK_BYTES, MUNRO_BYTES, TREE_DEPTH_MAX};
use distd_core::manifest::{
    Catalog, CatalogItem, Content, DirectoryNode, Entry, EntryKind, ExtentList, Extents, File,
    NodeError, Release,
};
use distd_core::store::{OriginLog, ReadError};
use distd_core::unit::{BlockRange, ByteRange, MunroIndex};

/// Why the history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The log.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A block that should be a head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// Bytes that should be a metadata node.
    #[error("bytes {}..{} of the log: {source}", range.offset, range.offset + range.len)]
    Node {
        /// Where they lie.
        range: ByteRange,
        /// What is wrong.
        source: NodeError,
    },
    /// Deeper than any tree.
    #[error("the directories below the node at byte {} are deeper than {TREE_DEPTH_MAX}", node.offset)]
    Depth {
        /// The node that is too deep.
        node: ByteRange,
    },
    /// No such release.
    #[error(
        "there is no release '{wanted}': expected VERSION or TRACK@VERSION as 'distd-origin list' shows them"
    )]
    NoSuchRelease {
        /// What was asked for.
        wanted: String,
    },
    /// A release that is gone.
    #[error(
        "the release {track}@{version} was pruned: its content is gone; publish it again under another version"
    )]
    Pruned {
        /// Its track.
        track: String,
        /// Its version.
        version: String,
    },
    /// The version is on several tracks.
    #[error("'{wanted}' is on several tracks: say which, {}", tracks.iter().map(|track| format!("{track}@{wanted}")).collect::<Vec<_>>().join(" or "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// The tracks that have it.
        tracks: Vec<String>,
    },
    /// No such track.
    #[error("there is no track '{wanted}': {}", if known.is_empty() { "nothing was published yet".into() } else { format!("there are {}", known.join(", ")) })]
    NoSuchTrack {
        /// What was asked for.
        wanted: String,
        /// The tracks that there are.
        known: Vec<String>,
    },
}

/// All that was published, as of one head.
#[derive(Debug)]
pub struct History {
    /// The newest head; `None` before the first publish.
    pub head: Option<PlacedHead>,
    /// All releases.
    pub catalog: Catalog,
}

impl History {
    /// Reads the newest head and its catalog.
    pub fn read(log: &OriginLog) -> Result<Self, HistoryError> {
        let Some(commit) = log.committed() else {
            return Ok(Self { head: None, catalog: Catalog::default() });
        };
        let head = read_head(log, commit.munros)?;
        let range = head.head.catalog;
        let catalog = Catalog::decode(&log.read_bytes(range)?)
            .map_err(|source| HistoryError::Node { range, source })?;
        Ok(Self { head: Some(head), catalog })
    }

    /// The catalog's item for `VERSION`, `TRACK@VERSION` or `TRACK` (the release it stands at).
    pub fn find(&self, wanted: &str) -> Result<&CatalogItem, HistoryError> {
        let item = self.find_listed(wanted)?;
        if item.is_pruned() {
            let (track, version) = (item.track.clone(), item.version.clone());
            return Err(HistoryError::Pruned { track, version });
        }
        Ok(item)
    }

    fn find_listed(&self, wanted: &str) -> Result<&CatalogItem, HistoryError> {
        let missing = || HistoryError::NoSuchRelease { wanted: wanted.into() };
        if let Some((track, version)) = wanted.split_once('@') {
            return self.catalog.find(track, version).ok_or_else(missing);
        }
        let items: Vec<_> =
            self.catalog.items.iter().filter(|item| item.version == wanted).collect();
        let retained: Vec<_> = items.iter().copied().filter(|item| !item.is_pruned()).collect();
        match (items.as_slice(), retained.as_slice()) {
            ([item], _) | (_, [item]) => Ok(item),
            ([], _) => {
                let head = self.head.as_ref().map(|head| &head.head);
                let track = head.and_then(|head| head.track(wanted)).ok_or_else(missing)?;
                self.catalog.find(&track.name, &track.version).ok_or_else(missing)
            }
            (several, _) => Err(HistoryError::Ambiguous {
                wanted: wanted.into(),
                tracks: several.iter().map(|item| item.track.clone()).collect(),
            }),
        }
    }

    /// The names of all tracks.
    pub fn tracks(&self) -> Vec<String> {
        let head = self.head.iter().flat_map(|head| &head.head.tracks);
        head.map(|track| track.name.clone()).collect()
    }

    /// That track's release record.
    pub fn current(&self, log: &OriginLog, track: &str) -> Result<Option<Release>, HistoryError> {
        let track = self.head.as_ref().and_then(|head| head.head.track(track));
        track.map(|track| read_release(log, track.release)).transpose()
    }

    /// The error for a track that does not exist.
    pub fn no_such_track(&self, wanted: &str) -> HistoryError {
        HistoryError::NoSuchTrack { wanted: wanted.into(), known: self.tracks() }
    }
}

/// Reads the head of the log when it had so many munros.
pub fn read_head(log: &OriginLog, munros: u64) -> Result<PlacedHead, HistoryError> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    log.read_blocks(BlockRange::new(Head::block(munros), 1), &mut block)?;
    let munro = MunroIndex(munros.saturating_sub(1));
    Ok(PlacedHead::decode(munro, log.munro_hash(munro)?, &block)?)
}

/// Reads a release record.
pub fn read_release(log: &OriginLog, range: ByteRange) -> Result<Release, HistoryError> {
    Release::decode(&log.read_bytes(range)?).map_err(|source| HistoryError::Node { range, source })
}

/// Reads a directory node.
pub fn read_directory(log: &OriginLog, range: ByteRange) -> Result<DirectoryNode, HistoryError> {
    DirectoryNode::decode(&log.read_bytes(range)?)
        .map_err(|source| HistoryError::Node { range, source })
}

/// Reads a file's extents, wherever they are kept.
pub fn read_extents(log: &OriginLog, file: &File) -> Result<Extents, HistoryError> {
    match &file.content {
        Content::Extents(extents) => Ok(extents.clone()),
        Content::List(range) => ExtentList::decode(&log.read_bytes(*range)?, file.size)
            .map_err(|source| HistoryError::Node { range: *range, source }),
    }
}

/// What a walk over a published tree meets.
pub enum Met<'a> {
    /// A directory's node, before its entries.
    Node(ByteRange),
    /// An entry of the directory with that path (empty for the root).
    Entry(&'a [u8], &'a Entry),
}

/// Walks over the tree below a directory node, each directory's entries in order. `visit` may
/// answer `false` to a node to leave that subtree out.
pub fn walk<E: From<HistoryError>>(
    log: &OriginLog,
    root: ByteRange,
    mut visit: impl FnMut(Met<'_>) -> Result<bool, E>,
) -> Result<(), E> {
    let mut pending = vec![(root, Vec::new(), 0)];
    while let Some((node, path, depth)) = pending.pop() {
        if depth > TREE_DEPTH_MAX {
            return Err(HistoryError::Depth { node }.into());
        }
        if !visit(Met::Node(node))? {
            continue;
        }
        let directory = read_directory(log, node)?;
        let first = pending.len();
        for entry in directory.entries() {
            visit(Met::Entry(&path, entry))?;
            if let EntryKind::Directory(child) = entry.kind {
                pending.push((child.node, join(&path, entry.name.as_bytes()), depth + 1));
            }
        }
        pending[first..].reverse();
    }
    Ok(())
}

/// `directory/name`, with an empty directory for the root.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend(name);
    path
}

/// The blocks of all files of a release, sorted and merged.
pub fn file_blocks(log: &OriginLog, release: &Release) -> Result<Vec<BlockRange>, HistoryError> {
    let mut ranges = Vec::new();
    walk(log, release.root_directory().node, |met| {
        if let Met::Entry(_, Entry { kind: EntryKind::File(file), .. }) = met {
            ranges.extend(read_extents(log, file)?.data());
        }
        Ok::<_, HistoryError>(true)
    })?;
    Ok(merge(ranges))
}

/// Ranges, sorted and merged.
pub fn merge(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.sort_unstable();
    let mut merged: Vec<BlockRange> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if range.start <= last.end() => {
                last.count = last.end().max(range.end()).0 - last.start.0;
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// How many blocks of `wanted` are not in `held`; both sorted and merged.
pub fn missing_blocks(wanted: &[BlockRange], held: &[BlockRange]) -> u64 {
    let mut held = held.iter().peekable();
    let mut missing = 0;
    for range in wanted {
        missing += range.count;
        while let Some(have) = held.next_if(|have| have.end() <= range.end()) {
            missing -= range.intersection(*have).count;
        }
        if let Some(have) = held.peek() {
            missing -= range.intersection(**have).count;
        }
    }
    missing
}

/// The first byte of a munro's successor: what lies before it was there at `munros` munros.
pub const fn end_of(munros: u64) -> u64 {
    munros * MUNRO_BYTES
}
