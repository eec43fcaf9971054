//! What is mounted where: `/proc/self/mountinfo`, read without touching any mount.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type that distd's mounts have.
pub const FILE_SYSTEM_TYPE: &str = "fuse.distd";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Device number, `MAJOR:MINOR`.
    pub device: String,
    /// Mount point.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// What is mounted, as given to mount(8).
    pub source: OsString,
}

/// All mounts that this process sees, in order; of two on one point the later is on top.
pub fn mounts() -> io::Result<Vec<MountLine>> {
    Ok(std::fs::read("/proc/self/mountinfo")?.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// What is mounted on exactly this path.
pub fn mounted_on(point: &Path) -> io::Result<Option<MountLine>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.point == point))
}

/// `36 35 98:0 /root /point opts [tags] - type source superopts` (proc_pid_mountinfo(5)).
fn parse(line: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |index: usize| Some(String::from_utf8_lossy(fields.get(index)?).into_owned());
    Some(MountLine {
        device: text(2)?,
        point: OsString::from_vec(unescape(fields.get(4)?)).into(),
        kind: text(dash + 1)?,
        source: OsString::from_vec(unescape(fields.get(dash + 2)?)),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .first_chunk::<3>()
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(byte) = code {
            plain.push(byte);
            rest = &after[3..];
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = br"36 35 0:98 / /mnt/a\040b rw,nosuid shared:1 master:2 - fuse.distd distd://x@h,i/t rw";
        let expected = MountLine {
            device: "0:98".into(),
            point: "/mnt/a b".into(),
            kind: FILE_SYSTEM_TYPE.into(),
            source: "distd://x@h,i/t".into(),
        };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 0:98 / /mnt rw"), None);
        assert_eq!(unescape(br"a\134b\0"), br"a\b\0".to_vec());
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounted_on(Path::new("/")).expect("readable").is_some());
    }
}
