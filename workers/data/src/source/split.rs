//! Which split a row belongs to when the source does not say: by name, or by a hash of the item id.

use likeness_contract::ids::Digest;

/// Words for the splits, as data sets on the Hugging Face hub and elsewhere use them.
const NAMES: [(&str, u8); 9] = [
    ("train", 0),
    ("training", 0),
    ("valid", 1),
    ("validation", 1),
    ("val", 1),
    ("dev", 1),
    ("test", 2),
    ("testing", 2),
    ("eval", 2),
];

/// Names of the column that tells the split, in the order in which they are looked for.
pub(super) const COLUMNS: [&str; 3] = ["split", "partition", "fold"];

/// The split that a word names.
pub(super) fn named(word: &str) -> Option<u8> {
    let word = word.trim().to_ascii_lowercase();
    NAMES.iter().find(|(name, _)| *name == word).map(|(_, split)| *split)
}

/// The split that a cell of a split column names.
pub(crate) fn of_word(word: &str) -> Option<u8> {
    match word.trim() {
        "0" => Some(0),
        "1" => Some(1),
        "2" => Some(2),
        word => named(word),
    }
}

/// The split that a file's name begins with: `train-00000-of-00002.parquet`, `test.parquet`.
pub(super) fn of_file(path: &str) -> Option<u8> {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    named(name.split(|c: char| !c.is_ascii_alphabetic()).next()?)
}

/// 80 % train, 10 % validation, 10 % test by a hash of the item id: the same wherever the item turns up.
pub(super) fn by_hash(item: &str) -> u8 {
    let digest = Digest::of(item.as_bytes());
    let bucket = u16::from_be_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]) % 10;
    match bucket {
        8 => 1,
        9 => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_as_on_the_hub_name_their_split() {
        assert_eq!(of_file("data/train-00000-of-00019.parquet"), Some(0));
        assert_eq!(of_file("/x/valid-00000-of-00003-ab12.parquet"), Some(1));
        assert_eq!(of_file("validation.parquet"), Some(1));
        assert_eq!(of_file("test_0.parquet"), Some(2));
        assert_eq!(of_file("trainers.parquet"), None);
        assert_eq!(of_file("avatars.parquet"), None);
    }

    #[test]
    fn hash_splits_eighty_ten_ten_and_never_changes() {
        let mut rows = [0u32; 3];
        (0..10_000).for_each(|i| rows[usize::from(by_hash(&format!("{i:06}.jpg")))] += 1);
        assert!(rows[0].abs_diff(8000) < 200 && rows[1].abs_diff(1000) < 120, "{rows:?}");
        assert_eq!(["a", "b", "c", "d"].map(by_hash), ["a", "b", "c", "d"].map(by_hash));
    }
}
