"""Source trees: plain ones, and one with everything odd that a Unix file system can hold."""

import os
import pathlib
import random
import socket
import struct
import subprocess

MIB = 1 << 20


def random_bytes(seed, length):
    return random.Random(seed).randbytes(length)


def small(root, seed=1):
    """A few directories and files; the same seed gives the same bytes."""
    root = pathlib.Path(root)
    for directory, files in (("bin", 3), ("lib/a", 5), ("lib/b", 2), ("share/doc", 4)):
        (root / directory).mkdir(parents=True)
        for number in range(files):
            (root / directory / f"file{number}").write_bytes(random_bytes(f"{seed}{directory}{number}", 777 * (number + 1) ** 2))
    (root / "big").write_bytes(random_bytes(seed, 8 * MIB))
    (root / "empty").touch()
    (root / "link").symlink_to("lib/a/file0")
    return root


def many(root, directories, files_each):
    """A tree of directories * files_each small files."""
    root = pathlib.Path(root)
    for d in range(directories):
        directory = root / f"d{d % 50:02}" / f"s{d:04}"
        directory.mkdir(parents=True)
        for f in range(files_each):
            (directory / f"f{f:03}").write_bytes(b"%d/%d\n" % (d, f) * (1 + f % 7))
    return root


def odd(root, crowd=2000):
    """Every kind of entry, name and attribute; `crowd` is the size of the crowded directory."""
    root = os.fsencode(root)
    os.mkdir(root)
    _regular(root)
    _names(root)
    _special(root)
    _attributes(root)
    _times(root)
    os.mkdir(root + b"/crowd")
    for number in range(crowd):
        os.close(os.open(root + b"/crowd/%06d" % number, os.O_CREAT | os.O_WRONLY, 0o644))
    return pathlib.Path(os.fsdecode(root))


def _write(path, content, mode=0o644):
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


def _regular(root):
    _write(root + b"/empty", b"")
    for length in (1, 1023, 1024, 1025, 4095, 4096, 4097, 16383, 16384, 16385, MIB - 1, MIB, MIB + 1):
        _write(root + b"/length-%d" % length, random_bytes(length, length))
    _write(root + b"/zeros", bytes(3 * MIB + 5))
    _write(root + b"/repeated", random_bytes(7, 4096) * 300)
    _write(root + b"/unreadable-by-others", b"secret\n", 0o600)
    _write(root + b"/mode-0", b"nobody may\n", 0o000)
    for name, mode in ((b"setuid", 0o4755), (b"setgid", 0o2755), (b"sticky", 0o1644)):
        _write(root + b"/" + name, b"#!/bin/sh\nid\n", mode)
    with open(root + b"/sparse", "wb") as file:
        file.truncate(64 * MIB)
        for offset in (0, 5 * MIB + 3, 40 * MIB - 1):
            file.seek(offset)
            file.write(b"here")
    with open(root + b"/hole-only", "wb") as file:
        file.truncate(9 * MIB + 123)
    _write(root + b"/hard-a", b"one inode, three names\n")
    os.mkdir(root + b"/links")
    os.link(root + b"/hard-a", root + b"/hard-b")
    os.link(root + b"/hard-a", root + b"/links/hard-c")
    os.chown(root + b"/hard-a", 1234, 65533)


def _names(root):
    names = root + b"/names"
    os.mkdir(names, 0o751)
    odd_names = [b"a" * 255, b"\xff\xfe not UTF-8 \x80", b"new\nline", b"tab\there", b" ", b"-rf", b"*", b"..."]
    odd_names += [b"quote'\"`$(id)", b"back\\slash", "\u00e9\u4f60\U0001f600".encode(), b"\xc3" * 255, b"\x01\x1b[31m", b"#x,y=z"]
    for name in odd_names:
        _write(names + b"/" + name, b"named " + name)
    deep = root + b"/deep"
    for level in range(100):
        os.mkdir(deep)
        deep += b"/%d" % level
    os.mkdir(root + b"/empty-directory", 0o700)
    os.mkdir(root + b"/sticky-directory")
    os.chmod(root + b"/sticky-directory", 0o3777)


def _special(root):
    os.mkdir(root + b"/special")
    os.symlink(b"../names/" + b"a" * 255, root + b"/special/symlink")
    os.symlink(b"/nowhere/\xff", root + b"/special/dangling")
    os.symlink(b"x" * 4000, root + b"/special/long")
    os.lchown(root + b"/special/symlink", 7, 8)
    os.mkfifo(root + b"/special/fifo", 0o640)
    os.mknod(root + b"/special/char", 0o020666, os.makedev(1, 3))
    os.mknod(root + b"/special/block", 0o060660, os.makedev(259, 1048575))
    # The path of a socket is bounded to 108 bytes: make it by a short name.
    here = os.getcwd()
    os.chdir(root + b"/special")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    os.chdir(here)


def _attributes(root):
    directory = root + b"/attributes"
    os.mkdir(directory)
    plain = directory + b"/user"
    _write(plain, b"x")
    os.setxattr(plain, b"user.plain", b"value")
    os.setxattr(plain, b"user.binary", bytes(range(256)))
    os.setxattr(plain, b"user.empty", b"")
    os.setxattr(plain, b"trusted.secret", b"root only")
    os.setxattr(directory, b"user.on-a-directory", b"too")
    program = directory + b"/capable"
    _write(program, b"\x7fELF", 0o755)
    # struct vfs_cap_data, revision 2: cap_net_bind_service in permitted, effective.
    os.setxattr(program, b"security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    acl = directory + b"/acl"
    _write(acl, b"acl")
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:4321:r,m::rw", acl], check=True)
    inherited = directory + b"/default-acl"
    os.mkdir(inherited)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx,g:4321:rx", inherited], check=True)


def _times(root):
    directory = root + b"/times"
    os.mkdir(directory)
    moments = [0, 1, 999_999_999, 1_700_000_000_123_456_789, (1 << 31) * 10**9 + 7, -1_500_000_000, 4_000_000_000 * 10**9]
    for number, moment in enumerate(moments):
        path = directory + b"/%d" % number
        _write(path, b"t")
        os.utime(path, ns=(moment, moment))
    os.utime(root + b"/names", ns=(123_456_789, 123_456_789))


def incompressible(path, length, seed=1):
    """A file of `length` bytes that no compressor makes smaller."""
    chance = random.Random(seed)
    with open(path, "wb") as file:
        for begin in range(0, length, MIB):
            file.write(chance.randbytes(min(MIB, length - begin)))
