//! The small operations between convolutions.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::storage::{on_cpu, slice, tensor, with_slice};

/// Elements of one task of an elementwise loop.
const CHUNK: usize = 32 * 1024;

/// `max(a + b, 0)` of two tensors of one shape: the end of a residual block.
///
/// # Errors
/// When the shapes differ or a tensor is not `f32`.
pub fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        bail!("add_relu: {:?} and {:?} differ", a.shape(), b.shape());
    }
    if on_cpu(a) { a.contiguous()?.apply_op2(&b.contiguous()?, AddRelu) } else { (a + b)?.relu() }
}

/// Mean over both spatial dimensions: `(B, C, H, W)` → `(B, C)`.
///
/// # Errors
/// When the tensor is not `f32` of four dimensions, or is empty.
pub fn global_avg_pool2d(x: &Tensor) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if height * width == 0 {
        bail!("global_avg_pool2d: empty input {:?}", x.shape());
    }
    if on_cpu(x) { x.contiguous()?.apply_op1(GlobalAvgPool) } else { x.flatten_from(2)?.mean(D::Minus1) }
}

#[derive(Debug)]
struct AddRelu;

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "likeness-add-relu"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (slice(a, al)?, slice(b, bl)?);
        let mut y = vec![0.0; a.len()];
        y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK))).for_each(|(y, (a, b))| {
            y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = relu(a + b));
        });
        Ok((CpuStorage::F32(y), al.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let passed = with_slice(y, |y| with_slice(dy, |dy| Ok(passed_gradient(y, dy))))?;
        let passed = tensor(passed, y.shape())?;
        Ok((Some(passed.clone()), Some(passed)))
    }
}

/// `max(v, 0)`, NaN kept.
#[inline(always)]
pub(crate) fn relu(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

/// The gradient where the output is positive, 0 elsewhere.
fn passed_gradient(y: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; y.len()];
    out.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK))).for_each(|(out, (y, dy))| {
        out.iter_mut().zip(y.iter().zip(dy)).for_each(|(o, (y, dy))| *o = if *y > 0.0 { *dy } else { 0.0 });
    });
    out
}

#[derive(Debug)]
struct GlobalAvgPool;

impl CustomOp1 for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "likeness-global-avg-pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let pixels = height * width;
        let mean = |plane: &[f32]| plane.iter().sum::<f32>() / pixels as f32;
        let y = slice(x, layout)?.par_chunks(pixels).with_min_len(256).map(mean).collect();
        Ok((CpuStorage::F32(y), (batch, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let pixels = height * width;
        let mut dx = vec![0.0; x.elem_count()];
        with_slice(dy, |dy| {
            dx.par_chunks_mut(pixels).with_min_len(256).zip(dy).for_each(|(dx, dy)| dx.fill(dy / pixels as f32));
            Ok(())
        })?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn var(values: &[f32], dims: &[usize]) -> Result<Var> {
        Var::from_tensor(&Tensor::from_slice(values, dims, &Device::Cpu)?)
    }

    #[test]
    fn add_relu_and_its_gradient_equal_tensor_operations() -> Result<()> {
        let a: Vec<f32> = (0..70_000).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
        let b: Vec<f32> = (0..70_000).map(|i| ((i * 53) % 97) as f32 - 48.5).collect();
        let (a, b) = (var(&a, &[2, 35_000])?, var(&b, &[2, 35_000])?);
        let run = |y: Tensor| -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
            let grads = y.sqr()?.sum_all()?.backward()?;
            let grad = |v: &Var| grads.get(v.as_tensor()).expect("on the tape").flatten_all()?.to_vec1();
            Ok((y.flatten_all()?.to_vec1()?, grad(&a)?, grad(&b)?))
        };
        let fast = run(add_relu(a.as_tensor(), b.as_tensor())?)?;
        assert_eq!(fast, run((a.as_tensor() + b.as_tensor())?.relu()?)?);
        assert!(add_relu(a.as_tensor(), &b.narrow(0, 0, 1)?).is_err());
        Ok(())
    }

    #[test]
    fn global_mean_and_its_gradient_equal_tensor_operations() -> Result<()> {
        let x: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| ((i * 31) % 17) as f32).collect();
        let x = var(&x, &[2, 3, 4, 5])?;
        let run = |y: Tensor| -> Result<(Vec<f32>, Vec<f32>)> {
            let grads = y.sqr()?.sum_all()?.backward()?;
            let dx = grads.get(x.as_tensor()).expect("on the tape").flatten_all()?.to_vec1()?;
            Ok((y.flatten_all()?.to_vec1()?, dx))
        };
        let (fast, plain) = (run(global_avg_pool2d(&x)?)?, run(x.flatten_from(2)?.mean(D::Minus1)?)?);
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&fast.0, &plain.0) && close(&fast.1, &plain.1));
        Ok(())
    }
}
