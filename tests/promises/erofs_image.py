"""Promises about the EROFS images that publishes make, and about publishing EROFS images."""

import json
import os
import subprocess

from lib import compare, facts, tree
from lib.promises import promise


def exported(world, release, name):
    path = world.dir / name
    told = json.loads(world.origin("export-erofs", release, path, "--json").out)
    assert told["bytes"] == path.stat().st_size, told
    return path


def loop_mount(world, path, name="image"):
    point = world.dir / name
    point.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", path, point], check=True, timeout=60)
    return point


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
