//! The cluster's keys in etcd, encrypted with the token, as releases from 1.20.8 on keep them: a snapshot carries them, and nobody
//! restores it with another token. A server that has been up before is not checked against them here, as in 1.20.

use crate::etcd::Client;
use crate::layout::{Layout, write};
use crate::pki::BOOTSTRAP;
use crate::token::{hash, random_hex};
use crate::{info, warning};
use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::pbkdf2;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

const PREFIX: &str = "/bootstrap/";
const ROUNDS: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);

fn key(secret: &str) -> String {
    format!("{PREFIX}{}", &hash(secret.as_bytes())[..12])
}

fn cipher(secret: &str, salt: &str) -> Result<LessSafeKey> {
    let mut bytes = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA1, ROUNDS, salt.as_bytes(), secret.as_bytes(), &mut bytes);
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).map_err(|e| anyhow!("{e}"))?))
}

/// `SALT:base64(nonce, ciphertext)`
fn encrypt(secret: &str, text: &[u8]) -> Result<String> {
    let salt = random_hex(8)?;
    let mut nonce = [0; 12];
    getrandom::fill(&mut nonce).map_err(|e| anyhow!("cannot get randomness: {e}"))?;
    let mut sealed = text.to_vec();
    let nonce_of = Nonce::assume_unique_for_key(nonce);
    cipher(secret, &salt)?.seal_in_place_append_tag(nonce_of, Aad::empty(), &mut sealed).map_err(|e| anyhow!("{e}"))?;
    Ok(format!("{salt}:{}", BASE64.encode([nonce.as_slice(), &sealed].concat())))
}

fn decrypt(secret: &str, text: &str) -> Result<Vec<u8>> {
    let (salt, sealed) = text.split_once(':').context("invalid cipher text, not : delimited")?;
    let sealed = BASE64.decode(sealed)?;
    let (nonce, sealed) = sealed.split_first_chunk::<12>().context("cipher text is too short")?;
    let mut sealed = sealed.to_vec();
    let opened = cipher(secret, salt)?.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut sealed);
    Ok(opened.map_err(|_| anyhow!("cipher: message authentication failed"))?.to_vec())
}

/// Saves the keys, unless they are there.
///
/// # Errors
/// etcd's own; a key that cannot be read.
pub async fn save(layout: &Layout, etcd: &Client, secret: &str) -> Result<()> {
    if !etcd.values(PREFIX).await?.is_empty() {
        return Ok(());
    }
    let mut files = BTreeMap::new();
    for (name, path) in BOOTSTRAP {
        let path = layout.server(path);
        files.insert(*name, BASE64.encode(std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?));
    }
    info!("Saving cluster bootstrap data to datastore");
    etcd.put(&key(secret), encrypt(secret, &serde_json::to_vec(&files)?)?.as_bytes()).await
}

/// After a reset: the keys in etcd take the place of those on the disk.
///
/// # Errors
/// They are encrypted with another token; etcd's own.
pub async fn load(layout: &Layout, etcd: &Client, secret: &str) -> Result<()> {
    let all = etcd.values(PREFIX).await?;
    if all.is_empty() {
        return Ok(());
    }
    let Some((_, sealed)) = all.iter().find(|(k, _)| *k == key(secret)) else {
        bail!("bootstrap data already found and encrypted with different token");
    };
    let files: BTreeMap<String, String> = serde_json::from_slice(&decrypt(secret, std::str::from_utf8(sealed)?)?)?;
    let mut newer = false;
    for (name, path) in BOOTSTRAP {
        let path = layout.server(path);
        let content = BASE64.decode(files.get(*name).with_context(|| format!("no {name} in the bootstrap data"))?)?;
        if std::fs::read(&path).ok().as_ref() != Some(&content) {
            warning!("{} is out of sync with datastore", path.display());
            write(&path, &content, 0o600)?;
            newer = true;
        }
    }
    if newer {
        // what was signed by the old keys is made anew at the next start
        for name in ["tls", "tls/etcd"] {
            for entry in std::fs::read_dir(layout.server(name))? {
                let path = entry?.path();
                let kept = BOOTSTRAP.iter().any(|(_, p)| layout.server(p) == path);
                if path.is_file() && !kept && path.extension().is_some_and(|e| e == "crt" || e == "key") {
                    std::fs::remove_file(path)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens_it() {
        let sealed = encrypt("s3cret", b"keys").unwrap();
        assert_eq!(decrypt("s3cret", &sealed).unwrap(), b"keys");
        assert!(decrypt("another", &sealed).is_err());
        assert_eq!(key("s3cret"), "/bootstrap/1ec1c26b50d5");
    }
}
