//! Which instructions the operations use.

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Whatever the compiler targets: plain loops.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2Fma,
}

impl Isa {
    /// The best one this processor has.
    pub fn detect() -> Self {
        if Self::Avx2Fma.is_available() { Self::Avx2Fma } else { Self::Portable }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Fma => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2Fma => false,
        }
    }
}

/// Makes `fn name(…)` from a plain loop compiled twice: for every processor, and for AVX2 where there is one.
///
/// Nothing in it is contracted to a fused multiply-add, so both write the same bytes.
macro_rules! vectorised {
    ($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        fn $name($($argument: $type),*) {
            #[inline(always)]
            fn plain($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) {
                plain($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            if $crate::nhwc::Isa::detect() == $crate::nhwc::Isa::Avx2Fma {
                // SAFETY: the processor has both features.
                return unsafe { avx2($($argument),*) };
            }
            plain($($argument),*)
        }
    };
}
pub(super) use vectorised;
