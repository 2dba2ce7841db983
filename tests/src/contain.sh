# Namespaces for one test, and for one daemon inside it. Knows cgroup v1 and v2.
#   contain.sh enter HOSTS           finish the namespaces that the caller has just unshared
#   contain.sh join GROUP CMD...     run CMD in a cgroup, PID, mount and cgroup namespace of its own
#   contain.sh inside CMD...         (the second half of join)
set -eu
root=/sys/fs/cgroup

unified() { [ "$(stat -fc %T $root)" = cgroup2fs ]; }

# Shows in $root only what is below this cgroup namespace's root.
mount_cgroups() {
    if unified; then
        # Not onto itself: the kernel refuses that as a mistake.
        mount -t tmpfs -o mode=755,size=1m cgroups $root
        mount -t cgroup2 cgroup2 $root
        return
    fi
    mount -t tmpfs -o mode=755,size=1m cgroups $root
    while IFS=: read -r id controllers _; do
        [ "$id" != 0 ] || continue
        options=$controllers
        case $controllers in name=*) options=none,$controllers ;; esac
        mkdir "$root/${controllers#name=}"
        mount -t cgroup -o "$options" cgroup "$root/${controllers#name=}"
    done </proc/self/cgroup
}

enter() {
    mount --make-rprivate /
    busybox ip link set lo up
    # A client that gives up on its mirror is refused at once instead of asking the internet.
    mount --bind "$1" /etc/hosts
    # What tools keep in fixed places: sockets, locks, caches. No systemd is found there either.
    mount -t tmpfs -o mode=755 run /run
    mkdir /run/lock
    [ ! -d /var/lib/containers ] || mount -t tmpfs -o mode=755 containers /var/lib/containers
    mount_cgroups
}

join() {
    group=$1
    shift
    if unified; then
        mkdir "$root/$group"
        echo $$ >"$root/$group/cgroup.procs"
    else
        for hierarchy in "$root"/*/; do
            mkdir "$hierarchy$group"
            for file in cpuset.cpus cpuset.mems; do
                [ ! -e "$hierarchy$file" ] || cat "$hierarchy$file" >"$hierarchy$group/$file"
            done
            echo $$ >"$hierarchy$group/cgroup.procs"
        done
    fi
    exec unshare --cgroup --mount --pid --kill-child --mount-proc sh "$0" inside "$@"
}

inside() {
    mount_cgroups
    if unified; then
        # Only a group without processes may hand controllers down.
        mkdir $root/init
        echo 0 >$root/init/cgroup.procs
        for controller in $(cat $root/cgroup.controllers); do
            echo "+$controller" >$root/cgroup.subtree_control || true
        done
    fi
    exec "$@"
}

"$@"
