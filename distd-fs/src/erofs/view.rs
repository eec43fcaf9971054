//! A mount of a release in the erofs view, and how it takes another release.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use distd_core::manifest::ReleaseImage;
use distd_core::unit::{BlockRange, ByteRange};

use crate::blocks::{Blocks, Purpose, Unavailable, read_bytes};
use crate::exit::{Complaint, Exit};
use crate::mountinfo::{MountLine, lying_in, mounts};

use super::attach::{self, AttachError, Order, Place, Refused};
use super::checked::{self, Unsound};
use super::hidden::NoRoom;
use super::superblock::Superblock;

pub(crate) use super::attach::Flags;

/// Blocks of an image that are there before it is mounted. Mounting takes two; with a few more the root
/// is listed at once.
const FIRST_BLOCKS: u64 = 16;

/// Why a release is not shown in the erofs view.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Only root may mount it.
    #[error("EROFS is mounted by root only")]
    NotRoot,
    /// The kernel's EROFS lets everybody in, as the modes say.
    #[error("EROFS cannot keep other users out: it takes allow_other")]
    Access,
    /// The release was published without.
    #[error("the release has no metadata image")]
    NoImage,
    /// This kernel cannot, or not so that it could be trusted.
    #[error(transparent)]
    Kernel(Refused),
    /// No FUSE.
    #[error("no FUSE superblock: {0}")]
    Superblock(io::Error),
    /// The source's name.
    #[error(transparent)]
    Room(#[from] NoRoom),
    /// The image is not what the release says.
    #[error(transparent)]
    Unsound(#[from] Unsound),
    /// It cannot be replaced without taking away what others mounted.
    #[error("what is mounted on {} below it has to be unmounted first", .0.join(", "))]
    Covered(Vec<String>),
    /// A switch that failed half-way, and could not be finished.
    #[error("another mount of it lies beneath: {} has to be unmounted by hand, twice", .0.display())]
    Stacked(PathBuf),
    /// What the mount needs of the image.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The mount.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl Refusal {
    /// Whether it is for good, for this release: to try again is of no use.
    pub(crate) const fn is_of_release(&self) -> bool {
        matches!(self, Self::NoImage | Self::Room(_) | Self::Unsound(_))
    }
}

/// Called once when nothing uses a mount any more.
type End = Box<dyn FnOnce() + Send>;

/// Where and how a release is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Showing<'a> {
    /// The directory.
    pub(crate) directory: &'a Path,
    /// What mount tables say.
    pub(crate) source: &'a str,
    /// What of the release's files counts.
    pub(crate) flags: Flags,
    /// Device number of a dead mount there, which is to be replaced.
    pub(crate) left: Option<&'a str>,
}

/// What became of showing something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// It is on show.
    Done,
    /// Not as long as something is mounted below or over it.
    Waits,
    /// It is not mounted any more.
    Gone,
}

/// A mount in the erofs view.
pub(crate) struct ErofsView<B> {
    directory: PathBuf,
    source: String,
    flags: Flags,
    standing: Mutex<Standing<B>>,
    /// What keeps it from taking another release: something is mounted on these paths below it.
    waits_for: Mutex<Vec<String>>,
}

/// What is on show.
struct Standing<B> {
    superblock: Arc<Superblock<B>>,
    /// Device number as mount tables have it.
    device: String,
    images: Arc<Images>,
}

/// The images that the kernel has open for a mount: the one on show, and those before it that somebody
/// still uses.
#[derive(Default)]
struct Images(Mutex<(u64, Option<End>)>);

impl From<Refusal> for Complaint {
    fn from(refusal: Refusal) -> Self {
        let exit = match &refusal {
            Refusal::Unavailable(_) => Exit::Unreachable,
            Refusal::Covered(_) => return Self::new(Exit::Busy, refusal),
            _ => Exit::Failure,
        };
        let text = format!("the kernel cannot show the release by EROFS: {refusal}; view=tree can");
        Self::new(exit, text)
    }
}

impl<B: Blocks> ErofsView<B> {
    /// Mounts the release of this image.
    pub(crate) fn mount(
        superblock: &Arc<Superblock<B>>,
        showing: &Showing<'_>,
        image: &ReleaseImage,
    ) -> Result<Self, Refusal> {
        let superblock = Arc::clone(superblock);
        let standing = Standing {
            superblock: Arc::clone(&superblock),
            device: String::new(),
            images: Arc::default(),
        };
        let view = Self {
            directory: showing.directory.to_owned(),
            source: showing.source.to_owned(),
            flags: showing.flags,
            standing: Mutex::new(standing),
            waits_for: Mutex::default(),
        };
        let place = match showing.left {
            None => Place::On(showing.directory.into()),
            Some(device) => Place::Instead(showing.directory.into(), device.to_owned()),
        };
        view.show(&superblock, image, place)?;
        Ok(view)
    }

    /// Shows the release of another image instead; open files stay what they are.
    pub(crate) fn replace(&self, image: &ReleaseImage) -> Result<Exchange, Refusal> {
        self.exchange(&self.superblock(), image)
    }

    /// Shows the release of an image over another superblock, after the end of the one that it lay on.
    pub(crate) fn renew(
        &self,
        superblock: &Arc<Superblock<B>>,
        image: &ReleaseImage,
    ) -> Result<Exchange, Refusal> {
        let exchange = self.exchange(superblock, image)?;
        if exchange == Exchange::Gone {
            // Nobody tells what a dead superblock's files are closed.
            let images = Arc::clone(&self.standing().images);
            images.end();
        }
        Ok(exchange)
    }

    fn exchange(
        &self,
        superblock: &Arc<Superblock<B>>,
        image: &ReleaseImage,
    ) -> Result<Exchange, Refusal> {
        match self.look()? {
            Exchange::Done => {}
            other => return Ok(other),
        }
        self.show(
            superblock,
            image,
            Place::Instead(self.directory.as_path().into(), self.device()),
        )?;
        Ok(Exchange::Done)
    }

    /// Whether it could be replaced now: `Done`.
    pub(crate) fn look(&self) -> Result<Exchange, Refusal> {
        let device = self.device();
        let mounts = mounts().map_err(AttachError::Spawn)?;
        let Some(lying) = lying_in(&mounts, &self.directory, &device) else {
            return Ok(Exchange::Gone);
        };
        let other = |line: &&MountLine| line.point == self.directory && line.device != device;
        if mounts.iter().filter(other).any(|line| line.source == *self.source) {
            return Err(Refusal::Stacked(self.directory.clone()));
        }
        let exchange = if lying.is_empty() { Exchange::Done } else { Exchange::Waits };
        *self.waits_for_mut() = lying;
        Ok(exchange)
    }

    /// Fetches an image in the background, so that lookups soon never wait.
    pub(crate) fn sweep(&self, image: &ReleaseImage) {
        let superblock = self.superblock();
        superblock.hidden.blocks.prefetch(vec![image.blocks], Purpose::Metadata);
    }

    /// What it lies on.
    pub(crate) fn superblock(&self) -> Arc<Superblock<B>> {
        Arc::clone(&self.standing().superblock)
    }

    /// Its device number as mount tables have it.
    pub(crate) fn device(&self) -> String {
        self.standing().device.clone()
    }

    /// The paths below it on which something is mounted that it waits for.
    pub(crate) fn waits_for(&self) -> Vec<String> {
        self.waits_for_mut().clone()
    }

    /// Of how many releases that it showed before somebody still uses something: open files, bind mounts,
    /// mounts in other namespaces.
    pub(crate) fn kept(&self) -> u64 {
        self.standing().images.count_now().saturating_sub(1)
    }

    /// Calls `end` when the kernel is done with it: unmounted everywhere, and nothing of it is open.
    pub(crate) fn on_end(&self, end: impl FnOnce() + Send + 'static) {
        let images = Arc::clone(&self.standing().images);
        images.on_end(Box::new(end));
    }

    fn show(
        &self,
        superblock: &Arc<Superblock<B>>,
        image: &ReleaseImage,
        place: Place,
    ) -> Result<(), Refusal> {
        let hidden = &superblock.hidden;
        // So that the kernel does not wait for the network.
        let first = BlockRange::new(image.blocks.start, image.blocks.count.min(FIRST_BLOCKS));
        let first = ByteRange { offset: first.byte_offset(), len: first.byte_len() };
        let first = read_bytes(&*hidden.blocks, first, Instant::now() + hidden.timeout)?;
        checked::check(&first, image)?;
        let room = hidden.enter(&self.source, image)?;
        let (source, flags) = (self.source.clone(), self.flags);
        let (name, devices) = (room.name.clone(), image.devices);
        let order = Order { room: name, source, devices, flags, place };
        let before = Arc::clone(&self.standing().images);
        let is_same = Arc::ptr_eq(&self.superblock(), superblock);
        let images = if is_same { Arc::clone(&before) } else { Arc::default() };
        // Before the image that it replaces is closed: else there would be none for a moment.
        images.count();
        match attach::run(superblock, &order, hidden.timeout) {
            Ok(device) => {
                if !is_same && let Some(end) = before.take_end() {
                    images.on_end(end);
                }
                let (closed, kept) = (Arc::clone(&images), Arc::clone(superblock));
                *self.standing() = Standing { superblock: Arc::clone(superblock), device, images };
                // Until its end the superblock has to be there for what is open.
                hidden.on_close(room.image, move || {
                    closed.discount();
                    drop(kept);
                });
                hidden.leave(&room);
                Ok(())
            }
            Err(error) => {
                images.discount();
                hidden.leave(&room);
                Err(error.into())
            }
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing<B>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits_for_mut(&self) -> MutexGuard<'_, Vec<String>> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Images {
    fn state(&self) -> MutexGuard<'_, (u64, Option<End>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_now(&self) -> u64 {
        self.state().0
    }

    fn count(&self) {
        self.state().0 += 1;
    }

    fn discount(&self) {
        let mut state = self.state();
        state.0 = state.0.saturating_sub(1);
        let end = if state.0 == 0 { state.1.take() } else { None };
        drop(state);
        if let Some(end) = end {
            end();
        }
    }

    fn take_end(&self) -> Option<End> {
        self.state().1.take()
    }

    fn end(&self) {
        if let Some(end) = self.take_end() {
            end();
        }
    }

    fn on_end(&self, end: End) {
        let mut state = self.state();
        if state.0 > 0 {
            state.1 = Some(end);
            return;
        }
        drop(state);
        end();
    }
}
