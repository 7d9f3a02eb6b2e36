//! A model's weights for other programs.

use std::collections::BTreeMap;

use super::{Header, IMAGE_PREFIX};

/// Name of the description in a file's metadata.
pub const DESCRIPTION: &str = "likeness";

/// The same file with torchvision's names (`conv1.weight` … `fc.bias`), and with a description in its metadata; the
/// attribute tower keeps its `attributes.…`. The values stay as they are.
///
/// The error says what is wrong with the file.
pub fn export(file: &[u8], description: &str) -> Result<Vec<u8>, String> {
    let mut header = Header::parse(file)?;
    let renamed = |name: String| name.strip_prefix(IMAGE_PREFIX).map(String::from).unwrap_or(name);
    let tensors = std::mem::take(&mut header.tensors);
    header.tensors = tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
    header.metadata =
        BTreeMap::from([("format".to_string(), "pt".to_string()), (DESCRIPTION.to_string(), description.to_string())]);
    let mut bytes = header.to_bytes();
    bytes.extend_from_slice(&file[header.data_start..]);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::HeaderTensor;
    use super::*;

    #[test]
    fn names_become_torchvisions_and_values_stay() {
        let tensor = |from: usize| HeaderTensor { dtype: "U8".into(), shape: vec![2], data_offsets: [from, from + 2] };
        let names = ["image.conv1.weight", "image.fc.bias", "attributes.linear1.bias"];
        let tensors = names.iter().zip([0, 2, 4]).map(|(name, from)| (name.to_string(), tensor(from))).collect();
        let header = Header { metadata: BTreeMap::new(), tensors, data_start: 0 };
        let file = [header.to_bytes(), vec![1, 2, 3, 4, 5, 6]].concat();
        let exported = export(&file, "{}").unwrap();
        let header = Header::parse(&exported).unwrap();
        assert_eq!(header.metadata[DESCRIPTION], "{}");
        let value = |name: &str| exported[header.data_start + header.tensors[name].data_offsets[0]];
        assert_eq!([value("conv1.weight"), value("fc.bias"), value("attributes.linear1.bias")], [1, 3, 5]);
        assert_eq!(header.tensors.len(), 3);
    }
}
