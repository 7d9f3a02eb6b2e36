//! Convolution forward.

use super::portable::{self, Packed};
#[cfg(target_arch = "x86_64")]
use super::simd::{self, ForwardKernel};
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
#[derive(Debug)]
pub struct Forward {
    shape: ConvShape,
    engine: Engine,
}

/// Who does it, with the weights as it wants them.
#[derive(Debug)]
enum Engine {
    Portable(Packed),
    #[cfg(target_arch = "x86_64")]
    Simd(Box<dyn ForwardKernel>),
}

impl Engine {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = simd::forward(shape, algorithm, isa) {
            return Self::Simd(kernel);
        }
        Self::Portable(Packed::default())
    }
}

impl Forward {
    /// An `algorithm` that can't do this shape gives way to [`Algorithm::Gemm`], as every one does on
    /// [`Isa::Portable`], which knows one way only. Weights are missing until [`Self::pack`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        Self { shape, engine: Engine::new(shape, algorithm, isa) }
    }

    /// Takes weights `(C_out, C_in, k, k)`, each output channel times its `scale`: a folded batch norm.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn pack(&mut self, weight: &[f32], scale: Option<&[f32]>) {
        assert_eq!(weight.len(), self.shape.weights(), "weights");
        assert!(scale.is_none_or(|s| s.len() == self.shape.c_out), "scale");
        match &mut self.engine {
            Engine::Portable(packed) => *packed = Packed::forward(&self.shape, weight, scale),
            #[cfg(target_arch = "x86_64")]
            Engine::Simd(kernel) => kernel.pack(weight, scale),
        }
    }

    /// `y = epilogue(conv(x))` for `x` of sizes `dims`.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&self, x: &[f32], dims: Dims, y: &mut [f32], epilogue: &Epilogue<'_>) {
        let out = check(&self.shape, x, dims, y);
        assert!(epilogue.bias.is_none_or(|b| b.len() == out.c), "bias");
        assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "residual");
        match &self.engine {
            Engine::Portable(packed) => portable::conv_forward(&self.shape, packed, x, dims, y, epilogue),
            #[cfg(target_arch = "x86_64")]
            Engine::Simd(kernel) => kernel.run(x, dims, y, epilogue, None),
        }
    }

    /// `y = conv(x)` and the sums over its channels, what a batch norm behind it needs.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run_with_sums(&self, x: &[f32], dims: Dims, y: &mut [f32], sums: &mut ChannelSums) {
        let out = check(&self.shape, x, dims, y);
        let epilogue = Epilogue::default();
        match &self.engine {
            Engine::Portable(packed) => {
                portable::conv_forward(&self.shape, packed, x, dims, y, &epilogue);
                channel_sums(y, out.c, sums);
            }
            #[cfg(target_arch = "x86_64")]
            Engine::Simd(kernel) => kernel.run(x, dims, y, &epilogue, Some(sums)),
        }
    }

    /// [`Self::pack`] without a scale, then [`Self::run_with_sums`], for weights that are used this once: pack them again
    /// before any other call.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run_once(&mut self, weight: &[f32], x: &[f32], dims: Dims, y: &mut [f32], sums: &mut ChannelSums) {
        #[cfg(target_arch = "x86_64")]
        if let Engine::Simd(kernel) = &mut self.engine {
            assert_eq!(weight.len(), self.shape.weights(), "weights");
            check(&self.shape, x, dims, y);
            return kernel.run_once(weight, x, dims, y, sums);
        }
        self.pack(weight, None);
        self.run_with_sums(x, dims, y, sums);
    }
}

/// The sizes of the output.
fn check(shape: &ConvShape, x: &[f32], dims: Dims, y: &[f32]) -> Dims {
    let out = shape.out(dims);
    assert_eq!(x.len(), dims.len(), "input");
    assert_eq!(y.len(), out.len(), "output");
    out
}
