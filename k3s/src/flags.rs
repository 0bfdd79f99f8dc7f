use std::fmt;

/// k3s's command line flags, as they stand in `K3S_EXTRA_FLAGS`. systemd splits that at white space, so no flag holds any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags(Vec<String>);

/// Flags that k3s takes several times; of all others the last one counts.
const REPEATABLE: [&str; 14] = [
    "--tls-san",
    "--disable",
    "--node-label",
    "--node-taint",
    "--kubelet-arg",
    "--kube-apiserver-arg",
    "--etcd-arg",
    "--kube-controller-manager-arg",
    "--kube-scheduler-arg",
    "--kube-cloud-controller-manager-arg",
    "--kube-proxy-arg",
    "--node-external-ip",
    "--cluster-dns",
    "--kube-controller-arg",
];

/// A flag without its value.
fn name(flag: &str) -> &str {
    flag.split_once('=').map_or(flag, |(n, _)| n)
}

impl Flags {
    /// Reads what a file or a unit has: `--a=b --c d --e`. A word after a flag that is not a flag itself is its value.
    pub fn parse(text: &str) -> Self {
        let mut flags: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            match flags.last_mut() {
                Some(last) if !word.starts_with('-') && last.starts_with('-') && !last.contains('=') => {
                    last.push('=');
                    last.push_str(word);
                }
                _ => flags.push(word.to_owned()),
            }
        }
        Self(flags)
    }

    /// Sets a flag: in the place of one with the same name, or, where k3s takes several, beside it unless it is there.
    pub fn add(&mut self, flag: &str) {
        if self.0.iter().any(|f| f == flag) {
            return;
        }
        let name = name(flag);
        match self.0.iter_mut().find(|f| self::name(f) == name) {
            Some(old) if !REPEATABLE.contains(&name) => flag.clone_into(old),
            _ => self.0.push(flag.to_owned()),
        }
    }

    /// Sets several, given as words: `--a b` or `--a=b`.
    pub fn apply(&mut self, words: &[String]) {
        for flag in Self::parse(&words.join(" ")).0 {
            self.add(&flag);
        }
    }

    /// Sets all of another's.
    pub fn merge(&mut self, other: &Flags) {
        for flag in &other.0 {
            self.add(flag);
        }
    }

    /// Leaves out what `other` has word for word, so that nothing is passed twice.
    pub fn without(&mut self, other: &Flags) {
        self.0.retain(|f| !other.0.contains(f));
    }

    /// The last value of a flag.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find_map(|f| f.split_once('=').filter(|(n, _)| *n == name).map(|(_, v)| v))
    }

    /// Whether a flag is there, with or without a value.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|f| self::name(f) == name)
    }

    /// The flags one by one.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Flags that both set, to different values, where the last one would silently win.
    pub fn conflicts(&self, other: &Flags) -> Vec<(String, String)> {
        let single = |f: &&String| !REPEATABLE.contains(&name(f));
        let pairs = self.0.iter().filter(single).flat_map(|a| other.0.iter().map(move |b| (a, b)));
        pairs.filter(|(a, b)| name(a) == name(b) && a != b).map(|(a, b)| (a.clone(), b.clone())).collect()
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(a: &str, b: &str) -> String {
        let mut flags = Flags::parse(a);
        flags.merge(&Flags::parse(b));
        flags.to_string()
    }

    #[test]
    fn keeps_what_is_there_and_sets_what_is_asked() {
        assert_eq!(merged("--disable traefik --node-ip 1.2.3.4", "--node-ip=10.0.0.1"), "--disable=traefik --node-ip=10.0.0.1");
        assert_eq!(merged("--tls-san=a", "--tls-san=b --tls-san=a"), "--tls-san=a --tls-san=b");
        assert_eq!(merged("", "--cluster-init"), "--cluster-init");
        assert_eq!(merged("--cluster-init", "--cluster-init"), "--cluster-init");
    }

    #[test]
    fn nothing_is_passed_twice() {
        let mut f = Flags::parse("--docker --https-listen-port=9443 --node-ip=10.0.0.1");
        let vendor = Flags::parse("server --https-listen-port 9443 --docker");
        f.without(&vendor);
        assert_eq!(f.to_string(), "--node-ip=10.0.0.1");
        assert_eq!(Flags::parse("--https-listen-port=6443").conflicts(&vendor).len(), 1);
        assert!(Flags::parse("--https-listen-port=9443 --tls-san=x").conflicts(&vendor).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn merging_again_changes_nothing(a in "(--[a-c](=[x-z])? ){0,4}(--tls-san=[x-z] ){0,2}", b in "(--[a-c](=[x-z])? ){0,4}(--tls-san=[x-z] ){0,2}") {
            let once = merged(&a, &b);
            proptest::prop_assert_eq!(merged(&once, &b), once);
        }
    }
}
