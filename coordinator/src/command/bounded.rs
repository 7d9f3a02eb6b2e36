//! Files that a user names, read up to a limit: what the file is or says of its size does not matter. A device or a pipe claims no size
//! and may never end, and a file may grow while it is read.

use std::io::Read;
use std::path::Path;

use crate::command::exit::{Failure, Outcome};

/// All bytes, or why not.
pub fn read_at_most(from: impl Read, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limit {
        return Err(format!("it has more than {limit} bytes, which is all that is read"));
    }
    Ok(bytes)
}

/// The bytes of a file, or of the standard input when it is `-`. That it can't be read, or is too large, is a mistake of the user's.
pub fn bytes(file: &Path, limit: u64) -> Outcome<Vec<u8>> {
    let wrong = |error: String| Failure::usage(format!("can't read `{}`: {error}", file.display()));
    if file.as_os_str() == "-" {
        return read_at_most(std::io::stdin().lock(), limit).map_err(wrong);
    }
    let opened = std::fs::File::open(file).map_err(|error| wrong(error.to_string()))?;
    read_at_most(opened, limit).map_err(wrong)
}

/// [`bytes`] of a text.
pub fn text(file: &Path, limit: u64) -> Outcome<String> {
    let not_text = |_| Failure::usage(format!("can't read `{}`: it is not UTF-8 text", file.display()));
    String::from_utf8(bytes(file, limit)?).map_err(not_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_read_up_to_the_limit() {
        let error = read_at_most(std::io::repeat(0), 1000).unwrap_err();
        assert!(error.contains("more than 1000 bytes"), "{error}");
        assert_eq!(read_at_most(&[7u8; 1000][..], 1000).unwrap().len(), 1000);
    }

    #[test]
    fn a_file_is_read_whole_or_its_name_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("v.json");
        std::fs::write(&file, "[1, 2]").unwrap();
        assert_eq!(text(&file, 6).unwrap(), "[1, 2]");
        for (limit, bytes, why) in [(5, &b"[1, 2]"[..], "more than 5 bytes"), (9, &[0xFF], "not UTF-8")] {
            std::fs::write(&file, bytes).unwrap();
            let failure = text(&file, limit).unwrap_err();
            assert_eq!(failure.exit as u8, 64);
            assert!(failure.to_string().contains("v.json") && failure.to_string().contains(why), "{failure}");
        }
        assert!(text(&folder.path().join("none"), 9).unwrap_err().to_string().contains("none"));
    }
}
