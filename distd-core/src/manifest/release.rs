//! A release record, and the catalog that lists them all.

use serde::{Deserialize, Serialize};

use crate::head::check_label;
use crate::limits::{
    BLOCK_BYTES, IMAGE_ADDRESS_BITS, IMAGE_BLOCKS_MAX, IMAGE_DEVICES_MAX, MESSAGE_BYTES_MAX,
    METADATA_EXTENTS_MAX, RELEASES_MAX,
};
use crate::unit::{BlockIndex, BlockRange, ByteRange};

use super::entry::{WireEntry, node_range};
use super::extent::{Extents, WireExtent};
use super::node::{decode, encode};
use super::{Directory, Entry, EntryKind, Extent, NodeError};

/// What a release holds, for people and for planning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Regular files (names, hard links counted each).
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Other entries: symlinks, devices, fifos, sockets.
    pub others: u64,
    /// Sum of the sizes of the regular files, hard links counted once.
    pub bytes: u64,
    /// Bytes of blocks that the release added to the log.
    pub new_bytes: u64,
}

/// One published tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Track that it was published to.
    pub track: String,
    /// Version, unique within its track.
    pub version: String,
    /// When it was published, seconds since the Unix epoch.
    pub created_s: u64,
    /// What the publisher said about it.
    pub message: String,
    /// The root directory; its name is of no meaning.
    pub root: Entry,
    /// What it holds.
    pub totals: Totals,
    /// Blocks that hold its directory nodes and extent lists, so that they can be fetched in one
    /// sweep; empty where there are too many runs ([`METADATA_EXTENTS_MAX`]): walk instead.
    pub metadata: Vec<BlockRange>,
    /// Its profile in the log, if it was published with one.
    pub profile: Option<ByteRange>,
    /// Its EROFS metadata image in the log; `None` if EROFS cannot express it.
    pub image: Option<ReleaseImage>,
}

/// Where a release's EROFS metadata image lies: an image of the tree without file content, which it
/// looks for on devices that show the log.
///
/// Its superblock and device table are its block 0, the root's inode begins its block 1: `mount(2)`
/// reads these two and no other. The first device shows the log from block 0 on, and each further one
/// goes on where the one before ends; all of them but the last show [`Self::blocks_a_device`] blocks.
/// There is more than one only for a release with blocks beyond those of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseImage {
    /// The image: one run of the log.
    pub blocks: BlockRange,
    /// The address of the first device's block 0 in the image's own (unified) address space, behind
    /// all blocks of the image: a single file that holds the image at block 0 and the log from this
    /// block on is a valid image, too.
    pub device_block: u64,
    /// How many devices the image expects: 1 to [`IMAGE_DEVICES_MAX`].
    pub devices: u16,
}

impl ReleaseImage {
    /// How many of the log's blocks one device shows.
    pub const fn blocks_a_device(&self) -> u64 {
        (1 << IMAGE_ADDRESS_BITS) - self.device_block
    }

    /// The block of the log that a device (from 0) begins with.
    pub const fn first_block(&self, device: u16) -> BlockIndex {
        BlockIndex(device as u64 * self.blocks_a_device())
    }

    fn check(self) -> Result<Self, &'static str> {
        let blocks = self.blocks;
        if blocks.count == 0 || blocks.count > IMAGE_BLOCKS_MAX {
            return Err("the image is empty or too long");
        }
        if self.device_block < blocks.count || self.device_block > IMAGE_BLOCKS_MAX {
            return Err("the image's devices do not begin behind it");
        }
        node_range(blocks.byte_offset(), 1)?;
        if self.devices == 0 || self.devices > IMAGE_DEVICES_MAX {
            return Err("the image has no device, or too many");
        }
        Ok(self)
    }
}

/// Wire form: first block, count, device block, devices.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct WireImage(u64, u64, u64, u16);

#[derive(Serialize, Deserialize)]
struct WireRelease {
    track: String,
    version: String,
    created_s: u64,
    message: String,
    root: WireEntry,
    totals: Totals,
    metadata: Vec<WireExtent>,
    /// No bytes at 0: none, and an image follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<ByteRange>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<WireImage>,
}

impl Release {
    const WHAT: &str = "release record";
    /// In place of a profile, where there is none and an image follows.
    const NO_PROFILE: ByteRange = ByteRange { offset: 0, len: 0 };

    /// The root directory's node.
    pub fn root_directory(&self) -> Directory {
        match self.root.kind {
            EntryKind::Directory(directory) => directory,
            _ => unreachable!("decode and publish take only directories as the root"),
        }
    }

    /// Encodes the record for the log.
    pub fn encode(&self) -> Vec<u8> {
        let metadata: Extents = self.metadata.iter().copied().map(Extent::Data).collect();
        let wire_image = |image: ReleaseImage| {
            let ReleaseImage { blocks, device_block, devices } = image;
            WireImage(blocks.start.0, blocks.count, device_block, devices)
        };
        encode(&WireRelease {
            track: self.track.clone(),
            version: self.version.clone(),
            created_s: self.created_s,
            message: self.message.clone(),
            root: self.root.to_wire(),
            totals: self.totals,
            metadata: metadata.to_wire(),
            profile: self.profile.or(self.image.map(|_| Self::NO_PROFILE)),
            image: self.image.map(wire_image),
        })
    }

    /// Decodes verified bytes of the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        let invalid = |rule| NodeError::Invalid { what: Self::WHAT, rule, index: 0 };
        let wire: WireRelease = decode(Self::WHAT, bytes)?;
        if check_label(&wire.track).is_err() || check_label(&wire.version).is_err() {
            return Err(invalid("the track or the version is no label"));
        }
        if wire.message.len() > MESSAGE_BYTES_MAX || wire.metadata.len() > METADATA_EXTENTS_MAX {
            return Err(invalid("the message or the list of metadata blocks is too long"));
        }
        let root = Entry::from_wire(wire.root).map_err(invalid)?;
        if !matches!(root.kind, EntryKind::Directory(_)) {
            return Err(invalid("the root is not a directory"));
        }
        let none = |range: &ByteRange| wire.image.is_some() && *range == Self::NO_PROFILE;
        let profile = wire.profile.filter(|range| !none(range));
        if let Some(profile) = profile {
            node_range(profile.offset, profile.len).map_err(invalid)?;
        }
        let image = |WireImage(start, count, device_block, devices)| {
            let blocks = BlockRange { start: BlockIndex(start), count };
            start.checked_mul(BLOCK_BYTES).ok_or("the image lies beyond the longest log")?;
            ReleaseImage { blocks, device_block, devices }.check()
        };
        let image = wire.image.map(image).transpose().map_err(invalid)?;
        let metadata = Extents::unsized_from_wire(&wire.metadata).map_err(invalid)?;
        if metadata.data().count() != metadata.len() {
            return Err(invalid("the list of metadata blocks has a hole"));
        }
        Ok(Self {
            track: wire.track,
            version: wire.version,
            created_s: wire.created_s,
            message: wire.message,
            root,
            totals: wire.totals,
            metadata: metadata.data().collect(),
            profile,
            image,
        })
    }
}

/// One line of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogItem {
    /// Track that the release was published to.
    pub track: String,
    /// Its version.
    pub version: String,
    /// When it was published, seconds since the Unix epoch.
    pub created_s: u64,
    /// Its record in the log; no bytes at 0 for a release that was pruned: what it held is gone, its
    /// version is not used again.
    pub release: ByteRange,
}

impl CatalogItem {
    /// Where the record of a pruned release lies.
    const NOWHERE: ByteRange = ByteRange { offset: 0, len: 0 };

    /// Whether the release was pruned.
    pub fn is_pruned(&self) -> bool {
        self.release == Self::NOWHERE
    }

    /// The same release, pruned.
    pub fn pruned(&self) -> Self {
        Self { release: Self::NOWHERE, ..self.clone() }
    }
}

/// All releases, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// The releases.
    pub items: Vec<CatalogItem>,
}

impl Catalog {
    const WHAT: &str = "catalog";

    /// Encodes the catalog for the log.
    pub fn encode(&self) -> Vec<u8> {
        encode(&self.items)
    }

    /// Decodes verified bytes of the log.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        let items: Vec<CatalogItem> = decode(Self::WHAT, bytes)?;
        let invalid = |rule, index| NodeError::Invalid { what: Self::WHAT, rule, index };
        if items.len() > RELEASES_MAX {
            return Err(invalid("more releases than a catalog may list", RELEASES_MAX));
        }
        for (index, item) in items.iter().enumerate() {
            if check_label(&item.track).is_err() || check_label(&item.version).is_err() {
                return Err(invalid("the track or the version is no label", index));
            }
            if !item.is_pruned() {
                node_range(item.release.offset, item.release.len)
                    .map_err(|rule| invalid(rule, index))?;
            }
        }
        Ok(Self { items })
    }

    /// The release of that track and version.
    pub fn find(&self, track: &str, version: &str) -> Option<&CatalogItem> {
        self.items.iter().find(|item| item.track == track && item.version == version)
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::entry;
    use super::*;
    use crate::unit::BlockIndex;

    fn release() -> Release {
        let node = ByteRange { offset: 5, len: 50 };
        Release {
            track: "stable".into(),
            version: "1.0".into(),
            created_s: 1_800_000_000,
            message: "first\n".into(),
            root: entry(b"root", EntryKind::Directory(Directory { node, subdirectories: 0 })),
            totals: Totals { files: 1, directories: 1, others: 0, bytes: 3, new_bytes: 4096 },
            metadata: vec![BlockRange::new(BlockIndex(0), 1), BlockRange::new(BlockIndex(7), 2)],
            profile: None,
            image: None,
        }
    }

    #[test]
    fn a_release_decodes_to_what_was_encoded() {
        assert_eq!(Release::decode(&release().encode()), Ok(release()));
        let profile = Some(ByteRange { offset: 9, len: 8 });
        let with = Release { profile, ..release() };
        assert_eq!(Release::decode(&with.encode()), Ok(with.clone()));
        let nowhere = Some(ByteRange { offset: u64::MAX, len: 8 });
        let forged = Release { profile: nowhere, ..release() };
        assert!(Release::decode(&forged.encode()).is_err());
    }

    #[test]
    fn an_image_is_kept_with_and_without_a_profile() {
        let image = ReleaseImage {
            blocks: BlockRange::new(BlockIndex(512), 9),
            device_block: IMAGE_BLOCKS_MAX,
            devices: 1,
        };
        for profile in [None, Some(ByteRange { offset: 9, len: 8 })] {
            let with = Release { profile, image: Some(image), ..release() };
            assert_eq!(Release::decode(&with.encode()), Ok(with));
        }
        let blocks = |start, count| BlockRange { start: BlockIndex(start), count };
        for forged in [
            ReleaseImage { blocks: blocks(u64::MAX, 9), ..image },
            ReleaseImage { blocks: blocks(u64::MAX / BLOCK_BYTES, 9), ..image },
            ReleaseImage { blocks: blocks(1, 0), ..image },
            ReleaseImage { blocks: blocks(1, IMAGE_BLOCKS_MAX + 1), ..image },
            ReleaseImage { device_block: 8, ..image },
            ReleaseImage { device_block: IMAGE_BLOCKS_MAX + 1, ..image },
            ReleaseImage { devices: 0, ..image },
            ReleaseImage { devices: IMAGE_DEVICES_MAX + 1, ..image },
        ] {
            let forged = Release { image: Some(forged), ..release() };
            assert!(Release::decode(&forged.encode()).is_err());
        }
        // Without an image there is one way to say that there is no profile.
        let forged = Release { profile: Some(Release::NO_PROFILE), ..release() };
        assert!(Release::decode(&forged.encode()).is_err());
        assert_eq!(image.first_block(0), BlockIndex(0));
        assert_eq!(image.first_block(2).0, 2 * ((1 << 32) - IMAGE_BLOCKS_MAX));
    }

    #[test]
    fn a_release_whose_root_is_no_directory_is_refused() {
        let forged = Release { root: entry(b"root", EntryKind::Fifo), ..release() };
        assert!(matches!(Release::decode(&forged.encode()), Err(NodeError::Invalid { .. })));
    }

    #[test]
    fn a_release_cut_short_is_refused_at_every_byte() {
        let bytes = release().encode();
        for len in 0..bytes.len() {
            assert!(Release::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn a_catalog_finds_a_release_by_track_and_version() {
        let item = |track: &str, version: &str| CatalogItem {
            track: track.into(),
            version: version.into(),
            created_s: 0,
            release: ByteRange { offset: 1, len: 1 },
        };
        let catalog = Catalog { items: vec![item("a", "1"), item("b", "1"), item("b", "2")] };
        assert_eq!(Catalog::decode(&catalog.encode()), Ok(catalog.clone()));
        assert_eq!(catalog.find("b", "1"), Some(&item("b", "1")));
        assert_eq!(catalog.find("a", "2"), None);
        let pruned = Catalog { items: vec![item("a", "1").pruned()] };
        assert_eq!(Catalog::decode(&pruned.encode()), Ok(pruned.clone()));
        assert!(pruned.items[0].is_pruned() && !catalog.items[0].is_pruned());
        let nowhere = ByteRange { offset: 7, len: 0 };
        let forged = Catalog { items: vec![CatalogItem { release: nowhere, ..item("a", "1") }] };
        assert!(Catalog::decode(&forged.encode()).is_err());
        let forged = Catalog { items: vec![item("..", "1")] };
        assert!(Catalog::decode(&forged.encode()).is_err());
    }
}
