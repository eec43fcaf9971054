#!/usr/bin/env bash
# Builds distd_VERSION_ARCH.deb: both programs, the mount helper, units, completions.
# usage: build.sh [--bin DIR] [--out DIR]
#   --bin   where distd-origin and distd-fs lie   (default: builds target/release)
#   --out   where the package goes                (default: target/debian)
# Prints the package's path.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
bin='' out=$top/target/debian
while [ "$#" -gt 0 ]; do
  case $1 in
    --bin) bin=${2:?--bin DIR}; shift 2 ;;
    --out) out=${2:?--out DIR}; shift 2 ;;
    *) sed -n '3,6s/^# //p' "$0" >&2; exit 2 ;;
  esac
done
if [ -z "$bin" ]; then
  cargo build --quiet --release --locked --manifest-path "$top/Cargo.toml" >&2
  bin=$top/target/release
fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$top/Cargo.toml" | head -n 1)
architecture=$(dpkg --print-architecture)
mkdir -p "$out"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 0755 "$stage"

# What is not under /usr on a merged-/usr system must not be shipped as /sbin: dpkg loses track of such
# files. mount(8) looks into /sbin, which is /usr/sbin there.
install -D -m 0755 -s -t "$stage/usr/bin" "$bin/distd-origin" "$bin/distd-fs"
mkdir -p "$stage/usr/sbin"
ln -s ../bin/distd-fs "$stage/usr/sbin/mount.fuse.distd"

install -D -m 0644 -t "$stage/lib/systemd/system" "$top"/contrib/systemd/*.service
install -D -m 0644 -t "$stage/usr/share/doc/distd/examples" "$top"/contrib/systemd/*.mount "$top"/contrib/systemd/*.automount \
  "$top/contrib/wireshark/distd.lua"
install -D -m 0644 -t "$stage/usr/share/doc/distd" "$top/README.md" "$top"/docs/*.md
install -D -m 0644 "$top/contrib/debian/copyright" "$stage/usr/share/doc/distd/copyright"
install -D -m 0644 "$top/contrib/debian/distd.default" "$stage/etc/default/distd"

for program in distd-origin distd-fs; do
  for place in bash=bash-completion/completions/$program zsh=zsh/vendor-completions/_$program fish=fish/vendor_completions.d/$program.fish; do
    file=$stage/usr/share/${place#*=}
    mkdir -p "$(dirname "$file")"
    "$bin/$program" completions "${place%%=*}" >"$file"
    [ -s "$file" ] || { printf '%s completions %s prints nothing\n' "$program" "${place%%=*}" >&2; exit 1; }
  done
done

# The newest symbol version of glibc that the programs ask for is the oldest glibc that they run on.
glibc=$(readelf --version-info --wide "$bin/distd-origin" "$bin/distd-fs" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
install -d "$stage/DEBIAN"
sed -e "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@GLIBC@/${glibc#GLIBC_}/" \
  -e "s/@KIB@/$(du -sk --exclude=DEBIAN "$stage" | cut -f1)/" "$top/contrib/debian/control" >"$stage/DEBIAN/control"
echo /etc/default/distd >"$stage/DEBIAN/conffiles"
install -m 0755 -t "$stage/DEBIAN" "$top"/contrib/debian/{postinst,prerm,postrm}
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
chmod 0644 "$stage/DEBIAN"/{control,conffiles,md5sums}

package=$out/distd_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$stage" "$package" >/dev/null
printf '%s\n' "$package"
