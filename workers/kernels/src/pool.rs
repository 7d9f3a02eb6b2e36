//! Max pooling of overlapping windows, with a backward.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::storage::{on_cpu, slice, tensor, with_slice};

/// Windows of 3×3, stride 2, padding 1: `x (B, C, H, W)` → `(B, C, ⌈H/2⌉, ⌈W/2⌉)`.
///
/// As in PyTorch the gradient goes to the first maximum of a window, and NaN is larger than any number. (On
/// other devices than the CPU, equal maxima share it.)
///
/// # Errors
/// When the tensor is not `f32` of four dimensions, or is empty.
pub fn max_pool2d_3x3(x: &Tensor) -> Result<Tensor> {
    let (_, _, _, _) = x.dims4()?;
    if x.elem_count() == 0 {
        bail!("max_pool2d: empty input {:?}", x.shape());
    }
    if on_cpu(x) { x.contiguous()?.apply_op1(MaxPool::default()) } else { composed(x) }
}

/// The maximum over nine shifted pictures. A border repeated outward changes no maximum of its windows.
fn composed(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let rows = max_of_three(&x.pad_with_same(2, 1, 2)?, 2, height.div_ceil(2))?;
    max_of_three(&rows.pad_with_same(3, 1, 2)?, 3, width.div_ceil(2))
}

fn max_of_three(padded: &Tensor, dim: usize, out: usize) -> Result<Tensor> {
    let every_second = |from: usize| -> Result<Tensor> {
        let mut dims = padded.dims().to_vec();
        dims.splice(dim..=dim, [out, 2]);
        padded.narrow(dim, from, 2 * out)?.contiguous()?.reshape(dims)?.narrow(dim + 1, 0, 1)?.squeeze(dim + 1)
    };
    every_second(0)?.maximum(&every_second(1)?)?.maximum(&every_second(2)?)
}

/// Sizes of one plane before and after.
#[derive(Clone, Copy, Debug)]
struct Plane {
    height: usize,
    width: usize,
    out_height: usize,
    out_width: usize,
}

impl Plane {
    fn of(dims: &[usize]) -> Self {
        let (height, width) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        Self { height, width, out_height: height.div_ceil(2), out_width: width.div_ceil(2) }
    }

    fn input(&self) -> usize {
        self.height * self.width
    }

    fn output(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Position of the maximum within the plane.
    #[inline(always)]
    fn argmax(&self, x: &[f32], oy: usize, ox: usize) -> usize {
        let (y0, y1) = ((2 * oy).saturating_sub(1), (2 * oy + 2).min(self.height));
        let (x0, x1) = ((2 * ox).saturating_sub(1), (2 * ox + 2).min(self.width));
        let mut best = y0 * self.width + x0;
        for y in y0..y1 {
            for i in y * self.width + x0..y * self.width + x1 {
                if x[i] > x[best] || (x[i].is_nan() && !x[best].is_nan()) {
                    best = i;
                }
            }
        }
        best
    }
}

/// Values and, within its plane, the place of every maximum.
fn forward(plane: Plane, x: &[f32]) -> (Vec<f32>, Vec<u32>) {
    let planes = x.len() / plane.input();
    let mut y = vec![0.0; planes * plane.output()];
    let mut places = vec![0; y.len()];
    let outputs = y.par_chunks_mut(plane.output()).zip(places.par_chunks_mut(plane.output()));
    outputs.zip(x.par_chunks(plane.input())).for_each(|((y, places), x)| {
        for oy in 0..plane.out_height {
            for ox in 0..plane.out_width {
                let (at, out) = (plane.argmax(x, oy, ox), oy * plane.out_width + ox);
                y[out] = x[at];
                places[out] = at as u32;
            }
        }
    });
    (y, places)
}

fn backward(plane: Plane, places: &[u32], dy: &[f32]) -> Vec<f32> {
    let planes = dy.len() / plane.output();
    let mut dx = vec![0.0; planes * plane.input()];
    let gradients = dy.par_chunks(plane.output()).zip(places.par_chunks(plane.output()));
    dx.par_chunks_mut(plane.input()).zip(gradients).for_each(|(dx, (dy, places))| {
        for (gradient, place) in dy.iter().zip(places) {
            dx[*place as usize] += gradient;
        }
    });
    dx
}

#[derive(Debug, Default)]
struct MaxPool {
    places: Arc<OnceLock<Vec<u32>>>,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "likeness-max-pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        let plane = Plane::of(dims);
        let (y, places) = forward(plane, slice(x, layout)?);
        // A second forward of the same op computes the same places.
        let _ = self.places.set(places);
        Ok((CpuStorage::F32(y), (dims[0], dims[1], plane.out_height, plane.out_width).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(places) = self.places.get() else { bail!("max_pool2d: backward before forward") };
        let dx = with_slice(dy, |dy| Ok(backward(Plane::of(x.dims()), places, dy)))?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::reference::max_pool2d_3x3_indices;
    use crate::threads::with_threads;

    fn expected(planes: usize, height: usize, width: usize, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let at = max_pool2d_3x3_indices(planes, height, width, x);
        let mut dx = vec![0.0; x.len()];
        at.iter().enumerate().for_each(|(o, &i)| dx[i] += (o % 7) as f32);
        (at.iter().map(|&i| x[i]).collect(), dx)
    }

    fn run(pool: impl Fn(&Tensor) -> Result<Tensor>, x: &[f32], dims: &[usize]) -> Result<(Vec<f32>, Vec<f32>)> {
        let x = Var::from_tensor(&tensor(x.to_vec(), dims)?)?;
        let y = pool(x.as_tensor())?;
        let dy: Vec<f32> = (0..y.elem_count()).map(|o| (o % 7) as f32).collect();
        let grads = (&y * tensor(dy, y.shape())?)?.sum_all()?.backward()?;
        let dx = grads.get(x.as_tensor()).expect("on the tape").flatten_all()?.to_vec1()?;
        Ok((y.flatten_all()?.to_vec1()?, dx))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_and_gradients_equal_the_plain_loop(
            (height, width) in (1usize..12, 1usize..12),
            small in proptest::collection::vec(-2i8..3, 2 * 3 * 12 * 12),
        ) {
            let x: Vec<f32> = small[..6 * height * width].iter().map(|&v| f32::from(v)).collect();
            let got = run(max_pool2d_3x3, &x, &[2, 3, height, width]).expect("valid input");
            prop_assert_eq!(got, expected(6, height, width, &x));
        }
    }

    #[test]
    fn composed_from_tensor_operations_is_the_same_without_ties() -> Result<()> {
        for (height, width) in [(8, 8), (7, 5), (1, 1), (2, 9)] {
            let x: Vec<f32> = (0..6 * height * width).map(|i| ((i * 7_919) % 1_009) as f32 - 500.0).collect();
            let dims = [2, 3, height, width];
            assert_eq!(run(composed, &x, &dims)?, run(max_pool2d_3x3, &x, &dims)?, "{height}x{width}");
        }
        Ok(())
    }

    #[test]
    fn nan_wins_its_windows() -> Result<()> {
        let mut x = vec![1.0; 16];
        x[5] = f32::NAN;
        let y = max_pool2d_3x3(&tensor(x, (1, 1, 4, 4))?)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(y.iter().all(|v| v.is_nan()), "{y:?}");
        Ok(())
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() -> Result<()> {
        let x: Vec<f32> = (0..4 * 5 * 9 * 9).map(|i| (i as f32).sin()).collect();
        let once = |n| with_threads(n, || run(max_pool2d_3x3, &x, &[4, 5, 9, 9]));
        assert_eq!(once(1)?, once(2)?);
        Ok(())
    }

    #[test]
    fn an_empty_input_is_refused() -> Result<()> {
        let x = Tensor::zeros((1, 0, 4, 4), candle_core::DType::F32, &Device::Cpu)?;
        assert!(max_pool2d_3x3(&x).is_err());
        Ok(())
    }
}
