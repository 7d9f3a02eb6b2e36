//! The result sheet: a picture of a query and of the images found.

mod canvas;

use image::{Rgb, RgbImage, imageops};

use canvas::{Canvas, Font, LINE_SMALL, LINE_TITLE};

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([28, 32, 40]);
const FAINT: Rgb<u8> = Rgb([120, 126, 136]);
const AGREES: Rgb<u8> = Rgb([20, 122, 62]);
const DISAGREES: Rgb<u8> = Rgb([192, 38, 38]);
const EMPTY: Rgb<u8> = Rgb([236, 238, 242]);

/// Side of the square that an image is fitted into, pixels.
const PICTURE: u32 = 160;
const GAP: u32 = 16;
const HEADER: u32 = GAP + LINE_TITLE + 6 + LINE_SMALL + GAP;
/// Attributes under a picture; more would make the sheet longer than anybody reads.
const MAX_MARKS: usize = 6;
/// The header stays readable.
const MIN_COLUMNS: u32 = 4;
const MAX_COLUMNS: u32 = 8;

/// What is drawn.
#[derive(Debug)]
pub struct Sheet {
    /// The query: `+Smiling −Male`.
    pub title: String,
    /// Who answered and how completely.
    pub subtitle: String,
    /// The images found, nearest first.
    pub cells: Vec<Cell>,
}

/// One image found.
#[derive(Debug)]
pub struct Cell {
    /// The picture; `None` when it can't be decoded.
    pub image: Option<RgbImage>,
    /// Rank and distance.
    pub caption: String,
    /// The attributes asked for.
    pub marks: Vec<Mark>,
}

/// An attribute that was asked for.
#[derive(Debug)]
pub struct Mark {
    /// `+Smiling`.
    pub text: String,
    /// Whether the image's label is as asked; `None` when it is not known.
    pub agrees: Option<bool>,
}

/// Where everything stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    columns: u32,
    cell_height: u32,
    width: u32,
    height: u32,
}

impl Layout {
    fn of(sheet: &Sheet) -> Self {
        let cells = u32::try_from(sheet.cells.len()).unwrap_or(u32::MAX);
        // About four columns to three rows.
        let columns = ((f64::from(cells) * 4.0 / 3.0).sqrt().ceil() as u32).clamp(MIN_COLUMNS, MAX_COLUMNS);
        let marks = sheet.cells.iter().map(|cell| cell.marks.len().min(MAX_MARKS)).max().unwrap_or(0) as u32;
        let cell_height = PICTURE + (1 + marks) * LINE_SMALL + GAP;
        Self {
            columns,
            cell_height,
            width: GAP + columns * (PICTURE + GAP),
            height: HEADER + cells.div_ceil(columns).max(1) * cell_height,
        }
    }

    /// Top left corner of a cell.
    fn place(&self, index: usize) -> (u32, u32) {
        let index = index as u32;
        let (row, column) = (index / self.columns, index % self.columns);
        (GAP + column * (PICTURE + GAP), HEADER + row * self.cell_height)
    }
}

/// Draws the sheet.
pub fn draw(sheet: &Sheet) -> RgbImage {
    let layout = Layout::of(sheet);
    let mut canvas = Canvas::new(layout.width, layout.height, PAPER);
    let line = layout.width - 2 * GAP;
    canvas.text(GAP, GAP, line, &sheet.title, Font::Title, INK);
    canvas.text(GAP, GAP + LINE_TITLE + 6, line, &sheet.subtitle, Font::Small, FAINT);
    if sheet.cells.is_empty() {
        canvas.text(GAP, HEADER, line, "nothing found", Font::Small, INK);
    }
    for (index, cell) in sheet.cells.iter().enumerate() {
        draw_cell(&mut canvas, layout.place(index), cell);
    }
    canvas.into_image()
}

fn draw_cell(canvas: &mut Canvas, (x, y): (u32, u32), cell: &Cell) {
    canvas.fill(x, y, PICTURE, PICTURE, EMPTY);
    match &cell.image {
        Some(image) => {
            let (width, height) = fitted(image.dimensions());
            let scaled = imageops::resize(image, width, height, imageops::FilterType::CatmullRom);
            canvas.paste(x + (PICTURE - width) / 2, y + (PICTURE - height) / 2, &scaled);
        }
        None => canvas.text(x + 8, y + PICTURE / 2, PICTURE - 16, "unreadable", Font::Small, FAINT),
    }
    let mut below = y + PICTURE + 2;
    canvas.text(x, below, PICTURE, &cell.caption, Font::Strong, INK);
    for mark in cell.marks.iter().take(MAX_MARKS) {
        below += LINE_SMALL;
        let color = match mark.agrees {
            Some(true) => AGREES,
            Some(false) => DISAGREES,
            None => FAINT,
        };
        canvas.text(x, below, PICTURE, &mark.text, Font::Small, color);
    }
}

/// The largest size of the same proportions within the square.
fn fitted((width, height): (u32, u32)) -> (u32, u32) {
    let scale = f64::from(PICTURE) / f64::from(width.max(height).max(1));
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).clamp(1, PICTURE);
    (side(width), side(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet(cells: usize, marks: &[(&str, Option<bool>)]) -> Sheet {
        let cell = |i: usize| Cell {
            image: (i % 5 != 4).then(|| RgbImage::from_pixel(89, 109, Rgb([40, 90, 200]))),
            caption: format!("{}  0.{i:03}", i + 1),
            marks: marks.iter().map(|(text, agrees)| Mark { text: text.to_string(), agrees: *agrees }).collect(),
        };
        Sheet {
            title: "+Smiling −Male".into(),
            subtitle: "main release 1: 3,000 of 3,000 images".into(),
            cells: (0..cells).map(cell).collect(),
        }
    }

    #[test]
    fn cells_neither_overlap_nor_leave_the_sheet() {
        for cells in [0, 1, 3, 4, 5, 20, 57, 200] {
            let sheet = sheet(cells, &[("+Smiling", Some(true)), ("−Male", None)]);
            let layout = Layout::of(&sheet);
            for i in 0..cells {
                let (x, y) = layout.place(i);
                assert!(x + PICTURE + GAP <= layout.width && y + layout.cell_height <= layout.height);
                for j in 0..i {
                    let (u, v) = layout.place(j);
                    assert!(x.abs_diff(u) >= PICTURE + GAP || y.abs_diff(v) >= layout.cell_height);
                }
            }
            assert_eq!(draw(&sheet).dimensions(), (layout.width, layout.height));
        }
    }

    #[test]
    fn pictures_keep_their_proportions() {
        assert_eq!(fitted((89, 109)), (131, 160));
        assert_eq!(fitted((320, 160)), (160, 80));
        assert_eq!(fitted((10_000, 1)), (160, 1));
        assert_eq!(fitted((20, 20)), (160, 160));
    }

    #[test]
    fn agreement_shows_in_colour() {
        let has = |agrees: Option<bool>, color: Rgb<u8>| {
            draw(&sheet(1, &[("+Smiling", agrees)])).pixels().any(|pixel| *pixel == color)
        };
        assert!(has(Some(true), AGREES) && !has(Some(true), DISAGREES));
        assert!(has(Some(false), DISAGREES) && !has(Some(false), AGREES));
        assert!(!has(None, AGREES) && !has(None, DISAGREES));
    }

    #[test]
    fn many_attributes_do_not_grow_the_sheet_without_end() {
        let marks = [("+a", Some(true)); 40];
        assert_eq!(Layout::of(&sheet(1, &marks)).cell_height, PICTURE + 7 * LINE_SMALL + GAP);
    }
}
