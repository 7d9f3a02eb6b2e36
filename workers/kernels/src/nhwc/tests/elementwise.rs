use proptest::prelude::*;

use super::super::*;
use super::{bits, config, error, values};
use crate::reference;
use crate::threads::with_threads;

const EPS: f64 = 1e-5;

/// Batch norm of `y (pixels, c)` with a ReLU behind it, in `f64`.
fn norm(y: &[f32], gamma: &[f32], beta: &[f32]) -> Vec<f64> {
    let c = gamma.len();
    let mut z = vec![0.0; y.len()];
    for i in 0..c {
        let of_channel = || y.iter().skip(i).step_by(c).map(|v| f64::from(*v));
        let n = (y.len() / c) as f64;
        let mean = of_channel().sum::<f64>() / n;
        let variance = of_channel().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        for (z, v) in z.iter_mut().skip(i).step_by(c).zip(of_channel()) {
            *z = (v - mean) / (variance + EPS).sqrt() * f64::from(gamma[i]) + f64::from(beta[i]);
        }
    }
    z
}

/// The same through the operations: `(z, mean, inv_std)`.
fn norm_by_operations(y: &[f32], gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut sums = ChannelSums::default();
    channel_sums(y, gamma.len(), &mut sums);
    let n = (y.len() / gamma.len()) as f64;
    let mean: Vec<f32> = sums.sum.iter().map(|s| (s / n) as f32).collect();
    let variance = sums.square.iter().zip(&sums.sum).map(|(q, s)| q / n - (s / n).powi(2));
    let inv_std: Vec<f32> = variance.map(|v| (1.0 / (v + EPS).sqrt()) as f32).collect();
    let scale: Vec<f32> = gamma.iter().zip(&inv_std).map(|(g, i)| g * i).collect();
    let shift: Vec<f32> = beta.iter().zip(mean.iter().zip(&scale)).map(|(b, (m, s))| b - m * s).collect();
    let mut z = vec![f32::NAN; y.len()];
    scale_shift(y, &scale, &shift, None, true, &mut z);
    (z, mean, inv_std)
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn norm_equals_its_formula(c in 1usize..80, pixels in 8usize..60) {
        let y: Vec<f32> = values(1, c * pixels).iter().map(|v| v * 3.0 + 1.0).collect();
        let (gamma, beta) = (values(2, c), values(3, c));
        let (z, _, _) = norm_by_operations(&y, &gamma, &beta);
        let want: Vec<f32> = norm(&y, &gamma, &beta).iter().map(|v| v.max(0.0) as f32).collect();
        prop_assert!(error(&z, &want) < 1e-5);
    }

    #[test]
    fn norm_gradient_equals_finite_differences(c in 1usize..6, pixels in 3usize..9, relu: bool, in_place: bool) {
        let (y, r) = (values(1, c * pixels), values(4, c * pixels));
        let (gamma, beta) = (values(2, c), values(3, c));
        let loss = |y: &[f32], gamma: &[f32], beta: &[f32]| -> f64 {
            let z = norm(y, gamma, beta);
            z.iter().zip(&r).map(|(z, r)| if relu { z.max(0.0) } else { *z } * f64::from(*r)).sum()
        };
        let (z, mean, inv_std) = norm_by_operations(&y, &gamma, &beta);
        let (mut g, mut dy) = (r.clone(), vec![f32::NAN; y.len()]);
        let (mut dgamma, mut dbeta) = (vec![f32::NAN; c], vec![f32::NAN; c]);
        let out = (!in_place).then_some(&mut dy[..]);
        norm_backward(&y, relu.then_some(&z), &mut g, &mean, &inv_std, &gamma, out, &mut dgamma, &mut dbeta);
        if !in_place && relu {
            let masked: Vec<f32> = z.iter().zip(&r).map(|(z, r)| if *z > 0.0 { *r } else { 0.0 }).collect();
            prop_assert_eq!(&g, &masked);
        }
        let dy = if in_place { g } else { dy };
        let slope = |at: &mut dyn FnMut(f32) -> f64| (at(H) - at(-H)) / (2.0 * f64::from(H));
        const H: f32 = 1e-3;
        let nudged = |v: &[f32], i: usize, by: f32| { let mut v = v.to_vec(); v[i] += by; v };
        // Where a ReLU has its corner inside the step the slope says nothing.
        let smooth = !relu || norm(&y, &gamma, &beta).iter().all(|z| z.abs() > 0.1);
        if smooth {
            for (i, dy) in dy.iter().enumerate() {
                let want = slope(&mut |h| loss(&nudged(&y, i, h), &gamma, &beta));
                prop_assert!((f64::from(*dy) - want).abs() < 2e-2 * want.abs().max(1.0), "dy {dy} {want}");
            }
            for i in 0..c {
                let want = slope(&mut |h| loss(&y, &nudged(&gamma, i, h), &beta));
                prop_assert!((f64::from(dgamma[i]) - want).abs() < 1e-2 * want.abs().max(1.0));
                let want = slope(&mut |h| loss(&y, &gamma, &nudged(&beta, i, h)));
                prop_assert!((f64::from(dbeta[i]) - want).abs() < 1e-2 * want.abs().max(1.0));
            }
        }
    }

    #[test]
    fn max_pool_equals_the_reference(n in 1usize..4, c in 1usize..40, h in 1usize..12, w in 1usize..12) {
        let dims = Dims { n, h, w, c };
        // Few different values: ties are common.
        let mut x: Vec<f32> = values(1, dims.len()).iter().map(|v| (v * 4.0).round()).collect();
        x[dims.len() / 2] = f32::NAN;
        let out = Dims { h: h.div_ceil(2), w: w.div_ceil(2), ..dims };
        let (mut y, mut y_only) = (vec![0.0; out.len()], vec![0.0; out.len()]);
        let mut index = vec![99; out.len()];
        max_pool_3x3_s2(&x, dims, &mut y, Some(&mut index));
        max_pool_3x3_s2(&x, dims, &mut y_only, None);
        prop_assert_eq!(bits(&y), bits(&y_only));
        let dy = values(2, out.len());
        let (mut dx, mut want) = (vec![f32::NAN; dims.len()], vec![0.0f32; dims.len()]);
        max_pool_backward(&dy, &index, dims, &mut dx);
        for image in 0..n {
            for channel in 0..c {
                let at = |pixel: usize| (image * h * w + pixel) * c + channel;
                let plane: Vec<f32> = (0..h * w).map(|pixel| x[at(pixel)]).collect();
                for (o, i) in reference::max_pool2d_3x3_indices(1, h, w, &plane).into_iter().enumerate() {
                    let o = (image * out.h * out.w + o) * c + channel;
                    prop_assert_eq!(y[o].to_bits(), plane[i].to_bits());
                    want[at(i)] += dy[o];
                }
            }
        }
        prop_assert!(error(&dx, &want) < 1e-6);
    }

    /// Together the same bytes, and gradients to rounding, as one after the other.
    #[test]
    fn norm_and_max_pool_together_equal_the_two(n in 1usize..4, c in 1usize..40, h in 1usize..12, w in 1usize..12) {
        let (dims, out) = (Dims { n, h, w, c }, Dims { n, h: h.div_ceil(2), w: w.div_ceil(2), c });
        let y: Vec<f32> = values(1, dims.len()).iter().map(|v| (v * 4.0).round()).collect();
        let (scale, shift, gamma) = (values(2, c), values(3, c), values(4, c));
        let (mean, inv_std) = (values(5, c), vec![1.5; c]);
        let (mut activated, mut want, mut want_index) = (y.clone(), vec![0.0; out.len()], vec![99; out.len()]);
        scale_shift(&y, &scale, &shift, None, true, &mut activated);
        max_pool_3x3_s2(&activated, dims, &mut want, Some(&mut want_index));
        let (mut z, mut index) = (vec![f32::NAN; out.len()], vec![77; out.len()]);
        norm_max_pool(&y, dims, &scale, &shift, &mut z, &mut index);
        prop_assert_eq!(bits(&z), bits(&want));
        prop_assert_eq!(&index, &want_index);
        let dz: Vec<f32> = values(6, out.len()).iter().zip(&z).map(|(g, z)| if *z > 0.0 { *g } else { 0.0 }).collect();
        let (mut dy, mut want) = (vec![f32::NAN; y.len()], vec![f32::NAN; y.len()]);
        let [mut dgamma, mut dbeta, mut want_dgamma, mut want_dbeta] = [(); 4].map(|()| vec![f32::NAN; c]);
        max_pool_backward(&dz, &index, dims, &mut want);
        norm_backward(&y, None, &mut want, &mean, &inv_std, &gamma, None, &mut want_dgamma, &mut want_dbeta);
        norm_max_pool_backward(&y, &dz, &index, dims, &mean, &inv_std, &gamma, &mut dy, &mut dgamma, &mut dbeta);
        let scale = dz.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        for (got, want) in [(&dy, &want), (&dgamma, &want_dgamma), (&dbeta, &want_dbeta)] {
            prop_assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4 * scale.max(w.abs())));
        }
    }

    #[test]
    fn average_pool_and_its_gradient(n in 1usize..4, c in 1usize..40, h in 1usize..9, w in 1usize..9) {
        let dims = Dims { n, h, w, c };
        let (x, dy) = (values(1, dims.len()), values(2, n * c));
        let (mut y, mut dx) = (vec![f32::NAN; n * c], vec![f32::NAN; dims.len()]);
        average_pool(&x, dims, &mut y);
        average_pool_backward(&dy, dims, &mut dx);
        let pixels = h * w;
        for image in 0..n {
            for i in 0..c {
                let at = |pixel: usize| (image * pixels + pixel) * c + i;
                let sum: f32 = (0..pixels).map(|p| x[at(p)]).sum();
                prop_assert!((y[image * c + i] - sum / pixels as f32).abs() < 1e-5);
                prop_assert!((0..pixels).all(|p| (dx[at(p)] - dy[image * c + i] / pixels as f32).abs() < 1e-6));
            }
        }
    }

    #[test]
    fn images_are_turned_round(n in 1usize..4, c in 1usize..5, h in 1usize..9, w in 1usize..30) {
        let x = values(1, n * c * h * w);
        let mut out = vec![f32::NAN; x.len()];
        from_nchw(&x, n, c, h, w, &mut out);
        for (i, v) in x.iter().enumerate() {
            let (image, channel, pixel) = (i / (c * h * w), i / (h * w) % c, i % (h * w));
            prop_assert_eq!(out[(image * h * w + pixel) * c + channel], *v);
        }
    }
}

#[test]
fn norm_bytes_do_not_depend_on_the_number_of_threads() {
    let (c, pixels) = (24, 9_000);
    let (y, g) = (values(1, c * pixels), values(2, c * pixels));
    let (gamma, beta) = (values(3, c), values(4, c));
    let run = || {
        let (z, mean, inv_std) = norm_by_operations(&y, &gamma, &beta);
        let (mut g, mut dgamma, mut dbeta) = (g.clone(), vec![0.0; c], vec![0.0; c]);
        norm_backward(&y, Some(&z), &mut g, &mean, &inv_std, &gamma, None, &mut dgamma, &mut dbeta);
        [bits(&z), bits(&g), bits(&dgamma), bits(&dbeta)]
    };
    let one = with_threads(1, run);
    assert_eq!(one, with_threads(2, run));
    assert_eq!(one, with_threads(3, run));
}
