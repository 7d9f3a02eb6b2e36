//! Files of weights: what stands in a safetensors header, which tensors a backbone has, and how those of a file become
//! those of a model.
//!
//! Pure and without the tensors themselves, so that a command can say what does not fit before a job is asked for, and
//! a worker says the same. Names are torchvision's (`conv1.weight` … `layer4.1.bn2.running_var`, `fc.weight`); a model
//! of ours has them behind `image.`, and its query tower behind `attributes.`.

mod export;
mod header;
mod start;

pub use export::{DESCRIPTION, export};
pub use header::{Header, HeaderTensor};
pub use start::{StartPlan, WholeParts, plan_start};

use crate::settings::Architecture;

/// What stands before the names of the image tower.
pub const IMAGE_PREFIX: &str = "image.";
/// What stands before the names of the attribute tower.
pub const ATTRIBUTES_PREFIX: &str = "attributes.";
/// PyTorch's count of batches, of no use with a fixed momentum: skipped when read.
pub const BATCH_COUNT: &str = "num_batches_tracked";

/// Width and depth of a ResNet.
struct Shape {
    width: usize,
    depths: [usize; 4],
    bottleneck: bool,
}

impl Shape {
    fn of(architecture: Architecture) -> Self {
        let (width, depths, bottleneck) = match architecture {
            Architecture::CnnS => (32, [2, 2, 2, 2], false),
            Architecture::ResNet18 => (64, [2, 2, 2, 2], false),
            Architecture::ResNet34 => (64, [3, 4, 6, 3], false),
            Architecture::ResNet50 => (64, [3, 4, 6, 3], true),
            Architecture::ResNet101 => (64, [3, 4, 23, 3], true),
        };
        Self { width, depths, bottleneck }
    }

    fn expansion(&self) -> usize {
        if self.bottleneck { 4 } else { 1 }
    }
}

/// F, the number of features that the head of an architecture takes.
pub fn features(architecture: Architecture) -> usize {
    let shape = Shape::of(architecture);
    8 * shape.width * shape.expansion()
}

/// Names and shapes of a backbone's tensors, without the head.
pub fn backbone_tensors(architecture: Architecture) -> Vec<(String, Vec<usize>)> {
    let shape = Shape::of(architecture);
    let mut tensors = Vec::new();
    unit(&mut tensors, "conv1", "bn1", [shape.width, 3, 7]);
    let mut inputs = shape.width;
    for (stage, depth) in shape.depths.iter().enumerate() {
        let planes = shape.width << stage;
        for block in 0..*depth {
            let name = format!("layer{}.{block}", stage + 1);
            let outputs = planes * shape.expansion();
            let branch: &[(usize, usize, usize)] = if shape.bottleneck {
                &[(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
            } else {
                &[(planes, inputs, 3), (planes, planes, 3)]
            };
            for (i, (c_out, c_in, kernel)) in (1..).zip(branch) {
                let (conv, norm) = (format!("{name}.conv{i}"), format!("{name}.bn{i}"));
                unit(&mut tensors, &conv, &norm, [*c_out, *c_in, *kernel]);
            }
            if block == 0 && (stage > 0 || inputs != outputs) {
                let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                unit(&mut tensors, &conv, &norm, [outputs, inputs, 1]);
            }
            inputs = outputs;
        }
    }
    tensors
}

/// A convolution without bias and the batch norm behind it.
fn unit(tensors: &mut Vec<(String, Vec<usize>)>, conv: &str, norm: &str, [c_out, c_in, kernel]: [usize; 3]) {
    tensors.push((format!("{conv}.weight"), vec![c_out, c_in, kernel, kernel]));
    for part in ["weight", "bias", "running_mean", "running_var"] {
        tensors.push((format!("{norm}.{part}"), vec![c_out]));
    }
}

/// Shape of the head's weight for embeddings of dimension D.
pub fn head_shape(architecture: Architecture, embedding_dim: u32) -> Vec<usize> {
    vec![embedding_dim as usize, features(architecture)]
}
