//! Which instructions the operations use.

use std::sync::OnceLock;

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Whatever the compiler targets: plain loops.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2Fma,
    /// x86-64 with AVX-512 F, VL, DQ and BW.
    Avx512,
}

impl Isa {
    /// All, the best one first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2Fma, Self::Portable];

    /// The one that is used unless another is named: the best that this processor has, or what the environment
    /// variable `LIKENESS_ISA` says, `portable`, `avx2` or `avx512`. Bytes depend on it.
    ///
    /// # Panics
    /// When the variable is wrong: a program asks [`Isa::from_environment`] first.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| Self::from_environment().unwrap_or_else(|error| panic!("{error}")))
    }

    /// What [`Isa::detect`] will say.
    ///
    /// # Errors
    /// When `LIKENESS_ISA` names none, or one that this processor lacks.
    pub fn from_environment() -> Result<Self, String> {
        match std::env::var("LIKENESS_ISA") {
            Ok(name) => Self::named(&name),
            Err(_) => Ok(Self::available().next().unwrap_or(Self::Portable)),
        }
    }

    fn named(name: &str) -> Result<Self, String> {
        let isa = match name {
            "portable" => Self::Portable,
            "avx2" => Self::Avx2Fma,
            "avx512" => Self::Avx512,
            _ => return Err(format!("LIKENESS_ISA is `{name}`, neither portable, avx2 nor avx512")),
        };
        if isa.is_available() { Ok(isa) } else { Err(format!("LIKENESS_ISA is `{name}`, which this processor lacks")) }
    }

    /// Those of this processor, the best one first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Fma => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2Fma.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2Fma | Self::Avx512 => false,
        }
    }
}

/// Makes `fn name(…)` from a plain loop compiled for every processor and for each instruction set.
///
/// Nothing in it is contracted to a fused multiply-add, so all write the same bytes.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        $visibility fn $name($($argument: $type),*) {
            #[inline(always)]
            fn plain($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) {
                plain($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            fn avx512($($argument: $type),*) {
                plain($($argument),*)
            }

            match $crate::nhwc::Isa::detect() {
                // SAFETY: the processor has these features.
                #[cfg(target_arch = "x86_64")]
                $crate::nhwc::Isa::Avx512 => unsafe { avx512($($argument),*) },
                // SAFETY: the processor has both features.
                #[cfg(target_arch = "x86_64")]
                $crate::nhwc::Isa::Avx2Fma => unsafe { avx2($($argument),*) },
                _ => plain($($argument),*),
            }
        }
    };
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_variable_and_others_are_refused() {
        assert_eq!(Isa::named("portable"), Ok(Isa::Portable));
        for (name, isa) in [("avx2", Isa::Avx2Fma), ("avx512", Isa::Avx512)] {
            assert_eq!(Isa::named(name).is_ok_and(|named| named == isa), isa.is_available());
        }
        assert!(Isa::named("sse").unwrap_err().contains("`sse`, neither"));
    }
}
