//! Gradient of a convolution with respect to its weights.

#[cfg(target_arch = "x86_64")]
use super::avx2::{F2, F4, GemmWeightGradient, WinogradWeightGradient};
use super::portable;
use super::{Algorithm, ConvShape, Dims, Isa};

/// `dw` from `x` and `dy`.
#[derive(Clone, Debug)]
pub struct WeightGradient {
    shape: ConvShape,
    engine: Engine,
}

/// Who does it.
#[derive(Clone, Debug)]
enum Engine {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Gemm(GemmWeightGradient),
    #[cfg(target_arch = "x86_64")]
    F2(WinogradWeightGradient<F2>),
    #[cfg(target_arch = "x86_64")]
    F4(WinogradWeightGradient<F4>),
}

impl Engine {
    fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        match (isa, algorithm.or_gemm(&shape)) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2Fma, Algorithm::Gemm) => Self::Gemm(GemmWeightGradient::new(shape)),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2Fma, Algorithm::WinogradF2) => Self::F2(WinogradWeightGradient::new(shape)),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2Fma, Algorithm::WinogradF4) => Self::F4(WinogradWeightGradient::new(shape)),
            _ => Self::Portable,
        }
    }
}

impl WeightGradient {
    /// For the convolution `shape`; `algorithm` as in [`super::Forward::new`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        assert!(isa.is_available(), "{isa:?} is not in this processor");
        Self { shape, engine: Engine::new(shape, algorithm, isa) }
    }

    /// Writes the gradient `(C_out, C_in, k, k)` for an input of sizes `dims`.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        assert_eq!(x.len(), dims.len(), "input");
        assert_eq!(dy.len(), self.shape.out(dims).len(), "gradient of the output");
        assert_eq!(dw.len(), self.shape.weights(), "gradient of the weights");
        match &self.engine {
            Engine::Portable => portable::conv_weight_gradient(&self.shape, x, dims, dy, dw),
            #[cfg(target_arch = "x86_64")]
            Engine::Gemm(gemm) => gemm.run(x, dims, dy, dw),
            #[cfg(target_arch = "x86_64")]
            Engine::F2(winograd) => winograd.run(x, dims, dy, dw),
            #[cfg(target_arch = "x86_64")]
            Engine::F4(winograd) => winograd.run(x, dims, dy, dw),
        }
    }
}
