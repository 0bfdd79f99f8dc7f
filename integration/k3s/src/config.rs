//! `config.yaml` and `config.yaml.d/*.yaml`: their values become flags in front of those given.

use crate::cli::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Which file the arguments or the environment name; else the default.
pub fn file(args: &[String], environment: Option<String>) -> PathBuf {
    let mut found = None;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--config" | "-config" | "-c" | "--c" => found = words.next().cloned(),
            w => {
                for prefix in ["--config=", "-config=", "-c="] {
                    if let Some(v) = w.strip_prefix(prefix) {
                        found = Some(v.to_owned());
                    }
                }
            }
        }
    }
    found.or(environment).unwrap_or_else(|| "/etc/rancher/k3s/config.yaml".to_owned()).into()
}

/// The arguments with the files' values put in front of them.
///
/// # Errors
/// A file that is there but cannot be read, or is no YAML map.
pub fn inject(command: Command, args: Vec<String>, file: &Path) -> anyhow::Result<Vec<String>> {
    let mut texts = Vec::new();
    for path in files(file)? {
        let text = std::fs::read_to_string(&path)?;
        texts.push((path, text));
    }
    let mut merged: Vec<(String, Value)> = Vec::new();
    for (path, text) in texts {
        if text.trim().is_empty() {
            continue;
        }
        let map: serde_json::Map<String, Value> =
            serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("failed to parse {}: {e}", path.display()))?;
        merge(&mut merged, map);
    }
    Ok(argv(command, &merged, args))
}

fn files(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if file.exists() {
        found.push(file.to_owned());
    }
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    if let Ok(entries) = std::fs::read_dir(&folder) {
        let mut more: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
        more.retain(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"));
        more.sort();
        found.extend(more);
    }
    Ok(found)
}

/// The last value of a key wins; `key+` appends.
fn merge(into: &mut Vec<(String, Value)>, map: serde_json::Map<String, Value>) {
    for (key, value) in map {
        let (key, append) = match key.strip_suffix('+') {
            Some(k) => (k.to_owned(), true),
            None => (key, false),
        };
        match into.iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) if append => {
                let mut list = as_list(old);
                list.extend(as_list(&value));
                *old = Value::Array(list);
            }
            Some((_, old)) => *old = value,
            None => into.push((key, value)),
        }
    }
}

fn as_list(value: &Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list.clone(),
        other => vec![other.clone()],
    }
}

fn argv(command: Command, merged: &[(String, Value)], args: Vec<String>) -> Vec<String> {
    let mut all = Vec::new();
    for (key, value) in merged {
        let Some(flag) = command.find(key) else {
            crate::warning!("Unknown flag --{key} found in config.yaml, skipping");
            continue;
        };
        // A repeatable flag on the command line replaces the file's list.
        if flag.repeatable() && args.iter().any(|a| names(a, flag.name)) {
            continue;
        }
        for v in as_list(value) {
            let text = match v {
                Value::String(s) => s,
                other => other.to_string(),
            };
            all.push(format!("--{}={text}", flag.name));
        }
    }
    all.extend(args);
    all
}

fn names(word: &str, flag: &str) -> bool {
    let body = word.trim_start_matches('-');
    word.starts_with('-') && body.split('=').next() == Some(flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_flags() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "token: secret\ndocker: true\ntls-san:\n  - a\n  - b\nhttps-listen-port: 9443\n").unwrap();
        std::fs::create_dir(dir.path().join("config.yaml.d")).unwrap();
        std::fs::write(dir.path().join("config.yaml.d/10.yaml"), "token: other\ntls-san+: [c]\nstrange: 1\n").unwrap();
        let got = inject(Command::Server, vec!["--node-name".into(), "x".into()], &file).unwrap();
        let mut head = got[..got.len() - 2].to_vec();
        head.sort();
        assert_eq!(head, ["--docker=true", "--https-listen-port=9443", "--tls-san=a", "--tls-san=b", "--tls-san=c", "--token=other"]);
        assert_eq!(got[got.len() - 2..], ["--node-name", "x"]);
        let got = inject(Command::Server, vec!["--tls-san=z".into()], &file).unwrap();
        assert!(!got.contains(&"--tls-san=a".to_owned()));
    }

    #[test]
    fn which_file() {
        let args = |a: &[&str]| a.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(file(&args(&["-c", "/x"]), None), Path::new("/x"));
        assert_eq!(file(&args(&["--config=/y"]), Some("/z".into())), Path::new("/y"));
        assert_eq!(file(&[], Some("/z".into())), Path::new("/z"));
        assert_eq!(file(&[], None), Path::new("/etc/rancher/k3s/config.yaml"));
    }
}
