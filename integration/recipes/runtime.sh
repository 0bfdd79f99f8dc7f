#!/bin/bash
# runtime.sh OUT
#
# What the lab's own k3s carries besides Kubernetes: etcd, containerd, runc, the CNI plugins, and one small image. All
# of it comes out of Debian's packages without installing them here, laid out in OUT as in a host's root.
set -euo pipefail
out=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# apt with lists of its own: nobody else's apt is in the way, and the machine's stay as they are.
mkdir -p lists/partial
apt=(apt-get -qq -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=root)
"${apt[@]}" update
"${apt[@]}" download \
  etcd-server etcd-client containerd runc containernetworking-plugins busybox-static
for package in *.deb; do dpkg-deb -x "$package" root; done

take() { # FILE…: from the packages' trees to the same place below OUT
  local file
  for file; do install -D "root/$file" "$out/$file"; done
}
take usr/bin/{etcd,etcdctl,containerd,ctr,containerd-shim-runc-v2} usr/sbin/runc
take usr/lib/cni/{bridge,host-local,loopback,portmap}

# The image: one layer with a static busybox, as `docker save` would write it. Doing nothing for ever, it serves as the
# pods' pause container as well.
mkdir -p layer/{bin,sbin,usr/bin,usr/sbin,etc,root,var,home,proc,sys,dev} layer/tmp
chmod 1777 layer/tmp
busybox=$(find root -path '*bin/busybox' -type f)
install "$busybox" layer/bin/busybox
while read -r applet; do
  [ "$applet" = bin/busybox ] || ln -s /bin/busybox "layer/$applet"
done < <("$busybox" --list-full)
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > layer/etc/passwd
printf 'root:x:0:\nnobody:x:65534:\n' > layer/etc/group

same=(--sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --format=ustar)
tar -c "${same[@]}" -C layer -f layer.tar .
layer=$(sha256sum < layer.tar | cut -d' ' -f1)
mkdir -p "image/$layer"
mv layer.tar "image/$layer/"
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
printf '{"architecture":"amd64","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Env":["PATH=%s"],"Cmd":["/bin/sleep","2147483647"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"1970-01-01T00:00:00Z"}]}' \
  "$path" "$layer" > config.json
config=$(sha256sum < config.json | cut -d' ' -f1)
mv config.json "image/$config.json"
printf '[{"Config":"%s.json","RepoTags":["docker.io/library/pause:test","docker.io/library/busybox:test"],"Layers":["%s/layer.tar"]}]' \
  "$config" "$layer" > image/manifest.json
mkdir -p "$out/usr/libexec/lab-kubernetes"
tar -c "${same[@]}" -C image -f "$out/usr/libexec/lab-kubernetes/pause.tar" "$config.json" "$layer" manifest.json
find "$out" -type d -exec chmod 755 {} +
