//! Publishing: a tree becomes a release, or nothing happens at all.

mod embedded;
mod error;
mod hints;
mod image;
mod profile;
mod report;
mod section;
mod source;
mod target;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use distd_core::head::{Section, Track, check_label};
use distd_core::limits::{BLOCK_BYTES, MESSAGE_BYTES_MAX, MUNRO_BYTES, RELEASES_MAX};
use distd_core::manifest::{Access, Catalog, CatalogItem, Profile, Release, Timestamp, Totals};
use distd_core::store::OriginLog;
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, MunroIndex};

use crate::behind;
use crate::catch_up::catch_up;
use crate::content::{Piece, read_files};
use crate::dedup::FilePlan;
use crate::frames::maker::Maker;
use crate::frames::older::{Hint, Older};
use crate::history::{History, file_blocks, merge, missing_blocks};
use crate::index::{Coverage, Epoch, Index, IndexError, Tables};
use crate::metadata::{Layout, Tree};
use crate::repo::{Repo, RepoLock};
use crate::scan::{FileIndex, Scan, check_directories, scan};
use crate::seal::{Statement, moved, now, seal, signing_time};
use crate::stat_cache::{KnownContent, StatCache};

pub use crate::frames::maker::{LEVEL_DEFAULT, LEVEL_MAX};
pub use embedded::EmbeddedImage;
pub use error::PublishError;
pub use report::{Exposed, PublishReport, Step};

use hints::NewFile;
use source::Source;
use target::{ByteArea, LogBlocks, Target};

/// How long a prune is waited for.
const PRUNE_PATIENCE: Duration = Duration::from_secs(600);
/// How often is looked whether it has ended.
const PRUNE_POLL: Duration = Duration::from_millis(50);

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
    /// What the release is first used for, as recorded on a mount.
    pub profile: &'a [Access],
    /// zstd level of the frames, 1 to [`LEVEL_MAX`].
    pub level: i32,
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
    let (target, _lock) = open_target(repo, options.dry_run)?;
    behind::check(repo, target.log())?;
    let history = History::read(target.log())?;
    check_new(&history, options)?;
    let index = if options.dry_run {
        Index::open_over(&repo.index_path())?
    } else {
        Index::open(&repo.index_path())?
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

/// Takes the log and the index for this process alone. A prune that runs is waited for: it holds them
/// only while it decides.
fn open_target(repo: &Repo, dry_run: bool) -> Result<(Target, RepoLock), PublishError> {
    let deadline = Instant::now() + PRUNE_PATIENCE;
    loop {
        let taken =
            Target::open(repo, dry_run).and_then(|target| Ok((target, repo.lock(dry_run)?)));
        match taken {
            Err(error) if error.is_busy() && repo.is_pruning() && Instant::now() < deadline => {
                std::thread::sleep(PRUNE_POLL);
            }
            other => return other,
        }
    }
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

/// What section P of the new epoch has before its nodes: where it begins, and the release's image if it
/// has one.
struct Plain {
    munro: u64,
    image: Option<image::Image>,
}

impl Plain {
    /// The image, if it is there.
    fn new_image(&self) -> Option<BlockRange> {
        self.image.as_ref().filter(|image| image.new).map(|image| image.place.blocks)
    }
}

/// What is in section P of the new epoch, and what it says.
struct Content {
    plain: Section,
    /// The image, if it is there.
    image: Option<BlockRange>,
    track: Track,
    catalog: ByteRange,
}

/// What the new release is compared with.
#[derive(Default)]
struct Basis {
    /// The track's release before.
    previous: Option<Release>,
    /// All its blocks.
    held: Vec<BlockRange>,
    /// Bytes of older blocks that the new release needs and the one before does not hold.
    returning_bytes: u64,
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
            not_world_readable: Exposed::of(self.scan),
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
        let mut layout = Self::lay_out(&tree, &tables, metadata_start)?;
        let basis = self.fill_report(
            &mut report,
            target.log(),
            &tree,
            &layout,
            new_blocks,
            metadata_start,
        )?;
        let committed = target.log().committed();
        let mut coverage = Coverage {
            munros: committed.map_or(0, |commit| commit.munros),
            hash: committed.map(|commit| commit.newest.hash()),
            publishes,
        };
        let mut new_image = None;
        if report.changed {
            report.embedded = embedded::look(self.source);
            let image = image::write(&tree, &layout.root, &tables, &mut target, &mut report)?;
            let plain = Plain { munro: plain_munro, image };
            new_image = plain.new_image();
            if new_image.is_some() {
                let start = target.next_block().byte_offset();
                layout = Self::lay_out(&tree, &tables, start)?;
            }
            let added = report.new_bytes + report.metadata_bytes;
            let totals = tree.totals(added + new_image.map_or(0, BlockRange::byte_len));
            let content =
                self.write_metadata(&tree, &layout, totals, &plain, &tables, &mut target)?;
            let plain_start = MunroIndex(plain_munro).blocks().start;
            let hints =
                self.hints(target.log(), basis.previous.as_ref(), &contents, plain_start)?;
            let statement = self.write_frames(&mut target, content, &basis, hints, &mut report)?;
            let Target::Append(appender) = target else { return Ok(report) };
            (self.progress)(Step::Seal);
            let commit = seal(appender, self.repo, self.history, statement)?;
            report.munros = commit.munros;
            coverage.munros = commit.munros;
            coverage.hash = Some(commit.newest.hash());
        } else if self.options.dry_run || report.read_bytes == 0 || new_blocks > 0 {
            return Ok(report);
        }
        // The release stands, or nothing but the states of files is new: what fails from here on is
        // made good by the next publish.
        let indexed = self.remember(&mut tables, &cache, &layout, new_image, &contents, &coverage);
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
        image: Option<BlockRange>,
        contents: &[KnownContent],
        coverage: &Coverage,
    ) -> Result<(), IndexError> {
        for (hash, range) in &layout.new_nodes {
            tables.insert_node(hash, *range)?;
        }
        if let Some((key, image)) = crate::image::key(&layout.root).zip(image) {
            tables.insert_node(&key, crate::image::bytes_of(image))?;
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
                    let planned = plan.take().map(FilePlan::into_extents).unwrap_or_default();
                    let published = StatCache::find_content(log.tables, size, &blake3)?;
                    let extents = published.unwrap_or(planned);
                    contents[file.0 as usize] = KnownContent { blake3, extents };
                }
            }
            Ok::<_, PublishError>(())
        })?;
        Ok(contents)
    }

    /// Where the metadata goes: with old nodes referenced, or all anew if that were too scattered.
    fn lay_out(tree: &Tree<'_>, tables: &Tables<'_>, start: u64) -> Result<Layout, PublishError> {
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
    ) -> Result<Basis, PublishError> {
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
            return Ok(Basis::default());
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
        let held = merge(held);
        let wanted = merge(wanted);
        report.update_bytes = missing_blocks(&wanted, &held) * BLOCK_BYTES;
        let new_bytes = layout.end.next_multiple_of(BLOCK_BYTES) - metadata_start;
        let new_bytes = report.new_bytes + new_bytes;
        let returning_bytes = report.update_bytes.saturating_sub(new_bytes);
        Ok(Basis { previous, held, returning_bytes })
    }

    /// Which older blocks to try first for the files' new ones.
    fn hints(
        &self,
        log: &OriginLog,
        previous: Option<&Release>,
        contents: &[KnownContent],
        first: BlockIndex,
    ) -> Result<Vec<Hint>, PublishError> {
        let Some(previous) = previous else { return Ok(Vec::new()) };
        let new = |known: &&(usize, &KnownContent)| {
            known.1.extents.data().any(|blocks| blocks.start >= first)
        };
        let contents: Vec<_> = contents.iter().enumerate().collect();
        let files: Vec<NewFile<'_>> = contents
            .iter()
            .filter(new)
            .map(|(index, known)| NewFile {
                path: self.scan.file_path(FileIndex(*index as u32)).0,
                extents: &known.extents,
            })
            .collect();
        Ok(hints::hints(log, previous, &files, first)?)
    }

    /// Writes section F.
    fn write_frames(
        &self,
        target: &mut Target,
        content: Content,
        basis: &Basis,
        hints: Vec<Hint>,
        report: &mut PublishReport,
    ) -> Result<Statement, PublishError> {
        let Content { plain, image, track, catalog } = content;
        let (key, time) = (self.repo.key()?, signing_time());
        // What is compared with is read through a second handle: the appender is written to meanwhile.
        let log = self.repo.log()?;
        let older = match &basis.previous {
            Some(_) => Some(Older::new(&log, &basis.held, hints)?),
            None => None,
        };
        let older_image = match (image, basis.previous.as_ref().and_then(|previous| previous.image))
        {
            (Some(new), Some(older)) => {
                Some(Older::new(&log, &[older.blocks], hints::image_hints(older.blocks, new))?)
            }
            _ => None,
        };
        let maker = Maker { older, image: image.zip(older_image), level: self.options.level };
        let epoch = section::Epoch { plain, image, key: &key, time };
        let written = section::write(target, &maker, &epoch, self.progress)?;
        report.frame_bytes = written.section.bytes;
        report.update_bytes = written.update_bytes + basis.returning_bytes;
        report.image_update_bytes = written.image_update_bytes;
        let frames = Some(written.section);
        Ok(Statement { plain, frames, epochs: written.epochs, time, track, catalog })
    }

    /// Writes new nodes, the release record and the catalog.
    fn write_metadata(
        &self,
        tree: &Tree<'_>,
        layout: &Layout,
        totals: Totals,
        plain: &Plain,
        tables: &Tables<'_>,
        target: &mut Target,
    ) -> Result<Content, PublishError> {
        let mut area = ByteArea::new(target);
        // The same decisions again: what the layout counts as new is not taken from the index.
        let new: std::collections::HashSet<[u8; 32]> =
            layout.new_nodes.iter().map(|(hash, _)| *hash).collect();
        let known =
            |hash: &[u8; 32]| if new.contains(hash) { Ok(None) } else { Ok(tables.node(hash)?) };
        let written = tree.lay_out(area.at(), known, |bytes| {
            area.push(bytes)?;
            Ok::<_, PublishError>(())
        })?;
        assert_eq!(written.root, layout.root, "a layout is a function of the tree");
        let (created_s, _) = now();
        let used = profile::ranges(tree, self.options.profile);
        let profile = match used.as_slice() {
            [] => None,
            used => Some(area.push(&Profile::encode(used))?),
        };
        let release = Release {
            track: self.options.track.to_owned(),
            version: self.options.version.to_owned(),
            created_s,
            message: self.options.message.to_owned(),
            root: layout.root.clone(),
            totals,
            metadata: layout.listed_runs(),
            profile,
            image: plain.image.as_ref().map(|image| image.place),
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
        let bytes = end.byte_offset() - plain.munro * MUNRO_BYTES;
        let section = Section { munro: plain.munro, bytes };
        let (name, version) = (self.options.track.to_owned(), self.options.version.to_owned());
        let track = Track { name, version, release };
        Ok(Content { plain: section, image: plain.new_image(), track, catalog })
    }
}
