//! Convolution forward.

use super::portable::{self, Packed};
use super::{Algorithm, ChannelSums, ConvShape, Dims, Isa, channel_sums};

/// What is done to an output before it is written: `relu(y + bias + residual)`, each part if asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to every pixel (C_out).
    pub bias: Option<&'a [f32]>,
    /// Added value by value, of the output's sizes.
    pub residual: Option<&'a [f32]>,
    /// Negative values become 0.
    pub relu: bool,
}

/// A convolution with its weights packed.
#[derive(Clone, Debug)]
pub struct Forward {
    shape: ConvShape,
    packed: Packed,
}

impl Forward {
    /// An `algorithm` that can't do this shape gives way to [`Algorithm::Gemm`], as every one does on
    /// [`Isa::Portable`], which knows one way only. Weights are missing until [`Self::pack`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, _algorithm: Algorithm, isa: Isa) -> Self {
        assert!(isa.is_available(), "{isa:?} is not in this processor");
        Self { shape, packed: Packed::default() }
    }

    /// Takes weights `(C_out, C_in, k, k)`, each output channel times its `scale`: a folded batch norm.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn pack(&mut self, weight: &[f32], scale: Option<&[f32]>) {
        assert_eq!(weight.len(), self.shape.weights(), "weights");
        assert!(scale.is_none_or(|s| s.len() == self.shape.c_out), "scale");
        self.packed = Packed::forward(&self.shape, weight, scale);
    }

    /// `y = epilogue(conv(x))` for `x` of sizes `dims`.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&self, x: &[f32], dims: Dims, y: &mut [f32], epilogue: &Epilogue<'_>) {
        let out = self.shape.out(dims);
        assert_eq!(x.len(), dims.len(), "input");
        assert_eq!(y.len(), out.len(), "output");
        assert!(epilogue.bias.is_none_or(|b| b.len() == out.c), "bias");
        assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "residual");
        portable::conv_forward(&self.shape, &self.packed, x, dims, y, epilogue);
    }

    /// `y = conv(x)` and the sums over its channels, what a batch norm behind it needs.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run_with_sums(&self, x: &[f32], dims: Dims, y: &mut [f32], sums: &mut ChannelSums) {
        self.run(x, dims, y, &Epilogue::default());
        channel_sums(y, self.shape.c_out, sums);
    }
}
