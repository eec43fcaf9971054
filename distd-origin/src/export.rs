//! `export-erofs`: a release as one EROFS image that needs nothing else.
//!
//! ```text
//! FILE   | metadata | content of each file, in the tree's order, equal files once |
//! ```
//!
//! The bytes depend on the tree alone, not on where in the log it lies. The image is written beside FILE
//! and takes its name when it is whole.

use std::borrow::Cow;
use std::collections::{HashMap, hash_map};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::{self, EntryKind, Extents};
use distd_core::store::{OriginLog, ReadError};
use distd_core::unit::{BlockRange, ByteRange, HumanBytes};
use distd_erofs::{Content, Entry, Extent, File, Inode, Kind, Plan, PlanError, Tree, Unfit};
use serde::Serialize;

use crate::history::{History, HistoryError, read_directory, read_extents, read_release};
use crate::image::{attributes, link, xattrs};
use crate::partial::Partial;
use crate::scan::TreePath;

/// Blocks that are read at once.
const PIECE_BLOCKS: u64 = 256;
/// Longest image, in blocks before its content: what the format can address.
const BLOCKS_MAX: u64 = u32::MAX as u64;
/// Zeros are written, rather than left out, in a file of which they are at most one block in so many: what
/// is one run is read faster, and needs no map.
const HOLES_PART: u64 = 8;

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No such release, or it cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The tree cannot be an image.
    #[error("EROFS cannot express this release: '{path}': {why}; nothing was written")]
    Unfit {
        /// Of which entry.
        path: TreePath,
        /// Why.
        why: Unfit,
    },
    /// The file cannot be written.
    #[error("cannot write '{}': {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<ReadError> for ExportError {
    fn from(error: ReadError) -> Self {
        Self::History(error.into())
    }
}

/// What was exported.
#[derive(Debug, Serialize)]
pub struct ExportReport {
    /// The release's track.
    pub track: String,
    /// Its version.
    pub version: String,
    /// The image.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Of these, directories, inodes and names.
    pub metadata_bytes: u64,
}

impl ExportReport {
    /// In words.
    pub fn text(&self) -> String {
        let Self { track, version, file, bytes, metadata_bytes } = self;
        let (human, metadata) = (HumanBytes(*bytes), HumanBytes(*metadata_bytes));
        format!(
            "exported {track}@{version} to {file}: {bytes} bytes ({human}, {metadata} of them metadata)\n"
        )
    }
}

/// Writes a release as an image. `progress` is told bytes done, and to do.
pub fn export(
    log: &OriginLog,
    wanted: &str,
    file: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<ExportReport, ExportError> {
    let history = History::read(log)?;
    let release = read_release(log, history.find(wanted)?.release)?;
    let (tree, sources) = LogTree::new(log, &release.root)?;
    let count = tree.blocks;
    // Where the content begins is known when the rest is planned, and the plan does not depend on it.
    let draft = plan(&tree, Content::Inside { first: 0, count })?;
    let first = draft.blocks();
    drop(draft);
    let plan = plan(&tree, Content::Inside { first, count })?;
    let (bytes, metadata_bytes) = ((first + count) * BLOCK_BYTES, first * BLOCK_BYTES);
    let mut out = Out::create(file)?;
    progress(0, bytes);
    plan.write(|blocks| out.write(blocks))?;
    let mut done = metadata_bytes;
    let mut buffer = Vec::new();
    for extent in sources.iter().flat_map(Extents::iter) {
        done += copy(log, extent, &mut buffer, &mut out, |more| progress(done + more, bytes))?;
    }
    out.finish()?;
    let (track, version) = (release.track, release.version);
    let file = file.to_string_lossy().into_owned();
    Ok(ExportReport { track, version, file, bytes, metadata_bytes })
}

fn plan<'t, 'a>(
    tree: &'t LogTree<'a>,
    content: Content,
) -> Result<Plan<'t, LogTree<'a>>, ExportError> {
    Plan::new(tree, content, BLOCKS_MAX).map_err(|error| match error {
        PlanError::Tree(error) => error.into(),
        PlanError::Unfit { path, why } => ExportError::Unfit { path: TreePath(path), why },
    })
}

/// Copies one extent; its bytes.
fn copy(
    log: &OriginLog,
    extent: manifest::Extent,
    buffer: &mut Vec<u8>,
    out: &mut Out,
    mut progress: impl FnMut(u64),
) -> Result<u64, ExportError> {
    let total = extent.blocks();
    for at in (0..total).step_by(PIECE_BLOCKS as usize) {
        let count = PIECE_BLOCKS.min(total - at);
        buffer.clear();
        buffer.resize((count * BLOCK_BYTES) as usize, 0);
        if let manifest::Extent::Data(run) = extent {
            let start = distd_core::unit::BlockIndex(run.start.0 + at);
            log.read_blocks(BlockRange::new(start, count), buffer)?;
        }
        out.write(buffer)?;
        progress((at + count) * BLOCK_BYTES);
    }
    Ok(total * BLOCK_BYTES)
}

/// A published tree, with places in the image for its files' content.
struct LogTree<'a> {
    log: &'a OriginLog,
    root: &'a manifest::Entry,
    /// By the content's BLAKE3 and size: its first block.
    starts: HashMap<([u8; 32], u64), u64>,
    /// Blocks of all content.
    blocks: u64,
}

/// What of a file's extents goes into an image: all of them, or all but holes.
fn stored(extents: &Extents) -> Extents {
    let keeps_holes = keeps_holes(extents);
    extents.iter().filter(|e| keeps_holes || matches!(e, manifest::Extent::Data(_))).collect()
}

/// Whether a file's holes are written as zeros.
fn keeps_holes(extents: &Extents) -> bool {
    (extents.blocks() - extents.data_blocks()) * HOLES_PART <= extents.data_blocks()
}

impl Tree for LogTree<'_> {
    type Directory = ByteRange;
    type Error = HistoryError;

    fn root(&self) -> Inode<'_, ByteRange> {
        // Its kind was checked when the release was decoded, and it has no content.
        self.inode(self.root).unwrap_or_else(|_| unreachable!("a directory has no content"))
    }

    fn entries(&self, directory: &ByteRange) -> Result<Vec<Entry<'_, ByteRange>>, HistoryError> {
        let node = read_directory(self.log, *directory)?;
        let entry = |entry: &manifest::Entry| {
            let name = Cow::Owned(entry.name.as_bytes().to_vec());
            Ok(Entry { name, inode: self.inode(entry)? })
        };
        node.entries().iter().map(entry).collect()
    }
}

impl<'a> LogTree<'a> {
    /// Gives each file's content its place: in the tree's order, equal content once. Gives what is to be
    /// copied, too, in this order.
    fn new(
        log: &'a OriginLog,
        root: &'a manifest::Entry,
    ) -> Result<(Self, Vec<Extents>), HistoryError> {
        let mut tree = Self { log, root, starts: HashMap::new(), blocks: 0 };
        let mut sources = Vec::new();
        let mut pending = vec![root.clone()];
        while let Some(entry) = pending.pop() {
            match &entry.kind {
                EntryKind::Directory(directory) => {
                    let node = read_directory(log, directory.node)?;
                    pending.extend(node.entries().iter().rev().cloned());
                }
                EntryKind::File(file) => {
                    let key = (file.blake3, file.size);
                    if let hash_map::Entry::Vacant(vacant) = tree.starts.entry(key) {
                        vacant.insert(tree.blocks);
                        let stored = stored(&read_extents(log, file)?);
                        tree.blocks += stored.blocks();
                        sources.push(stored);
                    }
                }
                _ => {}
            }
        }
        Ok((tree, sources))
    }

    fn inode(&self, entry: &manifest::Entry) -> Result<Inode<'static, ByteRange>, HistoryError> {
        let kind = match &entry.kind {
            EntryKind::File(file) => {
                let size = file.size;
                Kind::File(File { size, extents: self.place_of(file)? })
            }
            EntryKind::Directory(directory) => Kind::Directory(directory.node),
            EntryKind::Symlink(target) => Kind::Symlink(Cow::Owned(target.clone())),
            EntryKind::CharDevice(d) => Kind::CharDevice { major: d.major, minor: d.minor },
            EntryKind::BlockDevice(d) => Kind::BlockDevice { major: d.major, minor: d.minor },
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Socket => Kind::Socket,
        };
        Ok(Inode {
            attributes: attributes(entry.mode, (entry.uid, entry.gid), entry.mtime),
            xattrs: xattrs(&entry.xattrs),
            link: link(entry.link),
            kind,
        })
    }

    /// Where a file's blocks go in the image.
    fn place_of(&self, file: &manifest::File) -> Result<Vec<Extent>, HistoryError> {
        let in_log = read_extents(self.log, file)?;
        let mut start = self.starts.get(&(file.blake3, file.size)).copied().unwrap_or_default();
        if keeps_holes(&in_log) {
            let count = in_log.blocks();
            return Ok(if count == 0 { Vec::new() } else { vec![Extent::Data { start, count }] });
        }
        let mut extents: Vec<Extent> = Vec::new();
        for extent in in_log.iter() {
            let count = extent.blocks();
            match (extents.last_mut(), extent) {
                (_, manifest::Extent::Hole(_)) => {
                    extents.push(Extent::Hole(count));
                    continue;
                }
                // In the image the file's data is one run.
                (Some(Extent::Data { count: last, .. }), _) => *last += count,
                _ => extents.push(Extent::Data { start, count }),
            }
            start += count;
        }
        Ok(extents)
    }
}

/// The image's file.
struct Out {
    file: BufWriter<fs::File>,
    partial: Partial,
    path: PathBuf,
}

impl Out {
    fn create(path: &Path) -> Result<Self, ExportError> {
        let failed = |source| ExportError::Write { path: path.into(), source };
        let (partial, file) = Partial::create(path).map_err(failed)?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { file, partial, path: path.into() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        let failed = |source| ExportError::Write { path: self.path.clone(), source };
        self.file.write_all(bytes).map_err(failed)
    }

    fn finish(self) -> Result<(), ExportError> {
        let Self { file, partial, path } = self;
        let finish = || {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            partial.finish()
        };
        finish().map_err(|source| ExportError::Write { path, source })
    }
}
