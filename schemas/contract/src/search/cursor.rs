//! Cursors: where an answer ended, and all of its question, as text that clients hand back unread.
//!
//! The query's vector is part of it: whichever searcher goes on computes with the same numbers, so that pages laid end to end
//! are the one large answer, bit for bit. The text is base64url of eight bytes of SHA-256 and the message; the digest is
//! there against slips, not against malice, which a cursor gives nothing to gain by.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Encoding, Message, OldBody, Writer};
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
    /// Attributes that are explained: positions, and whether they are asked to be there.
    pub explain: Vec<(u32, bool)>,
}

impl Message for Cursor {
    const NAME: &'static str = "search-cursor";
    const VERSION: u16 = 2;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        match CursorV1::of(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(_version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        body.read::<CursorV1>(Self::NAME).map(Self::from)
    }
}

/// Version 1: nothing is explained.
#[derive(Debug, Serialize, Deserialize)]
struct CursorV1 {
    alias: Name,
    release: u64,
    model: JobId,
    generation: GenerationRef,
    vector: Vec<f32>,
    left_out: Vec<String>,
    filter: Vec<(u32, bool)>,
    recall: Option<f64>,
    answered: u32,
    d2: f64,
    item: String,
}

impl Message for CursorV1 {
    const NAME: &'static str = Cursor::NAME;
    const VERSION: u16 = 1;
}

impl CursorV1 {
    fn of(cursor: &Cursor) -> Option<Self> {
        let Cursor { alias, release, model, generation, vector, left_out, filter, recall, answered, d2, item, explain } =
            cursor.clone();
        explain.is_empty().then_some(Self {
            alias,
            release,
            model,
            generation,
            vector,
            left_out,
            filter,
            recall,
            answered,
            d2,
            item,
        })
    }
}

impl From<CursorV1> for Cursor {
    fn from(old: CursorV1) -> Self {
        let CursorV1 { alias, release, model, generation, vector, left_out, filter, recall, answered, d2, item } = old;
        let explain = Vec::new();
        Self { alias, release, model, generation, vector, left_out, filter, recall, answered, d2, item, explain }
    }
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
            explain: vec![],
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
