//! A release record, and the catalog that lists them all.

use serde::{Deserialize, Serialize};

use crate::head::check_label;
use crate::limits::{MESSAGE_BYTES_MAX, METADATA_EXTENTS_MAX, RELEASES_MAX};
use crate::unit::{BlockRange, ByteRange};

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
}

#[derive(Serialize, Deserialize)]
struct WireRelease {
    track: String,
    version: String,
    created_s: u64,
    message: String,
    root: WireEntry,
    totals: Totals,
    metadata: Vec<WireExtent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<ByteRange>,
}

impl Release {
    const WHAT: &str = "release record";

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
        encode(&WireRelease {
            track: self.track.clone(),
            version: self.version.clone(),
            created_s: self.created_s,
            message: self.message.clone(),
            root: self.root.to_wire(),
            totals: self.totals,
            metadata: metadata.to_wire(),
            profile: self.profile,
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
        if let Some(profile) = wire.profile {
            node_range(profile.offset, profile.len).map_err(invalid)?;
        }
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
            profile: wire.profile,
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
