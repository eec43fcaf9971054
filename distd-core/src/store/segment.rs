//! The layout of a segment, one sparse file per GiB of a log, and the descriptors of open segments.
//!
//! ```text
//! offset    bytes    what
//! 0         4096     header: magic, version, kind, origin, segment number, checksum
//! 4096      32768    presence map: one bit per block                           (caches only)
//! 65536     131072   access ticks: one u16 per granule                         (caches only)
//! 262144    131072   munro records: 1,024 of 128 bytes (hash, time, signature)
//! 16 MiB    16 MiB   node tables: 1,024 of 512 hashes in the order of `MunroTree::slot`
//! 32 MiB    1 GiB    content
//! ```
//!
//! A segment says nothing about itself that is believed: content and node tables are checked against
//! munro records, and those by their signatures. `docs/format.md` is the full account.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::keys::{NtpTime, OriginId};
use crate::limits::{BLOCK_BYTES, GRANULE_BYTES, MUNRO_BYTES};
use crate::tree::{NodeHash, SignedMunro};
use crate::unit::{BlockIndex, MunroIndex};

use super::directory::{Access, Directory, Fault};
use super::{DiskError, OpenError};

/// Log bytes in one segment.
pub(super) const SEGMENT_BYTES: u64 = 1 << 30;
/// Munros in one segment.
pub(super) const SEGMENT_MUNROS: u64 = SEGMENT_BYTES / MUNRO_BYTES;
/// Bytes of one munro's node table.
pub(super) const TABLE_BYTES: u64 = 512 * 32;
/// The beginning of a node table, down to the granules: one page.
pub(super) const GRANULE_TABLE_BYTES: u64 = 128 * 32;
/// Offset of the content.
pub(super) const CONTENT_OFFSET: u64 = 32 << 20;

const HEADER_BYTES: usize = 104;
const MAP_OFFSET: u64 = 4 << 10;
const TICKS_OFFSET: u64 = 64 << 10;
const RECORDS_OFFSET: u64 = 256 << 10;
const RECORD_BYTES: usize = 128;
const TABLES_OFFSET: u64 = 16 << 20;
const FILE_BYTES: u64 = CONTENT_OFFSET + SEGMENT_BYTES;
const MAGIC: &[u8; 16] = b"distd segment\0\0\0";
const VERSION: u32 = 1;

const _: () = assert!(MAP_OFFSET + SEGMENT_BYTES / BLOCK_BYTES / 8 <= TICKS_OFFSET);
const _: () = assert!(TICKS_OFFSET + SEGMENT_BYTES / GRANULE_BYTES * 2 <= RECORDS_OFFSET);
const _: () = assert!(RECORDS_OFFSET + SEGMENT_MUNROS * RECORD_BYTES as u64 <= TABLES_OFFSET);
const _: () = assert!(TABLES_OFFSET + SEGMENT_MUNROS * TABLE_BYTES <= CONTENT_OFFSET);

/// Whose segments they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Cache,
    Log,
}

/// The segments of one log in one directory.
pub(super) struct Segments {
    directory: Arc<Directory>,
    kind: Kind,
    origin: OriginId,
    access: Access,
    pool: Arc<DescriptorPool>,
    changing: Mutex<()>,
}

/// One open segment.
pub(super) struct SegmentFile {
    file: File,
    path: PathBuf,
    fault: Fault,
}

/// A bounded number of open descriptors, least recently used closed first.
pub(super) struct DescriptorPool {
    open: Mutex<LruCache<(OriginId, u64), Arc<SegmentFile>>>,
}

impl DescriptorPool {
    /// A quarter of what the process may open, at least 4 and at most 256: the rest is for sockets.
    pub(super) fn new() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(1024);
        Self::with_bound((limit / 4).clamp(4, 256) as usize)
    }

    fn with_bound(bound: usize) -> Self {
        let bound = std::num::NonZeroUsize::new(bound).unwrap_or(std::num::NonZeroUsize::MIN);
        Self { open: Mutex::new(LruCache::new(bound)) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<(OriginId, u64), Arc<SegmentFile>>> {
        // A cache of descriptors is whole after every statement: a panic elsewhere leaves it so.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segments {
    pub(super) fn new(
        directory: Arc<Directory>,
        kind: Kind,
        origin: OriginId,
        access: Access,
        pool: Arc<DescriptorPool>,
    ) -> Self {
        Self { directory, kind, origin, access, pool, changing: Mutex::new(()) }
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The segment that holds a munro.
    pub(super) fn number_of(munro: MunroIndex) -> u64 {
        munro.0 / SEGMENT_MUNROS
    }

    /// Numbers of the segments on the disk, ascending.
    pub(super) fn list(&self) -> Result<Vec<u64>, DiskError> {
        let number = |name: String| {
            let digits = name.strip_suffix(".segment").filter(|digits| digits.len() == 8)?;
            u64::from_str_radix(digits, 16).ok()
        };
        let mut numbers: Vec<u64> =
            self.directory.names()?.into_iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// An existing segment; `None` if there is none, or none of this log and version.
    pub(super) fn open(&self, number: u64) -> Result<Option<Arc<SegmentFile>>, OpenError> {
        if let Some(file) = self.pooled(number) {
            return Ok(Some(file));
        }
        let _one = self.changing();
        self.open_alone(number)
    }

    fn pooled(&self, number: u64) -> Option<Arc<SegmentFile>> {
        self.pool.lock().get(&(self.origin, number)).map(Arc::clone)
    }

    /// Opening, making and removing go one at a time: else a descriptor of a file that was removed
    /// meanwhile could enter the pool, or two threads could each make the same segment.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_alone(&self, number: u64) -> Result<Option<Arc<SegmentFile>>, OpenError> {
        if let Some(file) = self.pooled(number) {
            return Ok(Some(file));
        }
        let Some(file) = self.open_file(number, self.access)? else { return Ok(None) };
        if !file.has_header(&self.header(number))? {
            return Ok(None);
        }
        Ok(Some(self.keep(number, file)))
    }

    /// The segment, made if there is none. In a cache, one that is not of this log and version is
    /// replaced; in an origin's log nothing is, it may hold what nobody else has.
    pub(super) fn open_or_create(&self, number: u64) -> Result<Arc<SegmentFile>, OpenError> {
        if let Some(file) = self.pooled(number) {
            return Ok(file);
        }
        let _one = self.changing();
        if let Some(file) = self.open_alone(number)? {
            return Ok(file);
        }
        if self.kind == Kind::Log && self.open_file(number, Access::Read)?.is_some() {
            return Err(OpenError::Format {
                path: self.directory.path_of(&Self::name(number)),
                found: "no header of this log".to_owned(),
                expected: "a segment",
            });
        }
        self.directory.remove(&Self::name(number))?;
        let file = match self.open_file(number, Access::Create)? {
            Some(file) => file,
            None => self.wrap(number, self.directory.created(&Self::name(number))?),
        };
        file.set_len(FILE_BYTES)?;
        file.write(0, &self.header(number))?;
        self.directory.sync()?;
        Ok(self.keep(number, file))
    }

    /// Removes a segment.
    pub(super) fn remove(&self, number: u64) -> Result<(), DiskError> {
        let _one = self.changing();
        self.pool.lock().pop(&(self.origin, number));
        self.directory.remove(&Self::name(number))
    }

    fn name(number: u64) -> String {
        format!("{number:08x}.segment")
    }

    fn open_file(&self, number: u64, access: Access) -> Result<Option<SegmentFile>, OpenError> {
        let name = Self::name(number);
        let opened = match self.directory.file(&name, access) {
            Err(OpenError::Disk(error)) if is_out_of_descriptors(&error.source) => {
                // Others in the process took more than expected: give ours back and try once more.
                self.pool.lock().clear();
                self.directory.file(&name, access)
            }
            other => other,
        };
        Ok(opened?.map(|file| self.wrap(number, file)))
    }

    fn wrap(&self, number: u64, file: File) -> SegmentFile {
        let path = self.directory.path_of(&Self::name(number));
        SegmentFile { file, path, fault: self.directory.fault().clone() }
    }

    fn keep(&self, number: u64, file: SegmentFile) -> Arc<SegmentFile> {
        let file = Arc::new(file);
        self.pool.lock().put((self.origin, number), Arc::clone(&file));
        file
    }

    fn header(&self, number: u64) -> [u8; HEADER_BYTES] {
        let kind: u32 = match self.kind {
            Kind::Cache => 1,
            Kind::Log => 2,
        };
        let mut header = [0; HEADER_BYTES];
        let (content, sum) = header.split_at_mut(HEADER_BYTES - 32);
        let fields: [&[u8]; 6] = [
            MAGIC,
            &VERSION.to_le_bytes(),
            &kind.to_le_bytes(),
            &number.to_le_bytes(),
            &[0; 8],
            &self.origin.0,
        ];
        for (to, from) in content.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        sum.copy_from_slice(blake3::hash(content).as_bytes());
        header
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

impl SegmentFile {
    /// Reads what is there; bytes beyond the file's end stay zero.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DiskError> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + done as u64) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(DiskError::new("read", &self.path, source)),
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.fault
            .strike()
            .and_then(|()| self.file.write_all_at(bytes, offset))
            .map_err(|source| DiskError::new("write", &self.path, source))
    }

    /// Writes parts one behind the other, in as few calls as the kernel grants.
    pub(super) fn write_parts(&self, offset: u64, parts: &[&[u8]]) -> Result<(), DiskError> {
        let write = || -> io::Result<()> {
            self.fault.strike()?;
            let mut slices: Vec<io::IoSlice<'_>> =
                parts.iter().map(|part| io::IoSlice::new(part)).collect();
            let (mut rest, mut at) = (&mut slices[..], offset);
            io::IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match rustix::io::pwritev(&self.file, &rest[..rest.len().min(IOV_MAX)], at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        io::IoSlice::advance_slices(&mut rest, count);
                        at += count as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        };
        write().map_err(|source| DiskError::new("write", &self.path, source))
    }

    /// The bytes of a range, in a buffer that nothing zeroed first.
    pub(super) fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            // The capacity may be larger than asked for.
            let at = offset + bytes.len() as u64;
            let into = rustix::buffer::spare_capacity(&mut bytes);
            match rustix::io::pread(&self.file, into, at) {
                Ok(0) => bytes.resize(len, 0),
                Ok(_) => bytes.truncate(len),
                Err(Errno::INTR) => {}
                Err(source) => return Err(DiskError::new("read", &self.path, source)),
            }
        }
        Ok(bytes)
    }

    /// Gives the disk space of a range back; it reads as zeros then.
    pub(super) fn punch(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fault
            .strike()
            .and_then(|()| Ok(rustix::fs::fallocate(&self.file, flags, offset, len)?))
            .map_err(|source| DiskError::new("punch a hole into", &self.path, source))
    }

    pub(super) fn sync(&self) -> Result<(), DiskError> {
        self.fault
            .strike()
            .and_then(|()| self.file.sync_data())
            .map_err(|source| DiskError::new("sync", &self.path, source))?;
        self.fault.synced(&self.path);
        Ok(())
    }

    /// Disk space in use, in bytes.
    pub(super) fn allocated_bytes(&self) -> Result<u64, DiskError> {
        self.metadata().map(|metadata| metadata.blocks() * 512)
    }

    pub(super) fn len(&self) -> Result<u64, DiskError> {
        self.metadata().map(|metadata| metadata.len())
    }

    /// Whether the file has lost its name.
    pub(super) fn is_removed(&self) -> Result<bool, DiskError> {
        self.metadata().map(|metadata| metadata.nlink() == 0)
    }

    fn metadata(&self) -> Result<std::fs::Metadata, DiskError> {
        self.file.metadata().map_err(|source| DiskError::new("examine", &self.path, source))
    }

    fn set_len(&self, len: u64) -> Result<(), DiskError> {
        self.fault
            .strike()
            .and_then(|()| self.file.set_len(len))
            .map_err(|source| DiskError::new("extend", &self.path, source))
    }

    fn has_header(&self, expected: &[u8; HEADER_BYTES]) -> Result<bool, DiskError> {
        let mut found = [0; HEADER_BYTES];
        self.read(0, &mut found)?;
        Ok(found == *expected)
    }

    /// The record of a munro; `None` where there is none. It is a claim until its signature holds.
    pub(super) fn record(&self, munro: MunroIndex) -> Result<Option<SignedMunro>, DiskError> {
        let mut record = [0; RECORD_BYTES];
        self.read(record_offset(munro), &mut record)?;
        Ok(decode_record(munro, &record))
    }

    pub(super) fn write_record(&self, signed: &SignedMunro) -> Result<(), DiskError> {
        self.write(record_offset(signed.munro), &encode_record(signed))
    }
}

/// Parts that the kernel takes in one call.
const IOV_MAX: usize = 1024;

/// Where a munro's record lies.
pub(super) const fn record_offset(munro: MunroIndex) -> u64 {
    RECORDS_OFFSET + munro.0 % SEGMENT_MUNROS * RECORD_BYTES as u64
}

/// One past the last record.
pub(super) const RECORDS_END: u64 = RECORDS_OFFSET + SEGMENT_MUNROS * RECORD_BYTES as u64;

/// Where a munro's node table lies.
pub(super) const fn table_offset(munro: MunroIndex) -> u64 {
    TABLES_OFFSET + munro.0 % SEGMENT_MUNROS * TABLE_BYTES
}

/// Where a block's content lies.
pub(super) const fn content_offset(block: BlockIndex) -> u64 {
    CONTENT_OFFSET + block.byte_offset() % SEGMENT_BYTES
}

/// Where a munro's 32 bytes of the presence map lie.
pub(super) const fn map_offset(munro: MunroIndex) -> u64 {
    MAP_OFFSET + munro.0 % SEGMENT_MUNROS * 32
}

/// Where a munro's 64 access ticks lie.
pub(super) const fn ticks_offset(munro: MunroIndex) -> u64 {
    TICKS_OFFSET + munro.0 % SEGMENT_MUNROS * 128
}

/// ```text
/// 0   hash (32)   32  time, NTP, little endian (8)   40  signature (64)   104  zero (24)
/// ```
pub(super) fn encode_record(signed: &SignedMunro) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    let time = signed.time.0.to_le_bytes();
    let fields = signed.hash.0.iter().chain(&time).chain(&signed.signature);
    for (to, from) in record.iter_mut().zip(fields) {
        *to = *from;
    }
    record
}

pub(super) fn decode_record(munro: MunroIndex, record: &[u8]) -> Option<SignedMunro> {
    let (hash, rest) = record.split_first_chunk::<32>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (signature, _) = rest.split_first_chunk::<64>()?;
    if signature == &[0; 64] {
        return None;
    }
    let (hash, time) = (NodeHash(*hash), NtpTime(u64::from_le_bytes(*time)));
    Some(SignedMunro { munro, hash, time, signature: *signature })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::OriginKey;
    use crate::tree::VerifiedMunro;

    #[test]
    fn a_record_keeps_a_signature() {
        let key = OriginKey::from_seed(&[3; 32]);
        let time = NtpTime::from_unix(1_800_000_000, 5);
        let signed = VerifiedMunro::sign(&key, MunroIndex(77), NodeHash([8; 32]), time).signed();
        assert_eq!(decode_record(MunroIndex(77), &encode_record(&signed)), Some(signed));
        assert_eq!(decode_record(MunroIndex(77), &[0; RECORD_BYTES]), None);
    }

    #[test]
    fn a_segment_of_another_log_number_kind_or_version_is_not_opened() {
        let temp = tempfile::tempdir().expect("tempdir");
        let directory = Arc::new(Directory::private(temp.path()).expect("opened"));
        let segments = |kind, origin| {
            let pool = Arc::new(DescriptorPool::new());
            let origin = OriginId([origin; 32]);
            Segments::new(Arc::clone(&directory), kind, origin, Access::Write, pool)
        };
        segments(Kind::Cache, 1).open_or_create(5).expect("created");
        assert_eq!(segments(Kind::Cache, 1).list().expect("listed"), vec![5]);
        assert!(segments(Kind::Cache, 1).open(5).expect("readable").is_some());
        assert!(segments(Kind::Cache, 2).open(5).expect("readable").is_none());
        assert!(segments(Kind::Log, 1).open(5).expect("readable").is_none());
        let (five, six) =
            (temp.path().join("00000005.segment"), temp.path().join("00000006.segment"));
        std::fs::rename(five, &six).expect("renamed");
        assert!(segments(Kind::Cache, 1).open(6).expect("readable").is_none());
        // A future version: replaced in a cache, never guessed.
        let file = std::fs::OpenOptions::new().write(true).open(&six).expect("opened");
        file.write_all_at(&9u32.to_le_bytes(), 16).expect("written");
        assert!(segments(Kind::Cache, 1).open(6).expect("readable").is_none());
        segments(Kind::Cache, 1).open_or_create(6).expect("replaced");
        assert!(segments(Kind::Cache, 1).open(6).expect("readable").is_some());
    }

    #[test]
    fn descriptors_are_bounded() {
        let temp = tempfile::tempdir().expect("tempdir");
        let directory = Arc::new(Directory::private(temp.path()).expect("opened"));
        let pool = Arc::new(DescriptorPool::with_bound(4));
        let origin = OriginId([1; 32]);
        let segments = Segments::new(directory, Kind::Cache, origin, Access::Write, pool);
        for number in (0..20).chain(0..20) {
            segments.open_or_create(number).expect("opened");
        }
        let here = |entry: &std::fs::DirEntry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|target| target.starts_with(temp.path()) && target.extension().is_some())
        };
        let open = std::fs::read_dir("/proc/self/fd").expect("listed").flatten().filter(here);
        assert_eq!(open.count(), 4);
    }
}
