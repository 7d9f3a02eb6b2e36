//! A folder of images, as `ImageFolder` of torchvision and `imagefolder` of the Hugging Face hub have it.
//!
//! An image's item id is its path below the folder. The folder that it lies in names an attribute that it has; other
//! attributes that folders are named after it has not; attributes that no folder is named after, such as all of a vocabulary
//! that was told for images without labels, are not known. A first folder named as a split (`train`, `val`, `test`) tells the
//! split and is no attribute; else it is 80/10/10 by a hash of the item id. Files whose names do not end as those of images,
//! and those that begin with a dot, are left out.

use std::collections::{BTreeSet, HashMap};

use likeness_contract::settings::Vocabulary;

use super::{Files, Places, check_names, split};
use crate::error::{Error, Result};
use crate::rows::{Place, Scan, ScanRow};

/// Endings of the images that can be read.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Lists the rows; images are not looked at. `told` is the vocabulary, if folders are not to name it.
pub(super) fn scan(dir: &str, told: Option<&[String]>, files: &dyn Files) -> Result<Scan> {
    if !files.is_folder(dir).map_err(|e| Error::io(dir, e))? {
        return Err(Error::invalid(format!("`{dir}` is no folder")));
    }
    let listed = files.list(dir).map_err(|e| Error::io(dir, e))?;
    let (paths, others): (Vec<String>, Vec<String>) =
        listed.into_iter().filter(|path| !is_hidden(path)).partition(|path| is_image(path));
    if paths.is_empty() {
        return Err(Error::invalid(format!("`{dir}` has no image: no name ends in .{}", ENDINGS.join(", ."))));
    }
    let mut warnings = Vec::new();
    if let Some(first) = others.first() {
        let count = others.len();
        warnings.push(format!("{count} files that are no images by their names were left out, the first `{first}`"));
    }
    let (vocabulary, by_folder) = attributes(dir, &paths, told, &mut warnings)?;
    let mut by_hash = 0;
    let row = |path: String| {
        let (named, folder) = place_of(&path);
        by_hash += usize::from(named.is_none());
        let split = named.unwrap_or_else(|| split::by_hash(&path));
        let own = folder.and_then(|folder| by_folder.get(folder).copied());
        let mut labels = vec![0i8; vocabulary.len()];
        if let Some(own) = own {
            by_folder.values().for_each(|attribute| labels[*attribute] = -1);
            labels[own] = 1;
        }
        let place = Place::File { path: path.clone() };
        ScanRow { item: path, place, attributes: labels, split, problem: None }
    };
    let rows: Vec<ScanRow> = paths.into_iter().map(row).collect();
    if by_hash > 0 {
        let of = rows.len();
        warnings.push(format!(
            "no folder tells the split of {by_hash} of {of} rows: assigned 80/10/10 by a hash of the item id"
        ));
    }
    let places = Places { dir: dir.into(), files: Vec::new() };
    let zeros = vec![None; vocabulary.len()];
    Ok(Scan { vocabulary: Vocabulary { names: vocabulary }, rows, warnings, places, zeros })
}

/// The attributes, and which of them a folder stands for.
fn attributes(
    dir: &str,
    paths: &[String],
    told: Option<&[String]>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<String>, HashMap<String, usize>)> {
    let folders: BTreeSet<&str> = paths.iter().filter_map(|path| place_of(path).1).collect();
    let vocabulary: Vec<String> = match told {
        Some(told) => told.to_vec(),
        None => folders.iter().map(ToString::to_string).collect(),
    };
    if vocabulary.is_empty() {
        return Err(Error::invalid(format!(
            "`{dir}`: no folder below it names an attribute; tell which attributes its images may have, all of them not known"
        )));
    }
    check_names(&format!("`{dir}`"), &vocabulary)?;
    let position = |folder: &str| vocabulary.iter().position(|name| name.eq_ignore_ascii_case(folder));
    let by_folder: HashMap<String, usize> =
        folders.iter().filter_map(|folder| Some((folder.to_string(), position(folder)?))).collect();
    let others: Vec<&str> = folders.into_iter().filter(|folder| !by_folder.contains_key(*folder)).collect();
    if !others.is_empty() {
        warnings.push(format!("folders that are no attributes: `{}`", others.join("`, `")));
    }
    Ok((vocabulary, by_folder))
}

/// The split that the first folder names, and the folder that names an attribute.
fn place_of(path: &str) -> (Option<u8>, Option<&str>) {
    let folders: Vec<&str> = path.split('/').collect();
    let folders = &folders[..folders.len() - 1];
    let split = folders.first().and_then(|first| split::named(first));
    let of_attributes = if split.is_some() { &folders[1..] } else { folders };
    (split, of_attributes.last().copied())
}

fn is_image(path: &str) -> bool {
    let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

fn is_hidden(path: &str) -> bool {
    path.split('/').any(|name| name.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use likeness_contract::jobs::{CsvColumns, IngestSource, LabelWords, ReadFrom, ReadSource};
    use tempfile::TempDir;

    use super::*;
    use crate::source::{Disk, read_rows, scan_from};
    use crate::testing::fixture;
    use std::sync::Arc;

    fn folder(paths: &[&str]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for path in paths {
            let file = dir.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, fixture("rgb.jpg")).unwrap();
        }
        dir
    }

    fn scanned(dir: &TempDir, attributes: &[&str], base: Option<&Vocabulary>) -> Result<Scan> {
        let columns =
            CsvColumns { attributes: attributes.iter().map(ToString::to_string).collect(), ..Default::default() };
        let from = ReadFrom::Folder { dir: dir.path().to_str().unwrap().into() };
        let source = IngestSource::Read(Box::new(ReadSource { from, columns, labels: LabelWords::default() }));
        scan_from(&source, Arc::new(Disk), base)
    }

    fn rows(scan: &Scan) -> Vec<(&str, &[i8], u8)> {
        scan.rows.iter().map(|row| (row.item.as_str(), row.attributes.as_slice(), row.split)).collect()
    }

    #[test]
    fn folders_name_attributes_and_splits() {
        let paths =
            ["train/cat/1.jpg", "train/dog/2.JPEG", "val/cat/3.png", "test/4.webp", "test/notes.txt", ".x/5.jpg"];
        let scan = scanned(&folder(&paths), &[], None).unwrap();
        assert_eq!(scan.vocabulary.names, ["cat", "dog"]);
        let expected: [(&str, &[i8], u8); 4] = [
            ("test/4.webp", &[0, 0], 2),
            ("train/cat/1.jpg", &[1, -1], 0),
            ("train/dog/2.JPEG", &[-1, 1], 0),
            ("val/cat/3.png", &[1, -1], 1),
        ];
        assert_eq!(rows(&scan), expected);
        let warning = "1 files that are no images by their names were left out, the first `test/notes.txt`";
        assert_eq!(scan.warnings, [warning]);
    }

    #[test]
    fn images_without_labels_take_a_vocabulary_and_are_not_known() {
        let dir = folder(&["a.jpg", "old/b.jpg", "else/c.jpg"]);
        let told = scanned(&dir, &["Smiling", "Old"], None).unwrap();
        let labels: Vec<&[i8]> = told.rows.iter().map(|row| row.attributes.as_slice()).collect();
        assert_eq!(labels, [[0, 0], [0, 0], [0, 1]]);
        assert_eq!(told.warnings[0], "folders that are no attributes: `else`");
        let base = Vocabulary { names: vec!["Smiling".into(), "Old".into()] };
        assert_eq!(scanned(&dir, &[], Some(&base)).unwrap(), told);
        let content = read_rows(&told.places, &told.rows, &|_| ()).unwrap();
        assert_eq!((content.rows.len(), content.skipped.len()), (3, 0));

        let error = scanned(&folder(&["a.jpg"]), &[], None).unwrap_err().to_string();
        assert!(error.contains("no folder below it names an attribute"), "{error}");
        let error = scanned(&folder(&["a.txt"]), &[], None).unwrap_err().to_string();
        assert!(error.contains("has no image"), "{error}");
    }
}
