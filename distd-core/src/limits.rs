//! Every bound of the system, in one place, with its unit in its name.
//!
//! A value that comes from a peer, a disk or a user is compared with one of these before memory is
//! taken for it. What happens at the bound is said at the place that checks it.

/// Chunk: the wire's unit (RFC 7574 §8.1) and one BLAKE3 chunk, in bytes.
pub const CHUNK_BYTES: u64 = 1 << 10;
/// Block: the unit of layout, of deduplication and of an EROFS image, in bytes.
pub const BLOCK_BYTES: u64 = 1 << 12;
/// Granule: the unit of bulk transfer, of HAVE and of eviction, in bytes.
pub const GRANULE_BYTES: u64 = 1 << 14;
/// Munro: the signed subtree (RFC 7574 §6.1.2.1), in bytes.
pub const MUNRO_BYTES: u64 = 1 << 20;

/// Layer of a block's node in the log's tree (a chunk is layer 0).
pub const BLOCK_LAYER: u32 = 2;
/// Layer of a granule's node.
pub const GRANULE_LAYER: u32 = 4;
/// Layer of a munro's node.
pub const MUNRO_LAYER: u32 = 10;

/// Longest log, in munros: 2^40 bytes of munros are 2^60 bytes of log, far below the 64-bit bin
/// space, so that no bin or byte offset of a valid log overflows.
pub const LOG_MUNROS_MAX: u64 = 1 << 40;

/// Largest UDP payload that distd sends: Ethernet's 1,500 bytes less the IPv4 and UDP headers.
pub const DATAGRAM_BYTES_MAX: usize = 1472;

/// The head is one block.
pub const HEAD_BYTES_MAX: usize = 4096;
/// Tracks in one head; a further one is refused at publish.
pub const TRACKS_MAX: usize = 24;
/// Length of a track's name or a release's version, in bytes.
pub const LABEL_BYTES_MAX: usize = 48;
/// Length of a release's message (`publish -m`), in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Length of a file name, in bytes (NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Length of a symlink's target, in bytes (PATH_MAX).
pub const TARGET_BYTES_MAX: usize = 4095;
/// Extended attributes of one entry, names and values together, in bytes (as the VFS: 64 KiB).
pub const XATTR_BYTES_MAX: usize = 1 << 16;
/// One directory node, extent list, catalog or release record, encoded, in bytes.
pub const NODE_BYTES_MAX: u64 = 64 << 20;
/// Extents that an entry carries inline; more go into an extent list of their own.
pub const INLINE_EXTENTS_MAX: usize = 8;
/// Depth of a published directory tree.
pub const TREE_DEPTH_MAX: usize = 512;
/// Extents in a release record's list of metadata blocks; a release whose nodes are scattered wider
/// is walked instead.
pub const METADATA_EXTENTS_MAX: usize = 4096;
/// Runs of blocks in a release's profile; what is used later than these is left out.
pub const PROFILE_RANGES_MAX: usize = 1 << 16;
/// Bits of a block's address in an EROFS image.
pub const IMAGE_ADDRESS_BITS: u32 = 32;
/// Blocks of a release's EROFS metadata image (4 GiB); a release that needs more has none.
pub const IMAGE_BLOCKS_MAX: u64 = 1 << 20;
/// Devices that such an image expects, each showing some 16 TiB of the log: as many as its first block lists.
pub const IMAGE_DEVICES_MAX: u16 = 23;
/// Releases in a catalog.
pub const RELEASES_MAX: usize = 1 << 20;
/// Addresses in a SOURCE or a metainfo file.
pub const ADDRESSES_MAX: usize = 16;
/// Size of a metainfo file, in bytes.
pub const METAINFO_BYTES_MAX: u64 = 64 << 10;

/// Layer of the bins that delta frames cover (256 KiB): the largest run that one frame decodes to.
pub const DELTA_FRAME_LAYER: u32 = 8;
/// Layer of the bins that full frames cover where the publisher does not say otherwise (64 KiB).
pub const FULL_FRAME_LAYER: u32 = 6;
/// Smallest layer of a frame's bin (16 KiB): frames of less are not worth their place in the index.
pub const FRAME_LAYER_MIN: u32 = 4;
/// Blocks that one delta frame may need as its base (1 MiB).
pub const FRAME_BASE_BLOCKS_MAX: u64 = 256;
/// Extents of one delta frame's base.
pub const FRAME_BASE_EXTENTS_MAX: usize = 64;
/// Operations of one delta frame.
pub const FRAME_OPERATIONS_MAX: usize = 16 << 10;
/// One munro's record in a frame index, in bytes.
pub const FRAME_RECORD_BYTES_MAX: u64 = 64 << 10;
/// Runs of blocks that files outside of the cache may be lent as, about 48 bytes each: more are not used.
pub const SEED_RUNS_MAX: usize = 1 << 20;
/// Epochs in the list that a head refers to.
pub const EPOCHS_MAX: usize = 1 << 16;

/// Layer of a branch of static content's tree (64 KiB): above it hashes are kept, below it computed
/// from the bytes; and the unit in which static content is stored, served and announced.
pub const BRANCH_LAYER: u32 = 6;
/// Longest static content, in bytes (256 GiB): the hashes that are kept of it are 256 MiB.
pub const CONTENT_BYTES_MAX: u64 = 1 << 38;

/// A signature's time may be this far ahead of the local clock (FAULTS: fast-forward), in seconds.
pub const CLOCK_AHEAD_S_MAX: u64 = 600;
/// A clock that shows an earlier time was never set (2026-01-01, in Unix seconds): distd is younger.
pub const CLOCK_SET_FROM_S: u64 = 1_767_225_600;

const _: () = assert!(BLOCK_BYTES == CHUNK_BYTES << BLOCK_LAYER);
const _: () = assert!(GRANULE_BYTES == CHUNK_BYTES << GRANULE_LAYER);
const _: () = assert!(MUNRO_BYTES == CHUNK_BYTES << MUNRO_LAYER);
const _: () = assert!(LOG_MUNROS_MAX.checked_mul(MUNRO_BYTES).is_some());
const _: () = assert!(IMAGE_BLOCKS_MAX < 1 << IMAGE_ADDRESS_BITS);
const _: () = assert!(FRAME_LAYER_MIN >= GRANULE_LAYER && DELTA_FRAME_LAYER < MUNRO_LAYER);
// Every chunk of static content has a number of 32 bits (RFC 7574 4.1.1), also the one behind the last.
const _: () = assert!(CONTENT_BYTES_MAX / CHUNK_BYTES < 1 << 32);
const _: () = assert!(HEAD_BYTES_MAX as u64 == BLOCK_BYTES);
