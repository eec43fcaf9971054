//! What a release is made of: directory nodes, extent lists, release records, the catalog, and the
//! files and URLs by which people name them.
//!
//! Everything is canonical msgpack: one encoding per value, checked on decode by encoding again.
//! Names are bytes. Nodes are addressed by byte range in the log, so that an unchanged directory is
//! shared between releases. No I/O.

mod directory;
mod entry;
mod extent;
mod metainfo;
mod node;
mod profile;
mod release;
mod source;

pub use directory::DirectoryNode;
pub use entry::{
    Content, Device, Directory, Entry, EntryKind, File, HardLink, Name, NameError, Timestamp, Xattr,
};
pub use extent::{Extent, ExtentList, Extents};
pub use metainfo::{Metainfo, MetainfoError};
pub use node::NodeError;
pub use profile::{Access, Profile, ProfileError, parse_profile, profile_text};
pub use release::{Catalog, CatalogItem, Release, ReleaseImage, Totals};
pub use source::{DEFAULT_PORT, PeerAddress, Source, SourceError, SourceOrigin};
