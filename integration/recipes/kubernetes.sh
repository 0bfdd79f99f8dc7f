#!/bin/bash
# kubernetes.sh OUT
#
# Builds Kubernetes 1.20.2 out of Debian bookworm's source package (3 minutes on two cores, 2 GB in the current folder
# while it runs) and lays its programs out in OUT as in a host's root.
set -euo pipefail
out=$1
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
work=$PWD
source=$work/go/src/k8s.io/kubernetes # a real folder: the generator does not follow links

# apt with lists of its own, and nothing installed: the machine stays as it is.
mkdir -p lists/partial parts debian root "$source" "$out/usr/libexec/lab-kubernetes"
if [ -e /etc/apt/sources.list.d/debian.sources ]; then
  sed 's/^Types:.*/Types: deb deb-src/' /etc/apt/sources.list.d/debian.sources > parts/debian.sources
else
  sed -n 's/^deb /deb-src /p; /^deb /p' /etc/apt/sources.list > parts/debian.list
fi
apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/parts"
  -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=root)
"${apt[@]}" update
"${apt[@]}" download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev
for package in *.deb; do dpkg-deb -x "$package" root; done
"${apt[@]}" source --download-only kubernetes
tar -xzf kubernetes_1.20.5*.orig.tar.gz --strip-components=1 -C "$source"
tar -xJf kubernetes_1.20.5*.debian.tar.xz -C debian

cd "$source"
while read -r name; do
  patch -s -p1 < "$work/debian/debian/patches/$name"
done < "$work/debian/debian/patches/series"

# The vendored reflect2 1.0.1 crashes when built with Go 1.18 or newer; Debian's 1.0.2 does not.
reflect2=vendor/github.com/modern-go/reflect2
rm "$reflect2"/*.go "$reflect2"/*.s
cp "$work"/root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect2/"

export GOPATH=$work/go GOROOT=$work/root/usr/lib/go-1.19 GOCACHE=$work/cache GO111MODULE=off GOPROXY=off GOFLAGS='' CGO_ENABLED=0
export PATH=$GOROOT/bin:$PATH

# One file is generated, and not in the source package: the OpenAPI definitions of everything that is marked for them.
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
marked=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg staging/src/k8s.io |
  grep -vE 'staging/src/k8s.io/(code-generator|sample-apiserver)|/testdata/|_test\.go|zz_generated' |
  xargs -n1 dirname | sort -u |
  sed 's#^staging/src/#vendor/#; s#^#k8s.io/kubernetes/#' | paste -sd,)
"$work/openapi-gen" --logtostderr -i "$marked" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  -h hack/boilerplate/boilerplate.generatego.txt -r "$work/violations"
diff "$work/violations" api/api-rules/violation_exceptions.list # proves that the list of packages was complete

# k3s's own name for it, which its nodes report as their version; lab-k3s makes others out of it (integration/k3s/src/release.rs).
flags='-s -w'
for package in vendor/k8s.io/client-go/pkg/version vendor/k8s.io/component-base/version; do
  flags+=" -X k8s.io/kubernetes/$package.gitVersion=v1.20.2+k3s1 -X k8s.io/kubernetes/$package.gitMajor=1"
  flags+=" -X k8s.io/kubernetes/$package.gitMinor=20 -X k8s.io/kubernetes/$package.gitTreeState=clean"
done
go build -trimpath -tags providerless -ldflags "$flags" -o "$out/usr/libexec/lab-kubernetes/" "${programs[@]/#/./cmd/}"
find "$out" -type d -exec chmod 755 {} +
