//! How a publish gets on, and what it came to.

use serde::Serialize;

use super::embedded::EmbeddedImage;
use crate::cost::UpdateCost;
use crate::scan::{DirectoryIndex, Scan, ScannedKind};

/// Examples that a warning names.
const EXAMPLES_MAX: usize = 3;

/// How a publish gets on.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The index is brought up to the log: munros done, and to do.
    Index(u64, u64),
    /// Entries found so far.
    Scan(u64),
    /// Files and bytes that will be read.
    Read(u64, u64),
    /// So many bytes more were read.
    Bytes(u64),
    /// Munros of which frames were made, and of which they will be.
    Frames(u64, u64),
    /// Everything is written, and is made durable.
    Seal,
}

/// What a publish came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PublishReport {
    /// Whether there is a new release (for a dry run: would be).
    pub changed: bool,
    /// Whether nothing was written, as asked.
    pub dry_run: bool,
    /// The track.
    pub track: String,
    /// The version that the track stands at now.
    pub version: String,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks, devices, fifos, sockets.
    pub others: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes that were read; the rest was known by its state.
    pub read_bytes: u64,
    /// Bytes of file blocks that are new in the log.
    pub new_bytes: u64,
    /// Bytes of metadata that are new in the log.
    pub metadata_bytes: u64,
    /// Bytes of the release's EROFS image, new in the log or not; 0 if it has none.
    pub image_bytes: u64,
    /// What the source is, if it is one file and that an EROFS image.
    pub embedded: Option<EmbeddedImage>,
    /// Why the release has no EROFS image.
    pub no_image: Option<String>,
    /// Bytes of frames that are new in the log.
    pub frame_bytes: u64,
    /// Bytes that a machine which holds the track's previous release will fetch for all of this one.
    /// Without the image.
    pub update_bytes: u64,
    /// Bytes that it will fetch for the image, if it mounts by EROFS.
    pub image_update_bytes: u64,
    /// What machines on the last releases of the track fetch for this one, newest first; not known for
    /// a dry run.
    pub updates: Vec<UpdateCost>,
    /// Extents of all files.
    pub extents: u64,
    /// Length of the log, in munros.
    pub munros: u64,
    /// Whether a running server has told the swarm; `None` if none runs.
    pub announced: Option<bool>,
    /// Files and directories that not everybody can read, with a few examples.
    pub not_world_readable: Exposed,
    /// Set where the release is committed and the index could not be brought up to it.
    pub index_warning: Option<String>,
}

/// Entries that every member of the swarm will be able to read, though not everybody here can.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Exposed {
    /// How many.
    pub count: u64,
    /// The first ones.
    pub examples: Vec<String>,
}

impl Exposed {
    /// Looks for them.
    pub(super) fn of(scan: &Scan) -> Self {
        let mut exposed = Self::default();
        for (index, directory) in scan.directories.iter().enumerate() {
            for (position, entry) in directory.entries.iter().enumerate() {
                let wanted = match entry.kind {
                    ScannedKind::File(_) => 0o004,
                    ScannedKind::Directory(_) => 0o005,
                    _ => 0,
                };
                if entry.attributes.mode & wanted == wanted {
                    continue;
                }
                exposed.count += 1;
                if exposed.examples.len() < EXAMPLES_MAX {
                    let at = DirectoryIndex(index as u32);
                    let path = scan.entry_path(at, position as u32);
                    exposed.examples.push(path.to_string());
                }
            }
        }
        exposed
    }
}
