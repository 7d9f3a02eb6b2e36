//! Who we are to NATS: user and password in the address, or a credentials file.
//!
//! Whoever may listen to `_INBOX.>` reads every reply on the server, so each user has inboxes of its own below
//! [`inbox`], and a server that is set up well allows no others.

use std::path::Path;

use async_nats::{ConnectOptions, ServerAddr};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// Below it lie all inboxes of a user: an NKEY's public key, or a user's name.
pub fn inbox(user: &str) -> String {
    format!("_INBOX.{user}")
}

/// What proves who we are.
#[derive(PartialEq)]
enum Proof {
    Nothing,
    Token(String),
    Password { user: String, password: String },
    Nkey { seed: String, user: String },
    Jwt { creds: String, user: String },
}

/// Adds what the address or the credentials file says. A file comes before the address.
pub(crate) fn log_in(
    options: ConnectOptions,
    servers: &[ServerAddr],
    credentials: Option<&Path>,
) -> Result<ConnectOptions> {
    let proof = match credentials {
        Some(path) => read(path)?,
        None => in_address(servers),
    };
    let own = |options: ConnectOptions, user: &str| options.custom_inbox_prefix(inbox(user));
    Ok(match proof {
        Proof::Nothing => options,
        Proof::Token(token) => options.token(token),
        Proof::Password { user, password } if is_token(&user) => own(options, &user).user_and_password(user, password),
        Proof::Password { user, password } => options.user_and_password(user, password),
        Proof::Nkey { seed, user } => own(options, &user).nkey(seed),
        Proof::Jwt { creds, user } => own(options, &user)
            .credentials(&creds)
            .map_err(|e| Error::new(ErrorKind::Invalid, "can't use the credentials file").because(e))?,
    })
}

/// Whether a name can be one token of a subject.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// User and password, or a token, of the first address that has one: the client library does not look for them.
fn in_address(servers: &[ServerAddr]) -> Proof {
    let plain = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let found = servers.iter().find_map(|server| Some((plain(server.username()?), server.password().map(plain))));
    match found {
        Some((user, Some(password))) => Proof::Password { user, password },
        Some((token, None)) => Proof::Token(token),
        None => Proof::Nothing,
    }
}

fn read(path: &Path) -> Result<Proof> {
    let unusable = |why: String| {
        Error::new(ErrorKind::Invalid, format!("can't use the credentials file `{}`: {why}", path.display()))
    };
    let text = std::fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
    proof_of(&text).map_err(unusable)
}

/// An error never shows what stands in the file.
fn proof_of(text: &str) -> std::result::Result<Proof, String> {
    let seed = text.trim();
    if seed.starts_with("SU") {
        let pair = KeyPair::from_seed(seed).map_err(|_| "it is no NKEY seed of a user".to_string())?;
        return Ok(Proof::Nkey { seed: seed.to_string(), user: pair.public_key() });
    }
    let user = subject_of_jwt(text).ok_or("it is neither a .creds file nor an NKEY seed of a user")?;
    Ok(Proof::Jwt { creds: text.to_string(), user })
}

/// `sub` of the JWT in a `.creds` file: the user's public key.
fn subject_of_jwt(creds: &str) -> Option<String> {
    let jwt = creds.lines().skip_while(|line| !line.contains("BEGIN NATS USER JWT")).nth(1)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(jwt.trim().split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims["sub"].as_str().map(str::to_string)
}

/// A new NKEY of a user: its seed, which proves it, and its public key, which names it.
pub fn new_nkey() -> Result<(String, String)> {
    let pair = KeyPair::new_user();
    let seed = pair.seed().map_err(|e| Error::new(ErrorKind::Transient, "can't make a key").because(e))?;
    Ok((seed, pair.public_key()))
}

/// The public key of an NKEY seed.
pub fn public_nkey(seed: &str) -> Result<String> {
    match proof_of(seed).map_err(|why| Error::new(ErrorKind::Invalid, why))? {
        Proof::Nkey { user, .. } => Ok(user),
        _ => Err(Error::new(ErrorKind::Invalid, "it is no NKEY seed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(url: &str) -> Vec<ServerAddr> {
        url.split(',').map(|part| part.parse().unwrap()).collect()
    }

    #[test]
    fn a_password_with_special_characters_is_written_as_in_any_url() {
        let (user, password) = ("a@b".to_string(), "s:cret/".to_string());
        let found = in_address(&servers("nats://host-a:4222,nats://a%40b:s%3Acret%2F@host-b:4333"));
        assert!(found == Proof::Password { user, password });
        assert!(in_address(&servers("nats://host")) == Proof::Nothing);
    }

    #[test]
    fn a_user_is_named_by_the_key_of_its_file() {
        let (seed, public) = new_nkey().unwrap();
        assert!(public.starts_with('U'));
        assert_eq!(public_nkey(&format!("{seed}\n")).unwrap(), public);
        let claims = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"{public}"}}"#));
        let creds = format!("-----BEGIN NATS USER JWT-----\nhead.{claims}.signature\n------END NATS USER JWT------\n");
        let Ok(Proof::Jwt { user, .. }) = proof_of(&creds) else { panic!("a .creds file") };
        assert_eq!(user, public);
    }

    #[test]
    fn a_file_that_proves_nothing_is_refused_and_never_shown() {
        for wrong in ["SUsecret", "", "secret", "-----BEGIN NATS USER JWT-----\nsecret\n"] {
            let Err(why) = proof_of(wrong) else { panic!("`{wrong}` is taken") };
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
