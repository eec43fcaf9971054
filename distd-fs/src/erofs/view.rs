//! A mount of a release in the erofs view, and how it takes another release.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use distd_core::manifest::ReleaseImage;
use distd_core::unit::{BlockRange, ByteRange};

use crate::blocks::{Blocks, Purpose, Unavailable, read_bytes};
use crate::exit::{Complaint, Exit};
use crate::mountinfo::{MountLine, covered, mounted_on, mounts};

use super::attach::{self, AttachError, Order, Place, Refused};
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
    /// The source's name, or a very long log.
    #[error(transparent)]
    Room(#[from] NoRoom),
    /// What the mount needs of the image.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The mount.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Called once when nothing uses a mount any more.
type End = Box<dyn FnOnce() + Send>;

/// A mount in the erofs view.
pub(crate) struct ErofsView<B> {
    superblock: Arc<Superblock<B>>,
    directory: PathBuf,
    source: String,
    flags: Flags,
    device: Mutex<String>,
    /// What keeps it from taking another release: something is mounted on these paths below it.
    waits_for: Mutex<Vec<String>>,
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
            _ => Exit::Failure,
        };
        let text = format!("the kernel cannot show the release by EROFS: {refusal}; view=tree can");
        Self::new(exit, text)
    }
}

impl<B: Blocks> ErofsView<B> {
    /// Mounts the release of this image on a directory.
    pub(crate) fn mount(
        superblock: &Arc<Superblock<B>>,
        directory: &Path,
        source: &str,
        flags: Flags,
        image: &ReleaseImage,
    ) -> Result<Self, Refusal> {
        let view = Self {
            superblock: Arc::clone(superblock),
            directory: directory.to_owned(),
            source: source.to_owned(),
            flags,
            device: Mutex::default(),
            waits_for: Mutex::default(),
            images: Arc::default(),
        };
        view.show(image, Place::On(directory.into()))?;
        Ok(view)
    }

    /// Shows the release of another image instead; open files stay what they are. Does nothing and says
    /// so as long as something is mounted below.
    pub(crate) fn replace(&self, image: &ReleaseImage) -> Result<bool, Refusal> {
        let device = self.device();
        let there: Vec<MountLine> = mounts().map_err(AttachError::Spawn)?;
        if !there.iter().any(|line| line.point == self.directory && line.device == device) {
            // Unmounted, and still in use: it stays what it is.
            return Ok(false);
        }
        let on_top = mounted_on(&self.directory).map_err(AttachError::Spawn)?;
        let hidden = on_top.is_some_and(|line| line.device != device).then(|| "/".to_owned());
        let below = covered(&device).into_iter().map(|path| format!("/{}", path.escape_ascii()));
        let waits_for: Vec<String> = hidden.into_iter().chain(below).collect();
        self.waits_for_mut().clone_from(&waits_for);
        if !waits_for.is_empty() {
            return Ok(false);
        }
        self.show(image, Place::Instead(self.directory.as_path().into(), device))?;
        Ok(true)
    }

    /// Fetches an image in the background, so that lookups soon never wait.
    pub(crate) fn sweep(&self, image: &ReleaseImage) {
        self.superblock.hidden.blocks.prefetch(vec![image.blocks], Purpose::Metadata);
    }

    /// What it lies on.
    pub(crate) fn superblock(&self) -> &Arc<Superblock<B>> {
        &self.superblock
    }

    /// Its device number as mount tables have it.
    pub(crate) fn device(&self) -> String {
        self.device.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The paths below it on which something is mounted that it waits for.
    pub(crate) fn waits_for(&self) -> Vec<String> {
        self.waits_for_mut().clone()
    }

    /// Calls `end` when the kernel is done with it: unmounted everywhere, and nothing of it is open.
    pub(crate) fn on_end(&self, end: impl FnOnce() + Send + 'static) {
        self.images.on_end(Box::new(end));
    }

    fn show(&self, image: &ReleaseImage, place: Place) -> Result<(), Refusal> {
        let hidden = &self.superblock.hidden;
        // So that the kernel does not wait for the network.
        let first = BlockRange::new(image.blocks.start, image.blocks.count.min(FIRST_BLOCKS));
        let first = ByteRange { offset: first.byte_offset(), len: first.byte_len() };
        read_bytes(&*hidden.blocks, first, Instant::now() + hidden.timeout)?;
        let room = hidden.enter(&self.source, image)?;
        let (source, flags) = (self.source.clone(), self.flags);
        let (name, devices) = (room.name.clone(), image.devices);
        let order = Order { room: name, source, devices, flags, place };
        // Before the image that it replaces is closed: else there would be none for a moment.
        self.images.count();
        let attached = attach::run(&self.superblock, &order, hidden.timeout);
        match &attached {
            Ok(attached) => {
                let images = Arc::clone(&self.images);
                // Until its end the superblock has to be there for what is open.
                let superblock = Arc::clone(&self.superblock);
                hidden.on_close(room.image, move || {
                    images.discount();
                    drop(superblock);
                });
                let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
                attached.device.clone_into(&mut device);
            }
            Err(_) => self.images.discount(),
        }
        hidden.leave(&room);
        attached?;
        Ok(())
    }

    fn waits_for_mut(&self) -> MutexGuard<'_, Vec<String>> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Images {
    fn count(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
    }

    fn discount(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        let end = if state.0 == 0 { state.1.take() } else { None };
        drop(state);
        if let Some(end) = end {
            end();
        }
    }

    fn on_end(&self, end: End) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 > 0 {
            state.1 = Some(end);
            return;
        }
        drop(state);
        end();
    }
}
