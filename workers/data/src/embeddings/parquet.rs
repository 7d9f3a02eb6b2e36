//! Parquet files of embeddings.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema};
use likeness_contract::jobs::Import;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};

use super::labels::Column;
use super::{EmbeddingList, Listing, TEST, Vectors, check_dim, row_of};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::labels::Word;
use crate::rows::{Place, ScanRow};
use crate::source::Files;
use crate::source::parquet::file::{Blame, changed, damaged, open, projection};
use crate::source::split;

/// Columns that may name an item, best first.
const ITEMS: [&str; 7] = ["item_id", "image_id", "file_name", "filename", "id", "path", "name"];
/// The column of splits, unless told.
const SPLIT: &str = "split";
/// Integer columns that are known to be no attributes.
const NO_ATTRIBUTES: [&str; 8] =
    ["celeb_id", "identity", "person_id", "index", "__index_level_0__", "width", "height", "label"];
/// Rows that are held at once.
const BATCH: usize = 4096;

/// Lists the rows of all files.
pub fn scan(import: &Import, paths: &[String], files: Arc<dyn Files>) -> Result<EmbeddingList> {
    let (mut listing, mut dim) = (Listing::default(), None);
    for (number, path) in (0u32..).zip(paths) {
        let found = whole(path, || add_file(import, number, path, files.clone(), &mut listing))?;
        match (dim, found) {
            (Some(dim), Some(found)) if dim != found => {
                return Err(Error::invalid(format!(
                    "`{path}`: vectors of {found} numbers, of {dim} in the files before"
                )));
            }
            (None, found) => dim = found,
            _ => {}
        }
    }
    let place = |place: &Place| match place {
        Place::Parquet { file, row } => format!("`{}` row {row}", paths[*file as usize]),
        _ => String::new(),
    };
    let scan = listing.finish(import, place)?;
    let dim = dim.ok_or_else(|| Error::invalid("the files hold no vector"))?;
    Ok(EmbeddingList { scan, dim })
}

/// Reads the vectors of rows, which lie in ascending order in each file.
pub fn read(
    import: &Import,
    paths: &[String],
    rows: &[ScanRow],
    files: Arc<dyn Files>,
    vectors: &mut Vectors,
) -> Result<()> {
    let file_of = |row: &ScanRow| row_of(&row.place).map(|(file, _)| file).ok();
    for run in rows.chunk_by(|a, b| file_of(a) == file_of(b)) {
        let (file, _) = row_of(&run[0].place)?;
        let unknown = || Error::corrupt("list of rows: a row of a file that the import does not have");
        let path = paths.get(file as usize).ok_or_else(unknown)?;
        whole(path, || read_run(import, path, run, files.clone(), vectors))?;
    }
    Ok(())
}

/// Runs work on one file that may be damaged.
fn whole<T>(path: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    guarded(work).unwrap_or_else(|panic| Err(damaged(path).because(std::io::Error::other(panic))))
}

/// What the columns of a file are for.
struct Columns {
    item: String,
    vector: String,
    split: Option<String>,
    attributes: Vec<String>,
}

impl Columns {
    fn of(path: &str, schema: &Schema, import: &Import) -> Result<Self> {
        let told = &import.columns;
        let there = || {
            let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            format!("`{}`", names.join("`, `"))
        };
        let named = |name: &String| match schema.field_with_name(name) {
            Ok(_) => Ok(name.clone()),
            Err(_) => Err(Error::invalid(format!("`{path}`: there is no column `{name}`, but {}", there()))),
        };
        let item = match &told.item {
            Some(name) => named(name)?,
            None => {
                ITEMS.iter().find(|name| schema.field_with_name(name).is_ok()).map(ToString::to_string).ok_or_else(
                    || {
                        Error::invalid(format!(
                            "`{path}`: no column is named as one of ids is; say `--id-column`: {}",
                            there()
                        ))
                    },
                )?
            }
        };
        let vector = match &told.vector {
            Some(name) => named(name)?,
            None => only_vector(path, schema)?,
        };
        let split = match &told.split {
            Some(name) => Some(named(name)?),
            None => schema.field_with_name(SPLIT).is_ok().then(|| SPLIT.to_string()),
        };
        let free = |field: &&Arc<Field>| {
            let name = field.name();
            *name != item && *name != vector && Some(name) != split.as_ref() && may_be_label(field)
        };
        let attributes = if told.attributes.is_empty() {
            schema.fields().iter().filter(free).map(|field| field.name().clone()).collect()
        } else {
            told.attributes.iter().map(named).collect::<Result<_>>()?
        };
        Ok(Self { item, vector, split, attributes })
    }
}

fn may_be_label(field: &Field) -> bool {
    let integer = field.data_type().is_integer() && !NO_ATTRIBUTES.contains(&field.name().as_str());
    integer || *field.data_type() == DataType::Boolean
}

fn only_vector(path: &str, schema: &Schema) -> Result<String> {
    let vectors: Vec<&str> =
        schema.fields().iter().filter(|f| is_vector(f.data_type())).map(|f| f.name().as_str()).collect();
    match vectors[..] {
        [vector] => Ok(vector.into()),
        [] => Err(Error::invalid(format!("`{path}`: no column holds lists of numbers"))),
        _ => Err(Error::invalid(format!(
            "`{path}`: which column holds the vectors? Say `--vector-column`: `{}`",
            vectors.join("`, `")
        ))),
    }
}

fn is_vector(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => {
            item.data_type().is_floating()
        }
        _ => false,
    }
}

/// Returns the length of the file's vectors, if it has a row.
fn add_file(
    import: &Import,
    number: u32,
    path: &str,
    files: Arc<dyn Files>,
    listing: &mut Listing,
) -> Result<Option<u32>> {
    let (builder, blame) = open(path, files.clone())?;
    let columns = Columns::of(path, builder.schema(), import)?;
    adopt(path, &columns, listing)?;
    let wanted: Vec<&String> = [&columns.item].into_iter().chain(&columns.split).chain(&columns.attributes).collect();
    let mask = projection(&builder, |column| wanted.iter().any(|name| *name == column));
    let reader = builder.with_projection(mask).with_batch_size(BATCH).build().map_err(|e| blame.error(e))?;
    let mut next = 0;
    for batch in reader {
        add_batch(number, path, &columns, &batch.map_err(|e| blame.error(e))?, &blame, listing, &mut next)?;
    }
    if next == 0 { Ok(None) } else { dim_of(path, &columns, files).map(Some) }
}

/// The first file's label columns are the attributes; the others must have the same.
fn adopt(path: &str, columns: &Columns, listing: &mut Listing) -> Result<()> {
    if listing.items.is_empty() {
        listing.columns = columns.attributes.iter().map(|name| Column::new(name)).collect();
        return Ok(());
    }
    let same = listing.columns.iter().all(|column| columns.attributes.contains(&column.name))
        && columns.attributes.len() == listing.columns.len();
    same.then_some(()).ok_or_else(|| Error::invalid(format!("`{path}`: other label columns than in the first file")))
}

#[allow(clippy::too_many_arguments, reason = "they are the state of one loop")]
fn add_batch(
    number: u32,
    path: &str,
    columns: &Columns,
    batch: &RecordBatch,
    blame: &Blame,
    listing: &mut Listing,
    next: &mut u64,
) -> Result<()> {
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| changed(path));
    let text = |name: &str| -> Result<StringArray> {
        Ok(cast(column(name)?, &DataType::Utf8).map_err(|e| blame.error(e))?.as_string().clone())
    };
    let items = text(&columns.item)?;
    let splits = columns.split.as_deref().map(text).transpose()?;
    for row in 0..batch.num_rows() {
        let here = || format!("`{path}` row {}", *next + row as u64);
        if items.is_null(row) || items.value(row).is_empty() {
            return Err(Error::invalid(format!("{}: the item id is empty", here())));
        }
        let split = match &splits {
            None => TEST,
            Some(words) => {
                let word = if words.is_valid(row) { words.value(row) } else { "null" };
                let unknown = || Error::invalid(format!("{}: split `{word}` is not train, validation or test", here()));
                split::of_word(word).ok_or_else(unknown)?
            }
        };
        listing.items.push(items.value(row).into());
        listing.splits.push(split);
        listing.places.push(Place::Parquet { file: number, row: *next + row as u64 });
    }
    for labels in &mut listing.columns {
        add_labels(labels, column(&labels.name)?, blame, |row| format!("`{path}` row {}", *next + row))?;
    }
    *next += batch.num_rows() as u64;
    Ok(())
}

fn add_labels(labels: &mut Column, column: &ArrayRef, blame: &Blame, place: impl Fn(u64) -> String) -> Result<()> {
    if let Some(flags) = column.as_boolean_opt() {
        flags.iter().for_each(|flag| labels.push(Word::of_flag(flag), String::new));
        return Ok(());
    }
    if column.data_type().is_integer() {
        let numbers = cast(column, &DataType::Int64).map_err(|e| blame.error(e))?;
        for (row, number) in (0u64..).zip(numbers.as_primitive::<Int64Type>()) {
            labels.push(Word::of_number(number), || format!("{}: {}", place(row), number.unwrap_or_default()));
        }
        return Ok(());
    }
    let words = cast(column, &DataType::Utf8).map_err(|e| blame.error(e))?;
    for (row, word) in (0u64..).zip(words.as_string::<i32>()) {
        let word = word.unwrap_or_default();
        labels.push(Word::usual(word), || format!("{}: `{}`", place(row), word.chars().take(60).collect::<String>()));
    }
    Ok(())
}

/// The length of the first vector.
fn dim_of(path: &str, columns: &Columns, files: Arc<dyn Files>) -> Result<u32> {
    let (builder, blame) = open(path, files)?;
    let place = format!("`{path}`");
    if let Ok(field) = builder.schema().field_with_name(&columns.vector)
        && let DataType::FixedSizeList(_, length) = field.data_type()
    {
        return check_dim(&place, usize::try_from(*length).unwrap_or(0));
    }
    let mask = projection(&builder, |column| is_inside(column, &columns.vector));
    let mut reader =
        builder.with_projection(mask).with_limit(1).with_batch_size(1).build().map_err(|e| blame.error(e))?;
    let batch = reader.next().ok_or_else(|| changed(path))?.map_err(|e| blame.error(e))?;
    let lists = Lists::of(path, &batch, &columns.vector)?;
    check_dim(&place, lists.vector(0, &blame)?.map_or(0, |vector| vector.len()))
}

/// Whether a leaf of the file belongs to a column.
fn is_inside(leaf: &str, column: &str) -> bool {
    leaf.strip_prefix(column).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A column of lists of numbers.
struct Lists<'a>(&'a ArrayRef);

impl<'a> Lists<'a> {
    fn of(path: &str, batch: &'a RecordBatch, name: &str) -> Result<Self> {
        let column = batch.column_by_name(name).ok_or_else(|| changed(path))?;
        if is_vector(column.data_type()) {
            return Ok(Self(column));
        }
        let found = column.data_type();
        Err(Error::invalid(format!("`{path}`: column `{name}` is {found}, expected lists of f32, f64 or f16")))
    }

    /// None where it, or a number of it, is null.
    fn vector(&self, row: usize, blame: &Blame) -> Result<Option<Vec<f32>>> {
        if self.0.is_null(row) {
            return Ok(None);
        }
        let values = match self.0.data_type() {
            DataType::FixedSizeList(..) => self.0.as_fixed_size_list().value(row),
            DataType::List(_) => self.0.as_list::<i32>().value(row),
            _ => self.0.as_list::<i64>().value(row),
        };
        if values.null_count() > 0 {
            return Ok(None);
        }
        let values = cast(&values, &DataType::Float32).map_err(|e| blame.error(e))?;
        Ok(Some(values.as_primitive::<Float32Type>().values().to_vec()))
    }
}

fn read_run(import: &Import, path: &str, rows: &[ScanRow], files: Arc<dyn Files>, vectors: &mut Vectors) -> Result<()> {
    let (builder, blame) = open(path, files)?;
    let columns = Columns::of(path, builder.schema(), import)?;
    let mask = projection(&builder, |column| is_inside(column, &columns.vector));
    let present = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let (_, first) = row_of(&rows[0].place)?;
    // A scan lists all rows of a file, so some of them in a row are consecutive ones.
    if first + rows.len() as u64 > present {
        return Err(changed(path));
    }
    let skip = usize::try_from(first).map_err(|_| changed(path))?;
    let selection = RowSelection::from(vec![RowSelector::skip(skip), RowSelector::select(rows.len())]);
    let builder = builder.with_projection(mask).with_row_selection(selection).with_batch_size(BATCH);
    let mut rest = rows.iter();
    for batch in builder.build().map_err(|e| blame.error(e))? {
        let batch = batch.map_err(|e| blame.error(e))?;
        let lists = Lists::of(path, &batch, &columns.vector)?;
        for at in 0..batch.num_rows() {
            let row = rest.next().ok_or_else(|| changed(path))?;
            let place = || format!("`{path}` row {}", row_of(&row.place).map_or(0, |(_, row)| row));
            let vector = lists.vector(at, &blame)?;
            let null = || Error::invalid(format!("{}: the vector of `{}` is null", place(), row.item));
            vectors.push(&vector.ok_or_else(null)?, &row.item, place)?;
        }
    }
    if rest.next().is_some() { Err(changed(path)) } else { Ok(()) }
}
