//! The content of one file: copied from what the directory holds, else from the log.

use std::fs::File as SystemFile;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::{Content, Extent, ExtentList, Extents, File};
use distd_core::node::{Purpose, Seeds, Swarm};
use distd_core::unit::{BlockIndex, BlockRange};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ftruncate, linkat, openat};
use rustix::io::Errno;

use super::GetError;
use super::place::Place;

/// Blocks that are read at once: 1 MiB.
const READ_BLOCKS: u64 = 256;

/// Where content may be copied from.
pub(super) struct Source<'a> {
    /// The file in its place already, whose attributes are wrong.
    pub(super) own: Option<(&'a Place, &'a [u8])>,
    /// A file elsewhere in the directory.
    pub(super) seed: Option<(&'a Place, &'a [u8])>,
}

/// Where content goes.
pub(super) struct Target<'a> {
    pub(super) place: &'a Place,
    pub(super) name: &'a [u8],
    /// For messages.
    pub(super) path: &'a [u8],
}

/// Where content came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) reused_bytes: u64,
    pub(super) read_bytes: u64,
}

/// Writes content.
#[derive(Clone, Copy)]
pub(super) struct Writing<'a> {
    pub(super) swarm: &'a Swarm,
    /// How long blocks may take.
    pub(super) timeout: Duration,
    /// Blocks that the directory's files hold.
    pub(super) seeds: &'a Seeds,
}

/// Hears how many bytes are written, and says whether to go on.
pub(super) type Done<'a> = &'a dyn Fn(u64) -> bool;

impl Writing<'_> {
    /// Writes a file's content under a name that is not there yet.
    pub(super) fn write(
        &self,
        target: &Target<'_>,
        file: &File,
        source: &Source<'_>,
        done: Done<'_>,
    ) -> Result<Written, GetError> {
        let failed = |errno| GetError::System { doing: "write", path: target.path.to_vec(), errno };
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let out = openat(target.place, target.name, flags, mode).map_err(failed)?;
        ftruncate(&out, file.size).map_err(failed)?;
        let out = SystemFile::from(out);
        // Holes again.
        let again = || ftruncate(&out, 0).and_then(|()| ftruncate(&out, file.size)).map_err(failed);
        for (place, name) in [source.own, source.seed].into_iter().flatten() {
            // What was read before may have changed since: only the right content counts.
            if let Ok(from) = place.open_file(name)
                && copy(from, &out, file, done).is_ok_and(|digest| digest == file.blake3)
            {
                return Ok(Written { reused_bytes: file.size, read_bytes: 0 });
            }
            if !done(0) {
                return Err(GetError::Stopped);
            }
            again()?;
        }
        let extents = extents(self.swarm, file, target.path, self.timeout)?;
        let written = self.read(target, &out, file, &extents, true, done)?;
        if written.reused_bytes == 0 || digest_of(&out, done).is_ok_and(|is| is == file.blake3) {
            return Ok(written);
        }
        if !done(0) {
            return Err(GetError::Stopped);
        }
        // A file has changed since it was looked at.
        extents.data().for_each(|blocks| self.seeds.forget(blocks));
        again()?;
        self.read(target, &out, file, &extents, false, done)
    }

    /// Reads a file from the log; what of it the directory holds, from there if `seeded`.
    fn read(
        &self,
        target: &Target<'_>,
        out: &SystemFile,
        file: &File,
        extents: &Extents,
        seeded: bool,
        done: Done<'_>,
    ) -> Result<Written, GetError> {
        let (mut at, mut written) = (0, Written::default());
        for extent in extents.iter() {
            let Extent::Data(range) = extent else {
                at += extent.blocks() * BLOCK_BYTES;
                continue;
            };
            for start in (range.start.0..range.end().0).step_by(READ_BLOCKS as usize) {
                let count = READ_BLOCKS.min(range.end().0 - start);
                let blocks = BlockRange::new(BlockIndex(start), count);
                let (bytes, reused) = self.read_blocks(target, blocks, seeded)?;
                let len = (file.size - at).min(blocks.byte_len()) as usize;
                out.write_all_at(&bytes[..len], at).map_err(|error| GetError::System {
                    doing: "write",
                    path: target.path.to_vec(),
                    errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
                })?;
                written.reused_bytes += reused.min(len as u64);
                written.read_bytes += (len as u64).saturating_sub(reused);
                at += len as u64;
                if !done(at) {
                    return Err(GetError::Stopped);
                }
            }
        }
        Ok(written)
    }

    /// Reads blocks; with them, how many bytes are the directory's.
    fn read_blocks(
        &self,
        target: &Target<'_>,
        blocks: BlockRange,
        seeded: bool,
    ) -> Result<(Vec<u8>, u64), GetError> {
        let mut bytes = vec![0; blocks.byte_len() as usize];
        let mut lacking = if seeded { self.seeds.lacking(blocks) } else { vec![blocks] };
        if lacking != [blocks] {
            lacking = self.seeds.read(blocks, &mut bytes);
        }
        let mut reused = blocks.byte_len();
        for part in lacking {
            let content = |source| GetError::Content { path: target.path.to_vec(), source };
            let deadline = Instant::now() + self.timeout;
            let read = self.swarm.read_blocking_cheaply(part, Purpose::Data, deadline);
            let from = ((part.start.0 - blocks.start.0) * BLOCK_BYTES) as usize;
            bytes[from..from + part.byte_len() as usize].copy_from_slice(&read.map_err(content)?);
            reused -= part.byte_len();
        }
        Ok((bytes, reused))
    }
}

/// Copies a whole file, with its blocks of zeros as holes; what was copied.
fn copy(
    mut from: SystemFile,
    out: &SystemFile,
    file: &File,
    done: Done<'_>,
) -> io::Result<[u8; 32]> {
    let mut buffer = vec![0; (READ_BLOCKS * BLOCK_BYTES) as usize];
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    while at < file.size {
        let most = buffer.len().min((file.size - at) as usize);
        from.read_exact(&mut buffer[..most])?;
        hasher.update(&buffer[..most]);
        for block in buffer[..most].chunks(BLOCK_BYTES as usize) {
            if block.iter().any(|byte| *byte != 0) {
                out.write_all_at(block, at)?;
            }
            at += block.len() as u64;
        }
        if !done(at) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(*hasher.finalize().as_bytes())
}

/// The digest of what was written.
fn digest_of(out: &SystemFile, done: Done<'_>) -> io::Result<[u8; 32]> {
    let mut buffer = vec![0; (READ_BLOCKS * BLOCK_BYTES) as usize];
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    loop {
        match out.read_at(&mut buffer, at) {
            Ok(0) => return Ok(*hasher.finalize().as_bytes()),
            Ok(len) => {
                hasher.update(&buffer[..len]);
                at += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if !done(at) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
}

/// Where a file's content lies.
pub(super) fn extents(
    swarm: &Swarm,
    file: &File,
    path: &[u8],
    timeout: Duration,
) -> Result<Extents, GetError> {
    let list = match &file.content {
        Content::Extents(extents) => return Ok(extents.clone()),
        Content::List(list) => *list,
    };
    let content = |source| GetError::Content { path: path.to_vec(), source };
    let bytes = swarm.read_bytes_blocking(list, Instant::now() + timeout).map_err(content)?;
    let damaged = |source| GetError::Damaged { path: path.to_vec(), source };
    ExtentList::decode(&bytes, file.size).map_err(damaged)
}

/// Gives a file below `root` another name.
pub(super) fn link_beneath(
    root: &Place,
    path: &[u8],
    to: &Place,
    name: &[u8],
) -> Result<(), Errno> {
    let file: OwnedFd = root.open_beneath(path, OFlags::PATH)?;
    // The link in /proc leads to the very file that was opened.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, path, to, name, AtFlags::SYMLINK_FOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io::Write;

    #[test]
    fn copying_stops_within_a_file() {
        let content = vec![7; 10 << 20];
        let mut from = tempfile::NamedTempFile::new().expect("a file");
        from.write_all(&content).expect("written");
        let out = tempfile::tempfile().expect("a file");
        let blake3 = *blake3::hash(&content).as_bytes();
        let content = Content::Extents(Extents::default());
        let file = File { size: 10 << 20, blake3, content };
        let copied = |most: u64| {
            let told = Cell::new(0);
            let from = SystemFile::open(from.path()).expect("open");
            let done = |bytes| {
                told.set(bytes);
                bytes < most
            };
            (copy(from, &out, &file, &done).ok(), told.get())
        };
        assert_eq!(copied(3 << 20), (None, 3 << 20));
        assert_eq!(copied(u64::MAX), (Some(blake3), 10 << 20));
    }
}
