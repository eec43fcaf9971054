//! What `stat(2)` shows of an entry.

use distd_core::manifest::{Device, Entry, EntryKind, Timestamp};

/// Kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// The attributes of an inode. They never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub number: u64,
    /// Kind of file.
    pub kind: Kind,
    /// `st_mode & 07777`.
    pub mode: u16,
    /// `st_nlink`.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number as the kernel encodes it, 0 for all but devices.
    pub device: u32,
    /// `st_size`.
    pub size: u64,
    /// `st_blocks`: 512-byte units, holes left out.
    pub sectors: u64,
    /// Modification time; the other times are shown as the same.
    pub mtime: Timestamp,
}

impl Kind {
    /// The kind of an entry.
    pub fn of(entry: &Entry) -> Self {
        match entry.kind {
            EntryKind::File(_) => Self::File,
            EntryKind::Directory(_) => Self::Directory,
            EntryKind::Symlink(_) => Self::Symlink,
            EntryKind::CharDevice(_) => Self::CharDevice,
            EntryKind::BlockDevice(_) => Self::BlockDevice,
            EntryKind::Fifo => Self::Fifo,
            EntryKind::Socket => Self::Socket,
        }
    }
}

impl Attributes {
    /// The attributes of an entry; `data_blocks` are a regular file's blocks without holes.
    pub fn new(number: u64, entry: &Entry, data_blocks: u64) -> Self {
        let (size, links, device) = match &entry.kind {
            EntryKind::File(file) => (file.size, 1, 0),
            EntryKind::Directory(directory) => {
                (directory.node.len, directory.subdirectories.saturating_add(2), 0)
            }
            EntryKind::Symlink(target) => (target.len() as u64, 1, 0),
            EntryKind::CharDevice(device) | EntryKind::BlockDevice(device) => {
                (0, 1, device_number(*device))
            }
            EntryKind::Fifo | EntryKind::Socket => (0, 1, 0),
        };
        let sectors = match entry.kind {
            EntryKind::File(_) => data_blocks * 8,
            _ => size.div_ceil(512),
        };
        Self {
            number,
            kind: Kind::of(entry),
            mode: entry.mode,
            links: entry.link.map_or(links, |link| link.count),
            uid: entry.uid,
            gid: entry.gid,
            device,
            size,
            sectors,
            mtime: entry.mtime,
        }
    }
}

/// Linux's 32-bit form (`new_encode_dev`): 12 bits of major, 20 of minor.
fn device_number(device: Device) -> u32 {
    let (major, minor) = (device.major & 0xfff, device.minor & 0xf_ffff);
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_those_of_linux() {
        for (major, minor) in [(1, 3), (8, 1), (0xfff, 0xf_ffff), (259, 300), (0, 0)] {
            let number = u64::from(device_number(Device { major, minor }));
            assert_eq!((rustix::fs::major(number), rustix::fs::minor(number)), (major, minor));
        }
    }
}
