//! The helper: a process of its own that mounts EROFS over a hidden superblock.
//!
//! A process that mounts over files which it serves itself cannot be killed while it waits for its own
//! answer. The helper holds no descriptor of `/dev/fuse`: when the node is gone, the kernel ends what it
//! waits for. It is this program, run with the hidden command `attach` and the superblock's root as its
//! standard input, and confined to its room there: so the image's path can be the mount's SOURCE.

use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use rustix::process::{chroot, fchdir};
use serde::{Deserialize, Serialize};

use crate::blocks::Blocks;
use crate::control::PathText;
use crate::mountinfo::lying_on;

use super::hidden::device_name;
use super::probe;
use super::site::{Site, device_of, open_path};
use super::superblock::Superblock;

/// The hidden command.
pub(crate) const COMMAND: &str = "attach";
/// What the kernel may take beyond the reads that a mount needs.
const SLACK: Duration = Duration::from_secs(10);
/// How long a helper that was killed may take to end before it is left to a thread.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked whether it has.
const END_POLL: Duration = Duration::from_millis(20);
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

/// What a helper says, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Said {
    /// There is a mount of this device number, as mount tables have it. Said before it is put into its place:
    /// then it is known whatever becomes of the helper.
    Made(String),
    /// It is in its place.
    Done,
    /// It is not, and why.
    Refused(Refused),
}

/// Why a mount was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// No helper.
    #[error("cannot run the mount's helper: {0}")]
    Spawn(#[from] io::Error),
    /// It was not done in time.
    #[error("the kernel did not mount EROFS within {} s", .0.as_secs())]
    Late(Duration),
    /// It died.
    #[error("the mount's helper died")]
    Died,
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

/// Has a helper carry out an order; `timeout` is what its reads may take. The device number of the mount.
pub(super) fn run<B: Blocks>(
    superblock: &Arc<Superblock<B>>,
    order: &Order,
    timeout: Duration,
) -> Result<String, AttachError> {
    let patience = timeout + SLACK;
    let words = serde_json::to_string(order).map_err(io::Error::from)?;
    let root = superblock.root().try_clone_to_owned()?;
    // Not by its path: the program may have been replaced since.
    let mut child = Command::new("/proc/self/exe")
        .args([COMMAND, &words])
        .stdin(Stdio::from(root))
        .stdout(Stdio::piped())
        .spawn()?;
    let Some(stdout) = child.stdout.take() else { return Err(AttachError::Died) };
    let (lines, due) = (listen(stdout), Instant::now() + patience);
    let mut made = None;
    let outcome = loop {
        match lines.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(Said::Made(device)) => made = Some(device),
            Ok(Said::Done) => break Ok(()),
            Ok(Said::Refused(refused)) => break Err(refused.into()),
            Err(RecvTimeoutError::Timeout) => break Err(AttachError::Late(patience)),
            Err(RecvTimeoutError::Disconnected) => break Err(AttachError::Died),
        }
    };
    end(child, superblock, patience);
    match (outcome, made) {
        (Ok(()), Some(device)) => Ok(device),
        (Ok(()), None) => Err(AttachError::Died),
        (Err(error), Some(device)) if took_place(&order.place, &device) => {
            tracing::warn!(%error, "the mount is in its place all the same");
            Ok(device)
        }
        (Err(error), _) => Err(error),
    }
}

/// What a helper says, until its end.
fn listen(stdout: ChildStdout) -> Receiver<Said> {
    let (sender, receiver) = sync_channel(2);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let Ok(said) = serde_json::from_str(&line) else { return };
            if sender.send(said).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Ends a helper. One that waits in the kernel goes with what it waits for, at the latest when the deadline of
/// its read passes: a thread sees to that. Only if it stays beyond does nobody answer the kernel, and the
/// connection is broken off; all mounts over it wait for nothing then.
fn end<B: Blocks>(mut child: Child, superblock: &Arc<Superblock<B>>, patience: Duration) {
    let ended = |child: &mut Child, within: Duration| {
        let begin = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if begin.elapsed() >= within {
                return false;
            }
            std::thread::sleep(END_POLL);
        }
        true
    };
    // One that has said how it ended goes by itself; and a killed one mounts nothing more.
    if ended(&mut child, END_POLL * 5) || (child.kill().is_ok() && ended(&mut child, END_PATIENCE))
    {
        return;
    }
    let superblock = Arc::clone(superblock);
    std::thread::spawn(move || {
        if !ended(&mut child, patience) {
            superblock.abort();
            ended(&mut child, END_PATIENCE);
        }
    });
}

/// Whether a mount stands in its place although its helper did not say so. Finishes what that has begun: the
/// mount that it lies beneath is taken away.
fn took_place(place: &Place, device: &str) -> bool {
    let (directory, old) = match place {
        Place::On(directory) => (directory, None),
        Place::Instead(directory, old) => (directory, Some(old)),
        Place::Tried => return false,
    };
    let directory = PathBuf::from(directory.clone());
    let stands = |device: &str| matches!(lying_on(&directory, device), Ok(Some(_)));
    if !stands(device) {
        return false;
    }
    match old.filter(|old| stands(old)) {
        None => true,
        Some(old) => match Site::open(&directory, Some(old)).and_then(|site| site.clear()) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "two mounts lie on {}", directory.display());
                false
            }
        },
    }
}

/// Is the helper: the hidden command.
pub(crate) fn main(words: &str) -> Result<(), serde_json::Error> {
    let order: Order = serde_json::from_str(words)?;
    say(&match carry_out(&order) {
        Ok(()) => Said::Done,
        Err(refused) => Said::Refused(refused),
    });
    Ok(())
}

/// Does not return if nobody listens any more: then nothing is to be mounted either.
fn say(said: &Said) {
    println!("{}", serde_json::to_string(said).unwrap_or_default());
}

fn carry_out(order: &Order) -> Result<(), Refused> {
    // All that is found by a path of the machine's, before there is only the room.
    let home = open_path("/").map_err(refused("cannot open the root"))?;
    let site = match &order.place {
        Place::On(directory) => Some(Site::open(&PathBuf::from(directory.clone()), None)?),
        Place::Instead(directory, device) => {
            Some(Site::open(&PathBuf::from(directory.clone()), Some(device))?)
        }
        Place::Tried => None,
    };
    let mount = mount(order)?;
    let back = || {
        fchdir(&home)?;
        chroot(".")
    };
    back().map_err(refused("cannot leave the hidden files"))?;
    let device = device_of(mount.as_fd()).map_err(refused("cannot look at the new mount"))?;
    say(&Said::Made(device));
    match site {
        Some(site) => site.take(mount.as_fd()),
        None => probe::examine(mount.as_fd()),
    }
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

/// What the file system wrote about a failed mount.
fn said(context: BorrowedFd<'_>) -> String {
    let mut text = vec![0; SAID_BYTES_MAX];
    let mut lines = Vec::new();
    while let Ok(count @ 1..) = rustix::io::read(context, &mut text) {
        lines.push(String::from_utf8_lossy(&text[..count]).trim().to_owned());
    }
    lines.join("; ")
}

pub(crate) fn refused(step: &'static str) -> impl Fn(Errno) -> Refused {
    move |errno| Refused { step: step.into(), errno: errno.to_string(), said: String::new() }
}
