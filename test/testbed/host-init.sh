#!/bin/sh
# The first thing that runs on a host of the testbed, in namespaces of its own (host.ts makes them): makes of them a host
# with its own /etc, /var/lib, /run and /sys, starts its engine, and stays. All that it mounts ends with it.
# usage: host-init.sh FOLDER NAME [engine]
set -eu
folder=$1 name=$2

# Other people's mounts are let go: a copy held here would keep their networks and images from being removed.
awk '$2 ~ "^/(run|var/lib)/" { print $2 }' /proc/self/mounts | sort -r | while read -r mount; do
  umount -l "$mount" 2>/dev/null || true
done
mount --bind "$folder/disk/etc" /etc
mount --bind "$folder/disk/var-lib" /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/cgroup

# A /sys of this network namespace shows this host's interfaces; the control groups stay the machine's.
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup

hostname "$name"
# Orphaned, so that the first process reaps it.
if [ "${3:-}" = engine ]; then (sh "$folder/engine.sh" &) fi
: >"$folder/ready"
exec sleep infinity
