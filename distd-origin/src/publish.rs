//! Publishing: a tree becomes a release, or nothing happens at all.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use distd_core::head::{LabelError, Section, Track, check_label};
use distd_core::limits::{BLOCK_BYTES, MESSAGE_BYTES_MAX, MUNRO_BYTES, RELEASES_MAX};
use distd_core::manifest::{Catalog, CatalogItem, Release, Timestamp, Totals};
use distd_core::store::{AppendError, Appender, OriginLog};
use distd_core::tree::BlockHash;
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, MunroIndex};
use serde::Serialize;

use crate::catch_up::{CatchUpError, catch_up};
use crate::content::{Piece, read_files};
use crate::dedup::{Blocks, FilePlan};
use crate::history::{History, HistoryError, file_blocks, merge, missing_blocks};
use crate::index::{Coverage, Epoch, Index, IndexError, Tables};
use crate::metadata::{Layout, LayoutError, Tree};
use crate::repo::{Repo, RepoError};
use crate::scan::{
    DirectoryIndex, FileIndex, Root, Scan, ScanError, ScannedKind, TreePath, check_directories,
    scan, split_file,
};
use crate::seal::{SealError, Statement, moved, now, seal};
use crate::stat_cache::{KnownContent, StatCache};

/// Examples that a warning names.
const EXAMPLES_MAX: usize = 3;
/// Buffered bytes of new metadata before they go to the log.
const METADATA_BUFFER_BYTES: usize = 1 << 20;

/// What to publish, and as what.
#[derive(Debug)]
pub struct PublishOptions<'a> {
    /// A directory, or one regular file.
    pub source: &'a Path,
    /// The track.
    pub track: &'a str,
    /// The version, new on its track.
    pub version: &'a str,
    /// What the publisher says about it.
    pub message: &'a str,
    /// Only find out what it would come to.
    pub dry_run: bool,
}

/// How a publish gets on.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The index is brought up to the log: munros done, and to do.
    Index(u64, u64),
    /// Entries found so far.
    Scan(u64),
    /// Files and bytes that will be read.
    Read(u64, u64),
    /// So many bytes more were read.
    Bytes(u64),
    /// Everything is written, and is made durable.
    Seal,
}

/// What a publish came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PublishReport {
    /// Whether there is a new release (for a dry run: would be).
    pub changed: bool,
    /// Whether nothing was written, as asked.
    pub dry_run: bool,
    /// The track.
    pub track: String,
    /// The version that the track stands at now.
    pub version: String,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks, devices, fifos, sockets.
    pub others: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes that were read; the rest was known by its state.
    pub read_bytes: u64,
    /// Bytes of file blocks that are new in the log.
    pub new_bytes: u64,
    /// Bytes of metadata that are new in the log.
    pub metadata_bytes: u64,
    /// Bytes of frames that are new in the log.
    pub frame_bytes: u64,
    /// Bytes that a machine which holds the track's previous release will fetch for all of this one.
    pub update_bytes: u64,
    /// Extents of all files.
    pub extents: u64,
    /// Length of the log, in munros.
    pub munros: u64,
    /// Files and directories that not everybody can read, with a few examples.
    pub not_world_readable: Exposed,
    /// Set where the release is committed and the index could not be brought up to it.
    pub index_warning: Option<String>,
}

/// Entries that every member of the swarm will be able to read, though not everybody here can.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Exposed {
    /// How many.
    pub count: u64,
    /// The first ones.
    pub examples: Vec<String>,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No such source.
    #[error("there is no '{}' to publish", path.display())]
    NoSource {
        /// What was named.
        path: PathBuf,
    },
    /// Not a tree and not a file.
    #[error("'{}' is neither a directory nor a regular file", path.display())]
    NotASource {
        /// What was named.
        path: PathBuf,
    },
    /// It would publish its own log.
    #[error(
        "the repository '{}' and the source '{}' lie within each other: a release cannot hold the log that it goes into; move one of them",
        repo.display(), source_dir.display()
    )]
    Nested {
        /// The repository.
        repo: PathBuf,
        /// The source.
        source_dir: PathBuf,
    },
    /// A wrong name.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Too much to say.
    #[error("the message has {found} bytes, at most {MESSAGE_BYTES_MAX} are possible")]
    Message {
        /// Its length.
        found: usize,
    },
    /// The version is taken.
    #[error(
        "the track '{track}' has a release '{version}' already: releases never change, choose another version (or 'distd-origin rollback {track} {version}' to go back to it)"
    )]
    Exists {
        /// The track.
        track: String,
        /// The version.
        version: String,
    },
    /// The catalog is full.
    #[error("the catalog lists {RELEASES_MAX} releases, which is all it can")]
    CatalogFull,
    /// The tree.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Its metadata.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The log's writing side.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// What was published before.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The end of it.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl From<CatchUpError> for PublishError {
    fn from(error: CatchUpError) -> Self {
        match error {
            CatchUpError::History(error) => Self::History(error),
            CatchUpError::Index(error) => Self::Index(error),
        }
    }
}

/// Publishes, or says why not. `progress` is called from this thread.
pub fn publish(
    repo: &Repo,
    options: &PublishOptions<'_>,
    progress: &dyn Fn(Step),
) -> Result<PublishReport, PublishError> {
    check_options(options)?;
    let source = Source::open(repo, options.source)?;
    // A key that cannot be used is found out before hours of reading.
    repo.key()?;
    let target = Target::open(repo, options.dry_run)?;
    let _lock = repo.lock(options.dry_run)?;
    let history = History::read(target.log())?;
    check_new(&history, options)?;
    let index = match options.dry_run {
        true => Index::open_over(&repo.index_path())?,
        false => Index::open(&repo.index_path())?,
    };
    let epoch = index.begin()?;
    catch_up(&epoch, target.log(), &history, |done, total| progress(Step::Index(done, total)))?;
    let (seconds, nanoseconds) = now();
    let scan_start = Timestamp { seconds: seconds as i64, nanoseconds };
    let scan = scan(&source.root, source.only.as_deref(), |found| progress(Step::Scan(found)))?;
    let publication = Publication {
        repo,
        options,
        progress,
        source: &source,
        scan: &scan,
        history: &history,
        scan_start,
    };
    publication.run(target, epoch)
}

fn check_options(options: &PublishOptions<'_>) -> Result<(), PublishError> {
    check_label(options.track)?;
    check_label(options.version)?;
    let found = options.message.len();
    if found > MESSAGE_BYTES_MAX { Err(PublishError::Message { found }) } else { Ok(()) }
}

/// What can be refused before the tree is read.
fn check_new(history: &History, options: &PublishOptions<'_>) -> Result<(), PublishError> {
    let (track, version) = (options.track.to_owned(), options.version.to_owned());
    if history.catalog.find(&track, &version).is_some() {
        return Err(PublishError::Exists { track, version });
    }
    if history.catalog.items.len() >= RELEASES_MAX {
        return Err(PublishError::CatalogFull);
    }
    let release = ByteRange { offset: 0, len: 0 };
    moved(history, &Track { name: track, version, release })?;
    Ok(())
}

/// The opened source.
struct Source {
    root: Root,
    /// Set for a source that is one file: its name in the root.
    only: Option<OsString>,
    /// Its absolute path.
    path: PathBuf,
}

impl Source {
    fn open(repo: &Repo, path: &Path) -> Result<Self, PublishError> {
        let missing = || PublishError::NoSource { path: path.into() };
        let failed = |verb, source: std::io::Error| {
            let path = TreePath(path.as_os_str().as_bytes().to_vec());
            PublishError::Scan(ScanError::Io { verb, path, source })
        };
        let kind = match path.metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(failed("stat", error)),
        };
        let real = path.canonicalize().map_err(|error| failed("resolve", error))?;
        let repo_dir = repo
            .dir()
            .canonicalize()
            .map_err(|error| failed("resolve the repository for", error))?;
        if real.starts_with(&repo_dir) || repo_dir.starts_with(&real) {
            return Err(PublishError::Nested { repo: repo_dir, source_dir: real });
        }
        let (dir, only) = if kind.is_dir() {
            (real.as_path(), None)
        } else if kind.is_file() {
            let (dir, name) = split_file(&real);
            (dir, Some(name.ok_or_else(missing)?.to_owned()))
        } else {
            return Err(PublishError::NotASource { path: path.into() });
        };
        let root = Root::open(dir).map_err(|errno| failed("open", errno.into()))?;
        Ok(Self { root, only, path: real })
    }
}

/// Everything that one publish works with.
struct Publication<'a> {
    repo: &'a Repo,
    options: &'a PublishOptions<'a>,
    progress: &'a dyn Fn(Step),
    source: &'a Source,
    scan: &'a Scan,
    history: &'a History,
    scan_start: Timestamp,
}

impl Publication<'_> {
    fn run(&self, mut target: Target, epoch: Epoch) -> Result<PublishReport, PublishError> {
        let mut report = PublishReport {
            dry_run: self.options.dry_run,
            track: self.options.track.to_owned(),
            version: self.options.version.to_owned(),
            not_world_readable: self.exposed(),
            ..PublishReport::default()
        };
        let plain_munro = target.next_block().munro().0;
        let mut tables = epoch.tables()?;
        let coverage = tables.coverage()?;
        let publishes = coverage.publishes + 1;
        let cache =
            StatCache::new(self.source.path.as_os_str().as_bytes(), publishes, self.scan_start);
        let mut log = LogBlocks::new(&mut tables, &mut target);
        let contents = self.read(&cache, &mut log, &mut report)?;
        let (metadata_start, new_blocks) = (log.next.byte_offset(), log.stored);
        check_directories(&self.source.root, self.scan)?;
        let tree = Tree { scan: self.scan, contents: &contents };
        let layout = self.lay_out(&tree, &tables, metadata_start)?;
        self.fill_report(&mut report, target.log(), &tree, &layout, new_blocks, metadata_start)?;
        let Target::Append(mut appender) = target else { return Ok(report) };
        if !report.changed {
            return Ok(report);
        }
        let totals = tree.totals(report.new_bytes + report.metadata_bytes);
        let statement =
            self.write_metadata(&tree, &layout, totals, plain_munro, &tables, &mut appender)?;
        (self.progress)(Step::Seal);
        let commit = seal(appender, self.repo, self.history, statement)?;
        report.munros = commit.munros;

        // The release stands: what fails from here on is made good by the next publish.
        let (munros, hash) = (commit.munros, Some(commit.newest.hash()));
        let coverage = Coverage { munros, hash, publishes };
        let indexed = self.remember(&mut tables, &cache, &layout, &contents, &coverage);
        drop(tables);
        let indexed = indexed.and_then(|()| epoch.commit());
        report.index_warning = indexed.err().map(|error| error.to_string());
        Ok(report)
    }

    /// Tells the index what the log holds now.
    fn remember(
        &self,
        tables: &mut Tables<'_>,
        cache: &StatCache,
        layout: &Layout,
        contents: &[KnownContent],
        coverage: &Coverage,
    ) -> Result<(), IndexError> {
        for (hash, range) in &layout.new_nodes {
            tables.insert_node(hash, *range)?;
        }
        for (index, known) in contents.iter().enumerate() {
            let file = FileIndex(index as u32);
            let path = self.scan.file_path(file);
            cache.remember(tables, &path.0, &self.scan.file(file).attributes, known)?;
        }
        cache.expire(tables)?;
        tables.set_coverage(coverage)
    }

    /// Reads what is not known, and gives every file its blocks.
    fn read(
        &self,
        cache: &StatCache,
        log: &mut LogBlocks<'_, '_>,
        report: &mut PublishReport,
    ) -> Result<Vec<KnownContent>, PublishError> {
        let mut contents = Vec::with_capacity(self.scan.files.len());
        let (mut unknown, mut bytes) = (Vec::new(), 0);
        for index in 0..self.scan.files.len() {
            let file = FileIndex(index as u32);
            let attributes = &self.scan.file(file).attributes;
            let path = self.scan.file_path(file);
            let known = cache.find(log.tables, &path.0, attributes)?;
            if known.is_none() {
                unknown.push(file);
                bytes += attributes.size;
            }
            let nothing = || KnownContent { blake3: [0; 32], extents: [].into_iter().collect() };
            contents.push(known.unwrap_or_else(nothing));
        }
        report.read_bytes = bytes;
        (self.progress)(Step::Read(unknown.len() as u64, bytes));
        let mut plan = None;
        read_files(&self.source.root, self.scan, &unknown, |file, piece| {
            let size = self.scan.file(file).attributes.size;
            let current = plan.get_or_insert_with(|| FilePlan::new(size));
            current.take(&piece, log)?;
            match piece {
                Piece::Blocks { bytes, .. } => (self.progress)(Step::Bytes(bytes.len() as u64)),
                Piece::Hole(blocks) => (self.progress)(Step::Bytes(blocks * BLOCK_BYTES)),
                Piece::End(blake3) => {
                    let extents = plan.take().map(FilePlan::into_extents).unwrap_or_default();
                    contents[file.0 as usize] = KnownContent { blake3, extents };
                }
            }
            Ok::<_, PublishError>(())
        })?;
        Ok(contents)
    }

    /// Where the metadata goes: with old nodes referenced, or all anew if that were too scattered.
    fn lay_out(
        &self,
        tree: &Tree<'_>,
        tables: &Tables<'_>,
        start: u64,
    ) -> Result<Layout, PublishError> {
        let known = |hash: &[u8; 32]| Ok(tables.node(hash)?);
        let layout = tree.lay_out(start, known, |_| Ok::<_, PublishError>(()))?;
        if !layout.is_scattered() || layout.end == start {
            return Ok(layout);
        }
        tree.lay_out(start, |_| Ok(None), |_| Ok::<_, PublishError>(()))
    }

    fn fill_report(
        &self,
        report: &mut PublishReport,
        log: &OriginLog,
        tree: &Tree<'_>,
        layout: &Layout,
        new_blocks: u64,
        metadata_start: u64,
    ) -> Result<(), PublishError> {
        let Totals { files, directories, others, bytes, .. } = tree.totals(0);
        report.files = files;
        report.directories = directories;
        report.others = others;
        report.bytes = bytes;
        report.extents =
            tree.contents.iter().map(|content| content.extents.len() as u64).sum::<u64>();
        let previous = self.history.current(log, self.options.track)?;
        report.changed = previous.as_ref().is_none_or(|release| release.root != layout.root);
        report.munros = log.committed().map_or(0, |commit| commit.munros);
        if !report.changed {
            report.version = previous.map_or(String::new(), |release| release.version);
            return Ok(());
        }
        report.new_bytes = new_blocks * BLOCK_BYTES;
        report.metadata_bytes = layout.end - metadata_start;
        let mut wanted: Vec<BlockRange> =
            tree.contents.iter().flat_map(|content| content.extents.data()).collect();
        wanted.extend(&layout.runs);
        let mut held = Vec::new();
        if let Some(previous) = &previous {
            held = file_blocks(log, previous)?;
            held.extend(&previous.metadata);
        }
        report.update_bytes = missing_blocks(&merge(wanted), &merge(held)) * BLOCK_BYTES;
        Ok(())
    }

    /// Writes new nodes, the release record and the catalog.
    fn write_metadata(
        &self,
        tree: &Tree<'_>,
        layout: &Layout,
        totals: Totals,
        plain_munro: u64,
        tables: &Tables<'_>,
        appender: &mut Appender,
    ) -> Result<Statement, PublishError> {
        let mut area = MetadataArea::new(appender);
        // The same decisions again: what the layout counts as new is not taken from the index.
        let new: std::collections::HashSet<[u8; 32]> =
            layout.new_nodes.iter().map(|(hash, _)| *hash).collect();
        let known = |hash: &[u8; 32]| match new.contains(hash) {
            true => Ok(None),
            false => Ok(tables.node(hash)?),
        };
        let written = tree.lay_out(area.at(), known, |bytes| {
            area.push(bytes)?;
            Ok::<_, PublishError>(())
        })?;
        assert_eq!(written.root, layout.root, "a layout is a function of the tree");
        let (created_s, _) = now();
        let release = Release {
            track: self.options.track.to_owned(),
            version: self.options.version.to_owned(),
            created_s,
            message: self.options.message.to_owned(),
            root: layout.root.clone(),
            totals,
            metadata: layout.listed_runs(),
        };
        let release = area.push(&release.encode())?;
        let mut catalog = Catalog { items: self.history.catalog.items.clone() };
        catalog.items.push(CatalogItem {
            track: self.options.track.to_owned(),
            version: self.options.version.to_owned(),
            created_s,
            release,
        });
        let catalog = area.push(&catalog.encode())?;
        let end = area.finish()?;
        let plain =
            Section { munro: plain_munro, bytes: end.byte_offset() - plain_munro * MUNRO_BYTES };
        let (name, version) = (self.options.track.to_owned(), self.options.version.to_owned());
        Ok(Statement { plain, track: Track { name, version, release }, catalog })
    }

    /// What the swarm will be able to read though others here cannot.
    fn exposed(&self) -> Exposed {
        let mut exposed = Exposed::default();
        for (index, directory) in self.scan.directories.iter().enumerate() {
            for (position, entry) in directory.entries.iter().enumerate() {
                let wanted = match entry.kind {
                    ScannedKind::File(_) => 0o004,
                    ScannedKind::Directory(_) => 0o005,
                    _ => 0,
                };
                if entry.attributes.mode & wanted == wanted {
                    continue;
                }
                exposed.count += 1;
                if exposed.examples.len() < EXAMPLES_MAX {
                    let at = DirectoryIndex(index as u32);
                    let path = self.scan.entry_path(at, position as u32);
                    exposed.examples.push(path.to_string());
                }
            }
        }
        exposed
    }
}

/// Where new blocks go.
enum Target {
    /// To the log.
    Append(Appender),
    /// Nowhere: a dry run only counts them, and does not touch a file.
    Count(OriginLog),
}

impl Target {
    fn open(repo: &Repo, dry_run: bool) -> Result<Self, PublishError> {
        if dry_run {
            return Ok(Self::Count(repo.log()?));
        }
        Ok(Self::Append(OriginLog::append(&repo.log_dir())?))
    }

    fn log(&self) -> &OriginLog {
        match self {
            Self::Append(appender) => appender.log(),
            Self::Count(log) => log,
        }
    }

    fn next_block(&self) -> BlockIndex {
        match self {
            Self::Append(appender) => appender.next_block(),
            Self::Count(log) => {
                MunroIndex(log.committed().map_or(0, |commit| commit.munros)).blocks().start
            }
        }
    }
}

/// The log as deduplication sees it: the index, and the epoch that is being written.
struct LogBlocks<'a, 't> {
    tables: &'a mut Tables<'t>,
    target: &'a mut Target,
    next: BlockIndex,
    stored: u64,
}

impl<'a, 't> LogBlocks<'a, 't> {
    fn new(tables: &'a mut Tables<'t>, target: &'a mut Target) -> Self {
        let next = target.next_block();
        Self { tables, target, next, stored: 0 }
    }
}

impl Blocks for LogBlocks<'_, '_> {
    type Error = PublishError;

    fn lies_at(&mut self, hash: &BlockHash, block: BlockIndex) -> Result<bool, PublishError> {
        Ok(self.tables.lies_at(hash, block)?)
    }

    fn places(&mut self, hash: &BlockHash, max: usize) -> Result<Vec<BlockIndex>, PublishError> {
        Ok(self.tables.places(hash, max)?)
    }

    fn store(&mut self, hash: BlockHash, block: &[u8]) -> Result<BlockIndex, PublishError> {
        let at = self.next;
        if let Target::Append(appender) = &mut *self.target {
            let written = appender.write(block)?;
            assert_eq!(written, at, "blocks are appended one after the other");
        }
        self.tables.insert_block(&hash, at)?;
        self.next = BlockIndex(at.0 + 1);
        self.stored += 1;
        Ok(at)
    }
}

/// The end of section P, filled byte by byte.
struct MetadataArea<'a> {
    appender: &'a mut Appender,
    start: u64,
    written: u64,
    buffer: Vec<u8>,
}

impl<'a> MetadataArea<'a> {
    fn new(appender: &'a mut Appender) -> Self {
        let start = appender.next_block().byte_offset();
        Self { appender, start, written: 0, buffer: Vec::new() }
    }

    /// Where the next byte goes.
    fn at(&self) -> u64 {
        self.start + self.written + self.buffer.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) -> Result<ByteRange, AppendError> {
        let range = ByteRange { offset: self.at(), len: bytes.len() as u64 };
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= METADATA_BUFFER_BYTES {
            let whole = self.buffer.len() / BLOCK_BYTES as usize * BLOCK_BYTES as usize;
            self.appender.write(&self.buffer[..whole])?;
            self.buffer.drain(..whole);
            self.written += whole as u64;
        }
        Ok(range)
    }

    /// Pads to a block; one past the last block.
    fn finish(mut self) -> Result<BlockIndex, AppendError> {
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        self.appender.write(&self.buffer)?;
        Ok(self.appender.next_block())
    }
}
