//! Files whose content is known from an earlier publish: the same inode under the same path in the
//! same state is not read again.
//!
//! As git does ("racy clean"): a file that was changed just before the scan began may change again
//! without any of its times changing, so its state is not remembered. How long "just" is depends on
//! the file system's clock: some keep whole seconds. Entries live in the index (see
//! [`crate::index`]) and go with it when the log is another one.
//!
//! ```text
//! key    first 16 bytes of blake3(device, inode, absolute path)
//! value  publish u64 | size u64 | mtime i64 u32 | ctime i64 u32 | blake3 32 | extents (msgpack)
//! ```
//!
//! A second entry names the same extents by the content alone: a file that had to be read again, but
//! is the same, keeps its blocks, so that an unchanged tree is the same release.
//!
//! ```text
//! key    first 16 bytes of blake3("content", size, blake3 of the file)
//! value  publish u64 | size u64 | blake3 32 | extents (msgpack)
//! ```

use distd_core::manifest::{ExtentList, Extents, Timestamp};
use distd_core::unit::BlockRange;

use crate::index::{IndexError, Tables};
use crate::scan::Attributes;

/// A state counts as settled when it is older than this at the scan's start, in nanoseconds. The
/// kernel stamps with its tick (10 ms at most) where the file system keeps fractions of a second.
const SETTLED_NS: i128 = 25_000_000;
/// The same where it seems to keep whole seconds (ext3) or two (FAT).
const SETTLED_COARSE_NS: i128 = 2_500_000_000;
/// An entry that no publish has used for so many is removed.
const PUBLISHES_KEPT: u64 = 32;
/// How stale an entry's mark may become before it is written again.
const MARK_EVERY: u64 = 8;
/// Bytes before the extents.
const FIXED_BYTES: usize = 8 + STATE_BYTES + 32;
/// Bytes of the state of an inode.
const STATE_BYTES: usize = 8 + 12 + 12;

/// What is known of a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownContent {
    /// BLAKE3 of the whole.
    pub blake3: [u8; 32],
    /// Where its blocks lie.
    pub extents: Extents,
}

/// The cache as one publish sees it.
pub struct StatCache {
    /// The absolute path of the source, so that equal trees in two places do not collide.
    source: Vec<u8>,
    publish: u64,
    scan_start: Timestamp,
}

impl StatCache {
    /// For a publish with that number, of a source whose scan began at `scan_start`.
    pub fn new(source: &[u8], publish: u64, scan_start: Timestamp) -> Self {
        Self { source: source.to_vec(), publish, scan_start }
    }

    /// The content of a file, if it is in the state in which it was read before.
    pub fn find(
        &self,
        tables: &Tables<'_>,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<Option<KnownContent>, IndexError> {
        let value = tables.file(&self.key(path, attributes))?;
        let state = state(attributes);
        Ok(value.and_then(|value| decode(&value, &state, attributes.size)).map(|(_, known)| known))
    }

    /// Where the content of a file with this hash lies, if one was published.
    pub fn find_content(
        tables: &Tables<'_>,
        size: u64,
        blake3: &[u8; 32],
    ) -> Result<Option<Extents>, IndexError> {
        let value = tables.file(&content_key(size, blake3))?;
        let known = value.and_then(|value| decode(&value, &size.to_be_bytes(), size));
        Ok(known.map(|(_, known)| known).filter(|known| known.blake3 == *blake3).map(|k| k.extents))
    }

    /// Remembers a file's content for the publishes to come.
    pub fn remember(
        &self,
        tables: &mut Tables<'_>,
        path: &[u8],
        attributes: &Attributes,
        known: &KnownContent,
    ) -> Result<(), IndexError> {
        let size = attributes.size;
        if size > 0 {
            let key = content_key(size, &known.blake3);
            self.insert(tables, &key, &size.to_be_bytes(), size, known)?;
        }
        if !self.is_settled(attributes) {
            return Ok(());
        }
        self.insert(tables, &self.key(path, attributes), &state(attributes), size, known)
    }

    fn insert(
        &self,
        tables: &mut Tables<'_>,
        key: &[u8; 16],
        state: &[u8],
        size: u64,
        known: &KnownContent,
    ) -> Result<(), IndexError> {
        let old = tables.file(key)?;
        if let Some((marked, old)) = old.and_then(|old| decode(&old, state, size))
            && old == *known
            && self.publish < marked + MARK_EVERY
        {
            return Ok(());
        }
        tables.insert_file(key, &encode(self.publish, state, known))
    }

    /// Removes what was not used for long, now and then.
    pub fn expire(&self, tables: &mut Tables<'_>) -> Result<(), IndexError> {
        if !self.publish.is_multiple_of(MARK_EVERY) {
            return Ok(());
        }
        let oldest = self.publish.saturating_sub(PUBLISHES_KEPT);
        tables.retain_files(|value| {
            value.first_chunk::<8>().is_some_and(|mark| u64::from_be_bytes(*mark) >= oldest)
        })
    }

    /// Whether the file's times would show any change made after the scan began.
    fn is_settled(&self, attributes: &Attributes) -> bool {
        let Attributes { mtime, ctime, .. } = attributes;
        // mtime is set at will (`touch -d`, tar); only ctime tells what the clock is like.
        let window = if ctime.nanoseconds == 0 { SETTLED_COARSE_NS } else { SETTLED_NS };
        nanoseconds(self.scan_start) - nanoseconds(*ctime.max(mtime)) > window
    }

    fn key(&self, path: &[u8], attributes: &Attributes) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&attributes.dev.to_be_bytes()).update(&attributes.ino.to_be_bytes());
        hasher.update(&self.source).update(b"/").update(path);
        let hash = hasher.finalize();
        hash.as_bytes().first_chunk::<16>().copied().unwrap_or_default()
    }
}

fn nanoseconds(time: Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

fn content_key(size: u64, blake3: &[u8; 32]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"content").update(&size.to_be_bytes()).update(blake3);
    hasher.finalize().as_bytes().first_chunk::<16>().copied().unwrap_or_default()
}

fn encode(publish: u64, state: &[u8], known: &KnownContent) -> Vec<u8> {
    let mut value = Vec::with_capacity(FIXED_BYTES + 32);
    value.extend(publish.to_be_bytes());
    value.extend(state);
    value.extend(known.blake3);
    value.extend(ExtentList::encode(&known.extents));
    value
}

/// The state of an inode that must not have changed.
fn state(attributes: &Attributes) -> Vec<u8> {
    let mut state = attributes.size.to_be_bytes().to_vec();
    for time in [attributes.mtime, attributes.ctime] {
        state.extend(time.seconds.to_be_bytes());
        state.extend(time.nanoseconds.to_be_bytes());
    }
    state
}

/// Whether an entry of either kind refers to blocks of which `gone` says so, or cannot be understood.
pub(crate) fn refers(value: &[u8], gone: impl Fn(BlockRange) -> bool) -> bool {
    const SIZE_BYTES: usize = 8;
    let size = value.get(8..).and_then(|state| state.first_chunk::<SIZE_BYTES>());
    let size = size.map_or(0, |size| u64::from_be_bytes(*size));
    let understood = [SIZE_BYTES, STATE_BYTES]
        .into_iter()
        .filter_map(|state| ExtentList::decode(value.get(8 + state + 32..)?, size).ok());
    let mut met = None;
    for extents in understood {
        met = Some(met.unwrap_or(false) || extents.data().any(&gone));
    }
    met.unwrap_or(true)
}

/// The mark and the content; `None` for another state, or bytes that are no entry.
fn decode(value: &[u8], state: &[u8], size: u64) -> Option<(u64, KnownContent)> {
    let (mark, rest) = value.split_first_chunk::<8>()?;
    let rest = rest.strip_prefix(state)?;
    let (blake3, extents) = rest.split_first_chunk::<32>()?;
    let extents = ExtentList::decode(extents, size).ok()?;
    Some((u64::from_be_bytes(*mark), KnownContent { blake3: *blake3, extents }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;
    use distd_core::manifest::Extent;
    use distd_core::unit::{BlockIndex, BlockRange};

    fn at(seconds: i64, nanoseconds: u32) -> Timestamp {
        Timestamp { seconds, nanoseconds }
    }

    fn file(ctime: Timestamp) -> Attributes {
        Attributes {
            dev: 1,
            ino: 2,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 5000,
            sparse: false,
            mtime: at(100, 5),
            ctime,
        }
    }

    fn known() -> KnownContent {
        let extents = [Extent::Data(BlockRange::new(BlockIndex(7), 1)), Extent::Hole(1)]
            .into_iter()
            .collect();
        KnownContent { blake3: [3; 32], extents }
    }

    fn with_tables<T>(body: impl FnOnce(&mut Tables<'_>) -> T) -> T {
        let dir = tempfile::tempdir().expect("a directory");
        let index = Index::open(&dir.path().join("index")).expect("opens");
        let epoch = index.begin().expect("begins");
        let mut tables = epoch.tables().expect("opens");
        body(&mut tables)
    }

    #[test]
    fn the_same_state_is_found_and_any_other_is_not() {
        with_tables(|tables| {
            let cache = StatCache::new(b"/src", 1, at(1000, 0));
            let seen = file(at(900, 1));
            cache.remember(tables, b"a", &seen, &known()).expect("written");
            assert_eq!(cache.find(tables, b"a", &seen).expect("read"), Some(known()));
            let other = StatCache::new(b"/other", 1, at(1000, 0));
            assert_eq!(other.find(tables, b"a", &seen).expect("read"), None);
            assert_eq!(cache.find(tables, b"b", &seen).expect("read"), None);
            for changed in [
                Attributes { ino: 3, ..seen },
                Attributes { dev: 3, ..seen },
                Attributes { size: 5001, ..seen },
                Attributes { mtime: at(100, 6), ..seen },
                Attributes { ctime: at(901, 1), ..seen },
            ] {
                assert_eq!(cache.find(tables, b"a", &changed).expect("read"), None);
            }
        });
    }

    #[test]
    fn a_state_that_may_still_change_unseen_is_not_remembered() {
        with_tables(|tables| {
            let cache = StatCache::new(b"/src", 1, at(1000, 0));
            for (ctime, remembered) in [
                (at(999, 900_000_000), true),
                (at(999, 990_000_000), false),
                (at(1000, 1), false),
                (at(1001, 1), false),
                (at(999, 0), false),
                (at(998, 0), false),
                (at(997, 0), true),
            ] {
                let seen = file(ctime);
                cache.remember(tables, b"a", &seen, &known()).expect("written");
                let found = cache.find(tables, b"a", &seen).expect("read");
                assert_eq!(found.is_some(), remembered, "{ctime:?}");
            }
        });
    }

    #[test]
    fn what_refers_to_gone_blocks_is_found() {
        let seen = file(at(900, 1));
        let known = known();
        let first = known.extents.data().next().expect("it has content");
        for state in [state(&seen), seen.size.to_be_bytes().to_vec()] {
            let value = encode(7, &state, &known);
            assert!(refers(&value, |blocks| blocks == first));
            assert!(!refers(&value, |_| false));
            assert!(refers(&value[..value.len() - 1], |_| false));
        }
    }

    #[test]
    fn what_no_publish_uses_is_removed_and_what_is_used_stays() {
        with_tables(|tables| {
            let (used, unused) = (file(at(900, 1)), file(at(901, 1)));
            for publish in 1..=100 {
                let cache = StatCache::new(b"/src", publish, at(1000, 0));
                if publish == 1 {
                    cache.remember(tables, b"unused", &unused, &known()).expect("written");
                }
                cache.remember(tables, b"used", &used, &known()).expect("written");
                cache.expire(tables).expect("expired");
                assert!(cache.find(tables, b"used", &used).expect("read").is_some(), "{publish}");
            }
            let cache = StatCache::new(b"/src", 101, at(1000, 0));
            assert_eq!(cache.find(tables, b"unused", &unused).expect("read"), None);
        });
    }
}
