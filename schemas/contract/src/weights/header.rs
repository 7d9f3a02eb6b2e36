//! The header of a safetensors file: 8 bytes of length, then JSON that says where which tensor lies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::BATCH_COUNT;

/// Longest header that is read, as safetensors itself has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const METADATA: &str = "__metadata__";
/// Kinds of numbers that weights may have.
const WEIGHT_TYPES: [&str; 3] = ["F32", "F16", "BF16"];

/// What a file holds, without the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Free text by name.
    pub metadata: BTreeMap<String, String>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, HeaderTensor>,
    /// Where the values begin in the file.
    pub data_start: usize,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderTensor {
    /// `F32`, `I64`, …
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Begin and end of its bytes behind the header.
    pub data_offsets: [usize; 2],
}

impl Header {
    /// Reads the header of a whole file; the error says in words what it is instead.
    pub fn parse(file: &[u8]) -> Result<Self, String> {
        refuse_pickle(file)?;
        let none = || "no safetensors file: it is too short for a header".to_string();
        let (length, rest) = file.split_first_chunk::<8>().ok_or_else(none)?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_BYTES || length > rest.len() as u64 {
            return Err(format!("no intact safetensors file: its header would have {length} bytes"));
        }
        let (json, values) = rest.split_at(length as usize);
        let entries: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(json).map_err(|e| format!("no safetensors file: its header is no JSON: {e}"))?;
        let mut header = Self { metadata: BTreeMap::new(), tensors: BTreeMap::new(), data_start: 8 + json.len() };
        for (name, entry) in entries {
            let malformed = |e: serde_json::Error| format!("no intact safetensors file: `{name}`: {e}");
            if name == METADATA {
                header.metadata = serde_json::from_value(entry).map_err(malformed)?;
                continue;
            }
            let tensor: HeaderTensor = serde_json::from_value(entry).map_err(malformed)?;
            if tensor.data_offsets[0] > tensor.data_offsets[1] || tensor.data_offsets[1] > values.len() {
                return Err(format!("no intact safetensors file: `{name}` lies beyond its end"));
            }
            header.tensors.insert(name, tensor);
        }
        Ok(header)
    }

    /// Refuses a tensor whose numbers no model is read from; counts of batches are skipped.
    pub fn check_types(&self) -> Result<(), String> {
        let other = |(name, tensor): &(&String, &HeaderTensor)| {
            !name.ends_with(BATCH_COUNT) && !WEIGHT_TYPES.contains(&tensor.dtype.as_str())
        };
        match self.tensors.iter().find(other) {
            None => Ok(()),
            Some((name, tensor)) => Err(format!("`{name}` holds {}, expected F32, F16 or BF16", tensor.dtype)),
        }
    }

    /// The header as bytes, to be followed by the values as they were.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut entries = serde_json::Map::new();
        if !self.metadata.is_empty() {
            entries.insert(METADATA.into(), serde_json::json!(self.metadata));
        }
        entries.extend(self.tensors.iter().map(|(name, tensor)| (name.clone(), serde_json::json!(tensor))));
        let mut json = serde_json::to_vec(&entries).expect("names and numbers serialise to JSON");
        // Values start at a multiple of 8.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        bytes
    }

    /// Shapes by name.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
    }
}

/// PyTorch's own files run code when they are read.
fn refuse_pickle(file: &[u8]) -> Result<(), String> {
    if !(file.starts_with(b"PK\x03\x04") || file.starts_with(&[0x80, 0x02])) {
        return Ok(());
    }
    Err("a pickle of PyTorch, which runs code when it is read: only safetensors are taken. Convert it with\n  \
         python -c \"import torch; from safetensors.torch import save_file; w = torch.load('FILE.pth', \
         map_location='cpu', weights_only=True); save_file({k: v.contiguous() for k, v in w.get('state_dict', \
         w).items()}, 'FILE.safetensors')\""
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (Header, Vec<u8>) {
        let tensor = HeaderTensor { dtype: "F32".into(), shape: vec![2], data_offsets: [0, 8] };
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let header = Header { metadata, tensors: BTreeMap::from([("w".to_string(), tensor)]), data_start: 0 };
        let mut bytes = header.to_bytes();
        let header = Header { data_start: bytes.len(), ..header };
        bytes.extend([0; 8]);
        (header, bytes)
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let (header, bytes) = file();
        assert_eq!(header.data_start % 8, 0);
        assert_eq!(Header::parse(&bytes).unwrap(), header);
    }

    #[test]
    fn numbers_of_16_bits_are_weights_and_others_are_named() {
        let (mut header, _) = file();
        for (dtype, taken) in [("F32", true), ("F16", true), ("BF16", true), ("F64", false), ("F8_E4M3", false)] {
            header.tensors.get_mut("w").unwrap().dtype = dtype.into();
            assert_eq!(header.check_types().is_ok(), taken, "{dtype}");
        }
        let count = HeaderTensor { dtype: "I64".into(), shape: vec![], data_offsets: [0, 8] };
        header.tensors = BTreeMap::from([(format!("bn1.{BATCH_COUNT}"), count)]);
        assert_eq!(header.check_types(), Ok(()));
    }

    #[test]
    fn what_is_no_safetensors_is_said_in_words() {
        let (_, bytes) = file();
        for (bytes, word) in [
            (&b""[..], "too short"),
            (&bytes[..bytes.len() - 1], "beyond its end"),
            (&u64::MAX.to_le_bytes()[..], "would have"),
            (b"\x02\0\0\0\0\0\0\0[]", "no JSON"),
            (b"PK\x03\x04zip", "weights_only=True"),
            (b"\x80\x02pickle", "save_file"),
        ] {
            let error = Header::parse(bytes).unwrap_err();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
