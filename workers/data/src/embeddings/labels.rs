//! Label columns of tables of embeddings.
//!
//! A column that was not named and holds anything but labels is left out with a warning; one that was named must hold nothing else.
//! `0` is "not known" in a column that also has `-1`, else "has not", unless told.

use likeness_contract::jobs::{Import, ZeroLabel};

use crate::error::{Error, Result};

/// What a cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    Unknown,
    Has,
    HasNot,
    MinusOne,
    Zero,
    /// No label.
    Other,
}

impl Cell {
    pub fn of_word(word: &str) -> Self {
        match word.trim().to_ascii_lowercase().as_str() {
            "" | "na" | "n/a" | "nan" | "null" | "none" | "?" => Self::Unknown,
            "1" | "+1" | "1.0" | "true" | "yes" | "t" | "y" => Self::Has,
            "false" | "no" | "f" | "n" => Self::HasNot,
            "-1" | "-1.0" => Self::MinusOne,
            "0" | "0.0" | "-0.0" => Self::Zero,
            _ => Self::Other,
        }
    }

    pub fn of_flag(flag: Option<bool>) -> Self {
        match flag {
            None => Self::Unknown,
            Some(true) => Self::Has,
            Some(false) => Self::HasNot,
        }
    }

    pub fn of_number(number: Option<i64>) -> Self {
        match number {
            None => Self::Unknown,
            Some(1) => Self::Has,
            Some(-1) => Self::MinusOne,
            Some(0) => Self::Zero,
            Some(_) => Self::Other,
        }
    }
}

/// A column that may hold labels.
#[derive(Debug)]
pub struct Column {
    pub name: String,
    pub cells: Vec<Cell>,
    /// The first cell that is no label, and where it is.
    pub first_other: Option<String>,
}

impl Column {
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), cells: Vec::new(), first_other: None }
    }

    /// Takes the next row's cell; `place` tells what and where it is.
    pub fn push(&mut self, cell: Cell, place: impl FnOnce() -> String) {
        if cell == Cell::Other && self.first_other.is_none() {
            self.first_other = Some(place());
        }
        self.cells.push(cell);
    }

    fn labels(&self, told: ZeroLabel) -> Vec<i8> {
        let coded = self.cells.contains(&Cell::MinusOne);
        let zero = match told {
            ZeroLabel::No => -1,
            ZeroLabel::Unknown => 0,
            ZeroLabel::Auto => {
                if coded {
                    0
                } else {
                    -1
                }
            }
        };
        let label = |cell: &Cell| match cell {
            Cell::Has => 1,
            Cell::HasNot | Cell::MinusOne => -1,
            Cell::Zero => zero,
            Cell::Unknown | Cell::Other => 0,
        };
        self.cells.iter().map(label).collect()
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
                labels.push(column.labels(import.zero));
                names.push(column.name);
            }
        }
    }
    crate::source::check_names_if_any("the label columns", &names)?;
    let warning = format!("columns that are no attributes were left out: `{}`", left_out.join("`, `"));
    Ok((names, labels, if left_out.is_empty() { vec![] } else { vec![warning] }))
}
