//! What is kept on the host's disk.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use node::{Context as _, Error, Host, Kind, Result, read_optional, write_atomically};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use updates::{ServiceName, TransactionId};

use super::look::Seen;
use super::order::{Journal, Order, Seat};

/// The services that ran when a transaction began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Before {
    pub transaction: TransactionId,
    pub services: Vec<ServiceName>,
}

fn journal_file(seat: Seat) -> String {
    format!("{}-journal.json", seat.as_str())
}

/// Folders of the host's: small files, each replaced as a whole and synced with its folder.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    root: PathBuf,
}

impl Shelf {
    /// On the host whose root is seen as `root`.
    pub(super) fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn folder(&self) -> PathBuf {
        self.root.join(Host::STATE.trim_start_matches('/')).join(Host::UPDATES)
    }

    fn volatile(&self) -> PathBuf {
        self.root.join("run/smartup")
    }

    /// Where the program is that carries orders out: in this root, and on the host itself.
    pub(super) fn program(&self) -> (PathBuf, PathBuf) {
        (self.folder().join("smartup"), Path::new(Host::STATE).join(Host::UPDATES).join("smartup"))
    }

    /// Makes the folders that are not there.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn make(&self) -> Result<()> {
        for folder in [self.folder(), self.volatile()] {
            fs::create_dir_all(&folder).context(format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(())
    }

    /// Forgets all of it.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub(super) fn clear(&self) -> Result<()> {
        let folder = self.folder();
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).context(format!("cannot remove {}", folder.display())),
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        read(&self.folder().join(name))
    }

    /// What cannot be understood is put aside, under another name, and is not there any more.
    fn read_or_put_aside<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        match self.read(name) {
            Err(e) if e.kind == Kind::Invalid => {
                tracing::warn!("put aside: {}", e.chain());
                let path = self.folder().join(name);
                fs::rename(&path, path.with_extension("damaged")).context(format!("cannot put {} aside", path.display()))?;
                Ok(None)
            }
            other => other,
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.make()?;
        write(&self.folder().join(name), value)
    }

    /// The order that was given last.
    ///
    /// # Errors
    /// When it cannot be read; kind Invalid when it cannot be understood.
    pub(super) fn order(&self, seat: Seat) -> Result<Option<Order>> {
        self.read(&format!("{}-order.json", seat.as_str()))
    }

    /// Writes an order down.
    ///
    /// # Errors
    /// When it is not on the disk then.
    pub(super) fn give(&self, seat: Seat, order: &Order) -> Result<()> {
        // else what carries it out could not tell whether it was begun before
        self.read_or_put_aside::<Journal>(&journal_file(seat))?;
        self.write(&format!("{}-order.json", seat.as_str()), order)
    }

    /// How far the orders are.
    ///
    /// # Errors
    /// When it cannot be read; kind Invalid when it cannot be understood.
    pub(super) fn journal(&self, seat: Seat) -> Result<Option<Journal>> {
        let kept: Option<Journal> = self.read(&journal_file(seat))?;
        let Some(Journal { order, end: None, .. }) = &kept else { return Ok(kept) };
        // what cannot be understood there says nothing
        let ended = read::<Journal>(&self.volatile().join(journal_file(seat))).ok().flatten().filter(|ended| ended.order == *order);
        Ok(ended.or(kept))
    }

    /// Writes down how far an order is.
    ///
    /// # Errors
    /// When it is not on the disk then.
    pub(super) fn note(&self, seat: Seat, journal: &Journal) -> Result<()> {
        self.write(&journal_file(seat), journal)
    }

    /// Writes down how an order has ended; where the disk is full or broken, until the next boot: what has ended did not die.
    ///
    /// # Errors
    /// When it is nowhere then.
    pub(super) fn note_end(&self, seat: Seat, journal: &Journal) -> Result<()> {
        self.note(seat, journal).or_else(|e| {
            tracing::warn!("{}", e.chain());
            write(&self.volatile().join(journal_file(seat)), journal)
        })
    }

    fn sign_file(&self, seat: Seat) -> PathBuf {
        self.volatile().join(format!("{}-sign", seat.as_str()))
    }

    /// There is progress, now that the host has been up for so long.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(super) fn give_sign(&self, seat: Seat, up: SignedDuration) -> Result<()> {
        write(&self.sign_file(seat), &up)
    }

    /// How long the host had been up when there was progress last.
    pub(super) fn sign(&self, seat: Seat) -> Option<SignedDuration> {
        read(&self.sign_file(seat)).ok().flatten()
    }

    /// The services that ran before.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn before(&self) -> Result<Option<Before>> {
        self.read_or_put_aside("services.json")
    }

    /// Writes down which services run.
    ///
    /// # Errors
    /// When it is not on the disk then.
    pub(super) fn note_services(&self, before: &Before) -> Result<()> {
        self.write("services.json", before)
    }

    /// When each update was seen for the first time, and for the last.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn first_seen(&self) -> Result<Seen> {
        Ok(self.read_or_put_aside("first-seen.json")?.unwrap_or_default())
    }

    /// Writes that down.
    ///
    /// # Errors
    /// When it is not on the disk then.
    pub(super) fn note_first_seen(&self, seen: &Seen) -> Result<()> {
        self.write("first-seen.json", seen)
    }

    fn away_file(&self) -> PathBuf {
        self.volatile().join("vip-given-away")
    }

    /// Whether the agent made the host give the floating address away. A boot forgets it, and starts keepalived.
    pub(super) fn away(&self) -> bool {
        self.away_file().exists()
    }

    /// Writes that down, or that it is over.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn set_away(&self, away: bool) -> Result<()> {
        self.make()?;
        if away { write_atomically(&self.away_file(), b"", 0o600) } else { node::remove_file(&self.away_file()) }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(file) = read_optional(path)? else { return Ok(None) };
    let damaged = |e| Error::invalid(format!("{} cannot be understood", path.display())).because(e);
    serde_json::from_slice(&file.content).map(Some).map_err(damaged)
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).context("cannot write JSON")?;
    write_atomically(path, &text, 0o600)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;
    use updates::api::{Answer, Command, HostRules, Phase, RebootNeed};

    use super::super::order::{End, Items, Looked, Work, Yield};
    use super::*;

    fn order(work: Work) -> Order {
        let boot = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        let patience = Some(SignedDuration::from_mins(30));
        let (at, up, phase) = (Timestamp::UNIX_EPOCH, SignedDuration::new(5, 7), Some(Phase::Installing));
        Order { at, boot, up, transaction: Some("0123456789abcdef".parse().unwrap()), phase, patience, work }
    }

    #[test]
    fn what_is_written_down_comes_back_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::below(root.path());
        assert_eq!((shelf.order(Seat::Update).unwrap(), shelf.journal(Seat::Look).unwrap()), (None, None));
        let packages: BTreeSet<updates::PackageName> = ["bash=5", "vim-2:9-1.noarch"].map(|p| p.parse().unwrap()).into();
        let patches: BTreeSet<updates::PatchName> = ["1-2-r3".parse().unwrap()].into();
        let change = packages::Change { from: packages.first().cloned(), to: packages.last().cloned().unwrap() };
        let transaction = packages::Transaction { wanted: packages.clone(), changes: [change].into(), removed: packages.clone() };
        let command: Command = vec!["/bin/true".to_owned(), "a b".to_owned()].try_into().unwrap();
        let rules = HostRules { gate_command: Some(command.clone()), ..HostRules::default() };
        for work in [
            Work::Look { listing: true, rules: rules.clone() },
            Work::Gate { command: command.clone() },
            Work::Download { packages: packages.clone() },
            Work::Install { items: Items::Patches(patches.clone()), rules: rules.clone() },
            Work::Install { items: Items::Packages(packages.clone()), rules },
            Work::Recover { interrupted: Some(transaction.clone()) },
            Work::Reboot { command: Some(command) },
        ] {
            let order = order(work);
            shelf.give(Seat::Update, &order).unwrap();
            assert_eq!(shelf.order(Seat::Update).unwrap(), Some(order));
        }
        let reboot = RebootNeed { needed: Answer::Yes, because: Some("a file".into()) };
        let found = vec![(packages.first().cloned().unwrap(), Some(Timestamp::UNIX_EPOCH)), (packages.last().cloned().unwrap(), None)];
        for end in [
            None,
            Some(End::Failed("why".into())),
            Some(End::Refused("why".into())),
            Some(End::Done(Yield::Nothing {})),
            Some(End::Done(Yield::Installed { reboot: reboot.clone() })),
            Some(End::Done(Yield::Downloaded { left_out: packages.iter().cloned().collect(), drain_first: true })),
            Some(End::Done(Yield::Looked(Looked { packages: Some(Ok(found)), patches: Some(Err("no".into())), reboot: reboot.clone() }))),
            Some(End::Done(Yield::Looked(Looked { packages: None, patches: Some(Ok(patches)), reboot }))),
        ] {
            let journal = Journal { order: Timestamp::UNIX_EPOCH, transaction: Some(transaction.clone()), end };
            shelf.note(Seat::Look, &journal).unwrap();
            assert_eq!(shelf.journal(Seat::Look).unwrap(), Some(journal));
        }
    }

    #[test]
    fn what_cannot_be_understood_is_told_and_in_nobodys_way() {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::below(root.path());
        shelf.make().unwrap();
        for name in ["update-order.json", "update-journal.json", "services.json", "first-seen.json"] {
            fs::write(shelf.folder().join(name), r#"{"at":"#).unwrap();
        }
        let kind = |e: node::Error| e.kind;
        assert_eq!(shelf.order(Seat::Update).map_err(kind), Err(Kind::Invalid));
        assert_eq!(shelf.journal(Seat::Update).map_err(kind), Err(Kind::Invalid));
        assert!(shelf.before().unwrap().is_none() && shelf.first_seen().unwrap().is_empty());
        assert!(shelf.folder().join("services.damaged").exists(), "for people");
        // the next order can be carried out
        let order = order(Work::Reboot { command: None });
        shelf.give(Seat::Update, &order).unwrap();
        assert_eq!((shelf.order(Seat::Update).unwrap(), shelf.journal(Seat::Update).unwrap()), (Some(order), None));
    }

    #[test]
    fn what_has_ended_did_not_die_though_the_disk_is_full() {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::below(root.path());
        let journal = |seconds, end| Journal { order: Timestamp::from_second(seconds).unwrap(), transaction: None, end };
        let done = || Some(End::Done(Yield::Nothing {}));
        shelf.note(Seat::Update, &journal(1, None)).unwrap();
        // root may write everywhere; but this name is taken now
        let taken = shelf.folder().join(".smartup-update-journal.json.tmp");
        fs::create_dir(&taken).unwrap();
        assert!(shelf.note(Seat::Update, &journal(1, done())).is_err());
        shelf.note_end(Seat::Update, &journal(1, done())).unwrap();
        assert_eq!(shelf.journal(Seat::Update).unwrap(), Some(journal(1, done())));
        // the next one
        fs::remove_dir(&taken).unwrap();
        shelf.note(Seat::Update, &journal(2, None)).unwrap();
        assert_eq!(shelf.journal(Seat::Update).unwrap(), Some(journal(2, None)));
    }

    #[test]
    fn signs_and_the_given_address_are_only_there_when_they_are() {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::below(root.path());
        assert!(shelf.sign(Seat::Update).is_none() && !shelf.away());
        shelf.set_away(true).unwrap();
        shelf.give_sign(Seat::Update, SignedDuration::new(90_061, 7)).unwrap();
        assert!(shelf.sign(Seat::Update) == Some(SignedDuration::new(90_061, 7)) && shelf.sign(Seat::Look).is_none() && shelf.away());
        shelf.set_away(false).unwrap();
        assert!(!shelf.away());
        shelf.clear().unwrap();
        shelf.clear().unwrap();
        assert!(!shelf.folder().exists());
    }
}
