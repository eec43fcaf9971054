"""Promises about what a mount shows: exactly what was published."""

import os
import subprocess

from lib import compare, hosts, tree
from lib.network import NODE
from lib.promises import promise

# BLAKE3 of nothing and of "abc", as b3sum prints them.
BLAKE3 = {
    b"": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    b"abc": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
}


@promise(seconds=180)
def odd_tree_equals_its_source(world):
    source = tree.odd(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)
    compare.exactly(source, mount)
    # Once more from the cache alone, and by a node that starts anew.
    world.umount()
    world.mount()
    compare.same(source, mount)


@promise(seconds=180)
def directory_of_65536_entries_is_whole(world):
    source = world.dir / "source"
    (source / "crowd").mkdir(parents=True)
    for number in range(65536):
        os.close(os.open(source / "crowd" / f"entry-{number:05}", os.O_CREAT | os.O_WRONLY, 0o644))
    world.published(source)
    mount = world.mount()
    names = os.listdir(mount / "crowd")
    assert len(names) == len(set(names)) == 65536, len(names)
    assert (mount / "crowd" / "entry-65535").stat().st_size == 0
    compare.same(source, mount)


@promise(seconds=120)
def sixteen_sparse_gibibytes_cost_what_they_hold(world):
    source = world.dir / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.truncate(16 << 30)
        file.seek((16 << 30) - 5)
        file.write(b"ends\n")
    world.published(source)
    mount = world.mount()
    descriptor = os.open(mount / "sparse", os.O_RDONLY)
    assert os.fstat(descriptor).st_size == 16 << 30
    assert os.pread(descriptor, 10, (16 << 30) - 5) == b"ends\n"
    assert os.pread(descriptor, 65536, 8 << 30) == bytes(65536)
    os.close(descriptor)
    stored = sum(p.stat().st_blocks * 512 for p in world.repo.rglob("*") if p.is_file())
    assert stored < 64 << 20, f"the repository takes {stored} bytes"


@promise(seconds=180)
def reads_at_any_offset_equal_the_source(world):
    source = world.dir / "source"
    source.mkdir()
    length = 5 * tree.MIB + 1234
    content = tree.random_bytes(3, length)
    (source / "file").write_bytes(content)
    world.published(source)
    mount = world.mount()
    edges = [e + d for e in (0, 1024, 4096, 16384, tree.MIB, length) for d in (-1, 0, 1) if e + d >= 0]
    descriptor = os.open(mount / "file", os.O_RDONLY)
    for offset in [*edges, length + 10 * tree.MIB, (1 << 63) - 1 - tree.MIB]:
        for size in (0, 1, 4095, 4097, 131072, tree.MIB):
            assert os.pread(descriptor, size, offset) == content[offset : offset + size], (offset, size)
    os.close(descriptor)
    program = "import mmap, sys; f = open(sys.argv[1], 'rb'); sys.stdout.buffer.write(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[-5000:])"
    mapped = subprocess.run(["python3", "-c", program, mount / "file"], capture_output=True, check=True).stdout
    assert mapped == content[-5000:]


@promise(seconds=120)
def xattrs_of_distd_tell_about_a_file(world):
    source = tree.small(world.dir / "source")
    (source / "abc").write_bytes(b"abc")
    world.published(source)
    mount = world.mount()
    for name, content in (("abc", b"abc"), ("empty", b"")):
        assert os.getxattr(mount / name, "user.distd.blake3").decode() == BLAKE3[content]
    for name, value in (("release", "stable@v1"), ("version", "v1"), ("track", "stable"), ("origin", world.id)):
        for path in (mount, mount / "lib/a/file1"):
            told = os.getxattr(path, f"user.distd.{name}").decode()
            assert told == value, f"{path}: user.distd.{name} is {told!r}, not {value!r}"
    assert os.getxattr(mount / "big", "user.distd.local") and os.getxattr(mount / "big", "user.distd.uids")
    # They are answered, not listed: a copy of the tree does not carry them along.
    assert not [x for x in os.listxattr(mount / "big") if x.startswith("user.distd")]


@promise(seconds=120)
def programs_run_from_the_mount(world):
    source = world.dir / "source"
    source.mkdir()
    program = (source / "program.c")
    program.write_text('#include <stdio.h>\nint main(void) { puts("ran"); return 0; }\n', encoding="ascii")
    subprocess.run(["gcc", "-o", source / "program", program], check=True)
    world.published(source)
    mount = world.mount()
    assert hosts.run(NODE, mount / "program").out == "ran\n"


@promise(seconds=120)
def setuid_and_devices_have_no_effect_unless_asked_for(world):
    source = world.dir / "source"
    source.mkdir()
    subprocess.run(["cp", "/usr/bin/id", source / "id"], check=True)
    os.chmod(source / "id", 0o4755)
    os.mknod(source / "null", 0o020666, os.makedev(1, 3))
    world.published(source)
    mount = world.mount(options="allow_other")
    os.chmod(world.dir, 0o755)
    assert hosts.run(NODE, mount / "id", "-u", user=65534).out == "65534\n", "setuid raised a user"
    try:
        os.open(mount / "null", os.O_RDONLY)
        raise AssertionError("a device node opened")
    except PermissionError:
        pass


@promise(seconds=120)
def others_see_a_mount_only_with_allow_other(world):
    source = tree.small(world.dir / "source")
    (source / "secret").write_bytes(b"x")
    (source / "secret").chmod(0o600)
    world.published(source)
    os.chmod(world.dir, 0o755)
    mount = world.mount()
    ls = hosts.run(NODE, "ls", mount, user=65534)
    assert ls.code != 0, f"another user looked into the owner's mount: {ls}"
    world.umount()
    world.mount(options="allow_other")
    cat = hosts.run(NODE, "cat", mount / "bin/file0", user=65534)
    assert cat.code == 0, f"allow_other does not let others in: {cat}"
    assert hosts.run(NODE, "cat", mount / "secret", user=65534).code != 0, "modes must bind"


@promise(seconds=60)
def holes_are_seen_as_holes(world):
    source = world.dir / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.truncate(32 * tree.MIB)
        file.seek(16 * tree.MIB)
        file.write(tree.random_bytes(1, 8192))
    world.published(source)
    mount = world.mount()
    descriptor = os.open(mount / "sparse", os.O_RDONLY)
    assert os.lseek(descriptor, 0, os.SEEK_DATA) == 16 * tree.MIB
    assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 0
    assert os.lseek(descriptor, 16 * tree.MIB, os.SEEK_HOLE) == 16 * tree.MIB + 8192
    assert os.fstat(descriptor).st_blocks * 512 == 8192
    os.close(descriptor)


@promise(seconds=60)
def attributes_are_those_of_the_semantics_page(world):
    source = tree.small(world.dir / "source")
    os.link(source / "big", source / "lib/hard")
    world.published(source)
    mount = world.mount()
    status = (mount / "big").stat()
    assert status.st_ino == (mount / "lib/hard").stat().st_ino and status.st_nlink == 2
    assert status.st_atime_ns == status.st_mtime_ns == status.st_ctime_ns
    assert (mount / "lib").stat().st_nlink == 4, "2 and one for each subdirectory"
    assert os.listdir(mount) == sorted(os.listdir(mount))
    assert {x.inode() for x in os.scandir(mount)} == {os.lstat(mount / n).st_ino for n in os.listdir(mount)}
    free = os.statvfs(mount)
    assert free.f_bavail == 0 and free.f_blocks * free.f_frsize >= 8 * tree.MIB and free.f_namemax == 255
