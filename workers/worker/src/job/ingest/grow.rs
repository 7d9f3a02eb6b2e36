//! A version that grows: what it shares with its base, and what must be written anew.
//!
//! Parts of the base are shared as they lie. Only those that hold removed items are written again without them: their other
//! rows stand first in the list of rows, with the old part as the place of their images. New rows follow; those whose items the
//! base has are left out. Of a base of ten million rows only ids and labels are read.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use likeness_contract::datasets::{LabelCounts, Removed};
use likeness_contract::documents::{DatasetManifest, PartEntry};
use likeness_contract::jobs::ZeroLabel;
use likeness_contract::settings::Vocabulary;
use likeness_data::{PartItem, Place, Scan, ScanRow, TableFile, count_labels, part_items};

use super::notes::Notes;
use super::source_files::{SourceFiles, in_store};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Parts whose rows are listed at once.
const PARTS_AT_ONCE: usize = 8;
/// Rows left out because their items are there which are listed one by one; all are counted.
const MOST_LISTED: u64 = 1000;
/// Column of the images in our own parts.
const IMAGE: &str = "image";

/// The base as it is listed.
pub struct Base {
    manifest: Arc<DatasetManifest>,
    /// Rows of each part.
    parts: Vec<Vec<PartItem>>,
}

impl Base {
    /// Lists all rows of a version.
    pub async fn read(
        cx: &TaskContext,
        manifest: Arc<DatasetManifest>,
        files: &Arc<SourceFiles>,
    ) -> Result<Self, TaskError> {
        let (attributes, all) = (manifest.vocabulary.len(), manifest.parts.len() as u64);
        let list = |(number, entry): (usize, &PartEntry)| {
            let (path, files) = (in_store(&entry.object.key), Arc::clone(files));
            let listed = tokio::task::spawn_blocking(move || part_items(&path, attributes, files));
            async move {
                let listed = listed.await.map_err(TaskError::transient)??;
                cx.progress(number as u64 + 1, all, "parts that are there");
                Ok::<_, TaskError>(listed)
            }
        };
        let listed = futures::stream::iter(manifest.parts.iter().enumerate()).map(list).buffered(PARTS_AT_ONCE);
        let parts = listed.try_collect().await?;
        Ok(Self { manifest, parts })
    }

    fn has_removed(&self, part: usize, removed: &Removed) -> bool {
        self.parts[part].iter().any(|row| removed.contains(&row.item))
    }
}

/// The list of rows of the next version, and what else it must know; refused when it would be the base again.
///
/// `new` are the rows of the source, if there is one.
pub fn grow(base: &Base, removed: &Removed, new: Option<Scan>) -> Result<(Scan, Notes), TaskError> {
    let vocabulary = &base.manifest.vocabulary;
    let mut notes = Notes { removals: removed.last(), labels: no_labels(vocabulary), ..Notes::default() };
    let mut rows = Vec::new();
    for number in 0..base.parts.len() {
        if base.has_removed(number, removed) {
            rewrite(base, number, removed, &mut rows, &mut notes);
        } else {
            base.parts[number].iter().for_each(|row| count_labels(&mut notes.labels, &row.attributes));
            notes.shared.push(number as u32);
        }
    }
    let dropped = notes.removed;
    let mut warnings = Vec::new();
    let mut added = 0;
    if let Some(new) = new {
        let new = in_order_of(vocabulary, new)?;
        warnings.extend(new.warnings);
        notes.labels.iter_mut().zip(&new.zeros).for_each(|(labels, zero)| labels.zero = *zero);
        let first_file = notes.places.files.len() as u32;
        notes.places.dir = new.places.dir;
        notes.places.files.extend(new.places.files);
        let there: HashSet<&str> = base.parts.iter().flatten().map(|row| row.item.as_str()).collect();
        for mut row in new.rows {
            if let Place::Parquet { file, .. } = &mut row.place {
                *file += first_file;
            }
            if let Some(row) = wanted(row, removed, &there, base, &mut notes) {
                added += u64::from(row.problem.is_none());
                rows.push(row);
            }
        }
    }
    if added == 0 && dropped == 0 {
        return Err(TaskError::invalid(nothing_new(base, &notes)));
    }
    warnings.extend(counted(&notes, dropped));
    if rows.is_empty() {
        // A version's last task waits for a part; all rows of it are told as removed.
        let gone = base.parts.iter().flatten().find(|row| removed.contains(&row.item));
        rows.extend(gone.map(|row| removed_row(row, removed)));
    }
    let zeros = notes.labels.iter().map(|labels| labels.zero).collect();
    let places = notes.places.clone();
    Ok((Scan { vocabulary: vocabulary.clone(), rows, warnings, places, zeros }, notes))
}

fn no_labels(vocabulary: &Vocabulary) -> Vec<LabelCounts> {
    let of = |attribute: &String| LabelCounts {
        attribute: attribute.clone(),
        has: 0,
        has_not: 0,
        unknown: 0,
        zero: None::<ZeroLabel>,
    };
    vocabulary.names.iter().map(of).collect()
}

/// Lists the rows of a part that stay.
fn rewrite(base: &Base, number: usize, removed: &Removed, rows: &mut Vec<ScanRow>, notes: &mut Notes) {
    let file = notes.places.files.len() as u32;
    let path = in_store(&base.manifest.parts[number].object.key);
    notes.places.files.push(TableFile { path, image: IMAGE.into() });
    for (at, row) in base.parts[number].iter().enumerate() {
        if removed.contains(&row.item) {
            notes.removed += 1;
            continue;
        }
        count_labels(&mut notes.labels, &row.attributes);
        let PartItem { item, attributes, split } = row.clone();
        rows.push(ScanRow { item, place: Place::Parquet { file, row: at as u64 }, attributes, split, problem: None });
    }
}

/// A new row, if it is one: an item that is there is left out, with a reason as long as there are few; one that was removed
/// is left out with its reason.
fn wanted(
    mut row: ScanRow,
    removed: &Removed,
    there: &HashSet<&str>,
    base: &Base,
    notes: &mut Notes,
) -> Option<ScanRow> {
    if let Some(reason) = removed.reason(&row.item) {
        notes.removed += 1;
        row.problem = Some(reason);
    } else if there.contains(row.item.as_str()) {
        notes.already_there += 1;
        let version = &base.manifest.dataset.version;
        row.problem = Some(format!("is there already in version `{version}`"));
        return (notes.already_there <= MOST_LISTED).then_some(row);
    } else if row.problem.is_none() {
        count_labels(&mut notes.labels, &row.attributes);
    }
    Some(row)
}

fn removed_row(row: &PartItem, removed: &Removed) -> ScanRow {
    let PartItem { item, attributes, split } = row.clone();
    let problem = removed.reason(&item);
    ScanRow { item, place: Place::File { path: String::new() }, attributes, split, problem }
}

/// Rows left out of any scan for a removal, whatever it is of.
pub fn leave_out(scan: &mut Scan, removed: &Removed) -> u64 {
    let mut count = 0;
    for row in &mut scan.rows {
        if let Some(reason) = removed.reason(&row.item) {
            row.problem = Some(reason);
            count += 1;
        }
    }
    count
}

/// The same labels in the order of the base's vocabulary; other attributes are refused by name.
fn in_order_of(vocabulary: &Vocabulary, mut new: Scan) -> Result<Scan, TaskError> {
    if new.vocabulary == *vocabulary {
        return Ok(new);
    }
    let lacks = |has: &Vocabulary, of: &Vocabulary| {
        let names: Vec<&str> = of.names.iter().filter(|name| !has.names.contains(name)).map(String::as_str).collect();
        (!names.is_empty()).then(|| format!("`{}`", names.join("`, `")))
    };
    let missing = lacks(&new.vocabulary, vocabulary).map(|names| format!("the source lacks {names}"));
    let extra = lacks(vocabulary, &new.vocabulary).map(|names| format!("the dataset lacks {names}"));
    let differs: Vec<String> = missing.into_iter().chain(extra).collect();
    if !differs.is_empty() {
        let differs = differs.join("; ");
        return Err(TaskError::invalid(format!("source and dataset must have the same attributes: {differs}")));
    }
    let position = |name: &String| new.vocabulary.names.iter().position(|other| other == name);
    let order: Vec<usize> = vocabulary.names.iter().filter_map(position).collect();
    for row in &mut new.rows {
        row.attributes = order.iter().map(|at| row.attributes[*at]).collect();
    }
    new.zeros = order.iter().map(|at| new.zeros[*at]).collect();
    new.vocabulary = vocabulary.clone();
    Ok(new)
}

fn nothing_new(base: &Base, notes: &Notes) -> String {
    let version = &base.manifest.dataset.version;
    match (notes.already_there, notes.removed) {
        (0, 0) => format!("version `{version}` holds no removed item, and there is nothing to append"),
        (there, removed) => {
            format!(
                "nothing to append: of the source's rows {there} are in version `{version}` already, {removed} were removed"
            )
        }
    }
}

fn counted(notes: &Notes, dropped: u64) -> Vec<String> {
    let mut words = Vec::new();
    if dropped > 0 {
        words.push(format!("{dropped} rows of the version before were dropped: their items were removed"));
    }
    if notes.removed > dropped {
        words.push(format!("{} new rows were left out: their items were removed", notes.removed - dropped));
    }
    if notes.already_there > 0 {
        words.push(format!("{} new rows were left out: their items are there already", notes.already_there));
    }
    words
}

#[cfg(test)]
mod tests {
    use likeness_contract::datasets::{Removal, RemovalChange};
    use likeness_contract::documents::ObjectRef;
    use likeness_contract::ids::{Digest, JobId, Name};
    use likeness_contract::jobs::DatasetRef;
    use likeness_data::Places;

    use super::*;

    fn vocabulary(names: &[&str]) -> Vocabulary {
        Vocabulary { names: names.iter().map(ToString::to_string).collect() }
    }

    fn base(parts: &[&[&str]]) -> Base {
        let entry = |number: usize| {
            let object = ObjectRef { key: format!("part-{number}"), digest: Digest::of(b""), bytes: 0 };
            let rows = parts[number].len() as u64;
            PartEntry { object, rows, split_rows: [rows, 0, 0] }
        };
        let item = |item: &&str| PartItem { item: item.to_string(), attributes: vec![1, -1], split: 0 };
        let manifest = DatasetManifest {
            dataset: DatasetRef { dataset: Name::new("faces").unwrap(), version: JobId::new("v1").unwrap() },
            vocabulary: vocabulary(&["old", "glad"]),
            parts: (0..parts.len()).map(entry).collect(),
            skipped: vec![],
            warnings: vec![],
        };
        let parts = parts.iter().map(|items| items.iter().map(item).collect()).collect();
        Base { manifest: Arc::new(manifest), parts }
    }

    fn removed(items: &[&str]) -> Removed {
        let items = items.iter().map(ToString::to_string).collect();
        let (dataset, number, change, created_ms) = (Name::new("faces").unwrap(), 1, RemovalChange::Remove, 0);
        let mut removed = Removed::default();
        removed.apply(&Removal { dataset, number, change, items, created_ms });
        removed
    }

    fn source(names: &[&str], items: &[&str]) -> Scan {
        let row = |(at, item): (usize, &&str)| ScanRow {
            item: item.to_string(),
            place: Place::Parquet { file: 0, row: at as u64 },
            attributes: vec![1, 0],
            split: 1,
            problem: None,
        };
        let files = vec![TableFile { path: "new.parquet".into(), image: "photo".into() }];
        Scan {
            vocabulary: vocabulary(names),
            rows: items.iter().enumerate().map(row).collect(),
            warnings: vec!["w".into()],
            places: Places { dir: String::new(), files },
            zeros: vec![None, Some(ZeroLabel::Unknown)],
        }
    }

    #[test]
    fn parts_are_shared_but_those_with_removed_items() {
        let base = base(&[&["a", "b"], &["c", "d"], &["e"]]);
        let new = source(&["glad", "old"], &["f", "a", "d"]);
        let (scan, notes) = grow(&base, &removed(&["d", "zz"]), Some(new)).unwrap();
        assert_eq!(notes.shared, [0, 2]);
        assert_eq!((notes.removals, notes.removed, notes.already_there), (1, 2, 1));
        let paths: Vec<&str> = notes.places.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [in_store("part-1").as_str(), "new.parquet"]);
        let listed: Vec<(&str, &Place, Option<&str>)> =
            scan.rows.iter().map(|row| (row.item.as_str(), &row.place, row.problem.as_deref())).collect();
        let place = |file, row| Place::Parquet { file, row };
        assert_eq!(
            listed,
            [
                ("c", &place(0, 0), None),
                ("f", &place(1, 0), None),
                ("a", &place(1, 1), Some("is there already in version `v1`")),
                ("d", &place(1, 2), Some("was removed from the dataset (removal 1)")),
            ]
        );
        assert_eq!(scan.rows[1].attributes, [0, 1], "in the order of the base");
        let counts: Vec<[u64; 3]> = notes.labels.iter().map(|c| [c.has, c.has_not, c.unknown]).collect();
        assert_eq!(counts, [[4, 0, 1], [1, 4, 0]], "a, b, c, e and f");
        assert_eq!(scan.warnings[1], "1 rows of the version before were dropped: their items were removed");
    }

    #[test]
    fn other_attributes_are_refused_by_name() {
        let error =
            grow(&base(&[&["a"]]), &Removed::default(), Some(source(&["glad", "young"], &["b"]))).err().unwrap();
        assert_eq!(
            error.to_string(),
            "source and dataset must have the same attributes: the source lacks `old`; the dataset lacks `young`"
        );
    }

    #[test]
    fn a_version_that_would_be_its_base_is_refused() {
        let base = base(&[&["a", "b"]]);
        let words = |removed: &Removed, new| grow(&base, removed, new).err().unwrap().to_string();
        assert_eq!(
            words(&Removed::default(), Some(source(&["old", "glad"], &["a", "b"]))),
            "nothing to append: of the source's rows 2 are in version `v1` already, 0 were removed"
        );
        assert_eq!(words(&removed(&["x"]), None), "version `v1` holds no removed item, and there is nothing to append");
        let (scan, notes) = grow(&base, &removed(&["a", "b"]), None).unwrap();
        assert!(notes.shared.is_empty() && scan.rows.len() == 1 && scan.rows[0].problem.is_some());
    }
}
