#!/bin/bash
# build.sh OUTDIR: a kernel for the ramdisk alone, from Debian's source of 6.1 (patched by
# Debian, signed by its archive) and the configuration beside this script: OUTDIR/boot,
# OUTDIR/lib/modules and OUTDIR/kernel.json, which is written last and vouches for them.
# Needs 3 GB for a while, and ten minutes on two cores. Nothing is done when neither this
# folder nor the source changed; remove OUTDIR to take up a newer source.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=linux-source-6.1
mkdir -p "$1"
out=$(cd "$1" && pwd)
exec 9>"$out/.lock"
flock 9

# The settings of the make that calls this are not the kernel's.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL VERSION ARCH CROSS_COMPILE LOCALVERSION KCFLAGS

if ! ls "$out/${source}"_*.deb >/dev/null 2>&1; then
	echo "downloading $source (about 140 MB) with apt-get"
	rm -rf "$out/partial" && mkdir "$out/partial"
	(cd "$out/partial" && apt-get -qq -o APT::Sandbox::User=root download "$source") || {
		echo "apt-get cannot download $source: is Debian 12 in its sources, and was apt-get update run?" >&2
		exit 1
	}
	mv "$out/partial"/*.deb "$out/" && rmdir "$out/partial"
fi
# shellcheck disable=SC2012 # names of packages have no odd characters
deb=$(ls -v "$out/${source}"_*.deb | tail -1)
version=$(dpkg-deb -f "$deb" Version)
config=$(sha256sum <"$here/config" | cut -d' ' -f1)
stamp=$(cat "$here/config" "$here/build.sh" - <<<"$version" | sha256sum | cut -d' ' -f1)
if grep -qs "\"stamp\": \"$stamp\"" "$out/kernel.json"; then
	echo "kernel is up to date ($source $version)"
	exit 0
fi

# What is left of a build that failed is gone on with, if it was the same build: some of
# the kernel's own rules (usr/gen_initramfs.sh) do not notice another environment.
work=$out/work-${stamp:0:16}-$(gcc -dumpfullversion)
tree=$work/$source
if [ ! -d "$tree" ]; then
	echo "unpacking $source $version"
	rm -rf "$out"/work* && mkdir -p "$work/tmp" "$work/objects"
	dpkg-deb --fsys-tarfile "$deb" | tar -C "$work/tmp" -x --wildcards "./usr/src/$source.tar*"
	tar -C "$work/tmp" -xf "$work/tmp/usr/src/$source".tar*
	mv "$work/tmp/$source" "$tree"
	rm -rf "$work/tmp"
fi
# The same bytes whenever it is built, by the same compiler.
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 2026' KBUILD_BUILD_USER=bmc KBUILD_BUILD_HOST=bmc KBUILD_BUILD_VERSION=1 LC_ALL=C
in_tree() { make -s -C "$tree" O="$work/objects" "$@"; }
log=$out/build.log
in_tree KCONFIG_ALLCONFIG="$here/config" allnoconfig >"$log" 2>&1 || { tail -20 "$log" >&2; exit 1; }
# What cannot be had as it is asked for is a mistake in the file, or another source.
while read -r line; do
	case $line in
	CONFIG_*=n) ! grep -q "^${line%n}" "$work/objects/.config" ;;
	CONFIG_*) grep -qxF "$line" "$work/objects/.config" ;;
	esac || { echo "the source does not take $line" >&2; exit 1; }
done <"$here/config"
echo "compiling the kernel (some minutes)"
in_tree -j"$(nproc)" bzImage modules >>"$log" 2>&1 || { tail -20 "$log" >&2; exit 1; }

release=$(cat "$work/objects/include/config/kernel.release")
rm -rf "$out/kernel.json" "$out/boot" "$out/lib"
# The modules' index is ours to make (images/ramdisk/modules.go).
in_tree INSTALL_MOD_PATH="$out" INSTALL_MOD_STRIP=1 DEPMOD=true modules_install >>"$log" 2>&1 || { tail -20 "$log" >&2; exit 1; }
rm -f "$out/lib/modules/$release/build" "$out/lib/modules/$release/source"
mkdir "$out/boot"
cp "$work/objects/arch/x86/boot/bzImage" "$out/boot/vmlinuz-$release"
cp "$work/objects/.config" "$out/boot/config-$release"
cat >"$out/kernel.json.tmp" <<END
{
  "package": "$source",
  "version": "$version",
  "release": "$release",
  "config_sha256": "$config",
  "stamp": "$stamp"
}
END
mv "$out/kernel.json.tmp" "$out/kernel.json"
rm -rf "$out"/work*
echo "kernel: $release, $(stat -c %s "$out/boot/vmlinuz-$release") bytes, $(find "$out/lib" -name '*.ko' | wc -l) modules"
