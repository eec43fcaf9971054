//! What a prune does to the log: which granules go, which frames give way to plain blocks, and what of
//! the frame index is written anew.

use distd_core::frame::{EpochItem, FrameEntry, IndexEntry, Part};
use distd_core::head::{Head, Section};
use distd_core::limits::{BLOCK_BYTES, GRANULE_BYTES, MUNRO_BYTES};
use distd_core::store::OriginLog;
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, GranuleIndex, MunroIndex};

use crate::history::{HistoryError, merge, read_head};

use super::live::Live;

/// Blocks of a granule: what goes or stays as one.
const GRANULE_BLOCKS: u64 = GRANULE_BYTES / BLOCK_BYTES;
/// A full frame of which less than one in so many blocks is needed gives way to plain blocks.
const FRAME_LIVE_MIN: u64 = 4;

/// What a prune does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Granules that go, sorted and apart; those that went before are not among them.
    pub(super) gone: Vec<BlockRange>,
    /// Granules whose full frames go and that stay, plain.
    pub(super) plain: Vec<BlockRange>,
    /// The epochs that still have frames.
    pub(super) epochs: Vec<EpochPlan>,
    /// Whether the list of epochs, or an index that it names, becomes another one.
    pub(super) reindexed: bool,
    /// Bytes of disk that come free, by what is stored.
    pub(super) freed_bytes: u64,
}

/// An epoch that still has frames.
#[derive(Debug)]
pub(super) struct EpochPlan {
    pub(super) item: EpochItem,
    /// The new table and its records, if anything of it changed.
    pub(super) anew: Option<Vec<MunroPlan>>,
}

/// One munro of an index that is written anew.
#[derive(Debug)]
pub(super) struct MunroPlan {
    pub(super) entry: IndexEntry,
    pub(super) update: Record,
    pub(super) full: Record,
}

/// One record of a munro.
#[derive(Debug)]
pub(super) enum Record {
    /// It stays where it is (no bytes: there is none).
    Stays(ByteRange),
    /// It is written anew.
    Anew(Vec<u8>),
}

/// All that stays, while a plan is made.
struct Planning<'a> {
    log: &'a OriginLog,
    live: &'a Live,
    plan: Plan,
    /// Byte ranges of section F that stay.
    kept: Vec<BlockRange>,
    /// Blocks of section P that stay because a full frame that holds them does.
    framed: Vec<BlockRange>,
    /// Blocks of section P that frames hold, so that they take no room there.
    unstored: Vec<BlockRange>,
}

impl Plan {
    /// Plans what becomes of everything below `head`, of which `live` stays.
    pub(super) fn new(
        log: &OriginLog,
        head: &Head,
        live: &Live,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self, HistoryError> {
        let mut planning = Planning {
            log,
            live,
            plan: Self::default(),
            kept: Vec::new(),
            framed: Vec::new(),
            unstored: Vec::new(),
        };
        let items = log.epochs()?.items.clone();
        let total = items.iter().map(|item| item.munros).sum();
        let mut done = 0;
        for item in &items {
            planning.epoch(item)?;
            done += item.munros;
            progress(done, total);
        }
        planning.finish(head)
    }
}

impl Planning<'_> {
    /// Decides about the frames of one epoch.
    fn epoch(&mut self, item: &EpochItem) -> Result<(), HistoryError> {
        let mut munros = Vec::with_capacity(item.munros as usize);
        let mut changed = false;
        let mut alive = false;
        for munro in (item.munro..item.munro + item.munros).map(MunroIndex) {
            // An epoch's own munros have entries.
            let Some(entry) = self.log.index_entry(item, munro)? else { continue };
            let update = self.record(&entry, munro, Part::Update)?;
            let full = self.record(&entry, munro, Part::Full)?;
            for record in [&update, &full] {
                changed |= matches!(record, Record::Anew(_));
                alive |= match record {
                    Record::Stays(range) => range.len > 0,
                    Record::Anew(bytes) => !bytes.is_empty(),
                };
            }
            munros.push(MunroPlan { entry, update, full });
        }
        if changed {
            self.plan.reindexed = true;
            if !alive {
                return Ok(());
            }
        } else {
            self.kept.push(item.table_range().blocks());
        }
        let own = BlockRange::new(MunroIndex(item.munro).blocks().start, item.munros * 256);
        self.kept.extend(item.hashes_range(own).map(|(_, hashes)| hashes.blocks()));
        self.plan.epochs.push(EpochPlan { item: *item, anew: changed.then_some(munros) });
        Ok(())
    }

    /// Decides about one record's frames.
    fn record(
        &mut self,
        entry: &IndexEntry,
        munro: MunroIndex,
        part: Part,
    ) -> Result<Record, HistoryError> {
        let nothing = Record::Stays(ByteRange { offset: 0, len: 0 });
        let Some(range) = entry.record(part) else { return Ok(nothing) };
        let Some(frames) = self.log.frames(munro, part)? else { return Ok(nothing) };
        let mut stays = Vec::with_capacity(frames.frames().len());
        for frame in frames.frames() {
            let keep = match part {
                Part::Update => self.live.meets(frame.blocks()),
                Part::Full => self.full_stays(frame),
            };
            if keep {
                self.kept.push(frame.range.blocks());
            }
            stays.push(keep);
        }
        if stays.iter().all(|stays| *stays) {
            self.kept.push(range.blocks());
            return Ok(Record::Stays(range));
        }
        if !stays.contains(&true) {
            return Ok(Record::Anew(Vec::new()));
        }
        let mut stays = stays.into_iter();
        let kept = frames.keeping(|_| stays.next().unwrap_or(false));
        Ok(Record::Anew(kept.encode()))
    }

    fn full_stays(&mut self, frame: &FrameEntry) -> bool {
        let blocks = frame.blocks();
        self.unstored.push(blocks);
        let live = self.live.count_in(blocks);
        if live * FRAME_LIVE_MIN >= blocks.count {
            self.framed.push(blocks);
            return true;
        }
        let plain = granules(blocks).filter(|granule| self.live.meets(*granule));
        self.plan.plain.extend(plain);
        false
    }

    /// What goes: everything of all sections that neither stays by itself nor for a frame.
    fn finish(mut self, newest: &Head) -> Result<Plan, HistoryError> {
        self.plan.plain = merge(std::mem::take(&mut self.plan.plain));
        let framed = Live::new(std::mem::take(&mut self.framed));
        let unstored = Live::new(std::mem::take(&mut self.unstored));
        let kept = Live::new(std::mem::take(&mut self.kept));
        let mut gone = Vec::new();
        let mut head = newest.clone();
        loop {
            let (plain, frames) = (head.sections.plain, head.sections.frames);
            let stays = |granule| self.live.meets(granule) || framed.meets(granule);
            self.section(plain, stays, &mut gone)?;
            self.section(
                frames,
                |granule| self.live.meets(granule) || kept.meets(granule),
                &mut gone,
            )?;
            let Some(previous) = head.previous else { break };
            head = read_head(self.log, previous.munros)?.head;
        }
        let stored = |range: &BlockRange| {
            granules(*range).filter(|granule| !unstored.meets(*granule)).count() as u64
        };
        self.plan.gone = merge(gone);
        let plain: u64 = self.plan.plain.iter().map(|range| range.byte_len()).sum();
        let freed = self.plan.gone.iter().map(stored).sum::<u64>() * GRANULE_BYTES;
        self.plan.freed_bytes = freed.saturating_sub(plain);
        Ok(self.plan)
    }

    /// Adds what goes of a section.
    fn section(
        &self,
        section: Section,
        stays: impl Fn(BlockRange) -> bool,
        gone: &mut Vec<BlockRange>,
    ) -> Result<(), HistoryError> {
        let end = section.munro * MUNRO_BYTES + section.bytes;
        for munro in (section.munro..end.div_ceil(MUNRO_BYTES)).map(MunroIndex) {
            let retained = Live::new(self.log.retained(munro.blocks())?);
            if !retained.meets(munro.blocks()) {
                continue;
            }
            let used = (end - munro.byte_offset()).min(MUNRO_BYTES).div_ceil(BLOCK_BYTES);
            let used = BlockRange::new(munro.blocks().start, used);
            let first = gone.len();
            let mut left = false;
            for granule in granules(used) {
                if stays(granule) {
                    left = true;
                } else if retained.meets(granule) {
                    gone.push(granule);
                }
            }
            if !left {
                // The padding goes with the last of it, and all hashes.
                gone.truncate(first);
                gone.push(munro.blocks());
            }
        }
        Ok(())
    }
}

/// The granules that a range touches.
fn granules(range: BlockRange) -> impl Iterator<Item = BlockRange> {
    let first = range.start.granule().0;
    let end = range.end().0.div_ceil(GRANULE_BLOCKS);
    (first..end).map(|granule| GranuleIndex(granule).blocks())
}

const _: () = assert!(BlockIndex(GRANULE_BLOCKS).granule().0 == 1);
