#!/bin/bash
# base.sh OUT full|plain|managers
#
# Makes the root file system that all lab hosts share, in the folder OUT. `plain` has neither keepalived nor firewalld,
# but a package repository that holds them (and what they need) as its only source of packages. `managers` is `full` with
# the package managers of other distributions, and what makes packages and repositories for each.
set -euo pipefail
out=$1 kind=$2

packages=(
  systemd systemd-sysv dbus netbase kmod sudo procps psmisc openssh-server openssh-client
  iproute2 iputils-ping iputils-arping nftables iptables ipset conntrack ebtables
  curl ca-certificates socat netcat-openbsd tcpdump jq libseccomp2
)
later=(keepalived firewalld)
managers=(
  dnf rpm createrepo-c zypper
  pacman-package-manager makepkg libarchive-tools zstd
  apt-utils
)
repository=/usr/share/lab-packages

case $kind in
  full | plain | managers) ;;
  *) echo "base.sh: the kind is full, plain or managers, not '$kind'" >&2; exit 2 ;;
esac

hooks=$(mktemp -d)
trap 'rm -rf "$hooks"' EXIT

# The hooks run while the new root still has the machine's sources of packages; its own apt works out what is missing.
cat > "$hooks/repository" <<HOOK
#!/bin/sh -e
mkdir -p "\$1$repository"
chroot "\$1" apt-get clean
chroot "\$1" apt-get -qq -y --download-only --no-install-recommends install ${later[*]}
mv "\$1"/var/cache/apt/archives/*.deb "\$1$repository/"
cd "\$1$repository"
apt-ftparchive packages . > Packages
HOOK

# Nothing wakes up by itself: an idle host changes no file.
cat > "$hooks/quiet" <<'HOOK'
#!/bin/sh -e
systemctl -q --root="$1" mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
  e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer console-getty.service getty@tty1.service
rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/apt/sources.list.d/* "$1"/etc/resolv.conf
: > "$1"/etc/machine-id
: > "$1"/etc/apt/sources.list
HOOK

cat > "$hooks/source" <<HOOK
#!/bin/sh -e
echo 'deb [trusted=yes] file:$repository ./' > "\$1"/etc/apt/sources.list
HOOK
chmod +x "$hooks"/*

case $kind in
  full | managers)
    packages+=("${later[@]}")
    [ "$kind" = full ] || packages+=("${managers[@]}")
    extra=(--customize-hook="$hooks/quiet") ;;
  plain)
    extra=(--customize-hook="$hooks/repository" --customize-hook="$hooks/quiet" --customize-hook="$hooks/source") ;;
esac

mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
  --include="$(IFS=,; echo "${packages[*]}")" \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  "${extra[@]}" bookworm "$out"
