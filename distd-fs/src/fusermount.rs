//! Mounting as an ordinary user: through the set-uid program `fusermount3`, which opens /dev/fuse,
//! mounts, and sends the descriptor back over a socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

const PROGRAM: &str = "fusermount3";
/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Mounts on the directory with these options; the descriptor of the connection to the kernel.
pub(crate) fn mount(directory: &Path, options: &[String]) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(PATIENCE))?;
    // The program inherits its end. Another program that is started in this moment would too, which
    // does no harm: nothing is read from it.
    fcntl_setfd(&theirs, FdFlags::empty())?;
    let child = Command::new(PROGRAM)
        .arg("-o")
        .arg(options.join(","))
        .arg("--")
        .arg(directory)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {PROGRAM}: {error}")))?;
    drop(theirs);
    let received = receive(&ours);
    drop(ours);
    let output = child.wait_with_output()?;
    match received {
        Ok(descriptor) if output.status.success() => Ok(descriptor),
        outcome => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            match (said.is_empty(), outcome) {
                (false, _) => Err(io::Error::other(said)),
                (true, Err(error)) => Err(error),
                (true, Ok(_)) => Err(io::Error::other(format!("{PROGRAM}: {}", output.status))),
            }
        }
    }
}

/// A value of an option in a list: commas and backslashes are escaped.
pub(crate) fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 || message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_list_survives_commas_in_a_source() {
        assert_eq!(escape(r"distd://x@a,b/t\u"), r"distd://x@a\,b/t\\u");
    }
}
