#!/bin/sh
# The first process of a lab host; it becomes systemd.

# systemd-nspawn mounts the v1 controllers read-only, and one that has groups below it cannot be mounted otherwise any
# more. There are none yet: mount them anew.
mount -o remount,rw /sys/fs/cgroup
for controller in cpu cpuacct cpuset memory devices freezer blkio pids; do
  umount "/sys/fs/cgroup/$controller" 2>/dev/null
  mkdir -p "/sys/fs/cgroup/$controller"
  mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" || echo "lab: no controller $controller"
done

# kubelet watches it for processes that ran out of memory, and ends without it.
[ -e /dev/kmsg ] || mknod -m 600 /dev/kmsg c 1 11

# cAdvisor has figures only for file systems whose device exists. An empty file will do, and keeps the machine's disk out
# of the host.
for folder in kubelet containerd rancher; do
  device=$(awk -v folder="/var/lib/$folder" \
    '$5 == folder { for (i = 7; i < NF; i++) if ($i == "-") print $(i + 2) }' /proc/self/mountinfo)
  [ -z "$device" ] || [ -e "$device" ] || : > "$device"
done

# kubelet sets these, and they are the whole machine's: it gets files of its own instead, with the values it wants.
own=/run/lab-sysctl
mkdir -p "$own"
while read -r name value; do
  file=$own/$(echo "$name" | tr / .)
  echo "$value" > "$file"
  mount --bind "$file" "/proc/sys/$name" || echo "lab: no sysctl $name"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END

exec /lib/systemd/systemd "$@"
