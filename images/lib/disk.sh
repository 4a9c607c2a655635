# shellcheck shell=bash
# disk.sh: sourced by the images' build.sh. Makes a GPT disk that boots by BIOS
# and by UEFI out of a directory, without loop devices, mounts or a boot loader
# installed in the image. Needs sfdisk, mke2fs, mtools, dosfstools, grub-mkimage
# with its i386-pc and x86_64-efi modules, and python3.

# Everything that could differ between two builds of one tree is fixed.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600} # 2026-01-01
export E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
export PATH=$PATH:/usr/sbin:/sbin MTOOLS_SKIP_CHECK=1

grub_bios_modules='biosdisk part_gpt ext2 normal configfile linux serial terminal echo test boot reboot'
grub_efi_modules='part_gpt ext2 fat normal configfile linux serial terminal echo test boot reboot'

# stamp FILE...: one digest over the contents of files, for caching.
stamp() { cat "$@" | sha256sum | cut -d' ' -f1; }

# lock OUTDIR: one build at a time; what an interrupted one left goes.
lock() {
	exec 9>"$1/.lock"
	flock 9
	rm -rf "$1"/*.work.?????? "$1"/*.img.?????? "$1"/*.new
}

# finish PATH: the times of everything below PATH that is younger than the epoch
# become the epoch.
finish() { find "$1" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +; }

# disk ROOT IMAGE SIZE_MIB ESP_MIB [mke2fs options]
# Partition 1 is for GRUB's BIOS half, 2 the EFI system partition, 3 the root
# filesystem (label root), which reaches to the end so that it can grow.
disk() {
	local root=$1 image=$2 size=$3 esp=$4 work
	shift 4
	work=$(mktemp -d "$image.XXXXXX")
	local esp_start=$((2 * 2048)) root_start=$(((2 + esp) * 2048))
	local root_sectors=$((size * 2048 - 2048 - root_start)) # sfdisk leaves the last MiB to the backup GPT
	rm -f "$image.new"
	truncate -s "${size}M" "$image.new"
	sfdisk -q "$image.new" <<-EOF
		label: gpt
		label-id: b3c0ffee-0000-4000-8000-000000000000
		start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, uuid=b3c0ffee-0000-4000-8000-000000000001, name=bios
		start=$esp_start, size=$((esp * 2048)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=b3c0ffee-0000-4000-8000-000000000002, name=esp
		start=$root_start, size=$root_sectors, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=b3c0ffee-0000-4000-8000-000000000003, name=root
	EOF

	# resize= reserves room for the group descriptors of a 4 TiB filesystem, so that
	# it grows while mounted; GRUB 2.06 does not know the two features taken away.
	truncate -s $((root_sectors * 512)) "$work/root"
	mke2fs -q -t ext4 -b 4096 -L root -U b3c0ffee-0000-4000-8000-000000000004 -m 1 \
		-O '^metadata_csum_seed,^orphan_file' \
		-E "hash_seed=b3c0ffee-0000-4000-8000-000000000005,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0${resize:+,resize=$resize}" \
		"$@" -d "$root" "$work/root"
	dd if="$work/root" of="$image.new" bs=1M oseek=$((root_start * 512)) oflag=seek_bytes conv=notrunc,sparse status=none

	grub "$work" "$image.new" "$esp" "$esp_start"
	rm -rf "$work"
	mv "$image.new" "$image"
}

# grub WORK IMAGE ESP_MIB ESP_START. Both halves look for grub.cfg in partition 3
# of the disk that the firmware started them from, never by label: another disk
# may hold the same image.
grub() {
	local work=$1 image=$2 esp=$3 esp_start=$4
	# shellcheck disable=SC2086 # lists of modules
	grub-mkimage -O x86_64-efi -o "$work/BOOTX64.EFI" -p '(,gpt3)/boot/grub' $grub_efi_modules
	truncate -s "${esp}M" "$work/esp"
	mkfs.vfat --invariant -n ESP "$work/esp" >/dev/null
	mmd -i "$work/esp" ::EFI ::EFI/BOOT
	mcopy -i "$work/esp" "$work/BOOTX64.EFI" ::EFI/BOOT/BOOTX64.EFI
	dd if="$work/esp" of="$image" bs=1M oseek=$((esp_start * 512)) oflag=seek_bytes conv=notrunc,sparse status=none

	# shellcheck disable=SC2086
	grub-mkimage -O i386-pc -o "$work/core.img" -p '(,gpt3)/boot/grub' $grub_bios_modules
	dd if="$work/core.img" of="$image" bs=512 seek=2048 conv=notrunc status=none
	dd if=/usr/lib/grub/i386-pc/boot.img of="$image" bs=440 count=1 conv=notrunc status=none
	# What grub-install patches: boot.img gets the sector of core.img and loses its
	# check of the drive number; core.img's first sector gets where the rest is.
	python3 - "$image" 2048 <<-'EOF'
		import struct, sys
		start = int(sys.argv[2])
		with open(sys.argv[1], "r+b") as f:
		    f.seek(0x5C); f.write(struct.pack("<Q", start))
		    f.seek(0x66); f.write(b"\x90\x90")
		    f.seek(start * 512 + 0x1F4); f.write(struct.pack("<Q", start + 1))
	EOF
}

# report IMAGE: its sizes, for people.
report() {
	local f=$1
	echo "$(basename "$f"): $(($(stat -c %s "$f") >> 20)) MiB, $(($(stat -c '%b * %B' "$f" | sed 's/ //g') >> 20)) MiB of it data"
}
