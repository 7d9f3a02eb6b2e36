//! What the columns of a file are for, decided by name and type.

use arrow_schema::{DataType, Field, Schema};
use likeness_contract::names;

use super::{IMAGE, SPLIT};
use crate::error::{Error, Result};

/// Columns that may name an item, best first.
const ID_COLUMNS: [&str; 7] = ["item_id", "image_id", "file_name", "filename", "id", "path", "name"];
/// Integer columns that are known to be no attributes.
const NO_ATTRIBUTES: [&str; 8] =
    ["celeb_id", "identity", "person_id", "index", "__index_level_0__", "width", "height", "label"];

/// What the columns of a file are for.
pub(super) struct Columns {
    pub attributes: Vec<String>,
    /// `image` is a struct with a path.
    pub image_path: bool,
    pub id: Option<String>,
    pub split: bool,
    /// Neither labels nor anything else that we know.
    pub left_out: Vec<String>,
}

impl Columns {
    /// Refuses a file without usable `image`, or with a column that looks like a label and is none.
    pub fn of(path: &str, schema: &Schema) -> Result<Self> {
        let mut columns = Self {
            attributes: Vec::new(),
            image_path: has_image_path(path, schema)?,
            id: ID_COLUMNS.iter().find(|id| schema.field_with_name(id).is_ok_and(is_id)).map(ToString::to_string),
            split: schema.field_with_name(SPLIT).is_ok(),
            left_out: Vec::new(),
        };
        for field in schema.fields() {
            let name = field.name();
            if name == IMAGE || name == SPLIT || columns.id.as_ref() == Some(name) {
                continue;
            }
            match field.data_type() {
                DataType::Boolean => columns.attributes.push(name.clone()),
                integer if integer.is_integer() && !NO_ATTRIBUTES.contains(&name.as_str()) => {
                    columns.attributes.push(name.clone());
                }
                float
                    if float.is_floating() || matches!(float, DataType::Decimal128(..) | DataType::Decimal256(..)) =>
                {
                    return Err(Error::invalid(format!(
                        "`{path}`: column `{name}` is {float}: a label is boolean, or an integer -1, 0 or 1"
                    )));
                }
                _ => columns.left_out.push(name.clone()),
            }
        }
        Ok(columns)
    }

    /// Paths of the columns that a scan reads.
    pub fn wanted(&self) -> Vec<String> {
        let mut wanted = self.attributes.clone();
        wanted.extend(self.id.clone());
        wanted.extend(self.split.then(|| SPLIT.to_string()));
        wanted.extend(self.image_path.then(|| format!("{IMAGE}.path")));
        wanted
    }
}

fn is_id(field: &Field) -> bool {
    is_text(field.data_type()) || field.data_type().is_integer()
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn is_binary(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_))
}

fn has_image_path(path: &str, schema: &Schema) -> Result<bool> {
    let Ok(image) = schema.field_with_name(IMAGE) else {
        let columns = schema.fields().iter().map(|field| field.name().as_str());
        let hint = names::hint(&names::nearest(IMAGE, columns));
        return Err(Error::invalid(format!("`{path}`: column `{IMAGE}` is missing{hint}")));
    };
    match image.data_type() {
        binary if is_binary(binary) => Ok(false),
        DataType::Struct(fields) if fields.iter().any(|f| f.name() == "bytes" && is_binary(f.data_type())) => {
            Ok(fields.iter().any(|f| f.name() == "path" && is_text(f.data_type())))
        }
        other => Err(Error::invalid(format!(
            "`{path}`: column `{IMAGE}` is {other}: expected binary, or a struct of `bytes` and `path`"
        ))),
    }
}
