//! The same operations as plain loops over `f64` sums: oracles of the fast ones, never called by them.

/// Sizes of one convolution or pooling; names as in [`crate::conv2d`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// B
    pub batch: usize,
    /// C_in
    pub c_in: usize,
    /// H
    pub height: usize,
    /// W
    pub width: usize,
    /// C_out
    pub c_out: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Input pixels from one window to the next.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
}

impl Sizes {
    /// `(H', W')`
    pub fn out(&self) -> (usize, usize) {
        let out = |side: usize| (side + 2 * self.padding - self.kernel) / self.stride + 1;
        (out(self.height), out(self.width))
    }

    /// Calls `f(x index, weight index, y index)` for every product of the convolution.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let (out_h, out_w) = self.out();
        for (b, o, i) in triples(self.batch, self.c_out, self.c_in) {
            for (oy, ox) in pairs(out_h, out_w) {
                for (ky, kx) in pairs(self.kernel, self.kernel) {
                    let (y, x) = (oy * self.stride + ky, ox * self.stride + kx);
                    let (Some(y), Some(x)) = (y.checked_sub(self.padding), x.checked_sub(self.padding)) else {
                        continue;
                    };
                    if y < self.height && x < self.width {
                        let input = ((b * self.c_in + i) * self.height + y) * self.width + x;
                        let weight = ((o * self.c_in + i) * self.kernel + ky) * self.kernel + kx;
                        f(input, weight, ((b * self.c_out + o) * out_h + oy) * out_w + ox);
                    }
                }
            }
        }
    }
}

fn pairs(a: usize, b: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..a).flat_map(move |i| (0..b).map(move |j| (i, j)))
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    pairs(a, b).flat_map(move |(i, j)| (0..c).map(move |k| (i, j, k)))
}

fn rounded(sums: Vec<f64>) -> Vec<f32> {
    sums.into_iter().map(|v| v as f32).collect()
}

/// Output `(B, C_out, H', W')` of a convolution.
pub fn conv2d(s: &Sizes, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let (out_h, out_w) = s.out();
    let mut y = vec![0.0; s.batch * s.c_out * out_h * out_w];
    s.each(|i, w, o| y[o] += f64::from(x[i]) * f64::from(weight[w]));
    rounded(y)
}

/// Gradient with respect to the input.
pub fn conv2d_data_gradient(s: &Sizes, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; s.batch * s.c_in * s.height * s.width];
    s.each(|i, w, o| dx[i] += f64::from(dy[o]) * f64::from(weight[w]));
    rounded(dx)
}

/// Gradient with respect to the weights.
pub fn conv2d_weight_gradient(s: &Sizes, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dw = vec![0.0; s.c_out * s.c_in * s.kernel * s.kernel];
    s.each(|i, w, o| dw[w] += f64::from(dy[o]) * f64::from(x[i]));
    rounded(dw)
}

/// Input index of the maximum of every 3×3 window, stride 2, padding 1, over `planes` planes; the first wins a
/// tie, a NaN wins over numbers.
pub fn max_pool2d_3x3_indices(planes: usize, height: usize, width: usize, x: &[f32]) -> Vec<usize> {
    let mut indices = Vec::new();
    for (plane, oy, ox) in triples(planes, height.div_ceil(2), width.div_ceil(2)) {
        let mut best: Option<usize> = None;
        for (ky, kx) in pairs(3, 3) {
            let (y, x_) = ((2 * oy + ky).wrapping_sub(1), (2 * ox + kx).wrapping_sub(1));
            if y < height && x_ < width {
                let i = (plane * height + y) * width + x_;
                if best.is_none_or(|b| x[i] > x[b] || (x[i].is_nan() && !x[b].is_nan())) {
                    best = Some(i);
                }
            }
        }
        indices.extend(best);
    }
    indices
}

/// Batch norm over a batch: `(y, mean, biased variance)` of `x (B, C, S)`.
pub fn batch_norm(
    (batch, channels, spatial): (usize, usize, usize),
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let mut y = vec![0.0; x.len()];
    let (mut means, mut variances) = (Vec::new(), Vec::new());
    for c in 0..channels {
        let at: Vec<usize> = pairs(batch, spatial).map(|(b, s)| (b * channels + c) * spatial + s).collect();
        let n = at.len() as f64;
        let mean = at.iter().map(|&i| f64::from(x[i])).sum::<f64>() / n;
        let var = at.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / n;
        for i in at {
            y[i] = (f64::from(x[i]) - mean) / (var + eps).sqrt() * f64::from(weight[c]) + f64::from(bias[c]);
        }
        means.push(mean);
        variances.push(var);
    }
    (rounded(y), rounded(means), rounded(variances))
}
