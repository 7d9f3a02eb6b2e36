//! torchvision's `adjust_brightness`, `adjust_contrast`, `adjust_saturation`, `adjust_hue` on numbers from 0 to 1.

use super::ColourStep;

/// Weights of R, G and B in a grey, as torchvision has them.
const GREY: [f32; 3] = [0.2989, 0.587, 0.114];

/// Changes the colours of planes of R, G and B, 0–1 each.
pub(crate) fn change_colours(steps: &[ColourStep], planes: &mut [f32]) {
    let pixels = planes.len() / 3;
    let (r, rest) = planes.split_at_mut(pixels);
    let (g, b) = rest.split_at_mut(pixels);
    for step in steps {
        match *step {
            ColourStep::Brightness(factor) => each(r, g, b, |rgb| rgb.map(|v| clamp(v * factor))),
            ColourStep::Contrast(factor) => {
                let grey = mean_grey(r, g, b);
                each(r, g, b, |rgb| rgb.map(|v| blend(v, grey, factor)));
            }
            ColourStep::Saturation(factor) => each(r, g, b, |rgb| rgb.map(|v| blend(v, grey_of(rgb), factor))),
            ColourStep::Hue(turn) => {
                if turn != 0.0 {
                    each(r, g, b, |rgb| turned(rgb, turn));
                }
            }
        }
    }
}

fn each(r: &mut [f32], g: &mut [f32], b: &mut [f32], change: impl Fn([f32; 3]) -> [f32; 3]) {
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        [*r, *g, *b] = change([*r, *g, *b]);
    }
}

fn clamp(v: f32) -> f32 {
    v.clamp(0.0, 1.0)
}

fn blend(v: f32, with: f32, share: f32) -> f32 {
    clamp(share * v + (1.0 - share) * with)
}

fn grey_of(rgb: [f32; 3]) -> f32 {
    rgb.iter().zip(GREY).map(|(v, weight)| v * weight).sum()
}

/// In f64: the mean of a large image keeps its digits.
fn mean_grey(r: &[f32], g: &[f32], b: &[f32]) -> f32 {
    let sum: f64 = r.iter().zip(g).zip(b).map(|((r, g), b)| f64::from(grey_of([*r, *g, *b]))).sum();
    (sum / r.len() as f64) as f32
}

/// The hue of a pixel turned by a share of the circle, by way of HSV.
fn turned([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [r, g, b];
    }
    let spread = most - least;
    let sector = if most == r {
        (g - b) / spread
    } else if most == g {
        2.0 + (b - r) / spread
    } else {
        4.0 + (r - g) / spread
    };
    let hue = 6.0 * (sector / 6.0 + turn).rem_euclid(1.0);
    let saturation = spread / most;
    let (whole, part) = (hue.floor(), hue - hue.floor());
    let p = clamp(most * (1.0 - saturation));
    let q = clamp(most * (1.0 - saturation * part));
    let t = clamp(most * (1.0 - saturation * (1.0 - part)));
    match whole as u32 % 6 {
        0 => [most, t, p],
        1 => [q, most, p],
        2 => [p, most, t],
        3 => [p, q, most],
        4 => [t, p, most],
        _ => [most, p, q],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four pixels: planes of R, G and B.
    const IMAGE: [f32; 12] = [0.9, 0.1, 0.5, 0.25, 0.2, 0.4, 0.5, 0.75, 0.1, 0.8, 0.5, 0.3];

    // import torch; from torchvision.transforms import functional as F
    // x = torch.tensor(IMAGE).reshape(3, 2, 2)
    // for f in (F.adjust_brightness(x, 1.4), F.adjust_contrast(x, 0.6), F.adjust_saturation(x, 1.7), F.adjust_hue(x, 0.2),
    //           F.adjust_hue(x, -0.45)): print(f.flatten())
    const TORCHVISION: [(ColourStep, [f32; 12]); 5] = [
        (
            ColourStep::Brightness(1.4),
            [
                1.0000000, 0.1400000, 0.7000000, 0.3500000, 0.2800000, 0.5600000, 0.7000000, 1.0000000, 0.1400000,
                1.0000000, 0.7000000, 0.4200000,
            ],
        ),
        (
            ColourStep::Contrast(0.6),
            [
                0.7202826, 0.2402825, 0.4802825, 0.3302825, 0.3002825, 0.4202825, 0.4802825, 0.6302825, 0.2402825,
                0.6602826, 0.4802825, 0.3602825,
            ],
        ),
        (
            ColourStep::Saturation(1.7),
            [
                1.0000000, 0.0000000, 0.5000350, 0.0405775, 0.0615330, 0.4308770, 0.5000350, 0.8905776, 0.0000000,
                1.0000000, 0.5000350, 0.1255775,
            ],
        ),
        (
            ColourStep::Hue(0.2),
            [
                0.6399997, 0.6400003, 0.5000000, 0.2500000, 0.9000000, 0.1000000, 0.5000000, 0.5999999, 0.1000000,
                0.8000000, 0.5000000, 0.7500000,
            ],
        ),
        (
            ColourStep::Hue(-0.45),
            [
                0.1000000, 0.8000000, 0.5000000, 0.7500000, 0.5599998, 0.7100005, 0.5000000, 0.2500000, 0.9000000,
                0.1000000, 0.5000000, 0.5500000,
            ],
        ),
    ];

    #[test]
    fn every_step_is_torchvisions() {
        for (step, expected) in TORCHVISION {
            let mut planes = IMAGE;
            change_colours(&[step], &mut planes);
            let close = planes.iter().zip(expected).all(|(got, want)| (got - want).abs() < 1e-6);
            assert!(close, "{step:?}: {planes:?} instead of {expected:?}");
        }
    }

    #[test]
    fn steps_follow_each_other_in_their_order() {
        let (dark, turn) = (ColourStep::Brightness(2.0), ColourStep::Contrast(0.5));
        let after = |steps: &[ColourStep]| {
            let mut planes = IMAGE;
            change_colours(steps, &mut planes);
            planes
        };
        assert_ne!(after(&[dark, turn]), after(&[turn, dark]), "what is clamped first is gone");
    }
}
