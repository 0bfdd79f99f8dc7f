/// The known word that was most likely meant: `node_ip` and `nodeip` are `nodeIp`, and up to two letters may be wrong.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let bare = |w: &str| w.to_ascii_lowercase().replace(['-', '_'], "");
    let word = bare(word);
    let (distance, near) = known.into_iter().map(|k| (strsim::damerau_levenshtein(&word, &bare(k)), k)).min_by_key(|(d, _)| *d)?;
    (distance <= 2.min(near.len() / 2)).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_keys() {
        let known = ["interface", "nodeIp", "vip", "role", "k3s"];
        for (key, near) in [
            ("intreface", Some("interface")),
            ("node_ip", Some("nodeIp")),
            ("VIP", Some("vip")),
            ("rôle", Some("role")),
            ("vipp", Some("vip")),
            ("xyz", None),
            ("", None),
        ] {
            assert_eq!(nearest(key, known), near, "{key}");
        }
    }
}
