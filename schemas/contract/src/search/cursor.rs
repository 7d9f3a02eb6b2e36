//! Cursors: where an answer ended, and all of its question, as text that clients hand back unread.
//!
//! The query's vector is part of it: whichever searcher goes on computes with the same numbers, so that pages laid end to end
//! are the one large answer, bit for bit. The text is base64url of eight bytes of SHA-256 and the message; the digest is
//! there against slips, not against malice, which a cursor gives nothing to gain by.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Encoding, Message};
use crate::ids::{Digest, JobId, Name};
use crate::jobs::GenerationRef;

/// Bytes of the digest.
const SUM_BYTES: usize = 8;
/// Longest text that is looked at.
const MAX_TEXT: usize = 1 << 20;

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// The alias that was asked.
    pub alias: Name,
    /// The release that answers, to the end.
    pub release: u64,
    /// Its model.
    pub model: JobId,
    /// Its generation.
    pub generation: GenerationRef,
    /// The query: a unit vector of dimension D.
    pub vector: Vec<f32>,
    /// Items that are left out: those that were asked for.
    pub left_out: Vec<String>,
    /// Known labels that results have: an attribute's position, and whether it is there.
    pub filter: Vec<(u32, bool)>,
    /// See [`super::SearchRequest::recall`].
    pub recall: Option<f64>,
    /// Results up to here.
    pub answered: u32,
    /// d² of the last of them,
    pub d2: f64,
    /// and its item: whatever ranks after them follows.
    pub item: String,
}

impl Message for Cursor {
    const NAME: &'static str = "search-cursor";
    const VERSION: u16 = 1;
}

impl Cursor {
    /// The text that stands for it.
    pub fn to_text(&self) -> Result<String, CodecError> {
        let message = codec::encode(self, Encoding::Bincode)?;
        let digest = Digest::of(&message);
        Ok(URL_SAFE_NO_PAD.encode([&digest.as_bytes()[..SUM_BYTES], &message].concat()))
    }

    /// Reads [`Self::to_text`]. Fails with `Malformed` for what no searcher made, and with `Newer` for what a newer one made.
    pub fn from_text(text: &str) -> Result<Self, CodecError> {
        let malformed = |detail: &str| CodecError::Malformed { message: Self::NAME, detail: detail.into() };
        if text.len() > MAX_TEXT {
            return Err(malformed("it is too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| malformed("it was cut off or changed"))?;
        let (sum, message) = bytes.split_at_checked(SUM_BYTES).ok_or_else(|| malformed("it was cut off"))?;
        if sum != &Digest::of(message).as_bytes()[..SUM_BYTES] {
            return Err(malformed("it was cut off or changed"));
        }
        codec::decode(message, Encoding::Bincode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> Cursor {
        let job = JobId::new("j").unwrap();
        Cursor {
            alias: Name::new("main").unwrap(),
            release: 3,
            model: job.clone(),
            generation: GenerationRef { gallery: Name::new("g").unwrap(), generation: job },
            vector: vec![0.6, 0.8],
            left_out: vec!["a.jpg".into()],
            filter: vec![(2, false)],
            recall: None,
            answered: 20,
            d2: 0.1 + 0.2,
            item: "b.jpg".into(),
        }
    }

    #[test]
    fn a_cursor_is_what_it_was() {
        let text = cursor().to_text().unwrap();
        assert!(
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)),
            "safe in a URL: {text}"
        );
        assert_eq!(Cursor::from_text(&text).unwrap(), cursor());
        assert_eq!(Cursor::from_text(&format!(" {text}\n")).unwrap(), cursor());
    }

    #[test]
    fn a_changed_cursor_is_refused() {
        let text = cursor().to_text().unwrap();
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            let error = Cursor::from_text(&changed).unwrap_err();
            assert!(matches!(error, CodecError::Malformed { .. }), "{at}: {error}");
        }
        for cut in 0..text.len() {
            assert!(Cursor::from_text(&text[..cut]).is_err(), "{cut}");
        }
        assert!(Cursor::from_text("not a cursor").unwrap_err().to_string().contains("cut off or changed"));
    }
}
