//! Rate of every operation on the shapes of the networks, and which way of convolving is the fastest: what the table
//! in `nhwc/table.rs` is made from.
//!
//!     cargo bench -p likeness-kernels --bench operations --profile dev -- [--threads 2] [--batch 8] [--net resnet50-224] [--only forward|elementwise|…]
//!         [--layer '1x1 s1'] [--seconds 0.2]
//!
//! `LIKENESS_ISA=avx2` in the environment measures the kernels for AVX2 on a processor that has more.
//! Rates count a direct convolution's operations, two per product, so a Winograd way can pass the peak.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use likeness_kernels::configure_threads;
use likeness_kernels::nhwc::table::choose;
use likeness_kernels::nhwc::*;

/// How often a network of some name has a convolution of some shape, over a square input.
struct Layer {
    times: usize,
    side: usize,
    shape: ConvShape,
}

struct Options {
    threads: usize,
    batch: usize,
    net: String,
    only: String,
    layer: String,
    seconds: f64,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self {
            threads: 2,
            batch: 8,
            net: "resnet50-224".into(),
            only: String::new(),
            layer: String::new(),
            seconds: 0.2,
        };
        let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
        while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
            match name.as_str() {
                "--threads" => options.threads = value.parse().expect("a number of threads"),
                "--batch" => options.batch = value.parse().expect("a batch size"),
                "--net" => options.net = value,
                "--only" => options.only = value,
                "--layer" => options.layer = value,
                "--seconds" => options.seconds = value.parse().expect("seconds per measurement"),
                _ => panic!("unknown option {name}"),
            }
        }
        options
    }
}

/// The convolutions of a ResNet v1.5 of `depth` 18 or 50 and some base width, equal ones together.
fn layers(depth: usize, width: usize, side: usize) -> Vec<Layer> {
    let mut layers: Vec<Layer> = Vec::new();
    let mut add = |side: usize, c_in: usize, c_out: usize, kernel: usize, stride: usize| {
        let shape = ConvShape { c_in, c_out, kernel, stride, padding: kernel / 2 };
        match layers.iter_mut().find(|l| l.shape == shape && l.side == side) {
            Some(layer) => layer.times += 1,
            None => layers.push(Layer { times: 1, side, shape }),
        }
    };
    add(side, 3, width, 7, 2);
    let (mut c_in, mut side) = (width, side.div_ceil(4));
    let blocks = if depth == 50 { [3, 4, 6, 3] } else { [2, 2, 2, 2] };
    for (stage, blocks) in blocks.into_iter().enumerate() {
        let c = width << stage;
        let c_out = if depth == 50 { 4 * c } else { c };
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            if depth == 50 {
                add(side, c_in, c, 1, 1);
                add(side, c, c, 3, stride);
                add(side.div_ceil(stride), c, c_out, 1, 1);
            } else {
                add(side, c_in, c, 3, stride);
                add(side.div_ceil(stride), c, c, 3, 1);
            }
            if stride != 1 || c_in != c_out {
                add(side, c_in, c_out, 1, stride);
            }
            (c_in, side) = (c_out, side.div_ceil(stride));
        }
    }
    layers
}

fn values(len: usize) -> Buffer {
    let mut values = Buffer::zeros(len);
    values.iter_mut().enumerate().for_each(|(i, v)| *v = ((i * 7919) % 1009) as f32 / 1009.0 - 0.5);
    values
}

/// Median and least seconds of a call.
fn time(seconds: f64, mut call: impl FnMut()) -> (f64, f64) {
    call();
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 7 || (start.elapsed().as_secs_f64() < seconds && times.len() < 500) {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// Most operations per second that the threads can do: multiply-adds on registers.
#[cfg(target_arch = "x86_64")]
fn peak(threads: usize) -> f64 {
    #[target_feature(enable = "avx2,fma")]
    fn multiply_adds(rounds: usize) -> f32 {
        let mut sums = [[1.0f32; 8]; 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                sum.iter_mut().for_each(|s| *s = s.mul_add(0.999, 0.001));
            }
        }
        sums.iter().flatten().sum()
    }
    const ROUNDS: usize = 2_000_000;
    let run = || {
        rayon::broadcast(|_| {
            if Isa::Avx2Fma.is_available() {
                // SAFETY: the processor has both features.
                std::hint::black_box(unsafe { multiply_adds(std::hint::black_box(ROUNDS)) });
            }
        });
    };
    let (_, best) = time(0.3, run);
    2.0 * 96.0 * ROUNDS as f64 * threads as f64 / best
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: usize) -> f64 {
    f64::NAN
}

const WAYS: [Algorithm; 4] = [Algorithm::Gemm, Algorithm::WinogradF2, Algorithm::WinogradF4, Algorithm::WinogradTwo];
const PRODUCTS: [&str; 3] = ["forward", "input", "weight"];

/// Median and least seconds of one product of a layer.
fn measure(layer: &Layer, product: &str, way: Algorithm, batch: usize, seconds: f64) -> (f64, f64) {
    let isa = Isa::detect();
    let shape = layer.shape;
    let dims = Dims { n: batch, h: layer.side, w: layer.side, c: shape.c_in };
    let (mut x, mut y) = (values(dims.len()), values(shape.out(dims).len()));
    let mut w = values(shape.weights());
    match product {
        "forward" => {
            let mut op = Forward::new(shape, way, isa);
            op.pack(&w, None);
            time(seconds, || op.run(&x, dims, &mut y, &Epilogue { relu: true, ..Epilogue::default() }))
        }
        "input" => {
            let mut op = InputGradient::new(shape, way, isa);
            op.pack(&w);
            time(seconds, || op.run(&y, dims, &mut x, false))
        }
        "once" => {
            let mut op = Forward::new(shape, way, isa);
            let mut sums = ChannelSums::default();
            time(seconds, || op.run_once(&w, &x, dims, &mut y, &mut sums))
        }
        "input-once" => {
            let mut op = InputGradient::new(shape, way, isa);
            time(seconds, || op.run_once(&w, &y, dims, &mut x, false))
        }
        "pack" => {
            let mut op = Forward::new(shape, way, isa);
            time(seconds, || op.pack(&w, None))
        }
        "pack-input" => {
            let mut op = InputGradient::new(shape, way, isa);
            time(seconds, || op.pack(&w))
        }
        "sums" => {
            let mut op = Forward::new(shape, way, isa);
            op.pack(&w, None);
            let mut sums = ChannelSums::default();
            time(seconds, || op.run_with_sums(&x, dims, &mut y, &mut sums))
        }
        _ => {
            let op = WeightGradient::new(shape, way, isa);
            time(seconds, || op.run(&x, dims, &y, &mut w))
        }
    }
}

/// Bytes read and written per second by the operations between convolutions, on a tensor of 56 × 56 × 256.
fn elementwise(batch: usize, seconds: f64) {
    let dims = Dims { n: batch, h: 56, w: 56, c: 256 };
    let (y, mut z, mut g) = (values(dims.len()), values(dims.len()), values(dims.len()));
    let (factors, mut dgamma, mut dbeta) = (values(dims.c), values(dims.c), values(dims.c));
    let pooled = Dims { h: 28, w: 28, ..dims };
    let (mut small, mut index) = (values(pooled.len()), vec![0u8; pooled.len()]);
    let mut sums = ChannelSums::default();
    let show = |name: &str, values: usize, (median, best): (f64, f64)| {
        let rate = |seconds: f64| 4.0 * values as f64 / seconds / 1e9;
        println!("{name}: {:.2} ms, {:.1}/{:.1} GB/s", median * 1e3, rate(median), rate(best));
    };
    let len = dims.len();
    show("channel_sums", len, time(seconds, || channel_sums(&y, dims.c, &mut sums)));
    show("scale_shift", 2 * len, time(seconds, || scale_shift(&y, &factors, &factors, None, true, &mut z)));
    show(
        "scale_shift + residual",
        3 * len,
        time(seconds, || scale_shift(&y, &factors, &factors, Some(&g[..]), true, &mut z)),
    );
    // Not in place: repeated, that would shrink the gradient to denormal numbers.
    let mut dy = values(dims.len());
    let backward = || {
        norm_backward(
            &y,
            Some(&z[..]),
            &mut g,
            &factors,
            &factors,
            &factors,
            Some(&mut dy[..]),
            &mut dgamma,
            &mut dbeta,
        );
    };
    show("norm_backward", 7 * len, time(seconds, backward));
    show("max_pool", len, time(seconds, || max_pool_3x3_s2(&y, dims, &mut small, Some(&mut index[..]))));
    show("max_pool_backward", len, time(seconds, || max_pool_backward(&small, &index, dims, &mut z)));
    let mut means = values(batch * dims.c);
    show("average_pool", len, time(seconds, || average_pool(&y, dims, &mut means)));
    let (images, mut out) = (values(batch * 3 * 224 * 224), values(batch * 3 * 224 * 224));
    show("from_nchw", 2 * out.len(), time(seconds, || from_nchw(&images, batch, 3, 224, 224, &mut out)));
}

fn main() {
    let options = Options::parse();
    configure_threads(options.threads).expect("the pool is not yet in use");
    if options.only == "elementwise" {
        return elementwise(options.batch, options.seconds);
    }
    let (depth, width, side) = match options.net.as_str() {
        "resnet18-64" => (18, 64, 64),
        "resnet18w32-64" => (18, 32, 64),
        "resnet18-224" => (18, 64, 224),
        "resnet50-64" => (50, 64, 64),
        "resnet50-224" => (50, 64, 224),
        other => panic!("unknown network {other}"),
    };
    let peak = peak(options.threads) / 1e9;
    let Options { net, batch, threads, .. } = &options;
    println!("{net} batch {batch} threads {threads} {:?} peak {peak:.0} GFLOP/s", Isa::detect());
    println!("median/best GFLOP/s (share of peak); * what the table takes");
    let extra = [options.only.as_str()];
    let products: &[&str] = if options.only.is_empty() { &PRODUCTS } else { &extra };
    for product in products {
        let (mut total, mut flops) = (0.0, 0.0);
        for layer in layers(depth, width, side) {
            let shape = layer.shape;
            let dims = Dims { n: options.batch, h: layer.side, w: layer.side, c: shape.c_in };
            let choice = choose(&shape, dims, Isa::detect(), true);
            let taken = match *product {
                "input" | "pack-input" | "input-once" => choice.input,
                "weight" => choice.weight,
                _ => choice.forward,
            };
            if shape.c_in == 3 && product.contains("input") {
                continue;
            }
            let ConvShape { c_in, c_out, kernel, stride, .. } = shape;
            let name = format!("{kernel}x{kernel} s{stride} {c_in:4}->{c_out:4} @{:3}", layer.side);
            if !name.contains(&options.layer) {
                continue;
            }
            print!("{product} {}x {name}:", layer.times);
            for way in WAYS.into_iter().filter(|way| way.supports(&shape, dims)) {
                let (median, best) = measure(&layer, product, way, options.batch, options.seconds);
                let work = shape.flops(dims);
                let rate = work / median / 1e9;
                let mark = if way == taken { "*" } else { "" };
                print!("  {mark}{way:?} {rate:.0}/{:.0} ({:.0} %)", work / best / 1e9, 100.0 * rate / peak);
                if way == taken {
                    total += median * layer.times as f64;
                    flops += work * layer.times as f64;
                }
            }
            println!();
        }
        let rate = flops / total / 1e9;
        println!("{product} of all layers: {:.1} ms, {rate:.0} GFLOP/s ({:.0} %)", total * 1e3, 100.0 * rate / peak);
    }
}
