"""Promises about EROFS images that lie in a release."""

import subprocess

from lib import compare, facts, tree
from lib.facts import settled
from lib.promises import promise

KINDS = {"uncompressed": ["-Enoinline_data"], "lz4hc": ["-zlz4hc"]}


def image(path, source, kind):
    words = ["mkfs.erofs", "--quiet", "-x2", *KINDS[kind], path, source]
    subprocess.run(words, check=True, capture_output=True)


def loop_mount(world, path, name="image"):
    point = world.dir / name
    point.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", path, point], check=True, timeout=60)
    return point


def content(root):
    tree.small(root)
    for number in range(20):
        (root / f"text{number}").write_text(f"line {number}\n" * 40_000)
    return root


@promise(seconds=180)
def images_inside_a_tree_mount_with_all_content(world):
    source, plain = world.dir / "source", content(world.dir / "plain")
    source.mkdir()
    for kind in KINDS:
        image(source / f"{kind}.erofs", plain, kind)
    world.published(source)
    mount = world.mount()
    for kind in KINDS:
        compare.same(plain, loop_mount(world, mount / f"{kind}.erofs", kind))
    compare.same(source, mount)


@promise(seconds=180)
def an_image_as_a_release_of_its_own_mounts_with_all_content(world):
    plain = content(world.dir / "plain")
    world.init()
    for kind in KINDS:
        image(world.dir / f"{kind}.erofs", plain, kind)
        world.publish(world.dir / f"{kind}.erofs", f"v-{kind}", kind)
    world.serve()
    for kind in KINDS:
        point = world.dir / f"mount-{kind}"
        point.mkdir()
        world.mount(world.url(kind), point)
        compare.same(plain, loop_mount(world, point / f"{kind}.erofs", kind))


@promise(seconds=180)
def a_loop_mounted_image_is_fetched_lazily(world):
    source, plain = world.dir / "source", world.dir / "plain"
    for directory in (source, plain):
        directory.mkdir()
    for number in range(16):
        tree.incompressible(plain / f"file{number}", 8 * tree.MIB, seed=number)
    image(source / "image.erofs", plain, "uncompressed")
    world.published(source)
    mount = world.mount(options="background=none")
    before = settled(world)
    inside = loop_mount(world, mount / "image.erofs")
    assert len(list(inside.iterdir())) == 16
    with (inside / "file7").open("rb") as file:
        assert file.read(4096) == (plain / "file7").read_bytes()[:4096]
    fetched = settled(world) - before
    assert fetched < 4 * tree.MIB, f"{fetched} of {128 * tree.MIB} bytes for a mount and one read"
    assert compare.digest(inside / "file9") == compare.digest(plain / "file9")
    assert settled(world) - before < 24 * tree.MIB


@promise(seconds=180)
def an_image_shares_blocks_with_the_tree_of_its_files(world):
    plain = world.dir / "plain"
    plain.mkdir()
    for number in range(8):
        tree.incompressible(plain / f"file{number}", 4 * tree.MIB + 100, seed=number)
    image(world.dir / "image.erofs", plain, "uncompressed")
    world.init()
    world.publish(plain, "v1", "tree")
    second = world.publish(world.dir / "image.erofs", "v1-image", "image")
    assert facts.new_bytes(second) < tree.MIB, second
