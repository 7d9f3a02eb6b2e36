use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;

use super::*;
use crate::reference::{self, Sizes};
use crate::threads::with_threads;

fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32) * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn geometry(s: &Sizes) -> Geometry {
    let (out_height, out_width) = s.out();
    let Sizes { batch, c_in, height, width, c_out, kernel, stride, padding } = *s;
    Geometry { batch, c_in, height, width, c_out, kernel, stride, padding, out_height, out_width }
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 2e-5 * scale, "{what}[{i}]: {g} instead of {w}");
    }
}

fn check(s: &Sizes) {
    let g = geometry(s);
    let x = values(1, g.batch * g.in_len());
    let w = values(2, g.c_out * g.depth());
    let dy = values(3, g.batch * g.out_len());
    assert_close(&forward(&g, &x, &w), &reference::conv2d(s, &x, &w), "y");
    assert_close(&data_gradient(&g, &w, &dy), &reference::conv2d_data_gradient(s, &w, &dy), "dx");
    assert_close(&weight_gradient(&g, &x, &dy), &reference::conv2d_weight_gradient(s, &x, &dy), "dw");
}

prop_compose! {
    fn sizes()(
        (batch, c_in, c_out) in (1usize..5, 1usize..6, 1usize..6),
        (kernel, stride) in (1usize..6, 1usize..4),
        (height, width, padding) in (1usize..14, 1usize..14, 0usize..4),
    ) -> Sizes {
        let least = kernel.saturating_sub(2 * padding).max(1);
        let (height, width) = (height.max(least), width.max(least));
        Sizes { batch, c_in, height, width, c_out, kernel, stride, padding }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_equals_the_plain_loops(s in sizes()) {
        check(&s);
    }
}

/// What other devices compose of candle's operations, on the CPU and through the tape.
fn check_composed(s: &Sizes) -> Result<()> {
    let g = geometry(s);
    let var = |seed, dims: &[usize]| Var::from_tensor(&tensor(values(seed, dims.iter().product()), dims)?);
    let x = var(1, &[g.batch, g.c_in, g.height, g.width])?;
    let w = var(2, &[g.c_out, g.c_in, g.kernel, g.kernel])?;
    let dy = tensor(values(3, g.batch * g.out_len()), (g.batch, g.c_out, g.out_height, g.out_width))?;
    let y = device::conv2d(g, x.as_tensor(), w.as_tensor())?;
    let gradients = (&y * &dy)?.sum_all()?.backward()?;
    let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let gradient = |of: &Var| flat(gradients.get(of.as_tensor()).expect("on the tape"));
    let (x_values, w_values, dy) = (flat(x.as_tensor())?, flat(w.as_tensor())?, flat(&dy)?);
    assert_close(&flat(&y)?, &reference::conv2d(s, &x_values, &w_values), "y");
    assert_close(&gradient(&x)?, &reference::conv2d_data_gradient(s, &w_values, &dy), "dx");
    assert_close(&gradient(&w)?, &reference::conv2d_weight_gradient(s, &x_values, &dy), "dw");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_other_devices_compose_equals_the_plain_loops(s in sizes()) {
        check_composed(&s).expect("valid sizes");
    }
}

/// Shapes of the networks: row tiles of one image, several images a tile, several parts of the reduction.
const LAYERS: [Sizes; 6] = [
    Sizes { batch: 2, c_in: 3, height: 130, width: 128, c_out: 8, kernel: 7, stride: 2, padding: 3 },
    Sizes { batch: 5, c_in: 32, height: 16, width: 16, c_out: 32, kernel: 3, stride: 1, padding: 1 },
    Sizes { batch: 70, c_in: 64, height: 4, width: 4, c_out: 16, kernel: 3, stride: 2, padding: 1 },
    Sizes { batch: 33, c_in: 96, height: 2, width: 2, c_out: 24, kernel: 3, stride: 1, padding: 1 },
    Sizes { batch: 9, c_in: 16, height: 8, width: 8, c_out: 32, kernel: 1, stride: 1, padding: 0 },
    Sizes { batch: 9, c_in: 16, height: 8, width: 8, c_out: 32, kernel: 1, stride: 2, padding: 0 },
];

#[test]
fn layers_of_the_networks_equal_the_plain_loops() {
    LAYERS.iter().for_each(check);
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    for s in &LAYERS {
        let g = geometry(s);
        let (x, w) = (values(4, g.batch * g.in_len()), values(5, g.c_out * g.depth()));
        let dy = values(6, g.batch * g.out_len());
        let run = || (forward(&g, &x, &w), data_gradient(&g, &w, &dy), weight_gradient(&g, &x, &dy));
        let (one, two, three) = (with_threads(1, run), with_threads(2, run), with_threads(3, run));
        let bits = |v: &[f32]| v.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
        for other in [two, three] {
            assert_eq!(bits(&one.0), bits(&other.0), "{s:?}");
            assert_eq!(bits(&one.1), bits(&other.1), "{s:?}");
            assert_eq!(bits(&one.2), bits(&other.2), "{s:?}");
        }
    }
}

#[test]
fn tape_gradients_equal_finite_differences() -> Result<()> {
    let (x, w) = (values(7, 2 * 3 * 5 * 4), values(8, 4 * 3 * 3 * 3));
    let loss = |x: &Tensor, w: &Tensor| conv2d(x, w, 2, 1)?.sqr()?.sum_all();
    let at = |x: Vec<f32>, w: Vec<f32>| -> Result<f64> {
        let (x, w) = (tensor(x, (2, 3, 5, 4))?, tensor(w, (4, 3, 3, 3))?);
        Ok(f64::from(loss(&x, &w)?.to_scalar::<f32>()?))
    };
    let xv = Var::from_tensor(&tensor(x.clone(), (2, 3, 5, 4))?)?;
    let wv = Var::from_tensor(&tensor(w.clone(), (4, 3, 3, 3))?)?;
    let grads = loss(xv.as_tensor(), wv.as_tensor())?.backward()?;
    let grad = |v: &Var| grads.get(v.as_tensor()).expect("on the tape").flatten_all()?.to_vec1::<f32>();
    let (dx, dw) = (grad(&xv)?, grad(&wv)?);
    const H: f32 = 1e-2;
    for i in (0..x.len()).step_by(7) {
        let (mut up, mut down) = (x.clone(), x.clone());
        up[i] += H;
        down[i] -= H;
        let slope = (at(up, w.clone())? - at(down, w.clone())?) / (2.0 * f64::from(H));
        assert!((slope - f64::from(dx[i])).abs() < 1e-2 * slope.abs().max(1.0), "dx[{i}] {} is {slope}", dx[i]);
    }
    for i in (0..w.len()).step_by(5) {
        let (mut up, mut down) = (w.clone(), w.clone());
        up[i] += H;
        down[i] -= H;
        let slope = (at(x.clone(), up)? - at(x.clone(), down)?) / (2.0 * f64::from(H));
        assert!((slope - f64::from(dw[i])).abs() < 1e-2 * slope.abs().max(1.0), "dw[{i}] {} is {slope}", dw[i]);
    }
    Ok(())
}

#[test]
fn a_slice_of_a_larger_tensor_is_read_as_it_stands() -> Result<()> {
    let all = tensor(values(9, 4 * 2 * 6 * 6), (4, 2, 6, 6))?;
    let w = tensor(values(10, 3 * 2 * 3 * 3), (3, 2, 3, 3))?;
    let part = conv2d(&all.narrow(0, 2, 2)?, &w, 1, 1)?;
    let whole = conv2d(&all, &w, 1, 1)?.narrow(0, 2, 2)?;
    assert_eq!(part.flatten_all()?.to_vec1::<f32>()?, whole.flatten_all()?.to_vec1::<f32>()?);
    let turned = conv2d(&all.transpose(2, 3)?, &w.transpose(2, 3)?, 1, 1)?.transpose(2, 3)?;
    let whole = conv2d(&all, &w, 1, 1)?;
    assert_close(&turned.flatten_all()?.to_vec1::<f32>()?, &whole.flatten_all()?.to_vec1::<f32>()?, "turned");
    Ok(())
}

#[test]
fn shapes_that_do_not_match_are_refused() -> Result<()> {
    let x = Tensor::zeros((1, 3, 4, 4), candle_core::DType::F32, &Device::Cpu)?;
    let w = |c: usize, k: usize| Tensor::zeros((2, c, k, k), candle_core::DType::F32, &Device::Cpu);
    assert!(conv2d(&x, &w(2, 3)?, 1, 1).is_err());
    assert!(conv2d(&x, &w(3, 5)?, 1, 0).is_err());
    assert!(conv2d(&x, &w(3, 3)?, 0, 0).is_err());
    assert!(conv2d(&x.to_dtype(candle_core::DType::F64)?, &w(3, 3)?, 1, 0).is_err());
    Ok(())
}
