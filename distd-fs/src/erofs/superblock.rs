//! A hidden superblock as the kernel has it.
//!
//! It is a FUSE mount that lies in no mount table: nobody can look into it, and it is gone with the last
//! descriptor of it and the last EROFS on it, also when the node is killed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::blocks::Blocks;
use crate::fs::Accessed;

use super::adapter::Adapter;
use super::hidden::Hidden;

/// Threads that answer the kernel; none of them waits for the network.
const THREADS_MAX: usize = 4;
/// The kernel's read-ahead in the log, in KiB: as much as EROFS asks for at once. With less, what EROFS
/// asks for in one request would come in several; with more, it would fetch what lies beside a file.
const READ_AHEAD_KIB: u32 = 128;

/// A hidden superblock; the kernel's side ends some time after it is dropped.
pub(crate) struct Superblock<B> {
    pub(super) hidden: Arc<Hidden<B>>,
    root: OwnedFd,
    minor: u32,
    /// Whether the kernel is still answered.
    alive: Arc<AtomicBool>,
}

impl<B: Blocks> Superblock<B> {
    /// Has the kernel know it. Only root may.
    pub(crate) fn open(hidden: Arc<Hidden<B>>) -> io::Result<Self> {
        let device = OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/fuse")?);
        let root = mount(device.as_fd())?;
        let mut config = Config::default();
        config.acl = SessionACL::Owner;
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        config.n_threads = Some(threads.clamp(2, THREADS_MAX));
        config.clone_fd = true;
        let adapter = Adapter(Arc::clone(&hidden));
        let session = Session::from_fd(adapter, device, SessionACL::Owner, config)?;
        let label = hidden.label.clone();
        let alive = Arc::new(AtomicBool::new(true));
        let ends = Arc::clone(&alive);
        let run = move || {
            match session.run() {
                Ok(()) => tracing::debug!("the files of {label} are closed"),
                Err(error) => {
                    tracing::error!(%error, "the files of {label} broke: its mounts are made anew");
                }
            }
            ends.store(false, Ordering::Relaxed);
        };
        std::thread::Builder::new().name("hidden-session".into()).spawn(run)?;
        let minor = statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?.stx_dev_minor;
        tune(minor);
        Ok(Self { hidden, root, minor, alive })
    }

    /// How long its reads wait for the network.
    pub(crate) fn timeout(&self) -> Duration {
        self.hidden.timeout
    }

    /// Whether a mount over it can be made.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Number of the kernel's connection.
    pub(crate) fn connection(&self) -> u32 {
        self.minor
    }

    /// What was read first, in all mounts over it.
    pub(crate) fn accessed(&self) -> &Accessed {
        &self.hidden.accessed
    }

    /// Its root.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Ends the kernel's connection: everything that waits gets an error at once. All mounts over it are
    /// dead then.
    pub(super) fn abort(&self) {
        let outcome = abort(self.minor);
        tracing::error!(
            ?outcome,
            "broke off the files of {}: the kernel waited too long",
            self.hidden.label
        );
    }
}

fn mount(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let (user, group) = (user.as_raw().to_string(), group.as_raw().to_string());
    for (key, value) in [
        ("source", "distd"),
        ("subtype", "distd"),
        ("fd", number.as_str()),
        ("rootmode", "40500"),
        ("user_id", user.as_str()),
        ("group_id", group.as_str()),
    ] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Best effort: a container may not see sysfs.
fn tune(minor: u32) {
    let file = format!("/sys/class/bdi/0:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&file, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, file, "the read-ahead stays at the kernel's default");
    }
}

pub(super) fn abort(minor: u32) -> Result<(), Errno> {
    let wrong = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    if fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").is_ok() {
        return Ok(());
    }
    // Not mounted here: our own.
    let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let control = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&control, format!("{minor}/abort"), flags, Mode::empty())?;
    fs::File::from(file).write_all(b"1").map_err(wrong)
}
