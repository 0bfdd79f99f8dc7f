//! What tests run on a lab host to reach crate `packages` there: `manager MANAGER COMMAND`, data as JSON on stdin and stdout.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use node::{Error, Kind, Result};
use packages::{Manager, OnHost, Sentinel, Transaction, needs_reboot};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use updates::PackageName;

/// Without any progress for so long, an installation hangs. Only here so short.
const HANG: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Wanted {
    wanted: BTreeSet<PackageName>,
    banned: Vec<PackageName>,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(|e| Error::failed("no runtime").because(e)).and_then(|runtime| runtime.block_on(run()));
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", error.chain());
            if error.kind == Kind::Refused { ExitCode::from(4) } else { ExitCode::FAILURE }
        }
    }
}

async fn run() -> Result<String> {
    let host = OnHost::here();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [manager, command] = arguments.as_slice() else { return Err(Error::invalid("usage: manager MANAGER COMMAND")) };
    if command == "detect" {
        return json(&Manager::detect(&host)?);
    }
    let manager: Manager = parse(&format!("\"{manager}\""))?;
    match command.as_str() {
        "available" => json(&manager.available(&host).await?),
        "resolve" => {
            let input: Wanted = stdin()?;
            json(&manager.resolve(&host, &input.wanted, &input.banned.iter().collect()).await?)
        }
        "download" => json(&manager.download(&host, &stdin::<Transaction>()?).await?),
        "install" => json(&watched(&host, manager.install(&host, &stdin::<Transaction>()?)).await?),
        "recover" => json(&manager.recover(&host, stdin::<Option<Transaction>>()?.as_ref()).await?),
        "installed" => json(&manager.installed(&host).await?),
        "needs-reboot" => {
            let sentinel = Sentinel::File("/var/run/reboot-required".into());
            json(&needs_reboot(&host, Some(manager), Some(&sentinel)).await?)
        }
        other => Err(Error::invalid(format!("there is no command {other}"))),
    }
}

/// Gives up, and so kills, what makes no progress.
async fn watched(host: &OnHost, work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut work = std::pin::pin!(work);
    let mut mark = host.mark();
    loop {
        match tokio::time::timeout(HANG, &mut work).await {
            Ok(done) => return done,
            Err(_) if !host.mark().is_beyond(&mark) => return Err(Error::failed("it hangs")),
            Err(_) => mark = host.mark(),
        }
    }
}

fn stdin<T: DeserializeOwned>() -> Result<T> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| Error::failed("cannot read stdin").because(e))?;
    parse(&text)
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::invalid("what is asked is not understood").because(e))
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::failed("cannot write JSON").because(e))
}
