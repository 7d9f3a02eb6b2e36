//! What the columns of a file are for: as told, else decided by name and type.

use arrow_schema::{DataType, Field, Schema};
use likeness_contract::jobs::CsvColumns;
use likeness_contract::names;

use super::super::split;
use crate::error::{Error, Result};

/// Columns that may name an item, best first.
const ID_COLUMNS: [&str; 7] = ["item_id", "image_id", "file_name", "filename", "id", "path", "name"];
/// Numeric columns that are known to be no attributes.
const NO_ATTRIBUTES: [&str; 8] =
    ["celeb_id", "identity", "person_id", "index", "__index_level_0__", "width", "height", "label"];

/// What the columns of a file are for.
pub(super) struct Columns {
    pub image: String,
    /// It is a struct with a path.
    pub image_path: bool,
    /// Those that may be attributes.
    pub attributes: Vec<String>,
    pub id: Option<String>,
    /// Whether the id was told, so that it comes before the image's path.
    pub id_first: bool,
    pub split: Option<String>,
    pub group: Option<String>,
    /// Neither labels nor anything else that we know.
    pub left_out: Vec<String>,
}

impl Columns {
    /// Refuses a file without usable images, or without a column that was told.
    pub fn of(path: &str, schema: &Schema, told: &CsvColumns, image: &str) -> Result<Self> {
        let named = |name: &Option<String>| match name {
            Some(name) => field(path, schema, name).map(|field| Some(field.name().clone())),
            None => Ok(None),
        };
        let id_first = told.item.is_some();
        let usual = |names: &[&str], fits: fn(&Field) -> bool| {
            names.iter().find(|name| schema.field_with_name(name).is_ok_and(fits)).map(ToString::to_string)
        };
        let group = named(&told.group)?;
        let split = named(&told.split)?.or_else(|| usual(&split::COLUMNS, is_id));
        let mut columns = Self {
            image: image.into(),
            image_path: has_image_path(path, schema, image)?,
            attributes: Vec::new(),
            id: named(&told.item)?.or_else(|| usual(&ID_COLUMNS, is_id)),
            id_first,
            // Who names a group wants the hash.
            split: split.filter(|_| group.is_none()),
            group,
            left_out: Vec::new(),
        };
        if told.attributes.is_empty() {
            columns.find_attributes(schema);
        } else {
            columns.take_attributes(path, schema, &told.attributes)?;
        }
        Ok(columns)
    }

    fn find_attributes(&mut self, schema: &Schema) {
        for field in schema.fields() {
            let name = field.name();
            let other = [Some(&self.image), self.id.as_ref(), self.split.as_ref(), self.group.as_ref()];
            if other.contains(&Some(name)) || split::COLUMNS.contains(&name.as_str()) {
                continue;
            }
            let may = is_boolean(field) || (is_number(field.data_type()) && !NO_ATTRIBUTES.contains(&name.as_str()));
            let list = if may { &mut self.attributes } else { &mut self.left_out };
            list.push(name.clone());
        }
    }

    fn take_attributes(&mut self, path: &str, schema: &Schema, told: &[String]) -> Result<()> {
        for name in told {
            let field = field(path, schema, name)?;
            let kind = field.data_type();
            if !(is_boolean(field) || is_number(kind) || is_text(kind)) {
                return Err(Error::invalid(format!("`{path}`: column `{name}` is {kind}: no label can be in it")));
            }
            self.attributes.push(name.clone());
        }
        Ok(())
    }

    /// Paths of the columns that a scan reads.
    pub fn wanted(&self) -> Vec<String> {
        let mut wanted = self.attributes.clone();
        wanted.extend([&self.id, &self.split, &self.group].into_iter().flatten().cloned());
        wanted.extend(self.image_path.then(|| format!("{}.path", self.image)));
        wanted
    }
}

fn field<'a>(path: &str, schema: &'a Schema, name: &str) -> Result<&'a Field> {
    schema.field_with_name(name).map_err(|_| {
        let hint = names::hint(&names::nearest(name, schema.fields().iter().map(|field| field.name().as_str())));
        Error::invalid(format!("`{path}`: column `{name}` is missing{hint}"))
    })
}

fn is_id(field: &Field) -> bool {
    is_text(field.data_type()) || field.data_type().is_integer()
}

fn is_boolean(field: &Field) -> bool {
    *field.data_type() == DataType::Boolean
}

fn is_number(data_type: &DataType) -> bool {
    let decimal = matches!(data_type, DataType::Decimal128(..) | DataType::Decimal256(..));
    data_type.is_integer() || data_type.is_floating() || decimal
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

fn has_image_path(path: &str, schema: &Schema, image: &str) -> Result<bool> {
    match field(path, schema, image)?.data_type() {
        binary if is_binary(binary) => Ok(false),
        DataType::Struct(fields) if fields.iter().any(|f| f.name() == "bytes" && is_binary(f.data_type())) => {
            Ok(fields.iter().any(|f| f.name() == "path" && is_text(f.data_type())))
        }
        other => Err(Error::invalid(format!(
            "`{path}`: column `{image}` is {other}: expected binary, or a struct of `bytes` and `path`"
        ))),
    }
}
