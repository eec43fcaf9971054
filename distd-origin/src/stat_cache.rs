//! Files whose content is known from an earlier publish: the same inode under the same path in the
//! same state is not read again.
//!
//! As git does ("racy clean"): a file that was changed less than a second before the scan began may
//! change again without any of its times changing, so its state is not remembered. Entries live in
//! the index (see [`crate::index`]) and go with it when the log is another one.
//!
//! ```text
//! key    first 16 bytes of blake3(device, inode, absolute path)
//! value  publish u64 | size u64 | mtime i64 u32 | ctime i64 u32 | blake3 32 | extents (msgpack)
//! ```

use distd_core::manifest::{ExtentList, Extents, Timestamp};

use crate::index::{IndexError, Tables};
use crate::scan::Attributes;

/// A state counts as settled when it is older than this at the scan's start, in nanoseconds: more
/// than the resolution of any file system's clock but FAT's (two seconds, which it rounds down).
const SETTLED_NS: i128 = 1_000_000_000;
/// An entry that no publish has used for so many is removed.
const PUBLISHES_KEPT: u64 = 32;
/// How stale an entry's mark may become before it is written again.
const MARK_EVERY: u64 = 8;
/// Bytes before the extents.
const FIXED_BYTES: usize = 8 + 8 + 12 + 12 + 32;

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
        Ok(value.and_then(|value| decode(&value, attributes)).map(|(_, known)| known))
    }

    /// Remembers a file's content for the publishes to come.
    pub fn remember(
        &self,
        tables: &mut Tables<'_>,
        path: &[u8],
        attributes: &Attributes,
        known: &KnownContent,
    ) -> Result<(), IndexError> {
        if !self.is_settled(attributes) {
            return Ok(());
        }
        let key = self.key(path, attributes);
        let old = tables.file(&key)?;
        if let Some((marked, old)) = old.and_then(|old| decode(&old, attributes)) {
            if old == *known && self.publish < marked + MARK_EVERY {
                return Ok(());
            }
        }
        tables.insert_file(&key, &encode(self.publish, attributes, known))
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
        let newest = attributes.ctime.max(attributes.mtime);
        nanoseconds(self.scan_start) - nanoseconds(newest) > SETTLED_NS
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

fn encode(publish: u64, attributes: &Attributes, known: &KnownContent) -> Vec<u8> {
    let mut value = Vec::with_capacity(FIXED_BYTES + 32);
    value.extend(publish.to_be_bytes());
    value.extend(state(attributes));
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

/// The mark and the content; `None` for another state, or bytes that are no entry.
fn decode(value: &[u8], attributes: &Attributes) -> Option<(u64, KnownContent)> {
    let (mark, rest) = value.split_first_chunk::<8>()?;
    let rest = rest.strip_prefix(state(attributes).as_slice())?;
    let (blake3, extents) = rest.split_first_chunk::<32>()?;
    let extents = ExtentList::decode(extents, attributes.size).ok()?;
    Some((u64::from_be_bytes(*mark), KnownContent { blake3: *blake3, extents }))
}
