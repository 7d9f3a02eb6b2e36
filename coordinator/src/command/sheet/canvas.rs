//! Filled boxes, pictures and text on an RGB image. Whatever would leave the image is cut off.

use image::{Rgb, RgbImage, imageops};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, RasterizedChar, get_raster};

/// Height of a line of small text, pixels.
pub const LINE_SMALL: u32 = RasterHeight::Size16.val() as u32 + 2;
/// Height of the title's line.
pub const LINE_TITLE: u32 = RasterHeight::Size20.val() as u32 + 2;

/// The three ways to set text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Font {
    /// The query.
    Title,
    /// Captions.
    Strong,
    /// Everything else.
    Small,
}

impl Font {
    fn raster(self, c: char) -> Option<RasterizedChar> {
        match self {
            Self::Title => get_raster(c, FontWeight::Bold, RasterHeight::Size20),
            Self::Strong => get_raster(c, FontWeight::Bold, RasterHeight::Size16),
            Self::Small => get_raster(c, FontWeight::Regular, RasterHeight::Size16),
        }
    }

    /// The glyph of a character, or of the nearest one that the font has.
    fn glyph(self, c: char) -> Option<RasterizedChar> {
        let plain = match c {
            '−' | '–' | '—' => '-',
            '…' => '.',
            other => other,
        };
        self.raster(plain).or_else(|| self.raster('?'))
    }
}

/// An image that is drawn on.
#[derive(Debug)]
pub struct Canvas(RgbImage);

impl Canvas {
    /// An empty one.
    pub fn new(width: u32, height: u32, paper: Rgb<u8>) -> Self {
        Self(RgbImage::from_pixel(width, height, paper))
    }

    /// What was drawn.
    pub fn into_image(self) -> RgbImage {
        self.0
    }

    /// A filled box.
    pub fn fill(&mut self, x: u32, y: u32, width: u32, height: u32, color: Rgb<u8>) {
        for row in y..(y + height).min(self.0.height()) {
            for column in x..(x + width).min(self.0.width()) {
                self.0.put_pixel(column, row, color);
            }
        }
    }

    /// A picture.
    pub fn paste(&mut self, x: u32, y: u32, image: &RgbImage) {
        imageops::replace(&mut self.0, image, x.into(), y.into());
    }

    /// One line of text, cut to `width` pixels.
    pub fn text(&mut self, x: u32, y: u32, width: u32, text: &str, font: Font, color: Rgb<u8>) {
        let mut left = x;
        for glyph in text.chars().filter_map(|c| font.glyph(c)) {
            let advance = glyph.width() as u32;
            if left + advance > x + width {
                break;
            }
            self.glyph(left, y, &glyph, color);
            left += advance;
        }
    }

    fn glyph(&mut self, x: u32, y: u32, glyph: &RasterizedChar, color: Rgb<u8>) {
        for (dy, row) in (0..).zip(glyph.rows()) {
            for (dx, strength) in (0..).zip(row) {
                if let Some(pixel) = self.0.get_pixel_mut_checked(x + dx, y + dy) {
                    *pixel = blend(*pixel, color, *strength);
                }
            }
        }
    }
}

fn blend(under: Rgb<u8>, over: Rgb<u8>, strength: u8) -> Rgb<u8> {
    let mix = |a: u8, b: u8| {
        let strength = u32::from(strength);
        ((u32::from(a) * (255 - strength) + u32::from(b) * strength + 127) / 255) as u8
    };
    Rgb([mix(under[0], over[0]), mix(under[1], over[1]), mix(under[2], over[2])])
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHITE: Rgb<u8> = Rgb([255; 3]);
    const BLACK: Rgb<u8> = Rgb([0; 3]);

    fn inked(canvas: &Canvas) -> usize {
        canvas.0.pixels().filter(|pixel| **pixel != WHITE).count()
    }

    #[test]
    fn text_is_cut_at_its_width_and_at_the_edge() {
        let mut wide = Canvas::new(400, 30, WHITE);
        wide.text(0, 0, 400, "+Smiling", Font::Small, BLACK);
        let mut narrow = Canvas::new(400, 30, WHITE);
        narrow.text(0, 0, 20, "+Smiling", Font::Small, BLACK);
        assert!(inked(&narrow) > 0 && inked(&narrow) < inked(&wide));
        let mut outside = Canvas::new(10, 10, WHITE);
        outside.text(5, 5, 400, "+Smiling", Font::Title, BLACK);
        outside.fill(8, 8, 100, 100, BLACK);
    }

    #[test]
    fn signs_and_accents_have_glyphs_and_others_a_stand_in() {
        for c in ['+', '−', 'é', '漢'] {
            let mut canvas = Canvas::new(40, 40, WHITE);
            canvas.text(0, 0, 40, &c.to_string(), Font::Strong, BLACK);
            assert!(inked(&canvas) > 0, "{c}");
        }
    }

    #[test]
    fn full_strength_is_the_colour_itself() {
        assert_eq!(blend(WHITE, BLACK, 255), BLACK);
        assert_eq!(blend(WHITE, BLACK, 0), WHITE);
    }
}
