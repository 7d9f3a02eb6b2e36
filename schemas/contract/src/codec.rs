//! How a message becomes bytes: an envelope with type and version around bincode 2 or JSON.
//!
//! Inside the system messages travel as bincode; every public request, reply and every stored document can
//! be JSON. So no shared type may use what bincode cannot carry (`flatten`, `untagged`, internally tagged
//! enums, `skip_serializing_if`). A version rises when a field is added or changed; every past version
//! decodes for ever (`Message::upgrade`, golden files under `schemas/golden`), and a message that says nothing new is still
//! written in the version that had all of it (`Message::write`), so that older programs read it.
//!
//! Bincode form: the four bytes `LKN1`, the header (name, version), the body, nothing after it.
//! JSON form: `{"message": name, "version": n, "body": …}`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Most bytes that are decoded as one message: the broker's default payload limit.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Most bytes that are decoded as one stored JSON document.
pub const MAX_DOCUMENT_BYTES: usize = 256 << 20;
/// Bincode's decoder counts every integer at its full width, eight times the one byte that a small one takes.
const DECODE_BUDGET: usize = 8 * MAX_MESSAGE_BYTES;
const MAGIC: &[u8; 4] = b"LKN1";

/// Something that travels or is stored inside an envelope.
pub trait Message: Serialize + DeserializeOwned {
    /// Name in the envelope.
    const NAME: &'static str;
    /// Newest version that this program writes and reads.
    const VERSION: u16;

    /// Hands the oldest form to `writer` that says all of it: the newest one, unless a type that has older ones says otherwise.
    fn write<W: Writer>(&self, writer: W) -> W::Output {
        writer.newest(self)
    }

    /// Reads a body of an older version; `decode` calls it for `version < VERSION` only.
    fn upgrade(version: u16, _body: OldBody<'_>) -> Result<Self, CodecError> {
        Err(CodecError::Malformed { message: Self::NAME, detail: format!("version {version} was never written") })
    }
}

/// Takes the form of a message that is to be written: the message itself, or a past version of it.
pub trait Writer {
    /// What comes of it.
    type Output;

    /// Takes this very type, in its own version.
    fn newest<M: Message>(self, message: &M) -> Self::Output;
}

/// The undecoded body of a message of an older version.
#[derive(Debug)]
pub enum OldBody<'a> {
    /// Bincode bytes after the header.
    Bincode(&'a [u8]),
    /// The `body` of the JSON envelope.
    Json(serde_json::Value),
}

impl OldBody<'_> {
    /// The body as the type that it had. `message` names it in errors.
    pub fn read<T: DeserializeOwned>(self, message: &'static str) -> Result<T, CodecError> {
        let malformed = |detail: String| CodecError::Malformed { message, detail };
        match self {
            Self::Bincode(bytes) => body_of(bytes).map_err(malformed),
            Self::Json(value) => serde_json::from_value(value).map_err(|e| malformed(e.to_string())),
        }
    }
}

/// One of the two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Compact; between our own processes.
    Bincode,
    /// For other programs and for stored documents.
    Json,
}

impl Encoding {
    /// Value of the `content-type` header.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Bincode => "application/x-likeness",
            Self::Json => "application/json",
        }
    }

    /// The form that a `content-type` header names; bincode without one, unless the bytes start with `{`.
    pub fn detect(content_type: Option<&str>, bytes: &[u8]) -> Self {
        match content_type {
            Some(value) if value.starts_with("application/json") => Self::Json,
            None if bytes.first() == Some(&b'{') => Self::Json,
            _ => Self::Bincode,
        }
    }
}

/// Why bytes are no message. Kinds differ in what the receiver does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes will never decode: drop them.
    #[error("malformed `{message}`: {detail}")]
    Malformed {
        /// Message that was expected.
        message: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// A newer program wrote it: give it back for an upgraded receiver.
    #[error("`{message}` has version {found}, this program knows up to {known}: upgrade it")]
    Newer {
        /// Message that was expected.
        message: &'static str,
        /// Version in the envelope.
        found: u16,
        /// Newest version known here.
        known: u16,
    },
    /// Over the limit for one message.
    #[error("`{message}` of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Message concerned.
        message: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct Header {
    name: String,
    version: u16,
}

#[derive(Serialize)]
struct JsonEnvelope<'a, T> {
    message: &'a str,
    version: u16,
    body: &'a T,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonEnvelopeIn {
    message: String,
    version: u16,
    body: serde_json::Value,
}

fn bincode_config() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<DECODE_BUDGET>,
> {
    bincode::config::standard().with_limit::<DECODE_BUDGET>()
}

/// Message → bytes, in the oldest version that says all of it. Fails with `TooLarge` over [`MAX_MESSAGE_BYTES`].
pub fn encode<M: Message>(message: &M, encoding: Encoding) -> Result<Vec<u8>, CodecError> {
    message.write(encoding)
}

impl Writer for Encoding {
    type Output = Result<Vec<u8>, CodecError>;

    fn newest<M: Message>(self, message: &M) -> Self::Output {
        let malformed = |detail: String| CodecError::Malformed { message: M::NAME, detail };
        let bytes = match self {
            Self::Bincode => {
                let header = Header { name: M::NAME.into(), version: M::VERSION };
                let config = bincode::config::standard();
                let mut bytes = MAGIC.to_vec();
                bytes.extend(bincode::serde::encode_to_vec(&header, config).map_err(|e| malformed(e.to_string()))?);
                bytes.extend(bincode::serde::encode_to_vec(message, config).map_err(|e| malformed(e.to_string()))?);
                bytes
            }
            Self::Json => {
                let envelope = JsonEnvelope { message: M::NAME, version: M::VERSION, body: message };
                serde_json::to_vec(&envelope).map_err(|e| malformed(e.to_string()))?
            }
        };
        within_limit::<M>(&bytes, MAX_MESSAGE_BYTES)?;
        Ok(bytes)
    }
}

/// Bytes → message. Memory is bounded by a small multiple of [`MAX_MESSAGE_BYTES`] whatever the bytes say.
pub fn decode<M: Message>(bytes: &[u8], encoding: Encoding) -> Result<M, CodecError> {
    within_limit::<M>(bytes, MAX_MESSAGE_BYTES)?;
    match encoding {
        Encoding::Bincode => decode_bincode(bytes),
        Encoding::Json => decode_json(bytes),
    }
}

/// Message → indented JSON for an object in the store, in the oldest version that says all of it; ends with a newline. No
/// size limit.
pub fn encode_document<M: Message>(message: &M) -> Vec<u8> {
    message.write(Document)
}

/// Writes documents.
struct Document;

impl Writer for Document {
    type Output = Vec<u8>;

    fn newest<M: Message>(self, message: &M) -> Vec<u8> {
        let envelope = JsonEnvelope { message: M::NAME, version: M::VERSION, body: message };
        let mut bytes = serde_json::to_vec_pretty(&envelope).expect("contract types serialise to JSON");
        bytes.push(b'\n');
        bytes
    }
}

/// Reads what [`encode_document`] wrote; at most [`MAX_DOCUMENT_BYTES`].
pub fn decode_document<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    within_limit::<M>(bytes, MAX_DOCUMENT_BYTES)?;
    decode_json(bytes)
}

fn within_limit<M: Message>(bytes: &[u8], limit: usize) -> Result<(), CodecError> {
    if bytes.len() <= limit {
        return Ok(());
    }
    Err(CodecError::TooLarge { message: M::NAME, bytes: bytes.len(), limit })
}

fn check_header<M: Message>(name: &str, version: u16) -> Result<(), CodecError> {
    if name != M::NAME {
        let detail = format!("the envelope says `{}`", name.chars().take(60).collect::<String>());
        return Err(CodecError::Malformed { message: M::NAME, detail });
    }
    if version > M::VERSION {
        return Err(CodecError::Newer { message: M::NAME, found: version, known: M::VERSION });
    }
    Ok(())
}

fn decode_bincode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    let malformed = |detail: String| CodecError::Malformed { message: M::NAME, detail };
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| malformed("no `LKN1` at its start".into()))?;
    let (header, used): (Header, usize) =
        bincode::serde::decode_from_slice(rest, bincode_config()).map_err(|e| malformed(e.to_string()))?;
    check_header::<M>(&header.name, header.version)?;
    let body = &rest[used..];
    if header.version < M::VERSION {
        return M::upgrade(header.version, OldBody::Bincode(body));
    }
    body_of(body).map_err(malformed)
}

fn body_of<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let (message, used): (T, usize) =
        bincode::serde::decode_from_slice(body, bincode_config()).map_err(|e| e.to_string())?;
    if used != body.len() {
        return Err(format!("{} bytes after its end", body.len() - used));
    }
    Ok(message)
}

fn decode_json<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    let malformed = |e: serde_json::Error| CodecError::Malformed { message: M::NAME, detail: e.to_string() };
    let envelope: JsonEnvelopeIn = serde_json::from_slice(bytes).map_err(malformed)?;
    check_header::<M>(&envelope.message, envelope.version)?;
    if envelope.version < M::VERSION {
        return M::upgrade(envelope.version, OldBody::Json(envelope.body));
    }
    serde_json::from_value(envelope.body).map_err(malformed)
}

/// Serde form of raw bytes: base64 in JSON, as they are in bincode.
pub mod raw_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    /// Writes the bytes.
    pub fn serialize<S: Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&STANDARD.encode(bytes))
        } else {
            bytes.serialize(serializer)
        }
    }

    /// Reads the bytes.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            STANDARD.decode(text.as_bytes()).map_err(|e| D::Error::custom(format!("not base64: {e}")))
        } else {
            Vec::deserialize(deserializer)
        }
    }
}
