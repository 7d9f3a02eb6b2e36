//! Sizes of tensors and of convolutions.

/// Sizes of one NHWC tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// B, images.
    pub n: usize,
    /// H
    pub h: usize,
    /// W
    pub w: usize,
    /// C, channels of a pixel.
    pub c: usize,
}

impl Dims {
    /// Number of values.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.pixels() * self.c
    }

    /// Number of pixels over all images.
    pub fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }
}

/// A square convolution: what it takes, what it gives, how it walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Input pixels from one window to the next.
    pub stride: usize,
    /// Zeros on each side.
    pub padding: usize,
}

impl ConvShape {
    /// Sizes of the output for an input of sizes `x`.
    ///
    /// # Panics
    /// When the channels are not this convolution's or the kernel does not fit.
    pub fn out(&self, x: Dims) -> Dims {
        assert_eq!(x.c, self.c_in, "channels of the input");
        let out = |side: usize| {
            assert!(side + 2 * self.padding >= self.kernel, "kernel {} larger than {side}", self.kernel);
            (side + 2 * self.padding - self.kernel) / self.stride + 1
        };
        Dims { n: x.n, h: out(x.h), w: out(x.w), c: self.c_out }
    }

    /// Products per output value: `k · k · C_in`.
    pub fn depth(&self) -> usize {
        self.kernel * self.kernel * self.c_in
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.depth() * self.c_out
    }

    /// Floating-point operations of a direct convolution over an input of sizes `x`, two per product.
    pub fn flops(&self, x: Dims) -> f64 {
        2.0 * self.out(x).len() as f64 * self.depth() as f64
    }
}
