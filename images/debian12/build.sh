#!/bin/bash
# build.sh OUTDIR: OUTDIR/debian12.img, a small Debian 12 with the generic kernel
# that boots by BIOS and UEFI on any x86-64 server, and its description
# debian12.yaml. Nothing is done when neither this folder nor ../lib changed;
# remove OUTDIR to take up newer packages. Needs root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
# shellcheck source=images/lib/disk.sh
. "$here/../lib/disk.sh"

lock "$out"

rootfs_stamp=$(stamp "$here/rootfs.sh")
image_stamp=$(stamp "$here/rootfs.sh" "$here/build.sh" "$here/../lib/disk.sh")
base=$out/debian12-rootfs.tar
if [ "$(cat "$out/debian12.stamp" 2>/dev/null)" = "$image_stamp" ] && [ -s "$out/debian12.img" ] && [ -s "$out/debian12.yaml" ]; then
	report "$out/debian12.img"
	exit 0
fi
[ "$(id -u)" = 0 ] || {
	echo 'images/debian12 runs the scripts of Debian packages in a chroot: run it as root' >&2
	exit 1
}
if [ "$(cat "$base.stamp" 2>/dev/null)" != "$rootfs_stamp" ] || [ ! -s "$base" ]; then
	echo 'building the Debian 12 root filesystem (about 130 MB of packages; some minutes)'
	rm -f "$base.new"
	bash "$here/rootfs.sh" "$base.new"
	mv "$base.new" "$base"
	echo "$rootfs_stamp" >"$base.stamp"
fi

root=$(mktemp -d "$out/debian12.work.XXXXXX")
trap 'rm -rf "$root"' EXIT
tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -xf "$base"
kernel=$(basename "$root"/lib/modules/*)

# Who may log in: debian, by the keys that the ramdisk writes; nobody by password.
chroot "$root" useradd -m -s /bin/bash -u 1000 -c Debian debian
chroot "$root" usermod -p '*' debian
chroot "$root" usermod -p '*' root
install -d -m 700 -o 1000 -g 1000 "$root/home/debian/.ssh"
echo 'debian ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/90-bmc"
chmod 440 "$root/etc/sudoers.d/90-bmc"
printf 'PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nUseDNS no\n' \
	>"$root/etc/ssh/sshd_config.d/bmc.conf"

# What every machine makes for itself, or gets from the ramdisk.
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
: >"$root/etc/machine-id"
echo debian >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
echo 'LABEL=root / ext4 defaults,discard,errors=remount-ro 0 1' >"$root/etc/fstab"
rm -f "$root/etc/resolv.conf"

# sshd answers as soon as there is an address; nothing runs by the clock.
systemctl --root="$root" -q enable systemd-networkd ssh
systemctl --root="$root" -q set-default multi-user.target
systemctl --root="$root" -q disable systemd-networkd-wait-online e2scrub_reap
systemctl --root="$root" -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
	systemd-networkd-wait-online.service systemd-pstore.service \
	sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount

# GRUB follows Debian's own links to the newest kernel.
mkdir -p "$root/boot/grub" "$root/boot/efi"
cmdline='root=LABEL=root ro console=tty0 console=ttyS0,115200 no_timer_check'
cat >"$root/boot/grub/grub.cfg" <<EOF
serial --unit=0 --speed=115200
terminal_output console serial
set timeout=0
menuentry Debian {
	linux /vmlinuz $cmdline
	initrd /initrd.img
}
EOF

finish "$root"
# With these younger than /usr, the first boot rebuilds no caches.
touch -d "@$((SOURCE_DATE_EPOCH + 1))" "$root/etc/.updated" "$root/var/.updated"

size=$(($(du -sm --apparent-size "$root" | cut -f1) * 115 / 100 + 64 + 128))
size=$(((size + 63) / 64 * 64))
resize=1073741824 disk "$root" "$out/debian12.img" "$size" 64 -i 16384 -J size=32

cat >"$out/debian12.yaml" <<EOF
name: debian12
os: Debian 12
arch: x86_64
user: debian
sector_size: 512
root_partition: 3
filesystem: ext4
kernel: /boot/vmlinuz-$kernel
initrd: /boot/initrd.img-$kernel
cmdline: $cmdline
firmware: [bios, uefi]
boot_loader: \\EFI\\BOOT\\BOOTX64.EFI
configure: files
network: systemd-networkd
ready: ssh
EOF
echo "$image_stamp" >"$out/debian12.stamp"
echo "root filesystem: $(du -sm "$root" | cut -f1) MiB; initramfs: $(($(stat -c %s "$root/boot/initrd.img-$kernel") >> 20)) MiB"
report "$out/debian12.img"
