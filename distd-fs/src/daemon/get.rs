//! `get`: a release as a plain directory.
//!
//! ```text
//! survey    hash what the directory holds       -> which files can stay, which content is at hand
//! plan      walk the release                    -> which blocks to fetch, in the order of writing
//! write     walk both, depth first              -> temporary names, then rename; directories' own
//!                                                  attributes when all below them is right
//! ```
//!
//! A file appears whole and with all its attributes, or not at all. Temporary files lie in one directory
//! within DIR, which the next run clears away: killed at any point and run again, it goes on.

mod attributes;
mod content;
mod error;
mod place;
mod survey;
mod tree;
mod writer;

use std::path::Path;
use std::time::Duration;

use distd_core::manifest::{DirectoryNode, Release};
use distd_core::node::Swarm;
use rustix::fs::{Mode, mkdirat};
use rustix::io::Errno;
use serde::Serialize;

use super::jobs::Progress;
use super::prefetch::bring;
use error::GetError;
use place::Place;
use survey::Survey;
use tree::Tree;
use writer::Writer;

/// Name of the directory for temporary files; digits follow where the release has that name itself.
const TEMPORARY: &str = ".distd-get";

/// What a get came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    pub(super) track: String,
    pub(super) release: String,
    /// Entries that were right already.
    pub(super) unchanged: u64,
    /// Entries whose attributes alone were changed.
    pub(super) touched: u64,
    /// Entries that were made anew.
    pub(super) written: u64,
    /// Entries that were removed.
    pub(super) deleted: u64,
    /// Bytes of content taken from what the directory held.
    pub(super) reused_bytes: u64,
    /// Bytes of content taken from the log.
    pub(super) read_bytes: u64,
    /// Device nodes that only root may make.
    pub(super) skipped_devices: u64,
    /// Extended attributes that could not be set.
    pub(super) skipped_attributes: u64,
}

/// Makes `directory` the release: everything in it that is not in the release stays, unless `delete`.
pub(super) fn get(
    swarm: &Swarm,
    release: &Release,
    directory: &Path,
    delete: bool,
    timeout: Duration,
    progress: &Progress,
) -> Result<Report, GetError> {
    let failed =
        |doing| move |errno| GetError::System { doing, path: directory_bytes(directory), errno };
    let root = Place::open(directory).map_err(failed("open"))?;
    root.lock().map_err(|errno| match errno {
        Errno::WOULDBLOCK => GetError::Busy { directory: directory.to_owned() },
        errno => failed("lock")(errno),
    })?;
    bring(swarm, &release.metadata, "metadata", progress)?;
    let tree = Tree { swarm, timeout };
    let top = tree.directory(release.root_directory().node, b"")?;
    let temporary = temporary_name(&top);
    root.remove(&temporary).map_err(failed("clear"))?;
    let sizes = tree.sizes(release)?;
    let survey = Survey::take(&root, &sizes, &temporary, progress)
        .map_err(|(path, errno)| GetError::System { doing: "look into", path, errno })?;
    // What was not looked into to the end says nothing of what may go.
    let wanted = || if progress.is_stopped() { Err(GetError::Stopped) } else { Ok(()) };
    wanted()?;
    let plan = tree.plan(release, &survey)?;
    wanted()?;
    mkdirat(&root, &temporary[..], Mode::RWXU).map_err(failed("write into"))?;
    let temp = root.directory(&temporary).map_err(failed("write into"))?;
    let place = (temp, temporary.clone());
    let mut writer = Writer::new(tree, place, delete, &survey, progress, release);
    writer.keep_seeds(&root, &plan.reused);
    let fetching = Progress::default();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            // What it does not bring, the writer waits for, and says what is missing.
            if let Err(error) = bring(swarm, &plan.missing, "content", &fetching) {
                tracing::debug!(%error, "not everything was fetched in advance");
            }
        });
        progress.begin("writing", plan.bytes);
        let outcome = writer.directory(&root, release.root_directory().node, &mut Vec::new(), 0);
        fetching.stop();
        outcome
    });
    let cleared = root.remove(&temporary);
    outcome?;
    cleared.map_err(failed("clear"))?;
    writer.finish(&root, &release.root)
}

fn directory_bytes(directory: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    directory.as_os_str().as_bytes().to_vec()
}

/// A name that the release does not have.
fn temporary_name(top: &DirectoryNode) -> Vec<u8> {
    let mut name = TEMPORARY.as_bytes().to_vec();
    while top.position(&name).is_some() {
        name.push(b'0');
    }
    name
}
