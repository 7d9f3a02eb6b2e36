//! Gradient of a convolution with respect to its input.

#[cfg(target_arch = "x86_64")]
use super::avx2::{F2, F4, GemmInputGradient, Winograd};
use super::portable::{self, Packed};
use super::{Algorithm, ConvShape, Dims, Epilogue, Isa};

/// `dx` from `dy`, with the weights packed for it.
#[derive(Clone, Debug)]
pub struct InputGradient {
    shape: ConvShape,
    engine: Engine,
}

/// Who does it, with the weights as it wants them.
#[derive(Clone, Debug)]
enum Engine {
    Portable(Packed),
    #[cfg(target_arch = "x86_64")]
    Gemm(GemmInputGradient),
    #[cfg(target_arch = "x86_64")]
    F2(Winograd<F2>),
    #[cfg(target_arch = "x86_64")]
    F4(Winograd<F4>),
}

impl Engine {
    fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        match (isa, algorithm.or_gemm(&shape)) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2Fma, Algorithm::Gemm) => Self::Gemm(GemmInputGradient::new(shape)),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2Fma, Algorithm::WinogradF2) => Self::F2(Winograd::input_gradient(&shape)),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2Fma, Algorithm::WinogradF4) => Self::F4(Winograd::input_gradient(&shape)),
            _ => Self::Portable(Packed::default()),
        }
    }
}

impl InputGradient {
    /// For the convolution `shape`; `algorithm` as in [`super::Forward::new`].
    ///
    /// # Panics
    /// When the processor lacks `isa`.
    pub fn new(shape: ConvShape, algorithm: Algorithm, isa: Isa) -> Self {
        assert!(isa.is_available(), "{isa:?} is not in this processor");
        Self { shape, engine: Engine::new(shape, algorithm, isa) }
    }

    /// Takes the convolution's weights `(C_out, C_in, k, k)`.
    ///
    /// # Panics
    /// When the slice has another length.
    pub fn pack(&mut self, weight: &[f32]) {
        assert_eq!(weight.len(), self.shape.weights(), "weights");
        match &mut self.engine {
            Engine::Portable(packed) => *packed = Packed::input_gradient(&self.shape, weight),
            #[cfg(target_arch = "x86_64")]
            Engine::Gemm(gemm) => gemm.pack(weight),
            #[cfg(target_arch = "x86_64")]
            Engine::F2(winograd) => winograd.pack(weight, None),
            #[cfg(target_arch = "x86_64")]
            Engine::F4(winograd) => winograd.pack(weight, None),
        }
    }

    /// Gradient with respect to an input of sizes `dims`: `dx = …`, or `dx += …` where `add` is set.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn run(&self, dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        let out = self.shape.out(dims);
        assert_eq!(dy.len(), out.len(), "gradient of the output");
        assert_eq!(dx.len(), dims.len(), "gradient of the input");
        match &self.engine {
            Engine::Portable(packed) => portable::conv_input_gradient(&self.shape, packed, dy, dims, dx, add),
            #[cfg(target_arch = "x86_64")]
            Engine::Gemm(gemm) => gemm.run(dy, dims, dx, add),
            #[cfg(target_arch = "x86_64")]
            Engine::F2(winograd) => winograd.run((dy, out), dx, add, &Epilogue::default(), None),
            #[cfg(target_arch = "x86_64")]
            Engine::F4(winograd) => winograd.run((dy, out), dx, add, &Epilogue::default(), None),
        }
    }
}
