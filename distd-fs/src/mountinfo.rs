//! What is mounted where: `/proc/self/mountinfo`, read without touching any mount.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The type that distd's mounts have.
pub const FILE_SYSTEM_TYPE: &str = "fuse.distd";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Number of the mount.
    pub id: u64,
    /// Number of the mount that it lies on.
    pub parent: u64,
    /// Which directory of the file system is mounted.
    pub root: PathBuf,
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
    Ok(parse_all(&std::fs::read("/proc/self/mountinfo")?))
}

/// The paths within the file system of that device number on which something is mounted, in all mount
/// namespaces that this process may see (of other users', only root may).
pub fn covered(device: &str) -> Vec<Vec<u8>> {
    let mut tables = vec![std::fs::read("/proc/self/mountinfo").unwrap_or_default()];
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let mut seen: BTreeSet<PathBuf> = namespace(Path::new("/proc/self")).into_iter().collect();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = process.file_name();
        if number.as_bytes().iter().all(u8::is_ascii_digit)
            && namespace(&process.path()).is_some_and(|namespace| seen.insert(namespace))
        {
            tables.extend(std::fs::read(process.path().join("mountinfo")));
        }
    }
    let mut paths: Vec<Vec<u8>> =
        tables.iter().flat_map(|table| covered_in(&parse_all(table), device)).collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// On which paths something is mounted over the mount of that device number on `point`, or below it, as paths
/// from `point` on; `/` is itself. `None`: there is no such mount. Mounts elsewhere of the same file system,
/// and those in other mount namespaces, are others' and count for nothing.
pub fn lying_on(point: &Path, device: &str) -> io::Result<Option<Vec<String>>> {
    Ok(lying_in(&mounts()?, point, device))
}

/// The same, of a table that was read.
pub fn lying_in(mounts: &[MountLine], point: &Path, device: &str) -> Option<Vec<String>> {
    let ours = mounts.iter().rfind(|mount| mount.point == point && mount.device == device)?;
    let children = mounts.iter().filter(|mount| mount.parent == ours.id);
    let path = |child: &MountLine| {
        let below = child.point.strip_prefix(point).ok()?;
        Some(format!("/{}", below.as_os_str().as_bytes().escape_ascii()))
    };
    Some(children.filter_map(path).collect())
}

fn covered_in(mounts: &[MountLine], device: &str) -> Vec<Vec<u8>> {
    let ours = mounts.iter().filter(|mount| mount.device == device);
    let ours: BTreeMap<u64, &MountLine> = ours.map(|mount| (mount.id, mount)).collect();
    let path = |mount: &MountLine| {
        let parent = ours.get(&mount.parent)?;
        let below = mount.point.strip_prefix(&parent.point).ok()?;
        // Something mounted over the root hides it but lies below no name of it: nothing is left.
        let path = parent.root.join(below).into_os_string().into_vec();
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        let path = path.strip_suffix(b"/").unwrap_or(path);
        (!path.is_empty()).then(|| path.to_vec())
    };
    mounts.iter().filter_map(path).collect()
}

fn parse_all(table: &[u8]) -> Vec<MountLine> {
    table.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// What is mounted on exactly this path; of several the one on top.
pub fn mounted_on(point: &Path) -> io::Result<Option<MountLine>> {
    Ok(topmost(mounts()?, point))
}

/// Of several mounts on a path the one that none of them lies on: a mount beneath another comes later.
fn topmost(mounts: Vec<MountLine>, point: &Path) -> Option<MountLine> {
    let there: Vec<MountLine> = mounts.into_iter().filter(|mount| mount.point == point).collect();
    let carries = |mount: &MountLine| there.iter().any(|other| other.parent == mount.id);
    there.iter().rfind(|mount| !carries(mount)).cloned()
}

/// `36 35 98:0 /root /point opts [tags] - type source superopts` (proc_pid_mountinfo(5)).
fn parse(line: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |index: usize| Some(String::from_utf8_lossy(fields.get(index)?).into_owned());
    let path = |index: usize| Some(OsString::from_vec(unescape(fields.get(index)?)));
    Some(MountLine {
        id: text(0)?.parse().ok()?,
        parent: text(1)?.parse().ok()?,
        root: path(3)?.into(),
        device: text(2)?,
        point: path(4)?.into(),
        kind: text(dash + 1)?,
        source: path(dash + 2)?,
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
            id: 36,
            parent: 35,
            root: "/".into(),
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
    fn what_is_mounted_below_is_known_by_its_path_in_the_file_system() {
        let table = br"20 1 0:1 / / rw - ext4 disk rw
30 20 0:98 / /mnt rw - fuse.distd s rw
31 30 0:5 / /mnt/a/p\040q rw - tmpfs t rw
32 31 0:6 / /mnt/a/p\040q/deeper rw - tmpfs t rw
33 20 0:98 /sub/dir /elsewhere rw - fuse.distd s rw
34 33 0:7 / /elsewhere/x rw - tmpfs t rw
35 30 0:8 / /mnt rw - tmpfs over rw
36 20 0:9 / /mnt2/y rw - tmpfs t rw";
        let covered = covered_in(&parse_all(table), "0:98");
        assert_eq!(covered, [b"a/p q".to_vec(), b"sub/dir/x".to_vec()]);
    }

    #[test]
    fn what_lies_on_one_mount_is_told_from_what_lies_on_its_copies() {
        let table = br"20 1 0:1 / / rw - ext4 disk rw
30 20 0:98 / /mnt ro - erofs s ro
31 30 0:5 / /mnt/a/p\040q rw - tmpfs t rw
32 31 0:6 / /mnt/a/p\040q/deeper rw - tmpfs t rw
33 20 0:98 /sub /elsewhere ro - erofs s ro
34 33 0:7 / /elsewhere/x rw - tmpfs t rw
35 30 0:8 / /mnt rw - tmpfs over rw";
        let lying = |point: &str, device| lying_in(&parse_all(table), Path::new(point), device);
        assert_eq!(lying("/mnt", "0:98"), Some(vec!["/a/p q".to_owned(), "/".to_owned()]));
        assert_eq!(lying("/elsewhere", "0:98"), Some(vec!["/x".to_owned()]));
        assert_eq!(lying("/mnt", "0:99"), None);
    }

    #[test]
    fn the_mount_on_top_is_found_wherever_its_line_is() {
        let table = br"27 1 0:1 / / rw - ext4 disk rw
43 44 0:39 / /mnt ro - erofs old ro
44 27 0:40 / /mnt ro - erofs new ro";
        let top = topmost(parse_all(table), Path::new("/mnt")).expect("is there");
        assert_eq!(top.source, "old");
        assert_eq!(topmost(parse_all(table), Path::new("/none")), None);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounted_on(Path::new("/")).expect("readable").is_some());
    }
}
