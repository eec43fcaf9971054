"""Is a mount its source?"""

import hashlib
import os
import subprocess

# -a: kinds, modes, owners, times, links, devices; H hard links; A ACLs; X xattrs. `user.distd.*` are what the
# mount itself tells about a file; they are not listed, so rsync does not see them.
RSYNC = ["rsync", "-aHAX", "--checksum", "--dry-run", "--itemize-changes", "--delete", "--numeric-ids"]


def same(source, mount, seconds=120):
    """Fails with rsync's words unless both trees are equal in everything that rsync compares."""
    done = subprocess.run(
        [*RSYNC, f"{source}/", f"{mount}/"], capture_output=True, timeout=seconds, check=False, errors="surrogateescape"
    )
    assert done.returncode == 0, f"rsync: exit {done.returncode}: {done.stderr}"
    assert not done.stdout.strip(), f"mount and source differ: {done.stdout[:2000]}"


def exactly(source, mount):
    """rsync compares whole seconds when it dry-runs: times, sizes and inode sharing once more, exactly."""
    for directory, names, files in os.walk(os.fsencode(source)):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            other = os.fsencode(mount) + path[len(os.fsencode(source)):]
            want, have = os.lstat(path), os.lstat(other)
            for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev"):
                assert getattr(want, field) == getattr(have, field), f"{other!r}: {field}: {getattr(want, field)} is {getattr(have, field)}"
            if not os.path.isdir(path) or os.path.islink(path):
                assert want.st_size == have.st_size, f"{other!r}: size {want.st_size} is {have.st_size}"
                assert want.st_nlink == have.st_nlink, f"{other!r}: links {want.st_nlink} is {have.st_nlink}"


def digest(path):
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
