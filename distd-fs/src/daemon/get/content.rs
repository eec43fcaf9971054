//! The content of one file: copied from what the directory holds, else from the log.

use std::fs::File as SystemFile;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::{Content, Extent, ExtentList, Extents, File};
use distd_core::node::{Purpose, Swarm};
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

/// Writes a file's content under a name that is not there yet; `done` hears how many bytes are written.
pub(super) fn write(
    swarm: &Swarm,
    target: &Target<'_>,
    file: &File,
    source: &Source<'_>,
    timeout: Duration,
    done: &mut dyn FnMut(u64),
) -> Result<Written, GetError> {
    let failed = |errno| GetError::System { doing: "write", path: target.path.to_vec(), errno };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let out = openat(target.place, target.name, flags, mode).map_err(failed)?;
    ftruncate(&out, file.size).map_err(failed)?;
    let out = SystemFile::from(out);
    for (place, name) in [source.own, source.seed].into_iter().flatten() {
        // What was read before may have changed since: only the right content counts.
        if let Ok(from) = place.open_beneath(name, OFlags::RDONLY)
            && copy(from.into(), &out, file, done).is_ok_and(|digest| digest == file.blake3)
        {
            return Ok(Written { reused_bytes: file.size, read_bytes: 0 });
        }
        // Holes again.
        ftruncate(&out, 0).and_then(|()| ftruncate(&out, file.size)).map_err(failed)?;
    }
    read(swarm, target, &out, file, timeout, done)?;
    Ok(Written { reused_bytes: 0, read_bytes: file.size })
}

/// Copies a whole file, with its blocks of zeros as holes; what was copied.
fn copy(
    mut from: SystemFile,
    out: &SystemFile,
    file: &File,
    done: &mut dyn FnMut(u64),
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
        done(at);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Reads a file from the log.
fn read(
    swarm: &Swarm,
    target: &Target<'_>,
    out: &SystemFile,
    file: &File,
    timeout: Duration,
    done: &mut dyn FnMut(u64),
) -> Result<(), GetError> {
    let extents = extents(swarm, file, target.path, timeout)?;
    let mut at = 0;
    for extent in extents.iter() {
        let Extent::Data(range) = extent else {
            at += extent.blocks() * BLOCK_BYTES;
            continue;
        };
        for start in (range.start.0..range.end().0).step_by(READ_BLOCKS as usize) {
            let count = READ_BLOCKS.min(range.end().0 - start);
            let blocks = BlockRange::new(BlockIndex(start), count);
            let content = |source| GetError::Content { path: target.path.to_vec(), source };
            let deadline = Instant::now() + timeout;
            let bytes =
                swarm.read_blocking_cheaply(blocks, Purpose::Data, deadline).map_err(content)?;
            let len = (file.size - at).min(blocks.byte_len()) as usize;
            out.write_all_at(&bytes[..len], at).map_err(|error| GetError::System {
                doing: "write",
                path: target.path.to_vec(),
                errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            })?;
            at += len as u64;
            done(at);
        }
    }
    Ok(())
}

/// Where a file's content lies in the log.
pub(super) fn ranges(
    swarm: &Swarm,
    file: &File,
    path: &[u8],
    timeout: Duration,
) -> Result<Vec<BlockRange>, GetError> {
    Ok(extents(swarm, file, path, timeout)?.data().collect())
}

fn extents(
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
