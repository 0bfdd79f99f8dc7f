use std::path::Path;
use std::time::Duration;

use node::{Error, Output, Result, run};

use crate::Rule;
use crate::firewalld::Do;

/// Works on firewalld's files while it does not run; its D-Bus interface is not there then.
const PROGRAM: &str = "firewall-offline-cmd";
const LIMIT: Duration = Duration::from_secs(30);

/// Whether firewalld is installed; its programs are in folders that a user's PATH may not have.
pub(crate) fn installed() -> bool {
    ["/usr/sbin", "/usr/bin", "/sbin", "/usr/local/sbin"].iter().any(|d| Path::new(d).join("firewalld").exists())
}

async fn offline(args: &[String]) -> Result<Output> {
    run(PROGRAM, args, LIMIT).await
}

fn answer(args: &[String], out: &Output) -> Result<String> {
    if out.success() {
        Ok(out.stdout.trim().to_owned())
    } else {
        let what = format!("{PROGRAM} {} failed: {}", args.join(" "), out.tail(3));
        Err(Error::failed(what).hint("firewalld would not start either; mend that first, or use --no-firewall"))
    }
}

/// The zone that an interface will be in: the one that names it, or the default one.
pub(crate) async fn zone_of(interface: &str) -> Result<String> {
    let out = offline(&[format!("--get-zone-of-interface={interface}")]).await?;
    // says "no zone" and fails where none names it
    if out.success() && !out.stdout.trim().is_empty() {
        return Ok(out.stdout.trim().to_owned());
    }
    default_zone().await
}

/// The zone of all that no zone names.
pub(crate) async fn default_zone() -> Result<String> {
    let args = ["--get-default-zone".to_owned()];
    answer(&args, &offline(&args).await?)
}

/// Whether ssh's port is let in, by itself or as the service of that name.
pub(crate) async fn lets_ssh_in(zone: &str, port: u16) -> Result<bool> {
    let zone = format!("--zone={zone}");
    if port == 22 && offline(&[zone.clone(), "--query-service=ssh".into()]).await?.success() {
        return Ok(true);
    }
    Ok(offline(&[zone, format!("--query-port={port}/tcp")]).await?.success())
}

/// Whether a rule is there, to the letter.
pub(crate) async fn has(rule: &Rule, zone: &str) -> Result<bool> {
    Ok(offline(&[format!("--zone={zone}"), option("query", rule)]).await?.success())
}

/// Adds or removes a rule.
pub(crate) async fn change(what: Do, rule: &Rule, zone: &str) -> Result<()> {
    let verb = match what {
        Do::Add => "add",
        Do::Remove => "remove",
    };
    let args = [format!("--zone={zone}"), option(verb, rule)];
    answer(&args, &offline(&args).await?).map(|_| ())
}

fn option(verb: &str, rule: &Rule) -> String {
    match rule {
        Rule::Port { ports, protocol } => format!("--{verb}-port={ports}/{protocol}"),
        Rule::Vrrp => format!("--{verb}-rich-rule={}", Rule::VRRP),
        Rule::Source { net } => format!("--{verb}-source={net}"),
    }
}
