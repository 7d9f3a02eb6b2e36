//! What may be changed of a training image, as torchvision defines it, and how it is drawn.
//!
//! **Order**: crop, mirror, colours, normalisation. What a triplet's image undergoes is drawn with the triplet
//! ([`Augment`]) and is a pure function of seed and step; a random resized crop depends on the image's size too, so the
//! triplet carries the seed of its draws.

mod colour;
mod crop;

use likeness_contract::settings::{ColourJitter, TrainSettings};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use crate::random::{coin, shuffle, unit};

pub(crate) use colour::change_colours;
pub(crate) use crop::resized_window;

/// How an image is changed in training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// Left and right change places.
    pub mirror: bool,
    /// Horizontal place of the crop, −1 (leftmost) to 1; 0 is the centre.
    pub dx: f32,
    /// Vertical place of the crop, −1 (topmost) to 1.
    pub dy: f32,
    /// Seed of a random resized crop, where images are cropped so.
    pub resized: Option<u64>,
    /// Changes of its colours.
    pub colour: Option<ColourChange>,
}

impl Augment {
    /// The image as it is.
    pub const NONE: Self = Self { mirror: false, dx: 0.0, dy: 0.0, resized: None, colour: None };
}

/// One of the four ways to change colours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ColourStep {
    /// Multiplied by the factor.
    Brightness(f32),
    /// The factor's share of the image, the rest its mean grey.
    Contrast(f32),
    /// The factor's share of the image, the rest its grey.
    Saturation(f32),
    /// The hue turned by this share of the circle.
    Hue(f32),
}

/// Changes of colours in their order.
pub type ColourChange = [ColourStep; 4];

/// What the settings of a training allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Augmentation {
    mirror: bool,
    crop: bool,
    resized: bool,
    colour: ColourJitter,
}

impl Augmentation {
    pub fn of(settings: &TrainSettings) -> Self {
        Self {
            mirror: settings.mirror,
            crop: settings.random_crop > 0.0,
            resized: settings.resized_crop.is_some(),
            colour: settings.colour,
        }
    }

    /// Draws what happens to an image. What is switched off takes nothing from `rng`.
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> Augment {
        let mirror = self.mirror && coin(rng);
        let mut shift = || if self.crop { 2.0 * unit(rng) - 1.0 } else { 0.0 };
        let (dx, dy) = (shift(), shift());
        let resized = self.resized.then(|| rng.next_u64());
        let colour = (!self.colour.is_off()).then(|| self.colours(rng));
        Augment { mirror, dx, dy, resized, colour }
    }

    /// The four steps with factors as `ColorJitter` draws them, in random order.
    fn colours(&self, rng: &mut ChaCha8Rng) -> ColourChange {
        let ColourJitter { brightness, contrast, saturation, hue } = self.colour;
        let mut between = |least: f32, most: f32| least + (most - least) * unit(rng);
        let mut factor = |jitter: f32| between((1.0 - jitter).max(0.0), 1.0 + jitter);
        let (brightness, contrast, saturation) = (factor(brightness), factor(contrast), factor(saturation));
        let hue = between(-hue, hue);
        let mut steps = [
            ColourStep::Brightness(brightness),
            ColourStep::Contrast(contrast),
            ColourStep::Saturation(saturation),
            ColourStep::Hue(hue),
        ];
        shuffle(rng, &mut steps);
        steps
    }
}
