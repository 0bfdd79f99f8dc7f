//! Passphrases of key files: asked for once per file, one question at a time, however many connections want the key.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use node::{Error, Result};
use russh::keys::{PrivateKey, decode_secret_key};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;

/// How often a mistyped passphrase may be corrected, as in OpenSSH (`NumberOfPasswordPrompts`).
const TRIES: usize = 3;

type Ask = dyn Fn(&Path) -> io::Result<SecretString> + Send + Sync;

/// Opens encrypted key files. Clones share what was asked; nothing of it is kept when the last one goes.
#[derive(Clone)]
pub struct Passphrases {
    ask: Arc<Ask>,
    opened: Arc<Mutex<HashMap<PathBuf, Option<Arc<PrivateKey>>>>>,
}

impl Passphrases {
    /// Asks on the terminal, as [`ask_on_terminal`] does.
    pub fn from_terminal() -> Self {
        Self::from(ask_on_terminal)
    }

    /// Asks `ask`, which may block.
    pub fn from(ask: impl Fn(&Path) -> io::Result<SecretString> + Send + Sync + 'static) -> Self {
        Self { ask: Arc::new(ask), opened: Arc::default() }
    }

    /// The key in an encrypted `file`, whose content is `text`.
    ///
    /// # Errors
    /// Failed when nobody can be asked, or when the passphrase stays wrong; it is not asked for again then.
    pub(super) async fn open(&self, file: &Path, text: &str) -> Result<Arc<PrivateKey>> {
        let mut opened = self.opened.lock().await;
        if let Some(known) = opened.get(file) {
            return known.clone().ok_or_else(|| Error::failed("its passphrase could not be had before"));
        }
        let (ask, path, text) = (self.ask.clone(), file.to_owned(), text.to_owned());
        // The question blocks, and so does what follows: deriving the key from the passphrase is slow on purpose.
        let result = tokio::task::spawn_blocking(move || {
            for _ in 0..TRIES {
                let passphrase = (*ask)(&path).map_err(|e| {
                    Error::failed("it is encrypted, and there is no terminal to ask for its passphrase")
                        .hint(format!("load it into an ssh-agent first: ssh-add {}", path.display()))
                        .because(e)
                })?;
                if let Ok(key) = decode_secret_key(&text, Some(passphrase.expose_secret())) {
                    return Ok(Arc::new(key));
                }
            }
            Err(Error::failed(format!("the passphrase was wrong {TRIES} times")))
        })
        .await
        .unwrap_or_else(|e| Err(Error::failed("asking for its passphrase failed").because(e)));
        opened.insert(file.to_owned(), result.as_ref().ok().cloned());
        result
    }
}

/// Asks for the passphrase of `file` on the terminal, wherever standard input and output lead.
///
/// # Errors
/// When there is no terminal.
pub fn ask_on_terminal(file: &Path) -> io::Result<SecretString> {
    rpassword::prompt_password(format!("Passphrase for {}: ", file.display())).map(SecretString::from)
}

impl Default for Passphrases {
    fn default() -> Self {
        Self::from_terminal()
    }
}

impl fmt::Debug for Passphrases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrases")
    }
}
