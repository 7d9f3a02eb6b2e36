//! Batch normalisation, fused with an optional ReLU, forward and backward in two passes each.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::blocks::relu;
use crate::storage::{on_cpu, slice, tensor, with_slice};

/// What a training-mode batch norm returns.
#[derive(Clone, Debug)]
pub struct BatchNormTrain {
    /// The normalised input, of its shape; on the tape.
    pub y: Tensor,
    /// Mean of every channel over this batch `(C)`; off the tape.
    pub mean: Tensor,
    /// Unbiased variance of every channel `(C)`, what running statistics keep; off the tape.
    pub variance: Tensor,
}

/// Batch norm with the batch's own statistics, then ReLU if `with_relu`: `x (B, C, …)`, `weight (C)`, `bias (C)`.
///
/// As in PyTorch `y = (x − mean) / √(variance + eps) · weight + bias` with the biased variance.
///
/// # Errors
/// When shapes do not match, a channel has fewer than two values, or a tensor is not `f32`.
pub fn batch_norm_train(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    with_relu: bool,
) -> Result<BatchNormTrain> {
    let sizes = Sizes::of(x.shape())?;
    sizes.check(weight)?;
    sizes.check(bias)?;
    if sizes.batch * sizes.spatial < 2 {
        bail!("batch_norm: training needs more than one value per channel, got {:?}", x.shape());
    }
    if !on_cpu(x) {
        return composed(x, weight, bias, eps, with_relu);
    }
    let saved = Arc::new(OnceLock::new());
    let op = BatchNorm { sizes, eps, with_relu, saved: saved.clone() };
    let y = x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
    let Some(moments) = saved.get() else { bail!("batch_norm: forward left no statistics") };
    let n = (sizes.batch * sizes.spatial) as f64;
    let mean = moments.iter().map(|m: &Moments| m.mean as f32).collect();
    let variance = moments.iter().map(|m| (m.variance * n / (n - 1.0)) as f32).collect();
    Ok(BatchNormTrain { y, mean: tensor(mean, sizes.channels)?, variance: tensor(variance, sizes.channels)? })
}

/// Batch norm with given statistics, then ReLU if `with_relu`. On the CPU it is not on the tape: it serves
/// inference.
///
/// # Errors
/// When shapes do not match or a tensor is not `f32`.
pub fn batch_norm_eval(
    x: &Tensor,
    [weight, bias, mean, variance]: [&Tensor; 4],
    eps: f64,
    with_relu: bool,
) -> Result<Tensor> {
    let sizes = Sizes::of(x.shape())?;
    for vector in [weight, bias, mean, variance] {
        sizes.check(vector)?;
    }
    let scale = (weight / (variance + eps)?.sqrt()?)?;
    if on_cpu(x) {
        let (scale, mean, bias) = (scale.to_vec1()?, mean.to_vec1()?, bias.to_vec1()?);
        return x.contiguous()?.detach().apply_op1_no_bwd(&Affine { sizes, scale, mean, bias, with_relu });
    }
    let centred = x.broadcast_sub(&sizes.broad(mean, x)?)?;
    let y = centred.broadcast_mul(&sizes.broad(&scale, x)?)?.broadcast_add(&sizes.broad(bias, x)?)?;
    if with_relu { y.relu() } else { Ok(y) }
}

fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, with_relu: bool) -> Result<BatchNormTrain> {
    let sizes = Sizes::of(x.shape())?;
    let flat = x.reshape((sizes.batch, sizes.channels, sizes.spatial))?;
    let mean = flat.mean_keepdim((0, 2))?;
    let centred = flat.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim((0, 2))?;
    let normal = centred.broadcast_div(&(&variance + eps)?.sqrt()?)?;
    let broad = |v: &Tensor| v.reshape((1, sizes.channels, 1));
    let y = normal.broadcast_mul(&broad(weight)?)?.broadcast_add(&broad(bias)?)?.reshape(x.shape())?;
    let n = (sizes.batch * sizes.spatial) as f64;
    Ok(BatchNormTrain {
        y: if with_relu { y.relu()? } else { y },
        mean: mean.flatten_all()?.detach(),
        variance: (variance.flatten_all()? * (n / (n - 1.0)))?.detach(),
    })
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    batch: usize,
    channels: usize,
    /// Values of one channel of one item.
    spatial: usize,
}

impl Sizes {
    fn of(shape: &Shape) -> Result<Self> {
        let dims = shape.dims();
        if dims.len() < 2 || shape.elem_count() == 0 {
            bail!("batch_norm: expected a filled (B, C, …), got {shape:?}");
        }
        Ok(Self { batch: dims[0], channels: dims[1], spatial: dims[2..].iter().product() })
    }

    fn check(&self, vector: &Tensor) -> Result<()> {
        if vector.dims() != [self.channels] {
            bail!("batch_norm: {} channels do not match {:?}", self.channels, vector.shape());
        }
        Ok(())
    }

    /// A vector over channels in the rank of `x`.
    fn broad(&self, vector: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut dims = vec![1; x.rank()];
        dims[1] = self.channels;
        vector.reshape(dims)
    }

    /// Elements of one item.
    fn item(&self) -> usize {
        self.channels * self.spatial
    }

    /// The planes of one channel.
    fn planes<'a>(&self, x: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> {
        let Self { spatial, .. } = *self;
        x.chunks_exact(self.item()).map(move |item| &item[channel * spatial..][..spatial])
    }
}

/// Statistics of one channel; the variance is the biased one.
#[derive(Clone, Copy, Debug)]
struct Moments {
    mean: f64,
    variance: f64,
}

/// Partial sums kept side by side, so that the compiler can use vector registers.
const LANES: usize = 16;

/// `Σ f(a, b)` over two planes in a fixed order.
#[inline(always)]
fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| f64::from(f(*a, *b))).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    lanes.iter().map(|v| f64::from(*v)).sum::<f64>() + tail
}

fn moments(sizes: Sizes, x: &[f32]) -> Vec<Moments> {
    let n = (sizes.batch * sizes.spatial) as f64;
    let channel = |c| {
        let mean = sizes.planes(x, c).map(|p| sum_pairs(p, p, |v, _| v)).sum::<f64>() / n;
        let m = mean as f32;
        let variance = sizes.planes(x, c).map(|p| sum_pairs(p, p, |v, _| (v - m) * (v - m))).sum::<f64>() / n;
        Moments { mean, variance }
    };
    (0..sizes.channels).into_par_iter().map(channel).collect()
}

/// `y = (x − mean) · scale + bias` per channel, then ReLU if asked.
#[derive(Debug)]
struct Affine {
    sizes: Sizes,
    scale: Vec<f32>,
    mean: Vec<f32>,
    bias: Vec<f32>,
    with_relu: bool,
}

impl Affine {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        let item = self.sizes.item();
        y.par_chunks_mut(item).zip(x.par_chunks(item)).for_each(|(y, x)| {
            let spatial = self.sizes.spatial;
            for (c, (y, x)) in y.chunks_exact_mut(spatial).zip(x.chunks_exact(spatial)).enumerate() {
                let (scale, mean, bias) = (self.scale[c], self.mean[c], self.bias[c]);
                if self.with_relu {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = relu((x - mean) * scale + bias));
                } else {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) * scale + bias);
                }
            }
        });
        y
    }
}

impl CustomOp1 for Affine {
    fn name(&self) -> &'static str {
        "likeness-batch-norm-eval"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(slice(x, layout)?)), layout.shape().clone()))
    }
}

#[derive(Debug)]
struct BatchNorm {
    sizes: Sizes,
    eps: f64,
    with_relu: bool,
    saved: Arc<OnceLock<Vec<Moments>>>,
}

/// Gradients of one channel: `dx = scale · (dy − shift − slope · (x − mean))`.
struct ChannelGradient {
    weight: f32,
    bias: f32,
    scale: f32,
    shift: f32,
    slope: f32,
    mean: f32,
}

impl BatchNorm {
    fn inverse_std(&self, m: &Moments) -> f64 {
        1.0 / (m.variance + self.eps).sqrt()
    }

    fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let moments = moments(self.sizes, x);
        let scale = moments.iter().zip(weight).map(|(m, w)| (self.inverse_std(m) * f64::from(*w)) as f32).collect();
        let mean = moments.iter().map(|m| m.mean as f32).collect();
        let affine = Affine { sizes: self.sizes, scale, mean, bias: bias.to_vec(), with_relu: self.with_relu };
        // A second forward of the same op computes the same statistics.
        let _ = self.saved.set(moments);
        affine.apply(x)
    }

    /// Sums of one channel over the batch; `dy` counts where `y` is positive if there is a ReLU.
    fn channel_gradient(&self, c: usize, m: &Moments, w: f32, x: &[f32], y: &[f32], dy: &[f32]) -> ChannelGradient {
        let (mean, inverse) = (m.mean as f32, self.inverse_std(m));
        let mut masked = Vec::new();
        let (mut sum, mut product) = (0.0, 0.0);
        let planes = self.sizes.planes(x, c).zip(self.sizes.planes(y, c).zip(self.sizes.planes(dy, c)));
        for (x, (y, dy)) in planes {
            let dy = self.passed(y, dy, &mut masked);
            sum += sum_pairs(dy, dy, |g, _| g);
            product += sum_pairs(x, dy, |x, g| (x - mean) * g);
        }
        let n = (self.sizes.batch * self.sizes.spatial) as f64;
        ChannelGradient {
            weight: (product * inverse) as f32,
            bias: sum as f32,
            scale: (f64::from(w) * inverse) as f32,
            shift: (sum / n) as f32,
            slope: (product * inverse * inverse / n) as f32,
            mean,
        }
    }

    /// The gradient that the ReLU lets through, in `buffer` if there is a ReLU.
    #[inline(always)]
    fn passed<'a>(&self, y: &[f32], dy: &'a [f32], buffer: &'a mut Vec<f32>) -> &'a [f32] {
        if !self.with_relu {
            return dy;
        }
        buffer.clear();
        buffer.extend(y.iter().zip(dy).map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 }));
        buffer
    }

    fn data_gradient(&self, gradients: &[ChannelGradient], x: &[f32], y: &[f32], dy: &[f32]) -> Vec<f32> {
        let mut dx = vec![0.0; x.len()];
        let item = self.sizes.item();
        let inputs = x.par_chunks(item).zip(y.par_chunks(item).zip(dy.par_chunks(item)));
        dx.par_chunks_mut(item).zip(inputs).for_each(|(dx, (x, (y, dy)))| {
            let mut masked = Vec::new();
            for (c, dx) in dx.chunks_exact_mut(self.sizes.spatial).enumerate() {
                let plane = c * self.sizes.spatial..(c + 1) * self.sizes.spatial;
                let dy = self.passed(&y[plane.clone()], &dy[plane.clone()], &mut masked);
                let ChannelGradient { scale, shift, slope, mean, .. } = gradients[c];
                dx.iter_mut()
                    .zip(x[plane].iter().zip(dy))
                    .for_each(|(dx, (x, dy))| *dx = scale * (dy - shift - slope * (x - mean)));
            }
        });
        dx
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "likeness-batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        weight: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(slice(x, xl)?, slice(weight, wl)?, slice(bias, bl)?);
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(moments) = self.saved.get() else { bail!("batch_norm: backward before forward") };
        let weight = weight.to_vec1::<f32>()?;
        let backward = |x: &[f32], y: &[f32], dy: &[f32]| {
            let channel = |c: usize| self.channel_gradient(c, &moments[c], weight[c], x, y, dy);
            let gradients: Vec<_> = (0..self.sizes.channels).into_par_iter().map(channel).collect();
            let dx = self.data_gradient(&gradients, x, y, dy);
            (dx, gradients)
        };
        let (dx, gradients) = with_slice(x, |x| with_slice(y, |y| with_slice(dy, |dy| Ok(backward(x, y, dy)))))?;
        let dw = tensor(gradients.iter().map(|g| g.weight).collect(), self.sizes.channels)?;
        let db = tensor(gradients.iter().map(|g| g.bias).collect(), self.sizes.channels)?;
        Ok((Some(tensor(dx, x.shape())?), Some(dw), Some(db)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::threads::with_threads;

    const EPS: f64 = 1e-5;

    fn values(seed: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7_919 + seed * 104_729) % 1_009) as f32 / 250.0 - 1.7).collect()
    }

    fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
        assert_eq!(got.len(), want.len(), "{what}: length");
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((g - w).abs() <= tolerance * w.abs().max(1.0), "{what}[{i}]: {g} instead of {w}");
        }
    }

    type Norm = fn(&Tensor, &Tensor, &Tensor, f64, bool) -> Result<BatchNormTrain>;

    /// `[y, mean, variance, dx, dweight, dbias]` for a loss that weighs every output differently.
    fn run(norm: Norm, dims: &[usize], with_relu: bool) -> Result<Vec<Vec<f32>>> {
        let channels = dims[1];
        let x = Var::from_tensor(&tensor(values(1, dims.iter().product()), dims)?)?;
        let weight = Var::from_tensor(&tensor(values(2, channels), channels)?)?;
        let bias = Var::from_tensor(&tensor(values(3, channels), channels)?)?;
        let out = norm(x.as_tensor(), weight.as_tensor(), bias.as_tensor(), EPS, with_relu)?;
        let grads = (&out.y * tensor(values(4, x.elem_count()), dims)?)?.sum_all()?.backward()?;
        let grad = |v: &Var| grads.get(v.as_tensor()).expect("on the tape").clone();
        let all = [out.y, out.mean, out.variance, grad(&x), grad(&weight), grad(&bias)];
        all.iter().map(|t| t.flatten_all()?.to_vec1()).collect()
    }

    #[test]
    fn outputs_and_gradients_equal_tensor_operations() -> Result<()> {
        for dims in [&[4, 3, 5, 7][..], &[6, 2, 4, 4], &[9, 5], &[2, 3, 1, 1], &[1, 2, 6, 6]] {
            for with_relu in [false, true] {
                let (fast, plain) = (run(batch_norm_train, dims, with_relu)?, run(composed, dims, with_relu)?);
                let names = ["y", "mean", "variance", "dx", "dweight", "dbias"];
                for ((fast, plain), name) in fast.iter().zip(&plain).zip(names) {
                    assert_close(fast, plain, 2e-4, &format!("{name} of {dims:?}, relu {with_relu}"));
                }
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn outputs_equal_the_plain_loop((b, c, s) in (2usize..7, 1usize..5, 1usize..40), shift in -50.0f32..50.0) {
            let x: Vec<f32> = values(b + s, b * c * s).iter().map(|v| v + shift).collect();
            let (weight, bias) = (values(5, c), values(6, c));
            let (y, mean, variance) = reference::batch_norm((b, c, s), &x, &weight, &bias, EPS);
            let t = |v: Vec<f32>, dims: &[usize]| tensor(v, dims).expect("length is right");
            let got = batch_norm_train(&t(x, &[b, c, s]), &t(weight, &[c]), &t(bias, &[c]), EPS, false).expect("valid");
            let flat = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
            let n = (b * s) as f32;
            let unbiased: Vec<f32> = variance.iter().map(|v| v * n / (n - 1.0)).collect();
            assert_close(&flat(&got.y), &y, 2e-4, "y");
            assert_close(&flat(&got.mean), &mean, 1e-6, "mean");
            assert_close(&flat(&got.variance), &unbiased, 1e-4, "variance");
        }
    }

    #[test]
    fn eval_uses_the_given_statistics() -> Result<()> {
        let x = tensor(values(1, 2 * 3 * 4), (2, 3, 2, 2))?;
        let [weight, bias, mean] = [2, 3, 4].map(|seed| tensor(values(seed, 3), 3));
        let (weight, bias, mean) = (weight?, bias?, mean?);
        let variance = tensor(vec![0.5, 1.0, 4.0], 3)?;
        let y = batch_norm_eval(&x, [&weight, &bias, &mean, &variance], EPS, true)?;
        let broad = |t: &Tensor| t.reshape((1, 3, 1, 1));
        let normal = x.broadcast_sub(&broad(&mean)?)?.broadcast_div(&broad(&(variance + EPS)?.sqrt()?)?)?;
        let want = normal.broadcast_mul(&broad(&weight)?)?.broadcast_add(&broad(&bias)?)?.relu()?;
        assert_close(&y.flatten_all()?.to_vec1()?, &want.flatten_all()?.to_vec1()?, 1e-5, "y");
        Ok(())
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() -> Result<()> {
        let once = |n| with_threads(n, || run(batch_norm_train, &[5, 7, 6, 6], true));
        assert_eq!(once(1)?, once(2)?);
        Ok(())
    }

    #[test]
    fn one_value_per_channel_is_refused_in_training() -> Result<()> {
        let x = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu)?;
        let v = Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu)?;
        assert!(batch_norm_train(&x, &v, &v, EPS, false).is_err());
        let short = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu)?;
        assert!(batch_norm_eval(&x, [&v, &v, &v, &short], EPS, false).is_err());
        Ok(())
    }
}
