//! A node's cache: one directory, one process, several origins' logs, one quota.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::keys::OriginId;

use super::cached_log::{CachedLog, Drops};
use super::directory::{Access, Directory, Lock};
use super::eviction::{PINS_NAME, Pins};
use super::flush::load_claims;
use super::intake::PutError;
use super::presence::Tick;
use super::segment::{DescriptorPool, Kind, Segments};
use super::{OpenError, StateError, state_file};

/// A node's cache.
///
/// Nothing is flushed when it is dropped: call [`Cache::flush`] every second or two while it is in
/// use and before the end. What was not flushed is fetched again.
pub struct Cache {
    root: Arc<Directory>,
    shared: Arc<Shared>,
    logs: Mutex<BTreeMap<OriginId, Arc<CachedLog>>>,
}

/// Bounds of a cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheOptions {
    /// Disk space that it may take, in bytes; `None`: as much as the reserve leaves.
    pub quota_bytes: Option<u64>,
    /// Disk space that it leaves free for others, in bytes.
    pub reserve_bytes: u64,
}

/// What a cache holds and what it did, since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Disk space in use, in bytes: allocated, holes do not count.
    pub allocated_bytes: u64,
    /// The bound, in bytes.
    pub quota_bytes: Option<u64>,
    /// Left free for others, in bytes.
    pub reserve_bytes: u64,
    /// Free on the disk, in bytes.
    pub disk_free_bytes: u64,
    /// Blocks held, of all logs.
    pub held_blocks: u64,
    /// Blocks that lost their claim.
    pub drops: Drops,
}

/// What the logs of a cache share.
pub(super) struct Shared {
    quota_bytes: AtomicU64,
    reserve_bytes: u64,
    allocated_bytes: AtomicU64,
    /// Bytes read and written: the clock of the least recently used.
    accessed_bytes: AtomicU64,
    /// Bytes of content written since the cache was opened.
    kept_bytes: AtomicU64,
    free_bytes: FreeBytes,
    logs: Mutex<Vec<Weak<CachedLog>>>,
    pub(super) evicting: Mutex<()>,
    /// The last search for something to evict was in vain, and nothing has changed since.
    pub(super) barren: AtomicBool,
    pool: Arc<DescriptorPool>,
    _lock: Lock,
}

/// The disk's free space, asked for anew after each [`FREE_PROBE_BYTES`] of growth.
struct FreeBytes {
    root: Arc<Directory>,
    known: AtomicU64,
    grown_since: AtomicU64,
}

const FORMAT_NAME: &str = "format";
const FORMAT: &str = "distd cache 1\n";
/// Bytes of access that one tick stands for.
const TICK_BYTES: u64 = 1 << 20;
/// Ticks are halved above this, well before they overflow.
const TICK_HIGH: u64 = 60_000;
/// The disk's free space is asked for again after this growth, in bytes.
const FREE_PROBE_BYTES: u64 = 16 << 20;

impl Cache {
    /// Opens the cache in `dir`, made with mode 0700 if it is missing.
    pub fn open(dir: &Path, options: CacheOptions) -> Result<Self, OpenError> {
        let root = Arc::new(Directory::private(dir)?);
        let lock = root.lock("lock")?;
        check_format(&root)?;
        let shared = Arc::new(Shared {
            quota_bytes: AtomicU64::new(options.quota_bytes.unwrap_or(u64::MAX)),
            reserve_bytes: options.reserve_bytes,
            allocated_bytes: AtomicU64::new(0),
            accessed_bytes: AtomicU64::new(0),
            kept_bytes: AtomicU64::new(0),
            free_bytes: FreeBytes {
                known: AtomicU64::new(root.disk_free_bytes()?),
                grown_since: AtomicU64::new(0),
                root: Arc::clone(&root),
            },
            logs: Mutex::new(Vec::new()),
            evicting: Mutex::new(()),
            barren: AtomicBool::new(false),
            pool: Arc::new(DescriptorPool::new()),
            _lock: lock,
        });
        let cache = Self { root, shared, logs: Mutex::new(BTreeMap::new()) };
        for name in cache.root.names()? {
            if let Ok(origin) = name.parse() {
                cache.log(origin)?;
            }
        }
        Ok(cache)
    }

    /// An origin's log in the cache, begun if there is none.
    pub fn log(&self, origin: OriginId) -> Result<Arc<CachedLog>, OpenError> {
        let mut logs = self.open_logs();
        if let Some(log) = logs.get(&origin) {
            return Ok(Arc::clone(log));
        }
        let directory = Arc::new(self.root.subdirectory(&origin.to_string())?);
        let pool = Arc::clone(&self.shared.pool);
        let segments =
            Segments::new(Arc::clone(&directory), Kind::Cache, origin, Access::Write, pool);
        let (presence, allocated, latest) = load_claims(&segments, &self.shared)?;
        self.shared.accessed_bytes.fetch_max(u64::from(latest) * TICK_BYTES, Ordering::Relaxed);
        let pins = match state_file::load(&directory, PINS_NAME) {
            Ok(bytes) => bytes.and_then(|bytes| Pins::decode(&bytes)).unwrap_or_default(),
            Err(error) => {
                // Pins are wishes: their owners make them again. Blocks lost for it are refetched.
                tracing::warn!(%error, "pins are lost");
                Pins::default()
            }
        };
        let shared = Arc::clone(&self.shared);
        let log = Arc::new(CachedLog::new(origin, shared, segments, presence, allocated, pins));
        self.shared.lock_logs().push(Arc::downgrade(&log));
        logs.insert(origin, Arc::clone(&log));
        Ok(log)
    }

    /// The origins whose logs the cache has.
    pub fn logs(&self) -> Vec<OriginId> {
        self.open_logs().keys().copied().collect()
    }

    /// What it holds.
    pub fn usage(&self) -> Usage {
        let logs: Vec<_> = self.open_logs().values().cloned().collect();
        let mut drops = Drops::default();
        for log in &logs {
            drops.damaged_blocks += log.drops().damaged_blocks;
            drops.evicted_blocks += log.drops().evicted_blocks;
        }
        let quota = self.shared.quota_bytes.load(Ordering::Relaxed);
        Usage {
            allocated_bytes: self.shared.allocated_bytes(),
            quota_bytes: (quota != u64::MAX).then_some(quota),
            reserve_bytes: self.shared.reserve_bytes,
            disk_free_bytes: self.root.disk_free_bytes().unwrap_or(0),
            held_blocks: logs.iter().map(|log| log.held_blocks_total()).sum(),
            drops,
        }
    }

    /// Changes the quota; what is over it goes at once.
    pub fn set_quota(&self, quota_bytes: Option<u64>) {
        self.shared.quota_bytes.store(quota_bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
        self.shared.barren.store(false, Ordering::Relaxed);
        // Pinned blocks may hold more than the new quota: then nothing new is kept.
        let _ = self.shared.make_room(0);
    }

    /// Makes everything durable, and keeps the disk's reserve free. Call it every second or two
    /// from a thread that may block. The first error, after all logs were tried.
    pub fn flush(&self) -> Result<(), OpenError> {
        let logs: Vec<_> = self.open_logs().values().cloned().collect();
        let mut result = Ok(());
        for log in &logs {
            if let Err(error) = log.flush() {
                result = result.and(Err(error));
            }
        }
        self.shared.free_bytes.probe();
        self.shared.make_room_ahead();
        self.shared.rewind_ticks();
        result
    }

    /// Bytes of content written since the cache was opened.
    pub fn kept_bytes(&self) -> u64 {
        self.shared.kept_bytes.load(Ordering::Relaxed)
    }

    /// Replaces a small state file of the cache as a whole, durably.
    pub fn save(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        state_file::save(&self.root, name, bytes)
    }

    /// The content of a state file of the cache; `None` if it was never saved.
    pub fn load(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        state_file::load(&self.root, name)
    }

    fn open_logs(&self) -> MutexGuard<'_, BTreeMap<OriginId, Arc<CachedLog>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory without a format is a new cache; one of another format is refused by its name.
fn check_format(root: &Directory) -> Result<(), OpenError> {
    match root.read(FORMAT_NAME, 64)? {
        None => root.replace(FORMAT_NAME, FORMAT.as_bytes()),
        Some(found) if found == FORMAT.as_bytes() => Ok(()),
        Some(found) => Err(OpenError::Format {
            path: root.path_of(FORMAT_NAME),
            found: String::from_utf8_lossy(&found).trim().to_owned(),
            expected: FORMAT.trim_ascii_end(),
        }),
    }
}

impl Shared {
    pub(super) fn count_kept(&self, bytes: u64) {
        self.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts an access and gives the time of it.
    pub(super) fn tick(&self, bytes: u64) -> Tick {
        let accessed = self.accessed_bytes.fetch_add(bytes, Ordering::Relaxed);
        Tick::try_from(accessed / TICK_BYTES).unwrap_or(Tick::MAX)
    }

    /// Halves all ticks when they have grown large: their order stays.
    fn rewind_ticks(&self) {
        let accessed = self.accessed_bytes.load(Ordering::Relaxed);
        if accessed / TICK_BYTES > TICK_HIGH {
            self.logs().iter().for_each(|log| log.state().presence.halve_ticks());
            self.accessed_bytes.fetch_sub(accessed / 2, Ordering::Relaxed);
        }
    }

    /// The logs that are in use.
    pub(super) fn logs(&self) -> Vec<Arc<CachedLog>> {
        self.lock_logs().iter().filter_map(Weak::upgrade).collect()
    }

    fn lock_logs(&self) -> MutexGuard<'_, Vec<Weak<CachedLog>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Counts disk space that is taken.
    pub(super) fn grow(&self, bytes: u64) {
        self.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.free_bytes.grown_since.fetch_add(bytes, Ordering::Relaxed) > FREE_PROBE_BYTES {
            self.free_bytes.probe();
        }
    }

    /// Counts a segment that takes `after` bytes of disk space and took `before`.
    pub(super) fn resize(&self, before: u64, after: u64) {
        let _ =
            self.allocated_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |allocated| {
                Some((allocated + after).saturating_sub(before))
            });
        if after < before {
            self.free_bytes.known.fetch_add(before - after, Ordering::Relaxed);
        }
    }

    /// By how many bytes `needed` more would break the quota or the reserve.
    pub(super) fn shortage(&self, needed: u64) -> u64 {
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        let over = (self.allocated_bytes() + needed).saturating_sub(quota);
        let taken = self.free_bytes.grown_since.load(Ordering::Relaxed) + needed;
        let free = self.free_bytes.known.load(Ordering::Relaxed).saturating_sub(taken);
        let low = self.reserve_bytes.saturating_sub(free);
        over.max(low)
    }

    pub(super) fn full(&self, needed: u64) -> PutError {
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        PutError::Full { needed, allocated: self.allocated_bytes(), quota }
    }
}

impl FreeBytes {
    fn probe(&self) {
        if let Ok(free) = self.root.disk_free_bytes() {
            self.grown_since.store(0, Ordering::Relaxed);
            self.known.store(free, Ordering::Relaxed);
        }
    }
}
