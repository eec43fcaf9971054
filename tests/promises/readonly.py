"""Promises about writing: it cannot be done."""

import ctypes
import errno
import os
import time

from lib import tree
from lib.promises import promise

LIBC = ctypes.CDLL(None, use_errno=True)


def _call(name, *words):
    if getattr(LIBC, name)(*words) < 0:
        raise OSError(ctypes.get_errno(), name)


def mutations(mount):
    """(name, call) of every system call that would change something."""
    file, directory, new = os.fsencode(mount / "bin/file0"), os.fsencode(mount / "lib"), os.fsencode(mount / "new")
    now = time.time_ns()
    for flags in ("O_WRONLY", "O_RDWR", "O_WRONLY|O_APPEND", "O_WRONLY|O_TRUNC", "O_RDONLY|O_TRUNC"):
        bits = 0
        for flag in flags.split("|"):
            bits |= getattr(os, flag)
        yield f"open({flags})", lambda bits=bits: os.open(file, bits)
    yield "open(O_CREAT)", lambda: os.open(new, os.O_CREAT | os.O_WRONLY, 0o644)
    yield "open(O_CREAT|O_EXCL)", lambda: os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    yield "open(O_TMPFILE)", lambda: os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o644)
    yield "creat", lambda: _call("creat", new, 0o644)
    yield "mkdir", lambda: os.mkdir(new)
    yield "mknod(regular)", lambda: os.mknod(new, 0o100644)
    yield "mknod(device)", lambda: os.mknod(new, 0o020644, os.makedev(1, 3))
    yield "mkfifo", lambda: os.mkfifo(new)
    yield "symlink", lambda: os.symlink(b"x", new)
    yield "link", lambda: os.link(file, new)
    yield "unlink", lambda: os.unlink(file)
    yield "unlink(symlink)", lambda: os.unlink(mount / "link")
    yield "rmdir", lambda: os.rmdir(directory)
    yield "rename", lambda: os.rename(file, new)
    yield "rename(directory)", lambda: os.rename(directory, new)
    yield "renameat2(EXCHANGE)", lambda: _call("renameat2", -100, file, -100, os.fsencode(mount / "big"), 2)
    yield "chmod", lambda: os.chmod(file, 0o777)
    yield "fchmodat", lambda: _call("fchmodat", -100, os.fsencode(mount / "link"), 0o777, 0)
    yield "chown", lambda: os.chown(file, 1, 1)
    yield "lchown", lambda: os.lchown(mount / "link", 1, 1)
    yield "utimensat", lambda: os.utime(file, ns=(now, now))
    yield "utimensat(now)", lambda: os.utime(file)
    yield "truncate", lambda: os.truncate(file, 0)
    yield "truncate(longer)", lambda: os.truncate(file, 1 << 20)
    yield "setxattr(user)", lambda: os.setxattr(file, "user.x", b"1")
    yield "setxattr(trusted)", lambda: os.setxattr(file, "trusted.x", b"1")
    yield "setxattr(security)", lambda: os.setxattr(file, "security.x", b"1")
    yield "setxattr(user.distd)", lambda: os.setxattr(file, "user.distd.release", b"v0")
    yield "removexattr", lambda: os.removexattr(file, "user.mine")
    yield "lsetxattr", lambda: os.setxattr(mount / "link", "trusted.x", b"1", follow_symlinks=False)


@promise()
def every_mutating_call_answers_erofs(world):
    source = tree.small(world.dir / "source")
    os.setxattr(source / "bin/file0", "user.mine", b"1")
    world.published(source)
    mount = world.mount()
    wrong = []
    for name, call in mutations(mount):
        try:
            call()
            wrong.append(f"{name}: done")
        except OSError as error:
            if error.errno != errno.EROFS:
                wrong.append(f"{name}: {errno.errorcode[error.errno]}")
    assert not wrong, wrong
    assert not os.access(mount / "bin/file0", os.W_OK)
    assert os.statvfs(mount).f_flag & os.ST_RDONLY
