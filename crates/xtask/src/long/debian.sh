#!/bin/sh
# A Debian with PostgreSQL, QEMU's guest agent, NetworkManager and a boot loader, as somebody would install it by hand:
#   debian.sh FOLDER MIRROR SUITE   ->   FOLDER/debian.qcow2
# Everything is mounted in a mount namespace of its own (the caller's unshare), so nothing stays mounted whatever happens.
set -eu
folder=$1 mirror=$2 suite=$3
here=$(dirname "$0")
root=$folder/root raw=$folder/debian.raw
mib=1048576

rm -rf "$root" "$raw"
mkdir -p "$root"
truncate --size=3G "$raw"
sfdisk --quiet "$raw" <<PARTITIONS
label: gpt
start=1MiB, size=64MiB, type=uefi
start=65MiB, size=3005MiB, type=linux
PARTITIONS
uuid=$(cat /proc/sys/kernel/random/uuid)
mkfs.ext4 -q -F -U "$uuid" -E offset=$((65 * mib)) "$raw" 3005M
mount -o loop,offset=$((65 * mib)),sizelimit=$((3005 * mib)) "$raw" "$root"

debootstrap --variant=minbase "$suite" "$root" "$mirror"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# Nothing is started while it is installed.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

in_it() { chroot "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
echo "UUID=$uuid / ext4 defaults 0 1" >"$root/etc/fstab"
in_it apt-get update --quiet
in_it apt-get install --yes --quiet --no-install-recommends \
    systemd-sysv udev dbus linux-image-cloud-amd64 grub-efi-amd64-bin grub-common qemu-guest-agent network-manager iproute2 postgresql
rm "$root/usr/sbin/policy-rc.d"

# The boot loader where firmware looks that knows nothing of this disk. By mtools: not every kernel mounts FAT. The clock of an
# emulated machine that shares its processor with others makes a kernel panic without no_timer_check.
cat >"$root/tmp/boot.cfg" <<BOOT
search.fs_uuid $uuid root
linux /vmlinuz root=UUID=$uuid ro console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off random.trust_cpu=on no_timer_check
initrd /initrd.img
boot
BOOT
in_it grub-mkimage --format=x86_64-efi --prefix=/boot/grub --config=/tmp/boot.cfg --output=/tmp/bootx64.efi \
    part_gpt ext2 search_fs_uuid linux
mformat -i "$raw@@$mib" -T 131072 -F ::
mmd -i "$raw@@$mib" ::/EFI ::/EFI/BOOT
mcopy -i "$raw@@$mib" "$root/tmp/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI

echo web01 >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 web01\n' >"$root/etc/hosts"
for service in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer dpkg-db-backup.timer e2scrub_reap.service \
    NetworkManager-wait-online.service getty@tty1.service serial-getty@ttyS0.service; do
    in_it systemctl --quiet mask "$service"
done
install -D -m 600 "$here/guest/office.nmconnection" "$root/etc/NetworkManager/system-connections/office.nmconnection"
install -D -m 755 "$here/guest/fsfreeze-hook" "$root/etc/qemu/fsfreeze-hook"
printf '[general]\nfsfreeze-hook=/etc/qemu/fsfreeze-hook\n' >"$root/etc/qemu/qemu-ga.conf"
install -m 755 "$here/guest/ledger" "$root/usr/local/sbin/ledger"
install -m 644 "$here/guest/ledger.service" "$root/etc/systemd/system/ledger.service"
in_it systemctl --quiet enable ledger.service

# A database whose pages have checksums, with a table of records of which each proves itself.
in_it sh -ec '
    version=$(pg_lsclusters --no-header | cut -d" " -f1)
    pg_dropcluster "$version" main
    pg_createcluster "$version" main -- --data-checksums >/dev/null
    pg_ctlcluster --skip-systemctl-redirect "$version" main start
    runuser -u postgres -- psql --no-psqlrc --quiet --command="
        create table ledger (n bigint primary key, at_ms bigint not null, proof text not null);
        create extension amcheck" postgres
    pg_ctlcluster --skip-systemctl-redirect "$version" main stop
    apt-get clean
    rm -rf /var/lib/apt/lists/*'
rm -f "$root/etc/resolv.conf" "$root/etc/machine-id"
: >"$root/etc/machine-id"

umount "$root/run" "$root/sys" "$root/proc" "$root/dev"
fstrim "$root"
umount "$root"
qemu-img convert -f raw -O qcow2 "$raw" "$folder/debian.qcow2"
rm -rf "$root" "$raw"
