//! The client on the fourth host: asks the API through the VIP each 20 ms, whatever became of the questions before.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use integration::api::{Api, PATIENCE, save_credentials};
use integration::clock::now;
use integration::outage::{Get, is_fine_for};
use integration::{Host, Lab};

/// Between two questions.
pub const GAP: Duration = Duration::from_millis(20);

/// What the client needs to know.
#[derive(Debug, Args)]
pub struct Ask {
    /// Where the API is
    address: SocketAddr,
    /// Folder with the CA, and the client's certificate and key
    folder: PathBuf,
}

impl Ask {
    /// Asks until it is killed: a line `MICROSECONDS ok` or `MICROSECONDS WHY` for each question.
    pub fn run(self) -> Result<()> {
        let api = Api::new(self.address, &self.folder)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
        runtime.block_on(async {
            let mut tick = tokio::time::interval(GAP);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                tick.tick().await;
                let api = api.clone();
                tokio::spawn(async move {
                    let asked = now();
                    // the API server answers this without asking etcd
                    let said = api.ask("GET", "/version", "").await.map_or_else(|why| format!("{why:#}"), |()| "ok".to_owned());
                    if writeln!(std::io::stdout().lock(), "{} {said}", asked.as_micros()).is_err() {
                        std::process::exit(0); // nobody reads any more
                    }
                });
            }
        })
    }
}

/// The client, as seen from here. It ends with this value.
#[derive(Debug)]
pub struct Asked {
    client: Child,
    gets: Arc<Mutex<Vec<Get>>>,
    _folder: tempfile::TempDir,
}

impl Asked {
    /// Starts the client, with the credentials that a server keeps for its administrator.
    pub fn start(lab: &Lab, server: &Host, api: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        save_credentials(server, folder.path())?;
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = lab.probe().command([own.as_os_str(), "ask".as_ref(), api.to_string().as_ref(), folder.path().as_os_str()]);
        let mut client = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start the client")?;
        let stdout = client.stdout.take().context("no pipe from the client")?;
        let gets = Arc::new(Mutex::new(Vec::new()));
        let list = gets.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let (Some(get), Ok(mut list)) = (parse(&line), list.lock()) {
                    list.push(get);
                }
            }
        });
        Ok(Self { client, gets, _folder: folder })
    }

    /// All questions so far that have come to an end.
    pub fn gets(&self) -> Vec<Get> {
        self.gets.lock().map(|gets| gets.clone()).unwrap_or_default()
    }

    /// Whether all questions of a while were answered, as far as one can know now.
    pub fn is_fine_for(&self, time: Duration) -> bool {
        is_fine_for(&self.gets(), time, PATIENCE, now())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        // It may have ended with its lab.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn parse(line: &str) -> Option<Get> {
    let (asked, said) = line.split_once(' ')?;
    Some(Get { asked: Duration::from_micros(asked.parse().ok()?), answered: said == "ok" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_when_and_whether() {
        let get = parse("1500 ok").unwrap();
        assert_eq!((get.asked, get.answered), (Duration::from_micros(1500), true));
        assert!(!parse("1500 no connection: deadline has elapsed").unwrap().answered);
        assert!(parse("").is_none());
    }
}
