//! The rows of a part without their images, read by ranges: what a growing dataset must know of the parts that it shares.

use std::sync::Arc;

use arrow_array::{StringArray, UInt8Array};

use crate::columns::{checked_split, labels_of, typed};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::source::Files;
use crate::source::parquet::file::{open, projection};

/// One row of a part, without its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartItem {
    /// Item id.
    pub item: String,
    /// A labels: −1 has not, 0 not known, +1 has.
    pub attributes: Vec<i8>,
    /// 0 train, 1 validation, 2 test.
    pub split: u8,
}

/// The rows of the part at `path`, whose file is read by ranges; images are not.
pub fn part_items(path: &str, attributes: usize, files: Arc<dyn Files>) -> Result<Vec<PartItem>> {
    let damaged = |detail: String| Error::corrupt(format!("dataset part `{path}`: {detail}"));
    guarded(|| read(path, attributes, files)).map_err(damaged)?
}

fn read(path: &str, attributes: usize, files: Arc<dyn Files>) -> Result<Vec<PartItem>> {
    let damaged = |detail: String| Error::corrupt(format!("dataset part `{path}`: {detail}"));
    let (builder, blame) = open(path, files)?;
    let wanted = |column: &str| column == "item_id" || column == "split" || column.starts_with("attributes.");
    let mask = projection(&builder, wanted);
    let reader = builder.with_projection(mask).build().map_err(|e| blame.error(e))?;
    let mut items = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|e| blame.error(e))?;
        let names = typed::<StringArray>(&batch, "item_id").map_err(damaged)?;
        let splits = typed::<UInt8Array>(&batch, "split").map_err(damaged)?;
        let labels = labels_of(&batch, "attributes", attributes).map_err(damaged)?.values();
        for row in 0..batch.num_rows() {
            items.push(PartItem {
                item: names.value(row).to_string(),
                attributes: labels[row * attributes..(row + 1) * attributes].to_vec(),
                split: checked_split(splits.value(row)).map_err(damaged)?,
            });
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::part::{GROUP_ROWS, PartRow, encode_part};
    use crate::source::Disk;

    #[test]
    fn items_come_back_without_their_images() {
        let row = |i: usize| PartRow {
            item: format!("{i}.jpg"),
            image: Bytes::from(vec![i as u8; 100]),
            width: 1,
            height: 1,
            attributes: vec![(i % 3) as i8 - 1, 1],
            split: (i % 3) as u8,
        };
        let rows: Vec<PartRow> = (0..GROUP_ROWS + 10).map(row).collect();
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("part.parquet");
        std::fs::write(&path, encode_part(&rows, 2).unwrap()).unwrap();
        let path = path.to_str().unwrap();
        let items = part_items(path, 2, Arc::new(Disk)).unwrap();
        assert!(items.iter().zip(&rows).all(|(item, row)| {
            (&item.item, &item.attributes, item.split) == (&row.item, &row.attributes, row.split)
        }));
        assert_eq!(items.len(), rows.len());
        assert!(part_items(path, 3, Arc::new(Disk)).is_err());
        assert!(part_items("/nowhere", 2, Arc::new(Disk)).is_err());
    }
}
