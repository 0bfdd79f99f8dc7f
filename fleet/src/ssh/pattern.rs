//! Patterns as OpenSSH reads them (`ssh_config(5)`, PATTERNS): `*`, `?`, and lists in which `!` excludes.

/// Whether `pattern` matches all of `text`: `*` is any number of characters, `?` is exactly one.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` did not fit: let that `*` swallow one character more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t + 1));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((after_star, next)) = retry else { return false };
                retry = Some((after_star, next + 1));
                p = after_star;
                t = next;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether a list matches: one of its patterns does, and none of those that begin with `!`.
pub(super) fn list_matches<'a>(patterns: impl IntoIterator<Item = &'a str>, text: &str) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(excluded) if matches(excluded, text) => return false,
            None if matches(pattern, text) => found = true,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_the_man_page_says() {
        for (pattern, text) in [("*.co.uk", "a.co.uk"), ("192.168.0.?", "192.168.0.7"), ("*", ""), ("a*b*c", "aXbbYc"), ("[h]:*", "[h]:22")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("192.168.0.?", "192.168.0.17"), ("?", ""), ("a*b", "ac"), ("", "a"), ("a", "A")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn an_exclusion_wins_wherever_it_stands_and_is_no_match_of_its_own() {
        assert!(list_matches(["*.example", "!bad.example"], "good.example"));
        assert!(!list_matches(["*.example", "!bad.example"], "bad.example"));
        assert!(!list_matches(["!bad.example", "*.example"], "bad.example"));
        assert!(!list_matches(["!bad.example"], "good.example"));
    }

    /// The definition, without the cleverness.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|n| naive(rest, &text[n..])),
            Some((c, rest)) => text.split_first().is_some_and(|(t, left)| (*c == '?' || c == t) && naive(rest, left)),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(matches(&pattern, &text), naive(&p, &t));
        }
    }
}
