//! The helper: a process of its own that mounts EROFS over a hidden superblock.
//!
//! A process that mounts over files which it serves itself cannot be killed while it waits for its own
//! answer. The helper holds no descriptor of `/dev/fuse`: when the node is gone, the kernel ends what it
//! waits for. It is this program, run with the hidden command `attach` and the superblock's root as its
//! standard input, and confined to its room there: so the image's path can be the mount's SOURCE.

use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use rustix::process::{chroot, fchdir};
use serde::{Deserialize, Serialize};

use crate::blocks::Blocks;
use crate::control::PathText;

use super::hidden::device_name;
use super::probe;
use super::superblock::Superblock;

/// The hidden command.
pub(crate) const COMMAND: &str = "attach";
/// What the kernel may take beyond the reads that a mount needs.
const SLACK: Duration = Duration::from_secs(10);
/// How long a helper that was killed may take to end, once the kernel's connection is broken off.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Longest text of the kernel that is quoted, in bytes.
const SAID_BYTES_MAX: usize = 1024;

/// What a helper is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Its room.
    pub(super) room: String,
    /// The image's path there.
    pub(super) source: String,
    /// How many devices the image expects.
    pub(super) devices: u16,
    /// What of the release's files counts.
    pub(super) flags: Flags,
    /// What to do with the mount.
    pub(super) place: Place,
}

/// Where a mount goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Place {
    /// On a directory.
    On(PathText),
    /// On a directory, in the place of the mount there, which must be of this device number.
    Instead(PathText, String),
    /// Nowhere: it is only tried.
    Tried,
}

/// What of the release's files counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Flags {
    /// Set-id bits and file capabilities.
    pub(crate) suid: bool,
    /// Device nodes.
    pub(crate) dev: bool,
    /// Programs.
    pub(crate) exec: bool,
}

/// A mount that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attached {
    /// Its device number as mount tables have it.
    pub(super) device: String,
}

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// No helper.
    #[error("cannot run the mount's helper: {0}")]
    Spawn(#[from] io::Error),
    /// It was not done in time, or died.
    #[error("the kernel did not mount EROFS within {} s", .0.as_secs())]
    Late(Duration),
    /// It said why.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What the helper could not do.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{step}: {errno}{}", if said.is_empty() { String::new() } else { format!(" ({said})") })]
pub(crate) struct Refused {
    /// Which step.
    pub(super) step: String,
    /// What the system said.
    pub(super) errno: String,
    /// What the file system said.
    pub(super) said: String,
}

/// Has a helper carry out an order; `timeout` is what its reads may take.
pub(super) fn run<B: Blocks>(
    superblock: &Superblock<B>,
    order: &Order,
    timeout: Duration,
) -> Result<Attached, AttachError> {
    let patience = timeout + SLACK;
    let words = serde_json::to_string(order).map_err(io::Error::from)?;
    let root = superblock.root().try_clone_to_owned()?;
    // Not by its path: the program may have been replaced since.
    let mut child = Command::new("/proc/self/exe")
        .args([COMMAND, &words])
        .stdin(Stdio::from(root))
        .stdout(Stdio::piped())
        .spawn()?;
    let Some(stdout) = child.stdout.take() else { return Err(AttachError::Late(patience)) };
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    let line = receiver.recv_timeout(patience);
    match line {
        Ok(Ok(line)) => {
            let _ = child.wait();
            let answer: Result<Attached, Refused> =
                serde_json::from_str(&line).map_err(|_| AttachError::Late(patience))?;
            Ok(answer?)
        }
        Ok(Err(_)) | Err(_) => {
            give_up(child, superblock);
            Err(AttachError::Late(patience))
        }
    }
}

/// A helper that waits in the kernel dies only when what it waits for ends.
fn give_up<B: Blocks>(mut child: Child, superblock: &Superblock<B>) {
    let _ = child.kill();
    let begin = Instant::now();
    let mut aborted = false;
    while begin.elapsed() < END_PATIENCE && matches!(child.try_wait(), Ok(None)) {
        if !aborted && begin.elapsed() > END_PATIENCE / 5 {
            superblock.abort();
            aborted = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Is the helper: the hidden command.
pub(crate) fn main(words: &str) -> Result<(), serde_json::Error> {
    let order: Order = serde_json::from_str(words)?;
    let answer = carry_out(&order);
    println!("{}", serde_json::to_string(&answer)?);
    Ok(())
}

fn carry_out(order: &Order) -> Result<Attached, Refused> {
    // All that is found by a path of the machine's, before there is only the room.
    let ways = open_path("/proc/self/fd").map_err(refused("cannot look into /proc"))?;
    let site = match &order.place {
        Place::On(directory) => Some(Site::open(directory, None)?),
        Place::Instead(directory, device) => Some(Site::open(directory, Some(device))?),
        Place::Tried => None,
    };
    let mount = mount(order)?;
    let device = device_of(mount.as_fd()).map_err(refused("cannot look at the new mount"))?;
    match site {
        Some(site) => site.take(mount.as_fd(), ways.as_fd())?,
        None => probe::examine(mount.as_fd())?,
    }
    Ok(Attached { device })
}

/// Makes the mount, in no place yet.
fn mount(order: &Order) -> Result<OwnedFd, Refused> {
    let confined = || {
        fchdir(rustix::stdio::stdin())?;
        chroot(order.room.as_str())?;
        rustix::process::chdir("/")
    };
    confined().map_err(refused("cannot enter the hidden files"))?;
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC);
    let context = context.map_err(refused("this kernel knows no EROFS"))?;
    let made = || {
        fsconfig_set_string(&context, "source", order.source.as_str())?;
        for device in 0..order.devices {
            fsconfig_set_string(&context, "device", format!("/{}", device_name(device)))?;
        }
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)
    };
    made().map_err(|errno| Refused {
        said: said(context.as_fd()),
        ..refused("the kernel refused the image")(errno)
    })?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !order.flags.suid);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, !order.flags.dev);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !order.flags.exec);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(refused("no mount"))
}

/// A directory that is mounted on.
struct Site {
    directory: OwnedFd,
    /// Where the directory below the mount is found again, where there is a mount to replace.
    replaced: Option<(OwnedFd, PathBuf)>,
}

impl Site {
    fn open(path: &PathText, device: Option<&str>) -> Result<Self, Refused> {
        let path = PathBuf::from(path.clone());
        let wrong = refused("cannot open the mount point");
        let directory = open_path(&path).map_err(&wrong)?;
        let Some(expected) = device else { return Ok(Self { directory, replaced: None }) };
        if device_of(directory.as_fd()).map_err(&wrong)? != expected {
            return Err(refused("something else is mounted there")(Errno::BUSY));
        }
        let (parent, name) = (path.parent().unwrap_or(&path), path.file_name());
        let parent = open_path(parent).map_err(&wrong)?;
        let name = name.map(PathBuf::from).ok_or_else(|| wrong(Errno::INVAL))?;
        Ok(Self { directory, replaced: Some((parent, name)) })
    }

    /// Puts the mount there.
    fn take(&self, mount: BorrowedFd<'_>, ways: BorrowedFd<'_>) -> Result<(), Refused> {
        let there =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let put = |directory: BorrowedFd<'_>, flags| move_mount(mount, "", directory, "", flags);
        let Some((parent, name)) = &self.replaced else {
            return put(self.directory.as_fd(), there).map_err(refused("cannot mount"));
        };
        let detach = || {
            // The descriptor's own way leads to this mount, whatever lies on the path by now.
            fchdir(ways)?;
            unmount(self.directory.as_raw_fd().to_string(), UnmountFlags::DETACH)
        };
        if knows_beneath() {
            put(self.directory.as_fd(), there | MoveMountFlags::MOVE_MOUNT_BENEATH)
                .map_err(refused("cannot mount below the old release"))?;
            return detach().map_err(refused("cannot take the old release away"));
        }
        // For a moment there is nothing; a mount on top would go with what it lies on.
        let replace = || {
            detach()?;
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let below = openat(parent, name.as_path(), flags, Mode::empty())?;
            put(below.as_fd(), there)
        };
        replace().map_err(refused("cannot put the new release into place"))
    }
}

/// Whether the kernel can mount beneath a mount: Linux 6.5.
fn knows_beneath() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 5)
}

fn open_path(path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    // Without O_DIRECTORY, which would have an automount point wait for this very mount.
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The device number of what a descriptor leads to, without asking it anything.
fn device_of(file: BorrowedFd<'_>) -> Result<String, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(file, "", flags, StatxFlags::TYPE)?;
    Ok(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
}

/// What the file system wrote about a failed mount.
fn said(context: BorrowedFd<'_>) -> String {
    let mut text = vec![0; SAID_BYTES_MAX];
    let mut lines = Vec::new();
    while let Ok(count @ 1..) = rustix::io::read(context, &mut text) {
        lines.push(String::from_utf8_lossy(&text[..count]).trim().to_owned());
    }
    lines.join("; ")
}

pub(super) fn refused(step: &'static str) -> impl Fn(Errno) -> Refused {
    move |errno| Refused { step: step.into(), errno: errno.to_string(), said: String::new() }
}
