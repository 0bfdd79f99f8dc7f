//! Files of age (age-encryption.org/v1) for X25519 recipients, as the `age` program writes and reads them: enough for a token.
//!
//! The format is C2SP's age.md. The `age` crate would bring eighty more packages, among them an elliptic curve of NIST's, a
//! post-quantum scheme and a translation system; this needs what smartup has already.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use bech32::Hrp;
use bech32::primitives::decode::CheckedHrpstring;
use curve25519_dalek::MontgomeryPoint;
use node::{Error, Result};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use secrecy::{ExposeSecret as _, SecretBox};

const VERSION: &str = "age-encryption.org/v1";
/// The payload is encrypted in chunks of this size; what smartup writes and reads has one.
const CHUNK: usize = 64 << 10;

/// Whom something is encrypted for: `age1…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

/// What opens what was encrypted for its recipient: `AGE-SECRET-KEY-1…`.
pub struct Identity(SecretBox<[u8; 32]>);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(not shown)")
    }
}

fn bech32_key(text: &str, prefix: &str) -> Option<[u8; 32]> {
    let parsed = CheckedHrpstring::new::<bech32::Bech32>(text).ok()?;
    if parsed.hrp() != Hrp::parse(prefix).ok()? {
        return None;
    }
    parsed.byte_iter().collect::<Vec<u8>>().try_into().ok()
}

impl FromStr for Recipient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        bech32_key(text, "age").map(Self).ok_or_else(|| "is not a recipient of age's (age1…, as age-keygen prints it)".into())
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = Hrp::parse("age").ok().and_then(|hrp| bech32::encode::<bech32::Bech32>(hrp, &self.0).ok());
        f.write_str(&encoded.unwrap_or_default())
    }
}

impl Identity {
    /// The identities in a file as `age-keygen` writes it: one a line, comments after `#`.
    ///
    /// # Errors
    /// Invalid when there is none, or a line that is something else. Does not repeat the line.
    pub fn parse_all(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let all: Option<Vec<Self>> = lines.map(|l| bech32_key(l, "age-secret-key-").map(|k| Self(SecretBox::new(Box::new(k))))).collect();
        all.filter(|all| !all.is_empty()).ok_or_else(|| {
            Error::invalid("the identity file has no AGE-SECRET-KEY-1… in each of its lines").hint("give the file that age-keygen wrote")
        })
    }

    fn recipient(&self) -> Recipient {
        Recipient(MontgomeryPoint::mul_base_clamped(*self.0.expose_secret()).0)
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::failed("no randomness for encrypting").because(e))?;
    Ok(bytes)
}

fn broken() -> Error {
    Error::failed("encrypting failed within smartup; please report this")
}

/// HKDF-SHA-256 to 32 bytes.
fn derive(secret: &[u8], salt: &[u8], info: &str) -> Result<[u8; 32]> {
    let mut key = [0; 32];
    let made = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    made.expand(&[info.as_bytes()], hkdf::HKDF_SHA256).and_then(|k| k.fill(&mut key)).map_err(|_| broken())?;
    Ok(key)
}

fn cipher(key: &[u8; 32]) -> Result<LessSafeKey> {
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| broken())?))
}

/// The key that the file's key is wrapped with: from both public keys and what they share.
fn wrapping(shared: MontgomeryPoint, ephemeral: &[u8; 32], recipient: &Recipient) -> Result<LessSafeKey> {
    cipher(&derive(&shared.0, &[ephemeral.as_slice(), &recipient.0].concat(), "age-encryption.org/v1/X25519")?)
}

/// The nonce of the payload's first chunk, which is the last one too: a counter of 11 bytes, and 1 for the last.
fn only_chunk() -> Nonce {
    let mut nonce = [0; 12];
    nonce[11] = 1;
    Nonce::assume_unique_for_key(nonce)
}

/// The header's authentication, over all of it to the three dashes.
fn header_key(file_key: &[u8]) -> Result<hmac::Key> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &derive(file_key, &[], "header")?))
}

/// Encrypts a short text.
///
/// # Errors
/// When it is longer than 64 KiB, or the system has no randomness.
pub fn encrypt(text: &[u8], recipients: &[Recipient]) -> Result<Vec<u8>> {
    if text.len() > CHUNK {
        return Err(broken());
    }
    let file_key: [u8; 16] = random()?;
    let mut header = format!("{VERSION}\n");
    for recipient in recipients {
        let secret: [u8; 32] = random()?;
        let ephemeral = MontgomeryPoint::mul_base_clamped(secret).0;
        let key = wrapping(MontgomeryPoint(recipient.0).mul_clamped(secret), &ephemeral, recipient)?;
        let mut body = file_key.to_vec();
        // used once: its key is new
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut body).map_err(|_| broken())?;
        let (ephemeral, body) = (BASE64_STANDARD_NO_PAD.encode(ephemeral), BASE64_STANDARD_NO_PAD.encode(body));
        header.extend(["-> X25519 ", &ephemeral, "\n", &body, "\n"]);
    }
    header.push_str("---");
    let mac = BASE64_STANDARD_NO_PAD.encode(hmac::sign(&header_key(&file_key)?, header.as_bytes()));
    let nonce: [u8; 16] = random()?;
    let mut payload = text.to_vec();
    let key = cipher(&derive(&file_key, &nonce, "payload")?)?;
    key.seal_in_place_append_tag(only_chunk(), Aad::empty(), &mut payload).map_err(|_| broken())?;
    Ok([header.as_bytes(), b" ", mac.as_bytes(), b"\n", &nonce, &payload].concat())
}

/// Decrypts what [`encrypt`] or the `age` program encrypted.
///
/// # Errors
/// Invalid when it is no such file, is damaged, or was encrypted for nobody of these.
pub fn decrypt(file: &[u8], identities: &[Identity]) -> Result<Vec<u8>> {
    let invalid = |what: &str| Error::invalid(format!("the encrypted token cannot be opened: {what}"));
    let damaged = || invalid("it is damaged, or not a file of age's");
    let end = file.windows(5).position(|w| w == b"\n--- ").ok_or_else(damaged)?;
    let (header, rest) = file.split_at(end + 4);
    let line = rest.iter().position(|b| *b == b'\n').ok_or_else(damaged)?;
    let mac = BASE64_STANDARD_NO_PAD.decode(rest[..line].trim_ascii()).map_err(|_| damaged())?;
    let text = std::str::from_utf8(header).map_err(|_| damaged())?;
    if text.lines().next() != Some(VERSION) {
        return Err(damaged());
    }
    let mut file_key = None;
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.windows(2) {
        for identity in identities {
            if file_key.is_none() {
                file_key = open(pair[0], pair[1], identity)?;
            }
        }
    }
    let file_key = file_key.ok_or_else(|| invalid("it was encrypted for others than the identities given"))?;
    hmac::verify(&header_key(&file_key)?, header, &mac).map_err(|_| damaged())?;
    let (nonce, payload) = rest[line + 1..].split_at_checked(16).ok_or_else(damaged)?;
    let mut payload = payload.to_vec();
    let key = cipher(&derive(&file_key, nonce, "payload")?)?;
    let opened = key.open_in_place(only_chunk(), Aad::empty(), &mut payload).map_err(|_| damaged())?;
    Ok(opened.to_vec())
}

/// The file's key from one recipient's two lines, if they are this identity's.
fn open(head: &str, body: &str, identity: &Identity) -> Result<Option<Vec<u8>>> {
    let decode = |text: &str| BASE64_STANDARD_NO_PAD.decode(text).ok();
    let Some(ephemeral) = head.strip_prefix("-> X25519 ").and_then(decode).and_then(|e| <[u8; 32]>::try_from(e).ok()) else {
        return Ok(None);
    };
    let Some(mut body) = decode(body).filter(|b| b.len() == 32) else { return Ok(None) };
    let shared = MontgomeryPoint(ephemeral).mul_clamped(*identity.0.expose_secret());
    // a point of low order: everybody would know what is shared
    if shared.0 == [0; 32] {
        return Ok(None);
    }
    let key = wrapping(shared, &ephemeral, &identity.recipient())?;
    let opened = key.open_in_place(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut body);
    Ok(opened.ok().map(|k| k.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by the reference implementation (the age crate, 0.12): a key, its recipient, and "s3cret\n" for it alone and among others.
    const IDENTITY: &str = "AGE-SECRET-KEY-1DCJ590GLGFXSAETWN2CYCTV4JH5SKSLD0VELS8R6ZS0AZQJHGFDQEKLH00";
    const RECIPIENT: &str = "age1dwzg8vr3px0f00e0t4jnylp9lqu46l8lfw6938xj45d9q39pn4nqw7dt8y";
    const FILES: [&str; 2] = [
        "6167652d656e6372797074696f6e2e6f72672f76310a2d3e20583235353139204e782f31636c71795866374b746f3064456d4839414f6459703044654b33395a4b6e7164396b636e61796b0a747554645663344e39596f4779697838634b7659444235462f52522f463472577069312f3568596d5951590a2d3e205f2d67726561736520647c4e42453a42770a6c534b7a3568474f7a7541584b6c306654577346576469354f62577941535739764849423346376c547952724a5136656f744944764976396f6a746752684d760a327270732b54674e62554176533579746b47696e574f6b4138305652426d704d6635777939686666766a64544c36733930770a2d2d2d206635656f6d6c48574c61743359782b33343946635a49446b6a737134497677634b565875485357356e65380ad264d845949654dff36eb9317706164b071c66e784ed8d306b74230d0f7172d06def06a12a3431",
        "6167652d656e6372797074696f6e2e6f72672f76310a2d3e20583235353139203958434c4d3368465677754e692f4149486376535a637145463841672f6b636c45677a596b6e6a705767550a37636f7a2f44585238537272454d71576850593551716a5178316c5545704b5632793154684b4571544e4d0a2d3e205832353531392073732f4c71325a425a6f7077463333654866696d36433079436c4f7a78544270523446494474657a51686b0a4c676351396e665a6b425a3554354d47356d44446f30755475567a566943546a4446586e646475714169510a2d3e2047634c376975333c2d677265617365203f480a4f6d377a72726b364641734c6c6e6b55783074366f47645162577a457345635a3175462f6346344e5a47707a4b376b574a576d626a2b62783449446e7432730a2d2d2d2037733078636a375369667a336b6f6d5959307454514150672f31594336337867685442526e512f4d43316b0a1bd7a852f02b2c130286feb49b70e905f25c2d69f611b6e1c4bc7be9315f4adf0868478c8c2503",
    ];

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|n| u8::from_str_radix(&hex[n..n + 2], 16).unwrap()).collect()
    }

    #[test]
    fn opens_what_age_has_encrypted() {
        let identities = Identity::parse_all(&format!("# created: today\n{IDENTITY}\n")).unwrap();
        assert_eq!(identities[0].recipient(), RECIPIENT.parse().unwrap());
        for file in FILES {
            assert_eq!(decrypt(&bytes(file), &identities).unwrap(), b"s3cret\n");
        }
    }

    #[test]
    fn every_recipient_opens_it_and_nobody_else() {
        let one = Identity(SecretBox::new(Box::new([7; 32])));
        let other = Identity(SecretBox::new(Box::new([8; 32])));
        let file = encrypt(b"s3cret", &[RECIPIENT.parse().unwrap(), one.recipient()]).unwrap();
        assert!(!String::from_utf8_lossy(&file).contains("s3cret"));
        for identities in [vec![one], Identity::parse_all(IDENTITY).unwrap()] {
            assert_eq!(decrypt(&file, &identities).unwrap(), b"s3cret");
        }
        let e = decrypt(&file, &[other]).unwrap_err();
        assert_eq!(e.what, "the encrypted token cannot be opened: it was encrypted for others than the identities given");
    }

    #[test]
    fn a_changed_byte_anywhere_is_noticed() {
        let identities = Identity::parse_all(IDENTITY).unwrap();
        let file = encrypt(b"s3cret", &[RECIPIENT.parse().unwrap()]).unwrap();
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert!(decrypt(&bad, &identities).is_err(), "byte {at}");
            assert!(decrypt(&file[..at], &identities).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn keys_are_not_mistaken() {
        assert!(IDENTITY.parse::<Recipient>().is_err() && "age1x".parse::<Recipient>().is_err());
        let e = Identity::parse_all(RECIPIENT).unwrap_err();
        assert!(!e.what.contains("age1"), "{}", e.what);
        assert!(Identity::parse_all("# nothing\n").is_err());
    }
}
