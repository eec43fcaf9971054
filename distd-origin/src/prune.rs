//! `prune`: releases go, and with them the disk space that no other release needs.
//!
//! ```text
//! lock         no publish beside it; a publish that comes meanwhile waits
//! plan         what the retained releases need; all else goes
//! keep plain   what stays of full frames that are hardly needed       (written beside what is read)
//! index        forgets what goes: nothing new refers to it            (its own commit)
//! seal         a head whose list of releases says what was pruned     <- the commit
//! mark         what goes is gone on purpose, durably
//! unlock
//! free         holes are punched, beside everything else
//! ```
//!
//! A kill between any two steps leaves whole releases; the next prune does what was left undone.

pub(crate) mod live;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use distd_core::frame::{EpochList, IndexEntry};
use distd_core::head::{Section, Track};
use distd_core::limits::{BLOCK_BYTES, MUNRO_BYTES};
use distd_core::manifest::{Catalog, CatalogItem};
use distd_core::store::{AppendError, Appender, Commit, OpenError, OriginLog, ReadError};
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, HumanBytes};
use serde::Serialize;

use crate::behind;
use crate::history::{History, HistoryError};
use crate::index::{Index, IndexError};
use crate::repo::{Repo, RepoError, RepoLock};
use crate::seal::{SealError, Statement, seal, signing_time};

use live::Live;
use plan::{EpochPlan, Plan, Record};

/// How long a publish that runs is waited for.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(3600);
/// How often is looked whether it has ended.
const POLL: Duration = Duration::from_millis(100);
/// Blocks of the log that are kept plain at once: 16 MiB.
const PLAIN_BLOCKS_MAX: u64 = 4096;

/// What stays.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// So many releases of each track, the newest ones.
    pub keep: u64,
    /// Tracks of which every release stays.
    pub keep_tracks: Vec<String>,
    /// Only find out what it would come to.
    pub dry_run: bool,
}

/// How a prune gets on: done, and to do.
#[derive(Clone, Copy, Debug)]
pub enum PruneStep {
    /// Waits for a publish that runs.
    Wait,
    /// Retained releases that were read.
    Read(u64, u64),
    /// Munros whose frames were looked at.
    Plan(u64, u64),
    /// Segments whose space was given back.
    Free(u64, u64),
}

/// A release that a report names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Its track.
    pub track: String,
    /// Its version.
    pub version: String,
}

/// What a prune came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PruneReport {
    /// Whether nothing was written, as asked.
    pub dry_run: bool,
    /// The releases that went (for a dry run: would go), oldest first.
    pub pruned: Vec<Named>,
    /// Releases that stay.
    pub kept: u64,
    /// Bytes of disk that came free (for a dry run: by what is stored).
    pub freed_bytes: u64,
    /// Length of the log, in munros.
    pub munros: u64,
    /// Whether there is a new head.
    #[serde(skip)]
    pub sealed: bool,
    /// Whether a running server has told the swarm; `None` if none runs.
    pub announced: Option<bool>,
}

/// Why nothing, or not everything, was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// No such track, or the log.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The commit.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The releases are pruned and not all of their space is given back.
    #[error(
        "{0}; the releases are pruned, run prune again to give back what is left of their space"
    )]
    Free(AppendError),
}

impl From<ReadError> for PruneError {
    fn from(error: ReadError) -> Self {
        Self::History(error.into())
    }
}

impl From<AppendError> for PruneError {
    fn from(error: AppendError) -> Self {
        Self::Seal(error.into())
    }
}

/// Prunes, or says why not. `progress` is called from this thread.
pub fn prune(
    repo: &Repo,
    options: &PruneOptions,
    progress: &dyn Fn(PruneStep),
) -> Result<PruneReport, PruneError> {
    if options.dry_run {
        let log = repo.log()?;
        let history = History::read(&log)?;
        let (report, _, plan) = decide(&log, &history, options, progress)?;
        return Ok(PruneReport { freed_bytes: plan.freed_bytes, ..report });
    }
    repo.key()?;
    let _alone = repo.lock_prune()?;
    let (mut appender, lock) = wait_for_publish(repo, progress)?;
    behind::check(repo, appender.log())?;
    let history = History::read(appender.log())?;
    let (mut report, catalog, plan) = decide(appender.log(), &history, options, progress)?;
    keep_plain(&mut appender, &plan)?;
    forget(repo, &plan)?;
    if !report.pruned.is_empty() || plan.reindexed {
        report.munros = commit(repo, appender, &history, &catalog, &plan)?.munros;
        report.sealed = true;
    } else {
        drop(appender);
    }
    OriginLog::mark_gone(&repo.log_dir(), &plan.gone).map_err(PruneError::Free)?;
    drop(lock);
    let freed = |done, total| progress(PruneStep::Free(done, total));
    report.freed_bytes = OriginLog::free_gone(&repo.log_dir(), freed).map_err(PruneError::Free)?;
    Ok(report)
}

/// Takes the repository for this process alone, when the publish that runs has ended.
fn wait_for_publish(
    repo: &Repo,
    progress: &dyn Fn(PruneStep),
) -> Result<(Appender, RepoLock), PruneError> {
    let deadline = Instant::now() + PUBLISH_PATIENCE;
    loop {
        let taken = OriginLog::append(&repo.log_dir())
            .map_err(PruneError::from)
            .and_then(|appender| Ok((appender, repo.lock(false)?)));
        match taken {
            Err(error) if error.is_busy() && Instant::now() < deadline => {
                progress(PruneStep::Wait);
                std::thread::sleep(POLL);
            }
            other => return other,
        }
    }
}

impl PruneError {
    /// Whether another process has what is needed.
    fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::Seal(SealError::Append(AppendError::Open(OpenError::Busy { .. })))
                | Self::Repo(RepoError::Busy { .. })
        )
    }
}

/// Which releases go, the list that says so, and what that means for the log.
fn decide(
    log: &OriginLog,
    history: &History,
    options: &PruneOptions,
    progress: &dyn Fn(PruneStep),
) -> Result<(PruneReport, Catalog, Plan), PruneError> {
    let mut report = PruneReport { dry_run: options.dry_run, ..PruneReport::default() };
    let catalog = choose(history, options, &mut report)?;
    let Some(placed) = &history.head else { return Ok((report, catalog, Plan::default())) };
    report.munros = placed.head.munros;
    let kept: Vec<&CatalogItem> = catalog.items.iter().filter(|item| !item.is_pruned()).collect();
    report.kept = kept.len() as u64;
    let total = report.kept;
    let more = if report.pruned.is_empty() {
        // No other lists take their place.
        vec![placed.head.catalog.blocks(), placed.head.epochs.blocks()]
    } else {
        Vec::new()
    };
    let live = Live::of_releases(log, &kept, more, |done| progress(PruneStep::Read(done, total)))?;
    let planned = |done, total| progress(PruneStep::Plan(done, total));
    let plan = Plan::new(log, &placed.head, &live, planned)?;
    Ok((report, catalog, plan))
}

/// The catalog with the releases that go marked.
fn choose(
    history: &History,
    options: &PruneOptions,
    report: &mut PruneReport,
) -> Result<Catalog, HistoryError> {
    let tracks = history.tracks();
    for track in &options.keep_tracks {
        if !tracks.contains(track) {
            return Err(history.no_such_track(track));
        }
    }
    let current: BTreeSet<(&str, &str)> = history
        .head
        .iter()
        .flat_map(|placed| &placed.head.tracks)
        .map(|track| (track.name.as_str(), track.version.as_str()))
        .collect();
    let mut left: BTreeMap<&str, u64> = BTreeMap::new();
    let mut items = history.catalog.items.clone();
    for (item, listed) in items.iter_mut().zip(&history.catalog.items).rev() {
        if listed.is_pruned() || options.keep_tracks.contains(&listed.track) {
            continue;
        }
        let newest = left.entry(&listed.track).or_insert(options.keep);
        let is_newest = *newest > 0;
        *newest = newest.saturating_sub(1);
        if !is_newest && !current.contains(&(listed.track.as_str(), listed.version.as_str())) {
            *item = listed.pruned();
            let (track, version) = (listed.track.clone(), listed.version.clone());
            report.pruned.push(Named { track, version });
        }
    }
    report.pruned.reverse();
    Ok(Catalog { items })
}

/// Stores plain what stays of full frames that go.
fn keep_plain(appender: &mut Appender, plan: &Plan) -> Result<(), PruneError> {
    for range in &plan.plain {
        for at in (0..range.count).step_by(PLAIN_BLOCKS_MAX as usize) {
            let start = BlockIndex(range.start.0 + at);
            let part = BlockRange::new(start, PLAIN_BLOCKS_MAX.min(range.count - at));
            let mut content = vec![0; part.byte_len() as usize];
            appender.log().read_blocks(part, &mut content)?;
            appender.keep_plain(part, &content)?;
        }
    }
    Ok(())
}

/// Has the index forget what goes: from then on nothing new refers to it.
fn forget(repo: &Repo, plan: &Plan) -> Result<(), PruneError> {
    if plan.gone.is_empty() {
        return Ok(());
    }
    let index = Index::open(&repo.index_path())?;
    let epoch = index.begin()?;
    let gone = Live::new(plan.gone.clone());
    epoch.tables()?.forget(|blocks| gone.meets(blocks))?;
    Ok(epoch.commit()?)
}

/// Seals an epoch with the new list of releases, and the frame index of what is left.
fn commit(
    repo: &Repo,
    mut appender: Appender,
    history: &History,
    catalog: &Catalog,
    plan: &Plan,
) -> Result<Commit, PruneError> {
    // Whatever was pruned, the tracks stand where they stood.
    let track: Option<Track> =
        history.head.as_ref().and_then(|placed| placed.head.tracks.first().cloned());
    let Some(track) = track else { return Err(history.no_such_track("").into()) };
    let mut plain = Written::begin(&mut appender)?;
    let catalog = plain.push(&catalog.encode());
    let plain = plain.finish(&mut appender)?;
    let mut frames = Written::begin(&mut appender)?;
    let mut epochs = EpochList::default();
    for EpochPlan { item, anew } in &plan.epochs {
        let mut item = *item;
        if let Some(munros) = anew {
            let mut entries = Vec::with_capacity(munros.len());
            for munro in munros {
                let mut place = |record: &Record| match record {
                    Record::Stays(range) => *range,
                    Record::Anew(bytes) => frames.push(bytes),
                };
                let (update, full) = (place(&munro.update), place(&munro.full));
                entries.push(IndexEntry::new(munro.entry.munro, update, full));
            }
            item.index = frames.at();
            for entry in entries {
                frames.push(&entry.encode());
            }
        }
        epochs.items.push(item);
    }
    let epochs = frames.push(&epochs.encode());
    let frames = Some(frames.finish(&mut appender)?);
    let statement = Statement { plain, frames, epochs, time: signing_time(), track, catalog };
    Ok(seal(appender, repo, history, statement)?)
}

/// A section in memory: lists and indexes are small.
struct Written {
    start: u64,
    bytes: Vec<u8>,
}

impl Written {
    fn begin(appender: &mut Appender) -> Result<Self, AppendError> {
        appender.begin_section()?;
        Ok(Self { start: appender.next_block().byte_offset(), bytes: Vec::new() })
    }

    fn at(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) -> ByteRange {
        let range = ByteRange { offset: self.at(), len: bytes.len() as u64 };
        self.bytes.extend_from_slice(bytes);
        range
    }

    fn finish(mut self, appender: &mut Appender) -> Result<Section, AppendError> {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        appender.write(&self.bytes)?;
        Ok(Section { munro: self.start / MUNRO_BYTES, bytes: self.bytes.len() as u64 })
    }
}

impl PruneReport {
    /// One line a release, and what came of it.
    pub fn text(&self) -> String {
        let Self { kept, freed_bytes, .. } = self;
        let verb = if self.dry_run { "would prune" } else { "pruned" };
        let mut text = String::new();
        for Named { track, version } in &self.pruned {
            let _ = writeln!(text, "{verb} {track}@{version}");
        }
        if self.pruned.is_empty() {
            text += "nothing to prune: every release stays\n";
        }
        let freed = if self.dry_run { "would come free" } else { "came free" };
        let human = HumanBytes(*freed_bytes);
        let _ = writeln!(text, "{kept} releases stay; {freed_bytes} bytes ({human}) {freed}");
        text
    }
}
