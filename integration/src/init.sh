#!/bin/sh
# The first process of a lab host; it becomes systemd.

# Mounts that are shared cannot be moved. systemd shares them again when it starts.
mount --make-rprivate /

# systemd-nspawn mounted /sys before it entered the host's network: it shows the machine's interfaces. Mount it anew.
mkdir -p /run/lab-cgroup
mount --move /sys/fs/cgroup /run/lab-cgroup
umount /sys
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount --move /run/lab-cgroup /sys/fs/cgroup
rmdir /run/lab-cgroup

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

# A kernel without modules has no list of what is built in, and modprobe would fail for all of it. Make the list of what
# Kubernetes and its network ask for.
modules=/lib/modules/$(uname -r)
if [ ! -e "$modules" ] && [ -e /proc/config.gz ]; then
  mkdir -p "$modules"
  zcat /proc/config.gz > "$own/config"
  while read -r option module; do
    if grep -q "^CONFIG_$option=y" "$own/config"; then echo "kernel/$module.ko"; fi
  done > "$modules/modules.builtin" <<END
BRIDGE net/bridge/bridge
BRIDGE_NETFILTER net/bridge/br_netfilter
OVERLAY_FS fs/overlayfs/overlay
VETH drivers/net/veth
VXLAN drivers/net/vxlan/vxlan
WIREGUARD drivers/net/wireguard/wireguard
IP_SET net/netfilter/ipset/ip_set
IP_VS net/netfilter/ipvs/ip_vs
IP_VS_RR net/netfilter/ipvs/ip_vs_rr
NF_CONNTRACK net/netfilter/nf_conntrack
NF_NAT net/netfilter/nf_nat
NF_TABLES net/netfilter/nf_tables
IP_NF_IPTABLES_LEGACY net/ipv4/netfilter/ip_tables
IP_NF_FILTER net/ipv4/netfilter/iptable_filter
IP_NF_NAT net/ipv4/netfilter/iptable_nat
IP_NF_MANGLE net/ipv4/netfilter/iptable_mangle
IP6_NF_IPTABLES_LEGACY net/ipv6/netfilter/ip6_tables
IP6_NF_FILTER net/ipv6/netfilter/ip6table_filter
IP6_NF_NAT net/ipv6/netfilter/ip6table_nat
IP6_NF_MANGLE net/ipv6/netfilter/ip6table_mangle
NETFILTER_XT_MATCH_COMMENT net/netfilter/xt_comment
NETFILTER_XT_MATCH_CONNTRACK net/netfilter/xt_conntrack
NETFILTER_XT_MATCH_MULTIPORT net/netfilter/xt_multiport
NETFILTER_XT_MATCH_STATISTIC net/netfilter/xt_statistic
NETFILTER_XT_TARGET_MASQUERADE net/netfilter/xt_MASQUERADE
END
  : > "$modules/modules.order"
  : > "$modules/modules.builtin.modinfo"
  depmod || echo "lab: no list of what the kernel has built in"
fi

exec /lib/systemd/systemd "$@"
