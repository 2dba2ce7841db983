#!/bin/bash
# The init of a machine for one test: a User Mode Linux kernel, with a real NFS server and two
# clients of it, a and b, each with a network, a host name, connections and caches of its own.
#
# The kernel hands its parameters over as variables:
#   NFS_TREE      the packages that scripts/test has unpacked
#   NFS_RUN       a directory of the host, writable: `command` is run here, `status` is how it ended
#   NFS_VERSION   4.2 or 3
#
# What the command finds: /mnt/a and /mnt/b, the export as each client mounts it, with default options;
# /mnt/export, as the server has it; FUSE; room in /mnt/tmp; and the host's files,
# read-only, under their own paths. The machine ends when this script does.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export=/mnt/export

# Runs a program of the unpacked packages.
packaged() {
    local program=$1
    shift
    LD_LIBRARY_PATH=$NFS_TREE/usr/lib/x86_64-linux-gnu "$NFS_TREE/usr/$program" "$@"
}

# Loads a module after those it depends on, of which modules.dep names the deepest last.
load() {
    local modules line i
    modules=$(echo "$NFS_TREE"/usr/lib/uml/modules/*)
    read -ra line <<<"$(grep "/$1\.ko:" "$modules/modules.dep" | tr -d :)"
    for ((i = ${#line[@]} - 1; i >= 0; i--)); do
        busybox insmod "$modules/${line[i]}" 2>/dev/null
    done
    grep -q "^$1 " /proc/modules
}

# A writable /etc with the little that programs look for there.
make_etc() {
    mkdir /mnt/etc
    cp -a /etc/{alternatives,group,hosts,ld.so.cache,nsswitch.conf,passwd,protocols,services,ssl} /mnt/etc/ 2>/dev/null
    cp "$NFS_TREE/etc/netconfig" /mnt/etc/
    : >/mnt/etc/exports
    ln -s /proc/mounts /mnt/etc/mtab
    grep -q ^_rpc: /etc/passwd || echo '_rpc:x:901:65534::/:/bin/false' >>/mnt/etc/passwd
    mount --bind /mnt/etc /etc
}

filesystems() {
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs -o mode=755 run /run
    mount -t tmpfs -o mode=755 mnt /mnt
    mount -t tmpfs -o mode=755 state /var/lib
    mkdir -p /dev/shm /run/lock /run/rpcbind /mnt/{a,b,tmp,run,export}
    mkdir -p /var/lib/nfs/{rpc_pipefs,v4recovery}
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t hostfs -o "$NFS_RUN" run /mnt/run
    make_etc
    chown _rpc: /run/rpcbind
    load fuse && chmod 666 /dev/fuse
}

# The export belongs to the user that the nodes run as, as it has to with root_squash.
serve() {
    load nfsd && load nfsv3 && load nfsv4 && load veth || return
    mount -t ext4 /dev/ubda $export || return
    chown 65534:65534 $export
    mount -t nfsd nfsd /proc/fs/nfsd
    mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
    # Nobody held anything before this boot: there is nothing to wait for.
    echo 10 >/proc/fs/nfsd/nfsv4leasetime
    echo 10 >/proc/fs/nfsd/nfsv4gracetime
    touch /var/lib/nfs/{etab,rmtab}
    packaged sbin/rpcbind
    packaged sbin/exportfs -o rw,root_squash,no_wdelay,no_subtree_check,fsid=0 "*:$export" || return
    packaged sbin/rpc.mountd --no-nfs-version 2
    packaged sbin/rpc.nfsd --udp 4 || return
    echo Y >/proc/fs/nfsd/v4_end_grace
}

# client NAME NUMBER
client() {
    local server=10.99.$2.1 path=/ options=vers=$NFS_VERSION
    ip netns add "$1"
    ip link add "to-$1" type veth peer name eth0 netns "$1"
    ip address add "$server/24" dev "to-$1"
    ip link set "to-$1" up
    ip -netns "$1" link set lo up
    ip -netns "$1" address add "10.99.$2.2/24" dev eth0
    ip -netns "$1" link set eth0 up
    # Locks of v3 need a daemon in each client; Larder takes none on NFS, and they change no caching.
    [ "$NFS_VERSION" != 3 ] || path=$export options+=,nolock
    # Two v4 clients of one name would take each other's locks.
    nsenter --net="/run/netns/$1" unshare --uts sh -c \
        'hostname "$1" && exec "$2" "$3" "$4" -n -o "$5"' - "$1" \
        "$NFS_TREE/usr/sbin/mount.nfs" "$server:$path" "/mnt/$1" "$options"
}

run() {
    cd /mnt/run || return
    TMPDIR=/mnt/tmp bash ./command
    echo $? >status
}

ip() { packaged bin/ip "$@"; }

filesystems && serve && client a 1 && client b 2 && run
sync
busybox poweroff -f
