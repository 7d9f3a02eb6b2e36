//! CelebA as distributed: a folder with `img_align_celeba/`, `list_attr_celeba.txt` and
//! `list_eval_partition.txt`.
//!
//! The attribute list: the number of rows; the attribute names, blank-separated; then per image its file name
//! and one label per attribute, `1`, `-1`, or `0` for not known. Blanks are ragged, lines may end in CRLF.
//! The partition list: file name and `0` train, `1` validation, `2` test. The subfolders `Anno`, `Eval` and
//! `Img` of the original download are looked into as well, and so is `img_align_celeba/img_align_celeba`, as
//! some mirrors unpack it.
//!
//! On request the split is 80/10/10 by a hash instead, of the item id or of the person, whom `identity_CelebA.txt` names:
//! file name and a number per line.

use std::collections::HashMap;

use likeness_contract::jobs::{CelebaSplit, ZeroLabel};
use likeness_contract::settings::Vocabulary;

use super::{Files, Places, check_names, inside, shortened, split as splits};
use crate::error::{Error, Result};
use crate::rows::{Place, Scan, ScanRow};

const ATTRIBUTES: &str = "list_attr_celeba.txt";
const PARTITION: &str = "list_eval_partition.txt";
const IDENTITY: &str = "identity_CelebA.txt";
const IMAGES: &str = "img_align_celeba";

/// Lists the rows; images are not looked at.
pub(super) fn scan(dir: &str, split: CelebaSplit, files: &dyn Files) -> Result<Scan> {
    let images = images_folder(dir, files)?;
    let (attributes_path, attributes_text) = read_list(dir, files, ATTRIBUTES, "Anno")?;
    let mut list = parse_attributes(&attributes_path, &attributes_text)?;
    let (path, splits) = match split {
        CelebaSplit::Partition => {
            let (path, text) = read_list(dir, files, PARTITION, "Eval")?;
            (path.clone(), parse_partition(&path, &text)?)
        }
        CelebaSplit::Identity => {
            let (path, text) = read_list(dir, files, IDENTITY, "Anno")?;
            list.warnings.push("the split is 80/10/10 by a hash of the person".into());
            (path.clone(), parse_identity(&path, &text)?)
        }
        CelebaSplit::Item => {
            list.warnings.push("the split is 80/10/10 by a hash of the item id".into());
            (String::new(), list.rows.iter().map(|(item, _)| (item.clone(), splits::by_hash(item))).collect())
        }
    };
    let mut scan = join(list, &splits, &images, &path);
    scan.places.dir = dir.into();
    Ok(scan)
}

/// The images' folder, relative to `dir`.
fn images_folder(dir: &str, files: &dyn Files) -> Result<String> {
    let is_folder = |path: &str| files.is_folder(path).map_err(|e| Error::io(path, e));
    if !is_folder(dir)? {
        return Err(Error::invalid(format!("`{dir}` is no folder")));
    }
    let candidates = [format!("{IMAGES}/{IMAGES}"), IMAGES.into(), format!("Img/{IMAGES}")];
    for candidate in candidates {
        if is_folder(&inside(dir, &candidate))? {
            return Ok(candidate);
        }
    }
    let path = inside(dir, IMAGES);
    Err(Error::invalid(format!("`{path}` is missing: expected the folder of the images, unpacked")))
}

/// Path and text of a list: beside the images, or in the subfolder of the original download.
fn read_list(dir: &str, files: &dyn Files, name: &str, subfolder: &str) -> Result<(String, String)> {
    let beside = inside(dir, name);
    let nested = inside(dir, &format!("{subfolder}/{name}"));
    let path = if files.size(&beside).is_err() && files.size(&nested).is_ok() { nested } else { beside };
    let text = super::read_list(files, &path, expectation(name))?;
    Ok((path, text))
}

fn expectation(name: &str) -> &'static str {
    match name {
        ATTRIBUTES => "expected the number of rows, the attribute names, then `FILE 1 -1 …` per image",
        IDENTITY => "expected a line `FILE PERSON` per image",
        _ => "expected a line `FILE SPLIT` per image, SPLIT being 0 (train), 1 (validation) or 2 (test)",
    }
}

/// Lines that are not blank, numbered from 1.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.is_empty())
}

#[derive(Debug)]
struct AttributeList {
    vocabulary: Vocabulary,
    rows: Vec<(String, Vec<i8>)>,
    warnings: Vec<String>,
}

fn parse_attributes(path: &str, text: &str) -> Result<AttributeList> {
    let mut lines = lines(text);
    let (count_line, count) = lines.next().ok_or_else(|| Error::invalid(format!("`{path}` is empty")))?;
    let count: usize = count.parse().map_err(|_| {
        let found = shortened(count);
        Error::invalid(format!("`{path}` line {count_line}: expected the number of rows, found `{found}`"))
    })?;
    let (names_line, names) = lines.next().ok_or_else(|| {
        Error::invalid(format!("`{path}` ends after line {count_line}: expected the attribute names"))
    })?;
    let names = parse_names(&format!("`{path}` line {names_line}"), names)?;

    let mut rows: Vec<(String, Vec<i8>)> = Vec::new();
    let mut first_lines: HashMap<String, usize> = HashMap::new();
    for (line, text) in lines {
        let place = || format!("`{path}` line {line}");
        let (item, labels) = parse_labels(&place, text, &names)?;
        if let Some(first) = first_lines.insert(item.clone(), line) {
            return Err(Error::invalid(format!("{}: `{item}` is there already in line {first}", place())));
        }
        rows.push((item, labels));
    }
    if rows.is_empty() {
        return Err(Error::invalid(format!("`{path}` lists no image")));
    }
    let mut warnings = Vec::new();
    if rows.len() != count {
        let found = rows.len();
        warnings.push(format!("`{path}` announces {count} rows and has {found}: it may be cut short"));
    }
    Ok(AttributeList { vocabulary: Vocabulary { names }, rows, warnings })
}

fn parse_names(place: &str, line: &str) -> Result<Vec<String>> {
    let names: Vec<String> = line.split_whitespace().map(str::to_string).collect();
    if names.iter().skip(1).all(|name| parse_label(name).is_some()) && names.len() > 1 {
        return Err(Error::invalid(format!("{place}: expected the attribute names, found labels")));
    }
    check_names(place, &names)?;
    Ok(names)
}

fn parse_labels(place: &dyn Fn() -> String, line: &str, names: &[String]) -> Result<(String, Vec<i8>)> {
    let mut words = line.split_whitespace();
    let item = words.next().unwrap_or_default();
    check_item(place, item)?;
    let mut labels = Vec::with_capacity(names.len());
    for (i, word) in words.enumerate() {
        let name = names.get(i).map_or("", String::as_str);
        let label = parse_label(word).ok_or_else(|| {
            let word = shortened(word);
            let column = if name.is_empty() { String::new() } else { format!(" of `{name}`") };
            Error::invalid(format!("{}: label `{word}`{column} is not 1, -1 or 0", place()))
        })?;
        labels.push(label);
    }
    if labels.len() != names.len() {
        let (found, expected) = (labels.len(), names.len());
        return Err(Error::invalid(format!("{}: {found} labels for {expected} attributes", place())));
    }
    Ok((item.to_string(), labels))
}

fn parse_label(word: &str) -> Option<i8> {
    match word {
        "1" | "+1" => Some(1),
        "-1" => Some(-1),
        "0" => Some(0),
        _ => None,
    }
}

/// A plain file name: what the list says is read, so it must not lead out of the folder.
fn check_item(place: &dyn Fn() -> String, item: &str) -> Result<()> {
    if item.contains(['/', '\\', '\0']) || item == "." || item == ".." {
        return Err(Error::invalid(format!("{}: `{}` is no plain file name", place(), shortened(item))));
    }
    Ok(())
}

fn parse_partition(path: &str, text: &str) -> Result<HashMap<String, u8>> {
    let mut splits = HashMap::new();
    for (line, text) in lines(text) {
        let place = || format!("`{path}` line {line}");
        let words: Vec<&str> = text.split_whitespace().collect();
        let [item, split] = words[..] else {
            let found = shortened(text);
            return Err(Error::invalid(format!("{}: expected `FILE SPLIT`, found `{found}`", place())));
        };
        let split = match split {
            "0" => 0,
            "1" => 1,
            "2" => 2,
            other => {
                let other = shortened(other);
                return Err(Error::invalid(format!(
                    "{}: split `{other}` is not 0 (train), 1 (validation) or 2 (test)",
                    place()
                )));
            }
        };
        if splits.insert(item.to_string(), split).is_some() {
            return Err(Error::invalid(format!("{}: `{item}` is there twice", place())));
        }
    }
    Ok(splits)
}

/// The split of every file, by a hash of its person.
fn parse_identity(path: &str, text: &str) -> Result<HashMap<String, u8>> {
    let mut splits = HashMap::new();
    for (line, text) in lines(text) {
        let mut words = text.split_whitespace();
        let (Some(item), Some(person), None) = (words.next(), words.next(), words.next()) else {
            let found = shortened(text);
            return Err(Error::invalid(format!("`{path}` line {line}: expected `FILE PERSON`, found `{found}`")));
        };
        if splits.insert(item.to_string(), splits::by_hash(person)).is_some() {
            return Err(Error::invalid(format!("`{path}` line {line}: `{item}` is there twice")));
        }
    }
    Ok(splits)
}

/// Labels and splits together; a row without a split is a bad row.
fn join(list: AttributeList, splits: &HashMap<String, u8>, images: &str, partition_path: &str) -> Scan {
    let AttributeList { vocabulary, rows, mut warnings } = list;
    let mut matched = 0;
    let rows: Vec<ScanRow> = rows
        .into_iter()
        .map(|(item, attributes)| {
            let split = splits.get(&item).copied();
            matched += usize::from(split.is_some());
            let problem = split.is_none().then(|| format!("not in `{partition_path}`"));
            let place = Place::File { path: format!("{images}/{item}") };
            ScanRow { item, place, attributes, split: split.unwrap_or(0), problem }
        })
        .collect();
    let unlabelled = splits.len() - matched;
    if unlabelled > 0 {
        warnings.push(format!("{unlabelled} of {} files in `{partition_path}` have no labels", splits.len()));
    }
    let zeros = zeros(&rows, vocabulary.len());
    Scan { vocabulary, rows, warnings, places: Places::default(), zeros }
}

/// In these lists `0` is always "not known".
fn zeros(rows: &[ScanRow], attributes: usize) -> Vec<Option<ZeroLabel>> {
    let has_zero = |attribute: usize| rows.iter().any(|row| row.attributes[attribute] == 0);
    (0..attributes).map(|attribute| has_zero(attribute).then_some(ZeroLabel::Unknown)).collect()
}

#[cfg(test)]
mod tests;
