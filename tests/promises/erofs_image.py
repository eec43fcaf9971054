"""Promises about EROFS images: those that lie in a release, and those that publishes make."""

import json
import os
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


def exported(world, release, name):
    path = world.dir / name
    told = json.loads(world.origin("export-erofs", release, path, "--json").out)
    assert told["bytes"] == path.stat().st_size, told
    return path


@promise(seconds=180)
def an_exported_release_mounts_with_all_that_the_tree_has(world):
    world.init()
    source = tree.odd(world.dir / "source")
    world.publish(source, "v1")
    image = exported(world, "stable@v1", "v1.erofs")
    subprocess.run(["fsck.erofs", "--extract", image], check=True, timeout=60)
    point = loop_mount(world, image)
    compare.same(source, point)
    compare.exactly(source, point)
    again = exported(world, "v1", "again.erofs")
    assert compare.digest(image) == compare.digest(again)


@promise(seconds=120)
def an_export_that_fails_says_why_and_leaves_nothing(world):
    world.init()
    world.publish(tree.small(world.dir / "source"), "v1")
    before = sorted(os.listdir(world.dir))
    assert "v9" in world.origin("export-erofs", "v9", world.dir / "x.erofs", code=7).err
    assert "none" in world.origin("export-erofs", "v1", world.dir / "none" / "x.erofs", code=1).err
    with_space = world.disk("full", 4)
    failed = world.origin("export-erofs", "v1", with_space / "x.erofs", code=1)
    assert "space" in failed.err, failed
    assert not (with_space / "x.erofs").exists() and not list(with_space.glob("*.part"))
    assert [name for name in sorted(os.listdir(world.dir)) if not name.startswith("full")] == before


@promise(seconds=180)
def every_release_has_its_image_and_verify_show_and_prune_know_it(world):
    world.init()
    source = tree.small(world.dir / "source")
    first = world.publish(source, "v1")
    assert first["image_bytes"] > 0 and first["no_image"] is None, first
    (source / "bin" / "more").write_text("more\n")
    second = world.publish(source, "v2")
    assert 0 < second["image_update_bytes"] < first["image_bytes"], second
    shown = json.loads(world.origin("show", "v2", "--json").out)
    assert shown["image_bytes"] == second["image_bytes"], shown
    world.origin("prune", "--keep", "1")
    world.origin("verify")
    compare.same(source, loop_mount(world, exported(world, "v2", "v2.erofs")))
    world.origin("export-erofs", "v1", world.dir / "v1.erofs", code=7)


@promise(seconds=240)
def successive_images_share_what_did_not_change(world):
    source = world.dir / "source"
    source.mkdir()
    for number in range(8):
        tree.incompressible(source / f"file{number}", 4 * tree.MIB + 100, seed=number)
    world.init()
    world.publish(source, "v1")
    world.publish(exported(world, "v1", "image.erofs"), "i1", "image")
    tree.incompressible(source / "file3", 4 * tree.MIB, seed=99)
    world.publish(source, "v2")
    told = world.publish(exported(world, "v2", "image.erofs"), "i2", "image")
    assert told["embedded"] == {"files": 8, "compressed_files": 0, "inline_bytes": 0}, told
    assert facts.new_bytes(told) < tree.MIB, told
