//! Whether this kernel can be trusted with the erofs view.
//!
//! Some kernels turn a read that fails below a file-backed EROFS into zeros. So a scratch log is mounted
//! like a release, in no place: a file's first half is there, and reads of the second fail. What its
//! reader gets decides. A good verdict is kept until the machine starts anew.

use std::fs;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::ReleaseImage;
use distd_core::unit::{BlockIndex, BlockRange};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, pread};

use crate::blocks::{Blocks, Done, Purpose, Unavailable};

use super::attach::{self, AttachError, Flags, Order, Place, Refused, refused};
use super::hidden::Hidden;
use super::record;
use super::superblock::Superblock;
use super::view::Refusal;

/// Name of the good verdict in the runtime directory.
const VERDICT: &str = "erofs-trusted";
/// How long the scratch log's reads wait: there is nobody to wait for.
const TIMEOUT: Duration = Duration::from_secs(5);
const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks of the image: superblock and inodes, and the root's listing.
const IMAGE_BLOCKS: u64 = 2;
/// Blocks of the file, and how many of them can be read.
const FILE_BLOCKS: u64 = 32;
const GOOD_BLOCKS: u64 = 16;
/// The file's name.
const FILE: &str = "f";
/// What its good half is full of.
const FILL: u8 = 0xa5;
/// Where the log begins among the addresses of all devices.
const LOG_ADDRESS: u64 = 256;

/// Finds out, unless it is known.
pub(crate) fn verdict() -> Result<(), Refusal> {
    let known = record::runtime_directory().join(VERDICT);
    if known.exists() {
        return Ok(());
    }
    let begin = Instant::now();
    let hidden = Hidden::new(Arc::new(Scratch), TIMEOUT, "a scratch log".into());
    let mut hidden = hidden.map_err(Refusal::Superblock)?;
    hidden.journal = None;
    let superblock = Superblock::open(Arc::new(hidden)).map_err(Refusal::Superblock)?;
    let blocks = BlockRange::new(BlockIndex(0), IMAGE_BLOCKS);
    let image = ReleaseImage { blocks, device_block: LOG_ADDRESS, devices: 1 };
    let source = "distd-probe";
    let room = superblock.hidden.enter(source, &image)?;
    let flags = Flags { suid: false, dev: false, exec: false };
    let place = Place::Tried;
    let (name, source) = (room.name.clone(), source.to_owned());
    let order = Order { room: name, source, devices: image.devices, flags, place };
    let tried = attach::run(&superblock, &order, TIMEOUT);
    superblock.hidden.leave(&room);
    tried.map_err(|error| match error {
        AttachError::Refused(refused) => Refusal::Kernel(refused),
        error => Refusal::Attach(error),
    })?;
    tracing::debug!("the erofs view was probed in {} ms", begin.elapsed().as_millis());
    if let Err(error) = record::make_runtime_directory().and_then(|()| fs::write(&known, "")) {
        tracing::debug!(%error, "the next mount probes again");
    }
    Ok(())
}

/// The helper's side: reads the file of a scratch mount.
pub(super) fn examine(mount: BorrowedFd<'_>) -> Result<(), Refused> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(mount, FILE, flags, Mode::empty());
    let file = file.map_err(refused("EROFS over FUSE does not work here"))?;
    let mut buffer = vec![0; FILE_BLOCKS as usize * BLOCK];
    let good = GOOD_BLOCKS * BLOCK_BYTES;
    let read = |buffer: &mut [u8], at| pread(&file, buffer, at);
    let wrong = refused("this kernel's EROFS shows zeros where a read fails");
    // From the middle on, and from the beginning: as one request and by the kernel's read-ahead.
    for at in [good, good + BLOCK_BYTES, good * 2 - BLOCK_BYTES] {
        if read(&mut buffer[..BLOCK], at).is_ok() {
            return Err(wrong(Errno::ILSEQ));
        }
    }
    let count = read(&mut buffer, 0).map_err(refused("EROFS over FUSE cannot be read here"))?;
    let right = count > 0 && count as u64 <= good && buffer[..count].iter().all(|b| *b == FILL);
    if right { Ok(()) } else { Err(wrong(Errno::ILSEQ)) }
}

/// The scratch log: an image, and a file whose second half nobody has.
struct Scratch;

impl Scratch {
    fn held(blocks: BlockRange) -> BlockRange {
        blocks.intersection(BlockRange::new(BlockIndex(0), IMAGE_BLOCKS + GOOD_BLOCKS))
    }
}

impl Blocks for Scratch {
    fn read_now(&self, blocks: BlockRange, out: &mut [u8]) -> Result<bool, Unavailable> {
        if self.held_blocks(blocks) < blocks.count {
            return Ok(false);
        }
        let image = image();
        for (block, out) in blocks.iter().zip(out.chunks_mut(BLOCK)) {
            let at = block.0 as usize * BLOCK;
            match image.get(at..at + BLOCK) {
                Some(content) => out.copy_from_slice(content),
                None => out.fill(FILL),
            }
        }
        Ok(true)
    }

    fn read(&self, _: BlockRange, _: Purpose, _: Instant, done: Done) {
        done(Err::<Bytes, _>(Unavailable("as it should".into())));
    }

    fn prefetch(&self, _: Vec<BlockRange>, _: Purpose) {}

    fn held_blocks(&self, blocks: BlockRange) -> u64 {
        Self::held(blocks).count
    }

    fn fetched_bytes(&self) -> u64 {
        0
    }

    fn end(&self) -> BlockIndex {
        BlockIndex(IMAGE_BLOCKS + FILE_BLOCKS)
    }
}

/// The smallest image that has a file on another device. Offsets are those of EROFS's on-disk format.
fn image() -> Vec<u8> {
    const SUPERBLOCK: usize = 1024;
    const DEVICES: usize = 2048;
    const ROOT_SLOT: u16 = 36;
    let mut image = vec![0; IMAGE_BLOCKS as usize * BLOCK];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(SUPERBLOCK, &0xe0f5_e1e2_u32.to_le_bytes());
    put(SUPERBLOCK + 12, &[12]);
    put(SUPERBLOCK + 14, &ROOT_SLOT.to_le_bytes());
    put(SUPERBLOCK + 16, &2u64.to_le_bytes());
    put(SUPERBLOCK + 36, &(IMAGE_BLOCKS as u32).to_le_bytes());
    // Chunked files, and a table of devices.
    put(SUPERBLOCK + 80, &0xc_u32.to_le_bytes());
    put(SUPERBLOCK + 86, &1u16.to_le_bytes());
    put(SUPERBLOCK + 88, &(DEVICES as u16 / 128).to_le_bytes());
    put(DEVICES + 64, &((IMAGE_BLOCKS + FILE_BLOCKS) as u32).to_le_bytes());
    put(DEVICES + 68, &(LOG_ADDRESS as u32).to_le_bytes());
    let listing: [(u16, u8, &str); 3] =
        [(ROOT_SLOT, 2, "."), (ROOT_SLOT, 2, ".."), (ROOT_SLOT + 1, 1, FILE)];
    let mut name_at = 12 * listing.len();
    for (index, (slot, kind, name)) in listing.into_iter().enumerate() {
        let entry = BLOCK + 12 * index;
        put(entry, &u64::from(slot).to_le_bytes());
        put(entry + 8, &(name_at as u16).to_le_bytes());
        put(entry + 10, &[kind]);
        put(BLOCK + name_at, name.as_bytes());
        name_at += name.len();
    }
    let file_bytes = (FILE_BLOCKS * BLOCK_BYTES) as u32;
    let file_address = (LOG_ADDRESS + IMAGE_BLOCKS) as u32;
    for (slot, mode, links, size, address) in [
        (ROOT_SLOT, 0o040_500_u16, 2u16, name_at as u32, 1),
        (ROOT_SLOT + 1, 0o100_400, 1, file_bytes, file_address),
    ] {
        // Compact inodes, their data in one run.
        let inode = usize::from(slot) * 32;
        put(inode + 4, &mode.to_le_bytes());
        put(inode + 6, &links.to_le_bytes());
        put(inode + 8, &size.to_le_bytes());
        put(inode + 16, &address.to_le_bytes());
        put(inode + 20, &u32::from(slot).to_le_bytes());
    }
    image
}
