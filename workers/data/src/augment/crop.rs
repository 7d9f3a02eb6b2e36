//! torchvision's `RandomResizedCrop.get_params`.

use likeness_contract::settings::ResizedCrop;

use crate::image::Window;
use crate::random::{Purpose, below, stream, unit};

/// Draws before the largest centred part of an allowed shape is taken instead.
const TRIES: usize = 10;

/// The part of a `width × height` image that becomes the input: its area is a uniform share of the image's, the
/// logarithm of its shape is uniform, and it lies anywhere.
pub(crate) fn resized_window(crop: &ResizedCrop, seed: u64, width: u32, height: u32) -> Window {
    let mut rng = stream(seed, Purpose::Crop, 0);
    let between = |[least, most]: [f64; 2], share: f32| least + (most - least) * f64::from(share);
    let [scale, ratio] = [crop.scale, crop.ratio].map(|range| range.map(f64::from));
    let area = f64::from(width) * f64::from(height);
    for _ in 0..TRIES {
        let target = area * between(scale, unit(&mut rng));
        let shape = between(ratio.map(f64::ln), unit(&mut rng)).exp();
        let (w, h) = ((target * shape).sqrt().round_ties_even(), (target / shape).sqrt().round_ties_even());
        if (1.0..=f64::from(width)).contains(&w) && (1.0..=f64::from(height)).contains(&h) {
            let top = below(&mut rng, (f64::from(height) - h) as usize + 1) as f64;
            let left = below(&mut rng, (f64::from(width) - w) as usize + 1) as f64;
            return Window { left, top, width: w, height: h };
        }
    }
    centred(f64::from(width), f64::from(height), ratio)
}

/// The whole image, cut at two sides where its shape is not allowed.
fn centred(width: f64, height: f64, [narrowest, widest]: [f64; 2]) -> Window {
    let shape = width / height;
    let (w, h) = if shape < narrowest {
        (width, (width / narrowest).round_ties_even().min(height))
    } else if shape > widest {
        ((height * widest).round_ties_even().min(width), height)
    } else {
        (width, height)
    };
    Window { left: ((width - w) / 2.0).floor(), top: ((height - h) / 2.0).floor(), width: w, height: h }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: ResizedCrop = ResizedCrop { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] };

    fn windows(crop: &ResizedCrop, width: u32, height: u32) -> Vec<Window> {
        (0..20_000).map(|seed| resized_window(crop, seed, width, height)).collect()
    }

    fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
        values.clone().sum::<f64>() / values.count() as f64
    }

    #[test]
    fn a_window_lies_within_the_image_and_keeps_area_and_shape_in_their_ranges() {
        for window in windows(&USUAL, 178, 218) {
            let Window { left, top, width, height } = window;
            assert!(left >= 0.0 && top >= 0.0 && left + width <= 178.0 && top + height <= 218.0, "{window:?}");
            let (area, shape) = (width * height / (178.0 * 218.0), width / height);
            assert!((0.075..=1.0).contains(&area) && (0.72..=1.39).contains(&shape), "{window:?}");
        }
    }

    // from torchvision.transforms import RandomResizedCrop; import torch
    // p = torch.tensor([RandomResizedCrop.get_params(torch.empty(3, 218, 178), (0.08, 1.0), (3/4, 4/3))
    //                   for _ in range(200000)]).double()
    // print(p.mean(0), (p[:, 2] * p[:, 3]).mean() / (178 * 218))   # top, left, height, width, area
    #[test]
    fn windows_are_as_torchvisions_in_the_mean() {
        let windows = windows(&USUAL, 178, 218);
        let means = [
            mean(windows.iter().map(|w| w.top)),
            mean(windows.iter().map(|w| w.left)),
            mean(windows.iter().map(|w| w.height)),
            mean(windows.iter().map(|w| w.width)),
            mean(windows.iter().map(|w| 100.0 * w.width * w.height / (178.0 * 218.0))),
        ];
        for (got, torchvision) in means.iter().zip([43.23, 25.59, 131.59, 126.90, 45.95]) {
            assert!((got - torchvision).abs() < 1.0, "{means:?}");
        }
    }

    #[test]
    fn an_image_that_no_draw_fits_gives_its_middle() {
        let thin = ResizedCrop { scale: [1.0, 1.0], ..USUAL };
        assert_eq!(resized_window(&thin, 1, 20, 200), Window { left: 0.0, top: 86.0, width: 20.0, height: 27.0 });
        assert_eq!(resized_window(&thin, 1, 200, 20), Window { left: 86.0, top: 0.0, width: 27.0, height: 20.0 });
    }

    #[test]
    fn a_window_depends_on_its_seed_alone() {
        let at = |seed| resized_window(&USUAL, seed, 178, 218);
        assert_eq!(at(5), at(5));
        assert_ne!(at(5), at(6));
    }
}
