//! A small data set in the layout of CelebA whose attributes can be seen in the images.
//!
//! | attribute | in the image |
//! |---|---|
//! | `Warm` | red background instead of blue |
//! | `Disc` | a white disc in the middle |
//! | `Striped` | dark vertical bars |
//! | `Bright` | a light frame |

use std::fmt::Write;
use std::path::{Path, PathBuf};

use image::{ImageFormat, Rgb, RgbImage};

/// Names of the attributes, in order.
pub const ATTRIBUTES: [&str; 4] = ["Warm", "Disc", "Striped", "Bright"];
/// Side of the images in pixels.
const SIDE: u32 = 40;

/// The labels of a row: every combination in turn.
pub fn labels(row: usize) -> [bool; 4] {
    [0, 1, 2, 3].map(|attribute| (row * 7 + row / 16) >> attribute & 1 == 1)
}

/// The file name of a row, which is its item id.
pub fn item(row: usize) -> String {
    format!("{:06}.jpg", row + 1)
}

/// Writes `rows` images and their lists; of six rows four are for training, one for validation, one for tests.
pub fn write(dir: &Path, rows: usize) -> PathBuf {
    let root = dir.join("faces");
    let images = root.join("img_align_celeba");
    std::fs::create_dir_all(&images).expect("a folder for images");
    let mut attributes = format!("{rows}\n{}\n", ATTRIBUTES.join(" "));
    let mut partition = String::new();
    for row in 0..rows {
        let file = images.join(item(row));
        draw(row).save_with_format(&file, ImageFormat::Jpeg).expect("an image is written");
        let signs = labels(row).map(|has| if has { " 1" } else { "-1" });
        writeln!(attributes, "{} {}", item(row), signs.join(" ")).expect("a String takes everything");
        let split = [0, 0, 1, 0, 2, 0][row % 6];
        writeln!(partition, "{} {split}", item(row)).expect("a String takes everything");
    }
    std::fs::write(root.join("list_attr_celeba.txt"), attributes).expect("the list is written");
    std::fs::write(root.join("list_eval_partition.txt"), partition).expect("the list is written");
    root
}

/// The image file of a row.
pub fn image(root: &Path, row: usize) -> PathBuf {
    root.join("img_align_celeba").join(item(row))
}

/// An image that no other row has: colours differ a little from row to row.
fn draw(row: usize) -> RgbImage {
    let [warm, disc, striped, bright] = labels(row);
    let tint = u8::try_from(row * 13 % 40).expect("below 40");
    let background = if warm { [200, 40 + tint, 40] } else { [40, 40 + tint, 200] };
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let (dx, dy) = (x.abs_diff(SIDE / 2), y.abs_diff(SIDE / 2));
        let frame = x.min(y).min(SIDE - 1 - x).min(SIDE - 1 - y) < 4;
        match () {
            () if disc && dx * dx + dy * dy < 80 => Rgb([250, 250, 250]),
            () if bright && frame => Rgb([230, 230, 150]),
            () if striped && x % 8 < 3 => Rgb(background.map(|channel| channel / 4)),
            () => Rgb(background),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_attributes_comes_equally_often() {
        let mut counts = std::collections::BTreeMap::new();
        for row in 0..96 {
            *counts.entry(labels(row)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 16);
        assert!(counts.values().all(|count| (4..=8).contains(count)), "{counts:?}");
    }
}
