//! `get`: a release as a plain directory.
//!
//! ```text
//! survey     look at what the directory holds, hash what may be of use
//! plan       walk the release                    -> which files can stay, which blocks to fetch, in the order
//!                                                   of writing
//! recognise  older releases, hashes of blocks    -> which blocks of the log the directory's files hold
//! write      walk both, depth first              -> temporary names, then rename; directories' own
//!                                                   attributes when all below them is right
//! ```
//!
//! A file appears whole and with all its attributes, or not at all. Temporary files lie in one directory
//! within DIR (`desk`), and so does what goes and is still needed: killed at any point and run again, it goes on.
//!
//! What the directory's files hold is never believed (`distd_core::node::Seeds`): updates are made of it as deltas, and
//! the parts of files that did not change are copied; what comes out is compared with what the origin signed.

mod attributes;
mod content;
mod desk;
mod error;
mod hashes;
mod known;
mod older;
mod place;
mod shelf;
mod survey;
mod tree;
mod writer;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::{DirectoryNode, Release};
use distd_core::node::Swarm;
use distd_core::unit::BlockRange;
use rustix::io::Errno;
use serde::Serialize;

use super::jobs::Progress;
use super::prefetch::bring;
use desk::Desk;
use error::GetError;
use known::Known;
use older::{Look, Older};
use place::Place;
use shelf::Shelf;
use survey::{FileNumber, Survey};
use tree::{Plan, Tree};
use writer::Writer;

/// Name of the directory for temporary files; digits follow where the release has that name itself.
const TEMPORARY: &str = ".distd-get";
/// What is less is fetched: to look for it elsewhere would cost as much.
const WORTH_BYTES_MIN: u64 = 64 << 10;
/// The metadata of another release is fetched whole if it is at most this share of what the directory holds.
const METADATA_SHARE: u64 = 4;

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
    progress.begin("looking at what is there", 0);
    let mut survey = Survey::look(&root, progress).map_err(|(path, errno)| GetError::System {
        doing: "look into",
        path,
        errno,
    })?;
    let tree = Tree { swarm, timeout };
    let get = Get { tree, release, root: &root, delete, progress };
    let first = get.bring_metadata(&survey)?;
    let top = tree.directory(release.root_directory().node, b"")?;
    let name = temporary_name(&top);
    survey.leave_out(&name);
    let (desk, temp) = Desk::open(&root, name.clone()).map_err(failed("write into"))?;
    get.run(first, survey, desk, (temp, name))
}

/// One get.
struct Get<'a> {
    tree: Tree<'a>,
    release: &'a Release,
    root: &'a Place,
    delete: bool,
    progress: &'a Progress,
}

impl<'a> Get<'a> {
    /// Brings the release's metadata. Where the directory holds something, that of the likeliest other release
    /// goes first: the release's own then comes as what differs from it. That release, and those to look at next.
    fn bring_metadata(&self, survey: &Survey) -> Result<Option<(Older<'a>, Release)>, GetError> {
        let metadata = &self.release.metadata;
        let there: u64 = survey.files().map(|(_, found)| found.size()).sum();
        let first = match there {
            0 => None,
            _ if self.are_held(metadata) => None,
            _ => self.bring_first(there).or_else(|error| self.go_on(&error).map(|()| None))?,
        };
        bring(self.tree.swarm, metadata, "metadata", self.progress)?;
        Ok(first)
    }

    fn bring_first(&self, there: u64) -> Result<Option<(Older<'a>, Release)>, GetError> {
        let mut older = Older::list(self.tree, self.release)?;
        let is_before = older.is_before();
        let Some(first) = older.next() else { return Ok(None) };
        let held = |range: &BlockRange| self.tree.swarm.held_blocks(*range);
        let missing = first.metadata.iter().map(|range| range.count - held(range)).sum::<u64>();
        if is_before && missing * BLOCK_BYTES <= there / METADATA_SHARE {
            bring(self.tree.swarm, &first.metadata, "metadata of another release", self.progress)?;
        }
        Ok(Some((older, first)))
    }

    fn are_held(&self, ranges: &[BlockRange]) -> bool {
        let held = |range: &BlockRange| self.tree.swarm.held_blocks(*range) == range.count;
        !ranges.is_empty() && ranges.iter().all(held)
    }

    fn still_wanted(&self) -> Result<(), GetError> {
        if self.progress.is_stopped() { Err(GetError::Stopped) } else { Ok(()) }
    }

    /// What is only there to save bytes may fail; but not go on when nobody wants it any more.
    fn go_on(&self, error: &GetError) -> Result<(), GetError> {
        tracing::debug!(%error, "not all that the directory holds may be recognised");
        self.still_wanted()
    }

    fn run(
        &self,
        first: Option<(Older<'a>, Release)>,
        mut survey: Survey,
        mut desk: Desk<'_>,
        (temp, name): (Place, Vec<u8>),
    ) -> Result<Report, GetError> {
        let (tree, release, root) = (self.tree, self.release, self.root);
        survey.read(root, &tree.sizes(release)?, self.progress);
        // What was not looked into to the end says nothing of what may go.
        self.still_wanted()?;
        let failed = |doing| move |errno| GetError::System { doing, path: Vec::new(), errno };
        let shelf = Shelf::new(root.directory(b".").map_err(failed("open"))?);
        let mut known = Known::new(shelf);
        let mut plan = tree.plan(release, &survey, &mut known)?;
        self.still_wanted()?;
        self.recognise(first, &mut survey, &mut known, &mut plan)
            .or_else(|error| self.go_on(&error))?;
        self.put_aside(&mut desk, &name, &survey, &known, &plan);
        let mut missing = std::mem::take(&mut plan.missing);
        let unread =
            plan.reused.into_iter().filter(|(file, _)| known.shelf.path_of(*file).is_none());
        missing.extend(unread.flat_map(|(_, blocks)| blocks));
        let missing: Vec<BlockRange> =
            missing.into_iter().flat_map(|blocks| known.seeds.lacking(blocks)).collect();
        let _lent = tree.swarm.lend(&known.seeds);
        let progress = self.progress;
        let place = (temp, name);
        let mut writer =
            Writer::new(tree, root, place, self.delete, (&survey, &known), progress, release);
        let fetching = Progress::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // What it does not bring, the writer waits for, and says what is missing.
                if let Err(error) = bring(tree.swarm, &missing, "content", &fetching) {
                    tracing::debug!(%error, "not everything was fetched in advance");
                }
            });
            progress.begin("writing", plan.bytes);
            let outcome = writer.directory(root, release.root_directory().node, &mut Vec::new(), 0);
            fetching.stop();
            outcome
        })?;
        // Before the directory gets its time.
        desk.clear().map_err(failed("clear"))?;
        writer.finish(&release.root)
    }

    /// Finds out what of the log the directory holds, as far as that is worth it.
    fn recognise(
        &self,
        first: Option<(Older<'a>, Release)>,
        survey: &mut Survey,
        known: &mut Known,
        plan: &mut Plan,
    ) -> Result<(), GetError> {
        let (root, progress, tree) = (self.root, self.progress, self.tree);
        let missing: u64 = plan.missing.iter().map(|range| range.byte_len()).sum();
        let worth = |survey: &Survey, known: &Known| {
            let unexplained = known.unexplained(survey).map(|(_, found)| found.size());
            unexplained.sum::<u64>().min(missing)
        };
        if worth(survey, known) < WORTH_BYTES_MIN {
            return Ok(());
        }
        let (mut older, mut next) = match first {
            Some((older, first)) => (older, Some(first)),
            None => {
                let mut older = Older::list(tree, self.release)?;
                let next = older.next();
                (older, next)
            }
        };
        let seen = std::mem::take(&mut plan.nodes);
        let mut look = Look { tree, root, progress, seen };
        let mut whole = true;
        while let Some(release) = next
            && worth(survey, known) >= WORTH_BYTES_MIN
        {
            whole = whole && self.are_held(&release.metadata);
            look.at(&release, whole, survey, known).or_else(|error| self.go_on(&error))?;
            whole = false;
            next = older.next();
        }
        match worth(survey, known) {
            worth if worth >= WORTH_BYTES_MIN => {
                hashes::recognise(&tree, root, survey, known, worth, progress)
            }
            _ => Ok(()),
        }
    }

    /// Sees to it that what is needed can be read to the end.
    fn put_aside(
        &self,
        desk: &mut Desk<'_>,
        own: &[u8],
        survey: &Survey,
        known: &Known,
        plan: &Plan,
    ) {
        let reused = plan.reused.iter().map(|(number, _)| number);
        let needed: BTreeSet<FileNumber> = known.used.iter().chain(reused).copied().collect();
        for number in needed {
            let Some(found) = survey.at(number) else { continue };
            let is_own = found.path.strip_prefix(own).is_some_and(|rest| rest.starts_with(b"/"));
            let goes = self.delete && !is_own && !plan.staying.contains(&number);
            let path = if goes || plan.replaced.contains(&number) {
                desk.put_aside(&found.path)
            } else {
                Ok(found.path.clone())
            };
            match path {
                Ok(path) => known.shelf.put(number, path),
                // What it has is fetched, or made in another way.
                Err(error) => {
                    tracing::debug!(%error, "a file cannot be put aside");
                    known.seeds.forget_file(number);
                }
            }
            if self.progress.is_stopped() {
                return;
            }
        }
    }
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
