use proptest::prelude::*;

use super::super::*;
use super::{bits, config, error, values};
use crate::reference::{self, Sizes};
use crate::threads::with_threads;

/// One convolution over one input.
#[derive(Clone, Copy, Debug)]
struct Case {
    shape: ConvShape,
    dims: Dims,
}

impl Case {
    fn of(c_in: usize, c_out: usize, (kernel, stride, padding): (usize, usize, usize), n: usize, side: usize) -> Self {
        let dims = Dims { n, h: side, w: side, c: c_in };
        Self { shape: ConvShape { c_in, c_out, kernel, stride, padding }, dims }
    }

    fn out(&self) -> Dims {
        self.shape.out(self.dims)
    }

    fn inputs(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        (values(1, self.dims.len()), values(2, self.shape.weights()), values(3, self.out().len()))
    }

    fn forward(&self, algorithm: Algorithm, isa: Isa, x: &[f32], w: &[f32]) -> Vec<f32> {
        let mut layer = Forward::new(self.shape, algorithm, isa);
        layer.pack(w, None);
        let mut y = vec![f32::NAN; self.out().len()];
        layer.run(x, self.dims, &mut y, &Epilogue::default());
        y
    }

    fn input_gradient(&self, algorithm: Algorithm, isa: Isa, w: &[f32], dy: &[f32]) -> Vec<f32> {
        let mut layer = InputGradient::new(self.shape, algorithm, isa);
        layer.pack(w);
        let mut dx = vec![f32::NAN; self.dims.len()];
        layer.run(dy, self.dims, &mut dx, false);
        dx
    }

    fn weight_gradient(&self, algorithm: Algorithm, isa: Isa, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let mut dw = vec![f32::NAN; self.shape.weights()];
        WeightGradient::new(self.shape, algorithm, isa).run(x, self.dims, dy, &mut dw);
        dw
    }

    /// The three products of one way against plain loops.
    fn check(&self, algorithm: Algorithm, isa: Isa, tolerance: f64) {
        let (x, w, dy) = self.inputs();
        let close = |got: Vec<f32>, want: Vec<f32>, what: &str| {
            let error = error(&got, &want);
            assert!(error <= tolerance, "{what} of {self:?}, {algorithm:?} on {isa:?}: error {error:e}");
        };
        let plain = Isa::Portable;
        let gemm = Algorithm::Gemm;
        close(self.forward(algorithm, isa, &x, &w), self.forward(gemm, plain, &x, &w), "y");
        close(self.input_gradient(algorithm, isa, &w, &dy), self.input_gradient(gemm, plain, &w, &dy), "dx");
        close(self.weight_gradient(algorithm, isa, &x, &dy), self.weight_gradient(gemm, plain, &x, &dy), "dw");
    }
}

prop_compose! {
    fn any_case()(
        (n, c_in, c_out) in (1usize..4, 1usize..40, 1usize..40),
        (kernel, stride, padding) in (1usize..5, 1usize..4, 0usize..4),
        (h, w) in (1usize..14, 1usize..14),
    ) -> Case {
        let least = kernel.saturating_sub(2 * padding).max(1);
        let dims = Dims { n, h: h.max(least), w: w.max(least), c: c_in };
        Case { shape: ConvShape { c_in, c_out, kernel, stride, padding }, dims }
    }
}

prop_compose! {
    fn winograd_case()(
        (n, c_in, c_out) in (1usize..6, 1usize..10, 1usize..10),
        (h, w, padding) in (3usize..20, 3usize..20, 0usize..3),
    ) -> Case {
        let (c_in, c_out) = (c_in * 16, c_out * 16);
        Case { shape: ConvShape { c_in, c_out, kernel: 3, stride: 1, padding }, dims: Dims { n, h, w, c: c_in } }
    }
}

prop_compose! {
    /// Pictures that are one tile.
    fn tiny_case()(
        (n, c_in, c_out) in (1usize..60, 1usize..10, 1usize..10),
        (h, w) in (1usize..3, 1usize..3),
    ) -> Case {
        let (c_in, c_out) = (c_in * 16, c_out * 16);
        Case { shape: ConvShape { c_in, c_out, kernel: 3, stride: 1, padding: 1 }, dims: Dims { n, h, w, c: c_in } }
    }
}

/// Error allowed relative to the largest value.
fn tolerance(way: Algorithm) -> f64 {
    if way == Algorithm::WinogradF4 { 1e-4 } else { 1e-5 }
}

/// A case of any shape, or one that Winograd can do, which the other ways then do as well.
fn either_case() -> impl Strategy<Value = Case> {
    prop_oneof![any_case(), winograd_case(), tiny_case()]
}

const WINOGRAD: [Algorithm; 3] = [Algorithm::WinogradF2, Algorithm::WinogradF4, Algorithm::WinogradTwo];

/// Every way that can do a case, on every instruction set.
fn ways(case: &Case) -> Vec<(Algorithm, Isa)> {
    let all = std::iter::once(Algorithm::Gemm).chain(WINOGRAD);
    let ways: Vec<_> = all.filter(|way| way.supports(&case.shape, case.dims)).collect();
    let fast = isas().into_iter().flat_map(|isa| ways.iter().map(move |way| (*way, isa)));
    std::iter::once((Algorithm::Gemm, Isa::Portable)).chain(fast).collect()
}

/// Every instruction set of this processor that has kernels beside the plain loops.
fn isas() -> Vec<Isa> {
    Isa::available().filter(|isa| *isa != Isa::Portable).collect()
}

/// `(B, C, H, W)` of `(B, H, W, C)`.
fn to_nchw(x: &[f32], d: Dims) -> Vec<f32> {
    let pixels = d.h * d.w;
    (0..d.len()).map(|i| x[(i / (d.c * pixels) * pixels + i % pixels) * d.c + i / pixels % d.c]).collect()
}

proptest! {
    #![proptest_config(config(64))]

    /// The oracle of this module against the oracle of the crate, which knows the other order.
    #[test]
    fn plain_loops_equal_the_reference(case in any_case()) {
        let Case { shape, dims } = case;
        let (x, w, dy) = case.inputs();
        let ConvShape { c_in, c_out, kernel, stride, padding } = shape;
        let sizes = Sizes { batch: dims.n, c_in, height: dims.h, width: dims.w, c_out, kernel, stride, padding };
        let (gemm, plain) = (Algorithm::Gemm, Isa::Portable);
        let (x_nchw, dy_nchw) = (to_nchw(&x, dims), to_nchw(&dy, case.out()));
        let y = to_nchw(&case.forward(gemm, plain, &x, &w), case.out());
        prop_assert!(error(&y, &reference::conv2d(&sizes, &x_nchw, &w)) < 1e-6);
        let dx = to_nchw(&case.input_gradient(gemm, plain, &w, &dy), dims);
        prop_assert!(error(&dx, &reference::conv2d_data_gradient(&sizes, &w, &dy_nchw)) < 1e-6);
        let dw = case.weight_gradient(gemm, plain, &x, &dy);
        prop_assert!(error(&dw, &reference::conv2d_weight_gradient(&sizes, &x_nchw, &dy_nchw)) < 1e-6);
    }

    /// Tiles cut off at the border, one block of tiles and several, both orders of the steps.
    #[test]
    fn winograd_equals_the_plain_loops(case in prop_oneof![winograd_case(), tiny_case()]) {
        for (way, isa) in ways(&case) {
            case.check(way, isa, tolerance(way));
        }
    }

    #[test]
    fn any_shape_equals_the_plain_loops(case in any_case()) {
        isas().into_iter().for_each(|isa| case.check(Algorithm::Gemm, isa, 1e-5));
    }

    /// Scale, bias, residual, ReLU and sums against the same done after a bare convolution.
    #[test]
    fn epilogue_equals_separate_steps(case in either_case(), (bias, residual, relu) in any::<(bool, bool, bool)>()) {
        let (x, w, r) = case.inputs();
        let c = case.shape.c_out;
        let (scale, shift) = (values(4, c), values(5, c));
        let mut want = case.forward(Algorithm::Gemm, Isa::Portable, &x, &w);
        for (i, v) in want.iter_mut().enumerate() {
            *v = *v * scale[i % c] + if bias { shift[i % c] } else { 0.0 } + if residual { r[i] } else { 0.0 };
            *v = if relu { v.max(0.0) } else { *v };
        }
        for (way, isa) in ways(&case) {
            let mut layer = Forward::new(case.shape, way, isa);
            layer.pack(&w, Some(&scale));
            let mut y = vec![f32::NAN; want.len()];
            let epilogue = Epilogue { bias: bias.then_some(&shift[..]), residual: residual.then_some(&r[..]), relu };
            layer.run(&x, case.dims, &mut y, &epilogue);
            prop_assert!(error(&y, &want) < tolerance(way), "{way:?} {isa:?} {:e}", error(&y, &want));
        }
    }

    #[test]
    fn sums_equal_sums_over_the_output(case in either_case()) {
        let (x, w, _) = case.inputs();
        for (way, isa) in ways(&case) {
            let mut layer = Forward::new(case.shape, way, isa);
            layer.pack(&w, None);
            let mut y = vec![f32::NAN; case.out().len()];
            let mut sums = ChannelSums::default();
            layer.run_with_sums(&x, case.dims, &mut y, &mut sums);
            prop_assert_eq!(bits(&y), bits(&case.forward(way, isa, &x, &w)));
            for c in 0..case.shape.c_out {
                let of_channel = || y.iter().skip(c).step_by(case.shape.c_out).map(|v| f64::from(*v));
                let (square, size): (f64, f64) = (of_channel().map(|v| v * v).sum(), of_channel().map(f64::abs).sum());
                prop_assert!((sums.sum[c] - of_channel().sum::<f64>()).abs() <= 1e-5 * size);
                prop_assert!((sums.square[c] - square).abs() <= 1e-5 * square);
            }
        }
    }

    /// Also where weights were packed before, and on top of what is there.
    #[test]
    fn weights_used_once_give_what_packed_ones_give(case in either_case()) {
        let (x, w, dy) = case.inputs();
        for (way, isa) in ways(&case) {
            let (mut layer, mut sums) = (Forward::new(case.shape, way, isa), ChannelSums::default());
            let mut y = vec![f32::NAN; case.out().len()];
            layer.run_once(&w, &x, case.dims, &mut y, &mut sums);
            prop_assert!(error(&y, &case.forward(way, isa, &x, &w)) < tolerance(way), "{way:?} {isa:?}");
            let (mut want, mut again) = (ChannelSums::default(), y.clone());
            layer.pack(&w, None);
            layer.run_with_sums(&x, case.dims, &mut again, &mut want);
            let close = |got: &[f64], want: &[f64]| {
                let size = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
                got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-4 * size)
            };
            prop_assert!(close(&sums.sum, &want.sum) && close(&sums.square, &want.square), "{way:?} {isa:?}");
            let mut layer = InputGradient::new(case.shape, way, isa);
            let mut dx = x.clone();
            layer.run_once(&w, &dy, case.dims, &mut dx, true);
            let bare = case.input_gradient(way, isa, &w, &dy);
            let want: Vec<f32> = bare.iter().zip(&x).map(|(a, b)| a + b).collect();
            prop_assert!(error(&dx, &want) < tolerance(way), "{way:?} {isa:?}");
        }
    }

    #[test]
    fn adding_to_a_gradient_adds(case in either_case()) {
        let (x, w, dy) = case.inputs();
        for (way, isa) in ways(&case) {
            let mut layer = InputGradient::new(case.shape, way, isa);
            layer.pack(&w);
            let mut dx = x.clone();
            layer.run(&dy, case.dims, &mut dx, true);
            let plain = case.input_gradient(Algorithm::Gemm, Isa::Portable, &w, &dy);
            let want: Vec<f32> = plain.iter().zip(&x).map(|(a, b)| a + b).collect();
            prop_assert!(error(&dx, &want) < tolerance(way));
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `<dy, conv(x, w)> = <dx, x> = <dw, w>`: a convolution is linear in both.
fn check_adjoint(case: &Case, algorithm: Algorithm, isa: Isa, tolerance: f64) {
    let (x, w, dy) = case.inputs();
    let y = case.forward(algorithm, isa, &x, &w);
    let (dx, dw) = (case.input_gradient(algorithm, isa, &w, &dy), case.weight_gradient(algorithm, isa, &x, &dy));
    let (want, scale) = (dot(&dy, &y), (dot(&y, &y) * dot(&dy, &dy)).sqrt());
    for (got, what) in [(dot(&dx, &x), "dx"), (dot(&dw, &w), "dw")] {
        assert!((got - want).abs() <= tolerance * scale, "{what} of {case:?}: {got} instead of {want}");
    }
}

/// Shapes of the networks, small in number: several tiles, several blocks of the reduction, odd sides.
fn layers() -> Vec<Case> {
    vec![
        Case::of(3, 64, (7, 2, 3), 2, 65),
        Case::of(3, 32, (7, 2, 3), 6, 45),
        Case::of(64, 64, (1, 1, 0), 3, 15),
        Case::of(64, 256, (1, 1, 0), 2, 14),
        Case::of(640, 48, (1, 1, 0), 2, 9),
        Case::of(1024, 32, (1, 1, 0), 1, 7),
        Case::of(64, 64, (3, 1, 1), 3, 16),
        Case::of(96, 32, (3, 1, 1), 2, 7),
        Case::of(160, 176, (3, 1, 1), 3, 4),
        Case::of(192, 208, (3, 1, 1), 29, 2),
        Case::of(64, 128, (3, 2, 1), 2, 17),
        Case::of(32, 64, (3, 2, 1), 8, 2),
        Case::of(128, 96, (1, 2, 0), 2, 15),
    ]
}

/// Every path once, at sizes that an interpreter which checks every access can do in a minute.
#[test]
fn smallest_shapes_equal_the_plain_loops() {
    let cases = [
        Case::of(3, 17, (3, 1, 1), 1, 3),
        Case::of(9, 7, (3, 2, 1), 1, 4),
        Case::of(8, 18, (1, 1, 0), 1, 3),
        Case::of(5, 16, (1, 2, 0), 2, 3),
        Case::of(16, 16, (3, 1, 1), 1, 5),
        Case::of(16, 16, (3, 1, 1), 2, 2),
    ];
    for (case, (way, isa)) in cases.iter().flat_map(|case| ways(case).into_iter().map(move |way| (case, way))) {
        case.check(way, isa, tolerance(way));
    }
}

#[test]
fn layers_of_the_networks_equal_the_plain_loops() {
    for isa in isas() {
        layers().iter().for_each(|case| case.check(Algorithm::Gemm, isa, 1e-5));
    }
}

/// So many channels that the steps go over all tiles together, and so many tiles that these are several blocks.
#[test]
fn winograd_over_several_blocks_equals_the_plain_loops() {
    let case = Case::of(512, 16, (3, 1, 1), 11, 15);
    isas().into_iter().for_each(|isa| case.check(Algorithm::WinogradF4, isa, tolerance(Algorithm::WinogradF4)));
}

#[test]
fn gradients_are_adjoint() {
    for case in layers() {
        for (way, isa) in ways(&case) {
            check_adjoint(&case, way, isa, tolerance(way) / 10.0);
        }
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    for case in layers() {
        for (algorithm, isa) in ways(&case) {
            let (x, w, dy) = case.inputs();
            let run = || {
                let mut layer = Forward::new(case.shape, algorithm, isa);
                layer.pack(&w, None);
                let (mut y, mut sums) = (vec![0.0; case.out().len()], ChannelSums::default());
                layer.run_with_sums(&x, case.dims, &mut y, &mut sums);
                let mut once = vec![0.0; case.out().len()];
                layer.run_once(&w, &x, case.dims, &mut once, &mut ChannelSums::default());
                let sums: Vec<u64> = sums.sum.iter().chain(&sums.square).map(|v| v.to_bits()).collect();
                let dx = case.input_gradient(algorithm, isa, &w, &dy);
                (bits(&y), sums, bits(&once), bits(&dx), bits(&case.weight_gradient(algorithm, isa, &x, &dy)))
            };
            let one = with_threads(1, run);
            assert!(one == with_threads(2, run) && one == with_threads(3, run), "{case:?} {algorithm:?} {isa:?}");
        }
    }
}
