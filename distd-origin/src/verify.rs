//! `verify`: is everything in the log as it was signed, and does every release hold together.

use std::collections::HashSet;
use std::fmt::Write as _;

use distd_core::head::Section;
use distd_core::limits::{BLOCK_BYTES, MUNRO_BYTES};
use distd_core::manifest::{Content, EntryKind, File};
use distd_core::store::{Damage, OriginLog, ReadError};
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, HumanBytes, MunroIndex};
use serde::Serialize;

use crate::history::{
    History, HistoryError, Met, join, read_extents, read_head, read_release, walk,
};
use crate::prune::live::Live;
use crate::scan::TreePath;

/// Times that releases are checked again because a prune went on beside it.
const PRUNES_MAX: usize = 16;
/// Damaged files that are named; more are counted.
const FILES_NAMED_MAX: usize = 1000;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where.
    pub place: String,
    /// Expected and found.
    pub what: String,
}

/// All that `verify` found.
#[derive(Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Munros of 1 MiB whose content, hashes and signatures were checked.
    pub munros: u64,
    /// Heads in the chain.
    pub heads: u64,
    /// Releases whose trees were walked.
    pub releases: u64,
    /// Releases that were pruned.
    pub pruned: u64,
    /// Runs of blocks that no release needs and nobody can read any more: a prune that was cut short
    /// left them.
    pub left_over: u64,
    /// What is wrong; empty for a sound repository.
    pub faults: Vec<Fault>,
    /// Files that cannot be served whole, as `TRACK@VERSION:PATH`.
    pub damaged_files: Vec<String>,
    /// More of them than are named.
    pub more_damaged_files: u64,
}

impl VerifyReport {
    fn fault(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.faults.push(Fault { place: place.into(), what: what.into() });
    }

    fn add(&mut self, other: Self) {
        self.releases += other.releases;
        self.pruned += other.pruned;
        self.faults.extend(other.faults);
        self.damaged_files.extend(other.damaged_files);
        self.more_damaged_files += other.more_damaged_files;
    }

    /// Whether all is well.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    /// One line a fault, and the verdict.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Fault { place, what } in &self.faults {
            let _ = writeln!(text, "{place}: {what}");
        }
        for file in &self.damaged_files {
            let _ = writeln!(text, "damaged file: {file}");
        }
        if self.more_damaged_files > 0 {
            let _ = writeln!(text, "and {} more damaged files", self.more_damaged_files);
        }
        if self.left_over > 0 {
            let _ = writeln!(text, "a prune was cut short: run it again to give back what it left");
        }
        let Self { munros, heads, releases, pruned, .. } = self;
        let mut checked = format!("{munros} munros, {heads} heads, {releases} releases");
        if *pruned > 0 {
            let _ = write!(checked, " ({pruned} more were pruned)");
        }
        if self.is_sound() {
            let _ = writeln!(text, "verified: {checked}; everything is as it was signed");
        } else {
            let faults = self.faults.len();
            let _ = writeln!(text, "verification failed: {faults} faults in {checked}");
        }
        text
    }
}

/// Checks everything. `progress` is told munros done and to do.
pub fn verify(log: &OriginLog, progress: impl FnMut(u64, u64)) -> Result<VerifyReport, ReadError> {
    let mut report = VerifyReport::default();
    let Some(commit) = log.committed() else { return Ok(report) };
    report.munros = commit.munros;
    let mut damaged = Vec::new();
    let mut damages = log.verify(progress)?;
    let found = damages.len();
    if let Some(needed) = needed_if_pruned(log, &damages) {
        damages.retain(|damage| needed(damage));
    }
    report.left_over = (found - damages.len()) as u64;
    for damage in damages {
        let (place, what, blocks) = describe(&damage);
        damaged.extend(blocks);
        report.fault(place, what);
    }
    check_heads(log, commit.munros, &mut report);
    let damaged = crate::history::merge(damaged);
    for attempt in 1..=PRUNES_MAX {
        let mut checked = VerifyReport::default();
        check_history(log, &damaged, &mut checked)?;
        // A prune may have changed everything in the midst of it.
        if checked.is_sound() || attempt == PRUNES_MAX || !log.reload()? {
            report.add(checked);
            break;
        }
    }
    Ok(report)
}

/// What tells whether damage is to content that a release needs, or to what is no content of files. In the
/// midst of a prune the frames of content that goes are no longer listed, and the content is not yet
/// marked as gone: nobody needs it, so nothing is wrong. `None` where nothing was pruned.
fn needed_if_pruned(
    log: &OriginLog,
    damages: &[Damage],
) -> Option<impl Fn(&Damage) -> bool + use<>> {
    let content = |damage: &Damage| matches!(damage, Damage::Content { .. });
    damages.iter().find(|damage| content(damage))?;
    // What cannot be read is told by the checks of heads and releases.
    let history = History::read(log).ok()?;
    let (gone, kept): (Vec<_>, Vec<_>) =
        history.catalog.items.iter().partition(|item| item.is_pruned());
    if gone.is_empty() {
        return None;
    }
    let live = Live::of_releases(log, &kept, Vec::new(), |_| {}).ok()?;
    let mut sections = Vec::new();
    let mut munros = history.head.as_ref().map(|placed| placed.head.munros);
    while let Some(at) = munros {
        let head = read_head(log, at).ok()?.head;
        let Section { munro, bytes } = head.sections.plain;
        // With the padding, which frames hold too.
        let bytes = bytes.next_multiple_of(MUNRO_BYTES);
        sections.push(BlockRange::covering(MunroIndex(munro).byte_offset(), bytes));
        munros = head.previous.map(|previous| previous.munros);
    }
    Some(move |damage: &Damage| match damage {
        Damage::Content { blocks } => {
            let plain = sections.iter().any(|section| section.intersection(*blocks) == *blocks);
            !plain || live.meets(*blocks)
        }
        _ => true,
    })
}

/// Checks the releases and the tracks, as the newest head lists them.
fn check_history(
    log: &OriginLog,
    damaged: &[BlockRange],
    report: &mut VerifyReport,
) -> Result<(), ReadError> {
    let history = match History::read(log) {
        Ok(history) => history,
        Err(error) => {
            report.fault("the newest head or the catalog", error.to_string());
            return Ok(());
        }
    };
    let munros = history.head.as_ref().map_or(0, |placed| placed.head.munros);
    let gone = log.gone(BlockRange::new(BlockIndex(0), munros * 256))?;
    let mut checked = HashSet::new();
    for item in &history.catalog.items {
        if item.is_pruned() {
            report.pruned += 1;
            continue;
        }
        let name = format!("{}@{}", item.track, item.version);
        let release =
            check_release(log, &name, item.release, (damaged, &gone), &mut checked, report);
        match release {
            Ok(()) => report.releases += 1,
            Err(error) => report.fault(format!("release {name}"), error.to_string()),
        }
    }
    let tracks = history.head.iter().flat_map(|placed| &placed.head.tracks);
    for track in tracks {
        let item = history.catalog.find(&track.name, &track.version);
        if item.is_none_or(|item| item.release != track.release) {
            let what = "expected a release that the catalog lists, found none";
            report.fault(format!("track {}", track.name), what);
        }
    }
    Ok(())
}

fn describe(damage: &Damage) -> (String, String, Option<BlockRange>) {
    let bytes = |blocks: &BlockRange| {
        let (start, end) = (blocks.byte_offset(), blocks.end().byte_offset());
        let size = HumanBytes(blocks.byte_len());
        format!("log bytes {start}..{end} ({size}, munro {})", blocks.start.munro())
    };
    match damage {
        Damage::Content { blocks } => {
            let what = "expected what the origin signed, found other bytes: they are not served";
            (bytes(blocks), what.into(), Some(*blocks))
        }
        Damage::Signature { munro } => (
            bytes(&munro.blocks()),
            "expected the origin's signature, found none that holds".into(),
            Some(munro.blocks()),
        ),
        Damage::Unreadable { munro } => {
            let what = "the disk cannot read it";
            (bytes(&munro.blocks()), what.into(), Some(munro.blocks()))
        }
        Damage::Segment { munro } => {
            let what = "expected a segment file, it is missing or not one";
            (bytes(&munro.blocks()), what.into(), Some(munro.blocks()))
        }
        Damage::Hash { bin } => (
            format!("the stored hash of bin {bin}"),
            "it is not the hash of the bytes below it, which are right".into(),
            None,
        ),
        Damage::Peaks => (
            "the log's peaks".into(),
            "the munros do not fold to the committed peaks: one was replaced by another one".into(),
            None,
        ),
    }
}

/// Follows the chain of heads to the first one.
fn check_heads(log: &OriginLog, munros: u64, report: &mut VerifyReport) {
    let place = |munros: u64| format!("the head at {munros} munros");
    let mut newer = match read_head(log, munros) {
        Ok(head) => head,
        Err(error) => return report.fault(place(munros), error.to_string()),
    };
    report.heads += 1;
    while let Some(previous) = newer.head.previous.as_ref().map(|previous| previous.munros) {
        let older = match read_head(log, previous) {
            Ok(head) => head,
            Err(error) => return report.fault(place(previous), error.to_string()),
        };
        if let Err(error) = newer.follows(&older) {
            report.fault(place(newer.head.munros), error.to_string());
        }
        report.heads += 1;
        newer = older;
    }
}

/// Decodes a release and everything below it that was not checked before, and names the files that
/// touch damaged blocks.
fn check_release(
    log: &OriginLog,
    name: &str,
    range: ByteRange,
    (damaged, gone): (&[BlockRange], &[BlockRange]),
    checked: &mut HashSet<ByteRange>,
    report: &mut VerifyReport,
) -> Result<(), HistoryError> {
    let release = read_release(log, range)?;
    let end = log.committed().map_or(0, |commit| commit.munros) * 256;
    if let Some(image) = release.image {
        let place = format!("{name}, its EROFS image");
        if touches(image.blocks, damaged) {
            report.damaged_files.push(place.clone());
        }
        if image.blocks.end().0 > end || touches(image.blocks, gone) {
            report.fault(place, "expected blocks of the log that are there, found others");
        }
    }
    walk(log, release.root_directory().node, |met| {
        let (directory, entry) = match met {
            // Without damage a shared subtree is looked at once.
            Met::Node(node) => return Ok(checked.insert(node) || !damaged.is_empty()),
            Met::Entry(directory, entry) => (directory, entry),
        };
        let EntryKind::File(file) = &entry.kind else { return Ok(true) };
        let path = || TreePath(join(directory, entry.name.as_bytes()));
        let extents = read_extents(log, file)?;
        if extents.data().any(|run| run.end().0 > end) {
            let what = format!("expected extents within the log's {end} blocks, found some beyond");
            report.fault(format!("{name}:{}", path()), what);
        }
        if extents.data().any(|run| touches(run, gone)) || lies_in(file, gone) {
            let what = "expected blocks that are there, found some that were pruned";
            report.fault(format!("{name}:{}", path()), what);
        }
        if extents.data().any(|run| touches(run, damaged)) || lies_in(file, damaged) {
            if report.damaged_files.len() < FILES_NAMED_MAX {
                report.damaged_files.push(format!("{name}:{}", path()));
            } else {
                report.more_damaged_files += 1;
            }
        }
        Ok::<_, HistoryError>(true)
    })
}

fn touches(run: BlockRange, damaged: &[BlockRange]) -> bool {
    let at = damaged.partition_point(|range| range.end() <= run.start);
    damaged.get(at).is_some_and(|range| !range.intersection(run).is_empty())
}

fn lies_in(file: &File, damaged: &[BlockRange]) -> bool {
    matches!(&file.content, Content::List(range) if touches(range.blocks(), damaged))
}

const _: () = assert!(BLOCK_BYTES * 256 == distd_core::limits::MUNRO_BYTES);
