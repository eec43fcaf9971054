#!/usr/bin/env bash
# Installs the Debian packages that the other scripts call, and only those that are missing.
# usage: setup.sh [--bench]      --bench: the programs that scripts/bench measures distd against, too
# Given beforehand: the Rust toolchain (cargo), gcc, Python 3. Runs as root, or through sudo.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
say() { printf '[setup] %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# program=package: the program is what is looked for, the package is what brings it.
wanted=(
  fusermount3=fuse3 mkfs.erofs=erofs-utils rsync=rsync getfattr=attr setfacl=acl setcap=libcap2-bin
  ip=iproute2 strace=strace losetup=mount nsenter=util-linux mkfs.ext4=e2fsprogs dpkg-deb=dpkg systemd-analyze=systemd
  tshark=tshark dumpcap=wireshark-common
)
case ${1-} in
  '') ;;
  --bench) wanted+=(nginx=nginx-light curl=curl aria2c=aria2 casync=casync zsync=zsync zck=zchunk zstd=zstd
    squashfuse=squashfuse mksquashfs=squashfs-tools) ;;
  *) die "usage: setup.sh [--bench]" ;;
esac

for program in cargo gcc python3; do
  command -v "$program" >/dev/null || die "no $program: install it first (cargo: https://rustup.rs; gcc and python3: the distribution)"
done

missing=()
for pair in "${wanted[@]}"; do
  command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
done
if [ "${#missing[@]}" -gt 0 ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "missing packages: ${missing[*]}. Neither root nor sudo here: have them installed"
    as_root=(sudo)
  fi
  command -v apt-get >/dev/null || die "missing programs of the packages: ${missing[*]} (Debian's names), and no apt-get here"
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # nginx would start a server on port 80: the bench starts its own, elsewhere.
  "${as_root[@]}" apt-get update -q >/dev/null || say "apt-get update failed; trying with the lists that are here"
  "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null \
    || die "apt-get could not install ${missing[*]}: see its words above"
fi

# Kernel parts: built in on some machines, modules on others, so a failing modprobe proves nothing.
for module in fuse loop erofs tun overlay veth; do modprobe -q "$module" 2>/dev/null || true; done
[ -c /dev/fuse ] || die "no /dev/fuse: the kernel lacks FUSE, or this container does not let it in"
[ -c /dev/loop-control ] || die "no /dev/loop-control: EROFS images cannot be loop-mounted here"
grep -qw erofs /proc/filesystems || die "the kernel knows no EROFS (CONFIG_EROFS_FS)"
