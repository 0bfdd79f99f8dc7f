use std::fmt::Write as _;

/// A unit's environment file, line by line: what is not ours stays as it is.
///
/// Values are written as systemd reads them (`systemd.exec(5)`, EnvironmentFile): in double quotes where there is a space.
#[derive(Debug, Clone, Default)]
pub struct EnvFile(Vec<String>);

impl EnvFile {
    /// Reads a file.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().map(str::to_owned).collect())
    }

    /// The value of a variable; the last line counts, as it does for systemd.
    pub fn get(&self, key: &str) -> Option<String> {
        self.0.iter().rev().find_map(|l| value_of(l, key))
    }

    /// Sets a variable: in its last line, or at the end. Earlier lines of the same variable, which never counted, go.
    pub fn set(&mut self, key: &str, value: &str) {
        let quoted = value.contains(char::is_whitespace) || value.is_empty();
        let line = if quoted { format!("{key}=\"{value}\"") } else { format!("{key}={value}") };
        if self.get(key).as_deref() == Some(value) && self.0.iter().filter(|l| value_of(l, key).is_some()).count() == 1 {
            return;
        }
        let last = self.0.iter().rposition(|l| value_of(l, key).is_some());
        match last {
            Some(n) => self.0[n].clone_from(&line),
            None => self.0.push(line.clone()),
        }
        let mut n = 0;
        let keep = last.unwrap_or(self.0.len() - 1);
        self.0.retain(|l| {
            let stays = n == keep || value_of(l, key).is_none();
            n += 1;
            stays
        });
    }

    /// Removes a variable.
    pub fn unset(&mut self, key: &str) {
        self.0.retain(|l| value_of(l, key).is_none());
    }

    /// The file's text.
    pub fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut s, l| {
            let _ = writeln!(s, "{l}");
            s
        })
    }

    /// Hides the values of secret variables in one line.
    pub fn mask(line: &str) -> String {
        match line.split_once('=') {
            Some((key, _)) if key.contains("TOKEN") || key.contains("PASS") || key.contains("SECRET") => format!("{key}=(not shown)"),
            _ => line.to_owned(),
        }
    }
}

fn value_of(line: &str, key: &str) -> Option<String> {
    let rest = line.trim_start().strip_prefix(key)?.strip_prefix('=')?.trim();
    let unquoted = ['"', '\''].iter().find_map(|q| rest.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(rest);
    Some(unquoted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_lines_stay() {
        let mut f = EnvFile::parse("# mine\nHTTP_PROXY=http://proxy\nK3S_TOKEN=old\nK3S_EXTRA_FLAGS=\"--cluster-init\"\n");
        f.set("K3S_TOKEN", "new");
        f.set("K3S_URL", "https://10.0.0.10:9443");
        f.set("K3S_EXTRA_FLAGS", "--cluster-init --node-ip=10.0.0.1");
        assert_eq!(
            f.text(),
            "# mine\nHTTP_PROXY=http://proxy\nK3S_TOKEN=new\nK3S_EXTRA_FLAGS=\"--cluster-init --node-ip=10.0.0.1\"\nK3S_URL=https://10.0.0.10:9443\n"
        );
    }

    #[test]
    fn the_references_own_echoes_are_read() {
        // `echo … >>` twice leaves the variable twice; the last one counts
        let mut f = EnvFile::parse("K3S_TOKEN=one\nK3S_TOKEN=two\nK3S_EXTRA_FLAGS=\"--cluster-init\"\n");
        assert_eq!(f.get("K3S_TOKEN").unwrap(), "two");
        assert_eq!(f.get("K3S_EXTRA_FLAGS").unwrap(), "--cluster-init");
        f.set("K3S_TOKEN", "two");
        assert_eq!(f.text(), "K3S_TOKEN=two\nK3S_EXTRA_FLAGS=\"--cluster-init\"\n");
        assert_eq!(f.get("K3S"), None);
    }

    #[test]
    fn setting_what_is_there_changes_not_a_byte() {
        let text = "K3S_TOKEN='a'\n";
        let mut f = EnvFile::parse(text);
        f.set("K3S_TOKEN", "a");
        assert_eq!(f.text(), text);
    }

    #[test]
    fn masks_tokens() {
        assert_eq!(EnvFile::mask("K3S_TOKEN=abc"), "K3S_TOKEN=(not shown)");
        assert_eq!(EnvFile::mask("K3S_URL=abc"), "K3S_URL=abc");
    }
}
