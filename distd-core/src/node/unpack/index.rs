//! The frame indexes of one log, as far as the cache holds them.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::frame::{EpochItem, EpochList, IndexEntry, MunroFrames, Part};
use crate::limits::NODE_BYTES_MAX;
use crate::node::swarm::{Shared, cut};
use crate::unit::{BlockRange, ByteRange, MunroIndex};

/// Munros whose records are kept in memory, about 2 KiB each.
const MUNROS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Entries of a table that are fetched together: 60 KiB, those of 512 MiB of content.
const TABLE_MUNROS: u64 = 512;
/// Bytes of update records that are fetched together: those of most updates.
const UPDATE_BYTES: u64 = 256 << 10;
/// Bytes of full records that are fetched together: those of some 50 munros.
const FULL_BYTES: u64 = 32 << 10;

/// What must be fetched before more is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Absent(pub(super) BlockRange);

/// What is known of a log's frames.
pub(super) struct Index {
    /// Length of the log whose list of epochs this is, in munros.
    munros: u64,
    epochs: EpochList,
    known: LruCache<u64, Known>,
}

/// One munro.
struct Known {
    entry: IndexEntry,
    update: Record,
    full: Record,
}

/// One of its records, where the entry says that there is one.
enum Record {
    Unread,
    Damaged,
    Here(Arc<MunroFrames>),
}

impl Index {
    pub(super) fn new() -> Self {
        Self { munros: 0, epochs: EpochList::default(), known: LruCache::new(MUNROS_MAX) }
    }

    /// The epoch that has frames for a munro.
    pub(super) fn epoch(
        &mut self,
        shared: &Shared,
        munro: MunroIndex,
    ) -> Result<Option<EpochItem>, Absent> {
        let block = munro.blocks().start;
        self.renew(shared)?;
        Ok(self.epochs.covering(block).copied())
    }

    /// Takes the list of epochs of the newest head.
    fn renew(&mut self, shared: &Shared) -> Result<(), Absent> {
        let Some(trusted) = shared.trusted() else { return Ok(()) };
        let head = &trusted.placed.head;
        if head.munros == self.munros {
            return Ok(());
        }
        let epochs = match head.epochs {
            ByteRange { len: 0, .. } => EpochList::default(),
            range if range.len > NODE_BYTES_MAX || range.end().is_none() => EpochList::default(),
            range => EpochList::decode(&local(shared, range)?).unwrap_or_else(|error| {
                tracing::warn!(%error, "no frames are used");
                EpochList::default()
            }),
        };
        let before = std::mem::replace(&mut self.epochs, epochs);
        self.munros = head.munros;
        // A prune lays an epoch's index down anew and lets the old one go.
        let item =
            |list: &EpochList, munro: u64| list.covering(MunroIndex(munro).blocks().start).copied();
        let munros: Vec<u64> = self.known.iter().map(|(munro, _)| *munro).collect();
        for munro in munros {
            if item(&before, munro) != item(&self.epochs, munro) {
                self.known.pop(&munro);
            }
        }
        Ok(())
    }

    /// A munro's frames of one kind; `None` if it has none.
    pub(super) fn frames(
        &mut self,
        shared: &Shared,
        munro: MunroIndex,
        part: Part,
    ) -> Result<Option<Arc<MunroFrames>>, Absent> {
        let Some(epoch) = self.epoch(shared, munro)? else { return Ok(None) };
        if self.known.get(&munro.0).is_none() {
            let Some(entry) = read_entry(shared, &epoch, munro)? else { return Ok(None) };
            self.known.put(munro.0, Known { entry, update: Record::Unread, full: Record::Unread });
        }
        let Some(known) = self.known.get_mut(&munro.0) else { return Ok(None) };
        let slot = match part {
            Part::Update => &mut known.update,
            Part::Full => &mut known.full,
        };
        let Some(range) = known.entry.record(part) else { return Ok(None) };
        if matches!(slot, Record::Unread) {
            let Ok(bytes) = local(shared, range) else {
                return Err(Absent(record_window(shared, &epoch, munro, part, range)));
            };
            *slot = match MunroFrames::decode(known.entry.munro, part, &bytes) {
                Ok(frames) => Record::Here(Arc::new(frames)),
                Err(error) => {
                    tracing::warn!(%error, "its frames are not used");
                    Record::Damaged
                }
            };
        }
        Ok(match slot {
            Record::Here(frames) => Some(Arc::clone(frames)),
            Record::Unread | Record::Damaged => None,
        })
    }

    /// Whether the munro is known to have no frames at all.
    pub(super) fn is_barren(&mut self, munro: MunroIndex) -> bool {
        let block = munro.blocks().start;
        if self.epochs.covering(block).is_none() {
            return munro.0 < self.munros;
        }
        let known = self.known.peek(&munro.0);
        known.is_some_and(|known| {
            [Part::Update, Part::Full].iter().all(|part| known.entry.record(*part).is_none())
        })
    }
}

/// Bytes that the cache holds; where it does not, the blocks to fetch.
fn local(shared: &Shared, range: ByteRange) -> Result<Vec<u8>, Absent> {
    let blocks = range.blocks();
    let mut bytes = vec![0; blocks.byte_len() as usize];
    match shared.log.read_blocks(blocks, &mut bytes) {
        Ok(missing) if missing.is_empty() => Ok(cut(&bytes.into(), range).into()),
        _ => Err(Absent(blocks)),
    }
}

/// A munro's entry; `None` if it is damaged.
fn read_entry(
    shared: &Shared,
    epoch: &EpochItem,
    munro: MunroIndex,
) -> Result<Option<IndexEntry>, Absent> {
    let Some(range) = epoch.entry_range(munro) else { return Ok(None) };
    let Ok(bytes) = local(shared, range) else {
        return Err(Absent(table_window(epoch, munro).blocks()));
    };
    let entry = IndexEntry::decode(munro, epoch.signed_at(), &shared.origin, &bytes);
    Ok(entry.inspect_err(|error| tracing::warn!(%error, "its frames are not used")).ok())
}

/// The munros whose entries are fetched together with this one's.
fn neighbours(epoch: &EpochItem, munro: MunroIndex) -> (MunroIndex, u64) {
    let from = (munro.0 - epoch.munro) / TABLE_MUNROS * TABLE_MUNROS;
    (MunroIndex(epoch.munro + from), TABLE_MUNROS.min(epoch.munros - from))
}

fn table_window(epoch: &EpochItem, munro: MunroIndex) -> ByteRange {
    let (first, count) = neighbours(epoch, munro);
    let start = epoch.entry_range(first).unwrap_or(epoch.table_range());
    ByteRange { offset: start.offset, len: start.len * count }
}

/// The blocks to fetch for a record: it and others of its kind around it, which lie together.
fn record_window(
    shared: &Shared,
    epoch: &EpochItem,
    munro: MunroIndex,
    part: Part,
    record: ByteRange,
) -> BlockRange {
    let window = match part {
        Part::Update => UPDATE_BYTES,
        Part::Full => FULL_BYTES,
    };
    let record_end = record.offset + record.len;
    let (mut from, mut to) = (record.offset, record_end);
    let (first, count) = neighbours(epoch, munro);
    let table = local(shared, table_window(epoch, munro)).unwrap_or_default();
    let entry_bytes = table.len() / count.max(1) as usize;
    for (entry, munro) in table.chunks_exact(entry_bytes.max(1)).zip(first.0..) {
        let Some(place) = IndexEntry::places(MunroIndex(munro), entry) else { continue };
        let range = place[part as usize];
        let end = range.offset + range.len;
        // In steps of the window, so that windows do not overlap.
        let near = |at: u64| at / window == record.offset / window;
        if range.len > 0 && (near(range.offset) || near(end)) {
            (from, to) = (from.min(range.offset), to.max(end));
        }
    }
    // Records that do not lie together are no reason to fetch what lies between.
    if to - from > 2 * window {
        (from, to) = (record.offset, record_end);
    }
    BlockRange::covering(from, to - from)
}
