#!/bin/sh
# repository.sh apt|dnf|zypper|pacman < PACKAGES
#
# Makes packages for one package manager, one for each line: name|[epoch:]version|needs[:version]|[before:]script, which runs after (or
# before) an upgrade to it. Version 1 is installed, all others are put into the repository /srv/repo. It may be run again with more.
set -eu
manager=$1
root=/srv
mkdir -p /etc/rpm
# Debian's rpm has its database in the home folder otherwise, where zypper does not look
echo '%_dbpath /var/lib/rpm' > /etc/rpm/macros
mkdir -p $root/first $root/repo $root/build
cd $root/build

# $1 name, $2 version, $3 needs, $4 script, $5 folder; $epoch, $when
deb() {
  mkdir -p $1/DEBIAN $1/usr/share/$1 $1/etc
  echo $2 > $1/usr/share/$1/version
  echo "setting=$2" > $1/etc/$1.conf
  echo /etc/$1.conf > $1/DEBIAN/conffiles
  { printf 'Package: %s\nVersion: %s%s-1\nArchitecture: all\nMaintainer: the lab <lab@lab>\nDescription: of the lab\n' $1 "${epoch:+$epoch:}" $2
    case $3 in '') ;; *:*) echo "Depends: ${3%:*} (>= ${3#*:})" ;; *) echo "Depends: $3" ;; esac; } > $1/DEBIAN/control
  [ -z "$4" ] || { printf '#!/bin/sh\n%s\n' "$4" > $1/DEBIAN/${when}inst; chmod 755 $1/DEBIAN/${when}inst; }
  dpkg-deb -b $1 $5 > /dev/null
}
rpm() {
  { printf 'Name: %s\nVersion: %s\nRelease: 1\nSummary: of the lab\nLicense: none\nBuildArch: noarch\nAutoReqProv: no\n' $1 $2
    [ -z "$epoch" ] || echo "Epoch: $epoch"
    [ $1 != lab-shell ] || echo 'Provides: /bin/sh'
    case $3 in '') ;; *:*) echo "Requires: ${3%:*} >= ${3#*:}" ;; *) echo "Requires: $3" ;; esac
    printf '%%description\nOf the lab.\n%%install\nmkdir -p %%{buildroot}/usr/share/%s %%{buildroot}/etc\necho %s > %%{buildroot}/usr/share/%s/version\necho setting=%s > %%{buildroot}/etc/%s.conf\n' $1 $2 $1 $2 $1
    [ -z "$4" ] || printf '%%%s\n%s\n' $when "$4"
    printf '%%files\n/usr/share/%s\n%%config(noreplace) /etc/%s.conf\n' $1 $1
  } > $1.spec
  rpmbuild --quiet -bb --define "_topdir $root/build/rpm" --define "_rpmdir $5" --define '_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' $1.spec
}
pkg() {
  { printf 'pkgname=%s\npkgver=%s\npkgrel=1\narch=(any)\npkgdesc="of the lab"\nbackup=(etc/%s.conf)\noptions=(!strip !debug)\n' $1 $2 $1
    [ -z "$epoch" ] || echo "epoch=$epoch"
    case $3 in '') ;; *:*) echo "depends=('${3%:*}>=${3#*:}')" ;; *) echo "depends=($3)" ;; esac
    [ -z "$4" ] || { printf 'install=%s.install\n' $1; printf '%s_upgrade() {\n%s\n}\n' $when "$4" > $1.install; }
    printf 'package() {\n mkdir -p $pkgdir/usr/share/$pkgname $pkgdir/etc\n echo $pkgver > $pkgdir/usr/share/$pkgname/version\n echo setting=$pkgver > $pkgdir/etc/$pkgname.conf\n}\n'
  } > PKGBUILD
  chown -R nobody . $5
  runuser -u nobody -- env HOME=$root/build PKGDEST=$5 PKGEXT=.pkg.tar.gz makepkg -f --nodeps 2> log || { cat log; exit 1; }
}
while IFS='|' read -r name version needs script; do
  rm -rf $root/build/one; mkdir $root/build/one; cd $root/build/one
  epoch= when=post
  case $version in *:*) epoch=${version%%:*} version=${version#*:} ;; esac
  case $script in before:*) when=pre script=${script#before:} ;; esac
  case $version in 1) to=$root/first ;; *) to=$root/repo ;; esac
  case $manager in
    apt) deb $name $version "$needs" "$script" $to ;;
    dnf | zypper) rpm $name $version "$needs" "$script" $to ;;
    pacman) pkg $name $version "$needs" "$script" $to ;;
  esac < /dev/null
done
cd /
rm -rf $root/build
case $manager in
  apt)
    cd $root/repo; apt-ftparchive packages . > Packages
    echo 'deb [trusted=yes] file:/srv/repo ./' > /etc/apt/sources.list ;;
  dnf)
    createrepo_c -q $root/repo
    mkdir -p /etc/yum.repos.d
    printf '[lab]\nname=lab\nbaseurl=file:///srv/repo\ngpgcheck=0\n' > /etc/yum.repos.d/lab.repo ;;
  zypper)
    createrepo_c -q $root/repo
    mkdir -p /etc/zypp/repos.d
    printf '[lab]\nname=lab\nbaseurl=file:///srv/repo\ngpgcheck=0\nenabled=1\ntype=rpm-md\n' > /etc/zypp/repos.d/lab.repo ;;
  pacman)
    cd $root/repo; repo-add -q lab.db.tar.gz *.pkg.tar.gz
    printf '[options]\nArchitecture = auto\nSigLevel = Never\nLocalFileSigLevel = Never\nHoldPkg = pacman\n[lab]\nServer = file:///srv/repo\n' > /etc/pacman.conf ;;
esac
set -- $root/first/*
[ -e "$1" ] || exit 0
case $manager in
  apt) dpkg -i "$@" > /dev/null ;;
  dnf | zypper) command rpm -i "$@" ;;
  pacman) pacman --noconfirm -U "$@" > /dev/null ;;
esac
rm -r $root/first
