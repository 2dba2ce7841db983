#!/bin/bash
# The init of a machine for one test: a kernel of Debian in QEMU, with two disks in memory whose
# filesystems have fs-verity, and FUSE with passthrough.
#
# The kernel hands its parameters over as variables:
#   VERITY_MODULES   what scripts/test has unpacked, to be loaded in the order of `order`
#   VERITY_RUN       a directory of the host with the `command` that is run here
#
# What the command finds: /mnt/ext4 and /mnt/btrfs, with what is on their disks in /mnt/ext4.disk and
# /mnt/btrfs.disk; FUSE; room in /mnt/tmp; and the host's files, read-only, under their own paths. How it
# ended is said in a last line. The machine ends when this script does.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

filesystems() {
    mount -t devtmpfs dev /dev
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs -o mode=755 run /run
    mount -t tmpfs -o mode=755 mnt /mnt
    mkdir -p /dev/shm /run/lock /mnt/tmp
    mount -t tmpfs -o mode=1777 shm /dev/shm
    chmod 666 /dev/fuse
    # So that root may look into what another user has mounted.
    echo user_allow_other >/mnt/fuse.conf
    mount --bind /mnt/fuse.conf /etc/fuse.conf
}

# disk TYPE MOUNT-OPTIONS MKFS-ARGUMENTS...
disk() {
    local type=$1 options=$2
    shift 2
    truncate -s 256M "/mnt/$type.disk"
    "mkfs.$type" -q "$@" "/mnt/$type.disk" >/dev/null || return
    mkdir "/mnt/$type"
    mount -o "loop,$options" "/mnt/$type.disk" "/mnt/$type"
}

modules() {
    local module
    while read -r module; do
        busybox insmod "$VERITY_MODULES/$module.ko" || return
    done <"$VERITY_MODULES/order"
}

# Without checksums of its own, which would find what fs-verity is to find.
filesystems && modules && disk ext4 defaults -O verity -b 4096 && disk btrfs nodatasum &&
    TMPDIR=/mnt/tmp bash "$VERITY_RUN/command"
echo "status $?"
sync
busybox poweroff -f
