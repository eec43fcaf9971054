//! The kernel's side of a mount: a descriptor of `/dev/fuse`, joined to a directory.
//!
//! fuser can mount as well, but when its session has ended it unmounts the directory by its path once
//! more (0.18 takes the error that poll(2) reports for an ended connection for a sign of life). By then
//! another mount may lie there.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::mountinfo::FILE_SYSTEM_TYPE;

/// How long fusermount3 may take.
const HELPER_PATIENCE: Duration = Duration::from_secs(30);
/// Longest text of fusermount3 that is quoted, in bytes.
const HELPER_TEXT_MAX: u64 = 4096;
/// Descriptor number of a standard input.
const STDIN: i32 = 0;

/// What the mount table shall say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// The source, as it was given.
    pub(super) source: &'a str,
    /// Programs run as the owner of their file.
    pub(super) suid: bool,
    /// Device nodes work.
    pub(super) dev: bool,
    /// Programs run.
    pub(super) exec: bool,
    /// The kernel checks modes.
    pub(super) check_modes: bool,
    /// Other users may look into it.
    pub(super) others: bool,
}

/// Mounts on the directory: by mount(2), or where only the set-uid helper may, by fusermount3.
pub(super) fn open(directory: &Path, terms: &Terms<'_>) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let device = OwnedFd::from(device);
    match mount_directly(&device, directory, terms) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => mount_by_helper(directory, terms),
        Err(error) => Err(error.into()),
    }
}

fn mount_directly(device: &OwnedFd, directory: &Path, terms: &Terms<'_>) -> Result<(), Errno> {
    let mode =
        fs::metadata(directory).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}",
        device.as_raw_fd(),
        mode.mode(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    );
    for option in terms.of_fuse() {
        data.push(',');
        data.push_str(option);
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let mut flags = MountFlags::RDONLY;
    flags.set(MountFlags::NOSUID, !terms.suid);
    flags.set(MountFlags::NODEV, !terms.dev);
    flags.set(MountFlags::NOEXEC, !terms.exec);
    rustix::mount::mount(terms.source, directory, FILE_SYSTEM_TYPE, flags, &*data)
}

/// The same for root, in no place yet: the descriptor, and the mount.
pub(super) fn open_apart(terms: &Terms<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    let device = OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/fuse")?);
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let number = device.as_raw_fd().to_string();
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let (user, group) = (user.as_raw().to_string(), group.as_raw().to_string());
    for (key, value) in [
        ("source", terms.source),
        ("subtype", "distd"),
        ("fd", &number),
        // A directory; the rest is asked for.
        ("rootmode", "40755"),
        ("user_id", &user),
        ("group_id", &group),
    ] {
        fsconfig_set_string(&context, key, value)?;
    }
    for option in ["ro"].into_iter().chain(terms.of_fuse()) {
        fsconfig_set_flag(&context, option)?;
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !terms.suid);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, !terms.dev);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !terms.exec);
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok((device, mount))
}

/// fusermount3 hands the descriptor over a socket whose number it finds in the environment.
fn mount_by_helper(directory: &Path, terms: &Terms<'_>) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(HELPER_PATIENCE))?;
    let child = {
        // As its standard input, so that no other child inherits it.
        let mut command = Command::new("fusermount3");
        command.arg("-o").arg(terms.of_helper()).arg("--").arg(directory);
        command.env("_FUSE_COMMFD", STDIN.to_string());
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run fusermount3: {error}"))
        })?
    };
    let received = receive_descriptor(&ours);
    drop(ours);
    let said = ended(child)?;
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(io::Error::other(said)),
        Err(error) => Err(error),
    }
}

/// Waits for the helper's end; what it said.
fn ended(mut child: Child) -> io::Result<String> {
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        // Bytes that are no text are left out.
        let _ = stderr.take(HELPER_TEXT_MAX).read_to_string(&mut said);
    }
    child.wait()?;
    Ok(said.trim().to_owned())
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(rights)
}

impl Terms<'_> {
    /// What is FUSE's own and not the mount table's.
    fn of_fuse(&self) -> impl Iterator<Item = &'static str> {
        let check = self.check_modes.then_some("default_permissions");
        check.into_iter().chain(self.others.then_some("allow_other"))
    }

    fn of_helper(&self) -> String {
        // In the helper's list a comma ends an option.
        let source = self.source.replace('\\', "\\\\").replace(',', "\\,");
        let mut options = format!("fsname={source},subtype=distd,ro");
        for (given, option) in [(self.suid, "suid"), (self.dev, "dev"), (self.exec, "exec")] {
            options.push_str(if given { "," } else { ",no" });
            options.push_str(option);
        }
        for option in self.of_fuse() {
            options.push(',');
            options.push_str(option);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_gets_a_list_that_a_source_cannot_add_to() {
        let mut terms = Terms {
            source: r"distd://x@a,b/t\,suid",
            suid: false,
            dev: false,
            exec: true,
            check_modes: true,
            others: true,
        };
        let list = r"fsname=distd://x@a\,b/t\\\,suid,subtype=distd,ro,nosuid,nodev,exec,default_permissions,allow_other";
        assert_eq!(terms.of_helper(), list);
        (terms.source, terms.others, terms.check_modes, terms.exec) = ("s", false, false, false);
        assert_eq!(terms.of_helper(), "fsname=s,subtype=distd,ro,nosuid,nodev,noexec");
    }

    #[test]
    fn a_descriptor_comes_over_the_socket_or_none_does() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let file = std::fs::File::open("/dev/null").expect("opened");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        use std::os::fd::AsFd;
        let descriptors = [file.as_fd()];
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let byte = [io::IoSlice::new(&[0])];
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&theirs, &byte, &mut control, flags).expect("sent");
        assert!(receive_descriptor(&ours).expect("received").is_some());
        drop(theirs);
        assert!(receive_descriptor(&ours).expect("ended").is_none());
    }
}
