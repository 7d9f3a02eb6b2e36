//! Telling another program over HTTP that something happened, signed as the Standard Webhooks specification says.
//!
//! One [`WebhookSender::post`] is one attempt: who must not lose a message tries again and remembers what arrived.
//! A receiver tells messages apart by `webhook-id`, which is the same in every attempt. Redirects are not followed:
//! a message goes where its owner said or nowhere. A URL may hold a token, so neither errors nor logs name more of
//! it than its host.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{StatusCode, redirect};
use ring::hmac;
use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// Most bytes of a body.
const MAX_BODY_BYTES: usize = 64 << 10;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the answer's head, the connection included; its body is never read.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Beginning of a secret that is written in base64.
const BASE64_PREFIX: &str = "whsec_";
/// Fewest bytes of a secret, as the specification recommends.
const MIN_SECRET_BYTES: usize = 24;

/// Secrets that messages are signed with; several while one takes the place of another.
#[derive(Clone, Default)]
pub struct WebhookSecrets(Vec<hmac::Key>);

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookSecrets({})", self.0.len())
    }
}

impl WebhookSecrets {
    /// One a line: `whsec_` and base64, or the secret itself. Empty lines are left out.
    ///
    /// # Errors
    /// `Invalid` for base64 that is none and for a short secret; the error does not repeat it.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.map(key).collect::<Result<Vec<_>>>().map(Self)
    }

    /// From a file.
    ///
    /// # Errors
    /// `Invalid` when it can't be read or holds no secret, and as [`WebhookSecrets::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        let invalid = |why: &str| Error::new(ErrorKind::Invalid, format!("`{}` {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| invalid("can't be read").because(e))?;
        let secrets = Self::parse(&text).map_err(|e| invalid("holds no secrets for webhooks").because(e))?;
        if secrets.is_empty() { Err(invalid("holds no secret for webhooks")) } else { Ok(secrets) }
    }

    /// Whether there is none: messages go out unsigned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `v1,<base64>` for every secret, with blanks between; none without secrets.
    fn signatures(&self, id: &str, timestamp_s: u64, body: &[u8]) -> Option<String> {
        let signed = [format!("{id}.{timestamp_s}.").as_bytes(), body].concat();
        let sign = |key| format!("v1,{}", STANDARD.encode(hmac::sign(key, &signed)));
        let signatures: Vec<String> = self.0.iter().map(sign).collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

fn key(line: &str) -> Result<hmac::Key> {
    let invalid = |why: &str| Error::new(ErrorKind::Invalid, format!("a secret for webhooks {why}"));
    let secret = match line.strip_prefix(BASE64_PREFIX) {
        // The library's own error would repeat a part of it.
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| invalid("is no base64 after `whsec_`"))?,
        None => line.as_bytes().to_vec(),
    };
    if secret.len() < MIN_SECRET_BYTES {
        return Err(invalid(&format!("has {} bytes, expected at least {MIN_SECRET_BYTES}", secret.len())));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &secret))
}

/// Sends messages. Cheap to clone.
#[derive(Debug, Clone)]
pub struct WebhookSender {
    http: reqwest::Client,
    secrets: WebhookSecrets,
}

impl WebhookSender {
    /// A sender that signs with `secrets`.
    ///
    /// # Errors
    /// `Refused` when this machine offers no certificates to trust.
    pub fn new(secrets: WebhookSecrets) -> Result<Self> {
        crate::install_crypto();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("likeness/", env!("CARGO_PKG_VERSION")))
            .build();
        let http = http.map_err(|e| Error::new(ErrorKind::Refused, "webhooks can't be sent").because(e))?;
        Ok(Self { http, secrets })
    }

    /// Posts a JSON body once.
    ///
    /// # Errors
    /// `Invalid` when no attempt can work (no such scheme, a body over 64 KiB, a receiver that answers 410 Gone), else
    /// `Transient`.
    pub async fn post(&self, url: &str, id: &str, timestamp_s: u64, body: Vec<u8>) -> Result<()> {
        let url = address(url)?;
        if body.len() > MAX_BODY_BYTES {
            let what = format!("a webhook of {} bytes is over the limit of {MAX_BODY_BYTES}", body.len());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let headers = self.headers(id, timestamp_s, &body)?;
        let host = url.host_str().unwrap_or_default().to_string();
        let sent = self.http.post(url).headers(headers).body(body).send().await;
        let answer = sent.map_err(|e| failed(&host, "does not answer").because(e.without_url()))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            StatusCode::GONE => {
                Err(Error::new(ErrorKind::Invalid, format!("`{host}` wants no more webhooks (410 Gone)")))
            }
            status if status.is_redirection() => {
                Err(failed(&host, &format!("answered {status}, redirects are not followed")))
            }
            status => Err(failed(&host, &format!("answered {status}"))),
        }
    }

    fn headers(&self, id: &str, timestamp_s: u64, body: &[u8]) -> Result<HeaderMap> {
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|e| Error::new(ErrorKind::Invalid, "a webhook's id is no header").because(e))
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(HeaderName::from_static("webhook-id"), value(id)?);
        headers.insert(HeaderName::from_static("webhook-timestamp"), HeaderValue::from(timestamp_s));
        if let Some(signatures) = self.secrets.signatures(id, timestamp_s, body) {
            headers.insert(HeaderName::from_static("webhook-signature"), value(&signatures)?);
        }
        Ok(headers)
    }
}

fn failed(host: &str, what: &str) -> Error {
    Error::new(ErrorKind::Transient, format!("the webhook's receiver `{host}` {what}"))
}

/// A URL that a message may be sent to.
fn address(text: &str) -> Result<Url> {
    let invalid = |why: &str| Error::new(ErrorKind::Invalid, format!("a webhook's URL {why}"));
    let url = Url::parse(text).map_err(|e| invalid("is none").because(e))?;
    match url.scheme() {
        "http" | "https" if url.username().is_empty() && url.password().is_none() => Ok(url),
        "http" | "https" => Err(invalid("names a user")),
        _ => Err(invalid("is neither http nor https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn signatures(secrets: &str) -> Option<String> {
        WebhookSecrets::parse(secrets).unwrap().signatures("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, BODY)
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signatures(SECRET).unwrap(), expected);
        assert_eq!(signatures(""), None);
    }

    #[test]
    fn while_secrets_change_both_sign() {
        let both = signatures(&format!("{SECRET}\n\n  an-old-secret-of-some-length\n")).unwrap();
        let both: Vec<&str> = both.split(' ').collect();
        assert_eq!(both[0], signatures(SECRET).unwrap());
        assert_eq!(both[1], signatures("an-old-secret-of-some-length").unwrap());
        assert_ne!(both[0], both[1]);
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secrets = WebhookSecrets::parse("this-is-a-secret-that-nobody-sees").unwrap();
        assert_eq!(format!("{secrets:?}"), "WebhookSecrets(1)");
        for wrong in ["whsec_abcdefgh!ijklmnop", "short-secret", "whsec_c2hvcnQ="] {
            let error = crate::error::chain(&WebhookSecrets::parse(wrong).unwrap_err());
            assert!(!error.contains("abcdefgh") && !error.contains("short-secret"), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        assert_eq!(WebhookSecrets::read(&path).unwrap_err().kind, ErrorKind::Invalid);
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(WebhookSecrets::read(&path).unwrap_err().kind, ErrorKind::Invalid);
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        assert!(!WebhookSecrets::read(&path).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_no_attempt_can_send_is_invalid() {
        let sender = WebhookSender::new(WebhookSecrets::default()).unwrap();
        for url in ["ftp://host/x", "file:///etc/passwd", "no url", "http://user:secret@host/"] {
            let error = sender.post(url, "id", 0, b"{}".to_vec()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{url}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let large = sender.post("http://127.0.0.1:9/", "id", 0, vec![b' '; MAX_BODY_BYTES + 1]).await.unwrap_err();
        assert_eq!(large.kind, ErrorKind::Invalid);
    }

    #[tokio::test]
    async fn nobody_who_listens_is_worth_another_attempt_and_the_token_is_not_told() {
        let sender = WebhookSender::new(WebhookSecrets::default()).unwrap();
        let error = sender.post("http://127.0.0.1:1/hook?token=hidden", "id", 0, b"{}".to_vec()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Transient);
        assert!(!crate::error::chain(&error).contains("hidden"), "{error}");
    }
}
