#!/bin/bash
# build.sh OUTDIR: OUTDIR/tiny.img, the smallest disk image that proves a
# deployment (Debian's cloud kernel, busybox, dropbear; root logs in by key), and
# its description tiny.yaml. For virtual machines only. Nothing is done when
# neither this folder nor ../lib changed; remove OUTDIR to take up newer packages.
set -euo pipefail
[ "$(id -u)" = 0 ] || exec unshare -r "$0" "$@" # files in the image belong to root
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
# shellcheck source=images/lib/disk.sh
. "$here/../lib/disk.sh"

lock "$out"

image_stamp=$(stamp "$here"/* "$here/../lib/disk.sh")
if [ "$(cat "$out/tiny.stamp" 2>/dev/null)" = "$image_stamp" ] && [ -s "$out/tiny.img" ] && [ -s "$out/tiny.yaml" ]; then
	report "$out/tiny.img"
	exit 0
fi
work=$(mktemp -d "$out/tiny.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The kernel's package is unpacked, not installed; it is kept for the next build.
mkdir -p "$out/packages"
package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ {print $2; exit}')
[ -n "$package" ] || {
	echo 'apt knows no linux-image-cloud-amd64: run apt-get update' >&2
	exit 1
}
if ! ls "$out/packages/${package}"_*.deb >/dev/null 2>&1; then
	echo "downloading $package"
	(cd "$out/packages" && apt-get -qq -o APT::Sandbox::User=root download "$package")
fi
# shellcheck disable=SC2012 # names of packages have no odd characters
deb=$(ls -t "$out/packages/${package}"_*.deb | head -1)
mkdir "$work/kernel"
dpkg-deb --fsys-tarfile "$deb" | tar -C "$work/kernel" -x ./boot ./lib/modules
version=$(basename "$work"/kernel/lib/modules/*)
busybox depmod -b "$work/kernel" "$version"
dep=$work/kernel/lib/modules/$version/modules.dep

case $(ldd "$(command -v busybox)" 2>/dev/null || true) in
*'=>'*)
	echo 'this busybox needs libraries, which the initramfs has not: apt-get install busybox-static' >&2
	exit 1
	;;
esac

# tree DIR: folders and busybox with its names.
tree() {
	mkdir -p "$1"/{bin,sbin,dev,etc,proc,root,run,sys,tmp,mnt}
	chmod 1777 "$1/tmp"
	install -m 755 "$(command -v busybox)" "$1/bin/busybox"
	local applet
	for applet in $(busybox --list); do
		[ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
	done
}

# The initramfs loads what stands between the kernel and the root filesystem or
# the network, in the order that modprobe would.
initrd=$work/initrd
tree "$initrd"
mkdir "$initrd/modules"
for m in virtio_pci virtio_blk virtio_scsi sd_mod virtio_net virtio-rng button evdev; do
	# A line of modules.dep is "module: what it needs ...", the first needed last.
	# ext4 and NVMe are built into this kernel.
	awk -F: -v m="/$m.ko" 'substr($1, length($1) - length(m) + 1) == m {
		n = split($2, needs, " "); while (n > 0) print needs[n--]; print $1 }' "$dep"
done | awk '!seen[$0]++' | while read -r file; do
	cp "$work/kernel/lib/modules/$version/$file" "$initrd/modules/"
	basename "$file" >>"$initrd/modules/order"
done
install -m 755 "$here/initramfs-init" "$initrd/init"
finish "$initrd"

root=$work/root
tree "$root"
mkdir -p "$root"/etc/{ssh,acpi/PWRF} "$root/root/.ssh" "$root"/{boot/grub,usr/sbin,usr/bin,var/log} "$root/lib64"
chmod 700 "$root/root" "$root/root/.ssh"
ln -s ../bin/busybox "$root/sbin/init"
for program in dropbear dropbearconvert; do
	file=$(command -v $program)
	install -m 755 "$file" "$root/usr/sbin/$program"
	ldd "$file" | grep -o '/[^ ]*' | while read -r lib; do install -D -m 755 "$lib" "$root$lib"; done
done
install -m 755 "$here/rc" "$root/etc/rc"
install -m 644 "$here/inittab" "$root/etc/inittab"
printf '#!/bin/sh\nexec /bin/poweroff\n' >"$root/etc/acpi/PWRF/00000080"
chmod 755 "$root/etc/acpi/PWRF/00000080"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:*:1::::::' >"$root/etc/shadow"
echo 'root:x:0:' >"$root/etc/group"
echo /bin/sh >"$root/etc/shells"
chmod 600 "$root/etc/shadow"
echo 'passwd: files' >"$root/etc/nsswitch.conf"
echo tiny >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n' >"$root/etc/hosts"
cat >"$root/etc/os-release" <<EOF
ID=bmc-tiny
NAME="bmc tiny"
PRETTY_NAME="bmc tiny (busybox on Linux $version)"
EOF

cp "$work/kernel/boot/vmlinuz-$version" "$root/boot/"
(cd "$initrd" && find . | sort | cpio --quiet --reproducible -o -H newc | zstd -q -12) >"$root/boot/initrd.img-$version"
cmdline='root=LABEL=root console=ttyS0,115200 no_timer_check'
cat >"$root/boot/grub/grub.cfg" <<EOF
serial --unit=0 --speed=115200
terminal_output console serial
set timeout=0
menuentry tiny {
	linux /boot/vmlinuz-$version $cmdline
	initrd /boot/initrd.img-$version
}
EOF
finish "$root"
resize=268435456 disk "$root" "$out/tiny.img" 48 4 -i 16384 -J size=4

cat >"$out/tiny.yaml" <<EOF
name: tiny
os: bmc tiny
arch: x86_64
user: root
sector_size: 512
root_partition: 3
filesystem: ext4
kernel: /boot/vmlinuz-$version
initrd: /boot/initrd.img-$version
cmdline: $cmdline
firmware: [bios, uefi]
boot_loader: \\EFI\\BOOT\\BOOTX64.EFI
configure: files
network: busybox
ready: ssh
EOF
echo "$image_stamp" >"$out/tiny.stamp"
report "$out/tiny.img"
