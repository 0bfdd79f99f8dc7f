use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use cluster::{Cluster, Port, Role, file};
use node::{Context as _, Error, Result};

/// Look after cluster.yaml, the file that describes a whole cluster
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup config example > cluster.yaml\n  \
    smartup config check -f cluster.yaml\n  \
    smartup config schema > cluster.schema.json")]
pub struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print a commented file with every key
    Example,
    /// Say whether a file is valid, or all that is wrong in it
    Check {
        /// The file, '-' for stdin
        #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml")]
        file: PathBuf,
    },
    /// Print the JSON schema of the file, for editors
    Schema,
}

impl Config {
    pub fn run(self) -> Result<ExitCode> {
        match self.what {
            What::Example => anstream::print!("{}", file::EXAMPLE),
            What::Schema => {
                anstream::println!("{}", serde_json::to_string_pretty(&file::schema()).context("cannot print the schema")?);
            }
            What::Check { file } => {
                let cluster = load(&file)?;
                anstream::println!("{}", summary(&name(&file), &cluster));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Reads a file, `-` for stdin, with the environment's variables; what is allowed but hardly meant is said on stderr.
pub fn load(path: &Path) -> Result<Cluster> {
    let name = name(path);
    let text = super::read_text(path).map_err(|e| {
        let error = Error::invalid(format!("cannot read {name}"));
        match e.kind() {
            std::io::ErrorKind::NotFound => error.hint("`smartup config example` prints one; -f names another"),
            _ => error,
        }
        .because(e)
    })?;
    let cluster = Cluster::parse(&text, |name| std::env::var(name).ok()).map_err(|problems| invalid(&name, &problems))?;
    for warning in cluster.warnings() {
        anstream::eprintln!("warning: {name}: {warning}");
    }
    Ok(cluster)
}

fn name(path: &Path) -> String {
    if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() }
}

fn invalid(name: &str, problems: &file::Problems) -> Error {
    let count = match problems.0.len() {
        1 => "one error".to_owned(),
        n => format!("{n} errors"),
    };
    Error::invalid(format!("{name} is not valid: {count}\n{}", problems.text(name)))
}

fn summary(name: &str, cluster: &Cluster) -> String {
    let hosts = |role: Role| {
        let names: Vec<_> = cluster.hosts.iter().filter(|h| h.role == role).map(|h| h.host.as_str()).collect();
        match names.get(8..) {
            Some(more) if more.len() > 1 => format!("{} ({}, and {} more)", names.len(), names[..8].join(", "), more.len()),
            _ if names.is_empty() => "none".to_owned(),
            _ => format!("{} ({})", names.len(), names.join(", ")),
        }
    };
    format!(
        "{name} is valid\n  VIP      {}, port {}\n  servers  {}\n  agents   {}",
        cluster.vip,
        cluster.port.unwrap_or(Port::API),
        hosts(Role::Server),
        hosts(Role::Agent)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Cluster, file::Problems> {
        Cluster::parse(text, |_| None)
    }

    #[test]
    fn a_valid_file_in_short() {
        insta::assert_snapshot!(summary("cluster.yaml", &parse(file::EXAMPLE).unwrap()), @r"
        cluster.yaml is valid
          VIP      10.0.0.10, port 9443
          servers  3 (node1, node2, node3)
          agents   1 (node4)
        ");
        let many: Vec<_> = (0..20).map(|n| format!("{{host: agent{n}, role: agent}}")).collect();
        let text = format!("vip: fd00::10\nport: 6443\nhosts: [{{host: a, role: server}}, {}]", many.join(", "));
        let text = summary("cluster.yaml", &parse(&text).unwrap());
        insta::assert_snapshot!(text, @r"
        cluster.yaml is valid
          VIP      fd00::10, port 6443
          servers  1 (a)
          agents   20 (agent0, agent1, agent2, agent3, agent4, agent5, agent6, agent7, and 12 more)
        ");
    }

    #[test]
    fn an_invalid_file_exits_with_2() {
        let error = invalid("my.yaml", &parse("vip: x\nhost: []\n").unwrap_err());
        assert_eq!(crate::exit::code(error.kind), 2);
        insta::assert_snapshot!(error.what, @r"
        my.yaml is not valid: 3 errors
        my.yaml:1:1: the file has no 'hosts'
           1 | vip: x
             | ^
               hint: the least is 'vip: 10.0.0.10' and 'hosts:' with lines like '- {host: node1, role: server}'
        my.yaml:1:6: VIP 'x': is not an IPv4 or IPv6 address; write for example 10.0.0.10 or 10.0.0.10/24
           1 | vip: x
             |      ^
        my.yaml:2:1: unknown key 'host' in the file
           2 | host: []
             | ^^^^
               hint: did you mean 'hosts'?
        ");
    }
}
