//! Losses within the batch, against PyTorch's numbers and the slope of themselves.

use candle_core::{Device, Var};

use super::*;

const ANCHORS: Rows = [[0.6, 0.8, 0.0], [0.0, 0.6, 0.8], [1.0, 0.0, 0.0], [0.8, 0.0, -0.6]];
const QUERIES: Rows = [[0.8, 0.6, 0.0], [0.0, 0.28, 0.96], [0.0, 1.0, 0.0], [0.96, 0.0, -0.28]];
const LOGITS: Rows = [[0.5, -1.0, 2.0], [-0.25, 3.0, 0.75], [1.5, 0.0, -2.5], [-4.0, 0.1, 0.3]];
const LABELS: Rows = [[1.0, -1.0, 1.0], [1.0, -1.0, 0.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]];
const WORDS: Rows = [[1.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, -1.0, 1.0], [-1.0, 0.0, 0.0]];
const MARGIN: f64 = 0.1;

type Rows = [[f32; 3]; 4];

// import torch, torch.nn.functional as F; a, p, z, l, w = (torch.tensor(rows) for rows in (ANCHORS, QUERIES, LOGITS, LABELS, WORDS))
// a.requires_grad_(); z.requires_grad_(); m = MARGIN
// con = ((w[:, None] * l[None]) < 0).any(-1); unk = ((w[:, None] != 0) & (l[None] == 0)).any(-1); sat = ~con & ~unk
// d = ((2 - 2 * p @ a.T).relu() + 1e-12).sqrt()
// t = (m + d[:, :, None] - d[:, None, :]).relu() * (sat[:, :, None] & con[:, None, :]); all = t.sum() / (t > 0).sum()
// semi, n = 0, 0
// for i in range(4):
//     neg = [j for j in range(4) if con[i, j]]
//     for q in range(4):
//         if sat[i, q] and neg:
//             behind = [j for j in neg if d[i, j] > d[i, q]]
//             j = min(behind, key=lambda j: d[i, j].item()) if behind else max(neg, key=lambda j: d[i, j].item())
//             semi, n = semi + (m + d[i, q] - d[i, j]).relu(), n + 1
// semi = semi / n
// s = torch.where(sat | con, p @ a.T / 0.5, torch.tensor(-1e9)).log_softmax(1)
// info = -(s * sat / sat.sum(1, keepdim=True)).sum() / 4
// bce = F.binary_cross_entropy_with_logits(z, (l > 0).float(), weight=(l != 0).float(), reduction="sum") / (l != 0).sum()
// print(loss, torch.autograd.grad(loss, a or z, retain_graph=True)) of each
const SEMI_HARD: (f64, Rows) =
    (0.060355343, [[0.0, 0.0, 0.0], [-0.0883884, -0.0662913, 0.0], [0.0, -0.0883883, 0.0], [0.117851, 0.176777, 0.0]]);
const ALL: (f64, Rows) =
    (0.360586017, [[0.0, 0.0, 0.0], [-0.471405, -0.353553, 0.0], [0.421637, 0.0805255, 0.0], [0.31427, 0.471405, 0.0]]);
const INFO_NCE: (f64, Rows) = (
    1.175127149,
    [
        [0.0452735, 0.0269661, -0.185796],
        [-0.134932, -0.0876211, 0.0873779],
        [0.0648776, -0.0778932, 0.0653988],
        [0.0247812, 0.138548, 0.0330194],
    ],
);
const CROSS_ENTROPY: (f64, Rows) = (
    1.025376916,
    [
        [-0.0343219, 0.0244492, -0.0108366],
        [-0.051107, 0.0865977, 0.0],
        [0.074325, 0.0454545, -0.0840129],
        [0.00163511, -0.0431837, 0.052222],
    ],
);

fn tensor(rows: &Rows) -> Tensor {
    Tensor::new(rows, &Device::Cpu).unwrap()
}

/// Loss and slope, by places of images or by logits.
fn loss_at(loss: Loss, rows: &Rows) -> (f64, Vec<Vec<f32>>) {
    let at = Var::new(rows, &Device::Cpu).unwrap();
    let of_logits = loss == Loss::BinaryCrossEntropy;
    let (images, logits) = (tensor(&ANCHORS), tensor(&LOGITS));
    let queries = tensor(&QUERIES);
    let batch = Embedded {
        logits: if of_logits { at.as_tensor() } else { &logits },
        anchors: if of_logits { &images } else { at.as_tensor() },
        positives: &queries,
        negatives: &queries,
        labels: &tensor(&LABELS),
        words: &tensor(&WORDS),
    };
    let loss = of(loss, MARGIN, &batch).unwrap();
    let slope = loss.backward().unwrap().get(at.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
    (f64::from(loss.to_scalar::<f32>().unwrap()), slope)
}

fn cases() -> [(Loss, Rows, (f64, Rows)); 4] {
    [
        (Loss::SemiHardTriplet, ANCHORS, SEMI_HARD),
        (Loss::AllTriplets, ANCHORS, ALL),
        (Loss::InfoNce { temperature: 0.5 }, ANCHORS, INFO_NCE),
        (Loss::BinaryCrossEntropy, LOGITS, CROSS_ENTROPY),
    ]
}

#[test]
fn losses_and_gradients_are_pytorchs() {
    for (loss, rows, (value, gradient)) in cases() {
        let (got, slope) = loss_at(loss, &rows);
        assert!((got - value).abs() < 1e-6, "{loss:?}: {got} instead of {value}");
        for (got, want) in slope.iter().flatten().zip(gradient.iter().flatten()) {
            assert!((got - want).abs() < 1e-5, "{loss:?}: {slope:?} instead of {gradient:?}");
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    const H: f32 = 2e-3;
    for (loss, rows, _) in cases() {
        let (_, gradient) = loss_at(loss, &rows);
        for (row, column) in (0..4).flat_map(|row| (0..3).map(move |column| (row, column))) {
            let (mut up, mut down) = (rows, rows);
            up[row][column] += H;
            down[row][column] -= H;
            let slope = (loss_at(loss, &up).0 - loss_at(loss, &down).0) / (2.0 * f64::from(H));
            let off = (slope - f64::from(gradient[row][column])).abs();
            assert!(off < 2e-3, "{loss:?} at {row}, {column}: {slope} instead of {}", gradient[row][column]);
        }
    }
}

#[test]
fn an_image_that_satisfies_a_query_or_may_do_so_is_never_its_negative() {
    assert_eq!(relation(&[1.0, 0.0, -1.0], &[1.0, -1.0, -1.0]), Relation::Satisfies);
    assert_eq!(relation(&[1.0, 0.0, -1.0], &[1.0, 1.0, 1.0]), Relation::Contradicts);
    assert_eq!(relation(&[1.0, 0.0, -1.0], &[1.0, 1.0, 0.0]), Relation::Unknown);
    assert_eq!(relation(&[1.0, 0.0, -1.0], &[-1.0, 1.0, 0.0]), Relation::Contradicts);
    assert_eq!(relation(&[0.0; 3], &[-1.0, 1.0, 0.0]), Relation::Satisfies);
}

#[test]
fn an_unknown_label_has_no_part_in_the_cross_entropy() {
    let (before, slope) = loss_at(Loss::BinaryCrossEntropy, &LOGITS);
    let mut rows = LOGITS;
    rows[1][2] = 50.0;
    assert_eq!(loss_at(Loss::BinaryCrossEntropy, &rows).0, before);
    assert_eq!(slope[1][2], 0.0);
}

#[test]
fn a_batch_without_negatives_costs_nothing() {
    let (words, labels) = (tensor(&[[0.0; 3]; 4]), tensor(&LABELS));
    let (places, queries) = (tensor(&ANCHORS), tensor(&QUERIES));
    let batch = Embedded {
        logits: &places,
        anchors: &places,
        positives: &queries,
        negatives: &queries,
        labels: &labels,
        words: &words,
    };
    for loss in [Loss::SemiHardTriplet, Loss::AllTriplets] {
        assert_eq!(of(loss, MARGIN, &batch).unwrap().to_scalar::<f32>().unwrap(), 0.0, "{loss:?}");
    }
}
