//! Label columns of tables of embeddings.
//!
//! A column that was not named and holds anything but labels is left out with a warning; one that was named must hold nothing else.
//! What a cell says is told by [`crate::labels`].

use likeness_contract::jobs::Import;

use crate::error::{Error, Result};
use crate::labels::{Word, labels_of, left_out_words};

/// A column that may hold labels.
#[derive(Debug)]
pub struct Column {
    pub name: String,
    pub cells: Vec<Word>,
    /// The first cell that is no label, and where it is.
    pub first_other: Option<String>,
}

impl Column {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), cells: Vec::new(), first_other: None }
    }

    /// Takes the next row's cell; `place` tells what and where it is.
    pub fn push(&mut self, cell: Word, place: impl FnOnce() -> String) {
        if cell == Word::Other && self.first_other.is_none() {
            self.first_other = Some(place());
        }
        self.cells.push(cell);
    }
}

/// Names, labels by attribute, and warnings.
type Chosen = (Vec<String>, Vec<Vec<i8>>, Vec<String>);

/// Those that hold labels.
pub fn chosen(columns: Vec<Column>, import: &Import) -> Result<Chosen> {
    let named = !import.columns.attributes.is_empty();
    let (mut names, mut labels, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for column in columns {
        match &column.first_other {
            Some(place) if named => {
                let name = &column.name;
                return Err(Error::invalid(format!(
                    "column `{name}`: {place} is no label: 1, -1, 0, true, false or empty"
                )));
            }
            Some(_) => left_out.push(column.name),
            None => {
                labels.push(labels_of(&column.cells, import.zero));
                names.push(column.name);
            }
        }
    }
    crate::source::check_names_if_any("the label columns", &names)?;
    Ok((names, labels, left_out_words(&left_out).into_iter().collect()))
}
