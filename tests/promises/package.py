"""Promises about the Debian package: built, installed, used and removed, seen by nobody else."""

import os
import pathlib
import subprocess

from lib.promises import promise

TOP = pathlib.Path(__file__).resolve().parents[2]
INSTALLED = (
    "/usr/bin/distd-origin",
    "/usr/bin/distd-fs",
    "/sbin/mount.fuse.distd",
    "/lib/systemd/system/distd-origin.service",
    "/lib/systemd/system/distd-relay@.service",
    "/usr/share/bash-completion/completions/distd-fs",
    "/usr/share/zsh/vendor-completions/_distd-origin",
    "/usr/share/fish/vendor_completions.d/distd-fs.fish",
    "/etc/default/distd",
)


def build(world):
    words = [TOP / "contrib/debian/build.sh", "--bin", world.distd_fs.parent, "--out", world.dir / "debian"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return pathlib.Path(done.stdout.strip())


def own_copy_of(directory, scratch):
    """From here on, what is written below `directory` lands in the scratch directory."""
    upper, work = (scratch / f"{kind}{directory.replace('/', '-')}" for kind in ("upper", "work"))
    upper.mkdir(parents=True)
    work.mkdir()
    layers = f"lowerdir={directory},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, directory], check=True)


@promise(seconds=180)
def debian_package_installs_and_leaves_nothing(world):
    package = build(world)
    mounted = ("/usr", "/etc", "/var/lib", "/var/cache", "/var/log")
    # Overlays keep their upper layer on a file system of its own: /var/tmp may itself be an overlay.
    subprocess.run(["mount", "-t", "tmpfs", "distd-e2e", "/mnt"], check=True)
    for directory in mounted:
        own_copy_of(directory, pathlib.Path("/mnt"))
    try:
        assert not os.path.exists("/sbin/mount.fuse.distd"), "a distd is installed on this machine"
        dpkg("--install", package)
        for path in INSTALLED:
            assert os.path.exists(path), f"the package brings no {path}"
        assert os.path.realpath("/sbin/mount.fuse.distd") == "/usr/bin/distd-fs"
        for words in (["distd-origin", "--version"], ["distd-fs", "--version"], ["mount.fuse.distd", "-V"]):
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0 and "distd" in done.stdout, (words, done)
        assert not dpkg("--verify", "distd"), "files differ from their checksums"
        completions_load()
        dpkg("--remove", "distd")
        for path in INSTALLED[:-1]:
            assert not os.path.exists(path), f"{path} is still there"
        dpkg("--purge", "distd")
        assert not os.path.exists("/etc/default/distd")
    finally:
        for directory in reversed(mounted):
            subprocess.run(["umount", "-l", directory], check=True)
        subprocess.run(["umount", "-l", "/mnt"], check=True)


def dpkg(*words):
    # --force-depends: whether this machine's libraries are Debian's own is not what is tested.
    done = subprocess.run(["dpkg", "--force-depends", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"dpkg {words}: {done.stdout}{done.stderr}"
    return done.stdout.strip() if words[0] == "--verify" else ""


def completions_load():
    for program in ("distd-origin", "distd-fs"):
        script = f"source /usr/share/bash-completion/completions/{program} && complete -p {program}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@promise()
def units_are_sound_and_confined(world):
    """systemd's own judgement: no unknown setting, and an exposure of at most 3.0 (of 10)."""
    for unit in (TOP / "contrib/systemd").glob("*.service"):
        words = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", unit]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{unit.name}: {done.stdout[-300:]}{done.stderr}"
    for unit in (TOP / "contrib/systemd").iterdir():
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        complaints = [x for x in done.stderr.splitlines() if "is not executable" not in x]
        assert not complaints, complaints
