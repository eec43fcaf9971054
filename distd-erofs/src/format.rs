//! Bytes of the format: constants, little-endian records, the superblock. All integers are little-endian.

/// Block.
pub(crate) const BLOCK: usize = 4096;
/// Unit of inode addresses: inode n lies at byte 32 n.
pub(crate) const SLOT: u64 = 32;
/// Extended inode.
pub(crate) const INODE: u64 = 64;
/// Where the superblock begins in block 0, and its length.
pub(crate) const SUPER_OFFSET: usize = 1024;
pub(crate) const SUPER_BYTES: usize = 128;
/// One device in the table, which follows the superblock.
pub(crate) const DEVICE_SLOT: usize = 128;
pub(crate) const DEVICE_TABLE: usize = SUPER_OFFSET + SUPER_BYTES;
/// Devices for which block 0 has room.
pub(crate) const DEVICES_MAX: u64 = ((BLOCK - DEVICE_TABLE) / DEVICE_SLOT) as u64;
/// Blocks that hold inodes, at most: their numbers have 32 bits in what is made here.
pub(crate) const INODE_BLOCKS_MAX: u64 = SLOT << 32 >> BLOCK.trailing_zeros();
/// Directory entry without its name.
pub(crate) const DIRENT: usize = 12;
/// Header of an inode's extended attributes; an attribute without name and value.
pub(crate) const XATTR_HEADER: usize = 12;
pub(crate) const XATTR_ENTRY: usize = 4;
/// Entry of a chunk map.
pub(crate) const CHUNK_INDEX: u64 = 8;
/// Address of a chunk that is a hole.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// Bits of a block address.
pub(crate) const ADDRESS_BITS: u32 = 32;
/// Largest chunk, as a power of two of blocks.
pub(crate) const CHUNK_BITS_MAX: u32 = 31;

pub(crate) const MAGIC: u32 = 0xe0f5_e1e2;
pub(crate) const COMPAT_CHECKSUM: u32 = 1;
pub(crate) const COMPAT_MTIME: u32 = 2;
pub(crate) const INCOMPAT_CHUNKED: u32 = 4;
pub(crate) const INCOMPAT_DEVICES: u32 = 8;

/// Data layouts.
pub(crate) const FLAT_PLAIN: u16 = 0;
pub(crate) const FLAT_INLINE: u16 = 2;
pub(crate) const CHUNK_BASED: u16 = 4;
/// Version bit of an extended inode; the layout is above it.
pub(crate) const EXTENDED: u16 = 1;
/// Chunk format: the low five bits are the chunk's size, this one says that the map has devices in it.
pub(crate) const CHUNK_INDEXES: u16 = 0x20;

/// File types in directory entries.
pub(crate) const TYPE_FILE: u8 = 1;
pub(crate) const TYPE_DIRECTORY: u8 = 2;
pub(crate) const TYPE_CHAR: u8 = 3;
pub(crate) const TYPE_BLOCK: u8 = 4;
pub(crate) const TYPE_FIFO: u8 = 5;
pub(crate) const TYPE_SOCKET: u8 = 6;
pub(crate) const TYPE_SYMLINK: u8 = 7;

/// Bytes that are put together, little-endian.
#[derive(Debug, Default)]
pub(crate) struct Record(pub(crate) Vec<u8>);

impl Record {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Zeros up to a length.
    pub(crate) fn pad_to(&mut self, len: usize) -> &mut Self {
        self.0.resize(len.max(self.0.len()), 0);
        self
    }
}

/// What a superblock says, as far as it is not the same in all images of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Superblock<'a> {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    pub(crate) time_s: u64,
    pub(crate) time_ns: u32,
    /// Blocks of the primary device.
    pub(crate) blocks: u32,
    /// Where the shared extended attributes begin.
    pub(crate) xattr_block: u32,
    pub(crate) devices: &'a [Device],
}

/// An extra device: how many blocks, and where it begins in the image's own address space (0: nowhere).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) blocks: u32,
    pub(crate) address: u32,
}

impl Superblock<'_> {
    /// Block 0.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let devices = if self.devices.is_empty() { 0 } else { INCOMPAT_DEVICES };
        let mut block = Record::default();
        block.pad_to(SUPER_OFFSET).u32(MAGIC).u32(0).u32(COMPAT_CHECKSUM | COMPAT_MTIME);
        block.u8(BLOCK.trailing_zeros() as u8).u8(0).u16(self.root_nid).u64(self.inodes);
        block.u64(self.time_s).u32(self.time_ns).u32(self.blocks);
        // Inode addresses count from block 0. Neither UUID nor name: a tree has none.
        block.u32(0).u32(self.xattr_block).bytes(&[0; 16 + 16]);
        block.u32(INCOMPAT_CHUNKED | devices).u16(0).u16(self.devices.len() as u16);
        block.u16(if devices == 0 { 0 } else { (DEVICE_TABLE / DEVICE_SLOT) as u16 });
        block.pad_to(DEVICE_TABLE);
        for (index, device) in self.devices.iter().enumerate() {
            let end = block.0.len() + DEVICE_SLOT;
            block.bytes(format!("log{index}").as_bytes()).pad_to(end - 64);
            block.u32(device.blocks).u32(device.address).pad_to(end);
        }
        let mut block = std::mem::take(&mut block.pad_to(BLOCK).0);
        let checksum = checksum(&block).to_le_bytes();
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum);
        block
    }
}

/// The superblock's checksum: CRC-32C, without the last inversion, of block 0 from the superblock on, the
/// checksum itself as zeros.
pub(crate) fn checksum(block: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in block.iter().enumerate().skip(SUPER_OFFSET) {
        let own = (SUPER_OFFSET + 4..SUPER_OFFSET + 8).contains(&at);
        crc = crc32c(crc, &[if own { 0 } else { *byte }]);
    }
    crc
}

/// CRC-32C over `bytes`, going on from `crc`, without inversions.
pub(crate) fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    crc
}

/// A device's number as inodes keep it; `None` if it does not fit.
pub(crate) const fn device_number(major: u32, minor: u32) -> Option<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(!crc32c(u32::MAX, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn device_numbers_are_split_as_linux_does() {
        assert_eq!(device_number(1, 3), Some(0x103));
        assert_eq!(device_number(0xfff, 0xf_ffff), Some(u32::MAX));
        assert_eq!(device_number(0x1000, 0), None);
        assert_eq!(device_number(0, 0x10_0000), None);
    }
}
