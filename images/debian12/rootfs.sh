#!/bin/bash
# shellcheck disable=SC2016 # hooks expand $1 themselves
# rootfs.sh OUT.tar: the packages of the image, unpacked and configured, with the
# kernel's initramfs. Slow (minutes), so build.sh caches it. Needs root: it runs
# the packages' own scripts in a chroot.
set -euo pipefail
out=$1
packages=linux-image-amd64,initramfs-tools,zstd
packages+=,systemd,systemd-sysv,udev,dbus,kmod,e2fsprogs
packages+=,openssh-server,sudo,iproute2,iputils-ping,ca-certificates,procps,less

# The machine's own sources where it runs the same release, else the defaults.
sources=()
# shellcheck source=/dev/null
if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
		if [ -s "$f" ]; then sources+=("$f"); fi
	done
fi

# No documentation, no translations, and of the generic kernel's modules none for
# what a server in a rack does not have.
exclude=('/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*')
for m in sound drivers/media drivers/gpu/drm/{amd,i915,nouveau,radeon,gma500,vmwgfx,xe} \
	drivers/net/wireless drivers/net/wwan drivers/net/can drivers/net/arcnet drivers/net/hamradio drivers/bluetooth drivers/staging \
	drivers/infiniband drivers/isdn drivers/iio drivers/input/joystick drivers/input/tablet drivers/input/touchscreen \
	drivers/nfc drivers/pcmcia drivers/firewire drivers/comedi drivers/parport drivers/atm drivers/accessibility \
	net/bluetooth net/wireless net/mac80211 net/nfc net/can net/ax25 net/atm net/appletalk net/6lowpan net/ieee802154 \
	fs/{ocfs2,gfs2,afs,coda,hfs,hfsplus,hpfs,jfs,reiserfs,nilfs2,ubifs,jffs2,ufs,sysv,minix,befs,bfs,efs,affs,adfs,qnx4,qnx6,romfs,f2fs,orangefs}; do
	exclude+=("/lib/modules/*/kernel/$m/*")
done
options=()
for e in "${exclude[@]}"; do options+=("--dpkgopt=path-exclude=$e"); done

if ! mmdebstrap --quiet --logfile="$out.log" --mode=root --variant=minbase --format=tar --include="$packages" \
	--aptopt='APT::Install-Recommends "false"' "${options[@]}" \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"; printf "MODULES=most\nCOMPRESS=zstd\nCOMPRESSLEVEL=9\nRESUME=none\n" >"$1/etc/initramfs-tools/conf.d/bmc"' \
	--customize-hook='rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/ssh/ssh_host_* "$1"/var/log/*.log; rm -rf "$1"/var/cache/debconf/*-old "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' \
	bookworm "$out" "${sources[@]}"; then
	tail -n 30 "$out.log" >&2
	exit 1
fi
rm -f "$out.log"
