//! The norm of all gradients together, and what it makes of them.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::nhwc::vectorised;
use crate::storage::{cpu_slice, on_cpu};

/// Elements of one task. Part of the result: sums are cut here.
const CHUNK: usize = 16 * 1024;
/// Sums that run side by side in a chunk.
const LANES: usize = 16;
/// PyTorch's: added to the norm before the division.
const EPS: f32 = 1e-6;

/// What gradients are multiplied by so that their norm is at most `largest`: PyTorch's `clip_grad_norm_`.
pub fn clip_factor(norm: f32, largest: f32) -> f32 {
    (largest / (norm + EPS)).min(1.0)
}

/// The Euclidean norm of all gradients as one vector, in `f32`; the same bytes on any number of threads.
///
/// # Errors
/// When a tensor is not `f32` or the device fails.
pub fn gradient_norm(gradients: &[Tensor]) -> Result<f32> {
    if !gradients.iter().all(on_cpu) {
        let squares = gradients.iter().map(|g| g.sqr()?.sum_all()?.to_scalar::<f32>());
        return Ok(pairwise(&squares.collect::<Result<Vec<_>>>()?).sqrt());
    }
    let gradients = gradients.iter().map(|g| g.contiguous()).collect::<Result<Vec<_>>>()?;
    let guards: Vec<_> = gradients.iter().map(|g| g.storage_and_layout()).collect();
    let slices = guards.iter().map(|(storage, layout)| cpu_slice(storage, layout)).collect::<Result<Vec<_>>>()?;
    Ok(norm(&slices))
}

fn norm(gradients: &[&[f32]]) -> f32 {
    let chunks: Vec<&[f32]> = gradients.iter().flat_map(|g| g.chunks(CHUNK)).collect();
    let squares: Vec<f32> = chunks.par_iter().map(|chunk| sum_of_squares(chunk)).collect();
    pairwise(&squares).sqrt()
}

fn sum_of_squares(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    add_squares(&mut lanes, values);
    pairwise(&lanes)
}

vectorised! {
    fn add_squares(lanes: &mut [f32; LANES], values: &[f32]) {
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            lanes.iter_mut().zip(values).for_each(|(lane, v)| *lane += v * v);
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, v)| *lane += v * v);
    }
}

/// A sum whose error grows with the logarithm of the number of terms.
fn pairwise(terms: &[f32]) -> f32 {
    match terms {
        [] => 0.0,
        [term] => *term,
        _ => {
            let (left, right) = terms.split_at(terms.len() / 2);
            pairwise(left) + pairwise(right)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tensor;
    use crate::threads::with_threads;

    fn values(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 + phase).sin()).collect()
    }

    // import torch; a = torch.tensor([3.0, -4.0]); b = torch.tensor([[12.0]]); p = [torch.zeros_like(t) for t in (a, b)]
    // for t, g in zip(p, (a, b)): t.grad = g.clone()
    // print(torch.nn.utils.clip_grad_norm_(p, 6.5), p[0].grad, p[1].grad)
    #[test]
    fn norm_and_factor_are_pytorchs() -> Result<()> {
        let gradients = [tensor(vec![3.0, -4.0], 2)?, tensor(vec![12.0], (1, 1))?];
        let norm = gradient_norm(&gradients)?;
        assert_eq!(norm, 13.0);
        let factor = clip_factor(norm, 6.5);
        let clipped = [3.0, -4.0, 12.0].map(|g: f32| g * factor);
        for (got, want) in clipped.iter().zip([1.499_999_9_f32, -1.999_999_9, 5.999_999_5]) {
            assert!((got - want).abs() < 1e-6, "{got} instead of {want}");
        }
        assert_eq!(clip_factor(norm, 20.0), 1.0, "never larger");
        Ok(())
    }

    #[test]
    fn the_norm_of_many_is_that_of_a_sum_in_f64_on_any_number_of_threads() {
        let gradients = [values(3 * CHUNK + 5, 0.0), values(7, 0.5), values(CHUNK, 0.25)];
        let slices: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        let exact = slices.iter().flat_map(|g| *g).map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let once = |threads| with_threads(threads, || norm(&slices));
        assert!((f64::from(once(1)) / exact - 1.0).abs() < 1e-6, "{} {exact}", once(1));
        assert_eq!(once(1).to_bits(), once(3).to_bits());
    }

    #[test]
    fn what_is_not_finite_shows_in_the_norm() {
        assert!(norm(&[&[1.0, f32::NAN]]).is_nan());
        assert!(norm(&[&[1.0, f32::INFINITY]]).is_infinite());
    }
}
